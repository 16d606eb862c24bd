#!/usr/bin/env python3
"""Evaluate a pretrained network on shards: finetune it, or try its frozen features. MODE --help says its flags."""

from dclr.errors import exit_on_input_error
from dclr.settings import Parser
from dclr.threads import settle


def parser() -> Parser:
    from dclr.evaluation.config import ALL, MODES, EvalConfig, Repeats, others

    top = Parser(description=__doc__)
    modes = top.add_subparsers(dest="mode", required=True, metavar="MODE")
    for mode, what in {**MODES, ALL: "one after the other, on the same features"}.items():
        modes.add_parser(mode, help=what, description=what).add(EvalConfig, Repeats, without=others(mode))
    return top


def main() -> None:
    settle()  # before numpy and torch are imported
    from dclr.evaluation.config import ALL, evaluation

    given = parser().given()
    config, repeats = evaluation(given)
    from dclr.distributed import shutdown
    from dclr.evaluation.bias import bias
    from dclr.evaluation.finetune import finetune
    from dclr.evaluation.probe import frozen
    from dclr.evaluation.repeat import everything, repeat

    special = {"finetune": finetune, "bias": bias}
    try:
        if given["mode"] == ALL:
            everything(config, repeats.folds, repeats.seeds, lambda mode: special.get(mode, frozen))
        else:
            repeat(config, repeats.folds, repeats.seeds, special.get(config.mode, frozen))
    finally:
        shutdown()


if __name__ == "__main__":
    with exit_on_input_error():
        main()
