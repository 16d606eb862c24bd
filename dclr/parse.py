"""What comes from strangers, parsed: whatever a parser raises becomes one error that names the file.

A parser of hostile bytes raises more than its page says: a flipped bit in a .npy header is a TokenError, a long number an
OverflowError, half a letter a UnicodeEncodeError. So no reader lists what it expects. It parses inside :func:`parsing`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Annotated, Any, TypeVar

import msgspec

from dclr.errors import InputError
from dclr.text import plain, public

REASON = 300  # letters of a parser's reason that an error shows
Whole = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]  # a number, a size in bytes or the number of a class
Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]  # how many there are of what cannot be none
Rate = Annotated[float, msgspec.Meta(ge=0)]  # JSON has no infinity
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
T = TypeVar("T")


@contextmanager
def parsing(name: str, what: str, way: str = "", error: type[InputError] = InputError) -> Iterator[None]:
    """Inside, whatever a parser raises becomes an ``error``: that ``name`` is not ``what``, why, and the ``way`` out.

    An :class:`InputError` passes as it is, and so does an OSError with a number, the machine's fault."""
    try:
        yield
    except InputError:
        raise
    except Exception as failed:
        if isinstance(failed, OSError) and failed.errno:
            raise
        raise error(f"{name}: not {what} ({reason(failed)}){way and '; '}{way}") from None


def reason(failed: Exception) -> str:
    """Why a parser gave up, on one line."""
    said = str(failed)
    if isinstance(failed, msgspec.MsgspecError):
        what, _, place = said.replace("`", "").partition(" - at $")
        said = f"{place.strip('.')}{place and ': '}{what.replace('Expected', 'expected')}"
    elif not isinstance(failed, InputError):
        said = f"{type(failed).__name__}: {said}"
    return plain(public(said), REASON)


def from_json(text: str | bytes | memoryview, kind: type[T]) -> T:
    """JSON as a value of ``kind``, such as a dataclass: each field of its own type, in its declared bounds, every number finite
    and every letter whole; what ``kind`` does not name is left out. Raises whatever the parser raises: call it inside
    :func:`parsing`."""
    found: T = _decoder(kind).decode(text)  # type: ignore[arg-type]  # a type is hashable
    return found


@lru_cache
def _decoder(kind: Hashable) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)
