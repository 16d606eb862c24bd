"""What every data set is: its videos, found on disk by what lists say of them, in one fixed order.

A file that a list names by its path is taken as it is; what else below the root is a video, preprocess/found.py tells.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dclr.errors import InputError
from dclr.storage import Folder
from preprocess.found import VIDEO_SUFFIXES, find_files, no_video, suffix_of, tell_apart
from preprocess.transcode import Span

UNFIT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # in a path or a name: control characters, halves of characters
# Why what is below the root is not in a set, beside what preprocess/found.py says
UNLISTED = "in no list"
OTHER_TAKEN = "another file is taken for its line of the list"
EMPTY_CLASS = "a class without a video"


@dataclass(frozen=True)
class Video:
    """One video of a set: its ``path`` relative to the root with ``/``, its ``labels`` (kind -> index, the default kind
    first; empty where unlabelled), the ``splits`` it belongs to, the ``span`` of the file that it is (None: all of it) and the
    ``bytes`` of the source file (0 where it is missing)."""

    path: str
    labels: dict[str, int]
    splits: tuple[str, ...]
    span: Span | None = None
    bytes: int = 0

    @property
    def id(self) -> str:
        """What tells it from all others of the set; two spans of one file are two videos."""
        if self.span is None:
            return self.path
        first, end = self.span
        return f"{self.path}[{first}:{'' if end is None else end}]"

    @property
    def order(self) -> tuple[str, float, float]:
        """Its place in a set: by path and span."""
        first, end = self.span or (-1, -1)
        return self.path, first, math.inf if end is None else end


@dataclass(frozen=True)
class VideoSet:
    """A data set's videos as found: ``videos`` on disk sorted by path and span, kind -> class names (no kind where unlabelled),
    ``missing`` ones that a list names (path: where they were expected), the number of videos ``listed``, path -> reason of what
    is ``left_out`` of all that lies below the root, the ``options`` that the set was found or made with, and ``notes`` for
    ``--dry-run``: how a list was read."""

    name: str
    root: Folder
    videos: list[Video]
    classes: dict[str, list[str]]
    missing: list[Video] = field(default_factory=list)
    listed: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DataSet:
    """A data set that ``python -m preprocess NAME`` reads.

    ``find(root, lists)`` says which videos it has: ``lists`` is what the command's ``flag`` names, such as ``--splits``. Where
    there is no ``flag`` it is ``find(root)``. ``help`` says in a line what the data set is; ``flag_help`` and ``metavar`` say
    what the flag takes. ``told`` and ``examples`` end the command's help: what its lists hold, by title and name, and what is
    done by which further flags. ``settings`` is a dataclass of further flags (:func:`dclr.settings.setting`), where there are
    any; ``find`` gets them by their names. ``opened`` makes of the root the folder of the videos, where these are no files of
    it.
    """

    name: str
    find: Callable[..., VideoSet]
    help: str
    flag: str = ""
    flag_help: str = ""
    metavar: str = "LISTS"
    told: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    examples: Mapping[str, str] = field(default_factory=dict)
    settings: type | None = None
    opened: Callable[[Folder], Folder] | None = None


def video_set(
    name: str,
    root: Folder,
    lists: str,
    listed: list[Video],
    classes: dict[str, list[str]],
    on_disk: tuple[dict[str, int], dict[str, str]] | None = None,
    others: dict[str, str] | None = None,
    notes: list[str] | None = None,
) -> VideoSet:
    """The videos ``listed``, told apart by what is on disk below ``root``, with their sizes in place.

    Args:
        name: of the data set, which its shards keep; ``lists`` is how a message names the lists, such as ``--splits lists``.
        on_disk: what :func:`find_files` says of the root, where that is known already.
        others: path -> reason of files that are not taken.
        notes: how the lists were read.

    Raises InputError where nothing is listed, nothing of it is on disk, or the name of a file is no text.
    """
    files, unread = on_disk or find_files(root)
    listed = sorted(listed, key=lambda video: video.order)
    if not listed:
        raise InputError(f"{lists}: no videos in its lists, expected a line for each")
    videos = [replace(video, bytes=files[video.path]) for video in listed if video.path in files]
    if not videos:
        why = f" ({unread[listed[0].path]})" if listed[0].path in unread else ""
        raise InputError(
            f"{lists} names {len(listed)} videos and --root {root} holds {len(files)} files, but none of them is the "
            f"same: expected {str(root).rstrip('/')}/{listed[0].path}{why}"
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
    return VideoSet(name, root, videos, classes, missing, len(listed), printable, notes=notes or [])


def no_videos(root: Folder, files: Collection[str], others: dict[str, str]) -> InputError:
    """The error where none of ``files`` is a video; ``others`` has path -> reason of each."""
    why = ", ".join(f"{count} {reason}" for reason, count in Counter(others.values()).most_common())
    return InputError(f"--root {root}: no videos in it; of its {len(files)} files are {why}")


def by_stem(root: Folder, files: dict[str, int], stems: Collection[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Name without suffix -> the videos below the root with one of these names, sorted; path -> reason of further files.

    Where the suffixes of files do not tell, they are looked into, if there is no other file for the name.
    """
    paths = [path for path in files if _stem(path) in stems and no_video(path) is None]
    certain = {_stem(path) for path in paths if suffix_of(path) in VIDEO_SUFFIXES}
    asked = [path for path in paths if suffix_of(path) in VIDEO_SUFFIXES or _stem(path) not in certain]
    videos, others = tell_apart(root, files, asked)
    videos_of: dict[str, list[str]] = {}
    for path in videos:
        videos_of.setdefault(_stem(path), []).append(path)
    return videos_of, dict.fromkeys(paths, OTHER_TAKEN) | others


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


def preferred(paths: list[str], split: str) -> str:
    """Of several files for one video the first in a folder of its split's name, or else the first."""
    return next((path for path in paths if split in path.split("/")[:-1]), paths[0])


def sample_keys(paths: list[str], used: Collection[str] = frozenset()) -> list[str]:
    """A name for each path (or ``Video.id``) that a tar and webdataset accept (letters, digits, ``_``, ``-``), unique in
    the set and not in ``used``.

    The path without its suffix, other characters as ``_``; where two paths come out the same or one is too long, a number
    follows. The order of ``paths`` and ``used`` decide, nothing else.
    """
    stems = [re.sub(r"\.[^./\[]*(\[[\d.]+:[\d.]*\])?\Z", r"\1", path) or path for path in paths]
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
