"""Frames -> the pairs that motion cues are computed of (dclr/cues.py), on the decoded and resized luma before any lossy encode:
optical flow, and the camera's motion taken out of a pair.

Coordinates are pixel centres of the stored frame, x rightward, y downward. A camera's motion is an affine matrix float64 (2, 3)
that takes a pixel of the current frame to where the same point was in the previous one. Nothing here draws random numbers
(OpenCV's RANSAC starts from a constant), so the same frames give the same cues.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

import cv2
import numpy as np

from dclr.cues import CUES, FramePair, flow_size

MAX_FLOW = 64  # pixels a frame that a component of the flow is clipped to
MIN_SIDE = 16  # DIS refuses pictures below 12 pixels
SEARCH_SIZE = 3 / 8  # sides of the pictures that DIS searches, over the frame's
SEARCH_STRIDE, SEARCH_STEPS = 5, 12  # pixels between its patches of 8, descent steps a patch

FIT_ROWS = 16  # rows of flow vectors that the camera's first estimate is fitted to
FIT_STEPS = 1  # of its refinement on vectors
POLISH_ROWS = 32  # rows of pixels that its refinement and its trial look at
POLISH_STEPS = 2
POLISH_RELAX = 1.5  # a reweighted step is shorter than Newton's: 2 such steps do what 3 or 4 plain ones do
INLIER = 1.0  # pixels that a vector may be off a camera's motion and still follow it
DOUBT = 0.6  # share of followers below which a second motion is looked for: the first may be an object's
OUTLIER = 16  # grey levels at which a pixel's mismatch stops counting
NEGLIGIBLE = 0.1  # pixels at the frame's corners: less is a camera at rest
BETTER = 0.9  # share of the mismatch left, at most, by a motion worth removing
BLACK = 24  # luma up to which a row or column at the frame's edge is a black bar
BLUR = 2  # pixels that scaling smears a bar's border over


class Motion:
    """The pairs of one video, fed one frame at a time; all its frames have one size."""

    def __init__(self, cues: Collection[str], stabilise: bool = False) -> None:
        self._stabilise = stabilise
        self._previous: np.ndarray | None = None
        self._flow = Flow() if stabilise or any(CUES[name].needs_flow for name in cues) else None

    def __call__(self, luma_HW: np.ndarray) -> FramePair | None:
        """uint8 (H, W) contiguous luma, kept until the next call -> it and the frame before it; None for the first frame."""
        previous, self._previous = self._previous, luma_HW
        flow = self._flow(luma_HW) if self._flow is not None else None
        if previous is None:
            return None
        if self._stabilise and flow is not None:
            previous, flow = stabilised(luma_HW, previous, flow)
        return FramePair(luma_HW, previous, None if flow is None else np.clip(flow, -MAX_FLOW, MAX_FLOW))


class Flow:
    """Dense optical flow of one video by DIS (Kroeger et al., ECCV 2016) on frames of 3/8 the size.

    An object a video: one ``calc`` on a small picture changes a DIS object for good. A search down to 3/8 is nearer the truth
    than OpenCV's preset "ultrafast", which stops at 1/4, and than "fast", which spends its time on smoothing, and cheaper
    than the latter.
    """

    def __init__(self) -> None:
        self._search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._search.setFinestScale(0)
        self._search.setPatchStride(SEARCH_STRIDE)
        self._search.setGradientDescentIterations(SEARCH_STEPS)
        self._previous: np.ndarray | None = None

    def __call__(self, luma_HW: np.ndarray) -> np.ndarray | None:
        """uint8 (H, W) -> float32 (h, w, 2) as in :class:`dclr.cues.FramePair`, not clipped; None for the first frame."""
        height, width = luma_HW.shape
        rows, columns = (max(round(side * SEARCH_SIZE), MIN_SIDE) for side in (height, width))
        previous, self._previous = self._previous, cv2.resize(luma_HW, (columns, rows), interpolation=cv2.INTER_AREA)
        if previous is None:
            return None
        # From the current frame back to the previous one, so that vectors lie where things are now.
        back = self._search.calc(self._previous, previous, None)  # type: ignore[call-overload]
        flow = cv2.resize(back, flow_size(height, width)[::-1], interpolation=cv2.INTER_AREA)
        return flow * np.array([-width / columns, -height / rows], np.float32)


def stabilised(luma_HW: np.ndarray, previous_HW: np.ndarray, flow_hw2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The previous frame moved as the camera did, and the flow without the camera's.

    Both come back as they are where the camera rests or its motion is not to be found. Black bars do not move with the
    camera: estimate and motion are of the picture between them, and they are still.
    """
    darker = cv2.min(luma_HW, previous_HW)
    rows, columns = picture(darker), picture(darker.T)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    if min(height, width) < MIN_SIDE:
        return previous_HW, flow_hw2
    luma, previous = luma_HW[rows, columns], previous_HW[rows, columns]
    everywhere = flow_positions(*luma_HW.shape)
    cells = _within(everywhere[:, 0, 1], rows), _within(everywhere[0, :, 0], columns)
    at = everywhere[cells] - np.array([columns.start, rows.start], np.float32)
    camera = camera_motion(at, flow_hw2[cells], luma, previous)
    if camera is None:
        return previous_HW, flow_hw2
    moved, rest = luma_HW.copy(), np.zeros_like(flow_hw2)
    moved[rows, columns] = aligned(previous, luma, camera)
    rest[cells] = flow_hw2[cells] - camera_flow(camera, at)
    return moved, rest


def picture(luma_HW: np.ndarray) -> slice:
    """The rows between black bars at top and bottom (give the transpose for columns); empty in a black frame."""
    light = np.flatnonzero(luma_HW.max(axis=1) > BLACK)
    if not len(light):
        return slice(0, 0)
    first, end = int(light[0]), int(light[-1]) + 1
    start = first + BLUR if first else 0
    return slice(start, max(start, end - BLUR if end < len(luma_HW) else end))


def _within(at: np.ndarray, span: slice) -> slice:
    """Of ascending positions, those from the span's first pixel to its last."""
    first, end = np.searchsorted(at, [span.start, span.stop - 1])
    return slice(int(first), int(end))


@lru_cache(maxsize=8)
def flow_positions(height: int, width: int) -> np.ndarray:
    """Where the vectors of a frame's flow lie: float32 (h, w, 2), x and y in stored pixels."""
    h, w = flow_size(height, width)
    x, y = (np.arange(w) + 0.5) * width / w - 0.5, (np.arange(h) + 0.5) * height / h - 0.5
    return np.stack(np.meshgrid(x, y), axis=-1).astype(np.float32)


def camera_flow(camera_23: np.ndarray, at_hw2: np.ndarray) -> np.ndarray:
    """The flow that a camera's motion makes of a still scene at these x, y: float32 (h, w, 2)."""
    return at_hw2 - cv2.transform(at_hw2, camera_23)


def aligned(previous_HW: np.ndarray, luma_HW: np.ndarray, camera_23: np.ndarray) -> np.ndarray:
    """The previous frame as the camera would see it now, uint8 (H, W); pixels that it did not see are the current frame's.

    Bilinear in a picture enlarged by cubics: as sharp as bicubic warping at half its cost.
    """
    height, width = luma_HW.shape
    fine = cv2.resize(previous_HW, (2 * width, 2 * height), interpolation=cv2.INTER_CUBIC)
    to_fine = np.column_stack([2 * camera_23[:, :2], 2 * camera_23[:, 2] + 0.5])
    return _warp(fine, to_fine, luma_HW)


def _warp(source_HW: np.ndarray, affine_23: np.ndarray, beyond_hw: np.ndarray) -> np.ndarray:
    """The source at ``affine_23`` of each pixel of ``beyond_hw``, or that pixel where this lies outside the source."""
    return cv2.warpAffine(
        source_HW,
        affine_23,
        beyond_hw.shape[::-1],
        dst=beyond_hw.copy(),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_TRANSPARENT,
    )


def camera_motion(at_hw2: np.ndarray, flow_hw2: np.ndarray, luma_HW: np.ndarray, previous_HW: np.ndarray) -> np.ndarray | None:
    """The similarity that most of the picture moves by, (2, 3) as above; None where it is negligible or not to be found.

    A robust fit to the flow at ``at_hw2`` (float32, x and y), refined on pixels because flow is a quarter of a pixel off. It
    must match the two frames clearly better than a camera at rest does.
    """
    fits = _fits(at_hw2, flow_hw2)
    if not fits:
        return None
    pixels = Pixels(luma_HW, previous_HW)
    camera = pixels.refined(min(fits, key=pixels.mismatch) if len(fits) > 1 else fits[0])
    height, width = luma_HW.shape
    corners = np.array([[[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]]], np.float32)
    if np.abs(camera_flow(camera, corners)).max() < NEGLIGIBLE:
        return None
    return camera if pixels.mismatch(camera) < BETTER * pixels.mismatch(np.eye(2, 3)) else None


def _fits(at_hw2: np.ndarray, flow_hw2: np.ndarray) -> list[np.ndarray]:
    """The similarity that most vectors follow and, where these are few, the one that most of the others follow."""
    step = max(1, flow_hw2.shape[0] // FIT_ROWS)
    now = at_hw2[::step, ::step].reshape(-1, 2)
    before = now - flow_hw2[::step, ::step].reshape(-1, 2)
    cameras: list[np.ndarray] = []
    while len(now) > 2 and len(cameras) < 2:
        camera, follow = cv2.estimateAffinePartial2D(
            now, before, method=cv2.RANSAC, ransacReprojThreshold=INLIER, maxIters=100, refineIters=FIT_STEPS
        )
        if camera is None or not np.isfinite(camera).all():
            break
        cameras.append(camera)
        others = follow[:, 0] == 0
        if others.mean() < 1 - DOUBT:
            break
        now, before = now[others], before[others]
    return cameras


class Pixels:
    """A regular sample of n pixels of two frames, to try and refine a camera's motion on."""

    def __init__(self, luma_HW: np.ndarray, previous_HW: np.ndarray) -> None:
        self._step = max(1, luma_HW.shape[0] // POLISH_ROWS)
        self._current, self._previous = luma_HW, previous_HW
        self._luma, self._at_rest = self._sampled(luma_HW), self._sampled(previous_HW)

    def _sampled(self, image_HW: np.ndarray, right: int = 0, down: int = 0) -> np.ndarray:
        """A frame's pixels at the sample or beside it, up to one pixel off: uint8 (rows, columns)."""
        (height, width), start = image_HW.shape, 1 + self._step // 2
        rows = slice(start + down, height - 1 + down, self._step)
        return np.ascontiguousarray(image_HW[rows, start + right : width - 1 + right : self._step])

    def _matched(self, camera_23: np.ndarray, beyond: np.ndarray) -> np.ndarray:
        """The previous frame's uint8 values at the sample; where the camera did not see it, ``beyond``."""
        affine = camera_23.copy()
        affine[:, 2] += camera_23[:, :2].sum(axis=1) * (1 + self._step // 2)
        affine[:, :2] *= self._step
        return _warp(self._previous, affine, beyond)

    def mismatch(self, camera_23: np.ndarray) -> float:
        """Mean absolute difference of the sample under a camera's motion, each at most :data:`OUTLIER` grey levels.

        What the camera did not see differs as it does at rest, so that no motion wins by looking elsewhere.
        """
        return float(np.minimum(cv2.absdiff(self._luma, self._matched(camera_23, self._at_rest)), OUTLIER).mean())

    def refined(self, camera_23: np.ndarray) -> np.ndarray:
        """A few Gauss-Newton steps on the luma, under weights (Geman-McClure) that fade out what moves otherwise."""
        height, width = self._current.shape
        reach = max(height, width) / 2  # keeps the four unknowns of one size
        centre, slopes = np.array([width / 2, height / 2]), self._slopes(reach)
        for _ in range(POLISH_STEPS):
            error = cv2.subtract(self._matched(camera_23, self._luma), self._luma, dtype=cv2.CV_32F).ravel()
            middle = float(np.partition(np.abs(error), error.size // 2)[error.size // 2])
            weighted = slopes * (1 / np.square(1 + np.square(error / np.float32(max(2.0, 3 * middle)))))
            normal = (weighted @ slopes.T).astype(np.float64)
            normal += (1e-3 + 1e-3 * np.trace(normal)) * np.eye(4)  # never singular; without texture no step
            right, down, growth, turn = np.linalg.solve(normal, weighted @ error) * -POLISH_RELAX
            change = np.array([[growth, -turn], [turn, growth]]) / reach
            camera_23 = camera_23 + np.column_stack([change, [right, down] - change @ centre])
        return camera_23

    def _slopes(self, reach: float) -> np.ndarray:
        """float32 (4, n): the change of luma with a shift right, a shift down, a growth and a turn about the centre."""
        beside = (self._sampled(self._current, *shift).ravel() for shift in ((1, 0), (-1, 0), (0, 1), (0, -1)))
        right, left, below, above = (pixels.astype(np.float32) for pixels in beside)
        slope_x, slope_y = (right - left) / 2, (below - above) / 2
        x, y = sample_positions(*self._current.shape, self._step, reach)
        return np.stack([slope_x, slope_y, slope_x * x + slope_y * y, slope_y * x - slope_x * y])


@lru_cache(maxsize=8)
def sample_positions(height: int, width: int, step: int, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the sample of :class:`Pixels`, from the centre in units of ``reach``: float32 (n,) each."""
    start = 1 + step // 2
    x = (np.arange(start, width - 1, step) - width / 2) / reach
    y = (np.arange(start, height - 1, step) - height / 2) / reach
    x, y = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
    return x.ravel(), y.ravel()
