"""report.html of a training: its curves, pictures and speed so far. It reads what the run writes, and runs beside it."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml

from dclr import page
from dclr.errors import InputError
from dclr.page import Html, Point, element, joined
from dclr.parse import Number, parsing
from dclr.settings import read_yaml
from dclr.text import duration, plain
from dclr.training.lines import LINES, read_lines

CONFIG = "config.yaml"
Value = Number | bool | str | None  # of a setting
RATE, WAIT = "speed/clips_per_second", "speed/data_wait"
Lines = Sequence[Mapping[str, float]]
# title of a section -> charts: title, which scalars, and whether they are shares that are shown in per cent. A chart without a
# title stands for one of each scalar.
SECTIONS: dict[str, tuple[tuple[str, str, bool], ...]] = {
    "Losses": (("", r"(loss|finetune)/(?!lr|top)", False),),
    "Accuracy": (
        ("k-NN on videos with labels", r"knn/", True),
        ("Videos held out", r"val/", True),
        ("Clips in training", r"finetune/top1", True),
    ),
    "Contrasts": (
        ("Top-1 of the contrasts", r"contrast/top1_", True),
        ("Top-5 of the contrasts", r"contrast/top5_", True),
        ("Entropy of the maps (1: uniform)", r"contrast/entropy_", False),
    ),
    "What is mined": (
        ("Mined videos with the query's label", r"contrast/mined_same_", True),
        ("Videos mined for a query", r"contrast/mined$", False),
        ("Queue, how full", r"contrast/queue_fill", True),
    ),
    "Optimisation": (("", r"optimiser/|finetune/lr", False),),
    "Other": (("", rf"(?!{RATE}|{WAIT})", False),),
}
TITLES = {
    "loss/total": "All terms",
    "optimiser/lr": "Learning rate",
    "finetune/lr": "Learning rate",
    "optimiser/momentum": "Momentum of f_k",
    "optimiser/gradient_norm": "Norm of the gradient",
    "memory/peak_gb": "Peak memory, GB a process",
    "data/skipped": "Videos skipped",
}
CAPTIONS = {
    "maps.png": "Views of clips of the last epoch's end, and where the network is active in them",
    "neighbours.png": "Videos, and those that were mined for each",
}


def write(out: Path) -> Path:
    """Write ``out/report.html`` from what the training in ``out`` has written so far; returns its path.

    Raises InputError where the folder is no training's."""
    if not (out / LINES).is_file() and not (out / CONFIG).is_file():
        raise InputError(
            f"{out}: neither a training's folder (it has no {LINES}) nor an evaluation's (no result.json); name one of these"
        )
    lines, config = read_lines(out), _config(out / CONFIG)
    if not lines:
        return page.write(out, out.resolve().name, [element("p", f"{LINES} has no step yet."), *_settings(config)])
    body = [page.facts(_said(out, config, lines)), page.tiles(_newest(lines))]
    body += _charts(lines)
    pictures = [page.picture(out / name, caption) for name, caption in CAPTIONS.items()]
    body += [element("h2", "Views, maps, neighbours"), *pictures] if any(pictures) else []
    body += [element("h2", "Speed"), *_speed(lines, config)]
    return page.write(out, out.resolve().name, [*body, *_settings(config)])


def _config(path: Path) -> dict[str, Any]:
    """The run's settings; none where the file is not there, or is not what a run writes."""
    try:
        with parsing(str(path), "a run's settings"):
            return msgspec.convert(read_yaml(path), dict[str, Value | list[Value]])
    except (OSError, InputError):
        return {}


def _settings(config: dict[str, Any]) -> list[Html]:
    return [page.details("Every setting", element("pre", yaml.safe_dump(config, sort_keys=False)))] if config else []


def _said(out: Path, config: dict[str, Any], lines: Lines) -> dict[str, str]:
    """What is trained, on what, and how far it is."""

    def text(*names: str) -> str:
        shown = {name: config[name] for name in names if config.get(name) not in (None, [], "") and config[name] is not False}
        return ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in shown.items())

    written = datetime.datetime.fromtimestamp((out / LINES).stat().st_mtime).astimezone().isoformat(" ", "seconds")
    said = {"so far": f"step {lines[-1]['step']}, written {written}"}
    if config:
        said |= {
            "method": text("objective", "without", "dynamic", "loss", "mined", "mine_by", "queue", "flow_weight"),
            "network": text("arch", "width", "bn", "bn_views"),
            "set": _plain(config.get("shards")),
            "videos": text("split", "share", "min_motion", "max_motion", "min_seconds"),
            "clips": text("frames", "stride", "clip_fps", "size", "min_scale", "flip"),
            "optimisation": text(
                "batch", "epochs", "optimiser", "lr", "schedule", "cos", "warmup", "momentum", "momentum_end", "wd",
                "precision", "seed",
            ),
        }  # fmt: skip
    return {name: value for name, value in said.items() if value}


def _plain(value: Any) -> str:
    return plain(", ".join(map(str, value)) if isinstance(value, list) else str(value), 200)


def points(lines: Lines, name: str) -> list[Point]:
    """The finite values of a scalar, with their steps."""
    return [(line["step"], y) for line in lines if isinstance(y := line.get(name), int | float) and math.isfinite(y)]


def _newest(lines: Lines) -> dict[str, str]:
    """The newest values of what one looks at first; of losses, shares and speed means over the last twentieth."""
    names = dict.fromkeys(name for line in lines for name in line)
    said = {}
    for title, wanted, percent in (
        ("loss", r"(loss/total|finetune/loss)$", False),
        ("k-NN top-1", r"knn/top1$", True),
        ("validation top-1", r"val/top1$", True),
        *((f"of the mined have the query's {plain(kind)}", rf"contrast/mined_same_{re.escape(kind)}$", True)
          for kind in (name.removeprefix("contrast/mined_same_") for name in names if name.startswith("contrast/mined_same_"))),
    ):  # fmt: skip
        for name in filter(re.compile(wanted).match, names):
            if values := [y for _, y in points(lines, name)]:
                value = page.running_mean(np.array(values))[-1]
                said[title] = f"{100 * value:.1f} %" if percent else page.short(value)
    return said


def _charts(lines: Lines) -> list[Html]:
    """A chart of every scalar, by section."""
    left, found = list(dict.fromkeys(name for line in lines for name in line if name != "step")), []
    for section, charts in SECTIONS.items():
        shown = []
        for title, wanted, percent in charts:
            names = [name for name in left if re.match(wanted, name)]
            left = [name for name in left if name not in names]
            for one, among in ((title, names),) if title else ((_title(name), [name]) for name in names):
                series = {re.sub(r"^.*(/|top[15]_|entropy_|mined_same_)", "", name): points(lines, name) for name in among}
                shown.append(page.curves(one, series, "step", percent))
        if any(shown):
            found += [element("h2", section), element("div", joined(shown), class_="charts")]
    return found


def _title(name: str) -> str:
    return TITLES.get(name, name.rpartition("/")[2])


def _speed(lines: Lines, config: Mapping[str, Any]) -> list[Html]:
    """How many videos a second over time, and where the time went.

    A line says how many clips a second its steps took since the line before, and which share of that was a wait for data. How
    many clips a step has says the configuration, which a finetuning lacks: its speed stands over steps."""
    batch, clock, before = config.get("batch"), 0.0, 0.0
    speed, waits, waited = list[Point](), list[Point](), 0.0
    for line in lines:
        rate, share = line.get(RATE), line.get(WAIT)
        if isinstance(rate, int | float) and isinstance(share, int | float) and 0 < rate < math.inf and 0 <= share <= 1:
            seconds = max(line["step"] - before, 0) * 2 * batch / rate if isinstance(batch, int) else 0.0
            clock, waited, before = clock + seconds, waited + seconds * share, line["step"]
            speed.append((clock if clock else before, rate / 2 if clock else rate))
            waits.append((speed[-1][0], share))
    unit, divisor = ("hours", 3600) if clock > 7200 else ("minutes", 60) if clock else ("step", 1)
    charts = [
        page.curves(title, {"": [(x / divisor, y) for x, y in of]}, unit, percent)
        for title, of, percent in (
            (f"{'Videos' if clock else 'Clips'} a second", speed, False),
            ("Waiting for data", waits, True),
        )
    ]
    found = [element("div", joined(charts), class_="charts")]
    if clock:
        share = waited / clock
        found.append(element("h3", f"Where {duration(clock)} of training went"))
        found.append(page.shares({"waiting for data": share, "computing; after epochs k-NN, pictures, checkpoints": 1 - share}))
    return found
