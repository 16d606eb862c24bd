"""The static view by its distinct frames is the static view: values, gradients, statistics. And what a step costs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import steps
import torch
from conftest import succeed
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dclr import distributed
from dclr.method import norm, still
from dclr.method.backbones import build
from dclr.method.backbones.layers import Conv3d
from dclr.method.model import DCLR, Encoder, Method, Output

STILL = {"queue": 9, "filled": 9, "frames": 16, "size": 32}
RESNETS = ("r2plus1d_10", "r2plus1d_18", "r3d_18", "mc3_18")


def worst(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest difference of a tensor over its largest value."""
    assert found.keys() == wanted.keys()
    pairs = [(found[name].double(), wanted[name].double()) for name in wanted]
    return max(float((one - other).abs().max() / other.abs().max().clamp(min=1e-300)) for one, other in pairs)


def encoders(arch: str, **statistics: Any) -> tuple[Encoder, Encoder]:
    """Two of the same weights: over distinct frames, and over all."""
    torch.manual_seed(0)
    one = Encoder(build(arch, 4), statistics=norm.Statistics(**statistics)).double().train()
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    other = copy.deepcopy(one)
    other.distinct = False
    return one, other


def clip(frames: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(frames)
    return torch.randn(4, 3, 1, 32, 32, generator=draw, dtype=torch.float64).expand(-1, -1, frames, -1, -1)


def after(encoder: Encoder, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Features of the view s, gradients and running statistics after a pass."""
    features = encoder.features({"s": x})["s"]
    back = torch.randn(features.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    encoder.zero_grad()
    (features * back).sum().backward()
    gradients = {f"gradient {name}": p.grad for name, p in encoder.backbone.named_parameters() if p.grad is not None}
    return {"features": features.detach()} | gradients | dict(encoder.named_buffers())


@pytest.mark.parametrize("frames", [1, 2, 5, 8, 13, 16])
@pytest.mark.parametrize("arch", RESNETS)
def test_distinct_frames_are_all_frames(arch: str, frames: int) -> None:
    for statistics in ({}, {"mode": "local", "groups": 2}):
        one, other = encoders(arch, **statistics)
        assert worst(after(one, clip(frames)), after(other, clip(frames))) < 1e-11
        one.eval(), other.eval()
        assert worst(after(one, clip(frames)), after(other, clip(frames))) < 1e-11


def test_the_frames_that_differ_are_those_near_the_ends() -> None:
    """Behind the stem, layer1 ... of r2plus1d_10: how many of the frames are kept, and what the one stands for."""
    found, frames = [], still.compact(clip(16))
    trunk = norm.convert(build("r2plus1d_10", 4), norm.Statistics()).double()
    for stage in trunk.children():
        frames = still.run(stage, frames)
        found.append((frames.x_BCNHW.shape[2], frames.at, frames.times))
    assert found == [(3, 1, 14), (7, 3, 10), (7, 3, 2), (4, 0, 1), (2, 0, 1)]
    whole = trunk.stem(clip(16))
    kept = trunk.layer1(whole)
    torch.testing.assert_close(kept[:, :, 3:13], kept[:, :, 3:4].expand(-1, -1, 10, -1, -1))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (3, 1), (3, 0), (5, 2), (5, 1), (7, 3)])
def test_any_convolution_in_time(kernel: int, padding: int, stride: int) -> None:
    conv = Conv3d(3, 4, (kernel, 1, 1), (stride, 1, 1), (padding, 0, 0)).double()
    ends = torch.randn(2, 3, 5, 2, 2, dtype=torch.float64)
    for times in range(1, 20):
        for at in range(5):
            frames = still.Frames(ends, at, times)
            whole = still.stretch(frames, times)
            if whole.shape[2] + 2 * padding < kernel:
                continue
            found = still.convolve(conv, frames)
            torch.testing.assert_close(still.stretch(found, found.times), conv(whole), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_step_over_distinct_frames_is_the_step(ranks: int, tmp_path: Path) -> None:
    """Losses, gradients, running statistics, keys and queues to 1e-12 of each tensor's largest value; to 1e-11 through the 18
    layers of r2plus1d_18, which amplify rounding."""
    cases: list[steps.Case] = [STILL | {"steps": 1}, *(STILL | {"steps": 1, "frames": 8, "arch": arch} for arch in RESNETS[1:])]
    for mode in ("local", "shuffle"):
        cases.append(STILL | {"steps": 1, "statistics": {"mode": mode, "groups": 3 - ranks}})
    cases += [STILL | {"steps": 1, "frames": 13}, STILL | {"steps": 1, "checkpointed": True}]
    cases += [STILL | {"steps": 1, "method": {"symmetric": True}}, STILL | {"steps": 1, "statistics": {"views": "shared"}}]
    both = [case | {"distinct": distinct} for case in cases for distinct in (True, False)]
    if ranks == 1:
        results = [steps.run(case) for case in both]
    else:
        succeed(Path(steps.__file__), json.dumps(both), tmp_path / "both.pt", ranks=ranks)
        results = torch.load(tmp_path / "both.pt", weights_only=True)
    errors = [worst(one[-1], other[-1]) for one, other in zip(results[::2], results[1::2], strict=True)]
    print(f"largest difference of each case, relative: {', '.join(f'{error:.1e}' for error in errors)}")
    assert errors.pop(1) < 1e-11 and max(errors) < 1e-12


def test_twenty_steps_learn_the_same() -> None:
    found, wanted = (steps.run(STILL | {"steps": 20, "frames": 8, "distinct": distinct}) for distinct in (True, False))
    pairs = [(one[name], other[name]) for one, other in zip(found, wanted, strict=True) for name in one if "loss" in name]
    assert max(float((one - other).abs()) for one, other in pairs) < 1e-9 and len(pairs) == 20 * 7


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_single_and_half_precision(precision: torch.dtype) -> None:
    """A training step's losses and gradients are as near to the exact ones as over all frames.

    In float32 either way may be off by a hundredth where rounding turns a ReLU: with two threads the way over all frames is."""
    q, k, video = steps.batch(0, 32, 16)

    def one(dtype: torch.dtype, distinct: bool, half: bool) -> dict[str, torch.Tensor]:
        model = steps.make(STILL).to(dtype)
        model.precision = torch.bfloat16 if half else torch.float32
        model.f_q.distinct = model.f_k.distinct = distinct
        views = [
            {name: x[:, :, :1].to(dtype).expand_as(x) if name == "s" else x.to(dtype) for name, x in c.items()} for c in (q, k)
        ]
        output = model(*views, video)
        output.total.backward()
        return {"total": output.total.detach()} | {
            name: p.grad for name, p in model.f_q.named_parameters() if p.grad is not None
        }

    found, plain = (one(torch.float32, distinct, precision == torch.bfloat16) for distinct in (True, False))
    exact = one(torch.float64, False, False)
    if precision == torch.float32:
        errors = [worst({name: x.double() for name, x in way.items()}, exact) for way in (found, plain)]
        assert errors[0] < max(1e-4, 1.5 * errors[1])
    else:
        off = [sum(float((x[name].double() - exact[name]).norm() ** 2) for name in exact) for x in (found, plain)]
        assert off[0] < 1.5**2 * off[1]


def test_other_trunks_and_clips_take_all_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(still, "run", None)
    for arch, statistics, x in (
        ("i3d", {}, clip(8)),
        ("r2plus1d_10", {"views": "shared"}, clip(8)),
        ("r2plus1d_10", {}, clip(8).contiguous()),
    ):
        encoder, _ = encoders(arch, **statistics)
        assert encoder.features({"s": x})["s"].isfinite().all()
    with pytest.raises(TypeError):
        encoders("r2plus1d_10")[0].features({"s": clip(8)})


def test_a_frame_counts_as_often_as_it_stands_for() -> None:
    """BatchNorm alone, against torch's over the copies: output, gradients, running statistics."""
    x, back = torch.randn(4, 3, 5, 2, 2, dtype=torch.float64), torch.randn(4, 3, 11, 2, 2, dtype=torch.float64)
    for at in range(5):
        frames = still.Frames(x.clone().requires_grad_(), at, 7)
        whole = still.stretch(frames._replace(x_BCNHW=x), 7).requires_grad_()
        ours, theirs = norm.ViewBatchNorm(nn.BatchNorm3d(3), norm.Statistics()).double(), nn.BatchNorm3d(3).double()
        found = still.run(ours, frames)
        (still.stretch(found, 7) * back).sum().backward()
        (theirs(whole) * back).sum().backward()
        assert whole.grad is not None
        dx = torch.cat([whole.grad[:, :, :at], whole.grad[:, :, at : at + 7].sum(2, True), whole.grad[:, :, at + 7 :]], 2)
        torch.testing.assert_close(frames.x_BCNHW.grad, dx)
        torch.testing.assert_close([p.grad for p in ours.parameters()], [p.grad for p in theirs.parameters()])
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
        torch.testing.assert_close(ours.running_var, theirs.running_var)


def flops(run: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_a_steps_work_is_below_11_4_clip_forwards() -> None:
    """In units of one trunk forward pass of one view, the backward pass included; over all frames it is 14."""
    torch.manual_seed(0)
    model, views = DCLR(build("r2plus1d_10", 16), 8).train(), [{v: torch.randn(1, 3, 16, 64, 64) for v in "vsd"} for _ in "qk"]
    for side in views:
        side["s"] = side["s"][:, :, :1].expand_as(side["v"])
    unit = flops(lambda: model.f_k.features({"v": views[0]["v"]}))
    units = {}
    for distinct in (True, False):
        model.f_q.distinct = model.f_k.distinct = distinct
        units[distinct] = flops(lambda: model(*views, torch.zeros(1, dtype=torch.int64)).total.backward()) / unit
    assert units[True] < 11.4 and 13.8 < units[False] < 14.05


@pytest.mark.parametrize(("of_views", "passes"), [("split", 6), ("shared", 4)])
def test_a_symmetric_step_passes_each_view_once(of_views: str, passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through f_k, which each clip's statistics move once, k's first. Shared statistics have four passes, of 10 clips."""
    model = DCLR(build("r2plus1d_10", 4), 8, Method(symmetric=True), norm.Statistics(views=of_views)).train().double()
    q, k, video = steps.batch(0, 16)
    expected, seen = copy.deepcopy(model.f_k), []
    run = Encoder._run
    monkeypatch.setattr(Encoder, "_run", lambda self, *rest: seen.append(self is model.f_k) or run(self, *rest))
    model(q, k, video)
    assert sum(seen) == passes
    with torch.no_grad():
        expected(k), expected(q)
    for (name, found), (_, wanted) in zip(model.f_k.named_buffers(), expected.named_buffers(), strict=True):
        torch.testing.assert_close(found, wanted, msg=name)


def test_the_queue_is_joined_in_one_collective(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids above 2**53, and keys bit for bit, as the other of two ranks would send them; of both sides of a symmetric step."""
    model = DCLR(build("r2plus1d_10", 4), 8, Method(symmetric=True))
    keys = tuple({ring: torch.randn(2, 128) for ring in model.queue.rings} for _ in "qk")
    video = torch.tensor([2**62 + 1, -(2**53) - 1])
    calls = []
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "joined", lambda x: calls.append(1) or torch.cat([x, x.flip(0)]))
    zero = torch.zeros(())
    model.enqueue([Output(zero, {}, {}, keys, video, zero)])
    assert len(calls) == 1
    assert model.queue.video_K.tolist() == [*video, *video.flip(0)] * 2
    for ring in model.queue.rings:
        expected = torch.cat([x for side in keys for x in (side[ring], side[ring].flip(0))])
        assert torch.equal(model.queue[ring], expected)
