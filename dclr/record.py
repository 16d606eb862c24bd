"""One sample's bytes <-> arrays: the only file that knows what a sample looks like inside a shard (shards/README.md).

A sample is one video: a run of adjacent tar members that share a key, in this order::

    KEY.mjpg       colour JPEGs back to back, one a frame, native frame rate
    KEY.idx        uint64 little-endian, N + 1 offsets into .mjpg: frame i is mjpg[idx[i]:idx[i + 1]]
    KEY.diff.mjpg  grey JPEGs back to back, the signed luma difference (see :func:`luma_difference`)
    KEY.diff.idx   uint64 little-endian, N + 1 offsets into .diff.mjpg
    KEY.energy.npy float32, N values: mean absolute luma difference of a frame, in grey levels (0..255)
    KEY.json       what is known about the video

N is the number of frames. Everything here is read as hostile: sizes are bounded by the slice, names cannot leave it, and no
pickle is ever loaded.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import simplejpeg

from dclr.errors import InputError

VERSION = 1
MEMBERS = ("mjpg", "idx", "diff.mjpg", "diff.idx", "energy.npy", "json")
BLOCK = 512  # tar's unit
MAX_SIDE = 4096  # of a stored frame, in pixels: a bound on what a hostile header can make us allocate
KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")  # no dots: webdataset ends the key at the first one


class FormatError(InputError):
    """A sample's bytes are not what shards/README.md says."""


def luma_difference(luma_HW: np.ndarray, previous_HW: np.ndarray) -> np.ndarray:
    """Signed difference of two uint8 luma planes as uint8 (H, W): ``round(x / 2) + 128`` with x = luma - previous.

    Halves round to even and +255 saturates to 255; a still pixel is exactly 128 (shared/method.md, "Inputs of one video").
    """
    return cv2.addWeighted(luma_HW, 0.5, previous_HW, -0.5, 128)


def video_id(video: str) -> int:
    """63-bit integer of a video's name, the same in every process: what queues mask by and evaluation groups by."""
    return int.from_bytes(hashlib.blake2b(video.encode(), digest_size=8).digest(), "big") >> 1


def pack(
    key: str, frames: Sequence[bytes], differences: Sequence[bytes], energy_N: np.ndarray, meta: Mapping[str, Any]
) -> bytes:
    """The tar bytes of one sample, a whole number of 512-byte blocks; the same input gives the same bytes.

    Args:
        key: the sample's name, matching :data:`KEY`.
        frames: N colour JPEGs. differences: N grey JPEGs. energy_N: float32 (N,).
        meta: what goes into ``KEY.json``; ``version`` and ``frames`` are filled in here.
    """
    if not KEY.fullmatch(key):
        raise FormatError(f"key {key!r}: expected {KEY.pattern}")
    energy = io.BytesIO()
    np.save(energy, energy_N.astype("<f4"), allow_pickle=False)
    document = {"version": VERSION, "frames": len(frames), **meta}
    members = (
        b"".join(frames),
        _offsets(frames),
        b"".join(differences),
        _offsets(differences),
        energy.getvalue(),
        json.dumps(document, sort_keys=True, ensure_ascii=False).encode(),
    )
    blocks = []
    for extension, data in zip(MEMBERS, members, strict=True):
        info = tarfile.TarInfo(f"{key}.{extension}")  # mtime, owner and mode are constants, so bytes repeat
        info.size = len(data)
        blocks += [info.tobuf(tarfile.USTAR_FORMAT), data, bytes(-len(data) % BLOCK)]
    return b"".join(blocks)


def _offsets(parts: Sequence[bytes]) -> bytes:
    return np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype="<u8")]).astype("<u8").tobytes()


@dataclass(frozen=True)
class JpegStream:
    """N JPEGs back to back with the offsets between them: any frame is one slice and one decode."""

    data: memoryview
    offsets: np.ndarray  # uint64 (N + 1,)

    @classmethod
    def parse(cls, data: memoryview, offsets: memoryview, name: str) -> JpegStream:
        """Raises FormatError where the offsets do not rise from 0 to the length of ``data``."""
        if len(offsets) % 8 or len(offsets) < 16:
            raise FormatError(f"{name}: an index of {len(offsets)} bytes, expected uint64 offsets of at least one frame")
        table = np.frombuffer(offsets, "<u8")
        if table[0] != 0 or table[-1] != len(data) or np.any(table[1:] <= table[:-1]):
            raise FormatError(f"{name}: offsets do not rise from 0 to the stream's {len(data)} bytes")
        return cls(data, table)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def decode(self, indices: Sequence[int] | np.ndarray, height: int, width: int, grey: bool = False) -> np.ndarray:
        """The named frames, each decoded once: uint8 (n, height, width, 3) RGB, or (n, height, width) when ``grey``."""
        wanted, where = np.unique(np.asarray(indices), return_inverse=True)
        out = np.empty((len(wanted), height, width, 1 if grey else 3), np.uint8)
        for row, frame in enumerate(wanted):
            data = self.data[int(self.offsets[frame]) : int(self.offsets[frame + 1])]
            try:
                simplejpeg.decode_jpeg(data, "GRAY" if grey else "RGB", fastdct=True, fastupsample=True, buffer=out[row])
            except ValueError as error:
                raise FormatError(f"frame {frame} does not decode to {width}x{height}: {error}") from None
        out = out[where]  # a looped clip names a frame more than once
        return out[..., 0] if grey else out


@dataclass(frozen=True)
class Record:
    """One decoded sample. ``meta`` is ``KEY.json``; see shards/README.md for its fields."""

    key: str
    meta: dict[str, Any]
    rgb: JpegStream
    diff: JpegStream
    energy_N: np.ndarray  # float32 (N,)

    def __len__(self) -> int:
        return len(self.rgb)

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """RGB frames at ``indices``: uint8 (n, H, W, 3)."""
        return self.rgb.decode(indices, self.meta["height"], self.meta["width"])

    def differences(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The stored signed luma difference at ``indices``: uint8 (n, H, W), 128 where nothing moved."""
        return self.diff.decode(indices, self.meta["height"], self.meta["width"], grey=True)


def members(data: bytes | memoryview) -> dict[str, memoryview]:
    """Split one sample's tar bytes into ``extension -> contents`` (plus ``"key" -> name``); views, nothing is copied."""
    view, at, found, key = memoryview(data), 0, {}, None
    while at < len(view):
        header = view[at : at + BLOCK]
        if len(header) < BLOCK:
            raise FormatError(f"the sample ends inside a tar header ({len(header)} of {BLOCK} bytes)")
        try:
            info = tarfile.TarInfo.frombuf(bytes(header), "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            raise FormatError(f"not a tar header at byte {at} of the sample: {error}") from None
        name, _, extension = info.name.partition(".")
        if not info.isreg() or not KEY.fullmatch(name) or extension not in MEMBERS or (key or name) != name:
            raise FormatError(f"unexpected tar member {info.name!r} in sample {key or name!r}")
        if extension in found:
            raise FormatError(f"tar member {info.name!r} twice in one sample")
        start, key = at + BLOCK, name
        if start + info.size > len(view):
            raise FormatError(f"{info.name}: {info.size} bytes announced, {len(view) - start} left in the sample")
        found[extension] = view[start : start + info.size]
        at = start + info.size + (-info.size % BLOCK)
    if key is None or set(found) != set(MEMBERS):
        raise FormatError(f"sample {key!r} holds {sorted(found)}, expected {sorted(MEMBERS)}")
    found["key"] = memoryview(key.encode())
    return found


def _float_vector(npy: memoryview) -> np.ndarray:
    """float32 (N,) from .npy bytes; the header is believed only where the bytes behind it are as many as it says."""
    stream = io.BytesIO(npy)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise FormatError("energy.npy: expected .npy version 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype != np.dtype("<f4") or len(shape) != 1 or 4 * shape[0] != len(npy) - stream.tell():
        raise FormatError(f"energy.npy: {dtype} {shape} in {len(npy)} bytes, expected a float32 vector")
    return np.frombuffer(npy[stream.tell() :], "<f4")


def parse(found: Mapping[str, memoryview]) -> Record:
    """A :class:`Record` from :func:`members`, checked: raises FormatError naming the key and what is wrong."""
    key = bytes(found["key"]).decode()
    try:
        meta = json.loads(bytes(found["json"]))
        energy = _float_vector(found["energy.npy"])
    except (ValueError, EOFError, RecursionError) as error:
        raise FormatError(f"{key}: {error}") from None
    if not isinstance(meta, dict) or meta.get("version") != VERSION:
        version = meta.get("version") if isinstance(meta, dict) else meta
        raise FormatError(f"{key}.json: format version {version!r}, this code reads version {VERSION}")
    for side in ("width", "height"):
        if not isinstance(meta.get(side), int) or not 0 < meta[side] <= MAX_SIDE:
            raise FormatError(f"{key}.json: {side} is {meta.get(side)!r}, expected 1..{MAX_SIDE}")
    if not isinstance(meta.get("video"), str):
        raise FormatError(f"{key}.json: video is {meta.get('video')!r}, expected its id, a text")
    rgb = JpegStream.parse(found["mjpg"], found["idx"], f"{key}.idx")
    diff = JpegStream.parse(found["diff.mjpg"], found["diff.idx"], f"{key}.diff.idx")
    if not len(rgb) == len(diff) == len(energy) == meta.get("frames"):
        counts = f"{len(rgb)} frames, {len(diff)} differences, {len(energy)} energies"
        raise FormatError(f"{key}: {counts}, and {key}.json says {meta.get('frames')}")
    return Record(key, meta, rgb, diff, energy)


def unpack(data: bytes | memoryview) -> Record:
    """The sample in these tar bytes (what an index entry's offset and size cut out of a shard)."""
    return parse(members(data))
