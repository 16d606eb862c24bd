"""Colours and views on the device, against kornia and against the definitions."""

from itertools import permutations

import cv2
import kornia
import numpy as np
import pytest
import torch
from conftest import stored
from torch.utils._python_dispatch import TorchDispatchMode

from dclr.data.clips import JITTERS, ClipConfig, draw_colours, train_clips
from dclr.method import still, views
from dclr.record import Record
from preprocess.synthetic import encode

NEUTRAL = np.array([1, 1, 1, 0, 0, 1, 2, 3, 0, 0], np.float32)


def photometry(clips: torch.Tensor, draws: np.ndarray, jitter: str = "torchvision") -> torch.Tensor:
    """:func:`views.photometry` of whole clips (B, 3, T, H, W), one draw each."""
    frames = clips.transpose(0, 1).flatten(1, 2).clone()
    made = views.photometry(frames, draws.repeat(clips.shape[2], 0), jitter)
    return made.unflatten(0, (len(clips), -1)).permute(0, 4, 1, 2, 3)


def kornias(clip: torch.Tensor, draw: np.ndarray, jitter: str) -> torch.Tensor:
    """The same for one clip (3, T, H, W), through kornia's functions one after the other, before it is normalised."""
    frames = clip.transpose(0, 1)
    factors, (grey, sigma) = draw[:4].tolist(), draw[8:].tolist()
    changes = {
        "torchvision": (
            kornia.enhance.adjust_brightness_accumulative,
            kornia.enhance.adjust_contrast_with_mean_subtraction,
            kornia.enhance.adjust_saturation_with_gray_subtraction,
        ),
        "authors": (
            lambda x, factor: kornia.enhance.adjust_brightness(x, factor - 1),
            kornia.enhance.adjust_contrast,
            kornia.enhance.adjust_saturation,
        ),
    }[jitter]
    changes = (*changes, lambda x, turn: kornia.enhance.adjust_hue(x, turn * 2 * np.pi))
    if grey and jitter == "authors":
        frames = kornia.color.rgb_to_grayscale(frames).expand_as(frames)
    for step in draw[4:8].astype(int):
        frames = changes[step](frames, factors[step])
    if grey and jitter == "torchvision":
        frames = kornia.color.rgb_to_grayscale(frames).expand_as(frames)
    if sigma > 0:
        kernel = max(3, clip.shape[-1] // 10 // 2 * 2 + 1)
        frames = kornia.filters.gaussian_blur2d(frames, (kernel, kernel), (sigma, sigma), "reflect")
    return frames.transpose(0, 1)


@pytest.mark.parametrize("jitter", JITTERS)
@pytest.mark.parametrize("side", [(20, 20), (36, 32), (51, 51)])
def test_a_batch_equals_kornias_functions_clip_by_clip(side: tuple[int, int], jitter: str) -> None:
    """All 24 orders, drawn and extreme factors, each at its neutral value, grey and blur in any combination."""
    rng = np.random.default_rng(0)
    draws = np.stack([draw_colours(rng) for _ in range(72)])
    draws[:, 4:8] = list(permutations(range(4))) * 3
    draws[24:48, :4] = rng.choice([0, 0.6, 1, 1.4, 2], (24, 4))
    draws[24:48, 3] = rng.choice([-0.5, -0.1, 0, 0.1, 0.5], 24)
    draws[24:48, 8], draws[24:48, 9] = rng.integers(0, 2, 24), rng.choice([0, 0.1, 2], 24)
    draws[48:, :4] = np.where(rng.random((24, 4)) < 0.5, (1, 1, 1, 0), draws[48:, :4])
    clips = torch.rand(72, 3, 2, *side, generator=torch.Generator().manual_seed(0))
    clips[:, :, :, :5] = clips[:, :1, :, :5]  # grey pixels have no hue
    clips[:, 0, :, 5:8] = clips[:, 1, :, 5:8]  # ties between channels
    clips[:, :, :, 8:11] = clips[:, :, :, 8:11].round()  # pure colours
    std, mean = (torch.tensor(x).view(3, 1, 1, 1) for x in (views.STD, views.MEAN))
    for number in range(1, 73, 71):  # one clip, and all of them in one batch
        found = photometry(clips[:number], draws[:number], jitter) * std + mean
        for clip, draw, one in zip(clips, draws, found, strict=False):
            torch.testing.assert_close(one, kornias(clip, draw, jitter), atol=1e-5, rtol=0)


@pytest.mark.parametrize("jitter", JITTERS)
def test_jitter_equals_kornia_color_jitter_or_the_older_one(jitter: str) -> None:
    x = torch.rand(1, 3, 4, 20, 20, generator=torch.Generator().manual_seed(0))
    for seed in range(20):
        torch.manual_seed(seed)
        kind = kornia.augmentation.ColorJiggle if jitter == "authors" else kornia.augmentation.ColorJitter
        reference = kind(0.4, 0.4, 0.4, 0.1, p=1.0, same_on_batch=True)
        expected, drawn = reference(x[0].transpose(0, 1)), reference._params
        factors = [float(drawn[f"{name}_factor"][0]) for name in ("brightness", "contrast", "saturation", "hue")]
        got = photometry(x, np.array([[*factors, *drawn["order"].tolist(), 0, 0]], np.float32), jitter)
        torch.testing.assert_close(got, views.normalise(expected.transpose(0, 1)[None]), atol=5e-5, rtol=0)


class Operators(TorchDispatchMode):
    """Counts torch's operators."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("videos", [2, 16, 64])
@pytest.mark.parametrize("jitter", JITTERS)
@pytest.mark.parametrize("dynamic", ["rgbdiff", "cue", "flow"])
def test_the_operators_of_a_batch_do_not_grow_with_its_videos(videos: int, dynamic: str, jitter: str) -> None:
    rng = np.random.default_rng(1)
    flow = (2,) if dynamic == "flow" else ()
    data = {
        "rgb": torch.from_numpy(rng.integers(0, 256, (videos, 2, 4, 16, 16, 3), np.uint8)),
        "cue": torch.from_numpy(rng.integers(0, 256, (videos, 2, 4, *flow, 16, 16), np.uint8)),
        "frames": torch.tensor([4, 6, 0, 2]).repeat(videos, 2, 1),
        "still": torch.zeros(videos, 2, dtype=torch.int64),
        "colours": torch.from_numpy(np.stack([draw_colours(rng) for _ in range(4 * videos)]).reshape(videos, 2, 2, -1)),
    }
    if flow:
        data["scale"] = torch.ones(videos, 2, 4, 2)
    with Operators() as seen:
        for clip in (0, 1):
            views.make_views(data, clip, dynamic, torch.device("cpu"), jitter=jitter)
    assert 100 < seen.count <= 800


def test_one_draw_a_clip_for_all_its_frames() -> None:
    frame = torch.rand(1, 3, 1, 24, 24)
    draws = np.stack([draw_colours(np.random.default_rng(i)) for i in range(6)])
    out = photometry(frame.expand(6, 3, 5, 24, 24).clone(), draws)
    for clip in out:
        torch.testing.assert_close(clip, clip[:, :1].expand_as(clip))
    assert len({round(float(clip.sum()), 3) for clip in out}) > 3
    assert torch.equal(out, photometry(frame.expand(6, 3, 5, 24, 24).clone(), draws))


def test_a_neutral_draw_only_normalises() -> None:
    x = torch.rand(2, 3, 4, 16, 16)
    out = photometry(x, np.stack([NEUTRAL, NEUTRAL]))
    torch.testing.assert_close(out, views.normalise(x))
    torch.testing.assert_close(out[0, :, 0, 0, 0], (x[0, :, 0, 0, 0] - torch.tensor(views.MEAN)) / torch.tensor(views.STD))


def test_grey_and_blur_do_what_they_say() -> None:
    x = torch.rand(1, 3, 2, 30, 30)
    grey, blurred = NEUTRAL.copy(), NEUTRAL.copy()
    grey[8], blurred[9] = 1, 1.5
    out = photometry(x, grey[None])[0] * torch.tensor(views.STD).view(3, 1, 1, 1)
    out += torch.tensor(views.MEAN).view(3, 1, 1, 1)
    torch.testing.assert_close(out[0], out[1])
    soft = photometry(x, blurred[None])
    expected = kornia.filters.gaussian_blur2d(x[0].transpose(0, 1), (3, 3), (1.5, 1.5), "reflect").transpose(0, 1)
    torch.testing.assert_close(soft, views.normalise(expected[None]))


def test_at_a_looped_videos_seam_the_entry_before_is_repeated() -> None:
    d = torch.arange(6.0).view(1, 1, 6, 1, 1).expand(4, 1, 6, 1, 1)
    frames = torch.tensor([[0, 2, 4, 6, 8, 10], [3, 5, 0, 2, 4, 6], [6, 1, 3, 5, 0, 2], [0, 2, 1, 0, 2, 1]])
    within = views.hold_seams(d.clone(), frames, first_is_second=True)[:, 0, :, 0, 0]
    assert within.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 1, 3, 4, 5], [2, 2, 2, 3, 3, 5], [0, 1, 1, 1, 4, 4]]
    stored = views.hold_seams(d, frames, first_is_second=False)[:, 0, :, 0, 0]
    assert stored.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 1, 3, 4, 5], [0, 0, 2, 3, 3, 5], [0, 1, 1, 1, 4, 4]]


@pytest.mark.parametrize("first_is_second", [True, False])
def test_only_seams_are_copied_and_the_memory_stays_channels_last(first_is_second: bool) -> None:
    d = torch.rand(3, 3, 6, 4, 5).contiguous(memory_format=torch.channels_last_3d)
    whole, looped = torch.arange(6).repeat(3, 1), torch.arange(6).repeat(3, 1)
    looped[1] = torch.tensor([6, 8, 10, 0, 2, 4])
    before = d.clone()
    assert views.hold_seams(d, whole, first_is_second) is d and torch.equal(d, before)
    held = views.hold_seams(d, looped, first_is_second)
    assert held.data_ptr() == d.data_ptr() and held.is_contiguous(memory_format=torch.channels_last_3d)
    before[1, :, 3] = before[1, :, 2]
    assert torch.equal(held, before)


def batch() -> dict[str, torch.Tensor]:
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
    for row, frame in enumerate((5, 3, 1)):
        torch.testing.assert_close(found["s"][row], found["v"][row][:, frame : frame + 1].expand(3, 6, 16, 16))
    torch.testing.assert_close(found["d"], views.rgb_difference(found["v"]))
    assert all(found[name].is_contiguous(memory_format=torch.channels_last_3d) for name in "vd")
    assert still.is_still(found["s"]) and found["s"][:, :, :1].is_contiguous(memory_format=torch.channels_last_3d)


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


def test_the_rgb_frames_of_a_plain_clip_keep_their_colours() -> None:
    data = batch()
    data["colours"][:] = torch.from_numpy(draw_colours(np.random.default_rng(1)))
    rgb = views.normalise(views.to_clip(data["rgb"][:, 0]))
    made = views.make_views(data, 0, "rgbdiff", torch.device("cpu"), plain=True)
    torch.testing.assert_close(made["v"], rgb)
    torch.testing.assert_close(made["d"], views.rgb_difference(rgb))
    changed = views.make_views(data, 0, "rgbdiff", torch.device("cpu"))
    assert not torch.allclose(changed["v"], rgb, atol=0.1)
    torch.testing.assert_close(made["s"], changed["s"])  # the static view's change all the same


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
    torch.testing.assert_close(photometry(x, draw[None]), views.normalise(expected[None]))


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
    torch.testing.assert_close(views.make_views(data, 1, "flow", torch.device("cpu"), names="vc")["c"], flow.transpose(1, 2))
    for part in range(2):
        torch.testing.assert_close(found[:, part], flow[:, :, part])
    torch.testing.assert_close(found[:, 2], torch.hypot(flow[:, :, 0], flow[:, :, 1]))


@pytest.mark.parametrize("dynamic", ["rgbdiff", "flow"])
def test_the_flow_that_mines_is_u_and_v_beside_any_dynamic_view(dynamic: str) -> None:
    levels = torch.randint(0, 256, (3, 2, 6, 2, 16, 16), dtype=torch.uint8)
    data = batch() | {
        "cue": levels,
        "scale": torch.rand(3, 2, 6, 2) - 0.5,
        "frames": torch.tensor([2, 4, 6, 0, 2, 4]).expand(3, 2, 6),
    }
    found = views.make_views(data, 1, dynamic, torch.device("cpu"), names="vsdc")
    assert found["c"].shape == (3, 2, 6, 16, 16)
    torch.testing.assert_close(found["c"], views.make_views(data, 1, "flow", torch.device("cpu"))["d"][:, :2])
    torch.testing.assert_close(found["d"], views.make_views(data, 1, dynamic, torch.device("cpu"))["d"])


def test_the_energy_that_mines_has_one_channel_of_cells() -> None:
    data = batch() | {"cue": torch.rand(3, 2, 6, 8, 8)}
    found = views.make_views(data, 1, "rgbdiff", torch.device("cpu"), names="vc")
    assert list(found) == ["v", "c"] and torch.equal(found["c"], data["cue"][:, 1].unsqueeze(1))


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
                zoom = abs(float(drawn["scale"][0, t, 0] / moving_disc.array("flow")[frame]))
                kept = moving_disc.vectors("flow", [frame])[0, 9:12, :, 0][
                    :, (8 + RADIUS + SPEED * frame) // 4 + np.arange(-1, 2)
                ]
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
        assert views.hold_seams(d.clone(), torch.tensor([[5, 3, 1]]), first_is_second).flatten().tolist() == [0, 0, 0]
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
