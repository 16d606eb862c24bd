"""Results video by video: what each video adds to a number, and how far a baseline on the same videos is from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from dclr import metrics
from dclr.compare import heading, measured, read_result
from dclr.errors import InputError
from dclr.files import whole
from dclr.metrics import Metric
from dclr.parse import Count, from_json, parsing
from dclr.text import plain, public, table

SCORES = "scores.safetensors"
IN_JSON = ("numbers", "keys", "labels", "videos")  # in it, as JSON, besides the tensors


@dataclass(frozen=True)
class Each:
    """What videos add to the numbers of an evaluation.

    Attributes:
        videos: how many test videos there are. Behind them in the lists come others that single numbers ask.
        keys, labels: names of the A videos and of their classes. skipped: keys of test videos that could not be read.
        values: number -> (A,). The number is their mean; NaN are videos that it does not ask.
    """

    videos: int
    keys: list[str]
    labels: list[str]
    skipped: frozenset[str]
    values: Mapping[str, np.ndarray]


def keep(folder: Path, each: Each, classes: list[str], **tensors: np.ndarray) -> None:
    """Write what each video adds, and ``tensors`` of the evaluation with its ``classes``, as safetensors."""
    tensors["each"] = np.array(list(each.values.values()), np.float32).reshape(len(each.values), len(each.keys))
    said = {"numbers": list(each.values), "keys": each.keys, "labels": each.labels, "videos": each.videos, "classes": classes}
    with whole(folder / SCORES) as unfinished:
        (folder / SCORES).unlink(missing_ok=True)  # another result's, with --force
        unfinished.write_bytes(save(tensors, {name: json.dumps(value) for name, value in said.items()}))  # save_file's is 0600


def read(folder: Path) -> tuple[dict[str, Any], Each]:
    """The result of an evaluation, and what each video adds; of folds or seeds what it adds to their mean.

    Raises InputError where there is none."""
    result = read_result(folder)
    runs = [folder / Path(name).name for name in result.get("runs", [])]
    return result, _joined({run.name: _each(run, read_result(run)) for run in runs}) if runs else _each(folder, result)


def _each(folder: Path, result: Mapping[str, Any]) -> Each:
    path, anew = folder / SCORES, "make the evaluation anew with --force"
    if not path.is_file():
        raise InputError(f"{path}: it is not there; {anew}")
    with parsing(str(path), "what train_eval.py keeps", anew), safe_open(path, "numpy") as file:
        said = file.metadata() or {}
        if absent := [name for name in IN_JSON if name not in said]:
            raise InputError(f"{path}: it does not say {', '.join(absent)}, as those of an earlier version; {anew}")
        numbers, keys, labels = (from_json(said[name], list[str]) for name in IN_JSON[:3])
        each, videos = file.get_slice("each"), from_json(said["videos"], Count)
        if each.get_shape() != [len(numbers), len(keys)] or len(labels) != len(keys) or videos > len(keys):
            raise ValueError("its lists have different lengths")
        if each.get_dtype() != "F32":
            raise ValueError(f"its values are {each.get_dtype()}, expected F32")
        values = dict(zip(numbers, file.get_tensor("each").astype(float), strict=True))
    return Each(videos, keys, labels, frozenset(result["skipped"]), values)


def _joined(runs: Mapping[str, Each]) -> Each:
    """The mean over seeds, video by video, then folds one behind the other: their mean has each fold as heavy as another."""
    folds: dict[str, list[Each]] = {}
    for name, run in runs.items():
        folds.setdefault(name.partition("seed")[0].rstrip("-"), []).append(run)
    firsts = [seeds[0] for seeds in folds.values()]
    if any(one.keys != seeds[0].keys for seeds in folds.values() for one in seeds):
        raise InputError(f"{', '.join(runs)}: seeds that could not read the same videos have no mean of each video")
    count = sum(one.videos for one in firsts)
    names = [name for name in firsts[0].values if all(name in run.values for run in runs.values())]
    values = {}
    for name in names:
        means = [np.mean([one.values[name][: one.videos] for one in seeds], axis=0) for seeds in folds.values()]
        values[name] = np.concatenate([mean * (count / len(folds) / len(mean)) for mean in means])
    keys = [f"{fold}/{key}" for fold, one in zip(folds, firsts, strict=True) for key in one.keys[: one.videos]]
    skipped = frozenset(f"{fold}/{key}" for fold, seeds in folds.items() for one in seeds for key in one.skipped)
    labels = [label for one in firsts for label in one.labels[: one.videos]]
    return Each(count, keys, labels, skipped, {name: value for name, value in values.items() if np.isfinite(value).all()})


def require_same(ours: Each, folder: Path) -> None:
    """Raises InputError where the baseline in ``folder`` has other test videos, or another label for one of them."""
    _, theirs = read(folder)
    label, other = (dict(zip(each.keys[: each.videos], each.labels, strict=False)) for each in (ours, theirs))
    said = f"--baseline {public(str(folder))}"
    for these, those, what in ((label, other, "does not test"), (other, label, "tests, as this does not,")):
        odd = [key for key in these if key not in those and key not in ours.skipped | theirs.skipped]
        if odd:
            raise InputError(
                f"{said}: it {what} {len(odd)} of the {len(these)} videos, such as {plain(odd[0], 120)}; expected an "
                "evaluation of the same test videos"
            )
    for key, name in label.items():
        if other.get(key, name) != name:
            raise InputError(
                f"{said}: there {plain(key, 120)} has the label {plain(other[key], 80)}, here {plain(name, 80)}; expected an "
                "evaluation of the same --label"
            )


def differences(ours: Each, theirs: Each, kinds: Mapping[str, Metric]) -> dict[str, dict[str, Any]]:
    """``difference``, ours - theirs, and ``interval``, its :func:`dclr.metrics.paired` interval, of each number that both have
    values of, by name."""
    place = {key: n for n, key in enumerate(theirs.keys)}
    both = [(n, place[key]) for n, key in enumerate(ours.keys) if key in place]
    found: dict[str, dict[str, Any]] = {"difference": {}, "interval": {}}
    for name, kind in kinds.items():
        if both and kind.kind != "number" and name in ours.values and name in theirs.values:
            at, there = np.array(both).T
            apart = ours.values[name][at] - theirs.values[name][there]
            if len(apart := apart[np.isfinite(apart)]):
                found["difference"][name], found["interval"][name] = float(apart.mean()), metrics.paired(apart)
    return found


def against(ours: Each, kinds: Mapping[str, Metric], folder: Path) -> dict[str, Any]:
    """What result.json says of the baseline in ``folder``: which it is, its numbers and their :func:`differences`.

    Raises InputError where it is none of these videos and labels, or has none of the numbers."""
    require_same(ours, folder)
    result, theirs = read(folder)
    shared = {name: kind for name, kind in kinds.items() if measured(result).get(name) == kind}
    if not shared:
        raise InputError(f"--baseline {public(str(folder))}: it has none of the numbers {', '.join(kinds)}")
    of = {name: public(str(result.get(name))) for name in ("mode", "pretrained", "arch", "width")}
    numbers = {name: float(result[name]) for name in shared}
    return {"run": public(str(folder)), **of, "numbers": numbers, **differences(ours, theirs, shared)}


def verdict(interval: list[float]) -> str:
    """Whether the interval of a difference excludes 0."""
    return "higher" if interval[0] > 0 else "lower" if interval[1] < 0 else "not told apart"


def lines(result: Mapping[str, Any]) -> str:
    """A table of the numbers beside their baseline's."""
    beside, kinds = result["baseline"], measured(result)
    rows = [["", "this", "baseline", "difference", "95 % interval", "so this is"]]
    for name, value in beside["numbers"].items():
        row = [heading(name, kinds[name]), kinds[name].text(result[name]), kinds[name].text(value)]
        if name in beside["interval"]:
            ends = beside["interval"][name]
            shown = [f"{100 * number:+.1f}" for number in (beside["difference"][name], *ends)]
            row += [shown[0], f"{shown[1]} to {shown[2]}", verdict(ends)]
        rows.append(row + [""] * (6 - len(row)))
    return table(rows)
