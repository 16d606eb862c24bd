"""Everything that the next step of a training depends on: what its checkpoints hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from dclr.data.loader import TrainLoader
from dclr.errors import InputError
from dclr.hardware import revision

STATE_VERSION = 1  # of these fields
PRETRAINING, FINETUNING = "pretraining", "finetuning"


@dataclass
class TrainState:
    """A training after ``step`` steps.

    Attributes:
        kind: :data:`PRETRAINING` or :data:`FINETUNING`. config: the options that it must go on with, plain values.
        model, optimiser, scaler, loader: the ``state_dict`` of each. generator: torch's, uint8 (n,).
        more: what one kind keeps besides, such as the best epoch of a finetuning.
    """

    kind: str
    config: dict[str, Any]
    model: dict[str, Any]
    optimiser: dict[str, Any]
    scaler: dict[str, Any]
    loader: dict[str, Any]
    step: int
    generator: torch.Tensor
    revision: str
    state_version: int = STATE_VERSION
    more: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, kind: str, config: dict[str, Any], model: nn.Module, optimiser: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler, loader: TrainLoader, **more: Any,
    ) -> TrainState:  # fmt: skip
        """The state of a training now."""
        return cls(
            kind, config, model.state_dict(), optimiser.state_dict(), scaler.state_dict(), loader.state_dict(), loader.step,
            torch.get_rng_state(), revision(), more=more,
        )  # fmt: skip

    @classmethod
    def read(cls, saved: Mapping[str, Any], kind: str) -> TrainState:
        """The state in a checkpoint's table. A table without ``kind`` and ``state_version`` is of version 1, which kept neither
        a finetuning's ``step`` nor its ``generator``. Raises InputError where a field is missing, or for another kind or
        version."""
        names = {one.name for one in fields(cls)} - {"more"}
        old: dict[str, Any] = {"kind": FINETUNING if "best" in saved else PRETRAINING, "state_version": 1}
        if old["kind"] == FINETUNING:
            old |= {"step": saved.get("loader", {}).get("step"), "generator": torch.get_rng_state()}
        table = old | dict(saved)
        missing = sorted(names - {"revision"} - set(table))
        if missing:
            raise InputError(
                f"the checkpoint to resume from lacks {', '.join(missing)}: an older version made it; name another --out"
            )
        for name, found, expected in (("kind", table["kind"], kind), ("state_version", table["state_version"], STATE_VERSION)):
            if found != expected:
                raise InputError(
                    f"the checkpoint to resume from is of {name} {found!r}, expected {expected!r}; name another folder or file"
                )
        more = {name: value for name, value in table.items() if name not in names and name != "version"}
        return cls(**{name: table.get(name, "unknown") for name in names}, more=more)

    def table(self) -> dict[str, Any]:
        """The flat table that a checkpoint is."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "more"} | self.more

    def restore(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler, loader: TrainLoader
    ) -> None:
        """The inverse of :meth:`of`. Raises InputError where the model's tensors have other names or shapes."""
        try:
            model.load_state_dict(self.model)
        except RuntimeError as error:
            raise InputError(
                f"the checkpoint to resume from is of another network or version ({str(error).splitlines()[-1].strip()}): "
                "name another folder or file"
            ) from None
        optimiser.load_state_dict(self.optimiser)
        scaler.load_state_dict(self.scaler)
        loader.load_state_dict(self.loader)
        torch.set_rng_state(self.generator)
