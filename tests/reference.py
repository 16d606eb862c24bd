"""One training step as docs/method.md says it, written to be checked by eye: float64, loops over videos, no code of dclr.

The momentum update, the five embeddings, the maps, mining, the losses, alignment, the total and (by autograd) every gradient of
f_q, and the queues. Parameters are plain dicts by name: ``backbone.conv1.weight`` ... of a backbone of two convolutions,
``heads.vv.0.weight`` ... of the heads.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import torch

Tensor = torch.Tensor
Parameters = dict[str, Tensor]
Clips = dict[str, Tensor]  # view -> (N, 3, T, H, W)
Groups = list[list[int]]  # videos whose clips share BatchNorm's statistics


@dataclass
class Rings:
    """The queue: an entry is None until something is put there."""

    length: int
    cursor: int
    video: list[int | None]
    keys: dict[str, list[Tensor]]

    def put(self, keys: dict[str, list[Tensor]], videos: list[int]) -> None:
        for n, video in enumerate(videos):  # one after another, so the last K of a larger batch stay
            self.video[self.cursor] = video
            for ring, entries in self.keys.items():
                entries[self.cursor] = keys[ring][n]
            self.cursor = (self.cursor + 1) % self.length


@dataclass
class Options:
    views: str = "vsd"
    k: int = 5
    loss: str = "mil"
    dropped: set[int] = field(default_factory=set)  # videos whose own key leaves, of loss "masked"
    decoupling: bool = True
    alignment: float = 0.1
    target: str = "sum"  # of alignment: sum, equal or raw
    key_target: bool = False  # it is of the maps of the key clip
    shared: bool = False  # BatchNorm's statistics over all views together
    momentum: float = 0.999
    tau: float = 0.07
    mining_tau: float = 0.07
    weights: dict[str, float] = field(default_factory=dict)  # of s and d: what their contrasts count
    same: bool = False  # the dynamic key is of the query clip, not of the key clip
    mine_by: str = "both"
    # of s, d and m, what mines: an encoder of its own in the place of f_k, and its momentum
    followers: dict[str, tuple[Parameters, float]] = field(default_factory=dict)
    in_batch: bool = False  # the keys are enqueued before the contrasts, not after
    flow: float = 0.0  # weight of predicting the query clip's flow, and its running mean square
    flow_power: list[Tensor] = field(default_factory=list)


def batch_norm(x: Clips, weight: Tensor, bias: Tensor, groups: Groups, shared: bool) -> Clips:
    out = {view: torch.empty_like(clips) for view, clips in x.items()}
    for group in groups:
        for views in [list(x)] if shared else [[view] for view in x]:
            for c in range(len(weight)):
                values = torch.cat([x[view][n, c].flatten() for view in views for n in group])
                mean = values.sum() / len(values)
                var = ((values - mean) ** 2).sum() / len(values)
                for view in views:
                    for n in group:
                        out[view][n, c] = (x[view][n, c] - mean) / torch.sqrt(var + 1e-5) * weight[c] + bias[c]
    return out


def feature_maps(p: Parameters, clips: Clips, groups: Groups, shared: bool) -> Clips:
    """F(x) of every view: (N, C', T', H', W')."""
    x = clips
    for layer, stride in ((1, 1), (2, 2)):
        convolved = {v: torch.conv3d(c, p[f"backbone.conv{layer}.weight"], None, stride, 1) for v, c in x.items()}
        normal = batch_norm(convolved, p[f"backbone.bn{layer}.weight"], p[f"backbone.bn{layer}.bias"], groups, shared)
        x = {view: value.clamp(min=0) for view, value in normal.items()}
    return x


def by_followers(by: dict[str, Parameters], clips: Clips, groups: Groups, shared: bool) -> Clips:
    """:func:`feature_maps` of each view by its own encoder. Where views share statistics they share the encoder of v."""
    if shared:
        return feature_maps(by["v"], clips, groups, shared)
    return {view: feature_maps(by[view], {view: x}, groups, shared)[view] for view, x in clips.items()}


def activation(features: Tensor) -> Tensor:
    """A of one video: (C', T', H', W') -> (T', H', W')."""
    return features.sum(0)


def mean_one(a: Tensor) -> Tensor:
    return a / (a.sum() / a.numel() + 1e-6)


def embedding(p: Parameters, name: str, features: Tensor, weights: Tensor | None = None) -> Tensor:
    """g(GAP(F * map)) of one video, L2-normalised: (D,)."""
    pooled = []
    for channel in features:
        weighted = channel if weights is None else channel * weights
        pooled.append(weighted.sum() / channel.numel())
    hidden = (p[f"heads.{name}.0.weight"] @ torch.stack(pooled) + p[f"heads.{name}.0.bias"]).clamp(min=0)
    out = p[f"heads.{name}.2.weight"] @ hidden + p[f"heads.{name}.2.bias"]
    return out / torch.sqrt((out**2).sum())


def descriptor(cue: Tensor, cells: list[int]) -> Tensor:
    """Means of one clip's cue (C, T, H, W) over boxes, as one vector of length 1, or 0."""
    found = []
    for channel in cue:
        for place in itertools.product(*(range(n) for n in cells)):
            low = [i * side // n for i, side, n in zip(place, channel.shape, cells, strict=True)]
            high = [-(-(i + 1) * side // n) for i, side, n in zip(place, channel.shape, cells, strict=True)]
            box = channel[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
            found.append(box.sum() / box.numel())
    out = torch.stack(found)
    return out / max(float(torch.sqrt((out**2).sum())), 1e-12)


def mining_views(name: str, o: Options) -> str:
    """By which of s, d and the cue c the positives of a contrast are mined."""
    if o.mine_by in ("s", "d"):
        return o.mine_by
    moving = "d" if o.mine_by == "both" else "c"
    by = {"vv": "s" + moving, "vs": "s", "sv": "s", "vd": moving, "dv": moving}[name]
    return "".join(one for one in by if one == "c" or one in o.views)


def embeddings(
    by: dict[str, Parameters], features: Clips, maps: list[dict[str, Tensor]], views: str
) -> dict[str, list[Tensor]]:
    """vv, vs, vd from F(v), sv from F(s), dv from F(d), by the heads of that view's encoder; a list over videos each."""
    out: dict[str, list[Tensor]] = {}
    for n in range(len(features["v"])):
        found = {"vv": embedding(by["v"], "vv", features["v"][n])}
        for view in views[1:]:
            found[f"v{view}"] = embedding(by["v"], f"v{view}", features["v"][n], maps[n].get(view))
            found[f"{view}v"] = embedding(by[view], f"{view}v", features[view][n])
        for name, value in found.items():
            out.setdefault(name, []).append(value)
    return out


def probability(query: Tensor, entries: list[Tensor], allowed: list[int], tau: float) -> dict[int, float]:
    """softmax over the allowed entries."""
    scores = {e: math.exp(float(query @ entries[e]) / tau) for e in allowed}
    return {e: score / sum(scores.values()) for e, score in scores.items()}


def contrast(query: Tensor, own: Tensor, entries: list[Tensor], allowed: list[int], mined: list[int], o: Options, leaves: bool):
    """-log(sum over P / sum over all) of one query."""
    other = {e: query @ entries[e] / o.tau for e in allowed}
    positives, everything = [other[e] for e in mined], [other[e] for e in allowed]
    if not (o.loss == "masked" and leaves and mined):
        positives, everything = [query @ own / o.tau, *positives], [query @ own / o.tau, *everything]
    denominator = torch.log(sum(torch.exp(x) for x in everything))
    if o.loss == "mean-log":
        return denominator - sum(positives) / len(positives)
    return denominator - torch.log(sum(torch.exp(x) for x in positives))


def cell(flow: Tensor, t: int, y: int, x: int, shape: tuple[int, int, int]) -> Tensor:
    """The mean vector of one of ``shape`` cells of a clip's flow (2, T, H, W): (2,)."""
    spans = [
        range(at * size // cells, -(-(at + 1) * size // cells))
        for at, size, cells in zip((t, y, x), flow.shape[1:], shape, strict=True)
    ]
    vectors = [flow[:, i, j, k] for i in spans[0] for j in spans[1] for k in spans[2]]
    return sum(vectors) / len(vectors)


def flow_error(p: Parameters, features: Tensor, flows: Tensor, power: list[Tensor]) -> Tensor:
    """The mean of two errors where the mean square of what is predicted is 1: of eight vectors at each position of F(v),
    (N, C', T', H', W'), and of their means over the positions of a picture. ``power`` has the two running mean squares, if
    there was a batch before."""
    weight, times, positions = (
        p["predictor.weight"][:, :, 0, 0, 0],
        8 * features.shape[2],
        features.shape[3] * features.shape[4],
    )
    said, meant = [], []  # vectors in pixels, or to be, by picture and position
    for n, t in itertools.product(range(len(features)), range(times)):
        places = list(itertools.product(range(features.shape[3]), range(features.shape[4])))
        said.append([(weight @ features[n, :, t // 8, y, x] + p["predictor.bias"])[[t % 8, 8 + t % 8]] for y, x in places])
        meant.append([cell(flows[n], t, y, x, (times, *features.shape[3:])) for y, x in places])
    squares = [sum((vector**2).sum() for one in meant for vector in one) / (2 * positions * len(meant))]
    squares.append(sum(((sum(one) / positions) ** 2).sum() for one in meant) / (2 * len(meant)))
    power[:] = [0.99 * old + 0.01 * new for old, new in zip(power, squares, strict=True)] if power else squares
    cells, pictures = 0.0, 0.0
    for a, b in zip(said, meant, strict=True):
        errors = [one * power[0].sqrt() - other for one, other in zip(a, b, strict=True)]
        cells += sum((error**2).sum() for error in errors) / positions
        pictures += ((sum(errors) / positions) ** 2).sum()
    return (cells / power[0] + pictures / power[1]) / (2 * 2 * len(said))


def step(
    f_q: Parameters, f_k: Parameters, q: Clips, k: Clips, videos: list[int], rings: Rings, o: Options, groups: Groups,
    key_groups: Groups,
) -> dict[str, Tensor]:  # fmt: skip
    """One step up to the losses, all N videos of the joined batch at once; ``total`` has the gradient of f_q. Follows, mines,
    contrasts, aligns and enqueues in this order, or enqueues before it mines (``in_batch``); ``f_k``, ``o.followers`` and
    ``rings`` are changed."""
    encoder = {who: o.followers[who][0] if who in o.followers else f_k for who in "vsdm"}
    apart = {v: f"m{v}" for v in o.views if f"m{v}" in rings.keys}  # rings of what mines, where it is another encoder
    with torch.no_grad():
        for p, momentum in [(f_k, o.momentum), *o.followers.values()]:
            for name in p:
                p[name].copy_(momentum * p[name] + (1 - momentum) * f_q[name])
        key_features = by_followers(encoder, {v: k[v] for v in o.views}, key_groups, o.shared)
        others = o.views if o.same else o.views[1:]
        target = by_followers(encoder, {v: q[v] for v in others}, key_groups, o.shared) if others else {}
        mining = dict(target)
        mining_keys = {}
        if apart:
            mining |= feature_maps(encoder["m"], {v: q[v] for v in apart}, key_groups, o.shared)
            mining_keys = feature_maps(encoder["m"], {v: k[v] for v in apart}, key_groups, o.shared)
        every = range(len(videos))
        key_maps = [{v: mean_one(activation(key_features[v][n])) for v in o.views[1:]} if o.decoupling else {} for n in every]
        query_maps = [{v: mean_one(activation(target[v][n])) for v in o.views[1:]} if o.decoupling else {} for n in every]
        keys = embeddings(encoder, key_features, key_maps, o.views)
        own = dict(keys)
        if o.same:
            own |= {name: rows for name, rows in embeddings(encoder, target, query_maps, o.views).items() if "d" in name}
        if "c" in rings.keys:
            cells = list(key_features["v"].shape[2:])
            keys["c"] = [descriptor(cue, cells) for cue in k["c"]]
        for v, ring in apart.items():
            keys[ring] = [embedding(encoder["m"], f"{v}v", mining_keys[v][n]) for n in every]
    if o.in_batch:
        rings.put(keys, videos)
    features = feature_maps(f_q, {v: q[v] for v in o.views}, groups, o.shared)
    query = embeddings({v: f_q for v in o.views}, features, query_maps, o.views)

    full = all(video is not None for video in rings.video)
    losses: dict[str, Tensor] = {}
    for n, video in enumerate(videos):
        allowed = [e for e, other in enumerate(rings.video) if other is not None and other != video]
        p = {}
        if "c" in rings.keys:
            p["c"] = probability(descriptor(q["c"][n], cells), rings.keys["c"], allowed, o.mining_tau)
        for v in o.views[1:]:
            miner = encoder["m"] if v in apart else encoder[v]
            asks = embedding(miner, f"{v}v", mining[v][n])
            p[v] = probability(asks, rings.keys[apart.get(v, f"{v}v")], allowed, o.mining_tau)
        for name in query:
            by = mining_views(name, o)
            score = {e: sum(p[v][e] for v in by) for e in allowed}
            mined = sorted(allowed, key=lambda e, score=score: (-score[e], e))[: o.k] if full and by else []
            ring = name[::-1]
            one = contrast(query[name][n], own[ring][n], rings.keys[ring], allowed, mined, o, video in o.dropped)
            weight = o.weights.get(name.strip("v"), 1)
            losses[f"L_{name}"] = losses.get(f"L_{name}", 0) + weight * one / len(videos)
        if target and o.alignment:
            maps = [activation((key_features if o.key_target else target)[v][n]) for v in o.views[1:]]
            goal = (sum(mean_one(a) for a in maps) if o.target == "equal" else sum(maps)).detach()
            own_map = activation(features["v"][n])
            if o.target != "raw":
                goal, own_map = mean_one(goal), mean_one(own_map)
            error = ((own_map - goal) ** 2).sum() / goal.numel()
            losses["align"] = losses.get("align", 0) + o.alignment * error / len(videos)
    if o.flow:
        losses["flow"] = o.flow * flow_error(f_q, features["v"], q["c"], o.flow_power)
    if not o.in_batch:
        rings.put(keys, videos)
    return losses | {"total": sum(losses.values())} | {f"key {ring}": torch.stack(rows) for ring, rows in keys.items()}
