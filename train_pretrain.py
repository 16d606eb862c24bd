#!/usr/bin/env python3
"""Pretrain on shards: python train_pretrain.py ..., or on many processes torchrun --nproc-per-node N train_pretrain.py ..."""

from pathlib import Path

from dclr.data.workers import worker_context
from dclr.errors import exit_on_input_error
from dclr.settings import Parser, from_flags
from dclr.threads import settle


DATA = "--shards shards/mine --split train01"
EXAMPLES = {  # of --help
    "this project's recipe": f"--recipe dclr {DATA} --out runs/mine",
    "the baseline, MoCo-v2 on video": f"--recipe dclr --objective moco {DATA} --out runs/moco",
    "8 GPUs (torchrun --nproc-per-node 8 in the place of python)": f"--recipe dclr {DATA} -b 512 --scale-lr -j 6 --out runs/large",
    "what a file sets": "--config recipes/lab.yaml --help",
}


def parser() -> Parser:
    from dclr.pretraining.config import PretrainConfig

    return Parser(description=__doc__, examples=EXAMPLES).add(PretrainConfig, recipes=Path(__file__).parent / "recipes")


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


if __name__ == "__main__":
    with exit_on_input_error():
        main()
