"""Add a cue to a set that is there: every shard is made anew with it, from the old one and the videos.

New shards get the numbers after the old ones and lie beside them until all are whole. Then the plan names them, the index and
the manifest follow, and the old shards go. A reader finds the old set or the new one at any moment.
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import IO, cast

import cv2
import numpy as np

from dclr.bars import bar
from dclr.cues import CUES
from dclr.data.manifest import (
    MANIFEST,
    SPAN,
    Entry,
    Manifest,
    Shard,
    drop_old_indexes,
    extent,
    pack_columns,
    publish,
    read_index,
    read_manifest,
)
from dclr.errors import InputError, Unreachable
from dclr.record import Contents, FormatError, Record, SampleMeta, array_name, mean_motion, members, pack, parse, parse_array
from dclr.settings import NONE
from dclr.storage import Folder, RemoteFolder, open_folder
from preprocess.plan import PLAN, Failure, Job, RunPlan, options_of, pixel_bytes
from preprocess.pool import Lost
from preprocess.run import How, count_from_stored, make_all, plan_of, some, videos_of
from preprocess.transcode import Options, SampleEncoder, Span, Transcoded, transcode
from preprocess.write import Made, MadeWriter, clean, done, failures_name, index_name, read_failures

DECODED = 256  # stored frames at a time: a long video never lies in memory whole


@dataclass(frozen=True)
class Samples:
    """The task of a video: its samples (one, or one a segment) in the shard ``shard``, and its ``file`` at this address of the
    root, None where it is not there; ``span`` is the part of it that the samples are."""

    shard: str
    entries: tuple[Entry, ...]
    file: str | None
    span: Span | None


@dataclass(frozen=True)
class Adding:
    """The :class:`preprocess.run.Work` of adding the cues of ``options`` to the samples of ``out``, from the videos of ``root``
    or, where one is not what its samples were made of, from the stored frames."""

    out: Folder
    root: Folder
    options: Options

    def __call__(self, task: Samples, spool: Path) -> Made | Failure:
        cv2.setNumThreads(1)  # a process is one core, and thread counts must not decide bytes
        began, made = time.perf_counter(), MadeWriter(spool)
        again = self._from_video(task, spool)
        try:
            for entry in task.entries:
                self._add(made, self._read(task.shard, entry), again, spool)
            return made.finish()
        except Unreachable:
            made.discard()
            raise
        except Exception as error:  # a damaged shard, a cue that cannot be computed
            made.discard()
            reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            return Failure(f"{task.shard}, {entry.key}", "error", reason, time.perf_counter() - began)

    def absent(self, task: Samples) -> str | None:
        return None if task.file is None else self.root.absent(task.file)

    def without(self, task: Samples, why: Failure | Lost, spool: Path) -> Made:
        """A video that hangs or crashes its decoder now is not read; a sample that cannot be read ends the run."""
        if isinstance(why, Lost) and task.file is not None:
            made = self(replace(task, file=None), spool)
            if isinstance(made, Made):
                return made
            why = made
        where = why.path if isinstance(why, Failure) else f"{task.shard}, {task.entries[0].key}"
        raise InputError(f"{self.out}/{where}: {why.reason}; the set is as it was, and what is finished is kept")

    def _read(self, shard: str, entry: Entry) -> memoryview:
        """A sample's bytes, checked."""
        if isinstance(self.out, RemoteFolder):
            data = memoryview(self.out.read(shard, entry.offset, entry.size))
        else:
            data = memoryview(bytes(extent(Path(self.out.place, shard), entry.offset, entry.size, self.out.place)))
        if (crc32 := zlib.crc32(data)) != entry.crc32:
            raise FormatError(f"crc32 is {crc32}, its index says {entry.crc32}; the shard is damaged, copy it again")
        return data

    def _from_video(self, task: Samples, spool: Path) -> Iterator[Transcoded]:
        """The cues of the task's samples in turn, from its video; they end where it does not decode."""
        if task.file is None:
            return
        with self.root.local(task.file) as path, suppress(Exception):  # whatever a hostile file makes a library raise
            yield from transcode(path, self.options, task.span, spool, pictures=False)

    def _add(self, made: MadeWriter, data: memoryview, again: Iterator[Transcoded], spool: Path) -> None:
        """Append one sample with its new cues; ``again`` is what the video gives for it and those after it."""
        contents = cast("dict[str, memoryview]", members(data))  # of a view
        record, one = parse(contents), next(again, None)
        stored = one is None or not same(one.meta, record.meta)
        new = self._from_frames(record, spool) if one is None or stored else one.members
        table = json.loads(bytes(contents["json"]))
        table["cues"] = in_order({*record.meta.cues, *self.options.cues})
        if stored:
            table["from_stored"] = in_order({*record.meta.from_stored, *self.options.cues})
        document = json.dumps(table, sort_keys=True, ensure_ascii=False).encode()
        meta = SampleMeta.loads(document)
        whole: dict[str, Contents] = {**cast(dict[str, Contents], contents), **new, "json": document}
        made.add(record.key, pack(record.key, whole, meta), meta, _motion(whole, meta))

    def _from_frames(self, record: Record, spool: Path) -> dict[str, bytes | IO[bytes]]:
        encoder = SampleEncoder(self.options, 0, spool, pictures=False)
        for start in range(0, len(record), DECODED):
            frames = np.arange(start, min(start + DECODED, len(record)))
            for luma_HW in record.rgb.decode(frames, *record.size, grey=True):
                encoder.add([luma_HW])
        return encoder.members()


def same(now: SampleMeta, then: SampleMeta) -> bool:
    """Whether a video is still what a sample was made of: by its packets, or in older sets by its numbers."""
    if now.source is None or then.source is None:
        return False
    sizes = [(meta.frames, meta.width, meta.height) for meta in (now, then)]
    sources = [(source.width, source.height, source.first) for source in (now.source, then.source)]
    return sizes[0] == sizes[1] and sources[0] == sources[1] and then.source.content in (None, now.source.content)


def _motion(contents: dict[str, Contents], meta: SampleMeta) -> float | None:
    energy = contents.get(array_name("energy")) if "energy" in meta.cues else None
    assert not isinstance(energy, IO)
    return None if energy is None else mean_motion(parse_array(energy, "<f4", (meta.frames,), "energy"))


def in_order(cues: Collection[str]) -> list[str]:
    return [cue for cue in CUES if cue in cues]


def add_cues(out: Folder, cues: Sequence[str], how: How, root: str | None = None, links: bool = True) -> Manifest:
    """Add those of ``cues`` that the set does not have, and say what is done. ``root`` is where its videos are now: a place,
    None for where they were, ``"none"`` for the stored frames; ``links``: also those behind links that lead out of it.
    Interrupted, it leaves the set as it was, and what is finished is kept for the next start with the same cues and videos.

    Raises InputError where the set is not finished, there is too little space, or ``root`` holds none of its videos.
    """
    plan, manifest = plan_of(out), _manifest(out)
    have = manifest.options.get("cues", [])
    for cue in in_order(set(cues).intersection(have)):
        print(f"{out} has the cue {cue} already")
    new = tuple(in_order(set(cues).difference(have)))
    if not new:
        clean(out, plan.names, everything=True)  # what a killed start left
        drop_old_indexes(out, but_of=manifest.index_sha256)
        return manifest
    sizes = out.files()
    unmade = [name for name, recipe in plan.shards.items() if not done(out, name, recipe, sizes, read=False)]
    if unmade or {shard.name for shard in manifest.shards} - {f"{name}.tar" for name in plan.names}:
        raise InputError(f"{out}: a run that adds videos to it is not finished ({some(unmade)}); start that again first")
    options = replace(options_of(plan), cues=new)
    videos, files = _videos(plan, root, out.patience, links)
    jobs = _jobs(out, plan, have, options, videos, files)
    _tell_sources(jobs, videos, root, " and ".join(new))
    checking = bar(jobs, "checking", unit="shard", leave=False)
    todo = [job for job in checking if not done(out, job.name, job.recipe, sizes)]
    _check_space(out, sum(job.estimate for job in todo))
    make_all(jobs, todo, Adding(out, videos, options), out, how, "adding cues")
    first = plan.first or ({} if plan.keep else {"cues": have, "shards": plan.shards})
    names = dict(zip(plan.names, jobs, strict=True))
    grown = replace(
        plan,
        options=plan.options | {"cues": in_order({*have, *new})},
        keep=[names[name].name for name in plan.keep],
        shards={names[name].name: names[name].recipe for name in plan.shards},
        first=first,
    )
    out.write(PLAN, grown.dumps().encode())
    settle(out)
    manifest = _manifest(out)
    for cue in new:
        stored = manifest.from_stored.get(cue, 0)
        print(f"{cue}: {manifest.samples - stored} samples from their videos, {stored} from their stored frames")
    return manifest


def settle(out: Folder) -> None:
    """Where the plan names the shards of added cues and the manifest does not yet: the last steps of adding them."""
    plan, sizes = RunPlan.load(out), out.files()
    if plan is None or MANIFEST not in sizes or not all(index_name(name) in sizes for name in plan.names):
        return
    old = _manifest(out)
    if plan.options.get("cues", []) == old.options.get("cues", []):
        return
    shards, everything = list[Shard](), list[Entry]()
    for name in plan.names:
        header, entries = read_index(out, index_name(name))
        everything += entries
        if entries:
            shards.append(Shard(header.shard, header.samples, header.bytes, header.sha256))
    index = pack_columns(everything, sorted(old.splits), list(old.classes))
    manifest = replace(
        old,
        shards=tuple(shards),
        options=old.options | {"cues": plan.options["cues"]},
        index_sha256=hashlib.sha256(index).hexdigest(),
        from_stored=count_from_stored(everything),
    )
    publish(out, index, manifest)
    clean(out, plan.names, everything=True)


def _manifest(out: Folder) -> Manifest:
    if out.size(MANIFEST) is None:
        raise InputError(f"{out}: no {MANIFEST} there; finish the set first: the command that makes it, or merge for its parts")
    return Manifest.loads(read_manifest(out).decode(errors="replace"), f"{out}/{MANIFEST}")


def _jobs(
    out: Folder, plan: RunPlan, have: Sequence[str], options: Options, videos: Folder, files: dict[str, int]
) -> list[Job]:
    """The new shards in order, numbered after those of the plan; ``have`` are the cues that are there, ``files`` path -> bytes
    of the ``videos``. A recipe names the old shard and its videos, so that a start with more of them makes it again."""
    both = replace(options, cues=(*have, *options.cues))
    growth = pixel_bytes(both) / pixel_bytes(replace(both, cues=tuple(have), stabilise=False))
    first, sizes = 1 + max(int(name.rpartition("-")[2]) for name in plan.names), out.files()
    jobs = []
    for number, name in enumerate(plan.names, first):
        header, entries = read_index(out, index_name(name))
        tasks, there = list[Samples](), list[tuple[str, int | None]]()
        for video, samples in groupby(entries, key=lambda entry: entry.video):
            path = video if video in files else SPAN.sub("", video)
            file = videos.address(path) if path in files else None
            tasks.append(Samples(header.shard, tuple(samples), file, span_of(video.removeprefix(path))))
            there.append((path, files.get(path)))
        failures = read_failures(out, failures_name(name)) if failures_name(name) in sizes else []
        document = json.dumps([header.recipe, header.sha256, options.cues, there])
        recipe = hashlib.sha256(document.encode()).hexdigest()
        jobs.append(Job(f"shard-{number:06d}", tuple(tasks), header.bytes * growth, recipe, tuple(failures)))
    return jobs


def _videos(plan: RunPlan, root: str | None, patience: float, links: bool) -> tuple[Folder, dict[str, int]]:
    """The folder of the set's videos, and path -> bytes of what it holds: nothing where they are not to be read."""
    folder = open_folder(plan.root if root in (None, NONE) else root, patience)
    folder.links = links
    if root == NONE or not (isinstance(folder, RemoteFolder) or Path(folder.place).is_dir()):
        return folder, {}
    try:
        videos = videos_of(plan, folder)
        return videos, videos.files()
    except InputError as error:
        raise InputError(f"{error}; --root says where the videos are now, --root {NONE} takes the stored frames") from None


def _tell_sources(jobs: Sequence[Job], videos: Folder, root: str | None, cues: str) -> None:
    """Say which videos are not there; raises InputError where ``root`` was given and none is."""
    missing = [SPAN.sub("", task.entries[0].video) for job in jobs for task in job.tasks if task.file is None]
    total = sum(len(job.tasks) for job in jobs)
    if len(missing) == total and root not in (None, NONE):
        raise InputError(f"--root {root}: it holds none of the set's {total} videos; expected {missing[0]} in it")
    if missing and root != NONE:
        print(f"{len(missing)} of {total} videos are not at {videos}: {some(missing)}")
        print(f"their {cues} is computed from the stored frames; --root says where videos are now")


def span_of(text: str) -> Span | None:
    """The span behind the path in a video's id.

    >>> span_of("[10:20]"), span_of("[0.5:]"), span_of("")
    ((10, 20), (0.5, None), None)
    """
    if not text:
        return None
    first, _, end = text[1:-1].partition(":")
    if first.isdecimal() and (end.isdecimal() or not end):
        return int(first), int(end) if end else None
    return float(first), float(end) if end else None


def _check_space(out: Folder, needed: float) -> None:
    free = out.free()
    said = f"the new shards take about {needed / 1e9:.2f} GB beside the old ones until all are whole"
    if free is not None and needed > free:
        raise InputError(f"{out}: {said}, and {free / 1e9:.2f} GB are free; free some space, or copy the set to another disk")
    print(said + ("" if free is None else f" ({free / 1e9:.0f} GB are free)"))
