"""What a training step needs of a GPU's memory: ``python benchmarks/memory.py [--arch r2plus1d_18] [--batch 64] [--size 112]``

Counted, so no GPU is needed: a whole step is taken on torch's meta device, where tensors have sizes and no contents, and the
bytes of every tensor are followed. A GPU holds more: its context, the convolutions' workspaces, the allocator's slack.
"""

from __future__ import annotations

import argparse
import contextlib
import weakref
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dclr.method.backbones import ARCHITECTURES, build
from dclr.method.model import DCLR

CARD = 24e9  # bytes


class Alive(TorchDispatchMode):
    """Counts the bytes of the storages that operations make and nobody has let go of, and keeps the greatest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.greatest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self._known:
                self._known.add(storage._cdata)
                self.bytes += storage.nbytes()
                self.greatest = max(self.greatest, self.bytes)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, which: int, size: int) -> None:
        self._known.discard(which)
        self.bytes -= size


def peak(arch: str, clips: int, checkpointed: bool, shape: tuple[int, ...], distinct: bool = True) -> int:
    """Bytes of tensors at the fullest moment of a step of ``clips`` clips of ``shape`` (3, T, H, W), its input included;
    without ``distinct``, where all equal frames of the static view are computed."""
    none = {  # of these meta has none
        "autocast": lambda *_, **__: contextlib.nullcontext(),
        "is_autocast_enabled": lambda *_: True,
        "batch_norm_update_stats": lambda x, mean, *_: (torch.empty_like(mean), torch.empty_like(mean)),
    }
    with torch.device("meta"), mock.patch.multiple("torch", **none), Alive() as alive:
        model = DCLR(build(arch), 2048).train()
        for encoder in (model.f_q, model.f_k):
            encoder.backbone.bfloat16()  # so that its activations are, as under autocast
        model.f_q.checkpointed = checkpointed
        model.f_q.distinct = model.f_k.distinct = distinct
        momentum = [torch.empty_like(p) for p in model.f_q.parameters()]  # the optimiser works in place
        views = [{name: torch.empty(clips, *shape, dtype=torch.bfloat16) for name in "vd"} for _ in "qk"]
        for its in views:  # the static view is one frame, seen T times
            its["s"] = torch.empty(clips, 3, 1, *shape[2:], dtype=torch.bfloat16).expand(-1, -1, shape[1], -1, -1)
        alive.greatest = 0  # what making the network took does not count
        output = model(*views, torch.arange(clips))
        output.total.backward()
        model.enqueue([output])
    del momentum
    weights = sum(p.numel() for p in model.f_q.backbone.parameters())
    return alive.greatest + weights * 3 * 2 + weights * 4  # in truth gradients, momentum, f_k and the weights are float32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="r2plus1d_18", choices=list(ARCHITECTURES))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--frames", type=int, default=16)
    args = parser.parse_args()
    shape = (3, args.frames, args.size, args.size)
    print(f"{args.arch}, batch {args.batch}, {args.frames}x{args.size}x{args.size}, bf16\n")
    print("| --checkpoint-gradients | --accumulate | clips a part | GB counted | fits 24 GB | with all frames of s |")
    print("|---" * 6 + "|")
    for checkpointed in (False, True):
        for parts in (n for n in (1, 2, 4, 8) if args.batch % n == 0):
            found = peak(args.arch, args.batch // parts, checkpointed, shape)
            every = peak(args.arch, args.batch // parts, checkpointed, shape, distinct=False)
            row = ("yes" if checkpointed else "no", parts, args.batch // parts, f"{found / 1e9:.1f}")
            print(f"| {' | '.join(map(str, row))} | {'yes' if found < CARD else 'no'} | {every / 1e9:.1f} |", flush=True)


if __name__ == "__main__":
    main()
