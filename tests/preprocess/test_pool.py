"""Worker processes: order, and tasks that hang, crash or make much."""

import os
import signal
import time
from pathlib import Path

import pytest

from dclr import patience
from dclr.errors import Unreachable
from preprocess.pool import Lost, Pool


def work(task: tuple[str, int]) -> object:
    what, number = task
    if what == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "hang":
        time.sleep(3600)
    if what == "raise":
        raise RuntimeError("a bug")
    if what == "wait":
        patience._pause(4.5)
    if what == "outage":
        raise Unreachable("http://host/a.mp4: gone")
    if what == "large":
        return bytes(number)
    time.sleep(0.002 * (number % 3))
    return number


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_tasks(workers: int) -> None:
    with Pool(work, workers, timeout=60) as pool:
        assert list(pool.map(("say", number) for number in range(60))) == list(range(60))


def test_a_crash_and_a_hang_cost_that_task_only() -> None:
    tasks = [("say", 0), ("die", 1), ("say", 2), ("hang", 3), ("say", 4), ("raise", 5), ("say", 6), ("die", 7), ("say", 8)]
    with Pool(work, 2, timeout=2) as pool:
        results = list(pool.map(tasks))
    assert [r for r in results if not isinstance(r, Lost)] == [0, 2, 4, 6, 8]
    lost = [r for r in results if isinstance(r, Lost)]
    assert [r.stage for r in lost] == ["crash", "timeout", "crash", "crash"]
    assert "SIGSEGV" in lost[0].reason and "not done after 2 seconds" in lost[1].reason and "exit code 1" in lost[2].reason
    assert 2 <= lost[1].seconds < 30


def test_large_results_arrive_whole() -> None:
    with Pool(work, 2, timeout=60) as pool:
        assert [len(r) for r in pool.map(("large", size) for size in (10, 70_000_000, 3)) if isinstance(r, bytes)] == [
            10,
            70_000_000,
            3,
        ]


def alive(task: str) -> int:
    Path(task).touch()
    return os.getpid()


def test_no_worker_outlives_the_pool(tmp_path: Path) -> None:
    with Pool(alive, 2, timeout=60) as pool:
        pids = {pid for pid in pool.map(str(tmp_path / name) for name in "abcdef") if isinstance(pid, int)}
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == list("abcdef")


def test_an_outage_costs_no_task() -> None:
    """The time of a wait for a store is not the task's; a wait that was too long ends the work."""
    with Pool(work, 2, timeout=4) as pool:
        assert list(pool.map([("wait", 1), ("say", 2)])) == [1, 2]
        with pytest.raises(Unreachable, match="gone"):
            list(pool.map([("say", 0), ("outage", 1)]))
