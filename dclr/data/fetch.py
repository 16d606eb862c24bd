"""Read the samples of a set behind a URL: in byte ranges, ahead of their use, checked, and cached on disk if wanted.

One sample is one byte range of its shard. Neighbours that are wanted together are one request. So an epoch transfers the bytes
of the samples that it selects, on any number of ranks. :data:`AHEAD` bounds what is fetched ahead.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dclr.data.manifest import ShardSet
from dclr.errors import InputError, Unreachable
from dclr.patience import threads
from dclr.record import Record, glance
from dclr.storage import RemoteFolder

Row = list[tuple[int, int]]  # one batch: (pass over the set, sample index)

AHEAD = 64 * 2**20  # bytes of samples that a worker has asked for and not used yet (at least two batches of them)
MERGED = 8 * 2**20  # the longest request that joins neighbours
CONNECTIONS = 16  # requests of one worker at a time
PICTURE_SECONDS = 10.0  # seconds in which the frames of a picture must come


class Cache:
    """Samples of remote sets on this machine's disk, shared by all ranks and workers here without harm.

    A sample is one file, ``DIR/<shard's sha256>/<offset>``, that appears whole. Its crc32 is checked at every use.

    ``DIR/used`` holds the number of bytes in use. A writer locks it and raises it before the sample's file gets its name. So
    after a kill the number may be too high, never too low.

    A full cache deletes shards of other sets, the oldest first, and then keeps no more samples. An epoch reads every sample
    once, so samples that stay serve more reads than samples that replace each other.

    Raises InputError where ``place`` cannot be a folder that is written to.
    """

    def __init__(self, place: Path, limit: int):
        self.place, self.limit, self.full = place, limit, False
        if limit < 1:
            raise InputError(f"--cache-size {limit / 1e9:g}: expected gigabytes above 0")
        try:
            place.mkdir(parents=True, exist_ok=True)
            with self._locked():
                pass
        except OSError as error:
            raise InputError(f"--cache {place}: cannot be written to ({error.strerror}); name another folder") from None

    def _path(self, shards: ShardSet, sample: int) -> Path:
        shard = shards.tars[shards.shard_N[sample]]
        return self.place / shard.sha256[:32] / str(shards.offset_N[sample])

    def has(self, shards: ShardSet, sample: int) -> bool:
        return self._path(shards, sample).exists()

    def read(self, shards: ShardSet, sample: int) -> bytes | None:
        """The sample's bytes; None where the cache lacks them or their crc32 is wrong."""
        path = self._path(shards, sample)
        with suppress(OSError):
            data = path.read_bytes()
            if zlib.crc32(data) == shards.crc32_N[sample]:
                return data
            path.unlink()
        return None

    def write(self, shards: ShardSet, sample: int, data: bytes | memoryview) -> None:
        """Keep a sample if there is room. Trouble with the disk costs the cache, not the run."""
        if self.full:
            return
        path = self._path(shards, sample)
        try:
            with self._locked() as file:
                if path.exists():
                    return
                text = os.pread(file, 20, 0)
                used = int(text) if text.isdigit() else 0
                if used + len(data) > self.limit:
                    used = self._make_room(shards, len(data))
                self.full = used + len(data) > self.limit
                os.pwrite(file, b"%020d" % (used + (0 if self.full else len(data))), 0)
                if not self.full:
                    path.parent.mkdir(exist_ok=True)
                    temporary = path.with_suffix(".tmp")
                    temporary.write_bytes(data)
                    temporary.replace(path)
        except OSError as error:
            self.full = True
            print(f"--cache {self.place}: {error.strerror}; going on without keeping more", file=sys.stderr)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """``DIR/used``, open, while no other process or thread has it."""
        file = os.open(self.place / "used", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def _make_room(self, shards: ShardSet, size: int) -> int:
        """Make room for ``size`` bytes; returns the bytes then in use, counted anew.

        Temporary files of killed processes are deleted. Shards of other sets follow until there is room: first the one whose
        last write is the oldest."""
        ours = {shard.sha256[:32] for shard in shards.tars}
        bytes_of: dict[Path, int] = {}
        for folder in [entry for entry in self.place.iterdir() if entry.is_dir()]:
            bytes_of[folder] = 0
            for entry in os.scandir(folder):
                with suppress(FileNotFoundError):  # a reader found it spoilt
                    if entry.name.endswith(".tmp"):
                        os.unlink(entry.path)
                    else:
                        bytes_of[folder] += entry.stat().st_size
        for folder in sorted((f for f in bytes_of if f.name not in ours), key=lambda f: f.stat().st_mtime):
            if sum(bytes_of.values()) + size > self.limit:
                shutil.rmtree(folder, ignore_errors=True)
                del bytes_of[folder]
        return sum(bytes_of.values())


class MiddleFrames(ShardSet):
    """A set whose samples are read for a picture: with their middle frames alone. Behind a URL these come from the cache, or
    else in the few bytes that they take, which are not kept. Threads fetch those that :meth:`begin` names."""

    def __init__(self, shards: ShardSet, cache: Cache | None):
        self.__dict__ |= vars(shards)
        self._cache, self._whole = cache, shards
        self._begun: dict[int, Future[Record]] = {}
        self._pool = ExitStack()

    def begin(self, samples: Iterable[int]) -> None:
        """Fetch these while other work goes on, until :meth:`end`."""
        self.end()
        pool = self._pool.enter_context(threads(CONNECTIONS, wait=False))
        self._begun = {sample: pool.submit(self._glance, sample) for sample in samples if _remote(self, [(0, sample)])}
        self._until = time.monotonic() + PICTURE_SECONDS

    def end(self) -> None:
        self._pool.close()
        self._begun = {}

    def read(self, sample: int) -> Record:
        """Raises InputError as :meth:`ShardSet.read`, and Unreachable for one that does not come within :data:`PICTURE_SECONDS`
        of :meth:`begin`: no picture is worth a longer wait."""
        if sample not in self._begun:
            return self._glance(sample)
        try:
            return self._begun[sample].result(max(0.0, self._until - time.monotonic()))
        except TimeoutError:
            raise Unreachable(f"{self.folder(sample)}: its frames did not come within {PICTURE_SECONDS:g} seconds") from None

    def _glance(self, sample: int) -> Record:
        folder = self.folder(sample)
        if not isinstance(folder, RemoteFolder):
            return self._whole.read(sample)
        if self._cache and (kept := self._cache.read(self, sample)) is not None:
            return self.record(sample, kept)
        name, offset, size = self.where(sample)
        return glance(lambda start, length: folder.read(name, offset + start, length), size)


Arrivals = dict[int, Future[dict[int, "bytes | memoryview | InputError"]]]  # sample -> the request that brings it


def fetch_ahead(shards: ShardSet, rows: Iterable[Row], cache: Cache | None) -> Iterator[tuple[Row, Arrivals]]:
    """Yield each row with the requests that bring its samples. Requests start while earlier rows are in use.

    Rows are taken in chunks of at most half of :data:`AHEAD` bytes. While one chunk is in use, the next one is requested.
    """
    chunks: deque[list[tuple[Row, Arrivals]]] = deque()
    with threads(CONNECTIONS, wait=False) as pool:
        for chunk in _chunks(shards, rows):
            chunks.append(_request(shards, chunk, cache, pool))
            if len(chunks) > 1:
                yield from chunks.popleft()
        while chunks:
            yield from chunks.popleft()


def _chunks(shards: ShardSet, rows: Iterable[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    held = 0
    for row in rows:
        size = sum(int(shards.size_N[sample]) for sample in _remote(shards, row))
        if chunk and held + size > AHEAD // 2:
            yield chunk
            chunk, held = [], 0
        chunk.append(row)
        held += size
    if chunk:
        yield chunk


def _request(shards: ShardSet, chunk: list[Row], cache: Cache | None, pool: ThreadPoolExecutor) -> list[tuple[Row, Arrivals]]:
    """Request each sample of these rows once, in the order of use; neighbours share a request."""
    first_use = {sample: None for row in chunk for sample in _remote(shards, row)}
    run_of: dict[int, list[int]] = {}
    for sample in sorted(first_use):
        before = run_of.get(sample - 1)
        held = cache is not None and cache.has(shards, sample)
        if (
            held
            or before is None
            or shards.shard_N[before[-1]] != shards.shard_N[sample]
            or (cache is not None and cache.has(shards, before[-1]))
            or shards.size_N[before].sum() + shards.size_N[sample] > MERGED
        ):
            run_of[sample] = [sample]
        else:
            before.append(sample)
            run_of[sample] = before
    asked: dict[int, Future] = {}
    for sample in first_use:
        run = run_of[sample]
        if run[0] not in asked:
            asked[run[0]] = pool.submit(fetch, shards, run, cache)
    return [(row, {sample: asked[run_of[sample][0]] for sample in _remote(shards, row)}) for row in chunk]


def _remote(shards: ShardSet, row: Row) -> list[int]:
    """The samples of a row that lie behind a URL; those of another set may lie here."""
    return [sample for _, sample in row if isinstance(shards.folder(sample), RemoteFolder)]


def fetch(shards: ShardSet, run: list[int], cache: Cache | None) -> dict[int, bytes | memoryview | InputError]:
    """Fetch neighbouring samples of one shard by one request.

    Returns: sample -> its bytes, whose crc32 is right, or the InputError to raise when the sample is used.
    Raises: Unreachable."""
    folder = shards.folder(run[0])
    assert isinstance(folder, RemoteFolder)
    if cache is not None and len(run) == 1 and (kept := cache.read(shards, run[0])) is not None:
        return {run[0]: kept}
    name, start, _ = shards.where(run[0])
    out: dict[int, bytes | memoryview | InputError] = {}
    joined = memoryview(b"")
    if len(run) > 1:
        with suppress(InputError, FileNotFoundError):  # then each is asked for alone, and the error names the right one
            joined = memoryview(folder.read(name, start, int(shards.size_N[run].sum())))
    for sample in run:
        _, offset, size = shards.where(sample)
        data: bytes | memoryview = joined[offset - start : offset - start + size]
        try:
            if zlib.crc32(data) != shards.crc32_N[sample]:
                data = shards.fetch(sample)
            out[sample] = data
        except InputError as error:
            out[sample] = error
            continue
        if cache is not None:
            cache.write(shards, sample, data)
    return out
