"""The official lists, as they really are, against what is on disk."""

from pathlib import Path

import pytest
from conftest import REAL, needs_real_data

from dclr.errors import InputError
from preprocess.datasets import sample_keys, ucf101


@pytest.fixture
def layout(tmp_path: Path) -> tuple[Path, Path]:
    """Three listed videos of two classes, one more on disk that no list names, lists with CRLF and trailing spaces."""
    root, lists = tmp_path / "videos", tmp_path / "lists"
    for name in ("Run/a.avi", "Run/b.avi", "Swim/c.avi", "Swim/extra.avi"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    lists.mkdir()
    (lists / "classInd.txt").write_bytes(b"1 Run\r\n2 Swim\r\n\r\n")
    (lists / "trainlist01.txt").write_bytes(b"Run/a.avi 1\r\nSwim/c.avi 2 \r\nSwim/gone.avi 2\r\n")
    (lists / "testlist01.txt").write_bytes(b"Run/b.avi\r\n")
    (lists / "trainlist03.txt").write_bytes(b"Run/b.avi 1\r\n")
    return root, lists


def test_one_source_holds_all_splits(layout: tuple[Path, Path]) -> None:
    source = ucf101(*layout)
    assert [(v.path, v.labels["action"], v.splits) for v in source.videos] == [
        ("Run/a.avi", 0, ("train01",)),
        ("Run/b.avi", 0, ("test01", "train03")),
        ("Swim/c.avi", 1, ("train01",)),
    ]
    assert [v.path for v in source.missing] == ["Swim/gone.avi"]
    (layout[0] / "Swim/gone.avi").symlink_to("nowhere.avi")  # a dead link is missing too
    assert [v.path for v in ucf101(*layout).missing] == ["Swim/gone.avi"]
    assert source.unlisted == 1 and source.classes == {"action": ["Run", "Swim"]}


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("trainlist01.txt", "../../etc/passwd.avi 1", "trainlist01.txt, line 1"),
        ("trainlist01.txt", "Run/../a.avi 1", "expected 'Class/video.avi'"),
        ("trainlist01.txt", "Fly/a.avi 1", "one of the 2 classes"),
        ("trainlist01.txt", "Run/b.avi 1", "trains or tests, not both"),
        ("classInd.txt", "0 Run", "expected '1 ClassName'"),
        ("classInd.txt", "", "no classes"),
        ("trainlist01.txt", "Run/x.avi 1\nSwim/y.avi 2", "Run/b.avi"),
    ],
)
def test_wrong_lists_are_named_with_their_line(layout: tuple[Path, Path], file: str, content: str, says: str) -> None:
    root, lists = layout
    (lists / file).write_text(content)
    if "x.avi" in content:  # nothing that any list names is on disk
        for path in [*root.rglob("a.avi"), *root.rglob("b.avi"), *root.rglob("c.avi")]:
            path.unlink()
    with pytest.raises(InputError, match=says):
        ucf101(root, lists)


def test_folders_that_are_not_there_or_empty(layout: tuple[Path, Path], tmp_path: Path) -> None:
    root, lists = layout
    (tmp_path / "empty").mkdir()
    for arguments, says in (
        ((tmp_path / "none", lists), "no such folder"),
        ((tmp_path / "empty", lists), "no videos in it"),
        ((root, tmp_path / "none"), "no such folder"),
        ((root, tmp_path / "empty"), "classInd.txt is missing"),
    ):
        with pytest.raises(InputError, match=says):
            ucf101(*arguments)


def test_keys_are_safe_and_unique() -> None:
    paths = ["a/b.avi", "a/b.mp4", "a_b.avi", "ü/v 1.x.avi", "c.avi", "a/b-000001.avi", "d" * 300 + ".avi"]
    keys = sample_keys(paths)
    assert keys[4] == "c" and keys[3] == "__v_1_x" and len(keys[6]) == 72
    assert len(set(keys)) == len(keys) and all("." not in key and "/" not in key for key in keys)
    assert keys == sample_keys(paths)


@needs_real_data
def test_the_official_ucf101_lists_on_a_half_downloaded_disk() -> None:
    source = ucf101(REAL / "ucf101/videos", REAL / "lists/ucf101")
    assert len(source.classes["action"]) == 101 and len(source.videos) == 341
    assert len(source.missing) == 13320 - 341 and source.unlisted == 0


@needs_real_data
def test_the_lists_of_the_clips_at_hand() -> None:
    source = ucf101(REAL / "ucf101/videos", REAL / "ucf101/splits16")
    counts = {split: sum(split in v.splits for v in source.videos) for split in ("train01", "test01", "train02", "test03")}
    assert counts == {"train01": 223, "test01": 101, "train02": 234, "test03": 86}
    assert not source.missing and source.unlisted == 341 - len(source.videos)
