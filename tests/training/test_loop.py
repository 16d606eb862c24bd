"""The loop of training: what its bar says."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dclr.training.curves import Curves
from dclr.training.loop import Learner, train


class Counting(Learner):
    """Its loss is the number of the step, from 1 on."""

    title, clips, max_skipped, ends_here = "counting", 1, None, True

    def __init__(self) -> None:
        self.model = torch.nn.Linear(1, 1)
        self.optimiser = torch.optim.SGD(self.model.parameters(), 1.0)
        self.loader = [{}] * 5  # type: ignore[assignment]

    def rate(self, step: int) -> float:
        return 1.0

    def step(self, batch: dict[str, Any], step: int, look: bool) -> None:
        self.done = step + 1

    def check(self, done: int, saver: Any) -> None:
        pass

    def scalars(self, rate: float) -> dict[str, float]:
        return {"loss/total": float(self.done), "loss/L_vv": self.done / 4}

    def epoch(self, done: int, curves: Curves | None) -> bool:
        return False

    def state(self) -> Any:
        return SimpleNamespace(table=dict)


def test_the_bar_has_the_epoch_and_running_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a log too, and of a run that is resumed with what it had before. A batch is looked at after every epoch of 5 steps."""
    saver = SimpleNamespace(save=lambda *_: None, wait=lambda: None)
    for before, after, mean in ((0, 20, (5 + 10 + 15 + 20) / 4), (20, 70, (25 + 70) / 2)):  # of the last ten looks
        train(Counting(), saver, Curves(tmp_path, before, {}), before, after, 1.0)  # type: ignore[arg-type]
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"counting, epoch {after // 5}/{after // 5}: 100% {after}/{after} ")
        assert f"total={mean:.3f}, clips/s=" in line and line.rstrip("]").endswith(f"L_vv={mean / 4:.3f}")
