"""What a training step costs: ``python benchmarks/step.py [--arch r2plus1d_10] [--batch 4] [--rounds 3]``

Our step beside the authors' arithmetic (contiguous float32, 18 clip-forwards of work a sample where ours has 14), alternately
in one process, on random clips of 16x112x112, with the same modules: what differs is layout, precision and passes. In float32
both are the same mathematics, which is checked. Then where our time goes, and how it stands to the device's matrix rate.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from dclr.backbones import ARCHITECTURES, build
from dclr.config import PretrainConfig
from dclr.hardware import peak_memory_gb, pick_device, place, resolve_precision
from dclr.model import DCLR, Maps, Views
from dclr.pretrain import make_optimiser

CLIP = (3, 16, 112, 112)
QUEUE = 64


class Authors(DCLR):
    """The same step with the published passes of f_k, 9 clip-forwards instead of 5: all views of the query clip for its maps,
    and the key clip's views once more for theirs."""

    def keys(self, q: Views, k: Views, step: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Maps]:
        key, _ = self.f_k(k)
        self.f_k(k, track=False)
        extra, target = self.f_k(q, track=False)
        return key, {name: extra[name] for name in ("sv", "dv")}, {name: target[name] for name in "sd"}


def stepper(model: DCLR, clips: list[Views], ids: torch.Tensor) -> Callable[[], float]:
    """A whole training step: losses, backward, optimiser, queue."""
    optimiser = make_optimiser(model, PretrainConfig(shards="", out="", split=("",)))

    def step() -> float:
        output = model(*clips, ids)
        optimiser.zero_grad(set_to_none=True)
        output.total.backward()
        optimiser.step()
        model.enqueue([output])
        return float(output.total.detach())

    return step


def timed(step: Callable[[], float]) -> tuple[float, float]:
    began = time.perf_counter()
    total = step()  # reads the loss: a GPU is done
    return time.perf_counter() - began, total


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large product: what the device can do at most."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in "ab")
    rates = []
    for _ in range(10):
        began = time.perf_counter()
        float((a @ b)[0, 0])
        rates.append(2 * side**3 / (time.perf_counter() - began))
    return max(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="r2plus1d_10", choices=list(ARCHITECTURES))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    device = pick_device()
    half = resolve_precision("auto", device)
    torch.manual_seed(0)
    first = DCLR(build(args.arch), QUEUE).to(device).train()
    filling = torch.nn.functional.normalize(torch.randn(QUEUE, 128), dim=1).to(device)
    first.queue.enqueue({ring: filling for ring in first.queue.rings}, torch.arange(1000, 1000 + QUEUE, device=device))
    clips = [{view: torch.randn(args.batch, *CLIP, device=device) for view in "vsd"} for _ in "qk"]
    last = [{v: x.contiguous(memory_format=torch.channels_last_3d) for v, x in views.items()} for views in clips]
    ids = torch.arange(args.batch)

    def ours(dtype: torch.dtype) -> Callable[[], float]:
        model = place(copy.deepcopy(first), device)
        model.precision = dtype
        return stepper(model, last, ids)

    authors = copy.deepcopy(first)
    authors.__class__ = Authors
    ways = {"authors' arithmetic": stepper(authors, clips, ids), "ours, fp32": ours(torch.float32)}
    if half != torch.float32:
        ways[f"ours, {str(half)[6:]}"] = ours(half)
    totals = {name: step() for name, step in ways.items()}  # the first step warms up; from the same weights
    print(f"{args.arch}, batch {args.batch}, {device}, {torch.get_num_threads()} threads; losses of the first step:")
    print("  " + ", ".join(f"{name} {total:.6f}" for name, total in totals.items()))
    same = abs(totals["ours, fp32"] - totals["authors' arithmetic"]) / totals["authors' arithmetic"]
    print(f"  fp32: the same mathematics to {same:.1e} (goal 1e-4)")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, step in ways.items():
            seconds[name].append(timed(step)[0])
    for name, found in seconds.items():
        ratios = sorted(a / b for a, b in zip(seconds["authors' arithmetic"], found, strict=True))
        median = statistics.median(found)
        print(
            f"{name}: {median:.2f} s a step, {args.batch / median:.2f} samples/s, {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f}-{ratios[-1]:.2f}) of the authors'"
        )
    best = list(ways)[-1]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        first.f_q.backbone(clips[0]["v"][:1])
    work = counter.get_total_flops() * args.batch * (3 * 3 + 5)  # a backward pass is twice a forward one
    rate = matrix_rate(device, half)
    share = work / statistics.median(seconds[best]) / rate
    print(f"{work / args.batch / 1e9:.0f} GFLOP a sample; {rate / 1e12:.2f} TFLOP/s measured: utilisation {share:.0%} ({best})")
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiled:
        ways[best]()
    events = profiled.key_averages()

    def own(event: object) -> float:
        return float(getattr(event, "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"))

    total = sum(own(event) for event in events)
    parts = sorted(((own(event) / total, str(event.key)) for event in events), reverse=True)
    inside = sum(part for part, name in parts if "conv" in name.lower())
    print(f"outside convolutions: {1 - inside:.0%} of {best} (goal 15 %); " + ", ".join(f"{n} {p:.0%}" for p, n in parts[:8]))
    print(f"peak memory {peak_memory_gb():.1f} GB")


if __name__ == "__main__":
    main()
