"""Every way a set can differ from what its manifest and indexes say is found and named; exit code 1."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from conftest import REAL, needs_real_data, refuse, run, succeed

from dclr.data.clips import ClipConfig
from dclr.data.loader import TrainLoader
from dclr.data.manifest import ShardSet, read_index
from dclr.record import BLOCK, FormatError
from dclr.storage import open_folder


@pytest.fixture
def copied(synthetic_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(synthetic_set, tmp_path / "copy", ignore=shutil.ignore_patterns("videos")))


def flip(at: Callable[[Path], int]) -> Callable[[Path], None]:
    """Change one byte of the first shard."""

    def apply(folder: Path) -> None:
        data = bytearray((folder / "shard-000000.tar").read_bytes())
        data[at(folder)] ^= 1
        (folder / "shard-000000.tar").write_bytes(data)

    return apply


def edit(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(change((folder / name).read_text())) and None


def test_a_whole_set_has_no_faults(synthetic_set: Path) -> None:
    assert "96 samples" in succeed("-m", "preprocess", "verify", synthetic_set)
    said = succeed("-m", "preprocess", "verify", synthetic_set, "--deep", "--workers", "2")
    assert "every byte hashed, every picture decoded: no faults" in said


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (flip(lambda folder: 2 * BLOCK), "shard-000000.tar, test_down_bricks"),
        (flip(lambda folder: -1), "bytes after the last sample"),
        (lambda folder: (folder / "shard-000001.tar").unlink(), "shard-000001.tar: missing"),
        (lambda folder: (folder / "shard-000001.jsonl").unlink(), "shard-000001.jsonl: missing"),
        (lambda folder: (folder / "shard-000001.tar").write_bytes(b"short"), "shard-000001.tar: 5 bytes"),
        (edit("shard-000000.jsonl", lambda text: text.replace('["test"]', '["train"]', 1)), "index says otherwise"),
        (edit("shard-000000.jsonl", lambda text: text.replace('"samples": ', '"samples": 1', 1)), "shard-000000.jsonl"),
        (edit("shard-000000.jsonl", lambda text: "\n".join(text.splitlines()[:-1])), "entries"),
        (edit("shard-000000.jsonl", lambda text: text.replace('"offset": 0', '"offset": 512', 1)), "expected to start at 0"),
        (edit("manifest.json", lambda text: text.replace('"test": 32', '"test": 31')), "the indexes say"),
        (lambda folder: (folder / "index.npz").unlink(), "index.npz is missing"),
        (lambda folder: (folder / "index.npz").write_bytes(b"PK"), "index.npz: sha256 is"),
        (edit("shard-000000.jsonl", lambda text: re.sub(r'("motion": )(\d+\.)', r"\g<1>1\2", text, count=1)), "its content is"),
        (edit("shard-000000.jsonl", lambda text: text.replace('"content": "', '"content": "0', 1)), "content: expected str"),
        (edit("shard-000000.jsonl", lambda text: re.sub(r'("motion": )(\d+\.)', r"\1-\2", text, count=1)), "motion: expected"),
        (edit("shard-000000.jsonl", lambda text: text.replace('"fps": 2', '"fps": 1', 1)), "index.npz: says otherwise"),
    ],
)  # fmt: skip
def test_a_fault_is_named_and_the_exit_code_is_1(copied: Path, damage: Callable[[Path], None], says: str) -> None:
    damage(copied)
    done = run("-m", "preprocess", "verify", copied)
    assert done.returncode == 1 and says in done.stdout + done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (bytes(400), "frame 0 does not decode"),
        (simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8)), "frame 0 does not decode to 32x32: a picture of 8x8"),
    ],
)
def test_pictures_that_do_not_decode_are_found_by_a_deep_look_only(copied: Path, picture: bytes, says: str) -> None:
    """Bytes whose every checksum is right, and which are still no pictures, or not those that were announced."""
    import hashlib
    import zlib

    header, entries = read_index(open_folder(copied), "shard-000000.jsonl")
    data = bytearray((copied / "shard-000000.tar").read_bytes())
    data[BLOCK : BLOCK + len(picture)] = picture  # over the beginning of the first JPEG
    entries[0] = type(entries[0])(
        **{f: getattr(entries[0], f) for f in entries[0].__slots__} | {"crc32": zlib.crc32(bytes(data[: entries[0].size]))}
    )
    digest = hashlib.sha256(data).hexdigest()
    lines = [json.dumps(json.loads(header.dumps()) | {"sha256": digest}), *(entry.dumps() for entry in entries)]
    (copied / "shard-000000.tar").write_bytes(data)
    (copied / "shard-000000.jsonl").write_text("\n".join(lines) + "\n")
    succeed("-m", "preprocess", "merge", copied)
    assert "no faults" in succeed("-m", "preprocess", "verify", copied)
    done = run("-m", "preprocess", "verify", copied, "--deep")
    assert done.returncode == 1 and "shard-000000.tar, test_down_bricks" in done.stdout and says in done.stdout


@needs_real_data
def test_small_jpegs_are_refused_by_name_wherever_they_are_read() -> None:
    place = REAL / "reports/hostile/small-jpeg-set"
    says = "shard-000000.tar, a_v_BodyWeightSquats_g15_c04: .*mjpg: frame 0 does not decode to 42x32: a picture of 8x8"
    done = run("-m", "preprocess", "verify", place, "--deep")
    assert done.returncode == 1 and re.search(says, done.stdout)
    shards = ShardSet(place)
    loader = TrainLoader(shards, np.array([0]), ClipConfig(frames=2, size=16), clips=1, batch=1, seed=0, workers=0)
    with pytest.raises(FormatError, match=r"shard-000000.tar.*frame \d+ does not decode to 42x32: a picture of 8x8"):
        list(loader)


def test_what_is_no_set_is_refused(tmp_path: Path) -> None:
    assert "no manifest.json there" in refuse("-m", "preprocess", "verify", tmp_path)
