"""What a checkpoint is resumed into must be what it was made of."""

from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from dclr.errors import InputError
from dclr.training.optimiser import build_optimiser
from dclr.training.state import FILE, LAST_STEP, PRETRAINING, TrainState


@pytest.mark.parametrize(("inputs", "bias", "named"), [(3, True, "weight"), (2, False, "bias")])
def test_the_state_of_another_network_is_refused_by_what_differs(inputs: int, bias: bool, named: str) -> None:
    made, now = nn.Linear(2, 2), nn.Linear(inputs, 2, bias=bias)
    other = mock.Mock()
    state = TrainState(PRETRAINING, {}, made.state_dict(), {}, {}, {}, 1, torch.get_rng_state(), "unknown")
    with pytest.raises(InputError, match=f"is of another network or version .*{named}"):
        state.restore(now, other, other, other)
    assert not other.load_state_dict.called


class Loader:
    """Of a loader what its state is."""

    step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


def parts() -> tuple[Any, ...]:
    model = nn.Linear(2, 2)
    return model, build_optimiser("adamw", model.parameters(), 0.1, 0), torch.amp.GradScaler("cpu"), Loader()


def saved() -> dict[str, Any]:
    """The table of a training after a step."""
    model, optimiser, scaler, loader = parts()
    model(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    loader.step = 1
    return {**TrainState.of(PRETRAINING, {}, model, optimiser, scaler, loader).table(), FILE: "a.pt"}


def test_a_state_comes_back_and_shares_nothing_with_the_file() -> None:
    table, (model, optimiser, scaler, loader) = saved(), parts()
    TrainState.read(table, PRETRAINING).restore(model, optimiser, scaler, loader)
    assert torch.equal(model.weight, table["model"]["weight"]) and loader.step == 1
    moment = optimiser.state[model.weight]["exp_avg"]
    assert torch.equal(moment, kept := table["optimiser"]["state"][0]["exp_avg"]) and moment.data_ptr() != kept.data_ptr()


def momentum(value: Any) -> dict[str, Any]:
    table = saved()["optimiser"]
    table["state"][0]["exp_avg"] = value
    return table


def at(step: float) -> dict[str, Any]:
    table = saved()["optimiser"]
    table["state"][0]["step"] = torch.tensor(step)
    return table


def group(**edited: Any) -> dict[str, Any]:
    table = saved()["optimiser"]
    table["param_groups"][0] |= edited
    return table


@pytest.mark.parametrize(
    ("edited", "says"),
    [
        ({"step": "many"}, "step is a str, expected a int"),
        ({"step": True}, "step is a bool, expected a int"),
        ({"step": 10**18}, f"step {10**18}, expected 0 to {LAST_STEP}"),
        ({"step": -1}, "step -1, expected 0 to"),
        ({"step": 2}, "it is of step 2, and its loader of step 1"),
        ({"kind": torch.zeros(0)}, "kind is a Tensor, expected a str"),
        ({"model": {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}}, r"weight is float32 \(3, 2\), expected float32"),
        ({"model": {"weight": torch.zeros(2, 2).to(torch.float8_e5m2)}}, r"weight is float8_e5m2 \(2, 2\), expected float32"),
        ({"model": {"bias": torch.zeros(2)}}, "another network or version .*weight"),
        ({"model": {"weight": "w", "bias": torch.zeros(2)}}, "weight is nothing plain, expected float32"),
        ({"model": {3: torch.zeros(3)}}, "not the state of this training|another network or version"),
        ({"optimiser": {}}, "not the state of this training"),
        ({"optimiser": {"state": {}, "param_groups": torch.zeros(1)}}, "groups and states are no list"),
        ({"optimiser": momentum(torch.zeros(1))}, r"exp_avg of parameter 0 is float32 \(1,\), expected float32 \(2, 2\)"),
        ({"optimiser": momentum("much")}, "exp_avg of parameter 0 is nothing plain"),
        ({"optimiser": momentum(None) | {"state": {0: {"step": torch.ones(())}}}}, "parameter 0 has other states than exp_avg"),
        ({"optimiser": at(1e30)}, "parameter 0 is at step 1.*, expected 0 to"),
        ({"optimiser": group(betas=(1e308, 0.9))}, r"the optimiser's betas is \(1e\+308, 0.9\), expected \(0.9, 0.999\)"),
        ({"optimiser": group(lr=float("nan"))}, "the optimiser's lr is nan"),
        (
            {"optimiser": {**saved()["optimiser"], "param_groups": [{"params": [0, 1], "lr": 0.1}]}},
            "the optimiser's betas is None",
        ),
        ({"scaler": {"scale": "large"}}, "the scaler's values are no numbers"),
        ({"generator": torch.zeros(3)}, "not the state of this training"),
        ({"loader": {}}, "not the state of this training"),
    ],
)
def test_an_edited_state_is_refused_by_name(edited: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=f"^a.pt: .*({says})"):
        TrainState.read(saved() | edited, PRETRAINING).restore(*parts())
