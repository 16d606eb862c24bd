"""The rings against a plain list."""

import pytest
import torch

from dclr.method.objective import RINGS, default_length
from dclr.method.queue import Queue


@pytest.mark.parametrize("length", [1, 5, 8, 16])
@pytest.mark.parametrize("batch", [1, 3, 5, 8, 20])
def test_the_ring_wraps_at_any_batch_and_keeps_the_last(length: int, batch: int) -> None:
    queue, everything = Queue(length, dimensions=2), []
    for step in range(7):
        videos = torch.arange(step * batch, (step + 1) * batch)
        queue.enqueue({ring: torch.stack([videos, videos + i], 1).float() for i, ring in enumerate(RINGS)}, videos)
        everything += videos.tolist()
        held = queue.video_K[queue.valid_K].tolist()
        assert sorted(held) == everything[-length:]
        assert int(queue.cursor) == len(everything) % length
        for i, ring in enumerate(RINGS):  # the five rings move in step
            for slot in torch.nonzero(queue.valid_K).flatten().tolist():
                assert queue[ring][slot].tolist() == [queue.video_K[slot], queue.video_K[slot] + i]


def test_the_ring_of_a_cue_moves_with_the_others() -> None:
    queue = Queue(3, ("vv", "c"), dimensions=2, cue=5)
    for step in range(2):
        videos = torch.arange(2 * step, 2 * step + 2)
        queue.enqueue({"vv": videos[:, None].expand(2, 2).float(), "c": videos[:, None].expand(2, 5).float()}, videos)
    assert queue.rings == ("vv",) and queue["c"].shape == (3, 5) and queue["c"][:, 4].tolist() == queue["vv"][:, 1].tolist()
    assert "cue_KE" not in Queue(3).state_dict()


def test_only_valid_entries_of_other_videos_are_allowed() -> None:
    queue = Queue(4, dimensions=2)
    queue.enqueue({ring: torch.zeros(3, 2) for ring in RINGS}, torch.tensor([7, 8, 7]))
    assert queue.allowed(torch.tensor([7, 9, 0])).tolist() == [
        [False, True, False, False],
        [True, True, True, False],
        [True, True, True, False],
    ]


def test_the_default_fills_within_the_first_epoch() -> None:
    assert default_length(9537, 64) == 2048
    assert default_length(223, 8) == 104
    assert default_length(100, 40) == 40  # an authors' batch that does not divide 2048
    assert default_length(10, 8) == 8
