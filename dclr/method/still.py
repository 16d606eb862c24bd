"""A clip whose frames are all equal, as the static view is, costs what its distinct frames cost.

Behind a convolution in time the frames near the ends differ, because it pads with zeros there; those between stay equal. So a
run of equal frames is kept as one, with the number it stands for, and each layer computes its distinct frames alone. BatchNorm
weighs the one by that number. The results are those of the whole clip.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from dclr.method.backbones.layers import Conv3d, Front
from dclr.method.backbones.resnet import BasicBlock
from dclr.method.norm import ViewBatchNorm


class Frames(NamedTuple):
    """A clip (B, C, T, H, W) by its distinct frames: ``x_BCNHW``, N = T - times + 1, whose frame ``at`` stands for the frames
    ``at`` to ``at + times - 1`` of the clip, which are equal."""

    x_BCNHW: torch.Tensor
    at: int
    times: int


def is_still(clip_BCTHW: torch.Tensor) -> bool:
    """Whether the frames are one frame of memory, seen T times (``expand``)."""
    return clip_BCTHW.shape[2] > 1 and clip_BCTHW.stride(2) == 0


def compact(clip_BCTHW: torch.Tensor) -> Frames:
    """The one distinct frame of a clip that :func:`is_still`."""
    return Frames(clip_BCTHW[:, :, :1].contiguous(memory_format=torch.channels_last_3d), 0, clip_BCTHW.shape[2])


def stretch(clip: Frames, times: int) -> torch.Tensor:
    """The clip with ``times`` copies of the frame that repeats, channels last: ``clip.times`` of them are the whole clip."""
    if times == 1:
        return clip.x_BCNHW
    x_BNHWC, at = clip.x_BCNHW.movedim(1, -1), clip.at  # in the order of the memory, so that one copy does
    repeated = x_BNHWC[:, at : at + 1].expand(-1, times, -1, -1, -1)
    return torch.cat([x_BNHWC[:, :at], repeated, x_BNHWC[:, at + 1 :]], 1).movedim(-1, 1)


def convolve(conv: Conv3d, clip: Frames) -> Frames:
    """The distinct frames of a convolution's output, from a clip just long enough to have them all."""
    kernel, stride, padding = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
    first = -(-(clip.at + padding) // stride)  # of the outputs that see equal frames alone
    end = -(-(clip.at + clip.times + padding - kernel + 1) // stride)
    if end <= first:  # there is none: all outputs differ
        return Frames(conv(stretch(clip, clip.times)), 0, 1)
    return Frames(conv(stretch(clip, clip.times - stride * (end - first - 1))), first, end - first)


def run(module: nn.Module, clip: Frames) -> Frames:
    """What ``module``, a VideoResNet's stage or a part of it, makes of the clip."""
    match module:
        case Conv3d():
            return convolve(module, clip)
        case ViewBatchNorm():
            return clip._replace(x_BCNHW=module(*clip))
        case nn.ReLU() | Front():
            return clip._replace(x_BCNHW=module(clip.x_BCNHW))
        case BasicBlock():
            shortcut = clip if module.downsample is None else run(module.downsample, clip)
            out = run(module.conv2, run(module.conv1, clip))
            x = out.x_BCNHW + stretch(shortcut, shortcut.times - out.times + 1)
            return out._replace(x_BCNHW=module.relu(x))
        case nn.Sequential():
            for child in module:
                clip = run(child, clip)
            return clip
    raise TypeError(f"{type(module).__name__} is no part of a VideoResNet")
