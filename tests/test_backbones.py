"""Sizes, names and shapes of the trunks, and the convolution that is computed another way than it is written."""

import pytest
import torch
import torch.nn.functional as F

from dclr.backbones import build
from dclr.backbones.resnet import TemporalConv
from dclr.errors import InputError


@pytest.mark.parametrize(("arch", "parameters"), [("r2plus1d_10", 12_487_005), ("r2plus1d_18", 31_300_125)])
def test_trunks_have_the_published_sizes_and_names(arch: str, parameters: int) -> None:
    trunk = build(arch)
    assert sum(p.numel() for p in trunk.parameters()) == parameters
    names = trunk.state_dict()
    assert names["stem.0.weight"].shape == (45, 3, 1, 7, 7) and names["stem.3.weight"].shape == (64, 45, 3, 1, 1)
    assert names["layer2.0.conv1.0.0.weight"].shape == (230, 64, 1, 3, 3)
    assert names["layer4.0.conv2.0.3.weight"].shape == (512, 921, 3, 1, 1)
    assert {"layer1.0.conv1.1.running_var", "layer4.0.downsample.1.bias", "stem.4.num_batches_tracked"} <= set(names)


@pytest.mark.parametrize(("clip", "out"), [((16, 112, 112), (2, 7, 7)), ((8, 56, 64), (1, 4, 4)), ((5, 33, 40), (1, 3, 3))])
@pytest.mark.parametrize("width", [4, 7])
def test_any_clip_and_any_width(clip: tuple[int, ...], out: tuple[int, ...], width: int) -> None:
    trunk = build("r2plus1d_10", width)
    features = trunk(torch.randn(1, 3, *clip))
    assert features.shape == (1, 8 * width, *out) and features.min() >= 0


def test_an_unknown_architecture_lists_the_known() -> None:
    with pytest.raises(InputError, match="r2plus1d_10, r2plus1d_18"):
        build("resnet50")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_the_temporal_convolution_is_the_3d_one(frames: int, stride: int) -> None:
    layer = TemporalConv(5, 6, stride).double()
    x = torch.randn(2, 5, frames, 3, 4, dtype=torch.float64).contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(layer(x), F.conv3d(x, layer.weight, stride=(stride, 1, 1), padding=(1, 0, 0)))


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_bfloat16_weight_gradients_do_not_read_unwritten_memory(frames: int) -> None:
    """With NaN left in freed memory, as a training step leaves it: a plain Conv3d fails this at 2 frames on torch 2.13."""
    layer = TemporalConv(48, 64)
    for seed in range(4):
        x, back = torch.randn(8, 48, frames, 4, 4), torch.randn(8, 64, frames, 4, 4)
        x, back = (t.bfloat16().contiguous(memory_format=torch.channels_last_3d) for t in (x, back))
        blocks = [torch.full((2**size,), float("nan")) for size in (8, 10, 12, 14, 16, 18, 20) for _ in range(12)]
        del blocks
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            layer(x).backward(back)
        exact = layer.weight.detach().clone().requires_grad_()
        F.conv3d(x.float(), exact, padding=(1, 0, 0)).backward(back.float())
        assert layer.weight.grad is not None and exact.grad is not None
        assert (layer.weight.grad - exact.grad).abs().max() < 0.02 * exact.grad.abs().max(), seed
