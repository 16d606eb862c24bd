"""What decides a pretraining run: one dataclass, checked where it is made, kept in the run's folder and its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from dclr.backbones import check
from dclr.data.clips import ClipConfig
from dclr.errors import InputError, check_values
from dclr.losses import ALIGNMENT_WEIGHT
from dclr.model import Method
from dclr.norm import Statistics
from dclr.queue import default_length
from dclr.text import public
from dclr.views import DYNAMICS

MAX_BYTES = 1 << 16  # of a recipe
OBJECTIVES = ("dclr", "moco")
PARTS = ("static", "dynamic", "decoupling", "mining", "alignment")  # of dclr, each can be left out
# what a resumed run may change: how long it is, where it lies, and what the machine is asked for
FREE = (
    "epochs",
    "workers",
    "out",
    "cache",
    "cache_size",
    "resume",
    "keep",
    "milestone",
    "save_minutes",
    "knn_split",
    "knn_every",
)


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides a pretraining run; kept in its checkpoints and its config.yaml, with ``precision`` as what
    ``auto`` came to on its hardware and ``resume`` as the file that it began from, if any."""

    shards: str
    out: str
    split: tuple[str, ...]
    arch: str = "r2plus1d_10"
    width: int = 64
    frames: int = 16
    stride: int = 2
    size: int = 112
    min_scale: float = 0.2
    flip: float = 0.5
    sample_motion: bool = False
    dynamic: str = "rgbdiff"
    objective: str = "dclr"
    without: tuple[str, ...] = ()  # parts of the objective, see PARTS
    mined: int = 5
    loss: str = "mil"
    align_target: str = "sum"
    symmetric: bool = False
    bn: str = "sync"
    bn_groups: int | None = None  # of each process; None is 2 for shuffle on one process, else 1
    bn_views: str = "split"
    queue: int | None = None  # entries; None is dclr.queue.default_length
    batch: int = 64  # over all processes
    accumulate: int = 1  # parts that each process takes its share of the batch in
    checkpoint_gradients: bool = False
    epochs: int = 200
    lr: float = 0.01
    schedule: tuple[int, ...] = (120, 160)
    cos: bool = False
    warmup: float = 0.0  # epochs
    scale_lr: bool = False
    wd: float = 1e-4
    decay_weights_only: bool = False
    clip_grad: float = 0.0  # of the whole gradient's norm; 0 is no clipping
    seed: int = 0
    precision: str = "auto"
    workers: int = 1
    last_batch: str = "drop"
    cache: str | None = None
    cache_size: float = 100.0  # GB
    on_error: str = "stop"
    max_skipped: float = 1.0  # percent of the videos
    knn_split: tuple[str, ...] = ()
    knn_every: int = 10  # epochs
    resume: str = "auto"
    keep: int = 2  # checkpoints
    milestone: int = 50  # epochs
    save_minutes: float = 15.0

    def __post_init__(self) -> None:
        check_values(self, ("shards", "out", "cache", "resume"))
        for name, least in (("batch", 1), ("epochs", 1), ("frames", 2), ("accumulate", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} {getattr(self, name)}: expected at least {least}")
        if self.workers < 0:
            raise InputError(f"workers {self.workers}: expected 0 or more")
        if self.knn_every < 1:
            raise InputError(f"knn-every {self.knn_every}: expected at least 1 epoch")
        if self.keep < 1 or self.milestone < 1 or not self.save_minutes > 0:
            raise InputError(
                f"keep {self.keep}, milestone {self.milestone}, save-minutes {self.save_minutes}: "
                "expected at least 1 checkpoint, 1 epoch and more than 0 minutes"
            )
        if not 0 <= self.max_skipped <= 100:
            raise InputError(f"max-skipped {self.max_skipped}: expected percent of the videos, 0..100")
        if not self.lr > 0 or self.wd < 0:
            raise InputError(f"lr {self.lr} and wd {self.wd}: expected lr above 0 and wd 0 or more")
        if not 0 <= self.warmup < self.epochs or self.clip_grad < 0:
            raise InputError(
                f"warmup {self.warmup}, clip-grad {self.clip_grad}: expected fewer epochs than {self.epochs}, and a norm or 0"
            )
        if self.queue is not None and self.queue < self.batch:
            raise InputError(f"queue {self.queue} is smaller than the batch {self.batch}: expected at least one batch")
        if self.queue is not None:
            self.queue_length(0)
        if self.dynamic not in DYNAMICS:
            raise InputError(f"dynamic view {self.dynamic!r}: expected one of {', '.join(DYNAMICS)}")
        if self.objective not in OBJECTIVES or not set(self.without) <= set(PARTS):
            raise InputError(
                f"--objective {self.objective} --without {' '.join(self.without)}: expected {' or '.join(OBJECTIVES)}, "
                f"and any of {', '.join(PARTS)}"
            )
        if self.objective == "moco" and self.without:
            raise InputError(f"--objective moco --without {' '.join(self.without)}: moco has none of these parts")
        check(self.arch, self.width)
        self.clip, self.method, self.statistics(1)

    @property
    def clip(self) -> ClipConfig:
        cue = DYNAMICS[self.dynamic] if "d" in self.method.views else None
        return ClipConfig(self.frames, self.stride, self.size, self.min_scale, self.flip, cue, self.sample_motion)

    @property
    def method(self) -> Method:
        """The loss that the flags ask for. MoCo-v2 is what is left without the static and the dynamic view."""
        without = {"static", "dynamic"} if self.objective == "moco" else set(self.without)
        views = "v" + "s" * ("static" not in without) + "d" * ("dynamic" not in without)
        return Method(
            views,
            mined=0 if "mining" in without or views == "v" else self.mined,
            alignment=0 if "alignment" in without else ALIGNMENT_WEIGHT,
            decoupling="decoupling" not in without,
            loss=self.loss,
            align_target=self.align_target,
            symmetric=self.symmetric,
            seed=self.seed,
        )

    def queue_length(self, videos: int) -> int:
        """Entries of the queue for a set of so many videos. Raises InputError where all of them would be mined: every loss is 0
        then."""
        length = self.queue or default_length(videos, self.batch)
        if length <= self.method.mined:
            raise InputError(
                f"--mined {self.mined}: the queue has {length} entries, all would be positives and every loss 0; expected a "
                "longer --queue, a larger --batch or more videos, or a smaller --mined"
            )
        return length

    def statistics(self, world: int) -> Statistics:
        """Over what BatchNorm's statistics are taken, on one of ``world`` processes."""
        groups = (2 if self.bn == "shuffle" and world == 1 else 1) if self.bn_groups is None else self.bn_groups
        if groups >= 1 and self.batch % (groups * world * self.accumulate):
            raise InputError(
                f"batch {self.batch} does not divide into {world} process(es), {self.accumulate} part(s) (--accumulate) "
                f"and {groups} group(s) (--bn-groups)"
            )
        return Statistics(self.bn, groups, self.bn_views)

    def check_resumed(self, saved: Mapping[str, Any]) -> None:
        """Raises InputError naming what differs from the run that is to be resumed, but for :data:`FREE`."""
        if self.cos and saved.get("cos") and saved.get("epochs", self.epochs) != self.epochs:
            raise InputError(
                f"--epochs {self.epochs}: the run in {self.out} was made with --cos over {saved['epochs']}, which decide its "
                "learning rate; give that again to resume it, or name another --out"
            )
        for field in fields(self):
            ours, theirs = getattr(self, field.name), saved.get(field.name, field.default)
            if field.name == "shards":
                ours, theirs = public(ours), public(str(theirs))
            theirs = tuple(theirs) if isinstance(theirs, list) else theirs
            if field.name == "precision" and theirs == "auto":
                continue  # an older version kept what was given, and nobody knows what that came to
            if field.name not in FREE and ours != theirs:
                raise InputError(
                    f"--{field.name.replace('_', '-')} {ours}: the run in {self.out} was made with {theirs}; "
                    "give that again to resume it, or name another --out"
                )

    def as_dict(self) -> dict[str, Any]:
        """Plain values by field, tuples as lists, URLs without secrets: what :func:`from_file` reads back as YAML."""
        values = asdict(self) | {"shards": public(self.shards)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def from_file(path: Path) -> list[str]:
    """The command line that says what a saved configuration or a recipe (YAML) says: ``lr: 0.01`` is ``--lr 0.01``.

    Raises InputError for a file that cannot be read, is no table of plain values, or names what is no flag.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"--config {path}: {path.stat().st_size} bytes, expected a recipe of at most {MAX_BYTES}")
        table = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--config {path}: not a readable YAML file ({str(error).splitlines()[0]})") from None
    if not isinstance(table, dict):
        raise InputError(f"--config {path}: expected a table of flags, such as lr: 0.01")
    known, flags = {field.name for field in fields(PretrainConfig)}, []
    for name, value in table.items():
        if name not in known:
            raise InputError(f"--config {path}: {name!r} is no flag of train_pretrain.py")
        flag = f"--{name.replace('_', '-')}"
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str | int | float | bool | None) for item in values):
            raise InputError(f"--config {path}: {name} is {value!r}, expected a plain value or a list of them")
        if name in ("split", "knn_split") and values:
            flags += [flag, ",".join(map(str, values))]
        elif value is True or (isinstance(value, list) and (value or name == "schedule")):
            flags += [flag, *(str(item) for item in values if item is not True)]
        elif value is not None and value is not False and value != []:
            flags += [flag, str(value)]
    return flags
