"""Faults of the machine, as a user meets them: one line or none, an exit code, no traceback."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from commands import PARSERS
from conftest import run

from dclr import distributed
from dclr.errors import AGAIN, INTERRUPTED, NO_READER, NOT_KEPT, InputError, exit_on_input_error

EVERY_COMMAND = """
import os, runpy, sys
from pathlib import Path
from commands import PARSERS  # which imports what they need, once

def no_reader(*numbers):
    reads, writes = os.pipe()
    os.close(reads)
    for number in numbers:
        os.dup2(writes, number)

def full():
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)

def closed():
    for number in range(3):
        os.close(number)
    sys.stdin = sys.stdout = sys.stderr = None

CASES = {
    "no reader": (lambda: no_reader(1), "--help"), "no reader of either": (lambda: no_reader(1, 2), "--nosuch"),
    "full": (full, "--help"), "closed": (closed, "--help"), "closed, a mistake": (closed, "--nosuch"),
}
for program in PARSERS:
    words = program.split()
    for case, (happens, flag) in CASES.items():
        if not (child := os.fork()):
            code = 99
            try:
                happens()
                sys.argv = [words[-1], flag]
                if words[0] == "-m":
                    runpy.run_module(words[1], run_name="__main__", alter_sys=True)
                else:
                    runpy.run_path(words[0], run_name="__main__")
            except SystemExit as ended:
                code = ended.code or 0
                sys.stdout.flush()
            finally:
                os._exit(code)
        print(program, case, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), sep=": ", flush=True)
"""


def test_no_command_minds_what_becomes_of_its_output(tmp_path: Path) -> None:
    """Of each command: `| head`, `2>&1 | head`, `>/dev/full`, `>&- 2>&-`."""
    script = tmp_path / "every.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n{EVERY_COMMAND}")
    done = run(script)
    codes = {"no reader": NO_READER, "no reader of either": 2, "full": NOT_KEPT, "closed": 0, "closed, a mistake": 2}
    assert done.stdout.splitlines() == [f"{program}: {case}: {code}" for program in PARSERS for case, code in codes.items()]
    told = {line for line in done.stderr.splitlines() if "RuntimeWarning" not in line}  # runpy's: what it runs is imported
    assert len(told) == 1 and told.pop().startswith("error: No space left on device; what is finished is kept: free some")


def ends(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of a command that raises ``error``, and what it says."""
    with pytest.raises(SystemExit) as ended, exit_on_input_error():
        raise error
    return ended.value.code, capsys.readouterr().err.strip()


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), INTERRUPTED, "interrupted; what is finished is kept"),
        (
            OSError(errno.EMFILE, "?", "a.tar"),
            2,
            "error: a.tar: Too many open files; what is finished is kept: raise",
        ),
        (OSError(errno.EIO, "?", "a.tar"), 2, "error: a.tar: Input/output error; what is finished is kept: look at that disk"),
        (
            OSError(errno.EACCES, "?", "a.tar"),
            2,
            "error: a.tar: Permission denied; what is finished is kept: change",
        ),
        (OSError(errno.EROFS, "?", "runs"), NOT_KEPT, "error: runs: Read-only file system; what is finished is kept: free"),
        (
            OSError("Caught\n  File x\nOSError: [Errno 24] Too many open files"),
            2,
            "error: Too many open files; what is",
        ),
        (MemoryError(), 2, "error: Cannot allocate memory; what is finished is kept: give it more memory, or fewer --workers"),
        (
            FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
            2,
            "error: No usable temporary directory found in ['/tmp']: set TMPDIR to a folder that can be written to",
        ),
    ],
)
def test_what_the_machine_refuses_is_one_line(
    error: BaseException, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, told = ends(error, capsys)
    assert found == code and told.startswith(says) and "\n" not in told


@pytest.mark.parametrize("error", [ValueError("?"), OSError(errno.ENOENT, "?"), BrokenPipeError(errno.EPIPE, "a socket's")])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)), exit_on_input_error():
        raise error


def test_names_that_the_locale_lacks_are_printed_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also names that are no text at all."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written := io.BytesIO(), "ascii"))
    with exit_on_input_error():
        print("clâsse", os.fsdecode(b"\xff"))
    assert written.getvalue() == b"cl\\xe2sse \\udcff\n"


WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"MASTER_ADDR": None}, "the environment has WORLD_SIZE=2 and no MASTER_ADDR: torchrun sets all of them"),
        ({"MASTER_PORT": ""}, "the environment has WORLD_SIZE=2 and no MASTER_PORT"),
        ({"RANK": None}, "the environment has WORLD_SIZE=2 and no RANK"),
        ({"WORLD_SIZE": None}, "the environment has RANK=1 and no WORLD_SIZE: .* unset RANK and WORLD_SIZE"),
        ({"WORLD_SIZE": "two"}, "the environment has WORLD_SIZE=two, expected a number from 1 to"),
        ({"WORLD_SIZE": "0"}, "the environment has WORLD_SIZE=0, expected a number from 1 to"),
        ({"RANK": "2"}, "the environment has RANK=2, expected a number from 0 to 1"),
        ({"RANK": "-1"}, "the environment has RANK=-1, expected a number from 0 to 1"),
        ({"LOCAL_RANK": "a"}, "the environment has LOCAL_RANK=a, expected a number"),
        ({"MASTER_PORT": "99999"}, "the environment has MASTER_PORT=99999, expected a number from 0 to 65535"),
    ],
)
def test_half_of_torchruns_environment_is_refused(
    changed: dict[str, str | None], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (WHOLE | changed).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=says):
        distributed.check_environment()


def test_a_whole_environment_and_none_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WHOLE:
        monkeypatch.delenv(name, raising=False)
    distributed.check_environment()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # some clusters set it for all jobs
    distributed.check_environment()
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    distributed.check_environment()


def test_a_rank_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where it ran on this machine. Of one process, or of another error, nothing is said."""
    host = os.uname().nodename
    broken = RuntimeError("[../gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:1: Connection reset by peer")
    assert not distributed.lost(broken)
    monkeypatch.setattr(distributed, "met", True)
    monkeypatch.setattr(distributed, "_peers", [f"{os.getpid()} {host}", f"{2**22 + 1} {host}", f"{2**22 + 1} elsewhere"])
    assert not distributed.lost(RuntimeError("shapes"))
    code, told = ends(broken, capsys)
    assert code == AGAIN and told.startswith(f"error: rank 1 (process {2**22 + 1} on {host}) is gone, so this rank ends too;")
    monkeypatch.setattr(distributed, "_peers", [f"{os.getpid()} {host}", f"{2**22 + 1} elsewhere"])
    assert ends(broken, capsys)[1].startswith(
        "error: another rank is gone, so this rank ends too; start the same command again"
    )


def test_a_rank_that_cannot_go_on_calls_the_others_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_asked", 0.0)
    distributed.call_off()
    assert not distributed.called_off()  # of one process
    monkeypatch.setattr(distributed, "_store", dist.HashStore())
    assert not distributed.called_off()
    distributed.call_off()
    monkeypatch.setattr(distributed, "_asked", 0.0)
    assert distributed.called_off()
