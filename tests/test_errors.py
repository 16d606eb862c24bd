"""Mistakes and full disks, as a user meets them: one line, an exit code, nothing where nothing was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import REPOSITORY, SMALL, refuse, run

from dclr.errors import NOT_KEPT, InputError, place

TRAIN = ("train_pretrain.py", "--split", "train")
EVAL = (
    "train_eval.py",
    "all",  # which has every flag
    "--train-split",
    "train",
    "--test-split",
    "test",
    "--pretrained",
    "random",
    "-a",
    "r2plus1d_10",
)
MAKE = ("-m", "preprocess", "synthetic")


@pytest.mark.parametrize(
    "command, flag, value, says",
    [
        (TRAIN, "--lr", "nan", "--lr nan: expected above 0 to 1000"),
        (TRAIN, "--seed", str(10**22), "--seed 10000000000000000000000: expected -9223372036854775807 to 9223372036854775807"),
        (TRAIN, "--stride", str(10**21), "--stride 1000000000000000000000: expected 1 to 1e+06"),
        (TRAIN, "--cache", "", "--cache '': it is empty"),
        (TRAIN, "--out", "", "--out '': it is empty"),
        (EVAL, "--probe-lr", "inf", "--probe-lr inf: expected above 0 to 1000"),
        (EVAL, "--wd", "nan", "--wd nan: expected 0 to 1000"),
        (EVAL, "--cache-size", "inf", "--cache-size inf"),
        (EVAL, "--draws", str(10**12), "--draws 1000000000000: expected 1 to 1000000"),
        (EVAL, "--features", "", "--features '': it is empty"),
        (EVAL, "--out", " ", "--out ' ': it is empty"),
        (EVAL, "--pretrained", "", "--pretrained '': it is empty"),
        (MAKE, "--seed", str(10**22), "--seed 10000000000000000000000: expected -9223372036854775807 to"),
        (MAKE, "--timeout", "nan", "--timeout nan: expected 0.001 to 1e+09"),
        (MAKE, "--max-failures", "inf", "--max-failures inf: expected 0 to 100"),
        (MAKE, "--size", str(10**21), "--size 1000000000000000000000: expected 16 to 1024"),
        (MAKE, "--out", "", "argument --out: the folder '': it is empty"),
        (("-m", "preprocess", "stats", "set"), "--out", "", "argument --out: '': it is empty"),
        (("-m", "dclr.export", "last.pt"), "--out", "", "--out '': it is empty"),
    ],
)
def test_a_value_that_cannot_be_meant_is_one_line(
    command: tuple[str, ...], flag: str, value: str, says: str, tmp_path: Path
) -> None:
    before = sorted(REPOSITORY.iterdir())  # where an empty path would write
    places = ("--out", tmp_path / "out") if command in (TRAIN, EVAL, MAKE) else ()
    shards = ("--shards", tmp_path / "set") if command in (TRAIN, EVAL) else ()
    assert says in refuse(*command, *shards, *places, f"{flag}={value}")
    assert sorted(REPOSITORY.iterdir()) == before and not list(tmp_path.iterdir())


def full(folder: Path, launch: str, when: str) -> Path:
    """A script that is ``launch`` (a module's name) and whose disk is full: ``os.fsync`` of a file with ``when`` in its name
    fails as a write to a full disk does."""
    path = folder / "full.py"
    path.write_text(
        "import errno, os, runpy\n"
        "fsync = os.fsync\n"
        "def full(file):\n"
        f"    if {when!r} in os.readlink(f'/proc/self/fd/{{file}}'):\n"
        "        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "    fsync(file)\n"
        "os.fsync = full\n"
        "if __name__ == '__main__':\n"
        f"    runpy.run_module({launch!r}, run_name='__main__', alter_sys=True)\n"
    )
    return path


def test_an_export_that_the_disk_does_not_take_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "trunk.safetensors"
    done = run(full(tmp_path, "dclr.export", "trunk"), checkpoint, "--out", out)
    assert done.returncode == NOT_KEPT and "Traceback" not in done.stderr
    assert f"error: {out}: No space left on device" in done.stderr.strip().splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["full.py"]


def test_a_plan_that_the_disk_does_not_take_is_one_line(synthetic_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    command = ("folder", "--root", synthetic_set / "videos", "--limit", "4", "--out", out, "--size", "32")
    done = run(full(tmp_path, "preprocess.__main__", "plan.json"), *command)
    assert done.returncode == NOT_KEPT and "Traceback" not in done.stderr
    assert f"error: {out}/plan.json: No space left on device" in done.stderr.strip().splitlines()[-1]


def test_a_finetuning_keeps_its_numbers_on_a_full_disk(synthetic_set: Path, tmp_path: Path) -> None:
    """After the training: best.pt does not fit, then result.json; what was found is said."""
    out = tmp_path / "run"
    data = ("--shards", synthetic_set, "--train-split", "train", "--test-split", "test", "--label", "scene", "--val", "0.2")
    once = ("--pretrained", "random", "--test-clips", "1", "-cpv", "1", "-b", "16", "--epochs", "1", "--out", out)
    common = ("finetune", *SMALL, *data, *once)
    done = run(full(tmp_path, "train_eval", "best.pt"), *common)
    assert done.returncode == 0 and "No space left on device" in done.stderr and (out / "result.json").exists()
    (out / "result.json").unlink()
    done = run(full(tmp_path, "train_eval", "result.json"), *common)
    assert done.returncode == NOT_KEPT and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "result.json: cannot be written (No space left on device)" in last and "top1" in last


LONG = "a" * 300


@pytest.mark.parametrize(
    "command",
    [
        (*TRAIN, "--shards", "SET", *SMALL, "--out", LONG),
        (*TRAIN, "--shards", LONG, "--out", "OUT"),
        (*TRAIN, "--shards", "SET", "--out", "OUT", "--cache", LONG),
        (*TRAIN, "--shards", "SET", "--out", "OUT", "--config", LONG),
        (*TRAIN, "--shards", "SET", "--out", "OUT", *SMALL, "--resume", LONG),
        (*TRAIN, "--shards", "SET", "--out", "OUT", *SMALL, "--pretrained", LONG),
        (*EVAL[:-4], "--pretrained", LONG, "--shards", "SET", "--out", "OUT"),
        (*EVAL, "--shards", "SET", "--out", LONG),
        (*EVAL, "--shards", "SET", "--size", "32", "--out", "OUT", "--baseline", LONG),
        (*MAKE, "--out", LONG),
        ("-m", "preprocess", "folder", "--root", LONG, "--out", "OUT"),
        ("-m", "preprocess", "csv", "--root", ".", "--list", LONG, "--out", "OUT"),
        ("-m", "preprocess", "ucf101", "--root", ".", "--splits", LONG, "--out", "OUT"),
        ("-m", "preprocess", "verify", LONG),
        ("-m", "preprocess", "stats", "SET", "--out", LONG),
        ("-m", "preprocess", "preview", "SET", "--out", LONG),
        ("-m", "dclr.compare", LONG),
        ("-m", "dclr.export", LONG, "--out", "OUT/"),
        ("-m", "dclr.report", LONG),
    ],
    ids=lambda command: " ".join(word if word != LONG else "LONG" for word in command[:2] + command[-2:]),
)
def test_a_name_that_is_too_long_is_one_line(command: tuple[str, ...], synthetic_set: Path, tmp_path: Path) -> None:
    places = {"SET": str(synthetic_set), "OUT": str(tmp_path / "out")}
    said = refuse(*(places.get(word, word) for word in command))
    assert said.startswith("error: ") and LONG in said


def test_a_place_is_a_path() -> None:
    with pytest.raises(InputError, match=r"--out 'a\\x00b': it is no path, expected a path"):
        place("a\0b", "--out")
