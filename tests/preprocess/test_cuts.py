"""Cuts between shots are found where videos were spliced, and nowhere else; they reach the set, its index and its readers."""

import json
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from conftest import REAL, needs_real_data, render, stored, succeed

from dclr.data.clips import ClipConfig, crop_resize, eval_crops
from dclr.data.loader import TrainLoader, eval_loader
from dclr.data.manifest import ShardSet, read_index
from dclr.data.sets import JoinedSets
from dclr.storage import open_folder
from preprocess.cuts import AROUND, Cuts
from preprocess.synthetic import HARD, encode
from preprocess.synthetic.world import MOTIONS
from preprocess.transcode import Options, transcode


def spliced(path: Path, shots: Sequence[np.ndarray], size: tuple[int, int] = (160, 120)) -> list[int]:
    """A video of these shots, uint8 (N, H, W, 3) each of any size, and the frames at which it is cut."""
    encode(np.concatenate([[cv2.resize(picture, size) for picture in shot] for shot in shots]), 25, path)
    return np.cumsum([len(shot) for shot in shots])[:-1].tolist()


def recall_and_precision(pairs: Sequence[tuple[list[int], tuple[int, ...]]]) -> tuple[float, float]:
    """Of (true cuts, found cuts) of videos."""
    hits = sum(len(set(true) & set(found)) for true, found in pairs)
    return hits / sum(len(true) for true, _ in pairs), hits / sum(len(found) for _, found in pairs)


def drawn(number: int, frames: int) -> np.ndarray:
    rng = np.random.default_rng((5, number))
    scene = list(HARD.scenes)[number % len(HARD.scenes)]
    return render(str(rng.choice(MOTIONS)), scene, ("cut", number))[0][:frames]


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_cuts_between_drawn_shots_are_found(tmp_path: Path, suffix: str) -> None:
    rng, pairs = np.random.default_rng(0), []
    for number in range(6):
        shots = [drawn(8 * number + shot, int(rng.integers(10, 41))) for shot in range(8)]
        true = spliced(tmp_path / f"{number}{suffix}", shots)
        pairs.append((true, stored(tmp_path / f"{number}{suffix}", size=64).meta.cuts))
    recall, precision = recall_and_precision(pairs)
    assert recall >= 0.95 and precision >= 0.95, (recall, precision, pairs)


def some_frames(path: Path, frames: int) -> np.ndarray:
    with av.open(str(path)) as container:
        decoded = container.decode(video=0)
        return np.stack([frame.to_ndarray(format="rgb24") for frame, _ in zip(decoded, range(frames), strict=False)])


@needs_real_data
@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_cuts_between_real_shots_are_found(tmp_path: Path, suffix: str) -> None:
    """Of other classes and of the same one. Clips of one group are pieces of one take: of each group there is one."""
    rng, pairs = np.random.default_rng(1), []
    videos = list({path.name[:-8]: path for path in sorted((REAL / "ucf101/videos").rglob("*.avi"))}.values())
    for number in range(5):
        near = int(rng.integers(len(videos) - 4))
        chosen = [*videos[near : near + 4], *(videos[at] for at in rng.integers(0, len(videos), 4))]
        shots = [some_frames(path, int(rng.integers(12, 50))) for path in chosen]
        true = spliced(tmp_path / f"{number}{suffix}", shots, (320, 240))
        pairs.append((true, stored(tmp_path / f"{number}{suffix}", cues=()).meta.cuts))
    recall, precision = recall_and_precision(pairs)
    assert recall >= 0.95 and precision >= 0.95, (recall, precision, pairs)


@needs_real_data
def test_a_film_is_cut_and_single_takes_are_not() -> None:
    """A clip of a film, and twelve amateur takes with moving cameras, of which one skips frames while the camera jerks."""
    assert stored(REAL / "wild/hmdb51/wave/TrumanShow_wave_f_nm_np1_fr_med_26.avi", size=64).meta.cuts == (19,)
    takes = sorted((REAL / "ucf101/videos").rglob("*.avi"))[::28][:12]
    assert len(takes) == 12 and sum(len(stored(path, size=64, cues=()).meta.cuts) for path in takes) <= 1


def found(differences: Sequence[int], share: float = 1, bars: int = 0) -> tuple[int, ...]:
    """The cuts of grey frames that differ this much from the one before, in the left ``share`` of the picture between black
    bars left and right (``bars`` pixels wide); elsewhere they are the same."""
    cuts, level = Cuts(), 100
    for change in (0, *differences):
        level += change if level + change < 250 else -change
        luma = np.zeros((64, 128 + 2 * bars), np.uint8)
        luma[:, bars : 128 + bars] = 100
        luma[:, bars : bars + int(128 * share)] = level
        cuts.add(luma)
    return cuts.finish()


def test_a_cut_stands_out_by_a_multiple_and_three_levels() -> None:
    least = 12  # 1.8 * 5 + 3
    for at in (AROUND + 2, 1, 20):  # in the middle, and at both ends, where one side is short
        differences = [5] * 20
        for value, expected in ((least, (at,)), (least - 1, ())):
            differences[at - 1] = value
            assert found(differences) == expected
    assert found([]) == found([0]) == found([2]) == () and found([3]) == (1,)


def test_flashes_and_fast_motion_are_no_cuts_and_near_cuts_hide_each_other() -> None:
    for apart in range(1, AROUND + 2):  # next to each other: a flash, to white and back
        values = [1] * 40
        values[20] = values[20 + apart] = 60
        assert found(values) == ((21, 21 + apart) if apart > AROUND else ())
    for first, second in ((60, 50), (50, 60)):
        values = [1] * 40
        values[20], values[24] = first, second
        assert found(values) == ()
    assert found(np.abs(60 * np.sin(np.arange(100) / 5)).astype(int).tolist()) == ()


def test_what_changes_in_a_part_of_the_picture_is_no_cut() -> None:
    values = [*[1] * 20, 90, *[1] * 20]
    assert found(values, share=0.5) == () and found(values, share=0.75) == (21,)
    assert found(values, share=0.5, bars=80) == () and found(values, share=1, bars=80) == (21,)  # bars do not count
    assert found([1, 1, 1]) == ()


def test_cuts_depend_on_no_cue_codec_or_stabiliser(tmp_path: Path) -> None:
    true = spliced(tmp_path / "v.mp4", [drawn(n, 20) for n in range(4)])
    ways = {"cues": ()}, {"cues": ("flow",)}, {"stabilise": True}, {"codec": "h264"}
    assert [stored(tmp_path / "v.mp4", size=64, **way).meta.cuts for way in ways] == [tuple(true)] * 4


def test_the_cuts_of_a_segment_and_of_a_span_count_from_its_first_frame(tmp_path: Path) -> None:
    spliced(tmp_path / "v.mp4", [drawn(n, 20) for n in range(4)])  # cuts at 20, 40, 60
    parts = transcode(tmp_path / "v.mp4", Options(size=64, segment=30 / 25))
    assert [(part.meta.frames, part.meta.cuts) for part in parts] == [(30, (20,)), (30, (10,)), (20, ())]
    assert next(transcode(tmp_path / "v.mp4", Options(size=64), (15, 50))).meta.cuts == (5, 25)


@pytest.fixture(scope="module")
def cut_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos of three shots, 20 frames each, and four without a cut."""
    root, out = tmp_path_factory.mktemp("cut"), tmp_path_factory.mktemp("shards") / "cut"
    for number in range(4):
        spliced(root / f"A/cut{number}.mp4", [drawn(8 * number + shot, 20) for shot in range(3)])
        spliced(root / f"B/whole{number}.mp4", [drawn(40 + number, 40)])
    succeed("-m", "preprocess", "folder", "--root", root, "--out", out, "--size", "32")
    return out


def test_the_set_knows_its_cuts(cut_set: Path) -> None:
    shards = ShardSet(cut_set)
    assert shards.cuts_N.tolist() == [2] * 4 + [0] * 4
    assert [shards.read(n).meta.cuts for n in (0, 4)] == [(20, 40), ()]
    _, entries = read_index(open_folder(cut_set), "shard-000000.jsonl")
    assert [entry.cuts for entry in entries] == [[20, 40]] * 4 + [[]] * 4
    assert "cuts" not in json.loads((cut_set / "shard-000000.jsonl").read_text().splitlines()[-1])
    assert "cuts     8 in 4 samples" in succeed("-m", "preprocess", "stats", cut_set, "--out", cut_set / "stats.png")
    assert "no faults" in succeed("-m", "preprocess", "verify", cut_set)


def test_a_set_without_cuts_is_what_it_was_before_they_were_looked_for(synthetic_set: Path) -> None:
    shards = ShardSet(synthetic_set)
    assert shards.cuts_N.tolist() == [0] * 96 and b"cuts" not in (synthetic_set / "index.npz").read_bytes()
    assert b"cuts" not in (synthetic_set / "shard-000000.tar").read_bytes()
    state = TrainLoader(shards, shards.select(["train"]), ClipConfig(size=32), clips=2, batch=8, seed=0).state_dict()
    assert state["clip"] == 4048072032  # of a run that was made before, which goes on


def test_videos_in_tars_have_the_cuts_of_videos_in_files(tmp_path: Path) -> None:
    true = spliced(tmp_path / "in/v.mp4", [drawn(n, 20) for n in range(3)])
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars/00000.tar", "w") as tar:
        tar.add(tmp_path / "in/v.mp4", "v.mp4")
    for command, root in (("folder", "in"), ("wds", "tars")):
        succeed("-m", "preprocess", command, "--root", tmp_path / root, "--out", tmp_path / command, "--size", "32")
        shards = ShardSet(tmp_path / command)
        assert shards.read(0).meta.cuts == tuple(true) and shards.cuts_N.tolist() == [2]


@pytest.mark.parametrize("crossing", [False, True])
def test_no_clip_of_several_sets_crosses_a_cut_unless_it_may(cut_set: Path, synthetic_set: Path, crossing: bool) -> None:
    sets = [ShardSet(synthetic_set), ShardSet(cut_set)]
    joined, clip = JoinedSets(sets), ClipConfig(frames=4, stride=3, size=32, cross_cuts=crossing)
    samples = joined.numbers([np.arange(4), np.arange(4)])
    assert joined.cuts_N[samples].tolist() == [0] * 4 + [2] * 4
    loader = TrainLoader(joined, samples, clip, clips=2, batch=8, seed=0, epochs=10)
    batches = [batch for _ in range(10) for batch in loader]
    frames = np.concatenate([batch["frames"][batch["sample"] >= len(sets[0])].reshape(-1, 4).numpy() for batch in batches])
    assert len(frames) == 80 and ((frames[:, 0] // 20 != frames[:, -1] // 20).sum() > 0) == crossing
    other = TrainLoader(joined, samples, replace(clip, cross_cuts=not crossing), clips=2, batch=8, seed=0)
    assert other.state_dict()["clip"] != loader.state_dict()["clip"]


@pytest.mark.parametrize("crossing", [False, True])
def test_no_batch_of_training_or_evaluation_crosses_a_cut_unless_it_may(cut_set: Path, crossing: bool) -> None:
    shards, clip = ShardSet(cut_set), ClipConfig(frames=4, stride=3, size=32, cross_cuts=crossing)
    loader = TrainLoader(shards, np.arange(4), clip, clips=2, batch=4, seed=0, epochs=10)
    frames = np.concatenate([batch["frames"].reshape(-1, 4).numpy() for _ in range(10) for batch in loader])
    assert ((frames[:, 0] // 20 != frames[:, -1] // 20).sum() > 0) == crossing and set(frames[:, 0] // 20) == {0, 1, 2}
    record = shards.read(0)
    shown = next(iter(eval_loader(shards, np.arange(1), clip, clips=7)))["rgb"][0].numpy()
    starts = [0, 8, 17, 25, 33, 42, 50] if crossing else [0, 5, 20, 25, 30, 45, 50]
    for views, start in zip(shown, starts, strict=True):
        expected = np.empty((4, 32, 32, 3), np.uint8)
        crop_resize(record.frames(range(start, start + 10, 3)), eval_crops(*record.size, 1)[0], False, expected)
        np.testing.assert_array_equal(views, expected)


def test_a_state_says_whether_cuts_are_crossed(cut_set: Path) -> None:
    shards = ShardSet(cut_set)

    def said(samples: range, **how: bool) -> int:
        clip = ClipConfig(size=32, **how)
        return TrainLoader(shards, np.array(samples), clip, clips=2, batch=4, seed=0).state_dict()["clip"]

    assert said(range(4)) != said(range(4), cross_cuts=True) == said(range(4, 8)) == said(range(4, 8), cross_cuts=True)
