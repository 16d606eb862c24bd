"""What a person may read: a URL without what is secret in it, any name on one line, columns."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

URL = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*://)(?P<rest>[^\s'\"<>|]+)")
LETTERS = 30  # of a name in a picture
PORT = re.compile(r"\d*(?=[/?#]|$)")


def public(text: str) -> str:
    """``text`` with every URL in it without ``user:password@``, and without what follows ``?`` or ``#``: these may be secret.

    >>> public("cannot read https://me:secret@host:8080/set/a.tar?X-Amz-Signature=abc: timed out")
    'cannot read https://host:8080/set/a.tar: timed out'
    """
    return URL.sub(lambda found: found["scheme"] + _shown(found["rest"]), text)


def _shown(rest: str) -> str:
    """What follows ``scheme://``: host, port and path."""
    before, asked, after = re.match(r"([^?#]*)([?#]?)(.*)", rest, re.S).groups()  # type: ignore[union-attr]
    _user, colon, word = before.partition("/")[0].partition(":")
    if asked and "@" in after and "@" not in before and colon and not PORT.fullmatch(word):
        before, after = after.rpartition("@")[2], ""  # a password with ? or # in it, which belongs written as %3F or %23
        before = re.match(r"[^?#]*", before)[0]  # type: ignore[index]
    authority, slash, path = before.partition("/")
    if "@" in authority:
        authority = authority.rpartition("@")[2]
    elif colon and "@" in path and not PORT.fullmatch(word):  # a password with / in it
        authority, slash, path = path.rpartition("@")[2].partition("/")
    ends = re.search(r"[:;,.)\]}]*$", after)[0] if asked else ""  # type: ignore[index]  # the sentence's own
    return authority + slash + path + ends


def plain(text: str, most: int = LETTERS) -> str:
    """``text`` on one line, control characters as ``\\n`` and the like. Of more than ``most`` letters the rest is cut off.

    >>> plain("two\\nlines"), plain("abcdef", most=4)
    ('two\\\\nlines', 'abc…')
    """
    shown = "".join(
        letter if letter.isprintable() else " " if unicodedata.category(letter) == "Zs" else repr(letter)[1:-1]
        for letter in text[: most + 1]
    )
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def duration(seconds: float) -> str:
    """Seconds as one reads them.

    >>> duration(8.4), duration(754), duration(9000)
    ('8 s', '12 min 34 s', '2 h 30 min')
    """
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {int(seconds) % 60} s" if minutes else f"{seconds:.0f} s"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Plain text columns; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
