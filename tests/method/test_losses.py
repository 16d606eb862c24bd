"""Each loss against a slow, obvious version."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from dclr.method import losses
from dclr.method.objective import Method


def unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=-1)


def slow_contrast(query, key, queue, allowed, mined) -> float:  # type: ignore[no-untyped-def]
    """-log (own + mined) / (own + allowed), video by video, as the definition reads."""
    losses_N = []
    for n in range(len(query)):
        own = math.exp(float(query[n] @ key[n]) / 0.07)
        other = [math.exp(float(query[n] @ entry) / 0.07) for entry in queue]
        everything = own + sum(o for o, a in zip(other, allowed[n], strict=True) if a)
        positives = own + sum(o for o, a, m in zip(other, allowed[n], mined[n], strict=True) if a and m)
        losses_N.append(-math.log(positives / everything))
    return sum(losses_N) / len(losses_N)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17])
@pytest.mark.parametrize("k", [0, 1, 5])
def test_contrast_equals_the_slow_version(length: int, k: int) -> None:
    query, key, queue = unit(4, 8, seed=0), unit(4, 8, seed=1), unit(length, 8, seed=2)
    allowed = torch.rand(4, length, generator=torch.Generator().manual_seed(3)) < 0.7
    mined = losses.mine(losses.neighbour_probability(query, queue, allowed), allowed, k)
    found = losses.contrast(*losses.logits(query, key, queue), allowed, mined)
    assert float(found) == pytest.approx(slow_contrast(query, key, queue, allowed, mined), abs=1e-12)


def test_an_empty_queue_gives_exactly_zero_with_zero_gradient() -> None:
    query, key = unit(4, 8, seed=0).requires_grad_(), unit(4, 8, seed=1)
    nothing = torch.zeros(4, 6, dtype=torch.bool)
    loss = losses.contrast(*losses.logits(query, key, unit(6, 8, seed=2)), nothing, nothing)
    loss.backward()
    assert loss.item() == 0 and query.grad is not None and torch.all(query.grad == 0)


def test_mining_takes_the_best_allowed_and_breaks_ties_low() -> None:
    score = torch.tensor([[0.1, 0.4, 0.4, 0.1, 0.0], [0.5, 0.2, 0.2, 0.1, 0.0]])
    allowed = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]], dtype=torch.bool)
    assert losses.mine(score, allowed, 1).int().tolist() == [[0, 1, 0, 0, 0], [0, 1, 0, 0, 0]]
    assert losses.mine(score, allowed, 3).int().tolist() == [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0]]
    assert losses.mine(score, allowed, 9).tolist() == allowed.tolist()


def test_neighbour_probability_is_a_softmax_over_the_allowed() -> None:
    query, queue = unit(3, 8, seed=0), unit(5, 8, seed=1)
    allowed = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    p = losses.neighbour_probability(query, queue, allowed)
    expected = torch.softmax(query[0] @ queue[[0, 1, 3]].T / 0.07, 0)
    torch.testing.assert_close(p[0, [0, 1, 3]], expected)
    assert p[0, [2, 4]].tolist() == [0, 0] and p[1].tolist() == [0] * 5 and float(p[2].sum()) == pytest.approx(1)


def test_maps_have_mean_one_and_no_nan() -> None:
    assert losses.activation_map(torch.ones(1, 512, 1, 1, 1, dtype=torch.bfloat16)).dtype == torch.float32
    features = torch.rand(3, 7, 2, 4, 5, dtype=torch.float64)
    features[1] = 0
    found = losses.mean_one(losses.activation_map(features))
    torch.testing.assert_close(found.mean((1, 2, 3)), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0] * features[0].sum(0).mean(), features[0].sum(0), atol=1e-4, rtol=0)


def test_alignment_is_the_mean_square_of_mean_one_maps() -> None:
    query, static, dynamic = (torch.rand(2, 2, 3, 3) for _ in range(3))
    target = static + dynamic
    expected = torch.stack([(q / q.mean() - t / t.mean()).square().mean() for q, t in zip(query, target, strict=True)]).mean()
    torch.testing.assert_close(losses.alignment(query, [static, dynamic]), expected, atol=1e-4, rtol=1e-4)
    equal = losses.alignment(query, [static, 100 * dynamic], "equal")
    torch.testing.assert_close(
        equal,
        losses.alignment(query, [static / static.mean((1, 2, 3), True), dynamic / dynamic.mean((1, 2, 3), True)]),
        atol=1e-4,
        rtol=1e-4,
    )


def test_flow_is_the_mean_of_cells_and_time_steps() -> None:
    """Sixteen frames at two positions in time: each frame has its own vector; the cells are quarters of the picture."""
    flow = torch.randn(3, 2, 16, 8, 8)
    found = losses.flow_cells(flow, (2, 2, 2))
    assert found.shape == (3, 16, 2, 2, 2)
    for axis, time, step, y, x in itertools.product(range(2), range(2), range(8), range(2), range(2)):
        cell = flow[:, axis, 8 * time + step, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
        torch.testing.assert_close(found[:, 8 * axis + step, time, y, x], cell.mean((1, 2)))


def test_masked_drops_the_own_key_only_where_there_is_a_mined_one() -> None:
    query, key, queue = unit(3, 8, seed=0), unit(3, 8, seed=1), unit(4, 8, seed=2)
    allowed, mined = torch.ones(3, 4, dtype=torch.bool), torch.zeros(3, 4, dtype=torch.bool)
    mined[:2, 1] = True
    own, rest = losses.logits(query, key, queue)
    found = losses.contrast(own, rest, allowed, mined, losses.masked, lambda: torch.tensor([0.89, 0.9, 0.1]))
    rows = torch.stack([
        rest[0].logsumexp(0) - rest[0, 1],
        torch.cat([own[1], rest[1]]).logsumexp(0) - torch.stack([own[1, 0], rest[1, 1]]).logsumexp(0),
        torch.cat([own[2], rest[2]]).logsumexp(0) - own[2, 0],
    ])  # fmt: skip
    torch.testing.assert_close(found, rows.mean())
    torch.testing.assert_close(
        losses.contrast(own, rest, allowed, mined, losses.masked), losses.contrast(own, rest, allowed, mined)
    )
    for form in (losses.mil, losses.mean_log):  # the others drop none
        kept = losses.contrast(own, rest, allowed, mined, form)
        assert torch.equal(losses.contrast(own, rest, allowed, mined, form, lambda: torch.zeros(3)), kept)


def test_mean_log_is_the_mean_logit_and_survives_forbidden_entries() -> None:
    query, key, queue = unit(2, 8, seed=0).requires_grad_(), unit(2, 8, seed=1), unit(4, 8, seed=2)
    allowed = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    mined = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    own, rest = losses.logits(query, key, queue)
    found = losses.contrast(own, rest, allowed, mined, losses.mean_log)
    first = torch.cat([own[0], rest[0, :2]]).logsumexp(0) - (own[0, 0] + rest[0, 0]) / 2
    torch.testing.assert_close(found, first / 2)
    found.backward()
    assert query.grad is not None and torch.isfinite(query.grad).all()


def test_a_cues_descriptor_is_its_means_over_boxes_in_one_unit_vector_and_zero_without_motion() -> None:
    cue = torch.zeros(2, 2, 4, 6, 6)
    cue[0, 0, :2, :3, 3:], cue[0, 1, 2:, 3:, :3] = 3, -4
    found = losses.descriptor(cue.half(), (2, 2, 2))
    assert found.dtype == torch.float32 and found.shape == (2, 16) and not found[1].any()
    assert found[0].nonzero().flatten().tolist() == [1, 8 + 6]
    torch.testing.assert_close(found[0, [1, 14]], torch.tensor([0.6, -0.8]))


def test_map_entropy_is_1_where_flat_and_0_at_one_position() -> None:
    flat, point, two = torch.ones(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)
    point[0, 1, 2, 3], two[0, 0, 0, :2] = 5, 1
    assert [float(losses.map_entropy(a)) for a in (flat, point, two)] == pytest.approx([1, 0, math.log(2) / math.log(24)])
    assert float(losses.map_entropy(torch.zeros(1, 2, 3, 4))) == 0


def test_the_constants_are_the_methods() -> None:
    assert (Method().temperature, Method().mining_temperature, Method().alignment) == (0.07, 0.07, 0.1)


def test_a_map_of_one_position_and_a_faint_one_have_an_entropy() -> None:
    assert float(losses.map_entropy(torch.full((2, 1, 1, 1), 3.0))) == 0  # one position is all there is
    faint = torch.full((1, 2, 2, 2), 1e-6)
    assert float(losses.map_entropy(faint)) == pytest.approx(1)
    mixed = torch.stack([torch.ones(2, 2, 2), torch.eye(2)[0].expand(2, 2, 2) * 0])
    assert float(losses.map_entropy(mixed)) == pytest.approx(0.5)  # the mean over the clips


def test_raw_alignment_is_the_published_difference_of_maps_that_are_not_normalised() -> None:
    query, static, dynamic = (torch.rand(2, 2, 3, 3, requires_grad=True) for _ in range(3))
    found = losses.alignment(query, [static, dynamic], "raw")
    torch.testing.assert_close(found, (query - static - dynamic).square().sum() / 36)
    found.backward()
    assert query.grad is not None and static.grad is None and dynamic.grad is None


def test_alignment_has_no_gradient_in_its_target() -> None:
    query, target = (torch.rand(2, 2, 3, 3, requires_grad=True) for _ in range(2))
    losses.alignment(query, [target]).backward()
    assert query.grad is not None and query.grad.abs().sum() > 0 and target.grad is None
