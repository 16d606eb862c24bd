"""What lies below --root: which files are videos, by their names or, where a name does not tell, by their contents.

Everything that is not taken is given a reason.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection
from functools import partial
from itertools import islice

from dclr.bars import bar
from dclr.errors import InputError
from dclr.storage import Folder
from preprocess.pool import Lost, Pool
from preprocess.transcode import OpenedVideo, TranscodeError

# What a suffix says by itself: a broken "video" is then a failure with a reason of its own. Files with other suffixes, or none,
# are looked into: .gif, .webp, .apng and .avif may be stills, .ogg sound, .dat anything.
SUFFIXES = {
    "a video": ".3g2 .3gp .amv .asf .avi .dav .divx .dv .f4v .flv .h264 .h265 .hevc .ivf .m1v .m2t .m2ts .m2v .m4v .mjpeg "
    ".mjpg .mk3d .mkv .mov .mp4 .mp4v .mpe .mpeg .mpg .mpv .mts .mxf .nut .obu .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv "
    ".wtv .y4m",
    "a picture": ".png .jpg .jpeg .jpe .jfif .bmp .tif .tiff .ppm .pgm .pbm .heic .heif .ico .svg .psd .eps .dng .cr2 .nef "
    ".arw .exr .hdr .tga .jp2 .mpo",
    "sound": ".mp3 .mp2 .wav .m4a .m4b .aac .flac .oga .opus .wma .aif .aiff .ac3 .dts .amr .mid .midi .mka .ape .au",
    "text": ".txt .md .rst .csv .tsv .json .jsonl .xml .yaml .yml .toml .ini .cfg .log .html .htm .css .pdf .doc .docx .rtf "
    ".odt .ppt .pptx .xls .xlsx .tex .bib .srt .vtt .ass .ssa .sub .idx .lrc .nfo .asc .ans .diz .names .list .lst .url .md5 "
    ".sha1 .sha256 .sfv .m3u .m3u8 .pls .mpd .sdp .cue .ffconcat .py .ipynb .sh .bat .m .r .c .h .cc .cpp .hpp .java .js .sql",
    "data": ".zip .tar .gz .tgz .bz2 .xz .7z .rar .zst .iso .dmg .npy .npz .mat .pkl .pickle .h5 .hdf5 .pt .pth .ckpt .onnx "
    ".safetensors .parquet .arrow .feather .mdb .lmdb .db .sqlite .tfrecord .bvh .skeleton .c3d .ply .obj .stl .pcd .exe .dll "
    ".so .pyc .jar .torrent .lnk .lock .bak",
    "an unfinished download": ".part .crdownload .ytdl .download .partial .aria2 .tmp",
}
VIDEO_SUFFIXES = frozenset(SUFFIXES["a video"].split())
NO_VIDEO = {suffix: kind for kind, of in SUFFIXES.items() for suffix in of.split() if suffix not in VIDEO_SUFFIXES}
SYSTEM = frozenset(["__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "Thumbs.db"])
HIDDEN = "hidden, or made by the system"
ONE_FRAME = "no video: FFmpeg finds no second frame in it"
LOOK_SECONDS = 60.0  # a fetch from object storage included


def find_files(root: Folder) -> tuple[dict[str, int], dict[str, str]]:
    """Relative path -> bytes of every file below ``root``, and path -> reason of all else (:meth:`Folder.listing`).

    Raises InputError where there is no file.
    """
    files, others = root.listing()
    if not files:
        why = "; ".join(f"{path}: {reason}" for path, reason in islice(others.items(), 5))
        raise InputError(f"--root {root}: no such folder, or an empty one (no videos in it){why and '; '}{why}")
    return files, others


def suffix_of(path: str) -> str:
    return posixpath.splitext(path)[1].lower()


def no_video(path: str) -> str | None:
    """Why a file is no video, by its path alone; None where it may be one.

    >>> no_video("run/v_1.avi") is None, no_video(".hidden/v_1.avi") is None
    (True, False)
    """
    if any(part.startswith(".") or part in SYSTEM for part in path.split("/")):
        return HIDDEN
    return NO_VIDEO.get(suffix_of(path))


def tell_apart(root: Folder, files: dict[str, int], asked: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """Which of the paths ``asked`` are videos, sorted, and path -> reason of those that are not.

    A file whose suffix does not tell is opened, and taken if it has more than one frame. That takes a few milliseconds a file,
    in a process of its own. From object storage the file is fetched first.
    """
    others = {path: reason for path in asked if (reason := no_video(path)) is not None}
    videos = [path for path in asked if path not in others and suffix_of(path) in VIDEO_SUFFIXES]
    unclear = sorted(set(asked) - others.keys() - set(videos))
    others |= {path: "an empty file" for path in unclear if not files[path]}
    unclear = [path for path in unclear if files[path]]
    if not unclear:  # a pool starts a process even so
        return sorted(videos), others
    with Pool(partial(_look, root=root), 2, LOOK_SECONDS) as pool:
        looks = bar(pool.map(map(root.address, unclear)), "looking", len(unclear), unit="file", leave=False)
        for path, why in zip(unclear, looks, strict=True):
            if isinstance(why, Lost):
                why = f"it cannot be told whether it is a video ({why.stage})"
            if why is None:
                videos.append(path)
            else:
                others[path] = why
    return sorted(videos), others


def _look(address: str, root: Folder) -> str | None:
    """Why a file is no video, None where FFmpeg decodes two frames of it."""
    try:
        with root.local(address) as local, OpenedVideo(local) as opened:
            return None if len(list(islice(opened.frames(), 2))) == 2 else ONE_FRAME
    except InputError:  # the store's
        return "it cannot be fetched"
    except (TranscodeError, OSError, ValueError):
        return ONE_FRAME
