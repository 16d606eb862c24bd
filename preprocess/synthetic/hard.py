"""The hard world: a small object with vivid sectors over backgrounds full of edges, at five frame rates and four shapes.

A supervised network of the laboratory's size leaves chance late here, because the background's edges outweigh the object's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from preprocess.synthetic.world import World


def _colours(rng: np.random.Generator, n: int) -> np.ndarray:
    """n muted RGB colours that differ clearly in brightness: float32 (n, 3) in 0..255."""
    light = np.linspace(50, 190, n) + rng.uniform(-15, 15, n)
    return np.clip(rng.permutation(light)[:, None] + rng.uniform(-40, 40, (n, 3)), 0, 255).astype(np.float32)


def _mix(weight_HW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    a, b = _colours(rng, 2)
    return a + (b - a) * weight_HW[..., None].astype(np.float32)


def _grid(height: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in short sides, turned by a random angle and moved by a random offset: two (H, W) arrays."""
    y, x = np.mgrid[:height, :width].astype(np.float32) / min(height, width)
    angle = rng.uniform(0, math.pi)
    x, y = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    return x + rng.uniform(0, 9), y + rng.uniform(0, 9)


def _noise(height: int, width: int, cell: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Smooth noise in 0..1 with features of ``cell`` (height, width) short sides: (H, W)."""
    side = min(height, width)
    rows, columns = (max(2, round(n / (side * c))) for n, c in zip((height, width), cell, strict=True))
    coarse = rng.random((rows, columns), np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)


def _stripes(h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    x, _ = _grid(h, w, rng)
    return _mix(0.5 + 0.5 * np.sin(x * 2 * math.pi / rng.uniform(0.08, 0.2)), rng)


def _checks(h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    (x, y), side = _grid(h, w, rng), rng.uniform(0.08, 0.18)
    return _mix((np.floor(x / side) + np.floor(y / side)) % 2, rng)


def _bricks(h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:h, :w].astype(np.float32) / min(h, w)
    height = rng.uniform(0.09, 0.16)
    row = np.floor(y / height)
    mortar = ((y / height) % 1 < 0.18) | ((x / (2.2 * height) + 0.5 * (row % 2)) % 1 < 0.09)
    return _mix(mortar, rng)


def _dots(h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    (x, y), side = _grid(h, w, rng), rng.uniform(0.12, 0.22)
    return _mix(np.hypot((x / side) % 1 - 0.5, (y / side) % 1 - 0.5) < 0.3, rng)


def _clouds(h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    octaves = [_noise(h, w, (c, c), rng) * c for c in (0.5, 0.25, 0.12)]
    return _mix(np.sum(octaves, axis=0) / 0.87, rng)


def _grass(h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    return _mix(_noise(h, w, (0.15, 0.015), rng), rng)


def _mosaic(h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    cells = rng.uniform(0, 1, (40, 2)) * (h, w)
    y, x = np.mgrid[:h, :w]
    nearest = np.argmin((y[..., None] - cells[:, 0]) ** 2 + (x[..., None] - cells[:, 1]) ** 2, axis=-1)
    return _colours(rng, 40)[nearest]


def _rings(h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:h, :w].astype(np.float32) / min(h, w)
    radius = np.hypot(y - rng.uniform(0, 1), x - rng.uniform(0, 1))
    return _mix(0.5 + 0.5 * np.sin(radius * 2 * math.pi / rng.uniform(0.08, 0.2)), rng)


SCENES: dict[str, Callable[[int, int, np.random.Generator], np.ndarray]] = {
    "stripes": _stripes, "checks": _checks, "bricks": _bricks, "dots": _dots,
    "clouds": _clouds, "grass": _grass, "mosaic": _mosaic, "rings": _rings,
}  # fmt: skip


def _sprite(rng: np.random.Generator, texture: str, side: int = 96) -> np.ndarray:
    """The object: a disc, square or triangle with a pinwheel of vivid colours and a rim, float32 (side, side, 4) RGBA."""
    y, x = (np.mgrid[:side, :side].astype(np.float32) + 0.5) / side * 2 - 1
    angle = rng.uniform(0, 2 * math.pi)
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    shape = rng.integers(3)
    if shape == 0:
        distance = np.hypot(u, v) / 0.95
    elif shape == 1:
        distance = np.maximum(abs(u), abs(v)) / 0.68
    else:
        distance = np.maximum(v, np.maximum(0.866 * u - 0.5 * v, -0.866 * u - 0.5 * v)) / 0.5
    hues = (rng.uniform(0, 180) + np.array([0, 60, 120])) % 180
    hsv = np.stack([hues, rng.uniform(200, 255, 3), rng.uniform(200, 255, 3)], -1).astype(np.uint8)
    colours = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]
    sector = ((np.arctan2(v, u) / (2 * math.pi)) % 1 * 6).astype(int) % 3
    rgb = colours[sector].astype(np.float32)
    rgb[distance > 0.8] = 255 * rng.integers(2)  # a white or a black rim
    return np.dstack([rgb, 255 * (distance <= 1)]).astype(np.float32)


HARD = World(
    SCENES,
    # From one seed stripes, checks and dots draw the same grid and the same two colours; of the cyclic shifts only that by four
    # puts none of them in another's place.
    replaced=dict(zip(SCENES, [*SCENES][4:] + [*SCENES][:4], strict=True)),
    sprite=_sprite,
    textures=(),
    sizes=((112, 96), (120, 108), (128, 112), (120, 120)),
    rates=(15, 20, 24, 25, 30),
    frames=(40, 65),
    radii=(0.15, 0.25),
    speeds=(0.55, 0.95),
    reach=(0.14, 0.24),
)
