"""Lists, line by line. They are hostile input like everything else: a line cannot leave the root."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from csv import Error as CsvError
from csv import reader as csv_reader
from difflib import get_close_matches
from pathlib import Path

from dclr.errors import InputError
from preprocess.datasets.base import UNFIT

LAST_NUMBER = 10**9  # of a frame, a second or a label
NOT_BOTH = "a video trains or tests, not both"


def list_files(lists: Path, pattern: str) -> list[Path]:
    """The files of a folder of lists whose whole name matches, sorted; raises InputError where there is no such folder."""
    try:
        return sorted(lists / name for name in os.listdir(lists) if re.fullmatch(pattern, name))
    except OSError as error:
        raise InputError(f"--splits {lists}: no such folder of lists ({error.strerror})") from None


def read_text(path: Path) -> str:
    """A list as text with ``\\n`` line ends; raises InputError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines that say something; the official lists come with CRLF, trailing spaces and empty lines."""
    return [(number, line.strip()) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]


def read_table(path: Path, needed: tuple[str, ...], more: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and column -> value, stripped, of each line of a CSV that says something; raises InputError.

    Columns that are neither ``needed`` nor one of ``more`` are ignored, with a warning.
    """
    rows = csv_reader(io.StringIO(read_text(path)))
    header: list[str] = []
    try:
        for row in rows:
            values = [value.strip() for value in row]
            if not any(values):
                continue
            if header and len(values) != len(header):
                expected = f"expected the {len(header)} of the header (quote a value with a comma in it)"
                raise InputError(f"{path}, line {rows.line_num}: {len(values)} values, {expected}")
            if header:
                yield rows.line_num, dict(zip(header, values, strict=True))
                continue
            header = values
            _check_columns(header, needed + more, f"{path}, line {rows.line_num}")
            if not set(needed) <= set(header) or len(set(header)) < len(header):
                expected = f"expected a header with {','.join(needed)}, each column once"
                raise InputError(f"{path}, line {rows.line_num}: {quoted(','.join(header))}, {expected}")
    except CsvError as error:
        raise InputError(f"{path}, line {rows.line_num}: not a line of a CSV file ({error})") from None
    if not header:
        raise InputError(f"{path}: empty, expected a header with {','.join(needed)}")


def _check_columns(header: list[str], known: tuple[str, ...], at: str) -> None:
    """Say which columns are ignored; raises InputError where one differs from a known one in nothing but case or spaces."""
    ignored = []
    for name in header:
        plain = "_".join(name.lower().split())
        if name not in known and plain in known:
            raise InputError(f"{at}: column {quoted(name)}, expected {quoted(plain)}: names of columns are lower case")
        if name not in known:
            near = get_close_matches(plain, known, 1)
            ignored.append(quoted(name) + (f" (is {near[0]} meant?)" if near else ""))
    if ignored:
        print(f"warning: {at}: ignored columns: {', '.join(ignored)}; known are {','.join(known)}", file=sys.stderr)


def split_last(line: str) -> tuple[str, str]:
    """A line without its last word, and that word; the line and nothing where it is one word."""
    head, *last = line.rsplit(None, 1)
    return head, last[0] if last else ""


def inside(path: str) -> bool:
    """Whether a path of a list stays below the root and can be printed: relative, without ``..``, NUL and the like."""
    return path not in ("", ".") and path[0] != "/" and ".." not in path.split("/") and not UNFIT.search(path)


def whole_number(text: str) -> int | None:
    """A whole number from 0 to LAST_NUMBER in plain digits, None for anything else."""
    return int(text) if re.fullmatch(r"[0-9]{1,10}", text) and int(text) <= LAST_NUMBER else None


def quoted(text: object) -> str:
    """A value of a list in a message: quoted, and not the megabyte that it may be."""
    said = repr(text)
    return said if len(said) <= 120 else said[:120] + "..."
