"""The losses of docs/method.md, on plain tensors: contrast with mined positives, and activation alignment.

Legend: N queries, K queue entries, D dimensions. Everything is in at least float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from dclr.method.objective import Method

FLOW_STEPS = 8  # of time, for each position of a feature map: the stride in time of our networks
DROPPED = 0.9  # how often ``masked`` leaves out the own key
NEVER = float("-inf")  # the logit of what is not there
Draw = Callable[[], torch.Tensor]
Form = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Draw], torch.Tensor]  # see contrast


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Half types raised to float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def logits(
    query_ND: torch.Tensor, key_ND: torch.Tensor, queue_KD: torch.Tensor, temperature: float = Method.temperature
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines over the temperature: with the own key (N, 1), and with every queue entry (N, K). Inputs are L2-normalised."""
    query, key, queue = at_least_float32(query_ND), at_least_float32(key_ND), at_least_float32(queue_KD)
    own_N1 = torch.einsum("nd,nd->n", query, key).unsqueeze(1) / temperature
    queue_NK = torch.einsum("nd,kd->nk", query, queue) / temperature
    return own_N1, queue_NK


def contrast(
    own_N1: torch.Tensor,
    queue_NK: torch.Tensor,
    allowed_NK: torch.Tensor,
    mined_NK: torch.Tensor,
    form: Form | None = None,
    draw: Draw | None = None,
) -> torch.Tensor:
    """The contrast, a scalar: the mean of its form over queries (docs/method.md, "Five contrasts").

    It is computed in log space throughout (fault 6).

    Args:
        own_N1, queue_NK: :func:`logits`. allowed_NK, mined_NK: bool; a mined entry that is not allowed is ignored.
        form: one of :data:`dclr.method.objective.FORMS`, by default :func:`mil`.
        draw: a number in 0..1 for each query, (N,), the same at every call; by default 1, with which ``masked`` drops none.
    """
    drawn = draw or (lambda: own_N1.new_ones(len(own_N1)))
    return (form or mil)(own_N1, queue_NK, allowed_NK, mined_NK & allowed_NK, drawn).mean()


def with_own(own_N1: torch.Tensor, queue_NK: torch.Tensor, chosen_NK: torch.Tensor) -> torch.Tensor:
    """The logits of the own key and of the chosen entries (bool): (N, 1 + K), -inf at the others."""
    return torch.cat([own_N1, queue_NK.masked_fill(~chosen_NK, NEVER)], dim=1)


def mil(
    own_N1: torch.Tensor, queue_NK: torch.Tensor, allowed_NK: torch.Tensor, mined_NK: torch.Tensor, draw: Draw
) -> torch.Tensor:
    """``logsumexp(all) - logsumexp(P)`` of each query, (N,). P is the own key and the mined entries, all is the own key and the
    allowed ones. An empty queue gives exactly 0 with gradient 0."""
    everything, positives = (with_own(own_N1, queue_NK, chosen_NK) for chosen_NK in (allowed_NK, mined_NK))
    return everything.logsumexp(1) - positives.logsumexp(1)


def masked(
    own_N1: torch.Tensor, queue_NK: torch.Tensor, allowed_NK: torch.Tensor, mined_NK: torch.Tensor, draw: Draw
) -> torch.Tensor:
    """:func:`mil`, but with probability :data:`DROPPED` P and all lack the own key, in rows that have a mined entry."""
    leaves_N1 = ((draw() < DROPPED) & mined_NK.any(1)).unsqueeze(1)
    return mil(own_N1.masked_fill(leaves_N1, NEVER), queue_NK, allowed_NK, mined_NK, draw)


def mean_log(
    own_N1: torch.Tensor, queue_NK: torch.Tensor, allowed_NK: torch.Tensor, mined_NK: torch.Tensor, draw: Draw
) -> torch.Tensor:
    """:func:`mil` with the mean logit of P in the place of its logsumexp."""
    everything = with_own(own_N1, queue_NK, allowed_NK)
    positive_N = (own_N1.sum(1) + torch.where(mined_NK, queue_NK, 0).sum(1)) / (1 + mined_NK.sum(1))
    return everything.logsumexp(1) - positive_N


def neighbour_probability(
    query_ND: torch.Tensor,
    queue_KD: torch.Tensor,
    allowed_NK: torch.Tensor,
    temperature: float = Method.mining_temperature,
) -> torch.Tensor:
    """Softmax of query . queue / temperature over the allowed entries: (N, K), 0 at the others; a row without any is all 0."""
    scores = torch.einsum("nd,kd->nk", at_least_float32(query_ND), at_least_float32(queue_KD)) / temperature
    return scores.masked_fill(~allowed_NK, float("-inf")).softmax(1).nan_to_num(0.0)


def descriptor(cue_BCTHW: torch.Tensor, cells: tuple[int, int, int]) -> torch.Tensor:
    """What a clip's stored cue is mined by: its means over ``cells`` = (T', H', W') boxes, one vector of length 1 a clip,
    (B, C T' H' W'). Without motion it is 0."""
    return F.normalize(F.adaptive_avg_pool3d(at_least_float32(cue_BCTHW), cells).flatten(1), dim=1)


def mine(score_NK: torch.Tensor, allowed_NK: torch.Tensor, k: int) -> torch.Tensor:
    """The top min(k, allowed) entries of each row as a mask, bool (N, K); ties go to the lower index.

    >>> mine(torch.tensor([[0.1, 0.5, 0.3, 0.3]]), torch.tensor([[True, False, True, True]]), k=1)
    tensor([[False, False,  True, False]])
    """
    k = min(k, score_NK.shape[1])
    best_Nk = score_NK.masked_fill(~allowed_NK, -1).sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(allowed_NK).scatter(1, best_Nk, True) & allowed_NK


def activation_map(features_BCTHW: torch.Tensor) -> torch.Tensor:
    """A(x) = sum over channels of F(x), (B, T, H, W), >= 0 because F ends in a ReLU."""
    return at_least_float32(features_BCTHW).sum(1)


def mean_one(map_BTHW: torch.Tensor) -> torch.Tensor:
    """N(A), (B, T, H, W): each sample's map divided by its mean, so that the mean is 1. A map of zeros stays zero.

    >>> mean_one(torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)).flatten()
    tensor([0.5000, 1.5000])
    """
    return map_BTHW / (map_BTHW.mean((1, 2, 3), keepdim=True) + 1e-6)


def map_entropy(map_BTHW: torch.Tensor) -> torch.Tensor:
    """Mean entropy of the maps, taken as distributions over their positions, divided by the entropy of a flat map: a scalar.

    1 is a flat map, 0 a map that is active at one position.

    >>> map_entropy(torch.ones(1, 2, 3, 3)).item()
    1.0
    """
    share = map_BTHW.flatten(1) / map_BTHW.flatten(1).sum(1, keepdim=True).clamp(min=1e-12)
    return torch.special.entr(share).sum(1).mean() / max(math.log(share.shape[1]), 1e-12)


def flow_cells(flow_B2THW: torch.Tensor, cells: Sequence[int]) -> torch.Tensor:
    """The vectors (u, v) of a clip, averaged over the cells T' H' W' of a feature map and FLOW_STEPS steps of time in each:
    (B, 2 * FLOW_STEPS, T', H', W')."""
    time, height, width = cells
    mean = F.adaptive_avg_pool3d(at_least_float32(flow_B2THW), (time * FLOW_STEPS, height, width))
    return mean.unflatten(2, (time, FLOW_STEPS)).transpose(2, 3).flatten(1, 2)


def alignment(query_BTHW: torch.Tensor, targets_BTHW: Sequence[torch.Tensor], form: str = "sum") -> torch.Tensor:
    """Activation alignment, a scalar: ``mean((N(A_q(v)) - sg[N(A_k(s) + A_k(d))])^2)``, without its weight. As ``raw`` it is
    the published ``mean((A_q(v) - sg[A_k(s) + A_k(d)])^2)``.

    The query's map has a gradient, through its mean too; the target has none.

    Args:
        query_BTHW: the raw map A_q(v).
        targets_BTHW: the raw maps A_k(s) and A_k(d), or one of them where the method lacks the other view.
        form: ``sum`` and ``raw`` add the raw maps. ``equal`` adds their mean-1 maps, so that each weighs the same.
    """
    if form == "raw":
        return (query_BTHW - torch.stack(list(targets_BTHW)).sum(0).detach()).square().mean()
    parts = targets_BTHW if form == "sum" else [mean_one(target) for target in targets_BTHW]
    target = mean_one(torch.stack(list(parts)).sum(0)).detach()
    return (mean_one(query_BTHW) - target).square().mean()
