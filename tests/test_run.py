"""Whole sets: the same bytes on any number of workers, failures that cost only themselves, stock readers."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from conftest import REAL, needs_real_data, refuse, succeed

from dclr.data.loader import read_record
from dclr.data.manifest import ShardSet
from preprocess.synthetic import MOTIONS, SCENES, encode, plan, render


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_the_same_bytes_on_any_number_of_workers(tmp_path: Path) -> None:
    options = ("--videos", "24", "--size", "32", "--shard-size", "1", "--seed", "5")
    for workers in ("1", "3"):
        succeed("-m", "preprocess", "synthetic", "--out", tmp_path / workers, *options, "--workers", workers)
    first, second = contents(tmp_path / "1"), contents(tmp_path / "3")
    assert first == second and len(first) > 4  # more than one shard
    videos = [{str(p.relative_to(tmp_path / w)): p.read_bytes() for p in (tmp_path / w).rglob("*_*.*")} for w in "13"]
    assert videos[0] == videos[1] and len(videos[0]) == 24


def test_a_stock_webdataset_reader_iterates_the_shards(synthetic_set: Path) -> None:
    keys = []
    for tar in sorted(synthetic_set.glob("*.tar")):
        for sample in wds.WebDataset(str(tar), shardshuffle=False).decode():
            keys.append(sample["__key__"])
            assert sample["json"]["frames"] == len(sample["energy.npy"]) == len(sample["idx"]) // 8 - 1
            assert sample["mjpg"].startswith(b"\xff\xd8") and sample["diff.mjpg"].endswith(b"\xff\xd9")
    assert keys == ShardSet(synthetic_set).keys


def test_the_json_says_what_is_known(synthetic_set: Path) -> None:
    meta = read_record(ShardSet(synthetic_set), 0).meta
    assert set(meta) == {
        "version", "frames", "fps", "label", "labels", "class", "splits", "source", "video", "width", "height",
    }  # fmt: skip
    assert meta["class"] == MOTIONS[meta["label"]] and meta["label"] == meta["labels"]["motion"] and meta["splits"] == ["test"]
    assert not Path(meta["source"]["path"]).is_absolute() and min(meta["width"], meta["height"]) == 32


def test_every_instant_of_every_motion_has_the_same_places_and_sizes() -> None:
    """The object's colours are vivid, the background's are not: count vivid pixels by place, per motion class."""

    def vivid(motion: str) -> np.ndarray:
        total = np.zeros((2, 2))
        for i in range(40):
            frames, _ = render(motion, "clouds", ("test", motion, i))
            spread = frames[:: len(frames) // 4].max(-1).astype(int) - frames[:: len(frames) // 4].min(-1) > 150
            h, w = spread.shape[1] // 2, spread.shape[2] // 2
            total += [
                [spread[:, :h, :w].mean(), spread[:, :h, w:].mean()],
                [spread[:, h:, :w].mean(), spread[:, h:, w:].mean()],
            ]
        return total / 40

    shares = {motion: vivid(motion) for motion in MOTIONS}
    areas = np.array([share.mean() for share in shares.values()])
    assert areas.max() / areas.min() < 1.5
    for share in shares.values():
        assert abs(share / share.sum() - 0.25).max() < 0.12


def test_the_plan_of_the_embedded_set_is_balanced() -> None:
    plans = plan(1200, 0)
    for split, count in (("train", 800), ("test", 400)):
        some = [p for p in plans if p.split == split]
        assert len(some) == count
        for names, found in ((MOTIONS, Counter(p.motion for p in some)), (SCENES, Counter(p.scene for p in some))):
            assert set(found) == set(names) and max(found.values()) - min(found.values()) <= 8
    assert len({p.seed for p in plans}) == 1200  # no scene instance twice, so none in train and in test
    assert {p.path[-4:] for p in plans} == {".avi", ".mp4"}


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


def test_a_broken_video_costs_itself_and_is_listed(half_broken: tuple[Path, Path], tmp_path: Path) -> None:
    root, lists = half_broken
    said = succeed("-m", "preprocess", "ucf101", "--root", root, "--splits", lists, "--out", tmp_path / "set")
    assert "missing: 1 videos" in said and "failed: 2 videos" in said and "splits: test01 1, train01 1" in said
    failures = [json.loads(line) for line in (tmp_path / "set/failures.jsonl").read_text().splitlines()]
    assert {f["path"]: f["stage"] for f in failures} == {"A/gone.avi": "missing", "A/text.avi": "open", "A/cut.mp4": "open"}
    assert all(f["reason"] for f in failures)
    assert ShardSet(tmp_path / "set").keys == ["A_good1", "A_good2"]
    assert not list((tmp_path / "set").glob(".*"))


def test_what_a_killed_run_left_does_not_stay(half_broken: tuple[Path, Path], tmp_path: Path) -> None:
    root, lists = half_broken
    (tmp_path / "set").mkdir()
    for name in ("shard-000007.tar", "shard-000007.jsonl", ".shard-000008.tar.tmp"):
        (tmp_path / "set" / name).write_text("half")
    succeed("-m", "preprocess", "ucf101", "--root", root, "--splits", lists, "--out", tmp_path / "set", "--limit", "3")
    assert set(contents(tmp_path / "set")) == {"shard-000000.tar", "shard-000000.jsonl", "manifest.json", "failures.jsonl"}
    assert json.loads((tmp_path / "set/manifest.json").read_text())["options"]["limit"] == 3


def test_preprocess_refuses_what_cannot_work(half_broken: tuple[Path, Path], tmp_path: Path, synthetic_set: Path) -> None:
    root, lists = half_broken
    ucf = ("-m", "preprocess", "ucf101", "--root", root, "--splits", lists, "--out")
    before = contents(synthetic_set)
    assert "a finished shard set is there already" in refuse(*ucf, synthetic_set)
    assert contents(synthetic_set) == before
    assert "--size 4: expected 16 to 1024" in refuse(*ucf, tmp_path / "s", "--size", "4")
    assert "--workers 0: expected at least 1" in refuse(*ucf, tmp_path / "s", "--workers", "0")
    (tmp_path / "empty").mkdir()
    no_videos = refuse("-m", "preprocess", "ucf101", "--root", tmp_path / "empty", "--splits", lists, "--out", tmp_path / "s")
    assert "no videos in it" in no_videos
    (tmp_path / "file").write_text("x")
    assert "cannot be a folder" in refuse(*ucf, tmp_path / "file")
    assert "such as sheet.png" in refuse("-m", "preprocess", "preview", synthetic_set, "--out", tmp_path / "sheet")
    assert "a finished shard set is there already" in refuse(
        "-m", "preprocess", "synthetic", "--out", synthetic_set, "--seed", "9"
    )
    assert not (synthetic_set / "videos/seed9").exists()
    for name in ("good1.mp4", "good2.mp4", "cut.mp4"):
        shutil.copy(root / "A/text.avi", root / "A" / name)
    assert "none of the 4 videos could be transcoded" in refuse(*ucf, tmp_path / "s")


def test_preview_shows_frames_above_cues(synthetic_set: Path, tmp_path: Path) -> None:
    import cv2

    succeed("-m", "preprocess", "preview", synthetic_set, "--out", tmp_path / "sheet.png", "--videos", "3")
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape[0] == 3 * (18 + 32 + 32 + 4) and sheet.std() > 20


@needs_real_data
def test_real_clips_become_a_set(tmp_path: Path) -> None:
    said = succeed(
        "-m", "preprocess", "ucf101", "--root", REAL / "ucf101/videos", "--splits", REAL / "ucf101/splits16",
        "--out", tmp_path / "set", "--size", "64", "--limit", "12",
    )  # fmt: skip
    assert "12 videos in 1 shards" in said
    shards = ShardSet(tmp_path / "set")
    assert all(len(read_record(shards, i)) == shards.frames_N[i] > 40 for i in range(12))
