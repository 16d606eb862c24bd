"""Finetuning: the whole network trained with labels, tested on uniform clips of every test video."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dclr import distributed, norm
from dclr.backbones.layers import Backbone
from dclr.data.loader import TrainLoader, all_skipped
from dclr.evaluate import EvalConfig, over_videos, prepare, save_result
from dclr.hardware import peak_memory_gb, place
from dclr.pretrain import LOG_EVERY, learning_rate
from dclr.views import normalise, to_clip


class Classifier(nn.Module):
    """Trunk, global average pool, dropout, linear: clips (B, 3, T, H, W) -> logits (B, classes)."""

    def __init__(self, trunk: Backbone, classes: int, dropout: float):
        super().__init__()
        self.backbone = norm.convert(trunk, norm.Statistics(views="shared"))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.backbone.channels, classes)
        nn.init.normal_(self.fc.weight, 0, 0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(self.backbone(clip_BCTHW).mean((2, 3, 4))))


def finetune(config: EvalConfig) -> dict[str, Any]:
    """Train, test, save; returns the result. An epoch shows every training video ``cpv`` times, each time another clip."""
    setting = prepare(config)
    device, rank, world = setting.device, distributed.rank(), distributed.world()
    loader = TrainLoader(
        setting.shards, setting.train_N, setting.clip, clips=1, batch=config.batch, seed=config.seed,
        epochs=config.epochs, passes=config.cpv, rank=rank, world=world, workers=config.workers, kind=setting.kind,
        cache=setting.cache, on_error=config.on_error,
    )  # fmt: skip
    last_step = len(loader) * config.epochs

    torch.manual_seed(config.seed)
    model = Classifier(setting.trunk.module, len(setting.classes), config.dropout)
    place(model, device).train()
    parallel = distributed.parallel(model)
    optimiser = torch.optim.SGD(model.parameters(), config.lr, momentum=0.9, weight_decay=config.wd)
    scaler = torch.amp.GradScaler(device.type, enabled=setting.dtype == torch.float16)
    torch.manual_seed(config.seed + 1 + rank)  # dropout: each rank its own
    writer = SummaryWriter(Path(config.out)) if rank == 0 else None
    batches = itertools.chain.from_iterable(itertools.repeat(loader, config.epochs))
    with tqdm(batches, total=last_step, desc="finetuning", unit="step", disable=rank != 0) as bar:
        for step, batch in enumerate(bar):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(config.lr, config.schedule, step // len(loader))
            clips = normalise(to_clip(batch["rgb"][:, 0].to(device)))
            label = batch["label"].to(device)
            with torch.autocast(device.type, setting.dtype, enabled=setting.dtype != torch.float32):
                logits = parallel(clips.contiguous(memory_format=torch.channels_last_3d))
            loss = F.cross_entropy(logits.float(), label)
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            if (step + 1) % LOG_EVERY == 0:
                right = (logits.argmax(1) == label).float().mean()
                value, right = (distributed.total(torch.stack([loss.detach(), right])) / world).tolist()
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"the loss became {value} by step {step + 1}: try --precision fp32 or a smaller --lr"
                    )
                if config.on_error == "skip":
                    skipped = len(all_skipped(loader.skipped, len(setting.train_N), config.max_skipped))
                    if writer:
                        writer.add_scalar("data/skipped", skipped, step + 1)
                if writer:
                    writer.add_scalar("finetune/loss", value, step + 1)
                    writer.add_scalar("finetune/top1", right, step + 1)
                    rate = (bar.format_dict["rate"] or 0) * config.batch
                    bar.set_postfix({"loss": f"{value:.3f}", "clips/s": f"{rate:.1f}"}, refresh=False)
    if config.on_error == "skip":
        absent = all_skipped(loader.skipped, len(setting.train_N), config.max_skipped)
        setting.skipped.extend(setting.shards.keys[sample] for sample in absent)
    if writer:
        writer.close()
    probabilities, labels = over_videos(
        model, setting, setting.test_N, config.test_clips, config.crops, "testing", lambda logits: logits.softmax(1).mean(0)
    )
    if rank != 0:
        return {}
    return save_result(setting, probabilities, len(labels), {"peak_memory_gb": round(peak_memory_gb(), 2)}, labels)
