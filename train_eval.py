#!/usr/bin/env python3
"""Evaluate a pretrained network on shards: finetune it, or try its frozen features. MODE --help says its flags."""

from dclr.data.workers import worker_context
from dclr.errors import exit_on_input_error
from dclr.settings import Parser
from dclr.threads import settle


def examples(mode: str) -> dict[str, str]:
    """Those of MODE --help that every mode has."""
    data = "--shards shards/mine --train-split train01 --test-split test01"
    return {
        "a checkpoint of train_pretrain.py": f"{data} --pretrained runs/mine/last.pt --out runs/mine-{mode}",
        "its baseline": f"{data} --pretrained random -a r2plus1d_10 --out runs/random-{mode}",
        "the mean of three folds": f"--shards shards/mine --folds 1 2 3 --pretrained runs/mine/last.pt --out runs/folds-{mode}",
    }


def parser() -> Parser:
    from dclr.evaluation.config import ALL, Repeats, config_of, others
    from dclr.evaluation.modes import MODES

    some = {what: f"linear {said}" for what, said in examples("linear").items()}
    top = Parser(description=__doc__, examples=some | {"what a mode can be told": "finetune --help"})
    modes = top.add_subparsers(dest="mode", required=True, metavar="MODE")
    helps = {mode: one.help for mode, one in MODES.items()} | {ALL: "one after the other, on the same features"}
    for mode, what in helps.items():
        said = {**examples(mode), **(MODES[mode].examples if mode in MODES else {})}
        modes.add_parser(mode, help=what, description=what, examples=said).add(config_of(mode), Repeats, without=others(mode))
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
