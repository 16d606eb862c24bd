"""What decides an evaluation: its settings by part; without torch. dclr/evaluation/modes.py says which modes have which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dclr.data.clips import CROPS, LEARNED, ClipConfig
from dclr.data.config import Choice, Reading, Shards
from dclr.errors import InputError
from dclr.evaluation.modes import MODES
from dclr.method.objective import Network
from dclr.method.pixels import PixelSettings
from dclr.settings import again, check_values, flags, from_flags, setting
from dclr.training.config import Checkpoints, Optimisation

ALL = "all"  # of the modes


@dataclass(frozen=True, kw_only=True)
class Data:
    title = "data"
    shards: str = again(  # the set's hash stands for it
        Shards, "shards", free=True, help="what python -m preprocess made: a folder, s3://, gs://, az://, hf:// or http(s)://"
    )
    train_split: tuple[str, ...] = setting((), "splits to train on", metavar="SPLIT")
    test_split: tuple[str, ...] = setting((), "splits to test on", metavar="SPLIT")
    val: float = setting(0.0, "of train, held out to choose epoch or probe-lr", metavar="SHARE", least=0, below=1)
    label: str | None = setting(None, "kind of label, such as motion or scene; the set's first by default")
    out: str = setting(help="folder for result.json, report.html and pictures", metavar="RUN", place=True, free=True)
    force: bool = setting(False, "write over a result that --out holds", free=True)


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    title = "model"
    pretrained: str = setting(
        help="checkpoint, weights, folder of dclr.export, or random", metavar="FILE", place=True, free=True
    )  # as its hash
    arch: str | None = again(Network, "arch", None, help="network for --pretrained random; otherwise the checkpoint says")
    width: int = again(Network, "width", help="channels of the first stage, for --pretrained random")
    precise_bn: int = setting(
        0, "first re-estimate BatchNorm's statistics on N RGB training batches (0: not)", metavar="N", least=0
    )


@dataclass(frozen=True, kw_only=True)
class EvalClips:
    title = "clips (frames, stride or clip-fps, and size: by default the checkpoint's, or 16, 2, 112)"
    frames: int | None = again(ClipConfig, "frames", None)
    stride: int | None = again(ClipConfig, "stride", None, least=1, above=None)
    clip_fps: float | None = again(ClipConfig, "clip_fps", instead="stride")
    size: int | None = again(ClipConfig, "size", None)
    cpv: int = setting(10, "clips a training video: an epoch's (finetune), in all (others)", short="-cpv", least=1)
    test_clips: int = setting(10, "uniform clips a test video, probabilities averaged", least=1)
    crops: int = setting(1, "of each test clip: 1 (the middle) or 3 (along the long side)", choices=CROPS)
    average: str = setting("probabilities", "of a video's clips", choices=("probabilities", "logits"))
    min_scale: float = again(ClipConfig, "min_scale", help="least share of the area that a training crop keeps")
    flip: float = again(ClipConfig, "flip")
    cross_cuts: bool = again(ClipConfig, "cross_cuts")


@dataclass(frozen=True, kw_only=True)
class Frozen:
    title = "frozen features"
    features: str | None = setting(
        None,
        "keep them there (default: RUN/features), read them where they were kept",
        metavar="DIR",
        place=True,
        free=True,
    )
    probe: str = setting("convex", "convex (to its minimum) or sgd (the authors')", choices=("convex", "sgd"))
    probe_lr: tuple[float, ...] = setting((5.0,), "of sgd; of several the best on --val", metavar="LR", above=0)
    shots: tuple[int, ...] = setting((1, 5, 10), "training videos a class", metavar="N", least=1)
    draws: int = setting(5, "of those videos", least=1)


@dataclass(frozen=True, kw_only=True)
class Computing:
    title = "optimisation"
    batch: int = setting(64, "clips a step, over all processes; also of --precise-bn", short="-b", least=1)
    seed: int = 0  # --seeds
    precision: str = again(Optimisation, "precision")
    deterministic: bool = again(Optimisation, "deterministic")


@dataclass(frozen=True, kw_only=True)
class Tuning:
    title = "optimisation (finetune)"
    epochs: int = setting(10, least=1, free=True)
    optimiser: str = again(Optimisation, "optimiser")
    lr: float = setting(0.1, above=0)
    schedule: tuple[int, ...] = again(Optimisation, "schedule", (6, 8))
    wd: float = again(Optimisation, "wd")
    dropout: float = setting(0.5, least=0, below=1)
    head: str = setting("linear", "linear, or bn: a BatchNorm before it", choices=("linear", "bn"))
    bn: str = setting(
        "sync",
        "statistics of all processes' clips, local: of each process's, frozen: as they are",
        choices=("sync", "local", "frozen"),
    )
    patience: int = setting(0, "without a better one on --val, then stop", metavar="EPOCHS", least=0)
    save_minutes: float = again(Checkpoints, "save_minutes")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Tuning, Computing, Frozen, EvalClips, PixelSettings, Pretrained, Reading, Choice, Data):
    """Everything that decides an evaluation; saved in its result.json. Raises InputError for values that do not fit.

    ``frames``, ``stride`` (or ``clip_fps``) and ``size`` of None are those of the checkpoint (16, 2, 112 for random weights);
    ``cpv`` is clips a training video: random ones in each epoch of finetune, uniform ones otherwise; ``test_clips`` uniform
    clips of a test video, each cut ``crops`` times, of which ``average`` is taken. ``head`` ``bn`` has a BatchNorm before the
    linear layer. In finetuning, BatchNorm normalises by the batch of all processes (``bn`` ``sync``) or of each (``local``), or
    as it was pretrained to (``frozen``). ``val`` is the share of the training videos that is held out, by which finetuning
    chooses its epoch (and stops after ``patience`` without a better one, 0 for never) and ``probe`` ``sgd`` its learning rate.
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
        if self.patience and not self.val:
            raise InputError(f"--patience {self.patience}: --patience needs --val, such as 0.1, to have a result to watch")
        if len(self.probe_lr) != 1 and not self.val:
            raise InputError(
                f"--probe-lr {' '.join(map(str, self.probe_lr))}: expected one learning rate; of several one is chosen on "
                "--val, such as 0.1"
            )
        if not self.shots:
            raise InputError("--shots: expected numbers of videos a class, such as 1 5 10")
        if self.pretrained == "random" and self.arch is None:
            raise InputError("--pretrained random says nothing of the network: name it with -a, such as -a r2plus1d_10")
        self.clip({})

    def clip(self, learned: Mapping[str, Any]) -> ClipConfig:
        """The clips to evaluate on, given those that the checkpoint learned on."""
        given = {name: value for name in LEARNED if (value := getattr(self, name)) is not None}
        if given.keys() & {"stride", "clip_fps"}:
            learned = {name: value for name, value in learned.items() if name not in ("stride", "clip_fps")}
        more: dict[str, Any] = {**learned, **given}
        return ClipConfig(min_scale=self.min_scale, flip=self.flip, cross_cuts=self.cross_cuts, **more)


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """How often an evaluation is done: on which folds, with which seeds."""

    folds: tuple[int, ...] = setting(
        (), "train0N and test0N of each in place of both splits, and the mean", metavar="N", least=0, group="data"
    )
    seeds: tuple[int, ...] = setting((0,), "several: one after the other, and the mean", metavar="SEED", group="optimisation")

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


def evaluation(given: Mapping[str, Any]) -> tuple[list[EvalConfig], Repeats]:
    """The first evaluation of each mode that a command line asks for, and how often."""
    repeats = from_flags(Repeats, given)
    splits = ("train_split", "test_split")
    if repeats.folds and any(name in given for name in splits):
        raise InputError("expected --train-split and --test-split, or --folds in the place of both")
    first = {name: (f"{name[:-6]}{repeats.folds[0]:02}",) for name in splits} if repeats.folds else {}
    modes = list(MODES) if given["mode"] == ALL else [given["mode"]]
    return [from_flags(config_of(mode), given, mode=mode, **first) for mode in modes], repeats
