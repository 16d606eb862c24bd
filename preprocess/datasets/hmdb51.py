"""HMDB51: CLASS/video.avi and CLASS_test_splitN.txt."""

from __future__ import annotations

from pathlib import Path

from dclr.errors import InputError
from dclr.storage import Folder
from preprocess.datasets.base import DataSet, Video, VideoSet, video_set
from preprocess.datasets.lists import NOT_BOTH, inside, list_files, quoted, read_lines, split_last

UNUSED = "0 in every list: it neither trains nor tests"


def find(root: Folder, lists: Path) -> VideoSet:
    """HMDB51 and anything with its lists: ``<class>_test_split<k>.txt`` with lines ``name.avi 1`` -> train0k, test0k.

    1 is train, 2 is test and 0 is neither: a video that is 0 in every list is left out. The files lie in ``<class>/``; labels
    are the places of the classes in sorted order.
    """
    files = list_files(lists, r".+_test_split[1-9]\.txt")
    if not files:
        raise InputError(f"--splits {lists}: no <class>_test_split1.txt, ... in it; name the folder that holds them")
    classes, _, rounds = zip(*(file.stem.rpartition("_test_split") for file in files), strict=True)
    names = sorted(set(classes))
    for name in names:
        for k in sorted(set(rounds)):
            if lists / f"{name}_test_split{k}.txt" not in files:
                raise InputError(f"--splits {lists}: {name}_test_split{k}.txt is missing; other classes have a list {k}")
    roles: dict[str, dict[str, str]] = {}  # path -> list number -> 0, 1, 2
    for file, name, k in sorted(zip(files, classes, rounds, strict=True), key=lambda item: item[2]):
        for number, line in read_lines(file):
            video, role = split_last(line)
            path = f"{name}/{video}"
            if role not in ("0", "1", "2") or not inside(path) or "/" in video:
                raise InputError(f"{file}, line {number}: {quoted(line)}, expected 'video.avi' and 0, 1 or 2")
            if roles.setdefault(path, {}).setdefault(k, role) != role:
                raise InputError(f"{file}, line {number}: {video} is {roles[path][k]} too; {NOT_BOTH}")
    index = {name: label for label, name in enumerate(names)}
    listed = []
    for path, of in roles.items():
        splits = tuple(("train0" if role == "1" else "test0") + k for k, role in of.items() if role != "0")
        if splits:
            listed.append(Video(path, {"action": index[path.partition("/")[0]]}, splits))
    unused = dict.fromkeys(roles, UNUSED)
    return video_set("hmdb51", root, f"--splits {lists}", listed, {"action": names}, others=unused)


HMDB51 = DataSet(
    "hmdb51",
    find,
    help="HMDB51, or any set with lists in its form",
    flag="--splits",
    flag_help="folder of the lists",
    told={
        "lists in the folder of --splits": {
            "CLASS_test_splitN.txt": "for each class, N from 1 on: a video a line and what it does, 'NAME.avi 1'. 1 trains "
            "(split train0N), 2 tests (test0N), 0 does neither. The video is CLASS/NAME.avi below --root",
        }
    },
)
