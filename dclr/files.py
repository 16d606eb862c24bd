"""Files that appear whole or not at all, and places that one process at a time writes to."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from dclr.errors import InputError, make_folder

LOCK = ".lock"
PATIENCE = 1.0  # seconds in which the holder before may leave: a process that ends, a part that has just finished
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to. At the end the file is synced to disk and renamed to ``path``.

    Where anything fails, nothing is left of it, and an OSError names ``path``."""
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException as error:
        with suppress(OSError):
            unfinished.unlink()
        if isinstance(error, OSError) and error.errno and str(error.filename) in ("None", str(unfinished)):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


@contextmanager
def held(lock: Path, what: str, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold ``lock``: no other process of this machine is inside with the same one.

    The lock is a file. It is made with its folder, and deleted at the end, with the folder where that is empty. The lock of a
    process that was killed is free.

    Args:
        what: what is held, as a user named it, such as ``--out runs/first``.
        shared: others that share the lock may hold it too; those that do not are kept out.
        wait: wait until it is free, and print for whom. Otherwise InputError names the owner's process and host.
    Raises:
        InputError: the lock is another's, or its folder cannot be written to.
    """
    kind, made = fcntl.LOCK_SH if shared else fcntl.LOCK_EX, not lock.parent.exists()
    make_folder(lock.parent)
    try:
        file = _acquired(lock, kind, what, wait)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise InputError(f"{what}: cannot be written to ({error.strerror}); free it, or name another folder") from None
        print(f"warning: {what}: its file system has no locks; let no other run write there", file=sys.stderr)
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of those that share it the last one removes it
            lock.unlink()
            if made:
                lock.parent.rmdir()
        os.close(file)


OWNERS = {  # a file that only one kind of command writes into its --out
    "config.yaml": "a pretraining",
    "result.json": "an evaluation",
    "extract.json": "extracted features",
    "manifest.json": "a set of shards",
}


def run_folder(out: str, owner: str) -> AbstractContextManager[None]:
    """The lock of a run's folder. The first of the run's processes holds it; the others do nothing.

    Raises InputError where the folder holds what another kind of command made, than the one of the file ``owner``."""
    for name, what in OWNERS.items():
        if name != owner and Path(out, name).exists():
            raise InputError(f"--out {out}: it holds {what} ({name}), which is not written over; name another folder")
    return held(Path(out, LOCK), f"--out {out}") if os.environ.get("RANK", "0") == "0" else nullcontext()


def _acquired(lock: Path, kind: int, what: str, wait: bool) -> int:
    """The open, locked file, with this process's host and number in it."""
    until, told = time.monotonic() + PATIENCE, False
    while True:
        file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)  # no child has it
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            if _is(file, lock):
                os.ftruncate(file, 0)
                if kind == fcntl.LOCK_EX:
                    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return file
        except BlockingIOError:
            owner = _owner(lock)
            if not wait and time.monotonic() > until:
                os.close(file)
                raise InputError(f"{what}: {owner} is writing there; wait for it, stop it, or name another folder") from None
            if wait and not told:
                told = True
                print(f"{what}: waiting for {owner}, which is making the same", file=sys.stderr)
        except OSError:  # no locks there, or no room for a word: nobody else can be inside
            with suppress(OSError):
                lock.unlink()
            os.close(file)
            raise
        os.close(file)
        time.sleep(0.1)


def _owner(lock: Path) -> str:
    """The process that holds the lock, or one of those that share it. Each of these holds a lock of its own beside it."""
    for path in (lock, *sorted(lock.parent.glob(f".*{LOCK}"))):
        with suppress(OSError):
            if said := path.read_bytes()[:200].decode(errors="replace"):
                return said
    return "another process"


def _is(file: int, path: Path) -> bool:
    """Whether the open file still has this name. The holder before may have deleted it when it left."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), path.stat())
    return False
