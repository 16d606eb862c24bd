"""Where clips start, how they are cropped, what is drawn for them."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from dclr.data import clips
from dclr.data.clips import ClipConfig
from dclr.data.manifest import ShardSet
from dclr.errors import InputError
from dclr.record import PacketStream, Record

CLIP = ClipConfig(frames=8, stride=2, size=32, cue="diff")


@pytest.fixture(scope="module")
def record(synthetic_set: Path) -> Record:
    return ShardSet(synthetic_set).read(0)


def test_starts_are_uniform_among_those_that_fit() -> None:
    rng = np.random.default_rng(0)
    counts = np.bincount([clips.random_start(20, CLIP, rng) for _ in range(6000)])  # span 15: 0..5 fit
    assert len(counts) == 6 and counts.min() > 850


def test_starts_cross_no_cut_where_a_shot_is_long_enough() -> None:
    cuts = (10, 30, 46)  # shots of 10, 20, 16 and 4 frames; a clip spans 15
    assert clips.clip_starts(50, CLIP, cuts).tolist() == [*range(10, 16), 30, 31]
    rng = np.random.default_rng(0)
    counts = np.bincount([clips.random_start(50, CLIP, rng, cuts=cuts) for _ in range(4000)])
    assert np.flatnonzero(counts).tolist() == [*range(10, 16), 30, 31] and counts[counts > 0].min() > 400
    assert clips.uniform_starts(50, CLIP, 4, cuts) == [10, 12, 15, 31] and clips.uniform_starts(50, CLIP, 1, cuts) == [13]


def test_without_a_long_shot_or_a_cut_starts_are_those_of_any_video() -> None:
    assert clips.clip_starts(50, CLIP, (10, 20, 30, 40)).tolist() == clips.clip_starts(50, CLIP).tolist() == [*range(36)]
    for cuts in ((), (10, 20, 30, 40)):
        ours, plain = np.random.default_rng(3), np.random.default_rng(3)
        for _ in range(50):
            assert clips.random_start(50, CLIP, ours, cuts=cuts) == plain.integers(36)
    assert not len(clips.clip_starts(14, CLIP, (7,))) and clips.uniform_starts(14, CLIP, 2, (7,)) == [0, 0]


def with_cuts(record: Record, *cuts: int) -> Record:
    return dataclasses.replace(record, meta=dataclasses.replace(record.meta, cuts=cuts))


@pytest.mark.parametrize("codec", ["jpeg", "h264"])
def test_clips_stay_in_their_shot_also_where_they_start_at_references(h264_set: Path, synthetic_set: Path, codec: str) -> None:
    record = with_cuts(ShardSet(h264_set if codec == "h264" else synthetic_set).read(0), 9, 21)
    config = ClipConfig(frames=5, stride=2, size=16)
    found = clips.train_clips(record, config, 60, 0, 0)["frames"]
    assert {9, 10, 12, 21} <= set(found[:, 0].tolist())  # frame 9 is no reference, but where its shot begins
    assert all(len({np.searchsorted((9, 21), frame, "right") for frame in clip}) == 1 for clip in found)
    crossing = clips.train_clips(record, dataclasses.replace(config, cross_cuts=True), 60, 0, 0)["frames"]
    whole = clips.train_clips(with_cuts(record), config, 60, 0, 0)["frames"]
    np.testing.assert_array_equal(crossing, whole)


def test_motion_at_a_cut_attracts_no_clip_and_is_in_none(record: Record) -> None:
    energy, grid = np.zeros_like(record.array("energy")), np.zeros_like(record.array("grid"))
    energy[20], energy[30], grid[20] = 90, 1, 90
    cut = with_cuts(dataclasses.replace(record, arrays={**record.arrays, "energy": energy, "grid": grid}), 20)
    config = ClipConfig(frames=3, stride=2, size=32, cue="energy", sample_motion=True)
    made = clips.train_clips(cut, config, 40, 0, 0)
    assert set(made["frames"][:, 0].tolist()) <= set(range(26, 31)) and not made["cue"].any()
    made = clips.train_clips(cut, dataclasses.replace(config, sample_motion=False), 200, 0, 0)
    assert (made["frames"] == 20).any() and not made["cue"].any()  # its entry compares two shots
    assert not clips.moving_cells(grid, np.array([18, 20, 22]), 2, (20,)).any()
    assert clips.moving_cells(grid, np.array([18, 20, 22]), 2).any()


def test_the_entry_of_a_cut_gives_place_to_the_next_one() -> None:
    assert clips.cue_entries(np.array([0, 4, 5, 6, 9]), 10, (5, 9)).tolist() == [0, 4, 6, 6, 9]
    assert clips.cue_entries(np.array([[5], [7]]), 10, ()).tolist() == [[5], [7]]


def test_uniform_starts_span_the_video() -> None:
    assert clips.uniform_starts(115, CLIP, 5) == [0, 25, 50, 75, 100]
    assert clips.uniform_starts(115, CLIP, 1) == [50]
    assert clips.uniform_starts(3, CLIP, 4) == [0, 0, 0, 0]


def test_crops_keep_their_share_of_area_and_ratio() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        top, left, h, w = clips.random_resized_crop(128, 170, 0.2, rng)
        assert 0 <= top <= 128 - h and 0 <= left <= 170 - w
        assert 0.19 < h * w / (128 * 170) <= 1 and 0.73 < w / h < 1.36


def furthest(draws_N: np.ndarray) -> float:
    """The largest distance of the draws' distribution from the uniform one in 0..1 (Kolmogorov and Smirnov). Of N draws that
    are uniform it is above 1.95 / sqrt(N) once in 1,000 times."""
    expected_N = (np.arange(len(draws_N)) + 0.5) / len(draws_N)
    return float(np.abs(np.sort(draws_N) - expected_N).max())


def test_crops_lie_anywhere_with_a_uniform_area_and_a_log_uniform_ratio() -> None:
    """Up to 3 / 4 of a square frame any ratio fits: what is drawn is what is cut. A uniform ratio would be 0.07 away."""
    rng, side, draws = np.random.default_rng(0), 1000, 10_000
    top, left, h, w = np.array([clips.random_resized_crop(side, side, 0.2, rng) for _ in range(draws)]).T
    small = h * w < 0.74 * side**2
    assert small.sum() > 6000
    far = 1.95 / np.sqrt(small.sum()) + 0.005  # and what rounding to pixels makes of it
    drawn = np.stack([
        (h * w / side**2 - 0.2) / 0.54,
        np.log(w / h) / np.log(16 / 9) + 0.5,
        (top + 0.5) / (side - h + 1),
        (left + 0.5) / (side - w + 1),
    ])[:, small]  # fmt: skip
    assert max(map(furthest, drawn)) < far
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 4 / np.sqrt(small.sum())  # four deviations of independent draws
    assert h.max() == w.max() == side  # whole sides are drawn too


def test_where_no_crop_fits_it_is_the_middle_of_the_widest_or_highest_ratio() -> None:
    rng = np.random.default_rng(0)
    assert clips.random_resized_crop(14, 1001, 0.2, rng) == (0, 491, 14, 19)
    tried = np.random.default_rng(0)
    tried.random(10 * 2)
    assert rng.bit_generator.state == tried.bit_generator.state  # torchvision tries ten times too
    assert clips.random_resized_crop(1001, 14, 0.2, rng) == (491, 0, 19, 14)


def test_a_crop_of_a_tiny_frame_has_a_pixel() -> None:
    rng = np.random.default_rng(0)
    assert {clips.random_resized_crop(1, 1, 0.1, rng) for _ in range(200)} == {(0, 0, 1, 1)}
    assert min(min(clips.random_resized_crop(1, 3, 0.1, rng)[2:]) for _ in range(200)) == 1


def test_shapes_are_those_of_what_is_made(record: Record) -> None:
    for cue in (None, "".join(["di", "ff"]), "".join(["fl", "ow"])):  # as they come out of a file
        clip = ClipConfig(frames=3, stride=1, size=16, cue=cue)
        made = clips.train_clips(record, clip, 2, 0, 0)
        shapes = {"rgb": (2, 3, 16, 16, 3)} | ({"cue": (2, 3, 16, 16) if cue == "diff" else (2, 3, 2, 16, 16)} if cue else {})
        assert clips.train_shapes(clip, 2) == shapes == {name: made[name].shape for name in shapes}
        assert ("cue" in made) == bool(cue) and ("scale" in made) == (cue == "flow")
    assert clips.eval_shapes(clip, 2, 3) == {"rgb": (6, 3, 16, 16, 3)}
    assert clips.eval_shapes(clip, 2, 3, True) == {"rgb": (6, 3, 16, 16, 3), "moving": (6, 3, 16, 16)}


def cropped(frames: np.ndarray, box: tuple[int, int, int, int], size: int, flip: bool) -> np.ndarray:
    out = np.empty((len(frames), size, size, *frames.shape[3:]), np.uint8)
    clips.crop_resize(frames, box, flip, out)
    return out


def test_the_evaluation_crop_is_112_of_128() -> None:
    assert clips.eval_crops(128, 170, 1) == [(8, 29, 112, 112)]
    frames = np.arange(128 * 170, dtype=np.uint32).reshape(1, 128, 170).astype(np.uint8)
    np.testing.assert_array_equal(cropped(frames, (8, 29, 112, 112), 112, False), frames[:, 8:120, 29:141])
    np.testing.assert_array_equal(cropped(frames, (8, 29, 112, 112), 112, True), frames[:, 8:120, 29:141][:, :, ::-1])


def test_three_crops_lie_along_the_long_side() -> None:
    assert clips.eval_crops(128, 170, 3) == [(8, 0, 112, 112), (8, 29, 112, 112), (8, 58, 112, 112)]
    assert clips.eval_crops(170, 128, 3) == [(0, 8, 112, 112), (29, 8, 112, 112), (58, 8, 112, 112)]


@pytest.mark.parametrize("box", [(3, 5, 20, 24), (0, 0, 60, 64), (0, 0, 110, 120)])
@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_shows_what_is_in_its_box(box: tuple[int, int, int, int], flip: bool) -> None:
    """A picture of gradients: each pixel of the crop says which place it comes from, however it was enlarged or shrunk."""
    rows, columns = np.mgrid[:128, :128]
    frames = np.stack([rows, columns, rows], -1)[None].astype(np.uint8)
    top, left, height, width = box
    found = cropped(frames, box, 48, flip)[0].astype(float)[:, :: -1 if flip else 1]
    centres = (np.arange(48) + 0.5) / 48
    inside = slice(2, -2)  # the border has no pixel beyond it to interpolate with
    np.testing.assert_allclose(found[inside, 5, 0], (top + centres * height - 0.5)[inside], atol=0.75)
    np.testing.assert_allclose(found[5, inside, 1], (left + centres * width - 0.5)[inside], atol=0.75)


def test_starts_follow_the_motion() -> None:
    """Frames 15, 16, 17 of 20 move. Of the starts 0..5 (a clip spans 15), they see 0, 1, 2, 3, 3, 3 of those frames."""
    energy, rng = np.zeros(20, np.float32), np.random.default_rng(0)
    energy[15:18] = 2
    counts = np.bincount([clips.random_start(20, CLIP, rng, energy) for _ in range(6000)], minlength=6)
    np.testing.assert_allclose(counts / 6000, np.array([0, 1, 2, 3, 3, 3]) / 12, atol=0.02)
    for still in (np.zeros(20, np.float32), np.full(20, np.nan, np.float32), np.full(20, -np.inf, np.float32)):
        counts = np.bincount([clips.random_start(20, CLIP, rng, still) for _ in range(600)], minlength=6)
        assert counts.min() > 50
    assert clips.random_start(5, CLIP, rng, energy[:5]) < 5  # it loops


@pytest.mark.parametrize(("codec", "stride", "odd"), [("jpeg", 2, True), ("h264", 2, False), ("h264", 3, True)])
def test_clips_of_an_even_stride_start_at_references(
    h264_set: Path, synthetic_set: Path, codec: str, stride: int, odd: bool
) -> None:
    """From H.264 shards they need half of the packets then; kinds says that even frames are no b."""
    record = ShardSet(h264_set if codec == "h264" else synthetic_set).read(0)
    found = clips.train_clips(record, ClipConfig(frames=4, stride=stride, size=16), 20, 0, 0)["frames"]
    assert bool((found[:, 0] % 2).any()) == odd and len(set(found[:, 0])) > 5
    if isinstance(record.rgb, PacketStream):
        assert "b" in record.rgb.kinds and "b" not in record.rgb.kinds[::2]


def test_sampling_by_motion_uses_the_stored_energy(record: Record) -> None:
    peak = np.zeros_like(record.array("energy"))
    peak[-1] = 1  # only the last start that fits sees the last frame
    moved = ClipConfig(frames=8, stride=2, size=32, sample_motion=True)
    found = clips.train_clips(dataclasses.replace(record, arrays={**record.arrays, "energy": peak}), moved, 3, 0, 0)["frames"]
    assert (found[:, 0] == len(record) - moved.span).all()
    assert (clips.train_clips(record, CLIP, 3, 0, 0)["frames"] != found).any()


def test_draws_come_from_seed_epoch_key_and_clip_alone(record: Record) -> None:
    first = clips.train_clips(record, CLIP, 2, seed=0, epoch=0)
    again = clips.train_clips(record, CLIP, 2, seed=0, epoch=0)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    for other in (clips.train_clips(record, CLIP, 2, 1, 0), clips.train_clips(record, CLIP, 2, 0, 1)):
        assert not np.array_equal(first["rgb"], other["rgb"]) and not np.array_equal(first["colours"], other["colours"])
    assert not np.array_equal(first["rgb"][0], first["rgb"][1])  # the two clips differ too
    assert first["rgb"].shape == (2, 8, 32, 32, 3) and first["cue"].shape == (2, 8, 32, 32)
    assert not np.array_equal(first["colours"][0, 0], first["colours"][0, 1])  # v and s have colours of their own


def test_each_draw_is_reproducible_and_differs_over_clips_epochs_seeds_and_videos(synthetic_set: Path) -> None:
    """Every draw of a clip by itself: where it starts, its crop and flip, its still frame, and each part of its colours."""
    shards, config = ShardSet(synthetic_set), ClipConfig(frames=4, stride=1, size=32, min_scale=0.2)

    def draws(seed: int, epoch: int, video: int, n: int) -> dict[str, object]:
        record = shards.read(video)
        rng = clips.generator(seed, epoch, record.key, n)
        start = clips.random_start(len(record), config, rng)
        box, flip = clips.random_resized_crop(*record.size, config.min_scale, rng), bool(rng.random() < 0.5)
        found = clips.train_clips(record, config, 2, seed, epoch)
        expected = cropped(record.frames(clips.frame_indices(start, len(record), config)), box, 32, flip)
        np.testing.assert_array_equal(found["rgb"][n], expected)  # one crop and flip for all frames of a clip
        of_v = found["colours"][n, 0]
        parts = {"jitter": of_v[:4], "order": of_v[4:8], "grey": of_v[8], "blur": of_v[9]}
        everything = {"start": start, "crop": box, "flip": flip, "still": found["still"][n], **parts}
        return {name: np.asarray(value).tolist() for name, value in everything.items()}

    first = draws(0, 0, 0, 0)
    assert draws(0, 0, 0, 0) == first
    varied = {
        "seed": [draws(n, 0, 0, 0) for n in range(40)],
        "epoch": [draws(0, n, 0, 0) for n in range(40)],
        "video": [draws(0, 0, n, 0) for n in range(40)],
    }
    for what, others in varied.items():
        assert [name for name in first if len({str(other[name]) for other in others}) == 1] == [], what
    pairs = [(draws(0, n, 0, 0), draws(0, n, 0, 1)) for n in range(40)]  # the two clips of one video
    assert [name for name in first if all(one[name] == other[name] for one, other in pairs)] == []


def test_colours_follow_the_specified_distributions() -> None:
    drawn = np.stack([clips.draw_colours(np.random.default_rng(i)) for i in range(4000)])
    jittered = drawn[:, 0] != 1
    assert abs(jittered.mean() - 0.8) < 0.03
    assert abs((drawn[:, 8] == 1).mean() - 0.2) < 0.03 and abs((drawn[:, 9] > 0).mean() - 0.5) < 0.03
    assert (drawn[~jittered, :4] == (1, 1, 1, 0)).all()
    factors = drawn[jittered, :3]
    assert 0.6 <= factors.min() < 0.61 and 1.39 < factors.max() <= 1.4
    assert abs(drawn[jittered, 3]).max() <= 0.1 and len(np.unique(drawn[:, 4:8], axis=0)) == 24
    sigma = drawn[drawn[:, 9] > 0, 9]
    assert 0.1 <= sigma.min() < 0.15 and 1.95 < sigma.max() <= 2


def test_evaluation_clips_are_uniform_and_undisturbed(record: Record) -> None:
    starts = clips.uniform_starts(len(record), CLIP, 3)
    for crops in (1, 3):
        found = clips.eval_clips(record, CLIP, 3, crops)["rgb"].reshape(3, crops, 8, 32, 32, 3)
        for views, start in zip(found, starts, strict=True):
            frames = record.frames(clips.frame_indices(start, len(record), CLIP))
            for view, box in zip(views, clips.eval_crops(*record.size, crops), strict=True):
                np.testing.assert_array_equal(view, cropped(frames, box, 32, False))


@pytest.mark.parametrize(
    "wrong", [{"frames": 0}, {"stride": 0}, {"size": 4}, {"min_scale": 0.0}, {"flip": 1.5}, {"cue": "grid"}]
)
def test_impossible_clips_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match="expected"):
        ClipConfig(**wrong)


def test_flow_is_cut_where_the_picture_is_and_scales_and_turns_with_it() -> None:
    """Flow that names its own place: u = x and v = y of the frame, and a half, through any crop and flip."""
    height, width, size = 64, 96, 32
    y, x = np.mgrid[:16, :24].astype(np.float32)  # every 4 pixels
    levels = np.concatenate([x * 4 + 2, y * 4 + 2]).astype(np.uint8)[None]
    rng = np.random.default_rng(0)
    for flip in (False, True) * 5:
        top, left, h, w = box = clips.random_resized_crop(height, width, 0.3, rng)
        out = np.empty((1, 2, size, size), np.uint8)
        zoom = clips.crop_flow(levels, (height, width), box, flip, out)
        column, row = left + (np.arange(size) + 0.5) * w / size, top + (np.arange(size) + 0.5) * h / size
        expected_x, expected_y = np.tile(column[:: -1 if flip else 1], (size, 1)), np.tile(row[:, None], (1, size))
        inside = (expected_x > 2.5) & (expected_x < width - 2.5) & (expected_y > 2.5) & (expected_y < height - 2.5)
        assert inside.sum() > 600
        for part, expected in zip(out[0], (expected_x, expected_y), strict=True):
            error = (part - expected)[inside]
            assert np.abs(error).max() < 0.7 and abs(error.mean()) < 0.1  # rounded to a level
        np.testing.assert_allclose(zoom, [(-1 if flip else 1) * size / w, size / h], rtol=1e-6)


def test_cells_with_motion_are_those_around_the_clips_frames() -> None:
    """One cell moves at a time, from the left to the right: a clip's frame has what moves from its frame before to the next."""
    grid = np.zeros((16, 8, 8), np.float16)
    for t in range(16):
        grid[t, 3, t // 2] = 10
    grid[:, 0, 0] = 0.5  # noise, which is no motion
    cells = clips.moving_cells(grid, np.array([4, 6, 8]), 2)
    assert cells.dtype == bool and cells.shape == (3, 8, 8)
    for t, found in zip((4, 6, 8), cells, strict=True):
        assert set(np.flatnonzero(found[3])) == {(t - 1) // 2, t // 2, (t + 2) // 2} and found.sum() == found[3].sum()
    assert not clips.moving_cells(np.zeros_like(grid), np.array([0, 2]), 2).any()
    assert clips.moving_cells(grid, np.array([14, 15, 0]), 2).any((1, 2)).all()  # a looped video, at both ends


@pytest.mark.parametrize("frame", [(32, 40), (33, 47)])
def test_cells_are_cut_as_frames_are(frame: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    cells, size = rng.random((2, 8, 8)) < 0.5, 24
    whole = np.zeros((2, *frame), np.uint8)
    for i in range(8):
        for j in range(8):
            rows, columns = (slice(k * side // 8, (k + 1) * side // 8) for k, side in zip((i, j), frame, strict=True))
            whole[:, rows, columns] = cells[:, i, j, None, None]
    for box in clips.eval_crops(*frame, 3):
        top, left, height, width = box
        at = [(start + (np.arange(size) + 0.5) * side / size).astype(int) for start, side in ((top, height), (left, width))]
        found = clips.crop_cells(cells, frame, box, np.empty((2, size, size), np.uint8))
        np.testing.assert_array_equal(found, whole[:, at[0][:, None], at[1]])


def test_the_energy_of_the_crops_cells_comes_with_a_clip_and_turns_with_it(record: Record) -> None:
    grid = record.array("grid").copy()
    grid[3, 0, 0] = np.nan  # a damaged cell has no energy
    record = dataclasses.replace(record, arrays={**record.arrays, "grid": grid})
    found = {}
    for flip in (0.0, 1.0):
        made = clips.train_clips(record, ClipConfig(frames=4, size=20, min_scale=1.0, flip=flip, cue="energy"), 2, 0, 0)
        assert made["cue"].shape == (2, 4, 8, 8) and made["cue"].dtype == np.float32 and np.isfinite(made["cue"]).all()
        found[flip] = made
    np.testing.assert_array_equal(found[1.0]["cue"], found[0.0]["cue"][..., ::-1])
    strong = np.nan_to_num(grid[found[0.0]["frames"]]).mean((2, 3))  # the crop holds nearly all of the frame
    assert np.corrcoef(found[0.0]["cue"].mean((2, 3)).ravel(), strong.ravel())[0, 1] > 0.9


def test_each_evaluation_crop_says_where_it_moves(record: Record) -> None:
    grid, clip = record.array("grid"), ClipConfig(frames=4, size=20)
    made = clips.eval_clips(record, clip, 3, 3, moving=True)
    assert made["moving"].shape == made["rgb"].shape[:-1] == (9, 4, 20, 20)
    boxes = clips.eval_crops(*record.size, 3)
    for n, start in enumerate(clips.uniform_starts(len(record), clip, 3)):
        cells = clips.moving_cells(grid, clips.frame_indices(start, len(record), clip), clip.stride)
        for number, box in enumerate(boxes):
            expected = clips.crop_cells(cells, record.size, box, np.empty((4, 20, 20), np.uint8))
            np.testing.assert_array_equal(made["moving"][3 * n + number], expected)
    assert len({moving.tobytes() for moving in made["moving"]}) > 5


def test_what_moves_in_real_clips_lies_in_the_cells(synthetic_set: Path) -> None:
    """Frames differ more there than elsewhere, though the camera drifts and moves the background too."""
    shards, clip = ShardSet(synthetic_set), ClipConfig(frames=4, size=28)
    times = []
    for sample in shards.select(["test"]):
        made = clips.eval_clips(shards.read(int(sample)), clip, 2, moving=True)
        change = np.abs(np.diff(made["rgb"].astype(float), axis=1)).sum(-1)
        moving = made["moving"][:, 1:].astype(bool)
        times.append(change[moving].mean() / change[~moving].mean())
    assert min(times) > 1 and np.median(times) > 3


def test_a_clip_is_by_default_the_methods_and_the_least_ones_are_allowed() -> None:
    assert dataclasses.astuple(ClipConfig()) == (16, 2, 112, 0.2, 0.5, None, False, False)
    assert ClipConfig(frames=1, stride=1, size=8, min_scale=1.0, flip=0.0).span == 1
    assert ClipConfig(flip=1.0, cue="flow").span == 31
    for wrong in ({"size": 7}, {"min_scale": 1.01}, {"flip": -0.1}, {"flip": 1.01}, {"min_scale": -0.1}):
        with pytest.raises(InputError, match="expected"):
            ClipConfig(**wrong)  # type: ignore[arg-type]


def test_a_video_as_long_as_the_clip_has_one_start_and_a_shorter_one_loops() -> None:
    rng, energy = np.random.default_rng(0), np.ones(14, np.float32)
    assert {clips.random_start(15, CLIP, rng) for _ in range(50)} == {0}
    assert {clips.random_start(15, CLIP, rng, np.ones(15, np.float32)) for _ in range(50)} == {0}
    for motion in (None, energy):
        assert {clips.random_start(14, CLIP, rng, motion) for _ in range(500)} == set(range(14))
    last = SimpleNamespace(random=lambda: 1.0)  # as the product of a number just below 1 may be rounded
    assert clips.random_start(20, CLIP, last, np.ones(20, np.float32)) == 5  # type: ignore[arg-type]
    assert clips.frame_indices(10, 14, CLIP).tolist() == [10, 12, 0, 2, 4, 6, 8, 10]
    assert clips.uniform_starts(16, CLIP, 2) == [0, 1] and clips.uniform_starts(15, CLIP, 2) == [0, 0]


@pytest.mark.parametrize(("side", "areas"), [(70, False), (72, False), (74, True), (144, True)])
def test_a_crop_that_shrinks_by_more_than_one_and_a_half_is_averaged_over_areas(side: int, areas: bool) -> None:
    """One that shrinks by less is interpolated."""
    frames = np.random.default_rng(0).integers(0, 256, (1, side, side + 20, 3), np.uint8)
    box = (0, 7, side, side + 4)
    how = cv2.INTER_AREA if areas else cv2.INTER_LINEAR
    expected = cv2.resize(np.ascontiguousarray(frames[0, :, 7 : side + 11]), (48, 48), interpolation=how)
    np.testing.assert_array_equal(cropped(frames, box, 48, False)[0], expected)
    np.testing.assert_array_equal(cropped(frames, box, 48, True)[0], expected[:, ::-1])


def test_evaluation_crops_of_a_square_and_of_an_odd_frame() -> None:
    assert clips.eval_crops(128, 128, 3) == [(8, 0, 112, 112), (8, 8, 112, 112), (8, 16, 112, 112)]
    assert clips.eval_crops(65, 90, 3) == [(4, 0, 57, 57), (4, 16, 57, 57), (4, 33, 57, 57)]
