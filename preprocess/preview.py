"""A picture of a shard set: frames above their motion cues, read back from the tars as a trainer would."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from dclr.bars import bar
from dclr.cues import CUES
from dclr.data.manifest import ShardSet
from dclr.errors import InputError, make_folder
from dclr.record import Record
from dclr.storage import Folder
from dclr.text import plain

FRAMES_SHOWN = 8  # frames of one video
LABEL = 96  # width of the labels to the left of the rows
GAP = 3  # pixels between frames, and between rows
LINE = 18  # height of a line of text
CURVE = 40  # height of the energy curve
WHEEL = 31  # side of the colour wheel
LONGEST_LINE = 200  # letters of a line of text
WHITE, GREY, BLACK, SHOWN, CUT = (255, 255, 255), (90, 90, 90), (0, 0, 0), (220, 60, 30), (30, 90, 220)
# Of Middlebury's colour wheel (Baker et al., IJCV 2011): its corners, and the colours from each to the next
CORNERS = ((255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255))
STEPS = (15, 6, 4, 11, 13, 6)


def contact_sheet(folder: Folder, out: Path, videos: int) -> Path:
    """Write a PNG with ``videos`` evenly spaced samples: frames with their numbers, and below them difference, flow, energy
    grid and the energy curve of the whole sample, as far as the set has them. Flow, grid and curve are scaled to the sample;
    the number beside them is their full scale. Cuts are lines in the curve and between frames. Returns ``out``."""
    shards = ShardSet(folder)
    chosen = np.linspace(0, len(shards) - 1, min(videos, len(shards))).astype(int)
    rows = [_rows(shards.read(int(sample))) for sample in bar(chosen, "drawing", unit="video", leave=False)]
    width = max(row.shape[1] for row in rows)
    sheet = np.concatenate([np.pad(r, ((0, 4), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows])
    make_folder(out.parent, "--out")
    try:
        written = cv2.imwrite(str(out), sheet[..., ::-1])
    except cv2.error:  # no such format
        written = False
    if not written:
        raise InputError(f"--out {out}: cannot be written; expected the name of a picture, such as sheet.png")
    return out


def _rows(record: Record) -> np.ndarray:
    """One sample: uint8 (height, width, 3)."""
    at = np.linspace(0, len(record) - 1, FRAMES_SHOWN).astype(int)
    size, cuts = record.size, record.meta.cuts
    strips = [_labelled(["frames"], _strip(record.frames(at), size, at, cuts))]
    for cue in record.streams:
        if CUES[cue].vectors:
            flows = record.vectors(cue, at)
            most = max(float(np.linalg.norm(flows, axis=-1).max()), 1e-6)
            colours = [flow_colours(flow / most) for flow in flows]
            strips.append(_labelled([cue, f"rim: {most:.2g} px"], _strip(colours, size, at, cuts), wheel(WHEEL)))
        else:
            strips.append(_labelled([cue], _strip(map(_grey, record.pictures(cue, at)), size, at, cuts)))
    if "energy" in record.meta.cues:
        grids = record.array("grid")[at].astype(np.float32)
        most = max(float(grids.max()), 1e-6)
        pictures = [_grey((grid * (255 / most)).astype(np.uint8)) for grid in np.clip(np.nan_to_num(grids), 0, most)]
        strips.append(_labelled(["energy grid", f"white: {most:.3g}"], _strip(pictures, size, at, cuts)))
        energy_N = np.nan_to_num(record.array("energy"))
        curve = energy_curve(energy_N, at, cuts, strips[0].shape[1] - LABEL)
        strips.append(_labelled(["energy", f"0 to {energy_N.max():.3g}"], curve))
    cut = f"  {len(cuts)} cuts (blue)" if cuts else ""
    title = f"{record.key}  {plain(record.meta.class_name or '')}  {len(record)} frames, {record.meta.fps:g} fps{cut}"
    width, numbers = strips[0].shape[1], np.full((LINE, strips[0].shape[1], 3), 255, np.uint8)
    for column, number in enumerate(at.tolist()):
        _write(numbers, str(number), LABEL + column * (size[1] + GAP), 13)
    return np.concatenate([_write(np.full((LINE, width, 3), 255, np.uint8), title, 4, 13), numbers, *strips])


def _write(picture_HW3: np.ndarray, text: str, x: int, y: int) -> np.ndarray:
    return cv2.putText(picture_HW3, plain(text, LONGEST_LINE), (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.4, BLACK, 1, cv2.LINE_AA)


def _labelled(lines: Sequence[str], strip_HW3: np.ndarray, corner: np.ndarray | None = None) -> np.ndarray:
    """A strip to the right of its label, whose ``corner`` picture is at the lower right, and a gap below."""
    label = np.full((len(strip_HW3), LABEL, 3), 255, np.uint8)
    for number, line in enumerate(lines):
        _write(label, line, 4, 12 + 14 * number)
    if corner is not None:
        side = min(len(corner), len(label))
        label[-side:, -side - GAP : -GAP] = corner[:side, :side]
    return np.pad(np.concatenate([label, strip_HW3], axis=1), ((0, GAP), (0, 0), (0, 0)), constant_values=255)


def _strip(pictures: Iterable[np.ndarray], size: tuple[int, int], shown: np.ndarray, cuts: Collection[int]) -> np.ndarray:
    """Pictures uint8 (h, w, 3) at the frames' size, side by side with gaps between them; a gap has the colour of a cut where
    there is one between its frames."""
    parts = list[np.ndarray]()
    for number, picture in enumerate(pictures):
        if number:
            there = any(shown[number - 1] < cut <= shown[number] for cut in cuts)
            parts.append(np.full((size[0], GAP, 3), CUT if there else WHITE, np.uint8))
        parts.append(cv2.resize(picture, size[::-1], interpolation=cv2.INTER_NEAREST))
    return np.concatenate(parts, axis=1)


def _grey(plane_HW: np.ndarray) -> np.ndarray:
    return np.repeat(plane_HW[..., None], 3, axis=2)


@lru_cache(maxsize=1)
def hues() -> np.ndarray:
    """The colours of Middlebury's wheel from red on, float32 (55, 3), 0..1."""
    nexts = CORNERS[1:] + CORNERS[:1]
    parts = [np.linspace(a, b, n, endpoint=False) for a, b, n in zip(CORNERS, nexts, STEPS, strict=True)]
    return (np.floor(np.concatenate(parts)) / 255).astype(np.float32)


def flow_colours(flow_hw2: np.ndarray) -> np.ndarray:
    """Flow of speed 1 at most as Middlebury's colours: hue is direction (red to the right, yellow down, blue left and purple
    up), white is still. uint8 (h, w, 3) RGB."""
    speed = np.minimum(np.linalg.norm(flow_hw2, axis=-1), 1)[..., None]
    place = (np.arctan2(-flow_hw2[..., 1], -flow_hw2[..., 0]) / np.pi + 1) / 2 * (len(hues()) - 1)
    first, part = place.astype(int), (place % 1)[..., None]
    hue = (1 - part) * hues()[first] + part * hues()[(first + 1) % len(hues())]
    return np.rint(255 * (1 - speed * (1 - hue))).astype(np.uint8)


def wheel(side: int) -> np.ndarray:
    """What colour each flow has: its own place about the centre. uint8 (side, side, 3) RGB, white outside."""
    at = np.linspace(-1, 1, side, dtype=np.float32)
    flow = np.stack(np.meshgrid(at, at), axis=-1)
    colours = flow_colours(flow)
    colours[np.linalg.norm(flow, axis=-1) > 1] = 255
    return colours


def at_most(energy_N: np.ndarray, points: int) -> np.ndarray:
    """The energies of all frames, or of more than ``points`` the most in each of so many equal parts."""
    return energy_N if len(energy_N) <= points else np.maximum.reduceat(energy_N, np.arange(points) * len(energy_N) // points)


def energy_curve(energy_N: np.ndarray, shown: np.ndarray, cuts: Collection[int], width: int) -> np.ndarray:
    """The energy of every frame over time, as high as the picture at its most, with a line where a frame is shown and where a
    cut is: uint8 (CURVE, width, 3)."""
    picture = np.full((CURVE, width, 3), 255, np.uint8)
    heights = at_most(energy_N, width)
    if len(heights) < width:
        heights = np.interp(np.arange(width), np.linspace(0, width - 1, len(heights)), heights)
    tops = CURVE - np.rint(np.clip(heights / max(energy_N.max(), 1e-6), 0, 1) * CURVE).astype(int)
    picture[np.arange(CURVE)[:, None] >= tops] = GREY
    for colour, frames in ((SHOWN, shown.tolist()), (CUT, cuts)):
        for frame in frames:
            picture[:, frame * (width - 1) // max(len(energy_N) - 1, 1)] = colour
    return picture
