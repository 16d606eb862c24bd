"""A batch on the device: colour, blur, normalise; then the views v, s, d of every clip.

Legend: B videos, C = 3 colours, T frames, N frames of all clips, H W pixels. All draws were made on the CPU
(dclr/data/clips.py); here is only arithmetic, one draw a clip and the same for all its frames. Each operation runs once over
all frames that it changes. Nothing here waits for a GPU: which frames these are is decided on the CPU, what is sent is pinned
on its way (:func:`dclr.hardware.sent`), and constants are made once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch

from dclr.cues import DYNAMICS, STILL
from dclr.hardware import sent
from dclr.method.pixels import MEAN, STD

GREY = (0.299, 0.587, 0.114)  # red's, green's and blue's part in it: ITU-R BT.601
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # as draw_colours numbers them
NEUTRAL = (1, 1, 1, 0)  # their factors that change nothing
PLAIN = np.array((*NEUTRAL, *range(4), 0, 0), np.float32)  # the draw that changes nothing
# A shortest sequence out of which each of the 24 orders can be picked; hue, which costs most, comes only twice.
EVERY_ORDER = (
    BRIGHTNESS, CONTRAST, SATURATION, HUE, BRIGHTNESS, CONTRAST, SATURATION, BRIGHTNESS, HUE, CONTRAST, BRIGHTNESS, SATURATION,
)  # fmt: skip


def to_clip(rgb_BTHWC: torch.Tensor) -> torch.Tensor:
    """uint8 (B, T, H, W, 3) -> float32 (B, 3, T, H, W) in 0..1, channels last in memory (what convolutions want)."""
    return rgb_BTHWC.permute(0, 4, 1, 2, 3).float() / 255


@lru_cache
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """These values on the device. They are made once, because copying them from the host waits for the GPU."""
    return torch.tensor(values, device=device, dtype=dtype)


def normalise(clip_BCTHW: torch.Tensor) -> torch.Tensor:
    """0..1 -> ImageNet's mean 0, deviation 1."""
    mean, std = (constant(x, clip_BCTHW.device, clip_BCTHW.dtype).view(1, 3, 1, 1, 1) for x in (MEAN, STD))
    return (clip_BCTHW - mean) / std


def grey_of(frames_CNHW: torch.Tensor) -> torch.Tensor:
    """(3, N, H, W) -> (N, H, W)."""
    grey_NHW = frames_CNHW[0] * GREY[0]
    return grey_NHW.add_(frames_CNHW[1], alpha=GREY[1]).add_(frames_CNHW[2], alpha=GREY[2])


def change_brightness(frames_CNHW: torch.Tensor, factor_N: torch.Tensor) -> None:
    """Times the factor, in place. This and the next two are torchvision's formulas: colours in 0..1, (3, N, H, W)."""
    frames_CNHW.mul_(factor_N[:, None, None]).clamp_(0, 1)


def change_contrast(frames_CNHW: torch.Tensor, factor_N: torch.Tensor) -> None:
    """Away from the frame's mean grey, or towards it, in place."""
    weight = constant(GREY, frames_CNHW.device, frames_CNHW.dtype)
    mean_N = (frames_CNHW.mean((2, 3)) * weight[:, None]).sum(0)
    rest_N = mean_N * (1 - factor_N)
    frames_CNHW.mul_(factor_N[:, None, None]).add_(rest_N[:, None, None]).clamp_(0, 1)


def change_saturation(frames_CNHW: torch.Tensor, factor_N: torch.Tensor) -> None:
    """Away from the pixel's grey, or towards it, in place."""
    rest_NHW = grey_of(frames_CNHW).mul_((1 - factor_N)[:, None, None])
    frames_CNHW.mul_(factor_N[:, None, None]).add_(rest_NHW).clamp_(0, 1)


def add_brightness(frames_CNHW: torch.Tensor, factor_N: torch.Tensor) -> None:
    """Plus the factor less 1, in place. This and the next two are the authors' formulas, those of kornia's ColorJiggle."""
    frames_CNHW.add_((factor_N - 1)[:, None, None]).clamp_(0, 1)


def scale_contrast(frames_CNHW: torch.Tensor, factor_N: torch.Tensor) -> None:
    """Away from black, or towards it, in place."""
    frames_CNHW.mul_(factor_N[:, None, None]).clamp_(0, 1)


def scale_saturation(frames_CNHW: torch.Tensor, factor_N: torch.Tensor) -> None:
    """HSV's saturation times the factor, at most 1, in place. Value and hue stay, so each channel keeps its share of the
    distance from the value V, which grows by the factor, at most by V / (V - L) with the low L."""
    value_NHW = frames_CNHW.amax(0)
    most_NHW = value_NHW / (value_NHW - frames_CNHW.amin(0)).clamp_min_(1e-20)  # of grey, which stays, without a limit
    torch.minimum(most_NHW, factor_N[:, None, None], out=most_NHW)
    frames_CNHW.sub_(value_NHW).mul_(most_NHW).add_(value_NHW)


def shift_hue(frames_CNHW: torch.Tensor, turn_N: torch.Tensor) -> None:
    """Turn the hue by ``turn_N`` of a circle, through HSV, in place: colours in 0..1, (3, N, H, W).

    With value V, low L, chroma C = V - L and the hue h in 0..6, the channels are L + C max(0, min(1, |h - 3| - 1)) in red and
    V - C max(0, min(1, |h - c| - 1)) with c = 2 in green, 4 in blue. So red' = (red - L) / C and d = (green - blue) / C give
    the hue in -3..3 without asking which channel is the largest: its sign is d's and its size 2 - red' + (1 - |d|)
    (1 - 2 red'), because |d| < 1 only where red' is 0 or 1.
    """
    red, green, blue = frames_CNHW
    value, low = torch.maximum(red, green), torch.minimum(red, green)
    torch.maximum(value, blue, out=value)
    torch.minimum(low, blue, out=low)
    chroma = value - low
    inverse = chroma.clamp_min(1e-20).reciprocal_()  # a grey pixel has no hue, and a chroma of 0 leaves it as it is
    d = (green - blue).mul_(inverse)
    less = d.abs().sub_(1.5)
    h = (red - low).mul_(inverse).mul_(2).sub_(1).mul_(less).add_(1.5)  # the size, multiplied out
    torch.copysign(h, d, out=h).add_((6 * turn_N)[:, None, None])
    torch.div(h, 6, out=d).floor_()
    h.sub_(d, alpha=6)
    torch.sub(h, 3, out=red).abs_().clamp_(1, 2).mul_(chroma).add_(low).sub_(chroma)
    value.add_(chroma)
    for channel, opposite in ((green, 2), (blue, 4)):
        torch.sub(h, opposite, out=channel).abs_().clamp_(1, 2).mul_(chroma)
        torch.sub(value, channel, out=channel)


def grey(frames_CNHW: torch.Tensor, _: torch.Tensor) -> None:
    """Grey in all three channels, in place."""
    frames_CNHW.copy_(grey_of(frames_CNHW).expand_as(frames_CNHW))


@lru_cache
def taps(kernel: int, side: int, device: torch.device) -> torch.Tensor:
    """Where each tap of a kernel reads: float32 (kernel, side * side), 1 at [tap, out * side + in], reflected at the edges."""
    out, reads = np.arange(side), np.zeros((kernel, side, side), np.float32)
    for tap in range(kernel):
        place = np.abs(out + tap - kernel // 2)
        reads[tap, out, side - 1 - np.abs(side - 1 - place)] = 1
    return torch.from_numpy(reads).flatten(1).to(device)


def gaussians(sigma_N: np.ndarray, kernel: int) -> np.ndarray:
    """The weights of a blur's taps, float32 (N, kernel)."""
    place = np.arange(kernel) - kernel // 2
    weight_NK = np.exp(-(place**2) / (2 * np.square(sigma_N[:, None], dtype=np.float64)))
    return (weight_NK / weight_NK.sum(1, keepdims=True)).astype(np.float32)


def blur(frames_CNHW: torch.Tensor, weight_NK: torch.Tensor) -> None:
    """Gaussian blur in place, each frame by its weights of the kernel's taps, first down, then across. As a product with a
    matrix a frame it takes fewer and faster operations than a convolution with as many kernels as frames."""
    height, width = frames_CNHW.shape[2:]
    kernel, device = weight_NK.shape[1], weight_NK.device
    down = (weight_NK @ taps(kernel, height, device)).unflatten(1, (height, height))
    across = down if width == height else (weight_NK @ taps(kernel, width, device)).unflatten(1, (width, width))
    for channel_NHW in frames_CNHW:
        torch.bmm(torch.bmm(down, channel_NHW), across.mT, out=channel_NHW)


Change = Callable[[torch.Tensor, torch.Tensor], None]  # of frames, in place, each by its own values
CHANGES: dict[str, tuple[Change, ...]] = {  # of each of JITTERS (dclr/data/clips.py)
    "torchvision": (change_brightness, change_contrast, change_saturation, shift_hue),
    "authors": (add_brightness, scale_contrast, scale_saturation, shift_hue),
}


def jitters(colours_NP: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Brightness, contrast, saturation and hue in each frame's drawn order: one of them and the frames that it changes next."""
    order = np.pad(colours_NP[:, 4:8].astype(int), ((0, 0), (0, 1)), constant_values=-1)
    done = np.zeros(len(order), int)
    for step in EVERY_ORDER:
        now = order[np.arange(len(order)), done] == step
        done += now
        yield step, np.flatnonzero(now & (colours_NP[:, step] != NEUTRAL[step]))


def photometry(frames_CNHW: torch.Tensor, colours_NP: np.ndarray, jitter: str = "torchvision") -> torch.Tensor:
    """Colour jitter, grey, blur and normalisation of frames in 0..1, each by its own draw; with the authors' ``jitter`` grey
    comes first.

    A frame's result does not depend on the other frames, but for the last bits: a sum or a product may be taken in another
    order where their number differs.

    Args:
        frames_CNHW: float32 (3, N, H, W), planes of colour; they are overwritten.
        colours_NP: float32 (N, COLOURS), see :func:`dclr.data.clips.draw_colours`.
    Returns:
        float32 (N, H, W, 3), ImageNet-normalised.
    """
    device, count = frames_CNHW.device, len(colours_NP)
    kernel = max(3, frames_CNHW.shape[-1] // 10 // 2 * 2 + 1)  # about a tenth of the crop, odd
    work: list[tuple[Change, np.ndarray, np.ndarray]] = [
        (CHANGES[jitter][step], rows, colours_NP[rows, step]) for step, rows in jitters(colours_NP)
    ]
    greys, blurred = np.flatnonzero(colours_NP[:, 8]), np.flatnonzero(colours_NP[:, 9] > 0)
    work.insert(0 if jitter == "authors" else len(work), (grey, greys, colours_NP[greys, 8]))
    work.append((blur, blurred, gaussians(colours_NP[blurred, 9], kernel)))
    every_row = sent(torch.from_numpy(np.concatenate([rows for _, rows, _ in work])), device)
    every_value = sent(torch.from_numpy(np.concatenate([values.ravel() for *_, values in work])), device)
    row = at = 0
    for change, rows, values in work:
        which, how = every_row[row : row + len(rows)], every_value[at : at + values.size].view(values.shape)
        row, at = row + len(rows), at + values.size
        if len(rows) == count:
            change(frames_CNHW, how)
        elif len(rows):
            some = frames_CNHW.index_select(1, which)
            change(some, how)
            frames_CNHW.index_copy_(1, which, some)
    out_NHWC = torch.empty(*frames_CNHW.shape[1:], 3, device=device)
    for channel_NHW, mean, std, result_NHW in zip(frames_CNHW, MEAN, STD, out_NHWC.unbind(-1), strict=True):
        torch.div(channel_NHW.sub_(mean), std, out=result_NHW)
    return out_NHWC


def hold_seams(dynamic_BCTHW: torch.Tensor, frames_BT: torch.Tensor, first_is_second: bool) -> torch.Tensor:
    """Replace the motion at the seam of a looped video, which would be a cut, by the entry before it.

    A seam is where the frame numbers ``frames_BT``, on the CPU, fall. Returns ``dynamic_BCTHW`` channels last in memory. Where
    it lies so already it is changed in place, at the seams alone.

    ``first_is_second`` says that entry 0 is a copy of entry 1, as in differences within the clip. A seam at the second frame
    then spoils both, and both take the first entry that is no seam. A clip of nothing but seams repeats its first entry.
    """
    time = torch.arange(frames_BT.shape[1]).expand_as(frames_BT)
    fair = torch.ones_like(frames_BT, dtype=torch.bool)
    fair[:, 1:] = frames_BT[:, 1:] >= frames_BT[:, :-1]
    if first_is_second:
        fair[:, 0] = fair[:, 1]
    dynamic_BCTHW = dynamic_BCTHW.contiguous(memory_format=torch.channels_last_3d)
    if fair.all():
        return dynamic_BCTHW
    source_BT = torch.where(fair, time, -1).cummax(1).values
    first = torch.where(fair, time, frames_BT.shape[1]).amin(1, keepdim=True)
    source_BT = torch.where(source_BT < 0, first % frames_BT.shape[1], source_BT)
    video, entry = (source_BT != time).nonzero(as_tuple=True)
    video, entry, source = sent(torch.stack([video, entry, source_BT[video, entry]]), dynamic_BCTHW.device)
    by_frame_BTCHW = dynamic_BCTHW.transpose(1, 2)
    by_frame_BTCHW[video, entry] = by_frame_BTCHW[video, source]
    return dynamic_BCTHW


def rgb_difference(v_BCTHW: torch.Tensor) -> torch.Tensor:
    """d[t] = v[t] - v[t - 1], d[0] = d[1]: it never wraps from the last frame (docs/method.md, fault 4)."""
    d = torch.empty_like(v_BCTHW)
    torch.sub(v_BCTHW[:, :, 1:], v_BCTHW[:, :, :-1], out=d[:, :, 1:])
    d[:, :, 0] = d[:, :, 1]
    return d


def stored_motion(batch: dict[str, torch.Tensor], clip: int, device: torch.device) -> torch.Tensor:
    """The dynamic view out of a stored cue, float32 (B, 3, T, H, W): a signed change in -1..1 three times, or vectors as
    (u, v, |(u, v)|) in pixels of the crop a stored frame, with ``--clip-fps`` a frame of the clip."""
    cue = sent(batch["cue"][:, clip], device).float() - STILL
    if "scale" not in batch:
        return (cue / 127).unsqueeze(1).expand(-1, 3, -1, -1, -1)  # BTHW -> B3THW
    scale_BT2 = sent(batch["scale"][:, clip], device)
    flow = (cue * scale_BT2[..., None, None]).transpose(1, 2)  # BT2HW -> B2THW
    return torch.cat([flow, flow.square().sum(1, keepdim=True).sqrt()], 1)


def make_views(
    batch: dict[str, torch.Tensor],
    clip: int,
    dynamic: str,
    device: torch.device,
    part: slice = slice(None),
    names: str = "vsd",
    jitter: str = "torchvision",
    plain: bool = False,
) -> dict[str, torch.Tensor]:
    """The views ``names`` (v, and any of s, d and c) of clip number ``clip`` of the videos ``part``, all by default, of a
    training batch (dclr/data/loader.py). ``jitter`` is one of :data:`dclr.data.clips.JITTERS`; the RGB frames of a ``plain``
    clip keep their colours.

    Returns:
        v, s, d: float32 (B, 3, T, H, W) on ``device``: the RGB clip; one of its frames T times, with colours of its own;
        its motion, one of :data:`DYNAMICS`: from the colours of v, or from the stored cue that came with the batch.
        c: the stored cue that came with it, which mines or is predicted: flow, (B, 2, T, H, W), or the energy of cells,
            (B, 1, T, G, G).
    """
    batch = {name: value[part] for name, value in batch.items()}
    rgb_BTHWC, colours = sent(batch["rgb"][:, clip], device), batch["colours"][:, clip].numpy()
    videos, length, height, width = rgb_BTHWC.shape[:4]
    stills = videos if "s" in names else 0
    frames = torch.empty((3, videos * length + stills, height, width), device=device)  # those of v, then those of s
    frames[:, : videos * length] = rgb_BTHWC.flatten(0, 1).permute(3, 0, 1, 2)
    draws = np.tile(PLAIN, (videos * length, 1)) if plain else colours[:, 0].repeat(length, 0)
    if stills:
        still_B = sent(batch["still"][:, clip], device)
        frames[:, videos * length :] = rgb_BTHWC[torch.arange(videos, device=device), still_B].permute(3, 0, 1, 2)
        draws = np.concatenate([draws, colours[:, 1]])
    made_NHWC = photometry(frames.div_(255), draws, jitter)
    views = {"v": made_NHWC[: videos * length].unflatten(0, (videos, length)).permute(0, 4, 1, 2, 3)}
    if stills:
        views["s"] = made_NHWC[videos * length :].permute(0, 3, 1, 2).unsqueeze(2)
    if "d" in names:
        d = stored_motion(batch, clip, device) if DYNAMICS[dynamic] else rgb_difference(views["v"])
        views["d"] = hold_seams(d, batch["frames"][:, clip], first_is_second=dynamic == "rgbdiff")
    if "c" in names:
        energy = "scale" not in batch
        c = sent(batch["cue"][:, clip], device).unsqueeze(1) if energy else stored_motion(batch, clip, device)[:, :2]
        views["c"] = hold_seams(c, batch["frames"][:, clip], first_is_second=False)
    # s has one frame in memory: dclr/method/still.py reads that from its stride
    last = torch.channels_last_3d
    return {name: view.contiguous(memory_format=last).expand(-1, -1, length, -1, -1) for name, view in views.items()}
