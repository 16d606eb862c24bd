"""One video -> resized frames and motion cues, in decode order, as the members of one sample or of one a segment.

Decoded frames go through one reused scaler straight to full-range 4:2:0 planes (BT.601, what JPEG means), and the planes to
the encoder: colour conversion and scaling, not decoding, are where the time goes. Memory holds one decoded frame; what is
encoded spools to disk above 64 MB.

Rules. Frames are counted in decode order, never by pts (a quarter of real files lie about it); every decoded frame is kept, so
a variable frame rate stays as it is and ``fps`` is the file's average: its header's or, where that lies, its timestamps'. With
``--fps`` frames are chosen by time (:meth:`OpenedVideo.resampled`). The first picture's size decides the stored one; quarter
turns and mirrors in the metadata are applied, pixels become square unless ``--sar keep`` says otherwise, alpha is dropped,
fields stay interlaced without ``--deinterlace``. Of several video streams FFmpeg's choice is taken (the largest); a cover
picture is none.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import os
import re
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import IO, Any

import av
import av.filter
import numpy as np
import simplejpeg
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from dclr.cues import CUES, STILL, Cue, FramePair, flow_size
from dclr.errors import InputError
from dclr.record import (
    CODECS,
    DEFAULT_FPS,
    EVEN,
    MAX_SIDE,
    SampleMeta,
    Source,
    array_name,
    cue_codec,
    mean_motion,
    pack_array,
    pack_offsets,
    stream_names,
)
from dclr.settings import check_values, setting
from preprocess.cuts import Cuts
from preprocess.motion import Motion

WHICH = "which videos"  # a group of --help
QUALITY = {"jpeg": (90, 1, 100), "h264": (20, 0, 51)}  # codec -> default, least, most
GOP = 16  # frames from one I to the next: what the first frame of a clip may cost
SPOOL = 64_000_000  # bytes of a member that stay in memory
MAX_WIDTH, MAX_HEIGHT = 8192, 4320  # their product bounds what a hostile header can make a decoder allocate
TOLERANCE = 0.05  # share of the frames by which a header's rate may miss the timestamps' and still hold
ORDER = Fraction(1, DEFAULT_FPS)  # time base where only the order counts
REORDER = 32  # places that a picture may be coded away from its place in time
RARE = 0.01  # share of timestamps that may be missing or equal
PAUSE = 10  # seconds between two frames: pauses that long may not make up half of a video
SARS = ("square", "keep")
PART = re.compile(r"part,(\d+),(\d+),(/.*)", re.DOTALL)  # of a file: first byte, size, path
LISTS = {b"ffconcat version": "ffconcat", b"#EXTM3U": "m3u8", b"v=0": "sdp", b"# VobSub": "VobSub"}  # how such files begin
TURNS: dict[float, tuple[bool, bool, bool]] = {  # clockwise degrees -> transposed, then upside down, then mirrored
    0: (False, False, False), 90: (True, False, True), 180: (False, True, True), 270: (True, True, False),
}  # fmt: skip
EXPANDED = np.clip(np.rint((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)  # limited range -> full
TRANSFERS = {16: "PQ", 18: "HLG"}  # of H.273, for high dynamic range
MATRICES = {  # of H.273, those that FFmpeg's scaler refuses
    3: "reserved", 8: "YCgCo", 10: "BT.2020 constant luminance", 11: "SMPTE ST 2085", 12: "chromaticity-derived",
    13: "chromaticity-derived constant luminance", 14: "ICtCp", 15: "IPT-C2", 16: "YCgCo-Re", 17: "YCgCo-Ro",
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What decides a sample's bytes, kept in the manifest. ``size``: stored short side in pixels. ``codec``: jpeg or h264.
    ``quality``: JPEG quality or h264's crf. ``cues``: some of :data:`dclr.cues.CUES`. ``stabilise``: the
    camera's motion is removed from cues. ``sar``: pixels become square or are kept. ``deinterlace``: interlaced pictures become
    whole ones, by FFmpeg's bwdif. ``fps``: stored frames a second, None for the video's own. ``segment``: seconds of a sample,
    0 for whole videos, of ``max_seconds`` at most. ``shard_size``: estimated megabytes (10**6) of a shard."""

    title = "what is stored"
    size: int = setting(128, "short side of the stored frames", metavar="PIXELS", least=16, most=1024)
    codec: str = setting("jpeg", "of the stored frames: jpeg reads fastest, h264 is a quarter of the bytes", choices=CODECS)
    quality: int | None = setting(
        None, "JPEG quality (1 to 100) or h264's crf (0, the best, to 51)", metavar="Q", least=0, most=100,
        derived=f"{QUALITY['jpeg'][0]} of jpeg, {QUALITY['h264'][0]} of h264",
    )  # fmt: skip
    cues: tuple[str, ...] = setting(
        ("diff", "energy"), "motion cues that are stored beside the frames, or none", metavar="CUE", nargs="*", choices=CUES
    )
    stabilise: bool = setting(False, "take the camera's motion out of the cues")
    sar: str = setting(
        "square", "pixels that are not square become square, or keep the shape that they have", choices=SARS, before="square"
    )
    deinterlace: bool = setting(False, "make whole pictures of interlaced ones", before=False)
    fps: float | None = setting(
        None, "store so many frames a second, chosen by their timestamps", metavar="RATE", above=0, most=1000, before=None,
        derived="every frame",
    )  # fmt: skip
    segment: float = setting(
        0, "cut videos into samples of this length; 0: they stay whole", metavar="SECONDS", least=0, most=1e6, group=WHICH
    )
    max_seconds: float = setting(
        600, "a longer video fails, unless it is cut", metavar="SECONDS", least=0.1, most=1e6, group=WHICH
    )
    shard_size: int = setting(256, "estimated size of a shard in megabytes (10^6 bytes)", metavar="MB", least=1, most=100_000)

    def __post_init__(self) -> None:
        check_values(self)
        default, least, most = QUALITY[self.codec]
        if self.quality is None:
            object.__setattr__(self, "quality", default)
        elif not least <= self.quality <= most:
            raise InputError(f"--quality {self.quality}: expected {least} to {most}")
        object.__setattr__(self, "cues", tuple(cue for cue in CUES if cue in self.cues))
        if self.codec != "jpeg" and self.size % 2:
            raise InputError(f"--size {self.size}: --codec {self.codec} needs an even number of pixels")
        if self.stabilise and not self.cues:
            raise InputError(
                f"--stabilise: there are no cues to stabilise; add --cues {', '.join(list(CUES)[:-1])} or {list(CUES)[-1]}"
            )


# A part of a video, from its first end to before its second: whole numbers are frames in decode order, others seconds. None as
# the second is the video's end.
Span = tuple[int | float, int | float | None]


class TranscodeError(Exception):
    """This video cannot become a sample; ``stage`` says where it failed: open, decode, size, span or length."""

    def __init__(self, stage: str, reason: str):
        super().__init__(reason)
        self.stage = stage


@dataclass(frozen=True)
class Transcoded:
    """A finished sample: its ``members`` (all of :func:`dclr.record.member_names` except json) and its ``meta``, in which the
    file's name is the video's id and the source's path, and there is no label and no split; ``motion`` is its mean motion, None
    without the cue energy."""

    members: dict[str, bytes | IO[bytes]]
    meta: SampleMeta
    motion: float | None


def stored_size(width: float | Fraction, height: int, short_side: int) -> tuple[int, int]:
    """(width, height) with the short side ``short_side`` and the long side to the nearest even number of pixels.

    >>> stored_size(320, 240, 128), stored_size(720, 1280, 128)
    ((170, 128), (128, 228))
    """
    scale = short_side / min(width, height)
    long_side = 2 * round(max(width, height) * scale / 2)
    return (long_side, short_side) if width >= height else (short_side, long_side)


def _ratio(ratio: Fraction) -> str:
    return f"{ratio.numerator}:{ratio.denominator}"


class JpegEncoder:
    """Planes in, JPEGs back to back: Y, U, V of a colour picture or Y alone of a grey one."""

    def __init__(self, quality: int, prefix: str = "", spool: Path | None = None):
        self._quality, self._prefix, self._sizes = quality, prefix, list[int]()
        self._file = tempfile.SpooledTemporaryFile(SPOOL, dir=str(spool) if spool else None)  # noqa: SIM115

    def add(self, planes: Sequence[np.ndarray]) -> None:
        y, u, v = planes if len(planes) == 3 else (planes[0], None, None)
        data = simplejpeg.encode_jpeg_yuv_planes(y, u, v, self._quality)
        self._file.write(data)
        self._sizes.append(len(data))

    def members(self) -> dict[str, bytes | IO[bytes]]:
        return dict(zip(stream_names("jpeg", self._prefix), (self._file, pack_offsets(self._sizes)), strict=True))


class PacketEncoder:
    """Planes in, packets of H.264 in coded order: closed groups, one droppable b between references.

    x264 with ``cpu-independent`` and without ``mbtree`` gives the same bytes every time (its default does not); ``fastdecode``
    leaves out what costs a reader time.
    """

    def __init__(self, quality: int, prefix: str = "", spool: Path | None = None):
        self._prefix, self._quality = prefix, quality
        self._context: av.VideoCodecContext | None = None
        self._file = tempfile.SpooledTemporaryFile(SPOOL, dir=str(spool) if spool else None)  # noqa: SIM115
        self._sizes: list[int] = []
        self._order: list[int] = []  # display numbers in coded order
        self._intra: set[int] = set()
        self._frames = 0

    def _open(self, height: int, width: int) -> av.VideoCodecContext:
        context = av.CodecContext.create("libx264", "w")
        assert isinstance(context, av.VideoCodecContext)
        context.width, context.height, context.pix_fmt = width, height, "yuvj420p"
        context.time_base, context.framerate = Fraction(1, DEFAULT_FPS), Fraction(DEFAULT_FPS)
        context.thread_count = 1
        context.options = {
            "crf": str(self._quality), "preset": "veryfast", "tune": "fastdecode",
            "x264-params": f"keyint={GOP}:min-keyint={GOP}:scenecut=0:open-gop=0:bframes=1:b-adapt=0:b-pyramid=0"
            ":cpu-independent=1:mbtree=0:fullrange=on",
        }  # fmt: skip
        return context

    def add(self, planes: Sequence[np.ndarray]) -> None:
        if self._context is None:
            self._context = self._open(*planes[0].shape)
        frame = av.VideoFrame(self._context.width, self._context.height, "yuvj420p")
        for number, plane in enumerate(frame.planes):
            rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
            rows[:] = planes[number] if number < len(planes) else STILL  # grey: chroma without colour
        frame.pts = self._frames
        self._frames += 1
        self._keep(self._context.encode(frame))

    def _keep(self, packets: Sequence[av.Packet]) -> None:
        for packet in packets:
            data = bytes(packet)
            self._file.write(data)
            self._sizes.append(len(data))
            self._order.append(int(packet.pts or 0))
            if packet.is_keyframe:
                self._intra.add(self._order[-1])

    def members(self) -> dict[str, bytes | IO[bytes]]:
        assert self._context is not None
        self._keep(self._context.encode(None))
        kinds, last = ["P"] * self._frames, -1
        for number in self._order:
            kinds[number] = "I" if number in self._intra else "b" if number < last else "P"
            last = max(last, number)
        parts = self._file, pack_offsets(self._sizes), "".join(kinds).encode()
        return dict(zip(stream_names("h264", self._prefix), parts, strict=True))


ENCODERS: dict[str, type[JpegEncoder] | type[PacketEncoder]] = {"jpeg": JpegEncoder, "h264": PacketEncoder}


class CueEncoder:
    """A cue of a sample that grows frame by frame. Raises ValueError where it is computed as anything but what it announces."""

    def __init__(self, cue: Cue, options: Options, spool: Path | None):
        self._cue = cue
        self._pictures: JpegEncoder | PacketEncoder | None = None
        if cue.picture:
            codec = cue_codec(cue, options.codec)
            self._pictures = ENCODERS[codec](cue.quality or options.quality or 0, f"{cue.name}.", spool)
        self._values: dict[str, list[Any]] = {name: [] for name in cue.arrays}

    def add(self, pair: FramePair) -> None:
        values = list(self._cue.compute(pair))
        if self._pictures is not None and self._cue.picture is not None:
            picture, expected = values.pop(0), self._cue.picture(*pair.luma_HW.shape)
            if picture.dtype != np.uint8 or picture.shape != expected:
                raise ValueError(f"cue {self._cue.name!r}: {picture.dtype} {picture.shape}, expected uint8 {expected}")
            self._pictures.add([np.ascontiguousarray(picture)])
        for kept, value in zip(self._values.values(), values, strict=True):
            kept.append(value)

    def members(self) -> dict[str, bytes | IO[bytes]]:
        out = {} if self._pictures is None else self._pictures.members()
        for name, (dtype, shape) in self._cue.arrays.items():
            array = np.array(self._values[name], dtype)
            if array.shape[1:] != shape:
                raise ValueError(f"cue {self._cue.name!r}: {name} is {array.shape[1:]} a frame, expected {shape}")
            out[array_name(name)] = pack_array(array)
        return out


class SampleEncoder:
    """A sample that grows frame by frame: the encoders and the cues of one :class:`Options`. Without ``pictures`` its cues
    alone, for which the luma is enough."""

    def __init__(self, options: Options, first: int, spool: Path | None, pictures: bool = True):
        self.first, self.frames = first, 0
        self._motion = Motion(options.cues, options.stabilise) if options.cues else None
        self._rgb = ENCODERS[options.codec](options.quality or 0, "", spool) if pictures else None
        self._cues = [CueEncoder(CUES[name], options, spool) for name in options.cues]
        self._cuts = Cuts()

    def add(self, planes: Sequence[np.ndarray]) -> None:
        if self._rgb is not None:
            self._rgb.add(planes)
        self._cuts.add(planes[0])
        self.frames += 1
        if self._motion is not None:
            self._luma = planes[0]
            pair = self._motion(self._luma)
            if self.frames == 2 and pair is not None:
                self._keep(pair)  # entry 0 equals entry 1: the shared rule of every dynamic view
            if pair is not None:
                self._keep(pair)

    def _keep(self, pair: FramePair) -> None:
        for cue in self._cues:
            cue.add(pair)

    def cuts(self) -> tuple[int, ...]:
        return self._cuts.finish()

    def members(self) -> dict[str, bytes | IO[bytes]]:
        if self._motion is not None and self.frames == 1:  # nothing to compare with: still
            self._keep(FramePair(self._luma, self._luma, np.zeros((*flow_size(*self._luma.shape), 2), np.float32)))
        out = {} if self._rgb is None else self._rgb.members()
        for cue in self._cues:
            out |= cue.members()
        return out


@dataclass
class OpenedVideo:
    """An opened video: its stream and its frame rate."""

    path: Path
    container: Any = field(init=False)
    stream: Any = field(init=False)
    fps: float = field(init=False)  # 0 where the file does not say
    rate: str | None = field(init=False)  # None: fps is the header's; "measured" or "contradictory" as shards/README.md says
    steady: bool = field(init=False)  # frames are equally far apart, or nothing tells how far
    _stack: ExitStack = field(init=False)
    interlaced: bool = False  # a picture that was decoded so far is
    _packets: Any = field(init=False, default_factory=partial(hashlib.blake2b, digest_size=16))  # those that were decoded

    def __enter__(self) -> OpenedVideo:
        with ExitStack() as stack:
            self.container, self.stream = stack.enter_context(_opened(self.path))
            self.fps, self.rate, self.steady = self._rate()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def frames(self) -> Iterator[av.VideoFrame]:
        """Every decoded frame, in decode order; raises TranscodeError with the number of the frame."""
        count = 0
        try:
            for packet in self.container.demux(self.stream):
                self._packets.update(packet)
                for frame in packet.decode():
                    count += 1
                    self.interlaced |= frame.interlaced_frame
                    yield frame
        except (av.error.FFmpegError, ValueError) as error:
            raise TranscodeError("decode", f"{_reason(error)}, after {count} frames") from None

    @property
    def sar(self) -> Fraction:
        """How wide a pixel is for its height; 1 where the file does not say."""
        return Fraction(self.stream.sample_aspect_ratio or 1)

    def content(self, first: int) -> str:
        """What the sample is that starts at frame ``first`` and ends with the packets read so far: hex digits that are the same
        for the same packets in any file."""
        digest = self._packets.copy()
        digest.update(first.to_bytes(8, "little"))
        return digest.hexdigest()

    def resampled(self, frames: Iterable[tuple[int, av.VideoFrame]], fps: float) -> Iterator[tuple[int, av.VideoFrame]]:
        """``fps`` of these numbered frames a second, each as often as it is due. The i-th is the one nearest to i / fps seconds
        after the first, of two equally near the earlier. They end where one more source frame would be nearer than the last.

        The time of a frame is its timestamp. It is one frame's duration after the frame before where timestamps say no more:
        they are those of a constant rate or contradict each other, its own is missing or not after the one before.
        """
        step, made, place, after = fps / (self.fps or DEFAULT_FPS), 0, 0.0, 0.0  # places among what is made
        held: tuple[int, av.VideoFrame] | None = None
        begin: float | None = None
        for one in itertools.chain(frames, (None,)):
            now = after
            if one is not None and not self.steady and one[1].pts is not None:
                told = one[1].pts * float(one[1].time_base or 0) * fps
                begin = told - after if begin is None else begin
                now = told - begin if told - begin > place else after
            while held is not None and made <= (place + now) / 2 + EVEN:
                yield held
                made += 1
            held, place, after = one, now, now + step

    def _rate(self) -> tuple[float, str | None, bool]:
        """``fps``, ``rate`` and ``steady``. The header's rate holds where the container's timestamps agree with it. Where they
        do not, those of the decoded pictures decide: a packet may be one field of a picture, or none."""
        header = round(float(self.stream.average_rate or self.stream.guessed_rate or 0), 3)
        index = self.stream.index_entries
        indexed, measured = len(index) >= self.stream.frames > 1, None
        for read in (lambda: [entry.timestamp for entry in index]) if indexed else self._packet_times, self._picture_times:
            if len(times := read()) < 2:
                return header, None, True
            measured = measured_rate(times, self.stream.time_base)
            if measured and abs(header / measured - 1) < max(TOLERANCE, 1 / (len(times) - 1)):
                return header, None, is_steady(times, self.stream.time_base, header)
        if not measured:
            return header, "contradictory", True
        return round(measured, 3), "measured", is_steady(times, self.stream.time_base, measured)

    def _packet_times(self) -> list[int | None]:
        with _opened(self.path) as (container, _):  # once more: not every file can be wound back to its beginning
            packets = container.demux(container.streams[self.stream.index])
            return _timestamps(packet for packet in packets if packet.size)

    def _picture_times(self) -> list[int | None]:
        with _opened(self.path) as (container, _):
            return _timestamps(container.decode(container.streams[self.stream.index]))


def _timestamps(timed: Iterable[av.Packet | av.VideoFrame]) -> list[int | None]:
    """The timestamps that can be read. An error in the file is raised later, when it is transcoded."""
    times: list[int | None] = []
    try:
        for one in timed:
            times.append(one.pts)
    except (av.error.FFmpegError, ValueError):
        pass
    return times


def measured_rate(times: Sequence[int | None], time_base: Fraction) -> float | None:
    """Frames a second of two or more frames, from their timestamps in units of ``time_base`` seconds.

    The timestamps may be in any order that a decoder can put right. None where they contradict each other: too many are
    missing or equal, out of order, or far apart.

    >>> measured_rate([0, 2, 1, 3, 4], Fraction(1, 25))
    25.0
    """
    told = np.array([time for time in times if time is not None], np.float64)
    order = np.argsort(told, kind="stable")
    gaps = np.diff(told[order]) * float(time_base)
    if len(times) - len(told) + np.count_nonzero(gaps == 0) > RARE * len(times):
        return None
    if np.abs(order - np.arange(len(order))).max() > REORDER or gaps[gaps > PAUSE].sum() > gaps.sum() / 2:
        return None
    return float((len(times) - 1) / gaps.sum())


def is_steady(times: Sequence[int | None], time_base: Fraction, rate: float) -> bool:
    """Whether frames of these timestamps, in any order, come at this rate: each less than half a frame off.

    >>> is_steady([0, 2, 1, 3], Fraction(1, 25), 25), is_steady([0, 1, 2, 4], Fraction(1, 25), 25)
    (True, False)
    """
    told = np.sort(np.array([time for time in times if time is not None], np.float64)) * float(time_base) * rate
    return bool(np.abs(told - told[0] - np.arange(len(told))).max() < 0.5)


class Bytes:
    """A file, or the part of a file that :func:`part_of` names, as FFmpeg reads it: by its bytes, never by its name.

    FFmpeg takes ``concat:a.avi`` and ``12:30 talk.avi`` for protocols, and a name with ``%03d`` for many files."""

    def __init__(self, place: Path):
        part = PART.fullmatch(str(place))
        self.name = part[3] if part else str(place)  # whose suffix helps FFmpeg to tell what it is
        self._file = open(self.name, "rb", buffering=0)  # noqa: SIM115
        self._start, self._at = int(part[1]) if part else 0, 0
        self._size = int(part[2]) if part else os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        data = os.pread(self._file.fileno(), max(0, min(size, self._size - self._at)), self._start + self._at)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        at = (0, self._at, self._size)[whence] + offset
        self._at = max(at, 0)
        return at


def part_of(path: Path, start: int, size: int) -> Path:
    """A video that is a part of a file of this machine, such as a member of a tar, for :class:`OpenedVideo` alone."""
    return Path(f"part,{start},{size},{path.absolute()}")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream, to be decoded on one core. Nothing but the file itself is read: what it names, as a
    playlist does, needs a protocol, and FFmpeg may use none."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(closing(Bytes(path)))
            alone = {"protocol_whitelist": "none"}
            container = stack.enter_context(av.open(file, metadata_errors="replace", options=alone))
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise TranscodeError("open", f"{_reason(error)}{_names_others(path)}") from None
        stream = _video_stream(container)
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(MAX_WIDTH * MAX_HEIGHT)}
        yield container, stream


def _names_others(path: Path) -> str:
    """What to say of a file that cannot be opened and is a list of others."""
    try:
        with closing(Bytes(path)) as file:
            head = file.read(16)
    except OSError:
        return ""
    kind = next((kind for begin, kind in LISTS.items() if head.startswith(begin)), None)
    return f": a list of other files ({kind}), which are not read; give the videos themselves" if kind else ""


def _video_stream(container: Any) -> Any:
    best = container.streams.best("video")
    if best is None or best.disposition & Disposition.attached_pic:
        raise TranscodeError("open", "no video stream in the file")
    if best.codec_context is None:
        raise TranscodeError("open", "no decoder for its codec")
    if best.width * best.height > MAX_WIDTH * MAX_HEIGHT:
        raise TranscodeError("size", f"{best.width}x{best.height} is above {MAX_WIDTH}x{MAX_HEIGHT} pixels")
    return best


def _reason(error: Exception) -> str:
    """The error in words, without FFmpeg's error number and without paths of this machine."""
    return getattr(error, "strerror", None) or str(error)


def _known_side_data(frame: av.VideoFrame) -> av.VideoFrame:
    """The frame without side data of kinds that PyAV has no name for (EXIF). Where there is one, PyAV cannot read any."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, DEFAULT_FPS))
    without = [graph.add("sidedata", f"mode=delete:type={kind}") for kind in range(len(SideData), len(SideData) + 16)]
    graph.link_nodes(source, *without, graph.add("buffersink")).configure()
    graph.push(frame)
    kept = graph.pull()
    assert isinstance(kept, av.VideoFrame)
    return kept


def displayed(frame: av.VideoFrame) -> tuple[float, bool]:
    """(clockwise degrees that the picture is shown turned by, 0 up to 360; then mirrored left to right): its display matrix.
    Of another angle than quarter turns a mirror is left aside, and a matrix that shears is as a whole."""
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        matrix = _known_side_data(frame).side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()  # x' = a x + c y, y' = b x + d y
    mirror = a * d < b * c
    angle = math.degrees(math.atan2(b, -a if mirror else a)) % 360
    if 100 * max(abs(b), abs(c)) <= min(abs(a), abs(d)) or 100 * max(abs(a), abs(d)) <= min(abs(b), abs(c)):
        return 90 * round(angle / 90) % 360, mirror
    return round(angle, 1) % 360 if abs(a * c + b * d) < abs(a * d - b * c) / 50 else 0, False


def deinterlaced(frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """As many frames with their timestamps: those that are flagged as interlaced are made whole by FFmpeg's bwdif, the others
    are left as they are.

    Raises TranscodeError where the filter does not take them."""
    graph: av.filter.Graph | None = None
    size: tuple[int, int, str] | None = None
    stamps: deque[tuple[int | None, Any]] = deque()

    def pulled(frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        if graph is None:
            return
        try:
            graph.push(frame)
            while True:
                made = graph.vpull()
                made.pts, made.time_base = stamps.popleft()
                yield made
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        except (av.error.FFmpegError, ValueError) as error:
            raise TranscodeError("decode", f"FFmpeg's bwdif cannot deinterlace it: {_reason(error)}") from None

    for number, frame in enumerate(frames):
        if (frame.width, frame.height, frame.format.name) != size:
            yield from pulled(None)  # the filter keeps a frame back
            size, graph = (frame.width, frame.height, frame.format.name), av.filter.Graph()
            source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=ORDER)
            graph.link_nodes(
                source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink")
            ).configure()
        stamps.append((frame.pts, frame.time_base))
        frame.pts, frame.time_base = number, ORDER  # not the file's: a filter may drop what comes out of order
        yield from pulled(frame)
    yield from pulled(None)


class Scaler:
    """Decoded frames -> full-range BT.601 planes of the stored size: uint8 Y (H, W), U and V (ceil H/2, ceil W/2).

    ``sar`` is how wide a pixel is for its height; pixels become square. Raises TranscodeError where the size cannot be stored,
    or FFmpeg's scaler does not know the pixels or their matrix.
    """

    def __init__(self, first: av.VideoFrame, short_side: int, sar: Fraction = Fraction(1)):
        self.rotation, self.mirror = displayed(first)
        self._transposed, upside_down, mirrored = TURNS.get(self.rotation, TURNS[0])
        self._steps = slice(None, None, -1 if upside_down else 1), slice(None, None, -1 if mirrored != self.mirror else 1)
        self.source, self.transfer = (first.width, first.height), TRANSFERS.get(first.color_trc)
        self._size = stored_size(first.width * sar, first.height, short_side)  # before turning
        if max(self._size) > MAX_SIDE:
            raise TranscodeError(
                "size",
                f"{first.width}x{first.height} would be stored as {self._size[0]}x{self._size[1]}"
                + (f" for its sample aspect ratio of {_ratio(sar)}; sar keep stores pixels as they are" if sar != 1 else ""),
            )
        self.width, self.height = self._size[::-1] if self._transposed else self._size
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> list[np.ndarray]:
        width, height = self._size
        try:
            scaled = self._reformatter.reformat(
                frame,
                width=width,
                height=height,
                format="yuvj420p",
                interpolation="AREA" if frame.width > width else "BICUBIC",
                dst_colorspace=Colorspace.ITU601,
                dst_color_range="JPEG",
                threads=1,
            )
        except (av.error.FFmpegError, OSError) as error:
            matrix = MATRICES.get(frame.colorspace, str(frame.colorspace))
            said = f"FFmpeg's scaler cannot convert {frame.format.name} with matrix coefficients {matrix}"
            raise TranscodeError("decode", f"{said}: {_reason(error)}") from None
        planes = [np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, : p.width] for p in scaled.planes]
        if frame.color_range == ColorRange.MPEG and frame.format.name.startswith(("gray", "ya")):
            planes[0] = EXPANDED[planes[0]]  # the scaler takes every grey picture for full range
        planes = [(plane.T if self._transposed else plane)[self._steps] for plane in planes]
        return [np.ascontiguousarray(plane) for plane in planes]  # rows in FFmpeg are padded, and its buffer is reused


def frames_of(span: Span | None, rate: float) -> tuple[int, int | None]:
    """The frames [first, end) of a span, one at least, at ``rate`` frames a second.

    >>> frames_of((1.5, 2.0), 30), frames_of((10, 20), 30), frames_of((0.5, None), 30)
    ((45, 60), (10, 20), (15, None))
    """
    first, end = (one if one is None or isinstance(one, int) else round(one * rate) for one in span or (0, None))
    return first or 0, end if end is None else max(end, (first or 0) + 1)


def transcode(
    path: Path, options: Options, span: Span | None = None, spool: Path | None = None, pictures: bool = True
) -> Iterator[Transcoded]:
    """The samples of ``path``: one, or one a segment, each as soon as it is whole.

    Args:
        span: the part of it; None for all. Seconds are those of its average frame rate.
        spool: folder for members above :data:`SPOOL` bytes (the system's temporary one).
        pictures: the frames too, and not only the cues.
    Raises:
        TranscodeError: with the stage and the reason.
    """
    with OpenedVideo(path) as opened:
        rate = opened.fps or DEFAULT_FPS
        most = max(1, round((options.segment or options.max_seconds) * (options.fps or rate)))
        first, end = frames_of(span, rate)
        sample: SampleEncoder | None = None
        scaler: Scaler | None = None
        seen = 0

        def finished(sample: SampleEncoder, scaler: Scaler) -> Transcoded:
            source = Source(
                path.name, *scaler.source, sample.first, opened.rate, opened.content(sample.first),
                sar=None if opened.sar == 1 else _ratio(opened.sar), rotation=scaler.rotation, mirror=scaler.mirror,
                interlaced=opened.interlaced, transfer=scaler.transfer, fps=opened.fps if options.fps else None,
            )  # fmt: skip
            meta = SampleMeta(
                path.name, sample.frames, scaler.width, scaler.height, options.codec, options.cues, options.fps or opened.fps,
                source=source, cuts=sample.cuts(),
            )  # fmt: skip
            members = sample.members()
            energy = members.get(array_name("energy"))
            return Transcoded(members, meta, mean_motion(np.load(io.BytesIO(energy))) if isinstance(energy, bytes) else None)

        def spanned() -> Iterator[tuple[int, av.VideoFrame]]:
            nonlocal seen
            for number, frame in enumerate(deinterlaced(opened.frames()) if options.deinterlace else opened.frames()):
                if end is not None and number >= end:
                    return
                seen = number + 1
                if number >= first:
                    yield number, frame

        for number, frame in opened.resampled(spanned(), options.fps) if options.fps else spanned():
            scaler = scaler or Scaler(frame, options.size, opened.sar if options.sar == "square" else Fraction(1))
            if sample is not None and sample.frames == most:
                if not options.segment:
                    said = f"longer than the max-seconds of its set, {options.max_seconds:g}; a set made with segment cuts it"
                    raise TranscodeError("length", said)
                yield finished(sample, scaler)
                sample = None
            sample = sample or SampleEncoder(options, number, spool, pictures)
            sample.add(scaler(frame))
        if sample is not None and scaler is not None:
            yield finished(sample, scaler)
        elif seen:
            wanted = f"frames {first} to {'the end' if end is None else end}"
            raise TranscodeError("span", f"{wanted} asked for, and the video has {seen}")
        else:
            raise TranscodeError("decode", "no frame in the video stream")
