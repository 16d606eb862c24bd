"""What every evaluation shares: its configuration, its files, and what is found of whole videos."""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from dclr import bars, checkpoint, distributed
from dclr.checkpoint import Trunk
from dclr.compare import RESULT as RESULT
from dclr.data.clips import ClipConfig
from dclr.data.fetch import Cache
from dclr.data.loader import RGB_ALONE, Beside, TrainLoader, all_skipped, eval_loader, open_sets
from dclr.data.manifest import ShardSet, require_size
from dclr.data.sets import choose, leaks, pace_warnings
from dclr.draws import generator
from dclr.errors import FeedLost, InputError, make_folder
from dclr.evaluation.baseline import Each, require_same
from dclr.evaluation.config import EvalConfig, Extraction
from dclr.evaluation.pieces import Pieces
from dclr.hardware import pick_device, place, require_memory, resolve_precision, sent
from dclr.method import norm
from dclr.method.backbones import weight_bytes
from dclr.method.pixels import IMAGENET, InputPixels
from dclr.method.views import normalise, to_clip
from dclr.patience import Interrupted

UCF_GROUP = re.compile(r".*_g\d+(?=_c\d+)")  # UCF101's groups: clips cut out of one longer video
NO_SAMPLES = np.array([], np.int64)


class Classes:
    """The classes of an evaluation: of the labels of one kind, those that its training or test split has, as numbers 0..C-1.

    First come those that training has, in the set's order: they alone can be named, and a classifier has an output for each.
    After them come those that only the test split has, each of whose videos counts as wrong.

    Attributes:
        names: C names. known: how many of them training has. majority: the one with most training videos (of several the
        first).
    Raises:
        InputError: the set has no name for a label.
    """

    def __init__(self, shards: ShardSet, kind: str, train_N: np.ndarray, test_N: np.ndarray):
        label_N = shards.labels[kind]
        _, first = np.unique(shards.video_N[train_N], return_index=True)  # the segments of a cut video are one
        known_C, count_C = np.unique(label_N[train_N[first]], return_counts=True)
        label_C = np.concatenate([known_C, np.setdiff1d(label_N[test_N], known_C)])
        every = shards.manifest.classes[kind]
        if (most := int(label_C.max())) >= len(every):
            raise InputError(f"{shards.root}: a video has {kind} {most}, of {len(every)} classes: copy the whole set again")
        self.known, self.majority = len(known_C), int(count_C.argmax())
        self.names = [every[label] for label in label_C]
        self._order_C = np.argsort(label_C)
        self._sorted_C = label_C[self._order_C]

    def number(self, label_N: np.ndarray) -> np.ndarray:
        """The classes int64 (N,) of a set's labels int64 (N,); -1 for a label that neither split has."""
        at_N = np.searchsorted(self._sorted_C, label_N).clip(max=len(self.names) - 1)
        return np.where(self._sorted_C[at_N] == label_N, self._order_C[at_N], -1)

    @property
    def chance(self) -> float:
        """The share that guessing gets right, 1 / C."""
        return 1 / len(self.names)

    def guessed(self, class_M: np.ndarray) -> float:
        """The share of test videos of these classes that naming the majority class gets right."""
        return float((class_M == self.majority).mean())


@dataclass(frozen=True)
class Opened:
    """A network and a set to ask it about: checked files, device and number format."""

    config: EvalConfig | Extraction
    trunk: Trunk
    weights: str  # the sha256 of the file they are from, or what else they are
    shards: ShardSet
    cache: Cache | None
    clip: ClipConfig
    device: torch.device
    dtype: torch.dtype
    skipped: list[str] = field(default_factory=list, kw_only=True)  # keys of what could not be read so far

    @property
    def out(self) -> Path:
        return Path(self.config.out)


@dataclass(frozen=True)
class Setting(Opened):
    """An evaluation ready to run: also its samples."""

    config: EvalConfig
    kind: str
    train_N: np.ndarray
    val_N: np.ndarray  # held out of the training split, maybe none
    test_N: np.ndarray
    began: float = field(default_factory=time.monotonic)  # seconds

    @cached_property
    def classes(self) -> Classes:
        return self.classes_of(self.kind)

    def classes_of(self, kind: str) -> Classes:
        """The classes of another kind of label."""
        return Classes(self.shards, kind, np.union1d(self.train_N, self.val_N), self.test_N)

    def label(self, sample_N: np.ndarray) -> np.ndarray:
        """The classes of these samples, int64 (N,)."""
        return self.classes.number(self.shards.labels[self.kind][sample_N])

    def tested(self) -> Each:
        """The test videos and their classes, before any is read."""
        _, first = np.unique(self.shards.video_N[self.test_N], return_index=True)
        return self.each({}, self.test_N[np.sort(first)])

    def each(self, given: Mapping[str, Any], sample_M: np.ndarray, beyond_B: np.ndarray = NO_SAMPLES) -> Each:
        """What the videos that begin with these samples add to those of the numbers ``given`` that are arrays, (M,) or with the
        samples ``beyond_B`` the test videos (M + B,)."""
        sample_A = np.concatenate([sample_M, beyond_B])
        names = [*self.classes.names, "?"]  # of what is beyond, and has a class that no split has
        arrays = {name: value.astype(float) for name, value in given.items() if isinstance(value, np.ndarray)}
        keys, labels = [self.shards.keys[n] for n in sample_A], [names[c] for c in self.label(sample_A)]
        return Each(len(sample_M), keys, labels, frozenset(self.skipped), arrays)

    def with_random_weights(self) -> Setting:
        """The same evaluation of the same network before it learned anything."""
        trunk, named = random_weights(self.trunk.arch, self.trunk.width, self.config.seed, self.trunk.module.pixels)
        return prepared(dataclasses.replace(self, trunk=trunk, weights=named))


def opened(config: EvalConfig | Extraction) -> Opened:
    """Check the checkpoint, then the shard set; raises InputError naming the first thing that is wrong."""
    device = pick_device(config.deterministic)
    dtype = resolve_precision(config.precision, device)
    if config.pretrained == "random":
        assert config.arch is not None  # its configuration checked it
        require_memory({f"--arch {config.arch} --width {config.width}": weight_bytes(config.arch, config.width)}, device)
        trunk, weights = random_weights(config.arch, config.width, config.seed, config.pixels())
    else:
        trunk = checkpoint.load_trunk(config.pretrained, config)
        weights = checkpoint.digest(Path(config.pretrained))
        if config.arch not in (None, trunk.arch):
            raise InputError(f"{config.pretrained} holds a {trunk.arch}, not the {config.arch} of -a: leave -a out")
    clip = config.clip(trunk.clip)
    at_once = {f"--test-clips {config.test_clips} --crops {config.crops}": config.test_clips * config.crops}
    if isinstance(config, EvalConfig) and config.mode != "finetune":
        at_once[f"--cpv {config.cpv}"] = config.cpv
    for said, clips in at_once.items():  # of a video
        require_memory({f"{said} --frames {clip.frames} --size {clip.size}": clip.bytes(clips, clips)}, device)
    (shards,), cache = open_sets([config.shards], config.on_error, config.cache, config.cache_size, config.patience)
    require_size(shards, clip.size)
    return Opened(config, trunk, weights, shards, cache, clip, device, dtype)


def prepare(config: EvalConfig) -> Setting:
    """Check flags, then the checkpoint, then the shard set; raises InputError naming the first thing that is wrong."""
    began = time.monotonic()
    one = opened(config)
    setting = labelled(config, one.trunk, one.weights, one.shards, one.cache, one.clip, one.device, one.dtype)
    setting = dataclasses.replace(setting, began=began)
    if config.baseline:
        require_same(setting.tested(), Path(config.baseline))
    make_folder(Path(config.out), "--out")
    distributed.setup(one.device)
    if distributed.rank() == 0:
        _say_weights(config.pretrained, one.trunk.matched)
        _introduce(setting)
    return prepared(setting)


@cache
def _say_weights(pretrained: str, matched: str) -> None:
    """Say what was found in the weights; once, however many modes, folds and seeds the command has."""
    print(f"{pretrained}\n{matched}")


def _introduce(setting: Setting) -> None:
    """Say what it is trained on, and which test videos are among that."""
    config, shards = setting.config, setting.shards
    train_N = np.union1d(setting.train_N, setting.val_N)
    if config.chosen_by:
        every = len(shards.select(config.train_split))
        print(f"{len(train_N)} of {every} videos of {','.join(config.train_split)} are chosen by {config.chosen_by}")
    lines = leaks(shards, config.train_split, config.test_split, train_N, setting.test_N)
    if setting.clip.clip_fps is not None:
        lines += pace_warnings(shards, np.union1d(train_N, setting.test_N), setting.clip.clip_fps)
    for line in lines:
        print(line, file=sys.stderr)


def random_weights(arch: str, width: int, seed: int, pixels: InputPixels = IMAGENET) -> tuple[Trunk, str]:
    """A trunk that has learned nothing, and what its weights are called."""
    return checkpoint.random_trunk(arch, width, seed, pixels), f"random {arch} of width {width}, seed {seed}"


def prepared(setting: Setting) -> Setting:
    """The setting with its network's BatchNorm statistics re-estimated where ``--precise-bn`` asks for it."""
    if setting.config.precise_bn:
        device, dtype = setting.device, setting.dtype
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            norm.reestimate(place(setting.trunk.module, device), training_clips(setting, setting.config.precise_bn))
    return setting


def labelled(
    config: EvalConfig, trunk: Trunk, weights: str, shards: ShardSet, cache: Cache | None, clip: ClipConfig,
    device: torch.device, dtype: torch.dtype,
) -> Setting:  # fmt: skip
    """The evaluation on the two splits of an open set; raises InputError where they share a video or lack labels."""
    kind = shards.kind(config.label)
    train_N, test_N = shards.select(config.train_split), shards.select(config.test_split)
    both = np.intersect1d(train_N, test_N)
    if len(both):
        raise InputError(
            f"{len(both)} videos are in --train-split and in --test-split, such as {shards.keys[both[0]]}: "
            "a video trains or tests, not both"
        )
    unlabelled = [shards.keys[n] for n in np.concatenate([train_N, test_N]) if shards.labels[kind][n] < 0]
    if unlabelled:
        raise InputError(
            f"{len(unlabelled)} videos of {config.train_split} and {config.test_split} have no label {kind!r}, such as "
            f"{unlabelled[0]}: choose splits that are labelled"
        )
    train_N, val_N = held_out(shards, kind, choose(shards, train_N, config), config.val, config.seed)
    return Setting(config, trunk, weights, shards, cache, clip, device, dtype, kind, train_N, val_N, test_N)


def held_out(shards: ShardSet, kind: str, samples_N: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A training split without and with what is held out of it for choices (never the test split), two int64 arrays.

    Of each class, whole groups (UCF101's ``_gXX_``; elsewhere a video with its segments) in an order from (seed, class), until
    ``share`` of the class's samples is reached; the last group stays. Raises InputError where that leaves nothing.
    """
    if not share:
        return samples_N, samples_N[:0]
    label_N, out = shards.labels[kind][samples_N], np.zeros(len(samples_N), bool)
    found = [UCF_GROUP.match(shards.keys[n]) for n in samples_N]
    names = [group[0] if group else str(shards.video_N[n]) for n, group in zip(samples_N, found, strict=True)]
    _, group_N = np.unique(names, return_inverse=True)
    for c in np.unique(label_N):
        here = label_N == c
        groups = generator("val", seed, int(c)).permutation(np.unique(group_N[here]))
        for group in groups[:-1]:
            if out[here].sum() >= share * here.sum():
                break
            out[here & (group_N == group)] = True
    if not out.any():
        raise InputError(
            f"--val {share}: every class of --train-split has one group of videos, none can be held out; leave --val out"
        )
    return samples_N[~out], samples_N[out]


def training_clips(setting: Setting, batches: int) -> Iterator[torch.Tensor]:
    """RGB clips (B, 3, T, H, W) of the training split, cut as for training, colours as they are; the same on every rank."""
    config = setting.config
    batch = min(config.batch, len(setting.train_N))
    epochs = -(-batches // (len(setting.train_N) // batch))
    loader = TrainLoader(
        setting.shards, setting.train_N, setting.clip, clips=1, batch=batch, seed=config.seed, epochs=epochs,
        workers=config.workers, cache=setting.cache, on_error=config.on_error, stall_minutes=config.stall_minutes,
    )  # fmt: skip
    endless = itertools.chain.from_iterable(itertools.repeat(loader, epochs))
    bar = bars.bar(total=batches, desc="BatchNorm statistics", unit="batch", disable=distributed.rank() != 0)
    for made in itertools.islice(endless, batches):
        clips = normalise(to_clip(made["rgb"][:, 0].to(setting.device)))
        yield clips.contiguous(memory_format=torch.channels_last_3d)
        bar.update()
    bar.close()


class Pooled(nn.Module):
    """Clips (B, 3, T, H, W) -> features (B, C'), the global average pool of the trunk."""

    def __init__(self, trunk: nn.Module):
        super().__init__()
        self.trunk = trunk

    def forward(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        return self.trunk(clip_BCTHW).float().mean((2, 3, 4))


class Computes(Protocol):
    """Where a network computes, and in which number format."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...


@torch.no_grad()
def forward(module: nn.Module, setting: Computes, rgb_NTSSC: torch.Tensor) -> torch.Tensor:
    """One video's clips in one pass: uint8 (N, T, S, S, 3) -> float32 (N, ...)."""
    clips = normalise(to_clip(sent(rgb_NTSSC, setting.device)))
    with torch.autocast(setting.device.type, setting.dtype, enabled=setting.dtype != torch.float32):
        return module(clips.contiguous(memory_format=torch.channels_last_3d)).float()


def mean_of(segments: list[np.ndarray]) -> np.ndarray:
    return np.mean(segments, axis=0)


def over_videos(
    setting: Opened, samples_N: np.ndarray, clips: int, crops: int, title: str,
    found: Callable[[dict[str, Any]], torch.Tensor], kept: Path | None = None, beside: Beside = RGB_ALONE,
    join: Callable[[list[np.ndarray]], np.ndarray] | None = mean_of,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """What ``found`` says of every video, each asked exactly once over all ranks, in ascending sample order; the segments of a
    cut video count as one, with the mean of their results. What cannot be read is left out and named in ``setting.skipped``
    where ``--on-error skip`` says so. Raises FeedLost or Interrupted on every rank where one of them could not go on.

    Args:
        found: a batch of :func:`dclr.data.loader.eval_loader` (one video, and what is ``beside`` it) -> a tensor.
        kept: a folder for what is found as it is found, so that a killed evaluation goes on; the caller removes it.
        join: the results of a cut video's segments -> the video's; None: each is one.
    Returns:
        the stacked results (N, ...) float32 and each video's first sample int64 (N,), the same on every rank.
    """
    config, rank, world = setting.config, distributed.rank(), distributed.world()
    pieces = Pieces(kept)
    before = distributed.from_first(pieces.read() if rank == 0 else None)
    rest_N = np.setdiff1d(samples_N, np.array(list(before), np.int64))
    loader = eval_loader(
        setting.shards, rest_N, setting.clip, clips=clips, crops=crops, beside=beside, rank=rank, world=world,
        workers=config.workers, cache=setting.cache, on_error=config.on_error, stall_minutes=config.stall_minutes,
    )  # fmt: skip
    mine: dict[int, np.ndarray] = {}
    ended: BaseException | None = None
    try:
        for batch in bars.bar(loader, total=-(-len(rest_N) // world), desc=title, unit="video", disable=rank != 0):
            if distributed.called_off():
                break
            sample = int(batch["sample"][0])
            mine[sample] = result = found(batch).cpu().numpy()
            pieces.add(sample, result)
    except (Interrupted, FeedLost) as error:
        ended = error
        distributed.call_off()  # the others need not first ask all of theirs
    pieces.keep()
    distributed.unanimous(ended)
    results = before | {sample: value for part in distributed.joined_objects(mine) for sample, value in part.items()}
    absent = set(samples_N.tolist()) - set(results)
    if absent and config.on_error != "skip":
        raise RuntimeError(f"{len(results)} of {len(samples_N)} videos were evaluated")
    all_skipped(absent, len(samples_N), config.max_skipped)
    setting.skipped.extend(setting.shards.keys[sample] for sample in sorted(absent))
    if not results:
        raise InputError(f"none of {len(samples_N)} videos could be read: python -m preprocess verify names the faults")
    videos: dict[int, list[int]] = {}
    for sample in sorted(results):
        videos.setdefault(int(setting.shards.video_N[sample]) if join else sample, []).append(sample)
    rows = list(videos.values())
    joined = [join([results[n] for n in row]) if join else results[row[0]] for row in rows]
    return np.stack(joined), np.array([row[0] for row in rows])
