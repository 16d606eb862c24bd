"""Whole sets: the same bytes on any number of workers, failures that cost only themselves, stock readers."""

import errno
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import webdataset as wds
from conftest import REAL, REPOSITORY, SMALL, needs_real_data, refuse, render, run, succeed

from dclr import bars
from dclr.data.manifest import ShardSet
from dclr.errors import InputError
from dclr.record import members, video_id
from dclr.storage import Folder, open_folder
from preprocess.datasets import EMPTY_CLASS, Video
from preprocess.datasets.tars import TarFolder
from preprocess.found import HIDDEN
from preprocess.plan import Failure, RunPlan, Task
from preprocess.run import finish, make_samples
from preprocess.synthetic import MOTIONS, encode
from preprocess.transcode import Options
from preprocess.write import Made


def contents(folder: Path) -> dict[str, bytes]:
    """What must be the same whenever the same set is made: all but the place of the source and how long failures took."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name not in ("plan.json", "failures.jsonl")}


def test_the_same_bytes_on_any_number_of_workers(tmp_path: Path) -> None:
    options = ("--hard", "--videos", "24", "--size", "32", "--shard-size", "1", "--seed", "5")
    for workers in ("1", "3"):
        succeed("-m", "preprocess", "synthetic", "--out", tmp_path / workers, *options, "--workers", workers)
    first, second = contents(tmp_path / "1"), contents(tmp_path / "3")
    assert first == second and len(first) > 4  # more than one shard
    videos = [{str(p.relative_to(tmp_path / w)): p.read_bytes() for p in (tmp_path / w).rglob("*_*.*")} for w in "13"]
    assert videos[0] == videos[1] and len(videos[0]) == 24


@pytest.mark.parametrize("codec", ["jpeg", "h264"])
def test_every_cue_and_codec_repeats_its_bytes(few: Path, tmp_path: Path, codec: str) -> None:
    options = ("--codec", codec, "--cues", "diff,flow,energy", "--stabilise", "--size", "48")
    for name in "ab":
        succeed("-m", "preprocess", "folder", "--root", few, "--out", tmp_path / name, *options)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert "no faults" in succeed("-m", "preprocess", "verify", tmp_path / "a", "--deep")
    record = ShardSet(tmp_path / "a").read(2)
    assert record.frames([0, 3]).shape[0] == len(record.pictures("diff", [0, 3])) == len(record.vectors("flow", [0, 3])) == 2
    assert record.array("energy").max() > 0


def test_a_stock_webdataset_reader_iterates_the_shards(synthetic_set: Path) -> None:
    keys = []
    for tar in sorted(synthetic_set.glob("*.tar")):
        for sample in wds.WebDataset(str(tar), shardshuffle=False).decode():
            keys.append(sample["__key__"])
            assert sample["json"]["frames"] == len(sample["energy.npy"]) == len(sample["idx"]) // 8 - 1
            assert sample["grid.npy"].shape == (sample["json"]["frames"], 8, 8)
            assert sample["mjpg"].startswith(b"\xff\xd8") and sample["diff.mjpg"].endswith(b"\xff\xd9")
    assert keys == list(ShardSet(synthetic_set).keys)


def test_the_json_says_what_is_known(synthetic_set: Path) -> None:
    shards = ShardSet(synthetic_set)
    name, start, size = shards.where(0)
    data = (synthetic_set / name).read_bytes()[start : start + size]
    assert set(json.loads(bytes(members(data)["json"]))) == {
        "version", "frames", "fps", "label", "labels", "class", "splits", "source", "video", "width", "height", "codec", "cues",
    }  # fmt: skip
    meta = shards.read(0).meta
    assert meta.class_name == MOTIONS[meta.label] and meta.label == meta.labels["motion"] and meta.splits == ("test",)
    assert not Path(meta.source.path).is_absolute() and min(meta.width, meta.height) == 32


@pytest.fixture
def half_broken(tmp_path: Path) -> tuple[Path, Path]:
    """Two good videos, one that is text, one cut short, one that is not there."""
    root, lists = tmp_path / "root", tmp_path / "lists"
    lists.mkdir()
    for name in ("good1", "good2", "cut"):
        encode(render("left", "dots", (name,))[0], 25, root / f"A/{name}.mp4")
    whole = (root / "A/cut.mp4").read_bytes()
    (root / "A/cut.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "A/text.avi").write_text("no video at all")
    (lists / "classInd.txt").write_text("1 A\n")
    (lists / "trainlist01.txt").write_text("".join(f"A/{n} 1\n" for n in ("good1.mp4", "text.avi", "cut.mp4", "gone.avi")))
    (lists / "testlist01.txt").write_text("A/good2.mp4\n")
    return root, lists


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight good videos in two class folders."""
    root = tmp_path_factory.mktemp("few")
    for number in range(8):
        encode(
            render("left", "dots", ("few", number))[0],
            25,
            root / "AB"[number % 2] / f"{number}.{'avi' if number % 3 else 'mp4'}",
        )
    return root


FOLDER = ("-m", "preprocess", "folder", "--root")
SMALL_SHARDS = ("--size", "96", "--shard-size", "1")


def test_a_broken_video_costs_itself_and_is_listed(half_broken: tuple[Path, Path], tmp_path: Path) -> None:
    root, lists = half_broken
    made = run(
        "-m", "preprocess", "ucf101", "--root", root, "--splits", lists, "--out", tmp_path / "set"
    )  # fmt: skip
    assert made.returncode == 1 and "2 of 4 videos failed, more than --max-failures 5 percent" in made.stderr
    assert "missing: 1 videos" in made.stdout and "failed: 2 videos" in made.stdout
    assert "splits: test01 1, train01 1" in made.stdout
    failures = [json.loads(line) for line in (tmp_path / "set/failures.jsonl").read_text().splitlines()]
    assert {f["path"]: f["stage"] for f in failures} == {"A/gone.avi": "missing", "A/text.avi": "open", "A/cut.mp4": "open"}
    assert all(f["reason"] for f in failures)
    assert ShardSet(tmp_path / "set").keys == ["A_good1", "A_good2"]
    assert not list((tmp_path / "set").glob(".*"))
    ucf = ("-m", "preprocess", "ucf101", "--root", root, "--splits", lists, "--out", tmp_path / "again", "--max-failures", "50")
    assert "failed: 2 videos" in succeed(*ucf)


def left_out(out: Path) -> dict[str, str]:
    """Path -> reason of the lines of failures.jsonl that are no failures."""
    lines = [json.loads(line) for line in (out / "failures.jsonl").read_text(encoding="utf-8").split("\n") if line]
    return {line["path"]: line["reason"] for line in lines if line["stage"] == "left-out"}


def test_what_is_left_out_is_counted_and_named(half_broken: tuple[Path, Path], tmp_path: Path) -> None:
    """By every command that makes or finishes a set; it is no failure, and no byte of the manifest depends on it."""
    root, lists = half_broken
    (lists / "classInd.txt").write_text("1 A\n2 B\n")
    ucf = ("-m", "preprocess", "ucf101", "--root", root, "--splits", lists, "--max-failures", "50", "--out")
    before = succeed(*ucf, tmp_path / "before")
    assert "left out: 1 (a class without a video): B/" in before and left_out(tmp_path / "before") == {"B/": EMPTY_CLASS}
    manifest = (tmp_path / "before/manifest.json").read_bytes()
    named = {"B/": EMPTY_CLASS, "A/._good1.mp4": HIDDEN, "A/line\u2028.mp4": "in no list"}
    named |= {f"A/{number}.jpg": "a picture" for number in range(7)}
    for name in named:
        (root / name).parent.mkdir(exist_ok=True)
        if not name.endswith("/"):
            (root / name).write_text("x")
    said = succeed(*ucf, tmp_path / "set")
    assert "left out: 7 (a picture): A/0.jpg, A/1.jpg, A/2.jpg, A/3.jpg, A/4.jpg and 2 more" in said
    assert "left out: 1 (a class without a video): B/" in said and "(in no list): A/line" in said
    assert left_out(tmp_path / "set") == named and (tmp_path / "set/manifest.json").read_bytes() == manifest
    assert "left out: 7 (a picture)" in succeed(*ucf, tmp_path / "before")  # the same command on a finished set
    assert left_out(tmp_path / "before") == named and (tmp_path / "before/manifest.json").read_bytes() == manifest
    dry = succeed(*ucf, tmp_path / "dry", "--dry-run")
    assert "left out: 7 (a picture)" in dry and "left out: 1 (a class without a video): B/" in dry
    succeed(*ucf, tmp_path / "parts", "--part", "1/1")
    assert "left out: 7 (a picture)" in succeed("-m", "preprocess", "merge", tmp_path / "parts", "--max-failures", "50")
    assert left_out(tmp_path / "parts") == named
    encode(render("up", "rings", ("text",))[0], 25, root / "A/text.avi")
    assert "3 videos in 2 shards" in succeed("-m", "preprocess", "retry", tmp_path / "set", "--max-failures", "50")
    assert left_out(tmp_path / "set") == named
    for name in ("cut.mp4", "gone.avi"):
        encode(render("up", "rings", (name,))[0], 25, root / "A" / name)
    succeed("-m", "preprocess", "retry", tmp_path / "set")
    assert "there was nothing new to try" in succeed("-m", "preprocess", "retry", tmp_path / "set")
    assert left_out(tmp_path / "set") == named
    (root / "A/new.txt").write_text("x")
    assert "there was nothing new to try" in succeed(*ucf, tmp_path / "set", "--append")
    assert left_out(tmp_path / "set") == named | {"A/new.txt": "text"}


def test_a_class_whose_videos_all_fail_is_named(few: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(few, root)
    (root / "C").mkdir()
    (root / "C/text.mp4").write_text("no video")
    (root / "D").mkdir()
    (root / "D/readme.md").write_text("x")
    succeed(*FOLDER, root, "--out", tmp_path / "set", "--size", "32", "--max-failures", "20")
    assert left_out(tmp_path / "set") == {"C/": EMPTY_CLASS, "D/": EMPTY_CLASS, "D/readme.md": "text"}


def test_sets_and_plans_made_before_left_out_files_were_named_still_open(few: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "set"
    shutil.copytree(few, root)
    (root / "A/text.avi").write_text("no video")
    succeed(*FOLDER, root, "--out", out, *SMALL_SHARDS, "--max-failures", "20")
    made, plan = contents(out), json.loads((out / "plan.json").read_text())
    for name in ("listed", "left_out"):
        del plan[name]
    for manifest in (True, False):  # finished, and killed before it was
        (out / "plan.json").write_text(json.dumps(plan | {"unlisted": 3}))
        if not manifest:
            (out / "manifest.json").unlink()
        succeed(*FOLDER, root, "--out", out, *SMALL_SHARDS, "--max-failures", "20")
        assert contents(out) == made
    (out / "plan.json").write_text(json.dumps(plan | {"unlisted": 3}))
    for command in (("merge", out, "--max-failures", "20"), ("retry", out, "--max-failures", "100")):
        assert "8 videos" in succeed("-m", "preprocess", *command)


def test_missing_videos_are_a_warning_or_an_error(half_broken: tuple[Path, Path], tmp_path: Path) -> None:
    root, lists = half_broken
    ucf = ("-m", "preprocess", "ucf101", "--root", root, "--splits", lists, "--max-failures", "50", "--out", tmp_path / "set")
    made = run(*ucf)
    warning = "warning: 1 of 5 listed videos are missing, more than 5 percent"
    assert made.returncode == 0 and made.stderr.count(warning) == 2  # before the work and after it
    error = "error: 1 of 5 listed videos are missing, more than --max-missing 19 percent"
    for command in (ucf, (*ucf, "--dry-run"), ("-m", "preprocess", "merge", tmp_path / "set", "--max-failures", "50")):
        beyond = run(*command, "--max-missing", "19")
        assert beyond.returncode == 1 and error in beyond.stderr and "warning" not in beyond.stderr
        assert "listed videos" not in run(*command, "--max-missing", "20").stderr
    again = run("-m", "preprocess", "retry", tmp_path / "set", "--max-missing", "0")
    assert again.returncode == 1
    assert "2 of 2 videos failed, more than --max-failures 5 percent; 1 of 5 listed videos are missing" in again.stderr
    encode(render("up", "rings", ("gone",))[0], 25, root / "A/gone.avi")
    assert "listed videos" not in run("-m", "preprocess", "retry", tmp_path / "set").stderr
    (root / "A/gone.avi").unlink()
    limited = run(*ucf[:-1], tmp_path / "limited", "--limit", "2", "--max-missing", "25")  # the share is of the whole list
    assert limited.returncode == 0, limited.stderr
    assert "--max-missing 101.0: expected 0 to 100" in refuse(*ucf, "--max-missing", "101")


def test_append_keeps_the_numbers_of_classes(few: Path, tmp_path: Path) -> None:
    """Also of missing videos, which retry adds; and a video that is in the set and no longer on disk is not missing."""
    root, out, table = tmp_path / "root", tmp_path / "set", tmp_path / "list.csv"
    shutil.copytree(few, root)
    csv = ("-m", "preprocess", "csv", "--root", root, "--list", table, "--out", out, "--size", "32")
    table.write_text("path,label\nA/0.mp4,7\nB/1.avi,99999\n")
    succeed(*csv)
    assert ShardSet(out).manifest.classes == {"action": ["7", "99999"]}
    (root / "A/0.mp4").unlink()
    (root / "A/4.avi").rename(tmp_path / "4.avi")
    table.write_text("path,label\nA/0.mp4,7\nB/1.avi,99999\nA/2.avi,10\nA/4.avi,10\nB/3.mp4,7\n")
    succeed(*csv, "--append")
    (tmp_path / "4.avi").rename(root / "A/4.avi")
    lines = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert [(line["path"], line["stage"]) for line in lines if line["stage"] != "left-out"] == [("A/4.avi", "missing")]
    succeed("-m", "preprocess", "retry", out)
    shards = ShardSet(out)
    assert shards.manifest.classes == {"action": ["7", "99999", "10"]}
    labels = dict(zip(shards.keys, shards.labels["action"].tolist(), strict=True))
    assert labels == {"A_0": 0, "B_1": 1, "A_2": 2, "B_3": 0, "A_4": 2}


def test_a_list_with_kinds_of_label_and_seconds(few: Path, tmp_path: Path) -> None:
    """Also of a video that was missing: retry knows its seconds and its labels."""
    root, out, table = tmp_path / "root", tmp_path / "set", tmp_path / "list.tsv"
    shutil.copytree(few, root)
    (root / "A/2.avi").rename(tmp_path / "2.avi")
    lines = ["clip\tmotion\tscene\tstart_seconds\tend_seconds", f"{root}/A/0.mp4\tleft\t2\t0.2\t0.8", "B/1.avi\t\t10\t\t"]
    table.write_text("\n".join([*lines, "A/2.avi\tup\t10\t0.4\t"]))
    command = (
        "-m", "preprocess", "csv", "--root", root, "--list", table, "--out", out, "--size", "32",
        "--path-column", "clip", "--label-column", "motion,scene",
    )  # fmt: skip
    said = succeed(*command, "--dry-run").splitlines()
    assert said[:4] == [
        f"{table}: a header, tabs; start_seconds in seconds",
        "line 2: A/0.mp4[0.2:0.8], motion 'left', scene '2', split 'all'",
        "line 3: B/1.avi, scene '10', split 'all'",
        "line 4: A/2.avi[0.4:], motion 'up', scene '10', split 'all'",
    ]
    succeed(*command)
    (tmp_path / "2.avi").rename(root / "A/2.avi")
    succeed("-m", "preprocess", "retry", out)
    shards, whole = ShardSet(out), len(ShardSet(made(few, tmp_path)).read(1))
    assert shards.manifest.classes == {"motion": ["left", "up"], "scene": ["2", "10"]}
    metas = [shards.read(number).meta for number in range(3)]
    assert [(m.video, m.label, m.class_name, m.labels) for m in metas] == [
        ("A/0.mp4[0.2:0.8]", 0, "left", {"motion": 0, "scene": 0}),
        ("B/1.avi", None, None, {"scene": 1}),
        ("A/2.avi[0.4:]", 1, "up", {"motion": 1, "scene": 1}),
    ]
    assert [(m.source.first, m.frames) for m in metas[::2]] == [(5, 15), (10, whole - 10)]
    assert shards.labels["motion"].tolist() == [0, -1, 1] and shards.labels["scene"].tolist() == [0, 1, 1]


def test_something_something_in_its_official_form(few: Path, tmp_path: Path) -> None:
    """Drawn webm videos by their ids, and the JSON files."""
    root, lists = tmp_path / "20bn-something-something-v2", tmp_path / "labels"
    root.mkdir()
    lists.mkdir()
    for id, video in zip(("78687", "42326", "151201"), sorted(few.rglob("*.avi")), strict=False):
        with av.open(str(video)) as source, av.open(str(root / f"{id}.webm"), "w") as container:
            stream = container.add_stream("libvpx", rate=12)
            stream.width, stream.height, stream.pix_fmt = 110, 110, "yuv420p"
            for number, frame in enumerate(source.decode(video=0)):
                frame = frame.reformat(110, 110, "yuv420p")
                frame.pts, frame.time_base = number, Fraction(1, 12)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    classes = {"Holding [something] next to [something]": "1", "Putting [something similar to other things] on the table": "0"}
    entries = [
        {"id": id, "label": "a sentence", "template": template, "placeholders": ["a cup"]}
        for id, template in zip(("78687", "42326"), classes, strict=True)
    ]
    (lists / "labels.json").write_text(json.dumps({re.sub(r"[\[\]]", "", name): number for name, number in classes.items()}))
    (lists / "train.json").write_text(json.dumps(entries[:1]))
    (lists / "validation.json").write_text(json.dumps(entries[1:]))
    (lists / "test.json").write_text('[{"id": "151201"}]')
    out = tmp_path / "set"
    succeed("-m", "preprocess", "ssv2", "--root", tmp_path, "--splits", lists, "--out", out, "--size", "32")
    shards = ShardSet(out)
    assert shards.manifest.splits == {"test": 1, "train": 1, "validation": 1} and set(shards.fps_N) == {12}
    metas = {shards.read(number).meta.video: shards.read(number).meta for number in range(3)}
    assert {Path(video).name: (meta.class_name, meta.splits) for video, meta in metas.items()} == {
        "78687.webm": ("Holding something next to something", ("train",)),
        "42326.webm": ("Putting something similar to other things on the table", ("validation",)),
        "151201.webm": (None, ("test",)),
    }


def made(root: Path, place: Path) -> Path:
    succeed(*FOLDER, root, "--out", place / "whole", "--size", "32")
    return place / "whole"


@needs_real_data
def test_videos_with_rare_suffixes_become_a_set(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("mts.MTS", "ogv.ogv"):
        (root / name[:3]).mkdir(parents=True)
        shutil.copy(REAL / "reports/video" / name, root / name[:3])
    (root / "ogv").rename(tmp_path / "elsewhere")
    (root / "ogv").symlink_to("../elsewhere")
    assert "2 videos" in succeed(*FOLDER, root, "--follow-links", "--out", tmp_path / "set", "--size", "32")
    assert ShardSet(tmp_path / "set").manifest.classes == {"action": ["mts", "ogv"]} and not left_out(tmp_path / "set")


@needs_real_data
def test_class_names_are_kept_as_they_stand(few: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for number, video in zip((1, 3, 5, 6), sorted(few.rglob("*.mp4")) * 2, strict=False):
        shutil.copy(video, root / f"{number}.mp4")
    table, out = REAL / "reports/lists/mathname.csv", tmp_path / "set"
    succeed("-m", "preprocess", "csv", "--root", root, "--list", table, "--out", out, "--size", "32")
    shards = ShardSet(out)
    assert shards.manifest.classes == {"action": ["$x_1^{$", "日本語"]}
    assert [shards.read(sample).meta.class_name for sample in range(4)] == ["$x_1^{$", "日本語"] * 2
    succeed("-m", "preprocess", "stats", out, "--out", tmp_path / "stats.png")
    succeed("-m", "preprocess", "preview", out, "--out", tmp_path / "sheet.png")


def test_retry_adds_what_was_repaired_and_nothing_else_changes(half_broken: tuple[Path, Path], tmp_path: Path) -> None:
    root, lists = half_broken
    out = tmp_path / "set"
    run("-m", "preprocess", "ucf101", "--root", root, "--splits", lists, "--out", out)
    before = contents(out)
    still = run("-m", "preprocess", "retry", out)
    assert still.returncode == 1 and "2 of 2 videos failed" in still.stderr
    assert ShardSet(out).keys == ["A_good1", "A_good2"]
    for name in ("text.avi", "cut.mp4", "gone.avi"):
        encode(render("up", "rings", (name,))[0], 25, root / "A" / name)
    said = succeed("-m", "preprocess", "retry", out)
    assert "5 videos in 2 shards" in said and "splits: test01 1, train01 4" in said and "failed" not in said
    assert (out / "failures.jsonl").read_text() == ""
    after = contents(out)
    assert after["shard-000000.tar"] == before["shard-000000.tar"]
    shards = ShardSet(out)
    assert shards.keys == ["A_good1", "A_good2", "A_cut", "A_gone", "A_text"] and len(shards.select(["train01"])) == 4
    assert "there was nothing new to try" in succeed("-m", "preprocess", "retry", out)
    assert contents(out) == after
    assert "no faults" in succeed("-m", "preprocess", "verify", out, "--deep")


def test_append_adds_the_new_videos_of_a_grown_set(few: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "set"
    shutil.copytree(few, root)
    succeed(*FOLDER, root, "--out", out, *SMALL_SHARDS)
    before = contents(out)
    assert "there was nothing new to try" in succeed(*FOLDER, root, "--out", out, *SMALL_SHARDS, "--append")
    for name in ("A/new.avi", "AA/new.avi"):  # a class whose name sorts between the old ones
        encode(render("up", "rings", (name,))[0], 25, root / name)
    assert "a finished shard set is there already" in refuse(*FOLDER, root, "--out", out, *SMALL_SHARDS)
    otherwise = (*FOLDER, root, "--out", out, "--size", "64", "--shard-size", "1")
    for more in ((), ("--append",)):  # which would be refused too, and is not advised
        said = refuse(*otherwise, *more)
        assert "--size 64" in said and "made with --size 96; give the same to append to it, or name another" in said
    assert "10 videos" in succeed(*FOLDER, root, "--out", out, *SMALL_SHARDS, "--append")
    after, shards = contents(out), ShardSet(out)
    whole = ("manifest.json", "index.npz")  # these are of the whole set
    assert {name: data for name, data in after.items() if name in before and name not in whole} == {
        name: data for name, data in before.items() if name not in whole
    }
    assert shards.manifest.classes == {"action": ["A", "B", "AA"]}
    assert {key: int(label) for key, label in zip(shards.keys, shards.labels["action"], strict=True) if "new" in key} == {
        "A_new": 0, "AA_new": 2,
    }  # fmt: skip
    (root / "A/0.mp4").rename(root / "B/0.mp4")
    encode(render("up", "rings", ("x",))[0], 25, root / "A/0.mp4")
    succeed(*FOLDER, root, "--out", out, *SMALL_SHARDS, "--append")
    assert len(ShardSet(out)) == 11


def remuxed(source: Path, path: Path) -> None:
    """The same packets in another container."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)


@pytest.fixture
def copies(few: Path, tmp_path: Path) -> Path:
    """The eight videos, a copy and a remuxed copy of two of them, and a part of a third, in a list of train and test."""
    root = tmp_path / "root"
    shutil.copytree(few, root)
    shutil.copy(root / "A/0.mp4", root / "B/copy.mp4")
    remuxed(root / "A/2.avi", root / "B/remuxed.mkv")
    lines = [f"{'AB'[n % 2]}/{n}.{'avi' if n % 3 else 'mp4'},train,," for n in range(8) if n != 7]
    lines += ["B/7.avi,train,0,20", "B/7.avi,test,20,40", "B/copy.mp4,test,,", "B/remuxed.mkv,test,,", "A/6.mp4,test,,"]
    (tmp_path / "list.csv").write_text("\n".join(["path,split,start,end", *lines]))
    return root


CSV = ("-m", "preprocess", "csv", "--size", "32", "--root")


def test_a_video_that_trains_and_tests_is_named_with_both_keys(copies: Path, tmp_path: Path) -> None:
    """By its path, or by its packets; the set is made all the same, and an evaluation names them too."""
    listed, out = ("--list", tmp_path / "list.csv"), tmp_path / "set"
    made = run(*CSV, copies, *listed, "--out", out)
    said = [line for line in made.stderr.splitlines() if line.startswith("warning: ")]
    assert made.returncode == 0 and len(said) == 2, made.stderr
    for line, what, *pairs in zip(
        said,
        ("of the same file", "the same packets"),
        ("B_7_0_20_ and B_7_20_40_", "A_0 and B_copy"),
        ("A_6 and A_6", "A_2 and B_remuxed"),
        strict=True,
    ):
        assert f"warning: 2 videos are in train and in test ({what}): " in line and all(pair in line for pair in pairs)
    assert [line for line in run("-m", "preprocess", "merge", out).stderr.splitlines() if "warning" in line] == said
    shards = ShardSet(out)
    content = dict(zip(shards.keys, shards.content_N.tolist(), strict=True))
    assert content["A_0"] == content["B_copy"] and len(set(content.values())) == len(content) - 2
    records = {shards.keys[n]: shards.read(n) for n in range(len(shards))}
    assert records["A_0"].meta.source.content == records["B_copy"].meta.source.content


def test_segments_of_copies_have_the_same_contents_and_those_of_one_video_others(copies: Path, tmp_path: Path) -> None:
    succeed(*FOLDER, copies, "--out", tmp_path / "set", "--size", "32", "--segment", "0.4")
    shards = ShardSet(tmp_path / "set")
    content = dict(zip(shards.keys, shards.content_N.tolist(), strict=True))
    for one, other in (("A_0", "B_copy"), ("A_2", "B_remuxed")):
        parts = [key for key in content if key.startswith(f"{one}_s")]
        assert len(parts) > 2 and all(content[key] == content[key.replace(one, other)] for key in parts)
        assert len({content[key] for key in parts}) == len(parts)


def test_the_index_says_how_much_moves(few: Path, tmp_path: Path) -> None:
    succeed(*FOLDER, few, "--out", tmp_path / "set", "--size", "32")
    shards = ShardSet(tmp_path / "set")
    for sample in range(len(shards)):
        assert shards.motion_N[sample] == pytest.approx(shards.read(sample).array("energy").mean(), abs=1e-4)
    assert shards.motion_N.min() > 0 and len(set(shards.motion_N.tolist())) == 8
    assert "motion   least, quartiles" in succeed("-m", "preprocess", "stats", tmp_path / "set", "--out", tmp_path / "s.png")
    succeed(*FOLDER, few, "--out", tmp_path / "none", "--size", "32", "--cues", "diff")
    assert np.isnan(ShardSet(tmp_path / "none").motion_N).all()


def aged(out: Path) -> None:
    """Make the indexes those of a version that knew neither motion nor content."""
    for index in out.glob("shard-??????.jsonl"):
        lines = [json.loads(line) for line in index.read_text().splitlines()]
        newer = ("motion", "content")
        index.write_text("".join(json.dumps({n: v for n, v in line.items() if n not in newer}) + "\n" for line in lines))
    plan = RunPlan.load(open_folder(str(out)))
    finish(open_folder(str(out)), plan)


def test_a_set_of_an_older_version_is_appended_to_and_learns_its_motion(few: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "set"
    shutil.copytree(few, root)
    succeed(*FOLDER, root, "--out", out, *SMALL_SHARDS)
    new = contents(out)
    aged(out)
    assert np.isnan(ShardSet(out).motion_N).all() and contents(out)["shard-000000.tar"] == new["shard-000000.tar"]
    assert "8 videos" in succeed(*FOLDER, root, "--out", out, *SMALL_SHARDS)  # finished: nothing is made again
    encode(render("up", "rings", ("more",))[0], 25, root / "A/more.avi")
    succeed(*FOLDER, root, "--out", out, *SMALL_SHARDS, "--append")
    shards = ShardSet(out)
    assert np.isnan(shards.motion_N).sum() == 8 and shards.motion_N[8] > 0 and (shards.content_N >= 0).sum() == 1
    said = refuse("train_pretrain.py", "--shards", out, "--split", "all", "--min-motion", "1", *SMALL, "--out", tmp_path / "no")
    assert f"--min-motion 1: the index of {out} does not say how much moves" in said and f"preprocess merge {out}" in said
    succeed("-m", "preprocess", "merge", out)
    found = ShardSet(out).motion_N
    assert found.min() > 0 and len(found) == 9
    again = contents(out)
    succeed("-m", "preprocess", "merge", out)
    assert contents(out) == again
    (out / "shard-000000.tar").write_bytes(b"x" * 1024)
    aged(out)
    assert f"{out}/shard-000000.tar: " in (said := refuse("-m", "preprocess", "merge", out)) and "copy it again" in said


def test_parts_and_merge_give_the_set_of_one_run(few: Path, tmp_path: Path) -> None:
    succeed(*FOLDER, few, "--out", tmp_path / "one", *SMALL_SHARDS)
    parts = [(*FOLDER, few, "--out", tmp_path / "parts", *SMALL_SHARDS, "--part", f"{i}/3") for i in (1, 2, 3)]
    assert "python -m preprocess merge" in succeed(*parts[1])
    assert "shards are not made yet (shard-000000" in refuse("-m", "preprocess", "merge", tmp_path / "parts")
    for part in (parts[2], parts[0]):
        succeed(*part)
    assert "8 videos" in succeed("-m", "preprocess", "merge", tmp_path / "parts")
    assert contents(tmp_path / "parts") == contents(tmp_path / "one") and len(ShardSet(tmp_path / "one").manifest.shards) >= 3
    assert "expected I/N" in refuse(*FOLDER, few, "--out", tmp_path / "x", "--part", "0/3")


def test_a_part_that_kept_nothing_is_an_error(few: Path, tmp_path: Path) -> None:
    """Slurm starts nothing then that waits for it (afterok). It is tried again, or the set is made of the rest."""
    root, out = tmp_path / "root", tmp_path / "set"
    root.mkdir()
    shutil.copy(few / "A/0.mp4", root)
    (root / "none.avi").write_bytes(bytes(1_000_000))  # a shard of its own
    command = (*FOLDER, root, "--out", out, *SMALL_SHARDS)
    assert "part 1/3 is made" in succeed(*command, "--part", "1/3")
    for _ in range(2):
        said = refuse(*command, "--part", "2/3")
        assert f"{out}: part 2/3 on {socket.gethostname()} kept none of its 1 videos; none.avi: " in said
    assert "part 3/3 is made" in succeed(*command, "--part", "3/3")  # of two shards it has none
    assert "1 of 2 shards are not made yet (shard-000001)" in refuse("-m", "preprocess", "merge", out)
    assert "failed: 1 videos: none.avi" in succeed(*command, "--max-failures", "50")


def test_a_listed_file_that_is_gone_is_named_with_its_host(few: Path, tmp_path: Path) -> None:
    task = Task(Video("A/gone.avi", {}, ("all",)), "gone", None, "A/gone.avi")
    for root, path in ((Folder(str(few)), few / "A/gone.avi"), (TarFolder(Folder(str(few))), few / "A.tar")):
        if isinstance(root, TarFolder):
            task = replace(task, file="A.tar[512:100]")
        lost = make_samples(task, root, Options(), tmp_path)
        assert isinstance(lost, Failure) and (lost.path, lost.stage) == ("A/gone.avi", "open")
        assert lost.reason == f"{socket.gethostname()}: {path}: No such file or directory"


def test_killed_at_any_moment_and_started_again_the_bytes_are_the_same(tmp_path: Path) -> None:
    """SIGKILL at 20 random moments; leftovers of a killed run go at the next start."""
    root = tmp_path / "root"
    for number in range(40):
        encode(render("left", "dots", ("kill", number))[0][:30], 25, root / f"{number:02d}.avi")
    command = [sys.executable, *FOLDER, str(root), "--out"]
    succeed(*FOLDER, root, "--out", tmp_path / "straight", "--size", "96", "--shard-size", "1", "--workers", "2")
    assert len(ShardSet(tmp_path / "straight").manifest.shards) >= 5
    kills, rng, out = 0, np.random.default_rng(0), tmp_path / "killed"
    while kills < 20:
        process = subprocess.Popen(
            [*command, str(out), "--size", "96", "--shard-size", "1", "--workers", "2"],
            cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            process.wait(rng.uniform(0.3, 1.6))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        if process.wait() == 0:  # it was done before its moment came: once more from the start
            assert contents(out) == contents(tmp_path / "straight")
            shutil.rmtree(out)
    succeed(*FOLDER, root, "--out", out, "--size", "96", "--shard-size", "1", "--workers", "3")
    assert contents(out) == contents(tmp_path / "straight")
    assert not list(out.glob(".*"))


def test_a_second_start_keeps_what_is_done_and_makes_what_is_damaged(few: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    succeed(*FOLDER, few, "--out", out, *SMALL_SHARDS)
    whole = contents(out)
    made = {name: (out / name).stat().st_mtime_ns for name in whole}
    (out / "manifest.json").unlink()
    (out / "shard-000001.tar").write_bytes(whole["shard-000001.tar"][:-600] + bytes(600))
    (out / "shard-000000.jsonl").unlink()
    for name in (".shard-000000.x.tmp", ".shard-000000.y.tmp"):
        (out / name).write_text("half")
    (out / "shard-000099.tar").write_text("of a run with other videos")
    succeed(*FOLDER, few, "--out", out, *SMALL_SHARDS)
    assert contents(out) == whole
    assert (out / "shard-000002.tar").stat().st_mtime_ns == made["shard-000002.tar"]
    assert (out / "shard-000001.tar").stat().st_mtime_ns > made["shard-000001.tar"]
    (out / "manifest.json").unlink()
    assert "an unfinished set made with other options" in refuse(*FOLDER, few, "--out", out, "--size", "64")
    assert (out / "shard-000002.tar").stat().st_mtime_ns == made["shard-000002.tar"]


def test_a_folder_with_shards_of_something_else_is_left_alone(few: Path, tmp_path: Path) -> None:
    (tmp_path / "shard-000042.tar").write_text("of another tool")
    assert "there are shards that no plan.json here explains" in refuse(*FOLDER, few, "--out", tmp_path)
    assert (tmp_path / "shard-000042.tar").read_text() == "of another tool"


def test_a_full_disk_is_one_line_and_what_is_finished_stays(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from preprocess.__main__ import main

    puts = Folder.put

    def put(self: Folder, name: str, file: Path) -> None:
        if name == "shard-000001.tar":
            raise OSError(errno.ENOSPC, "No space left on device")
        puts(self, name, file)

    command = ["folder", "--root", str(few), "--out", str(tmp_path / "set"), *SMALL_SHARDS, "--workers", "1"]
    with monkeypatch.context() as patched:
        patched.setattr(Folder, "put", put)
        with pytest.raises(InputError, match="No space left on device; finished shards are kept"):
            main(command)
    assert (tmp_path / "set/shard-000000.jsonl").exists() and not list((tmp_path / "set").glob(".*"))
    main(command)
    assert len(ShardSet(tmp_path / "set")) == 8


def test_a_second_start_counts_from_what_is_kept(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from preprocess.__main__ import main

    root, puts = tmp_path / "root", Folder.put
    shutil.copytree(few, root)
    (root / "A/1.avi").write_text("no video")

    def put(self: Folder, name: str, file: Path) -> None:
        if name == "shard-000001.tar":
            raise KeyboardInterrupt
        puts(self, name, file)

    command = ["folder", "--root", str(root), "--out", str(tmp_path / "set"), *SMALL_SHARDS, "--workers", "1"]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Folder, "put", put)
        main(command)
    kept = len((tmp_path / "set/shard-000000.jsonl").read_text().splitlines())  # its header counts for the video that failed
    seen, bar = [], bars.bar

    def watched(*arguments: Any, **how: Any) -> Any:
        seen.append(how)
        return bar(*arguments, **how)

    monkeypatch.setattr("dclr.bars.bar", watched)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="1 of 9 videos failed"):
        main(command)
    assert seen[-1]["initial"] == kept > 1 and seen[-1]["total"] == 9
    assert re.search(r"transcoding: 100% 9/9 \[.*failed=1\]", capsys.readouterr().err)


def test_a_dry_run_says_what_would_come_and_writes_nothing(few: Path, tmp_path: Path) -> None:
    said = succeed(*FOLDER, few, "--out", tmp_path / "set", *SMALL_SHARDS, "--dry-run")
    assert "8 videos" in said and "shards of about 0.0" in said and "minutes on" in said
    assert not (tmp_path / "set").exists()


def test_too_little_space_is_refused_before_work_starts(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from preprocess.__main__ import main

    monkeypatch.setattr(Folder, "free", lambda self: 1000)
    with pytest.raises(InputError, match=r"about 0\.0 GB are needed and 0\.0 GB are free"):
        main(["folder", "--root", str(few), "--out", str(tmp_path / "set")])
    assert not list(tmp_path.iterdir())


def test_segments_are_samples_that_share_a_video(few: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    said = succeed(*FOLDER, few, "--out", out, "--size", "32", "--segment", "0.8")
    shards = ShardSet(out)
    assert f"{len(shards)} segments" in said and len(shards) > 8 and len(set(shards.video_N)) == 8
    mine = np.flatnonzero(shards.video_N == video_id("A/0.mp4")).tolist()
    assert [shards.keys[n] for n in mine] == [f"A_0_s{i:05d}" for i in range(len(mine))]
    assert [shards.read(n).meta.source.first for n in mine] == [20 * i for i in range(len(mine))]
    assert all(shards.frames_N[n] == 20 for n in mine[:-1]) and 0 < shards.frames_N[mine[-1]] <= 20
    succeed(*FOLDER, few, "--out", tmp_path / "whole", "--size", "32")
    uncut = ShardSet(tmp_path / "whole")
    whole = uncut.read(int(np.flatnonzero(uncut.video_N == video_id("A/0.mp4"))[0]))
    assert len(whole) == sum(shards.frames_N[n] for n in mine)
    np.testing.assert_array_equal(shards.read(mine[1]).frames([0, 3]), whole.frames([20, 23]))


def test_a_video_above_max_seconds_fails_and_says_the_way_out(few: Path, tmp_path: Path) -> None:
    done = run(*FOLDER, few, "--out", tmp_path / "set", "--size", "32", "--max-seconds", "1.8")
    failures = [json.loads(line) for line in (tmp_path / "set/failures.jsonl").read_text().splitlines()]
    assert done.returncode == 1 and {f["stage"] for f in failures} == {"length"}
    assert "a set made with segment cuts it" in failures[0]["reason"] and len(failures) + len(ShardSet(tmp_path / "set")) == 8


def test_videos_out_of_time_are_killed_and_listed(few: Path, tmp_path: Path) -> None:
    assert "not done after 0.001 seconds" in refuse(*FOLDER, few, "--out", tmp_path / "set", "--timeout", "0.001")
    failures = [json.loads(line) for line in (tmp_path / "set/failures.jsonl").read_text().splitlines()]
    assert Counter(f["stage"] for f in failures) == {"timeout": 8, "left-out": 2}  # and both classes
    assert "8 videos" in succeed(*FOLDER, few, "--out", tmp_path / "set")


def test_a_long_video_spools_to_disk_and_no_byte_differs(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task(Video("A/0.mp4", {}, ("all",)), "k", None, "A/0.mp4")
    options = Options(size=64, cues=("diff", "flow", "energy"))
    small = make_samples(task, open_folder(few), options, tmp_path)
    monkeypatch.setattr("preprocess.transcode.SPOOL", 20_000)
    monkeypatch.setattr("preprocess.write.SPOOL", 20_000)
    large = make_samples(task, open_folder(few), options, tmp_path)
    assert isinstance(small, Made) and isinstance(large, Made)
    assert isinstance(small.data, bytes) and isinstance(large.data, Path) and small.parts == large.parts
    assert b"".join(large.pieces()) == small.data
    large.discard()
    assert not list(tmp_path.iterdir())


def test_an_unlabelled_folder_pretrains_and_has_no_label_figures(tmp_path: Path) -> None:
    for number in range(8):
        encode(render("left", "dots", (number,))[0], 25, tmp_path / "root" / f"{number}.avi")
    out = tmp_path / "set"
    assert "splits: all 8" in succeed(*FOLDER, tmp_path / "root", "--out", out, "--size", "32")
    said = succeed("-m", "preprocess", "stats", out, "--out", tmp_path / "stats.png")
    assert "classes" not in said and ShardSet(out).manifest.classes == {} and ShardSet(out).read(0).meta.label is None
    succeed(
        "train_pretrain.py",
        "--shards",
        out,
        "--split",
        "all",
        "--out",
        tmp_path / "run",
        *SMALL,
        "-b",
        "4",
        "--queue",
        "8",
        "--epochs",
        "1",
    )
    assert "no label" in refuse(
        "train_eval.py", "linear", "--shards", out, "--train-split", "all", "--test-split", "all",
        "--pretrained", tmp_path / "run/last.pt", "--out", tmp_path / "eval",
    )  # fmt: skip


def test_preprocess_refuses_what_cannot_work(half_broken: tuple[Path, Path], tmp_path: Path, synthetic_set: Path) -> None:
    root, lists = half_broken
    ucf = ("-m", "preprocess", "ucf101", "--root", root, "--splits", lists, "--out")
    before = contents(synthetic_set)
    assert "a finished shard set is there already" in refuse(*ucf, synthetic_set)
    assert contents(synthetic_set) == before
    for flags, says in (
        (("--size", "4"), "--size 4: expected 16 to 1024"),
        (("--workers", "0"), "--workers 0: expected 1 to 100000"),
        (("--quality", "0"), "--quality 0: expected 1 to 100"),
        (("--codec", "h264", "--quality", "90"), "--quality 90: expected 0 to 51"),
        (("--codec", "h264", "--size", "113"), "--size 113: --codec h264 needs an even number"),
        (("--cues", "diff,taste"), "--cues taste: expected any of diff, flow, energy"),
        (("--cues", "none", "--stabilise"), "no cues to stabilise"),
        (("--max-failures", "101"), "--max-failures 101.0: expected 0 to 100"),
        (("--append",), "no manifest.json there"),
    ):
        assert says in refuse(*ucf, tmp_path / "s", *flags)
    (tmp_path / "empty").mkdir()
    no_videos = refuse("-m", "preprocess", "ucf101", "--root", tmp_path / "empty", "--splits", lists, "--out", tmp_path / "s")
    assert "no videos in it" in no_videos
    (tmp_path / "file").write_text("x")
    assert "cannot be a folder" in refuse(*ucf, tmp_path / "file")
    assert "such as sheet.png" in refuse("-m", "preprocess", "preview", synthetic_set, "--out", tmp_path / "sheet")
    assert "such as stats.png" in refuse("-m", "preprocess", "stats", synthetic_set, "--out", tmp_path / "stats.xyz")
    assert "no plan.json there" in refuse("-m", "preprocess", "merge", tmp_path / "empty")
    assert "a finished shard set is there already" in refuse(
        "-m", "preprocess", "synthetic", "--out", synthetic_set, "--seed", "9"
    )
    assert not (synthetic_set / "videos/lab9").exists()
    for name in ("good1.mp4", "good2.mp4", "cut.mp4"):
        shutil.copy(root / "A/text.avi", root / "A" / name)
    assert "none of the videos could be transcoded" in refuse(*ucf, tmp_path / "s")


PLAN = {"dataset": "folder", "root": "r", "classes": {}, "options": {}, "keep": [], "shards": {}, "failures": []}


@pytest.mark.parametrize(
    "text",
    ["{", "[1]", '{"version": 9}', '{"shards": {"../../x": "r"}}']
    + [
        json.dumps(PLAN | {"ratio": 1.0} | change)
        for change in (
            {"shards": {"../../x": "r"}}, {"keep": ["../x"]}, {"shards": ["shard-000000"]}, {"failures": [{"path": 1}]},
            {"failures": "x"}, {"ratio": None}, {"options": []}, {"root": 5}, {"version": 9},
            {"left_out": []}, {"left_out": {"a": 1}}, {"listed": "3"},
        )
    ],
)  # fmt: skip
def test_a_plan_that_is_none_is_named(few: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    assert "plan.json: not a plan of this version" in refuse(*FOLDER, few, "--out", tmp_path)


@needs_real_data
def test_real_clips_become_a_set(tmp_path: Path) -> None:
    said = succeed(
        "-m", "preprocess", "ucf101", "--root", REAL / "ucf101/videos", "--splits", REAL / "ucf101/splits16",
        "--out", tmp_path / "set", "--size", "64", "--limit", "12",
    )  # fmt: skip
    assert "12 videos in 1 shards" in said
    shards = ShardSet(tmp_path / "set")
    assert all(len(shards.read(i)) == shards.frames_N[i] > 40 for i in range(12))


def test_a_second_preprocess_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    """It removed the first's temporary files as what a killed run had left."""
    videos, out = tmp_path / "videos", tmp_path / "set"
    encode(np.tile(render("left", "dots", (0,))[0], (4, 1, 1, 1)), 25, videos / "0.mp4")
    for number in range(1, 12):
        shutil.copy(videos / "0.mp4", videos / f"{number}.mp4")
    slow = ("--size", "256", "--cues", "diff,flow,energy", "--stabilise", "--workers", "1")
    make = ("-m", "preprocess", "folder", "--root", videos, "--out", out, *slow)
    process = subprocess.Popen(
        [sys.executable, *map(str, make)], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while not (out / "plan.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    for command in (make, ("-m", "preprocess", "merge", out), (*make, "--part", "1/2")):
        assert f"error: {out}: process {process.pid} on " in refuse(*command)
    said = process.communicate()[0]
    assert process.returncode == 0 and "12 videos in 1 shards" in said, said
    assert "no faults" in succeed("-m", "preprocess", "verify", out) and not list(out.glob(".*"))
