"""Training steps in float64 on fixed input, in one process or, as a script under torchrun, in several: what comes out of each.

Used by test_reference.py and test_distributed.py. A case is a plain dict, so that it can be handed to the script as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dclr import distributed
from dclr.method import norm
from dclr.method.backbones import build
from dclr.method.backbones.layers import Backbone
from dclr.method.model import DCLR, Method
from dclr.method.objective import MINERS

BATCH = 4
Case = dict[str, Any]
Result = dict[str, torch.Tensor]


class Tiny(Backbone):
    """Two convolutions: (B, 3, T, H, W) -> (B, 8, T/2, H/2, W/2)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv3d(3, 6, 3, 1, 1, bias=False), nn.BatchNorm3d(6)
        self.conv2, self.bn2 = nn.Conv3d(6, 8, 3, 2, 1, bias=False), nn.BatchNorm3d(8)
        self.channels = 8

    def forward(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(clip_BCTHW))))))


def make(case: Case) -> DCLR:
    """The model of a case, its queue partly filled: ``filled`` entries, the last one in the slot before ``cursor``."""
    torch.manual_seed(0)
    backbone = Tiny() if case.get("tiny") else build(case.get("arch", "r2plus1d_10"), 4)
    method, statistics = Method(**case.get("method", {})), norm.Statistics(**case.get("statistics", {}))
    model = DCLR(backbone, case["queue"], method, statistics, cells=(2, 4, 4)).double().train()  # as Tiny has them
    with torch.no_grad():
        for parameter in model.f_q.parameters():  # the encoders differ, BatchNorm's weights and biases are not 1 and 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    length, queue = case["queue"], model.queue
    queue.cursor.fill_(case.get("cursor", 0))
    slots = (queue.cursor - 1 - torch.arange(case.get("filled", 0))) % length
    queue.keys_RKD.normal_()
    queue.keys_RKD.copy_(F.normalize(queue.keys_RKD, dim=2))
    if method.cue:
        queue.cue_KE.copy_(F.normalize(torch.randn(queue.cue_KE.shape), dim=1))
    queue.valid_K[slots] = True
    queue.video_K.copy_(torch.arange(length) % 6)  # the first batch's videos are 0..3
    return model


def batch(
    step: int, size: int = 8, frames: int = 4, cue: str | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    """Views of the q and the k clips of four videos, and the videos; some of them were in the step before. Frames of s are
    one, as :func:`dclr.method.views.make_views` gives them. A ``cue`` is that of the first clip without motion."""
    draw = torch.Generator().manual_seed(step)
    q, k = ({v: torch.randn(BATCH, 3, frames, size, size, generator=draw, dtype=torch.float64) for v in "vsd"} for _ in "qk")
    for views in (q, k):
        views["s"] = views["s"][:, :, :1].expand_as(views["v"])
        if cue:
            views["c"] = torch.randn(BATCH, MINERS[cue], frames, size + 1, size, generator=draw, dtype=torch.float64)
            views["c"][0] = 0
    return q, k, torch.arange(BATCH) + 3 * step


def run(case: Case) -> list[Result]:
    """After each step: losses averaged over the ranks, gradients of f_q, both encoders, keys and queue."""
    rank, world = distributed.rank(), distributed.world()
    model = make(case)
    model.f_q.checkpointed = case.get("checkpointed", False)
    for encoder in (model.f_q, model.f_k, *model.followers.values()):
        encoder.distinct = case.get("distinct", True)
    parallel = distributed.parallel(model)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01, momentum=0.9)
    results = []
    for step in range(case.get("steps", 2)):
        q, k, video = batch(step, case.get("size", 8), case.get("frames", 4), model.method.stored)
        optimiser.zero_grad()
        outputs, parts = [], case.get("parts", 1)
        for part in range(parts):
            share = BATCH // world // parts
            mine = slice(rank * BATCH // world + part * share, rank * BATCH // world + (part + 1) * share)
            clips = [{name: view[mine] for name, view in views.items()} for views in (q, k)]
            with distributed.unsynchronised(parallel, part + 1 < parts):
                outputs.append(parallel(*clips, video[mine], step, part == 0))
                (outputs[-1].total / parts).backward()
        terms = {name: torch.stack([o.terms[name] for o in outputs]).mean() for name in outputs[0].terms}
        terms["total"] = torch.stack([o.total.detach() for o in outputs]).mean()
        result = {f"loss {name}": distributed.total(term) / world for name, term in terms.items()}
        gradients = {name.removeprefix("f_q."): p.grad for name, p in model.named_parameters() if p.grad is not None}
        result |= {f"gradient {name}": gradient.clone() for name, gradient in gradients.items()}
        optimiser.step()
        model.enqueue(outputs)
        for ring in outputs[0].keys[0] if parts == 1 else ():
            result[f"key {ring}"] = torch.cat([distributed.joined(keys[ring]) for keys in outputs[0].keys])
        norm.average(model)
        state = {name: x.clone() for name, x in model.state_dict().items()}
        every = distributed.joined_objects({name: float(x.double().sum()) for name, x in state.items()})
        assert all(other == every[0] for other in every), "the ranks' models differ"
        results.append(result | state)
    return results


def main() -> None:
    distributed.setup(torch.device("cpu"))
    results = [run(case) for case in json.loads(sys.argv[1])]
    if distributed.rank() == 0:
        torch.save(results, sys.argv[2])
    distributed.shutdown()


if __name__ == "__main__":
    main()
