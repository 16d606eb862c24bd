"""Samples of a set behind a URL -> bytes: fetched ahead in byte ranges, checked, and kept on the node's disk if wanted.

One sample is one range of its shard; neighbours that are wanted together are one request. So an epoch costs the bytes of the
samples it selects, on any number of ranks, and what lies ahead is bounded (:data:`AHEAD`).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from dclr.data.manifest import ShardSet
from dclr.errors import InputError
from dclr.storage import RemoteFolder

Row = list[tuple[int, int]]  # one batch: (pass over the set, sample index)

AHEAD = 64 * 2**20  # bytes of samples that a worker has asked for and not used yet (at least two batches of them)
MERGED = 8 * 2**20  # the longest request that joins neighbours
CONNECTIONS = 16  # requests of one worker at a time


class Cache:
    """Samples of remote sets on this machine's disk, shared by all ranks and workers here without harm.

    A sample is one file, ``DIR/<shard's sha256>/<offset>``, that appears whole; its crc32 is checked at every use. ``DIR/used``
    counts bytes, under a lock that a writer holds, before the file has its name: where a process was killed it is too high,
    never too low. When the cache is full, shards of other sets go; what then does not fit is not kept: over epochs that read
    everything once, keeping the first ones serves a larger share than always replacing the oldest would.

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
        shard = shards.manifest.shards[shards.shard_N[sample]]
        return self.place / shard.sha256[:32] / str(shards.offset_N[sample])

    def has(self, shards: ShardSet, sample: int) -> bool:
        return self._path(shards, sample).exists()

    def read(self, shards: ShardSet, sample: int) -> bytes | None:
        """The sample's bytes; None where they are not here or not right."""
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
        """Bytes in use, counted anew, after what killed processes left half done has gone and, as far as ``size`` needs it,
        shards of other sets: those first that were written to last the longest ago."""
        ours = {shard.sha256[:32] for shard in shards.manifest.shards}
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


Arrivals = dict[int, Future[dict[int, "bytes | memoryview | InputError"]]]  # sample -> the request that brings it


def fetch_ahead(shards: ShardSet, rows: Iterable[Row], cache: Cache | None) -> Iterator[tuple[Row, Arrivals]]:
    """Each row with the requests that bring its samples, made while earlier rows are used.

    Rows are taken in chunks of up to half of :data:`AHEAD`; the chunk after the one in use is on its way.
    """
    pool = ThreadPoolExecutor(CONNECTIONS)
    chunks: deque[list[tuple[Row, Arrivals]]] = deque()
    try:
        for chunk in _chunks(shards, rows):
            chunks.append(_request(shards, chunk, cache, pool))
            if len(chunks) > 1:
                yield from chunks.popleft()
        while chunks:
            yield from chunks.popleft()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _chunks(shards: ShardSet, rows: Iterable[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    held = 0
    for row in rows:
        size = sum(int(shards.size_N[sample]) for _, sample in row)
        if chunk and held + size > AHEAD // 2:
            yield chunk
            chunk, held = [], 0
        chunk.append(row)
        held += size
    if chunk:
        yield chunk


def _request(shards: ShardSet, chunk: list[Row], cache: Cache | None, pool: ThreadPoolExecutor) -> list[tuple[Row, Arrivals]]:
    """Ask for every sample of these rows, once, neighbours together, in the order they are used."""
    first_use = {sample: None for row in chunk for _, sample in row}
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
    return [(row, {sample: asked[run_of[sample][0]] for _, sample in row}) for row in chunk]


def fetch(shards: ShardSet, run: list[int], cache: Cache | None) -> dict[int, bytes | memoryview | InputError]:
    """Neighbouring samples of one shard, by one request: sample -> bytes with the right crc32, or the error to raise for it."""
    assert isinstance(shards.root, RemoteFolder)
    if cache is not None and len(run) == 1 and (kept := cache.read(shards, run[0])) is not None:
        return {run[0]: kept}
    name, start, _ = shards.where(run[0])
    out: dict[int, bytes | memoryview | InputError] = {}
    joined = memoryview(b"")
    if len(run) > 1:
        with suppress(InputError, FileNotFoundError):  # then each is asked for alone, and the error names the right one
            joined = memoryview(shards.root.read(name, start, int(shards.size_N[run].sum())))
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
