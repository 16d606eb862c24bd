"""python -m preprocess COMMAND: videos in, shards out, and looking after what came out. See README.md and shards/README.md."""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path

from dclr.data.manifest import MANIFEST, Manifest
from dclr.errors import InputError, check_number, exit_on_input_error, path_flag
from dclr.record import CODECS, CUES
from dclr.storage import Folder, RemoteFolder, open_folder
from dclr.threads import permitted
from preprocess import run, synthetic
from preprocess.datasets import DATASETS, VideoSet
from preprocess.preview import contact_sheet
from preprocess.stats import describe
from preprocess.transcode import Options
from preprocess.verify import verify

WARN_MISSING = 5  # percent of the listed videos


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m preprocess", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    place = "a folder, or s3://bucket/prefix"

    cores = permitted()
    working = argparse.ArgumentParser(add_help=False)
    speed = working.add_argument_group("how it is done (no byte depends on these)")
    speed.add_argument("--workers", type=int, default=cores, metavar="N", help="processes (one a core)")
    speed.add_argument(
        "--timeout", type=float, default=600, metavar="SECONDS", help="a video that takes longer has failed (600)"
    )
    speed.add_argument("--max-failures", type=float, default=5, metavar="PERCENT", help="more failed videos: exit code 1 (5)")
    missing_help = f"more missing videos of the lists: exit code 1 (only a warning, above {WARN_MISSING})"
    speed.add_argument("--max-missing", type=float, metavar="PERCENT", help=missing_help)
    speed.add_argument("--engine", choices=("local", "ray"), default="local", help="processes here, or a Ray cluster")

    making = argparse.ArgumentParser(add_help=False, parents=[working])
    stored = making.add_argument_group("what is stored")
    stored.add_argument(
        "--out", type=folder_flag, required=True, metavar="SET", help=f"of the shard set, e.g. shards/ucf101: {place}"
    )
    stored.add_argument("--size", type=int, default=128, metavar="PIXELS", help="short side of the stored frames (128)")
    stored.add_argument(
        "--codec", choices=list(CODECS), default="jpeg", help="jpeg reads fastest, h264 is a quarter of the bytes"
    )
    stored.add_argument("--quality", type=int, help="JPEG quality (90) or h264's crf (20)")
    stored.add_argument(
        "--cues",
        type=cue_list,
        default=("diff", "energy"),
        metavar="LIST",
        help=f"some of {','.join(CUES)}, or none (diff,energy)",
    )
    stored.add_argument("--stabilise", action="store_true", help="take the camera's motion out of the cues")
    stored.add_argument("--shard-size", type=int, default=256, metavar="MB", help="estimated size of a shard (256)")

    reading = argparse.ArgumentParser(add_help=False, parents=[making])
    source = reading.add_argument_group("which videos")
    source.add_argument("--root", type=folder_flag, required=True, help=f"of the videos: {place}")
    source.add_argument("--limit", type=int, metavar="N", help="only the first N videos of the sorted list")
    source.add_argument("--max-seconds", type=float, default=600, help="a longer video fails (600)")
    source.add_argument("--segment", type=float, default=0, metavar="SECONDS", help="cut videos into samples of this length")
    source.add_argument("--append", action="store_true", help="add the videos that the set does not hold yet")
    source.add_argument("--part", metavar="I/N", help="only the I-th of N parts (Slurm arrays); then merge")
    source.add_argument(
        "--dry-run", action="store_true", help="say how many videos, shards, bytes and hours, and write nothing"
    )

    made = commands.add_parser("synthetic", parents=[making], help="the embedded data set: made here, no download")
    made.add_argument("--videos", type=int, default=1200, metavar="N", help="videos, a third of them test (1200)")
    made.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (0)")
    made.add_argument(
        "--swap-scenes", action="store_true", help="a split 'swapped' too: each test video's motion over another scene"
    )

    for dataset in DATASETS.values():
        read = commands.add_parser(dataset.name, parents=[reading], help=dataset.help)
        if dataset.flag:
            read.add_argument(
                dataset.flag, dest="lists", type=path_flag, required=True, metavar=dataset.metavar, help=dataset.flag_help
            )

    existing = argparse.ArgumentParser(add_help=False)
    existing.add_argument("set", type=folder_flag, metavar="SET", help=f"a shard set: {place}")
    again = commands.add_parser(
        "retry", parents=[existing, working], help="try the failed videos again and add what comes of them"
    )
    again.add_argument("--root", type=folder_flag, help="where the videos are now (as before)")
    joined = commands.add_parser("merge", parents=[existing], help="the one manifest of what several parts made")
    joined.add_argument("--max-failures", type=float, default=5, metavar="PERCENT", help="more failed videos: exit code 1 (5)")
    joined.add_argument("--max-missing", type=float, metavar="PERCENT", help=missing_help)

    checked = commands.add_parser(
        "verify", parents=[existing], help="hash every shard, compare it with its index; exit code 1 on a fault"
    )
    checked.add_argument("--deep", action="store_true", help="decode every frame and cue too")
    checked.add_argument("--workers", type=int, default=cores, metavar="N", help="processes (one a core)")
    counted = commands.add_parser("stats", parents=[existing], help="videos, hours, classes, splits, sizes; a picture of them")
    counted.add_argument("--out", type=path_flag, default=Path("stats.png"), metavar="PNG", help="histograms (stats.png)")
    preview = commands.add_parser("preview", parents=[existing], help="a contact sheet: frames above their motion cues")
    preview.add_argument("--out", type=path_flag, required=True, metavar="PNG")
    preview.add_argument("--videos", type=int, default=6, metavar="N", help="rows of the sheet (6)")
    return top


def folder_flag(text: str) -> Folder:
    """The type of a flag that names a folder, here or in object storage."""
    try:
        return open_folder(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def cue_list(text: str) -> tuple[str, ...]:
    """``"diff,flow"`` -> ``("diff", "flow")``; ``"none"`` -> ``()``. Names are checked by :class:`Options`."""
    return () if text == "none" else tuple(part.strip() for part in text.split(",") if part.strip())


def part(text: str) -> tuple[int, int]:
    """``"2/8"`` -> ``(2, 8)``: the second of eight."""
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise InputError(f"--part {text}: expected I/N with I from 1 to N, such as 1/8 (Slurm: sbatch --array=1-8)")
    return int(number), int(count)


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    for name, value in vars(args).items():
        check_number(name, value)
    for flag in ("workers", "videos", "limit"):
        if getattr(args, flag, None) is not None and getattr(args, flag) < 1:
            raise InputError(f"--{flag} {getattr(args, flag)}: expected at least 1")
    for flag, least, most in (("timeout", 1e-3, 1e9), ("max_failures", 0, 100), ("max_missing", 0, 100)):
        if getattr(args, flag, None) is not None and not least <= getattr(args, flag) <= most:
            raise InputError(f"--{flag.replace('_', '-')} {getattr(args, flag)}: expected {least:g} to {most:g}")
    if args.command == "preview":
        print(contact_sheet(args.set, args.out, args.videos))
    elif args.command == "stats":
        print(describe(args.set, args.out))
    elif args.command == "verify":
        faults = verify(args.set, args.deep, args.workers)
        if faults:
            raise SystemExit(1)
    elif args.command == "merge":
        with args.set.held():
            conclude(args.set, run.merge(args.set), args)
    elif args.command == "retry":
        with args.set.held():
            conclude(args.set, run.retry(args.set, how(args), args.root), args)
    else:
        make(args)


def how(args: argparse.Namespace) -> run.How:
    text = getattr(args, "part", None)
    return run.How(args.workers, args.timeout, args.engine, None if text is None else part(text))


def make(args: argparse.Namespace) -> None:
    """One of the commands that make a set."""
    options = Options(**{field.name: getattr(args, field.name) for field in fields(Options) if hasattr(args, field.name)})
    with ExitStack() as stack:
        if not getattr(args, "dry_run", False):
            stack.enter_context(args.out.held(how(args).part))
        source = _drawn(args, stack) if args.command == "synthetic" else _found(args)
        absent = too_many_missing(len(source.missing), source.listed, args.max_missing)
        if getattr(args, "dry_run", False):
            print(run.dry_run(source, options, how(args)))
            if absent:
                raise SystemExit(f"error: {absent}")
            return
        work = run.append if getattr(args, "append", False) else run.build
        summary = work(source, args.out, options, how(args))
    if summary is None:
        print(f"{args.out}: part {args.part} is made; when all are: python -m preprocess merge {args.out}")
    else:
        conclude(args.out, summary, args)


def _drawn(args: argparse.Namespace, stack: ExitStack) -> VideoSet:
    """The embedded set's videos, drawn below the set's folder (a temporary one where that is in object storage)."""
    drawn_with = synthetic.made_with(args.videos, args.seed, args.swap_scenes)
    if args.out.size(MANIFEST) is not None:
        old = Manifest.loads(args.out.read(MANIFEST).decode(errors="replace"), f"{args.out}/{MANIFEST}").options
        if drawn_with != {name: old[name] for name in ("videos", "seed", "swap_scenes") if name in old}:
            raise InputError(f"--out {args.out}: a finished shard set is there already; name another folder or remove it")
    if isinstance(args.out, RemoteFolder):
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dclr-")))
    else:
        place = Path(args.out.place, "videos", f"seed{args.seed}")
    return synthetic.make(place, args.videos, args.seed, args.workers, args.swap_scenes)


def _found(args: argparse.Namespace) -> VideoSet:
    dataset = DATASETS[args.command]
    source = dataset.find(args.root, args.lists) if dataset.flag else dataset.find(args.root)
    if args.limit is None:
        return source
    return replace(source, videos=source.videos[: args.limit], options=source.options | {"limit": args.limit})


def too_many_missing(missing: int, listed: int, most: float | None) -> str:
    """The error where ``missing`` is more than ``most`` percent of ``listed``, or else "". Without ``most`` there is none, and
    above :data:`WARN_MISSING` a warning."""
    if 100 * missing <= (WARN_MISSING if most is None else most) * listed:
        return ""
    said = f"{missing} of {listed} listed videos are missing, more than"
    if most is None:
        print(f"warning: {said} {WARN_MISSING} percent; --max-missing makes that an error", file=sys.stderr)
        return ""
    return f"{said} --max-missing {most:g} percent"


def conclude(out: Folder, summary: run.Summary, args: argparse.Namespace) -> None:
    """Say what came of it; exit code 1 where more than ``--max-failures`` percent of the videos tried failed or more than
    ``--max-missing`` percent of those listed are missing."""
    print(report(out, summary))
    said, failed = list[str](), len(summary.failed)
    if summary.tried and 100 * failed > args.max_failures * summary.tried:
        said.append(f"{failed} of {summary.tried} videos failed, more than --max-failures {args.max_failures:g} percent")
    absent = too_many_missing(len(summary.missing), summary.listed, args.max_missing)
    if absent:
        said.append(absent)
    if said:
        kept = f"what is written is kept: python -m preprocess retry {out} tries them again"
        raise SystemExit(f"error: {'; '.join(said)}; {kept}")


def report(out: Folder, summary: run.Summary) -> str:
    """The last lines a user sees: what is in the set, and what is not and why."""
    manifest = summary.manifest
    lines = [
        f"{out}: {manifest.samples} {'segments' if manifest.options.get('segment') else 'videos'} in {len(manifest.shards)} "
        "shards, "
        f"{sum(s.bytes for s in manifest.shards) / 1e6:.0f} MB",
        "splits: " + ", ".join(f"{name} {count}" for name, count in manifest.splits.items()),
    ]
    if summary.missing:
        paths = [f.path for f in summary.missing]
        lines.append(f"missing: {len(paths)} videos are in the lists and not on disk: {run.some(paths)}")
    if summary.failed:
        reasons = [f"{f.path} ({f.stage}: {f.reason})" for f in summary.failed]
        lines.append(f"failed: {len(reasons)} videos: {run.some(reasons)}")
    lines += run.left_out_lines(summary.left_out)
    if summary.failures or summary.left_out:
        lines.append(f"each is a line of {out}/{run.FAILURES}")
    if not summary.tried:
        lines.append("there was nothing new to try")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        with exit_on_input_error():
            main()
    except KeyboardInterrupt:
        raise SystemExit("\ninterrupted; what is finished is kept, and the same command goes on from there") from None
