"""A run's checkpoints: written in the background, whole or not at all, and the newest valid one found again."""

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

NAME = re.compile(r"step-(\d{9})\.pt")
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
    """Writes ``step-000000123.pt`` and ``last.pt``, the same file, into ``folder``; keeps the last ``keep`` and every one whose
    step is a multiple of ``milestone``. Files of that step and above are of a course that the run has left (it went back past
    damaged ones, or by ``--resume``): they stay as ``NAME.abandoned``. A disk that is full or read-only costs that checkpoint,
    never the run: :meth:`require` says so at its end."""

    def __init__(self, folder: Path, keep: int, milestone: int):
        self.folder, self.keep, self.milestone = folder, keep, milestone
        self.kept, self._reason = -1, ""  # the step of what last.pt is, since this run began
        self._pool = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Copy ``state`` now and write it behind the back of the training; waits for the checkpoint before."""
        self.wait()
        self._pending = self._pool.submit(self._write, step, on_cpu(state))

    def wait(self) -> None:
        """Until what :meth:`save` began is on the disk."""
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

    def _write(self, step: int, state: Mapping[str, Any]) -> None:
        path = self.folder / f"step-{step:09d}.pt"
        try:
            for left in found(self.folder):
                if number(left) >= step:
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
    """The step in a checkpoint's name; raises ValueError where it is another file's."""
    match = NAME.fullmatch(path.name)
    if not match:
        raise ValueError(f"{path.name}: no checkpoint's name")
    return int(match[1])


def found(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, newest first."""
    return sorted((path for path in folder.glob("step-*.pt") if NAME.fullmatch(path.name)), reverse=True)


def resume(folder: Path, which: str) -> dict[str, Any] | None:
    """The state to go on from: with ``auto`` the newest valid one in ``folder`` (damaged ones are told on standard error and
    passed over), None where there is none; with ``never`` None. With a file's name that one, or the newest in ``folder`` where
    that is of a run which was started from it: torchrun's restart goes on.

    Raises InputError for a folder that holds a run that is not to be resumed, or whose checkpoints are all damaged.
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
    """The state in the first valid one of ``paths``; the others before it are told."""
    for path in paths:
        try:
            return valid(path)
        except InputError as error:
            print(f"warning: passed over: {error}", file=sys.stderr)
    return None


def valid(path: Path) -> dict[str, Any]:
    """The state in ``path`` with every byte checked against the file's own sums; raises InputError as checkpoint.load does."""
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
    return checkpoint.load(path)
