"""What is in a set, in numbers and one picture; indexes only, no tar is opened."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from dclr.bars import bar
from dclr.data.manifest import MAX_INDEX, ShardSet, read_index
from dclr.errors import InputError, make_folder
from dclr.record import TRAITS
from dclr.storage import Folder, RemoteFolder
from dclr.text import plain

NUMBERS, PICTURE = "stats.json", "stats.png"
QUANTILES = {"least": 0, "quarter": 0.25, "median": 0.5, "three_quarters": 0.75, "most": 1}
NAMED = 40  # classes up to which the picture names each
FEW = 6  # classes, or frame rates, that a line of text names


def describe(folder: Folder, out: Path | None = None) -> str:
    """The text. The numbers (JSON) and the histograms (PNG) go into the set's folder, or to ``out``, a PNG, and beside it.
    Where the folder cannot be written, the text says so. What needs labels is left out of an unlabelled set."""
    shards = ShardSet(folder)
    found = numbers(shards)
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    with tempfile.TemporaryDirectory(prefix="dclr-") as place:
        drawn = _draw(shards, found, Path(place, PICTURE) if out is None else out)
        if out is not None:
            out.with_suffix(".json").write_text(text, encoding="utf-8")
            kept = f"{out}, numbers in {out.with_suffix('.json')}"
        else:
            kept = _keep(folder, {NUMBERS: text.encode(), PICTURE: drawn.read_bytes()})
    return "\n".join([*lines(folder, shards, found), f"picture  {kept}"])


def numbers(shards: ShardSet) -> dict[str, Any]:
    """What :data:`NUMBERS` holds: counts of samples where nothing else is said."""
    manifest, seconds_N = shards.manifest, shards.seconds_N
    traits = source_traits(shards)
    rates = Counter(np.round(shards.fps_N, 3).tolist())
    motion_N = shards.motion_N[~np.isnan(shards.motion_N)]
    return {
        "manifest_sha256": shards.digest,
        "dataset": manifest.dataset,
        "options": manifest.options,
        "videos": len(np.unique(shards.video_N)),
        "samples": len(shards),
        "shards": len(manifest.shards),
        "frames": int(shards.frames_N.sum()),
        "bytes": int(shards.size_N.sum()),
        "hours": round(float(seconds_N.sum()) / 3600, 4),
        "seconds": _spread(seconds_N),
        "fps": {f"{rate:g}": count for rate, count in rates.most_common()},
        "motion": _spread(motion_N) if len(motion_N) else None,
        "cuts": {"cuts": int(shards.cuts_N.sum()), "samples": int((shards.cuts_N > 0).sum())},
        "sources": traits,
        "splits": manifest.splits,
        "classes": {kind: _counts(shards.labels[kind], names) for kind, names in manifest.classes.items()},
        "from_stored": manifest.from_stored,
        "not_in_it": manifest.failures,
    }


def source_traits(shards: ShardSet) -> dict[str, int] | None:
    """Trait of :data:`dclr.record.TRAITS` -> samples whose source has it; None where the shards' own indexes, which say it,
    were not copied with the set."""
    traits = Counter({trait: 0 for trait in TRAITS})
    try:
        for shard in bar(shards.tars, "reading indexes", unit="shard", leave=False):
            if b'"traits"' in shards.root.read_whole(shard.index_name, MAX_INDEX, "a shard's index"):
                traits.update(trait for entry in read_index(shards.root, shard.index_name)[1] for trait in entry.traits)
    except FileNotFoundError:
        return None
    return dict(traits)


def _spread(values_N: np.ndarray) -> dict[str, float]:
    levels = np.quantile(values_N, [*QUANTILES.values()]).tolist()
    return {name: round(level, 4) for name, level in zip(QUANTILES, levels, strict=True)}


def _counts(labels_N: np.ndarray, names: list[str]) -> dict[str, int]:
    """Class name -> samples, of the classes that have some."""
    labels, counts = np.unique(labels_N[(labels_N >= 0) & (labels_N < len(names))], return_counts=True)
    return {names[label]: count for label, count in zip(labels.tolist(), counts.tolist(), strict=True)}


def lines(folder: Folder, shards: ShardSet, found: dict[str, Any]) -> list[str]:
    """The numbers in words."""
    seconds, options, samples = shards.seconds_N, found["options"], found["samples"]
    longest, shortest = int(np.argmax(seconds)), int(np.argmin(seconds))
    cuts, sources = found["cuts"], found["sources"]
    said = [
        f"{folder}: {found['dataset']}, {found['videos']} videos in {samples} samples and {found['shards']} shards",
        f"stored   short side {options['size']}, {options.get('codec')} at {options.get('quality')}, "
        f"cues {', '.join(options.get('cues', [])) or 'none'}{', stabilised' if options.get('stabilise') else ''}"
        f"{', pixels as they were' if options.get('sar') == 'keep' else ''}"
        f"{', deinterlaced' if options.get('deinterlace') else ''}",
        *(f"cue      {cue} of {count} samples from the stored frames" for cue, count in found["from_stored"].items()),
        f"length   {seconds.sum() / 3600:.2f} hours, {found['frames']} frames, {seconds.mean():.1f} s a sample",
        f"fps      {shards.fps_N.min():g} to {shards.fps_N.max():g}, median {np.median(shards.fps_N):g}; samples: "
        + _some({f"at {rate}" if rate != "0" else "at a rate that is not known": n for rate, n in found["fps"].items()}),
        f"longest  {shards.keys[longest]}, {shards.frames_N[longest]} frames, {seconds[longest]:.1f} s",
        f"shortest {shards.keys[shortest]}, {shards.frames_N[shortest]} frames, {seconds[shortest]:.1f} s",
        f"bytes    {found['bytes'] / 1e6:.1f} MB, {found['bytes'] / samples / 1e6:.2f} MB a sample, "
        f"{found['bytes'] / found['frames']:.0f} a frame",
        "splits   " + ", ".join(f"{name} {count}" for name, count in found["splits"].items()),
    ]
    if found["motion"]:
        spread = ", ".join(f"{level:.2f}".rstrip("0").rstrip(".") for level in found["motion"].values())
        said.append(f"motion   least, quartiles and most of the mean energy: {spread}")
    said.append(f"cuts     {cuts['cuts']} in {cuts['samples']} samples" if cuts["cuts"] else "cuts     none")
    if sources is None:
        said.append("sources  not known: the shards' own indexes (.jsonl) are not there")
    else:
        odd = ", ".join(f"{trait} {count}" for trait, count in sorted(sources.items()) if count)
        said.append(f"sources  {odd or 'nothing unusual'}")
    for kind, count in found["classes"].items():
        if count:
            there, each = f"{len(count)} of {len(shards.classes[kind])}", f"{min(count.values())} to {max(count.values())}"
            said.append(f"classes  {kind}: {there} have samples, {each} each: {_some(count)}")
    failures = ", ".join(f"{stage} {count}" for stage, count in found["not_in_it"].items())
    return [*said, f"not in it {failures or 'nothing: no video failed or is missing'}"]


def _some(counts: dict[str, int]) -> str:
    """The largest counts by name, and how many more there are."""
    named = [f"{count} {plain(name)}" for name, count in Counter(counts).most_common(FEW)]
    return ", ".join(named) + (f" and {len(counts) - FEW} more" if len(counts) > FEW else "")


def _keep(folder: Folder, files: dict[str, bytes]) -> str:
    """Write the files into the set's folder; where they are, or why they are not."""
    if isinstance(folder, RemoteFolder) and not folder.listable:
        return "not kept: a web server's folder cannot be written; --out PNG keeps it here"
    try:
        for name, data in files.items():
            folder.write(name, data)
    except (InputError, OSError) as error:
        return f"not kept: {error}; --out PNG keeps it elsewhere"
    return f"{folder}/{PICTURE}, numbers in {folder}/{NUMBERS}"


def _draw(shards: ShardSet, found: dict[str, Any], picture: Path) -> Path:
    from dclr import canvas

    figure, axes = canvas.axes(2, 3, 14, 8, layout="constrained")
    motion_N = shards.motion_N[~np.isnan(shards.motion_N)]
    for axis, values, name in (
        (axes[0, 0], shards.seconds_N, "seconds a sample"),
        (axes[0, 1], shards.fps_N, "frames a second"),
        (axes[0, 2], shards.size_N / 1e6, "MB a sample"),
        (axes[1, 0], motion_N, "motion: mean energy, grey levels"),
        (axes[1, 1], shards.cuts_N, "cuts in a sample"),
    ):
        axis.hist(values, bins=40)
        axis.set(xlabel=name, ylabel="samples")
    axis, kind = axes[1, 2], next(iter(found["classes"]), "")
    count = found["classes"].get(kind, {})
    if not count:
        axis.set_axis_off()
    elif len(count) <= NAMED:
        axis.barh(range(len(count)), list(count.values()))
        axis.set_yticks(range(len(count)), [plain(name) for name in count], fontsize=max(4, 9 - len(count) // 8))
        axis.invert_yaxis()
        axis.set(xlabel=f"samples of each {plain(kind)}")
    else:
        axis.stairs(list(count.values()), fill=True)  # one shape, however many classes there are
        axis.set(xlabel=f"class ({plain(kind)}) of those that have samples", ylabel="samples")
    make_folder(picture.parent, "--out")
    try:
        return canvas.write(figure, picture)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--out {picture}: cannot be written ({error}); expected the name of a picture, such as stats.png"
        ) from None
