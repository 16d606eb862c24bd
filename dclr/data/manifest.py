"""What is in a shard set, without opening a shard: the manifest, one index beside each shard, samples by offset.

A set is a folder::

    manifest.json         :class:`Manifest`: shards, counts, bytes, sha256, class names, options
    shard-000000.tar      samples back to back (dclr/record.py)
    shard-000000.jsonl    :class:`Header`, then an :class:`Entry` a sample: key, offset, size, crc32, label, splits, ...
    failures.jsonl        videos that are not in the set, one line each, with the reason

It may lie in object storage (dclr/storage.py).
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dclr.errors import InputError
from dclr.record import VERSION, FormatError, Record, unpack
from dclr.storage import Folder, RemoteFolder, open_folder

MANIFEST = "manifest.json"
FAILURES = "failures.jsonl"
SHARD_NAME = re.compile(r"[A-Za-z0-9_-]+\.tar")  # a manifest is hostile input: no path escapes the set's folder


@dataclass(frozen=True)
class Shard:
    """One tar: ``name`` in the set's folder, its ``samples`` and ``bytes``, the ``sha256`` of the whole file."""

    name: str
    samples: int
    bytes: int
    sha256: str

    @property
    def index_name(self) -> str:
        return self.name.removesuffix(".tar") + ".jsonl"


@dataclass(frozen=True)
class Manifest:
    """The set as a whole. ``classes`` maps each kind of label to its class names, the default kind first."""

    dataset: str
    shards: tuple[Shard, ...]
    splits: dict[str, int]  # split -> samples in it
    classes: dict[str, list[str]]
    options: dict[str, Any]  # what the set was made with: size, quality, ...
    failures: dict[str, int]  # stage -> videos that are not in the set
    version: int = VERSION

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    def dumps(self) -> str:
        """JSON text; the same set gives the same bytes."""
        totals = {"samples": self.samples, "bytes": sum(shard.bytes for shard in self.shards)}
        return json.dumps(dataclasses.asdict(self) | totals, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def loads(cls, text: str, name: str = MANIFEST) -> Manifest:
        """Parse and check; raises InputError naming the file and the field."""
        try:
            found = json.loads(text)
            if found["version"] != VERSION:
                raise InputError(
                    f"{name}: format version {found['version']!r}, this code reads version {VERSION}: "
                    "make the shards again with python -m preprocess"
                )
            shards = tuple(Shard(s["name"], int(s["samples"]), int(s["bytes"]), s["sha256"]) for s in found["shards"])
            manifest = cls(
                shards=shards, **{key: found[key] for key in ("dataset", "splits", "classes", "options", "failures")}
            )
            for shard in shards:
                if not SHARD_NAME.fullmatch(shard.name):
                    raise InputError(f"{name}: shard name {shard.name!r}, expected {SHARD_NAME.pattern}")
            for field, value in (("splits", manifest.splits), ("classes", manifest.classes), ("options", manifest.options)):
                if not isinstance(value, dict):
                    raise TypeError(f"{field} is {value!r}")
            int(manifest.options["size"])
        except InputError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(
                f"{name}: not a shard set's manifest ({type(error).__name__}: {error}); see shards/README.md"
            ) from None
        return manifest


@dataclass(frozen=True)
class Header:
    """First line of a shard's index: the ``shard`` it belongs to, what the tar must be, and the ``recipe`` (hash of videos and
    options) that it was made by. A shard without samples has no tar."""

    shard: str
    samples: int
    bytes: int
    sha256: str
    recipe: str
    version: int = VERSION

    def dumps(self) -> str:
        return json.dumps(dataclasses.asdict(self))


@dataclass(frozen=True, slots=True)
class Entry:
    """A further line of a shard's index: where a sample lies in the tar and what is needed to choose it."""

    key: str
    offset: int  # of the sample's first tar header, in bytes
    size: int  # of all its members, headers and padding included
    crc32: int  # of those bytes
    label: int | None  # of the default kind; None where the set has no labels
    labels: dict[str, int]
    splits: list[str]
    frames: int
    fps: float  # 0 where the source does not say
    video: str  # the video's id; segments of one video share it

    def dumps(self) -> str:
        return json.dumps({field: getattr(self, field) for field in self.__slots__}, ensure_ascii=False)


def read_index(folder: Folder, name: str) -> tuple[Header, list[Entry]]:
    """One shard's index; raises InputError naming the file and line."""
    lines = folder.read(name).decode(errors="replace").splitlines()
    entries: list[Entry] = []
    number = 1
    try:
        header = Header(**json.loads(lines[0] if lines else ""))
        if header.version != VERSION or not isinstance(header.recipe, str):
            raise TypeError(f"format version {header.version!r}, this code reads version {VERSION}")
        for number, line in enumerate(lines[1:], 2):  # noqa: B007
            entry = Entry(**json.loads(line))
            numbers = (entry.offset, entry.size, entry.frames, *entry.labels.values())
            if not isinstance(entry.key, str) or not isinstance(entry.video, str):
                raise TypeError(f"key {entry.key!r}, video {entry.video!r}")
            if not all(isinstance(n, int) and n >= 0 for n in numbers):
                raise TypeError(f"numbers {numbers}")
            entries.append(entry)
    except (TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{folder}/{name}, line {number}: not an index entry: {error}") from None
    return header, entries


@lru_cache(maxsize=64)
def _mapped(path: Path) -> mmap.mmap:
    """A shard in memory-mapped form; only the pages that are decoded are read."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class ShardSet:
    """An opened set, local or in object storage: its manifest and one row of plain numbers a sample (numpy columns, in shard
    order).

    Attributes:
        keys: N names. video_N: N ids of videos. shard_N, offset_N, size_N, frames_N: int64 (N,). fps_N: float64 (N,).
        labels: kind -> int64 (N,), -1 where unlabelled.
    """

    def __init__(self, root: str | Path | Folder):
        self.root = root if isinstance(root, Folder) else open_folder(root)
        path = f"{self.root}/{MANIFEST}"
        if self.root.size(MANIFEST) is None:
            raise InputError(f"{self.root}: no {MANIFEST} there; make a shard set with python -m preprocess")
        self.manifest = Manifest.loads(self.root.read(MANIFEST).decode(errors="replace"), path)
        self.keys: list[str] = []
        self.video_N: list[str] = []
        rows: list[tuple[int, int, int, int]] = []
        fps: list[float] = []
        labels: dict[str, list[int]] = {kind: [] for kind in self.manifest.classes}
        self._splits: dict[str, list[int]] = {split: [] for split in self.manifest.splits}
        sizes = self._sizes()
        quiet = os.environ.get("LOCAL_RANK", "0") != "0"
        opening = tqdm(self.manifest.shards, "opening", unit="shard", leave=False, delay=1, disable=quiet)
        for number, shard in enumerate(opening):
            self._check(shard, sizes)
            for entry in read_index(self.root, shard.index_name)[1]:
                for split in entry.splits:
                    self._splits.setdefault(split, []).append(len(self.keys))
                for kind, column in labels.items():
                    column.append(entry.labels.get(kind, -1))
                self.keys.append(entry.key)
                self.video_N.append(entry.video)
                fps.append(entry.fps)
                rows.append((number, entry.offset, entry.size, entry.frames))
            if len(self.keys) != sum(s.samples for s in self.manifest.shards[: number + 1]):
                raise InputError(
                    f"{self.root}/{shard.index_name}: its entries are not the {shard.samples} samples that {path} counts"
                )
        self.shard_N, self.offset_N, self.size_N, self.frames_N = np.array(rows, np.int64).reshape(-1, 4).T
        self.fps_N = np.array(fps, np.float64)
        self.labels = {kind: np.array(column, np.int64) for kind, column in labels.items()}

    def _sizes(self) -> dict[str, int | None]:
        """Bytes of every shard and index: one listing of a remote folder, a look at each file of a local one."""
        names = [name for shard in self.manifest.shards for name in (shard.name, shard.index_name)]
        if isinstance(self.root, RemoteFolder):
            found = self.root.files()
            return {name: found.get(name) for name in names}
        return {name: self.root.size(name) for name in names}

    def _check(self, shard: Shard, sizes: Mapping[str, int | None]) -> None:
        """A shard that is missing or has another size is named now, not in the middle of an epoch."""
        for name in (shard.name, shard.index_name):
            if sizes[name] is None:
                raise InputError(f"{self.root}/{name} is missing, though {MANIFEST} lists it: copy the whole set again")
        found = sizes[shard.name]
        if found != shard.bytes:
            raise InputError(f"{self.root}/{shard.name}: {found} bytes, {MANIFEST} says {shard.bytes}: copy the shard again")

    def read(self, sample: int) -> Record:
        """One sample; raises FormatError naming the shard and the key. A local shard is mapped, not copied."""
        name = self.manifest.shards[self.shard_N[sample]].name
        offset, size = int(self.offset_N[sample]), int(self.size_N[sample])
        try:
            if isinstance(self.root, RemoteFolder):
                record = unpack(self.root.read(name, offset, size))
            else:
                record = unpack(memoryview(_mapped(Path(self.root.place, name)))[offset : offset + size])
            if record.key != self.keys[sample]:
                raise FormatError(f"found sample {record.key!r}")
        except FormatError as error:
            where = f"{self.root}/{name}, sample {self.keys[sample]!r} at byte {offset}"
            raise FormatError(f"{where}: {error}; the shard is damaged, copy it again") from None
        return record

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, splits: Sequence[str]) -> np.ndarray:
        """Indices of the samples in any of these splits, ascending, each once: int64 (n,). Raises InputError for a split
        that the set does not have or that is empty."""
        for split in splits:
            if not self._splits.get(split):
                have = ", ".join(f"{name} ({len(members)})" for name, members in self._splits.items()) or "none"
                raise InputError(f"no split {split!r} in {self.root}; it has: {have}")
        return np.unique(np.concatenate([np.array(self._splits[split], np.int64) for split in splits]))

    def kind(self, wanted: str | None = None) -> str:
        """The name of a kind of label, checked (default: the set's first); raises InputError listing those it has."""
        kinds = list(self.manifest.classes)
        if wanted is None and kinds:
            return kinds[0]
        if wanted not in kinds:
            have = ", ".join(kinds) or "none: it is unlabelled"
            raise InputError(f"no label {wanted or 'at all'!r} in {self.root}; it has: {have}")
        return wanted


def split_list(text: str) -> tuple[str, ...]:
    """``"train01,train02"`` -> ``("train01", "train02")``: how the command line names splits."""
    splits = tuple(part.strip() for part in text.split(",") if part.strip())
    if not splits:
        raise InputError(f"split {text!r}: expected names with commas between them, such as train01,train02")
    return splits


def require_size(shards: ShardSet, clip_size: int) -> None:
    """Refuse a crop that is larger than the stored frames."""
    stored: Mapping[str, Any] = shards.manifest.options
    if clip_size > stored["size"]:
        raise InputError(
            f"clip size {clip_size} is above the stored short side {stored['size']} of {shards.root}: "
            f"use -cs {stored['size']} or less, or make the shards again with --size {clip_size} or more"
        )


def require_cue(shards: ShardSet, cue: str) -> None:
    """Refuse a set that was made without a motion cue."""
    have = shards.manifest.options.get("cues", [])
    if cue not in have:
        raise InputError(
            f"{shards.root} holds no cue {cue!r} (it has: {', '.join(have) or 'none'}): "
            f"make the shards again with --cues {','.join([*have, cue])}"
        )
