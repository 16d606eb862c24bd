"""Settings of a training: its optimisation, and its checkpoints; without torch."""

from __future__ import annotations

from dataclasses import dataclass

from dclr.settings import MANY, SEEDS, setting

OPTIMISERS = ("sgd", "adamw")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    title = "optimisation"
    batch: int = setting(64, "videos of a step, over all processes", short="-b", metavar="N", least=1, most=MANY)
    accumulate: int = setting(
        1, "compute a step's batch in so many parts: less memory, the same step but for BatchNorm", metavar="PARTS", least=1,
        most=MANY, before=1,
    )  # fmt: skip
    checkpoint_gradients: bool = setting(
        False, "forget activations and compute each stage twice: less memory, more time", before=False
    )
    epochs: int = setting(200, "passes over the training videos", metavar="N", least=1, most=MANY, free=True)
    optimiser: str = setting("sgd", "what takes the steps; sgd has momentum 0.9", choices=OPTIMISERS, before="sgd")
    lr: float = setting(0.01, "learning rate", metavar="RATE", above=0, most=1000)
    schedule: tuple[int, ...] = setting(
        (120, 160), "epochs after which the learning rate drops to a tenth; none: it stays", metavar="EPOCH", nargs="*",
        least=0, most=MANY,
    )  # fmt: skip
    cos: bool = setting(False, "learning rate by half a cosine to 0, in the place of --schedule", before=False)
    warmup: float = setting(
        0.0, "epochs in which the learning rate rises from 0", metavar="EPOCHS", least=0, most=MANY,
        before=0.0,
    )  # fmt: skip
    scale_lr: bool = setting(False, "multiply the learning rate by the batch / 64", before=False)
    wd: float = setting(1e-4, "weight decay", metavar="DECAY", least=0, most=1000)
    decay_weights_only: bool = setting(False, "no weight decay of biases and BatchNorm's parameters", before=False)
    clip_grad: float = setting(
        0.0, "largest norm of the whole gradient, which is scaled down to it; 0: any", metavar="NORM", least=0,
        most=1e9, before=0.0,
    )  # fmt: skip
    seed: int = setting(0, "seed of every random number of the run", metavar="N", least=-SEEDS, most=SEEDS)
    precision: str = setting("auto", "number format; auto: bf16 where the hardware has it, else fp32", choices=PRECISIONS)
    deterministic: bool = setting(
        False, "the same bits each time on a GPU too, at some speed; a CPU gives them anyway", free=True, before=False
    )


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    title = "run"
    resume: str = setting(
        "auto", "where to begin: auto (the newest valid checkpoint in --out), never (anew), or a checkpoint's file",
        metavar="FROM", place=True, free=True,
    )  # fmt: skip
    keep: int = setting(2, "how many of the last checkpoints stay", metavar="N", least=1, most=MANY, free=True)
    milestone: int = setting(
        50, "the checkpoint of every so many epochs stays too", metavar="EPOCHS", least=1, most=MANY,
        free=True,
    )  # fmt: skip
    save_minutes: float = setting(
        15.0, "minutes between checkpoints within an epoch; each epoch ends with one", metavar="MINUTES", above=0,
        most=1e6, free=True,
    )  # fmt: skip
