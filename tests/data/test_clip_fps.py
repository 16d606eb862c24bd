"""--clip-fps: clips asked for in time show one motion at the same moments, whatever the rate of its video."""

import dataclasses
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import SMALL, refuse, run, stored, succeed

import train_pretrain
from dclr.checkpoint import load
from dclr.data.clips import LEARNED, ClipConfig, cue_interval, eval_clips, frame_indices, train_clips, uniform_starts
from dclr.data.loader import TrainLoader
from dclr.data.manifest import ShardSet
from dclr.data.sets import pace_warnings
from dclr.errors import InputError
from dclr.evaluation.config import EvalConfig
from dclr.pretraining.config import PretrainConfig
from dclr.record import Record
from preprocess.synthetic import encode

RATES = 15, 30, 60
CLIP = ClipConfig(frames=4, size=32, clip_fps=7.5, min_scale=1, flip=0)


@pytest.mark.parametrize(
    ("fps", "clip_fps", "expected"),
    [
        (30, 12.5, [0, 2, 5, 7, 10, 12]),
        (60, 12.5, [0, 5, 10, 14, 19, 24]),
        (15, 10, [0, 1, 3, 4, 6, 7]),  # of two equally near frames the earlier
        (29.97, 9.99, [0, 3, 6, 9, 12, 15]),
        (10, 12.5, [0, 1, 2, 2, 3, 4]),  # of a slower video some frames twice
        (0, 12.5, [0, 2, 4, 6, 8, 10]),  # one that does not say its rate counts as 25
        (5e-324, 1000, [0, 0, 0, 0, 0, 0]),
    ],
)
def test_a_clip_has_the_frames_nearest_in_time(fps: float, clip_fps: float, expected: list[int]) -> None:
    clip = ClipConfig(frames=6, clip_fps=clip_fps).of(fps)
    assert clip.offsets.tolist() == expected and clip.span == expected[-1] + 1
    assert frame_indices(3, 100, clip).tolist() == [3 + offset for offset in expected]
    assert len(ClipConfig(clip_fps=1).of(1e300).offsets) == 16


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_stride_is_as_it_was(stride: int) -> None:
    clip = ClipConfig(frames=5, stride=stride)
    assert clip.of(12) is clip and clip.offsets.tolist() == [0, stride, 2 * stride, 3 * stride, 4 * stride]
    assert clip.span == 4 * stride + 1 and clip.step == stride


def motion(second_N: np.ndarray) -> np.ndarray:
    """A bright square that moves to the right at 16 pixels a second before a slope of light, at these moments: uint8
    (N, 48, 48, 3). Frames are square, so that a clip that keeps the whole area is not resized."""
    pictures = np.tile(np.arange(48, dtype=np.uint8), (len(second_N), 48, 1))
    for picture, second in zip(pictures, second_N, strict=True):
        place = np.arange(48) - 16 * second
        picture[16:32] += (150 * (place.clip(0, 1) - (place - 12).clip(0, 1))).astype(np.uint8)  # between two pixels too
    return np.repeat(pictures[..., None], 3, -1)


@pytest.fixture(scope="module", params=["jpeg", "h264"])
def records(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Record]:
    """The motion of two seconds at each rate."""
    found, folder = {}, tmp_path_factory.mktemp("rates")
    for rate in RATES:
        encode(motion(np.arange(2 * rate + 1) / rate), rate, folder / f"{rate}.mp4")
        how = {"codec": request.param, "quality": {"jpeg": 100, "h264": 2}[request.param]}
        found[rate] = stored(folder / f"{rate}.mp4", size=48, cues=("diff", "flow", "energy"), **how)
    return found


def test_evaluation_sees_one_motion_at_the_same_moments(records: dict[int, Record]) -> None:
    clips = {rate: CLIP.of(rate) for rate in RATES}
    starts = {rate: uniform_starts(len(record), clips[rate], 5) for rate, record in records.items()}
    moments = [[frame_indices(start, len(records[rate]), clips[rate]) / rate for start in starts[rate]] for rate in RATES]
    np.testing.assert_array_equal(moments[0], moments[1])
    np.testing.assert_array_equal(moments[0], moments[2])
    shown = [eval_clips(record, CLIP, 5)["rgb"].astype(int) for record in records.values()]
    assert max(np.abs(shown[0] - other).mean() for other in shown[1:]) < 3 < 10 < np.abs(shown[0] - shown[0][:, ::-1]).mean()
    strides = [
        eval_clips(record, dataclasses.replace(CLIP, clip_fps=None), 5)["rgb"].astype(int) for record in records.values()
    ]
    assert np.abs(strides[0] - strides[2]).mean() > 5  # two stored frames are another time


def test_a_variable_rate_that_was_made_constant_shows_the_same_moments(records: dict[int, Record], tmp_path: Path) -> None:
    """Of 60 frames a second some are missing: those between the ones of 30, and in the middle second also half of these."""
    sixtieths = [at for at in range(121) if not 10 < at < 100 or at % (4 if 40 < at < 80 else 2) == 0]
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=60)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.time_base = 48, 48, "yuv420p", Fraction(1, 60)
        for at, picture in zip(sixtieths, motion(np.array(sixtieths) / 60), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 60)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    made = stored(tmp_path / "v.mkv", size=48, fps=30)
    assert len(made) == 61
    shown = [eval_clips(record, CLIP, 5)["rgb"].astype(int) for record in (made, records[30])]
    assert np.abs(shown[0] - shown[1]).mean() < 3


@pytest.mark.parametrize("clip_fps", [7.5, 12.5])
def test_moments_are_the_same_to_half_a_frame(records: dict[int, Record], clip_fps: float) -> None:
    """In training too, and the two clips of a video start at about the same moments: one draw is one place in the video."""
    clip = dataclasses.replace(CLIP, clip_fps=clip_fps)
    made = {rate: train_clips(record, clip, 12, 0, 0)["frames"] / rate for rate, record in records.items()}
    ideal = np.arange(clip.frames) / clip_fps
    for rate, moments in made.items():
        assert np.abs(moments - moments[:, :1] - ideal).max() <= 0.5 / rate + 1e-9
    assert len(np.unique(made[60][:, 0])) > 6
    assert all(np.abs(made[rate][:, 0] - made[60][:, 0]).max() < 2 / 15 for rate in RATES)


def of_whole_frames(record: Record, cue: str, **how: object) -> tuple[dict[str, np.ndarray], np.ndarray]:
    made = train_clips(record, dataclasses.replace(CLIP, cue=cue, size=48, **how), 12, 0, 0)  # type: ignore[arg-type]
    return made, made["frames"]


def test_the_difference_is_that_of_the_interval(records: dict[int, Record]) -> None:
    """Differences of neighbours add up to it."""
    for rate, record in records.items():
        made, frames = of_whole_frames(record, "diff")
        n, checked = rate * 2 // 15, 0
        luma_NHW = record.frames(range(len(record))).astype(float) @ (0.299, 0.587, 0.114)
        for at, change in zip(frames.ravel(), made["cue"].reshape(-1, 48, 48), strict=True):
            if at >= n:  # the others have that of frame n
                expected, neighbours = (128 + (luma_NHW[at] - luma_NHW[at - before]) / 2 for before in (n, 1))
                assert np.abs(change - expected).max() < 8 < 20 < np.abs(neighbours - expected).max()
                checked += 1
        assert checked > 30


def test_flow_and_energy_are_those_of_the_interval(records: dict[int, Record]) -> None:
    lengths, energies = {}, {}
    for rate, record in records.items():
        made, _ = of_whole_frames(record, "flow")
        levels = made["cue"].astype(np.float32) - 128
        flow = levels * made["scale"][..., None, None]
        lengths[rate] = np.quantile(flow[:, :, 0], 0.97)  # of what moves, to the right, in pixels of the crop
        energies[rate] = of_whole_frames(record, "energy")[0]["cue"].mean()
    assert all(length == pytest.approx(lengths[60], rel=0.25) for length in lengths.values()), lengths
    assert all(energy == pytest.approx(energies[60], rel=0.25) for energy in energies.values()), energies


def test_cues_are_scaled_by_what_the_interval_is_in_stored_frames(records: dict[int, Record]) -> None:
    record = records[30]
    still = dataclasses.replace(record, arrays=record.arrays | {"grid": np.full_like(record.array("grid"), 2)})
    for clip_fps, expected in ((7.5, 8), (12.5, 4.8), (60, 1)):  # 4, 2.4 and 0.5 stored frames
        made, _ = of_whole_frames(still, "energy", clip_fps=clip_fps)
        np.testing.assert_allclose(made["cue"], expected, rtol=1e-5)
    timed, frames = of_whole_frames(record, "flow")
    plain, same = of_whole_frames(record, "flow", clip_fps=None, stride=4)
    np.testing.assert_array_equal(frames, same)
    inner = frames > 0
    np.testing.assert_array_equal(timed["cue"][inner], plain["cue"][inner])
    np.testing.assert_allclose(timed["scale"][inner], 4 * plain["scale"][inner], rtol=1e-6)


def test_the_interval_of_a_cue_stays_in_its_shot() -> None:
    def interval(frames: int) -> list[tuple[int, int]]:
        ends = cue_interval(np.array([0, 2, 4, 5, 6, 9, 11]), frames, 12, (5, 10))  # shots 0-4, 5-9 and 10-11
        return list(zip(*(end.tolist() for end in ends), strict=True))

    assert interval(1) == [(1, 1), (2, 2), (4, 4), (6, 6), (6, 6), (9, 9), (11, 11)]
    assert interval(3) == [(1, 3), (1, 3), (2, 4), (6, 8), (6, 8), (7, 9), (11, 11)]
    assert interval(50) == [(1, 4)] * 3 + [(6, 9)] * 3 + [(11, 11)]
    assert [end.tolist() for end in cue_interval(np.array([0]), 3, 1, ())] == [[0], [0]]


def test_starts_by_motion_cuts_and_short_videos_follow_the_pace(records: dict[int, Record]) -> None:
    record = records[60]
    peak = np.zeros_like(record.array("energy"))
    peak[-1] = 1  # only the last start that fits sees the last frame
    moved = dataclasses.replace(record, arrays=record.arrays | {"energy": peak})
    frames = train_clips(moved, dataclasses.replace(CLIP, sample_motion=True, clip_fps=10), 3, 0, 0)["frames"]
    assert (frames[:, 0] >= len(record) - 19 - 1).all()  # a reference where they are coded by packets
    cut = dataclasses.replace(record, meta=dataclasses.replace(record.meta, cuts=(50,)))
    within = train_clips(cut, CLIP, 40, 0, 0)["frames"]
    assert ((within[:, 0] < 50) == (within[:, -1] < 50)).all() and len({frame < 50 for frame in within[:, 0]}) == 2
    crossing = train_clips(cut, dataclasses.replace(CLIP, cross_cuts=True), 40, 0, 0)["frames"]
    assert ((crossing[:, 0] < 50) != (crossing[:, -1] < 50)).any()
    looped = train_clips(record, dataclasses.replace(CLIP, clip_fps=1), 3, 0, 0)["frames"]
    np.testing.assert_array_equal(looped, (looped[:, :1] + np.arange(4) * 60) % len(record))


def test_a_state_says_the_pace(synthetic_set: Path) -> None:
    shards = ShardSet(synthetic_set)

    def said(**how: float) -> int:
        loader = TrainLoader(shards, np.arange(8), ClipConfig(size=32, **how), clips=2, batch=8, seed=0)  # type: ignore[arg-type]
        return loader.state_dict()["clip"]

    assert len({said(), said(clip_fps=12.5), said(clip_fps=15)}) == 3


def test_videos_that_do_not_say_their_rate_or_are_slower_are_named(synthetic_set: Path) -> None:
    shards = ShardSet(synthetic_set)
    shards.fps_N = np.array([0, 29.97, 15] * 7)
    assert pace_warnings(shards, np.array([1, 2, 4]), 12.5) == []
    unknown, slower = pace_warnings(shards, np.arange(21), 30)
    assert "--clip-fps 30: 7 videos do not say how many frames a second they have, and count as 25: " in unknown
    assert f": {shards.keys[0]}, {shards.keys[3]}, " in unknown and unknown.endswith(" and 2 more")
    assert f"7 videos are slower, and clips show frames of theirs twice: {shards.keys[2]}, {shards.keys[5]}, " in slower


NEEDED = {"shards": ("s",), "split": ("a",), "out": "o"}


def test_stride_or_clip_fps_decides_not_both(tmp_path: Path) -> None:
    assert PretrainConfig(**NEEDED).stride == 2 and PretrainConfig(**NEEDED).clip == ClipConfig()
    timed = PretrainConfig(**NEEDED, clip_fps=12.5)
    assert timed.stride is None and timed.clip.clip_fps == 12.5
    for made, given in ((PretrainConfig, NEEDED), (EvalConfig, EVALUATED)):
        with pytest.raises(InputError, match=r"--clip-fps 12.5 with --stride 2: expected one of them"):
            made(**given, clip_fps=12.5, stride=2)
    (tmp_path / "recipe.yaml").write_text("stride: 1\n")
    (tmp_path / "timed.yaml").write_text("clip_fps: 10\n")
    given = train_pretrain.parser().given
    assert given(["--config", str(tmp_path / "recipe.yaml"), "--clip-fps", "12.5"]) == {"clip_fps": 12.5}  # flags win
    assert given(["--stride", "3", "--config", str(tmp_path / "timed.yaml")]) == {"stride": 3}
    both = ["--config", str(tmp_path / "recipe.yaml"), "--config", str(tmp_path / "timed.yaml")]
    assert given(both) == {"clip_fps": 10} and given(both[2:] + both[:2]) == {"stride": 1}


EVALUATED = {"mode": "knn", "shards": "s", "out": "o", "train_split": ("a",), "test_split": ("b",), "pretrained": "p"}


def test_an_evaluation_takes_the_pace_of_its_checkpoint_unless_it_has_its_own() -> None:
    learned = {"frames": 8, "clip_fps": 12.5, "size": 64}
    assert set(learned) < set(LEARNED)
    clip = EvalConfig(**EVALUATED).clip(learned)  # type: ignore[arg-type]
    assert clip.said == learned | {"stride": None}
    assert EvalConfig(**EVALUATED, stride=3).clip(learned).said == {"frames": 8, "stride": 3, "clip_fps": None, "size": 64}  # type: ignore[arg-type]
    assert EvalConfig(**EVALUATED, clip_fps=5).clip({"frames": 8, "stride": 4}).said["clip_fps"] == 5  # type: ignore[arg-type]
    assert EvalConfig(**EVALUATED).clip({}).said == {"frames": 16, "stride": 2, "clip_fps": None, "size": 112}  # type: ignore[arg-type]


def test_a_run_keeps_its_pace_and_its_evaluation_has_it(synthetic_set: Path, tmp_path: Path) -> None:
    made = "train_pretrain.py", "--shards", synthetic_set, "--split", "train", "--out", tmp_path / "run", *SMALL, "-b", "32"
    succeed(*made, "--epochs", "1", "--clip-fps", "12.5")
    kept = load(tmp_path / "run/last.pt")["config"]
    assert kept["clip_fps"] == 12.5 and kept["stride"] is None
    again = run("train_pretrain.py", "--config", tmp_path / "run/config.yaml", "--epochs", "1")
    assert again.returncode == 0, again.stderr
    for other in ("--clip-fps 10", "--stride 2"):
        assert "was made with" in refuse(*made, "--epochs", "2", *other.split())
    asked = "train_eval.py", "knn", "--shards", synthetic_set, "--train-split", "train", "--test-split", "test"
    asked += "--pretrained", tmp_path / "run/last.pt", "-cpv", "1", "--test-clips", "2", "--precision", "fp32", "-j", "0"
    succeed(*asked, "--out", tmp_path / "knn")
    options = json.loads((tmp_path / "knn/result.json").read_text())["options"]
    assert (options["clip_fps"], options["stride"], options["frames"]) == (12.5, None, 4)
