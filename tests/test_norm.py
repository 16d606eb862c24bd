"""BatchNorm: over what its statistics are taken, and how they are re-estimated."""

import copy

import pytest
import torch
from torch import nn

from dclr import norm
from dclr.errors import InputError
from dclr.norm import Statistics


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
