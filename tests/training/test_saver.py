"""Checkpoints in the background: which are kept, what a full disk costs, which one is found again."""

import errno
import os
import random
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import REAL, needs_real_data

from dclr import checkpoint
from dclr.errors import InputError, NotKept
from dclr.training import saver
from dclr.training.saver import LAST, Saver


def state(step: int) -> dict:
    return {"config": {}, "model": {"w": torch.full((1000,), float(step))}, "step": step}


def filled(folder: Path, steps: range, keep: int = 2, milestone: int = 4) -> Saver:
    writer = Saver(folder, keep, milestone)
    for step in steps:
        writer.save(step, state(step))
    writer.wait()
    return writer


def damage(path: Path) -> None:
    """One bit of a tensor, which torch.load would not notice."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_last_ones_and_milestones_are_kept(tmp_path: Path) -> None:
    filled(tmp_path, range(1, 12))
    assert [saver.number(path) for path in saver.found(tmp_path)] == [11, 10, 8, 4]
    assert checkpoint.load(tmp_path / LAST)["step"] == 11 and not list(tmp_path.glob(".*"))


def test_what_is_saved_is_the_state_at_that_time(tmp_path: Path) -> None:
    writer, weights = Saver(tmp_path, 1, 1), {"w": torch.zeros(2_000_000)}
    writer.save(1, {"config": {}, "model": weights})
    weights["w"].fill_(7)  # the training goes on
    writer.wait()
    assert not checkpoint.load(tmp_path / LAST)["model"]["w"].any()


def test_the_newest_valid_one_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert saver.resume(tmp_path, "auto") is None
    filled(tmp_path, range(1, 5), keep=3)
    (tmp_path / "step-000000099.pt").write_bytes(b"")
    (tmp_path / "step-9.pt").write_bytes(b"somebody's own")
    damage(tmp_path / "step-000000004.pt")
    (found := saver.resume(tmp_path, "auto"))
    assert found is not None and found["step"] == 3
    told = capsys.readouterr().err
    assert "passed over" in told and "step-000000099.pt" in told and "step-000000004.pt: not a readable checkpoint" in told
    assert saver.resume(tmp_path, str(tmp_path / "step-000000002.pt"))["step"] == 2  # type: ignore[index]
    with pytest.raises(InputError, match="no such checkpoint"):
        saver.resume(tmp_path, str(tmp_path / "step-000000007.pt"))
    with pytest.raises(InputError, match=r"holds step-000000099.pt of an earlier run"):
        saver.resume(tmp_path, "never")
    for path in [*saver.found(tmp_path), tmp_path / LAST]:
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="none of its 5 checkpoints can be read"):
        saver.resume(tmp_path, "auto")


def test_whatever_bit_is_damaged_an_older_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    """Of the zip's own records every bit decides how it is read: flags, methods, sizes, names, offsets."""
    filled(tmp_path, range(1, 3))
    newest = saver.found(tmp_path)[0]
    whole = newest.read_bytes()
    (tmp_path / LAST).unlink()
    with zipfile.ZipFile(newest) as archive:
        headers = [member.header_offset for member in archive.infolist()]
        directory = archive.start_dir
    places = [at + n for at in headers for n in range(30)] + list(range(directory, len(whole)))
    draw = random.Random(0)
    for place in draw.sample(places, 400):
        data = bytearray(whole)
        data[place] ^= 1 << draw.randrange(8)
        newest.write_bytes(data)
        found = saver.resume(tmp_path, "auto")
        assert found is not None and torch.equal(found["model"]["w"], state(found["step"])["model"]["w"]), place


def test_a_file_that_unpacks_to_more_than_it_has_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path / "plain.pt", state(1) | {"model": {"w": torch.zeros(4_000_000)}})
    bomb = tmp_path / "step-000000009.pt"
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(InputError, match=r"step-000000009.pt: \d+ bytes that say they unpack to 16\d{6}, expected a file of"):
        checkpoint.load(bomb)


@needs_real_data
def test_the_reported_zip_bomb_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(InputError, match="unpack to 3"):
        checkpoint.load_trunk(REAL / "reports/hostile/zipbomb.pt")


def test_last_is_resumed_where_every_other_is_damaged(tmp_path: Path) -> None:
    """On a file system without hard links it is a copy."""
    filled(tmp_path, range(1, 4))
    for path in saver.found(tmp_path):
        whole = path.read_bytes()
        path.unlink()
        path.write_bytes(whole[:-100])
    assert saver.resume(tmp_path, "auto")["step"] == 3  # type: ignore[index]


def test_a_run_that_went_back_keeps_what_it_writes_and_sets_aside_what_lies_above(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path, range(1, 7), keep=3, milestone=4)  # 6, 5, 4
    writer = Saver(tmp_path, 1, 4)  # resumed from another folder's step 2, say
    for step in (3, 5):
        writer.save(step, state(10 * step))
        writer.wait()
        assert checkpoint.load(saver.found(tmp_path)[0])["step"] == 10 * step
        assert saver.resume(tmp_path, "auto")["step"] == 10 * step  # type: ignore[index]
    aside = sorted(tmp_path.glob("*.abandoned"))
    assert [checkpoint.load(path)["step"] for path in aside] == [4, 5, 6]
    assert "step-000000006.pt is set aside" in capsys.readouterr().err


def test_a_run_that_was_started_from_a_file_goes_on(tmp_path: Path) -> None:
    """torchrun starts the same command again: it goes on from the run's own newest checkpoint, which is not another run's."""
    start, out = tmp_path / "start.pt", tmp_path / "run"
    out.mkdir()
    checkpoint.save(start, state(2))
    for step, began, expected in ((9, "auto", 2), (4, str(start), 4), (6, str(start), 6)):
        writer = Saver(out, 2, 100)
        writer.save(step, state(step) | {"config": {"resume": began}})
        writer.wait()
        assert saver.resume(out, str(start))["step"] == expected  # type: ignore[index]
    damage(saver.found(out)[0])
    assert saver.resume(out, str(start))["step"] == 4  # type: ignore[index]
    start.unlink()  # an own checkpoint of this folder, no longer kept
    assert saver.resume(out, str(start))["step"] == 4  # type: ignore[index]


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = filled(tmp_path, range(1, 3))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(os, call, full)
        broken.setattr(saver.shutil, "copyfile", full)
        writer.save(3, state(3))
        with pytest.raises(NotKept, match=r"the checkpoint of step 3 could not be written \(No space left.*kept is step-0"):
            writer.require(3)
    told = capsys.readouterr().err
    assert "warning: the checkpoint of step 3 could not be written" in told and "No space left" in told
    assert not list(tmp_path.glob(".*")) and checkpoint.load(tmp_path / LAST)["step"] == 2
    writer.save(4, state(4))  # there is space again
    writer.require(4)
    assert checkpoint.load(tmp_path / LAST)["step"] == 4
