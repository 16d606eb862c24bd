"""Opening a shard set: selection by split, and every way its files can be wrong."""

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dclr.data.manifest import (
    Manifest,
    Names,
    ShardSet,
    pack_columns,
    parse_columns,
    read_index,
    require_cue,
    require_size,
)
from dclr.errors import InputError
from dclr.record import pack_array
from dclr.storage import open_folder


@pytest.fixture
def copied(synthetic_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(synthetic_set, tmp_path / "copy", ignore=shutil.ignore_patterns("videos")))


def test_the_set_holds_every_split_and_selects_without_a_second_transcode(synthetic_set: Path) -> None:
    shards = ShardSet(synthetic_set)
    train, test = shards.select(["train"]), shards.select(["test"])
    assert (len(train), len(test), len(shards)) == (64, 32, 96)
    assert not set(train) & set(test)
    np.testing.assert_array_equal(shards.select(["test", "train", "test"]), np.arange(96))
    assert len(shards.manifest.shards) > 1 and shards.manifest.samples == 96


def test_motion_and_scene_are_independent_labels(synthetic_set: Path) -> None:
    shards = ShardSet(synthetic_set)
    train = shards.select(["train"])
    pairs = set(zip(shards.labels["motion"][train], shards.labels["scene"][train], strict=True))
    assert len(pairs) == 64  # every motion over every scene once
    assert shards.kind() == "motion" and shards.kind("scene") == "scene"
    with pytest.raises(InputError, match="motion, scene"):
        shards.kind("colour")


def test_a_split_that_does_not_exist_lists_those_that_do(synthetic_set: Path) -> None:
    with pytest.raises(InputError, match=r"no split 'train01'.*test \(32\), train \(64\)"):
        ShardSet(synthetic_set).select(["train01"])


def test_a_split_without_samples_is_refused(copied: Path) -> None:
    names = sorted(path.name for path in copied.glob("shard-*.jsonl"))
    entries = [entry for name in names for entry in read_index(open_folder(copied), name)[1]]
    (copied / "index.npz").write_bytes(index := pack_columns(entries, ["empty", "test", "train"], ["motion", "scene"]))
    splits = {"empty": 0, "test": 32, "train": 64}
    edit_manifest(lambda m: m.update(splits=splits, index_sha256=hashlib.sha256(index).hexdigest()))(copied)
    assert len(ShardSet(copied).select(["train"])) == 64
    with pytest.raises(InputError, match=r"no split 'empty'.*empty \(0\), test \(32\), train \(64\)"):
        ShardSet(copied).select(["train", "empty"])


def test_a_crop_above_the_stored_side_is_refused(synthetic_set: Path) -> None:
    with pytest.raises(InputError, match="clip size 112 is above the stored short side 32"):
        require_size(ShardSet(synthetic_set), 112)


def test_a_cue_that_the_set_lacks_is_refused(synthetic_set: Path, h264_set: Path) -> None:
    require_cue(ShardSet(synthetic_set), "diff")
    with pytest.raises(InputError, match=r"no cue 'flow' \(it has: diff, energy\).*preprocess add-cues .*--cues flow"):
        require_cue(ShardSet(h264_set), "flow")


def edit_manifest(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        found = json.loads((folder / "manifest.json").read_text())
        change(found)
        (folder / "manifest.json").write_text(json.dumps(found))

    return apply


def shorten(name: str, size: int) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:size])

    return apply


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "not a shard set's manifest"),
        (lambda folder: (folder / "manifest.json").write_text("[1]"), "not a shard set's manifest"),
        (edit_manifest(lambda m: m.update(version=9)), "format version 9"),
        (edit_manifest(lambda m: m["shards"][0].update(samples="x")), "not a shard set's manifest"),
        (edit_manifest(lambda m: m["shards"][0].update(name=5)), "not a shard set's manifest"),
        (edit_manifest(lambda m: m["options"].pop("size")), "not a shard set's manifest"),
        (edit_manifest(lambda m: m["options"].update(cues=7)), "not a shard set's manifest"),
        (edit_manifest(lambda m: m["options"].update(cues=[["diff"]])), "not a shard set's manifest"),
        (
            edit_manifest(lambda m: m["options"].update(cues=["diff", "taste"])),
            "cue 'taste', known here are diff, flow, energy: ",
        ),
        (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe"), "not a shard set's manifest"),
        (edit_manifest(lambda m: m.pop("index_sha256")), "preprocess merge"),
        (edit_manifest(lambda m: m["shards"][0].update(sha256="../" * 20 + "etc")), "not a shard set's manifest"),
        (edit_manifest(lambda m: m["shards"][0].update(samples=-3)), "not a shard set's manifest"),
        (lambda folder: (folder / "index.npz").unlink(), "index.npz is missing"),
        (shorten("index.npz", 0), "index.npz: sha256 is .*, manifest.json says"),
        (shorten("index.npz", 900), "index.npz: sha256 is .*, manifest.json says"),
        (edit_manifest(lambda m: m["shards"][0].update(name="../../etc/passwd.tar")), "shard name"),
        (lambda folder: (folder / "shard-000001.tar").unlink(), "shard-000001.tar is missing"),
        (shorten("shard-000001.tar", 1000), "has 1000 bytes, manifest.json says"),
    ],
)
def test_a_damaged_set_is_named_when_it_is_opened(copied: Path, damage: Callable[[Path], None], says: str) -> None:
    damage(copied)
    with pytest.raises(InputError, match=says):
        ShardSet(copied)


def test_manifest_and_index_agree_with_the_bytes(synthetic_set: Path) -> None:
    import hashlib
    import zlib

    manifest = Manifest.loads((synthetic_set / "manifest.json").read_text())
    for shard in manifest.shards:
        data = (synthetic_set / shard.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
        header, entries = read_index(open_folder(synthetic_set), shard.index_name)
        assert (header.bytes, header.sha256, header.samples) == (shard.bytes, shard.sha256, len(entries))
        assert len(entries) == shard.samples
        assert all(zlib.crc32(data[e.offset : e.offset + e.size]) == e.crc32 for e in entries)


def forged(change: Callable[[dict[str, np.ndarray]], object], packed: int = zipfile.ZIP_STORED) -> bytes:
    """index.npz of two samples, with columns as somebody hostile would write them."""
    columns: dict[str, np.ndarray] = {
        "keys": np.frombuffer(b"onetwo", np.uint8), "key_ends": np.array([3, 6]), "size": np.array([512, 1024]),
        "crc32": np.zeros(2, np.uint32), "frames": np.array([5, 6]), "fps": np.array([25.0, 25]), "video": np.array([1, 2]),
        "labels": np.array([[0, 1]]), "splits": np.array([[1, 0], [0, 1]], np.uint8),
    }  # fmt: skip
    change(columns)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packed) as archive:
        for name, column in columns.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), pack_array(column), packed)
    return out.getvalue()


def parse(data: bytes) -> dict[str, np.ndarray]:
    return parse_columns(data, 2, 2, 1, "index.npz")


def test_the_joined_index_is_parsed_as_it_was_packed() -> None:
    found = parse(forged(lambda c: None))
    assert list(Names(found["keys"], found["key_ends"])) == ["one", "two"]
    assert found["size"].tolist() == [512, 1024] and found["labels"].tolist() == [[0, 1]]
    assert not {"motion", "content", "path", "cuts"} & set(found)
    known = {
        "motion": np.array([0.5, np.nan]), "content": np.array([7, -1]), "path": np.array([3, 4]), "cuts": np.array([4, 0])
    }  # fmt: skip
    found = parse(forged(lambda c: c.update(known)))
    assert all(np.array_equal(found[name], column, equal_nan=name == "motion") for name, column in known.items())
    assert Names.of(["a", "", "öä"])[-1] == "öä" and len(Names.of([])) == 0
    with pytest.raises(IndexError):
        Names.of(["a"])[1]


@pytest.mark.parametrize("text", ["", "a", "A", "ab", "ba", "aab", "ö", "x-", "abcdefgh", "\n"])
def test_names_that_contain_a_text(text: str) -> None:
    names = ["a", "b", "aab", "Abab", "öÖ", "x-y", "aa", "b\n"]  # "ba" would be found across two
    assert Names.of(names).containing(text).tolist() == [text.lower() in name.replace("A", "a") for name in names]
    assert Names.of([]).containing(text).tolist() == []


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"PK", "index.npz"),
        (forged(lambda c: c.pop("fps")), "fps"),
        (forged(lambda c: c.update(size=np.array([512]))), "size"),
        (forged(lambda c: c.update(cuts=np.array([1.0, 0]))), "cuts"),
        (forged(lambda c: c.update(cuts=np.array([5, 0]))), "a number of cuts"),
        (forged(lambda c: c.update(cuts=np.array([-1, 0]))), "a number of cuts"),
        (forged(lambda c: c.update(size=np.array([512, -512]))), "below 1"),
        (forged(lambda c: c.update(key_ends=np.array([6, 3]))), "below 1"),
        (forged(lambda c: c.update(key_ends=np.array([3, 2**40]))), "keys"),
        (forged(lambda c: c.update(video=np.array(["a", "b"]))), "video"),
        (forged(lambda c: None, zipfile.ZIP_DEFLATED), "packed, expected it stored"),
        (forged(lambda c: c.update(motion=np.array([1.0, -2]))), "a motion below 0"),
        (forged(lambda c: c.update(motion=np.array([1.0, np.inf]))), "a motion below 0 or beyond all numbers"),
        (forged(lambda c: c.update(motion=np.array([1.0]))), "motion"),
        (forged(lambda c: c.update(content=np.array(["a", "b"]))), "content"),
    ],
)
def test_a_hostile_index_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse(data)
