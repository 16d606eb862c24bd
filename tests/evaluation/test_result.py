"""What an evaluation leaves: numbers whatever becomes of the pictures, and the classes that occur."""

import json
import re
import stat
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from conftest import REAL, needs_real_data, refuse, run, succeed
from safetensors import safe_open

from dclr import canvas, checkpoint
from dclr.checkpoint import load
from dclr.compare import compare
from dclr.data.manifest import Entry, ShardSet, pack_columns
from dclr.errors import InputError, NotKept
from dclr.evaluation import result
from dclr.evaluation.setting import Classes
from dclr.metrics import Metric
from dclr.storage import Folder
from preprocess.stats import describe

SPLITS = ("--train-split", "train", "--test-split", "test")
TINY = ("-fpc", "4", "-cs", "32", "--precision", "fp32", "-j", "0", "--test-clips", "1", "-cpv", "1", "-b", "16")
RANDOM = ("--pretrained", "random", "-a", "r2plus1d_10", "--width", "4")


def relabelled(shards: Path, out: Path, kind: str, names: list[str], change: Callable[[Entry], Entry]) -> list[Entry]:
    """The same samples with other labels of one kind, and other splits; returns what the index then says."""
    opened, entries = ShardSet(shards), list[Entry]()
    for shard in opened.manifest.shards:
        lines = (shards / shard.index_name).read_text().splitlines()[1:]
        entries += [change(Entry(**json.loads(line))) for line in lines]
    splits = Counter(split for entry in entries for split in entry.splits)
    index = pack_columns(entries, sorted(splits), [kind])
    changed = {"classes": {kind: names}, "splits": dict(sorted(splits.items())), "index_sha256": sha256(index).hexdigest()}
    out.mkdir()
    (out / "index.npz").write_bytes(index)
    (out / "manifest.json").write_text(replace(opened.manifest, **changed).dumps())
    for shard in opened.manifest.shards:
        (out / shard.name).symlink_to(shards / shard.name)
    return entries


@pytest.fixture(scope="module")
def sparse(synthetic_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Entry], list[str]]:
    """A set that names 100,000 classes and has videos of seven: scene c is class 7 + 14,000 c. None is of scene 6, and only the
    test split has scene 3."""

    def change(entry: Entry) -> Entry:
        scene = entry.labels["scene"]
        splits = ["spare"] if scene == 6 or (scene == 3 and "train" in entry.splits) else entry.splits
        return replace(entry, label=7 + 14_000 * scene, labels={"scene": 7 + 14_000 * scene}, splits=splits)

    names = [f"class {n}" for n in range(100_000)]
    names[7 + 14_000], names[7 + 28_000], names[7 + 42_000] = "$x_1^{$", "日本語\n", "only\x1btested"
    out = tmp_path_factory.mktemp("sets") / "sparse"
    return out, relabelled(synthetic_set, out, "scene", names, change), names


def found(entries: list[Entry], split: str) -> list[int]:
    return [entry.labels["scene"] for entry in entries if split in entry.splits]


@pytest.mark.parametrize("mode", ["finetune", "linear", "knn", "retrieval", "fewshot", "bias"])
def test_classes_and_chance_are_those_that_occur(
    mode: str, sparse: tuple[Path, list[Entry], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Seven of 100,000; the one that training lacks is said, and none of its videos counts as right."""
    shards, entries, names = sparse
    out, features = tmp_path_factory.mktemp("run") / mode, tmp_path_factory.getbasetemp() / "features"
    own = {"finetune": ("--epochs", "1"), "fewshot": ("--shots", "1", "--features", features)}
    own |= {frozen: ("--features", features) for frozen in ("linear", "knn", "retrieval", "bias")}
    done = run(
        "train_eval.py", mode, "--shards", shards, *SPLITS, *RANDOM, *TINY, *own.get(mode, ()), "--out", out,
    )  # fmt: skip
    assert done.returncode == 0 and "could not be made" not in done.stderr, done.stderr
    said = json.loads((out / "result.json").read_text())
    train, test = found(entries, "train"), found(entries, "test")
    often = max(sorted(set(train)), key=train.count)
    absent = test.count(7 + 42_000)
    assert said["classes"] == 7 and said["videos"] == len(test) and said["unseen"] == {"scene": ["only\x1btested"]}
    prefix = "scene: " if mode == "bias" else ""
    chance, majority = (said[name][prefix + name] if prefix else said[name] for name in ("chance", "majority"))
    assert chance == 1 / 7 and majority == test.count(often) / len(test) > 0
    table = compare([out])
    for text in (done.stdout, table if prefix else table.splitlines()[0], (out / "report.html").read_text()):
        assert f"{prefix}chance" in text and f"{prefix}majority" in text
    assert f"{100 * majority:.1f}" in table and f"<td>{prefix}majority</td><td>{100 * majority:.1f}</td>" in text
    assert "no training video is of 1 of the classes of scene: only\\x1btested; " in done.stdout
    assert f"their {absent} test videos count as wrong" in done.stdout
    assert "<dt>scene unseen in training, counted wrong</dt><dd>only\\x1btested</dd>" in text
    if mode in ("finetune", "linear", "knn"):
        counts, most = np.array(said["confusion"]), 1 - absent / len(test)
        assert counts.shape == (7, 7) and counts.sum() == len(test) and counts[6].sum() == absent and not counts[:, 6].any()
        assert said["top1"] <= said["top5"] <= most and said["mean_class"] <= 6 / 7
        known = sorted(set(train))
        with safe_open(out / "scores.safetensors", "numpy") as scores:
            assert json.loads(scores.metadata()["classes"]) == [names[label] for label in [*known, 7 + 42_000]]
            assert scores.get_tensor("scores").shape == (len(test), 7) and not scores.get_tensor("scores")[:, 6].any()
            ours = [[*known, 7 + 42_000].index(label) for label in test]
            assert scores.get_tensor("label").tolist() == ours
        worst = said["confused"][0]
        pair = [names[label] for label in known] + ["only\x1btested"]
        assert counts[pair.index(worst["true"]), pair.index(worst["named"])] == worst["count"]
        assert worst["count"] == (counts - np.diag(counts.diagonal())).max()
        assert "Classes that are most often taken for another" in text
    if mode == "finetune":
        state = load(out / "last.pt")
        assert state["model"]["fc.weight"].shape == (6, 32) and state["classes"] == [names[label] for label in known]


def test_a_sets_picture_has_the_classes_that_occur(
    sparse: tuple[Path, list[Entry], list[str]], synthetic_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Side by side, whatever their numbers, each with its name where they are few; a name is no mathematics."""
    drawn = []
    write = canvas.write
    monkeypatch.setattr(canvas, "write", lambda figure, out: drawn.append(figure) or write(figure, out))
    describe(Folder(str(sparse[0])), tmp_path / "stats.png")
    names = [f"class {n}" for n in range(8)]
    relabelled(synthetic_set, tmp_path / "set", "$x_{$", names, lambda entry: replace(entry, labels={"$x_{$": 3}))
    describe(Folder(str(tmp_path / "set")), tmp_path / "stats.png")
    for figure, classes, kind in zip(drawn, (8, 1), ("scene", "$x_{$"), strict=True):
        axis = figure.axes[5]
        assert len(axis.patches) == classes and sum(one.get_width() for one in axis.patches) == 96
        assert kind in axis.get_xlabel()
    assert "$x_1^{$" in [label.get_text() for label in drawn[0].axes[5].get_yticklabels()]
    monkeypatch.setattr("preprocess.stats.NAMED", 7)
    describe(Folder(str(sparse[0])), tmp_path / "stats.png")
    (shape,) = drawn[2].axes[5].patches
    counts, edges, _ = shape.get_data()
    assert len(counts) == 8 and counts.sum() == 96 and edges[-1] == 8


def test_classes_by_hand() -> None:
    """Videos 0 and 1 are segments of one, so class 5 has two training videos and class 3 three."""

    class Shards:
        root = "a set"
        video_N = np.array([9, 9, 8, 1, 2, 3, 4, 5])
        labels = {"action": np.array([5, 5, 5, 3, 3, 3, 0, 5])}  # noqa: RUF012

        class manifest:
            classes = {"action": [f"n{n}" for n in range(6)]}  # noqa: RUF012

    classes = Classes(Shards, "action", np.arange(6), np.array([6, 7]))  # type: ignore[arg-type]
    assert classes.names == ["n3", "n5", "n0"] and classes.known == 2 and classes.majority == 0 and classes.chance == 1 / 3
    assert classes.number(np.array([0, 3, 5, 4, 99999, -1])).tolist() == [2, 0, 1, -1, -1, -1]
    assert classes.guessed(np.array([2, 1])) == 0 and classes.guessed(np.array([0, 1])) == 0.5
    Shards.manifest.classes = {"action": ["n0", "n1"]}
    with pytest.raises(InputError, match="a set: a video has action 5, of 2 classes"):
        Classes(Shards, "action", np.arange(6), np.array([6, 7]))  # type: ignore[arg-type]


def test_a_finetuning_of_other_classes_is_not_gone_on_with(
    sparse: tuple[Path, list[Entry], list[str]], synthetic_set: Path, tmp_path: Path
) -> None:
    """A checkpoint made before they were named in it is of all classes of its set: it goes on where these are the same."""

    def command(shards: Path, epochs: str) -> tuple:
        flags = ("--label", "scene", *RANDOM, *TINY, "--epochs", epochs)
        return ("train_eval.py", "finetune", "--shards", shards, *SPLITS, *flags, "--out", tmp_path / shards.name)

    for shards in (synthetic_set, sparse[0]):
        out = tmp_path / shards.name
        succeed(*command(shards, "1"))
        (out / "result.json").unlink()
        for path in sorted(out.glob("*.pt")):
            state = load(path)
            del state["classes"]
            path.unlink()
            checkpoint.save(path, state)
    assert "resumed after step" in succeed(*command(synthetic_set, "2"))
    assert "its checkpoints are of other classes than --train-split has" in refuse(*command(sparse[0], "2"))


BREAKS = """
import errno, os, sys
import train_eval
from dclr import figures
from dclr.evaluation import baseline, page, result
def broken(*_):
    there = sorted(p.name for p in result.Path(sys.argv[-1]).iterdir())
    raise ValueError(f"no ink, beside {there}")
def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
os.umask(0o027)
figures.confusion_matrix = broken
if sys.argv.pop(1) == "full":
    result.SummaryWriter = page.write = baseline.save = full
train_eval.main()
"""


@pytest.mark.parametrize("disk", ["full", "free"])
def test_what_fails_after_the_numbers_costs_itself_alone(
    disk: str, synthetic_set: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """A drawing that raises, and a disk that takes no more: exit code 0, result.json stands and names what is there."""
    (tmp_path / "breaks.py").write_text(BREAKS)
    out = tmp_path / "out"
    flags = ("--shards", synthetic_set, *SPLITS, "--label", "scene", "--pretrained", checkpoint, *TINY)
    done = run(tmp_path / "breaks.py", disk, "linear", *flags, "--out", out)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    drawing = re.search(r"warning: confusion.png could not be made \(ValueError: no ink, beside \[(.*)\]\)", done.stderr)
    assert drawing and "'result.json'" in drawing[1] and ".png" not in drawing[1]  # the numbers come first
    assert ("'scores.safetensors'" in drawing[1]) == (disk == "free")
    warned = re.findall(r"^warning: (\S+)", done.stderr, re.MULTILINE)
    expected = ["scores.safetensors", "confusion.png", "TensorBoard's", "report.html"] if disk == "full" else ["confusion.png"]
    assert warned == expected
    said = json.loads((out / "result.json").read_text())
    assert said["pictures"] == ["classes.png", "neighbours.png", "maps.png"] and not (out / "confusion.png").exists()
    assert all((out / name).stat().st_size > 1000 for name in said["pictures"])
    assert (out / "report.html").exists() == (disk == "free")
    for path in [out / "result.json", *out.glob("*.png"), *out.glob("*.html"), *out.glob("*.safetensors")]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o640, path  # as the umask says
    # what was used and on what
    assert said["options"]["arch"] == said["arch"] == "r2plus1d_10" and said["options"]["width"] == said["width"] == 4
    assert datetime.fromisoformat(said["date"]).utcoffset() is not None and said["seconds"] > 0
    assert said["hardware"]["cores"] >= said["hardware"]["threads"] == 1 and said["hardware"]["memory_gb"] > 0
    assert said["hardware"]["processor"] and said["hardware"]["processes"] == 1 and "linear --shards" in said["command"]
    if disk == "free":
        text = (out / "report.html").read_text()
        assert "Confusion matrix" not in text and "Each class, with 95 %" in text
        text = text.replace("<span>", "").replace("</span>", "")
        for shown in (said["date"].replace("T", " "), said["hardware"]["processor"], "linear --shards", "r2plus1d_10, width 4"):
            assert shown in text


def test_a_command_is_kept_without_what_is_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_eval.py", "knn", "--shards", "https://me:pw@host/set?sig=pw", "--out", "a b"])
    assert result.circumstances(1)["command"] == "train_eval.py knn --shards https://host/set --out 'a b'"


def test_numbers_that_the_disk_does_not_take_are_said(tmp_path: Path) -> None:
    with pytest.raises(NotKept, match=r"result.json: cannot be written .*free some space.* It found: top1 12\.5 %"):
        result.write(tmp_path / "gone", {"top1": 0.125}, "top1 12.5 %")
    assert not list(tmp_path.iterdir())


def test_a_number_may_not_take_a_name_that_the_result_has() -> None:
    setting, metric = MagicMock(began=0.0, skipped=[], kind="action", dtype=torch.float32), Metric("number")
    for name in ("videos", "peak", "date"):
        with pytest.raises(ValueError, match=f"a number is called '{name}', which result.json has .*'found': 0.5"):
            numbers = {"found": 0.5, name: 1.0}
            result._made(setting, numbers, dict.fromkeys(numbers, metric), np.arange(3), {"peak": 2}, ())


@needs_real_data
def test_awkward_lists_give_results(synthetic_set: Path, tmp_path: Path) -> None:
    """The lists of ../shared/data/reports, over drawn videos: classes that are numbers far apart, mathematics and other scripts
    in names, and a class that training lacks."""
    videos = sorted((synthetic_set / "videos").rglob("*.*"))[:7]
    for n, video in enumerate(videos, 1):
        (tmp_path / f"{n}.mp4").symlink_to(video)
    for name, classes in (("l300", 2), ("sparse", 2), ("mathname", 2), ("unseen", 3)):
        file, shards, out = REAL / f"reports/lists/{name}.csv", tmp_path / name, tmp_path / f"{name}-run"
        flags = ("--root", tmp_path, "--follow-links", "--list", file, "--out", shards, "--size", "32", "--cues", "none")
        succeed("-m", "preprocess", "csv", *flags)
        done = run("train_eval.py", "knn", "--shards", shards, *SPLITS, *RANDOM, *TINY, "--out", out)
        said = json.loads((out / "result.json").read_text())
        assert done.returncode == 0 and said["classes"] == classes and said["chance"] == 1 / classes
        assert len(said["pictures"]) == 4 and "could not be made" not in done.stderr
        assert said["unseen"] == ({"action": ["C"]} if name == "unseen" else {})
        assert "Glyph" not in done.stderr and done.stderr.count("no font here") <= 4
