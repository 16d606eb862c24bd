"""Diving48: dives are spans of frames, in JSON lists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dclr.errors import InputError
from dclr.storage import Folder
from preprocess.datasets.base import UNFIT, DataSet, Video, VideoSet, by_stem, preferred, video_set
from preprocess.datasets.lists import LAST_NUMBER, NOT_BOTH, inside, list_files, quoted, read_entries
from preprocess.found import find_files


def find(root: Folder, lists: Path) -> VideoSet:
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
    on_disk = find_files(root)
    of_stem, others = by_stem(root, on_disk[0], {name for name, _ in dives})
    listed = []
    for (name, span), (label, split) in dives.items():
        path = preferred(of_stem[name], split) if name in of_stem else f"{name}.mp4"
        listed.append(Video(path, {"action": label}, (split,), span))
    return video_set("diving48", root, f"--splits {lists}", listed, {"action": names}, on_disk, others)


def _only(lists: Path, kind: str) -> Path:
    """The one ``*kind*.json`` of a folder; raises InputError where there are none or several."""
    files = list_files(lists, rf".*{kind}.*\.json")
    if len(files) != 1:
        given = f"{','.join(p.name for p in files)} in it" if files else "not in it"
        raise InputError(f"--splits {lists}: expected one *{kind}*.json (Diving48_V2_train.json, ...), {given}")
    return files[0]


def _vocabulary(path: Path) -> list[str]:
    """Class names of Diving48's vocabulary, the words of each joined by ``-``, in label order; raises InputError."""
    names: list[str] = []
    for number, words in enumerate(read_entries(path, list)):
        plain = isinstance(words, list) and all(isinstance(word, str) and not UNFIT.search(word) for word in words)
        if not plain or not any(words):
            raise InputError(f"{path}, entry {number}: {quoted(words)}, expected a list of words")
        name = "-".join(filter(None, words))
        if name in names:
            raise InputError(f"{path}, entry {number}: {quoted(name)} is a class already, expected each once")
        names.append(name)
    return names


def _dives(path: Path, classes: int) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """Name, label and span of each entry of Diving48's train or test list; raises InputError naming the entry."""
    for number, entry in enumerate(read_entries(path, list)):
        given = entry if isinstance(entry, dict) else {}
        name = given.get("vid_name")
        numbers = [given.get(key) for key in ("label", "start_frame", "end_frame")]
        label, first, end = (value if type(value) is int else -1 for value in numbers)  # True is an int too
        if not isinstance(name, str) or not inside(name) or "/" in name:
            raise InputError(f"{path}, entry {number}: {quoted(entry)}, expected a vid_name that is a plain name")
        if not 0 <= label < classes or not 0 <= first < end <= LAST_NUMBER:
            expected = f"expected whole numbers: a label below {classes} and 0 <= start_frame < end_frame"
            raise InputError(f"{path}, entry {number}: {quoted(entry)}, {expected}")
        yield name, label, (first, end)


DIVING48 = DataSet(
    "diving48",
    find,
    help="Diving48 V2",
    flag="--splits",
    flag_help="folder of the lists",
    told={
        "lists in the folder of --splits": {
            "*train*.json": "a list of dives, which are split train: {'vid_name': 'video of that name below --root, without "
            "its suffix', 'label': number of the class, 'start_frame': N, 'end_frame': N}; the end is not part of the dive",
            "*test*.json": "the same of split test",
            "*vocab*.json": "the classes in the order of their numbers, each a list of words: ['Back', '15som', '05Twis', "
            "'FREE']",
        }
    },
)
