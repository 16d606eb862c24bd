"""What comes from strangers, parsed: whatever a parser raises becomes one error that names the file.

A parser of hostile bytes raises more than its page says: a flipped bit in a .npy header is a TokenError, a long number an
OverflowError, half a letter a UnicodeEncodeError. So no reader lists what it expects. It parses inside :func:`parsing`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from dclr.errors import InputError
from dclr.text import plain, public

REASON = 300  # letters of a parser's reason that an error shows
MAX_VALUES, MAX_LETTERS, MAX_DEPTH = 1 << 20, 1 << 24, 32  # of a table, written out
Whole = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]  # a number, a size in bytes or the number of a class
Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]  # how many there are of what cannot be none
Number = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | float
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
    return plain(public(" ".join(said.split())), REASON)


def require_size(name: str, size: int, most: int, what: str) -> None:
    """Raises InputError for a file of more bytes than ``what`` may have."""
    if size > most:
        raise InputError(f"{name}: {size} bytes, expected {what} of at most {most}")


def read_whole(path: Path, most: int, what: str) -> bytes:
    """A file of at most ``most`` bytes. Of a larger one nothing is read; InputError names it. Raises OSError."""
    with path.open("rb") as file:
        require_size(str(path), os.fstat(file.fileno()).st_size, most, what)
        data = file.read(most + 1)  # a pipe or a device says that it has 0 bytes
    if len(data) > most:
        raise InputError(f"{path}: more than {most} bytes, expected {what} of at most so many")
    return data


def from_json(text: str | bytes | memoryview, kind: type[T], nan: bool = False) -> T:
    """JSON as a value of ``kind``, such as a dataclass: each field of its own type, in its declared bounds, every number finite
    and every letter whole; what ``kind`` does not name is left out. ``nan``: as Python writes it, with NaN and Infinity. Raises
    whatever the parser raises: call it inside :func:`parsing`."""
    if nan:
        return msgspec.convert(json.loads(bytes(text) if isinstance(text, memoryview) else text), kind)
    found: T = _decoder(kind).decode(text)  # type: ignore[arg-type]  # a type is hashable
    return found


def require_small(value: Any) -> None:
    """Raises ValueError where lists and tables in one another, written out, have more than :data:`MAX_VALUES` values or
    :data:`MAX_LETTERS` letters, or are deeper than :data:`MAX_DEPTH`. One list in many places counts in each of them: a few
    bytes can stand for more text than any memory holds."""
    levels: list[Iterator[Any]] = [iter([value])]
    values = letters = 0
    while levels:
        for one in levels[-1]:
            values += 1
            letters += (
                len(one) if isinstance(one, str | bytes | bytearray) else one.bit_length() // 3 if type(one) is int else 0
            )
            if values > MAX_VALUES or letters > MAX_LETTERS or len(levels) > MAX_DEPTH:
                raise ValueError(
                    f"lists and tables of more than {MAX_VALUES} values or {MAX_LETTERS} letters, or more than {MAX_DEPTH} in "
                    "one another"
                )
            if isinstance(one, dict | list | tuple | set | frozenset):
                inside: Iterable[Any] = (part for pair in one.items() for part in pair) if isinstance(one, dict) else one
                levels.append(iter(inside))
                break
        else:
            levels.pop()


@lru_cache
def _decoder(kind: Hashable) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)
