"""Features of a frozen trunk: every video's clips through the network once, and kept for whatever is tried with them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from dclr import checkpoint, distributed
from dclr.errors import InputError, make_folder
from dclr.evaluate import Pooled, Setting, over_videos
from dclr.hardware import place


@dataclass(frozen=True)
class Features:
    """Pooled features of V clips a video, float32, and labels, int64: ``train_NVC`` (N, V, C), ``train_label_N``, ``test_MVC``
    and ``test_label_M``."""

    train_NVC: np.ndarray
    train_label_N: np.ndarray
    test_MVC: np.ndarray
    test_label_M: np.ndarray


def extract(setting: Setting) -> Features:
    """The features of both splits, the same on every rank; ``cpv`` uniform clips of a training video, ``test_clips`` times
    ``crops`` of a test video. Where ``--features`` names a folder they are kept there, in a file named by the hash of all that
    decides them (weights, set, splits, label, clips, precision, BatchNorm), and are read from it the next time."""
    config = setting.config
    path = Path(config.features) / f"{name(setting)}.safetensors" if config.features else None
    if path and distributed.from_first(path.exists() if distributed.rank() == 0 else None):
        if distributed.rank() == 0:
            print(f"features from {path}")
        return read(path)
    module = place(Pooled(setting.trunk.module), setting.device)
    train = over_videos(module, setting, setting.train_N, config.cpv, 1, "train features", lambda f: f)
    test = over_videos(module, setting, setting.test_N, config.test_clips, config.crops, "test features", lambda f: f)
    found = Features(*train, *test)
    if path and distributed.rank() == 0 and not setting.skipped:
        make_folder(path.parent)
        unfinished = checkpoint.temporary(path)
        unfinished.write_bytes(save(vars(found)))
        unfinished.replace(path)
    return found


def read(path: Path) -> Features:
    """What :func:`extract` kept in ``path``; raises InputError for anything else."""
    try:
        return Features(**load_file(path))
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: not features that train_eval.py kept ({error}): remove it, and they are made again"
        ) from None


def name(setting: Setting) -> str:
    """The hash of everything that decides the features."""
    config, clip = setting.config, setting.clip
    decides = {
        "weights": setting.weights, "set": setting.shards.digest, "splits": [config.train_split, config.test_split],
        "label": setting.kind, "clips": [config.cpv, config.test_clips, config.crops],
        "clip": [clip.frames, clip.stride, clip.size], "precision": str(setting.dtype),
        "bn": [config.precise_bn, config.batch, config.seed, clip.min_scale, clip.flip] if config.precise_bn else 0,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]
