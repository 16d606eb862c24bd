"""Errors for a user: a mistake in what was given, or a disk that takes no more. Each is one line without a traceback."""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from dclr.text import plain, public

NOT_KEPT = 74  # exit code where the disk did not take what was made: EX_IOERR
AGAIN = 75  # exit code where the same command goes on later: EX_TEMPFAIL
INTERRUPTED = 130  # exit code after Ctrl-C, a shell's: 128 + SIGINT
NO_READER = 141  # exit code where nobody reads what is printed, as a program's before `| head`: 128 + SIGPIPE
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_LOOK = "look at that disk,"
MACHINE = {  # what it refuses, whatever the program does -> the way out
    errno.EMFILE: "raise the number of open files (ulimit -n),", errno.ENFILE: "close other programs,",
    errno.ENOMEM: "give it more memory, or fewer --workers,", errno.EIO: _LOOK, errno.ESTALE: _LOOK, errno.ENXIO: _LOOK,
    errno.EACCES: "change its rights, or name another,", errno.EPERM: "change its rights, or name another,",
    errno.ENAMETOOLONG: "give names of at most 255 bytes, and a shorter path,", errno.ELOOP: "mend that link,",
}  # fmt: skip


class InputError(ValueError):
    """A mistake in what the user gave. The message names the file, flag or value, what was expected and the way out."""


class NotKept(Exception):
    """The disk did not take what was made. The message names the place, and what is kept."""


class FeedLost(Exception):
    """What feeds the run is gone. The same command goes on later.

    Attributes:
        shared: every process of the run raises it, so that one of them prints it.
    """

    shared = False

    def __str__(self) -> str:
        return last_line(super().__str__())


class Unreachable(FeedLost):
    """A store did not answer for as long as ``--patience`` says. The message names the URL and the last error."""


class WorkerLost(FeedLost):
    """A loader process was killed, or makes nothing for as long as ``--stall-minutes`` says. The message names it and the
    shard that it was at."""


def last_line(text: str) -> str:
    """What an error says: a loader worker puts its traceback in front, and the error's class before the last line."""
    return re.sub(r"^dclr\.[\w.]+: ", "", text.strip().splitlines()[-1] if text.strip() else "")


@contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Turn errors for a user into one line on standard error and an exit code: 2 for an :class:`InputError` and for what this
    machine refuses (:data:`MACHINE`), :data:`NOT_KEPT` for a full or read-only disk, :data:`AGAIN` for a store, a loader
    process or another rank that is gone, 1 for a training that diverged, :data:`INTERRUPTED` after Ctrl-C, and without a line
    :data:`NO_READER`. Any other error is a bug and keeps its traceback. However it ends, nothing waits for a store any more."""
    _open_streams()
    try:
        with _flushed():
            yield
    except KeyboardInterrupt:
        _say("\ninterrupted; what is finished is kept, and the same command goes on from there")
        raise SystemExit(INTERRUPTED) from None
    except (InputError, NotKept, FeedLost, FloatingPointError) as error:
        # before torchrun's ranks have met, each finds the same mistake; later a damaged shard is met by one of them alone
        met = getattr(sys.modules.get("dclr.distributed"), "met", False)  # not imported here: preprocess runs without torch
        alone = met and not (isinstance(error, FeedLost) and error.shared)
        if alone or os.environ.get("RANK" if met else "LOCAL_RANK", "0") == "0":
            again = "; start the same command again" if isinstance(error, FeedLost) and "same command" not in str(error) else ""
            _say(f"error: {public(last_line(str(error)))}{again}")
        codes = {InputError: 2, NotKept: NOT_KEPT, FeedLost: AGAIN, FloatingPointError: 1}
        raise SystemExit(next(code for kind, code in codes.items() if isinstance(error, kind))) from None
    except Exception as error:
        raise SystemExit(_code_of(error)) from None
    finally:
        for stream in _streams():  # at the interpreter's end an error would have no name
            try:
                stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if waits := sys.modules.get("dclr.patience"):  # which imports this module
            waits.give_up()


def _code_of(error: Exception) -> int:
    """The exit code of a fault of the machine, after its line; raises ``error`` where it is none."""
    ranks = sys.modules.get("dclr.distributed")
    if ranks and (gone := ranks.lost(error)):
        _say(f"error: {gone}; start the same command again: it goes on from what is saved")
        return AGAIN
    if isinstance(error, BrokenPipeError) and any(map(_has_no_reader, _streams())):
        return NO_READER
    if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):  # tempfile's
        _say(f"error: {error.strerror}: set TMPDIR to a folder that can be written to")
        return 2
    number = errno.ENOMEM if isinstance(error, MemoryError) else _number(error)
    if number not in FULL and number not in MACHINE:
        raise error
    where = f"{public(str(error.filename))}: " if isinstance(error, OSError) and error.filename else ""
    way_out = "free some space, or name another folder," if number in FULL else MACHINE[number]
    _say(f"error: {where}{os.strerror(number)}; what is finished is kept: {way_out} and start the same command again")
    return NOT_KEPT if number in FULL else 2


def _number(error: Exception) -> int:
    """The errno of an OSError, 0 without one; that of a loader worker is in its text alone."""
    if not isinstance(error, OSError):
        return 0
    told = re.match(r"\w+: \[Errno (\d+)\]", last_line(str(error)))
    return error.errno or (int(told[1]) if told else 0)


def _say(line: str) -> None:
    """On standard error, if anyone reads that."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _streams() -> list[TextIO]:
    return [sys.stdout, sys.stderr]


def _open_streams() -> None:
    """What was closed before the start (``>&-``) leads nowhere, so that no file that is opened has its number. A name that the
    locale's encoding lacks is printed escaped."""
    while True:
        number = os.open(os.devnull, os.O_RDWR)
        if number > 2:
            os.close(number)
            break
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in _streams():
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):
                stream.reconfigure(errors="backslashreplace")


@contextmanager
def _flushed() -> Iterator[None]:
    """At the end what was printed is written, also where argparse ends the program."""
    try:
        yield
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def _has_no_reader(stream: TextIO) -> bool:
    poll = select.poll()
    with suppress(OSError, ValueError):  # no file
        poll.register(stream.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


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
