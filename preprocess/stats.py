"""What is in a set, in numbers and one picture; indexes only, no tar is opened."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from dclr.data.manifest import ShardSet, read_index
from dclr.errors import InputError, make_folder
from dclr.storage import Folder
from dclr.text import plain


def describe(folder: Folder, picture: Path) -> str:
    """The text; the histograms go to ``picture`` (PNG). What needs labels is left out of an unlabelled set."""
    shards = ShardSet(folder)
    manifest = shards.manifest
    seconds, motion = shards.seconds_N, shards.motion_N[~np.isnan(shards.motion_N)]
    longest, shortest = int(np.argmax(seconds)), int(np.argmin(seconds))
    options = manifest.options
    traits = Counter(
        trait for shard in manifest.shards for entry in read_index(folder, shard.index_name)[1] for trait in entry.traits
    )
    cut = int((shards.cuts_N > 0).sum())
    lines = [
        f"{folder}: {manifest.dataset}, {len(np.unique(shards.video_N))} videos in {len(shards)} samples and "
        f"{len(manifest.shards)} shards",
        f"stored   short side {options['size']}, {options.get('codec')} at {options.get('quality')}, "
        f"cues {', '.join(options.get('cues', [])) or 'none'}{', stabilised' if options.get('stabilise') else ''}"
        f"{', pixels as they were' if options.get('sar') == 'keep' else ''}"
        f"{', deinterlaced' if options.get('deinterlace') else ''}",
        f"length   {seconds.sum() / 3600:.2f} hours, {shards.frames_N.sum()} frames, {seconds.mean():.1f} s a sample",
        f"fps      {shards.fps_N.min():g} to {shards.fps_N.max():g}, median {np.median(shards.fps_N):g}",
        f"cuts     {shards.cuts_N.sum()} in {cut} samples" if cut else "cuts     none",
        "sources  " + (", ".join(f"{trait} {count}" for trait, count in sorted(traits.items())) or "nothing unusual"),
        f"longest  {shards.keys[longest]}, {shards.frames_N[longest]} frames, {seconds[longest]:.1f} s",
        f"shortest {shards.keys[shortest]}, {shards.frames_N[shortest]} frames, {seconds[shortest]:.1f} s",
        f"bytes    {shards.size_N.sum() / 1e6:.1f} MB, {shards.size_N.mean() / 1e6:.2f} MB a sample, "
        f"{shards.size_N.sum() / shards.frames_N.sum():.0f} a frame",
        "splits   " + ", ".join(f"{name} {count}" for name, count in manifest.splits.items()),
    ]
    if len(motion):
        spread = ", ".join(f"{level:g}" for level in np.quantile(motion, (0, 0.25, 0.5, 0.75, 1)).round(2))
        lines.append(f"motion   least, quartiles and most of the mean energy: {spread}")
    for kind, names in manifest.classes.items():
        count = Counter(shards.labels[kind].tolist())
        there = [count[label] for label in range(len(names)) if count[label]]
        if there:
            lines.append(f"classes  {kind}: {len(there)} of {len(names)} have samples, {min(there)} to {max(there)} each")
    failures = ", ".join(f"{stage} {count}" for stage, count in manifest.failures.items())
    lines.append(f"not in it {failures or 'nothing: no video failed or is missing'}")
    _draw(shards, seconds, picture)
    return "\n".join([*lines, f"picture  {picture}"])


def _draw(shards: ShardSet, seconds_N: np.ndarray, picture: Path) -> None:
    from dclr import canvas

    figure, axes = canvas.axes(2, 2, 10, 7, layout="constrained")
    for axis, values, name in (
        (axes[0, 0], seconds_N, "seconds a sample"),
        (axes[0, 1], shards.fps_N, "frames a second"),
        (axes[1, 0], shards.size_N / 1e6, "MB a sample"),
    ):
        axis.hist(values, bins=40)
        axis.set(xlabel=name, ylabel="samples")
    kind = next(iter(shards.labels), None)
    if kind and (shards.labels[kind] >= 0).any():
        _, counts = np.unique(shards.labels[kind][shards.labels[kind] >= 0], return_counts=True)
        axes[1, 1].stairs(counts, fill=True)  # one shape, however many classes there are
        axes[1, 1].set(xlabel=f"class ({plain(kind)}) of those that have samples", ylabel="samples")
    else:
        axes[1, 1].set_axis_off()
    make_folder(picture.parent)
    try:
        canvas.write(figure, picture)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--out {picture}: cannot be written ({error}); expected the name of a picture, such as stats.png"
        ) from None
