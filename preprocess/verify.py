"""Is a set what its manifest and indexes say? Every byte is hashed; with ``deep`` every picture is decoded."""

from __future__ import annotations

import hashlib
import mmap
import zlib
from collections import Counter
from functools import partial

import cv2
import numpy as np

from dclr import bars
from dclr.data.manifest import INDEX, MANIFEST, Entry, Manifest, Shard, ShardSet, content_id, read_index, read_manifest
from dclr.errors import InputError
from dclr.record import BLOCK, FormatError, mean_motion, unpack, video_id
from dclr.storage import Folder
from preprocess.pool import Lost, Pool

SAID = {  # of KEY.json's source -> as it is said
    "measured": "measured from the timestamps",
    "contradictory": "the header's though timestamps contradict each other",
}
PICTURES = 256  # decoded at a time: a long video never lies in memory whole


def verify(folder: Folder, deep: bool, workers: int) -> list[str]:
    """The faults of a set, each printed as it is found; raises InputError where there is no readable manifest."""
    if folder.size(MANIFEST) is None:
        raise InputError(f"{folder}: no {MANIFEST} there; make a shard set with python -m preprocess")
    manifest = Manifest.loads(read_manifest(folder).decode(errors="replace"), f"{folder}/{MANIFEST}")
    faults: list[str] = []
    splits: dict[str, int] = {}
    keys: set[str] = set()
    rates: Counter[str] = Counter()
    from_stored: Counter[str] = Counter()
    joined: ShardSet | None = None
    try:
        joined = ShardSet(folder, keep_damaged=True)
    except InputError as error:
        faults.append(str(error))
        print(f"fault: {error}")
    first = 0
    check = partial(verify_shard, folder=folder, deep=deep)
    with (
        Pool(check, min(workers, len(manifest.shards) or 1), timeout=7 * 24 * 3600) as pool,
        bars.bar(total=sum(shard.bytes for shard in manifest.shards), desc="verifying", unit="B", unit_scale=True) as bar,
    ):
        for shard, result in zip(manifest.shards, pool.map(manifest.shards), strict=True):
            if isinstance(result, Lost):
                new = [f"{shard.name}: {result.reason} while it was read"]
            else:
                new, entries, told = result
                rates += told
                new += [
                    f"{shard.name}: key {key!r} is in another shard too" for key in keys.intersection(e.key for e in entries)
                ]
                keys.update(entry.key for entry in entries)
                if joined is not None and len(entries) == shard.samples:
                    wrong = [entry.key for at, entry in enumerate(entries, first) if not _same(joined, at, entry)]
                    new += [f"{INDEX}: says otherwise than {shard.index_name} of {key}" for key in wrong[:1]]
                from_stored.update(cue for entry in entries for cue in entry.from_stored or ())
                for split in [split for entry in entries for split in entry.splits]:
                    splits[split] = splits.get(split, 0) + 1
            first += shard.samples
            for fault in new:
                bars.write(f"fault: {fault}")
            faults += new
            bar.update(shard.bytes)
    if not faults and splits != manifest.splits:
        faults.append(f"{MANIFEST}: splits are {manifest.splits}, the indexes say {splits}")
        print(f"fault: {faults[0]}")
    if not faults and from_stored != manifest.from_stored:
        faults.append(f"{MANIFEST}: from_stored is {manifest.from_stored}, the indexes say {dict(from_stored)}")
        print(f"fault: {faults[0]}")
    for cue, count in from_stored.items():
        print(f"cues: {cue} in {count} of {manifest.samples} samples from the stored frames")
    if rates:
        counts = ", ".join(f"{how} in {rates[rate]}" for rate, how in SAID.items())
        print(f"fps: {counts} of {manifest.samples} samples")
    how = "every byte hashed, every picture decoded" if deep else "every byte hashed"
    print(f"{folder}: {manifest.samples} samples in {len(manifest.shards)} shards, {how}: {len(faults) or 'no'} faults")
    return faults


def _same(joined: ShardSet, at: int, entry: Entry) -> bool:
    """Whether the set's joined index and the shard's own index say the same of a sample."""
    _, offset, size = joined.where(at)
    motion = None if np.isnan(joined.motion_N[at]) else joined.motion_N[at]
    columns = joined.crc32_N, joined.frames_N, joined.fps_N, joined.video_N, joined.content_N, joined.cuts_N
    return (joined.keys[at], offset, size, *(column_N[at] for column_N in columns), motion) == (
        entry.key, entry.offset, entry.size, entry.crc32, entry.frames, entry.fps, video_id(entry.video),
        content_id(entry.content), len(entry.cuts), entry.motion,
    ) and all(joined.labels[kind][at] == entry.labels.get(kind, -1) for kind in joined.labels)  # fmt: skip


def verify_shard(shard: Shard, folder: Folder, deep: bool) -> tuple[list[str], list[Entry], Counter[str]]:
    """The faults of one shard, its index's entries, and the samples of each of :data:`dclr.record.RATES`."""
    cv2.setNumThreads(1)
    if folder.size(shard.index_name) is None:
        return [f"{shard.index_name}: missing"], [], Counter()
    try:
        header, entries = read_index(folder, shard.index_name)
    except InputError as error:
        return [str(error)], [], Counter()
    faults: list[str] = []
    rates: Counter[str] = Counter()
    said, listed = (header.samples, header.bytes, header.sha256), (shard.samples, shard.bytes, shard.sha256)
    if said != listed or header.shard != shard.name or len(entries) != shard.samples:
        faults.append(f"{shard.index_name}: {len(entries)} entries, header {said}; {MANIFEST} says {listed}")
    if (size := folder.size(shard.name)) != shard.bytes:
        faults.append(f"{shard.name}: {'missing' if size is None else f'{size} bytes'}, {MANIFEST} says {shard.bytes}")
        return faults, entries, rates
    with (
        folder.local(shard.name) as path,
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as tar,  # an hour of video is a sample too: nothing is read whole
    ):
        faults += _content_faults(tar, shard, entries, deep, rates)
    return faults, entries, rates


def _content_faults(tar: memoryview, shard: Shard, entries: list[Entry], deep: bool, rates: Counter[str]) -> list[str]:
    """The faults of a tar: where its bytes differ from its index and the manifest."""
    faults: list[str] = []
    at = 0
    for entry in entries:
        if entry.offset != at or entry.offset + entry.size > len(tar):
            said = f"{entry.key} at byte {entry.offset} with {entry.size}"
            return [*faults, f"{shard.index_name}: {said}, expected to start at {at}"]
        with tar[at : at + entry.size] as data:
            faults += [f"{shard.name}, {entry.key}: {fault}" for fault in _sample_faults(data, entry, deep, rates)]
        at += entry.size
    if bytes(tar[at:]) != bytes(2 * BLOCK):
        faults.append(f"{shard.name}: {len(tar) - at} bytes after the last sample, expected tar's end")
    if (digest := hashlib.sha256(tar).hexdigest()) != shard.sha256:
        faults.append(f"{shard.name}: sha256 is {digest}, {MANIFEST} says {shard.sha256}")
    return faults


def _sample_faults(data: memoryview, entry: Entry, deep: bool, rates: Counter[str]) -> list[str]:
    if zlib.crc32(data) != entry.crc32:
        return [f"crc32 is {zlib.crc32(data)}, the index says {entry.crc32}"]
    try:
        record = unpack(data)
        meta = record.meta
        said = (record.key, len(record), meta.video, meta.labels, list(meta.splits), list(meta.cuts), list(meta.traits))
        if said != (entry.key, entry.frames, entry.video, entry.labels, entry.splits, entry.cuts, entry.traits):
            return [f"holds {said}, and the index says otherwise"]
        if list(meta.from_stored) != (entry.from_stored or []):
            return [f"computed {list(meta.from_stored)} from the stored frames, the index says {entry.from_stored or []}"]
        content = meta.source.content if meta.source else None
        motion = entry.motion if entry.motion is None else mean_motion(record.array("energy"))
        if (content, motion) != (entry.content, entry.motion):
            return [f"its content is {content} and its mean motion {motion}, the index says {entry.content} and {entry.motion}"]
        if meta.source is not None and meta.source.rate is not None:
            rates[meta.source.rate] += 1
        for start in range(0, len(record) if deep else 0, PICTURES):
            some = np.arange(start, min(start + PICTURES, len(record)))
            record.frames(some)
            for cue in record.streams:
                record.pictures(cue, some)
    except FormatError as error:
        return [str(error)]
    return []
