"""--fps: which source frames are stored, by their timestamps; what the set says of it."""

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from conftest import REAL, needs_real_data, refuse, run, stored, succeed

from dclr.data.manifest import ShardSet
from dclr.record import REPEATED, Record
from preprocess.transcode import OpenedVideo, Options, transcode


def numbered(path: Path, times: Sequence[int], rate: int, codec: str = "libx264") -> Path:
    """Grey frames, number k at level 10 k and at ``times[k] / rate`` seconds; ffv1 keeps every bit."""
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.time_base = 64, 48, "yuv420p", Fraction(1, rate)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def shown(record: Record) -> list[int]:
    """The source frame that each stored frame is."""
    return np.rint(record.frames(range(len(record))).mean((1, 2, 3)) / 10).astype(int).tolist()


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "libx264"), (".mkv", "libx264"), (".avi", "mpeg4")])
def test_half_of_the_rate_is_every_second_frame(tmp_path: Path, suffix: str, codec: str) -> None:
    """Also where timestamps are whole milliseconds (mkv), and 60 frames a second 16 or 17 of them apart."""
    done = stored(numbered(tmp_path / f"v{suffix}", range(21), 60, codec), size=48, fps=30)
    assert shown(done) == list(range(0, 21, 2))
    assert done.meta.fps == 30 and done.meta.source is not None and done.meta.source.fps == 60 and not done.meta.traits


@pytest.mark.parametrize(
    ("rate", "fps", "expected"),
    [
        (60, 40, [0, 1, 3, 4, 6, 7, 9, 10]),  # of two equally near frames the earlier
        (30, 25, [0, 1, 2, 4, 5, 6, 7, 8, 10]),
        (25, 25, list(range(11))),
        (15, 30, [frame for frame in range(11) for _ in range(2)]),
    ],
)
def test_frames_are_those_nearest_in_time(tmp_path: Path, rate: int, fps: float, expected: list[int]) -> None:
    done = stored(numbered(tmp_path / "v.mp4", range(11), rate), size=48, fps=fps)
    assert shown(done) == expected and (done.meta.traits == (REPEATED,)) == (rate < fps)


VARIABLE = [0, 1, 2, 3, 8, 9, 10, 20, 22, 24, 26, 28, 30, 31]  # sixtieths of a second


@pytest.mark.parametrize("fps", [10, 30, 60])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_of_a_variable_rate_the_timestamps_decide(tmp_path: Path, suffix: str, fps: int) -> None:
    done = stored(numbered(tmp_path / f"v{suffix}", VARIABLE, 60), size=48, fps=fps)
    times = np.array(VARIABLE) if suffix == ".mp4" else np.rint(np.array(VARIABLE) * 1000 / 60) * 60 / 1000
    slow = [int(np.abs(times - at * 60 / fps).argmin()) for at in range(100) if at * 60 / fps <= VARIABLE[-1]]
    found = shown(done)
    assert found[: len(slow)] == slow and set(found[len(slow) :]) <= {13}  # the last one stays for an average duration


@pytest.mark.parametrize("times", [[0, 1, None, 3, 4], [None, 1, 2, 3, 4], [0, 1, 0, 3, 4], [7, 8, 9, -50, None], [3] * 5])
def test_a_frame_without_a_later_timestamp_is_one_frame_after_the_one_before(times: list[int | None]) -> None:
    video = OpenedVideo(Path("v.mp4"))
    video.fps, video.steady = 25.0, False
    frames: list[Any] = [(number, SimpleNamespace(pts=time, time_base=Fraction(1, 25))) for number, time in enumerate(times)]
    assert [number for number, _ in video.resampled(frames, 25)] == [0, 1, 2, 3, 4]
    assert [number for number, _ in video.resampled(frames, 12.5)] == [0, 2, 4]


def test_deinterlacing_leaves_the_timestamps(tmp_path: Path) -> None:
    path = numbered(tmp_path / "v.mp4", VARIABLE, 60)
    assert shown(stored(path, size=48, fps=30, deinterlace=True)) == shown(stored(path, size=48, fps=30))


def test_cues_and_cuts_are_those_of_the_stored_frames(tmp_path: Path) -> None:
    cues = ("diff", "flow", "energy")
    kept = stored(numbered(tmp_path / "kept.mkv", range(20), 60, "ffv1"), size=48, fps=30, cues=cues)
    with av.open(str(tmp_path / "kept.mkv")) as whole, av.open(str(tmp_path / "half.mkv"), "w") as half:
        stream = half.add_stream("ffv1", rate=30)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in list(whole.decode(video=0))[::2]:
            frame.pts = None
            half.mux(stream.encode(frame))
        half.mux(stream.encode(None))
    plain = stored(tmp_path / "half.mkv", size=48, cues=cues)
    assert len(kept) == len(plain) == 10
    assert kept.rgb.data == plain.rgb.data and all(
        kept.streams[name].data == plain.streams[name].data for name in plain.streams
    )
    assert all(np.array_equal(kept.arrays[name], plain.arrays[name]) for name in plain.arrays)
    assert kept.array("energy")[1:].min() > 15  # two of ten levels


def test_a_span_begins_with_its_own_first_frame_and_segments_share_its_time(tmp_path: Path) -> None:
    path = numbered(tmp_path / "v.mp4", range(25), 60)
    (part,) = transcode(path, Options(size=48, fps=30), (3, 12))
    assert part.meta.frames == 5 and part.meta.source is not None and part.meta.source.first == 3
    (part,) = transcode(numbered(tmp_path / "variable.mp4", VARIABLE, 60), Options(size=48, fps=30), (3, 8))
    assert part.meta.frames == 10  # from 3 to 20 sixtieths, and a little
    parts = list(transcode(path, Options(size=48, fps=30, segment=5 / 30)))
    assert [done.meta.frames for done in parts] == [5, 5, 3]
    assert [done.meta.source.first for done in parts if done.meta.source] == [0, 10, 20]


@needs_real_data
def test_timestamps_out_of_order_do_not_mislead(tmp_path: Path) -> None:
    """A clip whose decoder says 1, 2, 4, 3, 5, 7, 6, ..., and one whose header counts packets that are no pictures."""
    ucf, packed = REAL / "ucf101/videos/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c02.avi", "wild/hmdb51/cartwheel/cartwheel.avi"
    for path, rate in ((ucf, 25), (REAL / packed, 30)):
        whole, half = stored(path, size=32, cues=()), stored(path, size=32, cues=(), fps=rate / 2)
        assert whole.meta.fps == rate and len(half) == -(-len(whole) // 2)
        assert [bytes(half.rgb.part(n)) for n in range(len(half))] == [
            bytes(whole.rgb.part(n)) for n in range(0, len(whole), 2)
        ]


def test_a_set_says_its_rate_and_its_sources_and_is_continued_with_it(tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "set"
    numbered(videos / "fast.mp4", range(20), 60), numbered(videos / "slow.mp4", range(10), 15)
    command = ("-m", "preprocess", "folder", "--root", videos, "--out", out, "--size", "48")
    made = run(*command, "--fps", "30")
    assert made.returncode == 0 and "1 videos are slower than the fps of their set and repeat frames: slow.mp4" in made.stderr
    shards = ShardSet(out)
    assert shards.fps_N.tolist() == [30, 30] and shards.frames_N.tolist() == [10, 20] and shards.manifest.options["fps"] == 30
    assert [json.loads(shards.read(n).meta.dumps())["source"]["fps"] for n in (0, 1)] == [60, 15]
    before = (out / "shard-000000.tar").stat()
    succeed(*command, "--fps", "30")
    assert (out / "shard-000000.tar").stat() == before
    assert "made with --fps 30" in refuse(*command) and "made with --fps 30" in refuse(*command, "--fps", "15")
    numbered(videos / "more.mp4", range(20), 60)
    assert "no --fps: " in (said := refuse(*command, "--append")) and "was made with --fps 30.0; give the same" in said
    assert "--fps 15.0: " in refuse(*command, "--append", "--fps", "15")
    succeed(*command, "--append", "--fps", "30")
    assert ShardSet(out).fps_N.tolist() == [30, 30, 30]
    assert "no faults" in succeed("-m", "preprocess", "verify", out)
    assert "repeated frames 1" in succeed("-m", "preprocess", "stats", out, "--out", tmp_path / "stats.png")
    assert "--fps 0.0: expected above 0 to 1000" in refuse(*command, "--fps", "0")
