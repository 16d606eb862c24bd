"""The loop of training: what its bar says, and what it does where it cannot go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dclr.checkpoint import load
from dclr.errors import Unreachable
from dclr.training.curves import Curves
from dclr.training.loop import DUE, Learner, train
from dclr.training.saver import LAST, Saver, found
from dclr.training.state import PRETRAINING, TrainState


class Loader:
    """Three batches an epoch; the place of a real one."""

    def __init__(self, step: int, lost: int | None):
        self.step, self._lost = step, lost

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for _ in range(3 - self.step % 3):
            if self.step == self._lost:
                raise Unreachable("http://host/a.tar: ConnectionResetError: gone; no answer for 10 minutes (--patience)")
            self.step += 1
            yield {}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


class Counting(Learner):
    """Counts its steps and epochs; the store is lost at the step ``lost``, or in what comes after the epoch ``unjudged``."""

    title, clips, max_skipped, ends_here = "counting", 1, None, True

    def __init__(self, step: int = 0, lost: int | None = None, unjudged: int | None = None):
        self.model, self.loader = nn.Linear(1, 1), Loader(step, lost)  # type: ignore[assignment]
        self.optimiser = torch.optim.SGD(self.model.parameters(), 0.1)
        self.judged, self._unjudged = list[int](), unjudged

    def rate(self, step: int) -> float:
        return 0.1

    def step(self, batch: dict[str, Any], step: int, look: bool) -> None: ...

    def check(self, done: int, saver: Saver) -> None: ...

    def scalars(self, rate: float) -> dict[str, float]:
        return {}

    def epoch(self, done: int, curves: Any) -> bool:
        if done // 3 == self._unjudged:
            raise Unreachable("http://host/a.tar: gone")
        self.judged.append(done // 3)
        return False

    def state(self) -> TrainState:
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        return TrainState.of(PRETRAINING, {}, self.model, self.optimiser, scaler, self.loader, judged=list(self.judged))


def test_a_store_that_is_lost_costs_no_step(tmp_path: Path) -> None:
    """The checkpoint is of the last step, and once there, it is not written again where the next start gets no further."""
    saver = Saver(tmp_path, 9, 99)
    with pytest.raises(
        Unreachable, match=rf"\(--patience\); saved after step 4: the same command goes on from {tmp_path}/last.pt$"
    ):
        train(Counting(lost=4), saver, None, 0, 9, 60)
    state = load(tmp_path / LAST)
    assert state["step"] == state["loader"]["step"] == 4 and DUE not in state
    before = (tmp_path / LAST).stat().st_ino
    with pytest.raises(Unreachable, match="saved after step 4: the same command goes on"):
        train(Counting(step=4, lost=4), Saver(tmp_path, 9, 99), None, 4, 9, 60)
    assert (tmp_path / LAST).stat().st_ino == before and len(found(tmp_path)) == 2
    with pytest.raises(Unreachable, match=r"; start the same command again$"):
        train(Counting(lost=0), Saver(tmp_path / "new", 9, 99), None, 0, 9, 60)


def test_what_an_epochs_end_could_not_do_comes_first_in_the_next_start(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="saved after step 6"):
        train(Counting(unjudged=2), Saver(tmp_path, 9, 99), None, 0, 9, 60)
    state = load(tmp_path / LAST)
    assert state["step"] == 6 and state["judged"] == [1] and state[DUE]
    learner = Counting(step=6)
    train(learner, Saver(tmp_path, 9, 99), None, 6, 9, 60, due=True)
    assert learner.judged == [2, 3]
    assert DUE not in load(tmp_path / "step-000000006.pt") and not list(tmp_path.glob("*.abandoned"))
    assert [load(path)["step"] for path in found(tmp_path)] == [9, 6, 3]


class Numbered(Learner):
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
        train(Numbered(), saver, Curves(tmp_path, before, {}), before, after, 1.0)  # type: ignore[arg-type]
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"counting, epoch {after // 5}/{after // 5}: 100% {after}/{after} ")
        assert f"total={mean:.3f}, clips/s=" in line and line.rstrip("]").endswith(f"L_vv={mean / 4:.3f}")
