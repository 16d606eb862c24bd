"""Lists, line by line. They are hostile input like everything else: a line cannot leave the root."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Hashable, Iterable, Iterator
from csv import Error as CsvError
from csv import reader as csv_reader
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from dclr.errors import InputError
from dclr.parse import from_json, parsing, read_whole
from preprocess.datasets.base import UNFIT

E = TypeVar("E", list[Any], dict[str, Any])
LIST_BYTES = 1 << 30  # of a list
ROWS_SHOWN = 3  # rows that --dry-run shows
LAST_NUMBER = 10**9  # of a frame, a second or a label
DEFAULT_KIND = "action"
NOT_BOTH = "a video trains or tests, not both"


def list_files(lists: Path, pattern: str) -> list[Path]:
    """The files of a folder of lists whose whole name matches, sorted; raises InputError where there is no such folder."""
    try:
        return sorted(lists / name for name in os.listdir(lists) if re.fullmatch(pattern, name))
    except OSError as error:
        raise InputError(f"--splits {lists}: no such folder of lists ({error.strerror}); name one") from None


def read_text(path: Path) -> str:
    """A list as text with ``\\n`` line ends; raises InputError where it cannot be read."""
    try:
        text = read_whole(path, LIST_BYTES, "a list").decode("utf-8-sig", errors="replace")
        return text.replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a list of this machine") from None


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines that say something; the official lists come with CRLF, trailing spaces and empty lines."""
    return [(number, line.strip()) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]


def read_entries(path: Path, kind: type[E]) -> E:
    """The list or table that a JSON file holds; raises InputError where it is none, or empty."""
    with parsing(str(path), "JSON"):
        entries = from_json(read_text(path), Any)
    if not isinstance(entries, kind) or not entries:
        raise InputError(f"{path}: expected a {'list' if kind is list else 'table'} with entries in it")
    return entries


def read_rows(path: Path) -> tuple[str, Iterator[tuple[int, list[str]]]]:
    """How the values of a list are separated, by ``tabs`` where its first line has one and else by ``commas``, and line number
    and values, stripped, of each line that says something; raises InputError."""
    text = read_text(path)
    first = next((line for line in text.split("\n") if line.strip()), "")
    tabs = "\t" in first.strip()
    return "tabs" if tabs else "commas", _rows(csv_reader(io.StringIO(text), delimiter="\t" if tabs else ","), path)


def _rows(lines: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        for row in lines:
            values = [value.strip() for value in row]
            if any(values):
                yield lines.line_num, values
    except CsvError as error:
        raise InputError(
            f"{path}, line {lines.line_num}: not a line of a CSV file ({error}), expected values with commas or tabs"
        ) from None


def read_table(
    path: Path,
    needed: tuple[str, ...],
    more: tuple[str, ...],
    rows: Iterable[tuple[int, list[str]]] | None = None,
    remedy: str = "",
) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and column -> value, stripped, of each line of a CSV below its header; raises InputError.

    Columns that are neither ``needed`` nor one of ``more`` are ignored, with a warning. ``rows`` are those of
    :func:`read_rows`, where they are at hand; ``remedy`` ends a message about columns.
    """
    header = list[str]()
    for number, values in read_rows(path)[1] if rows is None else rows:
        if header and len(values) != len(header):
            expected = f"expected the {len(header)} of the header (quote a value with a comma in it)"
            raise InputError(f"{path}, line {number}: {len(values)} values, {expected}")
        if header:
            yield number, dict(zip(header, values, strict=True))
            continue
        header = values
        _check_columns(header, needed, more, f"{path}, line {number}", remedy)
    if not header:
        raise InputError(f"{path}: empty, expected a header with {','.join(needed)}")


def _check_columns(header: list[str], needed: tuple[str, ...], more: tuple[str, ...], at: str, remedy: str) -> None:
    """Say which columns are ignored; raises InputError where one is missing or there twice, or differs from a known one in
    nothing but case or spaces."""
    known, ignored = needed + more, []
    for name in header:
        plain = "_".join(name.lower().split())
        if name not in known and plain in known:
            raise InputError(f"{at}: column {quoted(name)}, expected {quoted(plain)}: names of columns are lower case{remedy}")
        if name not in known:
            near = get_close_matches(plain, known, 1)
            ignored.append(quoted(name) + (f" (is {near[0]} meant?)" if near else ""))
    if not set(needed) <= set(header) or len(set(header)) < len(header):
        expected = f"expected a header with {','.join(needed)}, each column once{remedy}"
        raise InputError(f"{at}: {quoted(','.join(header))}, {expected}")
    if ignored:
        print(f"warning: {at}: ignored columns: {', '.join(ignored)}; known are {','.join(known)}{remedy}", file=sys.stderr)


class Labels:
    """The labels of a list of one's own: texts of each kind, and the classes that they make.

    ``kinds`` has kind -> where it stands: the names ``columns``, of which ``label`` is the kind ``action``, or that one alone.
    ``source`` is what a message names. Raises InputError where two names are one kind.
    """

    def __init__(self, columns: tuple[str, ...], source: object):
        self._given, self._source = bool(columns), source
        self.kinds = {DEFAULT_KIND if name == "label" else name: name for name in columns or ("label",)}
        if len(self.kinds) < len(columns or ("label",)):
            raise InputError(f"--label-column {','.join(columns)}: two of them are one kind of label, expected each once")
        self._of: dict[Hashable, dict[str, str]] = {}
        self._numbers: dict[str, dict[str, int]] = {}

    def add(self, video: Hashable, labels: dict[str, str], at: str) -> None:
        """The labels of a video by kind; raises InputError, which begins with ``at``, where it has others already."""
        known = self._of.setdefault(video, {})
        for kind, label in labels.items():
            if known.setdefault(kind, label) != label:
                raise InputError(f"{at} is labelled {quoted(known[kind])} and {quoted(label)}, expected one {self.kinds[kind]}")

    def classes(self) -> dict[str, list[str]]:
        """Kind -> class names: the labels that occur, sorted; as numbers where all are whole ones.

        Raises InputError where a number is too high or negative, or a kind that was asked for has no label.
        """
        classes = {}
        for kind, name in self.kinds.items():
            labels = {of[kind] for of in self._of.values() if kind in of}
            if not labels and self._given:
                raise InputError(f"--label-column {name}: no video of {self._source} has a label there; name another column")
            if labels:
                classes[kind], self._numbers[kind] = _numbered(labels, f"{self._source}: {name}")
        return classes

    def of(self, video: Hashable) -> dict[str, int]:
        """Kind -> class of a video, once the :meth:`classes` are known."""
        of = self._of.get(video, {})
        return {kind: number[of[kind]] for kind, number in self._numbers.items() if kind in of}


def _numbered(labels: set[str], at: str) -> tuple[list[str], dict[str, int]]:
    """Class names, and label -> class."""
    if not all(re.fullmatch(r"-?[0-9]+", label) for label in labels):
        names = sorted(labels)
        return names, {name: label for label, name in enumerate(names)}
    for label in labels:
        if whole_number(label) is None:
            raise InputError(f"{at} {quoted(label)}, expected 0 to {LAST_NUMBER}, or nothing for an unlabelled video")
    index = {number: at for at, number in enumerate(sorted({int(label) for label in labels}))}
    return [str(number) for number in index], {label: index[int(label)] for label in labels}


def split_name(name: str, at: str) -> str:
    """The name of a split, ``all`` where there is none; raises InputError, which begins with ``at``."""
    if "," in name or not name.isprintable():
        raise InputError(f"{at}: split {quoted(name)}, expected a name without a comma; one line for each split")
    return name or "all"


def as_read(id: str, labels: dict[str, str], split: str) -> str:
    """How a video of a list was read, for ``--dry-run``.

    >>> as_read("a.mp4", {"action": "walk"}, "all")
    "a.mp4, action 'walk', split 'all'"
    """
    return ", ".join([id, *(f"{kind} {label!r}" for kind, label in labels.items()), f"split {split!r}"])


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
