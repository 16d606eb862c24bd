"""A training's metrics.jsonl: a line of scalars for each step that was looked at; without torch."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

LINES = "metrics.jsonl"


def read_lines(out: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl, without one that a kill or a full disk has cut, or that is just being written."""
    path, lines = out / LINES, []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        with suppress(ValueError, RecursionError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]
