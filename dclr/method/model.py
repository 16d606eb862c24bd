"""Dual contrastive learning: f_q is trained, f_k follows, five contrasts pull RGB towards what is still and what moves.

Reads like docs/method.md. Legend: B videos of this rank, C' channels, T' H' W' the feature map, D = 128, K queue entries.
Views of a clip: v RGB, s static, d dynamic. Embeddings: vv, vs, vd from the RGB clip, sv and dv from the other two. A method
without one of the views has neither its embeddings nor its contrasts; with v alone it is MoCo-v2 on video.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, cast, overload

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from dclr.distributed import joined_at_once, permuted, total, world
from dclr.draws import generator
from dclr.errors import InputError
from dclr.hardware import sent
from dclr.method import losses, norm, still
from dclr.method.backbones.layers import Backbone
from dclr.method.backbones.resnet import VideoResNet
from dclr.method.objective import FORMS, MINERS, RINGS, Method
from dclr.method.queue import Queue

Views = Mapping[str, torch.Tensor]  # v, s, d, each (B, 3, T, H, W)
Embeddings = dict[str, torch.Tensor]  # each (B, D)
Maps = dict[str, torch.Tensor]  # of views, each (B, T', H', W')
Keys = tuple[Embeddings, Embeddings, Maps, Maps]  # see DCLR.keys
FLOW_RATE = 0.01  # at which the mean squares of the flow follow a batch's


class Encoder(nn.Module):
    """A trunk, and a head Linear(C', 512)-ReLU-Linear(512, D) for each embedding. BatchNorm is as ``statistics`` says."""

    def __init__(
        self,
        backbone: Backbone,
        embeddings: tuple[str, ...] = RINGS,
        statistics: norm.Statistics | None = None,
        dimensions: int = 128,
        init: str = "torch",
    ):
        super().__init__()
        self.statistics = statistics or norm.Statistics()
        self.checkpointed, self.distinct = False, True  # distinct: False computes equal frames again, to compare
        self.backbone = norm.convert(backbone, self.statistics)
        self.heads = nn.ModuleDict()
        for name in embeddings:
            layers = nn.Linear(backbone.channels, 512), nn.ReLU(inplace=True), nn.Linear(512, dimensions)
            self.heads[name] = nn.Sequential(*layers)
            for layer in layers[::2] if init == "authors" else ():
                nn.init.normal_(layer.weight, 0, 0.01)
                nn.init.zeros_(layer.bias)

    @overload
    def features(self, views: torch.Tensor, track: bool = ...) -> torch.Tensor: ...

    @overload
    def features(self, views: Views, track: bool = ...) -> dict[str, torch.Tensor]: ...

    def features(self, views: torch.Tensor | Views, track: bool = True) -> torch.Tensor | dict[str, torch.Tensor]:
        """F(x), (B, C', T', H', W'), of every view, or of RGB clips alone, (B, 3, T, H, W). ``track`` says whether BatchNorm's
        running statistics are updated."""
        if isinstance(views, torch.Tensor):
            return self.features({"v": views}, track)["v"]
        if self.statistics.views == "split":
            return {name: self._run(clip, name, track) for name, clip in views.items()}
        together = torch.stack(list(views.values()), 1).flatten(0, 1)  # video by video, so that a group has whole ones
        found = self._run(together.contiguous(memory_format=torch.channels_last_3d), "".join(views), track)
        return dict(zip(views, found.unflatten(0, (-1, len(views))).unbind(1), strict=True))

    def _run(self, clip_BCTHW: torch.Tensor, view: str, track: bool) -> torch.Tensor:
        """Run the trunk, over the distinct frames of a clip whose frames are all one (dclr/method/still.py). With checkpointed
        gradients the backward pass computes each stage once more."""
        norm.use_view(self, view, track)
        again = self.checkpointed and torch.is_grad_enabled()
        alike = still.is_still(clip_BCTHW)
        if alike and self.distinct and self.backbone.kind is VideoResNet:
            frames = still.compact(clip_BCTHW)
            for stage in self.backbone.children():
                frames = self._again(partial(still.run, stage), frames, view) if again else still.run(stage, frames)
            return still.stretch(frames, frames.times)
        x = clip_BCTHW.contiguous(memory_format=torch.channels_last_3d) if alike else clip_BCTHW
        if not again:
            return self.backbone(x)
        for stage in self.backbone.children():  # every trunk is its children, one after the other
            x = self._again(stage, x, view)
        return x

    def _again(self, stage: Callable[..., Any], x: Any, view: str) -> Any:
        """What ``stage`` gives; the backward pass computes it once more."""
        contexts = lambda: (nullcontext(), norm.again(self.backbone, view))  # noqa: E731
        return checkpoint(stage, x, use_reentrant=False, context_fn=contexts)

    def head(self, name: str, features_BCTHW: torch.Tensor, map_BTHW: torch.Tensor | None = None) -> torch.Tensor:
        """L2-normalised embedding (B, D) of the pooled features, weighted position by position by a mean-1 map."""
        features = losses.at_least_float32(features_BCTHW)
        if map_BTHW is not None:
            features = features * map_BTHW.unsqueeze(1)  # BC'T'H'W' * B1T'H'W'
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(self.heads[name](features.mean((2, 3, 4))), dim=1)

    def forward(self, views: Views, maps: Maps | None = None, track: bool = True) -> tuple[Embeddings, Maps]:
        """The embeddings (B, D) that the views allow, and the raw activation maps A (B, T', H', W') of the views.

        ``maps`` are the mean-1 maps by view that weight the RGB features in vs and vd. Where a view has no map, its weights are
        1. By default the maps are this encoder's own, without gradient.
        """
        return encode(dict.fromkeys(views, self), views, maps, track)

    def embed(self, v: torch.Tensor, s: torch.Tensor, d: torch.Tensor) -> dict[str, torch.Tensor]:
        """The five embeddings vv, vs, vd, sv, dv (B, D), L2-normalised, of three views (B, 3, T, H, W) of the same clips.
        Raises InputError where the checkpoint had no such heads."""
        if set(self.heads) != set(RINGS):
            raise InputError(f"this encoder has the heads {', '.join(self.heads) or 'none'}: embed needs {', '.join(RINGS)}")
        return self({"v": v, "s": s, "d": d})[0]

    def map(self, x: torch.Tensor, view: str = "v") -> torch.Tensor:
        """The mean-1 activation map (B, T', H', W') of clips (B, 3, T, H, W) that are view ``view``."""
        return losses.mean_one(losses.activation_map(self.features({view: x}, track=False)[view]))


def encode(by: Mapping[str, Encoder], views: Views, maps: Maps | None = None, track: bool = True) -> tuple[Embeddings, Maps]:
    """:meth:`Encoder.forward` where each view has an encoder of its own, ``by`` its name; the heads are those of the view that
    an embedding's features are of."""
    features: dict[str, torch.Tensor] = {}
    for encoder in dict.fromkeys(by.values()):
        features |= encoder.features({name: clip for name, clip in views.items() if by[name] is encoder}, track)
    return read(by, features, maps)


def read(by: Mapping[str, Encoder], features: Mapping[str, torch.Tensor], maps: Maps | None) -> tuple[Embeddings, Maps]:
    """The embeddings and raw maps of :func:`encode`, out of the features of each view."""
    raw = {name: losses.activation_map(x) for name, x in features.items()}
    if maps is None:
        maps = {name: losses.mean_one(a).detach() for name, a in raw.items() if name != "v"}
    # the first letter names the features, the second the map: vs is F(v) where A(s) lies, and sv is F(s)
    allowed = [ab for ab in next(iter(by.values())).heads if ab[0] in by and (ab[0] != "v" or ab[1] in by)]
    return {ab: by[ab[0]].head(ab, features[ab[0]], maps.get(ab[1])) for ab in allowed}, raw


@dataclass(frozen=True)
class Output:
    """The results of one step.

    Attributes:
        total: the loss, to go backward from. terms, stats: scalars by name, without gradient.
        keys: what :meth:`DCLR.enqueue` takes after the optimiser: ring -> (B, D) of this rank; a symmetric method has one such
            table for each side.
        video: int64 (B,), the ids of the keys' videos. mined: bool (B, K), the positives of vv.
    """

    total: torch.Tensor
    terms: dict[str, torch.Tensor]
    stats: dict[str, torch.Tensor]
    keys: tuple[dict[str, torch.Tensor], ...]
    video: torch.Tensor
    mined: torch.Tensor


class DCLR(nn.Module):
    """The encoders and the queue. A step is :meth:`forward`, backward, optimiser, :meth:`enqueue`.

    ``followers`` are the copies of f_q beside f_k, one for each momentum that the method names."""

    flow_power: torch.Tensor

    def __init__(
        self,
        backbone: Backbone,
        queue_length: int,
        method: Method | None = None,
        statistics: norm.Statistics | None = None,
        precision: torch.dtype = torch.float32,
        cells: tuple[int, int, int] = (1, 1, 1),
    ):
        """``cells`` are T' H' W', in which a cue that mines is pooled."""
        super().__init__()
        self.method, self.cells = method or Method(), cells
        self.momentum, self.flow_weight = self.method.momentum, self.method.flow_weight  # of the next step: schedules set them
        self.f_q = Encoder(backbone, self.method.embeddings, statistics, self.method.dim, self.method.head_init)
        self.f_k = copy.deepcopy(self.f_q).requires_grad_(False)
        others = sorted({self.method.follower(who) for who in self.method.momenta} - {"v"})
        self.followers = nn.ModuleDict({who: copy.deepcopy(self.f_k) for who in others})
        descriptor = MINERS[self.method.cue] * math.prod(cells) if self.method.cue else 0
        self.queue = Queue(queue_length, self.method.rings, self.method.dim, descriptor)
        if self.method.flow_weight:
            self.predictor = nn.Conv3d(backbone.channels, 2 * losses.FLOW_STEPS, 1)
            self.register_buffer("flow_power", torch.zeros(2))  # of a cell, and of the picture's mean
        self.precision = precision

    @torch.no_grad()
    def follow(self) -> None:
        """f_k <- m f_k + (1 - m) f_q, parameters with the heads; BatchNorm's buffers are f_k's own. The other followers so too,
        each with its momentum."""
        momenta = {who: m for who, m in self.method.momenta.items() if m is not None} | {"v": self.momentum}
        for who in ("v", *self.followers):
            for key, query in zip(self.follower(who).parameters(), self.f_q.parameters(), strict=True):
                key.lerp_(query, 1 - momenta[who])

    def follower(self, who: str) -> Encoder:
        """The encoder that passes a view, or m: that mines."""
        first = self.method.follower(who)
        return self.f_k if first == "v" else cast(Encoder, self.followers[first])

    def forward(self, q: Views, k: Views, video_B: torch.Tensor, step: int = 0, follow: bool = True) -> Output:
        """The losses of a batch.

        Args:
            q, k: the views of each video's two clips, and where a stored cue mines or is predicted it as c, (B, C, T, H, W).
            video_B: int64 ids, on the CPU, where the draws are made.
            step: what the draws of ``shuffle`` and ``masked`` depend on.
            follow: f_k first follows f_q. False for all parts but the first of a batch that is taken in parts.
        """
        if follow:
            self.follow()
        q, k = ({name: views[name] for name in self.method.inputs} for views in (q, k))
        with self.autocast(q["v"].device), torch.no_grad():
            found = self.keys(q, k, step)
            sides = list(zip((q, k), found, strict=False))  # one, or where it is symmetric two
            if self.method.in_batch:
                self._put([keys for keys, *_ in found], video_B)
        terms, stats, keys, mined = zip(*(self.one_way(*side, video_B, step) for side in sides), strict=True)
        mean_terms, mean_stats = (
            {name: torch.stack([side[name] for side in found]).mean(0) for name in found[0]} for found in (terms, stats)
        )
        return Output(
            torch.stack(list(mean_terms.values())).sum(),
            {name: term.detach() for name, term in mean_terms.items()},
            mean_stats,
            keys,
            sent(video_B, q["v"].device),
            mined[0],
        )

    def enqueue(self, parts: Sequence[Output]) -> None:
        """Put the keys of a batch, taken whole or in parts, into the queue, unless ``in_batch`` had them put there before."""
        if not self.method.in_batch:
            sides = range(len(parts[0].keys))
            keys = [
                {ring: torch.cat([part.keys[side][ring] for part in parts]) for ring in parts[0].keys[side]} for side in sides
            ]
            self._put(keys, torch.cat([part.video for part in parts]))

    def _put(self, keys: Sequence[Embeddings], video_B: torch.Tensor) -> None:
        """Put the keys (B, D) of each side into the queue, in joined-batch order, rank 0's first."""
        names = [(side, ring) for side, its in enumerate(keys) for ring in its]
        video, *every = joined_at_once(sent(video_B, self.queue.valid_K.device), *(keys[side][ring] for side, ring in names))
        for side in range(len(keys)):
            self.queue.enqueue({ring: x for (of, ring), x in zip(names, every, strict=True) if of == side}, video)

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32)

    def one_way(
        self, q: Views, keys: Keys, video_B: torch.Tensor, step: int
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Embeddings, torch.Tensor]:
        """With ``q`` as the query clip and what f_k gives for it: the terms of the loss, statistics, the keys of the other clip
        (B, D) a ring, and which entries were mined for vv, bool (B, K)."""
        method, device, (key, extra, own_maps, key_maps) = self.method, q["v"].device, keys
        target = own_maps if method.align_maps == "query" else key_maps
        with self.autocast(device):
            maps = {name: losses.mean_one(a) for name, a in own_maps.items()} if method.decoupling else {}
            features = self.f_q.features({name: q[name] for name in method.views})
            query, raw = read(dict.fromkeys(features, self.f_q), features, maps)

        allowed_BK = self.queue.allowed(sent(video_B, device))
        p = {  # p_s, p_d and p_c
            one: losses.neighbour_probability(extra[ring], self.queue[ring], allowed_BK, method.mining_temperature)
            for one, ring in method.mining.items()
        }
        full = self.queue.valid_K.all()  # mining is off until every entry is valid
        draw = cache(lambda: self.draws(video_B, step))
        terms, stats = {}, {"queue_fill": self.queue.valid_K.float().mean()}
        stats |= {f"entropy_{name}": losses.map_entropy(a.detach()) for name, a in raw.items()}
        for ab in method.embeddings:
            ba = ab[::-1]  # vs is pulled towards the key sv and away from the queue of sv, and sv towards vs
            score_BK = sum((p[one] for one in method.mined_by(ab)), torch.zeros(allowed_BK.shape, device=device))
            mined_BK = losses.mine(score_BK, allowed_BK, method.mined) & full
            own = extra[ba] if method.dynamic_key == "same" and "d" in ab else key[ba]
            own_B1, queue_BK = losses.logits(query[ab], own, self.queue[ba], method.temperature)
            loss = losses.contrast(own_B1, queue_BK, allowed_BK, mined_BK, FORMS[method.loss], draw)
            terms[f"L_{ab}"] = method.weight(ab) * loss
            better_B = (queue_BK >= own_B1).logical_and(allowed_BK).sum(1)
            stats |= {f"top{n}_{ab}": (better_B < n).float().mean() for n in (1, 5)}
            if ab == "vv":
                alike_BK = mined_BK
        if target and method.alignment:
            terms["align"] = method.alignment * losses.alignment(raw["v"], list(target.values()), method.align_target)
        if method.flow_weight:
            predicted = self.predictor(losses.at_least_float32(features["v"]))
            terms["flow"] = self.flow_weight * self.flow_error(predicted, q["c"])
        stats["mined"] = alike_BK.float().sum(1).mean()
        return terms, stats, key, alike_BK

    def flow_error(self, predicted_BCTHW: torch.Tensor, flow_B2THW: torch.Tensor) -> torch.Tensor:
        """The mean square of what was predicted less the flow, and that of its means over the picture, averaged: a scalar.

        Each is divided by the flow's own mean square over the batches so far, cell by cell or of its means. So it is 1 where no
        motion is predicted, and neither the head's first weights nor AdamW's steps depend on the picture's size."""
        cells = losses.flow_cells(flow_B2THW, predicted_BCTHW.shape[2:])
        power_2 = total(torch.stack([cells.square().mean(), cells.mean((3, 4)).square().mean()])) / world()
        self.flow_power.copy_(torch.where(self.flow_power > 0, self.flow_power.lerp(power_2, FLOW_RATE), power_2))
        cell, picture = self.flow_power.clamp(min=1e-6)
        error = predicted_BCTHW - cells / cell.sqrt()
        return (error.square().mean() + error.mean((3, 4)).square().mean() * cell / picture) / 2

    def keys(self, q: Views, k: Views, step: int) -> list[Keys]:
        """What f_k, or the view's own follower, gives for the query clip ``q``, and in a symmetric method then for ``k`` as the
        query clip: the other clip's embeddings; those of the query clip's s and d, vd too where its dynamic key is its own; raw
        maps of the query clip's s and d, and of the other clip's. Where another encoder mines, its embeddings ms and md are
        among both clips', and where a cue does, the descriptors c.

        The other clip's maps come out of its own pass. The query clip's s and d need one extra pass, which updates no running
        statistics. With statistics for each view the two passes are the same arithmetic: so a symmetric method passes each clip
        once. With ``--bn-views shared`` the key pass normalises v, s and d together, and the extra pass s and d alone.
        """
        passed = self.method.views + "c" * (self.method.cue is not None)
        q, k = ({name: views[name] for name in passed} for views in (q, k))
        sides = [(q, k), (k, q)] if self.method.symmetric else [(q, k)]
        whole = [self.passed(key, step) for _, key in sides]
        if len(sides) == 2 and self.f_k.statistics.views == "split":
            extra = whole[::-1]
        else:
            others = q.keys() if self.method.dynamic_key == "same" else q.keys() - {"v"}
            extra = [self.passed({name: query[name] for name in q if name in others}, step, track=False) for query, _ in sides]
        names = self.method.views[1:]
        return [
            (key, more, {name: own_maps[name] for name in names}, {name: key_maps[name] for name in names})
            for (key, key_maps), (more, own_maps) in zip(whole, extra, strict=True)
        ]

    def passed(self, views: Views, step: int, track: bool = True) -> tuple[Embeddings, Maps]:
        """A pass of f_k and of the other followers. With ``--bn shuffle`` they see whole videos of the joined batch in another
        order, and the results are put back in place (fault 2)."""
        if not views:  # the extra pass of a method with v alone
            return {}, {}
        order = inverse = None
        if self.f_k.statistics.mode == "shuffle":
            batch = len(next(iter(views.values())))
            drawn = generator("shuffle", self.method.seed, step).permutation(batch * world())
            order = sent(torch.from_numpy(drawn), self.queue.valid_K.device)
            inverse = order.argsort()
        maps: Maps | None = None if self.method.decoupling else {}
        clips = {name: permuted(view, order) for name, view in views.items() if name != "c"}
        embedded, raw = encode({name: self.follower(name) for name in clips}, clips, maps, track)
        if apart := {view: clips[view] for view, ring in self.method.mining.items() if ring == f"m{view}"}:
            mining, _ = self.follower("m")(apart, {}, track)
            embedded |= {f"m{view}": mining[f"{view}v"] for view in apart}
        embedded, raw = ({name: permuted(x, inverse) for name, x in part.items()} for part in (embedded, raw))
        return embedded | ({"c": losses.descriptor(views["c"], self.cells)} if "c" in views else {}), raw

    def draws(self, video_B: torch.Tensor, step: int) -> torch.Tensor:
        """What a form of the contrast draws with: in 0..1 for each video, float64 (B,), drawn from (seed, step, video)."""
        draws = [generator("masked", self.method.seed, step, video).random() for video in video_B.tolist()]
        return sent(torch.tensor(draws, dtype=torch.float64), self.queue.valid_K.device)
