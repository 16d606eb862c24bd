"""A video with what a network makes of it: activation maps over its frames, and below them the probabilities over time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import cv2
import numpy as np
import torch

from dclr import canvas
from dclr.files import whole
from dclr.record import DEFAULT_FPS, full_range_rgb
from dclr.text import plain
from preprocess.transcode import OpenedVideo, Options, Scaler, deinterlaced

if TYPE_CHECKING:
    from dclr.evaluation.videos import Named, Window

SHORT_SIDE = 240, 480  # least and most pixels of a shown frame's short side
LEAST_WIDTH, CURVES = 480, 160  # pixels: of the picture, and the height of the curves
HOTTEST = 3.0  # of a map whose mean is 1, and the last colour
CRF = 20
RGB = np.ndarray  # uint8 (H, W, 3)


def write(video: Path, named: Named, shown: Mapping[str, int], options: Options, out: Path) -> None:
    """Write ``video`` to ``out``, an MP4 of H.264 with as many frames a second: all of its frames, with the curves of the
    classes ``shown``, by name. ``options`` say how the network saw it. Raises TranscodeError as reading it does."""
    with OpenedVideo(video.absolute()) as opened, whole(out) as unfinished:
        rate, square = opened.fps or DEFAULT_FPS, opened.sar if options.sar == "square" else Fraction(1)
        with av.open(str(unfinished.absolute()), "w", format="mp4", options={"movflags": "faststart"}) as made:
            stream = made.add_stream("libx264", Fraction(rate).limit_denominator(1001))
            stream.pix_fmt, stream.options = "yuv420p", {"crf": str(CRF), "preset": "veryfast"}
            stream.codec_context.thread_count = torch.get_num_threads()
            frames = deinterlaced(opened.frames()) if options.deinterlace else opened.frames()
            for number, picture in enumerate(_pictures(frames, rate, square, named, shown)):
                if not number:
                    stream.height, stream.width = picture.shape[:2]
                made.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            made.mux(stream.encode(None))


def _pictures(
    frames: Iterator[av.VideoFrame], rate: float, square: Fraction, named: Named, shown: Mapping[str, int]
) -> Iterator[RGB]:
    scaler: Scaler | None = None
    for number, frame in enumerate(frames):
        if scaler is None:
            least, most = SHORT_SIDE
            scaler = Scaler(frame, min(max(min(frame.width, frame.height), least), most) // 2 * 2, square)
            curves, (left, bottom, right, top) = draw_curves(named, shown, max(scaler.width, LEAST_WIDTH))
            beside = (curves.shape[1] - scaler.width) // 2
        picture = np.empty((scaler.height, scaler.width, 3), np.uint8)
        full_range_rgb(scaler(frame), picture)
        second = number / rate
        blend(picture, named, second)
        below = curves.copy()
        now = round(left + (right - left) * min(1, second / named.windows[-1].end))
        cv2.line(below, (now, round(top)), (now, round(bottom)), (0, 0, 0), 1)
        yield np.concatenate([np.pad(picture, ((0, 0), (beside, curves.shape[1] - scaler.width - beside), (0, 0))), below])


def window_at(windows: list[Window], second: float) -> Window:
    """The window that shows a second; of two the later one."""
    return next((one for one in reversed(windows) if one.begin <= second), windows[0])


def blend(picture_HW3: RGB, named: Named, second: float) -> None:
    """Lay the activation maps of a second over the parts of a frame that the network saw, half by half, as maps.png does."""
    height, width = picture_HW3.shape[:2]
    window = window_at(named.windows, second)
    times = window.maps.shape[1]
    place = min(max((second - window.begin) / window.seconds * times - 0.5, 0), times - 1)
    before, part = int(place), place % 1
    heat, seen = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    for (top, left, tall, wide), map_THW in zip(named.boxes, window.maps, strict=True):
        map_HW = (1 - part) * map_THW[before] + part * map_THW[min(before + 1, times - 1)]
        rows = [round(row * height / named.size[0]) for row in (top, top + tall)]
        columns = [round(column * width / named.size[1]) for column in (left, left + wide)]
        here = slice(*rows), slice(*columns)
        heat[here] += cv2.resize(map_HW, (columns[1] - columns[0], rows[1] - rows[0]), interpolation=cv2.INTER_LINEAR)
        seen[here] += 1
    level = np.rint(255 / HOTTEST * (heat / np.maximum(seen, 1)).clip(0, HOTTEST)).astype(np.uint8)
    colours = cv2.applyColorMap(level, cv2.COLORMAP_JET)[..., ::-1]
    picture_HW3[:] = np.where(seen[..., None] > 0, picture_HW3 // 2 + colours // 2, picture_HW3)


def draw_curves(named: Named, shown: Mapping[str, int], width: int) -> tuple[RGB, tuple[float, float, float, float]]:
    """The probabilities of the classes over the video's seconds, :data:`CURVES` high; and where the axes are in it:
    left, bottom, right and top."""
    figure, ((axis,),) = canvas.axes(1, 1, width / 100, CURVES / 100, dpi=100)
    middles = [(one.begin + one.end) / 2 for one in named.windows]
    for name, k in shown.items():
        axis.plot(middles, [one.scores[k] for one in named.windows], marker=".", markersize=3, linewidth=1, label=plain(name))
    axis.set_xlim(0, named.windows[-1].end)
    axis.set_ylim(0, 1)
    axis.tick_params(labelsize=6)
    axis.set_xlabel("seconds", fontsize=6)
    axis.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.subplots_adjust(left=35 / width, right=1 - 170 / width, bottom=0.25, top=0.95)
    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]
    (left, bottom), (right, top) = axis.bbox.min, axis.bbox.max
    canvas.plt.close(figure)
    return picture, (left, CURVES - bottom, right, CURVES - top)
