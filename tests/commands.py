"""Every command by its parser, and docs/commands.md, which holds their help: ``python tests/commands.py`` writes it."""

from __future__ import annotations

import os
from argparse import _SubParsersAction
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import dclr.compare
import dclr.export
import dclr.extract
import dclr.predict
import dclr.report
import preprocess.__main__
import train_eval
import train_pretrain
from dclr.settings import WIDTH, Parser

PAGE = Path(__file__).parent.parent / "docs" / "commands.md"
PARSERS: dict[str, Callable[[], Parser]] = {  # as a command line begins, after python
    "-m preprocess": preprocess.__main__.parser,
    "train_pretrain.py": train_pretrain.parser,
    "train_eval.py": train_eval.parser,
    "-m dclr.compare": dclr.compare.parser,
    "-m dclr.export": dclr.export.parser,
    "-m dclr.extract": dclr.extract.parser,
    "-m dclr.predict": dclr.predict.parser,
    "-m dclr.report": dclr.report.parser,
}
HEAD = """# Commands

What each command says with `--help`. `python tests/commands.py` writes this page.
"""


def every() -> Iterator[Parser]:
    """The parser of each command, those of its sub-commands after it."""
    for program, make in PARSERS.items():
        with mock.patch("sys.argv", [program]):
            top = make()
        yield top
        for action in top._actions:
            if isinstance(action, _SubParsersAction):
                yield from action.choices.values()


def page() -> str:
    """docs/commands.md as it should be."""
    with mock.patch.dict(os.environ, {"COLUMNS": str(WIDTH)}):
        told = [(one.prog, one.format_help()) for one in every()]
    links = [f"- [{name}](#{name.replace(' ', '-').replace('.', '')})" for name, _ in told]
    parts = [f"## {name}\n\n```text\n{text}```\n" for name, text in told]
    return "\n".join([HEAD, *links, "", *parts])


if __name__ == "__main__":
    PAGE.write_text(page())
