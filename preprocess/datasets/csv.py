"""A list of one's own: a table with a header line, or lines of a path and a label."""

from __future__ import annotations

import os
import posixpath
import re
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from dclr.errors import InputError
from dclr.settings import setting
from dclr.storage import Folder
from preprocess.datasets.base import DataSet, Video, VideoSet, video_set
from preprocess.datasets.lists import (
    LAST_NUMBER,
    ROWS_SHOWN,
    Labels,
    as_read,
    inside,
    quoted,
    read_rows,
    read_table,
    split_name,
    whole_number,
)
from preprocess.found import NO_VIDEO, VIDEO_SUFFIXES, suffix_of
from preprocess.transcode import WHICH, Span

Rows = list[tuple[int, dict[str, str]]]  # line number, column -> value
# The columns of a span -> whether they are seconds. None: they are where one of them is no whole number
SPANS: dict[tuple[str, str], bool | None] = {
    ("start", "end"): None,
    ("start_frame", "end_frame"): False,
    ("start_seconds", "end_seconds"): True,
    ("start_time", "end_time"): True,
    ("time_start", "time_end"): True,
}
REMEDY = "; --path-column, --label-column and --split-column name others"
NO_HEADER = {1: ("path",), 2: ("path", "label"), 3: ("path", "start", "label")}  # columns by their number
# Of a line of words: a path, which may have spaces, up to the last video's suffix, and what follows it
WORDS = re.compile(rf"(.*(?:{'|'.join(map(re.escape, sorted(VIDEO_SUFFIXES)))}))(?:\s+(.*))?", re.I)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a list that have other names."""

    title = WHICH
    path_column: str | None = setting(None, "column of the list that has the paths", metavar="COLUMN", derived="path")
    label_column: tuple[str, ...] = setting(
        (), "column of the list that has the labels; several are several kinds of label", metavar="COLUMN", derived="label"
    )
    split_column: str | None = setting(None, "column of the list that has the splits", metavar="COLUMN", derived="split")


def find(
    root: Folder,
    file: Path,
    path_column: str | None = None,
    label_column: tuple[str, ...] = (),
    split_column: str | None = None,
) -> VideoSet:
    """A list of one's own, with commas or tabs: a header with ``path``, and any of ``label``, ``split`` and a pair of
    :data:`SPANS`, then a line for each video. Without a header its lines are those of :data:`NO_HEADER`, with spaces too.

    Without a split a video is in ``all``; a video on several lines is in the split of each. Classes are the labels that occur,
    in the order of names, or of numbers where all are whole ones. A span ends before its end; without one, with the video.
    """
    labels = Labels(label_column, file)
    form, rows = _read(file, path_column, label_column, split_column)
    start, end, seconds = _span_columns(rows, file)
    places = root.place, os.path.abspath(root.place), os.path.realpath(root.place)  # what an absolute path may begin with
    splits: dict[tuple[str, Span | None], list[str]] = {}
    notes = [f"{file}: {form}" + f"; {start} in {'seconds' if seconds else 'frames'}" * bool(start)]
    for number, row in rows:
        at = f"{file}, line {number}"
        path, span = _path(row[path_column or "path"], places, at), _span(row.get(start, ""), row.get(end, ""), seconds, at)
        split = split_name(row.get(split_column or "split", ""), at)
        of = splits.setdefault((path, span), [])
        if split not in of:
            of.append(split)
        told = {kind: row[column] for kind, column in labels.kinds.items() if row.get(column)}
        labels.add((path, span), told, f"{at}: {path}")
        if len(notes) <= ROWS_SHOWN:
            notes.append(f"line {number}: {as_read(Video(path, {}, (), span).id, told, split)}")
    openly = Counter(path for path, span in splits if span and span[1] is None)
    if several := [path for path, count in openly.items() if count > 1]:
        what = f"{len(several)} videos ({several[0]}, ...) have several starts without an end"
        print(f"warning: {file}: {what}; each sample goes on to the end of its video, so they overlap", file=sys.stderr)
    classes = labels.classes()
    listed = [Video(path, labels.of((path, span)), tuple(of), span) for (path, span), of in splits.items()]
    return video_set("csv", root, str(file), listed, classes, notes=notes)


def _read(file: Path, path: str | None, labels: tuple[str, ...], split: str | None) -> tuple[str, Rows]:
    """How a list is written, in words, and its rows; raises InputError. ``path``, ``labels`` and ``split`` are the columns that
    were asked for by name."""
    separated, lines = read_rows(file)
    first = next(lines, None)
    lines = chain([] if first is None else [first], lines)
    if first is None or path or labels or split or not _has_no_header(first[1]):
        needed = tuple(dict.fromkeys([path or "path", *labels, *([split] if split else [])]))
        more = ["label"] * (not labels) + ["split"] * (not split) + [name for pair in SPANS for name in pair]
        rows = list(read_table(file, needed, tuple(more), lines, REMEDY))
        return f"a header, {separated}", rows
    rows = [(number, _bare(values, f"{file}, line {number}")) for number, values in lines]
    for number, row in rows:
        if len(row) != len(rows[0][1]):
            raise InputError(f"{file}, line {number}: {len(row)} values, expected {' '.join(rows[0][1])} as in the first line")
    return f"no header, {' '.join(rows[0][1])}", rows


def _has_no_header(values: list[str]) -> bool:
    """Whether a first line is one of a video: with the name of a video, or a number as the last of several words."""
    words = " ".join(values).split()
    return any(suffix_of(word) in VIDEO_SUFFIXES for word in words) or (len(words) > 1 and words[-1].isdecimal())


def _bare(values: list[str], at: str) -> dict[str, str]:
    """The columns of a line without a header; raises InputError."""
    if len(values) == 1:
        match = WORDS.fullmatch(values[0])
        values = [match[1], *(match[2] or "").split()] if match else values[0].split()
    line = quoted(" ".join(values))
    if len(values) not in NO_HEADER or (len(values) == 3 and None in map(whole_number, values[1:])):
        expected = "expected 'path', 'path label' or 'path start label' with whole numbers; any other list needs a header line"
        raise InputError(f"{at}: {line}, {expected}")
    if len(values) == 3 and suffix_of(values[0]) not in VIDEO_SUFFIXES:
        raise InputError(f"{at}: {line}, expected a video; lists of raw frames (folder, frames, label) are not read")
    return dict(zip(NO_HEADER[len(values)], values, strict=True))


def _path(path: str, places: tuple[str, ...], at: str) -> str:
    """The path of a line, relative to the root and in its shortest form; raises InputError where it leaves the root or cannot
    be a video's."""
    below = path
    if path.startswith("/") or "://" in path:
        tops = (f"{place.rstrip('/')}/" for place in places)
        below = next((path.removeprefix(top) for top in tops if path.startswith(top)), path)
    if not inside(below) or "://" in below:
        raise InputError(f"{at}: path {quoted(path)}, expected one that stays in --root: relative to it, or absolute")
    if suffix_of(path) in NO_VIDEO:
        raise InputError(f"{at}: path {quoted(path)}, expected a video, and {suffix_of(path)} is {NO_VIDEO[suffix_of(path)]}")
    return posixpath.normpath(below)


def _span_columns(rows: Rows, file: Path) -> tuple[str, str, bool]:
    """The columns of the spans, "" where there are none, and whether these are seconds; raises InputError."""
    header = rows[0][1] if rows else {}
    pairs = [pair for pair in SPANS if not header.keys().isdisjoint(pair)]
    if not pairs:
        return "", "", False
    if len(pairs) > 1:
        raise InputError(f"{file}: columns {' and '.join(map(','.join, pairs))}, expected one pair; rename the other")
    ((start, end),) = pairs
    seconds = SPANS[start, end]
    if seconds is None:
        values = {row[column] for _, row in rows for column in (start, end) if column in row}
        seconds = any((_number(value) or 0) % 1 for value in values)
        if not seconds and any("." in value and _number(value) is not None for value in values):
            raise InputError(
                f"{file}: {start} and {end} may be frames or seconds: call them start_frame,end_frame or "
                "start_seconds,end_seconds"
            )
    return start, end, seconds


def _span(start: str, end: str, seconds: bool, at: str) -> Span | None:
    """The span of a line, None where it gives none; raises InputError."""
    if not start and not end:
        return None
    first, stop = _number(start), _number(end) if end else None
    if first is None or (end and stop is None) or (not seconds and (first % 1 or (stop or 0) % 1)):
        unit = "seconds" if seconds else "whole frames"
        expected = f"expected both in {unit}, or a start alone (to the video's end), or neither"
        raise InputError(f"{at}: start {quoted(start)}, end {quoted(end)}, {expected}")
    if stop is not None and first >= stop:
        raise InputError(f"{at}: start {start}, end {end}, expected an end (exclusive) after the start")
    if seconds:
        return first, stop
    return int(first), None if stop is None else int(stop)


def _number(text: str) -> float | None:
    """A number from 0 to LAST_NUMBER in plain digits, to a thousandth; None for anything else."""
    if not re.fullmatch(r"[0-9]{1,10}(\.[0-9]{1,30})?", text) or float(text) > LAST_NUMBER:
        return None
    return round(float(text), 3)


CSV = DataSet(
    "csv",
    find,
    help="your own list: path[,label][,split][,start,end], or lines of path and label",
    flag="--list",
    flag_help="the list, with commas or tabs and a header line, or lines of 'path label' or 'path start label'",
    metavar="CSV",
    told={
        "columns of --list": {
            "path": "required. The video, relative to --root, or absolute and inside it",
            "label": "its class: a text, or a whole number; classes are the labels that occur, sorted by name or number. "
            "Nothing: it is unlabelled",
            "split": "its split, any name without a comma; a line for each where it has several. Nothing: split 'all'",
            "start_frame, end_frame": "the sample is these frames, counted from 0, the end excluded. No end: to the video's "
            "end; neither: the whole video",
            "start_seconds, end_seconds": "the same in seconds, such as 12.5; also called start_time, end_time or time_start, "
            "time_end",
            "start, end": "the same in frames, or in seconds where one of the list has a fraction",
            "no header line": "lines of 'path', 'path label' or 'path start label' (a frame), with spaces, commas or tabs",
        }
    },
    examples={
        "how the list is understood, writing nothing": "--root videos --list mine.csv --out shards/mine --dry-run",
        "other columns, two kinds of label": "--root videos --list mine.tsv --path-column file --label-column action place "
        "--out shards/mine",
    },
    settings=Columns,
)
