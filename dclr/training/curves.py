"""What is seen of a training while it runs: its scalars as lines and as TensorBoard's events, and pictures."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import cv2
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from dclr.errors import dispensable, spared
from dclr.files import whole
from dclr.training.lines import LINES, read_lines

SETTINGS = ".settings"  # what the name of the events file with a run's settings ends in
MEAN_OVER = 10  # looks at a batch: 100 steps, fewer where epochs are short
OF_SPLITS = ("knn/", "val/")  # scalars of a whole split, not of a batch


class Curves:
    """A run's scalars, as TensorBoard's events and as a line for each step in ``metrics.jsonl``, its pictures and settings.

    A resumed run goes on after the step ``after``: what was written for later steps is dropped, or everything where it is 0. On
    a full disk a line or picture is left out, with a warning; TensorBoard's writer then ends for good."""

    def __init__(self, out: Path, after: int, settings: Mapping[str, Any]):
        self._out, self._lines, self._settings, self._step = out, out / LINES, settings, after
        self._writer: SummaryWriter | None = None
        self._last: dict[str, deque[float]] = {}  # of each scalar
        with spared(out):
            kept = [line for line in read_lines(out) if line["step"] <= after]
            for line in kept[-2 * MEAN_OVER :]:  # between two looks is at most one line of a split
                self._keep(line)
            with whole(self._lines) as part:  # a full disk leaves the lines that are there
                part.write_text("".join(json.dumps(line) + "\n" for line in kept))
            self._writer = SummaryWriter(out, purge_step=after + 1 if after else None)
            write_settings(out, settings, ended=False)

    def _keep(self, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            looks = 1 if name.startswith(OF_SPLITS) else MEAN_OVER
            self._last.setdefault(name, deque(maxlen=looks)).append(value)

    def means(self) -> dict[str, float]:
        """The running mean of each scalar: over the last :data:`MEAN_OVER` looks; of a whole split the last value."""
        return {name: fmean(values) for name, values in self._last.items()}

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._step = step
        self._keep(scalars)
        with spared(self._out), self._lines.open("a") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._add(scalars)

    def _add(self, scalars: Mapping[str, float]) -> None:
        with spared(self._out):
            for name, value in scalars.items():
                if self._writer:
                    self._writer.add_scalar(name, value, self._step)

    def picture(self, step: int, name: str, draw: Callable[[Path], object]) -> None:
        """The PNG that ``draw`` writes, as ``name``.png in the run's folder and among TensorBoard's images."""
        with dispensable(f"{name}.png"), spared(self._out):
            draw(path := self._out / f"{name}.png")
            if self._writer and (picture := cv2.imread(str(path))) is not None:
                self._writer.add_image(name, picture[..., ::-1], step, dataformats="HWC")

    def close(self) -> None:
        """At the run's end: its losses and accuracies at the end, by which runs are compared."""
        final = {name: mean for name, mean in self.means().items() if "loss" in name or "top1" in name or "knn" in name}
        self._add({f"at_end/{name}": mean for name, mean in final.items()})
        with spared(self._out):
            if self._writer:
                self._writer.close()
                write_settings(self._out, self._settings, ended=True)


def write_settings(out: Path, settings: Mapping[str, Any], ended: bool) -> None:
    """Write settings as TensorBoard's text and as its hyperparameters, beside which it shows the scalars in ``out``.

    They are a file of their own in the place of an earlier one: TensorBoard takes the first that it finds. No Experiment is
    written: it takes the first of these too, and without one it lists what differs between the runs."""
    for path in out.glob(f"events.*{SETTINGS}"):
        path.unlink()
    shown = {name: ", ".join(map(str, value)) if isinstance(value, list | tuple) else value for name, value in settings.items()}
    lines = [f"| {name} | {str(value).replace('|', '&#124;')} |" for name, value in shown.items()]
    with SummaryWriter(out, filename_suffix=SETTINGS) as writer:
        writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *lines]))
        _, start, end = hparams({name: value for name, value in shown.items() if name != "out"}, {})
        for summary in (start, end) if ended else (start,):
            writer.file_writer.add_summary(summary)
