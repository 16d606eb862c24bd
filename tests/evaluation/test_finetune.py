"""Finetuning: what is drawn, which statistics move, which epoch is tested, and that a killed run is no other run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, refuse, run, scalars, succeed
from safetensors.numpy import load_file

from dclr.checkpoint import load, load_trunk
from dclr.evaluation.finetune import Classifier, dropout
from dclr.method.backbones import build
from dclr.training import saver
from dclr.training.signals import PREEMPTED

WEIGHTS = ("--pretrained", "random", "-a", "r2plus1d_10", "--width", "4")
SPLITS = ("--train-split", "train", "--test-split", "test", "--label", "scene")
SMALL = (
    "-fpc",
    "4",
    "-cs",
    "32",
    "--precision",
    "fp32",
    "-j",
    "0",
    "--test-clips",
    "1",
    "-cpv",
    "1",
    "-b",
    "16",
    "--lr",
    "0.05",
)


def command(shards: Path, out: Path, *more: str) -> list[str]:
    return ["train_eval.py", "finetune", "--shards", str(shards), *SPLITS, *WEIGHTS, *SMALL, "--out", str(out), *more]


def test_dropout_is_drawn_for_each_video_of_each_step() -> None:
    """Whatever process a video is on, its draw is the same; kept features are raised so that the mean stays."""
    kept = dropout(2000, 0.25, 0, 7, ["a", "b", "c"])
    torch.testing.assert_close(dropout(2000, 0.25, 0, 7, ["b"]), kept[1:2])
    assert not torch.equal(kept[0], kept[1]) and not torch.equal(dropout(2000, 0.25, 0, 8, ["a"])[0], kept[0])
    assert not torch.equal(dropout(2000, 0.25, 1, 7, ["a"])[0], kept[0])
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert kept.mean() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("bn", ["sync", "frozen"])
def test_statistics_move_unless_they_are_frozen(bn: str) -> None:
    trunk = build("r2plus1d_10", 4)
    model = Classifier(trunk, 5, "bn", bn).train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    torch.manual_seed(0)
    model(torch.randn(3, 3, 4, 32, 32) + 1)
    moved = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    assert any(name.startswith("norm.running") for name in moved)  # the head's are new, and learn in both
    assert any(name.startswith("backbone") for name in moved) == (bn == "sync")
    assert "norm.weight" in before and not any(name.startswith("norm") for name in Classifier(trunk, 5).state_dict())


def test_killed_and_stopped_it_ends_with_the_same_scores(synthetic_set: Path, tmp_path: Path) -> None:
    """SIGKILL, then SIGTERM, then to the end: the bits of a run that was never stopped; another one's options are refused."""
    flags = ("--epochs", "4", "--val", "0.2", "--save-minutes", "0.0001")
    succeed(*command(synthetic_set, tmp_path / "straight", *flags))
    out = tmp_path / "cut"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for step, number, code in ((2, signal.SIGKILL, -signal.SIGKILL), (6, signal.SIGTERM, PREEMPTED)):
        process = subprocess.Popen(
            [sys.executable, *command(synthetic_set, out, *flags)], cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        while process.poll() is None and not any(saver.number(path) >= step for path in saver.found(out)):
            time.sleep(0.01)
        process.send_signal(number)
        said = process.communicate()[0]
        assert process.returncode == code, said
    assert "--lr 0.5: the run in" in refuse(*command(synthetic_set, out, *flags, "--lr", "0.5"))
    assert "resumed after step" in succeed(*command(synthetic_set, out, *flags))
    one, other = (load_file(folder / "scores.safetensors") for folder in (tmp_path / "straight", out))
    np.testing.assert_array_equal(one["scores"], other["scores"])
    for name in ("loss", "top1"):
        assert scalars(out)[f"finetune/{name}"][-1] == scalars(tmp_path / "straight")[f"finetune/{name}"][-1]
    assert f"{out} is finished: finetune on" in succeed(*command(synthetic_set, out, *flags))


def test_the_epoch_that_is_tested_is_chosen_on_what_is_held_out(synthetic_set: Path, tmp_path: Path) -> None:
    """At a rate of 0 no epoch is better than the first: --early-stop ends after two more, and its weights are those tested; a
    later evaluation reads them."""
    out = tmp_path / "run"
    succeed(
        *command(synthetic_set, out, "--epochs", "9", "--val", "0.25", "--early-stop", "2", "--lr", "1e-9", "--bn", "frozen")
    )
    result = json.loads((out / "result.json").read_text())
    assert result["val"]["epoch"] == 1 and 10 <= result["val"]["videos"] < 20
    assert len(scalars(out)["val/top1"]) == 3  # of nine epochs
    assert load(out / "last.pt")["loader"]["step"] == 3 * ((64 - result["val"]["videos"]) // 16)
    assert load_trunk(out / "best.pt").arch == "r2plus1d_10"
    again = (
        "--shards",
        synthetic_set,
        *SPLITS,
        *SMALL[: SMALL.index("--lr")],
        "--pretrained",
        out / "best.pt",
        "--out",
        tmp_path / "knn",
    )
    said = succeed("train_eval.py", "knn", *again)
    assert "unexpected  2    beside the trunk: fc" in said


def test_what_diverged_is_never_saved(synthetic_set: Path, tmp_path: Path) -> None:
    """Each step's weights are a million times as large as those before, until they are not finite."""
    out = tmp_path / "run"
    done = run(*command(synthetic_set, out, "--lr", "1000", "--wd", "1000", "--save-minutes", "0.0001"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: the loss or the weights were not finite by step" in done.stderr.strip().splitlines()[-1]
    for path in saver.found(out):
        assert all(torch.isfinite(x).all() for x in load(path)["model"].values() if x.is_floating_point()), path
