"""Settings of a training: its optimisation, and its checkpoints; without torch."""

from __future__ import annotations

from dataclasses import dataclass

from dclr.settings import setting

OPTIMISERS = ("sgd", "adamw")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    title = "optimisation"
    batch: int = setting(64, "videos a step, over all processes", short="-b", least=1)
    accumulate: int = setting(1, "take the batch in parts: less memory", metavar="PARTS", least=1, before=1)
    checkpoint_gradients: bool = setting(False, "compute each stage twice: less memory, more time", before=False)
    epochs: int = setting(200, least=1, free=True)
    optimiser: str = setting("sgd", "sgd (momentum 0.9) or adamw", choices=OPTIMISERS, before="sgd")
    lr: float = setting(0.01, above=0)
    schedule: tuple[int, ...] = setting((120, 160), "epochs at which lr drops to a tenth", nargs="*")
    cos: bool = setting(False, "half a cosine to 0 in the place of --schedule", before=False)
    warmup: float = setting(0.0, "of a line from 0", metavar="EPOCHS", least=0, before=0.0)
    scale_lr: bool = setting(False, "lr times batch / 64", before=False)
    wd: float = setting(1e-4, "weight decay", least=0)
    decay_weights_only: bool = setting(False, "no weight decay of biases and BatchNorm", before=False)
    clip_grad: float = setting(0.0, "of the whole gradient; 0: no clipping", metavar="NORM", least=0, before=0.0)
    seed: int = setting(0)
    precision: str = setting("auto", "auto (bf16 where the hardware has it), fp32, bf16, fp16", choices=PRECISIONS)
    deterministic: bool = setting(
        False, "the same bits each time on a GPU too, where it is slower; changes nothing on a CPU", free=True, before=False
    )


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    title = "checkpoints"
    resume: str = setting("auto", "auto (the newest valid one in --out), never, or a file to begin from", place=True, free=True)
    keep: int = setting(2, "the last K checkpoints", metavar="K", least=1, free=True)
    milestone: int = setting(50, "and that of every so many epochs", metavar="EPOCHS", least=1, free=True)
    save_minutes: float = setting(15.0, "between checkpoints within an epoch; each epoch has one", above=0, free=True)
