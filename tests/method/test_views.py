"""Colours and views on the device, against kornia and against the definitions."""

import cv2
import kornia
import numpy as np
import pytest
import torch
from conftest import stored

from dclr.data.clips import ClipConfig, draw_colours, train_clips
from dclr.method import views
from dclr.record import Record
from preprocess.synthetic import encode

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


def test_seams_are_held_and_v_and_s_have_colours_of_their_own() -> None:
    data = batch()
    data["frames"] = torch.tensor([0, 2, 4, 1, 3, 5]).expand(3, 2, 6)  # a seam at the fourth
    found = views.make_views(data, 0, "cue", torch.device("cpu"))["d"]
    torch.testing.assert_close(found[:, :, 3], found[:, :, 2])
    assert not torch.equal(found[:, :, 4], found[:, :, 3])
    data["colours"][:, :, 1, 0] = 0.7  # the static view's brightness
    made = views.make_views(data, 0, "cue", torch.device("cpu"))
    rgb = views.to_clip(data["rgb"][:, 0])
    torch.testing.assert_close(made["v"], views.normalise(rgb))
    torch.testing.assert_close(made["s"][0, :, 0], views.normalise(rgb * 0.7)[0, :, int(data["still"][0, 0])])


@pytest.mark.parametrize(("dynamic", "first"), [("rgbdiff", 2), ("cue", 0), ("flow", 0)])
def test_a_seam_at_the_second_frame_spoils_the_first_entry_only_where_it_is_the_seconds_copy(dynamic: str, first: int) -> None:
    """Differences within the clip have no entry 0 of their own, the stored cues have."""
    data = batch() | {"frames": torch.tensor([9, 0, 2, 4, 6, 8]).expand(3, 2, 6)}
    if dynamic == "flow":
        data |= {"cue": torch.arange(3 * 2 * 6 * 2).view(3, 2, 6, 2, 1, 1).byte(), "scale": torch.ones(3, 2, 6, 2)}
    whole = views.make_views(data | {"frames": torch.arange(6).expand(3, 2, 6)}, 0, dynamic, torch.device("cpu"))["d"]
    found = views.make_views(data, 0, dynamic, torch.device("cpu"))["d"]
    torch.testing.assert_close(found, whole[:, :, [first, first, 2, 3, 4, 5]])
    assert not torch.equal(whole[:, :, 1], whole[:, :, first])


def test_the_blurs_kernel_is_a_tenth_of_the_crop() -> None:
    x, draw = torch.rand(1, 3, 1, 112, 112), NEUTRAL.copy()
    draw[9] = 2.0
    expected = kornia.filters.gaussian_blur2d(x[0].transpose(0, 1), (11, 11), (2.0, 2.0), "reflect").transpose(0, 1)
    torch.testing.assert_close(views.photometry(x, colours(draw)), views.normalise(expected[None]))


def test_the_cue_view_is_the_stored_difference_in_three_channels() -> None:
    data = batch()
    found = views.make_views(data, 0, "cue", torch.device("cpu"))["d"]
    expected = (data["cue"][:, 0].float() - 128) / 127
    for channel in range(3):
        torch.testing.assert_close(found[:, channel], expected)


def test_the_flow_view_is_u_v_and_their_length_in_pixels_of_the_crop() -> None:
    levels = torch.randint(0, 256, (3, 2, 6, 2, 16, 16), dtype=torch.uint8)
    data = batch() | {"cue": levels, "scale": torch.rand(3, 2, 6, 2) - 0.5}
    found = views.make_views(data, 1, "flow", torch.device("cpu"))["d"]
    flow = (levels[:, 1].float() - 128) * data["scale"][:, 1, :, :, None, None]
    for part in range(2):
        torch.testing.assert_close(found[:, part], flow[:, :, part])
    torch.testing.assert_close(found[:, 2], torch.hypot(flow[:, :, 0], flow[:, :, 1]))


HEIGHT, WIDTH, RADIUS, SPEED = 96, 128, 11, 3


@pytest.fixture(scope="module")
def moving_disc(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """A textured red disc that moves to the right over a still, blue-green texture, stored with all cues."""
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 256, (HEIGHT, WIDTH), np.uint8), (0, 0), 2).astype(np.float32)
    texture = (texture - texture.min()) / np.ptp(texture)
    spots = cv2.GaussianBlur(rng.random((2 * RADIUS + 1,) * 2).astype(np.float32), (0, 0), 1.5)
    spots = (spots - spots.min()) / np.ptp(spots)
    ground = np.stack([20 + 20 * texture, 60 + 80 * texture, 80 + 80 * texture], -1)
    y, x = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1]
    frames = []
    for t in range(30):
        frame, left = ground.copy(), 8 + SPEED * t
        disc = np.stack([150 + 105 * spots, 60 * spots, 60 * spots], -1)
        place = frame[40 - RADIUS : 41 + RADIUS, left : left + 2 * RADIUS + 1]
        place[x**2 + y**2 <= RADIUS**2] = disc[x**2 + y**2 <= RADIUS**2]
        frames.append(frame)
    path = tmp_path_factory.mktemp("disc") / "v.mp4"
    encode(np.stack(frames).astype(np.uint8), 25, path)
    return stored(path, size=HEIGHT, cues=("diff", "flow", "energy"))


def red(rgb_HWC: np.ndarray) -> np.ndarray:
    """Where the disc is seen: bool (H, W)."""
    r, g, b = rgb_HWC.astype(int).transpose(2, 0, 1)
    return (r > g + 60) & (r > b + 60)


@pytest.mark.parametrize("dynamic", ["rgbdiff", "cue", "flow"])
def test_the_dynamic_views_peak_lies_on_the_moving_object(moving_disc: Record, dynamic: str) -> None:
    """After any crop, flip and colours: the disc is found by its colour in the RGB clip, before the colours are changed."""
    config = ClipConfig(frames=6, stride=1, size=64, min_scale=0.3, cue=views.DYNAMICS[dynamic])
    seen, signs = 0, set()
    for epoch in range(12):
        drawn = train_clips(moving_disc, config, 1, seed=0, epoch=epoch)
        data = {name: torch.from_numpy(np.asarray(value))[None] for name, value in drawn.items()}
        d = views.make_views(data, 0, dynamic, torch.device("cpu"))["d"][0]
        where = [red(frame) for frame in drawn["rgb"][0]]
        if min(mask.sum() for mask in where) < 150 or any(mask[:, [0, 1, -2, -1]].any() for mask in where):
            continue  # not wholly inside the crop
        seen += 1
        direction = np.sign(np.argwhere(where[-1])[:, 1].mean() - np.argwhere(where[0])[:, 1].mean())
        signs.add(direction)
        for t in range(1, 6):
            strength = cv2.blur(d[:, t].square().sum(0).sqrt().numpy(), (5, 5))
            peak = np.unravel_index(strength.argmax(), strength.shape)
            near = cv2.dilate(where[t].astype(np.uint8), np.ones((9, 9), np.uint8))  # where it is, or was a frame ago
            assert near[peak], (epoch, t)
            if dynamic == "flow":  # its u there is what is stored in the disc's middle, in pixels of the crop, turned as it is
                frame = int(drawn["frames"][0, t])
                zoom = abs(float(drawn["scale"][0, t, 0] / moving_disc.flow_scale_N[frame]))
                kept = moving_disc.flow([frame])[0, 9:12, :, 0][:, (8 + RADIUS + SPEED * frame) // 4 + np.arange(-1, 2)]
                row, column = np.argwhere(where[t]).mean(0).round().astype(int)
                u = float(d[0, t, row - 3 : row + 4, column - 3 : column + 4].mean())
                assert u == pytest.approx(direction * zoom * kept.mean(), rel=0.15) and 1.8 < kept.mean() < 3.2
    assert seen >= 4 and signs == {-1, 1}


def test_levels_become_colours_with_imagenets_mean_0_and_deviation_1() -> None:
    levels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 1, 3).expand(1, 2, 4, 5, 3)
    clip = views.to_clip(levels)
    assert clip.shape == (1, 3, 2, 4, 5) and clip.dtype == torch.float32
    torch.testing.assert_close(clip[0, :, 0, 0, 0], torch.tensor([0, 0.2, 1]))
    expected = torch.tensor([(0 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    torch.testing.assert_close(views.normalise(clip)[0, :, 1, 3, 4], expected)


def test_a_clip_of_nothing_but_seams_repeats_its_first_entry() -> None:
    d = torch.arange(3.0).view(1, 1, 3, 1, 1)
    for first_is_second in (True, False):
        assert views.hold_seams(d, torch.tensor([[5, 3, 1]]), first_is_second).flatten().tolist() == [0, 0, 0]
        assert views.hold_seams(d, torch.tensor([[4, 4, 4]]), first_is_second).flatten().tolist() == [0, 1, 2]  # no seam


def test_only_the_views_and_videos_that_are_asked_for_are_made() -> None:
    data, cpu = batch(), torch.device("cpu")
    whole = views.make_views(data, 1, "cue", cpu)
    assert list(whole) == ["v", "s", "d"]
    for names in ("v", "vs", "vd"):
        part = views.make_views(data, 1, "cue", cpu, slice(1, 3), names)
        assert "".join(part) == names
        for name in names:
            torch.testing.assert_close(part[name], whole[name][1:])
