"""Files that are whole or not there, and places that one process at a time writes to."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import REPOSITORY

from dclr.errors import InputError
from dclr.files import held, run_folder, whole
from dclr.lease import writing
from dclr.storage import open_folder


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole(path) as unfinished:
        unfinished.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with whole(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_by_the_files_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/result.json'"), whole(tmp_path / "result.json") as made:
        made.write_text("numbers")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_have_the_mode_that_umask_says(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with whole(tmp_path / "one") as unfinished:
            unfinished.write_text("")
        open_folder(tmp_path).write("two", b"")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "one", tmp_path / "two")] == [0o666 & ~mask] * 2


@contextmanager
def another(code: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has run ``code`` and then waits for a line."""
    code = f"""from pathlib import Path
from dclr.files import held
from dclr.lease import writing
from dclr.storage import open_folder
{code}"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


HOLDS = "with held(Path({path!r}), 'it'):\n    print('held', flush=True)\n    input()"


def test_the_second_is_refused_with_the_owners_number_and_host(tmp_path: Path) -> None:
    lock = tmp_path / "run" / ".lock"
    with another(HOLDS.format(path=str(lock))) as owner:
        with pytest.raises(InputError, match=rf"--out run: process {owner.pid} on \S+ is writing there; wait for it"):
            held(lock, "--out run").__enter__()
        owner.communicate("\n")
    assert not lock.parent.exists()  # it was made for the lock, and nothing else is in it
    with held(lock, "--out run"):
        assert f"process {os.getpid()}" in lock.read_text()


def test_a_dead_owners_lock_is_no_obstacle(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with another(HOLDS.format(path=str(lock))) as owner:
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
    assert f"process {owner.pid}" in lock.read_text()
    with held(lock, "it"):
        assert f"process {os.getpid()}" in lock.read_text()
    assert not lock.exists()


def test_one_that_waits_goes_on_when_it_is_free(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock, entered = tmp_path / "features.lock", threading.Event()

    def wait() -> None:
        with held(lock, "--features", wait=True):
            entered.set()

    with another(HOLDS.format(path=str(lock))) as owner:
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(2.5)  # longer than one that does not wait is patient
        assert not entered.is_set()
        owner.communicate("\n")
    thread.join(20)
    assert entered.is_set() and capsys.readouterr().err.count(f"waiting for process {owner.pid} on") == 1


def test_parts_of_a_set_are_made_side_by_side(tmp_path: Path) -> None:
    place = str(tmp_path / "set")
    holds = f"with writing(open_folder({place!r}), (1, 2)):\n    print('held', flush=True)\n    input()"
    with another(holds) as owner:
        with writing(open_folder(place), (2, 2)):
            pass
        for part, named in ((None, ""), ((1, 2), ", part 1/2")):
            with pytest.raises(InputError, match=rf"^{place}{named}: process {owner.pid} on"):
                writing(open_folder(place), part).__enter__()
        owner.communicate("\n")
    with writing(open_folder(place)):
        pass
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_place_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(InputError, match=r"--out /proc/sys: cannot be written to \("):
        held(Path("/proc/sys/.lock"), "--out /proc/sys").__enter__()


def test_a_folder_is_of_one_kind_of_command(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(InputError, match=r"--out .*: it holds a pretraining \(config.yaml\).*name another folder"):
        run_folder(str(tmp_path), "result.json")
    with run_folder(str(tmp_path), "config.yaml"):
        assert (tmp_path / ".lock").exists()
