"""A run's checkpoints: written in the background, whole or not at all. :func:`resume` finds the newest valid one again."""

from __future__ import annotations

import os
import re
import shutil
import sys
import zipfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from dclr import checkpoint
from dclr.errors import InputError, NotKept
from dclr.files import whole
from dclr.training.state import FILE

STEP_NAME = re.compile(r"step-(\d{9})\.pt")
LAST = "last.pt"  # the newest, under a name that does not change
ABANDONED = ".abandoned"


def on_cpu(value: Any) -> Any:
    """A copy of nested dicts and lists with every tensor copied to main memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: on_cpu(item) for key, item in value.items()}
    return [on_cpu(item) for item in value] if isinstance(value, list) else value


class Saver:
    """Writes the checkpoints of a run into ``folder``: ``step-000000123.pt``, and ``last.pt``, which is the same file.

    It keeps the last ``keep`` checkpoints, and those whose step is a multiple of ``milestone``. A run that went back, past
    damaged checkpoints or by ``--resume``, meets files of its own step or later ones. They belong to a course that the run has
    left, and are renamed to ``NAME.abandoned``. A full or read-only disk costs the checkpoint, never the run; at the end of the
    run :meth:`require` raises for it."""

    def __init__(self, folder: Path, keep: int, milestone: int):
        self.folder, self.keep, self.milestone = folder, keep, milestone
        self.kept, self._reason = -1, ""  # the step of what last.pt is, since this run began
        self._pool = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def save(self, step: int, state: Mapping[str, Any], again: bool = False) -> None:
        """Copy ``state`` and write it in the background, with ``again`` over the one of this step that the run went on from.
        Waits first until the checkpoint before is written."""
        self.wait()
        self._pending = self._pool.submit(self._write, step, on_cpu(state), again)

    def wait(self) -> None:
        """Wait until the checkpoint that :meth:`save` began is on the disk."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def require(self, step: int) -> None:
        """Wait; raises NotKept, naming what is kept, where the checkpoint of ``step`` could not be written."""
        self.wait()
        if self.kept != step:
            raise NotKept(
                f"{self.folder}: the checkpoint of step {step} could not be written ({self._reason}); the newest that is kept "
                f"is {self._newest()}: free some space and start the same command again"
            )

    def _newest(self) -> str:
        return next((path.name for path in found(self.folder)), "none")

    def _write(self, step: int, state: Mapping[str, Any], again: bool) -> None:
        path = self.folder / f"step-{step:09d}.pt"
        try:
            for left in found(self.folder):
                if number(left) >= step + again:
                    left.rename(left.with_name(left.name + ABANDONED))
                    print(f"{left} is set aside as {left.name}{ABANDONED}: the run went back to before it", file=sys.stderr)
            checkpoint.save(path, state)
            with whole(self.folder / LAST) as last:
                last.unlink(missing_ok=True)
                try:
                    os.link(path, last)
                except OSError:  # a file system without hard links
                    shutil.copyfile(path, last)
            self.kept = step
            for old in found(self.folder)[self.keep :]:
                if number(old) % self.milestone:
                    old.unlink()
        except OSError as error:
            self._reason = error.strerror or str(error)
            print(
                f"warning: the checkpoint of step {step} could not be written to {self.folder} ({error}): the run goes on, "
                f"and the newest that is kept is {self._newest()}",
                file=sys.stderr,
            )


def number(path: Path) -> int:
    """The step in the name of a checkpoint. Raises ValueError for the name of any other file.

    >>> number(Path("runs/first/step-000000123.pt"))
    123
    """
    match = STEP_NAME.fullmatch(path.name)
    if not match:
        raise ValueError(f"{path.name}: no checkpoint's name")
    return int(match[1])


def found(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, newest first."""
    return sorted((path for path in folder.glob("step-*.pt") if STEP_NAME.fullmatch(path.name)), reverse=True)


def resume(folder: Path, which: str) -> dict[str, Any] | None:
    """The state to go on from, or None to begin anew.

    ``which`` is ``auto``: the newest valid checkpoint in ``folder``, None where it holds no run. Damaged ones are named on
    standard error and passed over. ``never``: None. The name of a file: that file. But where ``folder`` already holds a run
    that began from this file, the newest checkpoint of that run, so that a restart by torchrun does not begin again.

    Raises InputError where ``folder`` holds a run that is not to be resumed, or only damaged checkpoints.
    """
    paths = [*found(folder), *(path for path in [folder / LAST] if path.exists())]
    if which == "never" and paths:
        raise InputError(
            f"--out {folder}: it holds {paths[0].name} of an earlier run; leave --resume never out, or name another"
        )
    newest = _newest(paths)
    if which not in ("auto", "never"):
        if newest is None or newest["config"].get("resume") != which:
            return valid(Path(which))
        print(f"--resume {which}: {folder} holds the run that was started from it, which goes on")
    elif paths and newest is None:
        raise InputError(
            f"--out {folder}: none of its {len(paths)} checkpoints can be read; name another folder or remove them"
        )
    return newest


def _newest(paths: list[Path]) -> dict[str, Any] | None:
    """The state in the first valid file of ``paths``. Those before it are named on standard error."""
    for path in paths:
        try:
            return valid(path)
        except InputError as error:
            print(f"warning: passed over: {error}", file=sys.stderr)
    return None


def valid(path: Path) -> dict[str, Any]:
    """The state in ``path``, and :data:`FILE`, after every byte was checked against the file's own checksums. Raises InputError
    as checkpoint.load does."""
    checkpoint.require_unpacked(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except FileNotFoundError:
        damaged = None  # load says so
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise InputError(f"{path}: not a readable checkpoint ({error})") from None
    if damaged:
        raise InputError(f"{path}: not a readable checkpoint ({damaged} in it is damaged)")
    return checkpoint.load(path) | {FILE: str(path)}
