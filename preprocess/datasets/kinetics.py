"""Kinetics-400, 600 and 700: the official CSV files, and a label map where there is one."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from dclr.errors import InputError
from dclr.storage import Folder
from preprocess.datasets.base import DataSet, Video, VideoSet, by_stem, preferred, video_set
from preprocess.datasets.lists import NOT_BOTH, inside, list_files, quoted, read_lines, read_table, whole_number
from preprocess.found import find_files

SPLITS = {"train": "train", "val": "val", "validate": "val", "test": "test"}
REQUIRED = ("youtube_id", "time_start", "time_end", "split")
OPTIONAL = ("label", "is_cc")


def find(root: Folder, lists: Path) -> VideoSet:
    """Kinetics-400, 600, 700: one official CSV or a folder of them -> train, val, test; a test CSV without labels is fine.

    A video is found by its name, ``<id>_<start>_<end>`` with six digits each or else ``<id>``, wherever it lies below the
    root. Labels are the lines of the ``*label_map*.txt`` or ``*labels*.txt`` beside the CSVs, or else the sorted labels.
    """
    files = list_files(lists, r".*\.csv") if not lists.is_file() else [lists]
    if not files:
        raise InputError(f"--splits {lists}: no CSV in it, expected the official ones with the columns {','.join(REQUIRED)}")
    names = _label_map(lists.parent if lists.is_file() else lists)
    clips = _clips(files, None if names is None else set(names))
    labelled = {label for _, _, label in clips.values()} - {""}
    names = sorted(labelled) if names is None else names
    index = {name: label for label, name in enumerate(names)}
    on_disk = find_files(root)
    clips_of = Counter(id for id, _, _ in clips.values())
    alone = {id for id, count in clips_of.items() if count == 1 and id not in clips}  # else which clip would <id>.mp4 be?
    of_stem, others = by_stem(root, on_disk[0], clips.keys() | alone)
    listed = []
    for stem, (id, split, label) in clips.items():
        paths = of_stem.get(stem) or (of_stem.get(id) if id in alone else None)
        path = preferred(paths, split) if paths else "/".join(filter(None, (split, label, f"{stem}.mp4")))
        listed.append(Video(path, {"action": index[label]} if label else {}, (split,)))
    return video_set("kinetics", root, f"--splits {lists}", listed, {"action": names} if labelled else {}, on_disk, others)


def _label_map(lists: Path) -> list[str] | None:
    """The lines of the one label map in a folder, None where there is none; raises InputError."""
    files = list_files(lists, r".*(label_map|labels).*\.txt")
    if not files:
        return None
    if len(files) > 1:
        raise InputError(f"--splits {lists}: {','.join(p.name for p in files)}, expected one label map")
    names: dict[str, None] = {}
    for number, line in read_lines(files[0]):
        if line in names:
            raise InputError(f"{files[0]}, line {number}: {quoted(line)} is a class already, expected each once")
        names[line] = None
    if not names:
        raise InputError(f"{files[0]}: no classes in it, expected a label on a line at least")
    return list(names)


def _clips(files: list[Path], known: set[str] | None) -> dict[str, tuple[str, str, str]]:
    """``<id>_<start>_<end>`` -> id, split and label ("": none) of each clip of Kinetics' CSVs; raises InputError.

    ``known`` are the labels of the label map.
    """
    clips: dict[str, tuple[str, str, str]] = {}
    for file in files:
        for number, row in read_table(file, REQUIRED, OPTIONAL):
            id, label, split = row["youtube_id"], row.get("label", ""), SPLITS.get(row["split"])
            start, end = whole_number(row["time_start"]), whole_number(row["time_end"])
            if not re.fullmatch(r"[A-Za-z0-9_-]+", id) or start is None or end is None or split is None:
                expected = f"expected a YouTube id, seconds as whole numbers and one of {','.join(SPLITS)}"
                given = ",".join(row[name] for name in REQUIRED)
                raise InputError(f"{file}, line {number}: {quoted(given)}, {expected}")
            if label and ("/" in label or not inside(label) or (known is not None and label not in known)):
                raise InputError(f"{file}, line {number}: {quoted(label)}, expected a label of the label map, or a plain name")
            stem = f"{id}_{start:06d}_{end:06d}"
            _, before, labelled = clips.setdefault(stem, (id, split, label))
            if before != split:
                raise InputError(f"{file}, line {number}: {stem} is in {before} too; {NOT_BOTH}")
            if label and labelled and label != labelled:
                raise InputError(f"{file}, line {number}: {stem} is labelled {quoted(labelled)} too, expected one label")
            if label and not labelled:
                clips[stem] = id, split, label
    return clips


KINETICS = DataSet(
    "kinetics",
    find,
    help="Kinetics-400, 600 or 700",
    flag="--splits",
    flag_help="folder of the official CSV files, or one of them",
    told={
        "columns of the CSV files of --splits, and what lies beside these": {
            "youtube_id": "the clip is a file below --root, in any folder, called ID_START_END (six digits each) or ID, with "
            "any suffix of a video: '---0dWlqevI_000019_000029.mp4'",
            "time_start, time_end": "of the clip, in whole seconds",
            "split": f"one of {', '.join(SPLITS)}; validate is split val",
            "label": "name of its class; without this column, or without a value, the clip is unlabelled",
            "is_cc": "may be there, and is not read; other columns are ignored with a warning",
            "*label_map*.txt": "or *labels*.txt, beside the CSV files: the classes in order, a name a line. Without it they "
            "are the labels that occur, sorted",
        }
    },
    examples={
        "H.264, for object storage": "--root videos --splits lists --out s3://bucket/k400 --codec h264",
    },
)
