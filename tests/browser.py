"""Chromium without a window, driven by its DevTools protocol over a pipe."""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip


class Tab:
    """A tab. ``complaints``: errors of its console and of its scripts; ``requests``: the URLs that it asked for,
    but for what is in the page itself. Both since the page was last opened."""

    def __init__(self, to: int, of: int):
        self._to, self._of, self._numbers, self._unread, self._session = to, of, itertools.count(1), b"", ""
        self.complaints, self.requests, self._loaded = list[str](), list[str](), False
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **given: Any) -> dict[str, Any]:
        """What the browser answers to a command."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": given} | ({"sessionId": self._session} if self._session else {})
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self._note(answer.get("method"), answer.get("params", {}))
        assert "error" not in answer, answer
        return dict(answer["result"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            assert select.select([self._of], [], [], 60)[0], "the browser does not answer"
            self._unread += os.read(self._of, 1 << 20)
        message, _, self._unread = self._unread.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: str | None, said: dict[str, Any]) -> None:
        self._loaded |= event == "Page.loadEventFired"
        if event == "Network.requestWillBeSent" and not said["request"]["url"].startswith("data:"):
            self.requests.append(said["request"]["url"])
        elif event == "Runtime.exceptionThrown" or (event == "Runtime.consoleAPICalled" and said["type"] == "error"):
            self.complaints.append(json.dumps(said))
        elif event == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{said['entry']['text']} {said['entry'].get('url')}")

    def open(self, url: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a page in a window of so many pixels, light or dark, and wait until it is loaded."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self._loaded = False
        self.complaints.clear()
        self.requests.clear()
        self.ask("Page.navigate", url=url)
        while not self._loaded:
            answer = self._next()
            self._note(answer.get("method"), answer.get("params", {}))

    def value(self, script: str) -> Any:
        """What JavaScript gives."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script: str, wanted: Any = True, seconds: float = 30) -> None:
        """Until JavaScript gives what is wanted."""
        until = time.monotonic() + seconds
        while (found := self.value(script)) != wanted:
            assert time.monotonic() < until, f"{script}: {found}, expected {wanted}; {self.complaints}"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        for event in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=event, key=key, code="Space" if key == " " else key)


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A tab of a browser of its own, which keeps its files in ``profile``."""
    (read, to), (of, write) = os.pipe(), os.pipe()
    command = [f'exec "$0" "$@" 3<&{read} 4>&{write}', str(CHROMIUM), *QUIET, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        ["bash", "-c", *command, "--remote-debugging-pipe"], pass_fds=(read, write), stderr=subprocess.DEVNULL
    )
    for end in (read, write):
        os.close(end)
    try:
        yield Tab(to, of)
    finally:
        process.terminate()
        process.wait(20)
        for end in (to, of):
            os.close(end)
