#!/usr/bin/env python3
"""Pretrain on shards: python train_pretrain.py ..., or on many processes torchrun --nproc-per-node N train_pretrain.py ..."""

import argparse
from pathlib import Path

from dclr.errors import exit_on_input_error, place
from dclr.threads import settle


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    top.add_argument("--config", metavar="YAML", help="flags from a recipe, or from a run's config.yaml; later flags win")
    data = top.add_argument_group("data")
    data.add_argument(
        "--shards", required=True, metavar="SET", help="what python -m preprocess made: a folder, http(s)://... or s3://..."
    )
    data.add_argument("--split", required=True, metavar="A,B", help="splits to train on, such as train01")
    data.add_argument("--out", required=True, metavar="RUN", help="folder for checkpoints, curves and pictures")
    data.add_argument("-j", "--workers", type=int, default=1, help="loader processes of each rank")
    data.add_argument(
        "--last-batch", default="drop", help="an epoch's last, partial batch: drop, or wrap (fill up from its beginning)"
    )
    data.add_argument(
        "--cache", metavar="DIR", help="keep what came over the network on this machine's disk, for all its ranks"
    )
    data.add_argument("--cache-size", type=float, default=100.0, metavar="GB")
    data.add_argument(
        "--on-error", default="stop", help="a video that cannot be read: stop, or skip (another one takes its place)"
    )
    data.add_argument("--max-skipped", type=float, default=1.0, metavar="PERCENT", help="of the videos, above which skip stops")
    clip = top.add_argument_group("clips")
    clip.add_argument("-fpc", "--frames", type=int, default=16, help="frames a clip")
    clip.add_argument("--stride", type=int, default=2, help="stored frames from one frame of a clip to the next")
    clip.add_argument("-cs", "--size", type=int, default=112, help="crop in pixels")
    clip.add_argument("--min-scale", type=float, default=0.2, help="least share of the area that a crop keeps")
    clip.add_argument("--flip", type=float, default=0.5, help="probability of a flip; 0 where left and right are labels")
    clip.add_argument("--sample-motion", action="store_true", help="draw starts by the stored motion energy")
    model = top.add_argument_group("model")
    model.add_argument(
        "-a", "--arch", default="r2plus1d_10", help="r2plus1d_10 (the authors' network), r2plus1d_18, r3d_18, mc3_18 or i3d"
    )
    model.add_argument("--width", type=int, default=64, help="channels of the first stage")
    model.add_argument("--dynamic", default="rgbdiff", help="dynamic view: rgbdiff, cue (stored difference), flow")
    model.add_argument("--queue", type=int, help="negatives; by default fills within the first epoch, 2048 at most")
    model.add_argument("--bn", default="sync", help="BatchNorm statistics over all videos (sync), or a group: shuffle, local")
    model.add_argument("--bn-groups", type=int, help="groups of each process's batch, by default 2 for shuffle on one process")
    model.add_argument(
        "--bn-views", default="split", help="statistics for each of v, s, d (split), or of all together (shared)"
    )
    method = top.add_argument_group("method: ablations and baseline")
    method.add_argument("--objective", default="dclr", help="dclr, or moco: MoCo-v2 on video, the baseline")
    method.add_argument(
        "--without", nargs="+", default=[], metavar="PART", help="leave out: static, dynamic, decoupling, mining, alignment"
    )
    method.add_argument("--mined", type=int, default=5, metavar="K", help="positives mined from other videos")
    method.add_argument("--loss", default="mil", help="contrast: mil, masked (own key left out at random) or mean-log")
    method.add_argument("--align-target", default="sum", help="of the maps A(s), A(d): sum, or equal (each with mean 1 first)")
    method.add_argument("--symmetric", action="store_true", help="also with the two clips swapped; twice the work")
    run = top.add_argument_group("optimisation")
    run.add_argument("-b", "--batch", type=int, default=64, help="videos a step, over all processes")
    run.add_argument("--accumulate", type=int, default=1, metavar="PARTS", help="take the batch in parts: less memory")
    run.add_argument("--checkpoint-gradients", action="store_true", help="compute each stage twice: less memory, more time")
    run.add_argument("--epochs", type=int, default=200)
    run.add_argument("--lr", type=float, default=0.01)
    run.add_argument("--schedule", type=int, nargs="*", default=[120, 160], help="epochs at which lr drops to a tenth")
    run.add_argument("--cos", action="store_true", help="half a cosine to 0 in the place of --schedule")
    run.add_argument("--warmup", type=float, default=0.0, metavar="EPOCHS", help="of a line from 0")
    run.add_argument("--scale-lr", action="store_true", help="lr times batch / 64")
    run.add_argument("--wd", type=float, default=1e-4, help="weight decay")
    run.add_argument("--decay-weights-only", action="store_true", help="no weight decay of biases and BatchNorm")
    run.add_argument("--clip-grad", type=float, default=0.0, metavar="NORM", help="of the whole gradient; 0: no clipping")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--precision", default="auto", help="auto (bf16 where the hardware has it), fp32, bf16, fp16")
    watch = top.add_argument_group("watching")
    watch.add_argument(
        "--knn-split", default="", metavar="A,B", help="labelled split on whose videos k-NN is tried as it trains"
    )
    watch.add_argument("--knn-every", type=int, default=10, metavar="EPOCHS")
    save = top.add_argument_group("checkpoints")
    save.add_argument("--resume", default="auto", help="auto (the newest valid one in --out), never, or a file to begin from")
    save.add_argument("--keep", type=int, default=2, metavar="K", help="the last K checkpoints")
    save.add_argument("--milestone", type=int, default=50, metavar="EPOCHS", help="and that of every so many epochs")
    save.add_argument(
        "--save-minutes", type=float, default=15.0, help="between checkpoints within an epoch; each epoch has one"
    )
    return top


def main() -> None:
    settle()  # before torch is imported
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config")
    given, rest = early.parse_known_args()
    top = parser()
    if given.config:
        from dclr.config import from_file

        rest = from_file(Path(place(given.config, "--config"))) + rest
    args = vars(top.parse_args(rest))
    del args["config"]
    from dclr.config import PretrainConfig
    from dclr.data.manifest import split_list
    from dclr.distributed import shutdown
    from dclr.pretrain import pretrain

    args |= {"split": split_list(args["split"]), "knn_split": split_list(args["knn_split"]) if args["knn_split"] else ()} | {
        name: tuple(args[name]) for name in ("schedule", "without")
    }
    try:
        pretrain(PretrainConfig(**args))
    finally:
        shutdown()


if __name__ == "__main__":
    with exit_on_input_error():
        main()
