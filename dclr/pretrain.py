"""The pretraining loop: shards in, checkpoints and curves out, the same on one process or many."""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from dclr import distributed, norm, report
from dclr.backbones import build
from dclr.config import PretrainConfig
from dclr.data.loader import TrainLoader, all_skipped, open_set
from dclr.data.manifest import require_cue, require_size
from dclr.errors import InputError, make_folder
from dclr.hardware import peak_memory_gb, pick_device, place, resolve_precision, revision
from dclr.model import DCLR, Output
from dclr.queue import default_length
from dclr.saver import LAST, Saver, resume
from dclr.views import make_views
from dclr.watch import Videos, Watch, knn_setting, online_knn

LOG_EVERY = 10  # steps
SAVE, STOP = 1, 2  # what a rank may wish after a step
BAD = "bad-keys.txt"
PREEMPTED = 75  # exit code after a signal: EX_TEMPFAIL, try again


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
    """SIGTERM or SIGINT ends the run after the step it is in, with a checkpoint; a second one ends it at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Preemption:
        self._before = {number: signal.signal(number, self._caught) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _caught(self, number: int, _: object) -> None:
        if self.asked:
            os._exit(PREEMPTED)
        self.asked = True


def pretrain(config: PretrainConfig) -> Path:
    """Run it, or go on with it; returns the last checkpoint's path. Raises InputError for what cannot start, named and with the
    way out, and SystemExit with :data:`PREEMPTED` where a signal ended it."""
    device, out = pick_device(), Path(config.out)
    dtype = resolve_precision(config.precision, device)
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
    last_step, share = len(loader) * config.epochs, config.batch // world // config.accumulate
    length = config.queue or default_length(len(samples_N), config.batch)
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
        first_step = _restore(saved, model, optimiser, scaler, loader)
    parallel = distributed.parallel(model)
    make_folder(out)
    saver = Saver(out, config.keep, config.milestone * len(loader))
    watch = None
    if rank == 0:
        if saved is not None:
            over = ": it is finished; a larger --epochs goes on" if first_step >= last_step else ""
            print(f"resumed after step {first_step} of {last_step}{over}")
        if first_step < last_step:
            (out / "config.yaml").write_text(yaml.safe_dump(config.as_dict(), sort_keys=False))
            watch = Watch(out, first_step)
            _introduce(config, loader, len(samples_N), length, dtype, device)
    if first_step >= last_step:
        return out / LAST

    began, waited, since, due = time.perf_counter(), 0.0, first_step, time.monotonic() + 60 * config.save_minutes
    videos = Videos(shards, samples_N)
    bad, shown = torch.zeros((), device=device), list[str]()  # steps that were left out, and the keys since the last look
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
            optimiser.zero_grad(set_to_none=True)
            outputs = []
            for part in range(config.accumulate):
                mine = slice(part * share, (part + 1) * share)
                views = [make_views(batch, clip, config.dynamic, device, mine) for clip in (0, 1)]
                with distributed.unsynchronised(parallel, part + 1 < config.accumulate):
                    outputs.append(parallel(*views, batch["video"][mine], step, part == 0))
                    scaler.scale(outputs[-1].total / config.accumulate).backward()
            scaler.unscale_(optimiser)
            gradient = torch.nn.utils.clip_grad_norm_(model.f_q.parameters(), config.clip_grad or math.inf)
            if not scaler.is_enabled():  # a scaler looks by itself, and lowers its scale
                optimiser.found_inf = (~torch.isfinite(gradient)).float()  # type: ignore[attr-defined]
                bad += optimiser.found_inf  # type: ignore[attr-defined]
            scaler.step(optimiser)
            scaler.update()
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
                _stop_if_bad(int(bad), shown, out, done)
                shown.clear()
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
                report.activation_maps(model.f_q.map, {name: views[0][name] for name in config.method.views}, out / "maps.png")
                model.f_q.train()
                if outputs[-1].mined.any():
                    report.neighbours(videos.pictures(outputs[-1].mined, *mined), out / "neighbours.png")
            if wish:
                norm.average(model)
                due = time.monotonic() + 60 * config.save_minutes
                if rank == 0:
                    saver.save(done, _state(config, model, optimiser, scaler, loader))
            if wish == STOP and done < last_step:
                saver.wait()
                if rank == 0:
                    print(f"stopped by a signal after step {done}; the same command goes on from {out / LAST}")
                raise SystemExit(PREEMPTED)
    saver.wait()
    if watch:
        watch.close()
        print(f"peak memory {peak_memory_gb():.2f} GB a process; {out / LAST}, {out / 'maps.png'}")
    return out / LAST


def _stop_if_bad(bad: int, shown: list[str], out: Path, done: int) -> None:
    """Raises FloatingPointError, on every rank, where a gradient was not finite; none of those steps reached the weights."""
    if not bad:
        return
    keys = [key for part in distributed.joined_objects(shown) for key in part]
    if distributed.rank() == 0:
        (out / BAD).write_text("\n".join(keys) + "\n")
    raise FloatingPointError(
        f"the gradient was not finite in {bad} of the last steps up to {done}, and none of them reached the weights; the last "
        f"good checkpoint stays; {out / BAD} names the videos since the last look; try --precision fp32 or a smaller --lr"
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
