"""Several folds and seeds in one command."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import refuse, succeed

from dclr import repeat
from dclr.errors import InputError
from dclr.evaluate import EvalConfig

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
    out.mkdir(parents=True)
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
    with pytest.raises(InputError, match="it holds result"):
        repeat.repeat(config, (1, 2, 3), (0, 1), pretend)
    (tmp_path / "a/result.json").unlink()
    shutil.rmtree(tmp_path / "a/fold2-seed1")  # killed there
    with pytest.raises(InputError, match=r"made with lr 0.5, not 0.1; name another --out, or --force"):
        repeat.repeat(replace(config, lr=0.1), (1, 2, 3), (0, 1), pretend)
    with pytest.raises(InputError, match="made with frames 16, not 8"):
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
    mean, one, two = (json.loads((tmp_path / "out" / name / "result.json").read_text()) for name in (".", "seed0", "seed1"))
    assert mean["top1"] == (one["top1"] + two["top1"]) / 2 and one["weights"] != two["weights"]
    assert "±" in said.splitlines()[-2] and mean["runs"] == ["seed0", "seed1"]
    assert said.splitlines()[-1] == str(tmp_path / "out/report.html")
    assert "it holds result.json" in refuse(*command, *splits, "--seeds", "0", "1")
    before = [(tmp_path / "out" / name / "result.json").stat().st_mtime_ns for name in (".", "seed0", "seed1")]
    succeed(*command, *splits, "--seeds", "0", "1", "--force", ranks=2)
    after = [(tmp_path / "out" / name / "result.json").stat().st_mtime_ns for name in (".", "seed0", "seed1")]
    assert all(new > old for new, old in zip(after, before, strict=True))
    assert "or --folds in the place of both" in refuse(*command)
    assert "or --folds in the place of both" in refuse(*command, *splits, "--folds", "1")
    assert "it has: test (32), train (64)" in refuse(*command[:-1], tmp_path / "folds", "--folds", "1", "2")
