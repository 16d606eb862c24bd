"""--help of every command, and the flags that messages name."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from commands import PARSERS, every
from conftest import REPOSITORY, refuse

import preprocess.__main__ as launcher
import train_pretrain
from dclr.data.clips import ClipConfig
from dclr.errors import InputError
from dclr.evaluation.config import evaluation
from dclr.files import held
from dclr.pretraining.config import PretrainConfig
from dclr.settings import WIDTH, Parser, from_flags
from preprocess.datasets import DATASETS, csv, kinetics
from preprocess.transcode import Options

EVERY = {one.prog: one for one in every()}
PROGRAMS = [one for one in EVERY.values() if one.flags or not one._subparsers]


def arguments(one: Parser) -> list[list[str]]:
    """Those of the examples that the help of a command ends with, as a shell reads them; the command is that of ``one``."""
    shown = one.format_help().partition("\nexamples:\n")[2].replace("\\\n", " ")
    command = ["python", *one.prog.removeprefix("python ").split()]
    lines = [shlex.split(line, comments=True) for line in shown.splitlines()]
    assert all(line[: len(command)] == command for line in lines if line)
    return [line[len(command) :] for line in lines if line]


@pytest.mark.parametrize("one", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("columns", ["300", "100"])
def test_help_fits_the_screen(one: Parser, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert max(map(len, one.format_help().splitlines())) <= min(WIDTH, int(columns))


@pytest.mark.parametrize("one", PROGRAMS, ids=[one.prog for one in PROGRAMS])
def test_every_flag_has_a_sentence_and_a_default_and_its_choices(one: Parser) -> None:
    told = [action for action in one._actions if action.help != argparse.SUPPRESS and action.dest != "help"]
    assert {*one.flags} <= {action.dest for action in told}
    for action in told:
        sentence, ending = re.fullmatch(r"(.+) \((?:[^()]+ to [^()]+; )?(required|default: .+)\)", str(action.help)).groups()
        assert len(sentence.split()) >= 2 and "None" not in ending and "()" not in ending, action.dest
        flag = one.flags.get(action.dest)
        assert (ending == "required") == (flag.required if flag else action.required), action.dest
        if flag and flag.said.choices:
            assert all(str(choice) in f"{action.metavar} {sentence}" for choice in flag.said.choices), action.dest


@pytest.mark.parametrize("one", EVERY.values(), ids=EVERY)
def test_examples_are_commands_that_the_parser_takes(one: Parser) -> None:
    program = next(name for name in PARSERS if one.prog.removeprefix("python ").startswith(name))
    rest = one.prog.removeprefix("python ").removeprefix(program).split()
    parser, every = PARSERS[program](), arguments(one)
    assert 2 <= len(every) <= 4
    for words in every:
        try:
            with mock.patch("dclr.settings.Parser.print_help"):
                given = parser.given([*rest, *words])
        except SystemExit as ended:
            assert ended.code == 0 and "--help" in words
            continue
        if program == "train_pretrain.py":
            assert from_flags(PretrainConfig, given)
        elif program == "train_eval.py":
            assert evaluation(given)
        elif given.get("command") in DATASETS:
            for part in (Options, launcher.Making, launcher.Selecting, *launcher.settings_of(DATASETS[given["command"]])):
                from_flags(part, given)


def test_the_columns_of_lists_are_named() -> None:
    columns = EVERY["python -m preprocess csv"].format_help()
    assert all(name in columns for name in ["path", "label", "split", *(one for pair in csv.SPANS for one in pair)])
    columns = EVERY["python -m preprocess kinetics"].format_help()
    assert all(name in columns for name in [*kinetics.REQUIRED, *kinetics.OPTIONAL, *kinetics.SPLITS])
    assert all(dataset.told for dataset in DATASETS.values())


@pytest.mark.parametrize("words", [["--help", "--recipe", "lab"], ["--config", str(REPOSITORY / "recipes/lab.yaml"), "-h"]])
def test_help_beside_a_file_shows_its_values(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_pretrain.parser().given(words)
    said = " ".join(capsys.readouterr().out.split())
    assert "epochs of" not in said and "--lr RATE learning rate (above 0 to 1000; default: 0.003)" in said
    assert "(default: train)" in said and "--out RUN folder of the run, for checkpoints, curves and pictures (required)" in said
    assert "take the steps" not in said and "(default: dynamic,mining)" in said and "(default: yes)" in said  # --in-batch


def test_defaults_that_follow_from_others_are_what_they_come_to() -> None:
    of = {name: one.said.derived for name, one in EVERY["train_pretrain.py"].flags.items()}
    config = PretrainConfig(shards=("s",), split=("a",), out="o", bn="shuffle")
    assert of["stride"].startswith(f"{config.stride} ") and of["bn_groups"].startswith(f"{config.statistics(1).groups} ")
    assert config.queue_length(10**6) == 2048 and "2048" in of["queue"] and config.statistics(2).groups == 1
    quality = EVERY["python -m preprocess csv"].flags["quality"].said.derived
    assert all(f"{Options(codec=codec).quality} of {codec}" in quality for codec in ("jpeg", "h264"))
    learned = EVERY["train_eval.py knn"].flags["frames"].said.derived
    assert learned == f"the checkpoint's, or {ClipConfig().frames}"


# Messages --------------------------------------------------------------------------------------------------------------

NAMED = re.compile(r"(?<![\w-])(--[a-z][a-z-]+|-(?:a|b|j|cs|cpv|fpc)\b)")
TOLD_BY = ("InputError", "print", "held", "TranscodeError")
PROGRAM = re.compile(r"python -m |train_\w+\.py")  # a flag behind the name of a program is that program's


def messages(path: Path) -> dict[str, list[str]]:
    """The texts of errors and warnings in a module, by the top-level function or class that they stand in."""
    found: dict[str, list[str]] = {}
    for top in ast.parse(path.read_text()).body:
        if isinstance(top, ast.FunctionDef | ast.ClassDef):
            calls = [node for node in ast.walk(top) if isinstance(node, ast.Call)]
            raised = [call for call in calls if getattr(call.func, "id", "") in TOLD_BY]
            nodes = [inner for call in raised for argument in call.args for inner in ast.walk(argument)]
            parts_of = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
            for node in [node for node in nodes if id(node) not in parts_of]:
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
                    found.setdefault(top.name, []).append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.setdefault(top.name, []).append(node.value)
    return found


def flags_of(*programs: str) -> set[str]:
    """Those that every one of these programs has, in one of its commands."""
    of = [(name, flag) for name, one in EVERY.items() for action in one._actions for flag in action.option_strings]
    return set.intersection(*({flag for name, flag in of if name.startswith(program)} for program in programs))


def shared_with_preprocess() -> dict[Path, set[str]]:
    """The files of dclr that ``python -m preprocess`` imports, with the names that it takes from each."""
    asked = "import sys, preprocess.__main__; print(*[m.__file__ for n, m in sys.modules.items() if n.startswith('dclr.')])"
    done = subprocess.run([sys.executable, "-c", asked], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    files = {Path(file): set[str]() for file in done.stdout.split()}
    users = [*files, *(REPOSITORY / "preprocess").rglob("*.py")]
    for node in [node for user in users for node in ast.walk(ast.parse(user.read_text()))]:
        if isinstance(node, ast.ImportFrom) and (file := REPOSITORY / f"{(node.module or '').replace('.', '/')}.py") in files:
            files[file] |= {name.name for name in node.names}
    return files


def test_messages_name_flags_of_the_command_that_was_typed() -> None:
    """What all programs share names no flag but behind a program; what is one's own, that program's alone."""
    both, found = flags_of("train_pretrain.py", "train_eval.py"), 0
    shared = shared_with_preprocess()
    assert REPOSITORY / "dclr/storage.py" in shared and "ShardSet" in shared[REPOSITORY / "dclr/data/manifest.py"]
    allowed = {
        "preprocess": flags_of("python -m preprocess") | {"--array"},  # of sbatch
        "dclr/pretraining": flags_of("train_pretrain.py"),
        "dclr/evaluation": set().union(*map(flags_of, ("train_eval.py", "python -m dclr.extract", "python -m dclr.predict"))),
    }
    every = [(path, flags) for top, flags in allowed.items() for path in (REPOSITORY / top).rglob("*.py")]
    for path, own in [*every, *((path, None) for path in shared)]:
        for name, texts in messages(path).items():
            everyones = own is None and (name in shared[path] or path.stem == "settings")
            for text in texts:
                named = set(NAMED.findall(PROGRAM.split(text)[0]))
                found += len(named)
                assert named <= ({"--config", "--help"} if everyones else own or both), (path.name, name, text)
    assert found > 80


def test_a_set_that_another_process_holds_is_named_as_it_was_typed(tmp_path: Path) -> None:
    from dclr.lease import writing
    from dclr.storage import open_folder

    with writing(open_folder(tmp_path / "set")), mock.patch("dclr.files.PATIENCE", 0.1):
        for command in ("retry", "merge"):
            said = refuse("-m", "preprocess", command, tmp_path / "set")
            assert said.startswith(f"error: {tmp_path}/set: process ") and "--out" not in said
    with pytest.raises(InputError, match=rf"^{tmp_path}/file: cannot be a folder for results"):
        (tmp_path / "file").touch()
        held(tmp_path / "file" / ".lock", "--features x").__enter__()


def test_the_way_out_of_a_finished_embedded_set_is_not_append(synthetic_set: Path) -> None:
    synthetic = ("-m", "preprocess", "synthetic", "--hard", "--videos", "96", "--out", synthetic_set)
    said = refuse(*synthetic, "--size", "40")
    assert re.search("--size 40: .* was made with --size 32; name another folder", said) and "append" not in said
    said = refuse("-m", "preprocess", "stats", "cached://x")
    assert "it keeps copies" in said and "--cache" not in said
