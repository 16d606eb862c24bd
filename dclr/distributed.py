"""One process or many, the same code: rank and world size, and the few collectives the method needs.

Without torchrun everything here is the identity. Collectives are called by every rank the same number of times, always.
"""

from __future__ import annotations

import os
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

MEETING = timedelta(minutes=10)  # the longest that ranks wait for each other


def setup(device: torch.device) -> None:
    """Join torchrun's process group (gloo on the CPU, nccl on GPUs); nothing to do where there is none."""
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        global met
        if device.type == "cuda":
            torch.cuda.set_device(device)
        store, number, count = next(dist.rendezvous("env://"))
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", store=_of_this_start(store, number, count), rank=number,
            world_size=count, timeout=MEETING,
        )  # fmt: skip
        met = True


met = False  # whether this process ever was one of many, for dclr.errors: it asks when the group is left already


def _of_this_start(store: dist.Store, number: int, count: int) -> dist.Store:
    """``store`` behind a prefix that only the processes of this start know.

    After a restart torchrun's store still holds the addresses of the processes before. A rank that reads one of those fails to
    connect (pytorch issue 135712; torch 2.13 too). The number of restarts is no prefix, because it differs between nodes. So
    rank 0 draws the prefix. Each rank draws a request; rank 0 answers requests, of processes before too, until every rank of
    this start has its answer.
    """
    mine, until = uuid4().hex, time.monotonic() + MEETING.total_seconds()
    if number:
        store.set(f"request/{number}", mine)
        name = store.get(mine).decode()
        store.set(f"{name}/{number}", "")
        return dist.PrefixStore(name, store)
    for other in range(1, count):
        while not store.check([f"{mine}/{other}"]):
            if time.monotonic() > until:
                raise TimeoutError(f"rank {other} of {count} did not start within {MEETING}")
            if store.check([f"request/{other}"]):
                store.set(store.get(f"request/{other}").decode(), mine)
            time.sleep(0.01)
    return dist.PrefixStore(mine, store)


def _control() -> dist.ProcessGroup | None:
    """A group whose collectives run on the CPU, so that they never wait for a GPU."""
    global _gloo
    if dist.get_backend() == "nccl" and _gloo is None:
        _gloo = dist.new_group(backend="gloo")
    return _gloo


_gloo: dist.ProcessGroup | None = None


def agree(wish: int, patiently: bool = False) -> int:
    """The largest ``wish`` of any rank, on every rank; every rank calls it at the same place. With ``patiently`` they wait for
    each other as in :func:`wait`."""
    if world() == 1:
        return wish
    wishes = torch.tensor([wish])
    dist.all_reduce(wishes, dist.ReduceOp.MAX, group=_patiently() if patiently else _control())
    return int(wishes)


def unanimous(ended: BaseException | None) -> None:
    """Wait until every rank calls this, for a day at most: one of them may have waited for a store. Where ranks give an
    exception, every rank raises that of the first of them, marked as ``shared``."""
    if agree(ended is not None, patiently=True):
        first = next(error for error in joined_objects(ended) if error is not None)
        first.shared = world() > 1
        raise first


def from_first(value: Any) -> Any:
    """Rank 0's ``value`` (tensors on the CPU, plain Python) on every rank."""
    if world() == 1:
        return value
    box = [value if rank() == 0 else None]
    dist.broadcast_object_list(box, src=0, group=_control())
    return box[0]


def wait() -> None:
    """Wait until every rank calls this, for a day at most. Work that rank 0 does alone may take longer than other collectives
    wait. The first call makes the group for it, so call it once before that work, too."""
    if world() > 1:
        dist.barrier(group=_patiently())


def _patiently() -> dist.ProcessGroup:
    """The group of those that wait for long."""
    global _patient
    _patient = _patient or dist.new_group(backend="gloo", timeout=timedelta(days=1))
    return _patient


_patient: dist.ProcessGroup | None = None


def shutdown() -> None:
    """Leave the process group; nothing to do where there is none."""
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(
            0.2
        )  # gloo's threads may still hold the last tensors: torch 2.13 aborts if they let go in an ending interpreter


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def parallel(module: nn.Module) -> nn.Module:
    """``module`` with its gradients averaged over the ranks. Buffers stay as they are: the queue and the joined BatchNorm are
    the same on every rank by construction."""
    if world() == 1:
        return module
    with warnings.catch_warnings():  # torch 2.13 wants another name for broadcast_buffers, which 2.11 does not know
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(module, broadcast_buffers=False)


def unsynchronised(module: nn.Module, yes: bool) -> AbstractContextManager[None]:
    """Inside, gradients are summed on this rank alone: more parts of the batch follow."""
    return module.no_sync() if yes and isinstance(module, DistributedDataParallel) else nullcontext()


class _Sum(torch.autograd.Function):
    """Sum over ranks; its gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def total(x: torch.Tensor) -> torch.Tensor:
    """Sum of every rank's ``x``, with gradient."""
    return x if world() == 1 else _Sum.apply(x)


def joined(x_B: torch.Tensor) -> torch.Tensor:
    """Every rank's rows, first of rank 0 to last of rank n - 1, without gradient: (B, ...) -> (n B, ...)."""
    if world() == 1:
        return x_B
    rows = [torch.empty_like(x_B) for _ in range(world())]
    dist.all_gather(rows, x_B.contiguous())
    return torch.cat(rows)


def joined_at_once(*rows_B: torch.Tensor) -> list[torch.Tensor]:
    """:func:`joined` of tensors of as many rows each, (B, ...), in one collective: they travel as bytes."""
    if world() == 1:
        return list(rows_B)
    own = [x.reshape(len(x), -1).contiguous().view(torch.uint8) for x in rows_B]
    every = joined(torch.cat(own, 1)).split([x.shape[1] for x in own], 1)
    return [x.contiguous().view(like.dtype).view(-1, *like.shape[1:]) for x, like in zip(every, rows_B, strict=True)]


def permuted(x_B: torch.Tensor, order_N: torch.Tensor | None) -> torch.Tensor:
    """This rank's share, (B, ...), of the joined rows in the order ``order_N``, without gradient; N = n B, and every rank gives
    the same order. Without an order the rows stay. Clips (B, C, T, H, W) stay channels last, and one frame seen T times stays
    one."""
    if order_N is None:
        return x_B
    if x_B.dim() == 5 and x_B.shape[2] > 1 and x_B.stride(2) == 0:
        return permuted(x_B[:, :, :1], order_N).expand_as(x_B)
    mine = joined(x_B)[order_N[rank() * len(x_B) : (rank() + 1) * len(x_B)]]
    return mine.contiguous(memory_format=torch.channels_last_3d) if mine.dim() == 5 else mine


def joined_objects(value: Any) -> list[Any]:
    """Every rank's ``value`` (plain Python), in rank order."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values
