"""One sample's bytes <-> arrays: the only file that knows what a sample looks like inside a shard (shards/README.md).

A sample is one video, or one segment of a long one: a run of adjacent tar members that share a key. N is the number of frames.

    KEY.mjpg        frames: colour JPEGs back to back; .h264 instead holds packets of H.264 in coded order
    KEY.idx         uint64 little-endian, N + 1 offsets into the stream before it: part i is stream[idx[i]:idx[i + 1]]
    KEY.kinds       H.264 only: N letters in display order, I (a group starts), P (reference), b (droppable)
    KEY.CUE.*       the grey pictures of a cue, in the same members (dclr/cues.py has the cues)
    KEY.ARRAY.npy   an array of a cue: a value for each frame
    KEY.json        what is known about the video: :class:`SampleMeta`

Everything here is read as hostile: sizes are bounded by the slice, names cannot leave it, and no pickle is ever loaded.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import operator
import os
import re
import tarfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import lru_cache
from typing import IO, Any, TypeVar

import cv2
import numpy as np
import simplejpeg

from dclr.cues import CUES, Cue, flow_pixels
from dclr.errors import InputError, Unreachable
from dclr.parse import from_json, parsing, reason
from dclr.text import plain

FORMAT_VERSION = 2
CODECS = {"jpeg": "mjpg", "h264": "h264"}  # codec of frames and differences -> extension of their stream
RATES = ("measured", "contradictory")  # what ``fps`` is where the header's rate does not agree with the timestamps
BLOCK = 512  # tar's unit
TAIL = 16 * BLOCK  # of a sample, in which its json lies: longer ones are of hundreds of cuts
MAX_NUMBER = 1 << 40  # of anything that KEY.json counts
LETTERS_SHOWN = 80  # letters of a wrong value that an error shows
MAX_SIDE = 4096  # of a stored frame, in pixels: a bound on what a hostile header can make us allocate
HDR = ("PQ", "HLG")  # transfer functions
REPEATED = "repeated frames"
TRAITS = ("non-square pixels", "odd rotation", "interlaced", *HDR, REPEATED)  # of a sample's source, that ``stats`` counts
SLOWER = 0.99  # of a rate: what is below it is slower, NTSC's 29.97 is not slower than 30
SAR = re.compile(r"[1-9]\d{0,9}:[1-9]\d{0,9}")
OCTAL = re.compile(rb"[0-7]{1,11}")
SURROGATE = re.compile("[\ud800-\udfff]")  # half a letter, which no UTF-8 holds
CONTENT = re.compile(r"[0-9a-f]{32}")
EVEN = 1e-6  # of a frame: two moments that are nearer to each other are the same
DEFAULT_FPS = 25  # of a video that does not say: turns seconds into frames and back
KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")  # no dots: webdataset ends the key at the first one
JPEG_MATRIX = np.array([[1, 0, 1.402, 0], [1, -0.344136, -0.714136, 0], [1, 1.772, 0, 0]])  # of Y, U, V and 1
TO_RGB = (
    np.rint(1024 * JPEG_MATRIX) / 1024
)  # OpenCV computes in 1024ths: rounded like that before 128 goes off, grey stays grey
TO_RGB[:, 3] = -128 * TO_RGB[:, 1:3].sum(1)

Part = TypeVar("Part")
Contents = bytes | memoryview | IO[bytes]  # of a member


class FormatError(InputError):
    """A sample's bytes are not what shards/README.md says."""


def video_id(video: str) -> int:
    """The 63-bit id of a video's name, the same in every process. Queues mask by it, and evaluations group by it."""
    return int.from_bytes(hashlib.blake2b(video.encode(), digest_size=8).digest(), "big") >> 1


def mean_motion(energy_N: np.ndarray) -> float:
    """How much moves in a video: the mean of its stored energy (N,), in grey levels."""
    return round(float(np.nan_to_num(energy_N, nan=0, posinf=0, neginf=0).clip(0).mean(dtype=np.float64)), 4)


@dataclass(frozen=True)
class Source:
    """The file that a sample was made of: its ``path`` below the root, its ``width`` and ``height`` in pixels, ``first``, the
    source frame that frame 0 is, ``rate``, one of :data:`RATES`, where the header's frame rate does not hold, and ``content``,
    32 hex digits that are the same for the same packets under any path; None in sets that were made before.

    ``sar`` is its sample aspect ratio where pixels are not square. It is shown turned clockwise by ``rotation`` degrees, and
    then mirrored left to right where ``mirror`` says so. ``interlaced``: pictures are flagged as two fields.
    ``transfer`` is its transfer function where that is one of :data:`HDR`. ``fps`` is its own rate, 0 where it does not say, in
    a set that was made with ``--fps``.
    """

    path: str
    width: int
    height: int
    first: int
    rate: str | None = None
    content: str | None = None
    sar: str | None = None
    rotation: float = 0
    mirror: bool = False
    interlaced: bool = False
    transfer: str | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        _expect(self, "path", _text(self.path), "a text")
        _expect(self, "width", _whole(self.width, 1), f"1..{MAX_NUMBER}")
        _expect(self, "height", _whole(self.height, 1), f"1..{MAX_NUMBER}")
        _expect(self, "first", _whole(self.first), f"0..{MAX_NUMBER}")
        _expect(self, "rate", self.rate in (None, *RATES), f"one of {', '.join(RATES)}")
        digits = self.content is None or (isinstance(self.content, str) and CONTENT.fullmatch(self.content))
        _expect(self, "content", bool(digits), "32 hex digits")
        ratio = self.sar is None or (isinstance(self.sar, str) and SAR.fullmatch(self.sar))
        _expect(self, "sar", bool(ratio), "a ratio, such as 4:3")
        _expect(self, "rotation", type(self.rotation) in (int, float) and 0 <= self.rotation < 360, "degrees, 0 up to 360")
        _expect(self, "mirror", isinstance(self.mirror, bool), "true or false")
        _expect(self, "interlaced", isinstance(self.interlaced, bool), "true or false")
        _expect(self, "transfer", self.transfer in (None, *HDR), f"one of {', '.join(HDR)}")
        _expect(self, "fps", self.fps is None or _rate(self.fps), "frames a second, or 0")

    @property
    def traits(self) -> tuple[str, ...]:
        """Those of :data:`TRAITS` that the file has."""
        has = self.sar is not None, self.rotation % 90 != 0, self.interlaced, *(self.transfer == one for one in HDR)
        return tuple(trait for trait, there in zip(TRAITS, has, strict=False) if there)


@dataclass(frozen=True)
class SampleMeta:
    """``KEY.json``: the fields of shards/README.md. ``label`` and ``class_name`` (``class`` there) are None where unlabelled.
    ``cuts`` are the frames at which a shot begins, but for the first.

    ``from_stored`` are the cues that were computed later, from the stored frames. A set may lack what has a default here.
    Raises FormatError naming the field, what it is and what was expected.
    """

    video: str
    frames: int
    width: int
    height: int
    codec: str
    cues: tuple[str, ...]
    fps: float = 0
    label: int | None = None
    class_name: str | None = None
    labels: dict[str, int] = field(default_factory=dict)
    splits: tuple[str, ...] = ()
    source: Source | None = None
    cuts: tuple[int, ...] = ()
    from_stored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        labels = self.labels.values() if isinstance(self.labels, dict) else [None]
        _expect(self, "width", _whole(self.width, 1, MAX_SIDE), f"1..{MAX_SIDE}")
        _expect(self, "height", _whole(self.height, 1, MAX_SIDE), f"1..{MAX_SIDE}")
        _expect(self, "frames", _whole(self.frames, 1), f"1..{MAX_NUMBER}")
        _expect(self, "video", _text(self.video), "its id, a text")
        _expect(self, "codec", isinstance(self.codec, str) and self.codec in CODECS, f"one of {', '.join(CODECS)}")
        _expect(self, "cues", _texts(self.cues) and CUES.keys() >= set(self.cues), f"some of {', '.join(CUES)}")
        _expect(self, "fps", _rate(self.fps), "frames a second, or 0")
        _expect(self, "label", self.label is None or _whole(self.label), "a number of a class, or null")
        _expect(self, "class_name", self.class_name is None or _text(self.class_name), "a name, or null")
        _expect(self, "labels", all(map(_whole, labels)), "a number of a class for each kind of label")
        _expect(self, "splits", _texts(self.splits), "names of splits")
        _expect(self, "source", isinstance(self.source, Source | None), "a table")
        _expect(self, "from_stored", _texts(self.from_stored) and set(self.cues) >= set(self.from_stored), "some of its cues")
        rising = isinstance(self.cuts, tuple) and all(_whole(cut, 1, self.frames - 1) for cut in self.cuts)
        rising = rising and all(map(operator.lt, self.cuts, self.cuts[1:]))
        _expect(self, "cuts", rising, f"ascending numbers of frames, 1..{self.frames - 1}")

    @property
    def traits(self) -> tuple[str, ...]:
        """Those of :data:`TRAITS` that its source has, and :data:`REPEATED` where that is slower than what is stored."""
        if self.source is None:
            return ()
        repeats = self.source.fps is not None and (self.source.fps or DEFAULT_FPS) < SLOWER * self.fps
        return (*self.source.traits, *[REPEATED] * repeats)

    def seconds(self, frames: np.ndarray) -> np.ndarray:
        """When stored frames begin, float64 of the shape of ``frames``: seconds from the beginning of the source, by average
        frame rates; from the sample's beginning where it does not say of its source."""
        rate = self.fps or DEFAULT_FPS
        own = rate if self.source is None or self.source.fps is None else self.source.fps or DEFAULT_FPS
        return frames / rate + (self.source.first / own if self.source else 0)

    def dumps(self) -> bytes:
        """UTF-8 JSON; the same fields give the same bytes."""
        table = {"version": FORMAT_VERSION, **asdict(self)}
        table["class"] = table.pop("class_name")
        if self.source is not None:
            usual = {field.name: field.default for field in fields(Source)}
            table["source"] = {name: value for name, value in table["source"].items() if value != usual[name]}
        if not self.cuts:
            del table["cuts"]
        if not self.from_stored:
            del table["from_stored"]
        return json.dumps(table, sort_keys=True, ensure_ascii=False).encode()

    @classmethod
    def loads(cls, data: bytes) -> SampleMeta:
        """Parse and check; unknown fields are ignored. Raises what the parser raises for what is no JSON."""
        table = from_json(data, dict)
        version = table.get("version")
        if version != FORMAT_VERSION:
            raise FormatError(f"format version {plain(repr(version), LETTERS_SHOWN)}, this code reads version {FORMAT_VERSION}")
        table["class_name"] = table.pop("class", None)
        lists = ("cues", "splits", "cuts", "from_stored")
        table |= {name: tuple(table[name]) for name in lists if isinstance(table.get(name), list)}
        if isinstance(table.get("source"), dict):
            table["source"] = _from_table(Source, table["source"])
        return _from_table(cls, table)


def _from_table(part: type[Part], table: Mapping[str, Any]) -> Part:
    """The dataclass that a JSON table says; a field that it lacks has its default, or None, which the checks refuse."""
    required = {f.name for f in fields(part) if f.default is f.default_factory is MISSING}  # type: ignore[arg-type]
    return part(**{f.name: table.get(f.name) for f in fields(part) if f.name in table or f.name in required})  # type: ignore[arg-type]


def _whole(number: Any, least: int = 0, most: int = MAX_NUMBER) -> bool:
    return type(number) is int and least <= number <= most


def _rate(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _text(value: Any) -> bool:
    return isinstance(value, str) and not SURROGATE.search(value)


def _texts(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(_text, value))


def _expect(part: Any, name: str, good: bool, expected: str) -> None:
    if not good:
        value = getattr(part, name)
        value = plain(repr(list(value) if isinstance(value, tuple) else value), LETTERS_SHOWN)
        shown = {"class_name": "class"}.get(name, name) if isinstance(part, SampleMeta) else f"source's {name}"
        raise FormatError(
            f"{shown} {'are' if name in ('cues', 'labels', 'splits', 'cuts') else 'is'} {value}, expected {expected}"
        )


def stream_names(codec: str, prefix: str = "") -> tuple[str, ...]:
    """The extensions of a stream's members."""
    return tuple(prefix + name for name in (CODECS[codec], "idx", *(("kinds",) if codec == "h264" else ())))


def array_name(array: str) -> str:
    """The extension of the member that holds an array of a cue."""
    return f"{array}.npy"


def cue_codec(cue: Cue, codec: str) -> str:
    """The codec of a cue's pictures in a set whose frames have ``codec``."""
    return codec if cue.quality is None else "jpeg"


def member_names(codec: str, cues: Collection[str]) -> tuple[str, ...]:
    """The extensions of a sample's members, in their order.

    >>> member_names("jpeg", ["energy"])
    ('mjpg', 'idx', 'energy.npy', 'grid.npy', 'json')
    """
    names = stream_names(codec)
    for cue in [cue for name, cue in CUES.items() if name in cues]:
        names += stream_names(cue_codec(cue, codec), f"{cue.name}.") if cue.picture else ()
        names += tuple(map(array_name, cue.arrays))
    return (*names, "json")


@lru_cache
def _extensions(cues: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name for codec in CODECS for name in member_names(codec, cues))


def pack(key: str, members: Mapping[str, Contents], meta: SampleMeta) -> Iterator[bytes | memoryview]:
    """The tar bytes of one sample in pieces, a whole number of 512-byte blocks; the same input gives the same bytes.

    Args:
        key: the sample's name, matching :data:`KEY`.
        members: what :func:`member_names` names: bytes, or a file of them (a long video's, on disk). ``json`` may be left out.
        meta: what goes into ``KEY.json`` then; its codec and cues say which members there are.
    """
    if not KEY.fullmatch(key):
        raise FormatError(f"key {key!r}: expected {KEY.pattern}")
    contents = {"json": meta.dumps(), **members}
    for extension in member_names(meta.codec, meta.cues):
        data = contents[extension]
        info = tarfile.TarInfo(f"{key}.{extension}")  # mtime, owner and mode are constants, so bytes repeat
        info.size = len(data) if isinstance(data, bytes | memoryview) else data.seek(0, io.SEEK_END)
        yield info.tobuf(tarfile.USTAR_FORMAT)
        if isinstance(data, bytes | memoryview):
            yield data
        else:
            data.seek(0)
            while piece := data.read(1 << 20):
                yield piece
        yield bytes(-info.size % BLOCK)


def pack_offsets(sizes: Sequence[int]) -> bytes:
    """``KEY.idx`` of parts of these sizes: uint64 little-endian (N + 1,)."""
    return np.concatenate([[0], np.cumsum(sizes, dtype="<u8")]).astype("<u8").tobytes()


def pack_array(array: np.ndarray) -> bytes:
    """.npy bytes, version 1.0."""
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version=(1, 0), allow_pickle=False)
    return out.getvalue()


class Extent:
    """``size`` bytes of an open file from ``start`` on. A slice is one too, and ``bytes`` of it reads them.

    A file that is cut short, or whose disk fails, is a FormatError then. Where it was mapped into memory that would be SIGBUS,
    which ends the process."""

    __slots__ = ("_file", "_size", "_start")

    def __init__(self, file: IO[bytes], start: int, size: int):
        self._file, self._start, self._size = file, start, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> Extent:
        first, end, _ = part.indices(self._size)
        return Extent(self._file, self._start + first, max(0, end - first))

    def __bytes__(self) -> bytes:
        try:
            data = os.pread(self._file.fileno(), self._size, self._start)
        except OSError as error:
            raise FormatError(f"{error.strerror} at byte {self._start} of the file") from None
        if len(data) < self._size:
            raise FormatError(f"{len(data)} bytes found at byte {self._start} of the file, {self._size} expected")
        return data


@dataclass(frozen=True)
class Stream:
    """N pictures of one size, back to back, with the offsets between them; :meth:`decode` gives any of them."""

    name: str
    data: memoryview | Extent
    offsets: np.ndarray  # uint64 (N + 1,)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def part(self, index: int) -> bytes:
        return bytes(self.data[int(self.offsets[index]) : int(self.offsets[index + 1])])

    def decode(self, indices: Sequence[int] | np.ndarray, height: int, width: int, grey: bool = False) -> np.ndarray:
        """The named pictures, each decoded once: uint8 (n, height, width, 3) RGB, or (n, height, width) when ``grey``.

        Raises FormatError where one does not decode to that size.
        """
        wanted = asked = np.asarray(indices)
        where: np.ndarray | None = None
        if np.any(asked[1:] <= asked[:-1]):  # a looped clip, or several clips at once
            wanted, where = np.unique(asked, return_inverse=True)
        if not len(wanted) or wanted[0] < 0 or wanted[-1] >= len(self):
            raise IndexError(f"{self.name}: frames {list(indices)} of {len(self)}")
        out = np.empty((len(wanted), height, width, 1 if grey else 3), np.uint8)
        self._decode(wanted, out)
        out = out if where is None else out[where]
        return out[..., 0] if grey else out

    def grain(self, stride: float) -> int:
        """A random clip of this stride should start at a multiple of this number of frames."""
        return 1

    def needed(self, index: int) -> tuple[int, int]:
        """The first of the pictures that decoding this one takes, and the one after the last."""
        return index, index + 1

    def _decode(self, wanted_n: np.ndarray, out_nHWC: np.ndarray) -> None:
        raise NotImplementedError


class JpegStream(Stream):
    """A JPEG a picture: one slice and one decode."""

    def _decode(self, wanted_n: np.ndarray, out_nHWC: np.ndarray) -> None:
        colours = "GRAY" if out_nHWC.shape[-1] == 1 else "RGB"
        for picture, frame in zip(out_nHWC, wanted_n, strict=True):
            try:
                shape = simplejpeg.decode_jpeg(self.part(frame), colours, buffer=picture).shape
            except ValueError as error:
                raise _undecodable(self.name, frame, picture, error) from None
            if shape != picture.shape:  # a smaller one leaves the rest of the buffer as it was
                raise _undecodable(self.name, frame, picture, f"a picture of {shape[1]}x{shape[0]}")


@dataclass(frozen=True)
class PacketStream(Stream):
    """Packets of H.264 in coded order, decoded without a container.

    A group starts at an I and needs nothing before it. Nothing refers to a b, and a b needs the picture after it. So a clip
    costs the references from its group's start on, and the b that it asks for. Coded order is display order with each b behind
    the picture that follows it.
    """

    kinds: str  # N letters I, P or b in display order

    def grain(self, stride: float) -> int:
        """Even frames are references: with an even stride, a clip that starts at one needs none of the others."""
        return 1 if stride % 2 else 2

    def needed(self, index: int) -> tuple[int, int]:
        return self.kinds.rfind("I", 0, index + 1), min(index + 2, len(self))  # a b needs the picture after it

    def packets(self, wanted_n: np.ndarray) -> Iterator[tuple[int, bytes]]:
        """What a decoder must be fed for ascending frames: (display number, packet)."""
        wanted, frame = set(wanted_n.tolist()), 0  # frame: the next one to be fed
        for at in wanted_n.tolist():
            frame = max(frame, self.kinds.rfind("I", 0, at + 1))
            while frame <= at:
                if self.kinds[frame] == "b":
                    yield frame + 1, self.part(frame)
                    if frame in wanted:
                        yield frame, self.part(frame + 1)
                    frame += 2
                else:
                    yield frame, self.part(frame)
                    frame += 1

    def _decode(self, wanted_n: np.ndarray, out_nHWC: np.ndarray) -> None:
        import av

        decoder = av.CodecContext.create("h264", "r")
        assert isinstance(decoder, av.VideoCodecContext)
        decoder.thread_count = 1
        decoder.options = {"max_pixels": str(MAX_SIDE**2)}
        place = {int(frame): row for row, frame in enumerate(wanted_n)}
        missing = set(place)

        def keep(frames: list[av.VideoFrame]) -> None:
            for frame in frames:
                if frame.is_corrupt:
                    raise ValueError("a damaged picture")
                if frame.format.name not in ("yuvj420p", "yuv420p"):
                    raise ValueError(f"pixels are {frame.format.name}, expected yuvj420p")
                number = -1 if frame.pts is None else int(frame.pts)
                if number not in place:
                    continue
                picture = out_nHWC[place[number]]
                if (frame.height, frame.width) != picture.shape[:2]:
                    raise ValueError(f"a picture of {frame.width}x{frame.height}")
                planes = [np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, : p.width] for p in frame.planes]
                if picture.shape[-1] == 1:
                    picture[..., 0] = planes[0]
                else:
                    full_range_rgb(planes, picture)
                missing.discard(number)

        try:
            for number, data in self.packets(wanted_n):
                packet = av.Packet(data)
                packet.pts = number
                keep(decoder.decode(packet))
            keep(decoder.decode(None))
        except (av.error.FFmpegError, ValueError) as error:
            raise _undecodable(self.name, min(missing, default=int(wanted_n[-1])), out_nHWC[0], error) from None
        if missing:
            raise _undecodable(self.name, min(missing), out_nHWC[0], "the packets give no such picture")


def full_range_rgb(planes: Sequence[np.ndarray], out_HW3: np.ndarray) -> None:
    """Full-range BT.601 planes, uint8 Y (H, W), U and V (ceil H/2, ceil W/2), to RGB, uint8 (H, W, 3), as JPEG decoders do:
    colour interpolated, every value rounded. (swscale is faster and rounds down: greens by one grey level in the mean.)"""
    y, u, v = planes
    size = (2 * u.shape[1], 2 * u.shape[0])
    u, v = (cv2.resize(colour, size, interpolation=cv2.INTER_LINEAR)[: len(y), : y.shape[1]] for colour in (u, v))
    cv2.transform(cv2.merge([np.ascontiguousarray(plane) for plane in (y, u, v)]), TO_RGB, dst=out_HW3)


def _undecodable(name: str, frame: int, picture: np.ndarray, why: object) -> FormatError:
    return FormatError(f"{name}: frame {frame} does not decode to {picture.shape[1]}x{picture.shape[0]}: {why}")


@dataclass(frozen=True)
class Record:
    """One sample. ``meta`` is ``KEY.json``, ``streams`` the pictures of each cue that has any, by its name, and ``arrays`` the
    arrays of its cues, by theirs."""

    key: str
    meta: SampleMeta
    rgb: Stream
    streams: Mapping[str, Stream]
    arrays: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.rgb)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the stored frames."""
        return self.meta.height, self.meta.width

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """RGB frames at ``indices``: uint8 (n, H, W, 3)."""
        return self.rgb.decode(indices, *self.size)

    def pictures(self, cue: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The grey pictures of a cue at ``indices``: uint8 (n, h, w), 128 where nothing moved. Raises FormatError where the
        sample is without that cue."""
        shape = CUES[cue].picture
        if cue not in self.streams or shape is None:
            raise self._without(cue)
        return self.streams[cue].decode(indices, *shape(*self.size), grey=True)

    def vectors(self, cue: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """A cue of vectors at ``indices``: float32 (n, h, w, 2), rightward and downward, in stored pixels a frame."""
        return flow_pixels(self.pictures(cue, indices), self.arrays[cue][np.asarray(indices)])

    def array(self, name: str) -> np.ndarray:
        """An array of a cue, a value for each frame: (N, ...). Raises FormatError where the sample is without that cue."""
        if name not in self.arrays:
            raise self._without(next(cue.name for cue in CUES.values() if name in cue.arrays))
        return self.arrays[name]

    def _without(self, cue: str) -> FormatError:
        have = ", ".join(self.meta.cues) or "none"
        return FormatError(
            f"{self.key}: no cue {cue!r} in it (it has: {have}); python -m preprocess add-cues SET --cues {cue} adds it"
        )


def _header(block: bytes) -> tuple[str, int]:
    """Name and size of a regular file, from a ustar header such as :func:`pack` writes. Raises ValueError for any other header.

    (tarfile needs a tenth of the time in which a sample's two clips decode to read its headers.)"""
    sum_said, size = block[148:156].rstrip(b" \0"), block[124:136].rstrip(b" \0")
    if block[257:265] != b"ustar\x0000" or not OCTAL.fullmatch(sum_said) or not OCTAL.fullmatch(size):
        raise ValueError("no ustar header")
    if (checksum := sum(block) - sum(block[148:156]) + 8 * ord(" ")) != int(sum_said, 8):
        raise ValueError(f"its checksum is {checksum}, it says {int(sum_said, 8)}")
    if block[156:157] != b"0" or block[345] != 0:
        raise ValueError("no plain file")
    return block[:100].rstrip(b"\0").decode("ascii", "replace"), int(size, 8)


def members(data: bytes | memoryview | Extent, whole: bool = True) -> dict[str, memoryview | Extent]:
    """Split one sample's tar bytes into ``extension -> contents`` (plus ``"key" -> name``); views, nothing is copied. Members
    that are not the ``whole`` sample may lack its json."""
    view = data if isinstance(data, Extent) else memoryview(data)
    at, contents, key = 0, dict[str, memoryview | Extent](), None
    extensions = _extensions(tuple(CUES))
    while at < len(view):
        header = view[at : at + BLOCK]
        if len(header) < BLOCK:
            raise FormatError(f"the sample ends inside a tar header ({len(header)} of {BLOCK} bytes)")
        try:
            member, size = _header(bytes(header))
        except ValueError as error:
            raise FormatError(f"not a tar header at byte {at} of the sample: {error}") from None
        name, _, extension = member.partition(".")
        if not KEY.fullmatch(name) or extension not in extensions or (key or name) != name:
            raise FormatError(f"unexpected tar member {member!r} in sample {key or name!r}")
        if extension in contents:
            raise FormatError(f"tar member {member!r} twice in one sample")
        start, key = at + BLOCK, name
        if start + size > len(view):
            raise FormatError(f"{member}: {size} bytes announced, {len(view) - start} left in the sample")
        contents[extension] = view[start : start + size]
        at = start + size + (-size % BLOCK)
    if key is None or (whole and "json" not in contents):
        raise FormatError(f"sample {key!r} holds {sorted(contents)}, and no json")
    contents["key"] = memoryview(key.encode())
    return contents


def parse_array(npy: bytes | memoryview, dtype: str, shape: tuple[int, ...], name: str) -> np.ndarray:
    """An array from .npy bytes; the header is believed only where it says what was expected and the bytes are there."""
    written = _npy_header(dtype, shape)
    start, count = len(written), math.prod(shape)
    if npy[:start] != written:  # written by another numpy
        stream = io.BytesIO(npy)
        if np.lib.format.read_magic(stream) != (1, 0):
            raise FormatError(f"{name}: expected .npy version 1.0")
        said, fortran, kind = np.lib.format.read_array_header_1_0(stream)
        start = stream.tell()
        if kind != np.dtype(dtype) or said != shape or fortran:
            raise FormatError(f"{name}: {kind} {said}, expected {np.dtype(dtype)} {shape}")
    if len(npy) - start != np.dtype(dtype).itemsize * count:
        raise FormatError(f"{name}: {len(npy) - start} bytes, expected {np.dtype(dtype)} {shape}")
    return np.frombuffer(npy, dtype, count, start).reshape(shape)


def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The first bytes of a .npy file, version 1.0: comparing is a tenth of parsing."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    padded = text + " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode()


def _stream(contents: Mapping[str, memoryview | Extent], prefix: str, codec: str, key: str) -> Stream:
    """The stream under ``prefix``; raises FormatError where offsets or kinds cannot be those of a stream."""
    data, index, name = contents[prefix + CODECS[codec]], contents[prefix + "idx"], f"{key}.{prefix}idx"
    if len(index) % 8 or len(index) < 16:
        raise FormatError(f"{name}: an index of {len(index)} bytes, expected uint64 offsets of at least one frame")
    offsets = np.frombuffer(bytes(index), "<u8")
    if offsets[0] != 0 or offsets[-1] != len(data) or np.any(offsets[1:] <= offsets[:-1]):
        raise FormatError(f"{name}: offsets do not rise from 0 to the stream's {len(data)} bytes")
    stream = f"{key}.{prefix}{CODECS[codec]}"
    if codec == "jpeg":
        return JpegStream(stream, data, offsets)
    kinds = bytes(contents[prefix + "kinds"]).decode("ascii", "replace")
    if len(kinds) != len(offsets) - 1 or not re.fullmatch(r"I(b?[IP])*", kinds):
        raise FormatError(f"{key}.{prefix}kinds: {kinds[:20]!r}..., expected {len(offsets) - 1} letters I, P, b, no b last")
    return PacketStream(stream, data, offsets, kinds)


def parse(contents: Mapping[str, memoryview | Extent]) -> Record:
    """A :class:`Record` from :func:`members`, checked: raises FormatError naming the key and what is wrong."""
    key = bytes(contents["key"]).decode()
    with parsing(key, "a sample", error=FormatError):
        try:
            meta = SampleMeta.loads(bytes(contents["json"]))
        except Exception as failed:
            raise FormatError(f"{key}.json: {reason(failed)}") from None
        expected = {*member_names(meta.codec, meta.cues), "key"}
        if set(contents) != expected:
            raise FormatError(f"{key} holds {sorted(contents)}, expected {sorted(expected)}")
        rgb, streams, arrays = _stream(contents, "", meta.codec, key), dict[str, Stream](), dict[str, np.ndarray]()
        for cue in [CUES[name] for name in meta.cues]:
            if cue.picture:
                streams[cue.name] = _stream(contents, f"{cue.name}.", cue_codec(cue, meta.codec), key)
            for name, (dtype, shape) in cue.arrays.items():
                member = array_name(name)
                arrays[name] = parse_array(bytes(contents[member]), dtype, (meta.frames, *shape), f"{key}.{member}")
    for stream in (rgb, *streams.values()):
        if len(stream) != meta.frames:
            raise FormatError(f"{stream.name}: {len(stream)} pictures, and {key}.json says {meta.frames}")
    return Record(key, meta, rgb, streams, arrays)


def unpack(data: bytes | memoryview | Extent) -> Record:
    """The sample in these tar bytes (what an index entry's offset and size cut out of a shard)."""
    return parse(members(data))


def glance(read: Callable[[int, int], bytes], size: int) -> Record:
    """A sample of ``size`` bytes, of which ``read`` gives so many from a place on, with its middle frame alone: a few thousand
    bytes are read, and no other picture decodes. Raises FormatError as :func:`unpack` does."""
    try:
        member, length = _header(read(0, BLOCK))
        key, _, extension = member.partition(".")
        codec = next((codec for codec, name in CODECS.items() if name == extension), "")
        if not codec or BLOCK + length > size:
            raise FormatError(f"{plain(member)} of {length} bytes is no sample's first member")
        meta = _meta_behind(read(size - min(size, TAIL), min(size, TAIL)), key)
        parts = [8 * (meta.frames + 1), *([meta.frames] if codec == "h264" else [])]  # idx, kinds
        named = read(BLOCK + _padded(length), sum(BLOCK + _padded(part) for part in parts))
        data = bytearray(length)
        stream = _stream({extension: memoryview(data), **members(named, whole=False)}, "", codec, key)
        first, end = (int(stream.offsets[at]) for at in stream.needed(len(stream) // 2))
        data[first:end] = read(BLOCK + first, end - first)
    except (InputError, Unreachable):
        raise
    except Exception as error:  # whatever hostile bytes make a parser raise
        raise FormatError(reason(error)) from None
    return Record(key, meta, stream, {}, {})


def _padded(size: int) -> int:
    return size + -size % BLOCK


def _meta_behind(tail: bytes, key: str) -> SampleMeta:
    """What ``KEY.json`` says, the last member of a sample that ends with these bytes."""
    for at in range(len(tail) - 2 * BLOCK, -1, -BLOCK):
        if tail.startswith(f"{key}.json\0".encode(), at):
            _, size = _header(tail[at : at + BLOCK])
            return SampleMeta.loads(tail[at + BLOCK : at + BLOCK + size])
    raise FormatError(f"{key}.json is not among the last {len(tail)} bytes")
