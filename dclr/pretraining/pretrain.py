"""Pretraining: shards in, checkpoints and curves out, on one process or many: they differ by rounding (benchmarks/ranks.py)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from dclr import bars, distributed, figures
from dclr.checkpoint import Trunk, load_trunk
from dclr.data.fetch import Cache
from dclr.data.loader import TrainLoader, open_sets
from dclr.data.manifest import require_cue, require_size
from dclr.data.sets import Selection, pace_warnings
from dclr.errors import InputError, spared
from dclr.files import run_folder
from dclr.hardware import peak_memory_gb, pick_device, place, precision_name, require_memory, resolve_precision
from dclr.method.backbones import build, weight_bytes
from dclr.method.backbones.layers import fronted
from dclr.method.model import DCLR, Output
from dclr.method.objective import Method
from dclr.method.pixels import IMAGENET, recorded
from dclr.method.views import make_views
from dclr.parse import parsing
from dclr.pretraining.config import MOMENTA, PretrainConfig
from dclr.pretraining.watch import Videos, knn_setting, online_knn
from dclr.settings import flag
from dclr.training.curves import Curves
from dclr.training.loop import DUE, Learner, diverged, sound, train
from dclr.training.optimiser import build_optimiser
from dclr.training.rate import learning_rate
from dclr.training.saver import LAST, Saver, resume
from dclr.training.state import FILE, PRETRAINING, TrainState

BAD = "bad-keys.txt"


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


def momentum(config: PretrainConfig, done: float) -> float:
    """The momentum of f_k after ``done`` epochs (with a fraction): with ``momentum_end`` half a cosine from ``momentum`` to it
    over the whole run (BYOL, Grill et al. 2020), else the same throughout."""
    if config.momentum_end is None:
        return config.momentum
    share = 0.5 * (1 - math.cos(math.pi * done / config.epochs))
    return config.momentum + (config.momentum_end - config.momentum) * share


def flow_weight(config: PretrainConfig, done: float) -> float:
    """The weight of the flow's prediction after ``done`` epochs (with a fraction): with ``flow_weight_end`` it goes from
    ``flow_weight`` to that by the same factor each step, else it is the same throughout."""
    if config.flow_weight_end is None or not config.flow_weight:
        return config.flow_weight
    return config.flow_weight * (config.flow_weight_end / config.flow_weight) ** (done / config.epochs)


def as_drawn(config: PretrainConfig, steps: int) -> dict[str, float]:
    """The share of its first draw that f_k, and each other encoder that follows, still holds after the run of so many steps:
    the product of their momenta. By the setting of its momentum; one that is frozen is not meant to follow."""
    kept = math.prod(momentum(config, config.epochs * step / steps) for step in range(steps))
    given = {MOMENTA[who]: m for who, m in config.method.momenta.items() if m is not None}
    found = {"momentum": kept} | {name: m**steps for name, m in given.items()}
    return {name: share for name, share in found.items() if getattr(config, name) < 1}


@torch.no_grad()
def cells_of(trunk: nn.Module, config: PretrainConfig) -> tuple[int, int, int]:
    """T' H' W' of the feature map of a clip; the trunk is in evaluation mode afterwards."""
    return trunk.eval()(torch.zeros(1, 3, config.frames, config.size, config.size)).shape[2:]


def guessing(scalars: Mapping[str, float], method: Method, entries: int) -> dict[str, tuple[float, float]]:
    """The contrasts whose loss is within a twentieth of that of a guess among the own key and the queue's ``entries``, each
    with its loss and the guess's; ``scalars`` are those of a step by their names in the curves."""
    positives = 1 if method.loss == "mean-log" else 1 + scalars["contrast/mined"]
    guess = math.log((1 + entries * scalars["contrast/queue_fill"]) / positives)
    losses = {name: scalars[f"loss/L_{name}"] / weight for name in method.embeddings if (weight := method.weight(name))}
    return {name: (loss, guess) for name, loss in losses.items() if loss >= 0.95 * guess}


def begun(config: PretrainConfig, saved: Mapping[str, Any] | None) -> tuple[PretrainConfig, Trunk | None]:
    """The configuration with the pixels that the network sees, and the weights that it begins from, if any. A run that goes on
    from ``saved`` does not need them again. Raises InputError where they are of another network."""
    learned, pixels = None, IMAGENET
    if saved is not None:
        with parsing(saved.get(FILE, "the checkpoint"), "a pretraining's"):
            pixels = recorded(saved["config"]) or IMAGENET
    elif config.pretrained is not None:
        learned = load_trunk(config.pretrained, config)
        pixels = learned.module.pixels
        if (learned.arch, learned.width) != (config.arch, config.width):
            raise InputError(
                f"--pretrained {config.pretrained}: it is {learned.arch} of width {learned.width}, not {config.arch} of width "
                f"{config.width}: give -a {learned.arch} --width {learned.width}"
            )
    pixels = config.pixels(pixels)
    return replace(config, mean=pixels.mean, std=pixels.std, order=pixels.order), learned


def needed(config: PretrainConfig, length: int, world: int) -> dict[str, int]:
    """Bytes that each of ``world`` processes holds at once, by the flags that decide them: the queue; both encoders, gradient
    and momenta; the clips of a batch, and of a part of it each view. Activations, which take more, are left out."""
    clips, method, weights = 2 * config.batch / world, config.method, 4 + (config.optimiser == "adamw")
    return {
        f"--queue {length} --dim {config.dim}": 4 * len(method.rings) * length * config.dim,
        f"--arch {config.arch} --width {config.width}": weights * weight_bytes(config.arch, config.width),
        f"--batch {config.batch} --frames {config.frames} --size {config.size}": config.clip.bytes(
            clips, len(method.views) * clips / config.accumulate
        ),
    }


def make_model(config: PretrainConfig, length: int, dtype: torch.dtype, learned: Trunk | None = None) -> DCLR:
    """The network of a run before its first step, with a queue of so many entries: its weights are those of the trunk
    ``learned``, the rest is drawn from the seed, and everything else of the run from (seed, epoch, sample)."""
    torch.manual_seed(config.seed)
    trunk = fronted(build(config.arch, config.width), config.pixels())
    if learned is not None:
        trunk.load_state_dict(learned.module.state_dict())
    cells = cells_of(trunk, config) if config.method.cue else (1, 1, 1)
    return DCLR(trunk, length, config.method, config.statistics(distributed.world()), dtype, cells)


def make_optimiser(model: DCLR, config: PretrainConfig) -> torch.optim.Optimizer:
    """The optimiser of what is trained, fused: it leaves a step out where ``found_inf`` says so, without asking the device."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if config.decay_weights_only:
        groups = [{"params": [p for p in parameters if p.dim() > 1]}]
        groups.append({"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0})
    made = build_optimiser(config.optimiser, groups, config.lr, config.wd, fused=True)
    if isinstance(made, torch.optim.SGD):
        for p in parameters:  # torch 2.13 leaves it unwritten where the first step is left out
            made.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return made


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

    ``bad``, int64 () on the device, counts steps whose loss or gradient is not finite. None of them reaches the parameters, on
    any rank: a loss that is not finite makes its gradient NaN, and with that the mean over all ranks. With a scaler the
    gradient of a finite loss may overflow: the scaler sees it by itself, leaves the step out and lowers its scale.

    Returns:
        each part's output, the views of the last part's q clips, and the gradient's norm before it is clipped.
    """
    share, outputs, views = len(batch["video"]) // config.accumulate, [], config.method.views
    optimiser.zero_grad(set_to_none=True)
    for part in range(config.accumulate):
        mine = slice(part * share, (part + 1) * share)
        q, k = (
            make_views(batch, clip, config.dynamic, bad.device, mine, config.method.inputs, config.jitter, plain)
            for clip, plain in enumerate((config.plain_query, False))
        )
        with distributed.unsynchronised(parallel, part + 1 < config.accumulate):
            outputs.append(parallel(q, k, batch["video"][mine], step, part == 0))
            total = outputs[-1].total
            factor = torch.where(total.detach().isfinite(), 1.0, torch.nan)  # an infinite loss may have a finite gradient
            scaler.scale(factor * total / config.accumulate).backward()
    scaler.unscale_(optimiser)
    gradient = nn.utils.clip_grad_norm_(parallel.parameters(), config.clip_grad or math.inf)  # f_k's have none
    finite = torch.stack([output.total.detach() for output in outputs]).isfinite().all()
    if not scaler.is_enabled():
        finite &= gradient.isfinite()
        optimiser.found_inf = (~gradient.isfinite()).float()  # type: ignore[attr-defined]
    bad += ~finite
    scaler.step(optimiser)
    scaler.update()
    return outputs, {name: q[name] for name in views}, gradient


def pretrain(config: PretrainConfig) -> Path:
    """Run it, or go on with it; returns the last checkpoint's path. Raises InputError for what cannot start, named and with the
    way out, and SystemExit with PREEMPTED where a signal ended it."""
    device = pick_device(config.deterministic)
    dtype = resolve_precision(config.precision, device)
    config = replace(config, precision=precision_name(dtype))  # so that it is kept, and compared where the run is resumed
    sets, cache = open_sets(config.shards, config.on_error, config.cache, config.cache_size, config.patience)
    for shards in sets:
        require_size(shards, config.size)
        if config.clip.cue:
            require_cue(shards, config.clip.cue)
        if config.sample_motion:
            require_cue(shards, "energy")
    data = Selection.of(sets, config.split, config)
    length = config.queue_length(len(data.samples_N))
    require_memory(needed(config, length, int(os.environ.get("WORLD_SIZE", 1))), device)
    distributed.setup(device)
    with run_folder(config.out, "config.yaml"):
        return _train(config, data, cache, length, device, dtype)


def _train(
    config: PretrainConfig, data: Selection, cache: Cache | None, length: int, device: torch.device, dtype: torch.dtype
) -> Path:
    distributed.wait()  # makes the group for the last wait, which is for rank 0's checkpoint
    first, out = distributed.rank() == 0, Path(config.out)
    loader = TrainLoader(
        data.shards, data.samples_N, config.clip, clips=2, batch=config.batch, seed=config.seed, epochs=config.epochs,
        last=config.last_batch, weights=config.weights, rank=distributed.rank(), world=distributed.world(),
        workers=config.workers, cache=cache, on_error=config.on_error, stall_minutes=config.stall_minutes,
    )  # fmt: skip
    first_step, last_step, due = 0, len(loader) * config.epochs, False
    saved = distributed.from_first(resume(out, config.resume) if first else None)
    config, learned = begun(config, saved)
    state = None if saved is None else TrainState.read(saved, PRETRAINING)
    if state is not None:
        with parsing(state.file, "the state of a pretraining"):
            config.check_resumed(state.config, [len(of) for of in data.chosen_S], distributed.world())
            if state.step > (most := len(loader) * state.config["epochs"]):
                raise ValueError(f"it is of step {state.step}, of {most} that it says that the run has")
            if config.resume == "auto":
                config = replace(config, resume=state.config.get("resume", "auto"))
    learner = Pretraining(config, data, cache, length, loader, device, dtype, learned)
    if state is not None:
        state.restore(learner.model, learner.optimiser, learner.scaler, loader)
        first_step, due = state.step, DUE in state.more
        if first:
            over = ": it is finished; a larger --epochs goes on" if first_step >= last_step else ""
            print(f"resumed after step {first_step} of {last_step}{over}")
    if first_step >= last_step and not due:
        return out / LAST
    saver = Saver(out, config.keep, config.milestone * len(loader))
    if first:
        with spared(out):
            (out / "config.yaml").write_text(yaml.safe_dump(config.as_dict(), sort_keys=False))
        if learned:
            print(f"{config.pretrained}\n{learned.matched}")
        _introduce(config, data, loader, length, dtype, device)
    curves = Curves(out, first_step, {"mode": learner.title, **config.as_dict()}) if first else None
    train(learner, saver, curves, first_step, last_step, config.save_minutes, due)
    if first:
        saver.require(last_step)
        print(f"peak memory {peak_memory_gb():.2f} GB a process; {out / LAST}, {out / 'maps.png'}")
    return out / LAST


class Pretraining(Learner):
    """DCLR, or what the configuration makes of it, on the clips of ``loader``."""

    title, clips, ends_here = "pretraining", 0, True

    def __init__(
        self, config: PretrainConfig, data: Selection, cache: Cache | None, length: int, loader: TrainLoader,
        device: torch.device, dtype: torch.dtype, learned: Trunk | None = None,
    ):  # fmt: skip
        self.config, self.loader, self.clips = config, loader, 2 * config.batch
        self.max_skipped = config.max_skipped if config.on_error == "skip" else None
        self.model: DCLR = place(make_model(config, length, dtype, learned), device).train()
        self.model.f_q.checkpointed = config.checkpoint_gradients
        self.optimiser = make_optimiser(self.model, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self._parallel = distributed.parallel(self.model)
        self._neighbours = knn_setting(config, self.model, data.sets, cache, device, dtype) if config.knn_split else None
        self._videos = Videos(data.shards, data.samples_N, cache)
        self._outputs: list[Output] = []
        self._step, self._judged = 0, False  # whether its contrasts were looked at after a tenth of the run
        self._bad, self._shown = (
            torch.zeros((), dtype=torch.int64, device=device),
            list[str](),
        )  # steps, keys since the last check

    def rate(self, step: int) -> float:
        return pretraining_rate(self.config, step / len(self.loader))

    def step(self, batch: dict[str, Any], step: int, look: bool) -> None:
        self._step, done = step, step / len(self.loader)
        self.model.momentum, self.model.flow_weight = momentum(self.config, done), flow_weight(self.config, done)
        said = train_step(self.config, self._parallel, self.optimiser, self.scaler, batch, step, self._bad)
        self._outputs, self._views, self._gradient = said
        if look:  # before the entries change
            self._mined = [self._videos.sample(ids) for ids in (self._outputs[-1].video, self.model.queue.video_K)]
        self.model.enqueue(self._outputs)
        self._shown += batch["key"]

    def check(self, done: int, saver: Saver) -> None:
        """No such step reached the parameters; what it did to BatchNorm's statistics and the queue is not saved either, because
        every save comes after a check."""
        bad, out = distributed.agree(int(self._bad)), saver.folder
        if bad:
            keys = [key for part in distributed.joined_objects(self._shown) for key in part]
            if distributed.rank() == 0:
                with spared(out):
                    (out / BAD).write_text("\n".join(keys) + "\n", "utf-8")
            diverged(
                saver,
                done,
                f"the loss or its gradient was not finite in {bad} of the last steps up to {done}, and none of them reached "
                f"the weights; {out / BAD} names the videos since the last look",
            )
        if distributed.agree(not sound(self.model)):
            diverged(saver, done, f"the weights were not finite by step {done}, though every loss and its gradient was")
        self._shown.clear()

    def scalars(self, rate: float) -> dict[str, float]:
        found = _scalars(self._outputs) | {"optimiser/lr": rate, "optimiser/gradient_norm": float(self._gradient)}
        found["optimiser/momentum"] = self.model.momentum
        if not self._judged and self._step >= len(self.loader) * self.config.epochs / 10 and distributed.rank() == 0:
            self._judged = True
            for name, (loss, guess) in guessing(found, self.config.method, len(self.model.queue)).items():
                bars.write(
                    f"warning: after step {self._step + 1}, a tenth of the run, the contrast {name} is still at guessing (loss "
                    f"{loss:.2f}, a guess {guess:.2f}): try another --lr, --optimiser or --temperature"
                )
        return found | self._videos.alike(self._outputs[-1].mined, *self._mined)

    def epoch(self, done: int, curves: Curves | None) -> bool:
        """The k-NN where it is due, and pictures."""
        config, f_q = self.config, self.model.f_q
        number = done // len(self.loader)
        drawn = curves is not None and bool(self._outputs)  # of the last step, which another start may have made
        mined = self._outputs[-1].mined if drawn else torch.zeros(0)
        if mined.any():
            self._videos.fetch(mined, *self._mined)
        if self._neighbours and (number % config.knn_every == 0 or number == config.epochs):
            found = online_knn(self.model, self._neighbours)
            if curves:
                curves.log(done, found)
                bars.write(f"epoch {number}: k-NN top-1 {found['knn/top1']:.1%}")
        if curves and drawn:
            f_q.eval()
            names = self._videos.names(self._mined[0])
            curves.picture(done, "maps", partial(figures.activation_maps, f_q.map, self._views, names))
            f_q.train()
            if mined.any():
                rows, what = self._videos.pictures, "Videos and those mined for each as positives of vv"
                draw = lambda path: figures.neighbours(rows(mined, *self._mined), path, what)  # noqa: E731
                curves.picture(done, "neighbours", draw)
        return False

    def state(self) -> TrainState:
        parts = self.model, self.optimiser, self.scaler, self.loader
        return TrainState.of(PRETRAINING, self.config.as_dict(), *parts)


def _introduce(
    config: PretrainConfig, data: Selection, loader: TrainLoader, length: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Say what will be trained, and what of it may surprise."""
    last_step, fills = len(loader) * config.epochs, -(-length // (config.batch * (2 if config.symmetric else 1)))
    processes, parts = distributed.world(), loader.plan.source.parts
    by = f" by {config.chosen_by}" if config.chosen_by else ""
    for number, (one, every, chosen) in enumerate(zip(data.sets, data.every_S, data.chosen_S, strict=True)):
        if by or parts:
            seen = f", {parts[number] / sum(parts):.1%} of what is seen" if parts else ""
            print(f"{one}: {len(chosen)} of {len(every)} videos are chosen{by}{seen}")
    print(f"{len(data.samples_N)} videos, {len(loader)} steps an epoch, {processes} process(es), {str(dtype)[6:]} on {device}")
    if config.clip_fps is not None:
        for one, chosen in zip(data.sets, data.chosen_S, strict=True):
            for line in pace_warnings(one, chosen, config.clip_fps):
                print(line)
    if loader.plan.left:
        rest = "dropped" if config.last_batch == "drop" else f"wrapped to a batch with {config.batch - loader.plan.left} again"
        print(f"{loader.plan.left} videos at each epoch's end are {rest} (--last-batch)")
    print(f"queue of {length} fills at step {fills} of {last_step}; mining starts there")
    if config.scale_lr:
        print(f"lr {config.lr} is scaled to {config.lr * config.batch / 64} by batch {config.batch} / 64")
    for name, drawn in as_drawn(config, last_step).items():
        if drawn > 0.5:
            print(
                f"warning: after {last_step} steps {'f_k' if name == 'momentum' else f'the encoder of {flag(name)}'} is still "
                f"{drawn:.0%} as it was drawn, so it teaches little: lower {flag(name)}, or train longer"
            )
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
