"""python -m dclr.report RUN: report.html of a training, also while it runs, or that of an evaluation made anew."""

from __future__ import annotations

from pathlib import Path

from dclr.errors import InputError, exit_on_input_error, path_flag
from dclr.evaluation import page as evaluation
from dclr.pretraining import page as training
from dclr.settings import Parser


def report(run: Path, baseline: Path | None = None) -> Path:
    """Write ``run/report.html`` from the files of the run, which stay as they are; returns its path.

    Raises InputError for a folder that is neither a training's nor an evaluation's, and for a ``baseline`` that is none."""
    if folders := evaluation.folders(run):
        return evaluation.write(run, folders, baseline)
    if baseline:
        raise InputError(f"--baseline {baseline}: {run} is no evaluation; only these have one")
    return training.write(run)


def parser() -> Parser:
    examples = {
        "a pretraining, also while it runs": "runs/mine",
        "an evaluation anew, beside random weights": "runs/linear --baseline runs/random",
    }
    made = Parser(prog="python -m dclr.report", description=__doc__, examples=examples)
    made.add_argument(
        "run", type=path_flag, metavar="RUN", help="--out folder of train_pretrain.py or train_eval.py (required)"
    )
    beside = "an evaluation of the same test videos, to stand beside this one (default: none)"
    made.add_argument("--baseline", type=path_flag, metavar="RUN", help=beside)
    return made


if __name__ == "__main__":
    with exit_on_input_error():
        args = parser().parse_args()
        print(report(args.run, args.baseline))
