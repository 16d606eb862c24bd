"""A list of one's own: a CSV file."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from dclr.errors import InputError
from dclr.storage import Folder
from preprocess.datasets.base import DataSet, Video, VideoSet, video_set
from preprocess.datasets.lists import LAST_NUMBER, inside, quoted, read_table, whole_number
from preprocess.found import NO_VIDEO, suffix_of

OPTIONAL = ("label", "split", "start", "end")


def find(root: Folder, file: Path) -> VideoSet:
    """A list of one's own: a header with ``path`` and any of ``label,split,start,end``, then a line for each video.

    Without a split a video is in ``all``; a video on several lines is in the split of each. Classes are the labels that occur,
    in the order of names, or of numbers where all are whole ones. ``start`` and ``end`` (exclusive) are frame numbers in decode
    order.
    """
    splits: dict[tuple[str, tuple[int, int] | None], list[str]] = {}
    labels: dict[tuple[str, tuple[int, int] | None], str] = {}
    for number, row in read_table(file, ("path",), OPTIONAL):
        at = f"{file}, line {number}"
        video = _path(row["path"], at), _span(row.get("start", ""), row.get("end", ""), at)
        split, label = row.get("split", "") or "all", row.get("label", "")
        if "," in split or not split.isprintable():
            raise InputError(f"{at}: split {quoted(split)}, expected a name without a comma; one line for each split")
        of = splits.setdefault(video, [])
        if split not in of:
            of.append(split)
        if label and labels.setdefault(video, label) != label:
            raise InputError(f"{at}: {video[0]} is labelled {quoted(labels[video])} and {quoted(label)}, expected one label")
    names, index = _classes(set(labels.values()), file)
    listed = []
    for (path, span), of in splits.items():
        label = labels.get((path, span), "")
        listed.append(Video(path, {"action": index[label]} if label else {}, tuple(of), span))
    return video_set("csv", root, str(file), listed, {"action": names} if names else {})


def _path(path: str, at: str) -> str:
    """The path of a line in its shortest form; raises InputError where it leaves the root or cannot be a video's."""
    if not inside(path):
        raise InputError(f"{at}: path {quoted(path)}, expected one relative to --root that stays in it")
    if suffix_of(path) in NO_VIDEO:
        raise InputError(f"{at}: path {quoted(path)}, expected a video, and {suffix_of(path)} is {NO_VIDEO[suffix_of(path)]}")
    return posixpath.normpath(path)


def _span(start: str, end: str, at: str) -> tuple[int, int] | None:
    """The frames [start, end) of a line, None where it gives neither; raises InputError."""
    if not start and not end:
        return None
    first, stop = whole_number(start), whole_number(end)
    if first is None or stop is None:
        expected = "expected both as whole frame numbers (seconds times the frame rate), or neither"
        raise InputError(f"{at}: start {quoted(start)}, end {quoted(end)}, {expected}")
    if first >= stop:
        raise InputError(f"{at}: start {first}, end {stop}, expected an end (exclusive) after the start")
    return first, stop


def _classes(labels: set[str], file: Path) -> tuple[list[str], dict[str, int]]:
    """Class names and label -> index for a CSV: the labels that occur, sorted; as numbers where all are whole ones.

    Raises InputError for a number that is too high or negative.
    """
    if not all(re.fullmatch(r"-?[0-9]+", label) for label in labels):
        names = sorted(labels)
        return names, {name: label for label, name in enumerate(names)}
    for label in labels:
        if whole_number(label) is None:
            raise InputError(f"{file}: label {quoted(label)}, expected 0 to {LAST_NUMBER}, or nothing for an unlabelled video")
    index = {number: at for at, number in enumerate(sorted({int(label) for label in labels}))}
    return [str(number) for number in index], {label: index[int(label)] for label in labels}


CSV = DataSet(
    "csv",
    find,
    help="your own list: path[,label][,split][,start,end], frames",
    flag="--list",
    flag_help="with a header line; paths relative to --root",
    metavar="CSV",
)
