"""BatchNorm: over what its statistics are taken, and how they are re-estimated."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dclr.errors import InputError
from dclr.method import norm
from dclr.method.norm import Statistics


def layer(statistics: Statistics | None = None, **like: float) -> norm.ViewBatchNorm:
    return norm.ViewBatchNorm(nn.BatchNorm3d(3, **like), statistics or Statistics())  # type: ignore[arg-type]


def clips(seed: int, batch: int = 8) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, 2, 4, 4, generator=draw) * (1 + seed) + seed


def plain(x: torch.Tensor, **like: float) -> nn.BatchNorm3d:
    other = nn.BatchNorm3d(3, **like)  # type: ignore[arg-type]
    other(x)
    return other


@pytest.mark.parametrize("like", [{}, {"eps": 1e-3, "momentum": 0.01}])
def test_on_one_view_and_one_process_it_is_torchs(like: dict[str, float]) -> None:
    ours, theirs = layer(**like), nn.BatchNorm3d(3, **like)
    for seed in range(3):
        torch.testing.assert_close(ours(clips(seed)), theirs(clips(seed)))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(clips(4)), theirs.eval()(clips(4)))


def test_groups_are_slices_of_the_batch_and_their_mean_is_tracked() -> None:
    ours, x = layer(Statistics("local", 2)), clips(1)
    parts = [plain(half) for half in x.chunk(2)]
    torch.testing.assert_close(ours(x), torch.cat([part.train()(half) for part, half in zip(parts, x.chunk(2), strict=True)]))
    parts = [plain(half) for half in x.chunk(2)]
    torch.testing.assert_close(ours.running_mean, (parts[0].running_mean + parts[1].running_mean) / 2)
    torch.testing.assert_close(ours.running_var, (parts[0].running_var + parts[1].running_var) / 2)


def test_a_pass_that_is_not_tracked_changes_nothing_and_normalises_the_same() -> None:
    for statistics in (Statistics(), Statistics("shuffle", 2)):
        ours = layer(statistics)
        tracked = copy.deepcopy(ours)(clips(2))
        before = copy.deepcopy(ours.state_dict())
        norm.use_view(ours, "v", track=False)
        torch.testing.assert_close(ours(clips(2)), tracked)
        assert all(torch.equal(x, before[name]) for name, x in ours.state_dict().items())


def test_shared_statistics_have_the_names_of_a_plain_network() -> None:
    assert layer(Statistics(views="shared")).state_dict().keys() == nn.BatchNorm3d(3).state_dict().keys()
    assert {"running_mean_s", "running_var_d"} <= layer().state_dict().keys()


def test_reestimation_is_the_mean_over_batches() -> None:
    network = nn.Sequential(nn.Conv3d(3, 3, 1), layer(Statistics(views="shared")))
    network(clips(9))  # what training left
    batches = [clips(seed) for seed in range(4)]
    seen = [network[0](x).transpose(0, 1).flatten(1) for x in batches]
    norm.reestimate(network, batches)
    torch.testing.assert_close(network[1].running_mean, torch.stack([x.mean(1) for x in seen]).mean(0))
    torch.testing.assert_close(network[1].running_var, torch.stack([x.var(1) for x in seen]).mean(0))
    assert not network.training and network[1].momentum == 0.1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"mode": "global"}, "sync, shuffle, local"),
        ({"views": "both"}, "split or shared"),
        ({"mode": "sync", "groups": 2}, "sync has one"),
        ({"mode": "local", "groups": 0}, "--bn-groups 0"),
    ],
)
def test_what_is_none_of_that_is_refused(wrong: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Statistics(**wrong)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_the_joined_norm_of_one_process_is_torchs(dtype: torch.dtype, tolerance: float) -> None:
    """Output, statistics and gradients (over several processes: test_distributed.py)."""
    x = (3 + 2 * torch.randn(4, 6, 3, 5, 5, dtype=torch.float64)).to(dtype)
    kind = torch.promote_types(dtype, torch.float32)
    weight, bias = torch.rand(6, dtype=kind) + 0.5, torch.randn(6, dtype=kind)
    back = torch.randn(x.shape, dtype=torch.float64).to(dtype)

    def gradients(call: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> list[torch.Tensor]:
        inputs = tuple(value.clone().requires_grad_() for value in inputs)
        out = call(*inputs)
        return [out, *torch.autograd.grad(out, inputs, back.to(out.dtype))]

    found = gradients(lambda *inputs: norm._Joined.apply(*inputs, 1e-5)[0], x, weight, bias)
    exact = (value.double() for value in (x, weight, bias))
    wanted = gradients(lambda x, w, b: F.batch_norm(x, None, None, w, b, True, 0.1, 1e-5), *exact)
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine.double() - theirs).abs().max() <= tolerance * theirs.abs().max()
    mean, var = norm._Joined.apply(x, weight, bias, 1e-5)[1:]
    assert mean.dtype == var.dtype == kind
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3, 4)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(var.double(), x.double().var((0, 2, 3, 4), correction=0), rtol=1e-5, atol=1e-5)
