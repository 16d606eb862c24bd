"""Errors for a user: a mistake in what was given, or a disk that takes no more. Each is one line without a traceback."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dclr.text import plain, public

NOT_KEPT = 74  # exit code where the disk did not take what was made: EX_IOERR
AGAIN = 75  # exit code where the same command goes on later: EX_TEMPFAIL
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class InputError(ValueError):
    """A mistake in what the user gave. The message names the file, flag or value, what was expected and the way out."""


class NotKept(Exception):
    """The disk did not take what was made. The message names the place, and what is kept."""


class Unreachable(Exception):
    """A store did not answer for as long as ``--patience`` says. The message names the URL and the last error.

    Attributes:
        shared: every process of the run raises it, so that one of them prints it.
    """

    shared = False

    def __str__(self) -> str:
        return last_line(super().__str__())


def last_line(text: str) -> str:
    """What an error says: a loader worker puts its traceback in front, and the error's class before the last line."""
    return re.sub(r"^dclr\.[\w.]+: ", "", text.strip().splitlines()[-1] if text.strip() else "")


@contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Turn errors for a user into one line on standard error and an exit code: 2 for an :class:`InputError`, :data:`NOT_KEPT`
    for a full or read-only disk, :data:`AGAIN` for a store that did not answer, 1 for a training that diverged. A name that is
    too long for the system is a mistake too, wherever it is met. Any other error is a bug and keeps its traceback. However it
    ends, nothing waits for a store any more."""
    try:
        yield
    except (InputError, NotKept, Unreachable, FloatingPointError) as error:
        # before torchrun's ranks have met, each finds the same mistake; later a damaged shard is met by one of them alone
        met = getattr(sys.modules.get("dclr.distributed"), "met", False)  # not imported here: preprocess runs without torch
        alone = met and not (isinstance(error, Unreachable) and error.shared)
        if alone or os.environ.get("RANK" if met else "LOCAL_RANK", "0") == "0":
            print(f"error: {public(last_line(str(error)))}", file=sys.stderr)
        codes = {InputError: 2, NotKept: NOT_KEPT, Unreachable: AGAIN, FloatingPointError: 1}
        raise SystemExit(next(code for kind, code in codes.items() if isinstance(error, kind))) from None
    except OSError as error:
        where = f"{public(plain(str(error.filename), 300))}: " if error.filename else ""
        if error.errno == errno.ENAMETOOLONG:
            print(f"error: {where}{error.strerror}: expected names of at most 255 bytes, and a shorter path", file=sys.stderr)
            raise SystemExit(2) from None
        if error.errno not in FULL:
            raise
        print(f"error: {where}{error.strerror}; what is finished is kept: free some space, or name another folder, and start "
              "the same command again", file=sys.stderr)  # fmt: skip
        raise SystemExit(NOT_KEPT) from None
    finally:
        if waits := sys.modules.get("dclr.patience"):  # which imports this module
            waits.give_up()


def place(text: str, what: str) -> str:
    """A path or URL as a user gave it, ``~`` expanded; raises InputError for an empty one, which means the current folder."""
    if not text.strip() or "\0" in text:
        raise InputError(
            f"{what} {text!r}: it is {'no path' if text.strip() else 'empty'}, expected a path (. is the current folder)"
        )
    return text if "://" in text else os.path.expanduser(text)


def path_flag(text: str) -> Path:
    """The type of an argparse flag that names a file or folder of this machine."""
    try:
        return Path(place(text, ""))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error).strip()) from None


_told: set[Path] = set()


@contextmanager
def spared(folder: Path) -> Iterator[None]:
    """Inside, a write to ``folder`` that a full or read-only disk refuses is left out. That costs one warning for each folder,
    never the run."""
    try:
        yield
    except OSError as error:
        if folder not in _told:
            _told.add(folder)
            print(f"warning: {folder}: {error}; what cannot be written there is left out, and the run goes on", file=sys.stderr)


@contextmanager
def dispensable(what: str) -> Iterator[None]:
    """Inside, a failure costs ``what``, such as a picture, and a warning with its name and the reason. The run goes on."""
    try:
        yield
    except Exception as error:  # a drawing may fail in as many ways as there are libraries beneath it
        reason = plain(public(f"{type(error).__name__}: {error}"), 300)
        print(f"warning: {what} could not be made ({reason}); everything else goes on", file=sys.stderr)


def make_folder(out: Path, flag: str = "") -> None:
    """The folder, which ``flag`` may have named; it is made if needed. Raises InputError where it cannot be a folder."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        said = f"{flag} {out}".strip()
        raise InputError(f"{said}: cannot be a folder for results ({error.strerror}); name another") from None
