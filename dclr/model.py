"""Dual contrastive learning: f_q is trained, f_k follows, five contrasts pull RGB towards what is still and what moves.

Reads like shared/method.md. Legend: B videos of this rank, C' channels, T' H' W' the feature map, D = 128, K queue entries.
Views of a clip: v RGB, s static, d dynamic. Embeddings: vv, vs, vd from the RGB clip, sv and dv from the other two.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from dclr import losses, norm
from dclr.backbones import build
from dclr.distributed import joined
from dclr.queue import RINGS, Queue

MOMENTUM = 0.999
MINED = 5
HEADS = ("vv", "vs", "vd", "sv", "dv")
Views = Mapping[str, torch.Tensor]  # v, s, d, each (B, 3, T, H, W)


class Encoder(nn.Module):
    """A trunk with five heads, Linear(C', 512)-ReLU-Linear(512, D). BatchNorm keeps statistics a view (dclr/norm.py)."""

    def __init__(self, arch: str, width: int = 64, dimensions: int = 128):
        super().__init__()
        self.backbone = norm.convert(build(arch, width))
        channels = self.backbone.channels
        self.heads = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(channels, 512), nn.ReLU(inplace=True), nn.Linear(512, dimensions)) for name in HEADS}
        )

    def features(self, clip_BCTHW: torch.Tensor, view: str = "v", track: bool = True) -> torch.Tensor:
        """F(x), (B, C', T', H', W'), of clips that are view ``view``."""
        norm.use_view(self, view, track)
        return self.backbone(clip_BCTHW)

    def head(self, name: str, features_BCTHW: torch.Tensor, map_BTHW: torch.Tensor | None = None) -> torch.Tensor:
        """L2-normalised embedding (B, D) of the pooled features, weighted position by position by a mean-1 map."""
        features = losses.at_least_float32(features_BCTHW)
        if map_BTHW is not None:
            features = features * map_BTHW.unsqueeze(1)
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(self.heads[name](features.mean((2, 3, 4))), dim=1)

    def embed(self, views: Views, maps: Mapping[str, torch.Tensor] | None = None) -> tuple[dict[str, torch.Tensor], Views]:
        """The five embeddings (B, D) and the raw maps A(v), A(s), A(d) (B, T', H', W') of one clip's views.

        ``maps`` are the mean-1 maps of s and d that decouple v; without them they are this encoder's own, detached.
        """
        features = {name: self.features(views[name], name) for name in "vsd"}
        raw = {name: losses.activation_map(features[name]) for name in "vsd"}
        if maps is None:
            maps = {name: losses.mean_one(raw[name]).detach() for name in "sd"}
        embedded = {
            "vv": self.head("vv", features["v"]),
            "vs": self.head("vs", features["v"], maps["s"]),
            "vd": self.head("vd", features["v"], maps["d"]),
            "sv": self.head("sv", features["s"]),
            "dv": self.head("dv", features["d"]),
        }
        return embedded, raw


@dataclass(frozen=True)
class Output:
    """One step's results: ``total`` to go backward from, its ``terms`` and ``stats`` (scalars, no gradient), and the joined
    ``keys`` (ring -> (n B, D)) and ``video`` (n B,) to enqueue after the optimiser."""

    total: torch.Tensor
    terms: dict[str, torch.Tensor]
    stats: dict[str, torch.Tensor]
    keys: dict[str, torch.Tensor]
    video: torch.Tensor


class DCLR(nn.Module):
    """The two encoders and the queue. A step is :meth:`forward`, backward, optimiser, ``queue.enqueue``."""

    def __init__(self, arch: str, width: int, queue_length: int, precision: torch.dtype = torch.float32):
        super().__init__()
        self.f_q = Encoder(arch, width)
        self.f_k = copy.deepcopy(self.f_q)
        self.f_k.requires_grad_(False)
        self.queue = Queue(queue_length)
        self.precision = precision

    @torch.no_grad()
    def follow(self) -> None:
        """f_k <- m f_k + (1 - m) f_q, parameters with the heads; BatchNorm's buffers are f_k's own."""
        for key, query in zip(self.f_k.parameters(), self.f_q.parameters(), strict=True):
            key.lerp_(query, 1 - MOMENTUM)

    def forward(self, q: Views, k: Views, video_B: torch.Tensor) -> Output:
        """Losses of a batch: ``q`` and ``k`` are the views of each video's two clips, ``video_B`` int64 ids."""
        self.follow()
        device = video_B.device.type
        with torch.autocast(device, self.precision, enabled=self.precision != torch.float32):
            with torch.no_grad():
                key, _ = self.f_k.embed(k)  # its maps come out of its own pass
                still = self.f_k.features(q["s"], "s", track=False)  # the one extra pass: the query clip's s and d
                moving = self.f_k.features(q["d"], "d", track=False)
                static_map, dynamic_map = losses.activation_map(still), losses.activation_map(moving)
                scene_BD, motion_BD = self.f_k.head("sv", still), self.f_k.head("dv", moving)
            maps = {"s": losses.mean_one(static_map), "d": losses.mean_one(dynamic_map)}
            query, raw = self.f_q.embed(q, maps)

        allowed_BK = self.queue.allowed(video_B)
        p_s = losses.neighbour_probability(scene_BD, self.queue["sv"], allowed_BK)
        p_d = losses.neighbour_probability(motion_BD, self.queue["dv"], allowed_BK)
        full = self.queue.valid_K.all()  # mining is off until every entry is valid
        alike, scene, motion = (losses.mine(p, allowed_BK, MINED) & full for p in (p_s + p_d, p_s, p_d))

        pairs = {  # loss: (key's ring, mined positives)
            "vv": ("vv", alike),
            "vs": ("sv", scene),
            "vd": ("dv", motion),
            "sv": ("vs", scene),
            "dv": ("vd", motion),
        }
        terms, stats = {}, {}
        for name, (ring, mined_BK) in pairs.items():
            own_B1, queue_BK = losses.logits(query[name], key[ring], self.queue[ring])
            terms[f"L_{name}"] = losses.contrast(own_B1, queue_BK, allowed_BK, mined_BK)
            beaten = (own_B1 > queue_BK.masked_fill(~allowed_BK, float("-inf"))).all(1)
            stats[f"top1_{name}"] = beaten.float().mean().detach()
        terms["align"] = losses.ALIGNMENT_WEIGHT * losses.alignment(raw["v"], static_map, dynamic_map)
        total = torch.stack(list(terms.values())).sum()
        stats |= {"queue_fill": self.queue.valid_K.float().mean(), "mined": alike.float().sum(1).mean()}
        return Output(
            total,
            {name: term.detach() for name, term in terms.items()},
            stats,
            {ring: joined(key[ring]) for ring in RINGS},
            joined(video_B),
        )
