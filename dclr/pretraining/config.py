"""What decides a pretraining run: one dataclass, checked where it is made, kept in the run's folder and its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from dclr.cues import DYNAMICS
from dclr.data.clips import JITTERS, ClipConfig
from dclr.data.config import Choice, Reading, Shards
from dclr.data.plan import LAST_BATCH, whole_parts
from dclr.errors import InputError
from dclr.method.objective import Method, Network, Statistics, default_length
from dclr.method.pixels import PixelSettings
from dclr.settings import MANY, again, as_table, check_values, differences, flag, flags, setting
from dclr.training.config import Checkpoints, Optimisation

OBJECTIVES = ("dclr", "moco")
MOMENTA = {"v": "momentum", "s": "static_momentum", "d": "dynamic_momentum", "m": "mining_momentum"}  # see Method.momenta
PARTS = ("static", "dynamic", "decoupling", "mining", "alignment")  # of dclr, each can be left out


def default_groups(bn: str, world: int) -> int:
    """The ``bn_groups`` of a process that is left open."""
    return 2 if bn == "shuffle" and world == 1 else 1


def came_to(table: Mapping[str, Any], videos_S: Sequence[int], world: int) -> dict[str, Any]:
    """The settings of a run with what those that it left open came to."""
    open_: dict[str, Any] = {}
    if table.get("queue") is None:
        open_["queue"] = default_length(sum(videos_S), table["batch"])
    if table.get("bn_groups") is None:
        open_["bn_groups"] = default_groups(table["bn"], world)
    if len(weights := table.get("weights") or ()) in (0, len(videos_S)):
        open_["weights"] = list(whole_parts(weights, videos_S))
    return {**table, **open_}


@dataclass(frozen=True, kw_only=True)
class Split:
    title = "data"
    split: tuple[str, ...] = setting(
        help="splits to train on, such as train01; of several sets those that each has", metavar="SPLIT"
    )
    out: str = setting(
        help="folder of the run, for checkpoints, curves and pictures", metavar="RUN", place=True, free=True, group="run"
    )
    last_batch: str = setting(
        "drop", "what becomes of an epoch's last, partial batch: drop, or wrap (fill up from its beginning)", choices=LAST_BATCH
    )


@dataclass(frozen=True, kw_only=True)
class Beginning(PixelSettings):
    pretrained: str | None = setting(
        None,
        "weights to begin from, of the same --arch and --width: what train_eval.py --pretrained takes",
        metavar="FILE",
        place=True,
        before=None,
    )


@dataclass(frozen=True, kw_only=True)
class Clips:
    title = "clips"
    frames: int = again(ClipConfig, "frames", least=2)
    stride: int | None = again(ClipConfig, "stride", None, least=1, derived=f"{ClipConfig.stride} without --clip-fps")
    clip_fps: float | None = again(ClipConfig, "clip_fps", instead="stride")
    size: int = again(ClipConfig, "size")
    min_scale: float = again(ClipConfig, "min_scale")
    flip: float = again(ClipConfig, "flip")
    sample_motion: bool = again(ClipConfig, "sample_motion")
    cross_cuts: bool = again(ClipConfig, "cross_cuts")
    jitter: str = setting("torchvision", "whose formulas change the colours of clips", choices=JITTERS, before="torchvision")
    plain_query: bool = setting(
        False,
        "the query clip's RGB frames keep their colours; its static view's and the key clip's change",
        before=False,
    )


@dataclass(frozen=True, kw_only=True)
class Ablations:
    title = "method: ablations and baseline"
    objective: str = setting("dclr", "what is trained; moco: MoCo-v2 on video, the baseline", choices=OBJECTIVES)
    without: tuple[str, ...] = setting((), "leave out parts of dclr", metavar="PART", nargs="*", choices=PARTS)
    mined: int = again(Method, "mined")
    loss: str = again(Method, "loss")
    align_target: str = again(Method, "align_target")
    align_maps: str = again(Method, "align_maps")
    symmetric: bool = again(Method, "symmetric")


@dataclass(frozen=True, kw_only=True)
class Levers:
    title = "method: levers"
    momentum: float = again(Method, "momentum")
    momentum_end: float | None = setting(
        None, "what --momentum comes to at the run's end, by a cosine", metavar="M", least=0, most=1, before=None,
        derived="it stays",
    )  # fmt: skip
    static_momentum: float | None = again(Method, "static_momentum")
    dynamic_momentum: float | None = again(Method, "dynamic_momentum")
    mining_momentum: float | None = again(Method, "mining_momentum")
    temperature: float = again(Method, "temperature")
    in_batch: bool = again(Method, "in_batch")
    mine_by: str = again(Method, "mine_by")
    mining_temperature: float = again(Method, "mining_temperature")
    dim: int = again(Method, "dim")
    static_weight: float = again(Method, "static_weight")
    dynamic_weight: float = again(Method, "dynamic_weight")
    flow_weight: float = again(Method, "flow_weight")
    flow_weight_end: float | None = setting(
        None, "what --flow-weight comes to at the run's end, by one factor a step", metavar="W", above=0, most=1e6, before=None,
        derived="it stays",
    )  # fmt: skip
    dynamic_key: str = again(Method, "dynamic_key")
    head_init: str = again(Method, "head_init")


@dataclass(frozen=True, kw_only=True)
class Watching:
    title = "watching"
    knn_split: tuple[str, ...] = setting(
        (), "labelled splits on whose videos k-NN is tried while it trains", metavar="SPLIT", nargs="*", free=True, before=()
    )
    knn_every: int = setting(
        10, "epochs from one try of k-NN to the next", metavar="EPOCHS", least=1, most=MANY, free=True,
        before=10,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(
    Checkpoints, Watching, Optimisation, Levers, Ablations, Beginning, Network, Clips, Reading, Choice, Split, Shards
):  # fmt: skip
    """Everything that decides a pretraining run; kept in its checkpoints and its config.yaml, with ``precision`` as what
    ``auto`` came to on its hardware, ``resume`` as the file that it began from, if any, and ``mean``, ``std`` and ``order`` as
    the pixels that its network sees. ``queue`` of None is
    :func:`dclr.method.objective.default_length` entries, ``bn_groups`` of None 2 for shuffle on one process, else 1. Raises
    InputError for values that do not fit."""

    def __post_init__(self) -> None:
        if isinstance(self.shards, str):
            object.__setattr__(self, "shards", (self.shards,))
        check_values(self)
        self.check_pixels()
        if self.stride is None and self.clip_fps is None:
            object.__setattr__(self, "stride", ClipConfig.stride)
        if self.weights:
            whole_parts(self.weights, [1] * len(self.shards))
        if self.warmup >= self.epochs:
            raise InputError(f"--warmup {self.warmup}: expected fewer epochs than {self.epochs}")
        if self.queue is not None and self.queue < self.batch:
            raise InputError(f"--queue {self.queue} is smaller than the batch {self.batch}: expected at least one batch")
        if self.queue is not None:
            self.queue_length(0)
        if self.objective == "moco" and self.without:
            raise InputError(
                f"--objective moco --without {' '.join(self.without)}: moco has none of these parts; leave that out"
            )
        if self.plain_query and self.symmetric:
            raise InputError("--plain-query with --symmetric: there each clip is a query once; expected one of them")
        if self.in_batch and self.accumulate > 1:
            raise InputError(
                f"--in-batch --accumulate {self.accumulate}: a part knows the keys of itself alone; expected one of them"
            )
        for view, momentum in self.method.momenta.items():
            if momentum is not None and view in "sd" and self.bn_views == "shared":
                raise InputError(
                    f"{flag(MOMENTA[view])} {momentum} with --bn-views shared: there one encoder passes v, s and d together; "
                    "expected --bn-views split"
                )
        self.clip, self.method, self.statistics(1)

    @property
    def clip(self) -> ClipConfig:
        """The stored cue that comes with a clip is that of its dynamic view, else that which mines or is predicted."""
        cue, needed = DYNAMICS[self.dynamic] if "d" in self.method.views else None, self.method.stored
        if cue and needed not in (None, cue):
            flags = "--flow-weight" if self.flow_weight else f"--mine-by {needed}"
            raise InputError(f"{flags} with --dynamic {self.dynamic}: a clip has one stored cue, expected --dynamic rgbdiff")
        return ClipConfig(
            self.frames, self.stride or ClipConfig.stride, self.size, self.min_scale, self.flip, cue or needed,
            self.sample_motion, self.cross_cuts, self.clip_fps,
        )  # fmt: skip

    @property
    def method(self) -> Method:
        """The loss that the flags ask for. MoCo-v2 is what is left without the static and the dynamic view."""
        without = {"static", "dynamic"} if self.objective == "moco" else set(self.without)
        views = "v" + "s" * ("static" not in without) + "d" * ("dynamic" not in without)
        return Method(
            views,
            mined=0 if "mining" in without or views == "v" else self.mined,
            alignment=0 if "alignment" in without else Method.alignment,
            decoupling="decoupling" not in without,
            loss=self.loss,
            align_target=self.align_target,
            align_maps=self.align_maps,
            symmetric=self.symmetric,
            seed=self.seed,
            **{one.name: getattr(self, one.name) for one in fields(Levers) if not one.name.endswith("_end")},
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
        groups = default_groups(self.bn, world) if self.bn_groups is None else self.bn_groups
        if groups >= 1 and self.batch % (groups * world * self.accumulate):
            raise InputError(
                f"--batch {self.batch} does not divide into {world} process(es), {self.accumulate} part(s) (--accumulate) "
                f"and {groups} group(s) (--bn-groups); give a multiple of {groups * world * self.accumulate}"
            )
        return Statistics(self.bn, groups, self.bn_views)

    def check_resumed(self, saved: Mapping[str, Any], videos_S: Sequence[int], world: int) -> None:
        """Raises InputError naming what differs from the run that is to be resumed, but for what is free to change. What was
        left open counts as what it comes to for so many videos of each set, on so many processes."""
        for name, what in (("cos", "learning rate"), ("momentum_end", "momentum"), ("flow_weight_end", "weight")):
            if getattr(self, name) and saved.get(name) and saved.get("epochs", self.epochs) != self.epochs:
                raise InputError(
                    f"--epochs {self.epochs}: the run in {self.out} was made with {flag(name)} over {saved['epochs']}, which "
                    f"decide its {what}; give that again to resume it, or name another --out"
                )
        found = differences(self, saved, partial(came_to, videos_S=videos_S, world=world))
        for name, ours, theirs in sorted(found, key=lambda one: one[0] in ("queue", "bn_groups")):  # they follow from others
            if name == "precision" and theirs == "auto":
                continue  # an older version kept what was given, and nobody knows what that came to
            if name in flags(PixelSettings) and not getattr(self, name):
                continue  # those of the run
            made = "without it; leave it out" if theirs == str(None) else f"with {theirs}; give that again"
            raise InputError(f"{flag(name)} {ours}: the run in {self.out} was made {made} to resume it, or name another --out")

    def as_dict(self) -> dict[str, Any]:
        """Plain values by field, tuples as lists, URLs without secrets: what ``--config`` reads back as YAML."""
        return as_table(self)
