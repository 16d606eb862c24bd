"""What lies below --root: taken, or left out with a reason."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

import preprocess.__main__ as launcher
from dclr.settings import from_flags
from dclr.storage import FOLLOWED, OUTWARDS, Folder
from preprocess import found
from preprocess.add_cues import _videos
from preprocess.datasets import EMPTY_CLASS, OTHER_TAKEN, VideoSet, folder, kinetics, ucf101
from preprocess.found import HIDDEN, NO_VIDEO, ONE_FRAME, SUFFIXES, VIDEO_SUFFIXES


def files(root: Path, *names: str) -> Folder:
    """Files of one byte each."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return Folder(str(root))


def picture(path: Path, frames: int, format: str, codec: str, pixels: str) -> None:
    """A file of ``frames`` pictures under any name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        for number in range(frames):
            image = np.full((48, 64, 3), 40 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)))
        container.mux(stream.encode(None))


def taken(source: VideoSet) -> list[str]:
    return [video.path for video in source.videos]


# --- links


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    files(tmp_path / "elsewhere", "run/a.mp4", "b.mp4")
    root = files(tmp_path / "root", "walk/c.mp4")
    links = {
        "run": "../elsewhere/run",
        "walk/b.mp4": "../../elsewhere/b.mp4",
        "stroll": "walk",
        "walk/up": "..",
        "self": "self",
    }
    for name, target in links.items():
        (tmp_path / "root" / name).symlink_to(target)
    found_files, others = root.listing()
    assert found_files == dict.fromkeys(["run/a.mp4", "walk/b.mp4", "walk/c.mp4", "stroll/b.mp4", "stroll/c.mp4"], 1)
    circle, itself = "a link in a circle", "cannot be read (Too many levels of symbolic links)"
    assert others == {"walk/up/": circle, "stroll/up/": circle, "self": itself}
    source = folder.find(root)
    assert source.classes == {"action": ["run", "stroll", "walk"]} and source.left_out == others


def test_links_that_lead_out_of_the_root_are_refused_without_a_flag(tmp_path: Path) -> None:
    """When the folder is listed, and again when a worker opens the file."""
    files(tmp_path / "elsewhere", "run/a.mp4", "b.mp4")
    root = files(tmp_path / "root", "walk/c.mp4", "walk/d.mp4")
    for name, target in {
        "run": "../elsewhere/run",
        "walk/b.mp4": "../../elsewhere/b.mp4",
        "c.mp4": "walk/c.mp4",
        "up": "..",
    }.items():
        (tmp_path / "root" / name).symlink_to(target)
    (tmp_path / "door").symlink_to("root")  # the root itself may be a link
    for place in (root, Folder(str(tmp_path / "door"))):
        place.links = False
        found_files, others = place.listing()
        assert found_files == dict.fromkeys(["c.mp4", "walk/c.mp4", "walk/d.mp4"], 1)
        assert others == dict.fromkeys(["run", "up", "walk/b.mp4"], OUTWARDS)
        assert [place.absent(name) for name in ("c.mp4", "walk/d.mp4", "run/a.mp4")] == [None, None, OUTWARDS]
    command = ["folder", "--root", str(tmp_path / "root"), "--out", str(tmp_path / "set")]
    for more, inside in (([], {"c.mp4", "walk/c.mp4", "walk/d.mp4"}), (["--follow-links"], {"run/a.mp4", "walk/b.mp4"})):
        given = launcher.parser().given([*command, *more])
        source = launcher._found(given, from_flags(launcher.Selecting, given))
        assert inside <= set(taken(source)) and ("run/a.mp4" in taken(source)) == bool(more)
        assert (source.left_out.get("run") == OUTWARDS) != bool(more)
    plan: Any = SimpleNamespace(root=str(tmp_path / "root"), dataset="folder")
    assert [("run/a.mp4" in _videos(plan, None, 1, links)[1]) for links in (False, True)] == [False, True]
    root.links = True
    assert {"run/a.mp4", "walk/b.mp4"} <= root.files().keys() and root.absent("run/a.mp4") is None


def test_a_link_to_a_folder_above_the_root_does_not_come_back(tmp_path: Path) -> None:
    root = files(tmp_path / "above/root", "a.mp4")
    files(tmp_path / "above", "b.mp4")
    (tmp_path / "above/root/up").symlink_to("..")
    assert root.listing() == ({"a.mp4": 1, "up/b.mp4": 1}, {"up/root/": "a link in a circle"})


def test_folders_that_link_to_one_another_come_to_an_end(tmp_path: Path) -> None:
    """Twelve folders with links to all others have 12! ways through them."""
    for number in range(12):
        files(tmp_path, f"{number}/a.mp4")
        for other in range(12):
            if other != number:
                (tmp_path / f"{number}/to{other}").symlink_to(f"../{other}")
    found_files = Folder(str(tmp_path)).files()
    assert {f"{number}/a.mp4" for number in range(12)} <= found_files.keys()
    assert len(found_files) <= 12 + 12 * 11 * FOLLOWED
    assert found_files == Folder(str(tmp_path)).files()


def test_what_is_no_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = files(tmp_path / "root", "a/x.mp4", "shut/y.mp4")
    os.mkfifo(tmp_path / "root/a/pipe.mp4")
    (tmp_path / "root/a/none").mkdir()
    scan = os.scandir

    def scandir(path: Path) -> object:  # root, whom tests may run as, is refused nothing
        if path.name == "shut":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert root.listing() == (
        {"a/x.mp4": 1},
        {
            "a/pipe.mp4": "a pipe, a socket or a device",
            "a/none/": "an empty folder",
            "shut/": "cannot be read (Permission denied)",
        },
    )


# --- names


def test_no_suffix_is_of_two_kinds() -> None:
    everything = [suffix for of in SUFFIXES.values() for suffix in of.split()]
    assert len(set(everything)) == len(everything) == len(VIDEO_SUFFIXES) + len(NO_VIDEO)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in everything)
    earlier = [".avi", ".mp4", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts"]
    assert {*earlier, ".mts", ".m2ts", ".ogv", ".asf", ".vob"} <= VIDEO_SUFFIXES


def test_what_is_left_out_is_named_with_its_reason(tmp_path: Path) -> None:
    videos = ["A/1.mp4", "A/2.MTS", "A/3.ogv", "B/4.asf", "B/5.m2ts", "B/6.VOB"]
    hidden = ["A/._1.mp4", "__MACOSX/A/1.mp4", "B/.ipynb_checkpoints/4-checkpoint.mp4", ".cache/x.avi", "Thumbs.db"]
    named = {
        "readme.txt": "text", "A/1.json": "text", "B/cover.JPG": "a picture", "A/1.wav": "sound", "C/all.zip": "data",
        "A/9.mp4.part": "an unfinished download", "D/": "an empty folder", "C/": EMPTY_CLASS,
    }  # fmt: skip
    root = files(tmp_path, *videos, *hidden, *(name for name in named if not name.endswith("/")))
    (tmp_path / "D").mkdir()
    source = folder.find(root)
    assert taken(source) == sorted(videos) and source.classes == {"action": ["A", "B"]}
    assert source.left_out == named | dict.fromkeys(hidden, HIDDEN)
    assert list(source.left_out) == sorted(source.left_out)


def test_names_that_are_no_text_are_shown_escaped(tmp_path: Path) -> None:
    root = files(tmp_path, "A/a.avi", os.fsdecode(b"A/caf\xe9.txt"), "A/line\nfeed.txt")
    assert list(folder.find(root).left_out) == ["A/caf\\udce9.txt", "A/line\\nfeed.txt"]


def test_a_folder_without_labels_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.find(files(tmp_path / "flat", "a.mp4", "b.mp4"))
    folder.find(files(tmp_path / "classes", "run/a.mp4", "walk/b.mp4"))
    assert not capsys.readouterr().err
    assert folder.find(files(tmp_path / "classes", "intro.mp4")).classes == {}
    assert "no video gets a label, because 1 of 3 lie in no class folder (intro.mp4, ...)" in capsys.readouterr().err


# --- what names do not tell


def test_files_are_looked_into_where_their_names_do_not_tell(tmp_path: Path) -> None:
    for frames, name in ((1, "still"), (5, "moving")):
        picture(tmp_path / f"A/{name}.gif", frames, "gif", "gif", "rgb8")
        picture(tmp_path / f"A/{name}.apng", frames, "apng", "apng", "rgb24")
        picture(tmp_path / f"A/{name}.strange", frames, "mp4", "mpeg4", "yuv420p")
    picture(tmp_path / "A/moving", 5, "avi", "mpeg4", "yuv420p")
    picture(tmp_path / "thumbnail.webp", 1, "webp", "libwebp", "yuv420p")
    (tmp_path / "A/notes.strange").write_text("no video " * 1000)
    (tmp_path / "A/nothing.strange").touch()
    source = folder.find(Folder(str(tmp_path)))
    assert taken(source) == ["A/moving", "A/moving.apng", "A/moving.gif", "A/moving.strange"]
    assert source.classes == {"action": ["A"]}  # the thumbnail is no video without a class
    stills = ["A/notes.strange", "A/still.apng", "A/still.gif", "A/still.strange", "thumbnail.webp"]
    assert source.left_out == dict.fromkeys(stills, ONE_FRAME) | {"A/nothing.strange": "an empty file"}


def test_a_file_that_takes_too_long_to_look_into_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "LOOK_SECONDS", 1e-6)
    source = folder.find(files(tmp_path, "a.mp4", "b.strange"))
    assert taken(source) == ["a.mp4"] and source.left_out == {"b.strange": "it cannot be told whether it is a video (timeout)"}


def test_a_thumbnail_is_not_taken_for_the_clip_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    ids = "".join(f"{id},0,10,train\n" for id in ("aaaaaaaaaaa", "bbbbbbbbbbb", "ccccccccccc"))
    (tmp_path / "lists/train.csv").write_text(f"youtube_id,time_start,time_end,split\n{ids}")
    root = files(tmp_path / "videos", "aaaaaaaaaaa.mp4", "aaaaaaaaaaa.json", "aaaaaaaaaaa.webp")
    picture(tmp_path / "videos/bbbbbbbbbbb.webp", 1, "webp", "libwebp", "yuv420p")
    picture(tmp_path / "videos/ccccccccccc", 5, "avi", "mpeg4", "yuv420p")
    source = kinetics.find(root, tmp_path / "lists")
    assert taken(source) == ["aaaaaaaaaaa.mp4", "ccccccccccc"] and len(source.missing) == 1
    assert source.left_out == {"aaaaaaaaaaa.json": "text", "aaaaaaaaaaa.webp": OTHER_TAKEN, "bbbbbbbbbbb.webp": ONE_FRAME}


def test_what_no_list_names_is_not_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "Pool", None)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/classInd.txt").write_text("1 A\n")
    (tmp_path / "lists/trainlist01.txt").write_text("A/a.strange 1\n")
    source = ucf101.find(files(tmp_path / "videos", "A/a.strange", "A/b.strange", "A/c.gif"), tmp_path / "lists")
    assert taken(source) == ["A/a.strange"] and source.left_out == dict.fromkeys(["A/b.strange", "A/c.gif"], "in no list")
