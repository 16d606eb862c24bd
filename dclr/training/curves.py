"""What is seen of a training while it runs: its scalars as lines and as TensorBoard's events, and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
from torch.utils.tensorboard import SummaryWriter

from dclr.errors import dispensable, spared
from dclr.files import whole
from dclr.training.lines import LINES, read_lines


class Curves:
    """A run's scalars, as TensorBoard's events and as a line for each step in ``metrics.jsonl``, and its pictures.

    A resumed run goes on after the step ``after``: what was written for later steps is dropped, or everything where it is 0. On
    a full disk a line or picture is left out, with a warning; TensorBoard's writer then ends for good."""

    def __init__(self, out: Path, after: int):
        self._out, self._lines = out, out / LINES
        self._writer: SummaryWriter | None = None
        with spared(out):
            kept = [line for line in read_lines(out) if line["step"] <= after]
            with whole(self._lines) as part:  # a full disk leaves the lines that are there
                part.write_text("".join(json.dumps(line) + "\n" for line in kept))
            self._writer = SummaryWriter(out, purge_step=after + 1 if after else None)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        with spared(self._out), self._lines.open("a") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")
        with spared(self._out):
            for name, value in scalars.items():
                if self._writer:
                    self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, draw: Callable[[Path], object]) -> None:
        """The PNG that ``draw`` writes, as ``name``.png in the run's folder and among TensorBoard's images."""
        with dispensable(f"{name}.png"), spared(self._out):
            draw(path := self._out / f"{name}.png")
            if self._writer and (picture := cv2.imread(str(path))) is not None:
                self._writer.add_image(name, picture[..., ::-1], step, dataformats="HWC")

    def close(self) -> None:
        with spared(self._out):
            if self._writer:
                self._writer.close()
