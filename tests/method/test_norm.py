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

    found = gradients(lambda *inputs: norm._Joined.apply(*inputs, 1e-5, 0, 1, True)[0], x, weight, bias)
    exact = (value.double() for value in (x, weight, bias))
    wanted = gradients(lambda x, w, b: F.batch_norm(x, None, None, w, b, True, 0.1, 1e-5), *exact)
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine.double() - theirs).abs().max() <= tolerance * theirs.abs().max()
    mean, var = norm._Joined.apply(x, weight, bias, 1e-5, 0, 1, True)[1:]
    assert mean.dtype == var.dtype == kind
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3, 4)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(var.double(), x.double().var((0, 2, 3, 4), correction=0), rtol=1e-5, atol=1e-5)


def test_without_a_momentum_it_is_torchs_default() -> None:
    ours = layer(momentum=None)  # type: ignore[arg-type]
    assert ours.momentum == 0.1
    ours(clips(2))
    torch.testing.assert_close(ours.running_mean, plain(clips(2)).running_mean)


def test_each_view_has_running_statistics_of_its_own_and_shared_ones_have_one() -> None:
    for views in ("split", "shared"):
        ours, theirs = layer(Statistics(views=views)), {name: nn.BatchNorm3d(3) for name in "vsd"}
        if views == "shared":
            theirs = dict.fromkeys("vsd", theirs["v"])
        for number, name in enumerate("vsd"):
            norm.use_view(ours, name)
            torch.testing.assert_close(ours(clips(number)), theirs[name](clips(number)))
        ours.eval()
        for name in "vsd":
            norm.use_view(ours, name)
            torch.testing.assert_close(ours(clips(4)), theirs[name].eval()(clips(4)))


def test_a_second_computation_normalises_as_the_view_and_leaves_all_as_it_was() -> None:
    network = nn.Sequential(layer(), nn.ReLU(), layer())
    norm.use_view(network[0], "d")
    norm.use_view(network[2], "s", track=False)
    with pytest.raises(ZeroDivisionError), norm.again(network, "v"):
        assert [(network[n].view, network[n].track) for n in (0, 2)] == [("v", False)] * 2
        raise ZeroDivisionError
    assert [(network[n].view, network[n].track) for n in (0, 2)] == [("d", True), ("s", False)]


def test_everything_below_is_converted() -> None:
    network = nn.Sequential(nn.BatchNorm3d(3), nn.Sequential(nn.Conv3d(3, 3, 1), nn.BatchNorm3d(3)), nn.BatchNorm1d(3))
    statistics = Statistics("local", 2)
    assert norm.convert(network, statistics) is network
    assert [type(network[0]), type(network[1][1])] == [norm.ViewBatchNorm] * 2 and network[0].statistics is statistics
    assert type(network[1][0]) is nn.Conv3d and type(network[2]) is nn.BatchNorm1d


def test_a_rank_of_two_has_the_gradient_of_the_joined_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its own clips; of weight and bias its own part, which the ranks add up afterwards."""
    both, back = torch.cat([clips(1), clips(3)]).double(), torch.cat([clips(4), clips(5)]).double()
    weight, bias = torch.tensor([0.5, 1, 2]).double().requires_grad_(), torch.zeros(3).double().requires_grad_()
    x = both.clone().requires_grad_()
    wanted = F.batch_norm(x, None, None, weight, bias, True)
    expected, of_weight, of_bias = torch.autograd.grad(wanted, (x, weight, bias), back)
    plain, other = F.batch_norm(both, None, None, training=True), slice(8, 16)
    own = [(back[:8] * plain[:8]).sum((0, 2, 3, 4)), back[:8].sum((0, 2, 3, 4))]
    sent = {"forward": torch.stack([both[other].mean((0, 2, 3, 4)), both[other].var((0, 2, 3, 4), correction=0)]).unsqueeze(0)}
    sent["backward"] = torch.stack([of_bias - own[1], of_weight - own[0]])
    monkeypatch.setattr(norm, "world", lambda: 2)
    monkeypatch.setattr(norm, "joined", lambda x: torch.cat([x, sent["forward"]]))
    monkeypatch.setattr(norm, "total", lambda x: x + sent["backward"])
    mine = both[:8].clone().requires_grad_()
    found = norm._Joined.apply(mine, weight, bias, 1e-5, 0, 1, True)[0]
    torch.testing.assert_close(found, wanted[:8])
    gradients = torch.autograd.grad(found, (mine, weight, bias), back[:8])
    for gradient, right in zip(gradients, (expected[:8], *own), strict=True):
        torch.testing.assert_close(gradient, right)


@pytest.mark.parametrize("track", [True, False])
def test_a_rank_of_two_normalises_with_the_rows_of_both(track: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As this rank sees it: what the other would send is put in its place."""
    mine, other = clips(1), clips(3)
    sent = torch.stack([other.mean((0, 2, 3, 4)), other.var((0, 2, 3, 4), correction=0)]).unsqueeze(0)
    monkeypatch.setattr(norm, "world", lambda: 2)
    monkeypatch.setattr(norm, "joined", lambda x: torch.cat([x, sent]))
    ours, theirs = layer(), nn.BatchNorm3d(3)
    norm.use_view(ours, "v", track)
    torch.testing.assert_close(ours(mine), theirs(torch.cat([mine, other]))[:8], rtol=1e-4, atol=1e-5)
    expected = theirs if track else nn.BatchNorm3d(3)
    torch.testing.assert_close(ours.running_mean, expected.running_mean)
    torch.testing.assert_close(ours.running_var, expected.running_var)


def test_one_value_a_channel_on_each_rank_has_running_statistics_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The unbiased variance of n values is n / (n - 1) times the biased one, here of 2."""
    mine, other = torch.tensor([1.0, 2, 3]).view(1, 3, 1, 1, 1), torch.tensor([[[5.0, 2, 1], [0, 0, 0]]])
    monkeypatch.setattr(norm, "world", lambda: 2)
    monkeypatch.setattr(norm, "joined", lambda x: torch.cat([x, other]))
    ours = layer()
    ours(mine)
    torch.testing.assert_close(ours.running_mean, torch.tensor([0.3, 0.2, 0.2]))
    torch.testing.assert_close(ours.running_var, 0.9 + 0.1 * torch.tensor([8.0, 0, 2]))


@pytest.mark.parametrize(("mode", "averaged"), [("sync", False), ("local", True), ("shuffle", True)])
def test_ranks_are_given_the_mean_of_their_running_statistics(
    mode: str, averaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = nn.Sequential(layer(Statistics(mode)), nn.BatchNorm3d(3))
    with torch.no_grad():
        network[0].weight.fill_(3)
    before = copy.deepcopy(network.state_dict())
    monkeypatch.setattr(norm, "total", lambda x: x + 5)
    norm.average(network)
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())  # one rank has nobody to ask
    monkeypatch.setattr(norm, "world", lambda: 2)
    norm.average(network)
    for name, x in network.state_dict().items():
        changes = averaged and name.startswith("0.running")
        torch.testing.assert_close(x, (before[name] + 5) / 2 if changes else before[name])
