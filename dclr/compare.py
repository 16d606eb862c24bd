"""python -m dclr.compare RUN RUN ...: the results of several evaluations side by side."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dclr.errors import InputError, exit_on_input_error, path_flag
from dclr.metrics import Metric
from dclr.text import plain, table

FIRST_COLUMNS = ("run", "mode", "label", "pretrained", "arch", "width", "videos")
GUESSES = ("chance", "majority")
GUESSED = dict.fromkeys(GUESSES, Metric("percent"))


def read_result(folder: Path) -> dict[str, Any]:
    """The result.json of one evaluation; raises InputError naming what is wrong with it."""
    path = folder / "result.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        said = {name: result["options"][name] for name in ("mode", "pretrained")}
        for name in measured(result):
            float(result[name])
        return result | {"chance": result.get("chance", 1 / result["classes"])} | said
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise InputError(f"{path}: not a result of train_eval.py ({type(error).__name__}: {error})") from None


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


def compare(folders: list[Path]) -> str:
    """A table, one row a run: its numbers, with their deviation over draws, folds or seeds, and those of guessing; and another
    of results of several kinds of label, such as bias reports, one column a network. A folder of ``train_eval.py all`` stands
    for those in it."""
    runs = [(name, read_result(folder)) for parent in folders for name, folder in _within(parent)]
    many = [(name, result) for name, result in runs if _of_kinds(result)]
    other = [(name, result) for name, result in runs if not _of_kinds(result)]
    return "\n\n".join(table(rows(some)) for rows, some in ((_rows, other), (_columns, many)) if some)


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
        if name in numbers
    }


def _rows(runs: list[tuple[str, dict[str, Any]]]) -> list[list[str]]:
    found = [_cells(measured(result) | GUESSED, result, result.get("deviation", {})) for _, result in runs]
    last = [(name, name) for name in GUESSES]
    names = [*dict.fromkeys(name for name in itertools.chain(*found) if name not in last), *last]
    rows = [[*FIRST_COLUMNS, *(said for _, said in names)]]
    for (run, result), cells in zip(runs, found, strict=True):
        rows.append([run, *(plain(str(result.get(name, "-")), 200) for name in FIRST_COLUMNS[1:])])
        rows[-1] += [cells.get(name, "-") for name in names]
    return rows


def _columns(runs: list[tuple[str, dict[str, Any]]]) -> list[list[str]]:
    columns: dict[str, Cells] = {}
    for run, result in runs:
        metrics, guessed = measured(result), guesses(result)
        cells = _cells(dict.fromkeys(guessed, Metric("percent")), guessed, {})
        columns[run] = _cells(metrics, result, {}) | cells
        if result.get("random"):
            columns[f"{run}, random weights"] = _cells(metrics, result["random"], {}) | cells
    names = dict.fromkeys(itertools.chain(*columns.values()))
    return [["test clips", *columns], *([name[1], *(cells.get(name, "-") for cells in columns.values())] for name in names)]


def _within(folder: Path) -> list[tuple[str, Path]]:
    """(name, folder) of the results in a folder: its own, or where it has none, those of the folders in it."""
    inside = [(f"{folder.name}/{path.parent.name}", path.parent) for path in sorted(folder.glob("*/result.json"))]
    return [(folder.name, folder)] if (folder / "result.json").exists() or not inside else inside


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m dclr.compare", description=__doc__)
    parser.add_argument("runs", nargs="+", type=path_flag, metavar="RUN", help="--out folders of train_eval.py")
    with exit_on_input_error():
        print(compare(parser.parse_args().runs))
