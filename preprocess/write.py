"""Write finished samples as one shard, whole or not at all: temporary name, fsync, rename.

The shard's failures follow, and its index last: a shard counts only with its index.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from dclr.data.manifest import Entry, Header, read_index
from dclr.errors import InputError
from dclr.parse import from_json, parsing
from dclr.record import BLOCK, SampleMeta, array_name, mean_motion, parse_array
from dclr.storage import Folder, RemoteFolder
from preprocess.plan import PLAN_BYTES, Failure, Job
from preprocess.transcode import SPOOL

PIECE = 1 << 20


def read_failures(folder: Folder, name: str) -> list[Failure]:
    """The lines of a failures file; raises InputError naming the line."""
    failures = []
    for number, line in enumerate(folder.read_whole(name, PLAN_BYTES, "failures").splitlines(), 1):
        if not line:
            continue
        with parsing(f"{folder}/{name}, line {number}", "a failure", "remove the line"):
            failures.append(from_json(line, Failure))
    return failures


@dataclass(frozen=True)
class Part:
    """Where one finished sample lies in :class:`Made`'s bytes: its ``key``, ``size``, ``crc32``, ``KEY.json``, mean motion."""

    key: str
    size: int
    crc32: int
    meta: SampleMeta
    motion: float | None


@dataclass(frozen=True)
class Made:
    """The samples of one video: their tar bytes, in a file where the video is long, and where each sample lies in them."""

    parts: list[Part]
    data: bytes | Path

    def pieces(self) -> Iterable[bytes]:
        if isinstance(self.data, bytes):
            yield self.data
            return
        with self.data.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece

    def discard(self) -> None:
        if isinstance(self.data, Path):
            self.data.unlink(missing_ok=True)


class MadeWriter:
    """Samples in, a :class:`Made` out; its bytes move to a file in ``spool`` once they are many."""

    def __init__(self, spool: Path):
        self._spool = spool
        self._memory: list[bytes | memoryview] = []
        self._path: Path | None = None
        self._size = 0
        self._parts: list[Part] = []

    def add(self, key: str, pieces: Iterable[bytes | memoryview], meta: SampleMeta, motion: float | None) -> None:
        """Append one sample (:func:`dclr.record.pack`)."""
        size = crc32 = 0
        for piece in pieces:
            self._memory.append(piece)
            size, crc32 = size + len(piece), zlib.crc32(piece, crc32)
            self._size += len(piece)
            if self._size > SPOOL:
                self._flush()
        self._parts.append(Part(key, size, crc32, meta, motion))

    def _flush(self) -> None:
        if self._path is None:
            handle, name = tempfile.mkstemp(".tmp", "made-", self._spool)
            os.close(handle)
            self._path = Path(name)
        with self._path.open("ab") as file:
            file.writelines(self._memory)
        self._memory = []

    def finish(self) -> Made:
        if self._path is not None:
            self._flush()
        return Made(self._parts, self._path or b"".join(self._memory))

    def discard(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)


class ShardWriter:
    """Finished videos in, one tar, its failures and its index out. Nothing stands under a final name before :meth:`close`."""

    def __init__(self, out: Folder, staging: Path, job: Job):
        self._out, self._job = out, job
        self._temporary = staging / f".{job.name}.{uuid4().hex}.tmp"
        self._file = self._temporary.open("xb")
        self._sha256 = hashlib.sha256()
        self._bytes = 0
        self._entries: list[Entry] = []
        self._failures = list(job.failures)

    def add(self, made: Made) -> None:
        """Append a video's samples."""
        offset = self._bytes
        for part in made.parts:
            self._entries.append(Entry.of(part.meta, part.key, offset, part.size, part.crc32, part.motion))
            offset += part.size
        for piece in made.pieces():
            self._write(piece)
        made.discard()

    def fail(self, failure: Failure) -> None:
        self._failures.append(failure)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._bytes += len(data)

    def close(self) -> None:
        """Finish the tar and give it its name; no tar where no sample was added. The index comes last."""
        tar, name = f"{self._job.name}.tar", self._job.name
        try:
            if self._entries:
                self._write(bytes(2 * BLOCK))  # tar's end
                self._file.flush()
                self._out.put(tar, self._temporary)
        finally:
            self.abandon()
        if self._failures:
            self._out.write(failures_name(name), "".join(f.dumps() + "\n" for f in self._failures).encode())
        digest = self._sha256.hexdigest() if self._entries else ""
        header = Header(tar, len(self._entries), self._bytes, digest, self._job.recipe)
        write_index(self._out, name, header, self._entries)

    def abandon(self) -> None:
        """Leave no temporary file behind."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def write_index(out: Folder, shard: str, header: Header, entries: Sequence[Entry]) -> None:
    out.write(index_name(shard), "\n".join([header.dumps(), *(entry.dumps() for entry in entries), ""]).encode())


def add_motion(out: Folder, shard: str) -> None:
    """Write a shard's index anew with the mean motion of its samples, where it lacks that and they have the cue energy."""
    header, entries = read_index(out, index_name(shard))
    lacking = {entry.key: place for place, entry in enumerate(entries) if entry.motion is None}
    if not lacking:
        return
    try:
        with out.local(header.shard) as path, tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                if extension == array_name("energy") and key in lacking and (file := tar.extractfile(member)):
                    entry = entries[lacking[key]]
                    energy_N = parse_array(file.read(), "<f4", (entry.frames,), member.name)
                    entries[lacking[key]] = replace(entry, motion=mean_motion(energy_N))
    except (tarfile.TarError, ValueError) as error:
        raise InputError(f"{out}/{header.shard}: {error}; the shard is damaged, copy it again") from None
    write_index(out, shard, header, entries)


def index_name(shard: str) -> str:
    return f"{shard}.jsonl"


def failures_name(shard: str) -> str:
    return f"{shard}.failures.jsonl"


def sha256_of(folder: Folder, name: str) -> str:
    """Hash of a whole file, read in pieces."""
    digest = hashlib.sha256()
    with folder.local(name) as path, path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def done(out: Folder, shard: str, recipe: str, sizes: dict[str, int], read: bool = True) -> bool:
    """Whether a shard is finished: its index names this recipe and its bytes are those that the index says.

    ``sizes`` is the listing of ``out``. The bytes themselves are hashed where ``read`` is set and the folder is local; an
    object in storage is whole or absent, so its size is enough (``verify`` reads it).
    """
    if index_name(shard) not in sizes:
        return False
    try:
        header, entries = read_index(out, index_name(shard))
    except InputError:
        return False
    if header.recipe != recipe or header.samples != len(entries):
        return False
    if not entries:
        return True
    if sizes.get(f"{shard}.tar") != header.bytes:
        return False
    return not read or isinstance(out, RemoteFolder) or sha256_of(out, f"{shard}.tar") == header.sha256


def clean(out: Folder, shards: Sequence[str], everything: bool) -> None:
    """Remove what a killed run left of these shards: temporary files, and with ``everything`` all temporary files and the
    shards that are none of ``shards``."""
    ours = set(shards)
    for name in out.top():
        stem = name.lstrip(".").partition(".")[0]
        temporary = name.startswith(".") and name.endswith(".tmp") and (everything or stem in ours)
        stray = everything and name.startswith("shard-") and name.endswith((".tar", ".jsonl")) and stem not in ours
        if temporary or stray:
            out.remove(name)
