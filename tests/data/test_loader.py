"""The pipeline from plan to batch: the same batches for any number of ranks and workers, from any step on; damage named."""

import itertools
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import context
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, SMALL, refuse, run, scalars, succeed

from dclr.data.clips import ClipConfig, eval_clips
from dclr.data.loader import Beside, TrainLoader, eval_loader
from dclr.data.manifest import ShardSet
from dclr.data.pages import Pages
from dclr.errors import InputError
from dclr.record import FormatError

CLIP = ClipConfig(frames=4, stride=2, size=16, cue="diff")
Batch = dict[str, Any]


def loader(folder: Path | str, **more: Any) -> TrainLoader:
    shards = ShardSet(folder, keep_damaged=more.get("on_error") == "skip")
    return TrainLoader(shards, shards.select(["train"]), CLIP, **({"clips": 2, "batch": 8, "seed": 0} | more))


def take(some: TrainLoader, steps: int) -> list[Batch]:
    """The next ``steps`` batches, over epochs."""
    return list(itertools.islice(itertools.chain.from_iterable(itertools.repeat(some)), steps))


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a["key"] == b["key"] and a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a if name != "key")


def test_batches_hold_two_clips_of_each_video_and_its_names(synthetic_set: Path) -> None:
    found = take(loader(synthetic_set, kind="scene"), 1)[0]
    assert found["rgb"].shape == (8, 2, 4, 16, 16, 3) and found["rgb"].dtype == torch.uint8
    assert found["cue"].shape == (8, 2, 4, 16, 16) and found["colours"].shape == (8, 2, 2, 10)
    assert len(set(found["video"].tolist())) == len(set(found["key"])) == 8
    shards = ShardSet(synthetic_set)
    assert [shards.keys[i] for i in found["sample"]] == found["key"]
    assert found["video"].tolist() == shards.video_N[found["sample"]].tolist()
    assert found["label"].tolist() == shards.labels["scene"][found["sample"]].tolist()


def test_an_epoch_shows_every_video_once_and_the_next_one_goes_on(synthetic_set: Path) -> None:
    some = loader(synthetic_set)
    first, second = list(some), list(some)
    assert len(first) == len(second) == len(some) == 8 and some.step == 16
    for epoch in (first, second):
        assert len({key for batch in epoch for key in batch["key"]}) == 64
    assert first[0]["key"] != second[0]["key"]


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches(synthetic_set: Path, workers: int) -> None:
    assert_same(take(loader(synthetic_set), 12), take(loader(synthetic_set, workers=workers), 12))


def test_ranks_join_to_the_batches_of_one(synthetic_set: Path) -> None:
    one = take(loader(synthetic_set), 12)
    shares = [take(loader(synthetic_set, rank=rank, world=2), 12) for rank in (0, 1)]
    for whole, *parts in zip(one, *shares, strict=True):
        for name in ("rgb", "colours", "sample"):
            torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name])


@pytest.mark.parametrize(("workers", "stop", "then"), [(0, 1, 0), (0, 8, 2), (2, 5, 2), (2, 11, 1)])
def test_stopped_after_any_step_it_continues_bit_for_bit(synthetic_set: Path, workers: int, stop: int, then: int) -> None:
    whole = take(loader(synthetic_set), 20)
    before = loader(synthetic_set, workers=workers)
    take(before, stop)
    state = json.loads(json.dumps(before.state_dict()))  # plain numbers and a hash: any checkpoint can hold them
    after = loader(synthetic_set, workers=then)
    after.load_state_dict(state)
    assert_same(whole[stop:], take(after, 20 - stop))


def test_resumed_on_other_ranks_the_global_batches_are_the_same(synthetic_set: Path) -> None:
    whole = take(loader(synthetic_set), 12)
    half = loader(synthetic_set, rank=1, world=2)
    take(half, 7)
    shares = []
    for rank in range(4):
        after = loader(synthetic_set, rank=rank, world=4)
        after.load_state_dict(half.state_dict())
        shares.append(take(after, 5))
    for batch, *parts in zip(whole[7:], *shares, strict=True):
        assert [key for part in parts for key in part["key"]] == batch["key"]


def test_a_state_of_something_else_is_refused(synthetic_set: Path, tmp_path: Path) -> None:
    state = loader(synthetic_set).state_dict()
    for name, other in {
        "version": 2,
        "seed": 1,
        "batch": 16,
        "passes": 3,
        "wrap": 1,
        "selection": 5,
        "manifest": "0" * 64,
    }.items():
        with pytest.raises(InputError, match=rf"says {name} {other!r}, expected {state[name]!r}"):
            loader(synthetic_set).load_state_dict(state | {name: other})
    for step in (-1, None, "5"):
        with pytest.raises(InputError, match="expected a number of batches"):
            loader(synthetic_set).load_state_dict(state | {"step": step})


def test_an_epoch_of_several_passes_is_one_list(synthetic_set: Path) -> None:
    """48 batches of 8 are two epochs of three passes over 64 videos: each video thrice an epoch, another clip each time."""
    found = take(loader(synthetic_set, passes=3), 48)
    for epoch in (found[:24], found[24:]):
        counts = np.bincount(np.concatenate([b["sample"] for b in epoch]))
        assert set(counts[counts > 0]) == {3} and (counts > 0).sum() == 64
    first = [b["rgb"][i] for b in found for i in range(8) if int(b["sample"][i]) == int(found[0]["sample"][0])]
    assert len(first) == 6 and all(not torch.equal(first[0], other) for other in first[1:])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_evaluation_reads_every_video_once(synthetic_set: Path, world: int) -> None:
    shards = ShardSet(synthetic_set)
    test = shards.select(["test"])
    loaders = [eval_loader(shards, test, CLIP, clips=3, crops=3, rank=r, world=world, kind="motion") for r in range(world)]
    seen = [b for some in loaders for b in some]
    assert sorted(int(b["sample"]) for b in seen) == test.tolist()
    assert all(b["rgb"].shape == (1, 9, 4, 16, 16, 3) for b in seen)
    with pytest.raises(InputError, match="--crops 5"):
        eval_loader(shards, test, CLIP, clips=3, crops=5)


def test_more_processes_than_samples_are_refused(synthetic_set: Path) -> None:
    shards = ShardSet(synthetic_set)
    few = shards.select(["train"])[:3]
    with pytest.raises(InputError, match=r"8 processes and 3 samples selected.*start fewer processes or choose more splits"):
        TrainLoader(shards, few, CLIP, clips=2, batch=8, seed=0, world=8)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


TRAINS = """
import multiprocessing, sys
from test_loader import loader, status

if __name__ == "__main__":
    some = loader(sys.argv[1], workers=1)
    batches = iter(some)
    next(batches)
    (worker,) = multiprocessing.active_children()
    print(worker.pid, status(worker.pid)["PPid"], flush=True)
    sys.stdin.readline()
    print(len(list(batches)), flush=True)
    if sys.stdin.readline() == "terminates\\n":
        worker.terminate()
        worker.join()
        print(worker.exitcode, flush=True)
        sys.stdin.readline()
    raise RuntimeError
"""


@pytest.mark.parametrize("end", ["raises", "terminates", "is killed"])
def test_workers_obey_the_trainer_alone_and_nothing_is_left_behind_it(synthetic_set: Path, tmp_path: Path, end: str) -> None:
    """Signals go to a whole process group; the trainer then still has batches to take."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/trains.py").write_text(TRAINS)
    (tmp_path / "here/dclr").mkdir(parents=True)
    (tmp_path / "here/dclr/__init__.py").write_text("raise RuntimeError('not what the trainer imports')")
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}:{REPOSITORY / 'tests' / 'data'}"}
    trainer = subprocess.Popen(
        [sys.executable, tmp_path / "scripts/trains.py", synthetic_set], env=environment | {"OMP_NUM_THREADS": "2"}, text=True,
        cwd=tmp_path / "here", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert trainer.stdin and trainer.stdout
        processes = worker, server = [int(pid) for pid in trainer.stdout.readline().split()]
        assert server != trainer.pid and status(server)["Threads"] == "1"  # a fork has no other
        for pid, number in itertools.product(processes, (signal.SIGTERM, signal.SIGINT)):
            os.kill(pid, number)
        print(file=trainer.stdin, flush=True)
        assert trainer.stdout.readline() == "7\n" and alive(worker) and alive(server)
        if end == "terminates":
            print(end, file=trainer.stdin, flush=True)
            assert trainer.stdout.readline() == "0\n" and not alive(worker) and alive(server)
        elif end == "is killed":
            trainer.kill()
        trainer.communicate("\n", timeout=60)
    finally:
        trainer.kill()
    until = time.monotonic() + 30
    while any(map(alive, processes)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, processes))


def tells(*_: Any, **__: Any) -> Any:
    raise InputError(f"{os.environ.get('SAID')} and {'PYTHONSAFEPATH' in os.environ}")


def test_a_worker_has_the_environment_of_its_trainer_and_not_that_of_an_older_server(
    synthetic_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    some = loader(synthetic_set, workers=1)
    some._stages[1].make = tells
    monkeypatch.setenv("SAID", "later")
    with pytest.raises(InputError, match="later and False"):
        next(iter(some))


def test_workers_are_spawned_where_no_server_can_be(synthetic_set: Path, tmp_path: Path) -> None:
    """Its socket has a path of a hundred bytes at most."""
    place = tmp_path / ("long" * 25)
    place.mkdir()
    (tmp_path / "spawns.py").write_text(
        "import sys\nfrom test_loader import loader\n"
        "if __name__ == '__main__':\n    print(len(list(loader(sys.argv[1], workers=1))))\n"
    )
    environment = {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}:{REPOSITORY / 'tests' / 'data'}", "TMPDIR": str(place)}
    command = [sys.executable, tmp_path / "spawns.py", synthetic_set]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "8\n", done.stderr


def test_the_pages_of_any_number_of_workers_are_one_open_file() -> None:
    """A fork server takes 250."""

    class Popen:
        DupFd, fds = int, list[int]()

        def duplicate_for_child(self, fd: int) -> int:
            self.fds.append(fd)
            return fd

    context.set_spawning_popen(Popen())
    try:
        ForkingPickler.dumps(Pages(100, 8))
    finally:
        context.set_spawning_popen(None)
    assert len(Popen.fds) == 1


def test_the_stages_are_picklable_and_small(synthetic_set: Path) -> None:
    """They are sent to spawned workers; any stock reader iterates the shards too: test_run.py."""
    some = loader(synthetic_set)
    data = pickle.dumps(some._stages)
    assert len(data) < 50_000
    (read,) = (stage for stage in pickle.loads(data) if hasattr(stage, "told"))
    assert list(read.shards.keys) == list(some._stages[0].shards.keys)


def damaged_copy(source: Path, folder: Path, samples: list[int]) -> Path:
    """A copy in which these samples are overwritten with zeros."""
    copy = Path(shutil.copytree(source, folder, ignore=shutil.ignore_patterns("videos")))
    shards = ShardSet(source)
    for sample in samples:
        name, offset, size = shards.where(sample)
        with (copy / name).open("r+b") as file:
            file.seek(offset)
            file.write(bytes(size))
    return copy


def test_damage_inside_a_shard_is_named(synthetic_set: Path, tmp_path: Path) -> None:
    copy = damaged_copy(synthetic_set, tmp_path / "copy", [0])
    with pytest.raises(FormatError, match=r"shard-000000.tar, sample 'test_.*' at byte 0: .*the shard is damaged"):
        list(eval_loader(ShardSet(copy), np.array([0]), CLIP, clips=1))


def test_a_shard_that_shrinks_while_it_is_read_is_named(synthetic_set: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(synthetic_set, tmp_path / "copy", ignore=shutil.ignore_patterns("videos")))
    shards = ShardSet(copy)
    last = len(shards) - 1
    name, offset, size = shards.where(last)
    (copy / name).write_bytes((copy / name).read_bytes()[: offset + 700])
    with pytest.raises(FormatError, match=rf"{name}, sample .* at byte {offset}: 700 bytes found, {size} expected"):
        shards.read(last)
    (copy / name).unlink()
    fresh = ShardSet(copy, keep_damaged=True)
    assert len(fresh.damaged) == 1 and re.search(rf"{name} is missing, manifest.json says \d+ bytes", fresh.damaged[0])
    with pytest.raises(InputError, match=f"{name} is missing"):
        ShardSet(copy)


def test_damage_inside_a_picture_is_named_and_skipped(synthetic_set: Path, tmp_path: Path) -> None:
    """Headers and offsets are right: only decoding tells. Training goes on with others, an evaluation without them."""
    whole = ShardSet(synthetic_set)
    copy = Path(shutil.copytree(synthetic_set, tmp_path / "copy", ignore=shutil.ignore_patterns("videos")))
    bad = [int(whole.select(["train"])[3]), *whole.select(["test"])[:5].tolist()]
    for sample in bad:
        name, offset, _ = whole.where(sample)
        with (copy / name).open("r+b") as file:
            file.seek(offset + 512)
            file.write(bytes(whole.read(sample).rgb.offsets[-1]))
    with pytest.raises(FormatError, match=r"shard-.*tar, sample .* at byte .*frame \d+ does not decode.*the shard is damaged"):
        list(loader(copy))
    for workers in (0, 1):
        some = loader(copy, on_error="skip", workers=workers)
        assert all(len(batch["key"]) == 8 for batch in some) and some.skipped == {bad[0]}
        test = eval_loader(ShardSet(copy), whole.select(["test"]), CLIP, clips=1, on_error="skip", workers=workers)
        assert len(list(test)) == 32 - 5


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_is_replaced_and_counted(synthetic_set: Path, tmp_path: Path, workers: int) -> None:
    """No batch is short, the stand-ins are the same for any number of workers, and the rest is untouched."""
    whole = loader(synthetic_set)
    bad = whole.plan.source.samples_N[[0, 5, 33]].tolist()
    copy = damaged_copy(synthetic_set, tmp_path / "copy", bad)
    some = loader(copy, on_error="skip", workers=workers)
    found = list(some)
    assert some.skipped == set(bad) and all(len(batch["key"]) == 8 for batch in found)
    for batch, before in zip(found, whole, strict=True):
        stand_in = batch["damaged"] >= 0
        assert torch.equal(torch.where(stand_in, batch["damaged"], batch["sample"]), before["sample"])
        assert torch.equal(batch["rgb"][~stand_in], before["rgb"][~stand_in])
        assert not set(batch["sample"].tolist()) & set(bad)
    assert_same(found, list(loader(copy, on_error="skip")))
    with pytest.raises(FormatError, match="the shard is damaged"):
        list(loader(copy))


def test_an_evaluation_leaves_out_what_cannot_be_read(synthetic_set: Path, tmp_path: Path) -> None:
    test = ShardSet(synthetic_set).select(["test"])
    copy = ShardSet(damaged_copy(synthetic_set, tmp_path / "copy", [int(test[3])]))
    seen = [int(batch["sample"]) for batch in eval_loader(copy, test, CLIP, clips=1, on_error="skip")]
    assert seen == [sample for sample in test.tolist() if sample != test[3]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_partner_lends_its_background(synthetic_set: Path, tmp_path: Path, workers: int) -> None:
    """Beside a video's own pictures there is the background of another, on any number of ranks and workers. Where either cannot
    be read, the video is left out."""
    shards = ShardSet(synthetic_set)
    test = shards.select(["test"])[:6]
    beside = Beside(("moving", "ground", "noise"), 3, dict(zip(test.tolist(), np.roll(test, 1).tolist(), strict=True)))
    found = [
        list(eval_loader(shards, test, CLIP, clips=2, beside=beside, rank=rank, world=2, workers=workers)) for rank in (0, 1)
    ]
    assert [batch["sample"].tolist() for batch in found[0]] == [
        [sample, beside.partner[sample]] for sample in test[::2].tolist()
    ]
    for batch in [*found[0], *found[1]]:
        sample, partner = batch["sample"].tolist()
        own = eval_clips(shards.read(sample), CLIP, 2, names=("rgb", "moving", "noise"), seed=3)
        other = eval_clips(shards.read(partner), CLIP, 2, names=("rgb", "moving", "ground"))
        for name in ("rgb", "moving", "noise"):
            np.testing.assert_array_equal(batch[name][0], own[name])
        np.testing.assert_array_equal(batch["ground"][1], other["ground"])
    copy = ShardSet(damaged_copy(synthetic_set, tmp_path / "copy", [int(test[3])]))
    loader = eval_loader(copy, test, CLIP, clips=2, beside=beside, workers=workers, on_error="skip")
    assert [int(batch["sample"][0]) for batch in loader] == test[[0, 1, 2, 5]].tolist()


def test_training_goes_on_without_damaged_videos_up_to_a_budget(synthetic_set: Path, tmp_path: Path) -> None:
    train = ShardSet(synthetic_set).select(["train"])
    copy = damaged_copy(synthetic_set, tmp_path / "copy", train[:2].tolist())
    (copy / "shard-000001.tar").write_bytes((copy / "shard-000001.tar").read_bytes()[:-1024])  # tar's end: no sample is in it
    common = ("--shards", copy, "--split", "train", *SMALL, "-b", "8", "--epochs", "1")
    assert "shard-000001.tar has" in refuse("train_pretrain.py", *common, "--out", tmp_path / "stop")
    done = run("train_pretrain.py", *common, "--out", tmp_path / "two", "--on-error", "skip", "--max-skipped", "5", ranks=2)
    assert done.returncode == 0, done.stderr
    assert scalars(tmp_path / "two")["data/skipped"][-1] == 2 and "skipped:" in done.stderr and "damaged:" in done.stderr
    budget = refuse("train_pretrain.py", *common, "--out", tmp_path / "most", "--on-error", "skip")
    assert "2 of 64 videos could not be read, more than --max-skipped 1 percent" in budget


def test_an_evaluation_says_what_it_left_out(synthetic_set: Path, tmp_path: Path) -> None:
    train = ShardSet(synthetic_set).select(["train"])
    copy = damaged_copy(synthetic_set, tmp_path / "copy", train[:1].tolist())
    common = ("--shards", copy, "--train-split", "train", "--test-split", "test", "--pretrained", "random", *SMALL, "-b", "16")
    for mode, more in (("linear", ("-cpv", "1")), ("finetune", ("--epochs", "1", "-cpv", "1"))):
        skip = ("--test-clips", "1", "--on-error", "skip", "--max-skipped", "2", "--crops", "3")
        succeed("train_eval.py", mode, *common, *more, *skip, "--out", tmp_path / mode)
        result = json.loads((tmp_path / mode / "result.json").read_text())
        assert result["skipped"] == [ShardSet(copy).keys[train[0]]] and result["videos"] == 32


def test_the_last_partial_batch_is_a_choice_that_the_run_tells(synthetic_set: Path, tmp_path: Path) -> None:
    common = ("--shards", synthetic_set, "--split", "train", *SMALL, "-b", "24", "--epochs", "1", "--queue", "24")
    dropped = succeed("train_pretrain.py", *common, "--out", tmp_path / "drop")
    assert "2 steps an epoch" in dropped and "16 videos at each epoch's end are dropped" in dropped
    wrapped = succeed("train_pretrain.py", *common, "--last-batch", "wrap", "--sample-motion", "--out", tmp_path / "wrap")
    assert "3 steps an epoch" in wrapped and "wrapped to a batch with 8 again" in wrapped


def test_flags_that_cannot_work_are_refused(synthetic_set: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--on-error ignore: expected one of stop, skip"):
        loader(synthetic_set, on_error="ignore")
    common = ("train_pretrain.py", "--shards", synthetic_set, "--split", "train", *SMALL, "--out", tmp_path / "no")
    assert "is on this machine; leave --cache out" in refuse(*common, "--cache", tmp_path / "cache")
    assert "--last-batch half" in refuse(*common, "-b", "8", "--last-batch", "half")


def test_the_documented_example_runs(synthetic_set: Path, tmp_path: Path) -> None:
    """Our loader in somebody else's training loop, as docs/loader.md prints it, on a small set."""
    text = (REPOSITORY / "docs" / "loader.md").read_text()
    example = next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "TrainLoader" in block)
    assert len([line for line in example.splitlines() if line]) <= 11
    for name, value in {"shards/mine": str(synthetic_set), "train01": "train", "ClipConfig()": "ClipConfig(size=32)"}.items():
        assert name in example
        example = example.replace(name, value)
    step = "def train_step(clips, label):\n    print(tuple(clips.shape), clips.dtype, tuple(label.shape))\n\n"
    (tmp_path / "theirs.py").write_text(step + example)
    assert succeed(tmp_path / "theirs.py").splitlines() == ["(32, 2, 16, 32, 32, 3) torch.uint8 (32,)"] * 6
