"""A training's metrics.jsonl: a line of scalars for each step that was looked at; without torch."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from dclr.errors import InputError
from dclr.parse import Number, from_json, parsing, read_whole

LINES = "metrics.jsonl"
LINES_BYTES = 1 << 30  # of it


def read_lines(out: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl, without one that a kill or a full disk has cut, or that is just being written. Raises
    InputError for a file of more than :data:`LINES_BYTES`."""
    path, lines = out / LINES, list[dict[str, float]]()
    for line in read_whole(path, LINES_BYTES, "a training's numbers").splitlines() if path.exists() else []:
        with suppress(InputError), parsing(str(path), "numbers by name"):
            lines.append(from_json(line, dict[str, Number], nan=True))
    return [line for line in lines if isinstance(line.get("step"), int)]
