"""python -m dclr.compare RUN RUN ...: the results of several evaluations side by side."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dclr.errors import InputError, exit_on_input_error
from dclr.report import table

COLUMNS = ("run", "mode", "label", "pretrained", "arch", "width", "videos", "top1", "top5", "mean_class", "chance")


def read_result(folder: Path) -> dict[str, Any]:
    """The result.json of one evaluation; raises InputError naming what is wrong with it."""
    path = folder / "result.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        return {**result, "mode": result["options"]["mode"], "pretrained": result["options"]["pretrained"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a result of train_eval.py ({type(error).__name__}: {error})") from None


def compare(folders: list[Path]) -> str:
    """A table, one row a run; accuracies in per cent, chance that of guessing among the classes."""
    rows = [list(COLUMNS)]
    for folder in folders:
        result = read_result(folder)
        result |= {"run": folder.name, "chance": 1 / result["classes"]}
        for name in ("top1", "top5", "mean_class", "chance"):
            result[name] = f"{100 * result[name]:.1f}"
        rows.append([str(result[name]) for name in COLUMNS])
    return table(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m dclr.compare", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="--out folders of train_eval.py")
    with exit_on_input_error():
        print(compare(parser.parse_args().runs))
