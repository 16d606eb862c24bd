"""Records -> one shard, whole or not at all: temporary name, fsync, rename; its index after it; the manifest last."""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path
from typing import BinaryIO

from dclr.data.manifest import MANIFEST, Entry, Manifest, Shard
from dclr.record import BLOCK
from preprocess.datasets import Video


def write_whole(path: Path, data: bytes) -> None:
    """Put ``data`` under ``path`` so that a reader or a crash sees the old file or the new one, never half."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        _sync(file)
    temporary.replace(path)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


class ShardWriter:
    """Samples in, one tar and its index out. Nothing stands under the final name before :meth:`close`."""

    def __init__(self, folder: Path, name: str):
        self.path = folder / name
        self._temporary = folder / f".{name}.tmp"
        self._file = self._temporary.open("wb")
        self._sha256 = hashlib.sha256()
        self._bytes = 0
        self._entries: list[Entry] = []

    def add(self, key: str, sample: bytes, video: Video, frames: int) -> None:
        """Append one sample (:func:`dclr.record.pack`)."""
        label = next(iter(video.labels.values()), None)
        crc32 = zlib.crc32(sample)
        self._entries.append(Entry(key, self._bytes, len(sample), crc32, label, video.labels, list(video.splits), frames))
        self._write(sample)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._bytes += len(data)

    def close(self) -> Shard | None:
        """Finish the tar, give it its name, write its index; None, and no file, where no sample was added."""
        if not self._entries:
            self.abandon()
            return None
        self._write(bytes(2 * BLOCK))  # tar's end
        _sync(self._file)
        self._file.close()
        shard = Shard(self.path.name, len(self._entries), self._bytes, self._sha256.hexdigest())
        self._temporary.replace(self.path)
        index = "".join(entry.dumps() + "\n" for entry in self._entries)
        write_whole(self.path.with_name(shard.index_name), index.encode())
        return shard

    def abandon(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    write_whole(folder / MANIFEST, manifest.dumps().encode())
