"""What a checkpoint is resumed into must be what it was made of."""

from unittest import mock

import pytest
import torch
from torch import nn

from dclr.errors import InputError
from dclr.training.state import PRETRAINING, TrainState


@pytest.mark.parametrize(("inputs", "bias", "named"), [(3, True, "weight"), (2, False, "bias")])
def test_the_state_of_another_network_is_refused_by_what_differs(inputs: int, bias: bool, named: str) -> None:
    made, now = nn.Linear(2, 2), nn.Linear(inputs, 2, bias=bias)
    other = mock.Mock()
    state = TrainState(PRETRAINING, {}, made.state_dict(), {}, {}, {}, 1, torch.get_rng_state(), "unknown")
    with pytest.raises(InputError, match=f"is of another network or version .*{named}"):
        state.restore(now, other, other, other)
    assert not other.load_state_dict.called
