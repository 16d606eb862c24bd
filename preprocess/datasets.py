"""What is on disk and what the lists say of it -> the videos of a set, in one fixed order.

A file that a list names by its path is taken as it is; what else below the root is a video, preprocess/found.py tells.
Lists are hostile input like everything else: a line cannot leave the root.
"""

from __future__ import annotations

import io
import json
import os
import posixpath
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from csv import Error as CsvError
from csv import reader as csv_reader
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dclr.errors import InputError
from dclr.storage import Folder
from preprocess.found import HIDDEN, NO_VIDEO, VIDEO_SUFFIXES, find_files, no_video, suffix_of, tell_apart

KINETICS_SPLITS = {"train": "train", "val": "val", "validate": "val", "test": "test"}
KINETICS_COLUMNS = ("youtube_id", "time_start", "time_end", "split")
KINETICS_MORE = ("label", "is_cc")
CSV_MORE = ("label", "split", "start", "end")
UNFIT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # in a path or a name: control characters, halves of characters
LAST_NUMBER = 10**9  # of a frame, a second or a label
NOT_BOTH = "a video trains or tests, not both"
# Why what is below the root is not in a set, beside what preprocess/found.py says
UNLISTED = "in no list"
UNUSED = "0 in every list: it neither trains nor tests"
OTHER_TAKEN = "another file is taken for its line of the list"
EMPTY_CLASS = "a class without a video"


@dataclass(frozen=True)
class Video:
    """One video of a set: its ``path`` relative to the root with ``/``, its ``labels`` (kind -> index, the default kind
    first; empty where unlabelled), the ``splits`` it belongs to, the ``span`` of frames [first, end) in decode order that
    it is (None: all of them) and the ``bytes`` of the source file (0 where it is missing)."""

    path: str
    labels: dict[str, int]
    splits: tuple[str, ...]
    span: tuple[int, int] | None = None
    bytes: int = 0

    @property
    def id(self) -> str:
        """What tells it from all others of the set; two spans of one file are two videos."""
        return self.path if self.span is None else f"{self.path}[{self.span[0]}:{self.span[1]}]"


@dataclass(frozen=True)
class Source:
    """A data set as found: ``videos`` on disk sorted by path and span, kind -> class names (no kind where unlabelled),
    ``missing`` ones that a list names (path: where they were expected), the number of videos ``listed``, path -> reason of what
    is ``left_out`` of all that lies below the root, and the ``options`` that the set was found or made with."""

    name: str
    root: Folder
    videos: list[Video]
    classes: dict[str, list[str]]
    missing: list[Video] = field(default_factory=list)
    listed: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    options: dict[str, int | str] = field(default_factory=dict)


# --- the sources


def ucf101(root: Folder, lists: Path) -> Source:
    """UCF101 and anything with its lists: classInd.txt, trainlist0N.txt, testlist0N.txt (any subset) -> train0N, test0N.

    The class of a video is the folder in its line, its label that class's place in classInd.txt.
    """
    files = _files(lists, r"(train|test)list\d\d\.txt")
    names = read_classes(lists / "classInd.txt")
    if not files:
        raise InputError(f"--splits {lists}: no trainlist01.txt, testlist01.txt, ... in it")
    index = {name: label for label, name in enumerate(names)}
    splits: dict[str, list[str]] = {}
    for file in sorted(files, key=lambda p: (p.stem[-2:], p.name.startswith("test"))):
        split = file.stem.replace("list", "")
        other = ("test" if split.startswith("train") else "train") + split[-2:]
        for number, line in _lines(file):
            path, last = _split_last(line)
            path = posixpath.normpath(path if last.isdigit() else line)  # "Class/v_x.avi 1": the number is classInd's
            if not _inside(line) or path.count("/") != 1 or path.partition("/")[0] not in index:
                known = f"one of the {len(names)} classes of classInd.txt"
                raise InputError(f"{file}, line {number}: {_shown(line)}, expected 'Class/video.avi' with {known}")
            of = splits.setdefault(path, [])
            if other in of:
                raise InputError(f"{file}, line {number}: {path} is in {other} too; {NOT_BOTH}")
            if split not in of:
                of.append(split)
    listed = [Video(path, {"action": index[path.partition("/")[0]]}, tuple(of)) for path, of in splits.items()]
    return _source("ucf101", root, f"--splits {lists}", find_files(root), listed, {"action": names})


def hmdb51(root: Folder, lists: Path) -> Source:
    """HMDB51 and anything with its lists: ``<class>_test_split<k>.txt`` with lines ``name.avi 1`` -> train0k, test0k.

    1 is train, 2 is test and 0 is neither: a video that is 0 in every list is left out. The files lie in ``<class>/``; labels
    are the places of the classes in sorted order.
    """
    files = _files(lists, r".+_test_split[1-9]\.txt")
    if not files:
        raise InputError(f"--splits {lists}: no <class>_test_split1.txt, ... in it")
    classes, _, rounds = zip(*(file.stem.rpartition("_test_split") for file in files), strict=True)
    names = sorted(set(classes))
    for name in names:
        for k in sorted(set(rounds)):
            if lists / f"{name}_test_split{k}.txt" not in files:
                raise InputError(f"--splits {lists}: {name}_test_split{k}.txt is missing; other classes have a list {k}")
    roles: dict[str, dict[str, str]] = {}  # path -> list number -> 0, 1, 2
    for file, name, k in sorted(zip(files, classes, rounds, strict=True), key=lambda item: item[2]):
        for number, line in _lines(file):
            video, role = _split_last(line)
            path = f"{name}/{video}"
            if role not in ("0", "1", "2") or not _inside(path) or "/" in video:
                raise InputError(f"{file}, line {number}: {_shown(line)}, expected 'video.avi' and 0, 1 or 2")
            if roles.setdefault(path, {}).setdefault(k, role) != role:
                raise InputError(f"{file}, line {number}: {video} is {roles[path][k]} too; {NOT_BOTH}")
    index = {name: label for label, name in enumerate(names)}
    listed = []
    for path, of in roles.items():
        splits = tuple(("train0" if role == "1" else "test0") + k for k, role in of.items() if role != "0")
        if splits:
            listed.append(Video(path, {"action": index[path.partition("/")[0]]}, splits))
    unused = dict.fromkeys(roles, UNUSED)
    return _source("hmdb51", root, f"--splits {lists}", find_files(root), listed, {"action": names}, unused)


def kinetics(root: Folder, lists: Path) -> Source:
    """Kinetics-400, 600, 700: one official CSV or a folder of them -> train, val, test; a test CSV without labels is fine.

    A video is found by its name, ``<id>_<start>_<end>`` with six digits each or else ``<id>``, wherever it lies below the
    root. Labels are the lines of the ``*label_map*.txt`` or ``*labels*.txt`` beside the CSVs, or else the sorted labels.
    """
    files = _files(lists, r".*\.csv") if not lists.is_file() else [lists]
    if not files:
        raise InputError(
            f"--splits {lists}: no CSV in it, expected the official ones with the columns {_words(KINETICS_COLUMNS)}"
        )
    names = _label_map(lists.parent if lists.is_file() else lists)
    clips = _clips(files, None if names is None else set(names))
    labelled = {label for _, _, label in clips.values()} - {""}
    names = sorted(labelled) if names is None else names
    index = {name: label for label, name in enumerate(names)}
    found = find_files(root)
    clips_of = Counter(id for id, _, _ in clips.values())
    alone = {id for id, count in clips_of.items() if count == 1 and id not in clips}  # else which clip would <id>.mp4 be?
    of_stem, others = _by_stem(root, found[0], clips.keys() | alone)
    listed = []
    for stem, (id, split, label) in clips.items():
        paths = of_stem.get(stem) or (of_stem.get(id) if id in alone else None)
        path = _preferred(paths, split) if paths else "/".join(filter(None, (split, label, f"{stem}.mp4")))
        listed.append(Video(path, {"action": index[label]} if label else {}, (split,)))
    return _source("kinetics", root, f"--splits {lists}", found, listed, {"action": names} if labelled else {}, others)


def diving48(root: Folder, lists: Path) -> Source:
    """Diving48's ``*train*.json``, ``*test*.json`` and ``*vocab*.json`` -> train, test.

    A video is found by its name wherever it lies below the root; ``start_frame`` to ``end_frame`` (exclusive) is its span.
    """
    train, test, vocabulary = (_only(lists, kind) for kind in ("train", "test", "vocab"))
    names = _vocabulary(vocabulary)
    dives: dict[tuple[str, tuple[int, int]], tuple[int, str]] = {}
    for file, split in ((train, "train"), (test, "test")):
        for name, label, span in _dives(file, len(names)):
            if dives.setdefault((name, span), (label, split)) != (label, split):
                raise InputError(f"{file}: {name} is in {dives[name, span][1]} too or has two labels; {NOT_BOTH}")
    found = find_files(root)
    of_stem, others = _by_stem(root, found[0], {name for name, _ in dives})
    listed = []
    for (name, span), (label, split) in dives.items():
        path = _preferred(of_stem[name], split) if name in of_stem else f"{name}.mp4"
        listed.append(Video(path, {"action": label}, (split,), span))
    return _source("diving48", root, f"--splits {lists}", found, listed, {"action": names}, others)


def folder(root: Folder) -> Source:
    """All videos below the root, in the split ``all``; the first folder of a path is its class where every video has one."""
    files, unread = find_files(root)
    paths, others = tell_apart(root, files, files)
    if not paths:
        why = ", ".join(f"{count} {reason}" for reason, count in Counter(others.values()).most_common())
        raise InputError(f"--root {root}: no videos in it; of its {len(files)} files are {why}")
    outside = [path for path in paths if "/" not in path]
    names = [] if outside else sorted({path.partition("/")[0] for path in paths})
    if outside and len(outside) < len(paths):
        print(
            f"warning: --root {root}: no video gets a label, because {len(outside)} of {len(paths)} lie in no class folder "
            f"({outside[0]}, ...); move or remove those to have the folders as classes",
            file=sys.stderr,
        )
    if names:
        folders = {path.partition("/")[0] for path in [*files, *unread] if "/" in path}
        unread = {f"{name}/": EMPTY_CLASS for name in folders.difference(names) if no_video(name) != HIDDEN} | unread
    index = {name: label for label, name in enumerate(names)}
    listed = [Video(path, {"action": index[path.partition("/")[0]]} if names else {}, ("all",)) for path in paths]
    return _source("folder", root, str(root), (files, unread), listed, {"action": names} if names else {}, others)


def csv(root: Folder, file: Path) -> Source:
    """A list of one's own: a header with ``path`` and any of ``label,split,start,end``, then a line for each video.

    Without a split a video is in ``all``; a video on several lines is in the split of each. Classes are the labels that occur,
    in the order of names, or of numbers where all are whole ones. ``start`` and ``end`` (exclusive) are frame numbers in decode
    order.
    """
    splits: dict[tuple[str, tuple[int, int] | None], list[str]] = {}
    labels: dict[tuple[str, tuple[int, int] | None], str] = {}
    for number, row in _table(file, ("path",), CSV_MORE):
        at = f"{file}, line {number}"
        video = _csv_path(row["path"], at), _csv_span(row.get("start", ""), row.get("end", ""), at)
        split, label = row.get("split", "") or "all", row.get("label", "")
        if "," in split or not split.isprintable():
            raise InputError(f"{at}: split {_shown(split)}, expected a name without a comma; one line for each split")
        of = splits.setdefault(video, [])
        if split not in of:
            of.append(split)
        if label and labels.setdefault(video, label) != label:
            raise InputError(f"{at}: {video[0]} is labelled {_shown(labels[video])} and {_shown(label)}, expected one label")
    names, index = _csv_classes(set(labels.values()), file)
    listed = []
    for (path, span), of in splits.items():
        label = labels.get((path, span), "")
        listed.append(Video(path, {"action": index[label]} if label else {}, tuple(of), span))
    return _source("csv", root, str(file), find_files(root), listed, {"action": names} if names else {})


# --- what is on disk


def _source(
    name: str,
    root: Folder,
    lists: str,
    found: tuple[dict[str, int], dict[str, str]],
    listed: list[Video],
    classes: dict[str, list[str]],
    others: dict[str, str] | None = None,
) -> Source:
    """What is listed, told apart by what is on disk (``found``: :func:`find_files`); ``others``: path -> reason of files that
    are not taken.

    Raises InputError where nothing is listed, nothing of it is on disk, or the name of a file is no text.
    """
    files, unread = found
    listed = sorted(listed, key=lambda video: (video.path, video.span or (-1, -1)))
    if not listed:
        raise InputError(f"{lists}: no videos in its lists")
    videos = [replace(video, bytes=files[video.path]) for video in listed if video.path in files]
    if not videos:
        raise InputError(
            f"{lists} names {len(listed)} videos and --root {root} holds {len(files)} files, but none of them is the "
            f"same: expected {str(root).rstrip('/')}/{listed[0].path}"
        )
    for video in videos:
        if UNFIT.search(video.path):  # bytes that are not UTF-8 come as lone surrogates
            raise InputError(
                f"--root {root}: the name {video.path!a} is not UTF-8 text without control characters; rename that file"
            )
    missing = [video for video in listed if video.path not in files]
    taken, others = {video.path for video in videos}, others or {}
    left_out = {path: others.get(path) or no_video(path) or UNLISTED for path in files if path not in taken} | unread
    printable = {UNFIT.sub(lambda at: ascii(at[0])[1:-1], path): reason for path, reason in sorted(left_out.items())}
    return Source(name, root, videos, classes, missing, len(listed), printable)


def _by_stem(root: Folder, files: dict[str, int], stems: Collection[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Name without suffix -> the videos below the root with one of these names, sorted; path -> reason of further files.

    Where the suffixes of files do not tell, they are looked into, if there is no other file for the name.
    """
    paths = [path for path in files if _stem(path) in stems and no_video(path) is None]
    certain = {_stem(path) for path in paths if suffix_of(path) in VIDEO_SUFFIXES}
    asked = [path for path in paths if suffix_of(path) in VIDEO_SUFFIXES or _stem(path) not in certain]
    videos, others = tell_apart(root, files, asked)
    found: dict[str, list[str]] = {}
    for path in videos:
        found.setdefault(_stem(path), []).append(path)
    return found, dict.fromkeys(paths, OTHER_TAKEN) | others


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


def _preferred(paths: list[str], split: str) -> str:
    """Of several files for one video the first in a folder of its split's name, or else the first."""
    return next((path for path in paths if split in path.split("/")[:-1]), paths[0])


# --- lists, line by line


def read_classes(path: Path) -> list[str]:
    """Class names of UCF101's classInd.txt (``1 ApplyEyeMakeup``), in label order; raises InputError naming the line."""
    if not path.is_file():
        raise InputError(f"{path} is missing: --splits expects classInd.txt beside the train and test lists")
    names: list[str] = []
    for number, line in _lines(path):
        index, _, name = line.partition(" ")
        if index != str(len(names) + 1) or not name.strip() or name.strip() in names:
            raise InputError(f"{path}, line {number}: {_shown(line)}, expected '{len(names) + 1} ClassName', each class once")
        names.append(name.strip())
    if not names:
        raise InputError(f"{path}: no classes in it")
    return names


def _files(lists: Path, pattern: str) -> list[Path]:
    """The files of a folder of lists whose whole name matches, sorted; raises InputError where there is no such folder."""
    try:
        return sorted(lists / name for name in os.listdir(lists) if re.fullmatch(pattern, name))
    except OSError as error:
        raise InputError(f"--splits {lists}: no such folder of lists ({error.strerror})") from None


def _text(path: Path) -> str:
    """A list as text with ``\\n`` line ends; raises InputError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines that say something; the official lists come with CRLF, trailing spaces and empty lines."""
    return [(number, line.strip()) for number, line in enumerate(_text(path).split("\n"), 1) if line.strip()]


def _table(path: Path, needed: tuple[str, ...], more: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and column -> value, stripped, of each line of a CSV that says something; raises InputError.

    Columns that are neither ``needed`` nor one of ``more`` are ignored, with a warning.
    """
    rows = csv_reader(io.StringIO(_text(path)))
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
                expected = f"expected a header with {_words(needed)}, each column once"
                raise InputError(f"{path}, line {rows.line_num}: {_shown(','.join(header))}, {expected}")
    except CsvError as error:
        raise InputError(f"{path}, line {rows.line_num}: not a line of a CSV file ({error})") from None
    if not header:
        raise InputError(f"{path}: empty, expected a header with {_words(needed)}")


def _check_columns(header: list[str], known: tuple[str, ...], at: str) -> None:
    """Say which columns are ignored; raises InputError where one differs from a known one in nothing but case or spaces."""
    ignored = []
    for name in header:
        plain = "_".join(name.lower().split())
        if name not in known and plain in known:
            raise InputError(f"{at}: column {_shown(name)}, expected {_shown(plain)}: names of columns are lower case")
        if name not in known:
            near = get_close_matches(plain, known, 1)
            ignored.append(_shown(name) + (f" (is {near[0]} meant?)" if near else ""))
    if ignored:
        print(f"warning: {at}: ignored columns: {', '.join(ignored)}; known are {_words(known)}", file=sys.stderr)


def _split_last(line: str) -> tuple[str, str]:
    """A line without its last word, and that word; the line and nothing where it is one word."""
    head, *last = line.rsplit(None, 1)
    return head, last[0] if last else ""


def _inside(path: str) -> bool:
    """Whether a path of a list stays below the root and can be printed: relative, without ``..``, NUL and the like."""
    return path not in ("", ".") and path[0] != "/" and ".." not in path.split("/") and not UNFIT.search(path)


def _shown(text: object) -> str:
    """A value of a list in a message: quoted, and not the megabyte that it may be."""
    said = repr(text)
    return said if len(said) <= 120 else said[:120] + "..."


def _words(names: Iterable[str]) -> str:
    return ",".join(names)


# --- Kinetics


def _label_map(lists: Path) -> list[str] | None:
    """The lines of the one label map in a folder, None where there is none; raises InputError."""
    files = _files(lists, r".*(label_map|labels).*\.txt")
    if not files:
        return None
    if len(files) > 1:
        raise InputError(f"--splits {lists}: {_words(p.name for p in files)}, expected one label map")
    names: dict[str, None] = {}
    for number, line in _lines(files[0]):
        if line in names:
            raise InputError(f"{files[0]}, line {number}: {_shown(line)} is a class already, expected each once")
        names[line] = None
    if not names:
        raise InputError(f"{files[0]}: no classes in it")
    return list(names)


def _clips(files: list[Path], known: set[str] | None) -> dict[str, tuple[str, str, str]]:
    """``<id>_<start>_<end>`` -> id, split and label ("": none) of each clip of Kinetics' CSVs; raises InputError.

    ``known`` are the labels of the label map.
    """
    clips: dict[str, tuple[str, str, str]] = {}
    for file in files:
        for number, row in _table(file, KINETICS_COLUMNS, KINETICS_MORE):
            id, label, split = row["youtube_id"], row.get("label", ""), KINETICS_SPLITS.get(row["split"])
            start, end = _whole(row["time_start"]), _whole(row["time_end"])
            if not re.fullmatch(r"[A-Za-z0-9_-]+", id) or start is None or end is None or split is None:
                expected = f"expected a YouTube id, seconds as whole numbers and one of {_words(KINETICS_SPLITS)}"
                given = _words(row[name] for name in KINETICS_COLUMNS)
                raise InputError(f"{file}, line {number}: {_shown(given)}, {expected}")
            if label and ("/" in label or not _inside(label) or (known is not None and label not in known)):
                raise InputError(f"{file}, line {number}: {_shown(label)}, expected a label of the label map, or a plain name")
            stem = f"{id}_{start:06d}_{end:06d}"
            _, before, labelled = clips.setdefault(stem, (id, split, label))
            if before != split:
                raise InputError(f"{file}, line {number}: {stem} is in {before} too; {NOT_BOTH}")
            if label and labelled and label != labelled:
                raise InputError(f"{file}, line {number}: {stem} is labelled {_shown(labelled)} too, expected one label")
            if label and not labelled:
                clips[stem] = id, split, label
    return clips


def _whole(text: str) -> int | None:
    """A whole number from 0 to LAST_NUMBER in plain digits, None for anything else."""
    return int(text) if re.fullmatch(r"[0-9]{1,10}", text) and int(text) <= LAST_NUMBER else None


# --- Diving48


def _only(lists: Path, kind: str) -> Path:
    """The one ``*kind*.json`` of a folder; raises InputError where there are none or several."""
    files = _files(lists, rf".*{kind}.*\.json")
    if len(files) != 1:
        given = f"{_words(p.name for p in files)} in it" if files else "not in it"
        raise InputError(f"--splits {lists}: expected one *{kind}*.json (Diving48_V2_train.json, ...), {given}")
    return files[0]


def _entries(path: Path) -> list[Any]:
    """The list that a JSON file holds; raises InputError."""
    try:
        entries = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: expected a list with entries in it")
    return entries


def _vocabulary(path: Path) -> list[str]:
    """Class names of Diving48's vocabulary, the words of each joined by ``-``, in label order; raises InputError."""
    names: list[str] = []
    for number, words in enumerate(_entries(path)):
        plain = isinstance(words, list) and all(isinstance(word, str) and not UNFIT.search(word) for word in words)
        if not plain or not any(words):
            raise InputError(f"{path}, entry {number}: {_shown(words)}, expected a list of words")
        name = "-".join(filter(None, words))
        if name in names:
            raise InputError(f"{path}, entry {number}: {_shown(name)} is a class already, expected each once")
        names.append(name)
    return names


def _dives(path: Path, classes: int) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """Name, label and span of each entry of Diving48's train or test list; raises InputError naming the entry."""
    for number, entry in enumerate(_entries(path)):
        given = entry if isinstance(entry, dict) else {}
        name = given.get("vid_name")
        numbers = [given.get(key) for key in ("label", "start_frame", "end_frame")]
        label, first, end = (value if type(value) is int else -1 for value in numbers)  # True is an int too
        if not isinstance(name, str) or not _inside(name) or "/" in name:
            raise InputError(f"{path}, entry {number}: {_shown(entry)}, expected a vid_name that is a plain name")
        if not 0 <= label < classes or not 0 <= first < end <= LAST_NUMBER:
            expected = f"expected whole numbers: a label below {classes} and 0 <= start_frame < end_frame"
            raise InputError(f"{path}, entry {number}: {_shown(entry)}, {expected}")
        yield name, label, (first, end)


# --- one's own CSV


def _csv_path(path: str, at: str) -> str:
    """The path of a line in its shortest form; raises InputError where it leaves the root or cannot be a video's."""
    if not _inside(path):
        raise InputError(f"{at}: path {_shown(path)}, expected one relative to --root that stays in it")
    if suffix_of(path) in NO_VIDEO:
        raise InputError(f"{at}: path {_shown(path)}, expected a video, and {suffix_of(path)} is {NO_VIDEO[suffix_of(path)]}")
    return posixpath.normpath(path)


def _csv_span(start: str, end: str, at: str) -> tuple[int, int] | None:
    """The frames [start, end) of a line, None where it gives neither; raises InputError."""
    if not start and not end:
        return None
    first, stop = _whole(start), _whole(end)
    if first is None or stop is None:
        expected = "expected both as whole frame numbers (seconds times the frame rate), or neither"
        raise InputError(f"{at}: start {_shown(start)}, end {_shown(end)}, {expected}")
    if first >= stop:
        raise InputError(f"{at}: start {first}, end {stop}, expected an end (exclusive) after the start")
    return first, stop


def _csv_classes(labels: set[str], file: Path) -> tuple[list[str], dict[str, int]]:
    """Class names and label -> index for a CSV: the labels that occur, sorted; as numbers where all are whole ones.

    Raises InputError for a number that is too high or negative.
    """
    if not all(re.fullmatch(r"-?[0-9]+", label) for label in labels):
        names = sorted(labels)
        return names, {name: label for label, name in enumerate(names)}
    for label in labels:
        if _whole(label) is None:
            raise InputError(f"{file}: label {_shown(label)}, expected 0 to {LAST_NUMBER}, or nothing for an unlabelled video")
    index = {number: at for at, number in enumerate(sorted({int(label) for label in labels}))}
    return [str(number) for number in index], {label: index[int(label)] for label in labels}


# --- names in the shards


def sample_keys(paths: list[str], used: Collection[str] = frozenset()) -> list[str]:
    """A name for each path (or ``Video.id``) that a tar and webdataset accept (letters, digits, ``_``, ``-``), unique in
    the set and not in ``used``.

    The path without its suffix, other characters as ``_``; where two paths come out the same or one is too long, a number
    follows. The order of ``paths`` and ``used`` decide, nothing else.
    """
    stems = [re.sub(r"\.[^./\[]*(\[\d+:\d+\])?\Z", r"\1", path) or path for path in paths]
    plain = [re.sub(r"[^A-Za-z0-9_-]", "_", stem)[-72:] for stem in stems]
    count = Counter(plain)
    alone = {name for name in plain if count[name] == 1}.difference(used)
    taken = alone.union(used)
    number: Counter[str] = Counter()
    keys = []
    for name in plain:
        key = name
        while name not in alone and (key == name or key in taken):
            number[name] += 1
            key = f"{name}-{number[name]:06d}"
        taken.add(key)
        keys.append(key)
    return keys
