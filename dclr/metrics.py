"""Accuracies from class probabilities, and from which videos lie near which."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RECALLS = (1, 5, 10, 20, 50)
KINDS = ("share", "percent", "number")


@dataclass(frozen=True)
class Metric:
    """What a number of a result is.

    Attributes:
        kind: ``share``, a share of the test videos in 0..1, which has an interval and is shown in per cent; ``percent``, any
            other number in 0..1 that is shown in per cent; ``number``, one that is shown as it is.
        title: what tables and pages call it; by default they give its name.
    Raises:
        ValueError: there is no such kind, or the title is no text.

    >>> Metric("share").text(0.125), Metric("number").text(3.14159)
    ('12.5', '3.142')
    """

    kind: str
    title: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS or not isinstance(self.title, str):
            raise ValueError(f"a metric of kind {self.kind!r} and title {self.title!r}: expected {', '.join(KINDS)} and a text")

    @property
    def unit(self) -> str:
        return "" if self.kind == "number" else " %"

    def text(self, value: float) -> str:
        """The number as it is shown, without its unit."""
        if self.kind != "number":
            return f"{100 * value:.1f}"
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"  # a count has all its digits


def interval(share: float, videos: int, z: float = 1.96) -> list[float]:
    """Wilson's 95 % interval [low, high] of a ``share`` of ``videos`` independent draws (Wilson 1927).

    >>> [round(end, 3) for end in interval(0.25, 400)]
    [0.21, 0.295]
    """
    middle = (share + z * z / (2 * videos)) / (1 + z * z / videos)
    half = z / (1 + z * z / videos) * math.sqrt(share * (1 - share) / videos + z * z / (4 * videos * videos))
    return [max(0.0, middle - half), min(1.0, middle + half)]


def confusion(predicted_N: np.ndarray, label_N: np.ndarray, classes: int) -> np.ndarray:
    """Counts (C, C): row the true class, column the named one."""
    return np.bincount(label_N * classes + predicted_N, minlength=classes * classes).reshape(classes, classes)


def confused(counts_CC: np.ndarray, names: Sequence[str], most: int = 20) -> list[dict[str, Any]]:
    """The ``most`` pairs of classes that are confused most often, the greatest count first.

    Each has the class names ``true`` and ``named``, the ``count`` of videos, and their ``share`` of the true class.

    >>> confused(np.array([[3, 1], [0, 4]]), ["walk", "run"])
    [{'true': 'walk', 'named': 'run', 'count': 1, 'share': 0.25}]
    """
    wrong_CC = counts_CC - np.diag(counts_CC.diagonal())
    share_CC = wrong_CC / np.maximum(counts_CC.sum(1, keepdims=True), 1)
    pairs = np.argwhere(wrong_CC)
    order = np.lexsort([-share_CC[*pairs.T], -wrong_CC[*pairs.T]])[:most]
    return [
        {"true": names[t], "named": names[n], "count": int(wrong_CC[t, n]), "share": float(share_CC[t, n])}
        for t, n in pairs[order]
    ]


def means(each: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Numbers by name, each the mean of what every video adds to it, (M,). A video with NaN is not asked."""
    return {name: float(np.nanmean(value_M)) for name, value_M in each.items()}


def accuracies(scores_NC: np.ndarray, label_N: np.ndarray) -> dict[str, float]:
    """``top1``, ``top5`` (top min(5, C)) and ``mean_class`` (mean of per-class top-1 over the classes present), in 0..1.

    Ties go to the lower class index. A label of C or above has no column in the scores: its videos count as wrong.

    >>> accuracies(np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), np.array([0, 1, 1]))
    {'top1': 0.6666666666666666, 'top5': 1.0, 'mean_class': 0.75}
    """
    return means(each_accuracy(scores_NC, label_N))


def each_accuracy(scores_NC: np.ndarray, label_N: np.ndarray) -> dict[str, np.ndarray]:
    """What each video adds to :func:`accuracies`, (N,) by name: 0 or 1, or in ``mean_class`` by its class's size."""
    order = np.argsort(-scores_NC, axis=1, kind="stable")
    hit = order == label_N[:, None]
    _, class_N, count_C = np.unique(label_N, return_inverse=True, return_counts=True)
    share_N = len(label_N) / (len(count_C) * count_C[class_N])
    return {"top1": hit[:, 0], "top5": hit[:, :5].any(1), "mean_class": hit[:, 0] * share_N}


def paired(difference_M: np.ndarray, z: float = 1.96) -> list[float]:
    """The 95 % interval [low, high] of the mean of M differences in -1..1, video by video, between two ways of answering.

    It is the adjusted Wald interval of Bonett and Price (2012), one video more that differs in either direction. So it has a
    width also where few videos, or none, differ.

    >>> [round(end, 3) for end in paired(np.array([1] * 30 + [-1] * 10 + [0] * 60))]
    [0.078, 0.315]
    """
    count = len(difference_M) + 2
    middle = difference_M.sum() / count
    half = z * math.sqrt(((np.square(difference_M).sum() + 2) / count - middle * middle) / count)
    return [max(-1.0, float(middle - half)), min(1.0, float(middle + half))]


def nearest(query_MC: np.ndarray, gallery_NC: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The min(k, N) nearest of the gallery to each query by cosine: places int64 (M, k) and cosines (M, k), nearest first.

    The cosine with a feature of zeros is 0. Ties go to the earlier place. Queries are taken 1,024 at a time, which bounds the
    memory.

    >>> places, cosines = nearest(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [2.0, 0.0]]), k=1)
    >>> places.tolist(), cosines.tolist()
    ([[1]], [[1.0]])
    """
    gallery, query = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (gallery_NC, query_MC))
    found = []
    for start in range(0, len(query), 1024):
        cosine_MN = query[start : start + 1024] @ gallery.T
        place_Mk = np.argsort(-cosine_MN, axis=1, kind="stable")[:, :k]
        found.append((place_Mk, np.take_along_axis(cosine_MN, place_Mk, 1)))
    places, cosines = zip(*found, strict=True)
    return np.concatenate(places), np.concatenate(cosines)


def knn(gallery_NC: np.ndarray, label_N: np.ndarray, query_MC: np.ndarray, classes: int, k: int = 20) -> np.ndarray:
    """Weighted k-NN (Wu et al., CVPR 2018): scores (M, classes), for each class the sum of exp((cos - 1) / 0.07) over those of
    the min(k, N) nearest that have it."""
    place_Mk, cosine_Mk = nearest(query_MC, gallery_NC, k)
    weights_Mk = np.exp((cosine_Mk - 1) / 0.07)
    return np.stack([np.where(label_N[place_Mk] == c, weights_Mk, 0).sum(1) for c in range(classes)], 1)


def retrieval(gallery_NC: np.ndarray, label_N: np.ndarray, query_MC: np.ndarray, query_label_M: np.ndarray) -> dict[str, float]:
    """``R@k`` for each k of :data:`RECALLS`: the share of queries that have one of their class among the k nearest by cosine.

    A k above the gallery's size takes the whole gallery.

    >>> retrieval(np.eye(2), np.array([0, 1]), np.array([[1.0, 0.1]]), np.array([1]))
    {'R@1': 0.0, 'R@5': 1.0, 'R@10': 1.0, 'R@20': 1.0, 'R@50': 1.0}
    """
    return means(each_retrieval(gallery_NC, label_N, query_MC, query_label_M))


def each_retrieval(
    gallery_NC: np.ndarray, label_N: np.ndarray, query_MC: np.ndarray, query_label_M: np.ndarray
) -> dict[str, np.ndarray]:
    """Which queries count for each number of :func:`retrieval`, bool (M,)."""
    place_Mk, _ = nearest(query_MC, gallery_NC, max(RECALLS))
    hit_Mk = label_N[place_Mk] == query_label_M[:, None]
    return {f"R@{k}": hit_Mk[:, :k].any(1) for k in RECALLS}
