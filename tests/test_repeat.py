"""Several folds and seeds in one command."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import refuse, run, succeed

from dclr import repeat
from dclr.errors import InputError
from dclr.evaluate import EvalConfig

CONFIG = EvalConfig(
    mode="finetune", shards="s", out="o", train_split=("train01",), test_split=("test01",), pretrained="x.pt", lr=0.5
)


def pretend(config: EvalConfig) -> dict:
    """An evaluation whose top-1 is known: 0.1 a fold and 0.01 a seed."""
    out = Path(config.out)
    out.mkdir(parents=True)
    fold = int(config.train_split[0].removeprefix("train"))
    result = {
        "top1": 0.1 * fold + 0.01 * config.seed, "videos": 10 * fold, "classes": 4, "label": "action", "arch": "r3d_18",
        "width": 64, "weights": "w", "set": "s", "versions": {}, "options": {**vars(config), "frames": 16},
    }  # fmt: skip
    assert config.test_split == (f"test{fold:02}",)
    (out / "result.json").write_text(json.dumps(result))
    return result


def test_the_mean_over_folds_and_seeds_and_what_was_made_is_kept(tmp_path: Path) -> None:
    config = replace(CONFIG, out=str(tmp_path / "a"))
    found = repeat.repeat(config, (1, 2, 3), (0, 1), pretend)
    values = [0.1, 0.11, 0.2, 0.21, 0.3, 0.31]
    assert found["top1"] == pytest.approx(np.mean(values)) and found["videos"] == 120
    assert found["deviation"]["top1"] == pytest.approx(np.std(values, ddof=1))
    assert found["runs"] == [f"fold{fold}-seed{seed}" for fold in (1, 2, 3) for seed in (0, 1)]
    assert json.loads((tmp_path / "a/result.json").read_text())["top1"] == found["top1"]
    with pytest.raises(InputError, match="it holds result"):
        repeat.repeat(config, (1, 2, 3), (0, 1), pretend)
    (tmp_path / "a/result.json").unlink()
    shutil.rmtree(tmp_path / "a/fold2-seed1")  # killed there
    with pytest.raises(InputError, match=r"made with --lr 0.5, not 0.1; name another --out, or --force"):
        repeat.repeat(replace(config, lr=0.1), (1, 2, 3), (0, 1), pretend)
    made = []
    again = repeat.repeat(replace(config, workers=3), (1, 2, 3), (0, 1), lambda one: made.append(one.out) or pretend(one))
    assert again["top1"] == found["top1"] and made == [str(tmp_path / "a/fold2-seed1")]


def test_seeds_in_one_command(synthetic_set: Path, tmp_path: Path) -> None:
    splits = ("--train-split", "train", "--test-split", "test")
    small = ("-a", "r2plus1d_10", "--width", "4", "-fpc", "4", "-cs", "32", "-j", "0", "--test-clips", "1", "-cpv", "1")
    command = ("train_eval.py", "knn", "--shards", synthetic_set, "--pretrained", "random", *small, "--out", tmp_path / "out")
    said = succeed(*command, *splits, "--seeds", "0", "1")
    mean, one, two = (json.loads((tmp_path / "out" / name / "result.json").read_text()) for name in (".", "seed0", "seed1"))
    assert mean["top1"] == (one["top1"] + two["top1"]) / 2 and one["weights"] != two["weights"]
    assert "±" in said.splitlines()[-1] and mean["runs"] == ["seed0", "seed1"]
    assert "it holds result.json" in refuse(*command, *splits, "--seeds", "0", "1")
    assert run(*command, *splits, "--seeds", "0", "1", "--force").returncode == 0
    assert "or --folds in the place of both" in refuse(*command)
    assert "or --folds in the place of both" in refuse(*command, *splits, "--folds", "1")
    assert "it has: test (32), train (64)" in refuse(*command[:-1], tmp_path / "folds", "--folds", "1", "2")
