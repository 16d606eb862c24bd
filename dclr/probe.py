"""What frozen features are good for: a linear probe, k-NN, retrieval, and a probe on few videos a class."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dclr import metrics
from dclr.data.plan import generator
from dclr.errors import InputError
from dclr.evaluate import EvalConfig, prepare, save_result
from dclr.features import Features, extract
from dclr.hardware import peak_memory_gb


def frozen(config: EvalConfig) -> dict[str, Any]:
    """Extract, try, save; returns the result. On video level (k-NN, retrieval) a video is the mean of its clips' features; the
    probes see every clip, and the probabilities of a test video's clips are averaged."""
    setting = prepare(config)
    features = extract(setting)
    if features is None:
        return {}
    classes, extra = len(setting.classes), {"peak_memory_gb": round(peak_memory_gb(), 2)}
    train_NC, test_MC = features.train_NVC.mean(1), features.test_MVC.mean(1)
    if config.mode == "retrieval":
        numbers = metrics.retrieval(train_NC, features.train_label_N, test_MC, features.test_label_M)
        return save_result(setting, numbers, len(test_MC), extra)
    if config.mode == "fewshot":
        shots = few_shot(features, classes, config.shots, config.draws, config.seed)
        numbers = {f"{count}-shot": float(np.mean(found)) for count, found in shots.items()}
        deviations = {f"{count}-shot": float(np.std(found, ddof=1)) for count, found in shots.items() if config.draws > 1}
        return save_result(setting, numbers, len(test_MC), extra | {"deviation": deviations, "draws": shots})
    if config.mode == "knn":
        scores = metrics.knn(train_NC, features.train_label_N, test_MC, classes)
    else:
        scores = fit_and_score(features.train_NVC, features.train_label_N, features.test_MVC, classes)
    return save_result(setting, scores, len(test_MC), extra, features.test_label_M)


def logistic_regression(features_NC: torch.Tensor, label_N: torch.Tensor, classes: int, c: float = 1.0) -> nn.Linear:
    """The minimum of mean cross entropy + |W|^2 / (2 c N), bias not penalised, by L-BFGS in float64 from zero.

    Convex with one minimum, so there is no seed and no learning rate. ``c`` is the inverse strength, as in liblinear.
    """
    x, y = features_NC.double(), label_N
    layer = nn.Linear(x.shape[1], classes).double()
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
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


def fit_and_score(train_NVC: np.ndarray, label_N: np.ndarray, test_MVC: np.ndarray, classes: int) -> np.ndarray:
    """Probe on every clip's features, standardised by the training clips' mean and deviation: probabilities (M, classes)."""
    train = torch.from_numpy(train_NVC).flatten(0, 1).double()
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    labels = torch.from_numpy(np.repeat(label_N, train_NVC.shape[1]))
    layer = logistic_regression((train - mean) / deviation, labels, classes)
    with torch.no_grad():
        scores = layer((torch.from_numpy(test_MVC).double() - mean) / deviation)
        return scores.softmax(2).mean(1).numpy()


def few_shot(features: Features, classes: int, shots: tuple[int, ...], draws: int, seed: int) -> dict[int, list[float]]:
    """Top-1 of probes on ``shots`` training videos of each class, for each of ``draws`` draws: shots -> ``draws`` accuracies.

    Draw n takes the first videos of each class in an order from (seed, n, class), so that 5 videos hold the 1 of the same draw.
    Shots above the smallest class are left out; raises InputError where that is all of them.
    """
    label_N = features.train_label_N
    present = np.unique(label_N)
    smallest = min(int((label_N == c).sum()) for c in present)
    found: dict[int, list[float]] = {count: [] for count in shots if count <= smallest}
    if not found:
        raise InputError(f"--shots {' '.join(map(str, shots))}: the smallest class of --train-split has {smallest} videos")
    for draw in range(draws):
        order = {c: generator("few-shot", seed, draw, int(c)).permutation(np.flatnonzero(label_N == c)) for c in present}
        for count, accuracies in found.items():
            chosen = np.concatenate([order[c][:count] for c in present])
            scores = fit_and_score(features.train_NVC[chosen], label_N[chosen], features.test_MVC, classes)
            accuracies.append(metrics.accuracies(scores, features.test_label_M)["top1"])
    return found
