#!/usr/bin/env python3
"""Pretrain on shards: python train_pretrain.py ..., or on many processes torchrun --nproc-per-node N train_pretrain.py ..."""

from dclr.data.workers import worker_context
from dclr.errors import exit_on_input_error
from dclr.settings import Parser, from_flags
from dclr.threads import settle


def parser() -> Parser:
    from dclr.pretraining.config import PretrainConfig

    data = "--shards shards/mine --split train01"
    examples = {
        "this project's recipe": f"--recipe dclr {data} --out runs/mine",
        "the baseline, MoCo-v2 on video": f"--recipe dclr --objective moco {data} --out runs/moco",
        "8 GPUs: torchrun --nproc-per-node 8 in the place of python": f"--recipe dclr {data} -b 512 --scale-lr --out runs/mine",
        "what a file sets": "--config recipes/lab.yaml --help",
    }
    return Parser(description=__doc__, examples=examples).add(PretrainConfig, by_recipe=True)


def main() -> None:
    settle()  # before numpy and torch are imported
    from dclr.pretraining.config import PretrainConfig

    config = from_flags(PretrainConfig, parser().given())
    if config.workers:
        worker_context()  # their server imports torch while this process does
    from dclr.distributed import shutdown
    from dclr.pretraining.pretrain import pretrain

    try:
        pretrain(config)
    finally:
        shutdown()


def command() -> None:
    """dclr-pretrain."""
    with exit_on_input_error():
        main()


if __name__ == "__main__":
    command()
