"""A loader process that is killed, stopped or hangs ends the wait for its batch, by name and shard."""

from __future__ import annotations

import errno
import importlib
import multiprocessing
import os
import re
import signal
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch
from test_loader import alive, loader

from dclr import patience
from dclr.data import watch
from dclr.data.pages import Pages
from dclr.data.watch import ON, PLACE, UNTIL
from dclr.errors import InputError, WorkerLost

SHARD = r"/tiny/shard-\d{6}\.tar, sample '\w+' at byte \d+"


@pytest.fixture(scope="module", autouse=True)
def server(synthetic_set: Path) -> None:
    """What the loader's processes are forked from has started, which takes longer than the waits here."""
    assert len(list(loader(synthetic_set, workers=1))) == 8


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (signal.SIGKILL, f"(at|after) .*{SHARD}, killed by SIGKILL; where memory ran out, a smaller --workers needs less"),
        (signal.SIGSEGV, f"(at|after) .*{SHARD}, killed by SIGSEGV; where that comes at one place again"),
        (signal.SIGSTOP, rf"^no batch for 0.1 minutes \(--stall-minutes\): .*(at|after) .*{SHARD}, stopped by a signal$"),
    ],
)
def test_a_worker_that_is_killed_or_stopped_is_named(number: int, says: str, synthetic_set: Path) -> None:
    some = loader(synthetic_set, workers=2, stall_minutes=0.1)
    batches = iter(some)
    next(batches)
    first, _ = workers = sorted(int(one.pid or 0) for one in multiprocessing.active_children())
    os.kill(first, number)
    with pytest.raises(WorkerLost, match=says) as lost:
        list(batches)
    assert f"loader worker 0 (process {first})" in str(lost.value)
    assert some.step < 8 and not any(map(alive, workers))  # the stopped one too


def test_a_decoder_that_hangs_is_named_with_its_sample(
    synthetic_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hanging.py").write_text("import time\ndef make(*_, **__):\n    time.sleep(600)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    some = loader(synthetic_set, workers=1, stall_minutes=0.1)
    some._stages[1].make = importlib.import_module("hanging").make
    first = some._stages[0].shards.place(int(some.plan.rows(0)[1][0]))
    says = rf"for 0.1 minutes .*: loader worker 0 \(process \d+\), at {re.escape(first)}; .* verify SET --deep tells"
    with pytest.raises(WorkerLost, match=says):
        next(iter(some))


def test_a_worker_that_waits_for_a_store_or_goes_on_does_not_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a thread of it that waits; and time in which the trainer itself was stopped does not count."""
    numbers = np.zeros((2, 3))
    monkeypatch.setattr(watch, "_mine", watch._mine)
    monkeypatch.setattr(patience, "_everywhere", None)
    watch.report_to(numbers[1])
    watch.at(3)
    waits = threading.Thread(target=patience._pause, args=(2.5,))
    waits.start()
    looked = watch._Watch(numbers, str, 1.0)
    with pytest.raises(WorkerLost, match="the loader's processes do not start"):
        looked.wait(SimpleQueue())
    waits.join()
    assert time.monotonic() > numbers[1, UNTIL] > 0
    looked = watch._Watch(numbers, str, 60.0)
    looked._looked, looked._idle, looked._before = time.monotonic() - 3600, 0.0, numbers[:, ON].copy()
    looked._look()
    assert 0 < looked._idle < 3
    watch.at(7)
    looked._look()
    assert looked._idle == 0 and numbers[1, PLACE] == 8
    watch.done()
    assert numbers[1, PLACE] == -8 and not numbers[0].any()


def test_a_machine_without_shared_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(value: int) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(torch.multiprocessing.get_context("spawn"), "Semaphore", refused)
    with pytest.raises(InputError, match=r"--workers 2: no shared memory \(.*Read-only file system\): mount /dev/shm, or give"):
        Pages(2, 10)
