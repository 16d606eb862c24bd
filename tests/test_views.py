"""Colours and views on the device, against kornia and against the definitions."""

import kornia
import numpy as np
import pytest
import torch

from dclr import views
from dclr.data.clips import draw_colours
from dclr.errors import InputError

NEUTRAL = np.array([1, 1, 1, 0, 0, 1, 2, 3, 0, 0], np.float32)


def colours(*rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(rows))


@pytest.mark.parametrize("turn", [-0.1, -0.03, 0.0, 0.05, 0.1, 0.5])
def test_hue_equals_kornia(turn: float) -> None:
    x = torch.rand(3, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    x[0, :, :5] = 0.3  # grey pixels have no hue
    x[1, 0] = x[1, 1]  # ties between channels
    torch.testing.assert_close(views.shift_hue(x, turn), kornia.enhance.adjust_hue(x, turn * 2 * np.pi), atol=1e-5, rtol=0)


def test_jitter_equals_kornia_color_jitter() -> None:
    x = torch.rand(4, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    for seed in range(20):
        torch.manual_seed(seed)
        reference = kornia.augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=1.0, same_on_batch=True)
        expected, drawn = reference(x), reference._params
        factors = [float(drawn[f"{name}_factor"][0]) for name in ("brightness", "contrast", "saturation", "hue")]
        got = views.jitter(x, [*factors, *drawn["order"].tolist(), 0, 0]).clamp(0, 1)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_one_draw_a_clip_for_all_its_frames() -> None:
    frame = torch.rand(1, 3, 1, 24, 24)
    draws = colours(*(draw_colours(np.random.default_rng(i)) for i in range(6)))
    out = views.photometry(frame.expand(6, 3, 5, 24, 24).clone(), draws)
    for clip in out:
        torch.testing.assert_close(clip, clip[:, :1].expand_as(clip))
    assert len({round(float(clip.sum()), 3) for clip in out}) > 3
    assert torch.equal(out, views.photometry(frame.expand(6, 3, 5, 24, 24).clone(), draws))


def test_a_neutral_draw_only_normalises() -> None:
    x = torch.rand(2, 3, 4, 16, 16)
    out = views.photometry(x, colours(NEUTRAL, NEUTRAL))
    torch.testing.assert_close(out, views.normalise(x))
    torch.testing.assert_close(out[0, :, 0, 0, 0], (x[0, :, 0, 0, 0] - torch.tensor(views.MEAN)) / torch.tensor(views.STD))


def test_grey_and_blur_do_what_they_say() -> None:
    x = torch.rand(1, 3, 2, 30, 30)
    grey, blurred = NEUTRAL.copy(), NEUTRAL.copy()
    grey[8], blurred[9] = 1, 1.5
    out = views.photometry(x, colours(grey))[0] * torch.tensor(views.STD).view(3, 1, 1, 1)
    out += torch.tensor(views.MEAN).view(3, 1, 1, 1)
    torch.testing.assert_close(out[0], out[1])
    soft = views.photometry(x, colours(blurred))
    expected = kornia.filters.gaussian_blur2d(x[0].transpose(0, 1), (3, 3), (1.5, 1.5), "reflect").transpose(0, 1)
    torch.testing.assert_close(soft, views.normalise(expected[None]))


def test_fault_4_the_difference_does_not_wrap() -> None:
    v = torch.randn(2, 3, 5, 4, 4)
    d = views.rgb_difference(v)
    torch.testing.assert_close(d[:, :, 0], d[:, :, 1])
    for t in range(1, 5):
        torch.testing.assert_close(d[:, :, t], v[:, :, t] - v[:, :, t - 1])


def test_at_a_looped_videos_seam_the_entry_before_is_repeated() -> None:
    d = torch.arange(6.0).view(1, 1, 6, 1, 1).expand(4, 1, 6, 1, 1)
    frames = torch.tensor([[0, 2, 4, 6, 8, 10], [3, 5, 0, 2, 4, 6], [6, 1, 3, 5, 0, 2], [0, 2, 1, 0, 2, 1]])
    within = views.hold_seams(d, frames, first_is_second=True)[:, 0, :, 0, 0]
    assert within.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 1, 3, 4, 5], [2, 2, 2, 3, 3, 5], [0, 1, 1, 1, 4, 4]]
    stored = views.hold_seams(d, frames, first_is_second=False)[:, 0, :, 0, 0]
    assert stored.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 1, 3, 4, 5], [0, 0, 2, 3, 3, 5], [0, 1, 1, 1, 4, 4]]


def batch(cue: bool = False) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    return {
        "rgb": torch.from_numpy(rng.integers(0, 256, (3, 2, 6, 16, 16, 3), np.uint8)),
        "cue": torch.from_numpy(rng.integers(0, 256, (3, 2, 6, 16, 16), np.uint8)),
        "frames": torch.arange(6).expand(3, 2, 6),
        "still": torch.tensor([[0, 5], [2, 3], [4, 1]]),
        "colours": torch.from_numpy(np.tile(NEUTRAL, (3, 2, 2, 1))),
    }


def test_the_static_view_is_one_frame_of_its_own_clip() -> None:
    found = views.make_views(batch(), 1, "rgbdiff", torch.device("cpu"))
    for row, still in enumerate((5, 3, 1)):
        torch.testing.assert_close(found["s"][row], found["v"][row][:, still : still + 1].expand(3, 6, 16, 16))
    torch.testing.assert_close(found["d"], views.rgb_difference(found["v"]))
    assert all(view.is_contiguous(memory_format=torch.channels_last_3d) for view in found.values())


def test_the_cue_view_is_the_stored_difference_in_three_channels() -> None:
    data = batch()
    found = views.make_views(data, 0, "cue", torch.device("cpu"))["d"]
    expected = (data["cue"][:, 0].float() - 128) / 127
    for channel in range(3):
        torch.testing.assert_close(found[:, channel], expected)
    with pytest.raises(InputError, match="rgbdiff, cue"):
        views.make_views(data, 0, "optical", torch.device("cpu"))
