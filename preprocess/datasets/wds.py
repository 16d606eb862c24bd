"""Tars as video2dataset, img2dataset and webdataset write them: KEY.mp4, and beside it KEY.json or KEY.cls."""

from __future__ import annotations

import json
import posixpath
import re
from dataclasses import dataclass
from functools import partial

from dclr.errors import InputError
from dclr.settings import again
from dclr.storage import Folder
from preprocess.datasets.base import UNFIT, DataSet, Video, VideoSet, no_videos, video_set
from preprocess.datasets.csv import Columns
from preprocess.datasets.lists import LAST_NUMBER, ROWS_SHOWN, Labels, as_read, split_name, whole_number
from preprocess.datasets.tars import MOST, TEXTS, TarFolder
from preprocess.found import VIDEO_SUFFIXES, find_files, no_video, suffix_of, tell_apart

ALONE = "no video of its name in the tar"
BESIDE = "beside a video of its name"
NO_TABLE = "not read: no table in JSON"
NO_TEXT = f"not read: its label or split is neither a text nor a whole number from 0 to {LAST_NUMBER}"
TOO_LONG = f"not read: above {MOST} bytes"


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The fields of KEY.json that have other names."""

    title = Columns.title
    label_column: tuple[str, ...] = again(
        Columns, "label_column", help="field of KEY.json that has the labels; several are several kinds of label",
        derived="label, or what KEY.cls holds",
    )  # fmt: skip
    split_column: str | None = again(
        Columns, "split_column", help="field of KEY.json that has the splits", derived="none: the tar's folder"
    )


def find(root: Folder, label_column: tuple[str, ...] = (), split_column: str | None = None) -> VideoSet:
    """The videos in the tars below the root. Labels are the field ``label`` of KEY.json, or else what KEY.cls holds, or the
    fields that ``label_column`` names; classes are as in a CSV. A split is the first folder of the tar's path, ``all`` where it
    lies in none, or the field ``split_column``. Captions and other members are left out.
    """
    labels = Labels(label_column, root)
    tars = TarFolder(root, partial(_fields, {*labels.kinds.values(), split_column}))
    files, unread = find_files(tars)
    texts = {path for path in files if suffix_of(path) in TEXTS}
    certain = {_key(path) for path in files if suffix_of(path) in VIDEO_SUFFIXES}
    asked = [path for path in files.keys() - texts if suffix_of(path) in VIDEO_SUFFIXES or _key(path) not in certain]
    paths, others = tell_apart(tars, files, asked)
    if not paths:
        raise no_videos(root, files, others)
    others = {path: no_video(path) or BESIDE for path in files.keys() - texts - set(asked)} | others
    fields: dict[str, dict[str, str]] = {_key(path): {} for path in paths}
    for path in sorted(texts):  # what .json says counts before what .cls says
        said = tars.texts.get(path, TOO_LONG) if _key(path) in fields else ALONE
        if isinstance(said, str):
            others[path] = said
        else:
            fields[_key(path)] |= said
    splits, notes = {}, [f"{root}: {len({tars.tar(path) for path in paths})} tars with {len(paths)} videos"]
    for path in paths:
        row = fields[_key(path)]
        folder, _, in_folder = tars.tar(path).partition("/")
        splits[path] = split_name(row.get(split_column, "") if split_column else folder * bool(in_folder), path)
        told = {kind: row[name] for kind, name in labels.kinds.items() if row.get(name)}
        labels.add(path, told, path)
        if len(notes) <= ROWS_SHOWN:
            notes.append(as_read(path, told, splits[path]))
    if split_column and not any(split_column in row for row in fields.values()):
        raise InputError(f"--split-column {split_column}: no KEY.json of {root} has such a field; name another")
    classes = labels.classes()
    listed = [Video(path, labels.of(path), (splits[path],)) for path in paths]
    kept = {path: size for path, size in files.items() if path not in texts or path in others}
    return video_set("wds", tars, str(root), listed, classes, (kept, unread), others, notes)


def _key(path: str) -> str:
    """What the members of a sample share: the path up to the first dot of the name."""
    folder, name = posixpath.split(path)
    return f"{folder}/{name.partition('.')[0]}"


def _fields(wanted: set[str | None], path: str, data: bytes) -> dict[str, str] | str:
    """The fields of a KEY.json, or what KEY.cls says as its ``label``; or why it is not read."""
    text = data.decode(errors="replace")
    try:
        table = {"label": text} if suffix_of(path) == ".cls" else json.loads(text)
    except Exception:  # not from_json: what other tools write may hold NaN
        return NO_TABLE
    if not isinstance(table, dict):
        return NO_TABLE
    found = {name: value for name, value in table.items() if name in wanted and value is not None}
    said = {name: str(value).strip() for name, value in found.items()}
    for name, text in said.items():
        number = re.fullmatch(r"-?[0-9]+", text) is not None
        if type(found[name]) not in (str, int) or UNFIT.search(text) or (number and whole_number(text) is None):
            return NO_TEXT
    return said


WDS = DataSet(
    "wds",
    find,
    help="tars of video2dataset, img2dataset or webdataset: KEY.mp4 and KEY.json",
    told={
        "members of the tars below --root": {
            "KEY.mp4": "a video, or KEY with another suffix of a video",
            "KEY.json": "a table about it: its field 'label' is the class, a text or a whole number",
            "KEY.cls": "the class alone, where KEY.json does not say it",
            "FOLDER/00000.tar": "the videos of a tar in a folder are of the split FOLDER, those of others of split 'all'",
        }
    },
    examples={
        "a split and two kinds of label from KEY.json": "--root tars --split-column subset --label-column action place "
        "--out shards/mine",
    },
    settings=Fields,
    opened=TarFolder,
)
