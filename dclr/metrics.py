"""Accuracies from class probabilities, and from which videos lie near which."""

from __future__ import annotations

import numpy as np

RECALLS = (1, 5, 10, 20, 50)


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


def cosines(query_MC: np.ndarray, gallery_NC: np.ndarray) -> np.ndarray:
    """Cosine of each query with each of the gallery: (M, N); 0 for a feature of zeros."""
    gallery, query = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (gallery_NC, query_MC))
    return query @ gallery.T


def knn(gallery_NC: np.ndarray, label_N: np.ndarray, query_MC: np.ndarray, classes: int, k: int = 20) -> np.ndarray:
    """Weighted k-NN (Wu et al., CVPR 2018): scores (M, classes), the sum of exp(cos / 0.07) over the min(k, N) nearest."""
    cosine_MN = cosines(query_MC, gallery_NC)
    nearest_Mk = np.argsort(-cosine_MN, axis=1, kind="stable")[:, : min(k, len(gallery_NC))]
    weights_Mk = np.exp((np.take_along_axis(cosine_MN, nearest_Mk, 1) - 1) / 0.07)
    return np.stack([np.where(label_N[nearest_Mk] == c, weights_Mk, 0).sum(1) for c in range(classes)], 1)


def retrieval(gallery_NC: np.ndarray, label_N: np.ndarray, query_MC: np.ndarray, query_label_M: np.ndarray) -> dict[str, float]:
    """``R@k`` for each k of :data:`RECALLS`: the share of queries with one of their class among the k nearest by cosine.

    Ties go to the earlier of the gallery; a k above the gallery's size takes all of it.
    """
    nearest_MN = np.argsort(-cosines(query_MC, gallery_NC), axis=1, kind="stable")
    hit_MN = label_N[nearest_MN] == query_label_M[:, None]
    return {f"R@{k}": float(hit_MN[:, :k].any(1).mean()) for k in RECALLS}
