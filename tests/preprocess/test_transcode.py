"""One video -> frames and cues, against a plain decode of the same file; and files that are no video."""

import json
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import simplejpeg
from av.stream import Disposition
from av.video.reformatter import ColorRange
from conftest import REAL, needs_real_data, refuse, run, stored, succeed

from dclr.data.manifest import ShardSet
from dclr.record import Record, Source, pack, unpack
from dclr.storage import open_folder
from preprocess.synthetic import encode
from preprocess.transcode import (
    Bytes,
    OpenedVideo,
    Options,
    Span,
    TranscodeError,
    measured_rate,
    part_of,
    stored_size,
    transcode,
)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))


def moving_square(frames: int, height: int = 96, width: int = 128) -> np.ndarray:
    out = np.full((frames, height, width, 3), (40, 90, 160), np.uint8)
    for t in range(frames):
        out[t, 30:60, 4 * t : 4 * t + 30] = (220, 60, 30)
    return out


def write(
    path: Path,
    frames: np.ndarray,
    codec: str,
    pix_fmt: str,
    pts: list[int] | None = None,
    matrix: list[int] | None = None,
    sar: Fraction | None = None,
    **options: str,
) -> None:
    """A video with FFmpeg's encoder and pixel format of choice, 25 frames a second unless ``pts`` (1/25 s) say otherwise, with
    a display ``matrix`` of nine integers or none and a sample aspect ratio."""
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.set_display_matrix(matrix)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.codec_context.time_base = pix_fmt, Fraction(1, 25)
        if sar is not None:
            stream.codec_context.sample_aspect_ratio = sar
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgba" if image.shape[-1] == 4 else "rgb24")
            frame.pts, frame.time_base = pts[number] if pts else number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("codec", ["jpeg", "h264"])
@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_frames_are_the_source_in_colour_and_order(tmp_path: Path, suffix: str, codec: str) -> None:
    source = moving_square(12)
    encode(source, 25, tmp_path / f"v{suffix}")
    done = stored(tmp_path / f"v{suffix}", size=96, codec=codec)
    assert done.size == (96, 128) and done.meta.fps == 25
    assert done.meta.source == Source(f"v{suffix}", 128, 96, 0, content=done.meta.source.content)
    frames = done.frames(range(12))
    assert len(done) == 12 and all(psnr(a, b) > 28 for a, b in zip(frames, source, strict=True))
    assert psnr(frames[0], source[6]) < 20


@pytest.mark.parametrize("codec", ["jpeg", "h264"])
def test_the_difference_is_signed_and_starts_with_its_second_entry(tmp_path: Path, codec: str) -> None:
    encode(moving_square(8), 25, tmp_path / "v.mp4")
    done = stored(tmp_path / "v.mp4", size=96, codec=codec, cues=("diff", "flow", "energy"))
    moved = done.pictures("diff", range(8)).astype(int) - 128
    assert np.abs(moved[0] - moved[1]).mean() < 0.5 and done.array("energy")[0] == done.array("energy")[1]
    assert np.array_equal(done.vectors("flow", [0]), done.vectors("flow", [1]))
    front, back, rest = moved[4, 35:55, 43:45], moved[4, 35:55, 13:15], moved[4, :20]
    assert abs(front.mean()) > 2 and np.sign(front.mean()) == -np.sign(back.mean()) and abs(rest).max() <= 2
    assert done.array("energy")[4] == pytest.approx(2 * np.abs(moved[4]).mean(), abs=0.5)
    assert done.array("grid")[4].astype(float).mean() == pytest.approx(done.array("energy")[4], rel=0.01)


def test_what_a_segment_is_depends_on_its_place_too(tmp_path: Path) -> None:
    """When the first of them is found to be whole, the packets of both are read."""
    encode(moving_square(11), 25, tmp_path / "v.mp4")
    contents = [done.meta.source.content for done in transcode(tmp_path / "v.mp4", Options(size=32, segment=0.4))]
    assert len(contents) == len(set(contents)) == 2


@pytest.mark.parametrize("codec", ["jpeg", "h264"])
def test_a_single_frame_is_still(tmp_path: Path, codec: str) -> None:
    encode(moving_square(1), 25, tmp_path / "v.avi")
    done = stored(tmp_path / "v.avi", size=48, codec=codec, cues=("diff", "flow", "energy"))
    assert (
        len(done) == 1
        and done.array("energy").tolist() == [0]
        and not done.array("grid").any()
        and not done.vectors("flow", [0]).any()
    )
    assert np.all(done.pictures("diff", [0]) == 128)


def test_alpha_is_dropped(tmp_path: Path) -> None:
    opaque = moving_square(4)
    write(tmp_path / "v.mov", np.concatenate([opaque, np.full((*opaque.shape[:3], 1), 60, np.uint8)], -1), "png", "rgba")
    assert all(psnr(a, b) > 28 for a, b in zip(stored(tmp_path / "v.mov", size=96).frames(range(4)), opaque, strict=True))


def grey(path: Path, pix_fmt: str, levels: list[float], color_range: ColorRange) -> None:
    """One lossless picture of patches of these levels, shares of the format's largest number."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64 * len(levels), 64, pix_fmt
        stream.codec_context.color_range = color_range
        frame = av.VideoFrame(stream.width, stream.height, pix_fmt)
        depth = frame.format.components[0].bits
        kind = np.uint8 if depth == 8 else np.uint16
        patches = np.repeat(np.rint(np.array(levels) * (2**depth - 1)), 64).astype(kind)
        rows = np.frombuffer(frame.planes[0], kind).reshape(64, -1)  # type: ignore[arg-type]
        rows[:, : len(patches)] = patches
        frame.color_range, frame.pts = color_range, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("pix_fmt", ["gray", "gray10le", "gray12le", "gray16le"])
def test_limited_range_of_grey_pictures_is_expanded_and_full_range_stays(tmp_path: Path, pix_fmt: str) -> None:
    levels = np.array([66, 138, 59, 200]) / 255
    for name, color_range, stored_as in (
        ("full", ColorRange.JPEG, levels), ("limited", ColorRange.MPEG, (16 + 219 * levels) / 255)
    ):  # fmt: skip
        grey(tmp_path / f"{name}.mkv", pix_fmt, stored_as.tolist(), color_range)
        found = stored(tmp_path / f"{name}.mkv", size=64, quality=100).frames([0])[0]
        patches = [found[20:44, 64 * n + 20 : 64 * n + 44].mean() for n in range(4)]
        assert patches == pytest.approx([66, 138, 59, 200], abs=2), name


@needs_real_data
def test_monochrome_hevc_has_its_true_levels() -> None:
    found = stored(REAL / "reports/video/hevc_gray_tv.mp4", size=64, quality=100).frames([0])[0]
    patches = [found[16, column].mean() for column in (8, 32, 54, 76)]
    assert patches == pytest.approx([66, 138, 59, 200], abs=2)


def test_a_matrix_that_cannot_be_converted_is_named(tmp_path: Path) -> None:
    write(tmp_path / "videos/good.mp4", moving_square(4), "libx264", "yuv420p")
    write(tmp_path / "videos/bad.mp4", moving_square(4), "libx264", "yuv444p", **{"x264-params": "colormatrix=YCgCo"})
    command = ("-m", "preprocess", "folder", "--root", tmp_path / "videos", "--out", tmp_path / "set", "--max-failures", "60")
    succeed(*command, "--size", "32")
    (failed,) = map(json.loads, (tmp_path / "set/failures.jsonl").read_text().splitlines())
    assert (failed["path"], failed["stage"]) == ("bad.mp4", "decode")
    assert "cannot convert yuv444p with matrix coefficients YCgCo" in failed["reason"]


@pytest.mark.parametrize(
    ("codec", "pix_fmt"), [("libx264", "yuv420p10le"), ("libx264", "yuv444p"), ("ffv1", "yuv422p"), ("mjpeg", "yuvj420p")]
)
def test_pixel_formats_give_the_same_colours(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    write(tmp_path / "v.mkv", moving_square(4), codec, pix_fmt)
    assert all(
        psnr(a, b) > 27 for a, b in zip(stored(tmp_path / "v.mkv", size=96).frames(range(4)), moving_square(4), strict=True)
    )


def flat(path: Path, width: int, height: int, matrix: int, transfer: int = 2) -> None:
    """A lossless picture of Y, U, V = 120, 90, 200 in limited range; matrix and transfer function by H.273."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        frame = av.VideoFrame(width, height, "yuv444p")
        for plane, level in zip(frame.planes, (120, 90, 200), strict=True):
            np.frombuffer(plane, np.uint8)[:] = level  # type: ignore[arg-type]
        stream.codec_context.colorspace = frame.colorspace = matrix
        stream.codec_context.color_trc = frame.color_trc = transfer
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(("width", "height"), [(320, 240), (1280, 720), (1920, 1080)])
def test_colours_without_a_matrix_are_what_ffmpegs_command_line_takes_them_for(tmp_path: Path, width: int, height: int) -> None:
    """BT.601 at any size. With ``ffmpeg -i v.mkv -pix_fmt rgb24`` they are 236, 77, 44, and as BT.709 250, 91, 41."""
    for name, matrix, expected in (("untagged", 2, (236, 77, 44)), ("bt709", 1, (250, 91, 41)), ("bt601", 6, (236, 77, 44))):
        flat(tmp_path / f"{name}.mkv", width, height, matrix)
        found = stored(tmp_path / f"{name}.mkv", size=64, quality=100).frames([0])[0]
        assert found[20:40, 20:40].mean((0, 1)) == pytest.approx(expected, abs=2.5), name


def test_hdr_is_named_and_counted(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for name, transfer in (("pq", 16), ("hlg", 18), ("sdr", 1)):
        flat(tmp_path / f"videos/{name}.mkv", 64, 48, 1, transfer)
    out = tmp_path / "set"
    made = run("-m", "preprocess", "folder", "--root", tmp_path / "videos", "--out", out, "--size", "32")
    assert made.returncode == 0
    for kind in ("PQ", "HLG"):
        assert f"1 videos are HDR (transfer function {kind}) and stored without tone mapping" in made.stderr
    assert "sdr.mkv" not in made.stderr
    said = succeed("-m", "preprocess", "stats", out, "--out", tmp_path / "stats.png")
    assert "sources  HLG 1, PQ 1" in said
    assert [ShardSet(out).read(n).meta.source.transfer for n in range(3)] == ["HLG", "PQ", None]


def combed(path: Path) -> np.ndarray:
    """Ten interlaced pictures: odd rows show a square four pixels further on. What even rows show is returned."""
    late, early = moving_square(11)[1:], moving_square(11)[:-1]
    fields = early.copy()
    fields[:, 1::2] = late[:, 1::2]
    write(path, fields, "mpeg2video", "yuv420p", flags="+ilme+ildct", q="2", field_order="tt")
    return early


def comb(frames: np.ndarray) -> float:
    """How much rows differ from the mean of those above and below."""
    luma = frames[..., 0].astype(int)
    return float(np.abs(2 * luma[:, 1:-1] - luma[:, :-2] - luma[:, 2:]).mean())


def test_interlaced_video_is_stored_as_it_is_decoded_or_made_whole(tmp_path: Path) -> None:
    early = combed(tmp_path / "v.mpg")
    as_it_is, whole = (stored(tmp_path / "v.mpg", size=96, deinterlace=how, quality=100) for how in (False, True))
    assert len(as_it_is) == len(whole) == 10 and as_it_is.meta.source.interlaced and whole.meta.source.interlaced
    of_side = [comb(of.frames(range(10))[:, 34:56]) for of in (as_it_is, whole)]
    assert of_side[0] > 5 * of_side[1] and of_side[1] < 0.6
    for number in range(1, 9):  # each in its place
        picture = whole.frames([number])[0]
        assert psnr(picture, early[number]) > 26 and psnr(picture, early[number - 1]) < 23


@pytest.mark.parametrize(("codec", "pix_fmt"), [("libx264", "yuv420p"), ("ffv1", "yuv422p10le"), ("mjpeg", "yuvj420p")])
def test_deinterlacing_leaves_whole_pictures_alone(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    """Also those whose timestamps lie, and whose range and matrix are not the usual ones."""
    write(tmp_path / "v.mkv", moving_square(6), codec, pix_fmt, pts=[0, 1, 2, 20, 21, 50], colorspace="bt709")
    plain, through = (stored(tmp_path / "v.mkv", size=96, deinterlace=how) for how in (False, True))
    assert bytes(plain.rgb.data) == bytes(through.rgb.data) and len(through) == 6 and not through.meta.source.interlaced


def circle(height: int, width: int, sar: Fraction) -> np.ndarray:
    """Two pictures of a disc that is round where pixels are shown ``sar`` times as wide as high."""
    y, x = np.mgrid[:height, :width]
    inside = ((x + 0.5 - width / 2) * float(sar)) ** 2 + (y + 0.5 - height / 2) ** 2 < (height / 3) ** 2
    return np.repeat((inside * 200 + 20).astype(np.uint8)[None, ..., None], 2, 0).repeat(3, 3)


def roundness(record: Record) -> float:
    """Width over height of the disc."""
    inside = record.frames([0])[0, ..., 0] > 120
    return float(inside.any(0).sum() / inside.any(1).sum())


@pytest.mark.parametrize("sar", [Fraction(4, 3), Fraction(10, 11), Fraction(64, 45), Fraction(1)])
def test_pixels_become_square_or_are_kept(tmp_path: Path, sar: Fraction) -> None:
    write(tmp_path / "v.mp4", circle(240, 320, sar), "libx264", "yuv420p", sar=sar)
    square, kept = (stored(tmp_path / "v.mp4", size=120, sar=how) for how in ("square", "keep"))
    assert square.size == (120, 2 * round(80 * sar)) and roundness(square) == pytest.approx(1, abs=0.03)
    assert kept.size == (120, 160) and roundness(kept) == pytest.approx(1 / float(sar), abs=0.03)
    said = None if sar == 1 else f"{sar.numerator}:{sar.denominator}"
    for done in (square, kept):
        assert done.meta.source == Source("v.mp4", 320, 240, 0, content=done.meta.source.content, sar=said)
    assert sar != 1 or bytes(square.rgb.data) == bytes(kept.rgb.data)


def test_pixels_are_square_before_a_picture_is_turned(tmp_path: Path) -> None:
    turned = [0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30]
    write(tmp_path / "v.mp4", circle(240, 320, Fraction(3, 2)), "libx264", "yuv420p", matrix=turned, sar=Fraction(3, 2))
    done = stored(tmp_path / "v.mp4", size=120)
    assert done.size == (240, 120) and roundness(done) == pytest.approx(1, abs=0.03)
    assert done.meta.source == Source("v.mp4", 320, 240, 0, content=done.meta.source.content, sar="3:2", rotation=90)


def test_pixels_too_wide_to_be_square_fail_with_the_way_out(tmp_path: Path) -> None:
    write(tmp_path / "v.mp4", moving_square(2), "libx264", "yuv420p", sar=Fraction(60))
    with pytest.raises(TranscodeError, match="for its sample aspect ratio of 60:1; sar keep stores pixels as they are"):
        list(transcode(tmp_path / "v.mp4", Options()))
    assert stored(tmp_path / "v.mp4", size=96, sar="keep").size == (96, 128)


@needs_real_data
def test_a_circle_of_hdv_is_round() -> None:
    done = stored(REAL / "reports/video/hdv1440.mp4", size=90)
    assert done.size == (90, 160) and (done.meta.source.width, done.meta.source.sar) == (1440, "4:3")


def test_what_is_odd_about_sources_is_counted_and_named(tmp_path: Path) -> None:
    slanted = [round(65536 * x) for x in (0.5**0.5, 0.5**0.5, 0, -(0.5**0.5), 0.5**0.5, 0, 0, 0, 16384)]
    write(tmp_path / "videos/slanted.mp4", moving_square(4), "libx264", "yuv420p", matrix=slanted)
    write(tmp_path / "videos/wide.mp4", moving_square(4), "libx264", "yuv420p", sar=Fraction(4, 3))
    combed(tmp_path / "videos/combed.mpg")
    out = tmp_path / "set"
    made = run("-m", "preprocess", "folder", "--root", tmp_path / "videos", "--out", out, "--size", "32")
    assert made.returncode == 0 and "warning: 1 videos are by their metadata turned by another angle" in made.stderr
    assert "left aside: slanted.mp4" in made.stderr
    said = succeed("-m", "preprocess", "stats", out, "--out", tmp_path / "stats.png")
    assert "sources  interlaced 1, non-square pixels 1, odd rotation 1" in said
    assert ShardSet(out).read(1).meta.source.rotation == 45
    assert "no faults" in succeed("-m", "preprocess", "verify", out)


def test_a_set_made_before_these_options_is_appended_to(tmp_path: Path) -> None:
    """Its manifest names none of them, and neither does that of a set with the defaults."""
    write(tmp_path / "videos/a.mp4", moving_square(4), "libx264", "yuv420p")
    command = ("-m", "preprocess", "folder", "--root", tmp_path / "videos", "--out", tmp_path / "set", "--size", "32")
    succeed(*command)
    options = json.loads((tmp_path / "set/manifest.json").read_text())["options"]
    assert {"size", "cues", "segment"} <= set(options) and not {"sar", "deinterlace"} & set(options)
    write(tmp_path / "videos/b.mp4", moving_square(4), "libx264", "yuv420p")
    assert "--sar keep" in refuse(*command, "--append", "--sar", "keep") and "was made with --sar square" in refuse(
        *command, "--append", "--sar", "keep"
    )
    assert "2 videos" in succeed(*command, "--append")


def test_every_frame_of_a_variable_rate_is_kept_and_fps_is_the_average(tmp_path: Path) -> None:
    """The header says 25 frames a second, and the file shows 5 in 2 seconds."""
    write(tmp_path / "v.mkv", moving_square(6), "ffv1", "yuv420p", pts=[0, 1, 2, 20, 21, 50])
    done = stored(tmp_path / "v.mkv", size=96)
    assert len(done) == 6 and psnr(done.frames([3])[0], moving_square(6)[3]) > 28
    assert done.meta.fps == 2.5 and done.meta.source.rate == "measured"


def test_seconds_are_those_of_the_timestamps_where_the_header_lies(tmp_path: Path) -> None:
    """30 frames, a second each: the header says 25 frames a second."""
    write(tmp_path / "v.mkv", moving_square(30), "ffv1", "yuv420p", pts=list(range(0, 750, 25)))
    assert [part.meta.frames for part in transcode(tmp_path / "v.mkv", Options(size=32, segment=12))] == [12, 12, 6]
    with pytest.raises(TranscodeError, match="longer than the max-seconds of its set, 20; a set made with segment cuts it"):
        list(transcode(tmp_path / "v.mkv", Options(size=32, max_seconds=20)))


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_the_headers_rate_stays_where_timestamps_agree(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"v{suffix}", moving_square(40), "libx264", "yuv420p", pts=[t + (t > 20) for t in range(40)], bf="2")
    done = stored(tmp_path / f"v{suffix}", size=32)
    assert done.meta.fps == pytest.approx(25, rel=0.03) and done.meta.source.rate is None


def test_packets_that_are_fields_do_not_double_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "v.mkv", moving_square(20), "ffv1", "yuv420p")
    monkeypatch.setattr(OpenedVideo, "_packet_times", lambda self: list(range(0, 800, 20)))  # milliseconds: 40 fields
    done = stored(tmp_path / "v.mkv", size=32)
    assert done.meta.fps == 25 and done.meta.source.rate is None


def test_contradictory_timestamps_keep_the_headers_rate_and_are_told(tmp_path: Path) -> None:
    write(tmp_path / "videos/v.mkv", moving_square(8), "ffv1", "yuv420p", pts=[0, 1, 2, 3, 100_000, 100_001, 100_002, 100_003])
    succeed("-m", "preprocess", "folder", "--root", tmp_path / "videos", "--out", tmp_path / "set", "--size", "32")
    assert "v.mkv" not in (tmp_path / "set/failures.jsonl").read_text()
    (found,) = ShardSet(tmp_path / "set").fps_N
    assert found == 25
    said = succeed("-m", "preprocess", "verify", tmp_path / "set")
    assert "measured from the timestamps in 0, the header's though timestamps contradict each other in 1 of 1 samples" in said


def test_rates_are_measured_from_sorted_timestamps() -> None:
    rng, ms = np.random.default_rng(0), Fraction(1, 1000)
    even = (np.arange(600) * 33).tolist()
    jittered = (np.arange(600) * 33 + rng.integers(0, 20, 600)).tolist()
    reordered = [t for group in zip(even[0::3], even[2::3], even[1::3], strict=True) for t in group]
    pauses = (np.arange(600) * 33 + np.arange(600) // 100 * 2_000).tolist()
    for times in (even, reordered, even[::1], [*even[:300], None, *even[301:]], [*even[:300], even[299], *even[301:]]):
        assert measured_rate(times, ms) == pytest.approx(1000 / 33, rel=0.002)
    assert measured_rate(jittered, ms) == pytest.approx(1000 / 33, rel=0.01)
    assert measured_rate(pauses, ms) == pytest.approx(599 / (599 * 0.033 + 10))
    begun_again = even[:300] + [t + 5 for t in even[:300]]  # sorting would make a video of half the length
    for contradictory in (
        [0] * 600, even[:300] * 2, begun_again, [None] * 600, [t if t % 2 else None for t in even], [*even[:300], 10**9],
        [t // 2 * 2 for t in range(600)], [-(10**9), *even], [0, 0], [None, 5],
    ):  # fmt: skip
        assert measured_rate(contradictory, ms) is None


@needs_real_data
def test_browser_recordings_have_the_rate_of_their_timestamps() -> None:
    jittered, slow = (REAL / f"reports/video/{name}.webm" for name in ("jitter_no_default_duration", "default_duration_1s"))
    assert stored(jittered, size=32).meta.fps == pytest.approx(30.3, abs=0.05)
    assert len(list(transcode(jittered, Options(size=32, segment=5)))) == 4
    done = stored(slow, size=32, max_seconds=10)
    assert len(done) / done.meta.fps == pytest.approx(6, abs=0.05)
    assert done.meta.source.rate == "measured"


def test_4k_is_stored_like_anything_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write(
        tmp_path / "v.mp4",
        np.kron(rng.integers(0, 256, (3, 27, 48, 3), np.uint8), np.ones((1, 80, 80, 1), np.uint8)),
        "libx264",
        "yuv420p",
    )
    done = stored(tmp_path / "v.mp4", size=128)
    assert done.size == (128, 228) and len(done) == 3 and done.meta.source.width == 3840


def test_odd_sizes_and_scaling_up(tmp_path: Path) -> None:
    write(tmp_path / "v.mkv", moving_square(3, 37, 51), "ffv1", "yuv444p")
    assert stored(tmp_path / "v.mkv", size=33).size == (33, 46)
    assert stored(tmp_path / "v.mkv", size=64).frames([0, 2]).shape == (2, 64, 88, 3)


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "v.m4v"), "w", format="mp4") as container:
        audio = container.add_stream("aac", rate=44100)
        cover = container.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 64, 64, "yuvj420p", Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        container.mux(cover.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        silence.sample_rate = 44100
        container.mux(audio.encode(silence))
        container.mux(audio.encode(None))
    with pytest.raises(TranscodeError, match="no video stream"):
        list(transcode(tmp_path / "v.m4v", Options()))


def test_a_picture_above_8k_is_refused(tmp_path: Path) -> None:
    """No buffer of any size is allocated because a file says so."""
    write(tmp_path / "v.mkv", np.zeros((1, 4800, 8192, 3), np.uint8), "mjpeg", "yuvj420p")
    with pytest.raises(TranscodeError, match="8192x4800 is above 8192x4320 pixels") as caught:
        list(transcode(tmp_path / "v.mkv", Options()))
    assert caught.value.stage == "size"


def test_a_span_is_part_of_the_video(tmp_path: Path) -> None:
    write(tmp_path / "v.mkv", moving_square(10), "ffv1", "yuv420p")
    whole = stored(tmp_path / "v.mkv", size=96)
    (part,) = transcode(tmp_path / "v.mkv", Options(size=96, cues=()), (3, 7))
    assert (part.meta.frames, part.meta.source.first) == (4, 3)
    (rest,) = transcode(tmp_path / "v.mkv", Options(size=96, cues=()), (8, 50))  # lists claim more than there is
    assert rest.meta.frames == 2
    found = unpack(b"".join(pack("k", part.members, part.meta)))
    np.testing.assert_array_equal(found.frames(range(4)), whole.frames(range(3, 7)))
    with pytest.raises(TranscodeError, match="frames 20 to 30 asked for, and the video has 10"):
        list(transcode(tmp_path / "v.mkv", Options(), (20, 30)))


@pytest.mark.parametrize(
    ("span", "first", "frames"),
    [((0.15, 0.29), 4, 3), ((0.24, None), 6, 4), ((6, None), 6, 4), ((0.0, 9.0), 0, 10), ((0.12, 0.121), 3, 1), ((0, 1), 0, 1)],
)
def test_a_span_in_seconds_is_one_of_the_average_rate(tmp_path: Path, span: Span, first: int, frames: int) -> None:
    write(tmp_path / "v.mkv", moving_square(10), "ffv1", "yuv420p")
    (part,) = transcode(tmp_path / "v.mkv", Options(size=32, cues=()), span)
    assert (part.meta.source.first, part.meta.frames, part.meta.fps) == (first, frames, 25)


def test_a_span_after_the_end_says_where_it_was_sought(tmp_path: Path) -> None:
    write(tmp_path / "v.mkv", moving_square(10), "ffv1", "yuv420p")
    for span, says in (((2.0, None), "frames 50 to the end asked for"), ((2.0, 3.0), "frames 50 to 75 asked for")):
        with pytest.raises(TranscodeError, match=f"{says}, and the video has 10"):
            list(transcode(tmp_path / "v.mkv", Options(), span))


def test_stored_sizes() -> None:
    assert stored_size(320, 240, 128) == (170, 128)
    assert stored_size(240, 320, 128) == (128, 170)
    assert stored_size(340, 256, 128) == (170, 128)
    assert stored_size(180, 144, 128) == (160, 128)
    assert stored_size(100, 100, 128) == (128, 128)


@pytest.mark.parametrize("content", [b"", b"this is not a video\n" * 100])
def test_what_is_no_video_fails_at_open(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "v.avi").write_bytes(content)
    with pytest.raises(TranscodeError) as caught:
        list(transcode(tmp_path / "v.avi", Options()))
    assert caught.value.stage == "open"


ODD_NAMES = ["12:30 talk.avi", "concat:x.avi", "concat:v.avi|v.avi", "pipe:0", "-i.avi", "subfile,,start,0,end,9,,:v.avi"]
ODD_NAMES += ["part,0,9,v.avi", "clip%03d.avi", "a*.avi", "http:/localhost/v.avi", "file:v.avi", "s3:bucket/v.avi"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_is_a_file_and_never_a_protocol(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(moving_square(3), 25, tmp_path / "v.avi")
    root = tmp_path / "s3:root"
    (root / name).parent.mkdir(parents=True)
    (tmp_path / "v.avi").rename(root / name)
    monkeypatch.chdir(tmp_path)
    folder = open_folder("s3:root")
    assert folder.files().keys() == {name}
    with folder.local(name) as place, OpenedVideo(place) as opened:
        assert len(list(opened.frames())) == 3
    monkeypatch.chdir(root)
    (done,) = transcode(Path(name).absolute(), Options())
    assert done.meta.frames == 3


@pytest.mark.parametrize("name", ["list.ffconcat", "list.avi", "list.m3u8", "list"])
def test_a_playlist_reads_nothing_but_itself(name: str, tmp_path: Path) -> None:
    """FFmpeg follows these lists by itself, out of the folder too."""
    encode(moving_square(3), 25, tmp_path / "secret.avi")
    root = tmp_path / "root"
    root.mkdir()
    (root / "in.avi").symlink_to("../secret.avi")
    listed = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{tmp_path}/secret.avi\n#EXT-X-ENDLIST\n"
    (root / name).write_text(listed if "m3u8" in name else "ffconcat version 1.0\nfile in.avi\n")
    with av.open(str(root / name)) as container:
        assert next(container.decode(video=0)).width == 128
    with pytest.raises(TranscodeError, match=r"a list of other files .*, which are not read; give the videos") as caught:
        list(transcode(root / name, Options()))
    assert caught.value.stage == "open"


def test_a_session_description_opens_no_port(tmp_path: Path) -> None:
    (tmp_path / "x.avi").write_text(
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 5004 RTP/AVP 26\r\n"
    )
    with pytest.raises(TranscodeError, match=r"a list of other files \(sdp\)"):
        list(transcode(tmp_path / "x.avi", Options()))


def test_a_pattern_in_a_name_takes_no_other_file(tmp_path: Path) -> None:
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"a{number}.png"), np.full((48, 64, 3), 80 * number, np.uint8))
    (tmp_path / "a%d.png").write_bytes((tmp_path / "a2.png").read_bytes())
    with av.open(str(tmp_path / "a%d.png")) as container:
        assert len(list(container.decode(video=0))) == 3
    with OpenedVideo(tmp_path / "a%d.png") as opened:
        (frame,) = opened.frames()
    assert frame.to_ndarray(format="rgb24").mean() == 160


def test_a_part_of_a_file_is_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    file = Bytes(part_of(tmp_path / "f", 2, 5))
    assert (file.read(3), file.read(9), file.read(1)) == (b"234", b"56", b"") and file.tell() == 5
    assert (file.seek(-1, 2), file.read(9), file.seek(-3, 1), file.read(1)) == (4, b"6", 2, b"4")
    file.close()
    (tmp_path / "empty").touch()
    with pytest.raises(TranscodeError, match="Invalid data found"):
        list(transcode(tmp_path / "empty", Options()))


@needs_real_data
def test_sound_without_pictures_says_so() -> None:
    with pytest.raises(TranscodeError, match="no video stream"):
        list(transcode(REAL / "wild/derived/audio_only.mp4", Options()))


@needs_real_data
@pytest.mark.parametrize("name", ["Biking/v_Biking_g01_c01.avi", "Drumming/v_Drumming_g01_c01.avi"])
def test_real_clips_match_an_independent_decode(name: str) -> None:
    """Against FFmpeg's own conversion to RGB at the stored size: same frames, same colours."""
    path = REAL / "ucf101/videos" / name
    if not path.exists():
        path = sorted((REAL / "ucf101/videos" / name).parent.parent.rglob("*.avi"))[len(name)]
    done = stored(path, quality=95)
    height, width = done.size
    with av.open(str(path)) as container:
        expected = [
            f.reformat(width=width, height=height, interpolation="AREA").to_ndarray(format="rgb24")
            for f in container.decode(video=0)
        ]
    assert len(done) == len(expected)
    some = np.linspace(0, len(expected) - 1, 5).astype(int)
    assert all(psnr(a, expected[at]) > 30 for at, a in zip(some, done.frames(some), strict=True))


def wild() -> list[tuple[str, ...]]:
    """Every file of the wild collection, and what preprocess does with it: tests/preprocess/wild.tsv."""
    lines = (Path(__file__).parent / "wild.tsv").read_text(encoding="utf-8").splitlines()
    return [tuple(line.split("\t")) for line in lines if not line.startswith("#")]


@needs_real_data
@pytest.mark.parametrize("row", wild(), ids=lambda row: row[0])
def test_every_wild_file_goes_through_or_fails_with_its_reason(row: tuple[str, ...]) -> None:
    try:
        (done,) = transcode(REAL / "wild" / row[0], Options(size=64))
        found = (f"{done.meta.frames} frames", f"{done.meta.width}x{done.meta.height}", f"{done.meta.fps:g} fps")
    except TranscodeError as error:
        found = (error.stage, str(error))
    assert found == row[1:]


@needs_real_data
def test_the_table_names_every_wild_file() -> None:
    on_disk = {p.relative_to(REAL / "wild").as_posix() for p in (REAL / "wild").rglob("*") if p.is_file()}
    assert {row[0] for row in wild()} == on_disk


@pytest.mark.parametrize(
    ("a_b_c_d", "shown"),
    [
        ((1, 0, 0, 1), lambda x: x),
        ((-1, 0, 0, 1), lambda x: x[:, ::-1]),  # hflip, as FFmpeg's command line calls its filter for that matrix
        ((1, 0, 0, -1), lambda x: x[::-1]),  # vflip
        ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),  # hflip,vflip
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),  # transpose=clock
        ((0, -1, 1, 0), lambda x: np.rot90(x)),  # transpose=cclock
        ((0, 1, 1, 0), lambda x: x.transpose(1, 0, 2)),  # transpose=cclock_flip
        ((0, -1, -1, 0), lambda x: np.rot90(x, 2).transpose(1, 0, 2)),  # transpose=clock_flip
        ((2, 0, 0, -1), lambda x: x[::-1]),  # the scale is left aside
        ((0.7, 0.7, -0.7, 0.7), lambda x: x),  # any other angle too
        ((1, 0, 1, 1), lambda x: x),
        ((0, 0, 0, 0), lambda x: x),
    ],
)
@pytest.mark.parametrize("codec", ["jpeg", "h264"])
def test_pictures_are_turned_and_mirrored_as_their_metadata_says(
    tmp_path: Path, a_b_c_d: tuple[float, ...], shown: Callable[[np.ndarray], np.ndarray], codec: str
) -> None:
    a, b, c, d = (round(65536 * number) for number in a_b_c_d)
    frames = np.repeat(np.random.default_rng(0).integers(0, 256, (2, 6, 9, 3), np.uint8), 16, 1).repeat(16, 2)
    write(tmp_path / "v.mp4", frames, "libx264", "yuv444p", matrix=[a, b, 0, c, d, 0, 0, 0, 1 << 30], crf="1")
    done = stored(tmp_path / "v.mp4", size=96, codec=codec, sar="keep")  # to FFmpeg a scale is a sample aspect ratio
    expected = shown(frames[1])
    assert done.size == expected.shape[:2] and psnr(done.frames([1])[0], expected) > 24


def test_the_orientation_in_exif_is_applied(tmp_path: Path) -> None:
    """A camera's MJPEG: EXIF's eight numbers say where row 0 and column 0 of the picture lie when it is shown."""
    picture = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    jpeg = simplejpeg.encode_jpeg(picture, 95, colorsubsampling="444")
    ways = [
        picture, picture[:, ::-1], picture[::-1, ::-1], picture[::-1], picture.transpose(1, 0, 2), np.rot90(picture, -1),
        np.rot90(picture, 2).transpose(1, 0, 2), np.rot90(picture),
    ]  # fmt: skip
    for number, expected in enumerate(ways, 1):
        entry = struct.pack("<4sIHHHIHHI", b"II*\0", 8, 1, 0x112, 3, 1, number, 0, 0)
        exif = b"\xff\xe1" + struct.pack(">H", 8 + len(entry)) + b"Exif\0\0" + entry
        (tmp_path / "v.mjpeg").write_bytes((jpeg[:2] + exif + jpeg[2:]) * 2)
        found = stored(tmp_path / "v.mjpeg", size=96).frames([1])[0]
        assert found.shape == expected.shape and psnr(found, expected) > 24, number


@needs_real_data
def test_a_selfie_is_mirrored() -> None:
    path = REAL / "reports/video/hflip.mp4"
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0)).reformat(width=114, height=64, interpolation="AREA").to_ndarray(format="rgb24")
    found = stored(path, size=64).frames([0])[0]
    assert (
        psnr(found, frame[:, ::-1]) > 24 and max(psnr(found, other) for other in (frame, frame[::-1], frame[::-1, ::-1])) < 15
    )


@needs_real_data
@pytest.mark.parametrize(("angle", "turns"), [(90, -1), (180, 2), (270, 1)])
def test_the_rotation_in_the_metadata_is_applied(angle: int, turns: int) -> None:
    """A phone's "rotate 90" asks for a clockwise quarter turn, as FFmpeg's own player does it (numpy turns the other way)."""
    path = REAL / f"wild/stray/rotation/video_{angle}.mov"
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        upright = frame.reformat(width=114, height=64, interpolation="AREA").to_ndarray(format="rgb24")
    assert psnr(stored(path, size=64).frames([0])[0], np.rot90(upright, turns)) > 30


def test_preprocess_never_imports_torch() -> None:
    succeed("-c", "import sys, preprocess.__main__; assert 'torch' not in sys.modules, 'torch was imported'")
