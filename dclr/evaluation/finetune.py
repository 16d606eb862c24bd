"""Finetuning: the whole network trained with labels, tested on uniform clips of every test video."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dclr import checkpoint, distributed, figures, metrics
from dclr.data.clips import ClipConfig
from dclr.data.loader import TrainLoader, all_skipped
from dclr.draws import generator
from dclr.errors import InputError, spared
from dclr.evaluation.config import EvalClips, EvalConfig, made_otherwise, renamed
from dclr.evaluation.pieces import Pieces
from dclr.evaluation.probe import averaged
from dclr.evaluation.result import Pictures, options, overlays, own, save_scores
from dclr.evaluation.setting import Setting, forward, over_videos, prepare
from dclr.hardware import peak_memory_gb, place, precision_name, require_memory, sent
from dclr.method import norm
from dclr.method.backbones.layers import Backbone
from dclr.method.views import normalise, to_clip
from dclr.parse import parsing
from dclr.settings import check_values, completed, free
from dclr.text import plain
from dclr.training.curves import Curves
from dclr.training.lines import read_lines
from dclr.training.loop import DUE, Learner, diverged, sound, train
from dclr.training.optimiser import build_optimiser
from dclr.training.rate import learning_rate
from dclr.training.saver import LAST, Saver, found, resume
from dclr.training.state import FINETUNING, TrainState

FREE = free(EvalConfig)
BEST = "best.pt"
STORED = ("size", "codec", "quality", "sar", "deinterlace", "fps", "segment")  # of a set's options: what decides its pixels


@dataclass
class Best:
    """The best epoch on what --val holds out, as a checkpoint keeps it."""

    epoch: int
    top1: float
    model: dict[str, Any]

    def __post_init__(self) -> None:
        if type(self.epoch) is not int or not isinstance(self.top1, float) or not isinstance(self.model, dict):
            raise TypeError("its best epoch is none")


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
    clips = config.batch / distributed.world()
    said = f"--batch {config.batch} --frames {setting.clip.frames} --size {setting.clip.size}"
    require_memory({said: setting.clip.bytes(clips, clips)}, setting.device)
    distributed.wait()  # makes the group for the last wait, which is for rank 0's checkpoint
    out, first = setting.out, distributed.rank() == 0
    loader = TrainLoader(
        setting.shards, setting.train_N, setting.clip, clips=1, batch=config.batch, seed=config.seed, epochs=config.epochs,
        passes=config.cpv, rank=distributed.rank(), world=distributed.world(), workers=config.workers, kind=setting.kind,
        cache=setting.cache, on_error=config.on_error, stall_minutes=config.stall_minutes,
    )  # fmt: skip
    first_step, last_step = 0, len(loader) * config.epochs
    if first and config.force:
        _remove(out)
    saved = distributed.from_first(resume(out, "auto") if first else None)
    learner = Finetuning(setting, loader)
    if saved is not None:
        first_step = learner.restore(saved)
        if first:
            print(f"resumed after step {first_step} of {last_step}")
    due = saved is not None and DUE in saved
    if due or not learner.stops_early(first_step // len(loader)):
        curves = Curves(out, first_step, own(options(setting))) if first else None
        train(learner, Saver(out, 1, last_step), curves, first_step, last_step, config.save_minutes, due)
    if config.on_error == "skip":
        absent = all_skipped(loader.skipped, len(setting.train_N), config.max_skipped)
        setting.skipped.extend(setting.shards.keys[sample] for sample in absent)
    model, extra = learner.model, learner.choose()
    kept_scores = out / "scores.part"
    scores, samples = score(model, setting, setting.test_N, "testing", kept_scores)
    if not first:
        return {}
    names = ["finetune/loss", "finetune/top1", *(["val/top1"] if len(setting.val_N) else [])]
    pictures: Pictures = {
        "curves.png": lambda path: figures.curves(read_lines(out), names, path),
        "maps.png": partial(overlays, setting, samples, trunk=model.backbone),
    }
    result = save_scores(setting, scores, samples, extra | {"peak_memory_gb": round(peak_memory_gb(), 2)}, pictures)
    Pieces.remove(kept_scores)
    return result


class Finetuning(Learner):
    """A classifier, trained with labels on the clips of ``loader``."""

    title, ends_here = "finetuning", False  # the test follows

    def __init__(self, setting: Setting, loader: TrainLoader):
        config = setting.config
        self.setting, self.loader, self.clips = setting, loader, config.batch
        self.max_skipped = config.max_skipped if config.on_error == "skip" else None
        torch.manual_seed(config.seed)
        model = Classifier(setting.trunk.module, setting.classes.known, config.head, config.bn)
        self.model: Classifier = place(model, setting.device).train()
        self.optimiser = build_optimiser(config.optimiser, self.model.parameters(), config.lr, config.wd)
        self.scaler = torch.amp.GradScaler(setting.device.type, enabled=setting.dtype == torch.float16)
        self.best: dict[str, Any] = {"epoch": 0, "top1": -1.0, "model": {}}  # of --val
        self._parallel = distributed.parallel(self.model)

    def rate(self, step: int) -> float:
        return learning_rate(self.setting.config.lr, self.setting.config.schedule, step // len(self.loader))

    def step(self, batch: dict[str, Any], step: int, look: bool) -> None:
        setting, config = self.setting, self.setting.config
        clips = normalise(to_clip(sent(batch["rgb"][:, 0], setting.device))).contiguous(memory_format=torch.channels_last_3d)
        self._label = sent(torch.from_numpy(setting.classes.number(batch["label"].numpy())), setting.device)
        kept = dropout(self.model.fc.in_features, config.dropout, config.seed, step, batch["key"]) if config.dropout else None
        with torch.autocast(setting.device.type, setting.dtype, enabled=setting.dtype != torch.float32):
            self._logits = self._parallel(clips, None if kept is None else sent(kept, setting.device))
        self._loss = F.cross_entropy(self._logits.float(), self._label)
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(self._loss).backward()
        self.scaler.step(self.optimiser)
        self.scaler.update()

    def check(self, done: int, saver: Saver) -> None:
        if distributed.agree(not sound(self.model, self._loss)):
            diverged(saver, done, f"the loss or the weights were not finite by step {done}")

    def scalars(self, rate: float) -> dict[str, float]:
        right = (self._logits.argmax(1) == self._label).float().mean()
        loss, right = (distributed.total(torch.stack([self._loss.detach(), right])) / distributed.world()).tolist()
        return {"finetune/loss": loss, "finetune/top1": right, "finetune/lr": rate}

    def epoch(self, done: int, curves: Curves | None) -> bool:
        """Test what --val holds out; ends the training where --early-stop says so."""
        setting, number = self.setting, done // len(self.loader)
        if len(setting.val_N):
            scores, samples = score(self.model, setting, setting.val_N, "validation")
            top1 = metrics.accuracies(scores, setting.label(samples))["top1"]
            if top1 > self.best["top1"]:
                self.best = {"epoch": number, "top1": top1, "model": copy.deepcopy(self.model.state_dict())}
            if curves:
                curves.log(done, {"val/top1": top1})
        return self.stops_early(number)

    def stops_early(self, epochs: int) -> bool:
        """Whether --early-stop epochs have passed without a better one on what --val holds out."""
        most = self.setting.config.early_stop
        return bool(most) and self.best["epoch"] > 0 and epochs - self.best["epoch"] >= most

    def choose(self) -> dict[str, Any]:
        """Take the weights of the best epoch on --val, if any, and keep them; returns what the result says of it."""
        best, setting = self.best, self.setting
        if not best["model"]:
            return {}
        self.model.load_state_dict(best["model"])
        if distributed.rank() == 0:
            with spared(setting.out):
                state = {"config": _decides(setting), **_named(setting), "model": best["model"]}
                checkpoint.save(setting.out / BEST, state)
        return {"val": {"epoch": best["epoch"], "top1": best["top1"], "videos": len(setting.val_N)}}

    def state(self) -> TrainState:
        parts = self.model, self.optimiser, self.scaler, self.loader
        return TrainState.of(FINETUNING, _decides(self.setting), *parts, best=self.best, **_named(self.setting))

    def restore(self, saved: dict[str, Any]) -> int:
        """Go on after a checkpoint; returns the steps that are done. Raises InputError for another finetuning's."""
        setting, state = self.setting, TrainState.read(saved, FINETUNING)
        with parsing(state.file, "the state of a finetuning"):
            made = completed(EvalConfig, _older(setting, state.config))
            best = Best(**state.more["best"])
            state.require_model(best.model, self.model)
        for name, ours in _decides(setting).items():
            theirs = made.get(name)
            if theirs != ours:
                raise made_otherwise(setting.config, name, ours, theirs, f"the run in {setting.out}")
        every = setting.shards.manifest.classes[setting.kind]  # a checkpoint that names no classes is of all that the set has
        if state.more.get("classes", every) != _outputs(setting):
            raise InputError(
                f"--out {setting.out}: its checkpoints are of other classes than --train-split has; name another --out, or "
                "--force evaluates anew"
            )
        state.restore(self.model, self.optimiser, self.scaler, self.loader)
        self.best = vars(best)
        return state.step


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


def _remove(out: Path) -> None:
    """What an earlier run left, with --force."""
    for path in [*found(out), out / LAST]:
        path.unlink(missing_ok=True)
    Pieces.remove(out / "scores.part")


def _decides(setting: Setting) -> dict[str, Any]:
    """The options, weights and set that a finetuning which goes on must have again."""
    network = {"arch": setting.trunk.arch, "width": setting.trunk.width, "weights": setting.weights}
    came_to = {"set": setting.shards.digest, "label": setting.kind, "precision": precision_name(setting.dtype)}
    came_to |= setting.trunk.module.pixels.said
    options = dataclasses.asdict(setting.config) | setting.clip.said | network | came_to
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items() if name not in FREE}


def _older(setting: Setting, made: dict[str, Any]) -> dict[str, Any]:
    """The options of a finetuning that an older version began, as this one keeps them: it kept what was left open."""
    came_to = {"label": made.get("label") or setting.shards.kind()}
    if made.get("precision") == "auto":  # nobody knows what that came to
        came_to["precision"] = precision_name(setting.dtype)
    return renamed(made) | came_to


def _outputs(setting: Setting) -> list[str]:
    """The classes that the classifier's outputs stand for."""
    return setting.classes.names[: setting.classes.known]


def _named(setting: Setting) -> dict[str, Any]:
    """What a checkpoint says beside its settings, so that :func:`finetuned` can name the classes of any video: these, and how
    the set's frames were made."""
    made = setting.shards.manifest.options
    return {"classes": _outputs(setting), "stored": {name: made[name] for name in STORED if name in made}}


@dataclass(frozen=True)
class Finetuned:
    """A finetuned network as it was tested: on which clips, and of frames that were ``stored`` how (some of :data:`STORED`)."""

    model: Classifier
    classes: list[str]
    stored: dict[str, Any]
    clip: ClipConfig
    how: EvalClips
    precision: str


def finetuned(path: Path) -> Finetuned:
    """The network in a checkpoint of train_eval.py finetune, or in the folder of one, where it is the one that was tested; in
    evaluation mode. Raises InputError for any other file."""
    if path.is_dir():
        there = next((path / name for name in (BEST, LAST) if (path / name).exists()), None)
        if there is None:
            usage = path / "usage.py"
            way = f"python {usage} VIDEO names the classes of this one" if usage.exists() else "or its last.pt"
            raise InputError(f"{path}: no {BEST} and no {LAST} in it, expected the folder of train_eval.py finetune; {way}")
        path = there
    trunk, state = checkpoint.load_trunk(path), checkpoint.read(path)
    if not isinstance(state, dict) or not {"classes", "stored", "config", "model"} <= set(state):
        raise InputError(
            f"{path}: it names no classes, expected the folder of train_eval.py finetune: "
            f"python train_eval.py finetune --pretrained {path} trains a classifier"
        )
    try:
        config, classes = completed(EvalConfig, state["config"]), [str(name) for name in state["classes"]]
        how = EvalClips(**{name: config[name] for name in ("test_clips", "crops", "average", "cross_cuts")})
        check_values(how)
        model = Classifier(trunk.module, len(classes), config["head"], "local")
        model.load_state_dict(state["model"])
        return Finetuned(model.eval(), classes, dict(state["stored"]), how.clip(trunk.clip), how, str(config["precision"]))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = plain(str(error).splitlines()[-1].strip(), 200)
        raise InputError(f"{path}: not a checkpoint of train_eval.py finetune ({reason}); finetune again") from None
