"""What is trained on: videos that are chosen by the index, several sets as one, videos that train and test."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, needs
from hypothesis import given
from hypothesis import strategies as st
from servers import FileServer, serving
from test_loader import CLIP, assert_same, take

from dclr.data.clips import ClipConfig
from dclr.data.config import Choice, share
from dclr.data.fetch import Cache
from dclr.data.loader import TrainLoader
from dclr.data.manifest import Entry, Manifest, Shard, ShardSet, pack_columns
from dclr.data.sets import JoinedSets, Selection, choose, folds, leaks, same_videos, select
from dclr.errors import InputError
from dclr.settings import check_values

ENTRY = Entry("", 0, 512, 0, 0, {"action": 0}, ["train"], 50, 25.0, "")


def indexed(folder: Path, entries: list[Entry], **options: Any) -> ShardSet:
    """A set of which there is the index alone."""
    splits = sorted({split for entry in entries for split in entry.splits})
    index = pack_columns(entries, splits, ["action"])
    tar = Shard("shard-000000.tar", len(entries), 1024, "0" * 64)
    options = {"size": 32, "cues": ["energy"]} | options
    manifest = Manifest(
        "made", (tar,), dict.fromkeys(splits, 1), {"action": ["a", "b"]}, options, {}, hashlib.sha256(index).hexdigest()
    )
    folder.mkdir(exist_ok=True)
    (folder / "index.npz").write_bytes(index)
    (folder / "manifest.json").write_text(manifest.dumps())
    return ShardSet(folder, keep_damaged=True)


def videos(number: int, **fields: Any) -> list[Entry]:
    return [replace(ENTRY, key=f"v{n}", video=f"v{n}.mp4", motion=n / 2, **fields) for n in range(number)]


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """100 videos of which number n moves by n / 2; the last has segments."""
    segments = [replace(ENTRY, key=f"long_s{n}", video="long.mp4", motion=0.0) for n in range(8)]
    return indexed(tmp_path_factory.mktemp("sets") / "hundred", [*videos(99), *segments])


@given(shares=st.lists(st.floats(0.001, 1), min_size=2, max_size=2).map(sorted), least=st.floats(0, 40))
def test_a_smaller_share_is_a_part_of_a_larger_one(shares: list[float], least: float, hundred: ShardSet) -> None:
    """Exact to a video; and with what else is asked for it is the same share."""
    every_N = hundred.select(["train"])
    small, large = (choose(hundred, every_N, Choice(share=part)) for part in shares)
    assert set(small) <= set(large)
    assert [len(np.unique(hundred.video_N[some])) for some in (small, large)] == [max(1, round(100 * s)) for s in shares]
    moving = set(choose(hundred, every_N, Choice(min_motion=least)))
    if moving & set(large):
        assert set(choose(hundred, every_N, Choice(min_motion=least, share=shares[1]))) == moving & set(large)


def test_segments_of_a_video_are_chosen_together_and_shares_do_not_follow_the_list(hundred: ShardSet) -> None:
    every_N, long = hundred.select(["train"]), set(range(99, 107))
    for part in (0.1, 0.3, 0.5, 0.7, 0.9):
        chosen = choose(hundred, every_N, Choice(share=part))
        assert set(chosen) & long in (set(), long)
        assert 20 < np.mean(chosen[chosen < 99]) < 79


def test_videos_are_chosen_by_motion_and_length(tmp_path: Path) -> None:
    entries = [replace(one, frames=10 * (n + 1), fps=10.0 if n else 0) for n, one in enumerate(videos(6))]
    shards = indexed(tmp_path / "set", entries)
    every_N = shards.select(["train"])

    def chosen(**how: Any) -> list[int]:
        return choose(shards, every_N, Choice(**how)).tolist()

    assert chosen() == [0, 1, 2, 3, 4, 5]
    assert chosen(min_motion=1.0) == [2, 3, 4, 5] and chosen(max_motion=1.0) == [0, 1, 2]
    assert chosen(min_motion=0.5, max_motion=1.5) == [1, 2, 3]
    assert chosen(min_seconds=3.0) == [2, 3, 4, 5]
    assert chosen(min_seconds=0.4) == [0, 1, 2, 3, 4, 5]  # 25 frames a second where the source does not say
    assert chosen(min_seconds=0.41) == [1, 2, 3, 4, 5]
    with pytest.raises(InputError, match=r"--min-motion 9 leaves none of 6 videos .*0.4 to 6 sec.*motion is 0 to 2.5"):
        chosen(min_motion=9.0)


def test_a_set_that_does_not_know_its_motion_says_what_to_do(tmp_path: Path) -> None:
    older = [replace(one, motion=None) for one in videos(3)]
    shards = indexed(tmp_path / "older", [*videos(3), *older])
    assert len(choose(shards, np.arange(3), Choice(min_motion=0.5))) == 2  # those that are asked have it
    with pytest.raises(InputError, match=rf"--max-motion 1: the index of {tmp_path}/older .* preprocess merge {tmp_path}"):
        choose(shards, np.arange(6), Choice(max_motion=1.0))
    for shards in (indexed(tmp_path / "no", older, cues=["diff"]), indexed(tmp_path / "cues", older, cues=[])):
        with pytest.raises(InputError, match=rf"preprocess add-cues {tmp_path}/\w+ --cues energy adds that"):
            choose(shards, np.arange(3), Choice(min_motion=1.0))
        assert len(choose(shards, np.arange(3), Choice(share=0.34))) == 1


def test_a_share_is_per_cent_or_a_part() -> None:
    assert share("25%") == share("0.25") == share(" 25 %") == 0.25 and share("100%") == 1
    for text in ("-1%", "half", "", "nan", "1_0%", "25%%"):
        with pytest.raises(InputError, match=f"'{text}': expected a share of the videos, such as 25%"):
            share(text)
    for text in ("0%", "101%", "25"):
        with pytest.raises(InputError, match=r"--share .*: expected above 0 to 1"):
            check_values(Choice(share=share(text)))
    assert Choice().chosen_by == ""
    assert Choice(min_motion=2.0, share=0.25).chosen_by == "--min-motion 2 --share 0.25"


def test_each_of_several_sets_gives_the_splits_that_it_has(tmp_path: Path) -> None:
    one = indexed(tmp_path / "one", [*videos(2), *videos(3, splits=["test"])])
    other = indexed(tmp_path / "other", [*videos(4, splits=["train01"]), *videos(1, splits=["test"])])
    assert [len(samples) for samples in select([one, other], ["train", "train01"])] == [2, 4]
    assert [len(samples) for samples in select([one, other], ["test"])] == [3, 1]
    with pytest.raises(InputError, match=r"no split 'train' in .*other; it has: test \(1\), train01 \(4\)"):
        select([one, other], ["train"])
    with pytest.raises(InputError, match=r"no split 'val' in any of .*one, .*other; they have: test, train, train01"):
        select([one, other], ["train", "train01", "val"])
    with pytest.raises(InputError, match="no split 'train01'"):
        select([one], ["train", "train01"])
    chosen = Selection.of([one, other], ["train", "train01"], Choice(share=0.5))
    assert [len(some) for some in chosen.chosen_S] == [1, 2] and len(chosen.samples_N) == 3
    assert np.sum(chosen.samples_N >= 5) == 2  # the other's come after the five of one


def test_videos_of_two_sets_have_ids_of_their_own_and_classes_of_one_name_are_one(tmp_path: Path) -> None:
    named = [replace(one, labels={"action": n % 2}) for n, one in enumerate(videos(50))]
    sets = [indexed(tmp_path / name, named, dataset=name) for name in "abc"]  # the same paths
    sets[1].classes = {"action": ["c", "a"], "scene": ["x"]}
    sets[1].labels = {"action": np.array([0, 1] * 25), "scene": np.zeros(50, int)}
    both = JoinedSets(sets)
    assert len(both) == len(set(both.video_N.tolist())) == 150 and both.video_N.min() >= 0
    np.testing.assert_array_equal(both.video_N % 3, np.repeat([0, 1, 2], 50))
    assert both.classes == {"action": ["a", "b", "c"], "scene": ["x"]}
    assert both.labels["action"].reshape(3, 25, 2)[:, 7].tolist() == [[0, 1], [2, 0], [0, 1]]
    assert both.labels["scene"].tolist() == [-1] * 50 + [0] * 50 + [-1] * 50
    assert list(both.keys[n] for n in (0, 49, 50, 149)) == ["v0", "v49", "v0", "v49"]
    seen = TrainLoader(both, np.arange(150), CLIP, clips=1, batch=150, seed=0).plan.rows(0)[1]
    orders = [tuple(seen[seen // 50 == number] % 50) for number in range(3)]
    assert len(set(orders)) == 3 and all(sorted(order) == list(range(50)) for order in orders)
    with pytest.raises(InputError, match=rf"--shards {tmp_path}/a: the same set twice; name it once"):
        JoinedSets([sets[0], sets[1], ShardSet(tmp_path / "a", keep_damaged=True)])


@pytest.fixture(scope="module")
def pair(synthetic_set: Path, h264_set: Path) -> tuple[ShardSet, ShardSet]:
    """Two sets of drawn videos, whose keys and paths are partly the same."""
    one, other = ShardSet(synthetic_set), ShardSet(h264_set)
    assert set(one.keys) & set(other.keys)
    return one, other


def mixed(sets: tuple[ShardSet, ...], **more: Any) -> TrainLoader:
    chosen = Selection.of(sets, ["train"], Choice())
    how = {"clips": 2, "batch": 8, "seed": 0, "weights": (0.7, 0.3)} | more
    return TrainLoader(chosen.shards, chosen.samples_N, CLIP, **how)


def test_two_sets_are_read_as_one(pair: tuple[ShardSet, ShardSet]) -> None:
    one, other = pair
    some = mixed(pair)
    assert len(some) == (64 + len(other.select(["train"]))) // 8
    batches = take(some, 20)
    sample_n = np.concatenate([batch["sample"] for batch in batches])
    assert np.sum(sample_n < len(one)) == 112  # of 160
    for batch in batches[:3]:
        for key, sample, video in zip(batch["key"], batch["sample"].tolist(), batch["video"].tolist(), strict=True):
            shards, at = (one, sample) if sample < len(one) else (other, sample - len(one))
            assert shards.keys[at] == key and video == shards.video_N[at] // 2 * 2 + (shards is other)
            np.testing.assert_array_equal(JoinedSets(pair).read(sample).frames([3]), shards.read(at).frames([3]))


def test_any_number_of_ranks_and_workers_reads_one_list(pair: tuple[ShardSet, ShardSet]) -> None:
    one = take(mixed(pair), 14)
    assert_same(one, take(mixed(pair, workers=2), 14))
    shares = [take(mixed(pair, rank=rank, world=2), 14) for rank in (0, 1)]
    for whole, *parts in zip(one, *shares, strict=True):
        for name in ("rgb", "colours", "sample", "video"):
            torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name])


def test_stopped_in_an_epoch_it_goes_on_with_the_same_bits(pair: tuple[ShardSet, ShardSet]) -> None:
    whole = take(mixed(pair), 26)
    for stop in (1, 12, 17):
        before = mixed(pair, workers=stop % 2)
        take(before, stop)
        after = mixed(pair)
        after.load_state_dict(json.loads(json.dumps(before.state_dict())))
        assert_same(whole[stop:], take(after, 26 - stop))
    for other in (mixed(pair, weights=(0.6, 0.4)), mixed(pair, weights=()), mixed(pair[::-1]), mixed(pair[:1], weights=())):
        with pytest.raises(InputError, match=r"the loader's state says (parts|selection|samples) "):
            other.load_state_dict(before.state_dict())


def test_one_set_is_read_as_ever(pair: tuple[ShardSet, ShardSet]) -> None:
    """Its state too; so runs that were made before go on."""
    plain = TrainLoader(pair[0], pair[0].select(["train"]), CLIP, clips=2, batch=8, seed=0)
    assert_same(take(plain, 10), take(mixed(pair[:1], weights=(0.5,)), 10))
    assert "parts" not in plain.state_dict() and plain.plan.left == 0


def test_a_damaged_video_is_replaced_by_one_of_its_set(pair: tuple[ShardSet, ShardSet], tmp_path: Path) -> None:
    one, other = pair
    copy = Path(shutil.copytree(other.root.place, tmp_path / "copy", ignore=shutil.ignore_patterns("videos")))
    bad = other.select(["train"])[:5]
    for sample in bad.tolist():
        name, offset, size = other.where(sample)
        with (copy / name).open("r+b") as file:
            file.seek(offset)
            file.write(bytes(size))
    some = mixed((one, ShardSet(copy)), on_error="skip")
    batches = take(some, 25)
    assert some.skipped == set((len(one) + bad).tolist())
    for batch in batches:
        stand_in = batch["damaged"] >= 0
        assert (batch["sample"][stand_in] >= len(one)).all() and len(batch["key"]) == 8
    with pytest.raises(InputError, match=rf"{copy}/shard-\d+.tar, sample 'train_.*the shard is damaged"):
        take(mixed((one, ShardSet(copy))), 25)


def test_a_set_without_chosen_samples_is_refused(pair: tuple[ShardSet, ShardSet]) -> None:
    both = JoinedSets(pair)
    with pytest.raises(InputError, match=f"no sample of {pair[1].root} is selected"):
        TrainLoader(both, pair[0].select(["train"]), CLIP, clips=1, batch=8, seed=0)


def test_the_documented_example_runs(pair: tuple[ShardSet, ShardSet]) -> None:
    text = (REPOSITORY / "docs" / "loader.md").read_text()
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "Selection" in block)
    places = {"shards/mine": str(pair[0]), "shards/other": str(pair[1]), '"train01", "train"': '"test", "train"'}
    for name, value in (places | {"min_motion=2": "min_motion=0.5", "ClipConfig()": "ClipConfig(size=32)"}).items():
        assert name in example
        example = example.replace(name, value)
    known: dict[str, Any] = {"ShardSet": ShardSet, "TrainLoader": TrainLoader, "ClipConfig": ClipConfig}
    exec(example.replace("batch=32", "batch=8"), known)
    assert next(iter(known["loader"]))["rgb"].shape == (8, 2, 16, 32, 32, 3) and known["loader"].plan.source.parts == (7, 3)


@needs("aiohttp")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_set_behind_a_url_beside_one_on_this_machine(pair: tuple[ShardSet, ShardSet], tmp_path: Path, workers: int) -> None:
    """Only the former's samples are fetched, and kept."""
    one, other = pair
    with serving(FileServer, folder=Path(one.root.place)) as (handler, port):
        remote = ShardSet(f"http://127.0.0.1:{port}")
        cache = Cache(tmp_path / "cache", 10**9)
        assert_same(take(mixed(pair), 12), take(mixed((remote, other), workers=workers, cache=cache, epochs=1), 12))
        fetched = {path for path in handler.requests if path.endswith(".tar")}
        assert fetched <= {f"/{tar.name}" for tar in one.tars} and fetched
    kept = {path.parent.name for path in (tmp_path / "cache").glob("*/*")}
    assert kept and kept <= {tar.sha256[:32] for tar in one.tars}
    with pytest.raises(InputError, match=f"--cache {tmp_path}/cache: .* is on this machine"):
        mixed((other,), weights=(), cache=cache)


def test_sets_share_a_cache_without_driving_each_other_out(pair: tuple[ShardSet, ShardSet], tmp_path: Path) -> None:
    """Each sample has a place of its own, also where both sets have one at the same byte of a shard of one name."""
    both, cache = JoinedSets(pair), Cache(tmp_path / "cache", 20_000)
    turns = [number for n in range(20) for number in (n, len(pair[0]) + n)]
    for count, sample in enumerate(turns):
        assert not cache.has(both, sample)
        cache.write(both, sample, bytes(1000))
        assert all(cache.has(both, one) for one in turns[: min(count + 1, 20)])
    assert not cache.has(both, turns[20]) and cache.full


def test_videos_that_train_and_test_are_named_with_both_keys(tmp_path: Path) -> None:
    same, part = "ab" * 16, "cd" * 16
    entries = [
        replace(ENTRY, key="one", video="one.mp4", content=same),
        replace(ENTRY, key="copy", video="other/copy.mp4", content=same, splits=["test"]),
        replace(ENTRY, key="first", video="long.mp4[0:50]", content=part),
        replace(ENTRY, key="second", video="long.mp4[50:90]", content=part[::-1], splits=["test"]),
        replace(ENTRY, key="early", video="hour.mp4[0.5:1e+16]"),
        replace(ENTRY, key="late", video="hour.mp4[90.25:]", splits=["test"]),
        replace(ENTRY, key="older", video="older.mp4"),
        replace(ENTRY, key="oldest", video="oldest.mp4", splits=["test"]),
        replace(ENTRY, key="both", video="both.mp4", splits=["test", "train"]),
    ]
    shards = indexed(tmp_path / "set", entries)
    train_N, test_N = shards.select(["train"]), shards.select(["test"])
    found = same_videos(shards, train_N, test_N)
    assert {what: sorted(pairs) for what, pairs in found.items()} == {
        "of the same file": [("both", "both"), ("early", "late"), ("first", "second")],
        "the same packets": [("one", "copy")],
    }
    assert "warning: 1 videos are in train and in test (the same packets): one and copy" in leaks(
        shards, ["train"], ["test"], train_N, test_N
    )
    assert leaks(shards, ["train"], ["test"], train_N[3:4], test_N[:4]) == []
    shards = indexed(
        tmp_path / "many",
        [
            replace(ENTRY, key=f"{split}{n}", video=f"{split}{n}", content=f"{n}" * 32, splits=[split])
            for n, split in itertools.product(range(8), ("train", "test"))
        ],
    )
    (line,) = leaks(shards, ["train"], ["test"], shards.select(["train"]), shards.select(["test"]))
    assert line.startswith("warning: 8 videos are in train and in test (the same packets): train0 and test0, train1 and test1")
    assert line.endswith(" and 3 more")


def test_folds_are_told_by_the_names_of_splits() -> None:
    names = ["test", "test01", "test02", "train", "train01", "train02", "train03", "val", "validation", "fit"]
    assert list(folds(names)) == [("train", "test"), ("train", "val"), ("train01", "test01"), ("train02", "test02")]
    assert list(folds(["fit", "validation"])) == []


def test_an_index_without_the_newer_columns_is_read(tmp_path: Path) -> None:
    shards = indexed(tmp_path / "set", [replace(one, motion=None) for one in videos(3)])
    assert np.isnan(shards.motion_N).all() and shards.content_N.tolist() == [-1] * 3
    np.testing.assert_array_equal(shards.path_N, shards.video_N)
    with np.load(tmp_path / "set" / "index.npz") as columns:
        assert not {"motion", "content", "path"} & set(columns)
