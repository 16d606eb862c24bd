"""Everything that the next step of a training depends on: what its checkpoints hold."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_origin, get_type_hints

import torch
from torch import nn

from dclr.data.loader import TrainLoader
from dclr.errors import InputError
from dclr.hardware import revision
from dclr.parse import parsing
from dclr.text import plain
from dclr.training.optimiser import KEPT

STATE_VERSION = 1  # of these fields
PRETRAINING, FINETUNING = "pretraining", "finetuning"
FILE = "file"  # in a table that was read: where from
LAST_STEP = 10**9 - 1  # the names of checkpoints have nine digits
OTHER = "name another folder or file"


@dataclass
class TrainState:
    """A training after ``step`` steps.

    Attributes:
        kind: :data:`PRETRAINING` or :data:`FINETUNING`. config: the options that it must go on with, plain values.
        model, optimiser, scaler, loader: the ``state_dict`` of each. generator: torch's, uint8 (n,).
        more: what one kind keeps besides, such as the best epoch of a finetuning.
        file: what it was read from, which errors name.
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
    file: str = "the checkpoint to resume from"

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
        a finetuning's ``step`` nor its ``generator``. Raises InputError where a field is missing or of another type, or for
        another kind or version."""
        names, file = {one.name for one in fields(cls)} - {"more", "file"}, str(saved.get(FILE, cls.file))
        old: dict[str, Any] = {"kind": FINETUNING if "best" in saved else PRETRAINING, "state_version": 1}
        if old["kind"] == FINETUNING:
            loader = saved.get("loader")
            old |= {"step": loader.get("step") if isinstance(loader, dict) else None, "generator": torch.get_rng_state()}
        table = {"revision": "unknown"} | old | dict(saved)
        missing = sorted(names - set(table))
        if missing:
            raise InputError(f"{file}: it lacks {', '.join(missing)}: an older version made it; {OTHER}")
        for name, of in get_type_hints(cls).items():
            of = get_origin(of) or of
            if name in names and (not isinstance(table[name], of) or isinstance(table[name], bool)):
                raise InputError(f"{file}: {name} is a {type(table[name]).__name__}, expected a {of.__name__}; {OTHER}")
        for name, expected in (("kind", kind), ("state_version", STATE_VERSION)):
            if table[name] != expected:
                shown = plain(repr(table[name]), 80)
                raise InputError(f"{file}: it is of {name} {shown}, expected {expected!r}; {OTHER}")
        if not 0 <= table["step"] <= LAST_STEP:
            raise InputError(f"{file}: step {table['step']}, expected 0 to {LAST_STEP}; {OTHER}")
        more = {name: value for name, value in table.items() if name not in names and name not in ("version", FILE)}
        return cls(**{name: table[name] for name in names}, more=more, file=file)

    def table(self) -> dict[str, Any]:
        """The flat table that a checkpoint is."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("more", "file")} | self.more

    def restore(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler, loader: TrainLoader
    ) -> None:
        """The inverse of :meth:`of`. Raises InputError where tensors have other names, shapes or types than theirs now, or
        anything else is not what they have."""
        with parsing(self.file, "the state of this training", OTHER):
            self.require_model(self.model, model)
            try:
                model.load_state_dict(self.model)
            except RuntimeError as error:
                why = plain(str(error).splitlines()[-1].strip(), 200)
                raise InputError(f"{self.file}: it is of another network or version ({why}); {OTHER}") from None
            self._require_optimiser(optimiser)
            if any(type(value) not in (int, float) for value in self.scaler.values()):
                raise ValueError("the scaler's values are no numbers")
            loader.load_state_dict(self.loader)
            if loader.step != self.step:
                raise ValueError(f"it is of step {self.step}, and its loader of step {plain(str(loader.step), 80)}")
            torch.set_rng_state(self.generator)
            optimiser.load_state_dict(copy.deepcopy(self.optimiser))  # not the tensors of the file, which are mapped
            scaler.load_state_dict(self.scaler)

    def require_model(self, found: Any, model: nn.Module) -> None:
        """Raises InputError where a tensor that the model has too is of another shape or type than it has."""
        for name, own in model.state_dict().items():
            if isinstance(found, dict) and name in found:
                self._require_like(name, found[name], own)

    def _require_like(self, name: str, found: Any, own: torch.Tensor) -> None:
        expected, there = ("nothing plain" if kind is None else kind for kind in map(_kind, (own, found)))
        if expected != there:
            raise InputError(
                f"{self.file}: it is of another network or version ({name} is {there}, expected {expected}); {OTHER}"
            )

    def _require_optimiser(self, optimiser: torch.optim.Optimizer) -> None:
        """Raises what it meets where the saved state is not one of these groups and parameters."""
        groups, state, numbers = self.optimiser["param_groups"], self.optimiser["state"], iter(range(1 << 30))
        if not isinstance(groups, list) or not isinstance(state, dict):
            raise TypeError("the optimiser's groups and states are no list and no table")
        for found, own in zip(groups, optimiser.param_groups, strict=True):
            if found["params"] != [next(numbers) for _ in own["params"]]:
                raise ValueError("the optimiser's parameters are not numbered as theirs now")
            for name, value in own.items():
                there = found.get(name)
                if isinstance(value, bool | None):  # how a step is computed, not what it is; older versions lack some
                    good = isinstance(there, bool | None)
                elif name == "lr":  # which follows from the step
                    good = type(there) in (int, float) and 0 <= there < math.inf
                else:
                    good = name == "params" or there == value
                if not good:
                    raise ValueError(f"the optimiser's {name} is {plain(repr(there), 80)}, expected {value}")
        parameters = [one for group in optimiser.param_groups for one in group["params"]]
        for number, values in state.items():
            if set(values) != (expected := KEPT[type(optimiser)]):
                raise ValueError(f"parameter {plain(str(number), 20)} has other states than {', '.join(sorted(expected))}")
            for name, value in values.items():
                like = torch.zeros(()) if name == "step" else parameters[number]
                if value is not None:
                    self._require_like(f"{name} of parameter {plain(str(number), 20)}", value, like)
                if name == "step" and not 0 <= float(value) <= LAST_STEP:
                    raise ValueError(f"parameter {number} is at step {float(value)}, expected 0 to {LAST_STEP}")


def _kind(value: Any) -> str | None:
    """Shape and type of a plain tensor; None of anything else."""
    plain_one = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_nested
    return f"{str(value.dtype)[6:]} {tuple(value.shape)}" if plain_one else None
