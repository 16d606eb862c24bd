"""Frames -> motion cues, computed on the decoded and resized luma before any lossy encode."""

from __future__ import annotations

import cv2
import numpy as np

from dclr.record import luma_difference


class Difference:
    """The signed luma difference and its energy, fed one frame at a time.

    Entry 0 equals entry 1 (shared rule of every dynamic view); a video of one frame has the still picture, 128, and energy 0.
    """

    def __init__(self) -> None:
        self._previous: np.ndarray | None = None

    def __call__(self, luma_HW: np.ndarray) -> tuple[np.ndarray, float] | None:
        """uint8 (H, W) luma -> (uint8 (H, W) difference, mean absolute difference in grey levels); None for frame 0."""
        previous, self._previous = self._previous, luma_HW
        if previous is None:
            return None
        return luma_difference(luma_HW, previous), cv2.norm(luma_HW, previous, cv2.NORM_L1) / luma_HW.size


STILL = 128  # the difference's value where nothing moved
