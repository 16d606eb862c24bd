"""What a person would rather look at than read: activation maps over frames, the confusion matrix, tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.tensorboard import SummaryWriter

from dclr.model import Encoder, Views
from dclr.views import MEAN, STD

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SHOWN = 4  # videos, and frames of each, in the picture of maps


class Watch:
    """A run's scalars: TensorBoard's events, and a line a step in ``metrics.jsonl``. What was written after the step ``after``
    that a resumed run goes on from is dropped."""

    def __init__(self, out: Path, after: int):
        self._writer = SummaryWriter(out, purge_step=after + 1 if after else None)
        path = out / "metrics.jsonl"
        lines = path.read_text().splitlines() if after and path.exists() else []
        whole = [line for line in lines if line.endswith("}")]
        self._lines = path.open("w")
        self._lines.writelines(f"{line}\n" for line in whole if json.loads(line)["step"] <= after)
        self._lines.flush()

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._lines.write(json.dumps({"step": step, **scalars}) + "\n")
        self._lines.flush()

    def close(self) -> None:
        self._writer.close()
        self._lines.close()


@torch.no_grad()
def activation_maps(encoder: Encoder, views: Views, out: Path) -> Path:
    """Write a PNG: for up to four clips (views v, s, d, those that are trained, each (B, 3, T, H, W)) the frames, below them
    A(v), A(s), A(d).

    The maps are mean-1 activation maps of the encoder as it evaluates (BatchNorm by running statistics). Returns ``out``.
    """
    was_training = encoder.training
    encoder.eval()
    clips = {name: view[:SHOWN].float() for name, view in views.items()}
    frames = clips["v"].shape[2]
    maps = {name: encoder.map(clip, name) for name, clip in clips.items()}
    encoder.train(was_training)
    size = clips["v"].shape[2:]
    large = {name: F.interpolate(m.unsqueeze(1), size, mode="trilinear").squeeze(1).cpu() for name, m in maps.items()}
    rgb = (clips["v"].cpu() * torch.tensor(STD).view(3, 1, 1, 1) + torch.tensor(MEAN).view(3, 1, 1, 1)).clamp(0, 1)
    at = np.linspace(0, frames - 1, SHOWN).astype(int)
    columns = [(clip, t) for clip in range(len(rgb)) for t in at]
    figure, axes = plt.subplots(
        1 + len(maps), len(columns), figsize=(1.1 * len(columns) + 0.4, 1.15 * (1 + len(maps))), squeeze=False
    )
    for column, (clip, t) in enumerate(columns):
        for row, name in enumerate(("", *maps)):
            axis = axes[row, column]
            axis.imshow(rgb[clip, :, t].permute(1, 2, 0).numpy())
            if name:
                axis.imshow(large[name][clip, t].numpy(), cmap="jet", alpha=0.5, vmin=0, vmax=3)
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 0:
                axis.set_ylabel(f"A({name})" if name else "frame")
            if row == 0:
                axis.set_title(f"clip {clip + 1}, frame {t}", fontsize=7)
    figure.tight_layout(pad=0.3)
    return _write(figure, out)


def confusion_matrix(counts_CC: np.ndarray, names: Sequence[str], out: Path) -> Path:
    """Write a PNG of ``counts_CC`` (true class, named class), each row as shares of 1. Returns ``out``."""
    shares = counts_CC / np.maximum(counts_CC.sum(1, keepdims=True), 1)
    side = max(4.0, 0.28 * len(names) + 2)
    figure, axis = plt.subplots(figsize=(side + 1, side))
    image = axis.imshow(shares, cmap="viridis", vmin=0, vmax=1)
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.set_xlabel("named")
    axis.set_ylabel("true")
    figure.colorbar(image, fraction=0.046, label="share of the true class")
    figure.tight_layout()
    return _write(figure, out)


def _write(figure: plt.Figure, out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)
    return out


def table(rows: Sequence[Sequence[str]]) -> str:
    """Plain text columns; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
