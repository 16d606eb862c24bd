"""Several ranks on a real trunk over four steps: losses, gradients, running statistics, momentum encoder and queues."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import steps
import torch
import torch.distributed as dist
from conftest import succeed

from dclr.distributed import _of_this_start

SYNC = {"queue": 9, "steps": 4, "size": 32}  # layer4 has 2x2 places: BatchNorm over two values alone amplifies rounding
GROUPED = [
    {**SYNC, "statistics": {"mode": mode, "views": views}} for mode in ("local", "shuffle") for views in ("split", "shared")
]


@pytest.mark.parametrize("ranks", [2, 4])
def test_several_ranks_are_one_with_the_joined_batch(ranks: int, tmp_path: Path) -> None:
    """With ``sync`` on any number of ranks; with groups, one rank with as many groups as there are ranks."""
    cases = [SYNC, *GROUPED] if ranks == 2 else [SYNC]
    succeed(Path(steps.__file__), json.dumps(cases), tmp_path / "many.pt", ranks=ranks)
    many = torch.load(tmp_path / "many.pt", weights_only=True)
    for case, results in zip(cases, many, strict=True):
        if "statistics" in case:
            case = case | {"statistics": case["statistics"] | {"groups": ranks}}
        one = steps.run(case)[-1]
        assert one.keys() == results[-1].keys() and one["loss total"] > 1
        assert int(one["queue.valid_K"].sum()) == 9 and int(one["queue.cursor"]) == 16 % 9
        for name, found in results[-1].items():
            expected = one[name].double()
            error = (found.double() - expected).abs().max()
            assert error <= 1e-10 * expected.abs().max(), (
                case,
                name,
            )


def test_a_batch_in_parts_is_one_in_groups(tmp_path: Path) -> None:
    """Two ranks with two parts each normalise as one rank with four groups, and enqueue in the same order."""
    local = {**SYNC, "tiny": True, "statistics": {"mode": "local"}}
    succeed(Path(steps.__file__), json.dumps([local | {"parts": 2}]), tmp_path / "parts.pt", ranks=2)
    parts = torch.load(tmp_path / "parts.pt", weights_only=True)[0][-1]
    groups = steps.run(local | {"statistics": {"mode": "local", "groups": 4}})[-1]
    for name, found in parts.items():
        if "running" not in name:  # each part moves them in turn, groups move them by their mean
            torch.testing.assert_close(found.double(), groups[name].double(), rtol=1e-6, atol=1e-6, msg=name)


def test_checkpointed_gradients_are_the_same(tmp_path: Path) -> None:
    """Statistics are not tracked twice, and each view is computed again with its own; on one rank and on two."""
    cases = [SYNC, GROUPED[2], GROUPED[3]]
    handed = [case | {"steps": 2, "checkpointed": twice} for case in cases for twice in (False, True)]
    succeed(Path(steps.__file__), json.dumps(handed), tmp_path / "both.pt", ranks=2)
    for results in (torch.load(tmp_path / "both.pt", weights_only=True), [steps.run(case) for case in handed]):
        for plain, twice in zip(results[::2], results[1::2], strict=True):
            for name, found in twice[-1].items():
                torch.testing.assert_close(found, plain[-1][name], rtol=1e-6, atol=1e-9, msg=name)


def test_a_start_never_meets_the_one_before() -> None:
    """Two starts on one store, as after torchrun's restart: the second's ranks have a place of their own, though rank 1's
    request of the first start is still there."""
    store, places = dist.HashStore(), []
    for start in range(2):
        with ThreadPoolExecutor(2) as threads:
            first, second = threads.map(lambda number: _of_this_start(store, number, 2), range(2))
        first.set("address", str(start))
        places.append(second)
        assert second.get("address") == str(start).encode()
    assert places[0].get("address") == b"0"
