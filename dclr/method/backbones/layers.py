"""What trunks are made of: torch's convolutions, except where torch's are wrong.

On the CPU, torch 2.13's weight gradient of a convolution that pads in time is read from memory that was never written, or
written past its end, where the clip has no more frames than the kernel: in bfloat16 a kernel of 3 at T = 2 (layer4 of every
16-frame clip) and one of 7 at T = 3 to 7; in float32 one of 7 with stride 2 at T = 5 to 7. tests/method/test_backbones.py
watches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from dclr.method.pixels import IMAGENET, InputPixels

Triple = tuple[int, int, int]


class Backbone(nn.Module):
    """What every trunk is: clips (B, 3, T, H, W) -> feature map (B, C', T', H', W'), with C' as ``channels``.

    It takes clips in our pixels (:func:`dclr.method.views.normalise`). ``pixels`` are those that its weights learned from."""

    channels: int
    pixels: InputPixels = IMAGENET

    @property
    def kind(self) -> type:
        """The class that says what its stages are."""
        return type(self)

    def initialise(self) -> None:
        """Convolutions as He et al. (2015) draw them, by the fan out."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class Front(nn.Module):
    """Our pixels -> ``pixels``: clips (B, 3, T, H, W), float32, scaled and shifted channel by channel.

    It is a step of its own. Folded into the first convolution it would be wrong along the picture's edges: that pads with
    zeros, the mean colour of its own pixels, which is another number in ours.

    :func:`dclr.method.norm.use_view` sets ``view``. Clips of d are changes, which are scaled and not shifted: the difference of
    two frames in our pixels is then that of the same frames in the network's own. A ``view`` of several letters says what the
    clips of a batch are in turn."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, pixels: InputPixels):
        super().__init__()
        self.bgr, self.view, self.track = pixels.order == "bgr", "v", True
        our_mean, our_std, mean, std = torch.tensor([IMAGENET.mean, IMAGENET.std, pixels.mean, pixels.std], dtype=torch.float64)
        if self.bgr:
            our_mean, our_std = our_mean.flip(0), our_std.flip(0)
        for name, value in (("scale", our_std / std), ("shift", (our_mean - mean) / std)):
            self.register_buffer(name, value.float(), persistent=False)  # checkpoints have the pixels

    def forward(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        scale, shift = self.scale.view(3, 1, 1, 1), self.shift.view(3, 1, 1, 1)
        out_BCTHW = (clip_BCTHW.flip(1) if self.bgr else clip_BCTHW) * scale
        for place, view in enumerate(self.view):
            if view != "d":
                out_BCTHW[place :: len(self.view)] += shift
        return out_BCTHW


class Fronted(Backbone):
    """A trunk behind its :class:`Front`. Its tensors keep their names, and the front has none."""

    def __init__(self, trunk: Backbone, pixels: InputPixels):
        super().__init__()
        self.channels, self.pixels, self._kind = trunk.channels, pixels, trunk.kind
        self.front = Front(pixels)
        for name, stage in trunk.named_children():
            self.add_module(name, stage)

    @property
    def kind(self) -> type:
        return self._kind

    def forward(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        for stage in self.children():  # every trunk is its children, one after the other
            clip_BCTHW = stage(clip_BCTHW)
        return clip_BCTHW


def fronted(trunk: Backbone, pixels: InputPixels) -> Backbone:
    """A trunk that learned from ``pixels`` as one that takes ours."""
    return trunk if pixels == IMAGENET else Fronted(trunk, pixels)


def bare(trunk: Backbone) -> nn.Module:
    """The trunk without a front: the same tensors, and it takes clips in its own pixels."""
    if trunk.pixels == IMAGENET:
        return trunk
    return nn.Sequential(*(stage for stage in trunk.children() if not isinstance(stage, Front)))


class Conv3d(nn.Conv3d):
    """A convolution without bias, computed by the best of torch's that is right.

    Where the clip has no more frames than the kernel, time is padded before the convolution.

    A kernel of one frame, on a clip that lies channels last, becomes a 2D convolution of B T frames, a view of the same memory.
    torch's 3D weight gradient of such a kernel can take three times as long (64 to 144 channels at 16x56x56, batch 4, on a CPU
    with AVX2: 962 and 319 ms). Under autocast it stays 3D: in bfloat16 the 2D one sums the frames in bfloat16, and its error
    grows with their number (512 frames: 2.7 %).
    """

    def __init__(self, inputs: int, outputs: int, kernel: Triple, stride: Triple = (1, 1, 1), padding: Triple = (0, 0, 0)):
        super().__init__(inputs, outputs, kernel, stride, padding, bias=False)
        self.before, self.within = (0, 0, 0, 0, padding[0], padding[0]), (0, padding[1], padding[2])
        self.framewise = kernel[0] == stride[0] == 1 and padding[0] == 0

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        half = torch.is_autocast_enabled(x_BCTHW.device.type)
        if self.framewise and not half and x_BCTHW.is_contiguous(memory_format=torch.channels_last_3d):
            frames = x_BCTHW.transpose(1, 2).flatten(0, 1)
            out = F.conv2d(frames, self.weight.squeeze(2), None, self.stride[1:], self.within[1:])
            return out.unflatten(0, (len(x_BCTHW), -1)).transpose(1, 2)
        if self.before[-1] and x_BCTHW.shape[2] <= self.kernel_size[0]:
            return F.conv3d(F.pad(x_BCTHW, self.before), self.weight, None, self.stride, self.within)
        return super().forward(x_BCTHW)
