"""Linear probe: features of the frozen trunk once, then a convex problem solved to its minimum."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dclr import distributed
from dclr.evaluate import EvalConfig, Pooled, over_videos, prepare, save_result
from dclr.hardware import peak_memory_gb, place


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


def linear(config: EvalConfig) -> dict[str, Any]:
    """Extract, fit, test, save; returns the result. Probabilities of a test video's clips are averaged."""
    setting = prepare(config)
    module = place(Pooled(setting.trunk.module), setting.device)
    train_NKC, train_label = over_videos(module, setting, setting.train_N, config.cpv, 1, "train features", lambda f: f)
    test_NKC, test_label = over_videos(
        module, setting, setting.test_N, config.test_clips, config.crops, "test features", lambda f: f
    )
    if distributed.rank() != 0:
        return {}
    probabilities = fit_and_score(train_NKC, train_label, test_NKC, len(setting.classes))
    return save_result(setting, probabilities, test_label, {"peak_memory_gb": round(peak_memory_gb(), 2)})


def fit_and_score(train_NKC: np.ndarray, label_N: np.ndarray, test_MKC: np.ndarray, classes: int) -> np.ndarray:
    """Probe on every clip's features, standardised by the training clips' mean and deviation: probabilities (M, classes)."""
    train = torch.from_numpy(train_NKC).flatten(0, 1).double()
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    labels = torch.from_numpy(np.repeat(label_N, train_NKC.shape[1]))
    layer = logistic_regression((train - mean) / deviation, labels, classes)
    with torch.no_grad():
        scores = layer((torch.from_numpy(test_MKC).double() - mean) / deviation)
        return scores.softmax(2).mean(1).numpy()
