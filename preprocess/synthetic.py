"""The embedded data set: real encoded videos, made here, in which motion and scene are independent labels.

A textured object performs one of eight motions over one of eight families of background. The frame is a torus for the object
and its size moves round a cycle, so that in every single frame of every motion class position, size and look have exactly the
same distribution: one frame says nothing about the motion, and everything about the scene. Lengths are in short sides of the
frame, times in seconds. A background instance is one seed of its family; no two videos share one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import av
import cv2
import numpy as np
from tqdm import tqdm

from dclr.draws import generator
from dclr.files import whole
from dclr.settings import check_values, setting
from dclr.storage import Folder
from preprocess.datasets import Video, VideoSet
from preprocess.transcode import WHICH

MOTIONS = ("left", "right", "up", "down", "orbit_cw", "orbit_ccw", "zoom_in", "oscillate")
SIZES = ((112, 96), (120, 108), (128, 112), (120, 120))  # width, height
RATES = (15, 20, 24, 25, 30)
RADII = (0.15, 0.25)  # of the object, smallest and largest
SPEEDS = (0.55, 0.95)  # of the object, short sides a second
DRIFT = 0.03  # of the camera, short sides a second at most
FRAMES = (40, 65)  # a video's length, first and one past the last
TEST_SHARE = 1 / 3


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
# The scene of a swapped video, by its test video's. From one seed stripes, checks and dots draw the same grid and the same two
# colours; of the cyclic shifts only that by four puts none of them in another's place.
SWAPPED = dict(zip(SCENES, [*SCENES][4:] + [*SCENES][:4], strict=True))


def _sprite(rng: np.random.Generator, side: int = 96) -> np.ndarray:
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


def _path(motion: str, t_N: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets x, y from the start and radius at times ``t_N``, in short sides. Speed and size have one law in all."""
    speed, reach, phase = rng.uniform(*SPEEDS), rng.uniform(0.14, 0.24), rng.uniform(0, 1)
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
    return x, y, RADII[0] * (RADII[1] / RADII[0]) ** size


def render(motion: str, scene: str, seed: tuple[object, ...]) -> tuple[np.ndarray, int]:
    """One video: uint8 (N, H, W, 3) RGB and its frame rate. Everything is drawn from ``seed``, the scene last: with another
    scene it is the same motion of the same object, frame for frame, over another background."""
    rng = generator(*seed)
    (width, height), rate = SIZES[rng.integers(len(SIZES))], RATES[rng.integers(len(RATES))]
    side, total = min(width, height), int(rng.integers(*FRAMES))
    t_N = np.arange(total) / rate
    margin = math.ceil(DRIFT * side * total / rate) + 2
    sprite = _sprite(rng)
    drift = rng.uniform(-1, 1, 2) * DRIFT
    start = rng.uniform(0, 1, 2) * (width, height)
    x_N, y_N, radius_N = _path(motion, t_N, rng)
    canvas = SCENES[scene](height + 2 * margin, width + 2 * margin, rng).astype(np.float32)
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


def encode(frames_NHW3: np.ndarray, rate: int, path: Path) -> None:
    """Write mpeg4 (.avi) or h264 (.mp4) by the suffix, one thread, nothing in the file that changes from run to run."""
    height, width = frames_NHW3.shape[1:3]
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        whole(path) as unfinished,
        av.open(str(unfinished), "w", format=path.suffix[1:], options={"fflags": "+bitexact"}) as container,
    ):
        codec = {".avi": "mpeg4", ".mp4": "libx264"}[path.suffix]
        options = {"flags": "+bitexact", "threads": "1"}
        if codec == "libx264":  # without these params x264 gives other bytes about one time in ten
            options |= {"crf": "18", "preset": "veryfast", "x264-params": "cpu-independent=1:mbtree=0"}
        stream = container.add_stream(codec, rate=Fraction(rate), options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 1_500_000
        for image in frames_NHW3:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p", threads=1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@dataclass(frozen=True)
class DrawnVideo:
    """One video to make: where, and from what seed."""

    path: str
    motion: str
    scene: str
    split: str
    seed: tuple[object, ...]


def plan(videos: int, seed: int, swap_scenes: bool = False) -> list[DrawnVideo]:
    """``videos`` videos, a third of them test: motion and scene cross in full, container drawn at random.

    ``swap_scenes`` adds for each of test one of split swapped: its number, seed and container, another scene.
    """
    plans = []
    test = round(videos * TEST_SHARE)
    for split, count in (("train", videos - test), ("test", test)):
        for i in range(count):
            motion, scene = MOTIONS[i % len(MOTIONS)], list(SCENES)[i // len(MOTIONS) % len(SCENES)]
            key = ("synthetic", seed, split, i)
            suffix = (".avi", ".mp4")[generator("container", *key).integers(2)]
            drawn = [(split, scene)]
            if swap_scenes and split == "test":
                drawn.append(("swapped", SWAPPED[scene]))
            plans += [DrawnVideo(f"{of}/{motion}/{over}_{i:05d}{suffix}", motion, over, of, key) for of, over in drawn]
    return sorted(plans, key=lambda p: p.path)


def _make(root: Path, p: DrawnVideo) -> None:
    path = root / p.path
    if not path.exists():
        encode(*render(p.motion, p.scene, p.seed), path)


@dataclass(frozen=True)
class Drawing:
    """Which videos are drawn. Raises InputError for values out of range."""

    title = WHICH
    videos: int = setting(1200, "videos, a third of them test", metavar="N", least=1)
    seed: int = setting(0, "the same seed gives the same bytes")
    swap_scenes: bool = setting(False, "a split 'swapped' too: each test video's motion over another scene")

    def __post_init__(self) -> None:
        check_values(self)


def made_with(videos: int, seed: int, swap_scenes: bool) -> dict[str, int | str]:
    """The options that a set of these videos records; ``swap_scenes`` only where it is set."""
    options: dict[str, int | str] = {"videos": videos, "seed": seed}
    return options | ({"swap_scenes": True} if swap_scenes else {})


def make(root: Path, videos: int, seed: int, workers: int, swap_scenes: bool = False) -> VideoSet:
    """Make the videos below ``root`` (those that are there stay) and say what they are."""
    plans = plan(videos, seed, swap_scenes)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        made = pool.map(partial(_make, root), plans, chunksize=8)
        for _ in tqdm(made, total=len(plans), desc="drawing", unit="video"):
            pass
    classes = {"motion": list(MOTIONS), "scene": list(SCENES)}
    listed = [
        Video(
            p.path, {"motion": MOTIONS.index(p.motion), "scene": list(SCENES).index(p.scene)}, (p.split,),
            bytes=(root / p.path).stat().st_size,
        )
        for p in plans
    ]  # fmt: skip
    return VideoSet("synthetic", Folder(str(root)), listed, classes, options=made_with(videos, seed, swap_scenes))
