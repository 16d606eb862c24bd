"""Record + generator -> clips: where a clip starts, how it is cropped and flipped, and the draws of its colours.

Legend: N clips of one video, T frames a clip, S side of the crop, H W stored frame. Everything random is drawn here, on the
CPU, from (seed, epoch, key, clip); the device only computes (dclr/method/views.py). Geometry (start, crop, flip) is one draw a
clip, shared by its RGB frames, its static frame and its stored cue.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from dclr.cues import CUES, GRID, STILL, flow_size
from dclr.draws import generator
from dclr.errors import InputError
from dclr.record import DEFAULT_FPS, EVEN, MAX_SIDE, Record, video_id
from dclr.settings import check_values, setting

COLOURS = 10  # floats of one photometric draw: brightness, contrast, saturation, hue, their order (4), grey, blur sigma
JITTERS = ("torchvision", "authors")  # whose formulas change the colours (dclr/method/views.py)
RATIO = (3 / 4, 4 / 3)  # of RandomResizedCrop, width / height
CENTRE = 112 / 128  # evaluation: short side 128, centre crop 112, for any clip size
LEARNED = {"frames": int, "stride": int, "clip_fps": float, "size": int}  # what a checkpoint says of its clips
CROPS = (1, 3)  # evaluation: the middle, or the middle and both ends of the long side
PACES = 1e-6, 1e6  # least and most stored frames a frame of a clip, whatever a video says of its rate
BETWEEN = 4  # cells between moving ones that move too
AREA_FROM = 1.5  # a crop that shrinks by more is averaged over areas (four times the time), less is interpolated


@dataclass(frozen=True)
class ClipConfig:
    """What a clip is. ``frames`` T, ``stride`` from one to the next in stored frames, or in its place ``clip_fps`` of them a
    second (:meth:`of` a video), ``size`` S in pixels, ``min_scale`` the least share of the frame's area that RandomResizedCrop
    keeps, ``flip`` the probability of a horizontal flip, ``cue`` which of the stored cues comes with it (one of pictures, or
    energy), ``sample_motion`` whether a clip's start is drawn by the stored energy of its frames, ``cross_cuts`` whether a clip
    may show several shots where one is long enough. Raises InputError for what is none."""

    frames: int = setting(16, "frames of a clip", short="-fpc", metavar="N", least=1, most=10_000)
    stride: float = setting(2, "stored frames from one frame of a clip to the next", metavar="N", above=0, most=PACES[1])
    size: int = setting(112, "side of a clip's square crop", short="-cs", metavar="PIXELS", least=8, most=MAX_SIDE)
    min_scale: float = setting(
        0.2, "least share of a frame's area that a training crop keeps", metavar="SHARE", above=0, most=1
    )
    flip: float = setting(
        0.5, "probability that a training clip is mirrored; 0 where left and right are labels", metavar="P", least=0, most=1
    )
    cue: str | None = None
    sample_motion: bool = setting(False, "draw where a clip starts by the stored motion energy")
    cross_cuts: bool = setting(
        False, "let clips cross the cuts between shots, also where one shot is long enough", before=False
    )
    clip_fps: float | None = setting(
        None, "frames a second of a clip, by each video's own rate, in the place of --stride", metavar="RATE", above=0,
        most=1000, before=None, derived="by the stride",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_values(self)
        known = [name for name, cue in CUES.items() if cue.picture or name == "energy"]
        if self.cue not in (None, *known):
            raise InputError(f"cue {self.cue!r}: expected one of {', '.join(known)}, or none")

    def of(self, fps: float) -> ClipConfig:
        """The clips of a video of ``fps`` stored frames a second, 0 where it does not say: with ``clip_fps`` their stride is
        what that comes to, any number."""
        if self.clip_fps is None:
            return self
        least, most = PACES
        return replace(self, stride=min(max((fps or DEFAULT_FPS) / self.clip_fps, least), most))

    @property
    def offsets(self) -> np.ndarray:
        """The stored frames of a clip, counted from its first, int64 (T,): the nearest to each multiple of the stride, of two
        equally near the earlier.

        >>> ClipConfig(frames=5, clip_fps=12.5).of(30).offsets.tolist()
        [0, 2, 5, 7, 10]
        """
        return np.ceil(np.arange(self.frames) * self.stride - (0.5 + EVEN)).astype(np.int64)

    @property
    def span(self) -> int:
        """Stored frames from a clip's first to its last, both included.

        >>> ClipConfig(frames=16, stride=2).span
        31
        """
        return int(self.offsets[-1]) + 1

    @property
    def step(self) -> int:
        """The whole number of stored frames, one at least, that is nearest to the stride."""
        return max(1, math.ceil(self.stride - (0.5 + EVEN)))

    def bytes(self, clips: float, inputs: float) -> int:
        """What so many clips take as they are cut, uint8, and so many as a network gets them, float32."""
        return int(3 * self.frames * self.size**2 * (clips + 4 * inputs))

    @property
    def said(self) -> dict[str, Any]:
        """Its length, pace and size as settings say them: ``stride`` or ``clip_fps`` is None."""
        stride = self.stride if self.clip_fps is None else None
        return {"frames": self.frames, "stride": stride, "clip_fps": self.clip_fps, "size": self.size}


def frame_indices(start: int, total: int, clip: ClipConfig) -> np.ndarray:
    """The stored frames of the clip that starts at ``start``: int64 (T,). A video of fewer frames is looped, never continued
    with another video (docs/method.md, fault 13).

    >>> frame_indices(3, total=6, clip=ClipConfig(frames=4, stride=2)).tolist()
    [3, 5, 1, 3]
    """
    return (start + clip.offsets) % total


def clip_starts(total: int, clip: ClipConfig, cuts: Sequence[int] = ()) -> np.ndarray:
    """The starts from which a clip fits into ``total`` frames and crosses no cut, ascending: int64 (S,).

    Where no shot is long enough, all that fit. None fits in a video that is shorter than the clip.

    >>> clip_starts(12, ClipConfig(frames=3, stride=2), cuts=[4, 6]).tolist()
    [6, 7]
    """
    span = clip.span
    fit = np.arange(max(total - span + 1, 0))
    within = fit[np.searchsorted(cuts, fit, "right") == np.searchsorted(cuts, fit + span - 1, "right")] if cuts else fit
    return within if len(within) else fit


def random_start(
    total: int, clip: ClipConfig, rng: np.random.Generator, energy_N: np.ndarray | None = None, cuts: Sequence[int] = ()
) -> int:
    """A random one of :func:`clip_starts`. In a video that is shorter than the clip, and loops, any frame is a start.

    The draw is uniform. With ``energy_N``, float32 (total,), a start's probability is proportional to the energy of the frames
    that the clip spans; a video that loops or never moves stays uniform.
    """
    start_S = clip_starts(total, clip, cuts)
    if not len(start_S):
        return int(rng.integers(total))
    if energy_N is not None:
        sums = np.concatenate([[0], np.cumsum(np.nan_to_num(energy_N, nan=0, posinf=0, neginf=0).clip(0), dtype=np.float64)])
        reached = np.cumsum(sums[start_S + clip.span] - sums[start_S])
        if reached[-1] > 0:
            chosen = int(np.searchsorted(reached, rng.random() * reached[-1], side="right"))
            return int(start_S[min(chosen, len(start_S) - 1)])
    return int(start_S[rng.integers(len(start_S))])


def uniform_starts(total: int, clip: ClipConfig, clips: int, cuts: Sequence[int] = ()) -> list[int]:
    """``clips`` evenly spaced ones of :func:`clip_starts`, from the first to the last. A single clip starts in the middle.

    >>> uniform_starts(100, ClipConfig(frames=16, stride=2), clips=4)
    [0, 23, 46, 69]
    """
    start_S = clip_starts(total, clip, cuts)
    if not len(start_S):
        return [0] * clips
    last = len(start_S) - 1
    places = [last // 2] if clips == 1 else [round(i * last / (clips - 1)) for i in range(clips)]
    return start_S[places].tolist()


def cue_entries(indices: np.ndarray, total: int, cuts: Sequence[int]) -> np.ndarray:
    """The entries of the stored cues for these frames, of any shape.

    The entry of a shot's first frame compares it with another shot. The next one takes its place, as a video's entry 0 equals
    its entry 1.
    """
    return np.minimum(indices + np.isin(indices, cuts), total - 1) if cuts else indices


def cue_interval(indices_T: np.ndarray, frames: int, total: int, cuts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The entries of the stored cues, from the first to the last, that are the motion over the ``frames`` stored frames before
    each of these frames: twice int64 (T,).

    They lie within its shot. The first frames of a shot have those of its frame number ``frames``, or what there is.
    """
    bounds, shot_T = np.array([0, *cuts, total]), np.searchsorted(cuts, indices_T, "right")
    begin_T, end_T = bounds[shot_T], bounds[shot_T + 1] - 1
    last_T = np.minimum(np.maximum(indices_T, begin_T + frames), end_T)
    return np.maximum(last_T - frames + 1, np.minimum(begin_T + 1, last_T)), last_T


def random_resized_crop(height: int, width: int, min_scale: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of RandomResizedCrop (Szegedy et al. 2015): area U(min_scale, 1), log-uniform ratio."""
    for _ in range(10):
        area = height * width * rng.uniform(min_scale, 1)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def eval_crops(height: int, width: int, crops: int) -> list[tuple[int, int, int, int]]:
    """The evaluation crops, each (top, left, height, width): squares whose side is 112 / 128 of the short side.

    One crop lies in the middle. Three lie at the beginning, in the middle and at the end of the long side.

    >>> eval_crops(128, 170, crops=3)
    [(8, 0, 112, 112), (8, 29, 112, 112), (8, 58, 112, 112)]
    """
    side = round(min(height, width) * CENTRE)
    middle = [(height - side) // 2, (width - side) // 2]
    long = int(width >= height)
    boxes = []
    for share in (1,) if crops == 1 else (0, 1, 2):
        corner = [*middle]
        corner[long] = (max(height, width) - side) * share // 2
        boxes.append((corner[0], corner[1], side, side))
    return boxes


def crop_resize(frames_THW: np.ndarray, box: tuple[int, int, int, int], flip: bool, out_TSS: np.ndarray) -> None:
    """Cut ``box`` out of uint8 frames (T, H, W[, C]), resize it into ``out_TSS`` (T, S, S[, C]), and flip it where asked.

    The resize is bilinear without antialiasing where the crop shrinks by at most :data:`AREA_FROM`, else by areas.
    shards/README.md ("Crops") says how far that is from an antialiased resize.
    """
    (top, left, height, width), size = box, out_TSS.shape[1]
    cut = frames_THW[:, top : top + height, left : left + width]
    if (height, width) == (size, size):
        out_TSS[:] = cut[:, :, ::-1] if flip else cut
        return
    mode = cv2.INTER_AREA if min(height, width) > AREA_FROM * size else cv2.INTER_LINEAR
    for frame, result in zip(cut, out_TSS, strict=True):
        cv2.resize(frame, (size, size), dst=result, interpolation=mode)
        if flip:
            cv2.flip(result, 1, dst=result)


def crop_small(
    small_TPhw: np.ndarray, frame: tuple[int, int], box: tuple[int, int, int, int], flip: bool, out_TPSS: np.ndarray
) -> None:
    """Crop pictures of another size than the frames as :func:`crop_resize` crops frames, which are ``frame`` = (height, width)
    large. The part of ``small_TPhw``, uint8 (T, P, h, w), in ``box`` is written to ``out_TPSS``, uint8 (T, P, S, S)."""
    (top, left, height, width), size = box, out_TPSS.shape[-1]
    rows, columns = small_TPhw.shape[2:]

    def line(start: int, length: int, stored: int, side: int, turned: bool) -> tuple[float, float]:
        """Place in the stored picture of place i of the crop: slope * i + offset, pixel centres upon pixel centres."""
        step = length / size * stored / side
        offset = (start + 0.5 * length / size) * stored / side - 0.5
        return (-step, offset + step * (size - 1)) if turned else (step, offset)

    (across, x), (down, y) = line(left, width, columns, frame[1], flip), line(top, height, rows, frame[0], False)
    place = np.array([[across, 0, x], [0, down, y]])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    for pictures, result in zip(small_TPhw, out_TPSS, strict=True):
        for picture, cut in zip(pictures, result, strict=True):
            cv2.warpAffine(picture, place, (size, size), dst=cut, flags=how, borderMode=cv2.BORDER_REPLICATE)


def crop_flow(
    levels_n2hw: np.ndarray, frame: tuple[int, int], box: tuple[int, int, int, int], flip: bool, out_T2SS: np.ndarray
) -> np.ndarray:
    """Crop stored flow, uint8 (T, 2h, w), horizontal above vertical, as :func:`crop_small` does. ``out_T2SS`` are levels.

    Returns:
        float32 (2,): the factor by which a level is longer in the crop than in the frame, horizontally and vertically. It is
        the crop's zoom. A flip negates the horizontal one, because motion to the right is then motion to the left.
    """
    _, _, height, width = box
    crop_small(levels_n2hw.reshape(len(levels_n2hw), 2, -1, levels_n2hw.shape[-1]), frame, box, flip, out_T2SS)
    size = out_T2SS.shape[-1]
    return np.array([(-1 if flip else 1) * size / width, size / height], np.float32)


def crop_cue(
    record: Record,
    clip: ClipConfig,
    indices_T: np.ndarray,
    cuts: Sequence[int],
    box: tuple[int, int, int, int],
    flip: bool,
    out: np.ndarray,
) -> np.ndarray | None:
    """Crop the clip's cue at the frames ``indices_T`` as :func:`crop_resize` crops frames, into ``out``, uint8 (T, S, S).

    Of a cue of vectors ``out`` is (T, 2, S, S), and the pixels of the crop that a level is, horizontally and vertically, are
    returned: float32 (T, 2). Of energy ``out`` is what the cells of the crop hold, float32 (T, G, G).

    A stored cue compares a frame with the stored frame before it. With ``clip_fps`` it becomes that of the interval between
    frames of the clip, ``stride`` stored frames: vectors are multiplied by that. Changes and energies are summed over the n
    nearest to it (:attr:`ClipConfig.step`) and multiplied by stride / n."""
    name, total = str(clip.cue), len(record)
    first_T = last_T = cue_entries(indices_T, total, cuts)
    factor_T = np.ones(len(indices_T), np.float32)
    if clip.clip_fps is not None:
        first_T, last_T = cue_interval(indices_T, 1 if CUES[name].vectors else clip.step, total, cuts)
        factor_T = (clip.stride / (last_T - first_T + 1)).astype(np.float32)
    if name == "energy":
        grid_NGG, spans = record.array("grid"), zip(first_T, last_T, strict=True)
        sums = [np.nan_to_num(grid_NGG[a : b + 1], posinf=0, neginf=0).sum(0, np.float32) for a, b in spans]
        crop_cells(np.stack(sums) * factor_T[:, None, None], record.size, box, out)
        out[:] = out[..., ::-1] if flip else out
        return None
    if CUES[name].vectors:
        scale_T1 = (record.array(name)[last_T] * factor_T)[:, None]
        return scale_T1 * crop_flow(record.pictures(name, last_T), record.size, box, flip, out)
    if clip.clip_fps is None:
        pictures_Thw = record.pictures(name, last_T)
    else:
        pictures_Thw = summed_changes(record, name, first_T, last_T, factor_T)
    if pictures_Thw.shape[1:] == record.size:
        crop_resize(pictures_Thw, box, flip, out)
    else:
        crop_small(pictures_Thw[:, None], record.size, box, flip, out[:, None])
    return None


def summed_changes(record: Record, name: str, first_T: np.ndarray, last_T: np.ndarray, factor_T: np.ndarray) -> np.ndarray:
    """The sums of a cue of signed changes over its entries from ``first_T`` to ``last_T``, times ``factor_T``, as pictures:
    uint8 (T, h, w). Each entry is decoded once."""
    entries = np.unique(np.concatenate([np.arange(first, last + 1) for first, last in zip(first_T, last_T, strict=True)]))
    stored, at_T = record.pictures(name, entries), np.searchsorted(entries, first_T)
    out = np.empty((len(first_T), *stored.shape[1:]), np.uint8)
    for picture, at, count, factor in zip(out, at_T, last_T - first_T + 1, factor_T, strict=True):
        change = (stored[at : at + count].sum(0, np.int32) - STILL * count) * factor
        picture[:] = np.rint(change + STILL).clip(0, 255)
    return out


def draw_colours(rng: np.random.Generator) -> np.ndarray:
    """One photometric draw of docs/method.md: float32 (:data:`COLOURS`,). Neutral values where a step is not applied.

    Jitter (.4, .4, .4, .1) in a random order with p 0.8: factors U(0.6, 1.4), hue U(-0.1, 0.1) of a turn; grey p 0.2;
    Gaussian blur p 0.5 with sigma U(0.1, 2) in pixels, 0 for none.
    """
    factors = rng.uniform((0.6, 0.6, 0.6, -0.1), (1.4, 1.4, 1.4, 0.1))
    order, sigma = rng.permutation(4), rng.uniform(0.1, 2)
    jitter, grey, blur = rng.random(3) < (0.8, 0.2, 0.5)
    return np.array([*(factors if jitter else (1, 1, 1, 0)), *order, grey, sigma * blur], np.float32)


def train_shapes(clip: ClipConfig, clips: int) -> dict[str, tuple[int, ...]]:
    """The pictures that :func:`train_clips` makes: uint8 arrays by name."""
    shape = (clips, clip.frames, clip.size, clip.size)
    shapes: dict[str, tuple[int, ...]] = {"rgb": (*shape, 3)}
    if clip.cue and CUES[clip.cue].picture:
        shapes["cue"] = (clips, clip.frames, 2, clip.size, clip.size) if CUES[clip.cue].vectors else shape
    return shapes


def eval_shapes(clip: ClipConfig, clips: int, crops: int, names: Collection[str] = ("rgb",)) -> dict[str, tuple[int, ...]]:
    """The pictures that :func:`eval_clips` makes, those of ``names``."""
    n, size = clips * crops, (clip.size, clip.size)
    shapes: dict[str, tuple[int, ...]] = {
        "rgb": (n, clip.frames, *size, 3),
        "moving": (n, clip.frames, *size),
        "ground": (n, *size, 3),
        "stripes": (n, *size, 3),
        "noise": (n, clip.frames, *size, 3),
    }
    return {name: shapes[name] for name in names}


def moving_cells(record: Record, indices_T: np.ndarray, stride: int, cuts: Sequence[int] = ()) -> np.ndarray:
    """The cells of each frame of a clip in which something moves, by the stored difference: bool (T, h, w) of
    :func:`dclr.cues.flow_size`, so that a cell is 4 x 4 stored pixels.

    The energy of a cell in a frame is the mean absolute difference over its pixels and over the stored frames of its shot
    between the clip's frame before and the one after, ``stride`` stored frames away. A cell moves where that is above Otsu's
    threshold of all cells of the clip (the split into two classes of least variance; Otsu 1979). So do the cells of a gap of up
    to four between such cells: within a plain surface nothing changes. In a clip without energy none moves.
    """
    total = len(record)
    bounds, shot_T1 = np.array([0, *cuts, total]), np.searchsorted(cuts, indices_T, "right")[:, None]
    around_TK = (indices_T[:, None] + np.arange(1 - stride, stride + 1)).clip(bounds[shot_T1], bounds[shot_T1 + 1] - 1)
    entry_E, place_P = np.unique(cue_entries(around_TK, total, cuts), return_inverse=True)
    change_EHW = np.abs(record.pictures("diff", entry_E).astype(np.float32) - STILL)
    size = flow_size(*record.size)[::-1]
    cells_Ehw = np.stack([cv2.resize(change, size, interpolation=cv2.INTER_AREA) for change in change_EHW])
    energy_Thw = cells_Ehw[place_P.reshape(around_TK.shape)].mean(1)
    if not energy_Thw.max() > 0:
        return np.zeros(energy_Thw.shape, bool)
    levels = np.rint(energy_Thw * (255 / energy_Thw.max())).astype(np.uint8)
    threshold, _ = cv2.threshold(levels.reshape(1, -1), 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    shape = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (BETWEEN + 1, BETWEEN + 1))
    cells = (levels > threshold).astype(np.uint8)
    return np.stack([cv2.morphologyEx(frame, cv2.MORPH_CLOSE, shape) for frame in cells]).astype(bool)


def moved_noise(flow_T2SS: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise that moves by the flow of frames that follow each other: uint8 (T, S, S, 3) from float32 (T, 2, S, S), the motion
    rightward and downward, in pixels a frame, of what is seen there (the first frame's is not used).

    As in Ilic et al. (ECCV 2022) motion is all that such a clip shows. A pixel takes the value that was where its vector comes
    from; what moves by less than a pixel a frame moves once its parts of a pixel add up to one. No value is taken twice: of
    pixels that ask for the same one the fastest gets it, because what moves covers what rests. The others, and those whose
    vector comes from outside, get new noise. So each frame by itself is noise whose values are independent of each other and
    of the video."""
    size = flow_T2SS.shape[-1]
    out_TPC = np.empty((len(flow_T2SS), size * size, 3), np.uint8)
    at_2P = np.mgrid[:size, :size][::-1].reshape(2, -1)  # x and y of each pixel
    past_2P = np.zeros(at_2P.shape, np.float32)  # how far the value of each pixel is from its middle
    for t, flow_2P in enumerate(flow_T2SS.reshape(len(flow_T2SS), 2, -1)):
        out_TPC[t] = rng.integers(256, size=out_TPC[t].shape, dtype=np.uint8)
        if t == 0:
            continue
        x, y = (at_2P + np.floor(0.5 - flow_2P).astype(int)).clip(0, size - 1)
        back_2P = np.floor(0.5 - flow_2P - past_2P[:, y * size + x]).astype(int)
        from_2P = at_2P + back_2P
        inside_P = ((from_2P >= 0) & (from_2P < size)).all(0)
        from_P = np.where(inside_P, from_2P[1] * size + from_2P[0], -1)
        speed_P = np.minimum(256 * np.hypot(*flow_2P), 65535).astype(np.uint16)  # numpy sorts 16 bits many times faster
        order_P = np.argsort(speed_P, kind="stable")
        taker_P = np.empty(size * size + 1, int)
        taker_P[from_P[order_P]] = order_P  # of those that ask for the same place the last one stays
        kept_P = inside_P & (taker_P[from_P] == np.arange(size * size))
        out_TPC[t, kept_P] = out_TPC[t - 1, from_P[kept_P]]
        past_2P = np.where(kept_P, (past_2P[:, from_P] + flow_2P + back_2P).clip(-0.5, 0.5), 0)
    return out_TPC.reshape(-1, size, size, 3)


def background(rgb_TSSC: np.ndarray, moving_TSS: np.ndarray) -> np.ndarray:
    """What lies behind that which moves in a clip, one picture: uint8 (S, S, 3) from uint8 (T, S, S, 3), and (T, S, S), 1 where
    it moves.

    A pixel is that of the frame nearest to the middle one in which it does not move. What moves in all frames is filled from
    around it (Telea 2004)."""
    away_T = np.abs(np.arange(len(rgb_TSSC)) - len(rgb_TSSC) // 2)
    frame_SS = (away_T[:, None, None] + len(rgb_TSSC) * moving_TSS.astype(int)).argmin(0)
    ground_SSC = np.take_along_axis(rgb_TSSC, frame_SS[None, ..., None], 0)[0]
    return cv2.inpaint(ground_SSC, moving_TSS.min(0), 3, cv2.INPAINT_TELEA)


def striped(size: int, rng: np.random.Generator) -> np.ndarray:
    """A picture of stripes, uint8 (size, size, 3), as in Li et al. (ICCV 2023): a sine of 2 to 8 periods between two colours.
    Colours, direction, periods and phase are drawn."""
    y, x = np.mgrid[:size, :size] / size
    turn, phase = rng.uniform(0, 2 * math.pi, 2)
    wave_SS = np.sin(2 * math.pi * rng.uniform(2, 8) * (x * math.cos(turn) + y * math.sin(turn)) + phase)
    one, other = rng.uniform(0, 255, (2, 3))
    return (one + (other - one) * (0.5 + 0.5 * wave_SS[..., None])).astype(np.uint8)


def crop_cells(
    cells_TGG: np.ndarray, frame: tuple[int, int], box: tuple[int, int, int, int], out_TSS: np.ndarray
) -> np.ndarray:
    """Crop a grid of cells as :func:`crop_resize` crops frames: one value for each pixel of the crop.

    It is written to ``out_TSS`` (T, S, S), which is returned. The frames are ``frame`` = (height, width) large; cell i spans
    the rows from ``i * height // G`` on."""
    lines = []
    for side, start, length in zip(frame, box[:2], box[2:], strict=True):
        pixel_S = (start + (np.arange(out_TSS.shape[-1]) + 0.5) * length / out_TSS.shape[-1]).astype(int)
        ends = np.arange(1, cells_TGG.shape[-1]) * side // cells_TGG.shape[-1]
        lines.append(np.searchsorted(ends, pixel_S, side="right"))
    out_TSS[:] = cells_TGG[:, lines[0][:, None], lines[1]]
    return out_TSS


def train_clips(
    record: Record, clip: ClipConfig, clips: int, seed: int, epoch: int, pictures: dict[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """``clips`` random clips of a video, each at its own start; written into ``pictures`` (:func:`train_shapes`) where given.

    Returns:
        rgb uint8 (N, T, S, S, 3); cue uint8 (N, T, S, S), of a cue of vectors levels (N, T, 2, S, S) with scale
        float32 (N, T, 2), pixels of the crop a level, of energy the cells of the crop, float32 (N, T, G, G);
        frames int64 (N, T), the stored frame numbers; still int64 (N,), the static view's position among the T;
        colours float32 (N, 2, COLOURS) for v and s.
    """
    if pictures is None:
        pictures = {name: np.empty(shape, np.uint8) for name, shape in train_shapes(clip, clips).items()}
    out = pictures | {
        "frames": np.empty((clips, clip.frames), np.int64),
        "still": np.empty(clips, np.int64),
        "colours": np.empty((clips, 2, COLOURS), np.float32),
    }
    if clip.cue == "energy":
        out["cue"] = np.empty((clips, clip.frames, GRID, GRID), np.float32)
    elif clip.cue and CUES[clip.cue].vectors:
        out["scale"] = np.empty((clips, clip.frames, 2), np.float32)
    clip, total, cuts = clip.of(record.meta.fps), len(record), () if clip.cross_cuts else record.meta.cuts
    energy_N = record.array("energy")[cue_entries(np.arange(total), total, cuts)] if clip.sample_motion else None
    for n in range(clips):
        rng = generator(seed, epoch, record.key, n)
        start = random_start(total, clip, rng, energy_N, cuts)
        shot = max((cut for cut in cuts if cut <= start), default=0)  # where it begins
        start = max(start - start % record.rgb.grain(clip.stride), shot)
        out["frames"][n] = indices = frame_indices(start, total, clip)
        box = random_resized_crop(*record.size, clip.min_scale, rng)
        flip = bool(rng.random() < clip.flip)
        crop_resize(record.frames(indices), box, flip, out["rgb"][n])
        if clip.cue:
            scale_T2 = crop_cue(record, clip, indices, cuts, box, flip, out["cue"][n])
            if scale_T2 is not None:
                out["scale"][n] = scale_T2
        out["still"][n] = rng.integers(clip.frames)
        out["colours"][n] = draw_colours(rng), draw_colours(rng)
    return out | identity(record)


def eval_clips(
    record: Record,
    clip: ClipConfig,
    clips: int,
    crops: int = 1,
    names: Collection[str] = ("rgb",),
    seed: int = 0,
    pictures: dict[str, np.ndarray] | None = None,
    starts: Sequence[int] | None = None,
) -> dict[str, np.ndarray]:
    """``clips`` uniform clips of a video, or those that start at ``starts``, no flip, each cut ``crops`` times, all of a clip
    side by side: N = clips * crops.

    Returns, by ``names``, written into ``pictures`` (:func:`eval_shapes`) where given:
        rgb: uint8 (N, T, S, S, 3).
        moving: uint8 (N, T, S, S), 1 where something moves (:func:`moving_cells`).
        ground: uint8 (N, S, S, 3), the :func:`background`; with rgb and moving.
        stripes: uint8 (N, S, S, 3), :func:`striped`, drawn from (seed, key, number of the clip).
        noise: uint8 (N, T, S, S, 3), :func:`moved_noise` by the stored flow, drawn from (seed, key, number of the clip).
    And seconds: float64 (N, 2), when each clip begins and ends in its source.
    Raises:
        FormatError: the sample lacks the cue "diff" of moving, or "flow" of noise.
    """
    clip, total, cuts = clip.of(record.meta.fps), len(record), () if clip.cross_cuts else record.meta.cuts
    starts = starts or uniform_starts(total, clip, clips, cuts)
    indices = np.concatenate([frame_indices(start, total, clip) for start in starts])
    frames = record.frames(indices)  # a frame in two clips is decoded once
    if pictures is None:
        pictures = {name: np.empty(shape, np.uint8) for name, shape in eval_shapes(clip, clips, crops, names).items()}
    boxes = eval_crops(*record.size, crops)
    for n, start in enumerate(starts):
        part, rows = slice(n * clip.frames, (n + 1) * clip.frames), range(n * crops, (n + 1) * crops)
        for row, box in zip(rows, boxes, strict=True):
            crop_resize(frames[part], box, False, pictures["rgb"][row])
        if "moving" in names:
            cells_T1hw = moving_cells(record, indices[part], clip.step, cuts)[:, None] * np.uint8(255)
            for row, box in zip(rows, boxes, strict=True):
                crop_small(cells_T1hw, record.size, box, False, pictures["moving"][row][:, None])
                pictures["moving"][row] //= 128
        if "ground" in names:
            for row in rows:
                pictures["ground"][row] = background(pictures["rgb"][row], pictures["moving"][row])
        if "stripes" in names:
            for row in rows:
                pictures["stripes"][row] = striped(clip.size, generator("stripes", seed, record.key, row))
        if "noise" in names:
            every = cue_entries((start + np.arange(clip.span)) % total, total, cuts)  # of its frames and those between them
            levels, levels_T2SS = record.pictures("flow", every), np.empty((clip.span, 2, clip.size, clip.size), np.uint8)
            scale_T = np.nan_to_num(record.array("flow")[every], posinf=0, neginf=0)
            for row, box in zip(rows, boxes, strict=True):
                zoom_2 = crop_flow(levels, record.size, box, False, levels_T2SS)
                flow_T2SS = (levels_T2SS.astype(np.float32) - STILL) * (scale_T[:, None] * zoom_2)[..., None, None]
                pictures["noise"][row] = moved_noise(flow_T2SS, generator("noise", seed, record.key, row))[clip.offsets]
    begin_n = np.repeat(starts, crops)
    seconds = record.meta.seconds(np.stack([begin_n, np.minimum(begin_n + clip.span, total)], 1))
    return pictures | {"seconds": seconds} | identity(record)


def identity(record: Record) -> dict[str, np.ndarray]:
    """The video's 63-bit id, int64 (): what the queues mask by."""
    return {"video": np.array(video_id(record.meta.video), np.int64)}
