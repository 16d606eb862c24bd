"""python -m dclr.compare RUN RUN ...: the results of several evaluations side by side."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from dclr.errors import InputError, exit_on_input_error, path_flag
from dclr.text import plain, table

COLUMNS = ("run", "mode", "label", "pretrained", "arch", "width", "videos")
GUESSES = ("chance", "majority")
ACCURACIES = re.compile(r"top1|top5|mean_class|R@\d+|\d+-shot|[^:]+: .+")  # the last are bias's


def read_result(folder: Path) -> dict[str, Any]:
    """The result.json of one evaluation; raises InputError naming what is wrong with it."""
    path = folder / "result.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        said = {name: result["options"][name] for name in ("mode", "pretrained")}
        return {"chance": 1 / result["classes"], **result, **said}
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{path}: not a result of train_eval.py ({type(error).__name__}: {error})") from None


def guesses(result: dict[str, Any]) -> dict[str, float]:
    """The accuracies of guessing: ``chance``, and ``majority``, which always names the class with most training videos.

    They are given for each kind of label where the result has several. An old result may lack ``majority``."""
    found: dict[str, float] = {}
    for name in GUESSES:
        value = result.get(name, {})
        found |= value if isinstance(value, dict) else {name: value}
    return found


def compare(folders: list[Path]) -> str:
    """A table, one row a run: accuracies in per cent, with their deviation over draws, folds or seeds, and those of guessing;
    and another of bias reports, one column a network. A folder of ``train_eval.py all`` stands for those in it."""
    runs = [(name, read_result(folder)) for parent in folders for name, folder in _within(parent)]
    bias = [(name, result) for name, result in runs if result["mode"] == "bias"]
    other = [(name, result) for name, result in runs if result["mode"] != "bias"]
    return "\n\n".join(table(rows(some)) for rows, some in ((_rows, other), (_bias_rows, bias)) if some)


def _rows(runs: list[tuple[str, dict[str, Any]]]) -> list[list[str]]:
    found = dict.fromkeys(name for _, result in runs for name in result if ACCURACIES.fullmatch(name))
    columns = [*COLUMNS, *found, *GUESSES]
    rows = [columns]
    for run, result in runs:
        cells = {name: plain(str(result.get(name, "-")), 200) for name in COLUMNS} | {"run": run}
        for name in columns[len(COLUMNS) :]:
            cells[name] = f"{100 * result[name]:.1f}" if name in result else "-"
            if name in result.get("deviation", {}):
                cells[name] += f" ± {100 * result['deviation'][name]:.1f}"
        rows.append([cells[name] for name in columns])
    return rows


def _bias_rows(runs: list[tuple[str, dict[str, Any]]]) -> list[list[str]]:
    columns = {}
    for run, result in runs:
        columns[run] = {name: value for name, value in result.items() if ACCURACIES.fullmatch(name)} | guesses(result)
        if result.get("random"):
            columns[f"{run}, random weights"] = result["random"] | guesses(result)
    names = dict.fromkeys(name for numbers in columns.values() for name in numbers)
    rows = [["test clips", *columns]]
    for name in names:
        rows.append([name, *(f"{100 * numbers[name]:.1f}" if name in numbers else "-" for numbers in columns.values())])
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
