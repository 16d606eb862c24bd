"""A training step on this rank's share of a batch: views, gradient, clipping, what is not finite, and no wait for a GPU."""

import copy
import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from dclr.data.clips import draw_colours
from dclr.hardware import place
from dclr.method.backbones import build
from dclr.method.model import DCLR
from dclr.method.views import make_views, normalise, to_clip
from dclr.pretraining import pretrain
from dclr.pretraining.config import PretrainConfig
from dclr.pretraining.pretrain import make_optimiser, train_step

CPU = torch.device("cpu")
SWITCHES = [
    {},
    {"dynamic": "cue"},
    {"dynamic": "flow", "accumulate": 2, "bn_views": "shared", "checkpoint_gradients": True},
    {"loss": "masked", "bn": "shuffle", "symmetric": True},
    {"objective": "moco"},
    {"static_momentum": 0.9, "mining_momentum": 0.5},
    {"mine_by": "flow", "accumulate": 2},
]


def configured(**more: Any) -> PretrainConfig:
    return PretrainConfig(shards="s", out="o", split=("train",), width=4, batch=4, queue=8, frames=8, size=48, **more)


def made(config: PretrainConfig, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> DCLR:
    """A model whose queue is full."""
    torch.manual_seed(0)
    model = place(DCLR(build("r2plus1d_10", 4), 8, config.method, config.statistics(1), dtype), device).train()
    model.f_q.checkpointed = config.checkpoint_gradients
    keys = F.normalize(torch.randn(8, 128), dim=1).to(device)
    rings = {ring: keys for ring in model.queue.rings} | ({"c": keys[:, :2]} if config.method.cue else {})
    model.queue.enqueue(rings, torch.arange(100, 108, device=device))
    return model


def batch(config: PretrainConfig, seed: int = 0) -> dict[str, Any]:
    """What the loader hands over of four videos."""
    draw, colours = torch.Generator().manual_seed(seed), [draw_colours(np.random.default_rng((seed, n))) for n in range(16)]
    found = {
        "rgb": torch.randint(256, (4, 2, 4, 32, 32, 3), dtype=torch.uint8, generator=draw),
        "frames": torch.arange(0, 8, 2).repeat(4, 2, 1),
        "still": torch.randint(4, (4, 2), generator=draw),
        "colours": torch.from_numpy(np.stack(colours)).view(4, 2, 2, -1),
        "video": torch.arange(4),
        "key": list("abcd"),
    }
    if config.clip.cue:
        shape = (4, 2, 4, 32, 32) if config.clip.cue == "diff" else (4, 2, 4, 2, 32, 32)
        found["cue"] = torch.randint(256, shape, dtype=torch.uint8, generator=draw)
        found["scale"] = torch.rand(4, 2, 4, 2, generator=draw)
    return found if config.clip.cue == "flow" else {name: x for name, x in found.items() if name != "scale"}


def step(config: PretrainConfig, model: DCLR, scale: float = 0.0) -> tuple[int, float, torch.amp.GradScaler]:
    """A step on the CPU, with a scaler that begins at ``scale``, none for 0: bad steps, the gradient's norm, the scaler."""
    scaler = torch.amp.GradScaler("cpu", enabled=scale > 0, init_scale=scale or 1.0)
    bad = torch.zeros((), dtype=torch.int64)
    _, _, gradient = train_step(config, model, make_optimiser(model, config), scaler, batch(config), 0, bad)
    return int(bad), float(gradient), scaler


@pytest.mark.parametrize("plain", [True, False])
def test_a_plain_query_is_the_clip_itself_and_the_key_never_is(plain: bool) -> None:
    config = configured(plain_query=plain)
    model, data, seen = (
        mock.Mock(side_effect=StopIteration),
        batch(config),
        [normalise(to_clip(x)) for x in batch(config)["rgb"].unbind(1)],
    )
    with pytest.raises(StopIteration):
        train_step(config, model, mock.Mock(), mock.Mock(), data, 0, torch.zeros(()))
    alike = [torch.allclose(clip["v"], rgb, atol=1e-5) for clip, rgb in zip(model.call_args.args[:2], seen, strict=True)]
    assert alike == [plain, False]


def test_the_gradient_is_clipped_to_a_norm_and_told_as_it_was() -> None:
    norms = []
    for clip_grad in (0.0, 0.1):
        config = configured(clip_grad=clip_grad, lr=1.0, wd=0.0)
        model = made(config)
        before = [p.detach().clone() for p in model.f_q.parameters()]
        _, told, _ = step(config, model)
        moved = torch.cat([(p.detach() - q).flatten() for p, q in zip(model.f_q.parameters(), before, strict=True)])
        norms.append((told, float(moved.norm())))  # with lr 1 the first step is the gradient
    (told, free), (same, clipped) = norms
    assert told == pytest.approx(same) and free == pytest.approx(told, rel=1e-3) and told > 1
    assert clipped == pytest.approx(0.1, rel=1e-3)


def test_parts_of_a_batch_have_the_gradient_of_their_mean_loss_and_are_followed_once() -> None:
    """Of f_q at the first part; f_k is where it was then at the second part too."""
    config = configured(accumulate=2, lr=1e-3)
    model = made(config)
    with torch.no_grad():
        for p in model.f_q.parameters():  # else there is nothing to follow
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    slow, data = copy.deepcopy(model), batch(config)
    slow.follow()
    losses = []
    for part in (slice(0, 2), slice(2, 4)):
        q, k = (make_views({name: x[part] for name, x in data.items()}, clip, "rgbdiff", CPU) for clip in (0, 1))
        losses.append(slow(q, k, data["video"][part], 0, follow=False).total)
    ((losses[0] + losses[1]) / 2).backward()
    gradients = [p.grad.clone() for p in slow.f_q.parameters() if p.grad is not None]
    _, told, _ = step(config, model)
    assert told == pytest.approx(float(torch.cat([g.flatten() for g in gradients]).norm()), rel=1e-4) and told > 1
    for p, gradient in zip(model.f_q.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-3, atol=1e-4)
    for p, once in zip(model.f_k.parameters(), slow.f_k.parameters(), strict=True):
        assert torch.equal(p, once)


@pytest.mark.parametrize("scale", [0.0, 1024.0])
def test_a_loss_that_is_not_finite_is_counted_with_a_scaler_too(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    make = pretrain.make_views
    monkeypatch.setattr(pretrain, "make_views", lambda *a: {name: view * math.nan for name, view in make(*a).items()})
    model = made(config := configured())
    before = [p.detach().clone() for p in model.f_q.parameters()]
    assert step(config, model, scale)[0] == 1
    assert all(torch.equal(p, q) for p, q in zip(model.f_q.parameters(), before, strict=True))


@pytest.mark.parametrize("scale", [0.0, 1024.0])
def test_an_infinite_loss_of_a_finite_gradient_does_not_reach_the_weights(
    scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = DCLR.forward
    far = lambda *a, **k: replace(output := forward(*a, **k), total=output.total + math.inf)  # noqa: E731
    monkeypatch.setattr(DCLR, "forward", far)
    model = made(config := configured())
    before = [p.detach().clone() for p in model.f_q.parameters()]
    assert step(config, model, scale)[0] == 1
    assert all(torch.equal(p, q) for p, q in zip(model.f_q.parameters(), before, strict=True))


def test_a_gradient_that_the_scaler_overflowed_is_left_out_and_not_counted() -> None:
    model = made(config := configured())
    before = [p.detach().clone() for p in model.f_q.parameters()]
    bad, gradient, scaler = step(config, model, 3e38)  # times a loss above 2: float32 holds no more
    assert bad == 0 and not math.isfinite(gradient) and scaler.get_scale() == pytest.approx(1.5e38)
    assert all(torch.equal(p, q) for p, q in zip(model.f_q.parameters(), before, strict=True))


@pytest.mark.parametrize("dynamic", ["cue", "flow"])
@pytest.mark.parametrize("more", [{"objective": "moco"}, {"without": ("dynamic",)}])
def test_a_view_that_the_method_has_not_is_not_made(more: dict, dynamic: str) -> None:
    """Nor is the cue there that it would be made of."""
    config = configured(dynamic=dynamic, **more)
    assert config.clip.cue is None and "cue" not in batch(config)
    scaler, bad, model = torch.amp.GradScaler("cpu", enabled=False), torch.zeros((), dtype=torch.int64), made(config)
    _, views, _ = train_step(config, model, make_optimiser(model, config), scaler, batch(config), 0, bad)
    assert "".join(views) == config.method.views and bad == 0


def test_a_cue_that_mines_comes_beside_the_views() -> None:
    """Of the dynamic view's own source or beside the RGB difference; where nothing is mined it does not come."""
    for more in ({"mine_by": "flow"}, {"mine_by": "flow", "dynamic": "flow"}):
        config = configured(**more)
        model = made(config)
        _, views, _ = train_step(
            config,
            model,
            make_optimiser(model, config),
            torch.amp.GradScaler("cpu", enabled=False),
            batch(config),
            0,
            torch.zeros((), dtype=torch.int64),
        )
        assert config.clip.cue == "flow" and "".join(views) == "vsd"
    assert configured(mine_by="energy").clip.cue == "energy"
    for more in ({"mine_by": "energy", "without": ("mining",)}, {"mine_by": "flow", "objective": "moco"}, {"mine_by": "s"}):
        assert configured(**more).clip.cue is None


@pytest.mark.parametrize("more", SWITCHES)
def test_a_step_is_made_of_operations_that_can_be_deterministic(more: dict) -> None:
    """They raise where they cannot. On the CPU they give the bits that they give anyway."""
    found = []
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            model = made(config := configured(**more))
            assert step(config, model)[0] == 0
        finally:
            torch.use_deterministic_algorithms(False)
        found.append(model.state_dict())
    assert all(torch.equal(x, found[1][name]) for name, x in found[0].items())


class Waits(TorchFunctionMode):
    """Names what would make the host wait for a GPU, with torch's meta device in its place (where nothing can be read back at
    all): a copy from the host that blocks, and a tensor made of plain numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), getattr(func, "__name__", "")
        made = name in ("tensor", "as_tensor", "new_tensor")
        copied = name == "to" and not args[0].is_meta and not (kwargs or {}).get("non_blocking")
        if (made or copied) and out.is_meta:
            self.found.append(name)
        return out


@pytest.mark.parametrize("more", SWITCHES)
def test_nothing_in_a_step_asks_for_a_wait(more: dict) -> None:
    config, bad = configured(clip_grad=1.0, **more), torch.zeros((), dtype=torch.int64, device="meta")
    none: dict[str, Any] = {"autocast": lambda *_, **__: nullcontext(), "is_autocast_enabled": lambda *_: True}  # meta has none
    none["batch_norm_update_stats"] = lambda _, mean, var, __: (mean, var)
    scaler, waits = torch.amp.GradScaler("cpu", enabled=False), Waits()
    with mock.patch.multiple("torch", **none):
        with torch.device("meta"):
            model = DCLR(build("r2plus1d_10", 4), 8, config.method, config.statistics(1)).train()
        model.f_q.checkpointed = config.checkpoint_gradients
        for mode in (nullcontext(), waits):  # the first step makes the constants
            with mode:
                outputs, _, _ = train_step(config, model, mock.Mock(), scaler, batch(config), 0, bad)
                model.enqueue(outputs)
    assert waits.found == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU to wait for")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("more", SWITCHES)
def test_a_step_never_makes_the_host_wait_for_the_gpu(more: dict, dtype: torch.dtype) -> None:
    """Two steps, after one that makes the constants, in torch's mode that raises at a wait."""
    config, device = configured(clip_grad=1.0, **more), torch.device("cuda")
    model, bad = made(config, device, dtype), torch.zeros((), dtype=torch.int64, device=device)
    optimiser, scaler = make_optimiser(model, config), torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    try:
        for number in range(3):
            torch.cuda.set_sync_debug_mode("error" if number else "default")
            outputs, _, _ = train_step(config, model, optimiser, scaler, batch(config), number, bad)
            model.enqueue(outputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert int(bad) == 0 and int(model.queue.cursor) == 3 * (2 if config.symmetric else 1) * 4 % 8
