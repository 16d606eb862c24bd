"""Sets are written by one run at a time, on this machine or, of a set in a store, on all machines.

In a store a run holds a lease: a small object that it renews while it writes, and that expires where it does not. A run writes
its own object and then lists those of others, so that of two runs at least one sees the other; stores list what was written
before. No conditional write is asked for, which some stores take and do not keep, and no right time: an object's age is the
difference of two times that the store gave.
"""

from __future__ import annotations

import os
import random
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from dclr.errors import InputError, Unreachable
from dclr.files import LOCK, held
from dclr.patience import threads
from dclr.storage import Folder, RemoteFolder
from dclr.text import plain

LEASES, WHOLE = ".locks", "all"
LEASE = re.compile(rf"(?P<role>{WHOLE}|part-\d+-of-\d+)-[0-9a-f]{{32}}")  # names below LEASES: an object a run
RENEWAL, LIFE = 15.0, 60.0  # seconds between two renewals, and from a renewal until its owner writes no more
ROUNDING = 5.0  # seconds by which others wait for longer: stores round their times
POLL = 1.0  # seconds between two looks at another's lease, half of them drawn
OWNER = 200  # letters that name it, at most
_clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # the first goes on while a machine sleeps


@contextmanager
def writing(out: Folder, part: tuple[int, int] | None = None) -> Iterator[None]:
    """Inside, no other process writes to the set ``out``. With ``part`` (i, n) no other process writes that part, and others
    may write theirs. Raises InputError as :func:`dclr.files.held` does."""
    locks, what = _locks(out), str(out)
    with held(locks / LOCK, what, shared=part is not None):
        if part is None:
            with _leased(out, WHOLE, what, locks):
                yield
            return
        role, what = "part-{}-of-{}".format(*part), "{}, part {}/{}".format(what, *part)
        with held(locks / f".{role}{LOCK}", what), _leased(out, role, what, locks):
            yield


def _locks(out: Folder) -> Path:
    """The folder of this machine's locks of a set."""
    if not isinstance(out, RemoteFolder):
        return Path(out.place)
    name = sha256(out.place.rstrip("/").encode()).hexdigest()
    return Path(tempfile.gettempdir(), f"dclr-locks-{os.getuid()}", name)


@contextmanager
def _leased(out: Folder, role: str, what: str, locks: Path) -> Iterator[None]:
    if not isinstance(out, RemoteFolder) or not out.listable:
        yield
    elif not out.dated:
        print(f"warning: {what}: its store has no locks; let no run on another machine write there", file=sys.stderr)
        yield
    else:
        with Lease(out, role, what, locks).held():
            yield


class Lease:
    """What one run holds of a set. ``role`` is :data:`WHOLE` or a part, ``what`` names it to a user.

    In ``locks`` lies an empty file for each lease that a run here took and did not give back. Whoever has this machine's own
    lock of the same role knows that such a run is dead, and need not wait for its lease to expire.
    """

    def __init__(self, out: RemoteFolder, role: str, what: str, locks: Path):
        self._out, self._role, self._what, self._locks = out, role, what, locks
        self._leases = RemoteFolder(f"{out.place.rstrip('/')}/{LEASES}", out.patience)
        self._said = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        self._name, self._until = "", 0.0  # by _now; 0 before it has been held
        self._lost: InputError | None = None
        self._turn, self._over = threading.Lock(), threading.Event()

    @contextmanager
    def held(self) -> Iterator[None]:
        try:
            self._renew()
            self._out.guard, self._out.lease = self._check, f"{LEASES}/{self._name}"
            with threads(1) as keeper:
                keeper.submit(self._keep)
                try:
                    yield
                finally:
                    self._over.set()
        finally:
            self._out.guard, self._out.lease = None, ""
            self._leases.patience = 0  # what is not given back expires
            with suppress(InputError, Unreachable):
                self._give_back(self._name)

    def _keep(self) -> None:
        while not self._over.wait(RENEWAL):
            with suppress(InputError, Unreachable):  # what does not pass is found by the next write
                self._renew()

    def _check(self) -> None:
        """Before a write: raises InputError where another run may write."""
        if self._lost or _now() >= self._until:
            self._renew()

    def _renew(self) -> None:
        """Say that this run is here. Where it was silent for so long that others may have come, see whether one has."""
        with self._turn:
            before, seen, told = self._until, dict[str, datetime](), False
            if before and _now() >= before and self._leases.size(self._name) is None:  # whoever takes over removes it
                self._lose(next(iter(self._rivals()), ""))
            while not self._over.is_set():
                if self._lost:
                    raise self._lost
                if not before:  # a new name each time: only what is held is seen to be renewed
                    self._name = f"{self._role}-{uuid4().hex}"
                    Path(self._locks, self._name).touch()
                began = _now()
                self._leases.write(self._name, self._said.encode())
                others = {} if _now() < before else self._others()
                if not others:
                    self._until = began + LIFE
                    return
                if not before:
                    self._give_back(self._name)
                alive = [name for name, modified in others.items() if seen.setdefault(name, modified) != modified]
                if alive and before:
                    self._lose(alive[0])
                elif alive:
                    said = f"{self._owner(alive[0])} is writing there"
                    raise InputError(f"{self._what}: {said}; wait for it, stop it, or name another folder")
                elif not told:
                    told = True
                    print(
                        f"{self._what}: {self._owner(min(others))} has it; waiting to see whether that lives", file=sys.stderr
                    )
                self._over.wait(random.uniform(POLL / 2, POLL))

    def _lose(self, name: str) -> None:
        """The owner of the lease ``name`` has the set."""
        self._lost = InputError(
            f"{self._what}: {self._owner(name)} has taken it over, because this run was silent; what is finished is kept: "
            "start the same command again when that has ended"
        )
        self._give_back(self._name)

    def _rivals(self) -> list[str]:
        """The leases of others that keep this run out while they last."""
        found = [match for name in self._leases.files() if name != self._name and (match := LEASE.fullmatch(name))]
        return [match[0] for match in found if match["role"] == self._role or WHOLE in (match["role"], self._role)]

    def _others(self) -> dict[str, datetime]:
        """The rivals that last, and when they were renewed. Without any, those that are over are removed: their owners, should
        they live, find that out before they write."""
        times = {name: time for name in [self._name, *self._rivals()] if (time := self._leases.modified(name))}
        latest = max(times.values(), default=datetime.max)  # this run's own, as a rule: it has just been written
        times.pop(self._name, None)
        over = [
            name
            for name, modified in times.items()
            if Path(self._locks, name).exists() or (latest - modified).total_seconds() > LIFE + ROUNDING
        ]
        others = {name: modified for name, modified in times.items() if name not in over}
        for name in () if others else over:
            print(f"{self._what}: the lock of {self._owner(name)}, which has ended, is taken over", file=sys.stderr)
            self._give_back(name)
        return others

    def _owner(self, name: str) -> str:
        """The process, host and time that a lease names."""
        with suppress(FileNotFoundError, InputError):
            said = self._leases.read(name, 0, min(OWNER, self._leases.size(name) or 0))
            return plain(said.decode(errors="replace"), OWNER) or "another run"
        return "another run"

    def _give_back(self, name: str) -> None:
        if name:
            self._leases.remove(name)
            Path(self._locks, name).unlink(missing_ok=True)


def _now() -> float:
    return time.clock_gettime(_clock)
