"""One process or many, the same code: rank and world size, and the few collectives the method needs.

Without torchrun everything here is the identity. Collectives are called by every rank the same number of times, always.
"""

from __future__ import annotations

import os
import socket
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

from dclr.errors import InputError
from dclr.text import plain
from dclr.threads import state_of

CALLED_OFF = "called-off"
MEETING = timedelta(minutes=10)  # the longest that ranks wait for each other


def check_environment() -> None:
    """Raises InputError where the variables by which torchrun tells its processes apart are there in part, or cannot be."""
    if not {"RANK", "WORLD_SIZE"} & set(os.environ):
        return
    count, way_out = os.environ.get("WORLD_SIZE", ""), "torchrun sets all of them; for one process unset RANK and WORLD_SIZE"
    most = {"WORLD_SIZE": 2**20, "RANK": int(count) - 1 if count.isdecimal() else 0, "MASTER_PORT": 65535, "LOCAL_RANK": 2**20}
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        value = os.environ.get(name, "0" if name == "LOCAL_RANK" else "")
        if not value:
            there = next(one for one in ("WORLD_SIZE", "RANK") if os.environ.get(one))
            raise InputError(f"the environment has {there}={os.environ[there]} and no {name}: {way_out}")
        if name in most and not (value.isdecimal() and (name == "WORLD_SIZE") <= int(value) <= most[name]):
            expected = f"{int(name == 'WORLD_SIZE')} to {most[name]}"
            raise InputError(f"the environment has {name}={plain(value)}, expected a number from {expected}: {way_out}")


def setup(device: torch.device) -> None:
    """Join torchrun's process group (gloo on the CPU, nccl on GPUs); nothing to do where there is none. Raises InputError where
    the processes do not meet."""
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        global met, _store
        if device.type == "cuda":
            torch.cuda.set_device(device)
        try:
            store, number, count = next(dist.rendezvous("env://", timeout=MEETING))
            _store = _of_this_start(store, number, count)
        except (dist.DistError, OSError) as error:
            at, why = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}", str(error).strip().splitlines()[0]
            raise InputError(
                f"the {os.environ['WORLD_SIZE']} processes of this run did not meet at {at}, MASTER_ADDR and MASTER_PORT "
                f"({plain(why, 200)}): start all of them, with an address that each reaches and a port that is free"
            ) from None
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", store=_store, rank=number, world_size=count, timeout=MEETING
        )
        _store.set(f"process/{number}", f"{os.getpid()} {socket.gethostname()}")
        _peers.extend(_store.get(f"process/{other}").decode() for other in range(count))
        met = True


met = False  # whether this process ever was one of many, for dclr.errors: it asks when the group is left already
_store: dist.Store | None = None
_peers: list[str] = []  # process and host of each rank
_asked = 0.0


def call_off() -> None:
    """Say to the other ranks that this one cannot go on; :func:`unanimous`, which each must call, says why."""
    if _store is not None:
        _store.set(CALLED_OFF, "")


def called_off() -> bool:
    """Whether another rank cannot go on. It is asked once a second at most."""
    global _asked
    if _store is None or time.monotonic() - _asked < 1:
        return False
    _asked = time.monotonic()
    return _store.check([CALLED_OFF])


def lost(error: BaseException) -> str:
    """Which ranks are gone, where ``error`` is that of a collective; else empty. Those of other machines cannot be named."""
    if not met or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
        return ""
    host, gone = socket.gethostname(), list[str]()
    for number, (process, _, where) in enumerate(peer.partition(" ") for peer in _peers):
        if where == host and state_of(int(process)) in ("", "Z", "X"):
            gone.append(f"rank {number} (process {process} on {host})")
    return f"{', '.join(gone) or 'another rank'} is gone, so this rank ends too"


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
