"""Whatever the machine does to it, a command that is started again leaves what an undisturbed run leaves."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Command, commands, disturbed, log, same
from mounts import needs_mounts, privately

SEED = 19
soak = pytest.mark.soak
Straight = Callable[[str], tuple[Command, Path, float]]


@pytest.fixture(scope="module")
def straight(synthetic_set: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """A command by its name, the folder of an undisturbed run, and how many seconds its work took."""
    folder = tmp_path_factory.mktemp("commands")
    every, taken = commands(synthetic_set, checkpoint, folder), dict[str, float]()

    def made(name: str) -> tuple[Command, Path, float]:
        if name not in taken:
            taken[name] = every[name].straight(folder / name)
        return every[name], folder / name, taken[name]

    return made


@pytest.mark.parametrize("name", ["preprocess", "pretrain", "extract", pytest.param("finetune", marks=soak)])
def test_killed_it_leaves_the_same(name: str, straight: Straight, tmp_path: Path) -> None:
    """Once each; make soak does it a hundred times. Finetunings: tests/evaluation/test_finetune.py."""
    command, expected, seconds = straight(name)
    print(f"seed {SEED}")
    met = disturbed(command, expected, seconds, tmp_path / "out", random.Random(f"{SEED} {name}"), kills=1)
    assert met["SIGKILL"] + met["SIGTERM"] == 1 <= met["compared"]


@needs_mounts
@pytest.mark.parametrize(
    ("name", "disk"),
    [
        ("preprocess", "size=200k"),
        ("extract", "size=12k"),
        pytest.param("preprocess", "ro", marks=soak),
        pytest.param("extract", "ro", marks=soak),
        *(
            pytest.param(name, disk, marks=soak)
            for name in ("pretrain", "finetune")
            for disk in ("size=12k", "size=100k", "ro")
        ),
    ],
)
def test_on_a_full_or_read_only_disk_it_says_so_and_goes_on_later(
    name: str, disk: str, straight: Straight, tmp_path: Path
) -> None:
    command, expected, _ = straight(name)
    place, kept = tmp_path / "disk", tmp_path / "kept"
    place.mkdir()
    line = [sys.executable, *command.line, "--out", place / "out"]
    script = (
        f"mount -t tmpfs -o {disk} none {place}\n"
        f'"$@" >{tmp_path}/said 2>&1 && code=0 || code=$?\necho "ended with $code"\n'
        f"mount -o remount,rw,size=100m {place}\n"
        f'"$@"\ncp -r {place}/out {kept}\nset -- true'
    )
    done = privately(script, *line)
    said = (tmp_path / "said").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + said
    assert re.search(r"ended with (2|74)\b", done.stdout) and "Traceback" not in said, said
    why = "Read-only file system" if disk == "ro" else "No space left on device|are free; free some space"
    assert re.search(rf"^error: .*({why}).*", said, re.MULTILINE), said
    same(command.bits(expected), command.bits(kept))


LIMITED = """
import os, resource, runpy, sys
from dclr.evaluation import rows
parts = rows.parts
def limited(*args):
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + MORE, 4096))
    return parts(*args)
rows.parts = limited
if __name__ == "__main__":
    runpy.run_path(sys.argv[0].replace("limited", "extract"), run_name="__main__")
"""


@pytest.mark.parametrize("more", [0, *(pytest.param(more, marks=soak) for more in (1, 2, 4, 8, 16, 32))])
def test_out_of_open_files_it_says_so_and_goes_on_later(more: int, straight: Straight, tmp_path: Path) -> None:
    command, expected, _ = straight("extract")
    script = expected.with_name("limited.py")
    script.write_text(LIMITED.replace("MORE", str(more)))
    limited = Command("limited", (script, *command.line[1:]), command.bits)
    out = tmp_path / "out"
    code, said = limited.start(out).wait(600), log(out).read_text()
    assert code == 0 or "Traceback" not in said, said
    assert code == 0 or re.search(r"^error: .*open files", said, re.MULTILINE), (code, said)
    assert code or more
    assert command.start(out).wait(600) == 0, log(out).read_text()
    same(command.bits(expected), command.bits(out))


CLOCK = """
import itertools, time
real, asked = time.time, itertools.count()
time.time = lambda: real() - 3600 * (next(asked) > 20)  # an hour back after some looks at it
from train_pretrain import command
if __name__ == "__main__":
    command()
"""


def test_a_clock_that_goes_back_changes_no_bit(straight: Straight, tmp_path: Path) -> None:
    command, expected, _ = straight("pretrain")
    (script := tmp_path / "clock.py").write_text(CLOCK)
    out = tmp_path / "out"
    back = Command("clock", (script, *command.line[1:]), command.bits)
    assert back.start(out).wait(600) == 0, log(out).read_text()
    same(command.bits(expected), command.bits(out))
