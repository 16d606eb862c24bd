"""docs/extending.md: its examples are written to files and its commands run, as they stand there."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import REPOSITORY, SMALL, render, scalars
from safetensors.numpy import load_file

from dclr.checkpoint import load_trunk
from dclr.cues import CUES, DYNAMICS, Cue, register
from dclr.data.clips import ClipConfig
from dclr.data.loader import TrainLoader
from dclr.data.manifest import ShardSet
from dclr.errors import InputError
from dclr.storage import open_folder
from preprocess.synthetic import encode
from preprocess.transcode import Options, transcode

DOCUMENT = (REPOSITORY / "docs/extending.md").read_text()
CHEAP = ["--precision", "fp32", "-j", "0"]


def example(section: str, folder: Path) -> list[list[str]]:
    """A section's commands; its Python file is written to ``folder``, and what its toml says is installed there."""
    text = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", DOCUMENT, re.S | re.M)
    assert text is not None
    commands = []
    for language, content in re.findall(r"^```(\w*)\n(.*?)^```$", text[1], re.S | re.M):
        if language == "python":
            (folder / content[3 : content.index(":")]).write_text(content)
        elif language == "toml":
            project = tomllib.loads(content)["project"]
            installed = folder / f"{project['name']}-{project['version']}.dist-info"
            installed.mkdir()
            (installed / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
            groups = project["entry-points"].items()
            lines = [line for group, of in groups for line in (f"[{group}]", *(f"{name} = {at}" for name, at in of.items()))]
            (installed / "entry_points.txt").write_text("\n".join(lines) + "\n")
        else:
            commands += [shlex.split(line) for line in content.splitlines()]
    return commands


def run(folder: Path, command: list[str], *more: str) -> subprocess.CompletedProcess[str]:
    """``python ...`` with further flags; the project and what lies in ``folder`` are installed."""
    assert command[0] == "python"
    launcher = [str(REPOSITORY / part) if part.startswith("train_") else part for part in command[1:]]
    environment = os.environ | {
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "LAB_STORE": str(folder / "store"),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *launcher, *more], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def succeed(folder: Path, command: list[str], *more: str) -> str:
    done = run(folder, command, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def drawn(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        made = folder / f"drawn-{number}.mp4"
        encode(render("left", "dots", (number,))[0], 25, made)
        made.rename(folder / name)


def test_another_data_set(tmp_path: Path) -> None:
    (command,) = example("Another data set", tmp_path)
    drawn(tmp_path / "videos", "1.mp4", "2.mp4", "3.mp4", "4.mp4")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/labels.csv").write_text("Swiping Left\nDrumming Fingers\n")
    (tmp_path / "lists/train.csv").write_text("1;Drumming Fingers\n9;Swiping Left\n3;Swiping Left\n")
    (tmp_path / "lists/validation.csv").write_text("2;Drumming Fingers\n")
    small = ("--size", "32", "--workers", "1")
    assert "3 videos in 1 shards" in succeed(tmp_path, command, *small)
    shards = ShardSet(tmp_path / "shards/gestures")
    assert shards.manifest.dataset == "gestures" and shards.manifest.splits == {"train": 2, "validation": 1}
    assert shards.manifest.classes == {"action": ["Swiping Left", "Drumming Fingers"]}
    assert dict(zip(shards.keys, shards.labels["action"].tolist(), strict=True)) == {"1": 1, "2": 1, "3": 0}
    lines = [json.loads(line) for line in (tmp_path / "shards/gestures/failures.jsonl").read_text().splitlines()]
    assert {line["path"]: line["stage"] for line in lines} == {"9.mp4": "missing", "4.mp4": "left-out"}

    drawn(tmp_path / "videos", "9.mp4")
    retry = ["python", "-m", "preprocess", "retry", "shards/gestures"]  # which knows nothing of gestures.py
    assert "4 videos in 2 shards" in succeed(tmp_path, retry, "--workers", "1")
    (tmp_path / "lists/validation.csv").write_text("2;Drumming Fingers\n4;Waving\n")
    refused = run(tmp_path, command, *small, "--append")
    said = "error: lists/validation.csv, line 2: '4;Waving', expected 'number;class' with a class of labels.csv"
    assert refused.returncode == 2 and refused.stderr.splitlines()[-1] == said


@pytest.fixture
def registered() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    before = [(table, dict(table)) for table in (CUES, DYNAMICS)]
    yield
    for table, entries in before:
        table.clear()
        table.update(entries)


def sliding(folder: Path, name: str) -> None:
    """A video of 64 x 64 pixels in which a light square moves to the right by 2 pixels a frame."""
    frames = np.full((12, 64, 64, 3), 60, np.uint8)
    for t, frame in enumerate(frames):
        frame[20:40, 10 + 2 * t : 30 + 2 * t] = 200
    encode(frames, 25, folder / name)


@pytest.mark.parametrize("codec", ["jpeg", "h264"])
@pytest.mark.usefixtures("registered")
def test_another_cue(tmp_path: Path, codec: str) -> None:
    make, verify, pretrain = example("Another cue", tmp_path)
    for name in ("a", "b", "c", "d"):
        sliding(tmp_path / "videos/all", f"{name}.mp4")
    succeed(tmp_path, make, "--size", "32", "--workers", "1", "--codec", codec)
    assert "no faults" in succeed(tmp_path, verify, "--workers", "1")
    stats, preview = (["python", "half.py", "preprocess", *more] for more in (["stats"], ["preview"]))
    assert "cues diff, half" in succeed(tmp_path, [*stats, "shards/half"])
    succeed(tmp_path, [*preview, "shards/half", "--out", "sheet.png", "--videos", "1"])
    assert (tmp_path / "sheet.png").is_file()

    for command in (["python", "-m", "preprocess", "verify", "shards/half"], ["python", "train_pretrain.py", *pretrain[3:]]):
        refused = run(tmp_path, [part if part != "half" else "rgbdiff" for part in command])
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "cue 'half'" in refused.stderr
        assert "start the file that registers it (docs/extending.md, Another cue)" in refused.stderr
    refused = run(tmp_path, ["python", "train_pretrain.py", *pretrain[3:]])
    assert refused.returncode == 2 and "--dynamic half: expected one of rgbdiff, cue, flow" in refused.stderr

    runpy.run_path(str(tmp_path / "half.py"))
    shards = ShardSet(tmp_path / "shards/half")
    assert shards.manifest.options["cues"] == ["diff", "half"]
    record = shards.read(0)
    small = record.pictures("half", range(12)).astype(int)
    luma = record.frames(range(12)).astype(int).mean(-1)  # grey pictures
    exact = np.diff(luma.reshape(12, 16, 2, 16, 2).mean((2, 4)), axis=0) / 2 + 128
    assert small.shape == (12, 16, 16) and small.max() > 150 and small.min() < 106
    assert np.abs(small[1:] - exact).mean() < 2 and np.abs(small[1:] - exact).max() < 16
    assert (small[0] == small[1]).all()
    peak = record.array("peak")  # the square's edges move by half a pixel there
    assert peak.shape == (12,) and np.abs(peak - (200 - 60) / 2).max() <= 2

    for flip in (0.0, 1.0):
        clip = ClipConfig(frames=5, stride=2, size=32, min_scale=1, flip=flip, cue="half")
        for batch in TrainLoader(shards, np.arange(4), clip, clips=2, batch=4, seed=0, epochs=1):
            for row, sample in enumerate(batch["sample"].tolist()):
                for cue, at in zip(batch["cue"][row].numpy(), batch["frames"][row].numpy(), strict=True):
                    pictures = shards.read(sample).pictures("half", at)[:, :, :: -1 if flip else 1]
                    whole = np.stack([cv2.resize(picture, (32, 32), interpolation=cv2.INTER_LINEAR) for picture in pictures])
                    assert np.abs(cue.astype(int) - whole).max() <= 1 and whole.max() > 140

    succeed(tmp_path, pretrain, *SMALL, "-b", "2", "--mined", "1", "--epochs", "1")
    assert (tmp_path / "runs/half/last.pt").is_file()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "diff"}, "there is a cue, an array or a dynamic view of that name"),
        ({"name": "none"}, "of that name"),
        ({"name": "rgbdiff"}, "of that name"),
        ({"view": "cue"}, "of that name"),
        ({"arrays": {"grid": ("<f4", ())}}, "of that name"),
        ({"name": "optical_flow"}, "expected names that match"),
        ({"name": "../x"}, "expected names that match"),
        ({"arrays": {"a.b": ("<f4", ())}}, "expected names that match"),
        ({"vectors": True}, "vectors need an array 'mine' of"),
    ],
)
@pytest.mark.usefixtures("registered")
def test_a_cue_that_cannot_be_told_from_others_is_not_registered(wrong: dict[str, Any], says: str) -> None:
    before = dict(CUES), dict(DYNAMICS)
    with pytest.raises(ValueError, match=says):
        register(Cue(**{"name": "mine", "compute": tuple, "picture": lambda height, width: (height, width)} | wrong))
    assert before == (CUES, DYNAMICS)


@pytest.mark.usefixtures("registered")
def test_a_cue_that_is_not_computed_as_announced_fails_by_name(tmp_path: Path) -> None:
    sliding(tmp_path, "a.mp4")
    small = Cue("small", lambda pair: (pair.luma_HW[1:],), picture=lambda height, width: (height, width))
    few = Cue("few", lambda pair: (pair.luma_HW[0, :3],), arrays={"few": ("<f4", (4,))})
    for cue, says in (
        (small, r"'small': uint8 \(31, 32\), expected uint8 \(32, 32\)"),
        (few, r"few is \(3,\) a frame, .*\(4,\)"),
    ):
        register(cue)
        with pytest.raises(ValueError, match=says):
            list(transcode(tmp_path / "a.mp4", Options(size=32, cues=(cue.name,))))


def test_another_backbone(synthetic_set: Path, tmp_path: Path) -> None:
    pretrain, evaluate = example("Another backbone", tmp_path)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/demo").symlink_to(synthetic_set)
    small = ["--width", "4", "-fpc", "4", "-cs", "32", *CHEAP, "-b", "16"]
    succeed(tmp_path, pretrain, *small, "--epochs", "1", "--bn", "shuffle", "--checkpoint-gradients")
    succeed(tmp_path, evaluate, *CHEAP, "-cpv", "1", "--test-clips", "1")
    result = json.loads((tmp_path / "runs/c3d-linear/result.json").read_text())
    assert (result["options"]["arch"], result["options"]["width"]) == ("c3d", 4) and 0 <= result["top1"] <= 1
    features = [load_file(path)["value"] for path in (tmp_path / "runs/c3d-linear/features").glob("*.safetensors")]
    assert {value.shape[-1] for value in features} == {16} and all(np.ptp(value) > 0 for value in features)
    with pytest.raises(InputError, match="it says its network is 'c3d', expected one of r2plus1d_10, "):
        load_trunk(tmp_path / "runs/c3d/last.pt")  # by those who have no c3d.py


BY_HAND = """
import torch
import decoupled
from dclr.method import losses

own = torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64, requires_grad=True)
queue = torch.tensor([[0.3, 2.0, -1.0, 4.0]] * 3, dtype=torch.float64, requires_grad=True)
allowed = torch.tensor([[True, True, True, False], [True, True, False, False], [False] * 4])
mined = torch.tensor([[False, True, False, True], [False] * 4, [True, False, False, False]])
loss = losses.contrast(own, queue, allowed, mined, decoupled.FORMS["decoupled"])
loss.backward()
e = lambda *x: torch.tensor(x, dtype=torch.float64).logsumexp(0)
torch.testing.assert_close(loss.detach(), (e(0.3, -1.0) - e(1.0, 2.0) + e(0.3, 2.0) - -2.0 + 0) / 3)
assert torch.isfinite(own.grad).all() and torch.isfinite(queue.grad).all()
assert not own.grad[2].any() and not queue.grad[2].any() and own.grad[:2].all()
"""


def test_another_contrast(synthetic_set: Path, tmp_path: Path) -> None:
    (pretrain,) = example("Another contrast", tmp_path)
    succeed(tmp_path, ["python", "-c", BY_HAND])
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/demo").symlink_to(synthetic_set)
    small = [*SMALL, "-b", "16", "--epochs", "1", "--queue", "16", "--mined", "3"]
    succeed(tmp_path, pretrain, *small)
    succeed(tmp_path, pretrain, *small, "--loss", "mil", "--out", "runs/mil")
    found, mil = (json.loads((tmp_path / "runs" / name / "metrics.jsonl").read_text()) for name in ("decoupled", "mil"))
    assert found["contrast/mined"] == mil["contrast/mined"] == 3
    for term in ("L_vv", "L_sv", "L_dv", "L_vs", "L_vd"):  # about log(13 / 4) and log(17 / 4)
        assert np.isfinite(found[f"loss/{term}"]) and found[f"loss/{term}"] < mil[f"loss/{term}"]
    refused = run(tmp_path, ["python", "train_pretrain.py", *pretrain[2:]], *small)  # by those who have no decoupled.py
    assert refused.returncode == 2 and "--loss decoupled: expected one of mil, masked, mean-log" in refused.stderr
    assert load_trunk(tmp_path / "runs/decoupled/last.pt").arch == "r2plus1d_10"
    assert "{mil,masked,mean-log,decoupled}" in succeed(tmp_path, ["python", "decoupled.py", "--help"])


def test_another_evaluation_mode(synthetic_set: Path, tmp_path: Path) -> None:
    evaluate, side_by_side = example("Another evaluation mode", tmp_path)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/demo").symlink_to(synthetic_set)
    small = ("--width", "4", "-fpc", "4", "-cs", "32", *CHEAP, "-cpv", "2", "--test-clips", "2")
    said = succeed(tmp_path, evaluate, *small)
    out = tmp_path / "runs/nearest-mean"
    result = json.loads((out / "result.json").read_text())

    kept = {len(kept["sample"]): kept for kept in map(load_file, (out / "features").glob("*.safetensors"))}
    label_N = ShardSet(synthetic_set).labels["motion"]
    means = [kept[64]["value"][label_N[kept[64]["sample"]] == c].mean((0, 1)) for c in range(8)]
    nearest = [
        min((float(np.linalg.norm(asked - mean)), c) for c, mean in enumerate(means)) for asked in kept[32]["value"].mean(1)
    ]
    top1 = float(np.mean([c == label_N[sample] for (_, c), sample in zip(nearest, kept[32]["sample"], strict=True)]))
    distance = float(np.mean([found for found, _ in nearest]))
    assert result["nearest_mean"] == top1 and result["distance"] == pytest.approx(distance, rel=1e-4)
    assert set(result["interval"]) == {"nearest_mean"} and result["options"]["distance"] == "euclidean"
    assert f"nearest-mean on motion: nearest_mean {100 * top1:.1f} %, distance {distance:.4g}, chance 12.5 %" in said
    assert scalars(out)["result/distance"] == [pytest.approx(distance, rel=1e-4)]

    page = (out / "report.html").read_text()
    low, high = result["interval"]["nearest_mean"]
    row = f"{100 * top1:.1f} %</td><td>{100 * low:.1f} % - {100 * high:.1f} %</td>"
    assert "<th>value</th>" in page and f"<td>top-1 by the nearest class mean</td><td>{row}" in page
    assert f"<td>distance to it</td><td>{distance:.4g}</td><td></td>" in page and "the training videos nearest" in page
    head, _, row = succeed(tmp_path, side_by_side).splitlines()  # by those who have no nearest_mean.py
    assert re.split(r"  +", head)[7:] == ["top-1 by the nearest class mean", "distance to it", "chance", "majority"]
    assert row.split()[-4:] == [f"{100 * top1:.1f}", f"{distance:.4g}", "12.5", "12.5"]

    launch = ["python", "nearest_mean.py"]
    flags = {mode: succeed(tmp_path, [*launch, mode, "--help"]) for mode in ("nearest-mean", "linear", "all")}
    assert {mode for mode, text in flags.items() if "--distance" in text} == {"nearest-mean", "all"}
    assert {mode for mode, text in flags.items() if "--probe" in text} == {"linear", "all"}
    assert "\nnearest class mean:\n  --distance" in flags["nearest-mean"]
    assert "    nearest-mean" in succeed(tmp_path, [*launch, "--help"])
    common = evaluate[3:]
    refused = run(tmp_path, [*launch, "linear", *common])
    assert refused.returncode == 2 and "unrecognized arguments: --distance euclidean" in refused.stderr
    refused = run(tmp_path, [*launch, "nearest-mean", *common], "--distance", "far", "--force")
    assert refused.returncode == 2 and "--distance far: expected one of cosine, euclidean" in refused.stderr
    assert "is finished: nearest-mean on motion: top-1 by" in succeed(tmp_path, [*launch, "nearest-mean", *common], *small)
    refused = run(tmp_path, [*launch, "nearest-mean", *common], *small, "--distance", "cosine")
    assert refused.returncode == 2 and "was made with --distance euclidean; give that again" in refused.stderr
    several = ("--seeds", "0", "1", "--features", "features", "--out", "runs/several")
    succeed(tmp_path, [*launch, "nearest-mean", *common], *small, *several)
    mean = json.loads((tmp_path / "runs/several/result.json").read_text())
    assert set(mean["deviation"]) == {"nearest_mean", "distance"} and mean["metrics"] == result["metrics"]


def test_another_store(tmp_path: Path) -> None:
    preprocess, pretrain = example("Another store", tmp_path)
    drawn(tmp_path / "store/videos/walk", "1.mp4", "2.mp4")
    drawn(tmp_path / "store/videos/run", "3.mp4", "4.mp4")
    assert "4 videos in 1 shards" in succeed(tmp_path, preprocess, "--size", "32", "--workers", "1")
    local = [part.replace("lab://", "store/") for part in preprocess[:-1]]
    succeed(tmp_path, [*local, "local"], "--size", "32", "--workers", "1")
    for name in ("shard-000000.tar", "shard-000000.jsonl", "index.npz", "manifest.json"):
        assert (tmp_path / "store/shards/mine" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    assert "no faults" in succeed(tmp_path, ["python", "-m", "preprocess", "verify", "lab://shards/mine"], "--workers", "1")
    succeed(tmp_path, pretrain, *SMALL, "-j", "1", "-b", "2", "--mined", "1", "--epochs", "1")
    assert (tmp_path / "runs/mine/last.pt").is_file()


def test_a_store_that_is_not_there_is_not_taken_for_s3() -> None:
    with pytest.raises(InputError, match=r"Protocol not known: lab; check the name and what fsspec needs for lab$"):
        open_folder("lab://videos").files()
