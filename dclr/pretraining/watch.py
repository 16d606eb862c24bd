"""Watching a pretraining: whether what it mines is alike, and a k-NN on labelled videos while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import torch

from dclr import distributed, metrics
from dclr.checkpoint import Trunk
from dclr.data.config import Choice
from dclr.data.fetch import Cache, MiddleFrames
from dclr.data.manifest import ShardSet
from dclr.evaluation.setting import EvalConfig, Pooled, Setting, forward, labelled, over_videos
from dclr.figures import MOST_BESIDE, SHOWN, Cell, beside, called
from dclr.method import norm
from dclr.method.model import DCLR
from dclr.pretraining.config import PretrainConfig


class Videos:
    """The labels and frames of the videos whose ids are in a queue: do mined videos resemble their query? Never trained on."""

    def __init__(self, shards: ShardSet, samples_N: np.ndarray, cache: Cache | None = None):
        order = np.argsort(shards.video_N[samples_N], kind="stable")
        self._shards, self._samples = shards, samples_N[order]
        self._frames = MiddleFrames(shards, cache)
        self._ids = shards.video_N[self._samples]
        kinds = list(shards.classes)
        self._label = shards.labels[kinds[0]] if kinds else np.full(len(shards.video_N), -1)
        self._names = shards.classes[kinds[0]] if kinds else []
        several = (kind for kind in kinds if len(np.unique(shards.labels[kind][samples_N])) > 1)  # of one class all are alike
        self._labels = {kind: shards.labels[kind] for kind in several}

    def sample(self, video: torch.Tensor) -> np.ndarray:
        """A sample of each video, int64. An unknown id, which is that of an empty entry, gives any known video's sample."""
        return self._samples[np.searchsorted(self._ids, video.cpu().numpy()).clip(max=len(self._ids) - 1)]

    def alike(self, mined_BK: torch.Tensor, query_B: np.ndarray, entry_K: np.ndarray) -> dict[str, float]:
        """The share of mined positives that have the query's label, for each kind of label that has several classes, over all
        ranks; without a kind that no mined pair is labelled with."""
        mined, counts = mined_BK.cpu().numpy(), []
        for label_N in self._labels.values():
            query_B1, entry_1K = label_N[query_B][:, None], label_N[entry_K][None]
            known = mined & (query_B1 >= 0) & (entry_1K >= 0)
            counts.append((int((known & (query_B1 == entry_1K)).sum()), int(known.sum())))
        sums = np.sum(distributed.joined_objects(counts), axis=0).tolist()
        shares = zip(self._labels, sums, strict=True)
        return {f"contrast/mined_same_{kind}": same / total for kind, (same, total) in shares if total}

    def fetch(self, mined_BK: torch.Tensor, query_B: np.ndarray, entry_K: np.ndarray) -> None:
        """Begin to fetch what :meth:`pictures` will draw."""
        self._frames.begin({sample for row in _shown(mined_BK, query_B, entry_K) for sample in row})

    def pictures(self, mined_BK: torch.Tensor, query_B: np.ndarray, entry_K: np.ndarray) -> list[list[Cell]]:
        """A row for each of up to four queries: its middle frame and those of the videos mined for it, with their classes."""
        rows = _shown(mined_BK, query_B, entry_K)
        try:
            return [beside(self._frames, row, self._label[row].tolist(), self._names) for row in rows]
        finally:
            self._frames.end()

    def names(self, samples_N: np.ndarray) -> list[str]:
        """What pictures call these samples: their classes, or their keys where they have no label."""
        return [called(self._shards, sample, self._label[sample], self._names) for sample in samples_N.tolist()]


def _shown(mined_BK: torch.Tensor, query_B: np.ndarray, entry_K: np.ndarray) -> list[list[int]]:
    """The samples of each row of the picture of neighbours: a query, and those mined for it."""
    pairs = list(zip(query_B, mined_BK.cpu().numpy(), strict=True))[:SHOWN]
    return [[int(query), *entry_K[mined_K][:MOST_BESIDE].tolist()] for query, mined_K in pairs]


def knn_setting(
    config: PretrainConfig, model: DCLR, sets: Sequence[ShardSet], cache: Cache | None, device: torch.device, dtype: torch.dtype
) -> Setting:
    """The evaluation that ``--knn-split`` asks for, on the first set that has that split: what it trains on is the gallery."""
    place = next((place for place, one in enumerate(sets) if set(config.knn_split) <= set(one.splits)), 0)
    shards = sets[place]
    options = EvalConfig(
        mode="knn", shards=config.shards[place], out=config.out, test_split=config.knn_split,
        train_split=tuple(split for split in config.split if split in shards.splits),
        pretrained="in training", test_clips=1, workers=config.workers, on_error=config.on_error,
        stall_minutes=config.stall_minutes,
        max_skipped=config.max_skipped, **{one.name: getattr(config, one.name) for one in fields(Choice)},
    )  # fmt: skip
    trunk, cache = Trunk(model.f_q.backbone, config.arch, config.width, {}), cache if shards.remote else None
    return labelled(options, trunk, "", shards, cache, replace(config.clip, cue=None), device, dtype)


def online_knn(model: DCLR, setting: Setting) -> dict[str, float]:
    """Top-1 and top-5 of the weighted k-NN on f_q's pooled features of one clip a video; every rank calls it."""
    norm.use_view(model.f_q, "v")
    module = Pooled(setting.trunk.module).eval()
    (gallery, known_N), (queries, asked_M) = (
        over_videos(setting, samples, 1, 1, "k-NN", lambda batch: forward(module, setting, batch["rgb"][0])[0])
        for samples in (setting.train_N, setting.test_N)
    )
    model.train()
    scores = metrics.knn(gallery, setting.label(known_N), queries, setting.classes.known)
    return {f"knn/{name}": value for name, value in metrics.accuracies(scores, setting.label(asked_M)).items()}
