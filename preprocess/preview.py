"""A picture of a shard set: frames above their motion cues, read back from the tars as a trainer would."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from dclr.data.manifest import ShardSet
from dclr.errors import InputError, make_folder
from dclr.record import unpack

COLUMNS = 8  # frames of one video


def contact_sheet(folder: Path, out: Path, videos: int) -> Path:
    """Write a PNG with ``videos`` evenly spaced samples: frames, and their signed difference below. Returns ``out``."""
    shards = ShardSet(folder)
    rows = []
    for sample in np.linspace(0, len(shards) - 1, min(videos, len(shards))).astype(int):
        with (folder / shards.manifest.shards[shards.shard_N[sample]].name).open("rb") as tar:
            tar.seek(shards.offset_N[sample])
            record = unpack(tar.read(shards.size_N[sample]))
        at = np.linspace(0, len(record) - 1, COLUMNS).astype(int)
        frames = np.concatenate(list(record.frames(at)), axis=1)
        moved = np.concatenate(list(record.differences(at)), axis=1)
        title = np.full((18, frames.shape[1], 3), 255, np.uint8)
        text = f"{record.key}  {record.meta['class'] or ''}  {len(record)} frames, {record.meta['fps']:g} fps"
        cv2.putText(title, text, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
        rows.append(np.concatenate([title, frames, np.repeat(moved[..., None], 3, axis=2)]))
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
