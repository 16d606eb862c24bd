"""What an evaluation leaves: result.json, scores, pictures, TensorBoard's events, report.html."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.image import imread
from safetensors.numpy import save_file
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from dclr import checkpoint, losses, metrics, page, report
from dclr.data.loader import eval_loader
from dclr.errors import InputError
from dclr.evaluate import RESULT, Setting
from dclr.hardware import place, revision
from dclr.views import normalise, to_clip


def middle_frame(setting: Setting, sample: int) -> np.ndarray:
    """A picture of a sample, uint8 (H, W, 3); a black one where it is damaged (the loader has told of it)."""
    try:
        record = setting.shards.read(sample)
        return record.frames([len(record) // 2])[0]
    except InputError:
        return np.zeros((8, 8, 3), np.uint8)


def overlays(setting: Setting, sample_M: np.ndarray, trunk: nn.Module | None = None) -> Path:
    """Write maps.png: where the trunk (or ``trunk``) is active in the middle clips of up to four of these samples."""
    samples_N = np.unique(sample_M[np.linspace(0, len(sample_M) - 1, report.SHOWN).astype(int)])
    module = place(trunk or setting.trunk.module, setting.device).eval()
    loader = eval_loader(setting.shards, samples_N, setting.clip, clips=1, cache=setting.cache, on_error="skip")
    clips = torch.cat([normalise(to_clip(batch["rgb"][0].to(setting.device))) for batch in loader])

    def active(clip_BCTHW: torch.Tensor, view: str) -> torch.Tensor:
        return losses.mean_one(losses.activation_map(module(clip_BCTHW)))

    return report.activation_maps(active, {"v": clips}, setting.out / "maps.png")


def save_scores(
    setting: Setting, scores_MC: np.ndarray, sample_M: np.ndarray, extra: dict[str, Any], pictures: Sequence[Path] = ()
) -> dict[str, Any]:
    """:func:`save_result` of class scores (M, classes): accuracies, confusion, accuracy of each class, and the scores."""
    if not np.isfinite(scores_MC).all():
        raise FloatingPointError("scores are not finite and nothing was saved: try --precision fp32 or a smaller --lr")
    label_M, names = setting.label(sample_M), setting.classes
    counts = metrics.confusion(scores_MC.argmax(1), label_M, len(names))
    scores = {"scores": scores_MC.astype(np.float32), "label": label_M, "sample": sample_M}
    save_file(scores, setting.out / "scores.safetensors", {"classes": json.dumps(names)})
    made = [
        report.confusion_matrix(counts, names, setting.out / "confusion.png"),
        report.class_bars(counts, names, setting.out / "classes.png"),
        *pictures,
    ]
    return save_result(
        setting, metrics.accuracies(scores_MC, label_M), len(label_M), extra | {"confusion": counts.tolist()}, made
    )


def save_result(
    setting: Setting, numbers: Mapping[str, float], videos: int, extra: dict[str, Any], pictures: Sequence[Path]
) -> dict[str, Any]:
    """Write result.json, with ``numbers`` in 0..1 by name, and from it and the pictures TensorBoard's events and report.html;
    returns the result."""
    config, out = setting.config, setting.out
    result = {
        **numbers,
        "interval": {name: metrics.interval(value, videos) for name, value in numbers.items() if metrics.SHARE.match(name)},
        "videos": videos,
        "skipped": sorted(set(setting.skipped)),
        "classes": len(setting.classes),
        "label": setting.kind,
        "arch": setting.trunk.arch,
        "width": setting.trunk.width,
        **extra,
        "pictures": [path.name for path in pictures],
        "options": dataclasses.asdict(config) | {n: getattr(setting.clip, n) for n in ("frames", "stride", "size")},
        "weights": setting.weights,
        "set": setting.shards.digest,
        "versions": {"dclr": revision(), "torch": torch.__version__, "numpy": np.__version__},
    }
    with SummaryWriter(out) as writer:
        for name, value in numbers.items():
            writer.add_scalar(f"result/{name}", value)
        for path in pictures:
            writer.add_image(path.stem, imread(path)[..., :3], dataformats="HWC")
    temporary = checkpoint.temporary(out / RESULT)
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(out / RESULT)
    text = ", ".join(f"{name} {100 * value:.1f} %" for name, value in numbers.items())
    print(f"{config.mode} on {setting.kind}: {text} of {videos} videos, {len(setting.classes)} classes")
    print(f"{out / RESULT}, {page.write(out, [out])}")
    return result
