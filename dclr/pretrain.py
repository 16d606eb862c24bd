"""The pretraining loop: shards in, checkpoints and curves out, the same on one process or many."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dclr import checkpoint, distributed, report
from dclr.backbones import build, check
from dclr.data.clips import ClipConfig
from dclr.data.loader import TrainLoader, open_set
from dclr.data.manifest import require_cue, require_size
from dclr.errors import InputError, make_folder
from dclr.hardware import peak_memory_gb, pick_device, place, resolve_precision
from dclr.losses import ALIGNMENT_WEIGHT
from dclr.model import DCLR, Method
from dclr.norm import Statistics, average
from dclr.queue import default_length
from dclr.views import DYNAMICS, make_views

LOG_EVERY = 10  # steps
OBJECTIVES = ("dclr", "moco")
PARTS = ("static", "dynamic", "decoupling", "mining", "alignment")  # of dclr, each can be left out


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides a pretraining run; kept in its checkpoints and its config.json."""

    shards: str
    out: str
    split: tuple[str, ...]
    arch: str = "r2plus1d_10"
    width: int = 64
    frames: int = 16
    stride: int = 2
    size: int = 112
    min_scale: float = 0.2
    flip: float = 0.5
    sample_motion: bool = False
    dynamic: str = "rgbdiff"
    objective: str = "dclr"
    without: tuple[str, ...] = ()  # parts of the objective, see PARTS
    mined: int = 5
    loss: str = "mil"
    align_target: str = "sum"
    symmetric: bool = False
    bn: str = "sync"
    bn_groups: int | None = None  # of each process; None is 2 for shuffle on one process, else 1
    bn_views: str = "split"
    queue: int | None = None  # entries; None is dclr.queue.default_length
    batch: int = 64  # over all processes
    epochs: int = 200
    lr: float = 0.01
    schedule: tuple[int, ...] = (120, 160)
    wd: float = 1e-4
    seed: int = 0
    precision: str = "auto"
    workers: int = 1
    last_batch: str = "drop"
    cache: str | None = None
    cache_size: float = 100.0  # GB
    on_error: str = "stop"
    max_skipped: float = 1.0  # percent of the videos

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("epochs", 1), ("frames", 2)):
            if getattr(self, name) < least:
                raise InputError(f"{name} {getattr(self, name)}: expected at least {least}")
        if self.workers < 0:
            raise InputError(f"workers {self.workers}: expected 0 or more")
        if not 0 <= self.max_skipped <= 100:
            raise InputError(f"max-skipped {self.max_skipped}: expected percent of the videos, 0..100")
        if not self.lr > 0 or self.wd < 0:
            raise InputError(f"lr {self.lr} and wd {self.wd}: expected lr above 0 and wd 0 or more")
        if self.queue is not None and self.queue < self.batch:
            raise InputError(f"queue {self.queue} is smaller than the batch {self.batch}: expected at least one batch")
        if self.dynamic not in DYNAMICS:
            raise InputError(f"dynamic view {self.dynamic!r}: expected one of {', '.join(DYNAMICS)}")
        if self.objective not in OBJECTIVES or not set(self.without) <= set(PARTS):
            raise InputError(
                f"--objective {self.objective} --without {' '.join(self.without)}: expected {' or '.join(OBJECTIVES)}, "
                f"and any of {', '.join(PARTS)}"
            )
        check(self.arch, self.width)
        self.clip, self.method, self.statistics(1)

    @property
    def clip(self) -> ClipConfig:
        cue = DYNAMICS[self.dynamic] if "d" in self.method.views else None
        return ClipConfig(self.frames, self.stride, self.size, self.min_scale, self.flip, cue, self.sample_motion)

    @property
    def method(self) -> Method:
        """The loss that the flags ask for. MoCo-v2 is what is left without the static and the dynamic view."""
        without = {"static", "dynamic"} if self.objective == "moco" else set(self.without)
        views = "v" + "s" * ("static" not in without) + "d" * ("dynamic" not in without)
        return Method(
            views,
            mined=0 if "mining" in without or views == "v" else self.mined,
            alignment=0 if "alignment" in without else ALIGNMENT_WEIGHT,
            decoupling="decoupling" not in without,
            loss=self.loss,
            align_target=self.align_target,
            symmetric=self.symmetric,
            seed=self.seed,
        )

    def statistics(self, world: int) -> Statistics:
        """Over what BatchNorm's statistics are taken, on one of ``world`` processes."""
        groups = self.bn_groups or (2 if self.bn == "shuffle" and world == 1 else 1)
        if self.batch % (groups * world):
            raise InputError(f"batch {self.batch} does not divide into {world} process(es) of {groups} group(s) (--bn-groups)")
        return Statistics(self.bn, groups, self.bn_views)


def learning_rate(base: float, schedule: tuple[int, ...], epoch: int) -> float:
    """x 0.1 at each epoch of ``schedule``."""
    return base * 0.1 ** sum(epoch >= at for at in schedule)


def all_skipped(skipped: set[int], samples: int, percent: float) -> set[int]:
    """The samples that no rank could read so far. Every rank calls this at the same step, so that none ends before the others.
    Raises InputError, on every rank, where they are more than ``percent`` of ``samples``."""
    found = {sample for part in distributed.joined_objects(sorted(skipped)) for sample in part}
    if len(found) > samples * percent / 100:
        raise InputError(
            f"{len(found)} of {samples} videos could not be read, more than --max-skipped {percent:g} percent: "
            "python -m preprocess verify names the faults; copy those shards again"
        )
    return found


def refuse_used(out: Path, name: str) -> None:
    """Nothing already made is lost: a folder that holds a result is not written over."""
    if (out / name).exists():
        raise InputError(f"--out {out}: it holds {name} of an earlier run; name another folder or remove it")


def pretrain(config: PretrainConfig) -> Path:
    """Run it; returns the last checkpoint's path. Raises InputError for what cannot start, named and with the way out."""
    device, out = pick_device(), Path(config.out)
    dtype = resolve_precision(config.precision, device)
    refuse_used(out, "last.pt")
    shards, cache = open_set(config.shards, config.on_error, config.cache, config.cache_size)
    require_size(shards, config.size)
    if config.clip.cue:
        require_cue(shards, config.clip.cue)
    if config.sample_motion:
        require_cue(shards, "energy")
    samples_N = shards.select(config.split)
    distributed.setup(device)
    rank, world = distributed.rank(), distributed.world()
    loader = TrainLoader(
        shards, samples_N, config.clip, clips=2, batch=config.batch, seed=config.seed, epochs=config.epochs,
        last=config.last_batch, rank=rank, world=world, workers=config.workers, cache=cache, on_error=config.on_error,
    )  # fmt: skip
    last_step = len(loader) * config.epochs
    length = config.queue or default_length(len(samples_N), config.batch)

    torch.manual_seed(config.seed)  # the weights; everything else is drawn from (seed, epoch, sample)
    trunk = build(config.arch, config.width)
    model = place(DCLR(trunk, length, config.method, config.statistics(world), dtype), device).train()
    parallel = distributed.parallel(model)
    optimiser = torch.optim.SGD(model.f_q.parameters(), config.lr, momentum=0.9, weight_decay=config.wd)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    writer = None
    make_folder(out)
    if rank == 0:
        (out / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=1) + "\n")
        writer = SummaryWriter(out)
        fills = -(-length // (config.batch * (2 if config.symmetric else 1)))
        print(f"{len(samples_N)} videos, {len(loader)} steps an epoch, {world} process(es), {str(dtype)[6:]} on {device}")
        if loader.plan.left:
            rest = (
                "dropped" if config.last_batch == "drop" else f"wrapped to a batch with {config.batch - loader.plan.left} again"
            )
            print(f"{loader.plan.left} videos at each epoch's end are {rest} (--last-batch)")
        print(f"queue of {length} fills at step {fills} of {last_step}; mining starts there")
        if fills >= last_step:
            print(f"warning: the queue never fills in {last_step} steps, so no positives are mined: lower --queue")

    began, waited, since = time.perf_counter(), 0.0, 0
    batches = itertools.chain.from_iterable(itertools.repeat(loader))  # epoch after epoch
    with tqdm(total=last_step, unit="step", desc="pretraining", disable=rank != 0) as bar:
        for step in range(last_step):
            epoch = step // len(loader)
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(config.lr, config.schedule, epoch)
            views = [make_views(batch, clip, config.dynamic, device) for clip in (0, 1)]
            output = parallel(*views, batch["video"], step)
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(output.total).backward()
            scaler.step(optimiser)
            scaler.update()
            model.queue.enqueue(output.keys, output.video)
            bar.update()

            done = step + 1
            if done % LOG_EVERY == 0 or done % len(loader) == 0:
                scalars = _scalars(output)
                if not math.isfinite(scalars["loss/total"]):
                    raise FloatingPointError(
                        f"the loss became {scalars['loss/total']} between steps {done - LOG_EVERY} and {done}; "
                        f"the last good checkpoint stays; try --precision fp32 or a smaller --lr"
                    )
                if config.on_error == "skip":
                    scalars["data/skipped"] = len(all_skipped(loader.skipped, len(samples_N), config.max_skipped))
                seconds = time.perf_counter() - began
                scalars["speed/clips_per_second"] = (done - since) * config.batch * 2 / seconds
                scalars["speed/data_wait"] = waited / seconds
                scalars["lr"] = optimiser.param_groups[0]["lr"]
                began, waited, since = time.perf_counter(), 0.0, done
                if writer:
                    for name, value in scalars.items():
                        writer.add_scalar(name, value, done)
                    short = {name.removeprefix("loss/"): f"{v:.3f}" for name, v in scalars.items() if name.startswith("loss/")}
                    short |= {
                        "clips/s": f"{scalars['speed/clips_per_second']:.1f}",
                        "wait": f"{scalars['speed/data_wait']:.0%}",
                    }
                    bar.set_postfix(short, refresh=False)
            if done % len(loader) == 0:
                average(model)
            if rank == 0 and done % len(loader) == 0:
                _save(out / "last.pt", config, model, optimiser, scaler, done)
    if writer:
        picture = report.activation_maps(model.f_q, {name: views[0][name] for name in config.method.views}, out / "maps.png")
        writer.close()
        print(f"peak memory {peak_memory_gb():.2f} GB a process; {out / 'last.pt'}, {picture}")
    return out / "last.pt"


def _scalars(output: Any) -> dict[str, float]:
    """The step's losses and statistics, averaged over the ranks."""
    values = {"loss/total": output.total.detach()}
    values |= {f"loss/{name}": value for name, value in output.terms.items()}
    values |= {f"contrast/{name}": value for name, value in output.stats.items()}
    mean = distributed.total(torch.stack(list(values.values()))) / distributed.world()
    return dict(zip(values, mean.tolist(), strict=True))


def _save(path: Path, config: PretrainConfig, model: DCLR, optimiser: Any, scaler: Any, step: int) -> None:
    state = {"config": dataclasses.asdict(config), "model": model.state_dict(), "step": step}
    checkpoint.save(path, state | {"optimiser": optimiser.state_dict(), "scaler": scaler.state_dict()})
