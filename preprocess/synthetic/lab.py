"""The laboratory's world: a large object with smooth colours over smooth backgrounds, seen small.

A network of width 8 learns it within two minutes on a processor, and the three labels are independent: how the object moves,
over what family of background, and with what family of pattern on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from preprocess.synthetic.world import World

Pattern = Callable[[int, int, np.random.Generator], np.ndarray]  # height, width -> weights in 0..1, (H, W)


def _turned(height: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in short sides, turned by a random angle and moved by a random offset: two (H, W) arrays."""
    y, x = np.mgrid[:height, :width].astype(np.float32) / min(height, width)
    angle = rng.uniform(0, math.pi)
    x, y = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    return x + rng.uniform(0, 9), y + rng.uniform(0, 9)


def _noise(height: int, width: int, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise in 0..1 of so many rows and columns of features: (H, W)."""
    return cv2.resize(rng.random((rows, columns), np.float32), (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)


def _stripes(h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    x, _ = _turned(h, w, rng)
    return 0.5 + 0.5 * np.sin(x * 2 * math.pi / rng.uniform(0.2, 0.34))


def _checks(h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    (x, y), turn = _turned(h, w, rng), 2 * math.pi / rng.uniform(0.26, 0.38)
    return 0.5 + 0.5 * np.tanh(3 * np.sin(x * turn) * np.sin(y * turn))


def _bricks(h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:h, :w].astype(np.float32) / min(h, w) + rng.uniform(0, 1)
    height = rng.uniform(0.14, 0.22)
    odd = np.floor(y / height) % 2
    return (((y / height) % 1 < 0.22) | ((x / (2.2 * height) + 0.5 * odd) % 1 < 0.11)).astype(np.float32)


def _dots(h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    (x, y), side = _turned(h, w, rng), rng.uniform(0.2, 0.3)
    return 0.5 + 0.5 * np.tanh(12 * (0.3 - np.hypot((x / side) % 1 - 0.5, (y / side) % 1 - 0.5)))


def _clouds(h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    return (2 * _noise(h, w, 2, 2, rng) + _noise(h, w, 4, 4, rng)) / 3


def _grass(h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    return _noise(h, w, 3, 22, rng)


def _mosaic(h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    cells, (y, x) = rng.uniform(0, 1, (16, 2)) * (h, w), np.mgrid[:h, :w]
    nearest = np.argmin((y[..., None] - cells[:, 0]) ** 2 + (x[..., None] - cells[:, 1]) ** 2, axis=-1)
    return rng.permutation(np.linspace(0, 1, len(cells)))[nearest]


def _rings(h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:h, :w].astype(np.float32) / min(h, w)
    radius = np.hypot(y - rng.uniform(0, 1), x - rng.uniform(0, 1))
    return 0.5 + 0.5 * np.sin(radius * 2 * math.pi / rng.uniform(0.2, 0.34))


PATTERNS: dict[str, Pattern] = {
    "stripes": _stripes, "checks": _checks, "bricks": _bricks, "dots": _dots,
    "clouds": _clouds, "grass": _grass, "mosaic": _mosaic, "rings": _rings,
}  # fmt: skip


def _colours(rng: np.random.Generator) -> np.ndarray:
    """Two muted RGB colours that differ clearly in brightness: (2, 3) in 0..255."""
    light = rng.permutation([70.0, 170.0]) + rng.uniform(-15, 15, 2)
    return np.clip(light[:, None] + rng.uniform(-40, 40, (2, 3)), 0, 255)


def _scene(name: str, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A background of two muted colours, float32 (H, W, 3). Each family draws with a generator of its own: from one seed no two
    of them draw the same colours."""
    own = np.random.default_rng([int(rng.integers(2**62)), list(PATTERNS).index(name)])
    weight_HW = PATTERNS[name](height, width, own)
    one, other = _colours(own)
    return (one + (other - one) * weight_HW[..., None]).astype(np.float32)


TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {  # (u, v) in -1..1 on the disc -> weights in 0..1
    "plain": lambda u, v: 0 * u,
    "halves": lambda u, v: v > 0,
    "thirds": lambda u, v: np.floor((np.arctan2(v, u) / (2 * math.pi)) % 1 * 3) / 2,
    "ring": lambda u, v: np.hypot(u, v) < 0.55,
    "bullseye": lambda u, v: np.floor(np.hypot(u, v) * 4) % 2,
    "bars": lambda u, v: np.floor((u + 1) * 3) % 2,
    "spots": lambda u, v: np.hypot((u * 2.2) % 1 - 0.5, (v * 2.2) % 1 - 0.5) < 0.33,
    "gradient": lambda u, v: (v + 1) / 2,
}


def _sprite(rng: np.random.Generator, texture: str, side: int = 96) -> np.ndarray:
    """The object: a disc with a pattern of two vivid colours, turned at random, float32 (side, side, 4) RGBA."""
    y, x = (np.mgrid[:side, :side].astype(np.float32) + 0.5) / side * 2 - 1
    angle = rng.uniform(0, 2 * math.pi)
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    hues = (rng.uniform(0, 180) + np.array([0, 90])) % 180
    hsv = np.stack([hues, rng.uniform(200, 255, 2), [rng.uniform(220, 255), rng.uniform(90, 140)]], -1).astype(np.uint8)
    one, other = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0].astype(np.float32)
    rgb = one + (other - one) * TEXTURES[texture](u, v).astype(np.float32)[..., None]
    return np.dstack([rgb, 255 * (np.hypot(u, v) <= 0.97)]).astype(np.float32)


LAB = World(
    scenes={name: partial(_scene, name) for name in PATTERNS},
    replaced=dict(zip(PATTERNS, [*PATTERNS][4:] + [*PATTERNS][:4], strict=True)),
    sprite=_sprite,
    textures=tuple(TEXTURES),
    sizes=((80, 80),),
    rates=(12,),
    frames=(24, 25),
    radii=(0.22, 0.34),
    speeds=(0.55, 0.95),
    reach=(0.16, 0.24),
)
