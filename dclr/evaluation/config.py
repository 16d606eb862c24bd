"""What decides an evaluation: its settings by part; without torch. dclr/evaluation/modes.py says which modes have which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dclr.data.clips import CROPS, LEARNED, ClipConfig
from dclr.data.config import Choice, Reading, Shards
from dclr.errors import InputError, place
from dclr.evaluation.modes import MODES
from dclr.method.objective import Network
from dclr.method.pixels import PixelSettings
from dclr.settings import MANY, SEEDS, again, check_values, flag, flags, from_flags, setting
from dclr.text import public
from dclr.training.config import Checkpoints, Optimisation

ALL = "all"  # of the modes
ROW_KINDS = ("video", "clip", "position")  # of extracted features
HASHED = {"weights": "pretrained", "set": "shards"}  # what results and checkpoints have the hash of -> its setting


@dataclass(frozen=True, kw_only=True)
class Data:
    title = "data"
    shards: str = again(  # the set's hash stands for it
        Shards, "shards", free=True,
        help="a set that python -m preprocess made: a folder, s3://, gs://, az://, hf:// or http(s)://",
    )  # fmt: skip
    train_split: tuple[str, ...] = setting((), "splits to train on", metavar="SPLIT", derived="those of --folds")
    test_split: tuple[str, ...] = setting((), "splits to test on", metavar="SPLIT", derived="those of --folds")
    val: float = setting(
        0.0, "share of the training videos that is held out to choose an epoch or a learning rate on", metavar="SHARE", least=0,
        below=1,
    )  # fmt: skip
    label: str | None = setting(
        None, "kind of label to evaluate, such as motion or scene", metavar="KIND", derived="the set's first"
    )
    out: str = setting(
        help="folder of the evaluation, for result.json, report.html and pictures", metavar="RUN", place=True, free=True,
        group="run",
    )  # fmt: skip
    force: bool = setting(False, "evaluate anew, and write over the result that --out holds", free=True, group="run")
    baseline: str | None = setting(
        None, "an evaluation of the same test videos, to stand beside this one", metavar="RUN", place=True, free=True,
        before=None, group="run",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PretrainedNetwork:
    title = "network"
    pretrained: str = setting(  # as its hash
        help="what is evaluated: a checkpoint, other weights, a folder of dclr.export, or random (with -a)",
        metavar="FILE",
        place=True,
        free=True,
    )
    arch: str | None = again(
        Network, "arch", None, help="the network of --pretrained random", derived="what the checkpoint holds"
    )
    width: int = again(Network, "width", help="channels of the first stage of --pretrained random; else the checkpoint says it")

    def check_network(self) -> None:
        """Raises InputError where random weights are asked for and nothing says of which network."""
        if self.pretrained == "random" and self.arch is None:
            raise InputError("--pretrained random says nothing of the network: name it with -a, such as -a r2plus1d_10")


@dataclass(frozen=True, kw_only=True)
class Pretrained(PretrainedNetwork):
    title = "network"
    precise_bn: int = setting(
        0,
        "batches of RGB clips on which BatchNorm's statistics are estimated anew first; 0: none",
        metavar="N",
        least=0,
        most=MANY,
    )


def _learned(otherwise: float) -> str:
    return f"the checkpoint's, or {otherwise:g}"


@dataclass(frozen=True, kw_only=True)
class UniformClips:
    title = "clips"
    frames: int | None = again(ClipConfig, "frames", None, derived=_learned(ClipConfig.frames))
    stride: int | None = again(ClipConfig, "stride", None, least=1, derived=_learned(ClipConfig.stride))
    clip_fps: float | None = again(ClipConfig, "clip_fps", instead="stride", derived="the checkpoint's, or by the stride")
    size: int | None = again(ClipConfig, "size", None, derived=_learned(ClipConfig.size))
    test_clips: int = setting(
        10, "uniform clips of a test video, of which the mean is taken", metavar="N", least=1, most=10_000
    )
    crops: int = setting(1, "crops of each test clip: the middle, or three along the long side", choices=CROPS)
    cross_cuts: bool = again(ClipConfig, "cross_cuts")

    def clip(self, learned: Mapping[str, Any]) -> ClipConfig:
        """The clips to evaluate on, given those that the checkpoint learned on."""
        given = {name: value for name in LEARNED if (value := getattr(self, name)) is not None}
        if given.keys() & {"stride", "clip_fps"}:
            learned = {name: value for name, value in learned.items() if name not in ("stride", "clip_fps")}
        more: dict[str, Any] = {**learned, **given}
        return ClipConfig(cross_cuts=self.cross_cuts, **more)


@dataclass(frozen=True, kw_only=True)
class EvalClips(UniformClips):
    title = UniformClips.title
    cpv: int = setting(
        10, "clips of a training video: in each epoch of finetune, in all otherwise", short="-cpv", metavar="N", least=1,
        most=10_000,
    )  # fmt: skip
    average: str = setting("probabilities", "what of a test video's clips is averaged", choices=("probabilities", "logits"))
    min_scale: float = again(ClipConfig, "min_scale")
    flip: float = again(ClipConfig, "flip")

    def clip(self, learned: Mapping[str, Any]) -> ClipConfig:
        return replace(super().clip(learned), min_scale=self.min_scale, flip=self.flip)


@dataclass(frozen=True, kw_only=True)
class Frozen:
    title = "frozen features"
    features: str | None = setting(
        None,
        "folder that keeps the features, and from which they are read where it has them",
        metavar="DIR",
        place=True,
        free=True,
        derived="RUN/features",
    )
    probe: str = setting(
        "convex", "how the probe is fitted: to the minimum of a convex loss, or by the authors' sgd", choices=("convex", "sgd")
    )
    probe_lr: tuple[float, ...] = setting(
        (5.0,), "learning rate of --probe sgd; of several the best on --val", metavar="RATE", above=0, most=1000
    )
    shots: tuple[int, ...] = setting((1, 5, 10), "numbers of training videos of a class", metavar="N", least=1, most=MANY)
    draws: int = setting(5, "how often these videos are drawn", metavar="N", least=1, most=MANY)


@dataclass(frozen=True, kw_only=True)
class Computing:
    title = "optimisation"
    batch: int = setting(
        64, "clips of a step over all processes, also of --precise-bn", short="-b", metavar="N", least=1,
        most=MANY,
    )  # fmt: skip
    seed: int = 0  # --seeds
    precision: str = again(Optimisation, "precision")
    deterministic: bool = again(Optimisation, "deterministic")


@dataclass(frozen=True, kw_only=True)
class Tuning:
    title = "optimisation (finetune)"
    epochs: int = again(Optimisation, "epochs", 10)
    optimiser: str = again(Optimisation, "optimiser")
    lr: float = again(Optimisation, "lr", 0.1)
    schedule: tuple[int, ...] = again(Optimisation, "schedule", (6, 8))
    wd: float = again(Optimisation, "wd")
    dropout: float = setting(0.5, "share of the pooled features that a step leaves out", metavar="SHARE", least=0, below=1)
    head: str = setting("linear", "the classifier: a linear layer, or a BatchNorm and a linear layer", choices=("linear", "bn"))
    bn: str = setting(
        "sync", "what normalises: statistics of all processes' clips, of each process's, or of the pretraining",
        choices=("sync", "local", "frozen"),
    )  # fmt: skip
    early_stop: int = setting(
        0, "epochs without a better one on --val after which it stops; 0: it never does", metavar="EPOCHS", least=0,
        most=MANY, before=0,
    )  # fmt: skip
    save_minutes: float = again(Checkpoints, "save_minutes", group="run")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Tuning, Computing, Frozen, EvalClips, PixelSettings, Pretrained, Reading, Choice, Data):
    """Everything that decides an evaluation; saved in its result.json. Raises InputError for values that do not fit.

    ``frames``, ``stride`` (or ``clip_fps``) and ``size`` of None are those of the checkpoint (16, 2, 112 for random weights);
    ``cpv`` is clips a training video: random ones in each epoch of finetune, uniform ones otherwise; ``test_clips`` uniform
    clips of a test video, each cut ``crops`` times, of which ``average`` is taken. ``head`` ``bn`` has a BatchNorm before the
    linear layer. In finetuning, BatchNorm normalises by the batch of all processes (``bn`` ``sync``) or of each (``local``), or
    as it was pretrained to (``frozen``). ``val`` is the share of the training videos that is held out, by which finetuning
    chooses its epoch (and stops after ``early_stop`` without a better one, 0: never) and ``probe`` ``sgd`` its learning rate.
    ``mean``, ``std`` and ``order`` are those that the weights learned from, where their file does not say it.
    """

    mode: str

    def __post_init__(self) -> None:
        check_values(self)
        self.check_pixels()
        if self.mode not in MODES:
            raise InputError(f"mode {self.mode!r}: expected one of {', '.join(MODES)}")
        if not self.train_split or not self.test_split:
            raise InputError("expected --train-split and --test-split, or --folds in the place of both")
        if self.early_stop and not self.val:
            raise InputError(f"--early-stop {self.early_stop}: it needs --val, such as 0.1, to have a result to watch")
        if len(self.probe_lr) != 1 and not self.val:
            raise InputError(
                f"--probe-lr {' '.join(map(str, self.probe_lr))}: expected one learning rate; of several one is chosen on "
                "--val, such as 0.1"
            )
        if self.baseline and Path(self.baseline).resolve() == Path(self.out).resolve():
            raise InputError(f"--baseline {self.baseline}: it is --out itself, expected the folder of another evaluation")
        if not self.shots:
            raise InputError("--shots: expected numbers of videos a class, such as 1 5 10")
        self.check_network()
        self.clip({})


@dataclass(frozen=True, kw_only=True)
class Extraction(UniformClips, PixelSettings, PretrainedNetwork, Reading):
    """Everything that decides what python -m dclr.extract writes. Raises InputError for values that do not fit."""

    title = "features"
    shards: str
    split: tuple[str, ...] = setting((), "splits whose videos are taken", metavar="SPLIT", derived="all videos")
    out: str = again(Data, "out", help="folder for features-00000.npz and so on", metavar="DIR")
    per: str = setting("video", "what a row is; a position is one of the feature map", choices=ROW_KINDS)
    format: str = setting("npz", "of the files; parquet needs pip install 'dclr[parquet]'", choices=("npz", "parquet"))
    plot: bool = setting(False, "draw features.png, the rows by t-SNE; needs pip install 'dclr[plot]'", free=True)
    label: str | None = again(Data, "label", help="kind of label that colours the picture", free=True)
    force: bool = again(Data, "force", help="extract anew, and write over the features that --out holds")
    test_clips: int = again(UniformClips, "test_clips", help="uniform clips of a video")
    crops: int = again(UniformClips, "crops", help="crops of each clip: the middle, or three along the long side")
    seed: int = again(Optimisation, "seed", help="seed of the picture, and of --pretrained random")
    precision: str = again(Optimisation, "precision")
    deterministic: bool = again(Optimisation, "deterministic")

    def __post_init__(self) -> None:
        check_values(self)
        object.__setattr__(self, "shards", place(self.shards, "SET"))
        self.check_pixels()
        self.check_network()
        self.clip({})


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What python -m dclr.predict does. Raises InputError for values that do not fit."""

    title = "prediction"
    pretrained: str = again(
        PretrainedNetwork, "pretrained", help="folder of train_eval.py finetune, or a checkpoint in it", metavar="RUN"
    )
    top: int = setting(5, "classes of a line, the most probable first", metavar="K", least=1, most=MANY)
    json: str | None = setting(
        None, "file for all probabilities, a line of JSON a video", metavar="FILE", place=True, derived="none"
    )
    overlay: str | None = setting(
        None, "file for one video with activation map and probabilities", metavar="OUT.mp4", place=True, derived="none"
    )
    precision: str | None = again(Optimisation, "precision", None, help="number format", derived="as it was tested")

    def __post_init__(self) -> None:
        check_values(self)
        if self.overlay and not self.overlay.endswith(".mp4"):
            raise InputError(f"--overlay {self.overlay}: expected a name that ends in .mp4")
        for name in ("json", "overlay"):
            if (path := getattr(self, name)) and Path(path).exists():
                raise InputError(f"--{name} {path}: it exists; name another file or remove it")


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """How often an evaluation is done: on which folds, with which seeds."""

    folds: tuple[int, ...] = setting(
        (), "folds: splits train0N and test0N in the place of both, one fold after the other, and their mean", metavar="N",
        least=0, most=MANY, group="data",
    )  # fmt: skip
    seeds: tuple[int, ...] = setting(
        (0,), "seeds of every random number; with several one evaluation after the other, and their mean", metavar="N",
        least=-SEEDS, most=SEEDS, group="optimisation",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_values(self)


def config_of(mode: str) -> type[EvalConfig]:
    """The dataclass of a mode's settings, EvalConfig where it has none of its own; of ``all`` one with those of every mode."""
    if mode != ALL:
        return MODES[mode].config or EvalConfig
    every = dict.fromkeys(map(config_of, MODES))
    leaves = tuple(one for one in every if not any(other is not one and issubclass(other, one) for other in every))
    return dataclass(frozen=True, kw_only=True)(type(EvalConfig.__name__, leaves, {"__doc__": EvalConfig.__doc__}))


def _own(mode: str) -> set[str]:
    """The settings of a mode that are not every mode's."""
    return set(MODES[mode].settings) | flags(config_of(mode)).keys() - flags(EvalConfig).keys()


def others(mode: str) -> set[str]:
    """The settings that only other modes have."""
    return set() if mode == ALL else set().union(*map(_own, MODES)) - _own(mode)


def renamed(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an evaluation by their names of today: an older version called --early-stop --patience."""
    return {"early_stop": options.get("patience", 0), **options}


def made_otherwise(config: EvalConfig, name: str, ours: Any, theirs: Any, what: str) -> InputError:
    """The error where ``what`` in ``--out`` was made with another setting: its flag and the ways out. ``name`` is a field of
    EvalConfig or Repeats, or one of :data:`HASHED`."""
    out = "name another --out, or --force evaluates anew"
    if name in HASHED:
        given = public(str(getattr(config, HASHED[name])))
        return InputError(f"{flag(HASHED[name])} {given}: {what} was made from another content than it has now; {out}")
    if name == "mode":
        return InputError(f"{ours}: {what} was made by {theirs}; {out}")
    one = (flags(type(config)) | flags(Repeats))["seeds" if name == "seed" else name]
    return InputError(f"{one.typed(ours)}: {what} was made with {one.typed(theirs)}; give that again, {out}")


def evaluation(given: Mapping[str, Any]) -> tuple[list[EvalConfig], Repeats]:
    """The first evaluation of each mode that a command line asks for, and how often."""
    repeats = from_flags(Repeats, given)
    splits = ("train_split", "test_split")
    if repeats.folds and any(name in given for name in splits):
        raise InputError("expected --train-split and --test-split, or --folds in the place of both")
    first = {name: (f"{name[:-6]}{repeats.folds[0]:02}",) for name in splits} if repeats.folds else {}
    modes = list(MODES) if given["mode"] == ALL else [given["mode"]]
    return [from_flags(config_of(mode), given, mode=mode, **first) for mode in modes], repeats
