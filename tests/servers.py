"""Real HTTP servers on loopback that count what they send, and fail on purpose: files with byte ranges, and a way to S3."""

from __future__ import annotations

import gzip
import http.client
import http.server
import itertools
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, TypeVar

H = TypeVar("H", bound="Unreliable")
_turn = threading.Lock()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Unreliable(http.server.BaseHTTPRequestHandler):
    """Answers requests, each with the next of ``faults``: ``""``, a status such as ``"500"`` (with ``more`` as its headers),
    ``"late"``, ``"reset"`` (no answer), ``"hang up"`` (in the middle), ``"short"`` (half of it, as if that were all),
    ``"garbled"`` (one byte is another), ``"broken"`` (reset in the middle), ``"long"`` (a length that never comes),
    ``"endless"`` (a body without an end), ``"stale"`` (what is in ``old``, where it has the path), or a URL to go to."""

    protocol_version = "HTTP/1.1"
    faults: Iterator[str] = itertools.cycle([""])
    more: ClassVar[dict[str, str]] = {}
    old: ClassVar[dict[str, bytes]] = {}
    stalled: str = ""  # a request for such a path is never answered
    served: ClassVar[list[str]]  # faults, in order
    requests: ClassVar[Counter[str]]  # path -> requests for it
    sent: ClassVar[Counter[str]]  # path -> bytes of content

    def answer(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        raise NotImplementedError

    def _serve(self) -> None:
        if self.stalled and self.stalled in self.path:
            time.sleep(3600)
        with _turn:
            fault = next(type(self).faults)
        self.served.append(fault)
        path = self.path.partition("?")[0]
        self.requests[path] += 1
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault == "reset":
            self._hang_up(reset=True)
            return
        if fault == "late":
            time.sleep(0.3)
        if ":" in fault:
            status, headers, data = 302, {"Location": fault + path}, b""
        elif fault == "stale" and path in self.old:
            status, headers, data = 200, {}, self.old[path]
        else:
            status, headers, data = (int(fault), self.more, b"") if fault.isdecimal() else self.answer(body)
        if fault == "short" and status == 206:
            data, headers = data[: len(data) // 2], {k: v for k, v in headers.items() if k != "Content-Range"}
        if fault == "garbled" and status == 206:
            data = data[:5000] + bytes([data[5000] ^ 1]) + data[5001:] if len(data) > 5000 else data
        if fault == "endless":
            headers = {"Transfer-Encoding": "chunked", "Content-Length": ""}
        elif fault == "long":
            headers = headers | {"Content-Length": str(len(data) + 1000)}
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        while fault == "endless":  # until nobody listens any more
            self.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            self.sent[path] += 0x10000
        if fault in ("hang up", "broken", "long") and data:
            self.wfile.write(data if fault == "long" else data[: len(data) // 2])
            self.wfile.flush()
            self._hang_up(reset=fault == "broken")
            return
        self.sent[path] += len(data)
        self.wfile.write(data)

    def _hang_up(self, reset: bool) -> None:
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def log_message(self, *_: object) -> None:
        """Quiet."""


def for_a_while(fault: str, seconds: float, after: int = 0) -> Iterator[str]:
    """Faults of an outage: it begins after so many requests."""
    yield from itertools.repeat("", after)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        yield fault
    yield from itertools.repeat("")


class FileServer(Unreliable):
    """A folder, with byte ranges unless ``ranges`` is off. With ``packs`` it packs for whoever takes that, and then knows no
    ranges, as nginx does."""

    folder: Path
    ranges = True
    packs = False
    missing = 404

    def answer(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            return self.missing, {}, b""
        data = path.read_bytes()
        if self.packs and "gzip" in (self.headers.get("Accept-Encoding") or "gzip"):
            return 200, {"Content-Encoding": "gzip"}, gzip.compress(data, 1)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if wanted is None or not self.ranges:
            return 200, {}, data
        start, end = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
        if start >= len(data):
            return 416, {}, b""
        return 206, {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}, data[start:end]


class Proxy(Unreliable):
    """Hands requests on to the server at port ``upstream``."""

    upstream: int

    def answer(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        connection.request(self.command, self.path, body, {k: v for k, v in self.headers.items() if k != "Connection"})
        answer = connection.getresponse()
        data = answer.read()
        own = ("connection", "transfer-encoding", "date", "server", *(() if self.command == "HEAD" else ("content-length",)))
        return answer.status, {k: v for k, v in answer.getheaders() if k.lower() not in own}, data


@contextmanager
def serving(kind: type[H], port: int = 0, **settings: object) -> Iterator[tuple[type[H], int]]:
    """A server of its own in this process: its handler, to set faults and read counts, and its port."""
    handler = type("Handler", (kind,), {"served": [], "requests": Counter(), "sent": Counter(), **settings})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield handler, server.server_port  # type: ignore[misc]
    finally:
        server.shutdown()
        server.server_close()
