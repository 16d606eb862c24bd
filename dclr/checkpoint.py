"""Checkpoints: written whole or not at all, read without pickle, refused by name when they are something else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dclr.backbones import build
from dclr.backbones.resnet import VideoResNet
from dclr.errors import InputError

VERSION = 1
TRUNK = "f_q.backbone."


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` (tensors and plain Python) under ``path``: temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        torch.save({"version": VERSION, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: Path) -> dict[str, Any]:
    """The state in ``path``, on the CPU. Only tensors and plain Python are read (``weights_only``); raises InputError for a
    file that is missing, damaged or not one of our checkpoints."""
    if not path.is_file():
        raise InputError(
            f"{path}: no such checkpoint; expected a file that train_pretrain.py wrote, such as runs/first/last.pt"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a hostile or damaged file makes the reader raise, the file is to blame
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a readable checkpoint ({reason})") from None
    missing = {"version", "config", "model"} - set(state if isinstance(state, dict) else ())
    if missing:
        raise InputError(f"{path}: not a checkpoint of train_pretrain.py (it lacks {', '.join(sorted(missing))})")
    if state["version"] != VERSION:
        raise InputError(f"{path}: checkpoint version {state['version']!r}, this code reads version {VERSION}")
    return state


@dataclass(frozen=True)
class Trunk:
    """A backbone to evaluate: the module, its ``arch`` and ``width``, and the ``clip`` (frames, stride, size) it learned on
    (empty for random weights)."""

    module: VideoResNet
    arch: str
    width: int
    clip: dict[str, int]


def load_trunk(path: Path) -> Trunk:
    """f_q's trunk out of a checkpoint, every parameter matched; its BatchNorm statistics are those of RGB clips."""
    state = load(path)
    config = state["config"]
    try:
        arch, width, clip = config["arch"], config["width"], {k: int(config[k]) for k in ("frames", "stride", "size")}
        module = build(arch, width)
        wanted = module.state_dict()
        found = {name: state["model"][TRUNK + name] for name in wanted}
        module.load_state_dict(found)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: its weights do not fit the architecture it names: {reason}") from None
    return Trunk(module, arch, width, clip)


def random_trunk(arch: str, width: int, seed: int) -> Trunk:
    """The same trunk with random weights: the baseline of every evaluation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Trunk(build(arch, width), arch, width, {})
