"""One sample's bytes <-> arrays: the only file that knows what a sample looks like inside a shard (shards/README.md).

A sample is one video, or one segment of a long one: a run of adjacent tar members that share a key. N is the number of frames.

    KEY.mjpg        frames: colour JPEGs back to back; .h264 instead holds packets of H.264 in coded order
    KEY.idx         uint64 little-endian, N + 1 offsets into the stream before it: part i is stream[idx[i]:idx[i + 1]]
    KEY.kinds       H.264 only: N letters in display order, I (a group starts), P (reference), b (droppable)
    KEY.diff.*      cue "diff": the signed luma difference as grey pictures, in the same three members
    KEY.flow.*      cue "flow": grey JPEGs (2h, w), horizontal above vertical; flow.npy float32 (N,), pixels a level
    KEY.energy.npy  cue "energy": float32 (N,), mean absolute luma difference of a frame in grey levels (0..255)
    KEY.grid.npy    cue "energy": float16 (N, 8, 8), the same in each cell of a grid
    KEY.json        what is known about the video

Everything here is read as hostile: sizes are bounded by the slice, names cannot leave it, and no pickle is ever loaded.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import cv2
import numpy as np
import simplejpeg

from dclr.errors import InputError

VERSION = 2
CODECS = {"jpeg": "mjpg", "h264": "h264"}  # codec of frames and differences -> extension of their stream
CUES = ("diff", "flow", "energy")
BLOCK = 512  # tar's unit
MAX_SIDE = 4096  # of a stored frame, in pixels: a bound on what a hostile header can make us allocate
OCTAL = re.compile(rb"[0-7]{1,11}")
KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")  # no dots: webdataset ends the key at the first one
GRID = 8  # cells of the energy grid along each side
FLOW_SHRINK = 4  # flow is stored at a quarter of the frame's sides
FLOW_STEP = 1 / 16  # smallest step of stored flow, in pixels a level
STILL = 128  # the level of no motion, in differences and flow
JPEG_MATRIX = np.array([[1, 0, 1.402, 0], [1, -0.344136, -0.714136, 0], [1, 1.772, 0, 0]])  # of Y, U, V and 1
TO_RGB = (
    np.rint(1024 * JPEG_MATRIX) / 1024
)  # OpenCV computes in 1024ths: rounded like that before 128 goes off, grey stays grey
TO_RGB[:, 3] = -128 * TO_RGB[:, 1:3].sum(1)


class FormatError(InputError):
    """A sample's bytes are not what shards/README.md says."""


def luma_difference(luma_HW: np.ndarray, previous_HW: np.ndarray) -> np.ndarray:
    """Signed difference of two uint8 luma planes as uint8 (H, W): ``round(x / 2) + 128`` with x = luma - previous.

    Halves round to even and +255 saturates to 255; a still pixel is exactly 128 (docs/method.md, "Inputs of one video").

    >>> luma_difference(np.array([[10, 10, 0]], np.uint8), np.array([[10, 0, 10]], np.uint8)).tolist()
    [[128, 133, 123]]
    """
    return cv2.addWeighted(luma_HW, 0.5, previous_HW, -0.5, STILL)


def flow_levels(flow_hw2: np.ndarray) -> tuple[np.ndarray, float]:
    """Flow float32 (h, w, 2) in pixels -> (uint8 (2h, w), horizontal above vertical; pixels a level of this frame).

    ``round(x / scale) + 128`` with ``scale = max(1/16, max|x| / 127)``: each component is at most half a level off.
    """
    scale = max(FLOW_STEP, float(np.abs(flow_hw2).max()) / 127)
    levels = np.rint(flow_hw2 / scale) + STILL
    return np.concatenate([levels[..., 0], levels[..., 1]]).astype(np.uint8), scale


def flow_pixels(levels_n2hw: np.ndarray, scale_n: np.ndarray) -> np.ndarray:
    """The inverse of :func:`flow_levels`: uint8 (n, 2h, w), float32 (n,) -> float32 (n, h, w, 2), stored pixels a frame."""
    n, rows, w = levels_n2hw.shape
    flow = (levels_n2hw.reshape(n, 2, rows // 2, w).astype(np.float32) - STILL) * scale_n[:, None, None, None]
    return np.ascontiguousarray(flow.transpose(0, 2, 3, 1))


def flow_size(height: int, width: int) -> tuple[int, int]:
    """(h, w) of the flow stored for frames of ``height`` x ``width``.

    >>> flow_size(128, 170)
    (32, 42)
    """
    return max(1, height // FLOW_SHRINK), max(1, width // FLOW_SHRINK)


def video_id(video: str) -> int:
    """The 63-bit id of a video's name, the same in every process. Queues mask by it, and evaluations group by it."""
    return int.from_bytes(hashlib.blake2b(video.encode(), digest_size=8).digest(), "big") >> 1


def member_names(codec: str, cues: Sequence[str]) -> tuple[str, ...]:
    """The extensions of a sample's members, in their order.

    >>> member_names("jpeg", ["energy"])
    ('mjpg', 'idx', 'energy.npy', 'grid.npy', 'json')
    """

    def stream(prefix: str) -> tuple[str, ...]:
        names = (CODECS[codec], "idx") if codec == "jpeg" else (CODECS[codec], "idx", "kinds")
        return tuple(prefix + name for name in names)

    names = stream("")
    names += stream("diff.") if "diff" in cues else ()
    names += ("flow.mjpg", "flow.idx", "flow.npy") if "flow" in cues else ()
    names += ("energy.npy", "grid.npy") if "energy" in cues else ()
    return (*names, "json")


EXTENSIONS = frozenset(name for codec in CODECS for name in member_names(codec, CUES))


def pack(key: str, members: Mapping[str, bytes | IO[bytes]], meta: Mapping[str, Any]) -> Iterator[bytes]:
    """The tar bytes of one sample in pieces, a whole number of 512-byte blocks; the same input gives the same bytes.

    Args:
        key: the sample's name, matching :data:`KEY`.
        members: what :func:`member_names` names but ``json``: bytes, or a file of them (a long video's, on disk).
        meta: what goes into ``KEY.json``, with at least frames, width, height, video, codec and cues.
    """
    if not KEY.fullmatch(key):
        raise FormatError(f"key {key!r}: expected {KEY.pattern}")
    document = json.dumps({"version": VERSION, **meta}, sort_keys=True, ensure_ascii=False).encode()
    for extension in member_names(meta["codec"], meta["cues"]):
        data = document if extension == "json" else members[extension]
        info = tarfile.TarInfo(f"{key}.{extension}")  # mtime, owner and mode are constants, so bytes repeat
        info.size = len(data) if isinstance(data, bytes) else data.seek(0, io.SEEK_END)
        yield info.tobuf(tarfile.USTAR_FORMAT)
        if isinstance(data, bytes):
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


@dataclass(frozen=True)
class Stream:
    """N pictures of one size, back to back, with the offsets between them; :meth:`decode` gives any of them."""

    name: str
    data: memoryview
    offsets: np.ndarray  # uint64 (N + 1,)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def part(self, index: int) -> memoryview:
        return self.data[int(self.offsets[index]) : int(self.offsets[index + 1])]

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

    def grain(self, stride: int) -> int:
        """A random clip of this stride should start at a multiple of this number of frames."""
        return 1

    def _decode(self, wanted_n: np.ndarray, out_nHWC: np.ndarray) -> None:
        raise NotImplementedError


class JpegStream(Stream):
    """A JPEG a picture: one slice and one decode."""

    def _decode(self, wanted_n: np.ndarray, out_nHWC: np.ndarray) -> None:
        colours = "GRAY" if out_nHWC.shape[-1] == 1 else "RGB"
        for picture, frame in zip(out_nHWC, wanted_n, strict=True):
            try:
                found = simplejpeg.decode_jpeg(self.part(frame), colours, buffer=picture).shape
            except ValueError as error:
                raise _undecodable(self.name, frame, picture, error) from None
            if found != picture.shape:  # a smaller one leaves the rest of the buffer as it was
                raise _undecodable(self.name, frame, picture, f"a picture of {found[1]}x{found[0]}")


@dataclass(frozen=True)
class PacketStream(Stream):
    """Packets of H.264 in coded order, decoded without a container.

    A group starts at an I and needs nothing before it. Nothing refers to a b, and a b needs the picture after it. So a clip
    costs the references from its group's start on, and the b that it asks for. Coded order is display order with each b behind
    the picture that follows it.
    """

    kinds: str  # N letters I, P or b in display order

    def grain(self, stride: int) -> int:
        """Even frames are references: with an even stride, a clip that starts at one needs none of the others."""
        return 1 if stride % 2 else 2

    def packets(self, wanted_n: np.ndarray) -> Iterator[tuple[int, bytes]]:
        """What a decoder must be fed for ascending frames: (display number, packet)."""
        wanted, frame = set(wanted_n.tolist()), 0  # frame: the next one to be fed
        for at in wanted_n.tolist():
            frame = max(frame, self.kinds.rfind("I", 0, at + 1))
            while frame <= at:
                if self.kinds[frame] == "b":
                    yield frame + 1, bytes(self.part(frame))
                    if frame in wanted:
                        yield frame, bytes(self.part(frame + 1))
                    frame += 2
                else:
                    yield frame, bytes(self.part(frame))
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
    """One sample. ``meta`` is ``KEY.json`` (shards/README.md has its fields); a cue that the set was made without is None."""

    key: str
    meta: dict[str, Any]
    rgb: Stream
    diff: Stream | None
    flow_levels: Stream | None
    flow_scale_N: np.ndarray | None  # float32 (N,), pixels a level
    energy_N: np.ndarray | None  # float32 (N,), grey levels
    grid_NGG: np.ndarray | None  # float16 (N, 8, 8), grey levels

    def __len__(self) -> int:
        return len(self.rgb)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the stored frames."""
        return self.meta["height"], self.meta["width"]

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """RGB frames at ``indices``: uint8 (n, H, W, 3)."""
        return self.rgb.decode(indices, *self.size)

    def differences(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The stored signed luma difference at ``indices``: uint8 (n, H, W), 128 where nothing moved."""
        if self.diff is None:
            raise self._without("diff")
        return self.diff.decode(indices, *self.size, grey=True)

    def flow(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The stored optical flow at ``indices``: float32 (n, h, w, 2), rightward and downward, in stored pixels a frame."""
        return flow_pixels(*self.stored_flow(indices))

    def stored_flow(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same as it is stored: levels uint8 (n, 2h, w), horizontal above vertical, and pixels a level float32 (n,)."""
        if self.flow_levels is None or self.flow_scale_N is None:
            raise self._without("flow")
        h, w = flow_size(*self.size)
        return self.flow_levels.decode(indices, 2 * h, w, grey=True), self.flow_scale_N[np.asarray(indices)]

    def energy_grid(self) -> np.ndarray:
        """How much moves in each cell of each frame: float16 (N, 8, 8), grey levels."""
        if self.grid_NGG is None:
            raise self._without("energy")
        return self.grid_NGG

    def _without(self, cue: str) -> FormatError:
        have = ", ".join(self.meta["cues"]) or "none"
        return FormatError(f"{self.key}: no cue {cue!r} in it (it has: {have}); make the shards with --cues {cue}")


def _header(block: bytes) -> tuple[str, int]:
    """Name and size of a regular file, from a ustar header such as :func:`pack` writes. Raises ValueError for any other header.

    (tarfile needs a tenth of the time in which a sample's two clips decode to read its headers.)"""
    sum_said, size = block[148:156].rstrip(b" \0"), block[124:136].rstrip(b" \0")
    if block[257:265] != b"ustar\x0000" or not OCTAL.fullmatch(sum_said) or not OCTAL.fullmatch(size):
        raise ValueError("no ustar header")
    if (found := sum(block) - sum(block[148:156]) + 8 * ord(" ")) != int(sum_said, 8):
        raise ValueError(f"its checksum is {found}, it says {int(sum_said, 8)}")
    if block[156:157] != b"0" or block[345] != 0:
        raise ValueError("no plain file")
    return block[:100].rstrip(b"\0").decode("ascii", "replace"), int(size, 8)


def members(data: bytes | memoryview) -> dict[str, memoryview]:
    """Split one sample's tar bytes into ``extension -> contents`` (plus ``"key" -> name``); views, nothing is copied."""
    view, at, found, key = memoryview(data), 0, {}, None
    while at < len(view):
        header = view[at : at + BLOCK]
        if len(header) < BLOCK:
            raise FormatError(f"the sample ends inside a tar header ({len(header)} of {BLOCK} bytes)")
        try:
            member, size = _header(bytes(header))
        except ValueError as error:
            raise FormatError(f"not a tar header at byte {at} of the sample: {error}") from None
        name, _, extension = member.partition(".")
        if not KEY.fullmatch(name) or extension not in EXTENSIONS or (key or name) != name:
            raise FormatError(f"unexpected tar member {member!r} in sample {key or name!r}")
        if extension in found:
            raise FormatError(f"tar member {member!r} twice in one sample")
        start, key = at + BLOCK, name
        if start + size > len(view):
            raise FormatError(f"{member}: {size} bytes announced, {len(view) - start} left in the sample")
        found[extension] = view[start : start + size]
        at = start + size + (-size % BLOCK)
    if key is None or "json" not in found:
        raise FormatError(f"sample {key!r} holds {sorted(found)}, and no json")
    found["key"] = memoryview(key.encode())
    return found


def parse_array(npy: bytes | memoryview, dtype: str, shape: tuple[int, ...], name: str) -> np.ndarray:
    """An array from .npy bytes; the header is believed only where it says what was expected and the bytes are there."""
    written = _npy_header(dtype, shape)
    start, count = len(written), math.prod(shape)
    if npy[:start] != written:  # written by another numpy
        stream = io.BytesIO(npy)
        if np.lib.format.read_magic(stream) != (1, 0):
            raise FormatError(f"{name}: expected .npy version 1.0")
        found, fortran, kind = np.lib.format.read_array_header_1_0(stream)
        start = stream.tell()
        if kind != np.dtype(dtype) or found != shape or fortran:
            raise FormatError(f"{name}: {kind} {found}, expected {np.dtype(dtype)} {shape}")
    if len(npy) - start != np.dtype(dtype).itemsize * count:
        raise FormatError(f"{name}: {len(npy) - start} bytes, expected {np.dtype(dtype)} {shape}")
    return np.frombuffer(npy, dtype, count, start).reshape(shape)


def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The first bytes of a .npy file, version 1.0: comparing is a tenth of parsing."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    padded = text + " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode()


def _stream(found: Mapping[str, memoryview], prefix: str, codec: str, key: str) -> Stream:
    """The stream under ``prefix``; raises FormatError where offsets or kinds cannot be those of a stream."""
    data, index, name = found[prefix + CODECS[codec]], found[prefix + "idx"], f"{key}.{prefix}idx"
    if len(index) % 8 or len(index) < 16:
        raise FormatError(f"{name}: an index of {len(index)} bytes, expected uint64 offsets of at least one frame")
    offsets = np.frombuffer(index, "<u8")
    if offsets[0] != 0 or offsets[-1] != len(data) or np.any(offsets[1:] <= offsets[:-1]):
        raise FormatError(f"{name}: offsets do not rise from 0 to the stream's {len(data)} bytes")
    stream = f"{key}.{prefix}{CODECS[codec]}"
    if codec == "jpeg":
        return JpegStream(stream, data, offsets)
    kinds = bytes(found[prefix + "kinds"]).decode("ascii", "replace")
    if len(kinds) != len(offsets) - 1 or not re.fullmatch(r"I(b?[IP])*", kinds):
        raise FormatError(f"{key}.{prefix}kinds: {kinds[:20]!r}..., expected {len(offsets) - 1} letters I, P, b, no b last")
    return PacketStream(stream, data, offsets, kinds)


def parse(found: Mapping[str, memoryview]) -> Record:
    """A :class:`Record` from :func:`members`, checked: raises FormatError naming the key and what is wrong."""
    key = bytes(found["key"]).decode()
    try:
        meta = json.loads(bytes(found["json"]))
        _check_meta(key, meta)
        total, cues, codec = meta["frames"], meta["cues"], meta["codec"]
        expected = {*member_names(codec, cues), "key"}
        if set(found) != expected:
            raise FormatError(f"{key} holds {sorted(found)}, expected {sorted(expected)}")
        rgb = _stream(found, "", codec, key)
        diff = _stream(found, "diff.", codec, key) if "diff" in cues else None
        flow = _stream(found, "flow.", "jpeg", key) if "flow" in cues else None
        scale = parse_array(found["flow.npy"], "<f4", (total,), f"{key}.flow.npy") if "flow" in cues else None
        energy = parse_array(found["energy.npy"], "<f4", (total,), f"{key}.energy.npy") if "energy" in cues else None
        grid = parse_array(found["grid.npy"], "<f2", (total, GRID, GRID), f"{key}.grid.npy") if "energy" in cues else None
    except (ValueError, EOFError, RecursionError) as error:
        raise error if isinstance(error, FormatError) else FormatError(f"{key}: {error}") from None
    for stream in (rgb, diff, flow):
        if stream is not None and len(stream) != total:
            raise FormatError(f"{stream.name}: {len(stream)} pictures, and {key}.json says {total}")
    return Record(key, meta, rgb, diff, flow, scale, energy, grid)


def _check_meta(key: str, meta: Any) -> None:
    if not isinstance(meta, dict) or meta.get("version") != VERSION:
        version = meta.get("version") if isinstance(meta, dict) else meta
        raise FormatError(f"{key}.json: format version {version!r}, this code reads version {VERSION}")
    for field, most in (("width", MAX_SIDE), ("height", MAX_SIDE), ("frames", 1 << 40)):
        if not isinstance(meta.get(field), int) or not 0 < meta[field] <= most:
            raise FormatError(f"{key}.json: {field} is {meta.get(field)!r}, expected 1..{most}")
    if not isinstance(meta.get("video"), str):
        raise FormatError(f"{key}.json: video is {meta.get('video')!r}, expected its id, a text")
    if meta.get("codec") not in CODECS:
        raise FormatError(f"{key}.json: codec is {meta.get('codec')!r}, expected one of {', '.join(CODECS)}")
    cues = meta.get("cues")
    if not isinstance(cues, list) or not all(cue in CUES for cue in cues):
        raise FormatError(f"{key}.json: cues are {cues!r}, expected some of {', '.join(CUES)}")


def unpack(data: bytes | memoryview) -> Record:
    """The sample in these tar bytes (what an index entry's offset and size cut out of a shard)."""
    return parse(members(data))
