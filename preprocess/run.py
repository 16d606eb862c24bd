"""Many videos -> one shard set, on worker processes of this machine or on a Ray cluster.

A run is a plan (preprocess/plan.py), its shards, and at the end the manifest. Shards are made one by one and each is whole or
absent, so a run that was killed goes on with the first one that is not there; workers only transcode and their results are
written in the plan's order, so the same input and options give the same bytes on any number of workers and machines.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import cv2

from dclr import bars
from dclr.data.manifest import FAILURES, MANIFEST, Entry, Manifest, Shard, ShardSet, pack_columns, publish, read_index
from dclr.errors import InputError, Unreachable
from dclr.patience import threads
from dclr.record import REPEATED, pack
from dclr.settings import check_values, flags, setting
from dclr.storage import Folder, open_folder
from dclr.text import plain, public
from dclr.threads import permitted
from preprocess.datasets import DATASETS, EMPTY_CLASS, Video, VideoSet, sample_keys
from preprocess.on_ray import Tell, on_ray
from preprocess.plan import (
    LEFT_OUT,
    MISSING,
    PLAN,
    Failure,
    Job,
    RunPlan,
    Task,
    jobs,
    manifest_options,
    options_of,
    output_ratio,
)
from preprocess.pool import Lost, Pool
from preprocess.transcode import WHICH, Options, TranscodeError, transcode
from preprocess.write import (
    Made,
    MadeWriter,
    ShardWriter,
    add_motion,
    clean,
    done,
    failures_name,
    index_name,
    read_failures,
)  # fmt: skip

NOT_ON_DISK = "in the lists, not on disk"
TOLD = {  # trait of a source that a run warns of -> what it is
    "odd rotation": "by their metadata turned by another angle than quarter turns, which is left aside",
    "PQ": "HDR (transfer function PQ) and stored without tone mapping: dark and flat",
    "HLG": "HDR (transfer function HLG) and stored without tone mapping: a little flat",
    REPEATED: "slower than the fps of their set and repeat frames",
}
SAMPLED = 8  # videos that a dry run transcodes to measure


def part(text: str) -> tuple[int, int]:
    """``"2/8"`` -> ``(2, 8)``: the second of eight."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        expected = "expected I/N in digits with I from 1 to N, such as 1/8 (Slurm: sbatch --array=1-8)"
        raise InputError(f"{plain(text, 80)}: {expected}")
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class How:
    """What decides how fast a run goes and when it gives up, and not one byte of the set. ``part``: (i, n), the i-th of n
    machines, from 1. Raises InputError for values out of range."""

    title = "how it is done (no byte depends on these)"
    workers: int = setting(
        factory=permitted, help="processes that work side by side", metavar="N", least=1, most=100_000,
        derived="one for each core",
    )  # fmt: skip
    timeout: float = setting(600, "a video that takes longer has failed", metavar="SECONDS", least=1e-3, most=1e9)
    engine: str = setting("local", "where it is done: on processes here, or on a Ray cluster", choices=("local", "ray"))
    part: tuple[int, int] | None = setting(
        None, "make the I-th of N parts alone (Slurm arrays); merge joins them", metavar="I/N", read=part, group=WHICH,
        derived="all of them",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True)
class Summary:
    """The outcome of a run: the ``manifest``, every failure, ``left_out`` as path -> reason, and two numbers of videos:
    ``listed``, which the lists name, and ``tried``."""

    manifest: Manifest
    failures: list[Failure]
    left_out: dict[str, str]
    listed: int
    tried: int
    odd: dict[str, list[str]] = field(default_factory=dict)  # one of TOLD -> the videos just made that have it

    @property
    def missing(self) -> list[Failure]:
        return [failure for failure in self.failures if failure.stage == MISSING]

    @property
    def failed(self) -> list[Failure]:
        return [failure for failure in self.failures if failure.stage != MISSING]


def make_samples(task: Task, root: Folder, options: Options, spool: Path) -> Made | Failure:
    """Make the samples of one video. An error is returned as a :class:`Failure`, not raised: this runs in a worker. But
    Unreachable is raised."""
    cv2.setNumThreads(1)  # a process is one core, and thread counts must not decide bytes
    began, video, out = time.perf_counter(), task.video, MadeWriter(spool)
    try:
        with ExitStack() as stack:
            if absent := root.absent(task.file):
                raise TranscodeError("open", absent)
            try:
                path = stack.enter_context(root.local(task.file))
            except Unreachable:  # costs the run, not every video
                raise
            except Exception as error:  # a store has many ways to say no
                raise TranscodeError("fetch", f"{type(error).__name__}: {error}") from None
            for number, sample in enumerate(transcode(path, options, video.span, spool)):
                assert sample.meta.source is not None
                meta = replace(
                    sample.meta,
                    video=video.id,
                    label=None if task.class_name is None else next(iter(video.labels.values())),
                    labels=video.labels,
                    class_name=task.class_name,
                    splits=tuple(video.splits),
                    source=replace(sample.meta.source, path=video.path),
                )
                key = f"{task.key}_s{number:05d}" if options.segment else task.key  # no two keys of a set can meet
                out.add(key, pack(key, sample.members, meta), meta, sample.motion)
        return out.finish()
    except TranscodeError as error:
        out.discard()
        return failure(video, error.stage, str(error), time.perf_counter() - began)
    except Unreachable:
        out.discard()
        raise
    except Exception as error:  # whatever a hostile file makes a library raise costs that one video
        out.discard()
        return failure(video, "error", f"{type(error).__name__}: {error}", time.perf_counter() - began)


def failure(video: Video, stage: str, reason: str, seconds: float) -> Failure:
    return Failure(video.path, stage, reason, round(seconds, 3), video.labels, video.splits, video.span)


class Work(Protocol):
    """What makes samples of the tasks of a :class:`Job`. It is sent to other processes."""

    def __call__(self, task: Any, spool: Path) -> Made | Failure:
        """In a worker: the samples of a task, or why there are none."""

    def absent(self, task: Any) -> str | None:
        """The host and the path of a file that a task needs and that is not there."""

    def without(self, task: Any, why: Failure | Lost, spool: Path) -> Made | Failure:
        """In the parent, of a task that no worker made samples of: what becomes of it."""


@dataclass(frozen=True)
class Transcoding:
    """The :class:`Work` of making a set from the videos below ``root``."""

    root: Folder
    options: Options

    def __call__(self, task: Task, spool: Path) -> Made | Failure:
        return make_samples(task, self.root, self.options, spool)

    def absent(self, task: Task) -> str | None:
        return self.root.absent(task.file)

    def without(self, task: Task, why: Failure | Lost, spool: Path) -> Failure:
        return failure(task.video, why.stage, why.reason, why.seconds) if isinstance(why, Lost) else why


def make_shards(todo: Sequence[Job], tell: Tell, work: Work, out: Folder, workers: int, timeout: float) -> None:
    """Make these shards one after another, on ``workers`` processes. A shard is filled while the one before it is stored."""
    if not todo:
        return
    with out.staging() as staging, threads(1) as closer:
        spool = Path(tempfile.mkdtemp(".tmp", f".{todo[0].name}.", staging))
        closing: Future[None] | None = None
        try:
            with Pool(partial(work, spool=spool), workers, timeout) as pool:
                results = pool.map(task for job in todo for task in job.tasks)
                for job in todo:
                    writer = ShardWriter(out, staging, job)
                    try:
                        _fill(writer, job, results, partial(work.without, spool=spool), tell)
                        if closing is not None:
                            closing.result()
                    except BaseException:
                        writer.abandon()
                        raise
                    closing = closer.submit(writer.close)
                if closing is not None:
                    closing.result()
        finally:
            shutil.rmtree(spool, ignore_errors=True)


def _fill(
    writer: ShardWriter,
    job: Job,
    results: Iterator[Made | Failure | Lost],
    without: Callable[[Any, Failure | Lost], Made | Failure],
    tell: Tell,
) -> None:
    for task in job.tasks:
        result = next(results)
        if not isinstance(result, Made):
            result = without(task, result)
        if isinstance(result, Failure):
            writer.fail(result)
            tell(0, True)
        else:
            writer.add(result)
            tell(sum(part.meta.frames for part in result.parts), False)


def build(source: VideoSet, out: Folder, options: Options, how: How) -> Summary | None:
    """Write the set and say what came of it; None for one part of several. A video that fails costs itself, not the run.

    Raises InputError where ``out`` holds a set made from other videos or options, there is too little space, or no video
    could be used.
    """
    old, finished = RunPlan.load(out), out.size(MANIFEST) is not None
    if finished and old is not None and old.dataset == source.name:
        check_cues(old.options, manifest_options(options, source), out)
        if old.first:
            return _with_later_cues(source, old, out, options)
    begun = not finished and any(name.startswith("shard-") for name in out.top())
    if begun and old is None:
        raise InputError(f"--out {out}: there are shards that no {PLAN} here explains; name another folder")
    same = old is not None and (old.dataset, old.options) == (source.name, manifest_options(options, source))
    if begun and old is not None and not same:
        raise InputError(
            f"--out {out}: an unfinished set made with other options is there ({old.dataset}, {old.options}); "
            "finish it with those, name another folder, or remove it (add-cues adds cues to a finished set)"
        )
    ratio = old.ratio if old is not None and same else output_ratio(source, options)  # a second start cuts as the first did
    made = jobs(source, sample_keys([video.id for video in source.videos]), options, ratio)
    plan = _plan(source, options, [], made, ratio)
    if finished and old != plan:
        if old is not None and old.dataset == source.name:
            require_made_so(out, old.options, source, options)
        raise _another_set(out, source)
    return carry_out(plan, made, source.root, out, options, how)


def _another_set(out: Folder, source: VideoSet) -> InputError:
    more = "add --append to add new videos, or " if source.name in DATASETS else ""  # the embedded one has all of its videos
    return InputError(
        f"--out {out}: a finished shard set is there already, made from other videos or options; {more}name another folder"
    )


def require_made_so(out: Folder, there: Mapping[str, Any], source: VideoSet, options: Options) -> None:
    """Raises InputError naming the first of ``options`` that is not what the finished set was made with."""
    usual = asdict(Options())
    made_with, wanted = {**usual, **there}, usual | manifest_options(options, source)
    for name, one in flags(Options).items():
        if made_with[name] != wanted[name]:
            given, made = one.typed(wanted[name]), one.typed(made_with[name])
            same = "give the same to append to it, or " * (source.name in DATASETS)  # the embedded one has all of its videos
            raise InputError(f"{given}: {out} was made with {made}; {same}name another folder")


def check_cues(there: Mapping[str, Any], wanted: Mapping[str, Any], out: Folder) -> None:
    """Where nothing but the cues of a finished set is asked for otherwise: InputError that names what adds one."""
    have, asked = there.get("cues", []), wanted["cues"]
    if have == asked or {**there, "cues": asked} != wanted:
        return
    new, held = ",".join(cue for cue in asked if cue not in have), ",".join(have) or "none"
    way_out = f"python -m preprocess add-cues {out} --cues {new} adds {new} to it" if new else f"give --cues {held}"
    raise InputError(f"--cues {','.join(asked) or 'none'}: {out} is finished and has the cues {held}; {way_out}")


def _with_later_cues(source: VideoSet, old: RunPlan, out: Folder, options: Options) -> Summary:
    """The finished set that got cues later, if a run with all of them would be made of the same videos."""
    first = replace(options, cues=tuple(old.first["cues"]))
    made = jobs(source, sample_keys([video.id for video in source.videos]), first, old.ratio)
    plan = replace(_plan(source, options, [], made, old.ratio), shards=old.shards, first=old.first)
    if plan != old or {job.name: job.recipe for job in made} != old.first["shards"]:
        raise _another_set(out, source)
    out.write(PLAN, plan.dumps().encode())
    return finish(out, plan)


def _plan(source: VideoSet, options: Options, keep: list[str], made: Sequence[Job], ratio: float) -> RunPlan:
    missing = tuple(failure(video, MISSING, source.left_out.get(video.path, NOT_ON_DISK), 0.0) for video in source.missing)
    root = public(source.root.place) if "://" in source.root.place else str(Path(source.root.place).absolute())
    plan = RunPlan(
        source.name, root, source.classes, manifest_options(options, source), keep,
        {job.name: job.recipe for job in made}, missing, ratio, listed=source.listed, left_out=source.left_out,
    )  # fmt: skip
    return RunPlan.loads(plan.dumps())  # as it will be read: lists for tuples


def carry_out(plan: RunPlan, made: Sequence[Job], root: Folder, out: Folder, options: Options, how: How) -> Summary | None:
    """Make the shards of the plan that are not there yet, then the manifest. One part of several makes its shards alone."""
    ours = list(made) if how.part is None else list(made[how.part[0] - 1 :: how.part[1]])
    sizes = out.files()
    checking = bars.bar(ours, "checking", unit="shard", disable=not sizes, leave=False)
    todo = [job for job in checking if not done(out, job.name, job.recipe, sizes)]
    needed, free = sum(job.estimate for job in todo), out.free()
    if free is not None and needed > free:
        raise InputError(
            f"{out}: about {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; free some space, or make the set "
            "elsewhere or of smaller frames (size, quality, codec h264)"
        )
    out.write(PLAN, plan.dumps().encode())
    clean(out, plan.names if how.part is None else [job.name for job in ours], how.part is None)
    make_all(ours, todo, Transcoding(root, options), out, how, "transcoding")
    if how.engine == "ray" and how.part is None:
        clean(out, plan.names, everything=True)  # what lost nodes left
    if how.part is None:
        return finish(out, plan)
    if todo:
        _check_part(ours, out, how.part)
    return None


def _check_part(ours: Sequence[Job], out: Folder, part: tuple[int, int]) -> None:
    """Raises InputError where no sample is in any shard of a part, so that Slurm does not start what depends on it. Its shards
    count as not made then."""
    if any(read_index(out, index_name(job.name))[0].samples for job in ours):
        return
    failures = [line for job in ours for line in read_failures(out, failures_name(job.name))]
    for job in ours:
        out.remove(index_name(job.name))
    raise InputError(
        f"{out}: part {part[0]}/{part[1]} on {socket.gethostname()} kept none of its {len(failures)} videos; "
        f"{failures[0].path}: {failures[0].reason}; mend that and start it again, or make the set of the rest without --part"
    )


def make_all(every: Sequence[Job], todo: Sequence[Job], work: Work, out: Folder, how: How, title: str) -> None:
    """Make the shards ``todo`` here or on Ray, with a bar that counts the videos of ``every`` shard, those that are there too.
    Raises InputError where the disk is full, or gone."""
    sizes, missing = out.files(), {job.name for job in todo}
    kept, failed = 0, 0
    for job in every:
        told = failures_name(job.name) in sizes
        if job.name not in missing:
            kept += len(job.tasks)
            failed += len(read_failures(out, failures_name(job.name))) - len(job.failures) if told else 0
        elif told:  # of an earlier try
            out.remove(failures_name(job.name))
    total = sum(len(job.tasks) for job in every)
    with bars.bar(desc=title, total=total, initial=kept, unit="video", disable=not todo) as bar:
        count = {"frames": 0, "failed": failed}

        def tell(frames: int, failed: bool) -> None:
            count["frames"] += frames
            count["failed"] += failed
            bar.update()
            rate = count["frames"] / (bar.format_dict["elapsed"] or 1)
            bar.set_postfix({"frames/s": f"{rate:.0f}", "failed": count["failed"]}, refresh=False)

        try:
            if how.engine == "ray":
                on_ray(todo, work.absent, partial(make_shards, work=work, out=out, workers=1, timeout=how.timeout), tell)
            else:
                make_shards(todo, tell, work, out, how.workers, how.timeout)
        except OSError as error:  # the disk is full, or gone
            raise InputError(
                f"{out}: {error.strerror or error}; finished shards are kept: mend that and start the same command again"
            ) from None


def finish(out: Folder, plan: RunPlan) -> Summary:
    """The manifest of a plan whose shards are all there; raises InputError naming those that are not."""
    sizes = out.files()
    absent = [name for name, recipe in plan.shards.items() if not done(out, name, recipe, sizes, read=False)]
    if absent:
        raise InputError(
            f"{out}: {len(absent)} of {len(plan.shards)} shards are not made yet ({some(absent)}); run the parts that make them"
        )
    shards, everything, splits, tried = list[Shard](), list[Entry](), Counter[str](), 0
    failures, odd = list(plan.failures), dict[str, list[str]]()
    for name in plan.names:
        header, entries = read_index(out, index_name(name))
        for entry in entries:
            splits.update(entry.splits)
        everything += entries
        if entries:
            shards.append(Shard(header.shard, header.samples, header.bytes, header.sha256))
        if name in plan.shards:
            failed = read_failures(out, failures_name(name)) if failures_name(name) in sizes else []
            failures += failed
            tried += len({entry.video for entry in entries}) + len(failed)
            for trait in TOLD:
                having = dict.fromkeys(entry.video for entry in entries if trait in entry.traits)
                odd.setdefault(trait, []).extend(having)
    left_out = empty_classes(plan.classes, (entry.labels for entry in everything)) | plan.left_out
    _write_failures(out, failures, left_out)
    if not shards:
        for name in plan.shards:  # so that the same command tries again: there is nothing for retry to add to
            out.remove(index_name(name))
        first = next(line for line in failures if line.stage != MISSING)
        raise InputError(f"none of the videos could be transcoded; {first.path}: {first.reason}")
    by_stage = dict(sorted(Counter(line.stage for line in failures).items()))
    index = pack_columns(everything, sorted(splits), list(plan.classes))
    manifest = Manifest(
        plan.dataset, tuple(shards), dict(sorted(splits.items())), plan.classes, plan.options, by_stage,
        hashlib.sha256(index).hexdigest(), from_stored=count_from_stored(everything),
    )  # fmt: skip
    publish(out, index, manifest)
    listed = plan.listed or len({entry.video for entry in everything}) + len(failures)  # an older plan does not say
    return Summary(manifest, failures, left_out, listed, tried, odd)


def count_from_stored(entries: Iterable[Entry]) -> dict[str, int]:
    """Cue -> samples that it was computed for from their stored frames."""
    return dict(sorted(Counter(cue for entry in entries for cue in entry.from_stored or ()).items()))


def empty_classes(classes: dict[str, list[str]], labels: Iterable[dict[str, int]]) -> dict[str, str]:
    """``NAME/`` -> reason of each class without a video. ``labels`` has kind -> label of each video."""
    there = {(kind, label) for of_one in labels for kind, label in of_one.items()}
    return {
        f"{name}/": EMPTY_CLASS
        for kind, names in classes.items()
        for label, name in enumerate(names)
        if (kind, label) not in there
    }


def _write_failures(out: Folder, failures: list[Failure], left_out: dict[str, str]) -> None:
    lines = [*failures, *(Failure(path, LEFT_OUT, reason, 0.0) for path, reason in left_out.items())]
    out.write(FAILURES, "".join(line.dumps() + "\n" for line in lines).encode())


def merge(out: Folder) -> Summary:
    """The one manifest of what several parts made. Indexes of an older version learn the mean motion that the samples hold."""
    plan, sizes = plan_of(out), out.files()
    if "energy" in plan.options.get("cues", []):
        shards = [name for name in plan.names if f"{name}.tar" in sizes and index_name(name) in sizes]
        for name in bars.bar(shards, "measuring motion", unit="shard", leave=False):
            add_motion(out, name)
    return finish(out, plan)


def videos_of(plan: RunPlan, root: Folder) -> Folder:
    """The folder of the plan's videos, which lie below ``root``."""
    opened = DATASETS[plan.dataset].opened if plan.dataset in DATASETS else None
    return opened(root) if opened else root


def plan_of(out: Folder) -> RunPlan:
    plan = RunPlan.load(out)
    if plan is None:
        raise InputError(f"{out}: no {PLAN} there; expected the folder of a set that python -m preprocess made")
    return plan


def append(source: VideoSet, out: Folder, options: Options, how: How) -> Summary | None:
    """Add the videos of ``source`` that are not in the set, as further shards; old shards stay as they are.

    Raises InputError where the set was made with other options, or a video that is in it has other labels or splits now.
    New classes get the numbers after the old ones.
    """
    have = ShardSet(out)
    if have.manifest.dataset == source.name:
        usual = asdict(Options())
        made_with, wanted = usual | have.manifest.options, usual | manifest_options(options, source)
        check_cues({name: made_with[name] for name in usual}, {name: wanted[name] for name in usual}, out)
    require_made_so(out, have.manifest.options, source, options)
    if have.manifest.dataset != source.name:
        raise InputError(f"{out} holds {have.manifest.dataset}, not {source.name}: name another folder")
    classes = {kind: list(names) for kind, names in have.manifest.classes.items()}
    if set(classes) != set(source.classes):
        raise InputError(
            f"{out} has labels {list(classes) or 'none'}, the videos to append {list(source.classes) or 'none'}; expected the "
            "same kinds"
        )
    for kind, names in source.classes.items():
        classes[kind] += [name for name in names if name not in set(classes[kind])]
    number = {kind: {name: at for at, name in enumerate(names)} for kind, names in classes.items()}

    def numbered(videos: list[Video]) -> list[Video]:
        return [
            replace(video, labels={kind: number[kind][source.classes[kind][label]] for kind, label in video.labels.items()})
            for video in videos
        ]

    videos, old = numbered(source.videos), _entries(have)
    changed = [video.path for video in videos if video.id in old and old[video.id] != (video.labels, list(video.splits))]
    if changed:
        raise InputError(
            f"{out}: {len(changed)} videos in it have other labels or splits now ({some(changed)}); make a new set"
        )
    new, missing = ([v for v in of if v.id not in old] for of in (videos, numbered(source.missing)))
    return _extend(replace(source, videos=new, missing=missing, classes=classes), have, out, options, how)


def _entries(have: ShardSet) -> dict[str, tuple[dict[str, int], list[str]]]:
    """Video id -> labels and splits of every video in a set."""
    return {
        entry.video: (entry.labels, entry.splits)
        for shard in have.manifest.shards
        for entry in read_index(have.root, shard.index_name)[1]
    }


def retry(out: Folder, how: How, root: Folder | None = None, links: bool = True) -> Summary:
    """Try the videos of failures.jsonl again, those that were missing too, and add what comes of them as further shards.
    ``links``: also those behind links that lead out of the root."""
    plan, have = plan_of(out), ShardSet(out)
    folder = root or open_folder(plan.root, out.patience)
    folder.links = links
    root = videos_of(plan, folder)
    lines, files = [line for line in read_failures(out, FAILURES) if line.stage != LEFT_OUT], root.files()
    videos = [Video(line.path, line.labels, line.splits, line.span, files[line.path]) for line in lines if line.path in files]
    missing = [Video(line.path, line.labels, line.splits, line.span) for line in lines if line.path not in files]
    options = options_of(plan)
    extra = {name: value for name, value in plan.options.items() if name not in Options.__dataclass_fields__}
    source = VideoSet(
        plan.dataset,
        root,
        sorted(videos, key=lambda video: video.order),
        plan.classes,
        missing,
        plan.listed,
        plan.left_out,
        extra,
    )
    summary = _extend(source, have, out, options, how)
    assert summary is not None
    return summary


def _extend(source: VideoSet, have: ShardSet, out: Folder, options: Options, how: How) -> Summary | None:
    """Further shards for the videos of ``source``, numbered after those of the set."""
    keep = [shard.name.removesuffix(".tar") for shard in have.manifest.shards]
    if not source.videos:
        return _nothing_new(source, have, out)
    used = {key.rpartition("_s")[0] if options.segment else key for key in have.keys}
    ratio = output_ratio(source, options)
    made = jobs(source, sample_keys([video.id for video in source.videos], used), options, ratio, next_number(keep))
    return carry_out(_plan(source, options, keep, made, ratio), made, source.root, out, options, how)


def next_number(names: Sequence[str]) -> int:
    """The number of a set's next shard. Someone may have renamed shards, in the manifest too.

    >>> next_number(["shard-000000", "shard-000004", "evil"]), next_number(["evil"])
    (5, 0)
    """
    numbers = [name.rpartition("-")[2] for name in names]
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)


def _nothing_new(source: VideoSet, have: ShardSet, out: Folder) -> Summary:
    """No shard to make: only what is not in the set is told anew, beside the failures that an earlier run told of."""
    told = [line for line in read_failures(out, FAILURES) if line.stage != LEFT_OUT] if out.size(FAILURES) is not None else []
    known = {(line.path, line.span) for line in told}
    told += [failure(video, MISSING, NOT_ON_DISK, 0.0) for video in source.missing if (video.path, video.span) not in known]
    labels = ({kind: label} for kind, column_N in have.labels.items() for label in set(column_N.tolist()))
    left_out = empty_classes(source.classes, labels) | source.left_out
    _write_failures(out, told, left_out)
    return Summary(have.manifest, told, left_out, source.listed, 0)


def dry_run(source: VideoSet, options: Options, how: How) -> str:
    """What a run would do, in words: its videos, shards, bytes and hours, by transcoding a few of the videos."""
    made = jobs(source, sample_keys([video.id for video in source.videos]), options, output_ratio(source, options))
    tasks = [task for job in made for task in job.tasks]
    chosen = tasks[:: max(1, len(tasks) // SAMPLED)][:SAMPLED]
    began = written = read = 0.0
    with tempfile.TemporaryDirectory(prefix="dclr-") as spool:
        began = time.perf_counter()
        for task in bars.bar(chosen, "measuring", unit="video", leave=False):
            result = make_samples(task, source.root, options, Path(spool))
            read += task.video.bytes
            written += sum(part.size for part in result.parts) if isinstance(result, Made) else 0
        seconds = time.perf_counter() - began
    total = sum(task.video.bytes for task in tasks)
    hours = seconds * total / max(read, 1) / how.workers / 3600
    long = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
    said = (
        f"{len(tasks)} videos of {total / 1e9:.2f} GB ({len(source.missing)} more are missing) would give "
        f"{len(made)} shards of about {written / max(read, 1) * total / 1e9:.2f} GB in all, in about {long} "
        f"on {how.workers} worker(s), as measured on {len(chosen)} of them"
    )
    empty = empty_classes(source.classes, (video.labels for video in source.videos))
    return "\n".join([*source.notes, said, *left_out_lines(empty | source.left_out)])


def left_out_lines(left_out: dict[str, str]) -> list[str]:
    """A line for each reason: how many paths have it and the first of them."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in left_out.items():
        by_reason.setdefault(reason, []).append(path)
    return [f"left out: {len(paths)} ({reason}): {some(paths)}" for reason, paths in sorted(by_reason.items())]


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names and how many more there are.

    >>> some(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
