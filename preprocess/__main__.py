"""python -m preprocess DATASET --out SET: videos in, shards out. See README.md and shards/README.md."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from dclr.errors import InputError, exit_on_input_error
from preprocess import datasets, run, synthetic
from preprocess.preview import contact_sheet


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m preprocess", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    making = argparse.ArgumentParser(add_help=False)
    making.add_argument("--out", type=Path, required=True, metavar="SET", help="folder of the shard set, e.g. shards/ucf101")
    making.add_argument("--size", type=int, default=128, metavar="PIXELS", help="short side of the stored frames (128)")
    making.add_argument("--quality", type=int, default=90, help="JPEG quality, 1 to 100 (90)")
    making.add_argument("--shard-size", type=int, default=256, metavar="MB", help="estimated size of a shard (256)")
    making.add_argument("--workers", type=int, default=cores, help="processes (one a core)")

    made = commands.add_parser("synthetic", parents=[making], help="the embedded data set: made here, no download")
    made.add_argument("--videos", type=int, default=1200, metavar="N", help="videos, a third of them test (1200)")
    made.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (0)")

    ucf = commands.add_parser("ucf101", parents=[making], help="UCF101, or any set with lists in its form")
    ucf.add_argument("--root", type=Path, required=True, help="folder of class folders of videos")
    ucf.add_argument("--splits", type=Path, required=True, help="folder of classInd.txt, trainlist0N.txt, testlist0N.txt")
    ucf.add_argument("--limit", type=int, metavar="N", help="only the first N videos of the sorted list")

    preview = commands.add_parser("preview", help="a contact sheet: frames above their motion cues")
    preview.add_argument("set", type=Path, help="folder of a shard set")
    preview.add_argument("--out", type=Path, required=True, metavar="PNG")
    preview.add_argument("--videos", type=int, default=6, metavar="N", help="rows of the sheet (6)")
    return top


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    for flag in ("workers", "videos", "limit"):
        if getattr(args, flag, None) is not None and getattr(args, flag) < 1:
            raise InputError(f"--{flag} {getattr(args, flag)}: expected at least 1")
    if args.command == "preview":
        print(contact_sheet(args.set, args.out, args.videos))
        return
    options = run.Options(args.size, args.quality, args.shard_size)
    run.check_out(args.out)
    if args.command == "synthetic":
        source = synthetic.make(args.out / "videos" / f"seed{args.seed}", args.videos, args.seed, args.workers)
        summary = run.build(source, args.out, options, args.workers)
    else:
        source = datasets.ucf101(args.root, args.splits)
        summary = run.build(source, args.out, options, args.workers, args.limit)
    print(report(args.out, summary))


def report(out: Path, summary: run.Summary) -> str:
    """The last lines a user sees: what is in the set, and what is not and why."""
    manifest = summary.manifest
    lines = [
        f"{out}: {manifest.samples} videos in {len(manifest.shards)} shards, "
        f"{sum(s.bytes for s in manifest.shards) / 1e6:.0f} MB",
        "splits: " + ", ".join(f"{name} {count}" for name, count in manifest.splits.items()),
    ]
    missing = [f for f in summary.failures if f.stage == "missing"]
    failed = [f for f in summary.failures if f.stage != "missing"]
    if missing:
        lines.append(f"missing: {len(missing)} videos are in the lists and not on disk: {_some([f.path for f in missing])}")
    if failed:
        reasons = [f"{f.path} ({f.stage}: {f.reason})" for f in failed]
        lines.append(f"failed: {len(failed)} videos: {_some(reasons)}")
    if summary.failures:
        lines.append(f"each is a line of {out / run.FAILURES}")
    if summary.unlisted:
        lines.append(f"left out: {summary.unlisted} videos on disk that no list names")
    return "\n".join(lines)


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
