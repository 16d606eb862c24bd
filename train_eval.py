#!/usr/bin/env python3
"""Evaluate a pretrained network on shards: finetune it, or try its frozen features. MODE --help says its flags."""

from dclr.data.workers import worker_context
from dclr.errors import exit_on_input_error
from dclr.settings import Parser
from dclr.threads import settle


def parser() -> Parser:
    from dclr.evaluation.config import ALL, Repeats, config_of, others
    from dclr.evaluation.modes import MODES

    top = Parser(description=__doc__)
    modes = top.add_subparsers(dest="mode", required=True, metavar="MODE")
    helps = {mode: one.help for mode, one in MODES.items()} | {ALL: "one after the other, on the same features"}
    for mode, what in helps.items():
        modes.add_parser(mode, help=what, description=what).add(config_of(mode), Repeats, without=others(mode))
    return top


def main() -> None:
    settle()  # before numpy and torch are imported
    from dclr.evaluation.config import ALL, evaluation
    from dclr.evaluation.modes import MODES

    given = parser().given()
    configs, repeats = evaluation(given)
    if configs[0].workers:
        worker_context()  # their server imports torch while this process does
    from dclr.distributed import shutdown
    from dclr.evaluation.repeat import everything, repeat

    try:
        if given["mode"] == ALL:
            everything(configs, repeats.folds, repeats.seeds)
        else:
            repeat(configs[0], repeats.folds, repeats.seeds, MODES[configs[0].mode].run)
    finally:
        shutdown()


def command() -> None:
    """dclr-eval."""
    with exit_on_input_error():
        main()


if __name__ == "__main__":
    command()
