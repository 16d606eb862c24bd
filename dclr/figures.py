"""Pictures of a run or an evaluation: activation maps over frames, neighbours, confusion matrix, bars, curves."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.ticker import MaxNLocator

from dclr import canvas
from dclr.canvas import LABELLED
from dclr.data.manifest import ShardSet
from dclr.errors import InputError
from dclr.method.views import GREY, MEAN, STD
from dclr.metrics import interval
from dclr.text import LETTERS, plain

SHOWN = 4  # videos, and frames of each, in the picture of maps
MOST_BESIDE = 10  # most videos beside a query
ROWS = {"v": "RGB clip v", "s": "static view s", "d": "dynamic view d"}
MARKS = {  # before a title, and its border: colour, line, width
    None: ("", "black", "-", 0.8),
    True: ("✓ ", "tab:green", "-", 3.0),
    False: ("✗ ", "tab:red", "--", 3.0),
}
SIDE = 256  # pixels, most of a frame's long side in a picture
NUMBERED = 30  # classes up to which a confusion matrix has its counts as numbers


def middle_frame(shards: ShardSet, sample: int) -> np.ndarray:
    """A small picture of a sample, uint8 (H, W, 3). A black one where the sample is damaged; the loader has named it."""
    try:
        record = shards.read(sample)
        frame = record.frames([len(record) // 2])[0]
    except InputError:
        return np.zeros((8, 8, 3), np.uint8)
    scale = SIDE / max(frame.shape[:2])
    return cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else frame


@torch.no_grad()
def activation_maps(
    active: Callable[[torch.Tensor, str], torch.Tensor], views: Mapping[str, torch.Tensor], names: Sequence[str], out: Path
) -> Path:
    """Write a PNG: frames of up to four clips, called ``names``, and under each view that is there (of v, s, d, each
    (B, 3, T, H, W)) its own activation map over it, all on one scale. Returns ``out``.

    ``active`` says the mean-1 activation map (B, T', H', W') of clips that are the named view, as its network evaluates.
    """
    clips = {name: view[:SHOWN].float() for name, view in views.items()}
    length, *side = clips["v"].shape[2:]
    maps = {
        name: F.interpolate(active(clip, name).unsqueeze(1).float(), (length, *side), mode="trilinear").squeeze(1).cpu()
        for name, clip in clips.items()
    }
    at = np.linspace(0, length - 1, SHOWN).astype(int)
    columns, rows = len(clips["v"]), 2 * len(clips)
    most = max(2.0, *(float(a_BTHW[:, at].max()) for a_BTHW in maps.values()))
    figure, axes = canvas.axes(rows, columns, 1.0 * columns * SHOWN + 1.4, 1.1 * rows + 0.4, layout="constrained")
    for line, (name, over) in zip(axes, itertools.product(clips, (False, True)), strict=True):
        seen_BCTHW = _visible(clips[name].cpu(), name)[:, :, at]
        for axis, seen_CTHW, a_THW in zip(line, seen_BCTHW, maps[name][:, at], strict=True):
            frames = np.concatenate(list(seen_CTHW.permute(1, 2, 3, 0).numpy()), 1)  # side by side
            if over:  # in middle greys, so that the colours are the map's
                axis.imshow(frames @ GREY, cmap="gray", vmin=-0.5, vmax=1.5)
                image = axis.imshow(np.concatenate(list(a_THW.numpy()), 1), cmap="viridis", alpha=0.55, vmin=0, vmax=most)
            else:
                axis.imshow(frames)
            for n in range(1, len(at)):
                axis.axvline(n * side[1] - 0.5, color="white", linewidth=1.5)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(f"A({name}) over {name}" if over else ROWS[name], fontsize=9)
    for axis, name in zip(axes[0], names, strict=False):
        axis.set_title(plain(name), fontsize=10)
    for axis in axes[-1]:
        axis.set_xticks((np.arange(len(at)) + 0.5) * side[1] - 0.5, [f"frame {t}" for t in at], fontsize=8)
        axis.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=40, label="activation A,\nin multiples of its\nmean over the clip")
    bar.ax.set_facecolor("0.5")
    return canvas.write(figure, out)


def _visible(clips_BCTHW: torch.Tensor, view: str) -> torch.Tensor:
    """Clips in 0..1: pictures as they were before normalisation, motion around grey, each clip by its own strength."""
    if view == "d":
        return 0.5 + 0.5 * clips_BCTHW / clips_BCTHW.abs().amax((1, 2, 3, 4), keepdim=True).clamp(min=1e-6)
    return (clips_BCTHW * torch.tensor(STD).view(3, 1, 1, 1) + torch.tensor(MEAN).view(3, 1, 1, 1)).clamp(0, 1)


class Cell(NamedTuple):
    """A picture, uint8 (H, W, 3), its title, and whether it is of the query's class, where that is known."""

    picture: np.ndarray
    title: str
    right: bool | None = None


def called(shards: ShardSet, sample: int, c: int, names: Sequence[str]) -> str:
    """The class of a sample, its place in ``names``; or of -1, where it has no label, the end of its key."""
    return names[c] if c >= 0 else shards.keys[sample][-LETTERS:]


def beside(shards: ShardSet, samples: Sequence[int], classes: Sequence[int], names: Sequence[str]) -> list[Cell]:
    """A row of :func:`neighbours`: the first sample asks, the others were mined for it or lie nearest to it; with the class
    of each, as :func:`called` takes it."""
    row: list[Cell] = []
    for sample, c in zip(samples, classes, strict=True):
        right = bool(c == classes[0]) if row and min(c, classes[0]) >= 0 else None
        row.append(Cell(middle_frame(shards, sample), called(shards, sample, c, names), right))
    return row


def neighbours(rows: Sequence[Sequence[Cell]], out: Path, what: str = "") -> Path:
    """Write a PNG of rows of pictures with their titles; ``what`` each row's query, its first picture, has beside it, is said
    above. Returns ``out``.

    What is of the query's class has a green border and a tick, what is of another a red, dashed one and a cross."""
    columns, asked = max(len(row) for row in rows), [cell.right for row in rows for cell in row if cell.right is not None]
    figure, axes = canvas.axes(len(rows), columns, 1.8 * columns, 1.6 * len(rows) + 0.4, layout="constrained")
    for line, row in zip(axes, rows, strict=True):
        for axis in line[len(row) :]:
            axis.axis("off")
        for axis, (picture, title, right) in zip(line, row, strict=False):
            axis.imshow(picture)
            axis.set(xticks=[], yticks=[])
            mark, colour, style, width = MARKS[right]
            axis.set_title(mark + plain(title), color=colour, fontsize=7)  # 30 letters fit
            for side in axis.spines.values():
                side.set(color=colour, linestyle=style, linewidth=width)
        if what:
            line[0].set_ylabel("query", fontsize=8)
    if what:
        legend = f": {sum(asked)} of {len(asked)} are of the query's class (✓), the others of another (✗)" if asked else ""
        figure.suptitle(what + legend, fontsize=10)
    return canvas.write(figure, out)


def confusion_matrix(counts_CC: np.ndarray, names: Sequence[str], out: Path) -> Path:
    """Write a PNG of ``counts_CC`` (true class, named class), each row as shares of 1, with the counts as numbers up to
    :data:`NUMBERED` classes; above :data:`LABELLED` classes without their names. Returns ``out``."""
    shares = counts_CC / np.maximum(counts_CC.sum(1, keepdims=True), 1)
    numbered = len(names) <= NUMBERED
    side = 10.0 if len(names) > LABELLED else max(4.0, (0.36 if numbered else 0.28) * len(names) + 2)
    figure, ((axis,),) = canvas.axes(1, 1, side + 1, side)
    image = axis.imshow(shares, cmap="viridis", vmin=0, vmax=1)
    if len(names) <= LABELLED:
        shown = [plain(name) for name in names]
        axis.set_xticks(range(len(names)), shown, rotation=90, fontsize=7)
        axis.set_yticks(range(len(names)), shown, fontsize=7)
    for true, named in np.argwhere(counts_CC) if numbered else ():
        colour = "black" if shares[true, named] > 0.6 else "white"
        axis.text(named, true, counts_CC[true, named], ha="center", va="center", fontsize=7, color=colour)
    axis.set_xlabel("named")
    axis.set_ylabel("true")
    figure.colorbar(image, fraction=0.046, label="share of the true class")
    return canvas.write(figure, out)


def class_bars(counts_CC: np.ndarray, names: Sequence[str], out: Path) -> Path:
    """Write a PNG: each class's share of right answers with Wilson's interval, the best first, and its number of videos; above
    :data:`LABELLED` classes without their names."""
    videos_C = counts_CC.sum(1)
    present = np.flatnonzero(videos_C)
    share_C = counts_CC.diagonal() / np.maximum(videos_C, 1)
    order = present[np.argsort(-share_C[present], kind="stable")]
    limits = np.array([interval(share_C[c], int(videos_C[c])) for c in order])
    figure, ((axis,),) = canvas.axes(1, 1, max(4.0, 0.22 * len(order) + 1) if len(order) <= LABELLED else 12.0, 3.6)
    if len(order) <= LABELLED:
        around = np.abs(limits.T - share_C[order])
        axis.bar(range(len(order)), share_C[order], yerr=around, color="tab:blue", ecolor="0.5", capsize=2)
        shown = [f"{plain(names[c])} ({videos_C[c]})" for c in order]
        axis.set_xticks(range(len(order)), shown, rotation=90, fontsize=6)
    else:  # one shape each, however many classes there are
        axis.fill_between(range(len(order)), *limits.T, step="mid", color="0.8")
        axis.step(range(len(order)), share_C[order], where="mid", color="tab:blue")
        axis.set_xlabel("class, the best first")
    axis.set_ylim(0, min(1, axis.get_ylim()[1]))
    axis.set_ylabel("share named right, 95 % interval")
    return canvas.write(figure, out)


def bars(groups: Mapping[str, Mapping[str, float]], ends: Mapping[str, Mapping[str, Sequence[float]]], out: Path) -> Path:
    """Write a PNG of numbers in 0..1 by name, side by side for each group (name -> numbers), with the ``ends`` of their
    intervals (group -> name -> low and high) where they have some. Returns ``out``."""
    names = list(next(iter(groups.values())))
    figure, ((axis,),) = canvas.axes(1, 1, max(4.0, 0.45 * len(names) + 1), 3.8)
    width = 0.8 / len(groups)
    for n, (group, numbers) in enumerate(groups.items()):
        height = np.array([numbers[name] for name in names])
        limits = np.array([ends.get(group, {}).get(name, (numbers[name],) * 2) for name in names])
        at = np.arange(len(names)) + (n + 0.5) * width - 0.4
        axis.bar(at, height, width, yerr=np.abs(limits.T - height), label=group, ecolor="0.4", capsize=2)
    axis.set_xticks(range(len(names)), [plain(name) for name in names], rotation=90, fontsize=7)
    axis.set_ylim(0, min(1, axis.get_ylim()[1]))
    axis.legend(fontsize=7, ncols=len(groups), loc="lower center", bbox_to_anchor=(0.5, 1))  # beside no bar
    return canvas.write(figure, out)


def curves(lines: Sequence[Mapping[str, float]], names: Sequence[str], out: Path) -> Path:
    """Write a PNG of scalars over steps: one panel a name, of the lines ("step" and scalars) that have it."""
    figure, axes = canvas.axes(1, len(names), 3.2 * len(names), 2.6, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        points = [(line["step"], line[name]) for line in lines if name in line]
        axis.plot(*zip(*points, strict=True) if points else ((), ()), marker="." if len(points) < 30 else None)
        axis.set_title(name, fontsize=8)
        axis.set_xlabel("step", fontsize=7)
        axis.tick_params(labelsize=7)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return canvas.write(figure, out)
