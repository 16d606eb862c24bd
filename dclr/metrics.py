"""Accuracies from class probabilities."""

from __future__ import annotations

import numpy as np


def confusion(predicted_N: np.ndarray, label_N: np.ndarray, classes: int) -> np.ndarray:
    """Counts (C, C): row the true class, column the named one."""
    return np.bincount(label_N * classes + predicted_N, minlength=classes * classes).reshape(classes, classes)


def accuracies(scores_NC: np.ndarray, label_N: np.ndarray) -> dict[str, float]:
    """``top1``, ``top5`` (top min(5, C)) and ``mean_class`` (mean of per-class top-1 over the classes present), in 0..1.

    Ties go to the lower class index.
    """
    order = np.argsort(-scores_NC, axis=1, kind="stable")
    hit = order == label_N[:, None]
    correct = hit[:, 0]
    per_class = [correct[label_N == c].mean() for c in np.unique(label_N)]
    return {
        "top1": float(correct.mean()),
        "top5": float(hit[:, :5].any(1).mean()),
        "mean_class": float(np.mean(per_class)),
    }
