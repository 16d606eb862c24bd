"""UCF101: CLASS/video.avi, classInd.txt, trainlist0N.txt and testlist0N.txt."""

from __future__ import annotations

import posixpath
from pathlib import Path

from dclr.errors import InputError
from dclr.storage import Folder
from preprocess.datasets.base import DataSet, Video, VideoSet, video_set
from preprocess.datasets.lists import NOT_BOTH, inside, list_files, quoted, read_lines, split_last


def find(root: Folder, lists: Path) -> VideoSet:
    """UCF101 and anything with its lists: classInd.txt, trainlist0N.txt, testlist0N.txt (any subset) -> train0N, test0N.

    The class of a video is the folder in its line, its label that class's place in classInd.txt.
    """
    files = list_files(lists, r"(train|test)list\d\d\.txt")
    names = read_classes(lists / "classInd.txt")
    if not files:
        raise InputError(f"--splits {lists}: no trainlist01.txt, testlist01.txt, ... in it; name the folder that holds them")
    index = {name: label for label, name in enumerate(names)}
    splits: dict[str, list[str]] = {}
    for file in sorted(files, key=lambda p: (p.stem[-2:], p.name.startswith("test"))):
        split = file.stem.replace("list", "")
        other = ("test" if split.startswith("train") else "train") + split[-2:]
        for number, line in read_lines(file):
            path, last = split_last(line)
            path = posixpath.normpath(path if last.isdigit() else line)  # "Class/v_x.avi 1": the number is classInd's
            if not inside(line) or path.count("/") != 1 or path.partition("/")[0] not in index:
                known = f"one of the {len(names)} classes of classInd.txt"
                raise InputError(f"{file}, line {number}: {quoted(line)}, expected 'Class/video.avi' with {known}")
            of = splits.setdefault(path, [])
            if other in of:
                raise InputError(f"{file}, line {number}: {path} is in {other} too; {NOT_BOTH}")
            if split not in of:
                of.append(split)
    listed = [Video(path, {"action": index[path.partition("/")[0]]}, tuple(of)) for path, of in splits.items()]
    return video_set("ucf101", root, f"--splits {lists}", listed, {"action": names})


def read_classes(path: Path) -> list[str]:
    """Class names of UCF101's classInd.txt (``1 ApplyEyeMakeup``), in label order; raises InputError naming the line."""
    if not path.is_file():
        raise InputError(f"{path} is missing: --splits expects classInd.txt beside the train and test lists")
    names: list[str] = []
    for number, line in read_lines(path):
        index, _, name = line.partition(" ")
        if index != str(len(names) + 1) or not name.strip() or name.strip() in names:
            raise InputError(f"{path}, line {number}: {quoted(line)}, expected '{len(names) + 1} ClassName', each class once")
        names.append(name.strip())
    if not names:
        raise InputError(f"{path}: no classes in it, expected lines of '1 Class'")
    return names


UCF101 = DataSet(
    "ucf101",
    find,
    help="UCF101, or any set with lists in its form",
    flag="--splits",
    flag_help="folder of the lists",
    told={
        "lists in the folder of --splits": {
            "classInd.txt": "a class a line, its number from 1 on and its name: '1 ApplyEyeMakeup'",
            "trainlist01.txt, ...": "a training video a line, below --root, with or without the number of its class: "
            "'ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1'. They are split train01; so for train02 and on",
            "testlist01.txt, ...": "the same of test videos, which are split test01; any of these lists may be absent",
        }
    },
)
