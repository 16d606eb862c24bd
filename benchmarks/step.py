"""What a training step costs, as a table in Markdown. On a GPU, everything in one command:

    python benchmarks/step.py --arch r2plus1d_10 r2plus1d_18 --compile --pad --largest

Our step, with the static view by its distinct frames and by all, beside the authors' arithmetic (contiguous float32, all
frames, 18 clip-forwards of work a sample), alternately in one process, on random clips, with the same modules: what differs is
layout, precision, passes and frames. In float32 all are the same mathematics, which is checked. Work is in units of one trunk
forward pass of one view. Utilisation is the arithmetic of a way's own passes over its time and the measured rate of a matrix
product; the roofline is that arithmetic at that rate, then BatchNorm's and ReLU's traffic at a copy's bandwidth.

Without timing, as a test or a log wants it: ``python benchmarks/step.py --count --json``.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dclr.data.clips import COLOURS, draw_colours
from dclr.hardware import peak_memory_gb, pick_device, place, resolve_precision
from dclr.method.backbones import ARCHITECTURES, build
from dclr.method.backbones.layers import Conv3d
from dclr.method.model import DCLR, Keys, Method, Views
from dclr.method.views import make_views
from dclr.pretraining.config import PretrainConfig
from dclr.pretraining.pretrain import make_optimiser
from dclr.settings import several

QUEUE = 2048
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
GOALS = {("cpu", "ours, fp32"): "2.4", ("cpu", "ours, bf16"): "5.5", ("cuda", "ours, bf16"): "4, 30 %"}
PASSES = {
    "batch_norm_backward": 5,
    "batch_norm_update_stats": 1,
    "batch_norm": 3,
    "threshold_backward": 3,
    "relu": 2,
}  # over the activation, read or written
COLUMNS = (
    "network", "way", "batch", "s a step", "samples/s", "of the authors' (spread)", "goal", "utilisation",
    "roofline, s: convolutions + BatchNorm and ReLU", "outside convolutions (goal 15 %)", "peak GB",
)  # fmt: skip
WAIT = """\
- the loader's wait (goal 3 % of a step) is speed/data_wait in runs/wait/metrics.jsonl after
  `python -m preprocess synthetic --hard --videos 9600 --out shards/wait` and
  `python train_pretrain.py --shards shards/wait --split train -a {} -b {} -j 16 --epochs 2 --out runs/wait`"""


class Authors(DCLR):
    """The same step with the published passes of f_k, 9 clip-forwards instead of 5: all views of the query clip for its maps,
    and the key clip's views once more for theirs."""

    def keys(self, q: Views, k: Views, step: int) -> list[Keys]:
        key, maps = self.f_k(k)
        self.f_k(k, track=False)
        extra, target = self.f_k(q, track=False)
        own_maps, key_maps = ({name: found[name] for name in "sd"} for found in (target, maps))
        return [(key, {name: extra[name] for name in ("sv", "dv")}, own_maps, key_maps)]


def all_frames(model: DCLR) -> DCLR:
    """``model``, which computes the equal frames of the static view again and again from now on."""
    model.f_q.distinct = model.f_k.distinct = False
    return model


def timed(run: Callable[[], object], times: int = 1) -> float:
    """Seconds of one ``run`` of ``times`` in a row, from an idle device to an idle device."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    began = time.perf_counter()
    for _ in range(times):
        run()
    wait()
    return (time.perf_counter() - began) / times


def fastest(run: Callable[[], object]) -> float:
    """Seconds of ``run`` in the best of ten tries, after two that warm up."""
    return min([timed(run, 10 if torch.cuda.is_available() else 1) for _ in range(12)][2:])


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large product: what the device can do at most. Float32 on a GPU is with TF32, as cuDNN's convolutions are."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in "ab")
    torch.backends.cuda.matmul.allow_tf32 = True
    seconds = fastest(lambda: a @ b)
    torch.backends.cuda.matmul.allow_tf32 = False  # as it was: the losses are in true float32
    return 2 * side**3 / seconds


def copy_rate(device: torch.device) -> float:
    """Bytes/s, read and written, of a copy that no cache holds."""
    a, b = (torch.zeros(2 ** (30 if device.type == "cuda" else 28), dtype=torch.uint8, device=device) for _ in "ab")
    return 2 * a.nbytes / fastest(lambda: a.copy_(b))


class Way:
    """One way to take a training step, and what was measured of it: ``loss`` of the first, ``seconds``, ``peak`` GB."""

    def __init__(self, name: str, model: DCLR, clips: Sequence[Views], dtype: torch.dtype):
        self.name, self.model, self.clips, self.dtype = name, model, clips, dtype
        self.model.precision = dtype
        self.optimiser = make_optimiser(model, PretrainConfig(shards="set", out="run", split=("train",)))
        self.seconds, self.loss, self.peak = list[float](), math.nan, math.nan

    @property
    def batch(self) -> int:
        return len(self.clips[0]["v"])

    def speed(self) -> float:
        """Samples a second."""
        return self.batch / statistics.median(self.seconds)

    def step(self) -> torch.Tensor:
        """The trainer's step (dclr/pretraining/pretrain.py): losses, backward, gradient norm, optimiser, queue."""
        output = self.model(*self.clips, torch.arange(self.batch))
        output.total.backward()
        gradient = nn.utils.clip_grad_norm_(self.model.f_q.parameters(), math.inf)
        self.optimiser.found_inf = (~torch.isfinite(gradient)).float()  # type: ignore[attr-defined]
        self.optimiser.step()
        self.model.enqueue([output])
        self.optimiser.zero_grad(set_to_none=True)
        return output.total.detach()

    def parts(self) -> str:
        """Where the time of a step goes: f_k's passes, and the rest (f_q, losses, backward, optimiser, queue)."""
        amp = torch.autocast(self.clips[0]["v"].device.type, self.dtype, enabled=self.dtype != torch.float32)
        with torch.no_grad(), amp:
            q, k = self.clips
            keys = min(timed(lambda: self.model.keys(q, k, 0)) for _ in range(3))
        return f"{self.name}: f_k {keys:.3g} s, f_q and the rest {statistics.median(self.seconds) - keys:.3g} s"

    def warm(self) -> None:
        """The first step, with half the batch until it fits; true float32 where it is float32, so that losses can be compared.
        On a GPU then a second one, whose peak is kept: without what the other ways hold."""
        while math.isnan(self.peak):
            torch.backends.cudnn.allow_tf32 = False
            try:
                self.loss, self.peak = float(self.step()), 0
            except torch.OutOfMemoryError:
                if self.batch == 1:
                    raise
                self.clips = [{view: x[: self.batch // 2] for view, x in views.items()} for views in self.clips]
            finally:
                torch.backends.cudnn.allow_tf32 = True  # torch's default, which the trainer leaves
            self.optimiser.zero_grad(set_to_none=True)
            let_go()
        if torch.cuda.is_available():
            mine = [x for views in self.clips for x in views.values()]
            mine += [*self.model.state_dict().values(), *self.model.f_q.parameters()]  # the latter once more: their momentum
            others = torch.cuda.memory_allocated() - sum(x.nbytes for x in mine)
            torch.cuda.reset_peak_memory_stats()
            timed(self.step)
            self.peak = (torch.cuda.max_memory_allocated() - others) / 1e9

    def measure(self) -> None:
        """A round: on a GPU five steps in a row, after one that takes back the memory left by the way before."""
        if torch.cuda.is_available():
            self.step()
        self.seconds.append(timed(self.step, 5 if torch.cuda.is_available() else 1))


def let_go() -> None:
    """Give memory that nothing refers to back to the device."""
    gc.collect()
    torch.cuda.empty_cache()


class Traffic(TorchDispatchMode):
    """Elements that BatchNorm and ReLU read and write: each activation times its :data:`PASSES`, were no two of them fused."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.elements += next((n * args[0].numel() for name, n in PASSES.items() if name in func._schema.name), 0)
        return func(*args, **(kwargs or {}))


def count(trunk: nn.Module, shape: tuple[int, ...]) -> np.ndarray:
    """FLOP and elements of :class:`Traffic` of a clip (3, T, H, W), int64 (2, 2): forward; forward and backward."""
    with FlopCounterMode(display=False) as flops, Traffic() as traffic:
        out = trunk(torch.randn(1, *shape))
        forward = flops.get_total_flops(), traffic.elements
        out.mean().backward()
    return np.array([forward, (flops.get_total_flops(), traffic.elements)])


def count_step(model: DCLR, shape: tuple[int, ...]) -> np.ndarray:
    """FLOP and elements of :class:`Traffic` of a training step of one video, int64 (2,)."""
    with FlopCounterMode(display=False) as flops, Traffic() as traffic:
        model(*random_clips(1, shape, torch.device("cpu")), torch.zeros(1, dtype=torch.int64)).total.backward()
    return np.array([flops.get_total_flops(), traffic.elements])


def work(arch: str, width: int, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """:func:`count_step` of each way to take a step."""
    ours, both, authors, every = (
        DCLR(build(arch, width), 8, Method(symmetric=symmetric)).train() for symmetric in (False, True, False, False)
    )
    authors.__class__ = Authors
    found = {"ours": ours, "ours, all frames": all_frames(every), "authors": all_frames(authors), "ours, symmetric": both}
    return {name: count_step(model, shape) for name, model in found.items()}


class Operators(TorchDispatchMode):
    """Operators that are run, views of memory included."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


def augmentation_operators(batch: int, frames: int, size: int) -> int:
    """Operators that make the views of both clips of a batch."""
    clips = random_batch(batch, frames, size)
    make_views(clips, 0, "rgbdiff", torch.device("cpu"))  # constants are made once
    with Operators() as operators:
        for clip in (0, 1):
            make_views(clips, clip, "rgbdiff", torch.device("cpu"))
    return operators.number


def counts(arch: str, width: int, batch: int, frames: int, size: int) -> dict[str, Any]:
    """What a step costs without a clock: units are of one trunk forward pass of one view, FLOP of one video."""
    shape = (3, frames, size, size)
    unit, found = count(build(arch, width), shape)[0, 0], work(arch, width, shape)
    return {
        "arch": arch,
        "batch": batch,
        "augmentation_operators": augmentation_operators(batch, frames, size),
        "units": round(float(found["ours"][0] / unit), 3),
        "units_all_frames": round(float(found["ours, all frames"][0] / unit), 3),
        "units_authors": round(float(found["authors"][0] / unit), 3),
        "units_symmetric": round(float(found["ours, symmetric"][0] / unit), 3),
        "flop": int(found["ours"][0]),
        "flop_all_frames": int(found["ours, all frames"][0]),
        "flop_authors": int(found["authors"][0]),
    }


def pad(trunk: nn.Module) -> None:
    """Fill up R(2+1)D's middle widths (45, 230, 460, 921) with zeros to multiples of 8, in place: the same function, and it
    stays the same in training, since the zeros' gradients are zeros."""

    def grow(module: nn.Module, name: str, axis: int, more: int) -> None:
        old = getattr(module, name)
        new = F.pad(old.detach(), [0, 0] * (old.dim() - 1 - axis) + [0, more])
        setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)

    for pair in trunk.modules():
        if isinstance(pair, nn.Sequential) and len(pair) > 3 and isinstance(pair[0], Conv3d) and isinstance(pair[3], Conv3d):
            more = -len(pair[0].weight) % 8
            for name in [name for name, x in pair[1].state_dict().items() if x.dim()]:
                grow(pair[1], name, 0, more)
            grow(pair[0], "weight", 0, more)
            grow(pair[3], "weight", 1, more)


def time_by_operator(events: Iterable[Any], on_gpu: bool) -> dict[str, float]:
    """Each operator's own time in profiled ``events``. On a GPU that is the time of the kernels that it launches, whose own
    names seldom say what they do; kernels that no operator launched are "others"."""
    host = [event for event in events if event.device_type == DeviceType.CPU and not event.is_user_annotation]
    if not on_gpu:
        return {event.key: event.self_cpu_time_total for event in host}
    found = {event.key: event.self_device_time_total for event in host if event.self_device_time_total}
    kernels = [event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    return found | {"others": max(0.0, sum(event.self_device_time_total for event in kernels) - sum(found.values()))}


def outside_convolutions(way: Way, on_gpu: bool) -> str:
    """The share of a step's time outside convolutions, forward and backward; where the time goes is printed."""
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiled:
        timed(way.step)
    spent = time_by_operator(profiled.key_averages(), on_gpu)
    total = sum(spent.values())
    if not total:
        return "no trace"  # a GPU whose counters this user may not read
    inside = sum(t for name, t in spent.items() if name.startswith(("aten::", "mkldnn::")) and "conv" in name)
    parts = ", ".join(f"{name} {spent[name] / total:.0%}" for name in sorted(spent, key=lambda name: -spent[name])[:8])
    busy = f" ({total / 1e6 / statistics.median(way.seconds):.0%} of a step the GPU is busy)" if on_gpu else ""
    print(f"  {way.name}{busy}: {parts}")
    return f"{1 - inside / total:.0%}"


def host_waits(run: Callable[[], object]) -> int:
    """How often the host waits for the GPU in ``run``."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        run()
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing CUDA operation" in str(warning.message) for warning in said)


def random_batch(batch: int, frames: int, size: int) -> dict[str, torch.Tensor]:
    """What the loader hands over of two clips a video (dclr/data/clips.py), with random pictures."""
    draws = [draw_colours(np.random.default_rng(n)) for n in range(batch * 4)]
    return {
        "rgb": torch.randint(256, (batch, 2, frames, size, size, 3), dtype=torch.uint8),
        "frames": torch.arange(0, 2 * frames, 2).repeat(batch, 2, 1),
        "still": torch.randint(frames, (batch, 2)),
        "colours": torch.from_numpy(np.stack(draws)).view(batch, 2, 2, COLOURS),
    }


def random_clips(batch: int, shape: tuple[int, ...], device: torch.device) -> list[Views]:
    """Views of the two clips of ``batch`` videos, as make_views gives them: channels last, the frames of s one frame."""
    layout = torch.channels_last_3d
    clips = [{v: torch.randn(batch, *shape, device=device).contiguous(memory_format=layout) for v in "vsd"} for _ in "qk"]
    return [views | {"s": views["s"][:, :, :1].contiguous(memory_format=layout).expand_as(views["v"])} for views in clips]


class Bench:
    """One network: its ways measured alternately, then the largest batch. ``rows`` of the table and ``notes`` to it."""

    def __init__(self, arch: str, args: argparse.Namespace, device: torch.device):
        self.arch, self.args, self.device, self.rows, self.notes = arch, args, device, list[str](), list[str]()
        self.on_gpu, self.half = device.type == "cuda", resolve_precision("auto", device)
        self.rates = {dtype: matrix_rate(device, dtype) for dtype in dict.fromkeys((torch.float32, self.half))}
        self.bandwidth, self.shape = copy_rate(device), (3, args.clip[0], args.clip[1], args.clip[1])
        self.unit, self.work = count(build(arch, args.width), self.shape)[0, 0], work(arch, args.width, self.shape)
        rates = ", ".join(f"{rate / 1e12:.2f} TFLOP/s in {NAMES[dtype]}" for dtype, rate in self.rates.items())
        self.note(f"{self.unit / 1e9:.1f} GFLOP a clip forward; measured {rates}, {self.bandwidth / 1e9:.0f} GB/s")
        torch.manual_seed(0)
        self.first = DCLR(build(arch, args.width), QUEUE).train().to(device)
        filling = F.normalize(torch.randn(QUEUE, 128), dim=1).to(device)
        self.first.queue.enqueue({ring: filling for ring in self.first.queue.rings}, torch.arange(-QUEUE, 0, device=device))

    def note(self, text: str) -> None:
        self.notes.append(f"- {self.arch}: {text}")
        print(self.notes[-1], flush=True)

    def ours(
        self, name: str, clips: Sequence[Views], padded: bool = False, compiled: bool = False, distinct: bool = True
    ) -> Way:
        model = copy.deepcopy(self.first)
        for encoder in (model.f_q, model.f_k):
            if padded:
                pad(encoder.backbone)
            if compiled:  # a graph a view, with and without gradient and tracking: more than dynamo's limit
                torch._dynamo.config.recompile_limit = 64
                encoder.backbone.compile(fullgraph=True, dynamic=False, mode=self.args.compile)
        if compiled or not distinct:  # the graph is that of whole clips
            all_frames(model)
        return Way(f"ours, {name}", place(model, self.device), clips, torch.float32 if "fp32" in name else self.half)

    def run(self, batch: int) -> tuple[int, float]:
        """Measure every way; returns the batch of our eager step, and the authors' samples a second."""
        half, clips, model = (
            NAMES[self.half],
            random_clips(batch, self.shape, self.device),
            all_frames(copy.deepcopy(self.first)),
        )
        model.__class__ = Authors
        plain = [{view: x.contiguous() for view, x in views.items()} for views in clips]
        authors, single = Way("authors' arithmetic", model, plain, torch.float32), self.ours("fp32", clips)
        eager = single if half == "fp32" else self.ours(half, clips)
        every = self.ours(f"{half}, all frames of s", clips, distinct=False)
        ways = list(dict.fromkeys((authors, single, every, eager)))
        for padded in (False, True) if self.args.pad else (False,):
            name = f"{half}, padded" if padded else half
            if padded:
                ways.append(self.ours(name, clips, padded))
            if self.args.compile:
                ways.append(self.ours(f"{name}, compiled ({self.args.compile})", clips, padded, compiled=True))
        for way in [*ways]:
            try:
                seconds = timed(way.warm)
                print(f"  {way.name}: batch {way.batch}, first loss {way.loss:.6f}, after {seconds:.0f} s", flush=True)
            except Exception as error:
                if "compiled" not in way.name:
                    raise
                ways.remove(way)  # a compiler's mistake does not cost the other ways their rows
                self.note(f"{way.name} does not work: {type(error).__name__}: {' '.join(str(error).split())[:500]}")
        if authors.batch == single.batch:
            self.note(f"fp32 is the same mathematics to {abs(single.loss / authors.loss - 1):.1e} (goal 1e-4)")
        for _ in range(self.args.rounds):
            for way in ways:
                way.measure()
        self.views(eager)
        for way in (authors, every, eager):
            self.note(f"{self.done(way)[0] / self.unit:.2f} units of work a sample, {way.parts()}")
        for way in ways:
            outside = "" if way is authors else outside_convolutions(way, self.on_gpu)
            ratios = sorted(way.batch / b * a / authors.batch for a, b in zip(authors.seconds, way.seconds, strict=True))
            self.row(way, f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})", outside)
        return eager.batch, authors.speed()

    def largest(self, batch: int, authors: float) -> None:
        """A row of our step with ``batch``, which fits, doubled for as long as that fits."""
        let_go()
        way = self.ours(f"{NAMES[self.half]}, the largest batch", random_clips(2 * batch, self.shape, self.device))
        way.warm()
        if way.batch > batch:
            del way
            return self.largest(2 * batch, authors)
        for _ in range(self.args.rounds):
            way.measure()
        self.row(way, f"{way.speed() / authors:.2f}", "")

    def views(self, way: Way) -> None:
        """Note the share of ``way``'s step that colours and views take, and how often the host waits for a GPU."""
        batch = random_batch(way.batch, *self.shape[1:3])
        make = lambda: [make_views(batch, clip, "rgbdiff", self.device) for clip in (0, 1)]  # noqa: E731
        seconds = min([timed(make) for _ in range(4)][1:])
        operators = augmentation_operators(way.batch, *self.shape[1:3])
        share = seconds / (seconds + statistics.median(way.seconds))
        self.note(
            f"colours and views run {operators} operators (goal 800) and take {seconds:.4f} s, "
            f"{share:.1%} of a step of {way.name} (goal 10 %)"
        )
        if self.on_gpu:
            self.note(
                f"the host waits for the GPU {host_waits(way.step)} times a step, {host_waits(make)} in the views (goal 0)"
            )

    def done(self, way: Way) -> np.ndarray:
        """FLOP and traffic of one video in ``way``, int64 (2,)."""
        ours = "ours" if way.model.f_q.distinct else "ours, all frames"
        return self.work["authors" if isinstance(way.model, Authors) else ours]

    def row(self, way: Way, ratio: str, outside: str) -> None:
        """Add ``way`` to the table."""
        seconds = statistics.median(way.seconds)
        flops, elements = (int(n) * way.batch for n in self.done(way))
        least = flops / self.rates[way.dtype], elements * way.dtype.itemsize / self.bandwidth
        cells = (
            self.arch, way.name, way.batch, f"{seconds:.3g}", f"{way.speed():.3g}", ratio,
            GOALS.get((self.device.type, way.name), ""), f"{least[0] / seconds:.0%}",
            f"{least[0]:.3g} + {least[1]:.3g}, {sum(least) / seconds:.0%} of the step", outside,
            f"{way.peak:.1f}" if way.peak else "",
        )  # fmt: skip
        self.rows.append(f"| {' | '.join(map(str, cells))} |")
        print(self.rows[-1], flush=True)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, cuDNN {torch.backends.cudnn.version()}"
    known = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.partition(": ")[2] for line in known if line.startswith("model name"))
    return f"{next(names, 'a processor')}, {torch.get_num_threads()} threads, no GPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["r2plus1d_10"], help=f"some of {', '.join(ARCHITECTURES)}")
    parser.add_argument("--batch", type=int, help="64 on a GPU, 4 on the CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clip", type=int, nargs=2, default=(16, 112), metavar=("T", "S"), help="frames and side (16 112)")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--compile", nargs="?", const="default", metavar="MODE", help="also torch.compile of the trunk")
    parser.add_argument("--pad", action="store_true", help="also with middle widths padded to multiples of 8")
    parser.add_argument("--largest", action="store_true", help="also the largest batch that fits, on a GPU")
    parser.add_argument("--cudnn-benchmark", action="store_true", help="cuDNN tries its algorithms at the first step")
    parser.add_argument("--count", action="store_true", help="operators and work alone, without timing")
    parser.add_argument("--json", action="store_true", help="with --count: as JSON, a line a network")
    args, device = parser.parse_args(), pick_device()
    args.arch = several(args.arch)
    if unknown := set(args.arch) - set(ARCHITECTURES):
        parser.error(f"--arch {', '.join(unknown)}: expected some of {', '.join(ARCHITECTURES)}")
    if args.json and not args.count:
        parser.error("--json goes with --count")
    if args.largest and device.type != "cuda":
        parser.error("--largest needs a GPU")
    torch.backends.cudnn.benchmark = args.cudnn_benchmark
    batch, rows, notes = args.batch or (64 if device.type == "cuda" else 4), list[str](), list[str]()
    if args.count:
        for arch in args.arch:
            found = counts(arch, args.width, batch, *args.clip)
            print(json.dumps(found) if args.json else "\n".join(f"{name:>24} {value}" for name, value in found.items()))
        return
    for arch in args.arch:
        bench = Bench(arch, args, device)
        done = bench.run(batch)
        if args.largest:
            bench.largest(*done)
        rows, notes = rows + bench.rows, notes + bench.notes
        del bench
        let_go()
    if device.type == "cpu":
        notes.append(f"- peak memory of the process, over all ways: {peak_memory_gb():.1f} GB")
    print(f"\n## `python benchmarks/step.py {shlex.join(sys.argv[1:])}` ({date.today()})\n")
    print(f"{device_name(device)}, torch {torch.__version__}; clips of {args.clip[0]}x{args.clip[1]}x{args.clip[1]}.\n")
    print("\n".join([f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", *rows, "", *notes]))
    print(WAIT.format(args.arch[0], batch))


if __name__ == "__main__":
    main()
