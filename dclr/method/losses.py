"""The losses of docs/method.md, on plain tensors: contrast with mined positives, and activation alignment.

Legend: N queries, K queue entries, D dimensions. Everything is in at least float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from dclr.method.objective import Method


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
    form: str = "mil",
    dropped_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """The contrast, a scalar: the mean over queries of ``logsumexp(all) - logsumexp(P)`` (docs/method.md, "Five contrasts").

    P is the own key and the mined entries. "all" is the own key and the allowed entries. It is computed in log space throughout
    (fault 6). An empty queue gives exactly 0 with gradient 0.

    Args:
        own_N1, queue_NK: :func:`logits`. allowed_NK, mined_NK: bool; a mined entry that is not allowed is ignored.
        form: ``mil``, as above. ``masked``: in rows of ``dropped_N``, bool (N,), that have a mined entry, P and all lack the
            own key. ``mean-log``: the mean logit of P stands in the place of its logsumexp.
    """
    never = float("-inf")
    mined_NK = mined_NK & allowed_NK
    everything = torch.cat([own_N1, queue_NK.masked_fill(~allowed_NK, never)], dim=1)
    positives = torch.cat([own_N1, queue_NK.masked_fill(~mined_NK, never)], dim=1)
    if form == "masked" and dropped_N is not None:
        leaves = F.pad((dropped_N & mined_NK.any(1)).unsqueeze(1), (0, queue_NK.shape[1]))
        everything, positives = everything.masked_fill(leaves, never), positives.masked_fill(leaves, never)
    if form == "mean-log":
        chosen = (own_N1.sum(1) + torch.where(mined_NK, queue_NK, 0).sum(1)) / (1 + mined_NK.sum(1))
    else:
        chosen = positives.logsumexp(1)
    return (everything.logsumexp(1) - chosen).mean()


def neighbour_probability(
    query_ND: torch.Tensor,
    queue_KD: torch.Tensor,
    allowed_NK: torch.Tensor,
    temperature: float = Method.mining_temperature,
) -> torch.Tensor:
    """Softmax of query . queue / temperature over the allowed entries: (N, K), 0 at the others; a row without any is all 0."""
    scores = torch.einsum("nd,kd->nk", at_least_float32(query_ND), at_least_float32(queue_KD)) / temperature
    return scores.masked_fill(~allowed_NK, float("-inf")).softmax(1).nan_to_num(0.0)


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


def alignment(query_BTHW: torch.Tensor, targets_BTHW: Sequence[torch.Tensor], form: str = "sum") -> torch.Tensor:
    """Activation alignment, a scalar: ``mean((N(A_q(v)) - sg[N(A_k(s) + A_k(d))])^2)``, without its weight.

    The query's map has a gradient, through its mean too; the target has none.

    Args:
        query_BTHW: the raw map A_q(v).
        targets_BTHW: the raw maps A_k(s) and A_k(d) of the query clip, or one of them where the method lacks the other view.
        form: ``sum`` adds the raw maps. ``equal`` adds their mean-1 maps, so that each weighs the same.
    """
    parts = targets_BTHW if form == "sum" else [mean_one(target) for target in targets_BTHW]
    target = mean_one(torch.stack(list(parts)).sum(0)).detach()
    return (mean_one(query_BTHW) - target).square().mean()
