"""Outages are waited for: which errors of a store may pass, how long a request is repeated, and what ends the wait before."""

from __future__ import annotations

import errno
import fcntl
import http.client
import os
import socket
import ssl
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from multiprocessing import parent_process
from pathlib import Path
from typing import Any
from weakref import WeakSet

from dclr.errors import Unreachable

MINUTES = 10.0  # minutes, unless --patience says otherwise
SHORTEST, LONGEST = 0.1, 30.0  # seconds before the second try, and at most before a later one: each is twice the one before
RETRY_AFTER = 300.0  # seconds, the most that a server may ask for
WRONG = 4  # times that an answer of wrong content is asked for again: it may be the network's fault, or the file's
SILENT, SPOKEN = 3.0, 60.0  # seconds before the first word of a wait, and between two

BUSY = (408, 429)  # what an HTTP server says, beside 5xx, where the same request may be right later
PASSING = (ConnectionError, TimeoutError, socket.gaierror, http.client.HTTPException)
ERRNOS = {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETRESET}
CLIENTS = {  # package -> the errors of its own that mean a connection that failed; looked up by name, so that none is imported
    "aiohttp": ("ClientConnectionError", "ClientPayloadError"),
    "azure": ("ServiceRequestError", "ServiceResponseError", "IncompleteReadError"),
    "botocore": ("ConnectionError", "HTTPClientError", "IncompleteReadError"),
    "httpx": ("TransportError",),
    "requests": ("ConnectionError", "Timeout", "ChunkedEncodingError"),
    "urllib3": ("HTTPError",),
}
INVALID = {"aiohttp": ("InvalidURL", "RedirectClientError")}  # a redirect to another scheme; botocore wraps it as what may pass


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those behind it: clients wrap what happened."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _answer(error: BaseException) -> tuple[int, Mapping[str, str]]:
    """The status and headers of the HTTP answer that an error is about, (0, {}) without one. Each client has its own names."""
    said: Any = getattr(error, "response", None)
    if isinstance(said, Mapping):  # botocore's
        about = said.get("ResponseMetadata", {})
        return about.get("HTTPStatusCode", 0), about.get("HTTPHeaders", {})
    for one in (error, said):
        for name in ("status", "status_code", "code"):
            if isinstance(status := getattr(one, name, None), int) and 100 <= status < 600:
                return status, getattr(one, "headers", None) or getattr(said, "headers", None) or {}
    return 0, {}


def _names(error: BaseException, known: Mapping[str, Collection[str]]) -> bool:
    return any(kind.__name__ in known.get(kind.__module__.partition(".")[0], ()) for kind in type(error).__mro__)


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later: a server that is busy or fails, or a connection that cannot be made, breaks
    or is silent. Not what is forbidden or absent, nor a certificate that does not hold, nor a redirect to a file."""
    if any(isinstance(one, ssl.SSLCertVerificationError) or _names(one, INVALID) for one in _chain(error)):
        return False
    for one in _chain(error):
        if status := _answer(one)[0]:
            return status in BUSY or status >= 500
        if isinstance(one, PASSING) or getattr(one, "errno", None) in ERRNOS:
            return True
        if _names(one, CLIENTS):
            return True
    return False


def retry_after(error: BaseException) -> float:
    """The seconds for which the server asks not to be asked, :data:`RETRY_AFTER` at most; 0 where it says nothing."""
    for one in _chain(error):
        headers = {name.lower(): value for name, value in _answer(one)[1].items()}
        if said := headers.get("retry-after"):
            with suppress(ValueError, TypeError, OverflowError):
                wanted = float(said) if said.strip().isdecimal() else _until(parsedate_to_datetime(said))
                return min(max(wanted, 0.0), RETRY_AFTER)
    return 0.0


def _until(moment: datetime) -> float:
    return (moment - datetime.now(UTC)).total_seconds()


class Wait:
    """The repeats of one request for ``what``, for at most so many ``minutes`` after its first failure.

    The waits double, up to :data:`LONGEST`. Each is shortened by up to a half that is drawn from ``what``, ``part`` and its
    number, so that the requests of an outage do not all come back at the same moment.
    """

    def __init__(self, what: str, minutes: float, part: object = ""):
        self._what, self._minutes, self._part = what, minutes, part
        self._began: float | None = None
        self._tries, self._told, self._due = 0, False, 0.0

    def after(self, error: Exception) -> None:
        """Wait before the next try.

        Raises:
            the error itself: it does not pass.
            Unreachable: the time is over, or the thread's pool ends.
        """
        now = time.monotonic()
        if self._began is None:
            self._began, self._due = now, now + SILENT
        self._tries += 1
        wrong = isinstance(error, ValueError) and self._tries <= WRONG  # of content; no client has another meaning for it
        if not wrong and not may_pass(error):
            raise error
        said = f"{self._what}: " + " ".join(f"{type(error).__name__}: {error}".replace(" ssl:default", "").split())
        left = self._began + 60 * self._minutes - now
        if left <= 0 and not wrong:
            raise Unreachable(f"{said}; no answer for {self._minutes:g} minutes (--patience)") from None
        if now >= self._due:
            self._due = now + SPOKEN
            self._told |= _say(f"waiting for {said}; {now - self._began:.0f} s of {self._minutes:g} minutes (--patience)")
        draw = zlib.crc32(f"{self._what} {self._part} {self._tries}".encode()) / 2**32
        pause = max(min(SHORTEST * 2.0 ** (self._tries - 1), LONGEST) * (1 - draw / 2), retry_after(error))
        if _pause(pause if wrong else min(pause, left)):
            raise Unreachable(f"{said}; given up")

    def over(self) -> None:
        """The request has succeeded."""
        if self._told:
            with suppress(OSError):
                _last_word().unlink()


_thread = threading.local()
_pools = WeakSet[threading.Event]()


def give_up() -> None:
    """End the waits of all pools: the process ends, and would be kept by their threads."""
    for ended in list(_pools):
        ended.set()


@contextmanager
def threads(count: int, wait: bool = True) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads do not outlive it by a wait for a store. With ``wait`` its end waits for requests that are out."""
    _pools.add(ended := threading.Event())
    pool = ThreadPoolExecutor(count, initializer=lambda: setattr(_thread, "ended", ended))
    try:
        yield pool
    finally:
        ended.set()
        pool.shutdown(wait, cancel_futures=True)


_everywhere: Callable[[float], None] | None = None


def tell_waits(tell: Callable[[float], None], everywhere: bool = False) -> None:
    """``tell`` hears how many seconds the calling thread, or with ``everywhere`` any of the process, is about to wait."""
    if everywhere:
        global _everywhere
        _everywhere = tell
    else:
        _thread.tell = tell


def _pause(seconds: float) -> bool:
    """Whether the thread is to give up."""
    for tell in filter(None, (getattr(_thread, "tell", None), _everywhere)):
        tell(seconds)
    return getattr(_thread, "ended", threading.Event()).wait(seconds)


def _say(line: str) -> bool:
    """Print the line, unless a process of this run on this machine has printed one within a minute. Whether it was printed."""
    with suppress(OSError):
        path = _last_word()
        path.parent.mkdir(mode=0o700, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            fresh = os.fstat(file).st_size > 0 and 0 <= time.time() - os.fstat(file).st_mtime < 0.9 * SPOKEN
            if fresh:
                return False
            os.pwrite(file, b"1", 0)
        finally:
            os.close(file)
    print(line, file=sys.stderr, flush=True)
    return True


def _last_word() -> Path:
    """The file whose time is that of the last line. Ranks of one start share a port, workers have one parent."""
    top = parent_process()
    run = os.environ.get("MASTER_PORT") if "LOCAL_RANK" in os.environ else top.pid if top else os.getpid()
    return Path(tempfile.gettempdir(), f"dclr-locks-{os.getuid()}", f"waits-{run}")


class Interrupted(BaseException):
    """A signal has ended a wait for data."""


_inside = _asked = False


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, :func:`interrupt` raises :class:`Interrupted`; so it does at the entry, after it was called once."""
    global _inside
    _inside = True
    try:
        if _asked:
            raise Interrupted
        yield
    finally:
        _inside = False


def interrupt() -> None:
    """End the wait for data that the main thread is in, and all later ones; a signal's handler calls it."""
    global _asked
    _asked = True
    if _inside:
        raise Interrupted


def begin() -> None:
    """Forget that :func:`interrupt` was called."""
    global _asked
    _asked = False
