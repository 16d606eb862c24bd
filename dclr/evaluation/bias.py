"""The bias report: what a network still names when motion, or the scene, is taken out of the test clips.

For each kind of label that the set has, a linear probe is fitted on whole training clips. It is then asked about test clips of
which something is missing or exchanged. The same network with random weights stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dclr import figures, metrics
from dclr.data.loader import Beside, eval_loader
from dclr.draws import generator
from dclr.evaluation.baseline import differences
from dclr.evaluation.features import Features, extract
from dclr.evaluation.probe import Labelled, both, fit_and_score, neighbours
from dclr.evaluation.result import Pictures, overlays, save_result
from dclr.evaluation.setting import NO_SAMPLES, EvalConfig, Setting, forward, prepare
from dclr.hardware import peak_memory_gb
from dclr.metrics import Metric
from dclr.text import table

SWAPPED = "swapped"  # the split of the embedded set whose motions are those of its test split, over other scenes
AGREEMENT = "neighbours"  # the number that is no share of test videos
DRAWS = 64  # of a partner, before all are looked at
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
    """The cells that move (:func:`dclr.data.clips.moving_cells`) are blanked: they get the colour that is 0 to the network."""
    return torch.where(batch["moving"][0].bool().unsqueeze(-1), batch["fill"], batch["rgb"][0])


def moving_part(batch: dict[str, Any]) -> torch.Tensor:
    """The cells that do not move, the background, are blanked."""
    return torch.where(batch["moving"][0].bool().unsqueeze(-1), batch["rgb"][0], batch["fill"])


def noise(batch: dict[str, Any]) -> torch.Tensor:
    """Noise that moves as the clip does (:func:`dclr.data.clips.moved_noise`): motion is all that is left."""
    return batch["noise"][0]


def over_stripes(batch: dict[str, Any]) -> torch.Tensor:
    """The cells that move, over drawn stripes (:func:`dclr.data.clips.striped`)."""
    return torch.where(batch["moving"][0].bool().unsqueeze(-1), batch["rgb"][0], batch["stripes"][0].unsqueeze(1))


def static_stripes(batch: dict[str, Any]) -> torch.Tensor:
    """The middle frame of :func:`over_stripes`, repeated."""
    clip_NTSSC = over_stripes(batch)
    middle = clip_NTSSC.shape[1] // 2
    return clip_NTSSC[:, middle : middle + 1].expand_as(clip_NTSSC)


def over_another(batch: dict[str, Any]) -> torch.Tensor:
    """The cells that move, over the background of the partner's clips (:func:`dclr.data.clips.background`)."""
    return torch.where(batch["moving"][0].bool().unsqueeze(-1), batch["rgb"][0], batch["ground"][1].unsqueeze(1))


@dataclass(frozen=True)
class Condition:
    """``alter`` makes a video's clips, uint8 (N, T, S, S, 3), of its batch, which has the pictures ``of`` beside rgb, and
    ``fill``, the colour (3,) of what is blanked."""

    alter: Callable[[dict[str, Any]], torch.Tensor]
    of: tuple[str, ...] = ()


STRIPES, STATIC_STRIPES, SWAP, SCENES = "stripes", "static stripes", "swap", "scenes swapped"
CONDITIONS = {
    "static": Condition(static),
    "shuffled": Condition(shuffled),
    "reversed": Condition(backwards),
    "motion blanked": Condition(still_part, ("moving",)),
    "background blanked": Condition(moving_part, ("moving",)),
    "appearance removed": Condition(noise, ("noise",)),
    STRIPES: Condition(over_stripes, ("moving", "stripes")),
    STATIC_STRIPES: Condition(static_stripes, ("moving", "stripes")),
    SWAP: Condition(over_another, ("moving", "ground")),
}
CUE = {"moving": "diff", "noise": "flow"}  # what a picture is made of


def under(name: str, setting: Setting, batch: dict[str, Any]) -> torch.Tensor:
    """A video's clips under a condition, as its network takes blanked cells."""
    fill = torch.tensor(setting.trunk.module.pixels.grey, dtype=torch.uint8)
    return CONDITIONS[name].alter(batch | {"fill": fill})


@dataclass(frozen=True)
class Asked:
    """The conditions that a report asks about by name, the test videos that can be read, int64 (M,), and what their clips come
    with."""

    conditions: list[str]
    sample_M: np.ndarray
    beside: Beside


def bias(config: EvalConfig) -> dict[str, Any]:
    """Make the bias report; returns its result, empty on ranks other than 0.

    ``KIND: CONDITION`` is the probe's top-1 on the test videos under that condition. ``KIND: neighbours`` is the share of the
    :data:`NEAREST` training videos that have the test video's label. ``random`` has the same numbers of random weights, and
    ``random_paired`` how far these are."""
    setting = prepare(config)
    kinds = [setting.kind] if config.label else [kind for kind in setting.shards.labels if _labels_all(setting, kind)]
    features = both(setting)
    asked, left_out = choose(setting, kinds)
    found = measure(setting, features, kinds, asked)
    random: dict[str, np.ndarray] | None = {}
    if config.pretrained != "random":
        before = setting.with_random_weights()
        random = measure(before, both(before), kinds, asked)
    if features is None or found is None or random is None:
        return {}
    numbers, baseline = metrics.means(found), metrics.means(random)
    print(lines(numbers, baseline, kinds))
    for why, names in left_out.items():
        print(f"left out: {', '.join(names)}: {why}")
    what = {name: Metric("percent" if name.endswith(f": {AGREEMENT}") else "share") for name in found}
    sample_M, beyond_B = features[1].sample, swapped(setting)
    sides = {"random weights": baseline, "this network": numbers} if baseline else {"random weights": numbers}
    ends = {
        side: {name: metrics.interval(value, len(sample_M)) for name, value in of.items() if what[name].kind == "share"}
        for side, of in sides.items()
    }
    pictures: Pictures = {
        "bias.png": partial(figures.bars, sides, ends),
        "conditions.png": partial(examples, setting, asked),
        "neighbours.png": partial(neighbours, setting, *features),
        "maps.png": partial(overlays, setting, setting.test_N),
    }
    ours, theirs = (setting.each(values, sample_M, beyond_B) for values in (found, random))
    extra = {"random": baseline, "random_paired": differences(ours, theirs, what), "peak_memory_gb": round(peak_memory_gb(), 2)}
    return save_result(setting, found, sample_M, extra, pictures, kinds, what, beyond_B=beyond_B)


def swapped(setting: Setting) -> np.ndarray:
    """The samples of the set's split with scenes swapped, int64 (B,), where it has one that is asked besides."""
    splits, config = setting.shards.manifest.splits, setting.config
    besides = SWAPPED in splits and SWAPPED not in (*config.train_split, *config.test_split)
    return setting.shards.select([SWAPPED]) if besides else NO_SAMPLES


def choose(setting: Setting, kinds: list[str]) -> tuple[Asked, dict[str, list[str]]]:
    """What can be asked of this set, once its test clips were read; and the conditions that cannot, by the reason."""
    shards, config, damaged = setting.shards, setting.config, set(setting.skipped)
    sample_M = np.array([sample for sample in setting.test_N if shards.keys[sample] not in damaged])
    partner = partners(setting, sample_M, kinds)
    lacks = {
        picture: f"{config.shards} has no cue {cue}; python -m preprocess add-cues SET --cues {cue} adds it"
        for picture, cue in CUE.items()
        if cue not in shards.manifest.options.get("cues", [])
    }
    if not partner:
        lacks["ground"] = f"not every test video has one of another {' and '.join(kinds)} (--label asks about one kind)"
    names: list[str] = []
    left_out: dict[str, list[str]] = {}
    for name, condition in CONDITIONS.items():
        why = next((lacks[picture] for picture in condition.of if picture in lacks), None)
        (left_out.setdefault(why, []) if why else names).append(name)
    pictures = dict.fromkeys(picture for name in names for picture in CONDITIONS[name].of)
    return Asked(names, sample_M, Beside(tuple(pictures), config.seed, partner if SWAP in names else {})), left_out


def partners(setting: Setting, sample_M: np.ndarray, kinds: list[str]) -> dict[int, int]:
    """For each sample another one that has another class in every kind, drawn from (seed, video); empty where one has none.

    A few draws among all samples find one, unless nearly all have the same class."""
    shards, count = setting.shards, len(sample_M)
    label_KM = np.stack([shards.labels[kind][sample_M] for kind in kinds])
    found = {}
    for m, sample in enumerate(sample_M.tolist()):
        rng = generator("swap", setting.config.seed, shards.video_N[sample])
        for others in (rng.integers(count, size=DRAWS), np.arange(count)):
            others = others[(label_KM[:, others] != label_KM[:, [m]]).all(0)]
            if len(others):
                found[sample] = int(sample_M[rng.choice(others)])
                break
        else:
            return {}
    return found


def _labels_all(setting: Setting, kind: str) -> bool:
    every = np.concatenate([setting.train_N, setting.val_N, setting.test_N])
    return bool((setting.shards.labels[kind][every] >= 0).all())


def measure(
    setting: Setting, features: tuple[Features, Features] | None, kinds: list[str], asked: Asked
) -> dict[str, np.ndarray] | None:
    """What each video adds to the numbers of one network by name, on rank 0, which has its ``features``; None on others. The
    videos are those of the test split, then those with scenes swapped; NaN are those that a number does not ask."""
    config, shards, names = setting.config, setting.shards, asked.conditions

    def ask(module: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        return torch.stack([forward(module, setting, under(name, setting, batch)) for name in names])

    what = f"{' '.join(names)} of {' '.join(kinds)}, seed {config.seed}"
    altered = extract(
        setting, asked.sample_M, config.test_clips, config.crops, "altered test features", ask, what, asked.beside
    )
    sample_B, elsewhere = swapped(setting), None
    if len(sample_B):
        elsewhere = extract(setting, sample_B, config.test_clips, config.crops, "test features, scenes swapped")
    if features is None or altered is None:
        return None
    train, test = features
    tests = {"whole": test, **{name: Features(altered.value[:, n], altered.sample) for n, name in enumerate(names)}}
    tests |= {SCENES: elsewhere} if elsewhere else {}
    place = {sample: n for n, sample in enumerate([*test.sample.tolist(), *sample_B.tolist()])}
    found: dict[str, np.ndarray] = {}
    place_Mk, _ = metrics.nearest(test.value.mean(1), train.value.mean(1), NEAREST)
    for kind in kinds:
        classes, label_N = setting.classes_of(kind), shards.labels[kind]
        known = Labelled(train.value, classes.number(label_N[train.sample]))
        scores = fit_and_score(known, np.concatenate([of.value for of in tests.values()]), classes.known, config.average)
        ends = np.cumsum([len(of.sample) for of in tests.values()])[:-1]
        right: dict[str, np.ndarray] = {}
        for (name, of), answer_M in zip(tests.items(), np.split(scores.argmax(1), ends), strict=True):
            right[name] = answer_M == classes.number(label_N[of.sample])
            shares = {name: right[name]}
            if name == STATIC_STRIPES:
                shares["stripes by motion"] = right[STRIPES] & ~right[name]
            elif name == SWAP:
                other = answer_M == classes.number(label_N[[asked.beside.partner[sample] for sample in of.sample]])
                shares = {"swap as foreground": right[name], "swap as background": other}
                shares["swap as neither"] = ~right[name] & ~other
            for said, share in shares.items():
                found[f"{kind}: {said}"] = np.full(len(place), np.nan)
                found[f"{kind}: {said}"][[place[sample] for sample in of.sample.tolist()]] = share
        found[f"{kind}: {AGREEMENT}"] = np.full(len(place), np.nan)
        found[f"{kind}: {AGREEMENT}"][: len(test.sample)] = (
            label_N[train.sample][place_Mk] == label_N[test.sample][:, None]
        ).mean(1)
    return found


def lines(found: dict[str, float], baseline: dict[str, float], kinds: list[str]) -> str:
    """A table in per cent: a row for each condition, a column for each kind of label and network."""
    names = [name.removeprefix(f"{kinds[0]}: ") for name in found if name.startswith(f"{kinds[0]}: ")]
    sides = {"": found} | ({", random weights": baseline} if baseline else {})
    rows = [["test clips", *(f"{kind}{side}" for kind in kinds for side in sides)]]
    for name in names:
        rows.append([name, *(f"{100 * numbers[f'{kind}: {name}']:.1f}" for kind in kinds for numbers in sides.values())])
    return table(rows)


def examples(setting: Setting, asked: Asked, out: Path) -> Path:
    """Write a PNG: four frames of two test clips, whole and under each condition."""
    sample_n = asked.sample_M[np.unique([0, len(asked.sample_M) // 2])]
    loader = eval_loader(
        setting.shards, sample_n, setting.clip, clips=1, beside=asked.beside, cache=setting.cache, on_error="skip"
    )
    rows: list[list[figures.Cell]] = [[] for _ in ("whole", *asked.conditions)]
    for batch in loader:
        clips = {"whole": batch["rgb"][0], **{name: under(name, setting, batch) for name in asked.conditions}}
        for row, (name, clip_NTSSC) in zip(rows, clips.items(), strict=True):
            at = np.linspace(0, clip_NTSSC.shape[1] - 1, figures.SHOWN).astype(int)
            row.extend(figures.Cell(clip_NTSSC[0, t].numpy(), f"frame {t}" if t else name) for t in at)
    return figures.neighbours(rows, out)
