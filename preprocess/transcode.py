"""One video -> resized JPEG frames and motion cues, in decode order; memory holds one decoded frame and the JPEGs.

Decoded frames go through one reused scaler straight to full-range 4:2:0 planes (BT.601, what JPEG means), and the planes to
simplejpeg: colour conversion and scaling, not decoding, are where the time goes. Frames are counted in decode order, never
by pts: a quarter of real files lie about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import simplejpeg
from av.video.reformatter import Colorspace, VideoReformatter

from dclr.record import MAX_SIDE
from preprocess.motion import STILL, Difference


class TranscodeError(Exception):
    """This video cannot become a sample; ``stage`` says where it failed: open, decode or size."""

    def __init__(self, stage: str, reason: str):
        super().__init__(reason)
        self.stage = stage


@dataclass(frozen=True)
class Transcoded:
    """N frames and their cues: ``frames`` colour JPEGs, ``differences`` grey JPEGs, ``energy_N`` float32 (N,) grey levels,
    ``width`` x ``height`` stored, ``source_width`` x ``source_height``, ``fps`` (0 where the file does not say)."""

    frames: list[bytes]
    differences: list[bytes]
    energy_N: np.ndarray
    width: int
    height: int
    source_width: int
    source_height: int
    fps: float


def stored_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """(width, height) with the short side ``short_side`` and the long one to the nearest even number of pixels."""
    scale = short_side / min(width, height)
    long_side = 2 * round(max(width, height) * scale / 2)
    return (long_side, short_side) if width >= height else (short_side, long_side)


def transcode(path: Path, short_side: int, quality: int) -> Transcoded:
    """Read the first video stream of ``path``; raises TranscodeError with the stage and the reason."""
    try:
        container = av.open(str(path), metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise TranscodeError("open", _reason(error)) from None
    with container:
        if not container.streams.video:
            raise TranscodeError("open", "no video stream in the file")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise TranscodeError("open", "no decoder for its codec")
        stream.codec_context.thread_count = 1  # a process is one core
        frames: list[bytes] = []
        differences: list[bytes] = []
        energy: list[float] = []
        width = height = 0
        scaler, difference = VideoReformatter(), Difference()
        source = (0, 0)
        try:
            for frame in container.decode(stream):
                if not frames:
                    source = (frame.width, frame.height)
                    width, height = stored_size(*source, short_side)
                    if max(width, height) > MAX_SIDE:
                        raise TranscodeError("size", f"{source[0]}x{source[1]} would be stored as {width}x{height}")
                y, u, v = _planes(scaler, frame, width, height)
                frames.append(simplejpeg.encode_jpeg_yuv_planes(y, u, v, quality))
                moved = difference(y)
                if moved is not None:
                    differences.append(_grey(moved[0], quality))
                    energy.append(moved[1])
        except (av.error.FFmpegError, ValueError) as error:
            raise TranscodeError("decode", f"{_reason(error)}, after {len(frames)} frames") from None
        if not frames:
            raise TranscodeError("decode", "no frame in the video stream")
        first = differences[0] if differences else _grey(np.full((height, width), STILL, np.uint8), quality)
        energy_N = np.array([energy[0] if energy else 0.0, *energy], np.float32)
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        return Transcoded(frames, [first, *differences], energy_N, width, height, *source, round(fps, 3))


def _reason(error: Exception) -> str:
    """What went wrong without FFmpeg's error number and without the path of this machine."""
    return getattr(error, "strerror", None) or str(error)


def _planes(scaler: VideoReformatter, frame: av.VideoFrame, width: int, height: int) -> list[np.ndarray]:
    """The frame as full-range BT.601 planes: uint8 Y (H, W), U and V (ceil H/2, ceil W/2)."""
    smaller = frame.width > width
    scaled = scaler.reformat(
        frame,
        width=width,
        height=height,
        format="yuvj420p",
        interpolation="AREA" if smaller else "BICUBIC",
        dst_colorspace=Colorspace.ITU601,
        dst_color_range="JPEG",
        threads=1,
    )
    planes = [np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, : p.width] for p in scaled.planes]
    return [np.ascontiguousarray(plane) for plane in planes]  # rows in FFmpeg are padded, and its buffer is reused


def _grey(plane_HW: np.ndarray, quality: int) -> bytes:
    return simplejpeg.encode_jpeg_yuv_planes(plane_HW, None, None, quality)
