"""Bars of progress: tqdm's on a terminal; elsewhere, as in a log file, a line every half a minute and one at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TextIO, cast

from tqdm import tqdm

EVERY = 30.0  # seconds from one line to the next
write = tqdm.write  # a line of text that no bar runs into


class Lines:
    """A stream for tqdm that is no terminal: of all states of a bar those become lines that are :data:`EVERY` seconds apart,
    and the last one. Of a bar that vanishes at its end the last one is none."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic):
        self._stream, self._clock = stream, clock
        self._state, self._last, self._said = "", "", clock()

    def write(self, text: str) -> None:
        """What tqdm writes: a state behind a carriage return, blanks to wipe it out, or the end of a line at the bar's end."""
        self._state = text.strip() or self._state
        if text == "\n" or (text.strip() and self._clock() - self._said >= EVERY):
            if self._state != self._last:
                self._stream.write(f"{self._state}\n")
                self._stream.flush()
            self._last, self._said = self._state, self._clock()

    def flush(self) -> None:
        """Every line is flushed as it is written."""


def bar(iterable: Iterable[Any] | None = None, desc: str = "", total: float | None = None, **how: Any) -> tqdm[Any]:
    """``tqdm(iterable, desc, total, **how)`` on standard error, for a terminal or a log."""
    if not sys.stderr.isatty():  # no columns: the numbers without the bar; place 0: below others tqdm would move down
        how = {"file": Lines(sys.stderr), "ncols": 0, "mininterval": 1.0, "position": 0} | how
    return cast("tqdm[Any]", tqdm(iterable, desc, total, **how))
