"""A whole training step against the slow version of reference.py, in float64: to 1e-10, on one rank and on two."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference
import steps
import torch
from conftest import succeed

from dclr.draws import generator

TOLERANCE = 1e-10
QUEUES = {
    "empty": {"queue": 8},
    "half full": {"queue": 8, "filled": 4, "cursor": 4},
    "full": {"queue": 8, "filled": 8},
    "wrapping": {"queue": 7, "filled": 7, "cursor": 5},
    "smaller than the batch": {"queue": 3, "filled": 3, "cursor": 1},
}
GRID = {
    f"{name}, k = {k}": {"tiny": True, **queue, "method": {"mined": k}} for name, queue in QUEUES.items() for k in (0, 1, 5)
}
WRAPPING: dict[str, Any] = {"tiny": True, **QUEUES["wrapping"]}
VARIANTS = {
    "without static": {"method": {"views": "vd"}},
    "without dynamic": {"method": {"views": "vs"}},
    "MoCo-v2": {"method": {"views": "v", "mined": 0}},
    "without decoupling": {"method": {"decoupling": False}},
    "without alignment": {"method": {"alignment": 0.0}},
    "masked": {"method": {"loss": "masked"}},
    "mean-log": {"method": {"loss": "mean-log"}},
    "equal target": {"method": {"align_target": "equal"}},
    "raw target": {"method": {"align_target": "raw"}},
    "the key clip's maps": {"method": {"align_maps": "key"}},
    "the key clip's raw maps, shared statistics": {
        "method": {"align_target": "raw", "align_maps": "key"},
        "statistics": {"views": "shared"},
    },
    "the key clip's maps, symmetric": {"method": {"align_maps": "key", "symmetric": True}},
    "shared statistics": {"statistics": {"views": "shared"}},
    "symmetric": {"method": {"symmetric": True}},
    "a momentum of 0.9": {"method": {"momentum": 0.9}},
    "a frozen teacher": {"method": {"momentum": 1.0}},
    "temperatures": {"method": {"temperature": 0.2, "mining_temperature": 1.0}},
    "weights": {"method": {"static_weight": 0.5, "dynamic_weight": 2.0}},
    "in-batch negatives": {"method": {"in_batch": True}},
    "in-batch negatives, MoCo-v2": {"method": {"in_batch": True, "views": "v", "mined": 0}},
    "in-batch negatives, symmetric": {"method": {"in_batch": True, "symmetric": True}},
    "flow": {"method": {"flow_weight": 0.7}},
    "flow, symmetric": {"method": {"flow_weight": 0.7, "symmetric": True}},
    "flow, MoCo-v2": {"method": {"flow_weight": 0.7, "views": "v", "mined": 0}},
    "the same clip's motion": {"method": {"dynamic_key": "same"}},
    "the same clip's motion, without decoupling": {"method": {"dynamic_key": "same", "decoupling": False}},
    "five dimensions, the authors' heads": {"method": {"dim": 5, "head_init": "authors"}},
    "a teacher for s": {"method": {"static_momentum": 0.5}},
    "a teacher for d, and its own clip's motion": {"method": {"dynamic_momentum": 0.5, "dynamic_key": "same"}},
    "a miner": {"method": {"mining_momentum": 0.5}},
    "a miner, shared statistics": {"method": {"mining_momentum": 0.5}, "statistics": {"views": "shared"}},
    "a miner that is d's teacher": {"method": {"static_momentum": 1.0, "dynamic_momentum": 0.5, "mining_momentum": 0.5}},
    "mined by s": {"method": {"mine_by": "s"}},
    "mined by d, a miner": {"method": {"mine_by": "d", "mining_momentum": 0.5}},
    "mined by energy, symmetric": {"method": {"mine_by": "energy", "symmetric": True}},
    "mined by flow": {"method": {"mine_by": "flow"}},
    "mined by flow, a miner": {"method": {"mine_by": "flow", "mining_momentum": 0.5, "dynamic_key": "same"}},
    "mined by flow without dynamic": {"method": {"mine_by": "flow", "views": "vs"}},
    "mined by flow without static, shared": {"method": {"mine_by": "flow", "views": "vd"}, "statistics": {"views": "shared"}},
    "three teachers, symmetric": {
        "method": {"static_momentum": 0.3, "dynamic_momentum": 0.5, "mining_momentum": 0.7, "symmetric": True}
    },
}
GROUPED = {  # on one rank two groups, on two ranks one a rank
    f"{mode}, {views}": {"statistics": {"mode": mode, "views": views}}
    for mode in ("local", "shuffle")
    for views in ("split", "shared")
} | {
    "shuffle, three teachers": {
        "statistics": {"mode": "shuffle"},
        "method": {"static_momentum": 0.3, "dynamic_momentum": 0.5, "mining_momentum": 0.7},
    },
}


def expected(case: steps.Case, groups: int) -> list[steps.Result]:
    """What reference.py makes of the same weights, queue and clips."""
    model = steps.make(case)
    method, mode = model.method, case.get("statistics", {}).get("mode", "sync")
    f_q, f_k, *others = (
        {name: p.detach().clone().requires_grad_(encoder is model.f_q) for name, p in encoder.named_parameters()}
        for encoder in (model.f_q, model.f_k, *(model.follower(who) for who in "sdm" if method.momenta.get(who) is not None))
    )
    if method.flow_weight:
        f_q |= {f"predictor.{name}": p.detach().clone().requires_grad_() for name, p in model.predictor.named_parameters()}
    momenta = {who: m for who, m in method.momenta.items() if m is not None}
    followers = {who: (p, m) for p, (who, m) in zip(others, momenta.items(), strict=True)}
    queue = model.queue
    rings = reference.Rings(
        len(queue),
        int(queue.cursor),
        [int(video) if valid else None for video, valid in zip(queue.video_K, queue.valid_K, strict=True)],
        {ring: list(queue[ring].clone()) for ring in (*queue.rings, *(["c"] if method.cue else []))},
    )
    optimiser = torch.optim.SGD(f_q.values(), 0.01, momentum=0.9)
    results: list[steps.Result] = []
    power: list[torch.Tensor] = []
    for step in range(2):
        q, k, video = steps.batch(step, cue=method.stored)
        videos = video.tolist()
        dropped = {v for v in videos if generator("masked", method.seed, step, v).random() < 0.9}
        options = reference.Options(
            method.views, method.mined, method.loss, dropped, method.decoupling, method.alignment,
            method.align_target, method.align_maps == "key", case.get("statistics", {}).get("views") == "shared",
            method.momentum, method.temperature, method.mining_temperature,
            {"s": method.static_weight, "d": method.dynamic_weight}, method.dynamic_key == "same", method.mine_by, followers,
            method.in_batch, method.flow_weight, power,
        )  # fmt: skip
        size = steps.BATCH // groups
        order = generator("shuffle", method.seed, step).permutation(steps.BATCH).tolist()
        own = [list(range(at, at + size)) for at in range(0, steps.BATCH, size)]
        shuffled = [order[at : at + size] for at in range(0, steps.BATCH, size)]
        more = (options, own, shuffled if mode == "shuffle" else own)
        if method.symmetric:
            found = swapped(f_q, f_k, q, k, videos, rings, *more)
        else:
            found = reference.step(f_q, f_k, q, k, videos, rings, *more)
        optimiser.zero_grad()
        found["total"].backward()
        result = {name if name.startswith("key") else f"loss {name}": x.detach().clone() for name, x in found.items()}
        result |= {f"gradient {name}": p.grad.clone() for name, p in f_q.items() if p.grad is not None}
        optimiser.step()
        of_others = [(f"followers.{who}", p) for who, (p, _) in followers.items() if who in model.followers]
        for name, parameters in (("f_q", f_q), ("f_k", f_k), *of_others):
            result |= {n if "predictor" in n else f"{name}.{n}": p.detach().clone() for n, p in parameters.items()}
        if power:
            result["flow_power"] = torch.stack(power)
        if "c" in rings.keys:
            result["queue.cue_KE"] = torch.stack(rings.keys["c"])
        result["queue.keys_RKD"] = torch.stack([torch.stack(rings.keys[ring]) for ring in queue.rings])
        result["queue.video_K"] = torch.tensor([-1 if video is None else video for video in rings.video])
        result["queue.cursor"] = torch.tensor(rings.cursor)
        results.append(result)
    return results


def swapped(
    f_q: Any, f_k: Any, q: Any, k: Any, videos: list[int], rings: reference.Rings, options: reference.Options, *more: Any
) -> dict[str, Any]:
    """Both directions from the same queue and the same f_k, averaged; both enqueue, before or after the contrasts."""
    every, early = [f_k, *(p for p, _ in options.followers.values())], options.in_batch
    options = replace(options, in_batch=False)  # a direction alone would enqueue its own keys only
    before = [{name: p.clone() for name, p in one.items()} for one in every]

    def both() -> list[dict[str, Any]]:
        halves = []
        for clips in ((q, k), (k, q)):
            for one, drawn in zip(every, before, strict=True):
                for name, p in one.items():
                    p.copy_(drawn[name])
            aside = reference.Rings(rings.length, 0, list(rings.video), {ring: list(keys) for ring, keys in rings.keys.items()})
            halves.append(reference.step(f_q, f_k, *clips, videos, aside, options, *more))
        return halves

    halves = both()
    for half in halves:
        rings.put({ring: list(half[f"key {ring}"]) for ring in rings.keys}, videos)
    halves = both() if early else halves
    together = {name: torch.cat([half[name] for half in halves]) for name in halves[0] if name.startswith("key")}
    return {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]} | together


def worst(found: list[steps.Result], wanted: list[steps.Result]) -> float:
    """The largest absolute difference of anything that the reference says."""
    largest = 0.0
    for after, right in zip(found, wanted, strict=True):
        after["queue.video_K"] = torch.where(after["queue.valid_K"], after["queue.video_K"], -1)
        assert {name for name in after if name.startswith(("loss", "gradient"))} == {
            name for name in right if name.startswith(("loss", "gradient"))
        }
        for name, value in right.items():
            assert after[name].shape == value.shape, name
            assert torch.isfinite(value.double()).all() and torch.isfinite(after[name].double()).all(), name
            largest = max(largest, float((after[name].double() - value.double()).abs().max()))
    return largest


@pytest.mark.parametrize("name", GRID)
def test_a_step_is_the_references(name: str) -> None:
    found = steps.run(GRID[name])
    assert float(found[-1]["loss total"]) > 0
    assert worst(found, expected(GRID[name], groups=1)) < TOLERANCE


@pytest.mark.parametrize("name", VARIANTS)
def test_every_switch_is_the_references(name: str) -> None:
    case = WRAPPING | VARIANTS[name]
    found, default = steps.run(case), steps.run(WRAPPING)
    assert float(found[-1]["loss total"]) != float(default[-1]["loss total"])
    assert worst(found, expected(case, groups=1)) < TOLERANCE


@pytest.mark.parametrize("name", GROUPED)
def test_grouped_statistics_are_the_references(name: str) -> None:
    case = WRAPPING | GROUPED[name]
    in_two = case | {"statistics": case["statistics"] | {"groups": 2}}
    assert worst(steps.run(in_two), expected(case, groups=2)) < TOLERANCE


def test_two_ranks_are_the_references_joined_batch(tmp_path: Path) -> None:
    """Every case over two processes; a rank is a group where statistics are local."""
    cases = {name: (case, 1) for name, case in GRID.items()}
    cases |= {name: (WRAPPING | case, 1) for name, case in VARIANTS.items()}
    cases |= {name: (WRAPPING | case, 2) for name, case in GROUPED.items()}
    handed = json.dumps([case for case, _ in cases.values()])
    succeed(Path(steps.__file__), handed, tmp_path / "found.pt", ranks=2)
    results = torch.load(tmp_path / "found.pt", weights_only=True)
    errors = {name: worst(found, expected(*case)) for (name, case), found in zip(cases.items(), results, strict=True)}
    print(f"largest difference from the reference over two ranks: {max(errors.values()):.1e}")
    assert {name: error for name, error in errors.items() if error >= TOLERANCE} == {}
