"""A picture of a shard set: frames above their motion cues, read back from the tars as a trainer would."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from dclr.bars import bar
from dclr.cues import CUES
from dclr.data.manifest import ShardSet
from dclr.errors import InputError, make_folder
from dclr.record import Record
from dclr.storage import Folder

FRAMES_SHOWN = 8  # frames of one video
FLOW_FULL = 6  # pixels a frame that are drawn in full colour
ENERGY_FULL = 40  # grey levels that are drawn white
CURVE = 40  # height of the energy curve in pixels


def contact_sheet(folder: Folder, out: Path, videos: int) -> Path:
    """Write a PNG with ``videos`` evenly spaced samples: frames, and below them difference, flow, energy grid and the energy
    curve of the whole sample, as far as the set has them. Returns ``out``."""
    shards = ShardSet(folder)
    chosen = np.linspace(0, len(shards) - 1, min(videos, len(shards))).astype(int)
    rows = [_row(shards.read(int(sample))) for sample in bar(chosen, "drawing", unit="video", leave=False)]
    width = max(row.shape[1] for row in rows)
    sheet = np.concatenate([np.pad(r, ((0, 4), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows])
    make_folder(out.parent)
    try:
        written = cv2.imwrite(str(out), sheet[..., ::-1])
    except cv2.error:  # no such format
        written = False
    if not written:
        raise InputError(f"--out {out}: cannot be written; expected the name of a picture, such as sheet.png")
    return out


def _row(record: Record) -> np.ndarray:
    at = np.linspace(0, len(record) - 1, FRAMES_SHOWN).astype(int)
    height, width = record.size
    strips = [np.concatenate(list(record.frames(at)), axis=1)]
    for cue in record.streams:
        if CUES[cue].vectors:
            strips.append(np.concatenate([flow_colours(flow, height, width) for flow in record.vectors(cue, at)], axis=1))
        else:
            pictures = [cv2.resize(p, (width, height), interpolation=cv2.INTER_NEAREST) for p in record.pictures(cue, at)]
            strips.append(_grey(np.concatenate(pictures, axis=1)))
    if "energy" in record.meta.cues:
        grids = np.clip(record.array("grid")[at].astype(np.float32) * (255 / ENERGY_FULL), 0, 255).astype(np.uint8)
        size = (width, height)
        strips.append(_grey(np.concatenate([cv2.resize(g, size, interpolation=cv2.INTER_NEAREST) for g in grids], axis=1)))
        strips.append(energy_curve(record.array("energy"), at, FRAMES_SHOWN * width))
    title = np.full((18, FRAMES_SHOWN * width, 3), 255, np.uint8)
    text = f"{record.key}  {record.meta.class_name or ''}  {len(record)} frames, {record.meta.fps:g} fps"
    cv2.putText(title, text, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([title, *strips])


def _grey(plane_HW: np.ndarray) -> np.ndarray:
    return np.repeat(plane_HW[..., None], 3, axis=2)


def flow_colours(flow_hw2: np.ndarray, height: int, width: int) -> np.ndarray:
    """Flow as colour: hue is direction (red to the right), brightness speed. uint8 (height, width, 3) RGB."""
    speed, angle = cv2.cartToPolar(flow_hw2[..., 0], flow_hw2[..., 1], angleInDegrees=True)
    value = np.clip(speed * (255 / FLOW_FULL), 0, 255)
    hsv = np.stack([angle / 2, np.full_like(value, 255), value], axis=-1).astype(np.uint8)
    return cv2.resize(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), (width, height), interpolation=cv2.INTER_NEAREST)


def energy_curve(energy_N: np.ndarray, shown: np.ndarray, width: int) -> np.ndarray:
    """The energy of every frame over time, with a tick where a frame is shown: uint8 (CURVE, width, 3)."""
    picture = np.full((CURVE, width, 3), 255, np.uint8)
    heights = np.interp(np.arange(width), np.linspace(0, width - 1, len(energy_N)), energy_N)
    tops = CURVE - 1 - np.clip(heights * ((CURVE - 1) / ENERGY_FULL), 0, CURVE - 1).astype(int)
    for column, top in enumerate(tops):
        picture[top:, column] = (90, 90, 90)
    for column in (shown * (width - 1) // max(len(energy_N) - 1, 1)).tolist():
        picture[:, column] = (220, 60, 30)
    return picture
