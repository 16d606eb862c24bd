"""Motion cues of frames drawn here, whose motion is known."""

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import pytest

from dclr.cues import CUES, STILL, FramePair, energies, flow_size, luma_difference
from preprocess.motion import MAX_FLOW, Flow, Motion

HEIGHT, WIDTH = 128, 170
PAN = (2.3, 0.7)  # pixels a frame
EDGE = 16  # pixels at the frame's edges that are not looked at: some came into view just now


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """uint8 (height, width): blobs of several sizes, from 8 to 64 pixels, that nothing else in it repeats."""
    rng = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), size / 4) * size for size in (8, 16, 32, 64)]
    return cv2.normalize(sum(layers), None, 20, 235, cv2.NORM_MINMAX, cv2.CV_8U)


def similarity(right: float, down: float, zoom: float = 1, turn: float = 0) -> np.ndarray:
    """float64 (3, 3): the frame's centre moves by (right, down), the rest zooms and turns (radians) about it."""
    a, b, x, y = zoom * np.cos(turn), zoom * np.sin(turn), (WIDTH - 1) / 2, (HEIGHT - 1) / 2
    return np.array([[a, -b, x - a * x + b * y + right], [b, a, y - b * x - a * y + down], [0, 0, 1]])


def filmed(
    camera: np.ndarray, frames: int, thing: tuple[float, float] = (0, 0), radius: float = 0, noise: float = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A textured scene that moves by ``camera`` each frame, behind a disc that moves by ``thing``, as a real lens sees them.

    Each frame is the mean of 4 x 4 samples a pixel. Returns uint8 (frames, HEIGHT, WIDTH) and the disc's bool mask.
    """
    scene, skin, fine = texture(1400, 1600, 1), texture(512, 512, 2), 4
    rng = np.random.default_rng(3)
    y, x = np.mgrid[: fine * HEIGHT, : fine * WIDTH]
    at = np.array([[1, 0, 120], [0, 1, 110], [0, 0, 1.0]])  # the first frame's place in the scene
    seen, masks = [], []
    for t in range(frames):
        # a fine pixel is a quarter of a pixel in the frame and as large in the scene
        to_scene = np.diag([4, 4, 1]) @ at @ np.array([[1 / fine, 0, -0.375], [0, 1 / fine, -0.375], [0, 0, 1]])
        frame = cv2.warpAffine(scene, to_scene[:2], x.shape[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        centre = fine * np.array([70 + thing[0] * t, 60 + thing[1] * t])
        place = np.array([[1, 0, centre[0] - 256], [0, 1, centre[1] - 256.0]])
        disc = np.hypot(x - centre[0], y - centre[1]) < fine * radius
        frame = np.where(disc, cv2.warpAffine(255 - skin, place, x.shape[::-1]), frame)
        small = cv2.resize(frame.astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        seen.append(np.clip(np.rint(small + noise * rng.standard_normal(small.shape)), 0, 255).astype(np.uint8))
        masks.append(cv2.resize(disc.astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) > 0.5)
        at = at @ np.linalg.inv(camera)
    return np.stack(seen), np.stack(masks)


@dataclass
class Moved:
    """The built-in cues of a pair, before they are encoded."""

    difference_HW: np.ndarray
    flow_hw2: np.ndarray
    energy: float
    grid_88: np.ndarray

    @classmethod
    def of(cls, pair: FramePair) -> "Moved":
        (difference,) = CUES["diff"].compute(pair)
        assert pair.flow_hw2 is not None
        return cls(difference, pair.flow_hw2, *CUES["energy"].compute(pair))


def moved(frames: np.ndarray, stabilise: bool) -> list[Moved]:
    motion = Motion(CUES, stabilise)
    out = [motion(frame) for frame in frames]
    assert out[0] is None
    return [Moved.of(one) for one in out[1:] if one is not None]


def magnitudes(cues: list[Moved]) -> np.ndarray:
    """The stored differences without sign and halving: float (frames - 1, H, W), grey levels."""
    return np.stack([2 * np.abs(one.difference_HW.astype(float) - STILL) for one in cues])


def regions(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every frame but the first: where the background is in this frame and the one before, and where the disc is."""
    near = np.stack([cv2.dilate((a | b).astype(np.uint8), np.ones((25, 25))) > 0 for a, b in pairwise(masks)])
    background = np.zeros_like(near)
    inner = np.s_[:, EDGE:-EDGE, EDGE:-EDGE]
    background[inner] = ~near[inner]
    return background, masks[1:]


def test_the_difference_is_signed() -> None:
    dark, light = np.full((64, 80), 40, np.uint8), np.full((64, 80), 100, np.uint8)
    brighter, darker = moved(np.stack([dark, light, dark]), stabilise=False)
    assert np.all(brighter.difference_HW == STILL + 30) and np.all(darker.difference_HW == STILL - 30)
    assert brighter.energy == darker.energy == 60


@pytest.mark.parametrize("shape", [(128, 170), (61, 83), (16, 200), (5, 3)])
def test_energy_and_grid_are_the_mean_absolute_difference(shape: tuple[int, int]) -> None:
    luma, previous = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    energy, grid = energies(luma, previous)
    difference = np.abs(luma.astype(int) - previous)
    assert energy == pytest.approx(difference.mean(), rel=1e-12)
    assert grid.shape == (8, 8) and grid.dtype == np.float32
    for i in range(8):
        for j in range(8):
            rows = slice(i * shape[0] // 8, (i + 1) * shape[0] // 8)
            cell = difference[rows, j * shape[1] // 8 : (j + 1) * shape[1] // 8]
            assert grid[i, j] == pytest.approx(cell.mean() if cell.size else 0, rel=1e-6)


@pytest.mark.parametrize("stabilise", [False, True])
def test_no_cue_depends_on_the_others(stabilise: bool) -> None:
    frames, _ = filmed(similarity(*PAN), 2, (3, -1), 20)
    pairs = {}
    for cues in (("diff",), ("flow",), ("energy",), tuple(CUES)):
        motion = Motion(cues, stabilise)
        _, pairs[cues] = map(motion, frames)
    for (name, *others), pair in pairs.items():
        assert (pair.flow_hw2 is None) == (not stabilise and name != "flow" and not others)
        for found, expected in zip(CUES[name].compute(pair), CUES[name].compute(pairs[*CUES]), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_flow_points_where_things_go_and_lies_where_they_are() -> None:
    right_and_up, _ = filmed(similarity(2, -1), 2)
    flow = moved(right_and_up, stabilise=False)[0].flow_hw2
    assert flow.shape == (*flow_size(HEIGHT, WIDTH), 2) == (32, 42, 2) and flow.dtype == np.float32
    inner = flow[3:-3, 3:-3]
    assert np.abs(inner - (2, -1)).mean() < 0.15 and np.abs(np.median(inner, axis=(0, 1)) - (2, -1)).max() < 0.1
    frames, masks = filmed(similarity(0, 0), 3, (5, 0), 24)
    flow = moved(frames, stabilise=False)[1].flow_hw2
    here, left = (cv2.resize(mask.astype(np.float32), (42, 32), interpolation=cv2.INTER_AREA) == 1 for mask in masks[[2, 0]])
    assert np.median(flow[here, 0]) == pytest.approx(5, abs=0.5)
    assert np.median(flow[left & ~cv2.dilate(here.astype(np.uint8), np.ones((3, 3))).astype(bool), 0]) < 2.5


def test_flow_of_a_large_jump_is_clipped() -> None:
    flows = []

    class Fast(Flow):
        def __call__(self, luma_HW: np.ndarray) -> np.ndarray | None:
            flow = super().__call__(luma_HW)
            flows.append(flow)
            return None if flow is None else flow + 100

    motion = Motion(CUES)
    motion._flow = Fast()
    frames, _ = filmed(similarity(0, 0), 2)
    assert motion(frames[0]) is None
    assert np.all(motion(frames[1]).flow_hw2 == MAX_FLOW) and np.abs(flows[1]).max() < 1


@pytest.mark.parametrize("stabilise", [False, True])
@pytest.mark.parametrize("shape", [(16, 16), (16, 200), (200, 16), (17, 31), (12, 12), (8, 100), (3, 5), (1, 1)])
def test_small_frames(shape: tuple[int, int], stabilise: bool) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, *shape), np.uint8)
    for one in moved(frames, stabilise):
        assert one.difference_HW.shape == shape and one.flow_hw2.shape == (*flow_size(*shape), 2)
        assert np.isfinite(one.flow_hw2).all() and np.isfinite(one.energy) and np.isfinite(one.grid_88).all()


def test_flow_of_a_small_frame_is_in_its_own_pixels() -> None:
    wide = cv2.GaussianBlur(texture(16, 400, 4), (0, 0), 1)
    flow = moved(np.stack([wide[:, 100:300], wide[:, 98:298]]), stabilise=False)[0].flow_hw2
    assert np.median(flow[:, 4:-4, 0]) == pytest.approx(2, abs=0.3) and abs(np.median(flow[..., 1])) < 0.3


CAMERAS = {
    "pan": similarity(*PAN),
    "fast pan": similarity(-6.4, 3.3),
    "zoom and turn": similarity(0.6, -0.4, zoom=1.02, turn=0.02),
    "zoom out": similarity(0, 0, zoom=0.97),
}


def as_fast_against_the_scene(camera: np.ndarray) -> tuple[float, float]:
    """A motion of 3 or more pixels a frame that is as fast seen in the frame as seen against what the camera does."""
    x, y = camera[:2, :2] @ (70, 60) + camera[:2, 2] - (70, 60)
    length = max(np.hypot(x, y), 1e-9)
    return x / 2 - 3 * y / length, y / 2 + 3 * x / length


@pytest.mark.parametrize("camera", CAMERAS.values(), ids=CAMERAS)
def test_stabilising_takes_the_camera_out_and_leaves_the_object(camera: np.ndarray) -> None:
    frames, masks = filmed(camera, 6, as_fast_against_the_scene(camera), 30, noise=0.5)
    background, disc = regions(masks)
    before, after = moved(frames, stabilise=False), moved(frames, stabilise=True)
    seen, left = magnitudes(before), magnitudes(after)
    assert left[background].mean() < seen[background].mean() / 5
    assert left[disc].mean() == pytest.approx(seen[disc].mean(), rel=0.25)
    for one, difference in zip(after, left, strict=True):  # energy and grid are of the same stabilised pair
        assert one.energy == pytest.approx(difference.mean(), abs=0.6)
        assert one.grid_88[3, 3] == pytest.approx(difference[48:64, 63:85].mean(), abs=1)


@pytest.mark.parametrize(("camera", "thing"), [("pan", (-2, 2)), ("pan", (0, 0)), ("fast pan", (3, -1.5))])
def test_an_object_over_a_third_of_the_frame_is_not_the_camera(camera: str, thing: tuple[float, float]) -> None:
    frames, masks = filmed(CAMERAS[camera], 5, thing, 48)
    assert 0.3 < masks.mean() < 0.36
    background, _ = regions(masks)
    seen, left = (magnitudes(moved(frames, stabilise))[background].mean() for stabilise in (False, True))
    assert left < seen / 5


def test_stabilised_flow_is_what_moves_against_the_scene() -> None:
    frames, masks = filmed(similarity(*PAN), 5, (-2, 3), 30)
    for one, mask in zip(moved(frames, stabilise=True), masks[1:], strict=True):
        cells = cv2.resize(mask.astype(np.float32), (42, 32), interpolation=cv2.INTER_AREA)
        near = cv2.dilate(cells, np.ones((9, 9))) > 0
        assert np.abs(np.median(one.flow_hw2[~near], axis=0)).max() < 0.1
        assert np.abs(np.median(one.flow_hw2[cells == 1], axis=0) - (-2 - PAN[0], 3 - PAN[1])).max() < 0.3


def test_what_the_camera_did_not_see_before_is_still() -> None:
    frames, _ = filmed(similarity(-6.4, 0), 2)  # the scene runs left: a new strip of 6.4 pixels at the right
    one = moved(frames, stabilise=True)[0]
    assert np.all(one.difference_HW[:, -6:] == STILL)
    assert np.mean(one.difference_HW[:, -30:-10] != STILL) > 0.05


@pytest.mark.parametrize("noise", [0, 2])
def test_a_camera_at_rest_is_left_alone(noise: float) -> None:
    frames, _ = filmed(similarity(0, 0), 5, (3, 1.5), 40, noise)
    for plain, steady in zip(moved(frames, stabilise=False), moved(frames, stabilise=True), strict=True):
        assert np.array_equal(plain.difference_HW, steady.difference_HW) and np.array_equal(plain.flow_hw2, steady.flow_hw2)
        assert plain.energy == steady.energy > 1 and np.array_equal(plain.grid_88, steady.grid_88)


def test_black_bars_do_not_move_with_the_camera() -> None:
    frames, _ = filmed(similarity(*PAN), 4)
    frames[:, :20], frames[:, -14:], frames[:, :, :6] = 0, 3, 0
    for one in moved(frames, stabilise=True):
        assert np.all(one.difference_HW[:18] == STILL) and np.all(one.difference_HW[-12:] == STILL)
        assert np.all(one.difference_HW[:, :4] == STILL)
        assert np.abs(one.difference_HW[22:-18, 10:].astype(int) - STILL).mean() < 1
        assert not one.flow_hw2[:5].any() and not one.flow_hw2[-3:].any()
    with_bars = np.mean([one.energy for one in moved(frames, stabilise=False)])
    assert np.mean([one.energy for one in moved(frames, stabilise=True)]) < with_bars / 4


@pytest.mark.parametrize("level", [0, 128, 255])
def test_plain_frames_are_still(level: int) -> None:
    for one in moved(np.full((3, HEIGHT, WIDTH), level, np.uint8), stabilise=True):
        assert np.all(one.difference_HW == STILL) and one.energy == 0 and not one.grid_88.any() and not one.flow_hw2.any()


def test_a_cut_to_or_from_black_is_no_camera_motion() -> None:
    frames, _ = filmed(similarity(0, 0), 1)
    frames = np.concatenate([frames, np.zeros_like(frames), frames])
    for one, (previous, luma) in zip(moved(frames, stabilise=True), pairwise(frames), strict=True):
        assert np.array_equal(one.difference_HW, luma_difference(luma, previous))


@pytest.mark.parametrize("answer", [(None, None), (np.full((2, 3), np.nan), np.ones((400, 1), np.uint8))], ids=["none", "nan"])
def test_a_failed_fit_is_a_camera_at_rest(answer: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, _ = filmed(similarity(*PAN), 3)
    monkeypatch.setattr(cv2, "estimateAffinePartial2D", lambda *args, **kwargs: answer)
    for plain, steady in zip(moved(frames, stabilise=False), moved(frames, stabilise=True), strict=True):
        assert np.array_equal(plain.difference_HW, steady.difference_HW) and plain.energy == steady.energy


def test_unrelated_frames_are_not_matched() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, HEIGHT, WIDTH), np.uint8)
    cuts = np.stack([texture(HEIGHT, WIDTH, seed) for scene in range(12) for seed in (scene, scene + 100)])
    for frames in (noise, cuts):
        for one, (previous, luma) in zip(moved(frames, stabilise=True), pairwise(frames), strict=True):
            assert np.array_equal(one.difference_HW, luma_difference(luma, previous)) and np.isfinite(one.flow_hw2).all()


def test_the_same_frames_give_the_same_cues() -> None:
    frames, _ = filmed(similarity(*PAN), 5, (3, -1), 30, noise=1)
    other, _ = filmed(similarity(1, 1), 3)
    first = moved(frames, stabilise=True)
    moved(other[:, :40, :60].copy(), stabilise=True)  # another video, of another size, in between
    for a, b in zip(first, moved(frames, stabilise=True), strict=True):
        assert a.difference_HW.tobytes() == b.difference_HW.tobytes() and a.flow_hw2.tobytes() == b.flow_hw2.tobytes()
        assert a.energy == b.energy and a.grid_88.tobytes() == b.grid_88.tobytes()
