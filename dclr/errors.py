"""What a user did wrong, said once and clearly: one line, exit code 2, no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """A mistake in what the user gave. The message names the file, flag or value, what was expected and the way out."""


@contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Turn an :class:`InputError` into one line on standard error and exit code 2; any other error stays a bug."""
    try:
        yield
    except InputError as error:
        # before torchrun's ranks have met, each finds the same mistake; later a damaged shard is met by one of them alone
        met = getattr(sys.modules.get("dclr.distributed"), "met", False)  # not imported here: preprocess runs without torch
        if met or os.environ.get("LOCAL_RANK", "0") == "0":
            said = str(error).strip().splitlines()[-1]  # a loader worker puts its traceback in front
            print(f"error: {said}", file=sys.stderr)
        raise SystemExit(2) from None


_told: set[Path] = set()


@contextmanager
def spared(folder: Path) -> Iterator[None]:
    """What is written into ``folder`` inside is left out where the disk is full or unwritable: that costs a warning, one for
    each folder, and never the run."""
    try:
        yield
    except OSError as error:
        if folder not in _told:
            _told.add(folder)
            print(f"warning: {folder}: {error}; what cannot be written there is left out, and the run goes on", file=sys.stderr)


def make_folder(out: Path, flag: str = "--out") -> None:
    """The folder that ``flag`` names, made where it is not there; raises InputError where it cannot be one."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag} {out}: cannot be a folder for results ({error.strerror}); name another") from None


def refuse_used(out: Path, name: str) -> None:
    """Nothing already made is lost: a folder that holds a result is not written over."""
    if (out / name).exists():
        raise InputError(f"--out {out}: it holds {name} of an earlier run; name another folder, or --force to write over it")
