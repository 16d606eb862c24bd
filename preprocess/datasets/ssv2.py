"""Something-Something V2: ID.webm and the official JSON files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dclr.errors import InputError
from dclr.storage import Folder
from preprocess.datasets.base import UNFIT, DataSet, Video, VideoSet, by_stem, preferred, video_set
from preprocess.datasets.lists import NOT_BOTH, list_files, quoted, read_entries, read_lines
from preprocess.found import find_files


def find(root: Folder, lists: Path) -> VideoSet:
    """Something-Something V2: labels.json and any of train.json, validation.json and test.json -> train, validation, test. The
    files may have the older names, which begin with ``something-something-v2-``.

    A video is found by its id wherever it lies below the root. Its class is its template without the brackets. Those of test
    have none, unless test-answers.csv says it.
    """
    files = {split: file for split in ("train", "validation", "test") if (file := _file(lists, f"{split}.json"))}
    if not files:
        raise InputError(
            f"--splits {lists}: no train.json, validation.json or test.json in it; name the folder that holds them"
        )
    names = _classes(_file(lists, "labels.json") or lists / "labels.json")
    index = {name: label for label, name in enumerate(names)}
    answers = _answers(_file(lists, "test-answers.csv"), index)
    clips: dict[str, tuple[str, int | None]] = {}
    for split, file in files.items():
        for number, entry in enumerate(read_entries(file, list)):
            at = f"{file}, entry {number}"
            id = _id(entry, at)
            label = answers.get(id) if split == "test" else _label(entry, index, at)
            if clips.setdefault(id, (split, label)) != (split, label):
                raise InputError(f"{at}: {id} is in {clips[id][0]} too or has two labels; {NOT_BOTH}")
    on_disk = find_files(root)
    of_stem, others = by_stem(root, on_disk[0], clips.keys())
    listed = []
    for id, (split, label) in clips.items():
        path = preferred(of_stem[id], split) if id in of_stem else f"{id}.webm"
        listed.append(Video(path, {} if label is None else {"action": label}, (split,)))
    return video_set("ssv2", root, f"--splits {lists}", listed, {"action": names}, on_disk, others)


def _file(lists: Path, name: str) -> Path | None:
    """One of the official files, under its newer or its older name; None where there is none. Raises InputError for both."""
    files = list_files(lists, rf"(something-something-v2-)?{re.escape(name)}")
    if len(files) > 1:
        raise InputError(f"--splits {lists}: {','.join(file.name for file in files)} in it, expected one of them")
    return files[0] if files else None


def _classes(file: Path) -> list[str]:
    """The class names of labels.json, in the order of its numbers; raises InputError."""
    labels = read_entries(file, dict)
    number_of = {str(number): name for name, number in labels.items()}
    numbers = [str(number) for number in range(len(labels))]
    if number_of.keys() != set(numbers) or any(UNFIT.search(name) for name in labels):
        raise InputError(f"{file}: expected class names with the numbers from 0 to {len(labels) - 1}, each once")
    return [number_of[number] for number in numbers]


def _answers(file: Path | None, index: dict[str, int]) -> dict[str, int]:
    """Id -> class of test-answers.csv (``1420;Holding something``); raises InputError naming the line."""
    answers = {}
    for number, line in read_lines(file) if file else ():
        id, _, name = line.partition(";")
        if name not in index:
            raise InputError(f"{file}, line {number}: {quoted(line)}, expected 'id;class' with a class of labels.json")
        answers[id] = index[name]
    return answers


def _id(entry: Any, at: str) -> str:
    """The id of an entry of a split's file; raises InputError."""
    id = entry.get("id") if isinstance(entry, dict) else None
    if not isinstance(id, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", id):
        raise InputError(f"{at}: {quoted(entry)}, expected an id of letters and digits")
    return id


def _label(entry: dict[str, Any], index: dict[str, int], at: str) -> int:
    """The class of an entry: its template without brackets; raises InputError."""
    template = entry.get("template")
    name = re.sub(r"[\[\]]", "", template) if isinstance(template, str) else None
    if name not in index:
        raise InputError(f"{at}: template {quoted(template)}, expected a class of labels.json with [brackets] in it")
    return index[name]


SSV2 = DataSet(
    "ssv2",
    find,
    help="Something-Something V2",
    flag="--splits",
    flag_help="folder of the lists",
    told={
        "lists in the folder of --splits (their older names begin with something-something-v2-)": {
            "labels.json": "number of each class: {'Approaching something with your camera': '0', ...}",
            "train.json": "a list of videos, which are split train: {'id': 'name of the file below --root, without its "
            "suffix', 'template': 'the class, its objects in [brackets]'}",
            "validation.json": "the same of split validation; any of the three may be absent",
            "test.json": "the same of split test, without templates",
            "test-answers.csv": "classes of the test videos, a line each, where there is one: '1420;Holding something'",
        }
    },
)
