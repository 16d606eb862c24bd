"""A batch on the device: colour, blur, normalise; then the views v, s, d of every clip.

Legend: B videos, C = 3 colours, T frames, H W pixels. All draws were made on the CPU (dclr/data/clips.py); here is only
arithmetic, one draw a clip and the same for all its frames.
"""

from __future__ import annotations

import kornia
import torch

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, in RGB
STD = (0.229, 0.224, 0.225)
DYNAMICS = {"rgbdiff": None, "cue": "diff", "flow": "flow"}  # dynamic view -> the stored cue that it is made of


def to_clip(rgb_BTHWC: torch.Tensor) -> torch.Tensor:
    """uint8 (B, T, H, W, 3) -> float32 (B, 3, T, H, W) in 0..1, channels last in memory (what convolutions want)."""
    return rgb_BTHWC.permute(0, 4, 1, 2, 3).float() / 255


def normalise(clip_BCTHW: torch.Tensor) -> torch.Tensor:
    """0..1 -> ImageNet's mean 0, deviation 1."""
    shape = (1, 3, 1, 1, 1)
    mean, std = clip_BCTHW.new_tensor(MEAN).view(shape), clip_BCTHW.new_tensor(STD).view(shape)
    return (clip_BCTHW - mean) / std


def shift_hue(frames_NCHW: torch.Tensor, turn: float) -> torch.Tensor:
    """Turn the hue by ``turn`` of a circle, through HSV: frames in 0..1, (N, 3, H, W). Equals kornia.enhance.adjust_hue with
    ``2 pi turn``, without leaving RGB: channel n is V - C max(0, min(k, 4 - k, 1)) with k = (n + 6 hue) mod 6."""
    value, low = frames_NCHW.amax(1), frames_NCHW.amin(1)
    chroma = value - low
    r, g, b = frames_NCHW.unbind(1)
    safe = torch.where(chroma > 0, chroma, 1)
    hue6 = torch.where(value == r, (g - b) / safe, torch.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4))
    k = torch.remainder(hue6.unsqueeze(1) + 6 * turn + frames_NCHW.new_tensor([5, 3, 1]).view(1, 3, 1, 1), 6)
    return value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(k, 4 - k).clamp(0, 1)


def jitter(frames_NCHW: torch.Tensor, colours: list[float]) -> torch.Tensor:
    """Brightness, contrast, saturation and hue in the drawn order: torchvision's formulas, kornia's ColorJitter."""
    brightness, contrast, saturation, hue, *order = colours[:8]
    for step in order:
        if step == 0 and brightness != 1:
            frames_NCHW = kornia.enhance.adjust_brightness_accumulative(frames_NCHW, brightness)
        elif step == 1 and contrast != 1:
            frames_NCHW = kornia.enhance.adjust_contrast_with_mean_subtraction(frames_NCHW, contrast)
        elif step == 2 and saturation != 1:
            frames_NCHW = kornia.enhance.adjust_saturation_with_gray_subtraction(frames_NCHW, saturation)
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
    """At a looped video's seam (frame numbers fall) the difference would be a cut, not a motion: repeat the entry before.

    ``first_is_second`` says that entry 0 is a copy of entry 1 (differences within the clip): then a seam at the second frame
    spoils both, and they take the first entry that is no seam. A clip of nothing but seams is returned as it is.
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
    """d[t] = v[t] - v[t - 1], d[0] = d[1]: it never wraps from the last frame (shared/method.md, fault 4)."""
    d = v_BCTHW[:, :, 1:] - v_BCTHW[:, :, :-1]
    return torch.cat([d[:, :, :1], d], dim=2)


def stored_motion(batch: dict[str, torch.Tensor], clip: int, device: torch.device) -> torch.Tensor:
    """The dynamic view out of a stored cue, float32 (B, 3, T, H, W): the difference in -1..1 three times, or flow as
    (u, v, |(u, v)|) in pixels of the crop a stored frame."""
    cue = batch["cue"][:, clip].to(device, non_blocking=True).float() - 128
    if "scale" not in batch:
        return (cue / 127).unsqueeze(1).expand(-1, 3, -1, -1, -1)  # BTHW -> B3THW
    scale_BT2 = batch["scale"][:, clip].to(device, non_blocking=True)
    flow = (cue * scale_BT2[..., None, None]).transpose(1, 2)  # BT2HW -> B2THW
    return torch.cat([flow, flow.square().sum(1, keepdim=True).sqrt()], 1)


def make_views(
    batch: dict[str, torch.Tensor], clip: int, dynamic: str, device: torch.device, part: slice = slice(None)
) -> dict[str, torch.Tensor]:
    """The views of clip number ``clip`` of the videos ``part``, all by default, of a training batch (dclr/data/loader.py).

    Returns:
        v, s, d: float32 (B, 3, T, H, W) on ``device``: the RGB clip; one of its frames T times, with colours of its own;
        its motion, one of :data:`DYNAMICS`: from the colours of v, or from the stored cue that came with the batch.
    """
    batch = {name: value[part] for name, value in batch.items()}
    rgb = to_clip(batch["rgb"][:, clip].to(device, non_blocking=True))
    colours, frames = batch["colours"][:, clip], batch["frames"][:, clip].to(device)
    v = photometry(rgb, colours[:, 0])
    still = rgb[torch.arange(len(rgb), device=device), :, batch["still"][:, clip].to(device)].unsqueeze(2)
    s = photometry(still, colours[:, 1]).expand_as(v)
    d = stored_motion(batch, clip, device) if DYNAMICS[dynamic] else rgb_difference(v)
    d = hold_seams(d, frames, first_is_second=dynamic == "rgbdiff")
    return {name: view.contiguous(memory_format=torch.channels_last_3d) for name, view in zip("vsd", (v, s, d), strict=True)}
