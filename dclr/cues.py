"""The motion cues that a sample can carry: the one place that knows each by name (docs/extending.md adds another).

Legend: H W stored frame, h w picture of a cue, N frames. A cue says how it is computed from two successive frames, and what of
it is stored. preprocess/motion.py makes the pairs of frames, preprocess/transcode.py encodes, dclr/record.py reads, and
dclr/data/clips.py cuts clips.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

GRID = 8  # cells of the energy grid along each side
FLOW_SHRINK = 4  # flow is stored at a quarter of the frame's sides
FLOW_STEP = 1 / 16  # smallest step of stored flow, in pixels a level
FLOW_QUALITY = 90  # of flow's JPEGs: 0.03 px of error, a third of the bytes of PNG
STILL = 128  # the level of no motion in a cue's pictures
CUE_NAME = re.compile(r"[a-z][a-z0-9_]{0,6}")  # with the longest key and suffix it fits into a tar header


@dataclass(frozen=True)
class FramePair:
    """A frame of a video and the one before it; with ``--stabilise`` the camera's motion is removed from both kinds of motion.

    Attributes:
        luma_HW, previous_HW: uint8 (H, W), full range.
        flow_hw2: float32 (h, w, 2) of :func:`flow_size`: rightward and downward motion, in stored pixels a frame, of what is
            seen there in the current frame; within +-64. None unless a cue has ``needs_flow``.
    """

    luma_HW: np.ndarray
    previous_HW: np.ndarray
    flow_hw2: np.ndarray | None = None


@dataclass(frozen=True)
class Cue:
    """One kind of motion, computed once for each frame and stored beside it.

    Attributes:
        name: matches :data:`CUE_NAME`. Its pictures are the members ``KEY.name.*``.
        compute: a pair -> the frame's grey picture, uint8 (h, w), where the cue has any, and a value for each of ``arrays``.
        picture: (H, W) -> (h, w) of its pictures. None: it has none, and is no dynamic view.
        quality: of its JPEGs. None: codec and quality are the frames', and so is the pictures' size.
        arrays: name -> dtype and shape of a frame's value. All frames' are the member ``KEY.name.npy``, (N, *shape).
        vectors: its pictures are two halves, (2h, w): rightward above downward motion in levels about :data:`STILL`. Its array
            of its own name, float32 (N,), says how many stored pixels a level is. Otherwise a picture is a signed change.
        needs_flow: ``compute`` reads ``flow_hw2``.
        view: its name as a ``--dynamic`` view, its own by default.
    """

    name: str
    compute: Callable[[FramePair], tuple[Any, ...]]
    picture: Callable[[int, int], tuple[int, int]] | None = None
    quality: int | None = None
    arrays: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    vectors: bool = False
    needs_flow: bool = False
    view: str = ""


CUES: dict[str, Cue] = {}  # in the order of their members in a sample
DYNAMICS: dict[str, str | None] = {"rgbdiff": None}  # dynamic view -> the stored cue that it is made of


def register(cue: Cue) -> None:
    """Make a cue known to every command of this process. Raises ValueError where its names are taken or do not fit."""
    view = cue.view or cue.name
    arrays = {name for known in CUES.values() for name in known.arrays}
    if cue.name in {"none", *CUES} or view in DYNAMICS or arrays.intersection(cue.arrays):
        raise ValueError(f"cue {cue.name!r}: there is a cue, an array or a dynamic view of that name")
    if not all(CUE_NAME.fullmatch(name) for name in (cue.name, *cue.arrays)):
        raise ValueError(f"cue {cue.name!r} with arrays {list(cue.arrays)}: expected names that match {CUE_NAME.pattern}")
    if cue.vectors and cue.arrays.get(cue.name) != ("<f4", ()):
        raise ValueError(f"cue {cue.name!r}: vectors need an array {cue.name!r} of ('<f4', ()), the pixels a level")
    CUES[cue.name] = cue
    if cue.picture is not None:
        DYNAMICS[view] = cue.name


def luma_difference(luma_HW: np.ndarray, previous_HW: np.ndarray) -> np.ndarray:
    """Signed difference of two uint8 luma planes as uint8 (H, W): ``round(x / 2) + 128`` with x = luma - previous.

    Halves round to even and +255 saturates to 255; a still pixel is exactly 128 (docs/method.md, "Inputs of one video").

    >>> luma_difference(np.array([[10, 10, 0]], np.uint8), np.array([[10, 0, 10]], np.uint8)).tolist()
    [[128, 133, 123]]
    """
    return cv2.addWeighted(luma_HW, 0.5, previous_HW, -0.5, STILL)


def flow_levels(flow_hw2: np.ndarray) -> tuple[np.ndarray, float]:
    """Flow float32 (h, w, 2) in pixels -> (uint8 (2h, w), horizontal above vertical; pixels a level of this frame).

    ``round(x / scale) + 128`` with ``scale = max(1/16, max|x| / 127)``: each component is at most half a level off.
    """
    scale = max(FLOW_STEP, float(np.abs(flow_hw2).max()) / 127)
    levels = np.rint(flow_hw2 / scale) + STILL
    return np.concatenate([levels[..., 0], levels[..., 1]]).astype(np.uint8), scale


def flow_pixels(levels_n2hw: np.ndarray, scale_n: np.ndarray) -> np.ndarray:
    """The inverse of :func:`flow_levels`: uint8 (n, 2h, w), float32 (n,) -> float32 (n, h, w, 2), stored pixels a frame."""
    n, rows, w = levels_n2hw.shape
    flow = (levels_n2hw.reshape(n, 2, rows // 2, w).astype(np.float32) - STILL) * scale_n[:, None, None, None]
    return np.ascontiguousarray(flow.transpose(0, 2, 3, 1))


def flow_size(height: int, width: int) -> tuple[int, int]:
    """(h, w) of the flow stored for frames of ``height`` x ``width``.

    >>> flow_size(128, 170)
    (32, 42)
    """
    return max(1, height // FLOW_SHRINK), max(1, width // FLOW_SHRINK)


def energies(luma_HW: np.ndarray, previous_HW: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean absolute difference of two uint8 planes, in grey levels (0..255): of the frame, and float32 (8, 8) of the cells
    between rows ``i * H // 8`` and columns ``j * W // 8``; 0 in empty ones."""
    height, width = luma_HW.shape
    rows, columns = np.arange(GRID + 1) * height // GRID, np.arange(GRID + 1) * width // GRID
    sums = cv2.integral(cv2.absdiff(luma_HW, previous_HW))[rows[:, None], columns]
    cells = np.diff(np.diff(sums, axis=0), axis=1)  # exact even where the int32 sums of a huge frame wrapped
    areas = np.maximum(np.outer(np.diff(rows), np.diff(columns)), 1)
    return float(cells.sum(dtype=np.int64)) / luma_HW.size, (cells / areas).astype(np.float32)


def _flow(pair: FramePair) -> tuple[np.ndarray, float]:
    assert pair.flow_hw2 is not None
    return flow_levels(pair.flow_hw2)


def _flow_picture(height: int, width: int) -> tuple[int, int]:
    h, w = flow_size(height, width)
    return 2 * h, w


register(
    Cue(
        "diff",
        lambda pair: (luma_difference(pair.luma_HW, pair.previous_HW),),
        picture=lambda height, width: (height, width),
        view="cue",
    )
)
register(Cue("flow", _flow, _flow_picture, FLOW_QUALITY, arrays={"flow": ("<f4", ())}, vectors=True, needs_flow=True))
register(
    Cue(
        "energy",
        lambda pair: energies(pair.luma_HW, pair.previous_HW),
        arrays={"energy": ("<f4", ()), "grid": ("<f2", (GRID, GRID))},
    )
)
