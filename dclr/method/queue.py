"""The negatives: rings of past keys, one an embedding, moving in step; each entry has its video's id and whether it is valid.

Legend: K entries, D dimensions, B keys a step, N queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from dclr.method.objective import RINGS


class Queue(nn.Module):
    """Rings of K keys under the names ``rings`` (R of them, by default the five). Buffers: ``keys_RKD`` float32 (at least),
    ``video_K`` int64, ``valid_K`` bool, ``cursor`` int64, the place of the next entry. Beside them a ring c of descriptors of a
    cue, where they have ``cue`` = E dimensions: ``cue_KE``."""

    keys_RKD: torch.Tensor
    cue_KE: torch.Tensor
    video_K: torch.Tensor
    valid_K: torch.Tensor
    cursor: torch.Tensor

    def __init__(self, length: int, rings: Sequence[str] = RINGS, dimensions: int = 128, cue: int = 0):
        super().__init__()
        self.rings = tuple(ring for ring in rings if ring != "c")
        self.register_buffer("keys_RKD", torch.zeros(len(self.rings), length, dimensions))
        if cue:
            self.register_buffer("cue_KE", torch.zeros(length, cue))
        self.register_buffer("video_K", torch.zeros(length, dtype=torch.int64))
        self.register_buffer("valid_K", torch.zeros(length, dtype=torch.bool))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.video_K)

    def __getitem__(self, ring: str) -> torch.Tensor:
        """The ring's keys, (K, D), of c (K, E), in slot order."""
        return self.cue_KE if ring == "c" else self.keys_RKD[self.rings.index(ring)]

    def allowed(self, video_N: torch.Tensor) -> torch.Tensor:
        """E_i: which entries query i may see, bool (N, K): valid ones of another video."""
        return self.valid_K & (self.video_K != video_N[:, None])

    @torch.no_grad()
    def enqueue(self, keys: Mapping[str, torch.Tensor], video_B: torch.Tensor) -> None:
        """Put B keys a ring (B, D), of c (B, E), over the oldest entries, wrapping anywhere; of more than K the last K stay."""
        length, batch = len(self), len(video_B)
        kept = min(batch, length)
        slots = (self.cursor + torch.arange(batch - kept, batch, device=video_B.device)) % length
        stacked = torch.stack([keys[ring][batch - kept :] for ring in self.rings])
        self.keys_RKD[:, slots] = stacked.to(self.keys_RKD.dtype)
        if "c" in keys:
            self.cue_KE[slots] = keys["c"][batch - kept :].to(self.cue_KE.dtype)
        self.video_K[slots] = video_B[batch - kept :]
        self.valid_K[slots] = True
        self.cursor.copy_((self.cursor + batch) % length)
