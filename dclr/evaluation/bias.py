"""The bias report: what a network still names when motion, or the scene, is taken out of the test clips.

For each kind of label that the set has, a linear probe is fitted on whole training clips. It is then asked about test clips of
which something is missing. The same network with random weights stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dclr import metrics, report
from dclr.data.loader import eval_loader
from dclr.draws import generator
from dclr.evaluation.features import Features, extract
from dclr.evaluation.probe import Labelled, both, fit_and_score, neighbours
from dclr.evaluation.result import Pictures, overlays, save_result
from dclr.evaluation.setting import EvalConfig, Setting, forward, prepare
from dclr.hardware import peak_memory_gb
from dclr.method.views import MEAN
from dclr.metrics import Metric
from dclr.text import table

FILL = torch.tensor([round(255 * mean) for mean in MEAN], dtype=torch.uint8)  # the colour that normalisation takes to 0
SWAPPED = "swapped"  # the split of the embedded set whose motions are those of its test split, over other scenes
AGREEMENT = "neighbours"  # the number that is no share of test videos
NEAREST = 10  # training videos that are asked whether they agree with a test video


def static(batch: dict[str, Any]) -> torch.Tensor:
    """The middle frame of each clip, repeated: nothing moves."""
    rgb_NTSSC = batch["rgb"][0]
    middle = rgb_NTSSC.shape[1] // 2
    return rgb_NTSSC[:, middle : middle + 1].expand_as(rgb_NTSSC)


def shuffled(batch: dict[str, Any]) -> torch.Tensor:
    """The frames of each clip in an order that is drawn from (key, clip)."""
    rgb_NTSSC = batch["rgb"][0]
    key, frames = batch["key"][0], rgb_NTSSC.shape[1]
    orders = [generator("bias", key, n).permutation(frames) for n in range(len(rgb_NTSSC))]
    return torch.stack([clip[torch.from_numpy(order)] for clip, order in zip(rgb_NTSSC, orders, strict=True)])


def backwards(batch: dict[str, Any]) -> torch.Tensor:
    """The frames of each clip from the last to the first."""
    return batch["rgb"][0].flip(1)


def still_part(batch: dict[str, Any]) -> torch.Tensor:
    """The cells that move (:func:`dclr.data.clips.moving_cells`) are blanked: they get the mean colour."""
    return torch.where(batch["moving"][0].bool().unsqueeze(-1), FILL, batch["rgb"][0])


def moving_part(batch: dict[str, Any]) -> torch.Tensor:
    """The cells that do not move, the background, are blanked."""
    return torch.where(batch["moving"][0].bool().unsqueeze(-1), batch["rgb"][0], FILL)


ALTERED: dict[str, Callable[[dict[str, Any]], torch.Tensor]] = {
    "static": static,
    "shuffled": shuffled,
    "reversed": backwards,
    "motion blanked": still_part,
    "background blanked": moving_part,
}


def bias(config: EvalConfig) -> dict[str, Any]:
    """Make the bias report; returns its result, empty on ranks other than 0.

    ``KIND: CONDITION`` is the probe's top-1 on the test videos under that condition. ``KIND: neighbours`` is the share of the
    :data:`NEAREST` training videos that have the test video's label. ``random`` has the same numbers of random weights."""
    setting = prepare(config)
    kinds = [setting.kind] if config.label else [kind for kind in setting.shards.labels if _labels_all(setting, kind)]
    conditions = list(ALTERED) if "energy" in setting.shards.manifest.options.get("cues", []) else list(ALTERED)[:3]
    features = both(setting)
    found = measure(setting, features, kinds, conditions)
    baseline: dict[str, float] | None = {}
    if config.pretrained != "random":
        before = setting.with_random_weights()
        baseline = measure(before, both(before), kinds, conditions)
    if features is None or found is None or baseline is None:
        return {}
    print(lines(found, baseline, kinds))
    if len(conditions) < len(ALTERED):
        print(f"nothing is blanked: {config.shards} has no cue energy; python -m preprocess add-cues SET --cues energy adds it")
    sides = {"random weights": baseline, "this network": found} if baseline else {"random weights": found}
    pictures: Pictures = {
        "bias.png": partial(report.bars, sides),
        "conditions.png": partial(examples, setting, conditions),
        "neighbours.png": partial(neighbours, setting, *features),
        "maps.png": partial(overlays, setting, setting.test_N),
    }
    extra = {"random": baseline, "peak_memory_gb": round(peak_memory_gb(), 2)}
    what = {name: Metric("percent" if name.endswith(f": {AGREEMENT}") else "share") for name in found}
    return save_result(setting, found, features[1].sample, extra, pictures, kinds, what)


def _labels_all(setting: Setting, kind: str) -> bool:
    every = np.concatenate([setting.train_N, setting.val_N, setting.test_N])
    return bool((setting.shards.labels[kind][every] >= 0).all())


def measure(
    setting: Setting, features: tuple[Features, Features] | None, kinds: list[str], conditions: list[str]
) -> dict[str, float] | None:
    """The numbers of one network by name, on rank 0, which has its ``features``; None on others."""
    config, shards = setting.config, setting.shards

    def ask(module: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        return torch.stack([forward(module, setting, ALTERED[name](batch)) for name in conditions])

    altered = extract(
        setting, setting.test_N, config.test_clips, config.crops, "altered test features", ask, " ".join(conditions),
        moving=len(conditions) == len(ALTERED),
    )  # fmt: skip
    swapped = None
    if SWAPPED in shards.manifest.splits and SWAPPED not in (*config.train_split, *config.test_split):
        swapped = extract(setting, shards.select([SWAPPED]), config.test_clips, config.crops, "test features, scenes swapped")
    if features is None or altered is None:
        return None
    train, test = features
    tests = {"whole": test.value, **{name: altered.value[:, n] for n, name in enumerate(conditions)}}
    found = {}
    place_Mk, _ = metrics.nearest(test.value.mean(1), train.value.mean(1), NEAREST)
    for kind in kinds:
        classes, label_N = setting.classes_of(kind), shards.labels[kind]
        known = Labelled(train.value, classes.number(label_N[train.sample]))
        asked = [(name, values, test.sample) for name, values in tests.items()]
        asked += [("scenes swapped", swapped.value, swapped.sample)] if swapped else []
        scores = fit_and_score(known, np.concatenate([values for _, values, _ in asked]), classes.known, config.average)
        ends = np.cumsum([len(samples) for _, _, samples in asked])[:-1]
        for (name, _, samples), part in zip(asked, np.split(scores, ends), strict=True):
            found[f"{kind}: {name}"] = metrics.accuracies(part, classes.number(label_N[samples]))["top1"]
        found[f"{kind}: {AGREEMENT}"] = float((label_N[train.sample][place_Mk] == label_N[test.sample][:, None]).mean())
    return found


def lines(found: dict[str, float], baseline: dict[str, float], kinds: list[str]) -> str:
    """A table in per cent: a row for each condition, a column for each kind of label and network."""
    names = [name.removeprefix(f"{kinds[0]}: ") for name in found if name.startswith(f"{kinds[0]}: ")]
    sides = {"": found} | ({", random weights": baseline} if baseline else {})
    rows = [["test clips", *(f"{kind}{side}" for kind in kinds for side in sides)]]
    for name in names:
        rows.append([name, *(f"{100 * numbers[f'{kind}: {name}']:.1f}" for kind in kinds for numbers in sides.values())])
    return table(rows)


def examples(setting: Setting, conditions: list[str], out: Path) -> Path:
    """Write a PNG: four frames of a test clip under each condition."""
    loader = eval_loader(
        setting.shards, setting.test_N[:1], setting.clip, clips=1, moving=len(conditions) == len(ALTERED), cache=setting.cache,
        on_error="skip",
    )  # fmt: skip
    rows = []
    for batch in loader:
        for name in ("whole", *conditions):
            clip = batch["rgb"][0][0] if name == "whole" else ALTERED[name](batch)[0]
            at = np.linspace(0, len(clip) - 1, report.SHOWN).astype(int)
            rows.append([(clip[t].numpy(), f"{name}, frame {t}") for t in at])
    return report.neighbours(rows, out)
