"""Every error of the project that a user may meet, and which of them the suite has tried.

Each place that makes an :class:`InputError` (or a kind of it) is found in the sources. While tests run, each process notes
where such errors are made. At the end of the whole suite, also on several processes, a place that no test came to fails the
suite, unless :data:`UNTRIED` has it. Processes that a test starts are not noted: :func:`conftest.refuse` starts none.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dclr.errors import InputError
from dclr.record import FormatError

REPOSITORY = Path(__file__).parent.parent
SOURCES = sorted([*REPOSITORY.glob("dclr/**/*.py"), *REPOSITORY.glob("preprocess/**/*.py"), *REPOSITORY.glob("train_*.py")])
KINDS = (InputError, FormatError)
UNTRIED = frozenset((Path(__file__).parent / "untried.txt").read_text().splitlines())  # as Place.__str__; it only shrinks
TRIED: dict[tuple[str, int], str] = {}  # file and line of an error that was made -> its message


class Place(NamedTuple):
    """Where an error is made: the lines of a file, and the message as the source has it."""

    file: str
    first: int
    last: int
    says: str

    def __str__(self) -> str:  # without lines, which move
        return f"{self.file}: {self.says}"


@lru_cache
def places() -> list[Place]:
    """Every call of an error's class, and of ``parsing``, which makes one of whatever a parser raises."""
    found, names = [], {kind.__name__ for kind in KINDS}
    for path in SOURCES:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        begins = {item.context_expr: node.lineno for node in nodes if isinstance(node, ast.With) for item in node.items}
        for node in nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {*names, "parsing"}:
                last, says = node.end_lineno or node.lineno, " ".join(map(ast.unparse, node.args))
                name, first = path.relative_to(REPOSITORY).as_posix(), begins.get(node, node.lineno)  # a block's is its with's
                found.append(Place(name, first, last, says[:100]))
    return found


def untried(tried: Collection[tuple[str, int]]) -> list[Place]:
    """The places that none of these files and lines is in."""
    return [
        place for place in places() if not any(place.file == file and place.first <= at <= place.last for file, at in tried)
    ]


def _made(error: Any, *args: object) -> None:
    ValueError.__init__(error, *args)
    frame = sys._getframe(1)
    while frame.f_back and Path(frame.f_code.co_filename).name in ("parse.py", "contextlib.py"):
        _note(frame, args)  # its place in parse.py, and the block that it guards
        frame = frame.f_back
    _note(frame, args)


def _note(frame: Any, args: tuple[object, ...]) -> None:
    name = os.path.abspath(frame.f_code.co_filename)
    if name.startswith(f"{REPOSITORY}/"):
        TRIED[os.path.relpath(name, REPOSITORY), frame.f_lineno] = str(args[0]) if args else ""


InputError.__init__ = _made  # type: ignore[method-assign]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What a process of pytest-xdist has tried."""
    TRIED.update(dict.fromkeys(map(tuple, getattr(node, "workeroutput", {}).get("tried", [])), ""))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["tried"] = list(TRIED)
        return
    whole = (
        config.args_source == config.ArgsSource.TESTPATHS
        and not config.option.keyword
        and config.option.markexpr in ("", "not soak")
    )
    if whole and not config.option.collectonly and not session.shouldstop:
        new = {str(place) for place in untried(TRIED)} - UNTRIED
        tried = UNTRIED - {str(place) for place in untried(TRIED)}
        if tried:
            print("\ntests/untried.txt may lose these lines:", *sorted(tried), sep="\n")
        if new:
            print("\nno test makes these errors; tests/test_catalogue.py is the place for one:", *sorted(new), sep="\n")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
