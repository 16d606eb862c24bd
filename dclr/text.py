"""What a person may read of a place: a URL without what is secret in it."""

from __future__ import annotations

import re

URL = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*://)(?P<rest>[^\s'\"<>|]+)")
PORT = re.compile(r"\d*(?=[/?#]|$)")


def public(text: str) -> str:
    """``text`` with every URL in it cut to what may be kept: without ``user:password@``, and without what follows ``?`` or
    ``#``, where signatures and tokens stand.

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
