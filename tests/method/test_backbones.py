"""Sizes, names and shapes of the trunks, and the convolutions that are computed another way than they are written."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dclr.errors import InputError
from dclr.method.backbones import ARCHITECTURES, build
from dclr.method.backbones.i3d import pad_same
from dclr.method.backbones.layers import Conv3d, Triple

SIZES = {
    "r2plus1d_10": 12_487_005,
    "r2plus1d_18": 31_300_125,
    "r3d_18": 33_166_272,
    "mc3_18": 11_490_240,
    "i3d": 12_287_264,
}


def test_every_trunk_has_its_published_size() -> None:
    assert {arch: sum(p.numel() for p in build(arch).parameters()) for arch in ARCHITECTURES} == SIZES


@pytest.mark.parametrize(
    ("arch", "shapes"),
    [
        (
            "r2plus1d_10",
            {
                "stem.0.weight": (45, 3, 1, 7, 7), "stem.3.weight": (64, 45, 3, 1, 1), "stem.4.num_batches_tracked": (),
                "layer2.0.conv1.0.0.weight": (230, 64, 1, 3, 3), "layer4.0.conv2.0.3.weight": (512, 921, 3, 1, 1),
                "layer1.0.conv1.1.running_var": (64,), "layer4.0.downsample.1.bias": (512,),
            },
        ),
        ("r2plus1d_18", {"layer4.1.conv2.0.0.weight": (1152, 512, 1, 3, 3), "layer4.1.conv2.1.weight": (512,)}),
        (
            "r3d_18",
            {
                "stem.0.weight": (64, 3, 3, 7, 7), "stem.1.running_mean": (64,), "layer1.1.conv2.0.weight": (64, 64, 3, 3, 3),
                "layer3.0.downsample.0.weight": (256, 128, 1, 1, 1), "layer4.1.conv1.0.weight": (512, 512, 3, 3, 3),
            },
        ),
        ("mc3_18", {"layer1.0.conv1.0.weight": (64, 64, 3, 3, 3), "layer2.0.conv1.0.weight": (128, 64, 1, 3, 3)}),
        (
            "i3d",
            {
                "Conv3d_1a_7x7.conv3d.weight": (64, 3, 7, 7, 7), "Conv3d_2c_3x3.bn.running_mean": (192,),
                "Mixed_3b.b2b.conv3d.weight": (32, 16, 3, 3, 3), "Mixed_5c.b0.conv3d.weight": (384, 832, 1, 1, 1),
                "Mixed_4f.b3b.bn.bias": (128,),
            },
        ),
    ],
)  # fmt: skip
def test_names_and_shapes_are_those_of_the_published_layout(arch: str, shapes: dict[str, tuple[int, ...]]) -> None:
    found = {name: tuple(x.shape) for name, x in build(arch).state_dict().items()}
    assert {name: found.get(name) for name in shapes} == shapes


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("clip", [(16, 112, 112), (8, 56, 64), (5, 33, 40)])
@pytest.mark.parametrize("width", [4, 7])
def test_any_clip_and_any_width(arch: str, clip: tuple[int, int, int], width: int) -> None:
    trunk = build(arch, width)
    with torch.no_grad():
        features = trunk(torch.randn(1, 3, *clip))
    side = 32 if arch == "i3d" else 16
    frames = clip[0] if arch == "mc3_18" else -(-clip[0] // 8)
    assert features.shape == (1, trunk.channels, frames, -(-clip[1] // side), -(-clip[2] // side)) and features.min() >= 0
    assert trunk.channels == 8 * width or arch == "i3d"


def test_an_unknown_architecture_lists_the_known() -> None:
    with pytest.raises(InputError, match="r2plus1d_10, r2plus1d_18, r3d_18, mc3_18, i3d"):
        build("resnet50")


def test_i3d_pads_as_tensorflow_does() -> None:
    """ceil(size / stride) places, the odd zero at the end: a kernel of 3 at stride 2 on 4 needs one, on 5 two."""
    line = torch.ones(1, 1, 4, 5, 1)
    padded = pad_same(line, (3, 3, 1), (2, 2, 1))
    assert padded.shape == (1, 1, 5, 7, 1)
    assert padded[0, 0, :, 3, 0].tolist() == [1, 1, 1, 1, 0] and padded[0, 0, 0, :, 0].tolist() == [0, 1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("kernel", [(1, 1, 1), (1, 3, 3), (3, 1, 1), (3, 3, 3), (3, 7, 7)])
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_a_convolution_is_torchs(kernel: Triple, stride: Triple, layout: torch.memory_format) -> None:
    """Whichever way it is computed: value, layout and gradients."""
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    layer = Conv3d(5, 6, kernel, stride, padding).double().to(memory_format=layout)  # type: ignore[call-overload]
    for frames in (1, 2, 3, 5):
        x = torch.randn(2, 5, frames, 7, 9, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
        found, wanted = layer(x), F.conv3d(x, layer.weight, None, stride, padding)
        torch.testing.assert_close(found, wanted)
        back = torch.randn_like(found)
        for mine, theirs in zip(*(torch.autograd.grad(y, [x, layer.weight], back) for y in (found, wanted)), strict=True):
            torch.testing.assert_close(mine, theirs)
    assert layer.float()(x.float()).is_contiguous(memory_format=layout)


def wrong_gradients(kind: str, frames: int, dtype: torch.dtype) -> int:
    """In how many of four draws a weight gradient is wrong, with NaN left in freed memory, as a training step leaves it."""
    if kind == "temporal":
        layer = Conv3d(48, 64, (3, 1, 1), padding=(1, 0, 0))
    elif kind == "frames":
        layer = Conv3d(48, 64, (1, 3, 3), padding=(0, 1, 1))
    elif kind == "cube":
        layer = Conv3d(48, 64, (3, 3, 3), padding=(1, 1, 1))
    elif kind == "stem of r3d":
        layer = Conv3d(3, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3))
    else:
        layer = Conv3d(3, 64, (7, 7, 7), (2, 2, 2), (3, 3, 3))  # Unit pads before, this one by itself: the same
    wrong = 0
    for _ in range(4):
        x = torch.randn(8, layer.in_channels, frames, 7, 7).to(dtype).contiguous(memory_format=torch.channels_last_3d)
        blocks = [torch.full((2**size,), float("nan")) for size in (8, 10, 12, 14, 16, 18, 20) for _ in range(12)]
        del blocks
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = layer(x)
            back = torch.randn(out.shape).to(out.dtype).contiguous(memory_format=torch.channels_last_3d)
            out.backward(back)
        exact = layer.weight.detach().double().requires_grad_()  # float64 is computed another way
        F.conv3d(x.double(), exact, None, layer.stride, layer.padding).backward(back.double())  # type: ignore[arg-type]
        assert layer.weight.grad is not None and exact.grad is not None
        wrong += not (layer.weight.grad - exact.grad).abs().max() < 0.02 * exact.grad.abs().max()
    return wrong


@pytest.mark.parametrize("kind", ["temporal", "frames", "cube", "stem of r3d", "stem of i3d"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_weight_gradients_do_not_touch_memory_that_is_not_theirs(kind: str, dtype: str) -> None:
    """As torch 2.13's do (dclr/method/backbones/layers.py); in a process of its own, because they may end it."""
    call = f"t.wrong_gradients({kind!r}, frames, t.torch.{dtype})"
    code = f"import test_backbones as t; print([{call} for frames in range(1, 9)])"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == str([0] * 8), done.stdout + done.stderr
