"""Features of a frozen trunk: every video's clips through the network once, and kept for whatever is tried with them."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from dclr import distributed
from dclr.errors import InputError, make_folder
from dclr.evaluate import Pooled, Setting, over_videos
from dclr.hardware import place

VERSION = 1  # of the arithmetic from stored frames to features: another one where that changes


@dataclass(frozen=True)
class Features:
    """Pooled features of V clips a video, float32, and labels, int64: ``train_NVC`` (N, V, C), ``train_label_N``, ``test_MVC``
    and ``test_label_M``."""

    train_NVC: np.ndarray
    train_label_N: np.ndarray
    test_MVC: np.ndarray
    test_label_M: np.ndarray


def extract(setting: Setting) -> Features | None:
    """The features of both splits on rank 0, None on others: ``cpv`` uniform clips of a training video, ``test_clips`` times
    ``crops`` of a test video. Where ``--features`` names a folder they are kept there, in a file named by the hash of all that
    decides them (:func:`name`), and are read from it the next time. Raises FloatingPointError where they are not finite."""
    config, first = setting.config, distributed.rank() == 0
    path = Path(config.features) / f"{name(setting)}.safetensors" if config.features else None
    if path:
        if first:
            make_folder(path.parent, "--features")
        if distributed.from_first(path.exists() if first else None):
            if first:
                print(f"features from {path}")
            return read(path) if first else None
    module = place(Pooled(setting.trunk.module), setting.device)
    train = over_videos(module, setting, setting.train_N, config.cpv, 1, "train features", lambda f: f)
    test = over_videos(module, setting, setting.test_N, config.test_clips, config.crops, "test features", lambda f: f)
    if not first:
        return None
    found = Features(*train, *test)
    if not (np.isfinite(found.train_NVC).all() and np.isfinite(found.test_MVC).all()):
        raise FloatingPointError("features are not finite and nothing was saved: try --precision fp32")
    if path and not setting.skipped:
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            unfinished.write_bytes(save(vars(found)))
            unfinished.replace(path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            print(f"warning: the features could not be kept in {path.parent} ({error.strerror})", file=sys.stderr)
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
    """The hash of what decides the features: weights, set, splits, label, clips, number format, torch, and :data:`VERSION`."""
    config, clip = setting.config, setting.clip
    decides = {
        "version": [VERSION, torch.__version__],
        "weights": setting.weights, "set": setting.shards.digest, "splits": [config.train_split, config.test_split],
        "label": setting.kind, "clips": [config.cpv, config.test_clips, config.crops],
        "clip": [clip.frames, clip.stride, clip.size], "precision": str(setting.dtype),
        "bn": [config.precise_bn, config.batch, config.seed, clip.min_scale, clip.flip] if config.precise_bn else 0,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]
