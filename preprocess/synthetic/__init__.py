"""The embedded data set: real encoded videos, made here, in which motion, scene and texture are independent labels.

A textured object performs one of eight motions over one of eight families of background, in one of two worlds: the
laboratory's (lab.py) or the hard one (hard.py), whose objects have no label.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np

from dclr.bars import bar
from dclr.draws import generator
from dclr.files import whole
from dclr.settings import MANY, SEEDS, check_values, setting
from dclr.storage import Folder
from preprocess.datasets import Video, VideoSet
from preprocess.synthetic.hard import HARD
from preprocess.synthetic.lab import LAB
from preprocess.synthetic.world import MOTIONS, World
from preprocess.transcode import WHICH

TEST_SHARE = 1 / 3
RECORDED = ("videos", "seed", "world", "swap_scenes", "correlate")  # options of a set
VALIDATION = 5  # every fifth video of train is also of validation, the others of fit


@dataclass(frozen=True)
class Drawing:
    """Which videos are drawn. Raises InputError for values out of range."""

    title = WHICH
    videos: int | None = setting(
        None, "how many videos are drawn, a third of them for test", metavar="N", least=1, most=MANY,
        derived="1536, with --hard 1200",
    )  # fmt: skip
    seed: int = setting(
        0, "seed of all that is drawn: the same seed gives the same bytes", metavar="N", least=-SEEDS, most=SEEDS
    )
    hard: bool = setting(False, "draw small objects over backgrounds full of edges, at five frame rates; no textures")
    swap_scenes: bool = setting(False, "draw a split 'swapped' too: each test video's motion over another scene")
    correlate: float | None = setting(
        None, "draw a split 'correlated' too: train's videos, the scene belonging to the motion in this share", metavar="SHARE",
        above=0, most=1, derived="no such split",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_values(self)

    @property
    def world(self) -> World:
        return HARD if self.hard else LAB

    @property
    def total(self) -> int:
        return self.videos or (1200 if self.hard else 1536)

    def made_with(self) -> dict[str, Any]:
        """The options that a set of these videos records. One of the hard world names no world: it is the older of the two."""
        rest = {"world": None if self.hard else "lab", "swap_scenes": self.swap_scenes, "correlate": self.correlate}
        return {"videos": self.total, "seed": self.seed} | {name: value for name, value in rest.items() if value}


def encode(frames_NHW3: np.ndarray, rate: int, path: Path) -> None:
    """Write mpeg4 (.avi) or h264 (.mp4) by the suffix, one thread, nothing in the file that changes from run to run."""
    height, width = frames_NHW3.shape[1:3]
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        whole(path) as unfinished,
        av.open(str(unfinished.absolute()), "w", format=path.suffix[1:], options={"fflags": "+bitexact"}) as container,
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
    """One video to make: where, of which splits, and from what seed."""

    path: str
    motion: str
    scene: str
    texture: str
    splits: tuple[str, ...]
    seed: tuple[object, ...]


def plan(drawing: Drawing) -> list[DrawnVideo]:
    """The videos to make, a third of them test: motion, scene and texture cross in full, the container is drawn at random.

    ``swap_scenes`` adds for each of test one of split swapped, and ``correlate`` for each of train one of split correlated: its
    number, seed and container, another scene.
    """
    world, plans = drawing.world, list[DrawnVideo]()
    scenes, test = list(world.scenes), round(drawing.total * TEST_SHARE)
    for split, count in (("train", drawing.total - test), ("test", test)):
        for i in range(count):
            which, scene = i % len(MOTIONS), scenes[i // len(MOTIONS) % len(scenes)]
            texture = world.textures[i // (len(MOTIONS) * len(scenes)) % len(world.textures)] if world.textures else ""
            key = ("synthetic", drawing.seed, split, i) if drawing.hard else ("lab", drawing.seed, split, i)
            suffix = (".avi", ".mp4")[generator("container", *key).integers(2)]
            own = (split,) if drawing.hard or split == "test" else (split, "fit" if i % VALIDATION else "validation")
            drawn = [(own, scene)]
            if drawing.swap_scenes and split == "test":
                drawn.append((("swapped",), world.replaced[scene]))
            if drawing.correlate is not None and split == "train":
                drawn.append((("correlated",), _correlated(scenes, which, drawing.correlate, key)))
            for splits, over in drawn:
                look = f"{over}_{texture}" if texture else over
                path = f"{splits[0]}/{MOTIONS[which]}/{look}_{i:05d}{suffix}"
                plans.append(DrawnVideo(path, MOTIONS[which], over, texture, splits, key))
    return sorted(plans, key=lambda p: p.path)


def _correlated(scenes: list[str], motion: int, share: float, key: tuple[object, ...]) -> str:
    """The scene that belongs to the motion in ``share`` of the videos, else one of the others."""
    rng = generator("correlated", *key)
    return scenes[motion if rng.random() < share else (motion + rng.integers(1, len(scenes))) % len(scenes)]


def _make(root: Path, world: World, p: DrawnVideo) -> None:
    path = root / p.path
    if not path.exists():
        encode(*world.render(p.motion, p.scene, p.texture, p.seed), path)


def make(root: Path, drawing: Drawing, workers: int) -> VideoSet:
    """Make the videos below ``root`` (those that are there stay) and say what they are."""
    plans, world = plan(drawing), drawing.world
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        made = pool.map(partial(_make, root, world), plans, chunksize=8)
        for _ in bar(made, total=len(plans), desc="drawing", unit="video"):
            pass
    classes = {"motion": list(MOTIONS), "scene": list(world.scenes)} | (
        {"texture": list(world.textures)} if world.textures else {}
    )
    listed = [
        Video(
            p.path,
            {kind: names.index(getattr(p, kind)) for kind, names in classes.items()},
            p.splits,
            bytes=(root / p.path).stat().st_size,
        )
        for p in plans
    ]
    return VideoSet("synthetic", Folder(str(root)), listed, classes, options=drawing.made_with())
