"""Video backbones by name: ``build("r2plus1d_10")`` is a trunk, clips (B, 3, T, H, W) -> feature map (B, C', T', H', W').

Parameter names follow the common VideoResNet layout (stem, layer1 .. layer4), so weights of that layout load strictly.
"""

from __future__ import annotations

from collections.abc import Callable

from dclr.backbones.resnet import VideoResNet
from dclr.errors import InputError

ARCHITECTURES: dict[str, Callable[[int], VideoResNet]] = {
    "r2plus1d_10": lambda width: VideoResNet((1, 1, 1, 1), width),
    "r2plus1d_18": lambda width: VideoResNet((2, 2, 2, 2), width),
}


def check(arch: str, width: int) -> None:
    """Raises InputError where there is no such trunk, naming those there are."""
    if arch not in ARCHITECTURES:
        raise InputError(f"architecture {arch!r}: expected one of {', '.join(ARCHITECTURES)}")
    if width < 1:
        raise InputError(f"width {width}: expected at least 1")


def build(arch: str, width: int = 64) -> VideoResNet:
    """The trunk ``arch`` with ``width`` channels in its first stage (64 is the published size); its attribute
    ``channels`` is C' (8 x width). Raises InputError as :func:`check` does."""
    check(arch, width)
    return ARCHITECTURES[arch](width)
