"""What stats counts, and where it leaves its numbers."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from conftest import needs, succeed, upload
from servers import FileServer, serving

from dclr.data.manifest import Entry, ShardSet, pack_columns, publish, read_index
from dclr.record import TRAITS
from dclr.storage import Folder, open_folder
from preprocess.stats import NUMBERS, PICTURE, describe, numbers


@pytest.fixture
def copied(synthetic_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(synthetic_set, tmp_path / "copy", ignore=shutil.ignore_patterns("videos")))


def changed(out: Path, change: dict[str, dict[str, object]]) -> None:
    """Say something else of the samples with these keys, in each index; their tars stay."""
    folder, shards, everything = open_folder(out), ShardSet(out), list[Entry]()
    for shard in shards.tars:
        header, entries = read_index(folder, shard.index_name)
        entries = [replace(entry, **change.get(entry.key, {})) for entry in entries]
        everything += entries
        folder.write(shard.index_name, "\n".join([header.dumps(), *(entry.dumps() for entry in entries), ""]).encode())
    index = pack_columns(everything, sorted(shards.manifest.splits), list(shards.classes))
    publish(folder, index, replace(shards.manifest, index_sha256=sha256(index).hexdigest()))


def test_what_is_there_is_counted_and_kept_in_the_sets_folder(copied: Path) -> None:
    said = succeed("-m", "preprocess", "stats", copied)
    shards = ShardSet(copied)
    assert "96 videos in 96 samples" in said and f"{shards.frames_N.sum()} frames" in said
    assert f"{(shards.frames_N / shards.fps_N).sum() / 3600:.2f} hours" in said and "fps      15 to 30, median" in said
    assert "classes  motion: 8 of 8 have samples, 12 to 12 each: 12 left, " in said and " and 2 more" in said
    assert "no video failed or is missing" in said and "cuts     none" in said and "nothing unusual" in said
    assert f"picture  {copied}/{PICTURE}, numbers in {copied}/{NUMBERS}" in said
    assert (copied / PICTURE).read_bytes().startswith(b"\x89PNG")
    kept = json.loads((copied / NUMBERS).read_text())
    assert kept["manifest_sha256"] == shards.digest and kept["samples"] == 96 and kept["splits"] == {"test": 32, "train": 64}
    assert kept["classes"]["motion"] == dict.fromkeys(shards.classes["motion"], 12)
    assert kept["fps"] == {f"{rate:g}": n for rate, n in Counter(shards.fps_N.tolist()).items()}
    assert kept["motion"]["median"] == pytest.approx(np.median(shards.motion_N), abs=1e-4)
    assert "no faults" in succeed("-m", "preprocess", "verify", copied)


def test_cuts_and_odd_sources_are_counted_by_the_index(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = list(ShardSet(copied).keys)
    traits = {keys[0]: ["interlaced"], keys[50]: ["interlaced", "non-square pixels"]}
    changed(copied, {key: {"traits": of} for key, of in traits.items()} | {keys[7]: {"cuts": [3, 9]}, keys[8]: {"cuts": [5]}})
    monkeypatch.setattr(ShardSet, "read", None)  # no tar is opened
    found = numbers(ShardSet(copied))
    assert found["sources"] == dict.fromkeys(TRAITS, 0) | {"interlaced": 2, "non-square pixels": 1}
    assert found["cuts"] == {"cuts": 3, "samples": 2}
    said = describe(Folder(str(copied)))
    assert "cuts     3 in 2 samples" in said and "sources  interlaced 2, non-square pixels 1" in said
    for index in copied.glob("shard-*.jsonl"):
        index.unlink()  # a trainer needs none of them
    assert "sources  not known" in describe(Folder(str(copied)))


def test_another_place_can_be_named(copied: Path, tmp_path: Path) -> None:
    said = succeed("-m", "preprocess", "stats", copied, "--out", tmp_path / "deep/s.png")
    assert f"picture  {tmp_path}/deep/s.png, numbers in {tmp_path}/deep/s.json" in said
    assert json.loads((tmp_path / "deep/s.json").read_text())["samples"] == 96 and not (copied / NUMBERS).exists()


def test_a_set_that_cannot_be_written_is_described_all_the_same(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(FileServer, folder=copied) as (_, port):
        said = describe(open_folder(f"http://127.0.0.1:{port}"))
    assert "96 videos" in said and "not kept: a web server's folder cannot be written; --out PNG" in said

    def write(self: Folder, name: str, data: bytes) -> None:
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr(Folder, "write", write)
    said = describe(Folder(str(copied)))
    assert "96 videos" in said and "not kept: " in said and "Permission denied" in said
    assert not (copied / NUMBERS).exists() and not (copied / PICTURE).exists()


@needs("s3fs", "moto")
def test_a_set_in_object_storage_keeps_its_numbers_there(copied: Path, bucket: str) -> None:
    upload(copied, f"s3://{bucket}/set")
    remote = open_folder(f"s3://{bucket}/set")
    assert f"numbers in s3://{bucket}/set/{NUMBERS}" in describe(remote)
    assert json.loads(remote.read(NUMBERS)) == numbers(ShardSet(copied)) and remote.read(PICTURE).startswith(b"\x89PNG")
