"""The official lists, as they really are, against what is on disk. Nothing here opens a video: stand-ins hold one byte."""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REAL, needs_real_data

from dclr.errors import InputError
from dclr.storage import Folder
from preprocess.datasets import (
    OTHER_TAKEN,
    UNLISTED,
    Video,
    VideoSet,
    csv,
    diving48,
    folder,
    hmdb51,
    kinetics,
    sample_keys,
    ssv2,
    ucf101,
)
from preprocess.found import ONE_FRAME


class Listing(Folder):
    """A folder that holds these files of one byte, as a listing of object storage would say."""

    def __init__(self, *names: str):
        super().__init__("s3://bucket/videos")
        self.names = names

    def listing(self) -> tuple[dict[str, int], dict[str, str]]:
        return dict.fromkeys(self.names, 1), {}


def written(folder: Path, **files: str | bytes) -> Path:
    """A folder of lists: ``name__ext`` is name.ext."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def rows(source: VideoSet) -> list[tuple[str, int | None, tuple[str, ...]]]:
    """Id, label and splits of the videos on disk."""
    return [(v.id, v.labels.get("action"), v.splits) for v in source.videos]


def split_counts(videos: list[Video]) -> dict[str, int]:
    return dict(sorted(Counter(split for video in videos for split in video.splits).items()))


# --- what is on disk


def test_videos_are_found_with_their_sizes_wherever_they_lie(tmp_path: Path) -> None:
    for name in ("a.avi", "deep/er/B.MP4", "notes.txt", "avi", "c.avi/readme"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "gone.avi").symlink_to("nowhere.avi")
    source = folder.find(Folder(str(tmp_path)))
    assert {video.path: video.bytes for video in source.videos} == {"a.avi": 5, "deep/er/B.MP4": 5}
    dead = {"gone.avi": "cannot be read (No such file or directory)"}
    assert source.left_out == {"notes.txt": "text", "avi": ONE_FRAME, "c.avi/readme": ONE_FRAME} | dead
    for root, says in (
        (Folder(str(tmp_path / "none")), "no such folder"),
        (Listing("notes.txt", "a/b.md", ".x.mp4"), "no videos in it; of its 3 files are 2 text, 1 hidden"),
    ):
        with pytest.raises(InputError, match=says):
            folder.find(root)


def test_two_spans_of_one_file_are_two_videos() -> None:
    assert Video("a/b.avi", {}, ("all",)).id == "a/b.avi"
    assert Video("a/b.avi", {}, ("all",), (10, 20)).id == "a/b.avi[10:20]"


# --- UCF101


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
    root, lists = Folder(str(layout[0])), layout[1]
    source = ucf101.find(root, lists)
    assert rows(source) == [
        ("Run/a.avi", 0, ("train01",)),
        ("Run/b.avi", 0, ("test01", "train03")),
        ("Swim/c.avi", 1, ("train01",)),
    ]
    assert [(v.path, v.bytes) for v in source.missing] == [("Swim/gone.avi", 0)]
    (layout[0] / "Swim/gone.avi").symlink_to("nowhere.avi")  # a dead link is missing too
    assert [v.path for v in ucf101.find(root, lists).missing] == ["Swim/gone.avi"]
    assert source.left_out == {"Swim/extra.avi": UNLISTED} and source.listed == 4
    assert source.classes == {"action": ["Run", "Swim"]} and source.root is root
    assert {v.bytes for v in source.videos} == {1}


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("trainlist01.txt", "../../etc/passwd.avi 1", "trainlist01.txt, line 1"),
        ("trainlist01.txt", "Run/../a.avi 1", "expected 'Class/video.avi'"),
        ("trainlist01.txt", "/Run/a.avi 1", "expected 'Class/video.avi'"),
        ("trainlist01.txt", "Run/a\0.avi 1", "expected 'Class/video.avi'"),
        ("trainlist01.txt", "Fly/a.avi 1", "one of the 2 classes"),
        ("trainlist01.txt", "Run/b.avi 1", "trains or tests, not both"),
        ("trainlist01.txt", "Fly/" + "a" * 10**6, r"a\.\.\., expected"),
        ("classInd.txt", "0 Run", "expected '1 ClassName'"),
        ("classInd.txt", "1 Run\n2 Run", "line 2: '2 Run', expected '2 ClassName', each class once"),
        ("classInd.txt", "", "no classes"),
        ("trainlist01.txt", "Run/x.avi 1\nSwim/y.avi 2", "expected .*videos/Run/b.avi"),
    ],
)
def test_wrong_lists_are_named_with_their_line(layout: tuple[Path, Path], file: str, content: str, says: str) -> None:
    root, lists = layout
    (lists / file).write_text(content)
    if "x.avi" in content:  # nothing that any list names is on disk
        for path in [*root.rglob("a.avi"), *root.rglob("b.avi"), *root.rglob("c.avi")]:
            path.unlink()
    with pytest.raises(InputError, match=says):
        ucf101.find(Folder(str(root)), lists)


def test_folders_that_are_not_there_or_empty(layout: tuple[Path, Path], tmp_path: Path) -> None:
    root, lists = layout
    for place, of, says in (
        (tmp_path / "none", lists, "no such folder"),
        (written(tmp_path / "empty"), lists, "no videos in it"),
        (root, tmp_path / "none", "no such folder"),
        (root, tmp_path / "empty", "classInd.txt is missing"),
        (root, written(tmp_path / "classes", classInd__txt="1 Run"), "no trainlist01.txt"),
        (root, written(tmp_path / "lines", classInd__txt="1 Run", trainlist01__txt="\n"), "no videos in its lists"),
    ):
        with pytest.raises(InputError, match=says):
            ucf101.find(Folder(str(place)), of)


def test_a_list_that_cannot_be_read(tmp_path: Path) -> None:
    lists = written(tmp_path / "lists", classInd__txt="1 Run")
    (lists / "trainlist01.txt").mkdir()
    with pytest.raises(InputError, match=r"trainlist01.txt: cannot be read \(Is a directory\)"):
        ucf101.find(Listing("Run/a.avi"), lists)


@needs_real_data
def test_the_official_ucf101_lists_on_a_half_downloaded_disk() -> None:
    source = ucf101.find(Folder(str(REAL / "ucf101/videos")), REAL / "lists/ucf101")
    assert len(source.classes["action"]) == 101 and len(source.videos) == 341
    assert len(source.missing) == 13320 - 341 and source.listed == 13320 and not source.left_out
    assert split_counts(source.videos + source.missing) == {
        "train01": 9537, "test01": 3783, "train02": 9586, "test02": 3734, "train03": 9624, "test03": 3696,
    }  # fmt: skip


@needs_real_data
def test_the_lists_of_the_clips_at_hand() -> None:
    source = ucf101.find(Folder(str(REAL / "ucf101/videos")), REAL / "ucf101/splits16")
    counts = {split: split_counts(source.videos)[split] for split in ("train01", "test01", "train02", "test03")}
    assert counts == {"train01": 223, "test01": 101, "train02": 234, "test03": 86}
    assert not source.missing and list(source.left_out.values()) == [UNLISTED] * (341 - len(source.videos))


# --- HMDB51


def test_hmdb51_has_a_list_for_each_class_and_split(tmp_path: Path) -> None:
    lists = written(
        tmp_path,
        wave_test_split1__txt="#20_(x)!.avi 1 \r\nb.avi 2 \r\nnever.avi 0 \r\n\r\n",
        wave_test_split2__txt="#20_(x)!.avi 0 \nb.avi 1 \nnever.avi 0 \n",
        shoot_bow_test_split1__txt="c d.avi 2",
        shoot_bow_test_split2__txt="c d.avi 2",
    )
    source = hmdb51.find(Listing("wave/#20_(x)!.avi", "wave/b.avi", "wave/never.avi", "wave/extra.avi"), lists)
    assert source.classes == {"action": ["shoot_bow", "wave"]}
    assert rows(source) == [("wave/#20_(x)!.avi", 1, ("train01",)), ("wave/b.avi", 1, ("test01", "train02"))]
    assert [(v.path, v.labels, v.splits) for v in source.missing] == [
        ("shoot_bow/c d.avi", {"action": 0}, ("test01", "test02"))
    ]
    assert source.left_out == {"wave/extra.avi": UNLISTED, "wave/never.avi": hmdb51.UNUSED}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a.avi 3", "wave_test_split1.txt, line 1: 'a.avi 3', expected 'video.avi' and 0, 1 or 2"),
        ("a.avi", "line 1"),
        ("\n../a.avi 1", "line 2"),
        ("/a.avi 1", "line 1"),
        (".. 1", "line 1"),
        ("a\0.avi 1", "line 1"),
        ("a.avi 1\na.avi 2", "line 2: a.avi is 1 too; a video trains or tests, not both"),
        ("a.avi 0", "no videos in its lists"),
        ("b.avi 1", "expected s3://bucket/videos/wave/b.avi"),
    ],
)
def test_wrong_hmdb51_lists(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        hmdb51.find(Listing("wave/a.avi"), written(tmp_path, wave_test_split1__txt=content))


def test_hmdb51_lists_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        hmdb51.find(Listing("wave/a.avi"), tmp_path / "none")
    with pytest.raises(InputError, match=r"no <class>_test_split1.txt"):
        hmdb51.find(Listing("wave/a.avi"), tmp_path)
    written(tmp_path, wave_test_split1__txt="a.avi 1", wave_test_split2__txt="a.avi 1", run_test_split1__txt="b.avi 1")
    with pytest.raises(InputError, match=r"run_test_split2.txt is missing"):
        hmdb51.find(Listing("wave/a.avi"), tmp_path)


@needs_real_data
def test_the_official_hmdb51_lists() -> None:
    source = hmdb51.find(Folder(str(REAL / "wild/hmdb51")), REAL / "lists/hmdb51")
    everything = source.videos + source.missing
    assert len(source.classes["action"]) == 51 and len(everything) == 6766 - 395  # 395 are 0 in all three lists
    for k in "123":
        assert split_counts(everything)[f"train0{k}"] == 3570 and split_counts(everything)[f"test0{k}"] == 1530
        for split, count in ((f"train0{k}", 70), (f"test0{k}", 30)):
            of_class = Counter(v.labels["action"] for v in everything if split in v.splits)
            assert of_class == dict.fromkeys(range(51), count)
    assert {v.path.partition("/")[0] for v in source.videos} <= {"cartwheel", "pour", "wave"}
    whole = hmdb51.find(Listing(*(v.path for v in everything)), REAL / "lists/hmdb51")  # brackets, #, !, ; and all
    assert len(whole.videos) == 6371 and not whole.missing and not whole.left_out


# --- Kinetics

TRAIN = """label,youtube_id,time_start,time_end,split,is_cc\r
"air drumming",-abcdefghij,3,13,train,0\r
abseiling,a_b-cdefghi,417,427,train,1 \r
\r
"""
VAL = 'split,label,youtube_id,time_start,time_end\nvalidate,"air drumming",zzzzzzzzzzz,0,10\n'
TEST = "youtube_id,time_start,time_end,split\nttttttttttt,2,12,test\n"


@pytest.fixture
def csvs(tmp_path: Path) -> Path:
    """The three official files in small: columns in another order, without labels in the test file."""
    return written(tmp_path / "lists", train__csv=TRAIN, val__csv=VAL, test__csv=TEST)


def test_kinetics_joins_its_csv_files(csvs: Path) -> None:
    source = kinetics.find(
        Listing(
            "train/air drumming/-abcdefghij_000003_000013.mp4",
            "train/abseiling/a_b-cdefghi_000417_000427.mp4",
            "val/air drumming/zzzzzzzzzzz_000000_000010.mp4",
            "test/ttttttttttt_000002_000012.mp4",
            "train/abseiling/other_000000_000010.mp4",
        ),
        csvs,
    )
    assert source.classes == {"action": ["abseiling", "air drumming"]}
    assert rows(source) == [
        ("test/ttttttttttt_000002_000012.mp4", None, ("test",)),
        ("train/abseiling/a_b-cdefghi_000417_000427.mp4", 0, ("train",)),
        ("train/air drumming/-abcdefghij_000003_000013.mp4", 1, ("train",)),
        ("val/air drumming/zzzzzzzzzzz_000000_000010.mp4", 1, ("val",)),
    ]
    assert not source.missing and source.left_out == {"train/abseiling/other_000000_000010.mp4": UNLISTED}


@pytest.mark.parametrize(
    "path",
    [
        "-abcdefghij_000003_000013.mp4",
        "train/-abcdefghij_000003_000013.webm",
        "air drumming/-abcdefghij_000003_000013.mp4",
        "kinetics/train/air_drumming/-abcdefghij_000003_000013.MKV",
        "air_drumming/-abcdefghij.mp4",  # as torchvision's and others' tools name it
    ],
)
def test_kinetics_in_the_layouts_that_people_have(csvs: Path, path: str) -> None:
    source = kinetics.find(Listing(path), csvs)
    assert rows(source) == [(path, 1, ("train",))] and not source.left_out
    assert [v.path for v in source.missing] == [
        "test/ttttttttttt_000002_000012.mp4",
        "train/abseiling/a_b-cdefghi_000417_000427.mp4",
        "val/air drumming/zzzzzzzzzzz_000000_000010.mp4",
    ]


def test_of_several_files_for_one_clip_the_one_in_its_split(csvs: Path) -> None:
    copies = [f"{place}/zzzzzzzzzzz_000000_000010.mp4" for place in ("a", "train", "val")]
    source = kinetics.find(Listing(*copies, "b/zzzzzzzzzzz.mp4"), csvs / "val.csv")
    assert [v.path for v in source.videos] == [copies[2]]
    assert source.left_out == dict.fromkeys([*copies[:2], "b/zzzzzzzzzzz.mp4"], OTHER_TAKEN)
    assert [v.path for v in kinetics.find(Listing(*copies[:2]), csvs / "val.csv").videos] == [copies[0]]


def test_a_file_with_only_an_id_is_no_clip_where_several_clips_have_it(csvs: Path) -> None:
    written(csvs, more__csv=VAL + "val,abseiling,zzzzzzzzzzz,50,60\n")
    source = kinetics.find(Listing("zzzzzzzzzzz.mp4", "zzzzzzzzzzz_000050_000060.mp4"), csvs)
    assert [v.path for v in source.videos] == ["zzzzzzzzzzz_000050_000060.mp4"]
    assert source.left_out == {"zzzzzzzzzzz.mp4": UNLISTED}


def test_the_lines_of_a_label_map_are_the_classes(csvs: Path) -> None:
    written(csvs, label_map_k400__txt="zumba\r\nair drumming\r\nabseiling\r\n", readme__txt="labels")
    root = Listing("-abcdefghij.mp4", "ttttttttttt.mp4")
    for lists in (csvs, csvs / "train.csv"):  # one file finds the map beside it
        source = kinetics.find(root, lists)
        assert source.classes == {"action": ["zumba", "air drumming", "abseiling"]}
        assert source.videos[0].labels == {"action": 1}
    assert kinetics.find(root, csvs / "test.csv").classes == {}  # nothing in it is labelled


def test_a_clip_in_two_csv_files_is_one_video(csvs: Path) -> None:
    unlabelled = "youtube_id,time_start,time_end,split\nzzzzzzzzzzz,0,10,val\n"
    source = kinetics.find(Listing("zzzzzzzzzzz.mp4"), written(csvs, again__csv=VAL, another__csv=unlabelled))
    assert rows(source) == [("zzzzzzzzzzz.mp4", 1, ("val",))] and len(source.missing) == 3


HEADER = "label,youtube_id,time_start,time_end,split\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "more.csv: empty, expected a header with youtube_id,time_start,time_end,split"),
        ("label,youtube_id,time_start,time_end\n", "more.csv, line 1: .*expected a header with .*split"),
        ("split," + HEADER, "each column once"),
        (HEADER + "run,x,0,10", "line 2: 4 values, expected the 5 of the header"),
        (HEADER + "\nrun,x,0,10,dev", "line 3: 'x,0,10,dev', expected a YouTube id.*one of train,val,validate,test"),
        (HEADER + "run,../x,0,10,val", "expected a YouTube id"),
        (HEADER + "run,x\0,0,10,val", "expected a YouTube id"),
        (HEADER + "run,x,0.5,10,val", "seconds as whole numbers"),
        (HEADER + "run,x,-1,10,val", "seconds as whole numbers"),
        (HEADER + "run,x,0," + "9" * 5000 + ",val", "seconds as whole numbers"),
        (HEADER + "../run,x,0,10,val", "line 2: '../run', expected a label"),
        (HEADER + "..,x,0,10,val", "expected a label"),
        (HEADER + "a/b,x,0,10,val", "expected a label"),
        (HEADER + "a\0b,x,0,10,val", "expected a label"),
        ("Label,youtube_id,time_start,time_end,split\n", "line 1: column 'Label', expected 'label'"),
        ("label,youtube_id,Time Start,time_end,split\n", "line 1: column 'Time Start', expected 'time_start'"),
        (HEADER + '"' + "a" * 200_000, "not a line of a CSV file"),
        (HEADER + "air drumming,zzzzzzzzzzz,0,10,train", "zzzzzzzzzzz_000000_000010 is in .* too; a video trains or tests"),
        (HEADER + "abseiling,zzzzzzzzzzz,0,10,val", "is labelled 'abseiling' too, expected one label"),
    ],
)
def test_wrong_kinetics_lists(csvs: Path, content: str, says: str) -> None:
    written(csvs, more__csv=content)
    with pytest.raises(InputError, match=says):
        kinetics.find(Listing("zzzzzzzzzzz.mp4"), csvs)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"label_map__txt": "abseiling\n"}, "train.csv, line 2: 'air drumming', expected a label of the label map"),
        ({"label_map__txt": "abseiling\nabseiling"}, "label_map.txt, line 2: 'abseiling' is a class already"),
        ({"label_map__txt": "\n"}, "no classes in it"),
        ({"label_map__txt": "a", "labels__txt": "a"}, "label_map.txt,labels.txt, expected one label map"),
    ],
)
def test_wrong_label_maps(csvs: Path, files: dict[str, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        kinetics.find(Listing("zzzzzzzzzzz.mp4"), written(csvs, **files))


def test_kinetics_lists_that_are_not_there_or_match_nothing(csvs: Path, tmp_path: Path) -> None:
    for lists, says in (
        (tmp_path / "none", "no such folder"),
        (written(tmp_path / "empty"), "no CSV in it"),
        (csvs, "expected s3://bucket/videos/test/ttttttttttt_000002_000012.mp4"),
    ):
        with pytest.raises(InputError, match=says):
            kinetics.find(Listing("other.mp4"), lists)


@needs_real_data
def test_the_official_kinetics_lists() -> None:
    lists = REAL / "lists/kinetics400"  # the validation CSV is there twice, under two names
    source = kinetics.find(Folder(str(REAL / "wild/kinetics")), lists)
    assert [v.path.partition("/")[2] for v in source.videos] == ["R6llTwEh07w.mp4", "SOX5yA1l24A.mp4", "WUzgd7C1pWA.mp4"]
    assert {source.classes["action"][v.labels["action"]] for v in source.videos} == {"using segway"}
    everything = source.videos + source.missing
    assert split_counts(everything) == {"test": 38685, "train": 400, "val": 19906 + 400}
    assert sum(not v.labels for v in everything) == 38685 and len(source.classes["action"]) == 400
    assert list(source.left_out.values()) == [UNLISTED] * 2
    validation = kinetics.find(Folder(str(REAL / "wild/kinetics")), lists / "kinetics-400_val.csv")
    assert len(validation.videos + validation.missing) == 19906 and validation.classes == source.classes
    test = kinetics.find(Listing(*(v.path for v in everything if v.splits == ("test",))), lists / "kinetics-400_test.csv")
    assert len(test.videos) == 38685 and test.classes == {} and not test.missing


# --- Diving48


def dive(**changes: Any) -> dict[str, Any]:
    return {"vid_name": "-x_00001", "label": 1, "start_frame": 0, "end_frame": 78} | changes


@pytest.fixture
def dives(tmp_path: Path) -> Callable[..., Path]:
    """Diving48's three files in small, or with something else in one of them."""

    def write(**contents: object) -> Path:
        words = [["Back", "15som", "", "FREE"], ["Inward", "35som", "NoTwis", "TUCK"]]
        files = {
            "train": [dive(), dive(start_frame=100, end_frame=150)],
            "test": [dive(vid_name="y")],
            "vocab": words,
        } | contents
        said = {name: content if isinstance(content, str) else json.dumps(content) for name, content in files.items()}
        return written(tmp_path / "lists", **{f"Diving48_V2_{name}__json": content for name, content in said.items()})

    return write


def test_diving48_spans_are_videos(dives: Callable[..., Path]) -> None:
    source = diving48.find(Listing("rgb/-x_00001.mp4", "rgb/other.mp4"), dives())
    assert source.classes == {"action": ["Back-15som-FREE", "Inward-35som-NoTwis-TUCK"]}
    assert rows(source) == [("rgb/-x_00001.mp4[0:78]", 1, ("train",)), ("rgb/-x_00001.mp4[100:150]", 1, ("train",))]
    assert [(v.id, v.splits) for v in source.missing] == [("y.mp4[0:78]", ("test",))]
    assert source.left_out == {"rgb/other.mp4": UNLISTED}
    assert len(set(sample_keys([v.id for v in source.videos]))) == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train": "{"}, "Diving48_V2_train.json: not JSON"),
        ({"train": "[" * 100_000}, "not JSON"),
        ({"train": "9" * 5000}, "not JSON"),
        ({"train": {}}, "expected a list with entries"),
        ({"test": []}, "Diving48_V2_test.json: expected a list with entries"),
        ({"train": [dive(), 7]}, "Diving48_V2_train.json, entry 1: 7, expected a vid_name"),
        ({"train": [dive(vid_name=7)]}, "entry 0: .*vid_name"),
        ({"train": [dive(vid_name="../a")]}, "entry 0: .*vid_name"),
        ({"train": [dive(vid_name="a/b")]}, "entry 0: .*vid_name"),
        ({"train": [dive(vid_name="..")]}, "entry 0: .*vid_name"),
        ({"train": [dive(vid_name="")]}, "entry 0: .*vid_name"),
        ({"train": [dive(vid_name="a\0")]}, "entry 0: .*vid_name"),
        ({"train": [dive(vid_name="\ud800")]}, "not JSON"),
        ({"train": [dive(label=2)]}, "a label below 2"),
        ({"train": [dive(label=-1)]}, "a label below 2"),
        ({"train": [dive(label=True)]}, "whole numbers"),
        ({"train": [dive(label=None)]}, "whole numbers"),
        ({"train": [dive(start_frame=0.5)]}, "whole numbers"),
        ({"train": [dive(end_frame="78")]}, "whole numbers"),
        ({"train": [dive(start_frame=78)]}, "0 <= start_frame < end_frame"),
        ({"train": [dive(end_frame=10**12)]}, "0 <= start_frame < end_frame"),
        ({"test": [dive()]}, "-x_00001 is in train too .*trains or tests, not both"),
        ({"train": [dive(), dive(label=0)]}, "two labels"),
        ({"vocab": ["Back"]}, "vocab.json, entry 0: 'Back', expected a list of words"),
        ({"vocab": [["a"], ["", ""]]}, "entry 1: .*expected a list of words"),
        ({"vocab": [["a", 5]]}, "entry 0: .*expected a list of words"),
        ({"vocab": [["a"], ["a", ""]]}, "entry 1: 'a' is a class already"),
        ({"V1_train": []}, "expected one \\*train\\*.json .*V1_train.json,Diving48_V2_train.json in it"),
        ({"train": [dive(vid_name="z")]}, "expected s3://bucket/videos/y.mp4"),
    ],
)
def test_wrong_diving48_lists(dives: Callable[..., Path], changes: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        diving48.find(Listing("-x_00001.mp4"), dives(**changes))


@pytest.mark.parametrize("kind", ["train", "test", "vocab"])
def test_diving48_needs_all_three_files(dives: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    (dives() / f"Diving48_V2_{kind}.json").unlink()
    with pytest.raises(InputError, match=f"expected one \\*{kind}\\*.json .*not in it"):
        diving48.find(Listing("-x_00001.mp4"), tmp_path / "lists")
    with pytest.raises(InputError, match="no such folder"):
        diving48.find(Listing("-x_00001.mp4"), tmp_path / "none")


@needs_real_data
def test_the_official_diving48_lists(tmp_path: Path) -> None:
    (tmp_path / "-mmq0PT-u8k_00155.mp4").touch()
    source = diving48.find(Folder(str(tmp_path)), REAL / "lists/diving48")
    assert rows(source) == [("-mmq0PT-u8k_00155.mp4[0:48]", 0, ("train",))]
    assert split_counts(source.videos + source.missing) == {"train": 15027, "test": 1970}
    assert len(source.classes["action"]) == 48 and source.classes["action"][0] == "Back-15som-05Twis-FREE"


# --- Something-Something V2


def clip(id: str, template: str = "Pulling [something] from [left to right]", **changes: Any) -> dict[str, Any]:
    label = template.replace("[something]", "a cup").lower()
    return {"id": id, "label": label, "template": template, "placeholders": ["a cup"]} | changes


@pytest.fixture
def things(tmp_path: Path) -> Callable[..., Path]:
    """The official files in small, or with something else in one of them; None leaves one out."""

    def write(prefix: str = "", **contents: object) -> Path:
        files = {
            "labels": {"Holding something": "1", "Pulling something from left to right": "0", "Tilting it": "2"},
            "train": [clip("7"), clip("100", "Holding [something]")],
            "validation": [clip("8", "Holding [something]")],
            "test": [{"id": "9"}, {"id": "10"}],
        } | contents
        given = {f"{prefix}{name}__json": content for name, content in files.items() if content is not None}
        said = {name: content if isinstance(content, str) else json.dumps(content) for name, content in given.items()}
        return written(tmp_path / "lists", **said)

    return write


WEBMS = "20bn-something-something-v2/7.webm", "20bn-something-something-v2/8.webm", "9.mp4", "11.webm"


@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
def test_templates_without_brackets_are_the_classes(things: Callable[..., Path], prefix: str) -> None:
    source = ssv2.find(Listing(*WEBMS), things(prefix))
    assert source.classes == {"action": ["Pulling something from left to right", "Holding something", "Tilting it"]}
    assert rows(source) == [
        ("20bn-something-something-v2/7.webm", 0, ("train",)),
        ("20bn-something-something-v2/8.webm", 1, ("validation",)),
        ("9.mp4", None, ("test",)),
    ]
    assert {(v.path, v.splits) for v in source.missing} == {("100.webm", ("train",)), ("10.webm", ("test",))}
    assert source.left_out == {"11.webm": UNLISTED}


def test_answers_label_the_test_videos(things: Callable[..., Path], tmp_path: Path) -> None:
    written(things(), **{"test-answers__csv": "10;Tilting it\r\n9;Holding something\r\n"})
    source = ssv2.find(Listing(*WEBMS), tmp_path / "lists")
    assert [row for row in rows(source) if row[2] == ("test",)] == [("9.mp4", 1, ("test",))]
    assert [v.labels for v in source.missing if v.splits == ("test",)] == [{"action": 2}]
    written(tmp_path / "lists", **{"test-answers__csv": "9;Holding a cup\n"})
    with pytest.raises(InputError, match=r"test-answers.csv, line 1: '9;Holding a cup', expected 'id;class' with a class of"):
        ssv2.find(Listing(*WEBMS), tmp_path / "lists")


def test_some_of_the_splits_are_enough(things: Callable[..., Path]) -> None:
    source = ssv2.find(Listing(*WEBMS), things(test=None, train=None))
    assert rows(source) == [("20bn-something-something-v2/8.webm", 1, ("validation",))] and not source.missing


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": None}, "labels.json: cannot be read"),
        ({"labels": []}, "labels.json: expected a table with entries in it"),
        ({"labels": {"a": "0", "b": "2"}}, "labels.json: expected class names with the numbers from 0 to 1, each once"),
        ({"labels": {"a": "0", "b": "0"}}, "from 0 to 1, each once"),
        ({"labels": {"a": [0]}}, "from 0 to 0, each once"),
        ({"labels": {"a\x1b": "0"}}, "from 0 to 0, each once"),
        ({"train": None, "validation": None, "test": None}, "no train.json, validation.json or test.json in it"),
        ({"train": "{"}, "train.json: not JSON"),
        ({"train": {}}, "train.json: expected a list with entries in it"),
        ({"train": [7]}, "train.json, entry 0: 7, expected an id of letters and digits"),
        ({"train": [clip("../7")]}, "entry 0: .*expected an id"),
        ({"train": [clip("7"), clip("a.b")]}, "entry 1: .*expected an id"),
        ({"train": [{"id": 7}]}, "entry 0: .*expected an id"),
        ({"train": [clip("7", "Eating [something]")]}, r"template 'Eating \[something\]', expected a class of labels.json"),
        ({"train": [{"id": "7"}]}, "template None, expected a class"),
        ({"train": [{"id": "7", "template": ["x"]}]}, r"template \['x'\], expected a class"),
        ({"validation": [clip("7")]}, "validation.json, entry 0: 7 is in train too or has two labels; a video trains or tests"),
        ({"train": [clip("7"), clip("7", "Holding [something]")]}, "entry 1: 7 is in train too or has two labels"),
        ({"something-something-v2-train": [clip("7")]}, "something-something-v2-train.json,train.json in it, expected one"),
    ],
)
def test_wrong_something_something_lists(things: Callable[..., Path], changes: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        ssv2.find(Listing(*WEBMS), things(**changes))


# --- folders, and a list of one's own


def test_a_folder_of_class_folders() -> None:
    source = folder.find(Listing("walk/deep/a.mp4", "run/b.avi", "run/readme.txt"))
    assert rows(source) == [("run/b.avi", 0, ("all",)), ("walk/deep/a.mp4", 1, ("all",))]
    assert (
        source.classes == {"action": ["run", "walk"]} and not source.missing and source.left_out == {"run/readme.txt": "text"}
    )


def test_a_folder_is_unlabelled_where_one_video_has_no_class() -> None:
    source = folder.find(Listing("walk/a.mp4", "b.avi"))
    assert rows(source) == [("b.avi", None, ("all",)), ("walk/a.mp4", None, ("all",))] and source.classes == {}
    with pytest.raises(InputError, match="no videos in it"):
        folder.find(Listing("readme.txt"))


def own(tmp_path: Path, content: str | bytes, *names: str) -> VideoSet:
    """The source of a CSV file over a.mp4, b.mp4 and d/c.mp4."""
    file = written(tmp_path, mine__csv=content) / "mine.csv"
    return csv.find(Listing(*(names or ("a.mp4", "b.mp4", "d/c.mp4"))), file)


def test_a_csv_of_paths_is_enough(tmp_path: Path) -> None:
    source = own(tmp_path, b"\xef\xbb\xbfpath\r\n./d//c.mp4 \r\n\r\na.mp4\r\ngone.mp4\r\n")
    assert rows(source) == [("a.mp4", None, ("all",)), ("d/c.mp4", None, ("all",))] and source.classes == {}
    assert [v.path for v in source.missing] == ["gone.mp4"] and source.left_out == {"b.mp4": UNLISTED}


def test_a_csv_with_everything(tmp_path: Path) -> None:
    lines = "note,split,path,label,end,start\n" + "\n".join(
        [
            '"left, indoors",train,a.mp4,walk,20,10',
            ",train,a.mp4,run,10,0",
            ",test,a.mp4,run,10,0",  # one's own list may train and test on one video
            ",test,a.mp4,run,10,0",
            ",,b.mp4,,,",
        ]
    )
    source = own(tmp_path, lines)
    assert rows(source) == [
        ("a.mp4[0:10]", 0, ("train", "test")),
        ("a.mp4[10:20]", 1, ("train",)),
        ("b.mp4", None, ("all",)),
    ]
    assert source.classes == {"action": ["run", "walk"]} and source.left_out == {"d/c.mp4": UNLISTED}


KINDS = "file\tmotion\tscene\tfold\nb.mp4\tleft\t10\ttrain\nd/c.mp4\tup\t9\ttest\na.mp4\t\t10\ttrain\ngone.mp4\tdown\t\ttrain\n"


def columns(tmp_path: Path, content: str, **named: Any) -> VideoSet:
    return csv.find(Listing("a.mp4", "b.mp4", "d/c.mp4"), written(tmp_path, mine__tsv=content) / "mine.tsv", **named)


def test_a_table_with_names_of_its_own_and_several_kinds_of_label(tmp_path: Path) -> None:
    source = columns(tmp_path, KINDS, path_column="file", label_column=("motion", "scene"), split_column="fold")
    assert source.classes == {"motion": ["down", "left", "up"], "scene": ["9", "10"]}
    assert [(v.path, v.labels, v.splits) for v in source.videos] == [
        ("a.mp4", {"scene": 1}, ("train",)),
        ("b.mp4", {"motion": 1, "scene": 1}, ("train",)),
        ("d/c.mp4", {"motion": 2, "scene": 0}, ("test",)),
    ]
    assert [(v.path, v.labels) for v in source.missing] == [("gone.mp4", {"motion": 0})]
    assert source.notes == [
        f"{tmp_path}/mine.tsv: a header, tabs",
        "line 2: b.mp4, motion 'left', scene '10', split 'train'",
        "line 3: d/c.mp4, motion 'up', scene '9', split 'test'",
        "line 4: a.mp4, scene '10', split 'train'",
    ]
    again = columns(tmp_path, KINDS.replace("motion", "label"), path_column="file", label_column=("scene", "label"))
    assert list(again.classes) == ["scene", "action"] and again.videos[0].splits == ("all",)


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ({"path_column": "path"}, "line 1: 'file,motion,scene,fold', expected a header with path"),
        ({"path_column": "file", "label_column": ("texture",)}, "expected a header with file,texture, each column once"),
        ({"path_column": "file", "split_column": "split"}, "expected a header with file,split"),
        ({"path_column": "file", "label_column": ("empty",)}, "--label-column empty: no video of .*mine.tsv has a label there"),
        ({"path_column": "file", "label_column": ("label", "action")}, "label,action: two of them are one kind"),
        ({"path_column": "file", "label_column": ("label", "label")}, "label,label: two of them are one kind"),
    ],
)
def test_columns_that_are_not_there(tmp_path: Path, named: dict[str, Any], says: str) -> None:
    content = KINDS.replace("fold", "empty").replace("train", "").replace("test", "") if "empty" in says else KINDS
    with pytest.raises(InputError, match=says):
        columns(tmp_path, content, **named)


def test_a_column_that_is_named_needs_a_header(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 1: 'a.mp4,3', expected a header with path,label"):
        columns(tmp_path, "a.mp4,3", label_column=("label",))


@pytest.mark.parametrize(
    ("content", "found", "form"),
    [
        ("a.mp4\nd/c.mp4\n", [("a.mp4", None), ("d/c.mp4", None)], "path"),
        ("a.mp4 2\r\nd/c.mp4 10\r\n", [("a.mp4", 0), ("d/c.mp4", 1)], "path label"),  # as mmaction2's video lists
        ("a.mp4,walk\nd/c.mp4,air drumming\n", [("a.mp4", 1), ("d/c.mp4", 0)], "path label"),
        ("a.mp4\t1\nb.mp4\t1\n", [("a.mp4", 0), ("b.mp4", 0)], "path label"),
        ("a.mp4 0 1\nb.mp4 48 2\n", [("a.mp4[0:]", 0), ("b.mp4[48:]", 1)], "path start label; start in frames"),
        ("d/e f 2.MP4 7\na.mp4 7\n", [("a.mp4", 0), ("d/e f 2.MP4", 0)], "path label"),
        ("d/e f 2.MP4 16 7\n", [("d/e f 2.MP4[16:]", 0)], "path start label; start in frames"),
        ("d/e f 2.MP4\n", [("d/e f 2.MP4", None)], "path"),
        ("clip 3\n", [("clip", 0)], "path label"),
    ],
)
def test_lists_without_a_header(tmp_path: Path, content: str, found: list[tuple[str, int | None]], form: str) -> None:
    source = own(tmp_path, content, "a.mp4", "b.mp4", "d/c.mp4", "d/e f 2.MP4", "clip")
    assert rows(source) == [(name, label, ("all",)) for name, label in found]
    assert source.notes[0] == f"{tmp_path}/mine.csv: no header, {form}"


def test_starts_without_an_end_that_overlap_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = own(tmp_path, "a.mp4 16 0\na.mp4 0 0\nb.mp4 0 0\n")
    assert [v.id for v in source.videos] == ["a.mp4[0:]", "a.mp4[16:]", "b.mp4[0:]"]
    assert "1 videos (a.mp4, ...) have several starts without an end" in capsys.readouterr().err
    own(tmp_path, "path,start,end\na.mp4,0,5\na.mp4,5,\nb.mp4,,\n")
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("header", "values", "span", "unit"),
    [
        ("start,end", "3,6", (3, 6), "frames"),
        ("start,end", "3,6.5", (3.0, 6.5), "seconds"),
        ("start_frame,end_frame", "3.0,6", (3, 6), "frames"),
        ("start_seconds,end_seconds", "3,6", (3.0, 6.0), "seconds"),
        ("time_start,time_end", "30.025882995319815,205", (30.026, 205.0), "seconds"),
        ("start_time,end_time", "3,", (3.0, None), "seconds"),
        ("start_time", "3", (3.0, None), "seconds"),
        ("start,end", ",", None, "frames"),
    ],
)
def test_spans_in_frames_and_seconds(tmp_path: Path, header: str, values: str, span: Any, unit: str) -> None:
    source = own(tmp_path, f"path,{header}\na.mp4,{values}\n")
    (video,) = source.videos
    assert video.span == span and (span is None or [type(end) for end in video.span or ()] == [type(end) for end in span])
    assert source.notes[0].endswith(f"a header, commas; {header.partition(',')[0]} in {unit}")
    assert len(set(sample_keys([video.id, "a.mp4"]))) == 2 and "." not in sample_keys([video.id])[0]


def test_absolute_paths_inside_the_root(tmp_path: Path) -> None:
    (tmp_path / "videos/d").mkdir(parents=True)
    for name in ("a.mp4", "d/b.mp4"):
        (tmp_path / "videos" / name).touch()
    (tmp_path / "link").symlink_to("videos")
    lists = written(tmp_path, mine__csv=f"path\n{tmp_path}/videos/a.mp4\nd/b.mp4\n") / "mine.csv"
    for root in ("videos", "videos/", "link/../videos"):
        assert [v.path for v in csv.find(Folder(f"{tmp_path}/{root}"), lists).videos] == ["a.mp4", "d/b.mp4"]
    assert [v.path for v in csv.find(Folder(f"{tmp_path}/link"), lists).videos] == ["a.mp4", "d/b.mp4"]
    with pytest.raises(InputError, match="stays in --root"):
        csv.find(Folder(f"{tmp_path}/videos/d"), lists)
    source = own(tmp_path, "path\ns3://bucket/videos/d/c.mp4\na.mp4\n")
    assert [v.path for v in source.videos] == ["a.mp4", "d/c.mp4"]


def test_classes_are_the_labels_that_occur_and_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    source = own(tmp_path, "path,label\na.mp4,0\nb.mp4,10\nd/c.mp4,2\n")
    assert [v.labels["action"] for v in source.videos] == [0, 2, 1] and source.classes == {"action": ["0", "2", "10"]}
    source = own(tmp_path, "path,label\na.mp4,99999\nb.mp4,07\nd/c.mp4,\n")
    assert rows(source) == [("a.mp4", 1, ("all",)), ("b.mp4", 0, ("all",)), ("d/c.mp4", None, ("all",))]
    assert source.classes == {"action": ["7", "99999"]}
    source = own(tmp_path, "path,label\na.mp4,0\nb.mp4,10\nd/c.mp4,9b\n")  # not all are numbers: names
    assert [v.labels["action"] for v in source.videos] == [0, 1, 2] and source.classes == {"action": ["0", "10", "9b"]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "mine.csv: empty, expected a header with path"),
        ("file\nb.mp4", "line 1: 'file', expected a header with path, each column once; --path-column, .* name others"),
        ("path label\na.mp4 3", "line 1: 'path label', expected a header with path"),
        ("path,path\na.mp4,b.mp4", "each column once"),
        ("path\n", "no videos in its lists"),
        ("path,label\na.mp4,walk,fast", "line 2: 3 values, expected the 2 of the header"),
        ("path\n../a.mp4", "line 2: path '../a.mp4', expected one that stays in --root: relative to it"),
        ("path\n/a.mp4", "stays in --root"),
        ("path\n/bucket/videos/a.mp4", "stays in --root"),
        ("path\ns3://bucket/videosa.mp4", "path 's3://bucket/videosa.mp4', .*stays in --root"),
        ("path\ns3://bucket/videos/../a.mp4", "stays in --root"),
        ("path\ns3://bucket/videos//a.mp4", "stays in --root"),
        ("path\nd/../../a.mp4", "stays in --root"),
        ("path\na\0.mp4", "stays in --root"),
        ("path,label\n,run", "stays in --root"),
        ("path\nnotes.txt", "line 2: path 'notes.txt', expected a video"),
        ("path,split\na.mp4,'a\x1bb'", "line 2: split .*expected a name"),
        ('path,split\na.mp4,"train,test"', "line 2: split 'train,test', expected a name without a comma"),
        ("path,start_frame,end_frame\na.mp4,1.5,3", "start '1.5', end '3', expected both in whole frames, or a start alone"),
        ("path,start,end\na.mp4,0,2.0", "start and end may be frames or seconds: call them start_frame,end_frame or start_s"),
        ("path,start,end,start_time\na.mp4,0,2,3", "columns start,end and start_time,end_time, expected one pair"),
        ("path,end\na.mp4,5", "start '', end '5', expected both in whole frames"),
        ("path,start,end\na.mp4,-5,5", "both in whole frames"),
        ("path,start,end\na.mp4,0," + "9" * 5000, "both in whole frames"),
        ("path,start,end\na.mp4,1.5,x", "start '1.5', end 'x', expected both in seconds"),
        ("path,start_time,end_time\na.mp4,1e3,2e3", "both in seconds"),
        ("path,start_time,end_time\na.mp4,2.0001,2.0004", "expected an end"),
        ("path,start,end\na.mp4,5,5", "start 5, end 5, expected an end"),
        ("path,label\na.mp4,run\na.mp4,walk", "line 3: a.mp4 is labelled 'run' and 'walk', expected one label"),
        ("a.mp4 3\nb.mp4", "line 2: 1 values, expected path label as in the first line"),
        ("a.mp4,3,train", "line 1: 'a.mp4 3 train', expected 'path', 'path label' or 'path start label' with whole numbers"),
        ("a.mp4 0 10 3", "any other list needs a header line"),
        ("some/dir 163 1\nsome/other 122 1", "line 1: 'some/dir 163 1', expected a video; lists of raw frames .*not read"),
        ("../a.mp4 3", "stays in --root"),
        ("path,label\na.mp4," + "9" * 5000, "expected 0 to 1000000000"),
        ("path,label\na.mp4,-1\nb.mp4,3", "label '-1', expected 0 to 1000000000, or nothing"),
        ("path,Label\na.mp4,run", "line 1: column 'Label', expected 'label': names of columns are lower case"),
        ("PATH,label\na.mp4,run", "line 1: column 'PATH', expected 'path'"),
        ("path\nz.mp4", "mine.csv names 1 videos .*expected s3://bucket/videos/z.mp4"),
    ],
)
def test_wrong_csv_files(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        own(tmp_path, content)


def test_a_csv_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.csv: cannot be read \(No such file"):
        csv.find(Listing("a.mp4"), tmp_path / "none.csv")
    assert [v.path for v in own(tmp_path, b"path\n\xff\xfe.mp4\na.mp4\n").videos] == ["a.mp4"]


def test_unknown_columns_are_named_and_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rows(own(tmp_path, "path,labels,fold\na.mp4,run,1\n")) == [("a.mp4", None, ("all",))]
    said = "ignored columns: 'labels' (is label meant?), 'fold'; known are path,label,split,start,end,start_frame"
    assert capsys.readouterr().err.startswith(f"warning: {tmp_path / 'mine.csv'}, line 1: {said}")
    own(tmp_path, "path,label,split,start,end\na.mp4,run,x,0,3\n")
    assert not capsys.readouterr().err


def test_a_list_takes_files_of_any_suffix_that_is_not_known_to_be_another(tmp_path: Path) -> None:
    names = ("a.MTS", "b.gif", "c.strange", "d", "._e.mp4")
    source = own(tmp_path, "path\n" + "\n".join(names), *names, "d.json")
    assert sorted(v.path for v in source.videos) == sorted(names) and source.left_out == {"d.json": "text"}


@needs_real_data
@pytest.mark.parametrize(
    ("file", "classes"),
    [("l300", ["0", "299"]), ("sparse", ["7", "99999"]), ("mathname", ["$x_1^{$", "日本語"])],
)
def test_class_names_of_the_reported_lists(file: str, classes: list[str]) -> None:
    videos = (f"{number}.mp4" for number in range(1, 7))
    assert csv.find(Listing(*videos), REAL / f"reports/lists/{file}.csv").classes == {"action": classes}


# --- names in the shards


def test_keys_are_safe_and_unique() -> None:
    paths = ["a/b.avi", "a/b.mp4", "a_b.avi", "ü/v 1.x.avi", "c.avi", "a/b-000001.avi", "d" * 300 + ".avi"]
    keys = sample_keys(paths)
    assert keys[4] == "c" and keys[3] == "__v_1_x" and len(keys[6]) == 72
    assert len(set(keys)) == len(keys) and all("." not in key and "/" not in key for key in keys)
    assert keys == sample_keys(paths)


def test_keys_of_spans_say_which() -> None:
    assert sample_keys(["a.avi[0:10]", "a.avi[10:20]", "a.avi", "b.c[1].avi"]) == ["a_0_10_", "a_10_20_", "a", "b_c_1_"]
    assert sample_keys(["a.avi[0.5:10.25]", "a.avi[10:]", "a.avi[0.5:]"]) == ["a_0_5_10_25_", "a_10__", "a_0_5__"]
    assert len(set(sample_keys(["d" * 300 + ".avi[0:10]", "d" * 300 + ".avi[10:20]"]))) == 2


def test_keys_that_are_used_are_not_given_again() -> None:
    first = sample_keys(["a/b.avi", "a_b.avi", "c.avi"])
    assert first == ["a_b-000001", "a_b-000002", "c"]
    more = sample_keys(["c.avi", "a/b.avi", "a-b.avi", "a/b.mp4", "c.mp4"], set(first))
    assert more == ["c-000001", "a_b-000003", "a-b", "a_b-000004", "c-000002"]
    assert sample_keys(["c.avi"], {"c", "c-000001"}) == ["c-000002"] and sample_keys(["new.avi"], {"c"}) == ["new"]


def test_a_name_on_disk_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "A").mkdir()
    (tmp_path / "A/good.avi").touch()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/A/caf\xe9.avi")).touch()
    with pytest.raises(InputError, match=r"caf\\udce9.avi' is not UTF-8 text .*; rename"):
        folder.find(Folder(str(tmp_path)))
