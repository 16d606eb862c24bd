"""Features of a frozen trunk. Every video's clips go through the network once; the features are kept on disk for all modes."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save

from dclr import distributed
from dclr.data.loader import RGB_ALONE, Beside
from dclr.errors import make_folder
from dclr.evaluation.pieces import Pieces
from dclr.evaluation.setting import Opened, Pooled, Setting, forward, over_videos
from dclr.files import LOCK, held, whole
from dclr.hardware import place
from dclr.method.pixels import IMAGENET
from dclr.parse import parsing

FEATURES_VERSION = 2  # of the arithmetic from stored frames to features: another one where that changes
Found = Callable[[torch.nn.Module, dict[str, Any]], torch.Tensor]  # a network and a video's batch -> features


@dataclass(frozen=True)
class Features:
    """Pooled features of V clips a video: ``value`` float32 (N, V, C), and ``sample`` int64 (N,), each video's first sample."""

    value: np.ndarray
    sample: np.ndarray


def extract(
    setting: Setting, samples_N: np.ndarray, clips: int, crops: int, title: str, found: Found | None = None, what: str = "",
    beside: Beside = RGB_ALONE,
) -> Features | None:  # fmt: skip
    """Features of the videos ``samples_N`` (int64 (N,), one sample a video) on rank 0; None on other ranks.

    Each video is cut into ``clips`` uniform clips, each ``crops`` times. The features are read from ``--features`` (by default
    ``features`` in ``--out``) where that has them. Else they are computed and written there. The file's name is the hash of all
    that decides them (:func:`name`).

    Args:
        title: what the progress bar calls them.
        found: computes a video's features from its batch; None pools the feature map of the RGB clips.
        what: the name of ``found`` and of what it reads, a part of the hash.
        beside: what the batch has beside the RGB clips.
    Raises:
        FloatingPointError: the features are not finite; nothing is written.
    """
    first = distributed.rank() == 0
    folder = Path(setting.config.features or setting.out / "features")
    path = folder / f"{name(setting, samples_N, clips, crops, what)}.safetensors"
    if first:
        make_folder(folder, "--features")
    if not distributed.from_first(path.exists()):
        with held(folder / f".{path.stem}{LOCK}", f"--features {folder}", wait=True) if first else nullcontext():
            distributed.wait()  # for another evaluation that makes the same
            if not distributed.from_first(path.exists()):
                return _extracted(setting, samples_N, clips, crops, title, found, beside, path)
    if first:
        print(f"{title} from {path}")
    return read(path) if first else None


def _extracted(
    setting: Setting, samples_N: np.ndarray, clips: int, crops: int, title: str, found: Found | None, beside: Beside, path: Path
) -> Features | None:
    """What :func:`extract` does where no file has the features yet."""
    module = place(Pooled(setting.trunk.module), setting.device).eval()
    ask = found or (lambda net, batch: forward(net, setting, batch["rgb"][0]))
    kept = path.with_suffix(".part")
    values, samples = over_videos(setting, samples_N, clips, crops, title, lambda batch: ask(module, batch), kept, beside)
    if distributed.rank() != 0:
        return None
    if not np.isfinite(values).all():
        raise FloatingPointError("features are not finite and nothing was saved: try --precision fp32")
    if not setting.skipped:
        try:
            with whole(path) as unfinished:
                unfinished.write_bytes(save({"value": values, "sample": samples}))
        except OSError as error:
            print(f"warning: the features could not be kept in {path.parent} ({error.strerror})", file=sys.stderr)
    Pieces.remove(kept)
    return Features(values, samples)


def read(path: Path) -> Features:
    """Read the features that :func:`extract` wrote to ``path``. Raises InputError for any other file."""
    with parsing(str(path), "features that train_eval.py kept", "remove it, and they are made again"):
        found = Features(**load_file(path))
        if found.value.dtype != np.float32 or found.value.ndim < 2 or found.sample.dtype != np.int64:
            raise ValueError(f"they are {found.value.dtype} {found.value.shape}, of samples {found.sample.dtype}")
        if found.sample.shape != found.value.shape[:1]:
            raise ValueError(f"{len(found.value)} of {found.sample.shape} samples")
        return found


def name(setting: Setting, samples_N: np.ndarray, clips: int, crops: int, what: str) -> str:
    """The hash of :func:`decides`."""
    return hashlib.sha256(json.dumps(decides(setting, samples_N, clips, crops, what)).encode()).hexdigest()[:32]


def decides(setting: Opened, samples_N: np.ndarray, clips: int, crops: int, what: str) -> dict[str, Any]:
    """What decides the features: weights and their pixels, set, samples, clips, number format, torch,
    :data:`FEATURES_VERSION`."""
    clip, bn = setting.clip, setting.config if isinstance(setting, Setting) and setting.config.precise_bn else None
    return {
        "version": [FEATURES_VERSION, torch.__version__], "weights": setting.weights, "set": setting.shards.digest,
        "samples": hashlib.sha256(samples_N.astype("<i8").tobytes()).hexdigest(), "what": [what, clips, crops],
        "clip": [
            clip.frames, clip.stride, clip.size, *(["cross cuts"] if clip.cross_cuts else []),
            *([clip.clip_fps] if clip.clip_fps else []),
        ],
        "precision": str(setting.dtype),
        **({} if setting.trunk.module.pixels == IMAGENET else setting.trunk.module.pixels.said),
        "bn": 0 if bn is None else [
            bn.precise_bn, bn.batch, bn.seed, bn.train_split, bn.val, clip.min_scale, clip.flip,
            *([bn.chosen_by] if bn.chosen_by else []),
        ],
    }  # fmt: skip
