"""The pipeline from plan to batch: the same batches for any number of ranks and workers, damage named."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dclr.data.clips import ClipConfig
from dclr.data.loader import eval_loader, train_loader
from dclr.data.manifest import ShardSet
from dclr.record import FormatError

CLIP = ClipConfig(frames=4, stride=2, size=16, cue=True)


def batches(folder: Path, steps: tuple[int, int] = (0, 12), **more: Any) -> list[dict[str, Any]]:
    shards = ShardSet(folder)
    return list(train_loader(shards, shards.select(["train"]), CLIP, clips=2, batch=8, seed=0, steps=steps, **more))


def test_batches_hold_two_clips_of_each_video_and_its_names(synthetic_set: Path) -> None:
    found = batches(synthetic_set, (0, 1), kind="scene")[0]
    assert found["rgb"].shape == (8, 2, 4, 16, 16, 3) and found["rgb"].dtype == torch.uint8
    assert found["cue"].shape == (8, 2, 4, 16, 16) and found["colours"].shape == (8, 2, 2, 10)
    assert len(set(found["video"].tolist())) == len(set(found["key"])) == 8
    shards = ShardSet(synthetic_set)
    assert [shards.keys[i] for i in found["sample"]] == found["key"]
    assert found["label"].tolist() == shards.labels["scene"][found["sample"]].tolist()


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches(synthetic_set: Path, workers: int) -> None:
    one, many = batches(synthetic_set), batches(synthetic_set, workers=workers)
    assert len(one) == len(many) == 12  # one and a half epochs of 64 videos
    for a, b in zip(one, many, strict=True):
        assert a["key"] == b["key"]
        assert all(torch.equal(a[name], b[name]) for name in a if name != "key")


def test_ranks_join_to_the_batches_of_one(synthetic_set: Path) -> None:
    one = batches(synthetic_set)
    shares = [batches(synthetic_set, rank=rank, world=2) for rank in (0, 1)]
    for whole, *parts in zip(one, *shares, strict=True):
        for name in ("rgb", "colours", "sample"):
            torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name])


def test_a_run_that_starts_later_sees_what_it_would_have_seen(synthetic_set: Path) -> None:
    whole, rest = batches(synthetic_set, (0, 20)), batches(synthetic_set, (7, 20))
    for a, b in zip(whole[7:], rest, strict=True):
        assert a["key"] == b["key"] and torch.equal(a["rgb"], b["rgb"])


def test_an_epoch_of_several_passes_is_one_list(synthetic_set: Path) -> None:
    """48 batches of 8 are two epochs of three passes over 64 videos: each video thrice an epoch, another clip each time."""
    found = batches(synthetic_set, (0, 48), passes=3)
    for epoch in (found[:24], found[24:]):
        counts = np.bincount(np.concatenate([b["sample"] for b in epoch]))
        assert set(counts[counts > 0]) == {3} and (counts > 0).sum() == 64
    first = [b["rgb"][i] for b in found for i in range(8) if int(b["sample"][i]) == int(found[0]["sample"][0])]
    assert len(first) == 6 and all(not torch.equal(first[0], other) for other in first[1:])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_evaluation_reads_every_video_once(synthetic_set: Path, world: int) -> None:
    shards = ShardSet(synthetic_set)
    test = shards.select(["test"])
    loaders = [eval_loader(shards, test, CLIP, clips=3, rank=r, world=world, kind="motion") for r in range(world)]
    seen = [b for loader in loaders for b in loader]
    assert sorted(int(b["sample"]) for b in seen) == test.tolist()
    assert all(b["rgb"].shape == (1, 3, 4, 16, 16, 3) for b in seen)


def test_damage_inside_a_shard_is_named(synthetic_set: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(synthetic_set, tmp_path / "copy", ignore=shutil.ignore_patterns("videos")))
    data = bytearray((copy / "shard-000000.tar").read_bytes())
    data[:20_000] = bytes(20_000)
    (copy / "shard-000000.tar").write_bytes(data)
    with pytest.raises(FormatError, match=r"shard-000000.tar, sample 'test_.*' at byte 0: .*the shard is damaged"):
        list(eval_loader(ShardSet(copy), np.array([0]), CLIP, clips=1))
