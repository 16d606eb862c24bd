#!/usr/bin/env python3
"""Evaluate a pretrained network on shards: finetune it, or try its frozen features."""

import argparse

from dclr.errors import InputError, exit_on_input_error
from dclr.threads import settle


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    top.add_argument("mode", choices=("finetune", "linear", "knn", "retrieval", "fewshot", "bias", "all"))
    data = top.add_argument_group("data")
    data.add_argument(
        "--shards", required=True, metavar="SET", help="what python -m preprocess made: a folder, http(s)://... or s3://..."
    )
    data.add_argument("--train-split", metavar="A,B")
    data.add_argument("--test-split", metavar="A,B")
    data.add_argument(
        "--folds", type=int, nargs="+", default=[], metavar="N", help="in their place: train0N and test0N of each, and the mean"
    )
    data.add_argument("--val", type=float, default=0.0, metavar="SHARE", help="of train, held out to choose epoch or probe-lr")
    data.add_argument("--label", help="kind of label, such as motion or scene; the set's first by default")
    data.add_argument("--out", required=True, metavar="RUN", help="folder for result.json, report.html and pictures")
    data.add_argument("--force", action="store_true", help="write over a result that --out holds")
    data.add_argument("-j", "--workers", type=int, default=1, help="loader processes of each rank")
    data.add_argument(
        "--cache", metavar="DIR", help="keep what came over the network on this machine's disk, for all its ranks"
    )
    data.add_argument("--cache-size", type=float, default=100.0, metavar="GB")
    data.add_argument("--on-error", default="stop", help="a video that cannot be read: stop, or skip (the result says which)")
    data.add_argument("--max-skipped", type=float, default=1.0, metavar="PERCENT", help="of the videos, above which skip stops")
    model = top.add_argument_group("model")
    model.add_argument("--pretrained", required=True, metavar="FILE", help="checkpoint or weights, or random")
    model.add_argument("-a", "--arch", help="network for --pretrained random; otherwise the checkpoint says")
    model.add_argument("--width", type=int, default=64, help="channels of the first stage, for --pretrained random")
    model.add_argument(
        "--precise-bn",
        type=int,
        default=0,
        metavar="N",
        help="first re-estimate BatchNorm's statistics on N RGB training batches",
    )
    clip = top.add_argument_group("clips (frames, stride and size: by default the checkpoint's, or 16, 2, 112)")
    clip.add_argument("-fpc", "--frames", type=int, help="frames a clip")
    clip.add_argument("--stride", type=int, help="stored frames from one frame of a clip to the next")
    clip.add_argument("-cs", "--size", type=int, help="crop in pixels")
    clip.add_argument("-cpv", type=int, default=10, help="clips a training video: an epoch's (finetune), in all (others)")
    clip.add_argument("--test-clips", type=int, default=10, help="uniform clips a test video, probabilities averaged")
    clip.add_argument("--crops", type=int, default=1, help="of each test clip: 1 (the middle) or 3 (along the long side)")
    clip.add_argument("--average", default="probabilities", help="of a video's clips: probabilities or logits")
    clip.add_argument("--min-scale", type=float, default=0.2, help="least share of the area that a training crop keeps")
    clip.add_argument("--flip", type=float, default=0.5, help="probability of a flip; 0 where left and right are labels")
    still = top.add_argument_group("frozen features (linear, knn, retrieval, fewshot, bias)")
    still.add_argument(
        "--features", metavar="DIR", help="keep them there (default: RUN/features), read them where they were kept"
    )
    still.add_argument("--probe", default="convex", help="of linear: convex (to its minimum) or sgd (the authors')")
    still.add_argument(
        "--probe-lr", type=float, nargs="+", default=[5.0], metavar="LR", help="of sgd; of several the best on --val"
    )
    still.add_argument(
        "--shots", type=int, nargs="+", default=[1, 5, 10], metavar="N", help="training videos a class (fewshot)"
    )
    still.add_argument("--draws", type=int, default=5, help="of those videos (fewshot)")
    run = top.add_argument_group("optimisation (finetune)")
    run.add_argument("-b", "--batch", type=int, default=64, help="clips a step, over all processes")
    run.add_argument("--epochs", type=int, default=10)
    run.add_argument("--lr", type=float, default=0.1)
    run.add_argument("--schedule", type=int, nargs="*", default=[6, 8], help="epochs at which lr drops to a tenth")
    run.add_argument("--wd", type=float, default=1e-4, help="weight decay")
    run.add_argument("--dropout", type=float, default=0.5)
    run.add_argument("--head", default="linear", help="linear, or bn: a BatchNorm before it")
    run.add_argument(
        "--bn", default="sync", help="statistics of all processes' clips, local: of each process's, frozen: as they are"
    )
    run.add_argument("--patience", type=int, default=0, metavar="EPOCHS", help="without a better one on --val, then stop")
    run.add_argument("--save-minutes", type=float, default=15.0, help="between checkpoints within an epoch; each epoch has one")
    run.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="several: one after the other, and the mean"
    )
    run.add_argument("--precision", default="auto", help="auto (bf16 where the hardware has it), fp32, bf16, fp16")
    return top


def main() -> None:
    settle()  # before torch is imported
    args = vars(parser().parse_args())
    from dclr.bias import bias
    from dclr.data.manifest import split_list
    from dclr.distributed import shutdown
    from dclr.evaluate import EvalConfig
    from dclr.finetune import finetune
    from dclr.probe import frozen
    from dclr.repeat import everything, repeat

    folds, seeds, splits = args.pop("folds"), args.pop("seeds"), [args["train_split"], args["test_split"]]
    if any(splits) if folds else not all(splits):
        raise InputError("expected --train-split and --test-split, or --folds in the place of both")
    args |= {f"{part}_split": split_list(args[f"{part}_split"] or f"{part}{folds[0]:02}") for part in ("train", "test")}
    args |= {name: tuple(args[name]) for name in ("schedule", "shots", "probe_lr")}
    mode, special = args["mode"], {"finetune": finetune, "bias": bias}
    try:
        if mode == "all":
            everything(EvalConfig(**args | {"mode": "finetune"}), folds, seeds, lambda name: special.get(name, frozen))
        else:
            repeat(EvalConfig(**args), folds, seeds, special.get(mode, frozen))
    finally:
        shutdown()


if __name__ == "__main__":
    with exit_on_input_error():
        main()
