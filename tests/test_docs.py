"""What the documentation says holds: its length, its links, its commands, the tests that it names, its examples."""

import argparse
import ast
import doctest
import importlib
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import PAGE, PARSERS
from commands import page as said
from conftest import REPOSITORY

import train_eval
from dclr.checkpoint import load_encoder, load_trunk
from dclr.errors import InputError
from dclr.method.views import normalise, to_clip

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "CHANGELOG.md",
    REPOSITORY / "SECURITY.md",
    REPOSITORY / "shards" / "README.md",
    REPOSITORY / "benchmarks" / "RESULTS.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
COMMAND = re.compile(rf"({'|'.join(map(re.escape, PARSERS))})\s+(?!\.)(.+)")
PLACEHOLDERS = {"COMMAND": "folder", "MODE": "linear", "N": "1"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)


def name_of(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> list[tuple[str, str]]:
    """(program, its arguments) of every command that a page shows, in blocks and in the text."""
    text = page.read_text()
    blocks = [block.replace("\\\n", " ") for language, block in FENCE.findall(text) if language in ("", "bash")]
    shown = [line.partition("  #")[0] for block in blocks for line in block.splitlines()]
    shown += [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", FENCE.sub("", text))]
    found = []
    for line in shown:
        for match in COMMAND.finditer(line):
            arguments = re.split(r"[&'|;>]", match[2])[0].strip()
            found.append((match[1], re.sub(r"\$\w+", "1", arguments)))
    return found


def optional(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser where nothing is required: a page may show a part of a command."""
    for action in parser._actions:
        if action.option_strings or isinstance(action, argparse._SubParsersAction):
            action.required = False
        elif action.nargs is None:
            action.nargs = "?"
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                optional(command)
    return parser


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text().split()) <= 1500


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name_of(page)}: {target}"
        assert not anchor or anchor in anchors(there), f"{name_of(page)}: {target} is none of {sorted(anchors(there))}"


def test_every_page_is_reached_from_the_readme() -> None:
    linked = re.findall(r"\]\((docs/[\w.]+)", (REPOSITORY / "README.md").read_text())
    assert {name_of(page) for page in PAGES if page.parent.name == "docs"} == set(linked)


def test_the_page_of_all_commands_is_what_they_say() -> None:
    assert PAGE.read_text() == said(), "python tests/commands.py writes it anew"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_ones_that_the_programs_take(page: Path) -> None:
    for program, arguments in commands(page):
        words = [PLACEHOLDERS.get(word, word) for word in shlex.split(arguments) if word != "..."]
        try:
            optional(PARSERS[program]()).parse_args(words)
        except SystemExit as ended:  # --help
            assert ended.code == 0, f"{name_of(page)}: {program} {arguments}"


@pytest.mark.parametrize("name", ["preprocess", "pretraining", "evaluation", "loader", "storage", "method"])
def test_flags_are_ones_that_a_program_has(name: str) -> None:
    """Those that the text names by themselves, outside of commands."""
    known, torchrun = set[str](), {"--nproc-per-node", "--max-restarts"}
    waiting: list[argparse.ArgumentParser] = [make() for make in PARSERS.values()]
    while waiting:
        for action in waiting.pop()._actions:
            known |= set(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                waiting += action.choices.values()
    named = set(re.findall(r"`(--?[a-z][\w-]*)", (REPOSITORY / "docs" / f"{name}.md").read_text()))
    assert named <= known | torchrun, named - known


def test_commands_are_found() -> None:
    """So that the test above is not of nothing: in blocks, over two lines, in text, in quotes, with what a shell fills in."""
    assert [program for program, _ in commands(REPOSITORY / "README.md")].count("train_eval.py") >= 1
    shown = commands(REPOSITORY / "docs" / "clusters.md")
    assert ("-m preprocess", "merge shards/ucf101") in shown and ("-m preprocess", "retry SET") in shown
    assert any(arguments.endswith("--part 1/1") for _, arguments in shown)
    with pytest.raises(InputError):
        optional(train_eval.parser()).parse_args(["linear", "--shard-set", "x"])


def test_scripts_are_ones_that_bash_reads() -> None:
    scripts = [block for language, block in FENCE.findall((REPOSITORY / "docs" / "clusters.md").read_text()) if language]
    assert len([script for script in scripts if script.startswith("#!/bin/bash\n#SBATCH ")]) == 3
    for script in scripts:
        assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""


def test_every_fault_has_its_test_and_every_test_its_fault() -> None:
    text = (REPOSITORY / "docs" / "method.md").read_text()
    tree = ast.parse((REPOSITORY / "tests/method/test_faults.py").read_text())
    tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
    rows = re.findall(r"^\|.*\| `(test_\w+)` \|$", text, re.M)
    assert len(rows) == 7 + 13 and set(rows) == {name for name in tests if re.match(r"test_(crash|fault)_", name)}
    assert re.findall(r"^\| (\d+) \|", text, re.M) == [re.findall(r"\d+", name)[0] for name in rows if "_fault_" in name]


def test_files_that_pages_and_sources_name_are_there() -> None:
    for page in PAGES:
        for named in re.findall(r"`((?:tests|benchmarks|recipes|docs)/[\w/.]+\.\w+)`", page.read_text()):
            assert (REPOSITORY / named).exists(), f"{name_of(page)}: {named}"
    for source in sorted(path for top in ("dclr", "preprocess", "tests") for path in (REPOSITORY / top).rglob("*.py")):
        for named in re.findall(r"(?:docs|shared)/\w+\.md", source.read_text()):  # shared/ was where the method stood
            assert (REPOSITORY / named).exists(), f"{name_of(source)}: {named}"


def test_examples_in_docstrings() -> None:
    """Only modules that have one are imported."""
    tried = {}
    for path in sorted(path for top in ("dclr", "preprocess") for path in (REPOSITORY / top).rglob("*.py")):
        if "    >>> " not in path.read_text():
            continue
        module = importlib.import_module(path.relative_to(REPOSITORY).with_suffix("").as_posix().replace("/", "."))
        failed, tried[path.stem] = doctest.testmod(module)
        assert not failed, path.name
    assert {"metrics", "losses", "text", "clips", "plan", "record", "transcode"} <= set(tried) and all(tried.values())


def test_the_two_lines_for_pooled_features(checkpoint: Path) -> None:
    """Those of docs/weights.md, as they stand, on clips as it makes them."""
    page = (REPOSITORY / "docs" / "weights.md").read_text()
    (lines,) = [block for language, block in FENCE.findall(page) if language == "python" and "encoder.features(clips)" in block]
    assert len(lines.splitlines()) == 2 and "normalise(to_clip(frames))" in page
    frames = torch.randint(256, (3, 4, 32, 32, 3), dtype=torch.uint8)
    names: dict[str, Any] = {"load_encoder": load_encoder, "clips": normalise(to_clip(frames))}
    exec(lines.replace("runs/mine/last.pt", str(checkpoint)), names)
    with torch.no_grad():
        expected = load_trunk(checkpoint).module(names["clips"]).mean((2, 3, 4))
    assert names["z"].shape == (3, 32)
    torch.testing.assert_close(names["z"], expected)


def test_ci_and_the_package_say_what_they_should() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    for package in ("dclr", "preprocess"):
        assert (REPOSITORY / package / "py.typed").exists()
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["*"]
    job = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12"] and job["steps"][-1]["run"] == ".ci/run"
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == project["project"]["version"]
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    checks = (REPOSITORY / "Makefile").read_text()
    for hook in hooks:  # the same commands as make test, but for the folder that pre-commit gives by itself
        assert re.search(rf"^\t\$\(BIN\)/{hook['entry'].removeprefix('.venv/bin/')}( \.)?$", checks, re.M), hook["entry"]
