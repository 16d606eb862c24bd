"""What is read changes meanwhile: shards and indexes that are cut short or written anew, a disk that fails, little /dev/shm."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mounts import needs_loop, needs_mounts, privately
from servers import FileServer, serving
from test_network import CLIP

from dclr.data.loader import TrainLoader
from dclr.data.manifest import INDEX, MANIFEST, ShardSet, pack_columns, publish, read_index
from dclr.record import FormatError
from dclr.storage import Folder


@pytest.fixture
def copied(synthetic_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(synthetic_set, tmp_path / "copy", ignore=shutil.ignore_patterns("videos")))


@pytest.mark.parametrize("codec", ["jpeg", "h264"])
def test_a_shard_that_is_cut_short_under_a_record_is_damage(codec: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Memory that is mapped and no file any more is SIGBUS: it would end the process."""
    source = request.getfixturevalue({"jpeg": "synthetic_set", "h264": "h264_set"}[codec])
    copy = Path(shutil.copytree(source, tmp_path / "copy", ignore=shutil.ignore_patterns("videos")))
    shards = ShardSet(copy)
    name, offset, _ = shards.where(5)
    record = shards.read(5)
    first = record.frames([0])
    os.truncate(copy / name, offset + 512 + int(record.rgb.offsets[1]))
    np.testing.assert_array_equal(record.frames([0]), first)
    with pytest.raises(FormatError, match=r"0 bytes found at byte \d+ of the file, \d+ expected"):
        record.frames([len(record) - 1])
    (copy / INDEX).write_bytes(b"")
    assert len(shards.keys[95 if codec == "jpeg" else 63]) > 5 and shards.size_N.min() > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_goes_on_where_a_shard_is_cut_short(copied: Path, workers: int) -> None:
    shards = ShardSet(copied)
    train_N = shards.select(["train"])
    some = TrainLoader(shards, train_N, CLIP, clips=1, batch=4, seed=0, epochs=1, workers=workers, on_error="skip")
    reading = iter(some)
    next(reading)
    for shard in shards.tars:
        os.truncate(copied / shard.name, shard.bytes // 2)
    assert len(list(reading)) == 15 and some.skipped


def test_a_set_that_is_written_anew_while_it_is_opened_is_read_whole(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a reader's two files the writer puts two new ones there, and removes what it kept of the old."""
    shards = ShardSet(copied)
    entries = [replace(entry, content=None) for shard in shards.tars for entry in read_index(shards.root, shard.index_name)[1]]
    index = pack_columns(entries, list(shards.manifest.splits), list(shards.classes))
    manifest = replace(shards.manifest, index_sha256=hashlib.sha256(index).hexdigest())
    reads = Folder.read

    def read(self: Folder, name: str, *part: int) -> bytes:
        data = reads(self, name, *part)
        if name == MANIFEST:
            monkeypatch.undo()
            publish(self, index, manifest)
        return data

    monkeypatch.setattr(Folder, "read", read)
    found = ShardSet(copied)
    assert found.manifest.index_sha256 == manifest.index_sha256 != shards.manifest.index_sha256
    assert (found.content_N == -1).all() and list(found.keys) == list(shards.keys)


@needs_mounts
def test_pages_need_no_room_in_dev_shm(synthetic_set: Path) -> None:
    """Containers have 64 MB, or less; here are 16 MB, and pages of 60 MB."""
    code = (
        "import numpy as np\nfrom dclr.data.clips import ClipConfig\nfrom dclr.data.loader import TrainLoader\n"
        "from dclr.data.manifest import ShardSet\n"
        "if __name__ == '__main__':\n"
        f"    shards = ShardSet({str(synthetic_set)!r})\n"
        "    clip = ClipConfig(frames=32, stride=1, size=32)\n"
        "    loader = TrainLoader(shards, np.arange(96), clip, clips=6, batch=32, seed=0, epochs=1, workers=1)\n"
        "    print(len(list(loader)), loader._stages[1].shapes['rgb'])\n"
    )
    done = privately("mount -t tmpfs -o size=16m none /dev/shm", sys.executable, "-c", code)
    assert done.stdout.split("\n")[0] == "3 (6, 32, 32, 32, 3)", done.stderr


@needs_mounts
def test_a_full_disk_costs_the_cache_and_not_the_run(copied: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from dclr.data.fetch import Cache, fetch\nfrom dclr.data.manifest import ShardSet\n"
        "shards, cache = ShardSet(sys.argv[1]), Cache(Path(sys.argv[2]), 10**9)\n"
        "for sample in range(len(shards)):\n"
        "    assert len(fetch(shards, [sample], cache)[sample]) == shards.size_N[sample]\n"
        "print(cache.full, sum(path.stat().st_size for path in cache.place.glob('*/*')))\n"
    )
    cache = tmp_path / "cache"
    cache.mkdir()
    with serving(FileServer, folder=copied) as (_, port):
        url = f"http://127.0.0.1:{port}"
        done = privately(f"mount -t tmpfs -o size=1m none {cache}", sys.executable, "-c", code, url, cache)
    full, kept = done.stdout.split()
    assert full == "True" and 500_000 < int(kept) <= 2**20
    assert done.stderr.count(f"--cache {cache}: No space left on device; going on without keeping more") == 1


@needs_loop
def test_a_disk_that_fails_under_a_shard_is_named(copied: Path, tmp_path: Path) -> None:
    """An ext4 whose last blocks are gone: reading them is EIO, reading them as mapped memory SIGBUS."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    script = f"""
        truncate -s 40M {image}
        mkfs.ext4 -q -O ^has_journal {image}
        mount -o loop {image} {disk}
        cp -r {copied} {disk}/set
        umount {disk}
        mount -o loop {image} {disk}
        ls -lR {disk} >&2
        cat {disk}/set/*.json* {disk}/set/*.npz >/dev/null
        head -c 9000 {disk}/set/shard-000000.tar >/dev/null
        truncate -s 4M {image}"""
    code = (
        "import sys\nfrom dclr.data.manifest import ShardSet\nfrom dclr.errors import InputError\n"
        "shards = ShardSet(sys.argv[1])\n"
        "for sample in range(len(shards)):\n"
        "    try:\n        record = shards.read(sample)\n        record.frames(range(len(record)))\n"
        "    except InputError as error:\n        print(error)\n"
    )
    done = privately(script, sys.executable, "-c", code, disk / "set")
    assert done.returncode == 0 and "Input/output error" in done.stdout, (done.stdout, done.stderr)
