"""An evaluation beside another one: paired video by video, and refused where the videos are others."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import refuse, succeed

from dclr.errors import InputError
from dclr.evaluation import baseline
from dclr.evaluation.baseline import Each, against, keep, read, verdict
from dclr.metrics import Metric, accuracies, each_accuracy, means, paired

KINDS = {"top1": Metric("share"), "mean_class": Metric("percent"), "away": Metric("number")}


def evaluated(
    folder: Path, right: list[int], label: str = "run", first: int = 0, skipped: tuple[str, ...] = (), **more
) -> Path:
    """An evaluation's folder: video n has the key vn, and its class is named right or not."""
    folder.mkdir(parents=True)
    value = np.array(right, float)
    result = {
        "top1": value.mean(), "away": 3.5, "metrics": {"top1": {"kind": "share"}, "away": {"kind": "number"}}, "classes": 2,
        "skipped": list(skipped), "options": {"mode": "knn", "pretrained": "a.pt"}, "arch": "r3d_18", "width": 64,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result | more))
    keys = [f"v{n}" for n in range(first, first + len(right))]
    keep(folder, Each(len(right), keys, [label] * len(right), frozenset(skipped), {"top1": value}), ["run", "walk"])
    return folder


def test_the_interval_of_a_paired_difference_covers_it() -> None:
    """In about 95 of 100 draws, also where few videos differ; nothing that differs is no difference, however many videos."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(2000):
        low, high = paired(rng.choice([1, 0, -1], 60, p=[0.12, 0.83, 0.05]))
        held += low <= 0.07 <= high
    assert 0.93 <= held / 2000 <= 0.99
    low, high = paired(np.zeros(1000))
    assert -0.01 < low < 0 < high < 0.01 and paired(np.ones(50))[1] == 1 and paired(np.ones(2))[0] < 0


def test_what_videos_add_has_the_number_as_its_mean() -> None:
    rng = np.random.default_rng(0)
    scores, label = rng.random((50, 7)), rng.integers(0, 7, 50)
    each = each_accuracy(scores, label)
    assert means(each) == accuracies(scores, label)
    by_class = [each["top1"][label == c].mean() for c in np.unique(label)]
    assert means(each)["mean_class"] == pytest.approx(np.mean(by_class))
    assert means({"some": np.array([1, np.nan, 0, np.nan])}) == {"some": 0.5}


def test_videos_are_paired_by_key(tmp_path: Path) -> None:
    """In whatever order; 30 that one alone has right and 10 that the other alone has."""
    ours = evaluated(tmp_path / "ours", [1] * 30 + [0] * 10 + [1] * 60)
    theirs = evaluated(tmp_path / "theirs", [0] * 30 + [1] * 70)
    _, each = read(theirs)
    order = np.random.default_rng(0).permutation(100)
    keys, values = [each.keys[n] for n in order], {"top1": each.values["top1"][order]}
    keep(theirs, Each(100, keys, each.labels, each.skipped, values), [])
    found = against(read(ours)[1], KINDS, theirs)
    assert found["numbers"] == {"top1": 0.7, "away": 3.5} and found["difference"] == {"top1": pytest.approx(0.2)}
    assert [round(end, 3) for end in found["interval"]["top1"]] == [0.078, 0.315] and found["pretrained"] == "a.pt"
    assert [verdict(ends) for ends in ([0.1, 0.2], [-0.2, -0.1], [-0.1, 0.2], [0, 0.2])] == [
        "higher", "lower", "not told apart", "not told apart",
    ]  # fmt: skip


def test_another_baseline_is_refused_by_name(tmp_path: Path) -> None:
    ours = read(evaluated(tmp_path / "ours", [1, 0, 1]))[1]
    for name, more, message in (
        ("fewer", {"right": [1, 0]}, "it does not test 1 of the 3 videos, such as v2; expected an evaluation of the same test"),
        ("more", {"right": [1, 0, 1, 1]}, "it tests, as this does not, 1 of the 4 videos, such as v3"),
        ("others", {"right": [1, 0, 1], "first": 1}, "it does not test 1 of the 3 videos, such as v0"),
        ("label", {"right": [1, 0, 1], "label": "walk"}, "there v0 has the label walk, here run; expected .* the same --label"),
        ("numbers", {"right": [1, 0, 1], "metrics": {}}, "it has none of the numbers top1, mean_class, away"),
    ):
        folder = evaluated(tmp_path / name, **more)
        with pytest.raises(InputError, match=f"--baseline {folder}: {message}"):
            against(ours, KINDS, folder)
    skipping = evaluated(tmp_path / "skipping", [1, 0], skipped=("v2",))  # damaged, and left out
    assert against(ours, KINDS, skipping)["difference"] == {"top1": 0}
    (skipping / "scores.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"skipping/scores.safetensors: not what train_eval.py keeps"):
        against(ours, KINDS, skipping)
    (skipping / "scores.safetensors").unlink()
    with pytest.raises(InputError, match="it is not there; make the evaluation anew with --force"):
        against(ours, KINDS, skipping)
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        against(ours, KINDS, tmp_path / "nowhere")


def test_the_mean_of_folds_and_seeds_is_paired_too(tmp_path: Path) -> None:
    """Each fold as heavy as another, whatever its size; a video as the mean of its seeds."""
    rng, top1 = np.random.default_rng(0), []
    runs = [f"fold{fold}-seed{seed}" for fold in (1, 2) for seed in (0, 1)]
    for name in runs:
        right = rng.integers(0, 2, 10 if "fold1" in name else 40)
        top1.append(right.mean())
        evaluated(tmp_path / "mean" / name, right.tolist())
    result = {"top1": float(np.mean(top1)), "runs": runs, "metrics": {"top1": {"kind": "share"}}, "classes": 2}
    (tmp_path / "mean/result.json").write_text(json.dumps(result | {"options": {"mode": "knn", "pretrained": "a.pt"}}))
    _, each = read(tmp_path / "mean")
    assert each.videos == 50 and each.keys[9:11] == ["fold1/v9", "fold2/v0"]
    assert means(each.values) == {"top1": pytest.approx(result["top1"])}
    assert against(each, KINDS, tmp_path / "mean")["difference"] == {"top1": 0}


def test_an_evaluation_beside_a_baseline(synthetic_set: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Numbers, differences and page; a baseline that is given later; others are refused before anything is computed."""
    common = (
        "--shards", synthetic_set, "--train-split", "train", "--test-split", "test", "--pretrained", checkpoint, "--precision",
        "fp32", "-j", "0", "--test-clips", "1", "-cpv", "1", "--features", tmp_path / "features",
    )  # fmt: skip
    for mode, out, more in (("linear", "one", ()), ("knn", "two", ("--baseline", tmp_path / "one"))):
        said = succeed("train_eval.py", mode, *common, "--label", "scene", *more, "--out", tmp_path / out)
    (one, first), (two, second) = read(tmp_path / "one"), read(tmp_path / "two")
    found = two["baseline"]
    assert found["run"] == str(tmp_path / "one") and found["mode"] == "linear"
    for name in ("top1", "top5", "mean_class"):
        apart = second.values[name] - first.values[name]
        assert found["numbers"][name] == one[name] and found["difference"][name] == pytest.approx(two[name] - one[name])
        assert found["interval"][name] == pytest.approx(paired(apart))
        assert f"{100 * found['difference'][name]:+.1f}  " in said
    text = (tmp_path / "two/report.html").read_text()
    assert "<th>baseline</th><th>difference</th>" in text
    low, high = (f"{100 * end:+.1f}" for end in found["interval"]["top1"])
    assert f"{verdict(found['interval']['top1'])}</span><small>{low} to {high}</small>" in text
    made = (tmp_path / "one/result.json").read_bytes()
    succeed("-m", "dclr.report", tmp_path / "one", "--baseline", tmp_path / "two")
    assert "<th>baseline</th><th>difference</th>" in (tmp_path / "one/report.html").read_text()
    assert (tmp_path / "one/result.json").read_bytes() == made
    label = ("--label", "motion", "--baseline", tmp_path / "one", "--out", tmp_path / "three")
    assert "has the label" in refuse("train_eval.py", "knn", *common, *label) and not (tmp_path / "three").exists()
    fewer = ("--test-split", "train", "--train-split", "test", "--label", "scene", "--baseline", tmp_path / "one")
    assert "it does not test 64 of the 64 videos" in refuse(
        "train_eval.py", "knn", *common, *fewer, "--out", tmp_path / "three"
    )
    shutil.rmtree(tmp_path / "one")
    assert "one: no such folder" in refuse("train_eval.py", "knn", *common, *label)


def test_a_table_of_numbers_beside_a_baseline(tmp_path: Path) -> None:
    ours = evaluated(tmp_path / "ours", [1] * 40 + [0] * 60)
    theirs = evaluated(tmp_path / "theirs", [0] * 100)
    result, each = read(ours)
    rows = baseline.lines(result | {"baseline": against(each, KINDS, theirs)}).splitlines()
    assert rows[2].split() == ["top1", "40.0", "0.0", "+40.0", "+29.4", "to", "+49.1", "higher"]
    assert rows[3].split() == ["away", "3.5", "3.5"]
