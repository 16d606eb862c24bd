"""The pretraining loop: shards in, checkpoints and curves out, the same on one process or many."""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn
from tqdm import tqdm

from dclr import distributed, norm, report
from dclr.backbones import build
from dclr.config import PretrainConfig
from dclr.data.fetch import Cache
from dclr.data.loader import TrainLoader, all_skipped, open_set
from dclr.data.manifest import ShardSet, require_cue, require_size
from dclr.errors import InputError, spared
from dclr.files import run_folder
from dclr.hardware import peak_memory_gb, pick_device, place, precision_name, resolve_precision, revision
from dclr.model import DCLR, Output
from dclr.saver import LAST, Saver, resume
from dclr.views import make_views
from dclr.watch import Videos, Watch, knn_setting, online_knn

LOG_EVERY = 10  # steps
SAVE, STOP = 1, 2  # what a rank may wish after a step
BAD = "bad-keys.txt"
PREEMPTED = 75  # exit code after a signal: EX_TEMPFAIL, try again
ONE_SIGNAL = 5.0  # seconds in which signals are one: torchrun sends on to its ranks what Slurm has sent them already


def learning_rate(base: float, schedule: tuple[int, ...], epoch: int) -> float:
    """x 0.1 at each epoch of ``schedule``."""
    return base * 0.1 ** sum(epoch >= at for at in schedule)


def pretraining_rate(config: PretrainConfig, done: float) -> float:
    """The learning rate after ``done`` epochs (with a fraction): a pure function of the place in the run.

    Steps of 0.1 at each epoch of ``schedule``, or with ``cos`` half a cosine to 0 over the whole run; before it a line from 0
    over ``warmup`` epochs. With ``scale_lr`` times batch / 64 (Goyal et al. 2017).
    """
    base = config.lr * (config.batch / 64 if config.scale_lr else 1)
    if done < config.warmup:
        return base * done / config.warmup
    if config.cos:
        return base * 0.5 * (1 + math.cos(math.pi * done / config.epochs))
    return learning_rate(base, config.schedule, int(done))


def make_optimiser(model: DCLR, config: PretrainConfig) -> torch.optim.SGD:
    """SGD over f_q. It is the fused one, which leaves a step out where ``found_inf`` says so, without asking the device."""
    parameters = [p for p in model.f_q.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if config.decay_weights_only:
        groups = [{"params": [p for p in parameters if p.dim() > 1]}]
        groups.append({"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0})
    optimiser = torch.optim.SGD(groups, config.lr, momentum=0.9, weight_decay=config.wd, fused=True)
    for p in parameters:  # torch 2.13 leaves it unwritten where the first step is left out
        optimiser.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimiser


class Preemption:
    """SIGTERM or SIGINT ends the run after the step it is in, with a checkpoint; one that comes more than :data:`ONE_SIGNAL`
    after the first ends it at once."""

    def __init__(self) -> None:
        self.asked, self._since = False, 0.0

    def __enter__(self) -> Preemption:
        self._before = {number: signal.signal(number, self._caught) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        if not self.asked:  # else the same signal may still come again, while the process ends
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _caught(self, number: int, _: object) -> None:
        if not self.asked:
            self.asked, self._since = True, time.monotonic()
        elif time.monotonic() - self._since > ONE_SIGNAL:
            os._exit(PREEMPTED)


def train_step(
    config: PretrainConfig,
    parallel: nn.Module,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batch: dict[str, Any],
    step: int,
    bad: torch.Tensor,
) -> tuple[list[Output], dict[str, torch.Tensor], torch.Tensor]:
    """Losses, gradient and update of this rank's share of a batch, part by part; nothing in it waits for a GPU.

    ``bad``, int64 () on the device, counts steps whose loss or gradient is not finite. With a scaler the gradient of a finite
    loss may overflow: the scaler sees it by itself, leaves the step out and lowers its scale.

    Returns:
        each part's output, the views of the last part's q clips, and the gradient's norm before it is clipped.
    """
    share, outputs = len(batch["video"]) // config.accumulate, []
    optimiser.zero_grad(set_to_none=True)
    for part in range(config.accumulate):
        mine = slice(part * share, (part + 1) * share)
        q, k = (make_views(batch, clip, config.dynamic, bad.device, mine, config.method.views) for clip in (0, 1))
        with distributed.unsynchronised(parallel, part + 1 < config.accumulate):
            outputs.append(parallel(q, k, batch["video"][mine], step, part == 0))
            scaler.scale(outputs[-1].total / config.accumulate).backward()
    scaler.unscale_(optimiser)
    gradient = nn.utils.clip_grad_norm_(parallel.parameters(), config.clip_grad or math.inf)  # f_k's have none
    finite = torch.stack([output.total.detach() for output in outputs]).isfinite().all()
    if not scaler.is_enabled():
        finite &= gradient.isfinite()
        optimiser.found_inf = (~gradient.isfinite()).float()  # type: ignore[attr-defined]
    bad += ~finite
    scaler.step(optimiser)
    scaler.update()
    return outputs, q, gradient


def pretrain(config: PretrainConfig) -> Path:
    """Run it, or go on with it; returns the last checkpoint's path. Raises InputError for what cannot start, named and with the
    way out, and SystemExit with :data:`PREEMPTED` where a signal ended it."""
    device = pick_device()
    dtype = resolve_precision(config.precision, device)
    config = replace(config, precision=precision_name(dtype))  # so that it is kept, and compared where the run is resumed
    shards, cache = open_set(config.shards, config.on_error, config.cache, config.cache_size)
    require_size(shards, config.size)
    if config.clip.cue:
        require_cue(shards, config.clip.cue)
    if config.sample_motion:
        require_cue(shards, "energy")
    samples_N = shards.select(config.split)
    length = config.queue_length(len(samples_N))
    distributed.setup(device)
    with run_folder(config.out):
        return _train(config, shards, cache, samples_N, length, device, dtype)


def _train(
    config: PretrainConfig, shards: ShardSet, cache: Cache | None, samples_N: np.ndarray, length: int, device: torch.device,
    dtype: torch.dtype,
) -> Path:  # fmt: skip
    distributed.wait()  # makes the group for the last wait, which is for rank 0's checkpoint
    rank, world, out = distributed.rank(), distributed.world(), Path(config.out)
    loader = TrainLoader(
        shards, samples_N, config.clip, clips=2, batch=config.batch, seed=config.seed, epochs=config.epochs,
        last=config.last_batch, rank=rank, world=world, workers=config.workers, cache=cache, on_error=config.on_error,
    )  # fmt: skip
    last_step = len(loader) * config.epochs
    saved = distributed.from_first(resume(out, config.resume) if rank == 0 else None)

    torch.manual_seed(config.seed)  # the weights; everything else is drawn from (seed, epoch, sample)
    trunk = build(config.arch, config.width)
    model = place(DCLR(trunk, length, config.method, config.statistics(world), dtype), device).train()
    model.f_q.checkpointed = config.checkpoint_gradients
    neighbours = knn_setting(config, model, shards, cache, device, dtype) if config.knn_split else None
    optimiser = make_optimiser(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    first_step = 0
    if saved is not None:
        config.check_resumed(saved["config"])
        if config.resume == "auto":
            config = replace(config, resume=saved["config"].get("resume", "auto"))
        first_step = _restore(saved, model, optimiser, scaler, loader)
    parallel = distributed.parallel(model)
    saver = Saver(out, config.keep, config.milestone * len(loader))
    watch = None
    if rank == 0:
        if saved is not None:
            over = ": it is finished; a larger --epochs goes on" if first_step >= last_step else ""
            print(f"resumed after step {first_step} of {last_step}{over}")
        if first_step < last_step:
            with spared(out):
                (out / "config.yaml").write_text(yaml.safe_dump(config.as_dict(), sort_keys=False))
            watch = Watch(out, first_step)
            _introduce(config, loader, len(samples_N), length, dtype, device)
    if first_step >= last_step:
        return out / LAST

    began, waited, since, due = time.perf_counter(), 0.0, first_step, time.monotonic() + 60 * config.save_minutes
    videos = Videos(shards, samples_N)
    bad, shown = torch.zeros((), dtype=torch.int64, device=device), list[str]()  # steps, and the keys since the last look
    batches = itertools.chain.from_iterable(itertools.repeat(loader))  # epoch after epoch
    with (
        Preemption() as preemption,
        tqdm(total=last_step, initial=first_step, unit="step", desc="pretraining", disable=rank != 0) as bar,
    ):
        for step in range(first_step, last_step):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            rate = pretraining_rate(config, step / len(loader))
            for group in optimiser.param_groups:
                group["lr"] = rate
            outputs, views, gradient = train_step(config, parallel, optimiser, scaler, batch, step, bad)
            done = step + 1
            ends = done % len(loader) == 0
            if ends or done % LOG_EVERY == 0:
                mined = [videos.sample(ids) for ids in (outputs[-1].video, model.queue.video_K)]  # before the entries change
            model.enqueue(outputs)
            shown += batch["key"]
            bar.update()

            wish = STOP if preemption.asked else SAVE if ends or time.monotonic() >= due else 0
            wish = distributed.agree(wish)
            if wish or done % LOG_EVERY == 0:
                _stop_if_bad(distributed.agree(int(bad)), shown, saver, done)
                shown.clear()
            if wish:
                norm.average(model)
            if neighbours and ends and (done % (config.knn_every * len(loader)) == 0 or done == last_step):
                found = online_knn(model, neighbours)
                if watch:
                    watch.log(done, found)
                    tqdm.write(f"epoch {done // len(loader)}: k-NN top-1 {found['knn/top1']:.1%}")
            if ends or done % LOG_EVERY == 0:
                scalars = _scalars(outputs) | {"optimiser/lr": rate, "optimiser/gradient_norm": float(gradient)}
                if config.on_error == "skip":
                    scalars["data/skipped"] = len(all_skipped(loader.skipped, len(samples_N), config.max_skipped))
                seconds = time.perf_counter() - began
                scalars["speed/clips_per_second"] = (done - since) * config.batch * 2 / seconds
                scalars["speed/data_wait"] = waited / seconds
                scalars["memory/peak_gb"] = peak_memory_gb()
                scalars |= videos.alike(outputs[-1].mined, *mined)
                began, waited, since = time.perf_counter(), 0.0, done
                if watch:
                    watch.log(done, scalars)
                    short = {name.removeprefix("loss/"): f"{v:.3f}" for name, v in scalars.items() if name.startswith("loss/")}
                    short |= {
                        "clips/s": f"{scalars['speed/clips_per_second']:.1f}",
                        "wait": f"{scalars['speed/data_wait']:.0%}",
                    }
                    bar.set_postfix(short, refresh=False)
            if ends and watch:
                model.f_q.eval()
                watch.picture(done, "maps", partial(report.activation_maps, model.f_q.map, views))
                model.f_q.train()
                if outputs[-1].mined.any():
                    rows = videos.pictures(outputs[-1].mined, *mined)
                    watch.picture(done, "neighbours", partial(report.neighbours, rows))
            if wish:
                due = time.monotonic() + 60 * config.save_minutes
                if rank == 0:
                    saver.save(done, _state(config, model, optimiser, scaler, loader))
            if wish == STOP and done < last_step:
                saver.wait()
                if saver.kept == done:
                    print(f"stopped by a signal after step {done}; the same command goes on from {out / LAST}", flush=True)
                distributed.wait()  # until rank 0 has written: torchrun ends it as soon as another one leaves
                if rank == 0:
                    saver.require(done)
                raise SystemExit(PREEMPTED)
    saver.wait()
    if watch:
        watch.close()
        saver.require(last_step)
        print(f"peak memory {peak_memory_gb():.2f} GB a process; {out / LAST}, {out / 'maps.png'}")
    return out / LAST


def _stop_if_bad(bad: int, shown: list[str], saver: Saver, done: int) -> None:
    """Raises FloatingPointError, on every rank, where a loss or gradient was not finite; no such step reached the weights."""
    if not bad:
        return
    out = saver.folder
    keys = [key for part in distributed.joined_objects(shown) for key in part]
    if distributed.rank() == 0:
        with spared(out):
            (out / BAD).write_text("\n".join(keys) + "\n")
    saver.wait()
    distributed.wait()  # as where a signal ends the run
    raise FloatingPointError(
        f"the loss or its gradient was not finite in {bad} of the last steps up to {done}, and none of them reached the "
        f"weights; the last good checkpoint stays; {out / BAD} names the videos since the last look; try --precision fp32 or a "
        "smaller --lr"
    )


def _introduce(
    config: PretrainConfig, loader: TrainLoader, samples: int, length: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Say what will be trained, and what of it may surprise."""
    last_step, fills = len(loader) * config.epochs, -(-length // (config.batch * (2 if config.symmetric else 1)))
    processes = distributed.world()
    print(f"{samples} videos, {len(loader)} steps an epoch, {processes} process(es), {str(dtype)[6:]} on {device}")
    if loader.plan.left:
        rest = "dropped" if config.last_batch == "drop" else f"wrapped to a batch with {config.batch - loader.plan.left} again"
        print(f"{loader.plan.left} videos at each epoch's end are {rest} (--last-batch)")
    print(f"queue of {length} fills at step {fills} of {last_step}; mining starts there")
    if config.scale_lr:
        print(f"lr {config.lr} is scaled to {config.lr * config.batch / 64} by batch {config.batch} / 64")
    if fills >= last_step:
        print(f"warning: the queue never fills in {last_step} steps, so no positives are mined: lower --queue")


def _scalars(outputs: list[Output]) -> dict[str, float]:
    """The step's losses and statistics, averaged over its parts and the ranks."""
    rows = []
    for output in outputs:
        values = {"loss/total": output.total.detach()}
        values |= {f"loss/{name}": value for name, value in output.terms.items()}
        values |= {f"contrast/{name}": value for name, value in output.stats.items()}
        rows.append(torch.stack(list(values.values())))
    mean = distributed.total(torch.stack(rows).mean(0)) / distributed.world()
    return dict(zip(values, mean.tolist(), strict=True))


def _state(config: PretrainConfig, model: DCLR, optimiser: Any, scaler: Any, loader: TrainLoader) -> dict[str, Any]:
    """Everything that the next step depends on."""
    return {
        "config": config.as_dict(),
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "scaler": scaler.state_dict(),
        "loader": loader.state_dict(),
        "generator": torch.get_rng_state(),
        "step": loader.step,
        "revision": revision(),
    }


def _restore(saved: dict[str, Any], model: DCLR, optimiser: Any, scaler: Any, loader: TrainLoader) -> int:
    """The inverse of :func:`_state`; returns the steps that are done."""
    missing = {"model", "optimiser", "scaler", "loader", "generator", "step"} - set(saved)
    if missing:
        raise InputError(f"the checkpoint to resume from lacks {', '.join(sorted(missing))}: an older version made it")
    model.load_state_dict(saved["model"])
    optimiser.load_state_dict(saved["optimiser"])
    scaler.load_state_dict(saved["scaler"])
    loader.load_state_dict(saved["loader"])
    torch.set_rng_state(saved["generator"])
    return saved["step"]
