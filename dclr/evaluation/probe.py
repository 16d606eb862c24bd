"""Evaluations of frozen features: a linear probe, k-NN, retrieval, and a probe on few videos a class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dclr import figures, metrics
from dclr.data.fetch import MiddleFrames
from dclr.draws import generator
from dclr.errors import InputError
from dclr.evaluation.features import Features, extract
from dclr.evaluation.result import Numbers, Pictures, overlays, save_result, save_scores
from dclr.evaluation.setting import EvalConfig, Setting, prepare
from dclr.hardware import peak_memory_gb
from dclr.metrics import Metric

SGD_EPOCHS, SGD_DROPS, SGD_BATCH = 100, (60, 80), 128  # of --probe sgd, weight decay 0 (docs/method.md, "Recipe")
NEIGHBOURS = 5  # shown beside a query


@dataclass(frozen=True)
class Labelled:
    """Features ``value`` float32 (N, V, C) of V clips a video, with labels int64 (N,)."""

    value: np.ndarray
    label: np.ndarray


def both(setting: Setting) -> tuple[Features, Features] | None:
    """Features of the training split (with what ``--val`` holds out) and of the test split, on rank 0; None on others."""
    config = setting.config
    known_N = np.union1d(setting.train_N, setting.val_N)
    train = extract(setting, known_N, config.cpv, 1, "train features")
    test = extract(setting, setting.test_N, config.test_clips, config.crops, "test features")
    return (train, test) if train and test else None


@dataclass(frozen=True)
class Probing:
    """What a mode on frozen features works with: the features of both splits with their classes, and pictures of them."""

    setting: Setting
    train: Features
    test: Features
    peak_memory_gb: float

    @cached_property
    def known(self) -> Labelled:
        return Labelled(self.train.value, self.setting.label(self.train.sample))

    @cached_property
    def asked(self) -> Labelled:
        return Labelled(self.test.value, self.setting.label(self.test.sample))

    @property
    def classes(self) -> int:
        """How many classes training has; they are the first of all."""
        return self.setting.classes.known

    def videos(self) -> tuple[np.ndarray, np.ndarray]:
        """A video as the mean of its clips' features: of training (N, C) and test (M, C)."""
        return self.train.value.mean(1), self.test.value.mean(1)

    @property
    def pictures(self) -> Pictures:
        return {
            "neighbours.png": partial(neighbours, self.setting, self.train, self.test),
            "maps.png": partial(overlays, self.setting, self.test.sample),
        }

    def save_scores(self, scores_MK: np.ndarray, **extra: Any) -> dict[str, Any]:
        """:func:`dclr.evaluation.result.save_scores`, with ``extra`` in result.json."""
        return save_scores(self.setting, scores_MK, self.test.sample, self._extra(extra), self.pictures)

    def save_numbers(self, numbers: Numbers, what: Mapping[str, Metric] | None = None, **extra: Any) -> dict[str, Any]:
        """:func:`dclr.evaluation.result.save_result`, with ``extra`` in result.json."""
        more = self._extra(extra)
        return save_result(self.setting, numbers, self.test.sample, more, self.pictures, what=what)

    def _extra(self, extra: dict[str, Any]) -> dict[str, Any]:
        return {"peak_memory_gb": self.peak_memory_gb} | extra


def frozen(config: EvalConfig, evaluate: Callable[[Probing], dict[str, Any]]) -> dict[str, Any]:
    """Give ``evaluate`` the features of both splits on rank 0 and return its result; {} on other ranks."""
    setting = prepare(config)
    if config.mode == "fewshot":  # before features are extracted in vain
        _, first = np.unique(setting.shards.video_N[setting.train_N], return_index=True)
        usable(config.shots, setting.label(setting.train_N[first]))
    found = both(setting)
    return evaluate(Probing(setting, *found, round(peak_memory_gb(), 2))) if found else {}


def linear(probing: Probing) -> dict[str, Any]:
    """A linear probe on every clip. It averages the probabilities or logits of a test video's clips."""
    config = probing.setting.config
    if config.probe == "convex":
        return probing.save_scores(fit_and_score(probing.known, probing.test.value, probing.classes, config.average))
    held = np.isin(probing.train.sample, probing.setting.val_N)
    scores, tried = sgd_probe(probing.known, held, probing.test.value, probing.classes, config)
    return probing.save_scores(scores, probe=tried)


def knn(probing: Probing) -> dict[str, Any]:
    """:func:`dclr.metrics.knn` on videos."""
    train_NC, test_MC = probing.videos()
    return probing.save_scores(metrics.knn(train_NC, probing.known.label, test_MC, probing.classes))


def retrieval(probing: Probing) -> dict[str, Any]:
    """:func:`dclr.metrics.retrieval` of videos."""
    train_NC, test_MC = probing.videos()
    return probing.save_numbers(metrics.each_retrieval(train_NC, probing.known.label, test_MC, probing.asked.label))


def fewshot(probing: Probing) -> dict[str, Any]:
    """The mean and the deviation of :func:`few_shot` over its draws."""
    config = probing.setting.config
    right = few_shot(probing.known, probing.asked, probing.classes, config)
    draws = {count: right_DM.mean(1).tolist() for count, right_DM in right.items()}
    numbers = {f"{count}-shot": right_DM.mean(0) for count, right_DM in right.items()}
    deviations = {f"{count}-shot": float(np.std(found, ddof=1)) for count, found in draws.items() if config.draws > 1}
    return probing.save_numbers(numbers, dict.fromkeys(numbers, Metric("percent")), deviation=deviations, draws=draws)


def neighbours(setting: Setting, train: Features, test: Features, out: Path) -> Path:
    """Write a PNG: some test videos, and the training videos nearest to each by cosine of mean features."""
    rows_m = np.unique(np.linspace(0, len(test.sample) - 1, figures.SHOWN).astype(int))
    place_mk, _ = metrics.nearest(test.value[rows_m].mean(1), train.value.mean(1), NEIGHBOURS)
    shown = [np.array([test.sample[row], *train.sample[place_k]]) for row, place_k in zip(rows_m, place_mk, strict=True)]
    frames = MiddleFrames(setting.shards, setting.cache)
    frames.begin(set(np.concatenate(shown).tolist()))
    rows = [figures.beside(frames, of.tolist(), setting.label(of).tolist(), setting.classes.names) for of in shown]
    frames.end()
    return figures.neighbours(rows, out, "Test videos and the training videos nearest to each")


def logistic_regression(features_NC: torch.Tensor, label_N: torch.Tensor, classes: int, c: float = 1.0) -> nn.Linear:
    """The minimum of mean cross entropy + |W|^2 / (2 c N), bias not penalised, by L-BFGS in float64 from zero.

    Convex with one minimum, so there is no seed and no learning rate. ``c`` is the inverse strength, as in liblinear.
    """
    x, y = features_NC.double(), label_N
    layer = _zeros(x.shape[1], classes).double()
    solver = torch.optim.LBFGS(
        layer.parameters(), max_iter=2000, tolerance_grad=1e-6, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> torch.Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(layer(x), y) + layer.weight.square().sum() / (2 * c * len(x))
        loss.backward()
        return loss

    solver.step(objective)
    return layer


def _zeros(channels: int, classes: int) -> nn.Linear:
    layer = nn.Linear(channels, classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def averaged(logits_MVK: torch.Tensor, average: str = "probabilities") -> torch.Tensor:
    """Class scores of videos, (M, K), from the logits of their V clips: the mean of the probabilities, or the probabilities of
    the mean logit."""
    return logits_MVK.softmax(-1).mean(-2) if average == "probabilities" else logits_MVK.mean(-2).softmax(-1)


def _clips(known: Labelled) -> tuple[torch.Tensor, torch.Tensor]:
    """Every clip by itself: features float64 (N V, C) and labels (N V,)."""
    labels = np.repeat(known.label, known.value.shape[1])
    return torch.from_numpy(known.value).flatten(0, 1).double(), torch.from_numpy(labels)


@torch.no_grad()
def _score(layer: nn.Module, test_MVC: torch.Tensor, average: str) -> np.ndarray:
    return averaged(layer(test_MVC), average).numpy()


def fit(known: Labelled, classes: int) -> nn.Module:
    """:func:`logistic_regression` on every clip, standardised by the training clips' mean and deviation: features -> logits."""
    train, labels = _clips(known)
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    layer = logistic_regression((train - mean) / deviation, labels, classes)
    with torch.no_grad():  # the same on features as they are
        layer.bias.sub_(layer.weight @ (mean / deviation))
        layer.weight.div_(deviation)
    return layer


def fit_and_score(known: Labelled, test_MVC: np.ndarray, classes: int, average: str = "probabilities") -> np.ndarray:
    """The convex probe's scores of videos, (M, classes)."""
    return _score(fit(known, classes), torch.from_numpy(test_MVC).double(), average)


def sgd(known: Labelled, classes: int, lr: float, seed: int) -> nn.Module:
    """The authors' probe: SGD with momentum 0.9 and no weight decay on features as they are, in an order from (seed, epoch)."""
    train, labels = _clips(known)
    layer = _zeros(train.shape[1], classes).double()
    optimiser = torch.optim.SGD(layer.parameters(), lr, momentum=0.9)
    for epoch in range(SGD_EPOCHS):
        optimiser.param_groups[0]["lr"] = lr * 0.1 ** sum(epoch >= drop for drop in SGD_DROPS)
        order = torch.from_numpy(generator("probe", seed, epoch).permutation(len(train)))
        for rows in order.split(SGD_BATCH):
            optimiser.zero_grad()
            F.cross_entropy(layer(train[rows]), labels[rows]).backward()
            optimiser.step()
    return layer


def sgd_probe(
    known: Labelled, held_N: np.ndarray, test_MVC: np.ndarray, classes: int, config: EvalConfig
) -> tuple[np.ndarray, dict[str, Any]]:
    """Scores (M, classes) of :func:`sgd` on all training videos, and what was tried.

    Of several ``--probe-lr`` it takes the one that is best on the held-out videos (bool (N,)) after training without them. Of
    one learning rate nothing is chosen."""
    tried = {}
    for lr in config.probe_lr if len(config.probe_lr) > 1 else ():
        layer = sgd(Labelled(known.value[~held_N], known.label[~held_N]), classes, lr, config.seed)
        scores = _score(layer, torch.from_numpy(known.value[held_N]).double(), config.average)
        tried[lr] = metrics.accuracies(np.nan_to_num(scores), known.label[held_N])["top1"]
    lr = max(tried, key=lambda lr: tried[lr]) if tried else config.probe_lr[0]
    scores = _score(sgd(known, classes, lr, config.seed), torch.from_numpy(test_MVC).double(), config.average)
    rule = {"epochs": SGD_EPOCHS, "schedule": SGD_DROPS, "batch": SGD_BATCH, "wd": 0}
    return scores, {"lr": lr, "val_top1": tried, **rule}


def usable(shots: Sequence[int], label_N: np.ndarray) -> list[int]:
    """The numbers of ``shots`` for which every class has enough of the training videos with these labels, int64 (N,). Raises
    InputError where there is none."""
    smallest = int(np.unique(label_N, return_counts=True)[1].min())
    found = [count for count in shots if count <= smallest]
    if not found:
        said = " ".join(map(str, shots))
        raise InputError(f"--shots {said}: the smallest class of --train-split has {smallest} videos, expected at most as many")
    return found


def few_shot(known: Labelled, asked: Labelled, classes: int, config: EvalConfig) -> dict[int, np.ndarray]:
    """Which test videos convex probes on ``--shots`` training videos of each class name: shots -> bool (``--draws``, M).

    Draw n takes the first videos of each class in an order that is drawn from (seed, n, class). So the 5 videos of a draw
    include its 1 video. Shots above the size of the smallest class are left out; raises InputError where none is left.
    """
    present = np.unique(known.label)
    found: dict[int, list[np.ndarray]] = {count: [] for count in usable(config.shots, known.label)}
    for draw in range(config.draws):
        order = {
            c: generator("few-shot", config.seed, draw, int(c)).permutation(np.flatnonzero(known.label == c)) for c in present
        }
        for count, right in found.items():
            chosen = np.concatenate([order[c][:count] for c in present])
            few = Labelled(known.value[chosen], known.label[chosen])
            scores = fit_and_score(few, asked.value, classes, config.average)
            right.append(metrics.each_accuracy(scores, asked.label)["top1"])
    return {count: np.stack(right) for count, right in found.items()}
