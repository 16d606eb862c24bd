"""What is in a shard set, without opening a shard: the manifest, one index beside each shard, samples by offset.

A set is a folder::

    manifest.json         :class:`Manifest`: shards, counts, bytes, sha256, class names, options
    index.npz             every shard's index joined, as columns: all that a reader needs to know of a sample
    shard-000000.tar      samples back to back (dclr/record.py)
    shard-000000.jsonl    :class:`Header`, then an :class:`Entry` a sample: key, offset, size, crc32, label, splits, ...
    failures.jsonl        videos that are not in the set, one line each, with the reason

It may lie in object storage or behind a web server (dclr/storage.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec
import numpy as np

from dclr.cues import CUES
from dclr.errors import InputError
from dclr.parse import Count, Rate, Sha256, Whole, from_json, parsing
from dclr.record import (
    CONTENT,
    DEFAULT_FPS,
    FORMAT_VERSION,
    TRAITS,
    Extent,
    FormatError,
    Record,
    SampleMeta,
    pack_array,
    parse_array,
    unpack,
    video_id,
)
from dclr.storage import Folder, RemoteFolder, open_folder
from dclr.text import plain

MANIFEST = "manifest.json"
INDEX = "index.npz"
FAILURES = "failures.jsonl"
MAX_MANIFEST, MAX_INDEX = 1 << 26, 1 << 28  # bytes of a manifest and of a shard's index: 300,000 shards, a million samples
COLUMNS_BYTES, KEY_BYTES = 80, 90  # most of a sample in index.npz, labels and splits apart, and of its key
SHA256 = re.compile(r"[0-9a-f]{64}")  # it names folders of a cache, and an index
OLD_INDEX = re.compile(r"index-[0-9a-f]{16}\.npz")
SHARD_NAME = re.compile(r"[A-Za-z0-9_-]+\.tar")  # a manifest is hostile input: no path escapes the set's folder
OPTIONAL_COLUMNS = {"path": "<i8", "motion": "<f8", "content": "<i8", "cuts": "<i8"}  # of the index, each with a row a sample
Crc32 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
Content = Annotated[str, msgspec.Meta(pattern=f"^{CONTENT.pattern}$")]
SPAN = re.compile(r"\[[\d.e+-]+:[\d.e+-]*\]\Z")  # behind the path in the id of a video that is a part of a file


@dataclass(frozen=True)
class Shard:
    """One tar: ``name`` in the set's folder, its ``samples`` and ``bytes``, the ``sha256`` of the whole file."""

    name: str
    samples: Count
    bytes: Count
    sha256: Sha256

    @property
    def index_name(self) -> str:
        return self.name.removesuffix(".tar") + ".jsonl"


@dataclass(frozen=True)
class Head:
    """What a manifest must say before the rest of it can be read."""

    version: int
    index_sha256: str = ""


@dataclass(frozen=True)
class Needed:
    """What a reader asks of a manifest's options."""

    size: Count  # the short side of stored frames, in pixels
    cues: list[str] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class Manifest:
    """The set as a whole. ``classes`` maps each kind of label to its class names, the default kind first."""

    dataset: str
    shards: tuple[Shard, ...]
    splits: dict[str, Whole]  # split -> samples in it
    classes: dict[str, list[str]]
    options: dict[str, Any]  # what the set was made with: size, quality, ...
    failures: dict[str, Whole]  # stage -> videos that are not in the set
    index_sha256: str  # of index.npz
    version: int = FORMAT_VERSION
    from_stored: dict[str, Whole] = dataclasses.field(default_factory=dict)  # cue -> samples that it was computed for so

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    def dumps(self) -> str:
        """JSON text; the same set gives the same bytes."""
        table = dataclasses.asdict(self) | {"samples": self.samples, "bytes": sum(shard.bytes for shard in self.shards)}
        if not self.from_stored:
            del table["from_stored"]
        return json.dumps(table, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def loads(cls, text: str, name: str = MANIFEST) -> Manifest:
        """Parse and check; raises InputError naming the file and the field."""
        with parsing(name, "a shard set's manifest", "see shards/README.md"):
            head = from_json(text, Head)
            if head.version != FORMAT_VERSION:
                raise InputError(
                    f"{name}: format version {head.version}, this code reads version {FORMAT_VERSION}: "
                    "make the shards again with python -m preprocess"
                )
            if not head.index_sha256:
                raise InputError(f"{name}: it names no {INDEX}; python -m preprocess merge on the set writes both anew")
            manifest = from_json(text, cls)
            for shard in manifest.shards:
                if not SHARD_NAME.fullmatch(shard.name):
                    raise InputError(f"{name}: shard name {shard.name!r}, expected {SHARD_NAME.pattern}")
            msgspec.convert(manifest.options, Needed)
            if unknown := [cue for cue in manifest.options.get("cues", []) if cue not in CUES]:
                raise InputError(
                    f"{name}: the set has a cue {plain(repr(unknown[0]))}, known here are {', '.join(CUES)}: "
                    "start the file that registers it (docs/extending.md, Another cue)"
                )
        return manifest


@dataclass(frozen=True)
class Header:
    """First line of a shard's index: the ``shard`` it belongs to, what the tar must be, and the ``recipe`` (hash of videos and
    options) that it was made by. A shard without samples has no tar."""

    shard: str
    samples: Whole
    bytes: Whole
    sha256: str
    recipe: str
    version: int = FORMAT_VERSION

    def dumps(self) -> str:
        return json.dumps(dataclasses.asdict(self))


@dataclass(frozen=True, slots=True)
class Entry:
    """A further line of a shard's index: where a sample lies in the tar and what is needed to choose it. What has a default is
    left out where it is not known."""

    key: str
    offset: Whole  # of the sample's first tar header, in bytes
    size: Count  # of all its members, headers and padding included
    crc32: Crc32  # of those bytes
    label: Whole | None  # of the default kind; None where the set has no labels
    labels: dict[str, Whole]
    splits: list[str]
    frames: Count
    fps: Rate  # 0 where the source does not say
    video: str  # the video's id; segments of one video share it
    motion: Rate | None = None  # :func:`dclr.record.mean_motion` of its stored energy
    content: Content | None = None  # as in :class:`dclr.record.Source`
    cuts: list[Whole] = dataclasses.field(default_factory=list)  # frames at which a further shot begins
    traits: list[str] = dataclasses.field(default_factory=list)  # of the source, of dclr.record.TRAITS
    from_stored: list[str] | None = None  # as in :class:`dclr.record.SampleMeta`, where there are any

    @classmethod
    def of(cls, meta: SampleMeta, key: str, offset: int, size: int, crc32: int, motion: float | None = None) -> Entry:
        """The line of a sample of which this is ``KEY.json``."""
        labels, splits, content = meta.labels, list(meta.splits), meta.source.content if meta.source else None
        said = labels, splits, meta.frames, meta.fps, meta.video, motion, content
        lists = list(meta.cuts), list(meta.traits), list(meta.from_stored) or None
        return cls(key, offset, size, crc32, meta.label, *said, *lists)

    def dumps(self) -> str:
        """The line, without the optional fields that are None or empty."""
        usual = {field.name: field.default for field in dataclasses.fields(self)} | {"cuts": [], "traits": []}
        said = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps({name: value for name, value in said.items() if value != usual[name]}, ensure_ascii=False)


def old_index(sha256: str) -> str:
    """Where the index with this hash lies while a set is changed, so that its manifest holds until the new one is there."""
    return f"index-{sha256[:16]}.npz"


def publish(folder: Folder, index: bytes, manifest: Manifest) -> None:
    """Give a set a new index and manifest. A reader finds the old set or the new one, also where this is killed on its way."""
    if folder.size(MANIFEST) is not None and folder.size(INDEX) is not None:
        there = folder.read(INDEX)  # as large as it is: it was opened before
        if (digest := hashlib.sha256(there).hexdigest()) != manifest.index_sha256:
            folder.write(old_index(digest), there)
    folder.write(INDEX, index)
    folder.write(MANIFEST, manifest.dumps().encode())
    drop_old_indexes(folder)


def drop_old_indexes(folder: Folder, but_of: str = "") -> None:
    """Remove what :func:`publish` kept for readers, but not the index with the hash ``but_of``."""
    for name in filter(OLD_INDEX.fullmatch, folder.top()):
        if name != old_index(but_of):
            folder.remove(name)


def read_manifest(folder: Folder) -> bytes:
    """A set's manifest as it is written. Raises FileNotFoundError, and InputError for one of more than :data:`MAX_MANIFEST`."""
    return folder.read_whole(MANIFEST, MAX_MANIFEST, "a shard set's manifest")


def read_index(folder: Folder, name: str) -> tuple[Header, list[Entry]]:
    """One shard's index; raises InputError naming the file and line."""
    lines, entries = folder.read_whole(name, MAX_INDEX, "a shard's index").splitlines(), list[Entry]()
    with parsing(f"{folder}/{name}, line 1", "the head of a shard's index", "copy it again"):
        header = from_json(lines[0] if lines else b"", Header)
        if header.version != FORMAT_VERSION:
            raise ValueError(f"format version {header.version}, this code reads version {FORMAT_VERSION}")
    for number, line in enumerate(lines[1:], 2):
        with parsing(f"{folder}/{name}, line {number}", "an index entry", "copy it again"):
            entry = from_json(line, Entry)
            if not set(TRAITS).issuperset(entry.traits):
                raise ValueError(f"traits {entry.traits}, expected some of {', '.join(TRAITS)}")
            entries.append(entry)
    return header, entries


@lru_cache(maxsize=64)
def _opened(path: Path, of: str) -> IO[bytes]:
    return path.open("rb", buffering=0)


def extent(path: Path, offset: int, size: int, of: str) -> Extent:
    """``size`` bytes of a shard from ``offset`` on, fewer where it ends before: only what is decoded is read. The file stays
    open for the set whose digest is ``of``."""
    file = _opened(path, of)
    return Extent(file, offset, max(0, min(size, os.fstat(file.fileno()).st_size - offset)))


class Names(Sequence[str]):
    """N short texts in two arrays: ``blob`` uint8, their bytes end to end, and ``end_N`` int64 (N,), where each ends.

    They take the memory of their letters alone, in each worker too."""

    def __init__(self, blob: np.ndarray, end_N: np.ndarray):
        self._blob, self._end_N = blob, end_N

    @classmethod
    def joined(cls, parts: Sequence[Names]) -> Names:
        before = np.cumsum([0, *(len(part._blob) for part in parts[:-1])])
        ends = [part._end_N + first for part, first in zip(parts, before, strict=True)]
        return cls(np.concatenate([part._blob for part in parts]), np.concatenate(ends))

    @classmethod
    def of(cls, texts: Sequence[str]) -> Names:
        ends = np.cumsum([len(text.encode()) for text in texts], dtype=np.int64)
        return cls(np.frombuffer("".join(texts).encode(), np.uint8), ends)

    def __len__(self) -> int:
        return len(self._end_N)

    def __getitem__(self, number: Any) -> Any:
        at = range(len(self))[number]  # negative numbers, and IndexError where there is no such text
        text: bytes = self._blob[self._end_N[at - 1] if at else 0 : self._end_N[at]].tobytes()
        return text.decode(errors="replace")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    @cached_property
    def _small(self) -> np.ndarray:
        """The bytes of all with small letters in the place of ASCII's large ones."""
        return np.frombuffer(self._blob.tobytes().lower(), np.uint8)

    def containing(self, text: str) -> np.ndarray:
        """Which of them have ``text`` in them; large ASCII letters are small ones. bool (N,)."""
        wanted, small = np.frombuffer(text.encode().lower(), np.uint8), self._small
        if not len(wanted):
            return np.ones(len(self), bool)
        last = max(0, len(small) - len(wanted) + 1)
        is_first = np.ones(last, bool)
        for further, letter in enumerate(wanted[:3]):
            is_first &= small[further : further + last] == letter
        first = np.flatnonzero(is_first)  # few, each of which is looked at
        for further, letter in enumerate(wanted[3:], 3):
            first = first[small[first + further] == letter]
        of = np.searchsorted(self._end_N, first, side="right")
        found = np.zeros(len(self), bool)
        found[of[first + len(wanted) <= self._end_N[of]]] = True  # not across the end of one
        return found

    @property
    def columns(self) -> dict[str, np.ndarray]:
        return {"keys": self._blob, "key_ends": self._end_N}


def content_id(content: str | None) -> int:
    """The 63-bit number of a source's content, -1 where it is not known."""
    return -1 if content is None else int(content[:16], 16) >> 1


def pack_columns(entries: Sequence[Entry], splits: Sequence[str], kinds: Sequence[str]) -> bytes:
    """``index.npz`` of a set: every shard's index joined, as columns; an optional one where it says something. It is not
    compressed, so that the same set gives the same bytes with any version of zlib."""
    columns = {
        **Names.of([entry.key for entry in entries]).columns,
        "size": np.array([entry.size for entry in entries], "<i8"),
        "crc32": np.array([entry.crc32 for entry in entries], "<u4"),
        "frames": np.array([entry.frames for entry in entries], "<i8"),
        "fps": np.array([entry.fps for entry in entries], "<f8"),
        "video": np.array([video_id(entry.video) for entry in entries], "<i8"),
        "labels": np.array([[entry.labels.get(kind, -1) for entry in entries] for kind in kinds], "<i8").reshape(
            len(kinds), len(entries)
        ),
        "splits": np.array([[split in entry.splits for entry in entries] for split in splits], "|u1").reshape(
            len(splits), len(entries)
        ),
    }
    if any(entry.cuts for entry in entries):
        columns["cuts"] = np.array([len(entry.cuts) for entry in entries], "<i8")
    paths = [SPAN.sub("", entry.video) for entry in entries]
    if any(path != entry.video for path, entry in zip(paths, entries, strict=True)):
        columns["path"] = np.array([video_id(path) for path in paths], "<i8")
    if any(entry.motion is not None for entry in entries):
        columns["motion"] = np.array([math.nan if entry.motion is None else entry.motion for entry in entries], "<f8")
    if any(entry.content is not None for entry in entries):
        columns["content"] = np.array([content_id(entry.content) for entry in entries], "<i8")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, column in columns.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), pack_array(column))  # ZipInfo's date is a constant
    return out.getvalue()


def parse_columns(data: bytes, samples: int, splits: int, kinds: int, name: str) -> dict[str, np.ndarray]:
    """The columns of ``index.npz`` by name, as views of ``data``; raises FormatError where one is not as large as the manifest
    implies."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "key_ends": ("<i8", (samples,)),
        "size": ("<i8", (samples,)),
        "crc32": ("<u4", (samples,)),
        "frames": ("<i8", (samples,)),
        "fps": ("<f8", (samples,)),
        "video": ("<i8", (samples,)),
        "labels": ("<i8", (kinds, samples)),
        "splits": ("|u1", (splits, samples)),
    }
    columns = {}
    with (
        parsing(name, "a set's index", "write it anew with python -m preprocess merge", FormatError),
        zipfile.ZipFile(io.BytesIO(data)) as archive,
    ):

        def column(field: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
            info = archive.getinfo(f"{field}.npy")
            if info.compress_type != zipfile.ZIP_STORED:
                raise FormatError(f"{name}: {field} is packed, expected it stored")
            start = info.header_offset + 30 + sum(struct.unpack_from("<HH", data, info.header_offset + 26))  # name, extra
            return parse_array(memoryview(data)[start : start + info.file_size], dtype, shape, f"{name}: {field}")

        there = set(archive.namelist())
        shapes |= {field: (dtype, (samples,)) for field, dtype in OPTIONAL_COLUMNS.items() if f"{field}.npy" in there}
        for field, (dtype, shape) in shapes.items():
            columns[field] = column(field, dtype, shape)
        ends = columns["key_ends"]
        if np.any(np.diff(ends, prepend=0) < 1) or np.any(columns["size"] < 1) or np.any(columns["frames"] < 1):
            raise FormatError(f"{name}: a key, size or number of frames below 1")
        if "cuts" in columns and np.any((columns["cuts"] < 0) | (columns["cuts"] >= columns["frames"])):
            raise FormatError(f"{name}: a number of cuts that is none of 0 to the frames")
        if "motion" in columns and np.any((columns["motion"] < 0) | np.isinf(columns["motion"])):
            raise FormatError(f"{name}: a motion below 0 or beyond all numbers")
        columns["keys"] = column("keys", "|u1", (int(ends[-1]) if samples else 0,))
    return columns


class ShardSet:
    """An opened set, on this machine or behind a URL: its manifest and one row of plain numbers a sample (numpy columns, in
    shard order). It takes two reads, of ``manifest.json`` and ``index.npz``, and a look at the shards' sizes.

    Args:
        root: a folder, ``http(s)://...`` or ``s3://bucket/prefix``.
        keep_damaged: open the set although a shard is missing or has another size (reading a sample that is not there then
            raises FormatError). Otherwise InputError names the first such shard, with what was found and expected.

    Attributes:
        keys: N names. shard_N, offset_N, size_N, frames_N: int64 (N,). crc32_N uint32 (N,). fps_N float64 (N,).
        video_N: int64 (N,), the 63-bit id of the video that a sample is (a segment of): :func:`dclr.record.video_id`.
        path_N: int64 (N,), that of the file that it was made of, which several videos may be parts of.
        motion_N: float64 (N,), its mean motion energy, NaN where the index does not say. content_N: int64 (N,), the same for
        the same packets under two paths, -1 where the index does not say. cuts_N: int64 (N,), the number of cuts in it.
        tars: its shards. classes: kind of label -> class names. labels: kind -> int64 (N,), -1 where unlabelled.
        first_S, roots: the first sample of each of the sets that it is, and where they lie: here 0 and ``root``.
        damaged: the error of each shard that ``keep_damaged`` let pass.
        digest: the manifest's sha256 as hex digits, which stands for every byte of the set.
    """

    def __init__(self, root: str | Path | Folder, keep_damaged: bool = False):
        self.root = root if isinstance(root, Folder) else open_folder(root)
        data, before = None, b""
        while data is None:
            text = self._manifest_text()
            self.manifest = Manifest.loads(text.decode(errors="replace"), f"{self.root}/{MANIFEST}")
            data = self._index(again=text != before)
            before = text
        self.digest = hashlib.sha256(text).hexdigest()
        self.tars, self.classes = self.manifest.shards, self.manifest.classes
        self.first_S, self.roots = np.zeros(1, np.int64), [self.root]
        counts = len(self.manifest.splits), len(self.manifest.classes)
        columns = parse_columns(data, self.manifest.samples, *counts, f"{self.root}/{INDEX}")
        self.keys = Names(columns["keys"], columns["key_ends"])
        self.size_N, self.frames_N, self.fps_N = columns["size"], columns["frames"], columns["fps"]
        self.crc32_N, self.video_N = columns["crc32"], columns["video"]
        self.path_N = columns.get("path", self.video_N)
        self.motion_N = columns.get("motion", np.full(len(self.keys), np.nan))
        self.content_N = columns.get("content", np.full(len(self.keys), -1))
        self.cuts_N = columns.get("cuts", np.zeros(len(self.keys), np.int64))
        self.labels = dict(zip(self.manifest.classes, columns["labels"], strict=True))
        self._splits = dict(zip(self.manifest.splits, columns["splits"], strict=True))  # uint8 (N,), 1 for its samples
        count_S = [shard.samples for shard in self.manifest.shards]
        self.shard_N = np.repeat(np.arange(len(count_S)), count_S)
        self.offset_N = np.cumsum(self.size_N) - self.size_N  # samples lie end to end, from byte 0 of their shard on
        self.offset_N -= np.repeat(self.offset_N[np.cumsum(count_S) - count_S], count_S)
        self.damaged = self._check()
        if self.damaged and not keep_damaged:
            without = "train_pretrain.py and train_eval.py go on without it by --on-error skip"
            raise InputError(f"{self.damaged[0]}: copy the shard again; {without}")

    def _manifest_text(self) -> bytes:
        try:
            return read_manifest(self.root)
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{self.root}: no {MANIFEST} there; make a shard set with python -m preprocess") from None

    def _index(self, again: bool) -> bytes | None:
        """``index.npz``, in memory: a file that is mapped and then cut short by a copy ends the process. With ``again`` None
        where it is another than the manifest says: both may just have been written anew."""
        manifest, name, wanted = self.manifest, f"{self.root}/{INDEX}", self.manifest.index_sha256
        each = COLUMNS_BYTES + KEY_BYTES + 8 * len(manifest.classes) + len(manifest.splits)
        most, what = manifest.samples * each + (1 << 16), f"the index of {manifest.samples} samples"  # and the zip's own
        try:
            data = self.root.read_whole(INDEX, most, what)
        except FileNotFoundError:
            raise InputError(f"{name} is missing, though {MANIFEST} lists it: copy the whole set again") from None
        digest = hashlib.sha256(data).hexdigest()
        if digest != wanted and SHA256.fullmatch(wanted):
            with suppress(FileNotFoundError):  # a change of the set was stopped between its two files
                data = self.root.read_whole(old_index(wanted), most, what)
                digest = hashlib.sha256(data).hexdigest()
        if digest == wanted:
            return data
        if again:
            return None
        raise InputError(
            f"{name}: sha256 is {digest}, {MANIFEST} says {wanted}: copy both again, or write both anew with "
            "python -m preprocess merge"
        )

    def _check(self) -> list[str]:
        """The errors of shards that are missing or have another size, so that they are named now and not in the middle of an
        epoch. A web server cannot list its files in few requests; there each sample's crc32 tells."""
        names = [shard.name for shard in self.manifest.shards]
        sizes: Mapping[str, int | None] = {}
        if not isinstance(self.root, RemoteFolder):
            sizes = {name: self.root.size(name) for name in names}
        elif self.root.listable:
            sizes = self.root.files()
        else:
            return []
        return [
            f"{self.root}/{shard.name} "
            + ("is missing" if sizes.get(shard.name) is None else f"has {sizes[shard.name]} bytes")
            + f", {MANIFEST} says {shard.bytes} bytes"
            for shard in self.manifest.shards
            if sizes.get(shard.name) != shard.bytes
        ]

    def where(self, sample: int) -> tuple[str, int, int]:
        """(shard's file name, offset, size) of a sample's bytes."""
        return self.tars[self.shard_N[sample]].name, int(self.offset_N[sample]), int(self.size_N[sample])

    def folder(self, sample: int) -> Folder:
        """Where the sample's shard lies."""
        return self.roots[int(np.searchsorted(self.first_S, sample, side="right")) - 1]

    @property
    def remote(self) -> bool:
        """Whether any of it lies behind a URL."""
        return any(isinstance(root, RemoteFolder) for root in self.roots)

    def read(self, sample: int) -> Record:
        """One sample; raises FormatError naming the shard and the key, with what was found and expected."""
        folder = self.folder(sample)
        if isinstance(folder, RemoteFolder):
            return self.record(sample, self.fetch(sample))
        name, offset, size = self.where(sample)
        try:
            return self.record(sample, extent(Path(folder.place, name), offset, size, self.digest))
        except OSError as error:
            raise self.damage(sample, error.strerror or str(error)) from None

    def fetch(self, sample: int) -> bytes:
        """A sample's bytes from a set behind a URL, with the right crc32; raises InputError naming the shard."""
        folder = self.folder(sample)
        assert isinstance(folder, RemoteFolder)

        def check(data: bytes) -> None:
            if (crc32 := zlib.crc32(data)) != self.crc32_N[sample]:
                raise self.damage(sample, f"crc32 is {crc32}, {self.crc32_N[sample]} expected")

        try:
            return folder.read(*self.where(sample), check)
        except FileNotFoundError:
            raise self.damage(sample, "the shard is missing") from None

    def record(self, sample: int, data: bytes | memoryview | Extent) -> Record:
        """The sample that these bytes are, checked; raises FormatError naming the shard and the key."""
        try:
            if len(data) != self.size_N[sample]:
                raise FormatError(f"{len(data)} bytes found, {self.size_N[sample]} expected")
            record = unpack(data)
            if record.key != self.keys[sample]:
                raise FormatError(f"sample {record.key!r} found")
        except FormatError as error:
            raise self.damage(sample, str(error)) from None
        return record

    def damage(self, sample: int, why: str) -> FormatError:
        """The error that names a sample's place."""
        return FormatError(f"{self.place(sample)}: {why}; the shard is damaged, copy it again")

    def place(self, sample: int) -> str:
        """A sample's shard, key and byte, for messages."""
        name, offset, _ = self.where(sample)
        return f"{self.folder(sample)}/{name}, sample {self.keys[sample]!r} at byte {offset}"

    def __len__(self) -> int:
        return len(self.keys)

    def __str__(self) -> str:
        return ", ".join(map(str, self.roots))

    @property
    def seconds_N(self) -> np.ndarray:
        """How long each sample is, float64 (N,)."""
        return self.frames_N / np.where(self.fps_N > 0, self.fps_N, DEFAULT_FPS)

    @property
    def splits(self) -> list[str]:
        """The splits that have samples."""
        return [split for split, row in self._splits.items() if row.any()]

    def numbers(self, of_S: Sequence[np.ndarray]) -> np.ndarray:
        """Samples of each of the sets that it is, by their numbers there, as numbers here: int64 (n,)."""
        return np.concatenate([first + of for first, of in zip(self.first_S, of_S, strict=True)])

    def select(self, splits: Sequence[str]) -> np.ndarray:
        """Indices of the samples in any of these splits, ascending, each once: int64 (n,). Raises InputError for a split
        that the set does not have or that is empty."""
        chosen = np.zeros(len(self), np.uint8)
        for split in splits:
            if split not in self.splits:
                have = ", ".join(f"{name} ({row.sum()})" for name, row in self._splits.items()) or "none"
                raise InputError(f"no split {split!r} in {self.root}; it has: {have}")
            chosen |= self._splits[split]
        return np.flatnonzero(chosen)

    def kind(self, wanted: str | None = None) -> str:
        """The name of a kind of label, checked (default: the set's first); raises InputError listing those it has."""
        kinds = list(self.classes)
        if wanted is None and kinds:
            return kinds[0]
        if wanted not in kinds:
            if not kinds:
                raise InputError(f"{self} has no labels: make a set with labels, such as of class folders (preprocess folder)")
            raise InputError(f"no label {wanted!r} in {self}; it has: {', '.join(kinds)}")
        return wanted


def require_size(shards: ShardSet, clip_size: int) -> None:
    """Refuse a crop that is larger than the stored frames."""
    stored: Mapping[str, Any] = shards.manifest.options
    if clip_size > stored["size"]:
        raise InputError(
            f"clip size {clip_size} is above the stored short side {stored['size']} of {shards.root}: "
            f"use -cs {stored['size']} or less, or python -m preprocess with --size {clip_size} or more"
        )


def require_cue(shards: ShardSet, cue: str) -> None:
    """Refuse a set that was made without a motion cue."""
    have = shards.manifest.options.get("cues", [])
    if cue not in have:
        raise InputError(
            f"{shards.root} holds no cue {cue!r} (it has: {', '.join(have) or 'none'}): "
            f"python -m preprocess add-cues {shards.root} --cues {cue} adds it"
        )
