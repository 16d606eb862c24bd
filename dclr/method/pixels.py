"""What a network takes a colour for: mean, deviation and order of its channels; without torch.

Everything here makes clips in our pixels, ImageNet's. A network that learned from others sees these behind a
:class:`dclr.method.backbones.layers.Front`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dclr.errors import InputError
from dclr.settings import check_values, setting

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, in RGB
STD = (0.229, 0.224, 0.225)
CHANNEL_ORDERS = ("rgb", "bgr")


@dataclass(frozen=True)
class InputPixels:
    """A network's channel c is (colour - ``mean[c]``) / ``std[c]``, of colours in 0..1 in the network's ``order``."""

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    order: str = "rgb"

    @property
    def said(self) -> dict[str, Any]:
        """As checkpoints and exports record it."""
        return {"mean": list(self.mean), "std": list(self.std), "order": self.order}

    @property
    def grey(self) -> list[int]:
        """The colour that is 0 to the network, RGB in 0..255."""
        mean = self.mean if self.order == "rgb" else self.mean[::-1]
        return [min(max(round(255 * one), 0), 255) for one in mean]

    def __str__(self) -> str:
        mean, std = (",".join(f"{one:g}" for one in some) for some in (self.mean, self.std))
        return f"mean {mean}, std {std} on 0..1, {self.order.upper()}"


IMAGENET = InputPixels()
TORCHVISION = InputPixels((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))  # torchvision's video models
SYMMETRIC = InputPixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # -1..1
PUBLISHED = {  # of weights in these layouts that do not say it
    "r2plus1d_18": (TORCHVISION, "torchvision's Kinetics weights"),
    "r3d_18": (TORCHVISION, "torchvision's Kinetics weights"),
    "mc3_18": (TORCHVISION, "torchvision's Kinetics weights"),
    "i3d": (SYMMETRIC, "I3D's -1..1"),
}


@dataclass(frozen=True, kw_only=True)
class PixelSettings:
    """The pixels of a network whose file does not say them."""

    title = "model"
    mean: tuple[float, ...] = setting(
        (), "mean of the network's three channels, on 0..1 or 0..255, where its file does not say it", metavar="MEAN",
        least=0, most=255, before=list(MEAN),
    )  # fmt: skip
    std: tuple[float, ...] = setting(
        (), "deviation of the same, on the same scale", metavar="STD", above=0, most=255,
        before=list(STD),
    )  # fmt: skip
    order: str | None = setting(None, "order of the same", choices=CHANNEL_ORDERS, before="rgb")

    def __post_init__(self) -> None:
        check_values(self)
        self.check_pixels()

    def check_pixels(self) -> None:
        """Raises InputError where ``mean`` and ``std`` are not both three numbers, or both none."""
        for flag, some in (("--mean", self.mean), ("--std", self.std)):
            if len(some) not in (0, 3):
                raise InputError(f"{flag} {','.join(map(str, some))}: expected three numbers, one a channel")
        if len(self.mean) != len(self.std):
            raise InputError("--mean and --std are of the same pixels: expected both or neither")

    def pixels(self, otherwise: InputPixels = IMAGENET) -> InputPixels:
        """Those that the settings say, and ``otherwise`` what they leave out. A mean or deviation above 1 is on 0..255."""
        scale = 255.0 if max((*self.mean, *self.std), default=0) > 1 else 1.0
        mean, std = (tuple(round(one / scale, 9) for one in some) for some in (self.mean, self.std))
        return InputPixels(mean or otherwise.mean, std or otherwise.std, self.order or otherwise.order)


def recorded(config: Mapping[str, Any]) -> InputPixels | None:
    """The pixels that a checkpoint's settings or an export's metadata (text) say, None where they say none. Raises ValueError
    for what are no pixels."""
    if not config.get("mean") or not config.get("std"):
        return None
    found = []
    for name in ("mean", "std"):
        value = config[name]
        value = json.loads(value) if isinstance(value, str) else value
        if not isinstance(value, list | tuple) or len(value) != 3:
            raise ValueError(f"{name} {value!r}, expected three numbers")
        found.append(tuple(map(float, value)))
    mean, std = found
    order = config.get("order", "rgb")
    if not all(map(math.isfinite, mean + std)) or min(std) <= 0 or order not in CHANNEL_ORDERS:
        raise ValueError(f"mean {mean}, std {std}, order {order!r}")
    return InputPixels(mean, std, order)
