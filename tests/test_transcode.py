"""One video -> frames and cues, against a plain decode of the same file; and files that are no video."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from conftest import REAL, needs_real_data, succeed

from dclr.record import Record, pack, unpack
from preprocess.synthetic import encode
from preprocess.transcode import Options, TranscodeError, stored_size, transcode


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))


def moving_square(frames: int, height: int = 96, width: int = 128) -> np.ndarray:
    out = np.full((frames, height, width, 3), (40, 90, 160), np.uint8)
    for t in range(frames):
        out[t, 30:60, 4 * t : 4 * t + 30] = (220, 60, 30)
    return out


def stored(path: Path, **options: object) -> Record:
    """The one sample of a video, read back."""
    (done,) = transcode(path, Options(**options))  # type: ignore[arg-type]
    made = Options(**options)  # type: ignore[arg-type]
    meta = {"video": path.name, "frames": done.frames, "codec": made.codec, "cues": list(made.cues), **done.meta}
    return unpack(b"".join(pack("k", done.members, meta)))


def write(path: Path, frames: np.ndarray, codec: str, pix_fmt: str, pts: list[int] | None = None, **options: str) -> None:
    """A video with FFmpeg's encoder and pixel format of choice, 25 frames a second unless ``pts`` (1/25 s) say otherwise."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.codec_context.time_base = pix_fmt, Fraction(1, 25)
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
    assert done.size == (96, 128) and done.meta["fps"] == 25
    assert done.meta["source"] == {"width": 128, "height": 96, "first": 0}
    frames = done.frames(range(12))
    assert len(done) == 12 and all(psnr(a, b) > 28 for a, b in zip(frames, source, strict=True))
    assert psnr(frames[0], source[6]) < 20


@pytest.mark.parametrize("codec", ["jpeg", "h264"])
def test_the_difference_is_signed_and_starts_with_its_second_entry(tmp_path: Path, codec: str) -> None:
    encode(moving_square(8), 25, tmp_path / "v.mp4")
    done = stored(tmp_path / "v.mp4", size=96, codec=codec, cues=("diff", "flow", "energy"))
    moved = done.differences(range(8)).astype(int) - 128
    assert np.abs(moved[0] - moved[1]).mean() < 0.5 and done.energy_N[0] == done.energy_N[1]
    assert np.array_equal(done.flow([0]), done.flow([1]))
    front, back, rest = moved[4, 35:55, 43:45], moved[4, 35:55, 13:15], moved[4, :20]
    assert abs(front.mean()) > 2 and np.sign(front.mean()) == -np.sign(back.mean()) and abs(rest).max() <= 2
    assert done.energy_N[4] == pytest.approx(2 * np.abs(moved[4]).mean(), abs=0.5)
    assert done.grid_NGG[4].astype(float).mean() == pytest.approx(done.energy_N[4], rel=0.01)


@pytest.mark.parametrize("codec", ["jpeg", "h264"])
def test_a_single_frame_is_still(tmp_path: Path, codec: str) -> None:
    encode(moving_square(1), 25, tmp_path / "v.avi")
    done = stored(tmp_path / "v.avi", size=48, codec=codec, cues=("diff", "flow", "energy"))
    assert len(done) == 1 and done.energy_N.tolist() == [0] and not done.grid_NGG.any() and not done.flow([0]).any()
    assert np.all(done.differences([0]) == 128)


def test_alpha_is_dropped(tmp_path: Path) -> None:
    opaque = moving_square(4)
    write(tmp_path / "v.mov", np.concatenate([opaque, np.full((*opaque.shape[:3], 1), 60, np.uint8)], -1), "png", "rgba")
    assert all(psnr(a, b) > 28 for a, b in zip(stored(tmp_path / "v.mov", size=96).frames(range(4)), opaque, strict=True))


@pytest.mark.parametrize(
    ("codec", "pix_fmt"), [("libx264", "yuv420p10le"), ("libx264", "yuv444p"), ("ffv1", "yuv422p"), ("mjpeg", "yuvj420p")]
)
def test_pixel_formats_give_the_same_colours(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    write(tmp_path / "v.mkv", moving_square(4), codec, pix_fmt)
    assert all(
        psnr(a, b) > 27 for a, b in zip(stored(tmp_path / "v.mkv", size=96).frames(range(4)), moving_square(4), strict=True)
    )


def test_interlaced_video_is_stored_as_it_is_decoded(tmp_path: Path) -> None:
    write(tmp_path / "v.mpg", moving_square(10), "mpeg2video", "yuv420p", flags="+ilme+ildct")
    assert len(stored(tmp_path / "v.mpg", size=96)) == 10


def test_every_frame_of_a_variable_rate_is_kept_and_fps_is_the_average(tmp_path: Path) -> None:
    write(tmp_path / "v.mkv", moving_square(6), "ffv1", "yuv420p", pts=[0, 1, 2, 20, 21, 50])
    done = stored(tmp_path / "v.mkv", size=96)
    assert len(done) == 6 and psnr(done.frames([3])[0], moving_square(6)[3]) > 28


def test_4k_is_stored_like_anything_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write(
        tmp_path / "v.mp4",
        np.kron(rng.integers(0, 256, (3, 27, 48, 3), np.uint8), np.ones((1, 80, 80, 1), np.uint8)),
        "libx264",
        "yuv420p",
    )
    done = stored(tmp_path / "v.mp4", size=128)
    assert done.size == (128, 228) and len(done) == 3 and done.meta["source"]["width"] == 3840


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
    assert (part.frames, part.first) == (4, 3)
    (rest,) = transcode(tmp_path / "v.mkv", Options(size=96, cues=()), (8, 50))  # lists claim more than there is
    assert rest.frames == 2
    meta = {"video": "v", "frames": 4, "codec": "jpeg", "cues": [], **part.meta}
    found = unpack(b"".join(pack("k", part.members, meta)))
    np.testing.assert_array_equal(found.frames(range(4)), whole.frames(range(3, 7)))
    with pytest.raises(TranscodeError, match="frames 20 to 30 asked for, and the video has 10"):
        list(transcode(tmp_path / "v.mkv", Options(), (20, 30)))


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
    """Every file of the wild collection, and what preprocess does with it: tests/wild.tsv."""
    lines = (Path(__file__).parent / "wild.tsv").read_text(encoding="utf-8").splitlines()
    return [tuple(line.split("\t")) for line in lines if not line.startswith("#")]


@needs_real_data
@pytest.mark.parametrize("row", wild(), ids=lambda row: row[0])
def test_every_wild_file_goes_through_or_fails_with_its_reason(row: tuple[str, ...]) -> None:
    try:
        (done,) = transcode(REAL / "wild" / row[0], Options(size=64))
        found = (f"{done.frames} frames", f"{done.meta['width']}x{done.meta['height']}", f"{done.meta['fps']:g} fps")
    except TranscodeError as error:
        found = (error.stage, str(error))
    assert found == row[1:]


@needs_real_data
def test_the_table_names_every_wild_file() -> None:
    on_disk = {p.relative_to(REAL / "wild").as_posix() for p in (REAL / "wild").rglob("*") if p.is_file()}
    assert {row[0] for row in wild()} == on_disk


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
