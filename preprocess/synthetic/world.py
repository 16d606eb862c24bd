"""A world to draw videos in: an object moves over a background, and one frame says nothing about how it moves.

The frame is a torus for the object and its size moves round a cycle, so that in every single frame of every motion class
position, size and look have exactly the same distribution: one frame says nothing about the motion, and everything about the
scene. Lengths are in short sides of the frame, times in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from dclr.draws import generator

MOTIONS = ("left", "right", "up", "down", "orbit_cw", "orbit_ccw", "zoom_in", "oscillate")
DRIFT = 0.03  # of the camera, short sides a second at most


@dataclass(frozen=True)
class World:
    """What its videos look like.

    Attributes:
        scenes: name -> what draws a background (H, W, 3) from (H, W, generator). A background is one draw of its family; no two
            videos share one.
        replaced: the scene of a swapped video, by its test video's.
        sprite: draws the object, float32 (side, side, 4) RGBA in 0..255, from (generator, texture).
        textures: families of object, a third label; none where the object has no such label.
        sizes: (width, height) in pixels. rates: frames a second. frames: a video's length, first and one past the last.
        radii: of the object, smallest and largest. speeds: of the object. reach: of orbits and swings.
    """

    scenes: Mapping[str, Callable[[int, int, np.random.Generator], np.ndarray]]
    replaced: Mapping[str, str]
    sprite: Callable[[np.random.Generator, str], np.ndarray]
    textures: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    rates: tuple[int, ...]
    frames: tuple[int, int]
    radii: tuple[float, float]
    speeds: tuple[float, float]
    reach: tuple[float, float]

    def render(self, motion: str, scene: str, texture: str, seed: tuple[object, ...]) -> tuple[np.ndarray, int]:
        """One video: uint8 (N, H, W, 3) RGB and its frame rate. Everything is drawn from ``seed``, the scene last: with another
        scene it is the same motion of the same object, frame for frame, over another background."""
        rng = generator(*seed)
        (width, height), rate = self.sizes[rng.integers(len(self.sizes))], self.rates[rng.integers(len(self.rates))]
        side, total = min(width, height), int(rng.integers(*self.frames))
        t_N = np.arange(total) / rate
        margin = math.ceil(DRIFT * side * total / rate) + 2
        sprite = self.sprite(rng, texture)
        drift = rng.uniform(-1, 1, 2) * DRIFT
        start = rng.uniform(0, 1, 2) * (width, height)
        x_N, y_N, radius_N = self._path(motion, t_N, rng)
        canvas = self.scenes[scene](height + 2 * margin, width + 2 * margin, rng).astype(np.float32)
        frames = np.empty((total, height, width, 3), np.uint8)
        for i, t in enumerate(t_N):
            dx, dy = drift * t * side
            shift = np.array([[1, 0, dx - margin], [0, 1, dy - margin]], np.float32)
            frame = cv2.warpAffine(canvas, shift, (width, height), borderMode=cv2.BORDER_REFLECT)
            at_x = (start[0] + x_N[i] * side + dx) % width
            at_y = (start[1] + y_N[i] * side + dy) % height
            radius = radius_N[i] * side
            for copy_x in (at_x - width, at_x, at_x + width):
                for copy_y in (at_y - height, at_y, at_y + height):
                    if -radius < copy_x < width + radius and -radius < copy_y < height + radius:
                        _paste(frame, sprite, copy_x, copy_y, radius)
            frames[i] = np.clip(frame + 0.5, 0, 255)
        return frames, rate

    def _path(self, motion: str, t_N: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Offsets x, y from the start and radius at times ``t_N``, in short sides. Speed and size have one law in all."""
        speed, reach, phase = rng.uniform(*self.speeds), rng.uniform(*self.reach), rng.uniform(0, 1)
        x, y, size = np.zeros_like(t_N), np.zeros_like(t_N), np.full_like(t_N, phase)
        turn = speed / reach * t_N + 2 * math.pi * rng.uniform()
        if motion in ("left", "right"):
            x = speed * t_N * (1 if motion == "right" else -1)
        elif motion in ("up", "down"):
            y = speed * t_N * (1 if motion == "down" else -1)
        elif motion.startswith("orbit"):
            x, y = reach * np.cos(turn), reach * np.sin(turn) * (1 if motion == "orbit_cw" else -1)  # y points down
        elif motion == "zoom_in":
            size = (phase + t_N * speed) % 1  # grows, jumps back, grows again: the sizes of every instant stay uniform
        else:
            way = rng.uniform(0, math.pi)
            swing = 0.75 * reach * np.sin(1.4 * turn)
            x, y = swing * math.cos(way), swing * math.sin(way)
        smallest, largest = self.radii
        return x, y, smallest * (largest / smallest) ** size


def _paste(frame_HW3: np.ndarray, sprite: np.ndarray, x: float, y: float, radius: float) -> None:
    """Blend the object onto the frame, centred at (x, y), subpixel."""
    height, width = frame_HW3.shape[:2]
    left, right = max(0, math.floor(x - radius) - 1), min(width, math.ceil(x + radius) + 1)
    top, bottom = max(0, math.floor(y - radius) - 1), min(height, math.ceil(y + radius) + 1)
    if left >= right or top >= bottom:
        return
    scale = 2 * radius / sprite.shape[0]
    place = np.array([[scale, 0, x - radius - left], [0, scale, y - radius - top]], np.float32)
    drawn = cv2.warpAffine(sprite, place, (right - left, bottom - top), flags=cv2.INTER_AREA)
    alpha = drawn[..., 3:] / 255
    frame_HW3[top:bottom, left:right] += alpha * (drawn[..., :3] - frame_HW3[top:bottom, left:right])
