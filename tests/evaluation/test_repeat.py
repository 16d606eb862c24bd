"""Several folds and seeds in one command."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, SMALL, refuse, run, succeed

from dclr.compare import compare
from dclr.errors import InputError
from dclr.evaluation import repeat
from dclr.evaluation.setting import EvalConfig

CONFIG = EvalConfig(
    mode="finetune", shards="s", out="o", train_split=("train01",), test_split=("test01",), pretrained="x.pt", lr=0.5
)


WEIGHTS = ["the file's hash"]


class Splits:
    """A set that has three folds."""

    def __init__(self, place: str):
        assert place == "s"

    def select(self, splits: tuple[str, ...]) -> None:
        if int(splits[0][-2:]) > 3:
            raise InputError(f"no split {splits[0]}")


def pretend(config: EvalConfig) -> dict:
    """An evaluation whose top-1 is known: 0.1 a fold and 0.01 a seed."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    fold = int(config.train_split[0].removeprefix("train"))
    result = {
        "top1": 0.1 * fold + 0.01 * config.seed, "videos": 10 * fold, "classes": 4, "label": "action", "arch": "r3d_18",
        "width": 64, "weights": WEIGHTS[-1], "set": "s", "versions": {}, "skipped": [],
        "options": {**vars(config), "frames": config.frames or 16},
    }  # fmt: skip
    assert config.test_split == (f"test{fold:02}",)
    (out / "result.json").write_text(json.dumps(result))
    return result


def test_the_mean_over_folds_and_seeds_and_what_was_made_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeat, "ShardSet", Splits)
    config = replace(CONFIG, out=str(tmp_path / "a"))
    found = repeat.repeat(config, (1, 2, 3), (0, 1), pretend)
    values = [0.1, 0.11, 0.2, 0.21, 0.3, 0.31]
    assert found["top1"] == pytest.approx(np.mean(values)) and found["videos"] == 60
    assert found["deviation"]["top1"] == pytest.approx(np.std(values, ddof=1))
    assert found["runs"] == [f"fold{fold}-seed{seed}" for fold in (1, 2, 3) for seed in (0, 1)]
    assert json.loads((tmp_path / "a/result.json").read_text())["top1"] == found["top1"]
    assert repeat.repeat(config, (1, 2, 3), (0, 1), lambda _: pytest.fail("evaluated again")) == repeat.read_result(
        tmp_path / "a"
    )
    with pytest.raises(InputError, match=r"--folds 1,2: the result in .*a was made with --folds 1,2,3; give that again"):
        repeat.repeat(config, (1, 2), (0, 1), pretend)
    with pytest.raises(InputError, match=r"--folds none: .* was made with --folds 1,2,3"):
        repeat.repeat(config, (), (0,), pretend)
    (tmp_path / "a/result.json").unlink()
    shutil.rmtree(tmp_path / "a/fold2-seed1")  # killed there
    with pytest.raises(InputError, match=r"--lr 0.1: .* was made with --lr 0.5; give that again, name another --out, or"):
        repeat.repeat(replace(config, lr=0.1), (1, 2, 3), (0, 1), pretend)
    with pytest.raises(InputError, match=r"--frames 8: .* with --frames 16"):
        repeat.repeat(replace(config, frames=8), (1, 2, 3), (0, 1), pretend)
    made = []
    again = repeat.repeat(replace(config, workers=3), (1, 2, 3), (0, 1), lambda one: made.append(one.out) or pretend(one))
    assert again["top1"] == found["top1"] and made == [str(tmp_path / "a/fold2-seed1")]
    assert again["options"]["folds"] == [1, 2, 3] and "seed" not in again["options"]
    for folder in ("a/fold2-seed1", "a/result.json"):
        shutil.rmtree(tmp_path / folder) if (tmp_path / folder).is_dir() else (tmp_path / folder).unlink()
    monkeypatch.setattr("test_repeat.WEIGHTS", ["another hash"])
    with pytest.raises(InputError, match="results are of different weights"):
        repeat.repeat(config, (1, 2, 3), (0, 1), pretend)
    (tmp_path / "a/fold1-seed0/result.json").write_text("{")
    with pytest.raises(InputError, match="not a result of"):
        repeat.repeat(config, (1, 2, 3), (0, 1), pretend)


def test_a_result_of_an_earlier_version_is_kept_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options hold what was asked for, no -a and the default width, beside what was used; and it knows no majority."""
    monkeypatch.setattr(repeat, "_hashes", lambda config: {})  # its set is nowhere
    config = replace(CONFIG, out=str(tmp_path / "old"), shards="https://me:pw@host/set?sig=1")
    made = pretend(config)
    made["options"] |= {"arch": None, "shards": "https://host/set"}
    made["width"] = 16  # the checkpoint's
    (tmp_path / "old/result.json").write_text(json.dumps(made))
    for kept in (config, replace(config, arch="r3d_18")):
        assert repeat.finished(kept) is not None
    with pytest.raises(InputError, match=r"--arch r2plus1d_10: .* with --arch r3d_18"):
        repeat.finished(replace(config, arch="r2plus1d_10"))
    with pytest.raises(InputError, match=r"--shards https://host/other: .* with --shards https://host/set"):
        repeat.finished(replace(config, shards="https://host/other"))
    said = compare([tmp_path / "old"]).splitlines()
    assert said[0].split()[-3:] == ["top1", "chance", "majority"] and said[2].split()[-3:] == ["10.0", "25.0", "-"]


@pytest.mark.parametrize(
    "metrics",
    [["top1"], {"top1": {}}, {"top1": "share"}, {"top1": {"kind": "shares"}}, {"top1": {"kind": "share", "title": 7}},
     {"top9": {"kind": "share"}}, {"label": {"kind": "share"}}, {"skipped": {"kind": "share"}}],
)  # fmt: skip
def test_a_result_that_says_no_metrics_of_its_numbers_is_refused(metrics: object, tmp_path: Path) -> None:
    made = pretend(replace(CONFIG, out=str(tmp_path))) | {"metrics": metrics}
    (tmp_path / "result.json").write_text(json.dumps(made))
    with pytest.raises(InputError, match=r"result.json: not a result of train_eval.py"):
        compare([tmp_path])


def test_a_bias_report_of_an_earlier_version_has_its_own_table(tmp_path: Path) -> None:
    """It has chance for none of its kinds of label."""
    for name, mode in (("linear", "linear"), ("bias", "bias")):
        made = pretend(replace(CONFIG, out=str(tmp_path / name), mode=mode))
        if mode == "bias":
            numbers = {"motion: whole": 0.5, "scene: whole": 0.75}
            made = numbers | {key: value for key, value in made.items() if key != "top1"} | {"random": {"motion: whole": 0.125}}
        (tmp_path / name / "result.json").write_text(json.dumps(made))
    runs, bias = (part.splitlines() for part in compare([tmp_path / "linear", tmp_path / "bias"]).split("\n\n"))
    assert len(runs) == 3 and runs[2].split()[:2] == ["linear", "linear"] and ":" not in runs[0]
    assert [re.split(r"  +", line) for line in (bias[0], *bias[2:])] == [
        ["test clips", "bias", "bias, random weights"],
        ["motion: whole", "50.0", "12.5"],
        ["scene: whole", "75.0", "-"],
        ["chance", "25.0", "25.0"],
    ]


def test_modes_that_give_one_name_to_different_numbers_have_a_column_each(tmp_path: Path) -> None:
    said = {"near": {"kind": "number", "title": "distance"}, "far": {"kind": "percent"}}
    for name, metric in said.items():
        made = {"away": 0.25} | pretend(replace(CONFIG, out=str(tmp_path / name))) | {"metrics": {"away": metric}}
        (tmp_path / name / "result.json").write_text(json.dumps(made))
    head, _, *rows = compare([tmp_path / name for name in said]).splitlines()
    assert head.split()[7:] == ["distance", "away", "chance", "majority"]
    assert [row.split()[-4:-2] for row in rows] == [["0.25", "-"], ["-", "25.0"]]


def test_the_network_that_was_used_is_what_is_compared(tmp_path: Path) -> None:
    """A result's options hold the checkpoint's width, which --width says nothing of; of random weights it does."""
    config = replace(CONFIG, out=str(tmp_path / "new"))
    made = pretend(config)
    made["options"] |= {"arch": "r3d_18", "width": 16}
    (tmp_path / "new/result.json").write_text(json.dumps(made | {"width": 16}))
    assert repeat.finished(config) is not None and repeat.finished(replace(config, arch="r3d_18")) is not None
    random = replace(config, pretrained="random", arch="r3d_18", width=16)
    made["options"] |= {"pretrained": "random"}
    (tmp_path / "new/result.json").write_text(json.dumps(made | {"width": 16}))
    assert repeat.finished(random) is not None
    with pytest.raises(InputError, match=r"--width 64: .* with --width 16"):
        repeat.finished(replace(random, width=64))


def test_folds_of_other_classes_have_a_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeat, "ShardSet", Splits)

    def fold(config: EvalConfig) -> dict:
        number = int(config.train_split[0].removeprefix("train"))
        more = {"classes": 3 + number, "chance": 1 / (3 + number), "majority": 0.1 * number, "seconds": 5.0}
        result = pretend(config) | more | {"unseen": {"action": ["run"]} if number == 2 else {}}
        (Path(config.out) / "result.json").write_text(json.dumps(result))
        return result

    found = repeat.repeat(replace(CONFIG, out=str(tmp_path / "a")), (1, 2), (0,), fold)
    assert found["classes"] == 4.5 and found["chance"] == (1 / 4 + 1 / 5) / 2 and found["majority"] == pytest.approx(0.15)
    assert found["unseen"] == {"action": ["run"]} and found["seconds"] == 10 and found["command"] and found["date"]
    assert json.loads((tmp_path / "a/result.json").read_text())["majority"] == found["majority"]
    assert compare([tmp_path / "a"]).splitlines()[2].split()[-2:] == ["22.5", "15.0"]
    assert "<td>majority</td><td>15.0</td>" in (tmp_path / "a/report.html").read_text()
    kinds = [{"motion: chance": 0.25, "scene: chance": 0.5}, {"motion: chance": 0.75, "scene: chance": 0.5}]
    assert repeat._averaged(kinds) == {"motion: chance": 0.5, "scene: chance": 0.5}


def test_what_cannot_be_is_refused_before_the_first_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeat, "ShardSet", Splits)
    config = replace(CONFIG, out=str(tmp_path / "b"))
    with pytest.raises(InputError, match="no split train09"):
        repeat.repeat(config, (1, 9), (0,), pretend)
    with pytest.raises(InputError, match="--seeds 5 5: expected each once"):
        repeat.repeat(config, (), (5, 5), pretend)
    assert not (tmp_path / "b").exists()


def test_seeds_in_one_command(synthetic_set: Path, tmp_path: Path) -> None:
    splits = ("--train-split", "train", "--test-split", "test")
    small = ("-a", "r2plus1d_10", "--width", "4", "-fpc", "4", "-cs", "32", "-j", "0", "--test-clips", "1", "-cpv", "1")
    command = ("train_eval.py", "knn", "--shards", synthetic_set, "--pretrained", "random", *small, "--out", tmp_path / "out")
    said = succeed(*command, *splits, "--seeds", "0", "1")
    assert said.count("random\nrandom weights\n") == 1
    mean, one, two = (json.loads((tmp_path / "out" / name / "result.json").read_text()) for name in (".", "seed0", "seed1"))
    assert mean["top1"] == (one["top1"] + two["top1"]) / 2 and one["weights"] != two["weights"]
    assert "±" in said.splitlines()[-2] and mean["runs"] == ["seed0", "seed1"]
    assert said.splitlines()[-1] == str(tmp_path / "out/report.html")
    assert f"{tmp_path}/out is finished: knn on motion: top1 " in succeed(*command, *splits, "--seeds", "0", "1")
    before = [(tmp_path / "out" / name / "result.json").stat().st_mtime_ns for name in (".", "seed0", "seed1")]
    assert succeed(*command, *splits, "--seeds", "0", "1", "--force", ranks=2).count("random\nrandom weights\n") == 1
    after = [(tmp_path / "out" / name / "result.json").stat().st_mtime_ns for name in (".", "seed0", "seed1")]
    assert all(new > old for new, old in zip(after, before, strict=True))
    assert "or --folds in the place of both" in refuse(*command)
    assert "or --folds in the place of both" in refuse(*command, *splits, "--folds", "1")
    assert "it has: test (32), train (64)" in refuse(*command[:-1], tmp_path / "folds", "--folds", "1", "2")


def test_evaluations_that_need_the_same_features_wait_for_one_another(synthetic_set: Path, tmp_path: Path) -> None:
    """Two at once make them once; two in one folder are refused."""
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time\nimport train_eval\nfrom dclr.evaluation import features\nfrom dclr.errors import exit_on_input_error\n"
        "forward = features.forward\nfeatures.forward = lambda *a: (time.sleep(0.15), forward(*a))[1]\n"
        "if __name__ == '__main__':\n    with exit_on_input_error():\n        train_eval.main()\n"
    )
    common = [
        "--shards", synthetic_set, "--train-split", "train", "--test-split", "test", *SMALL, "-cpv", "1",
        "--test-clips", "1", "--pretrained", "random", "--features", tmp_path / "features",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, slow, "linear", *common, "--out", tmp_path / "one"]
    first = subprocess.Popen(list(map(str, command)), cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
    while not list((tmp_path / "features").glob(".*.lock")):
        assert first.poll() is None
        time.sleep(0.01)
    second = run("train_eval.py", "knn", *common, "--out", tmp_path / "two")
    assert second.returncode == 0, second.stderr
    assert f"waiting for process {first.pid} on" in second.stderr and "train features from" in second.stdout
    assert first.communicate()[0].count("features from") == 0 and first.returncode == 0
    assert sorted(path.suffix for path in (tmp_path / "features").iterdir()) == [".safetensors"] * 2
