"""What of a store's errors may pass, how long is waited, and what is said meanwhile."""

from __future__ import annotations

import errno
import itertools
import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import needs

from dclr import patience
from dclr.errors import Unreachable
from dclr.patience import (
    LONGEST,
    RETRY_AFTER,
    SPOKEN,
    WRONG,
    Interrupted,
    Wait,
    interrupt,
    interruptible,
    may_pass,
    retry_after,
)


class Answered(Exception):
    """As a client reports a status."""

    def __init__(self, status: int, **headers: str):
        self.code, self.headers = status, headers


def behind(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_server_that_is_busy_may_pass(status: int) -> None:
    assert may_pass(Answered(status))
    assert may_pass(behind(OSError(errno.EIO, "as s3fs says it"), Answered(status)))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 416])
def test_what_is_wrong_or_forbidden_does_not(status: int) -> None:
    assert not may_pass(Answered(status))
    assert not may_pass(behind(PermissionError("no"), Answered(status)))


def test_connections_that_fail_may_pass() -> None:
    for error in (
        ConnectionRefusedError(),
        ConnectionResetError(),
        TimeoutError(),
        socket.gaierror(-2, "Name or service not known"),
        OSError(errno.ENETUNREACH, "Network is unreachable"),
        behind(FileNotFoundError("what fsspec makes of any error of a HEAD"), ConnectionResetError()),
    ):
        assert may_pass(error), error
    for error in (
        FileNotFoundError(),
        PermissionError(),
        OSError(errno.ENOSPC, "No space left on device"),
        TypeError(),
        behind(ConnectionError(), ssl.SSLCertVerificationError("certificate has expired")),
    ):
        assert not may_pass(error), error


@needs("aiohttp", "botocore", "requests")
def test_the_errors_of_clients_are_known() -> None:
    import aiohttp
    import botocore.exceptions as boto
    import requests

    for error in (
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError("the body ended"),
        boto.EndpointConnectionError(endpoint_url="http://s3"),
        boto.ReadTimeoutError(endpoint_url="http://s3"),
        boto.ClientError({"ResponseMetadata": {"HTTPStatusCode": 503}}, "GetObject"),
        requests.ConnectionError(),
        requests.exceptions.ChunkedEncodingError(),
    ):
        assert may_pass(error), error
    for error in (
        aiohttp.InvalidURL("http://"),
        boto.NoCredentialsError(),
        boto.ClientError({"ResponseMetadata": {"HTTPStatusCode": 403}}, "GetObject"),
        requests.exceptions.InvalidSchema(),
    ):
        assert not may_pass(error), error


def test_a_server_says_when_to_come_again_within_bounds() -> None:
    assert retry_after(Answered(429, **{"Retry-After": "7"})) == 7
    assert retry_after(behind(OSError(), Answered(503, **{"retry-after": "7"}))) == 7
    assert retry_after(Answered(429, **{"Retry-After": "1" + "0" * 400})) == RETRY_AFTER
    assert retry_after(Answered(429, **{"Retry-After": "-5"})) == retry_after(Answered(429, **{"Retry-After": "soon"})) == 0
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 55 < retry_after(Answered(503, **{"Retry-After": later})) <= 60
    response = {"ResponseMetadata": {"HTTPStatusCode": 503, "HTTPHeaders": {"retry-after": "9"}}}
    assert retry_after(type("ClientError", (Exception,), {"response": response})()) == 9
    assert retry_after(ConnectionResetError()) == 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> SimpleNamespace:
    """Time that passes by the waits alone, which it keeps."""
    kept = SimpleNamespace(now=1000.0, pauses=[])

    def pause(seconds: float) -> bool:
        kept.now += seconds
        kept.pauses.append(seconds)
        return False

    monkeypatch.setattr(patience, "_pause", pause)
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: kept.now, time=lambda: time.time() + kept.now))
    monkeypatch.setattr(patience.tempfile, "gettempdir", lambda: str(tmp_path))
    return kept


def waited(clock: SimpleNamespace, error: Exception, minutes: float = 10, part: int = 0) -> list[float]:
    """The waits until patience ends."""
    clock.now = 1000.0
    clock.pauses.clear()
    wait = Wait("http://host/a.tar", minutes, part)
    with pytest.raises(Unreachable) as ended:
        while True:
            wait.after(error)
    assert str(ended.value) == f"http://host/a.tar: ConnectionResetError: gone; no answer for {minutes:g} minutes (--patience)"
    return list(clock.pauses)


def test_waits_double_and_are_the_same_each_time(clock: SimpleNamespace) -> None:
    pauses = waited(clock, ConnectionResetError("gone"))
    assert sum(pauses) == pytest.approx(600)
    for number, pause in enumerate(pauses[:-1]):
        assert 0.5 <= pause / min(0.1 * 2**number, LONGEST) <= 1
    assert pauses == waited(clock, ConnectionResetError("gone")) != waited(clock, ConnectionResetError("gone"), part=1)
    assert waited(clock, ConnectionResetError("gone"), minutes=0) == []


def test_a_wait_is_said_once_a_minute_by_one_of_a_run(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    waited(clock, ConnectionResetError("gone"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("waiting for http://host/a.tar: ConnectionResetError: gone; ")
    assert lines[0].endswith(" s of 10 minutes (--patience)")
    said = [float(line.split("; ")[1].split()[0]) for line in lines]
    assert 3 <= said[0] < 10 and all(SPOKEN <= b - a <= SPOKEN + LONGEST for a, b in itertools.pairwise(said))
    # another process of the same run, at the same time
    patience._last_word().touch()
    patience.time.time = time.time
    waited(clock, ConnectionResetError("gone"))
    assert capsys.readouterr().err == ""
    patience.time.time = lambda: time.time() - 3600  # it was set back: or nobody would hear a word for an hour
    waited(clock, ConnectionResetError("gone"))
    assert len(capsys.readouterr().err.splitlines()) > 3


def test_wrong_content_is_asked_for_again_a_few_times(clock: SimpleNamespace) -> None:
    wait = Wait("http://host/a.tar", 0)
    with pytest.raises(ValueError, match="crc32"):
        while True:
            wait.after(ValueError("crc32 is 1, 2 expected"))
    assert len(clock.pauses) == WRONG


def test_a_server_is_not_asked_before_it_says(clock: SimpleNamespace) -> None:
    Wait("http://host/a.tar", 10).after(Answered(429, **{"Retry-After": "40"}))
    Wait("http://host/a.tar", 0.5).after(Answered(429, **{"Retry-After": "40"}))
    assert clock.pauses == [40, 30]


def test_threads_do_not_outlive_their_pool_by_a_wait() -> None:
    with patience.threads(2) as pool:
        waits = [pool.submit(Wait(f"http://host/{n}", 60).after, Answered(429, **{"Retry-After": "300"})) for n in range(2)]
    for wait in waits:
        with pytest.raises(Unreachable, match="given up"):
            wait.result(0)


def test_a_signal_ends_a_wait_for_data_now_or_later(monkeypatch: pytest.MonkeyPatch) -> None:
    patience.begin()
    with pytest.raises(Interrupted), interruptible():
        interrupt()
    with pytest.raises(Interrupted), interruptible():
        raise AssertionError("it is not entered")
    patience.begin()
    with interruptible():
        pass
    interrupt()  # outside it only remembers
    patience.begin()
