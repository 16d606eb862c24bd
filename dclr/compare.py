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

COLUMNS = ("run", "mode", "label", "pretrained", "arch", "width", "videos")
GUESSES = ("chance", "majority")


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
    many = [(name, result) for name, result in runs if isinstance(result["chance"], dict)]
    other = [(name, result) for name, result in runs if not isinstance(result["chance"], dict)]
    return "\n\n".join(table(rows(some)) for rows, some in ((_rows, other), (_columns, many)) if some)


def heading(name: str, metric: Metric) -> str:
    """What a table calls a number."""
    return plain(metric.title or name, 80)


def _rows(runs: list[tuple[str, dict[str, Any]]]) -> list[list[str]]:
    found: dict[str, Metric] = {}
    for _, result in runs:
        found |= measured(result)
    found |= dict.fromkeys(GUESSES, Metric("percent"))
    rows = [[*COLUMNS, *(heading(name, metric) for name, metric in found.items())]]
    for run, result in runs:
        cells = [run, *(plain(str(result.get(name, "-")), 200) for name in COLUMNS[1:])]
        for name, metric in found.items():
            cell = metric.text(result[name]) if name in result else "-"
            if name in result.get("deviation", {}):
                cell += f" ± {metric.text(result['deviation'][name])}"
            cells.append(cell)
        rows.append(cells)
    return rows


def _columns(runs: list[tuple[str, dict[str, Any]]]) -> list[list[str]]:
    columns: dict[str, dict[str, float]] = {}
    metrics: dict[str, Metric] = {}
    for run, result in runs:
        own, guessed = measured(result), guesses(result)
        columns[run] = {name: result[name] for name in own} | guessed
        if result.get("random"):
            columns[f"{run}, random weights"] = result["random"] | guessed
        metrics |= own | dict.fromkeys(guessed, Metric("percent"))
    rows = [["test clips", *columns]]
    for name, metric in metrics.items():
        cells = [metric.text(numbers[name]) if name in numbers else "-" for numbers in columns.values()]
        rows.append([heading(name, metric), *cells])
    return rows


def _within(folder: Path) -> list[tuple[str, Path]]:
    """(name, folder) of the results in a folder: its own, or where it has none, those of the folders in it."""
    inside = [(f"{folder.name}/{path.parent.name}", path.parent) for path in sorted(folder.glob("*/result.json"))]
    return [(folder.name, folder)] if (folder / "result.json").exists() or not inside else inside


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m dclr.compare", description=__doc__)
    parser.add_argument("runs", nargs="+", type=path_flag, metavar="RUN", help="--out folders of train_eval.py")
    with exit_on_input_error():
        print(compare(parser.parse_args().runs))
