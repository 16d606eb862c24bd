"""What every evaluation shares: its configuration, features and scores of whole videos, the saved result."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from dclr import checkpoint, distributed, metrics, norm, report
from dclr.backbones import check
from dclr.checkpoint import Trunk
from dclr.data.clips import CROPS, ClipConfig
from dclr.data.fetch import Cache
from dclr.data.loader import TrainLoader, all_skipped, eval_loader, open_set
from dclr.data.manifest import ShardSet, require_size
from dclr.errors import InputError, make_folder, refuse_used
from dclr.hardware import pick_device, place, resolve_precision, revision
from dclr.views import normalise, to_clip

MODES = ("finetune", "linear", "knn", "retrieval", "fewshot")


@dataclass(frozen=True)
class EvalConfig:
    """Everything that decides an evaluation; saved in its result.json.

    ``frames``, ``stride`` and ``size`` of None are those of the checkpoint (16, 2, 112 for random weights); ``cpv`` is clips a
    training video: random ones in each epoch of finetune, uniform ones otherwise; ``test_clips`` uniform clips of a test video,
    each cut ``crops`` times.
    """

    mode: str
    shards: str
    out: str
    train_split: tuple[str, ...]
    test_split: tuple[str, ...]
    pretrained: str
    arch: str | None = None
    width: int = 64
    precise_bn: int = 0  # batches
    label: str | None = None
    frames: int | None = None
    stride: int | None = None
    size: int | None = None
    features: str | None = None
    shots: tuple[int, ...] = (1, 5, 10)
    draws: int = 5
    cpv: int = 10
    test_clips: int = 10
    crops: int = 1
    batch: int = 64
    epochs: int = 10
    lr: float = 0.1
    schedule: tuple[int, ...] = (6, 8)
    wd: float = 1e-4
    dropout: float = 0.5
    min_scale: float = 0.2
    flip: float = 0.5
    seed: int = 0
    precision: str = "auto"
    workers: int = 1
    cache: str | None = None
    cache_size: float = 100.0  # GB
    on_error: str = "stop"
    max_skipped: float = 1.0  # percent of the videos
    force: bool = False  # write over a result

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"mode {self.mode!r}: expected one of {', '.join(MODES)}")
        if self.precise_bn < 0:
            raise InputError(f"precise-bn {self.precise_bn}: expected a number of batches, 0 for none")
        if self.crops not in CROPS or not 0 <= self.max_skipped <= 100:
            raise InputError(f"crops {self.crops}, max-skipped {self.max_skipped}: expected 1 or 3 crops, and 0..100 percent")
        if not self.shots or min(self.shots) < 1:
            raise InputError(f"shots {' '.join(map(str, self.shots))}: expected numbers of videos a class, such as 1 5 10")
        for name in ("cpv", "test_clips", "batch", "epochs", "draws"):
            if getattr(self, name) < 1:
                raise InputError(f"{name.replace('_', '-')} {getattr(self, name)}: expected at least 1")
        if not self.lr > 0 or self.wd < 0 or not 0 <= self.dropout < 1 or self.workers < 0:
            raise InputError(
                f"lr {self.lr}, wd {self.wd}, dropout {self.dropout}, workers {self.workers}: "
                "expected lr above 0, wd and workers 0 or more, dropout in [0, 1)"
            )
        if self.pretrained == "random" and self.arch is None:
            raise InputError("--pretrained random says nothing of the network: name it with -a, such as -a r2plus1d_10")
        if self.arch is not None:
            check(self.arch, self.width)
        self.clip({})

    def clip(self, learned: dict[str, int]) -> ClipConfig:
        """The clips to evaluate on, given those that the checkpoint learned on."""
        default = ClipConfig()
        given = {name: getattr(self, name) for name in ("frames", "stride", "size")}
        frames, stride, size = (
            learned.get(name, getattr(default, name)) if value is None else value for name, value in given.items()
        )
        return ClipConfig(frames, stride, size, self.min_scale, self.flip)


@dataclass(frozen=True)
class Setting:
    """An evaluation ready to run: checked files, samples, device and number format."""

    config: EvalConfig
    trunk: Trunk
    weights: str  # the sha256 of the file they are from, or what else they are
    shards: ShardSet
    cache: Cache | None
    clip: ClipConfig
    kind: str
    train_N: np.ndarray
    test_N: np.ndarray
    device: torch.device
    dtype: torch.dtype
    skipped: list[str] = field(default_factory=list)  # keys of what could not be read so far

    @property
    def classes(self) -> list[str]:
        return self.shards.manifest.classes[self.kind]


def prepare(config: EvalConfig) -> Setting:
    """Check flags, then the checkpoint, then the shard set; raises InputError naming the first thing that is wrong."""
    device = pick_device()
    dtype = resolve_precision(config.precision, device)
    if not config.force:
        refuse_used(Path(config.out), "result.json")
    if config.pretrained == "random":
        assert config.arch is not None  # EvalConfig checked it
        trunk = checkpoint.random_trunk(config.arch, config.width, config.seed)
        weights = f"random {config.arch} of width {config.width}, seed {config.seed}"
    else:
        trunk = checkpoint.load_trunk(Path(config.pretrained))
        with Path(config.pretrained).open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
        if config.arch not in (None, trunk.arch):
            raise InputError(f"{config.pretrained} holds a {trunk.arch}, not the {config.arch} of -a: leave -a out")
    clip = config.clip(trunk.clip)
    shards, cache = open_set(config.shards, config.on_error, config.cache, config.cache_size)
    require_size(shards, clip.size)
    setting = labelled(config, trunk, weights, shards, cache, clip, device, dtype)
    make_folder(Path(config.out))
    distributed.setup(device)
    if distributed.rank() == 0:
        print(f"{config.pretrained}: {trunk.matched}")
    if config.precise_bn:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            norm.reestimate(place(trunk.module, device), training_clips(setting, config.precise_bn))
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
    return Setting(config, trunk, weights, shards, cache, clip, kind, train_N, test_N, device, dtype)


def training_clips(setting: Setting, batches: int) -> Iterator[torch.Tensor]:
    """RGB clips (B, 3, T, H, W) of the training split, cut as for training, colours as they are; the same on every rank."""
    config = setting.config
    batch = min(config.batch, len(setting.train_N))
    epochs = -(-batches // (len(setting.train_N) // batch))
    loader = TrainLoader(
        setting.shards, setting.train_N, setting.clip, clips=1, batch=batch, seed=config.seed, epochs=epochs,
        workers=config.workers, cache=setting.cache, on_error=config.on_error,
    )  # fmt: skip
    endless = itertools.chain.from_iterable(itertools.repeat(loader, epochs))
    bar = tqdm(total=batches, desc="BatchNorm statistics", unit="batch", disable=distributed.rank() != 0)
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


def batched_forward(module: nn.Module, setting: Setting, batch: dict[str, Any]) -> torch.Tensor:
    """One video's clips in one forward pass: uint8 (1, clips, T, S, S, 3) -> float32 (clips, ...)."""
    clips = normalise(to_clip(batch["rgb"][0].to(setting.device)))
    with torch.autocast(setting.device.type, setting.dtype, enabled=setting.dtype != torch.float32):
        return module(clips.contiguous(memory_format=torch.channels_last_3d)).float()


@torch.no_grad()
def over_videos(
    module: nn.Module, setting: Setting, samples_N: np.ndarray, clips: int, crops: int, title: str,
    reduce: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """``reduce(module(clips))`` of every video, each exactly once over all ranks, in ascending sample order; the segments of a
    cut video count as one, with the mean of their results. What cannot be read is left out and named in ``setting.skipped``
    where ``--on-error skip`` says so.

    Returns:
        the stacked results (N, ...) float32 and the labels int64 (N,), the same on every rank.
    """
    module.eval()
    config, rank, world = setting.config, distributed.rank(), distributed.world()
    loader = eval_loader(
        setting.shards, samples_N, setting.clip, clips=clips, crops=crops, rank=rank, world=world,
        workers=config.workers, kind=setting.kind, cache=setting.cache, on_error=config.on_error,
    )  # fmt: skip
    mine: dict[int, tuple[np.ndarray, int]] = {}
    bar = tqdm(loader, total=-(-len(samples_N) // world), desc=title, unit="video", disable=rank != 0)
    for batch in bar:
        result = reduce(batched_forward(module, setting, batch))
        mine[int(batch["sample"])] = (result.cpu().numpy(), int(batch["label"]))
    found = {sample: value for part in distributed.joined_objects(mine) for sample, value in part.items()}
    absent = set(samples_N.tolist()) - set(found)
    if absent and config.on_error != "skip":
        raise RuntimeError(f"{len(found)} of {len(samples_N)} videos were evaluated")
    all_skipped(absent, len(samples_N), config.max_skipped)
    setting.skipped.extend(setting.shards.keys[sample] for sample in sorted(absent))
    videos: dict[int, list[tuple[np.ndarray, int]]] = {}
    for sample in sorted(found):
        videos.setdefault(int(setting.shards.video_N[sample]), []).append(found[sample])
    rows = list(videos.values())
    return np.stack([np.mean([part[0] for part in row], axis=0) for row in rows]), np.array([row[0][1] for row in rows])


def save_result(
    setting: Setting,
    found: np.ndarray | dict[str, float],
    videos: int,
    extra: dict[str, Any],
    label_N: np.ndarray | None = None,
) -> dict[str, Any]:
    """Write result.json to the run's folder; returns the result. ``found`` is accuracies by name in 0..1, or class scores
    (N, classes) of videos with ``label_N``, which have a confusion matrix too."""
    config, out = setting.config, Path(setting.config.out)
    made = [out / "result.json"]
    if isinstance(found, np.ndarray):
        assert label_N is not None
        if not np.isfinite(found).all():
            raise FloatingPointError("scores are not finite and nothing was saved: try --precision fp32 or a smaller --lr")
        counts = metrics.confusion(found.argmax(1), label_N, len(setting.classes))
        extra = extra | {"confusion": counts.tolist()}
        made.append(report.confusion_matrix(counts, setting.classes, out / "confusion.png"))
        found = metrics.accuracies(found, label_N)
    result = {
        **found,
        "videos": videos,
        "skipped": sorted(set(setting.skipped)),
        "classes": len(setting.classes),
        "label": setting.kind,
        "arch": setting.trunk.arch,
        "width": setting.trunk.width,
        **extra,
        "options": dataclasses.asdict(config) | {n: getattr(setting.clip, n) for n in ("frames", "stride", "size")},
        "weights": setting.weights,
        "set": setting.shards.digest,
        "versions": {"dclr": revision(), "torch": torch.__version__, "numpy": np.__version__},
    }
    temporary = checkpoint.temporary(made[0])
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(made[0])
    numbers = ", ".join(f"{name} {100 * value:.1f} %" for name, value in found.items())
    print(f"{config.mode} on {setting.kind}: {numbers} of {videos} videos, {len(setting.classes)} classes")
    print(", ".join(map(str, made)))
    return result
