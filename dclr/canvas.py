"""The canvas of every plot: bounded in size, with text that is drawn as it stands."""

from __future__ import annotations

import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager

matplotlib.use("Agg")
from matplotlib import pyplot as plt

LABELLED = 100  # classes up to which each has its name in a picture
WIDEST = 32.0  # inches, of a picture's side
DPI = 110
CJK = (
    "Noto Sans CJK",
    "Noto Sans SC",
    "Noto Sans JP",
    "Source Han",
    "WenQuanYi",
    "IPAGothic",
    "Droid Sans Fallback",
    "Unifont",
)

matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is a $
matplotlib.rcParams["font.family"] = [  # what the first lacks, the others may have
    "sans-serif",
    *sorted(name for name in font_manager.get_font_names() if name.startswith(CJK)),
]


def axes(rows: int, columns: int, width: float, height: float, **more: Any) -> tuple[plt.Figure, Any]:
    """A figure and its axes (rows, columns), of ``width`` x ``height`` inches, each at most :data:`WIDEST`."""
    size = (min(width, WIDEST), min(height, WIDEST))
    return plt.subplots(rows, columns, figsize=size, squeeze=False, **more)


def write(figure: plt.Figure, out: Path) -> Path:
    """Write the figure as a PNG and close it; returns ``out``. A letter that no font has is drawn as a box, with a warning."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(record=True) as told:
            warnings.filterwarnings("always", "Glyph .* missing from font")
            if figure.get_layout_engine() is None:
                figure.tight_layout(pad=0.5)
            figure.savefig(out, dpi=DPI)
    finally:
        plt.close(figure)
    if any("missing from font" in str(warning.message) for warning in told):
        _warn(f"warning: {out.name}: no font here has some letters of the names; Noto Sans CJK has most")
    return out


@cache
def _warn(line: str) -> None:
    """Once: a training draws the same picture again and again."""
    print(line, file=sys.stderr)
