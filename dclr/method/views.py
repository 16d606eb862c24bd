"""A batch on the device: colour, blur, normalise; then the views v, s, d of every clip.

Legend: B videos, C = 3 colours, T frames, H W pixels. All draws were made on the CPU (dclr/data/clips.py); here is only
arithmetic, one draw a clip and the same for all its frames. Nothing here waits for a GPU: the batch is pinned on its way
(:func:`dclr.hardware.sent`), and constants are made once. kornia gets its factors as tensors that are filled on the device: it
would copy a plain number there and wait. Its blur fills its own.
"""

from __future__ import annotations

from functools import lru_cache

import kornia
import torch

from dclr.hardware import sent
from dclr.method.objective import DYNAMICS

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, in RGB
STD = (0.229, 0.224, 0.225)


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


def shift_hue(frames_NCHW: torch.Tensor, turn: float) -> torch.Tensor:
    """Turn the hue by ``turn`` of a circle, through HSV: frames in 0..1, (N, 3, H, W). Equals kornia.enhance.adjust_hue with
    ``2 pi turn``, without leaving RGB: channel n is V - C max(0, min(k, 4 - k, 1)) with k = (n + 6 hue) mod 6."""
    value, low = frames_NCHW.amax(1), frames_NCHW.amin(1)
    chroma = value - low
    r, g, b = frames_NCHW.unbind(1)
    safe = torch.where(chroma > 0, chroma, 1)
    hue6 = torch.where(value == r, (g - b) / safe, torch.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4))
    channel = constant((5, 3, 1), frames_NCHW.device, frames_NCHW.dtype).view(1, 3, 1, 1)
    k = torch.remainder(hue6.unsqueeze(1) + 6 * turn + channel, 6)
    return value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(k, 4 - k).clamp(0, 1)


def jitter(frames_NCHW: torch.Tensor, colours: list[float]) -> torch.Tensor:
    """Brightness, contrast, saturation and hue in the drawn order: torchvision's formulas, kornia's ColorJitter."""
    brightness, contrast, saturation, hue, *order = colours[:8]
    for step in order:
        if step == 0 and brightness != 1:
            frames_NCHW = kornia.enhance.adjust_brightness_accumulative(frames_NCHW, frames_NCHW.new_full((), brightness))
        elif step == 1 and contrast != 1:
            factor = frames_NCHW.new_full((), contrast)
            frames_NCHW = kornia.enhance.adjust_contrast_with_mean_subtraction(frames_NCHW, factor)
        elif step == 2 and saturation != 1:
            factor = frames_NCHW.new_full((), saturation)
            frames_NCHW = kornia.enhance.adjust_saturation_with_gray_subtraction(frames_NCHW, factor)
        elif step == 3 and hue != 0:
            frames_NCHW = shift_hue(frames_NCHW, hue)
    return frames_NCHW


def photometry(clip_BCTHW: torch.Tensor, colours_BP: torch.Tensor) -> torch.Tensor:
    """Colour jitter, grey, blur and normalisation of clips in 0..1, each by its own draw.

    Args:
        colours_BP: float32 (B, COLOURS) on the CPU, see :func:`dclr.data.clips.draw_colours`.
    Returns:
        float32 (B, 3, T, H, W), ImageNet-normalised.
    """
    kernel = max(3, clip_BCTHW.shape[-1] // 10 // 2 * 2 + 1)  # about a tenth of the crop, odd
    out = torch.empty_like(clip_BCTHW)
    for clip_CTHW, colours, result in zip(clip_BCTHW, colours_BP.tolist(), out, strict=True):
        frames_TCHW = jitter(clip_CTHW.transpose(0, 1), colours)
        grey, sigma = colours[8:]
        if grey:
            frames_TCHW = kornia.color.rgb_to_grayscale(frames_TCHW).expand_as(frames_TCHW)
        if sigma > 0:
            frames_TCHW = kornia.filters.gaussian_blur2d(frames_TCHW, (kernel, kernel), (sigma, sigma), "reflect")
        result.copy_(frames_TCHW.transpose(0, 1))
    return normalise(out)


def hold_seams(dynamic_BCTHW: torch.Tensor, frames_BT: torch.Tensor, first_is_second: bool) -> torch.Tensor:
    """Replace the motion at the seam of a looped video, which would be a cut, by the entry before it.

    A seam is where the frame numbers ``frames_BT`` fall.

    ``first_is_second`` says that entry 0 is a copy of entry 1, as in differences within the clip. A seam at the second frame
    then spoils both, and both take the first entry that is no seam. A clip of nothing but seams repeats its first entry.
    """
    time = torch.arange(frames_BT.shape[1], device=frames_BT.device).expand_as(frames_BT)
    fair = torch.ones_like(frames_BT, dtype=torch.bool)
    fair[:, 1:] = frames_BT[:, 1:] >= frames_BT[:, :-1]
    if first_is_second:
        fair[:, 0] = fair[:, 1]
    source_BT = torch.where(fair, time, -1).cummax(1).values
    first = torch.where(fair, time, frames_BT.shape[1]).amin(1, keepdim=True)
    source_BT = torch.where(source_BT < 0, first % frames_BT.shape[1], source_BT)
    return dynamic_BCTHW.gather(2, source_BT[:, None, :, None, None].expand_as(dynamic_BCTHW))


def rgb_difference(v_BCTHW: torch.Tensor) -> torch.Tensor:
    """d[t] = v[t] - v[t - 1], d[0] = d[1]: it never wraps from the last frame (docs/method.md, fault 4)."""
    d = v_BCTHW[:, :, 1:] - v_BCTHW[:, :, :-1]
    return torch.cat([d[:, :, :1], d], dim=2)


def stored_motion(batch: dict[str, torch.Tensor], clip: int, device: torch.device) -> torch.Tensor:
    """The dynamic view out of a stored cue, float32 (B, 3, T, H, W): the difference in -1..1 three times, or flow as
    (u, v, |(u, v)|) in pixels of the crop a stored frame."""
    cue = sent(batch["cue"][:, clip], device).float() - 128
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
) -> dict[str, torch.Tensor]:
    """The views ``names`` (v, and any of s and d) of clip number ``clip`` of the videos ``part``, all by default, of a training
    batch (dclr/data/loader.py).

    Returns:
        v, s, d: float32 (B, 3, T, H, W) on ``device``: the RGB clip; one of its frames T times, with colours of its own;
        its motion, one of :data:`DYNAMICS`: from the colours of v, or from the stored cue that came with the batch.
    """
    batch = {name: value[part] for name, value in batch.items()}
    rgb, colours = to_clip(sent(batch["rgb"][:, clip], device)), batch["colours"][:, clip]
    views = {"v": photometry(rgb, colours[:, 0])}
    if "s" in names:
        still_B = sent(batch["still"][:, clip], device)
        still = rgb[torch.arange(len(rgb), device=device), :, still_B].unsqueeze(2)
        views["s"] = photometry(still, colours[:, 1]).expand_as(rgb)
    if "d" in names:
        d = stored_motion(batch, clip, device) if DYNAMICS[dynamic] else rgb_difference(views["v"])
        views["d"] = hold_seams(d, sent(batch["frames"][:, clip], device), first_is_second=dynamic == "rgbdiff")
    return {name: view.contiguous(memory_format=torch.channels_last_3d) for name, view in views.items()}
