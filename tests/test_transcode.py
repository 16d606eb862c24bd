"""One video -> frames and cues, against a plain decode of the same file; and files that are no video."""

from pathlib import Path

import av
import numpy as np
import pytest
import simplejpeg
from conftest import REAL, needs_real_data, succeed

from preprocess.synthetic import encode
from preprocess.transcode import TranscodeError, stored_size, transcode


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))


def moving_square(frames: int, height: int = 96, width: int = 128) -> np.ndarray:
    out = np.full((frames, height, width, 3), (40, 90, 160), np.uint8)
    for t in range(frames):
        out[t, 30:60, 4 * t : 4 * t + 30] = (220, 60, 30)
    return out


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_frames_are_the_source_in_colour_and_order(tmp_path: Path, suffix: str) -> None:
    source = moving_square(12)
    encode(source, 25, tmp_path / f"v{suffix}")
    done = transcode(tmp_path / f"v{suffix}", 96, 95)
    assert (done.width, done.height, done.source_width, done.source_height, done.fps) == (128, 96, 128, 96, 25)
    frames = [simplejpeg.decode_jpeg(frame) for frame in done.frames]
    assert len(frames) == 12 and all(psnr(a, b) > 28 for a, b in zip(frames, source, strict=True))
    assert psnr(frames[0], source[6]) < 20


def test_the_difference_is_signed_and_starts_with_its_second_entry(tmp_path: Path) -> None:
    encode(moving_square(8), 25, tmp_path / "v.mp4")
    done = transcode(tmp_path / "v.mp4", 96, 95)
    moved = np.stack([simplejpeg.decode_jpeg(d, "GRAY")[..., 0].astype(int) - 128 for d in done.differences])
    assert len(moved) == len(done.energy_N) == 8
    assert done.differences[0] == done.differences[1] and done.energy_N[0] == done.energy_N[1]
    front, back, rest = moved[4, 35:55, 43:45], moved[4, 35:55, 13:15], moved[4, :20]
    assert abs(front.mean()) > 2 and np.sign(front.mean()) == -np.sign(back.mean()) and abs(rest).max() <= 2
    assert done.energy_N[4] == pytest.approx(2 * np.abs(moved[4]).mean(), abs=0.5)


def test_a_single_frame_is_still(tmp_path: Path) -> None:
    encode(moving_square(1), 25, tmp_path / "v.avi")
    done = transcode(tmp_path / "v.avi", 48, 90)
    assert len(done.frames) == len(done.differences) == 1 and done.energy_N.tolist() == [0]
    assert np.all(simplejpeg.decode_jpeg(done.differences[0], "GRAY") == 128)


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
        transcode(tmp_path / "v.avi", 96, 90)
    assert caught.value.stage == "open"


@needs_real_data
def test_sound_without_pictures_says_so() -> None:
    with pytest.raises(TranscodeError, match="no video stream"):
        transcode(REAL / "wild/derived/audio_only.mp4", 96, 90)


@needs_real_data
@pytest.mark.parametrize("name", ["Biking/v_Biking_g01_c01.avi", "Drumming/v_Drumming_g01_c01.avi"])
def test_real_clips_match_an_independent_decode(name: str) -> None:
    """Against FFmpeg's own conversion to RGB at the stored size: same frames, same colours."""
    path = REAL / "ucf101/videos" / name
    if not path.exists():
        path = sorted((REAL / "ucf101/videos" / name).parent.parent.rglob("*.avi"))[len(name)]
    done = transcode(path, 128, 95)
    with av.open(str(path)) as container:
        expected = [
            f.reformat(width=done.width, height=done.height, interpolation="AREA").to_ndarray(format="rgb24")
            for f in container.decode(video=0)
        ]
    assert len(done.frames) == len(expected)
    for at in np.linspace(0, len(expected) - 1, 5).astype(int):
        assert psnr(simplejpeg.decode_jpeg(done.frames[at]), expected[at]) > 30


def test_preprocess_never_imports_torch() -> None:
    succeed("-c", "import sys, preprocess.__main__; assert 'torch' not in sys.modules, 'torch was imported'")
