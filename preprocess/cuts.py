"""Where a shot of a video ends and the next begins, from how much each frame differs from the one before it.

Hard cuts only: a fade or a dissolve is no cut, nor is a flash, which differs twice, nor what changes in a part of the picture
only: a thing that jumps, or two shots of one place by a camera that rests.
"""

from __future__ import annotations

import cv2
import numpy as np

from dclr.cues import energies
from preprocess.motion import picture

AROUND = 8  # frames on either side that a cut is compared with; nearer cuts hide each other
TIMES, ABOVE = 1.8, 3.0  # a cut differs by this multiple of what its neighbours differ at most, and this many grey levels more
WIDE, WIDE_ABOVE = 0.6, 1.0  # and this share of the picture by so many grey levels more than its neighbours do


class Cuts:
    """The cuts of one video, which is fed one frame at a time; all its frames have one size.

    The threshold adapts to the motion around a frame. With m the most that any of the 8 frames before and the 8 after it
    differs, a cut differs by at least ``1.8 m + 3`` grey levels in the mean, and at least 60 % of the picture (64 cells,
    without black bars) by ``m + 1``.
    """

    def __init__(self) -> None:
        self._previous: np.ndarray | None = None
        self._difference_N: list[float] = []  # from the frame before, mean absolute, in grey levels
        self._candidate: tuple[int, np.ndarray, np.ndarray] | None = None  # frame, its luma and the previous one
        self._found: list[int] = []

    def add(self, luma_HW: np.ndarray) -> None:
        """uint8 (H, W) luma, kept for the next calls."""
        previous, self._previous = self._previous, luma_HW
        if previous is None:
            previous = luma_HW
        frame, value = len(self._difference_N), cv2.norm(luma_HW, previous, cv2.NORM_L1) / luma_HW.size
        if self._candidate is not None and frame - self._candidate[0] > AROUND:
            self._decide(*self._candidate)
        if value >= TIMES * max(self._difference_N[-AROUND:], default=0) + ABOVE:
            self._candidate = frame, luma_HW, previous  # one that is near is none: it differs less
        self._difference_N.append(value)

    def _decide(self, frame: int, luma_HW: np.ndarray, previous_HW: np.ndarray) -> None:
        self._candidate = None
        before = self._difference_N[max(frame - AROUND, 0) : frame]
        most = max(before + self._difference_N[frame + 1 : frame + AROUND + 1])
        if self._difference_N[frame] < TIMES * most + ABOVE:
            return
        lighter = cv2.max(luma_HW, previous_HW)
        part = picture(lighter), picture(lighter.T)
        _, cells = energies(luma_HW[part], previous_HW[part])
        if np.sort(cells, axis=None)[int((1 - WIDE) * cells.size)] >= most + WIDE_ABOVE:
            self._found.append(frame)

    def finish(self) -> tuple[int, ...]:
        """After the last frame: those at which a shot begins, ascending, but for the first."""
        if self._candidate is not None:
            self._decide(*self._candidate)
        return tuple(self._found)
