"""python -m dclr.compare RUN RUN ...: the results of several evaluations side by side.

RUN is the folder of an evaluation or one that holds some, at any depth, such as runs. What is no result is left out and named.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec

from dclr.errors import InputError, exit_on_input_error, path_flag
from dclr.metrics import Metric
from dclr.parse import Number, Whole, from_json, parsing, read_whole
from dclr.settings import Parser
from dclr.text import plain, table

FIRST_COLUMNS = ("run", "mode", "label", "pretrained", "arch", "width", "videos")
GUESSES = ("chance", "majority")
GUESSED = dict.fromkeys(GUESSES, Metric("percent"))
RESULT = "result.json"
RESULT_BYTES = 1 << 25  # of it
LISTED_MOST = 10  # of the folders that are left out


@dataclass(frozen=True)
class Recorded:
    """What is read of a result's options."""

    mode: str
    pretrained: str


@dataclass(frozen=True)
class Result:
    """What a result.json says besides its numbers. What has a default here, earlier versions may lack."""

    options: Recorded
    classes: Annotated[float, msgspec.Meta(gt=0)]
    chance: Number | dict[str, Number] = 0
    majority: Number | dict[str, Number] = 0
    deviation: dict[str, Number] = field(default_factory=dict)
    interval: dict[str, tuple[Number, Number]] = field(default_factory=dict)
    random: dict[str, Number] | None = None
    videos: Whole = 0
    label: str = ""
    arch: str = ""
    width: Whole = 0
    skipped: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    unseen: dict[str, list[str]] = field(default_factory=dict)


def read_table(path: Path) -> dict[str, Any]:
    """A result.json as it is written; raises InputError for what is none, and OSError."""
    with parsing(str(path), "a result of train_eval.py"):
        table: dict[str, Any] = from_json(read_whole(path, RESULT_BYTES, "a result of train_eval.py"), dict, nan=True)
        msgspec.convert(table, Result)
        for name in measured(table):
            msgspec.convert(table[name], Number)
        return table


def read_result(folder: Path) -> dict[str, Any]:
    """The result.json of one evaluation, with the ``mode`` and the weights (``pretrained``) of its options; raises InputError
    naming what is wrong with it."""
    path = folder / RESULT
    if not path.is_file():
        what = "it holds no result.json" if folder.is_dir() else "no such folder"
        raise InputError(f"{folder}: {what}; expected an --out of train_eval.py")
    try:
        result = read_table(path)
    except OSError as error:
        raise InputError(f"{path}: not a result of train_eval.py ({error.strerror})") from None
    said = {name: result["options"][name] for name in ("mode", "pretrained")}
    return result | {"chance": result.get("chance", 1 / result["classes"])} | said


def measured(result: Mapping[str, Any]) -> dict[str, Metric]:
    """What each number of a result is, by name.

    A result of an earlier version does not say it. It begins with its numbers, all of which are shown in per cent."""
    if "metrics" in result:
        return {name: Metric(**said) for name, said in result["metrics"].items()}
    return dict.fromkeys(
        (name for name, _ in itertools.takewhile(lambda item: isinstance(item[1], float), result.items())), Metric("percent")
    )


def guesses(result: dict[str, Any]) -> dict[str, float]:
    """The accuracies of guessing: ``chance``, and ``majority``, which always names the class with most training videos.

    They are given for each kind of label where the result has several. An old result may lack ``majority``."""
    found: dict[str, float] = {}
    for name in GUESSES:
        value = result.get(name, {})
        found |= value if isinstance(value, dict) else {name: value}
    return found


Run = tuple[str, dict[str, Any]]  # name and result


def compare(folders: Sequence[Path]) -> str:
    """:func:`tables` of what :func:`gather` finds."""
    return tables(gather(folders)[0])


def tables(runs: Sequence[Run]) -> str:
    """A table, one row a run: its numbers, with their deviation over draws, folds or seeds, and those of guessing; and another
    of results of several kinds of label, such as bias reports, one column a network."""
    many = [(name, result) for name, result in runs if _of_kinds(result)]
    other = [(name, result) for name, result in runs if not _of_kinds(result)]
    return "\n\n".join(table(rows(some)) for rows, some in ((_rows, other), (_columns, many)) if some)


def gather(folders: Sequence[Path]) -> tuple[list[Run], dict[str, str]]:
    """The results in the folders and below them, and path -> why of what is none: pretrainings, damaged results, and folders
    without any. Of folds and seeds there is the mean alone. Raises InputError where a folder or every result is missing."""
    found: dict[Path, tuple[str, str, dict[str, Any]]] = {}
    left_out: dict[str, str] = {}
    for given in folders:
        top = given.parent if given.name == RESULT else given
        if not top.exists():
            raise InputError(f"{given}: no such folder; expected the folder of an evaluation, or one that holds some")
        results, pretrainings = _below(top)
        for place in results:
            name = "/".join(part for part in (top.name, *place.relative_to(top).parts) if part)
            try:
                found.setdefault(place.resolve(), (name, str(place), read_result(place)))
            except InputError as error:
                left_out[str(place)] = str(error).removeprefix(f"{place}/")
        inside = sorted(path for path in top.iterdir() if path.is_dir() and path.name[0] != ".") if results else [top]
        known = [*results, *pretrainings, *(path.parent for path in top.glob("*/*.safetensors"))]  # kept features
        empty = [path for path in inside if not any(one.is_relative_to(path) or path.is_relative_to(one) for one in known)]
        left_out |= {str(place): "a pretraining" for place in pretrainings} | {str(place): f"no {RESULT}" for place in empty}
    if not found:
        raise InputError(f"no result in {listed(left_out)}; train_eval.py makes them")
    count = Counter(name for name, _, _ in found.values())
    return [(name if count[name] == 1 else place, result) for name, place, result in found.values()], left_out


def _below(top: Path) -> tuple[list[Path], list[Path]]:
    """The folders of results, from ``top`` on and none below another, and those of pretrainings."""
    results, pretrainings = list[Path](), list[Path]()
    for place, folders, files in os.walk(top):
        folders.sort()
        if RESULT in files:
            results.append(Path(place))
            folders.clear()
        elif "config.yaml" in files:
            pretrainings.append(Path(place))
    return results, pretrainings


def listed(left_out: Mapping[str, str]) -> str:
    """What is left out, and why, on one line."""
    some = "; ".join(f"{place} ({why})" for place, why in itertools.islice(left_out.items(), LISTED_MOST))
    return some + f" and {len(left_out) - LISTED_MOST} more" * (len(left_out) > LISTED_MOST)


def headline(result: Mapping[str, Any]) -> str:
    """A result by its first number.

    >>> headline({"top1": 0.25, "mode": "knn", "label": "motion", "videos": 40})
    'knn on motion: top1 25.0 % of 40 videos'
    """
    name, metric = next(iter(measured(result).items()))
    number = f"{heading(name, metric)} {metric.text(result[name])}{metric.unit}"
    return f"{result['mode']} on {plain(str(result['label']))}: {number} of {result['videos']} videos"


def _of_kinds(result: dict[str, Any]) -> bool:
    """Whether a result is of several kinds of label. The bias report of an earlier version does not say it by its chance."""
    return isinstance(result["chance"], dict) or ("metrics" not in result and result["mode"] == "bias")


def heading(name: str, metric: Metric) -> str:
    """What a table calls a number."""
    return plain(metric.title or name, 80)


Cells = dict[tuple[str, str], str]  # by name and heading: where modes give one name to different numbers, each has its own


def _cells(metrics: Mapping[str, Metric], numbers: Mapping[str, float], several: Mapping[str, float]) -> Cells:
    """The numbers that are there as text, with their deviation ``several``."""
    return {
        (name, heading(name, metric)): metric.text(numbers[name])
        + (f" ± {metric.text(several[name])}" if name in several else "")
        for name, metric in metrics.items()
        if name in numbers and not isinstance(numbers[name], dict)  # of an edited result, one of whose guesses is a table
    }


def _rows(runs: Sequence[Run]) -> list[list[str]]:
    found = [_cells(measured(result) | GUESSED, result, result.get("deviation", {})) for _, result in runs]
    last = [(name, name) for name in GUESSES]
    names = [*dict.fromkeys(name for name in itertools.chain(*found) if name not in last), *last]
    rows = [[*FIRST_COLUMNS, *(said for _, said in names)]]
    for (run, result), cells in zip(runs, found, strict=True):
        rows.append([run, *(plain(str(result.get(name, "-")), 200) for name in FIRST_COLUMNS[1:])])
        rows[-1] += [cells.get(name, "-") for name in names]
    return rows


def _columns(runs: Sequence[Run]) -> list[list[str]]:
    columns: dict[str, Cells] = {}
    for run, result in runs:
        metrics, guessed = measured(result), guesses(result)
        cells = _cells(dict.fromkeys(guessed, Metric("percent")), guessed, {})
        columns[run] = _cells(metrics, result, {}) | cells
        if result.get("random"):
            columns[f"{run}, random weights"] = _cells(metrics, result["random"], {}) | cells
    names = dict.fromkeys(itertools.chain(*columns.values()))
    return [["test clips", *columns], *([name[1], *(cells.get(name, "-") for cells in columns.values())] for name in names)]


def parser() -> Parser:
    examples = {"two evaluations": "runs/mine-linear runs/random-linear", "every result below a folder": "runs"}
    made = Parser(prog="python -m dclr.compare", description=__doc__, examples=examples)
    what = "folder of an evaluation, or one that holds evaluations (required)"
    made.add_argument("runs", nargs="+", type=path_flag, metavar="RUN", help=what)
    return made


def main() -> None:
    runs, left_out = gather(parser().parse_args().runs)
    print(tables(runs))
    if left_out:
        print(f"left out: {listed(left_out)}", file=sys.stderr)


if __name__ == "__main__":
    with exit_on_input_error():
        main()
