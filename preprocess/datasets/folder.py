"""A folder of videos, without any list."""

from __future__ import annotations

import sys

from dclr.storage import Folder
from preprocess.datasets.base import EMPTY_CLASS, DataSet, Video, VideoSet, no_videos, video_set
from preprocess.found import HIDDEN, find_files, no_video, tell_apart


def find(root: Folder) -> VideoSet:
    """All videos below the root, in the split ``all``; the first folder of a path is its class where every video has one."""
    files, unread = find_files(root)
    paths, others = tell_apart(root, files, files)
    if not paths:
        raise no_videos(root, files, others)
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
    return video_set("folder", root, str(root), listed, {"action": names} if names else {}, (files, unread), others)


FOLDER = DataSet(
    "folder",
    find,
    help="a folder of videos: sub-folders are classes, split 'all'",
    told={
        "what --root holds": {
            "CLASS/.../NAME.mp4": "a video of class CLASS, any format that FFmpeg reads, also without a suffix",
            "NAME.mp4": "with a video that lies in no folder, all are unlabelled",
        }
    },
)
