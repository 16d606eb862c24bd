"""Sets in stores: of several machines one writes at a time. Machines are told apart by where they keep their own locks."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import REPOSITORY, needs, refuse

from dclr import lease
from dclr.errors import InputError
from dclr.lease import LEASES, WHOLE, Lease, writing
from dclr.storage import RemoteFolder, open_folder

pytestmark = needs("moto", "s3fs")
PART = "part-1-of-2"


OVER = 2.1  # seconds after which a lease is over for others, in tests; a store's times are whole seconds


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners renew often."""
    for name, seconds in {"RENEWAL": 0.2, "ROUNDING": 1.0, "POLL": 0.5}.items():
        monkeypatch.setattr(lease, name, seconds)


@pytest.fixture
def asleep(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Leases are short and not renewed, as if the machine slept. What it yields wakes it, and makes later ones long."""
    with monkeypatch.context() as patch:
        patch.setattr(lease, "RENEWAL", 600.0)
        patch.setattr(lease, "LIFE", 1.0)
        yield patch.undo


@pytest.fixture
def place(bucket: str) -> str:
    return f"s3://{bucket}/set"


def taken(place: str, machine: Path, role: str = WHOLE) -> tuple[RemoteFolder, Lease]:
    """The set as a machine of that name sees it, and its lease, which is to be held."""
    machine.mkdir(exist_ok=True)
    out = RemoteFolder(place, 0)
    return out, Lease(out, role, place, machine)


@contextmanager
def process(place: str, temporary: Path, part: str = "None") -> Iterator[int]:
    """The number of a process that holds the set, on the machine whose temporary files are in ``temporary``."""
    temporary.mkdir(exist_ok=True)
    code = f"""
from dclr import lease
from dclr.storage import open_folder
lease.RENEWAL = 0.2
with lease.writing(open_folder({place!r}), {part}):
    print("held", flush=True)
    input()
"""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(temporary)}
    owner = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert owner.stdout
    try:
        assert owner.stdout.readline() == "held\n"
        yield owner.pid
    finally:
        owner.kill()
        owner.communicate()


def test_a_second_machine_is_refused_with_who_writes_since_when_until_that_is_killed(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with process(place, tmp_path / "other") as pid:
        owner = rf"process {pid} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
        said = refuse("-m", "preprocess", "folder", "--root", tmp_path, "--out", place)
        assert re.fullmatch(f"error: {place}: {owner} is writing there; wait for it, stop it, or name another folder", said)
        assert len(open_folder(place).files()) == 1  # the owner's lease: of the refused run nothing is left
        os.kill(pid, signal.SIGKILL)
    capfd.readouterr()
    monkeypatch.setattr(lease, "LIFE", 1.0)
    with writing(open_folder(place)):
        pass
    waited = f"{place}: {owner} has it; waiting to see whether that lives\n"
    assert re.fullmatch(f"({waited})?{place}: the lock of {owner}, which has ended, is taken over\n", capfd.readouterr().err)
    assert not open_folder(place).files()


def test_a_killed_run_of_this_machine_is_not_waited_for(place: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    taken(place, tmp_path / "a")[1]._renew()  # and no more
    with taken(place, tmp_path / "a")[1].held():
        assert len(list((tmp_path / "a").iterdir())) == len(open_folder(place).files()) == 1
    assert capfd.readouterr().err.count("\n") == 1
    assert not list((tmp_path / "a").iterdir())


def test_parts_are_written_side_by_side_and_nothing_else(place: str, tmp_path: Path) -> None:
    with taken(place, tmp_path / "a", PART)[1].held():
        with taken(place, tmp_path / "b", "part-2-of-2")[1].held():
            assert len(open_folder(place).files()) == 2
        for role in (PART, WHOLE):
            with pytest.raises(InputError, match="is writing there"):
                taken(place, tmp_path / "b", role)[1].held().__enter__()
    with taken(place, tmp_path / "a")[1].held(), pytest.raises(InputError, match="is writing there"):
        taken(place, tmp_path / "b", PART)[1].held().__enter__()


def test_of_many_that_begin_at_once_one_is_inside_at_a_time(place: str, tmp_path: Path) -> None:
    inside, most, entered = 0, 0, 0

    def enter(machine: int) -> None:
        nonlocal inside, most, entered
        with taken(place, tmp_path / str(machine))[1].held():
            inside += 1
            most, entered = max(most, inside), entered + 1
            time.sleep(0.05)
            inside -= 1

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, entered) == (1, 3)


def test_a_run_that_lost_its_lease_writes_nothing_more(place: str, asleep: Callable[[], None], tmp_path: Path) -> None:
    out, first = taken(place, tmp_path / "a")
    (file := tmp_path / "shard").write_bytes(b"1")
    with first.held():
        out.write("one", b"1")
        sent = pickle.loads(pickle.dumps(out))  # to another node of a cluster
        sent.write("two", b"1")
        time.sleep(OVER)
        out.write("three", b"1")  # late, and nobody has come
        time.sleep(OVER)
        _, second = taken(place, tmp_path / "b")
        second._renew()
        asleep()
        with second.held():
            for act in (lambda: out.write("four", b""), lambda: out.put("four", file), lambda: out.remove("one")):
                with pytest.raises(
                    InputError, match=r"has taken it over, because this run was silent; what is finished is kept"
                ):
                    act()
            with pytest.raises(InputError, match="the run that makes this set has ended or lost its lock"):
                sent.write("four", b"1")
        with pytest.raises(InputError, match="has taken it over"):  # for good
            out.write("four", b"1")
    assert set(open_folder(place).files()) == {"one", "two", "three"}
    out.write("four", b"1")  # outside, a folder is as free as before


def test_another_that_came_and_went_is_noticed(place: str, asleep: Callable[[], None], tmp_path: Path) -> None:
    out, first = taken(place, tmp_path / "a")
    with first.held():
        time.sleep(OVER)
        with taken(place, tmp_path / "b")[1].held():
            pass
        with pytest.raises(InputError, match=r"^s3://\S+: another run has taken it over, because"):
            out.write("one", b"1")


def test_a_lease_is_a_strangers_words(place: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, lines, locks = open_folder(place), f"all-{'0' * 32}", tmp_path / "locks" / "deep"
    locks.mkdir(parents=True)
    (locks / lines).touch()
    (tmp_path / "mine-1").touch()
    out.write(f"{LEASES}/{lines}", b"\x1b[31m\n" * 1000)
    others = {f"{LEASES}/{name}" for name in ("../../mine-1", "..", "all-1", "part-1-of-x")}  # no leases, left alone
    for name in others:
        out.write(name, b"")
    with taken(place, locks)[1].held():
        assert len(out.files()) == 1 + len(others)
    assert set(out.files()) == others and (tmp_path / "mine-1").exists()
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and len(said) < 400 and "\x1b" not in said


def test_a_store_that_keeps_no_times_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(RemoteFolder, "dated", False)
    with writing(open_folder("s3://bucket/set")):
        pass
    assert "its store has no locks; let no run on another machine write there" in capsys.readouterr().err
