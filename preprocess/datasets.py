"""What is on disk and what the official lists say of it -> the videos of a set, in one fixed order.

Nothing here opens a video. Lists are hostile input like everything else: a line cannot leave the root.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dclr.errors import InputError

VIDEO_SUFFIXES = frozenset([".avi", ".mp4", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts"])


@dataclass(frozen=True)
class Video:
    """One video of a set: its ``path`` relative to the root with ``/``, its ``labels`` (kind -> index, the default kind
    first; empty where unlabelled) and the ``splits`` it belongs to."""

    path: str
    labels: dict[str, int]
    splits: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A data set as found: ``videos`` on disk in sorted order, ``missing`` ones that a list names, the number of files
    that no list names, kind -> class names, and the ``options`` that the set was found or made with."""

    name: str
    root: Path
    videos: list[Video]
    classes: dict[str, list[str]]
    missing: list[Video] = field(default_factory=list)
    unlisted: int = 0
    options: dict[str, int] = field(default_factory=dict)


def find_videos(root: Path) -> set[str]:
    """Paths of the video files below ``root``, relative and with ``/``; raises InputError where there are none."""
    if not root.is_dir():
        raise InputError(f"--root {root}: no such folder")
    found = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file()}
    if not found:
        raise InputError(f"--root {root}: no videos in it (looked for {' '.join(sorted(VIDEO_SUFFIXES))})")
    return found


def _lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines that say something; the official lists come with CRLF, trailing spaces and empty lines."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def read_classes(path: Path) -> list[str]:
    """Class names of UCF101's classInd.txt (``1 ApplyEyeMakeup``), in label order; raises InputError naming the line."""
    if not path.is_file():
        raise InputError(f"{path} is missing: --splits expects classInd.txt beside the train and test lists")
    names: list[str] = []
    for number, line in _lines(path):
        index, _, name = line.partition(" ")
        if index != str(len(names) + 1) or not name.strip():
            raise InputError(f"{path}, line {number}: {line!r}, expected '{len(names) + 1} ClassName'")
        names.append(name.strip())
    if not names:
        raise InputError(f"{path}: no classes in it")
    return names


def ucf101(root: Path, lists: Path) -> Source:
    """UCF101 and anything with its lists: classInd.txt, trainlist0N.txt, testlist0N.txt (any subset) -> train0N, test0N.

    The class of a video is the folder in its line, its label that class's place in classInd.txt.
    """
    if not lists.is_dir():
        raise InputError(f"--splits {lists}: no such folder")
    names = read_classes(lists / "classInd.txt")
    splits: dict[str, list[str]] = {}
    files = sorted(p for p in lists.iterdir() if re.fullmatch(r"(train|test)list\d\d\.txt", p.name))
    if not files:
        raise InputError(f"--splits {lists}: no trainlist01.txt, testlist01.txt, ... in it")
    for file in sorted(files, key=lambda p: (p.stem[-2:], p.name.startswith("test"))):
        split = file.stem.replace("list", "")
        for number, line in _lines(file):
            path = PurePosixPath(re.sub(r"\s+\d+$", "", line)).as_posix()  # "Class/v_x.avi 1": the number is classInd's
            parts = PurePosixPath(path).parts
            if len(parts) != 2 or ".." in parts or parts[0] not in names:
                known = f"one of the {len(names)} classes of classInd.txt"
                raise InputError(f"{file}, line {number}: {line!r}, expected 'Class/video.avi' with {known}")
            other = ("test" if split.startswith("train") else "train") + split[-2:]
            if other in splits.get(path, ()):
                raise InputError(f"{file}, line {number}: {path} is in {other} too; a video trains or tests, not both")
            if split not in splits.setdefault(path, []):
                splits[path].append(split)
    on_disk = find_videos(root)
    listed = [
        Video(path, {"action": names.index(PurePosixPath(path).parts[0])}, tuple(splits[path])) for path in sorted(splits)
    ]
    videos = [video for video in listed if (root / video.path).is_file()]
    if not videos:
        raise InputError(
            f"--splits {lists} names {len(listed)} videos and --root {root} holds {len(on_disk)}, but none of them is the "
            f"same: expected {root / listed[0].path}"
        )
    missing = [video for video in listed if not (root / video.path).is_file()]
    return Source("ucf101", root, videos, {"action": names}, missing, len(on_disk - splits.keys()))


def sample_keys(paths: list[str]) -> list[str]:
    """A name for each path that a tar and webdataset accept (letters, digits, ``_``, ``-``), unique in the set.

    The path without its suffix, other characters as ``_``; where two paths come out the same or one is too long, a number
    follows. The order of ``paths`` decides, nothing else.
    """
    plain = [re.sub(r"[^A-Za-z0-9_-]", "_", path.rpartition(".")[0] or path)[-72:] for path in paths]
    count = Counter(plain)
    used = {name for name in plain if count[name] == 1}
    keys = []
    for name in plain:
        key, number = name, 0
        while count[name] > 1 and (number == 0 or key in used):
            number += 1
            key = f"{name}-{number:06d}"
        used.add(key)
        keys.append(key)
    return keys
