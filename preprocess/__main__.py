"""python -m preprocess COMMAND: videos in, shards out, and looking after what came out. See README.md and shards/README.md."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any

from dclr.cues import CUES
from dclr.data.config import Reading
from dclr.data.manifest import MANIFEST, Manifest, ShardSet, read_manifest
from dclr.data.sets import folds, leaks
from dclr.errors import InputError, exit_on_input_error, path_flag
from dclr.lease import writing
from dclr.settings import Parser, again, as_type, check_values, from_flags, setting
from dclr.storage import Folder, RemoteFolder, open_folder
from preprocess import run, synthetic
from preprocess.add_cues import add_cues, settle
from preprocess.browse import serve
from preprocess.datasets import DATASETS, DataSet, VideoSet
from preprocess.preview import contact_sheet
from preprocess.stats import describe
from preprocess.transcode import WHICH, Options
from preprocess.verify import verify

INSTALLED = "dclr-preprocess"  # this command where the package is installed
WARN_MISSING = 5  # percent of the listed videos
PLACE = "a folder, s3://bucket/prefix, gs://, az:// or hf://"


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    title = run.How.title
    max_failures: float = setting(
        5.0, "percent of the videos tried that may fail: with more the exit code is 1", metavar="PERCENT", least=0, most=100
    )
    max_missing: float | None = setting(
        None, "percent of the listed videos that may be missing: with more the exit code is 1", metavar="PERCENT", least=0,
        most=100, derived=f"any, with a warning above {WARN_MISSING}",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, kw_only=True)
class Waiting:
    title = run.How.title
    patience: float = again(Reading, "patience")

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, kw_only=True)
class Making:
    title = Options.title
    out: Folder = setting(help=f"where the shard set is made, such as shards/mine: {PLACE}", metavar="SET", read=open_folder)


@dataclass(frozen=True, kw_only=True)
class Selecting:
    title = WHICH
    root: Folder = setting(help=f"where the videos lie: {PLACE}", metavar="VIDEOS", read=open_folder)
    limit: int | None = setting(
        None, "take the first N videos of the sorted list alone", metavar="N", least=1, most=10**9, derived="all of them"
    )
    follow_links: bool = setting(False, "take videos behind links that lead out of --root too")
    append: bool = setting(False, "add the videos that a finished set does not hold yet")
    dry_run: bool = setting(False, "say how many videos, shards, bytes and hours, and write nothing")

    def __post_init__(self) -> None:
        check_values(self)


def listing(dataset: DataSet) -> type:
    """The settings of a data set that reads lists: where they are."""
    where = setting(help=dataset.flag_help, metavar=dataset.metavar, read=path_flag)
    name, more = dataset.flag.removeprefix("--"), {"title": WHICH}
    return make_dataclass("Listing", [(name, Path, where)], frozen=True, kw_only=True, namespace=more)


def settings_of(dataset: DataSet) -> list[type]:
    """What a data set has beside the settings of all."""
    return ([listing(dataset)] if dataset.flag else []) + ([dataset.settings] if dataset.settings else [])


@dataclass(frozen=True, kw_only=True)
class Retrying:
    root: Folder | None = setting(
        None, "where the videos are now", metavar="VIDEOS", read=open_folder, derived="where they were"
    )
    follow_links: bool = again(Selecting, "follow_links")


@dataclass(frozen=True, kw_only=True)
class Growing:
    cues: tuple[str, ...] = setting(help="motion cues to add", metavar="CUE", choices=CUES)
    root: str | None = setting(
        None, "where the videos are now; none: compute from the stored frames", metavar="VIDEOS", place=True,
        derived="where they were",
    )  # fmt: skip
    follow_links: bool = again(Selecting, "follow_links")

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, kw_only=True)
class Verifying:
    deep: bool = setting(False, "decode every frame and every cue too")
    workers: int = again(run.How, "workers")

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, kw_only=True)
class Describing:
    out: Path | None = setting(
        None, "picture that is written, with the numbers beside it", metavar="PNG", read=path_flag,
        derived="stats.png in the set's folder",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Previewing:
    out: Path = setting(help="picture of the sheet that is written", metavar="PNG", read=path_flag)
    videos: int = setting(6, "videos of the sheet, a row each", metavar="N", least=1, most=1000)

    def __post_init__(self) -> None:
        check_values(self)


EXAMPLES = {  # of --help, by command
    "": {
        "videos in class folders": "folder --root videos --out shards/mine",
        "your own list, with the flow too": "csv --root videos --list mine.csv --out shards/mine --cues diff,flow,energy",
        "what is in the set": "stats shards/mine",
    },
    "synthetic": {
        "the laboratory of recipes/lab.yaml": "--out shards/lab --size 40 --cues diff,flow,energy",
        "a small set to try things on": "--out shards/tiny --videos 96 --size 32",
    },
    "retry": {
        "after what hindered them is mended": "shards/mine",
        "videos that have moved, with more time for each": "shards/mine --root /mnt/videos --timeout 3600",
    },
    "add-cues": {
        "the flow, from the videos": "shards/mine --cues flow",
        "without the videos, from the stored frames": "shards/mine --cues flow --root none",
    },
    "merge": {
        "after the last part is made": "shards/mine",
        "exit code 1 where more than 2 percent of the listed videos are missing": "s3://bucket/k400 --max-missing 2",
    },
    "verify": {"every byte": "shards/mine", "every frame too, on 8 cores": "shards/mine --deep --workers 8"},
    "stats": {"into the set's folder": "shards/mine", "into another place": "s3://bucket/mine --out mine.png"},
    "browse": {"at http://127.0.0.1:8000": "shards/mine", "on another port": "shards/mine --port 8010"},
    "preview": {"six videos": "shards/mine --out sheet.png", "twenty": "shards/mine --out sheet.png --videos 20"},
}


def examples_of(dataset: DataSet) -> dict[str, str]:
    lists = f"{dataset.flag} {'lists' if dataset.metavar == 'LISTS' else 'mine.csv'} " * bool(dataset.flag)
    common = f"--root videos {lists}--out shards/{dataset.name if dataset.metavar == 'LISTS' and lists else 'mine'}"
    return {
        "the set, with the default cues": common,
        **dataset.examples,
        "the first of 8 machines; merge joins what they make": f"{common} --part 1/8",
    }


@dataclass(frozen=True, kw_only=True)
class Browsing:
    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0: whoever reaches this machine can look", metavar="ADDRESS")
    port: int = setting(8000, "port to listen on; 0 takes a free one", metavar="N", least=0, most=65535)

    def __post_init__(self) -> None:
        check_values(self)


def parser() -> Parser:
    typed = Path(sys.argv[0]).name
    top = Parser(prog=typed if typed == INSTALLED else "python -m preprocess", description=__doc__, examples=EXAMPLES[""])
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, what: str, *settings: type, existing: bool = False, without: Collection[str] = (),
        told: Mapping[str, Mapping[str, str]] | None = None, examples: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        added = commands.add_parser(name, help=what, description=what, told=told, examples=examples or EXAMPLES[name])
        if existing:
            added.add_argument("set", type=as_type(open_folder), metavar="SET", help=f"a shard set: {PLACE} (required)")
        added.add(*settings, Waiting, without=without)

    made = (Making, Options, run.How, Tolerance)
    drawn = "the embedded data set: made here, no download"
    command("synthetic", drawn, synthetic.Drawing, *made, without=("segment", "max_seconds", "part"))
    for one in DATASETS.values():
        command(one.name, one.help, Selecting, *settings_of(one), *made, told=one.told, examples=examples_of(one))
    tried = "try the failed videos again and add what comes of them"
    command("retry", tried, Retrying, run.How, Tolerance, existing=True, without=("part",))
    grown = "add motion cues to a set that is there, from its videos or else from its frames"
    command("add-cues", grown, Growing, run.How, existing=True, without=("part",))
    command("merge", "the one manifest of what several parts made", Tolerance, existing=True)
    looked = "hash every shard, compare it with its index; exit code 1 on a fault"
    command("verify", looked, Verifying, existing=True)
    counted = "videos, hours, classes, splits, sizes, motion, cuts; kept with a picture in the set's folder"
    command("stats", counted, Describing, existing=True)
    command("preview", "a contact sheet: frames above their motion cues", Previewing, existing=True)
    command("browse", "a page in the browser: samples that play, with their motion cues over them", Browsing, existing=True)
    return top


def main(argv: Sequence[str] | None = None) -> None:
    given = parser().given(argv)
    patience = from_flags(Waiting, given).patience
    for place in given.values():
        if isinstance(place, Folder):
            place.patience = patience
    if "set" in given:
        look_after(given["command"], given["set"], given)
    else:
        make(given)


def look_after(command: str, shards: Folder, given: Mapping[str, Any]) -> None:
    """One of the commands about a set that is there."""
    if command == "preview":
        sheet = from_flags(Previewing, given)
        print(contact_sheet(shards, sheet.out, sheet.videos))
    elif command == "browse":
        page = from_flags(Browsing, given)
        serve(shards, page.host, page.port)
    elif command == "stats":
        print(describe(shards, from_flags(Describing, given).out))
    elif command == "verify":
        checked = from_flags(Verifying, given)
        if verify(shards, checked.deep, checked.workers):
            raise SystemExit(1)
    elif command == "add-cues":
        wanted, how = from_flags(Growing, given), from_flags(run.How, given)
        with writing(shards):
            settle(shards)
            manifest = add_cues(shards, wanted.cues, how, wanted.root, wanted.follow_links)
        print(contents(shards, manifest))
    else:
        tolerance, how, again_ = from_flags(Tolerance, given), from_flags(run.How, given), from_flags(Retrying, given)
        with writing(shards):
            settle(shards)
            made = run.merge(shards) if command == "merge" else run.retry(shards, how, again_.root, again_.follow_links)
            conclude(shards, made, tolerance)


def make(given: Mapping[str, Any]) -> None:
    """One of the commands that make a set."""
    out, tolerance = from_flags(Making, given).out, from_flags(Tolerance, given)
    options, how = from_flags(Options, given), from_flags(run.How, given)
    drawn = given["command"] == "synthetic"
    chosen: Any = from_flags(synthetic.Drawing if drawn else Selecting, given)
    dry, append = (getattr(chosen, name, False) for name in ("dry_run", "append"))
    with ExitStack() as stack:
        if not dry:
            stack.enter_context(writing(out, how.part))
            settle(out)
        found = _drawn(chosen, out, how.workers, stack) if drawn else _found(given, chosen)
        absent = too_many_missing(len(found.missing), found.listed, tolerance.max_missing)
        if dry:
            print(run.dry_run(found, options, how))
            if absent:
                raise SystemExit(f"error: {absent}")
            return
        work = run.append if append else run.build
        summary = work(found, out, options, how)
    if summary is None:
        print(f"{out}: part {'/'.join(map(str, how.part or ()))} is made; when all are: python -m preprocess merge {out}")
    else:
        conclude(out, summary, tolerance)


def _drawn(drawing: synthetic.Drawing, out: Folder, workers: int, stack: ExitStack) -> VideoSet:
    """The embedded set's videos, drawn below the set's folder (a temporary one where that is in object storage)."""
    wanted = drawing.made_with()
    if out.size(MANIFEST) is not None:
        old = Manifest.loads(read_manifest(out).decode(errors="replace"), f"{out}/{MANIFEST}").options
        if wanted != {name: old[name] for name in synthetic.RECORDED if name in old}:
            raise InputError(f"--out {out}: a finished shard set is there already; name another folder or remove it")
    if isinstance(out, RemoteFolder):
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dclr-")))
    else:
        place = Path(out.place, "videos", f"{'seed' if drawing.hard else 'lab'}{drawing.seed}")
    return synthetic.make(place, drawing, workers)


def _found(given: Mapping[str, Any], reading: Selecting) -> VideoSet:
    dataset, reading.root.links = DATASETS[given["command"]], reading.follow_links
    lists = vars(from_flags(listing(dataset), given)).values() if dataset.flag else ()
    found = dataset.find(reading.root, *lists, **(vars(from_flags(dataset.settings, given)) if dataset.settings else {}))
    if reading.limit is None:
        return found
    return replace(found, videos=found.videos[: reading.limit], options=found.options | {"limit": reading.limit})


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


def conclude(out: Folder, summary: run.Summary, tolerance: Tolerance) -> None:
    """Say what came of it; exit code 1 where more than ``--max-failures`` percent of the videos tried failed or more than
    ``--max-missing`` percent of those listed are missing."""
    print(report(out, summary))
    for trait, videos in summary.odd.items():
        if videos:
            print(f"warning: {len(videos)} videos are {run.TOLD[trait]}: {run.some(videos)}", file=sys.stderr)
    shards = ShardSet(out, keep_damaged=True)
    for train, test in folds(shards.splits):
        for line in leaks(shards, [train], [test], shards.select([train]), shards.select([test])):
            print(line, file=sys.stderr)
    said, failed = list[str](), len(summary.failed)
    if summary.tried and 100 * failed > tolerance.max_failures * summary.tried:
        said.append(f"{failed} of {summary.tried} videos failed, more than --max-failures {tolerance.max_failures:g} percent")
    absent = too_many_missing(len(summary.missing), summary.listed, tolerance.max_missing)
    if absent:
        said.append(absent)
    if said:
        kept = f"what is written is kept: python -m preprocess retry {out} tries them again"
        raise SystemExit(f"error: {'; '.join(said)}; {kept}")


def contents(out: Folder, manifest: Manifest) -> str:
    what = "segments" if manifest.options.get("segment") else "videos"
    size = sum(shard.bytes for shard in manifest.shards) / 1e6
    return f"{out}: {manifest.samples} {what} in {len(manifest.shards)} shards, {size:.0f} MB"


def report(out: Folder, summary: run.Summary) -> str:
    """The last lines a user sees: what is in the set, and what is not and why."""
    manifest = summary.manifest
    lines = [
        contents(out, manifest),
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


def command() -> None:
    """dclr-preprocess."""
    with exit_on_input_error():
        main()


if __name__ == "__main__":
    command()
