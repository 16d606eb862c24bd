"""The loop of training that pretraining and finetuning share: signals, saves, curves, bars, and the watch for what diverges."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import nn

from dclr import bars, distributed
from dclr.data.loader import TrainLoader, all_skipped
from dclr.data.workers import stop_workers
from dclr.errors import FeedLost
from dclr.hardware import peak_memory_gb
from dclr.method import norm
from dclr.patience import Interrupted
from dclr.training.curves import Curves
from dclr.training.saver import LAST, Saver, found, number
from dclr.training.signals import PREEMPTED, Preemption
from dclr.training.state import TrainState

LOG_EVERY = 10  # steps
DUE = "epoch_due"  # in a checkpoint: what Learner.epoch does at its step was broken off, and comes first in the next start
SAVE, STOP = 1, 2  # what a rank may ask for after a step; the ranks do the largest


class Learner(ABC):
    """What is trained, a step at a time. Every rank calls each method at the same steps.

    Attributes:
        title: the bar's. model: its BatchNorm statistics are averaged over the ranks.
        optimiser: the loop sets its learning rate. loader: gives this rank's batches.
        clips: how many a step takes, over all ranks.
        max_skipped: percent of the videos that may be skipped; None where a damaged video ends the run.
        ends_here: nothing comes after the last step, so a signal there is ignored.
    """

    title: str
    model: nn.Module
    optimiser: torch.optim.Optimizer
    loader: TrainLoader
    clips: int
    max_skipped: float | None
    ends_here: bool

    @abstractmethod
    def rate(self, step: int) -> float:
        """The learning rate of a step: a pure function of it."""

    @abstractmethod
    def step(self, batch: dict[str, Any], step: int, look: bool) -> None:
        """Learn from one batch. With ``look`` the loop calls :meth:`scalars` next."""

    @abstractmethod
    def check(self, done: int, saver: Saver) -> None:
        """Call :func:`diverged` where a loss since the last check, or a weight, is not finite."""

    @abstractmethod
    def scalars(self, rate: float) -> dict[str, float]:
        """The last step's losses and statistics by name, averaged over the ranks, and its learning rate ``rate``."""

    @abstractmethod
    def epoch(self, done: int, curves: Curves | None) -> bool:
        """Do what is due at an epoch's end; return True to end the training early. ``curves`` is None but on rank 0."""

    @abstractmethod
    def state(self) -> TrainState:
        """Everything that the next step depends on."""


def train(
    learner: Learner, saver: Saver, curves: Curves | None, first_step: int, last_step: int, save_minutes: float,
    due: bool = False,
) -> None:  # fmt: skip
    """The steps from ``first_step`` on. A checkpoint comes after each epoch, every ``save_minutes``, after a signal, which ends
    the run by SystemExit with :data:`PREEMPTED`, and before FeedLost is raised: a store did not answer, or a loader process is
    gone.

    With ``due`` what is due at the end of the epoch before ``first_step`` was not done (:data:`DUE`), and comes first."""
    loader, clock, next_save = learner.loader, Clock(learner.clips, first_step), time.monotonic() + 60 * save_minutes
    epochs = last_step // len(loader)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))  # epoch after epoch
    bar = bars.bar(total=last_step, initial=first_step, unit="step", desc=learner.title, disable=distributed.rank() != 0)
    done, saved, over, look = first_step, first_step, False, True
    with Preemption() as preemption, bar:
        try:
            if due:
                over, due = learner.epoch(done, curves), False
                if distributed.rank() == 0:
                    saver.save(done, learner.state().table(), again=True)
            for step in range(first_step, last_step):
                if over:
                    break
                batch = _next(batches, clock)
                rate = learner.rate(step)
                bar.set_description(f"{learner.title}, epoch {step // len(loader) + 1}/{epochs}", refresh=False)
                for group in learner.optimiser.param_groups:
                    group["lr"] = rate
                ends = (step + 1) % len(loader) == 0
                look = ends or (step + 1) % LOG_EVERY == 0
                learner.step(batch, step, look)
                bar.update()
                done = step + 1
                if look:
                    learner.check(done, saver)
                    scalars = learner.scalars(rate) | clock.speed(done) | _skipped(learner)
                    if curves:
                        curves.log(done, scalars)
                        bar.set_postfix(_short(curves.means(), scalars), refresh=False)
                if ends:
                    norm.average(learner.model)
                    due = True
                    over, due = learner.epoch(done, curves), False
                wish = distributed.agree(STOP if preemption.asked else SAVE if ends or time.monotonic() >= next_save else 0)
                if wish:
                    next_save, saved = time.monotonic() + 60 * save_minutes, done
                    _save(learner, saver, done, look)
                if wish == STOP and not (learner.ends_here and done == last_step):
                    _leave(done, saver)
        except (Interrupted, FeedLost) as ended:
            stop_workers()
            if done > saved:
                loader.load_state_dict(loader.state_dict() | {"step": done})  # this rank may have had its next batch
                _save(learner, saver, done, look, due)
            _leave(done, saver, ended, done > first_step)
    saver.wait()
    if curves:
        curves.close()


def _save(learner: Learner, saver: Saver, done: int, looked: bool, due: bool = False) -> None:
    if not looked:
        learner.check(done, saver)
    if done % len(learner.loader):
        norm.average(learner.model)
    if distributed.rank() == 0:
        saver.save(done, learner.state().table() | ({DUE: True} if due else {}))


def _next(batches: Iterator[dict[str, Any]], clock: Clock) -> dict[str, Any]:
    """The next batch. Where a rank cannot have its own, every rank raises why, and none is left alone in a step."""
    batch, ended = dict[str, Any](), None
    with clock:
        try:
            batch = next(batches)
        except (Interrupted, FeedLost) as error:
            ended = error
        distributed.unanimous(ended)
    return batch


class Clock:
    """Clips a second since the last look, and the share of that time in which the trainer waited for its loader."""

    def __init__(self, clips: int, step: int):
        self._clips = clips
        self._start(step)

    def _start(self, step: int) -> None:
        self._step, self._waited, self._began = step, 0.0, time.perf_counter()

    def __enter__(self) -> None:
        self._asked = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._waited += time.perf_counter() - self._asked

    def speed(self, done: int) -> dict[str, float]:
        seconds = time.perf_counter() - self._began
        found = {
            "speed/clips_per_second": (done - self._step) * self._clips / seconds,
            "speed/data_wait": self._waited / seconds,
            "memory/peak_gb": peak_memory_gb(),
        }
        self._start(done)
        return found


def _skipped(learner: Learner) -> dict[str, float]:
    if learner.max_skipped is None:
        return {}
    found = all_skipped(learner.loader.skipped, len(learner.loader.plan.source), learner.max_skipped)
    return {"data/skipped": len(found)}


def _short(means: Mapping[str, float], scalars: Mapping[str, float]) -> dict[str, str]:
    """The losses, as running means, and the speed, for the bar; what a narrow terminal cuts off comes last."""
    first, *others = ((name.rpartition("/")[2], f"{mean:.3f}") for name, mean in means.items() if "loss" in name)
    speed = ("clips/s", f"{scalars['speed/clips_per_second']:.1f}"), ("wait", f"{scalars['speed/data_wait']:.0%}")
    return dict([first, *speed, *others])


def _leave(done: int, saver: Saver, ended: BaseException | None = None, made: bool = True) -> NoReturn:
    """End the run after a signal, or because what feeds it is gone, when its checkpoint is written; ``made``: there is one of
    this start."""
    stop_workers()  # they may wait for long
    saver.wait()
    on = f"the same command goes on from {saver.folder / LAST}" if done else "start the same command again"
    if saver.kept == done or not made:
        if isinstance(ended, FeedLost):
            ended.args = (f"{ended}; {f'saved after step {done}: ' if done else ''}{on}",)
        elif distributed.rank() == 0:
            print(f"stopped by a signal after step {done}; {on}", flush=True)
    distributed.wait()  # until rank 0 has written: torchrun ends it as soon as another one leaves
    if made and distributed.rank() == 0:
        saver.require(done)
    if isinstance(ended, FeedLost):
        raise ended
    raise SystemExit(PREEMPTED)


def sound(model: nn.Module, *more: torch.Tensor) -> bool:
    """Whether every weight and buffer of a model, and ``more``, is finite. It asks the device once."""
    tensors = [x for x in (*model.state_dict().values(), *more) if x.is_floating_point()]
    return bool(torch.stack([x.detach().isfinite().all() for x in tensors]).all())


def diverged(saver: Saver, done: int, why: str) -> NoReturn:
    """End the run after step ``done``, on every rank, and name the good checkpoint; ``why`` says what was not finite."""
    saver.wait()
    distributed.wait()  # as where a signal ends the run
    good = distributed.from_first(next((path for path in found(saver.folder) if number(path) < done), None))
    kept = f"{good} is from before that" if good else "no checkpoint was saved before"
    raise FloatingPointError(f"{why}; {kept}; try --precision fp32 or a smaller --lr")
