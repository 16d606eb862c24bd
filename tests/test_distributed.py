"""Two ranks are one rank with the joined batch: losses, gradients, running statistics, momentum encoder and queues."""

from pathlib import Path

import pytest
import torch
from conftest import succeed

SCRIPT = Path(__file__).parent / "joined_step.py"


@pytest.mark.parametrize("ranks", [2, 4])
def test_several_ranks_equal_one_with_the_joined_batch(ranks: int, tmp_path: Path) -> None:
    """Faults 2 and 11: every key meets its own video's map, and the joined batch is the same on any number of ranks."""
    succeed(SCRIPT, tmp_path / "one.pt")
    succeed(SCRIPT, tmp_path / "many.pt", ranks=ranks)
    one, many = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "many.pt"))
    assert one.keys() == many.keys() and one["totals"][-1] > 1
    assert int(one["queue.valid_K"].sum()) == 9 and int(one["queue.cursor"]) == 16 % 9
    for name in one:
        expected = one[name].double()
        error = (many[name].double() - expected).abs().max()
        assert error <= 1e-8 * expected.abs().max(), name  # float64's rounding after four steps: 4e-10 was seen
