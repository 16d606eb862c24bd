"""Features of a frozen network as rows in files, for other software: what python -m dclr.extract does.

They are extracted as an evaluation's are (:func:`dclr.evaluation.setting.over_videos`), file after file, so that memory holds
those of one.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dclr import canvas, distributed
from dclr.data.loader import all_skipped
from dclr.data.manifest import ShardSet
from dclr.draws import generator
from dclr.errors import InputError, dispensable, make_folder
from dclr.evaluation.config import Extraction
from dclr.evaluation.features import decides
from dclr.evaluation.pieces import Pieces
from dclr.evaluation.setting import Opened, Pooled, forward, opened, over_videos
from dclr.files import whole
from dclr.hardware import place
from dclr.parse import from_json, parsing, read_whole
from dclr.settings import as_table
from dclr.text import plain, public

MADE = "extract.json"
MAX_MADE = 1 << 24  # bytes of it
FILE_BYTES = 256_000_000  # of features, in a file
DRAWN = 5000  # rows in the picture
LEGEND = 20  # classes up to which it names them
Columns = dict[str, np.ndarray]
OTHERWISE = {  # what the file MADE says -> what another value of it means
    "version": "by another version of dclr or torch",
    "weights": "with other weights",
    "set": "from another set",
    "samples": "of other videos",
    "what": "with other --per, --test-clips or --crops",
    "clip": "of other clips (--frames, --stride, --clip-fps, --size, --cross-cuts)",
}
EXTRAS: dict[str, tuple[Callable[[Extraction], bool], str, str]] = {  # flag -> whether it is asked for, module, package
    "--format parquet": (lambda config: config.format == "parquet", "pyarrow", "pyarrow"),
    "--plot": (lambda config: config.plot, "sklearn", "scikit-learn"),
}


@dataclass(frozen=True)
class Extracted:
    """What is read of extract.json: all that decides the features."""

    made: dict[str, Any]


def extract(config: Extraction) -> None:
    """Write the files that are not there yet, all ranks together, and the picture. Raises InputError where ``--out`` holds what
    was made otherwise."""
    for flag, (asked, module, package) in EXTRAS.items():
        if asked(config) and importlib.util.find_spec(module) is None:
            raise InputError(f"{flag} needs {package}: pip install 'dclr[{flag.split()[-1].strip('-')}]'")
    setting = opened(config)
    shards, out = setting.shards, setting.out
    samples_N = shards.select(config.split) if config.split else np.arange(len(shards))
    kind = shards.kind(config.label) if config.label or (config.plot and shards.classes) else None
    decided = decides(setting, samples_N, config.test_clips, config.crops, config.per) | {"format": config.format}
    made = json.loads(json.dumps({"split": config.split} | decided))
    if not config.force:
        _check(out, made)
    distributed.setup(setting.device)
    first = distributed.rank() == 0
    if first:
        _begin(setting, made)
    found, size = rows_of(setting)
    files = []
    for number, part_N in enumerate(parts(shards, samples_N, max(1, FILE_BYTES // size))):
        files.append(path := out / f"features-{number:05}.{config.format}")
        if not distributed.from_first(path.exists()):
            _write(setting, part_N, found, path)
            all_skipped({*setting.skipped}, len(samples_N), config.max_skipped)
    if first:
        rows = sum(len(read(path, "start")) for path in files)
        print(f"{rows} rows: {files[0]}" + (f" to {files[-1].name}" if len(files) > 1 else ""))
        if config.plot:
            with dispensable("features.png"):
                print(plot(setting, files, kind))


def _check(out: Path, made: Mapping[str, Any]) -> None:
    """Raises InputError where ``out`` holds features that were made otherwise."""
    path = out / MADE
    if not path.exists():
        return
    with parsing(str(path), "of python -m dclr.extract", "name another --out, or --force makes it anew"):
        there = from_json(read_whole(path, MAX_MADE, "what was extracted"), Extracted, nan=True).made
    other = next((name for name, value in made.items() if there.get(name) != value), None)
    if other:
        raise InputError(
            f"--out {out}: its features were made {OTHERWISE.get(other, f'with other --{other}')}; name another folder, or "
            "--force makes them anew"
        )


def _begin(setting: Opened, made: Mapping[str, Any]) -> None:
    """Make the folder and say in it what is made; with ``--force`` remove what it held."""
    config, out = setting.config, setting.out
    make_folder(out)
    for path in sorted([*out.glob("features-*"), *out.glob("features.png")]) if config.force else ():
        path.unlink() if path.is_file() else Pieces.remove(path)
    used = setting.clip.said | {"arch": setting.trunk.arch, "width": setting.trunk.width, "shards": str(setting.shards)}
    with whole(out / MADE) as unfinished:
        unfinished.write_text(json.dumps({"made": made, "options": as_table(config) | used}, indent=1) + "\n")
    print(f"{public(config.pretrained)}\n{setting.trunk.matched}")


def rows_of(setting: Opened) -> tuple[Callable[[dict[str, Any]], torch.Tensor], int]:
    """What a video's batch is turned into, and the bytes of it: float32 (..., 2 + C'), when it begins and ends and then its
    features; for each video (2 + C'), for each clip (N, 2 + C'), for each position (N, T', H', W', 2 + C')."""
    config, clip = setting.config, setting.clip
    assert isinstance(config, Extraction)
    pooled, per = place(Pooled(setting.trunk.module), setting.device).eval(), config.per
    module = pooled.trunk if per == "position" else pooled
    pool = ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,))

    def passed(rgb_NTSSC: torch.Tensor) -> torch.Tensor:
        if setting.device.type != "cpu":
            return forward(module, setting, rgb_NTSSC)
        # on a CPU a convolution's bits depend on its number of threads, which is another one beside other processes
        return torch.cat(list(pool.map(partial(forward, module, setting), rgb_NTSSC.split(1))))

    def found(batch: dict[str, Any]) -> torch.Tensor:
        rows = passed(batch["rgb"][0]).movedim(1, -1)
        seconds = batch["seconds"][0].float().to(rows.device)
        if per == "video":
            return torch.cat([seconds[:, 0].min()[None], seconds[:, 1].max()[None], rows.mean(0)])
        return torch.cat([seconds.reshape(-1, *[1] * (rows.dim() - 2), 2).expand(*rows.shape[:-1], 2), rows], -1)

    one = torch.zeros(1, clip.frames, clip.size, clip.size, 3, dtype=torch.uint8)
    bytes_of_clip = 4 * found({"rgb": one[None], "seconds": torch.zeros(1, 1, 2)}).numel()
    return found, bytes_of_clip * (1 if per == "video" else config.test_clips * config.crops)


def joined(segments: list[np.ndarray]) -> np.ndarray:
    """The row of a cut video: from the first segment's beginning to the last one's end, the mean of their features."""
    rows = np.stack(segments)
    return np.concatenate([rows[:, :1].min(0), rows[:, 1:2].max(0), rows[:, 2:].mean(0)])


def parts(shards: ShardSet, samples_N: np.ndarray, each: int) -> list[np.ndarray]:
    """The samples of each file, about ``each`` of them: the segments of a video are in one."""
    _, first_V, video_N = np.unique(shards.video_N[samples_N], return_index=True, return_inverse=True)
    order_N = np.argsort(first_V[video_N], kind="stable")
    first_N = first_V[video_N][order_N]
    begin_N = np.flatnonzero(np.diff(first_N, prepend=-1))[np.cumsum(np.diff(first_N, prepend=-1) != 0) - 1]
    return np.split(samples_N[order_N], np.flatnonzero(np.diff(begin_N // each)) + 1)


def _write(setting: Opened, samples_N: np.ndarray, found: Callable[[dict[str, Any]], torch.Tensor], path: Path) -> None:
    """Extract the rows of these samples, and write their file on rank 0; what is done is kept beside it until then."""
    config, kept = setting.config, path.with_suffix(".part")
    assert isinstance(config, Extraction)
    whole_set = replace(setting, config=replace(config, max_skipped=100.0))  # the caller counts what is skipped of all files
    values, samples = over_videos(
        whole_set, samples_N, config.test_clips, config.crops, path.stem, found, kept,
        join=joined if config.per == "video" else None,
    )  # fmt: skip
    if not np.isfinite(values).all():
        raise FloatingPointError(f"features are not finite and {path.name} was not written: try --precision fp32")
    if distributed.rank() == 0:
        with whole(path) as unfinished:
            WRITERS[config.format](columns(setting.shards, values, samples, config.crops), setting.shards.classes, unfinished)
        Pieces.remove(kept)


def columns(shards: ShardSet, values: np.ndarray, sample_N: np.ndarray, crops: int) -> Columns:
    """The columns of a file, of what :func:`rows_of` found of these samples, (N, ..., 2 + C')."""
    inside = values.shape[1:-1]  # nothing, or clips, or clips and T', H', W'
    rows = int(np.prod(inside))
    found = {"key": np.repeat(np.array([shards.keys[sample] for sample in sample_N]), rows)}
    for name, place_R in zip(("clip", "t", "h", "w"), np.indices(inside), strict=False):
        every_R = np.tile(place_R.ravel(), len(sample_N))
        found |= {"clip": every_R // crops, "crop": every_R % crops} if name == "clip" else {name: every_R}
    table_RC = values.reshape(-1, values.shape[-1])
    found |= {name: table_RC[:, n].astype(np.float64).round(4) for n, name in enumerate(("start", "end"))}
    for kind, label_N in shards.labels.items():
        if (most := int(label_N[sample_N].max())) >= len(shards.classes[kind]):
            raise InputError(f"{shards}: a video has {kind} {most}, of {len(shards.classes[kind])} classes: copy the set again")
        found[f"label_{kind}"] = np.repeat(label_N[sample_N], rows)
    for split in shards.splits:
        found[f"split_{split}"] = np.repeat(np.isin(sample_N, shards.select([split])), rows)
    return found | {"features": np.ascontiguousarray(table_RC[:, 2:])}


def _npz(table: Columns, classes: Mapping[str, list[str]], out: Path) -> None:
    with out.open("wb") as file:
        np.savez(file, **table, **{f"classes_{kind}": np.array(names, str) for kind, names in classes.items()})  # type: ignore[arg-type]


def _parquet(table: Columns, classes: Mapping[str, list[str]], out: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    arrays: dict[str, Any] = {}
    for name, column in table.items():
        kind = name.removeprefix("label_")
        if name == "features":
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(column.ravel()), column.shape[1])
        elif kind != name:
            arrays[name] = pa.array(column, mask=column < 0)
            arrays[f"class_{kind}"] = pa.DictionaryArray.from_arrays(arrays[name], pa.array(classes[kind], pa.string()))
        else:
            arrays[name] = pa.array(column)
    parquet.write_table(pa.table(arrays), out)


WRITERS: dict[str, Callable[[Columns, Mapping[str, list[str]], Path], None]] = {"npz": _npz, "parquet": _parquet}


def read(path: Path, name: str) -> np.ndarray:
    """A column of a file. Raises InputError for a file that cannot be read."""
    with parsing(str(path), "features of python -m dclr.extract", "remove it, and it is made again"):
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as table:
                return table[name]
        from pyarrow import parquet

        column = parquet.read_table(path, columns=[name])[name].combine_chunks()
        if name == "features":
            return column.flatten().to_numpy().reshape(len(column), -1)
        return (column.fill_null(-1) if name.startswith("label_") else column).to_numpy(zero_copy_only=False)


def plot(setting: Opened, files: list[Path], kind: str | None) -> Path:
    """Write features.png: the rows as points, near each other where their features are similar, coloured by their classes.

    Of more than :data:`DRAWN` rows some are drawn by the seed. t-SNE (van der Maaten & Hinton 2008) of the first 50 principal
    components of features of length 1; in one thread, so that the same seed gives the same picture."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    config, shards, column = setting.config, setting.shards, f"label_{kind}"
    label_R = np.concatenate([read(path, column if kind else "start") for path in files])
    chosen_P = np.sort(generator("plot", config.seed).permutation(len(label_R))[:DRAWN])
    found, before = [], 0
    for path in files:
        features_RC = read(path, "features")
        here_P = chosen_P[(chosen_P >= before) & (chosen_P < before + len(features_RC))]
        found.append(features_RC[here_P - before])
        before += len(features_RC)
    x_PC = np.concatenate(found)
    x_PC = x_PC / np.maximum(np.linalg.norm(x_PC, axis=1, keepdims=True), 1e-12)
    with threadpool_limits(1):
        x_PC = PCA(min(50, *x_PC.shape), svd_solver="full").fit_transform(x_PC)
        perplexity = min(30, (len(x_PC) - 1) / 3)
        points_P2 = TSNE(perplexity=perplexity, init="pca", random_state=config.seed % 2**32).fit_transform(x_PC)
    figure, ((axis,),) = canvas.axes(1, 1, 8, 5.5)
    label_P = label_R[chosen_P].astype(int) if kind else np.full(len(chosen_P), -1)
    present = [int(label) for label in np.unique(label_P)]
    colours = canvas.plt.get_cmap("tab10" if len(present) <= 10 else "tab20" if len(present) <= LEGEND else "turbo")
    for n, label in enumerate(present):
        colour = "0.7" if label < 0 else colours(n if len(present) <= LEGEND else n / (len(present) - 1))
        name = plain(shards.classes[kind][label]) if kind and label >= 0 else "unlabelled"
        axis.scatter(*points_P2[label_P == label].T, s=8, color=colour, label=name)
    if kind and len(present) <= LEGEND:
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), title=plain(kind))
    axis.set_xticks([])
    axis.set_yticks([])
    assert isinstance(config, Extraction)
    what = f"{len(points_P2)} of {len(label_R)} {config.per}s" + (f" by {plain(kind)}, {len(present)} classes" if kind else "")
    axis.set_title(f"{plain(public(config.pretrained), 60)}\n{what} (t-SNE)", fontsize=9)
    return canvas.write(figure, setting.out / "features.png")
