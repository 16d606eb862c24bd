"""Finetuning: the whole network trained with labels, tested on uniform clips of every test video."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from dclr import checkpoint, distributed, metrics, norm, report
from dclr.backbones.layers import Backbone
from dclr.data.loader import TrainLoader, all_skipped
from dclr.data.plan import generator
from dclr.errors import InputError, spared
from dclr.evaluate import EvalConfig, Setting, forward, over_videos, prepare
from dclr.hardware import peak_memory_gb, place, revision, sent
from dclr.pieces import Pieces
from dclr.pretrain import LOG_EVERY, PREEMPTED, SAVE, STOP, Preemption, learning_rate
from dclr.probe import averaged
from dclr.result import Pictures, overlays, save_scores
from dclr.saver import LAST, Saver, found, resume
from dclr.views import normalise, to_clip
from dclr.watch import Watch, read_lines

# what a finetuning that goes on may change; the hashes of weights and set stand for their places
FREE = {"epochs", "out", "shards", "pretrained", "workers", "cache", "cache_size", "save_minutes", "features", "force"}
BEST = "best.pt"


class Classifier(nn.Module):
    """Trunk, global average pool, with ``head`` ``bn`` a BatchNorm, dropout, linear: clips (B, 3, T, H, W) -> logits."""

    def __init__(self, trunk: Backbone, classes: int, head: str = "linear", bn: str = "sync"):
        super().__init__()
        self.frozen = bn == "frozen"
        statistics = norm.Statistics("local" if self.frozen else bn, views="shared")
        self.backbone = norm.convert(trunk, statistics)
        self.norm = norm.ViewBatchNorm(nn.BatchNorm3d(trunk.channels), statistics) if head == "bn" else nn.Identity()
        self.fc = nn.Linear(trunk.channels, classes)
        nn.init.normal_(self.fc.weight, 0, 0.01)
        nn.init.zeros_(self.fc.bias)

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        if self.frozen:  # its statistics stay those that it was pretrained with
            self.backbone.eval()
        return self

    def forward(self, clip_BCTHW: torch.Tensor, kept_BC: torch.Tensor | None = None) -> torch.Tensor:
        """``kept_BC`` is what dropout leaves of the pooled features, times 1 / (1 - p)."""
        pooled_BC = self.norm(self.backbone(clip_BCTHW).mean((2, 3, 4), keepdim=True)).flatten(1)
        return self.fc(pooled_BC if kept_BC is None else pooled_BC * kept_BC)


def dropout(channels: int, p: float, seed: int, step: int, keys: Sequence[str]) -> torch.Tensor:
    """What dropout leaves, float32 (B, C): 0 with probability ``p``, else 1 / (1 - p), drawn from (seed, step, key)."""
    draws = [torch.from_numpy(generator("dropout", seed, step, key).random(channels)) for key in keys]
    return (torch.stack(draws) >= p).float() / (1 - p)


def finetune(config: EvalConfig) -> dict[str, Any]:
    """Train, test, save; returns the result. An epoch shows every training video ``cpv`` times, each time another clip.

    With ``--val`` the network that is tested is that of the epoch which did best on the videos held out of training. Killed, it
    goes on from its newest valid checkpoint, bit for bit. Raises SystemExit with PREEMPTED where a signal ended it.
    """
    setting = prepare(config)
    distributed.wait()  # makes the group for the last wait, which is for rank 0's checkpoint
    device, out, rank, world = setting.device, setting.out, distributed.rank(), distributed.world()
    loader = TrainLoader(
        setting.shards, setting.train_N, setting.clip, clips=1, batch=config.batch, seed=config.seed,
        epochs=config.epochs, passes=config.cpv, rank=rank, world=world, workers=config.workers, kind=setting.kind,
        cache=setting.cache, on_error=config.on_error,
    )  # fmt: skip
    last_step = len(loader) * config.epochs
    if rank == 0 and config.force:
        _remove(out)
    saved = distributed.from_first(resume(out, "auto") if rank == 0 else None)
    torch.manual_seed(config.seed)
    model = Classifier(setting.trunk.module, setting.classes.known, config.head, config.bn)
    place(model, device).train()
    optimiser = torch.optim.SGD(model.parameters(), config.lr, momentum=0.9, weight_decay=config.wd)
    scaler = torch.amp.GradScaler(device.type, enabled=setting.dtype == torch.float16)
    best: dict[str, Any] = {"epoch": 0, "top1": -1.0, "model": {}}  # of --val
    first_step = 0
    if saved is not None:
        first_step, best = _restore(saved, setting, model, optimiser, scaler, loader)
        if rank == 0:
            print(f"resumed after step {first_step} of {last_step}")
    parallel = distributed.parallel(model)
    saver, watch = Saver(out, 1, last_step), Watch(out, first_step) if rank == 0 else None
    due, ended = time.monotonic() + 60 * config.save_minutes, _stopped(config, best, first_step // len(loader))
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    bar = tqdm(total=last_step, initial=first_step, desc="finetuning", unit="step", disable=rank != 0)
    with Preemption() as preemption, bar:
        for step in range(first_step, last_step):
            if ended:
                break
            batch = next(batches)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(config.lr, config.schedule, step // len(loader))
            clips = normalise(to_clip(sent(batch["rgb"][:, 0], device)))
            label = sent(torch.from_numpy(setting.classes.number(batch["label"].numpy())), device)
            kept = dropout(model.fc.in_features, config.dropout, config.seed, step, batch["key"]) if config.dropout else None
            with torch.autocast(device.type, setting.dtype, enabled=setting.dtype != torch.float32):
                logits = parallel(
                    clips.contiguous(memory_format=torch.channels_last_3d), None if kept is None else sent(kept, device)
                )
            loss = F.cross_entropy(logits.float(), label)
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            done = step + 1
            ends = done % len(loader) == 0
            bar.update()
            if done % LOG_EVERY == 0 or ends:
                _stop_if_bad(model, loss, done, saver)
                right = (logits.argmax(1) == label).float().mean()
                value, right = (distributed.total(torch.stack([loss.detach(), right])) / world).tolist()
                scalars = {"finetune/loss": value, "finetune/top1": right, "finetune/lr": optimiser.param_groups[0]["lr"]}
                if config.on_error == "skip":
                    scalars["data/skipped"] = len(all_skipped(loader.skipped, len(setting.train_N), config.max_skipped))
                if watch:
                    watch.log(done, scalars)
                    rate = (bar.format_dict["rate"] or 0) * config.batch
                    bar.set_postfix({"loss": f"{value:.3f}", "clips/s": f"{rate:.1f}"}, refresh=False)
            if ends and len(setting.val_N):
                scores, samples = score(model, setting, setting.val_N, "validation")
                top1 = metrics.accuracies(scores, setting.label(samples))["top1"]
                if top1 > best["top1"]:
                    best = {"epoch": done // len(loader), "top1": top1, "model": copy.deepcopy(model.state_dict())}
                if watch:
                    watch.log(done, {"val/top1": top1})
                ended = _stopped(config, best, done // len(loader))
            wish = STOP if preemption.asked else SAVE if ends or time.monotonic() >= due else 0
            if wish := distributed.agree(wish):
                _stop_if_bad(model, loss, done, saver)
                norm.average(model)
                due = time.monotonic() + 60 * config.save_minutes
                if rank == 0:
                    saver.save(done, _state(setting, model, optimiser, scaler, loader, best))
            if wish == STOP:
                saver.wait()
                if saver.kept == done:
                    print(f"stopped by a signal after step {done}; the same command goes on from {out / LAST}", flush=True)
                distributed.wait()
                if rank == 0:
                    saver.require(done)
                raise SystemExit(PREEMPTED)
    saver.wait()
    if watch:
        watch.close()
    if config.on_error == "skip":
        absent = all_skipped(loader.skipped, len(setting.train_N), config.max_skipped)
        setting.skipped.extend(setting.shards.keys[sample] for sample in absent)
    extra: dict[str, Any] = {}
    if best["model"]:
        model.load_state_dict(best["model"])
        if rank == 0:
            with spared(out):
                state = {"config": _decides(setting), "classes": _outputs(setting), "model": best["model"]}
                checkpoint.save(out / BEST, state)
        extra = {"val": {"epoch": best["epoch"], "top1": best["top1"], "videos": len(setting.val_N)}}
    kept_scores = out / "scores.part"
    scores, samples = score(model, setting, setting.test_N, "testing", kept_scores)
    if rank != 0:
        return {}
    names = ["finetune/loss", "finetune/top1", *(["val/top1"] if len(setting.val_N) else [])]
    pictures: Pictures = {
        "curves.png": lambda path: report.curves(read_lines(out), names, path),
        "maps.png": partial(overlays, setting, samples, trunk=model.backbone),
    }
    result = save_scores(setting, scores, samples, extra | {"peak_memory_gb": round(peak_memory_gb(), 2)}, pictures)
    Pieces.remove(kept_scores)
    return result


def _stop_if_bad(model: nn.Module, loss: torch.Tensor, done: int, saver: Saver) -> None:
    """Raises FloatingPointError, on every rank, where the loss or what it was learned into is not finite: it is never saved."""
    tensors = [loss, *(x for x in model.state_dict().values() if x.is_floating_point())]
    bad = sum(torch.stack([x.detach().isfinite().all().logical_not() for x in tensors]).tolist())
    if not distributed.agree(bad):
        return
    saver.wait()
    distributed.wait()
    kept = "the last good checkpoint stays" if saver.kept >= 0 else "nothing was saved"
    raise FloatingPointError(
        f"the loss or the weights were not finite by step {done}; {kept}: try --precision fp32 or a smaller --lr"
    )


def score(model: Classifier, setting: Setting, samples_N: Any, title: str, kept: Path | None = None) -> tuple[Any, Any]:
    """Class scores (M, classes) of videos by ``--test-clips`` times ``--crops`` clips of each, and their samples (M,)."""
    config = setting.config
    norm.average(model)
    model.eval()
    scores, samples = over_videos(
        setting, samples_N, config.test_clips, config.crops, title,
        lambda batch: averaged(forward(model, setting, batch["rgb"][0]), config.average), kept,
    )  # fmt: skip
    model.train()
    return scores, samples


def _stopped(config: EvalConfig, best: dict[str, Any], epochs: int) -> bool:
    """Whether --patience epochs have passed without a better one on what --val holds out."""
    return bool(config.patience) and best["epoch"] > 0 and epochs - best["epoch"] >= config.patience


def _remove(out: Path) -> None:
    """What an earlier run left, with --force."""
    for path in [*found(out), out / LAST]:
        path.unlink(missing_ok=True)
    Pieces.remove(out / "scores.part")


def _decides(setting: Setting) -> dict[str, Any]:
    """The options, weights and set that a finetuning which goes on must have again."""
    clip = {name: getattr(setting.clip, name) for name in ("frames", "stride", "size")}
    network = {"arch": setting.trunk.arch, "width": setting.trunk.width, "weights": setting.weights}
    options = dataclasses.asdict(setting.config) | clip | network | {"set": setting.shards.digest}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items() if name not in FREE}


def _outputs(setting: Setting) -> list[str]:
    """The classes that the classifier's outputs stand for."""
    return setting.classes.names[: setting.classes.known]


def _state(setting: Setting, model: nn.Module, optimiser: Any, scaler: Any, loader: TrainLoader, best: Any) -> dict[str, Any]:
    """Everything that the next step depends on, in a file that :func:`dclr.checkpoint.load_trunk` reads the trunk from."""
    return {
        "config": _decides(setting),
        "classes": _outputs(setting),
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "scaler": scaler.state_dict(),
        "loader": loader.state_dict(),
        "best": best,
        "revision": revision(),
    }


def _restore(
    saved: dict[str, Any], setting: Setting, model: nn.Module, optimiser: Any, scaler: Any, loader: TrainLoader
) -> tuple[int, dict[str, Any]]:
    """The inverse of :func:`_state`: steps that are done, and the best epoch. Raises InputError for another finetuning's."""
    if "best" not in saved:
        raise InputError(f"--out {setting.out}: its checkpoints are no finetuning's; name another folder")
    for name, ours in _decides(setting).items():
        theirs = saved["config"].get(name)
        if theirs != ours:
            raise InputError(
                f"--{name.replace('_', '-')} {ours}: the run in {setting.out} was made with {theirs}; give that again, name "
                "another --out, or --force begins anew"
            )
    every = setting.shards.manifest.classes[setting.kind]  # a checkpoint that names no classes is of all that the set has
    if saved.get("classes", every) != _outputs(setting):
        raise InputError(
            f"--out {setting.out}: its checkpoints are of other classes than --train-split has; name another --out, or --force "
            "begins anew"
        )
    model.load_state_dict(saved["model"])
    optimiser.load_state_dict(saved["optimiser"])
    scaler.load_state_dict(saved["scaler"])
    loader.load_state_dict(saved["loader"])
    return loader.step, saved["best"]
