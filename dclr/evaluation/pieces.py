"""The results of single videos, written while an evaluation runs, so that a killed one goes on after them."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from dclr.files import whole

SECONDS = 30  # between files


class Pieces:
    """Results of samples in ``folder``, several in each file; ``folder`` None keeps nothing.

    Each rank writes files of its own: a file is named by a sample that no other rank has. A file is whole or absent. A full
    disk costs the file, not the run."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self._pending: dict[int, np.ndarray] = {}
        self._since = time.monotonic()
        try:
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._told(error)
            self.folder = None

    def add(self, sample: int, result: np.ndarray) -> None:
        """Keep the result of a sample: on the disk within :data:`SECONDS`, while results come."""
        if self.folder is None:
            return
        self._pending[sample] = result
        if time.monotonic() - self._since >= SECONDS:
            self.keep()

    def keep(self) -> None:
        """Write what is not on the disk yet."""
        if self.folder is None or not self._pending:
            return
        sample = next(reversed(self._pending))
        numbers = np.array(list(self._pending), np.int64)
        try:
            with whole(self.folder / f"{sample:012d}.safetensors") as unfinished:
                unfinished.write_bytes(save({"sample": numbers, "result": np.stack(list(self._pending.values()))}))
        except OSError as error:
            self._told(error)
        self._pending, self._since = {}, time.monotonic()

    def _told(self, error: OSError) -> None:
        print(f"warning: what was found so far could not be kept in {self.folder} ({error.strerror})", file=sys.stderr)

    def read(self) -> dict[int, np.ndarray]:
        """The results on the disk. A file that cannot be read is passed over, and its videos are computed again."""
        found: dict[int, np.ndarray] = {}
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder else ():
            try:
                piece = load_file(path)
                found |= dict(zip(piece["sample"].tolist(), piece["result"], strict=True))
            except Exception:  # whatever a damaged file makes the reader raise
                path.unlink()
        return found

    @staticmethod
    def remove(folder: Path) -> None:
        """Delete the folder: the evaluation has its features."""
        shutil.rmtree(folder, ignore_errors=True)
