"""Loader processes: they are forked from a server that has imported what they need, and they obey the trainer alone.

A fresh Python takes a second to import torch, OpenCV and webdataset. To fork the trainer would be quick, but does not mix with
CUDA, OpenCV or threads. So one process without any thread or GPU, the server of :mod:`multiprocessing.forkserver`, imports them
once, and each worker is a fork of it. Without torch, so that :func:`worker_context` may come before torch is imported.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from multiprocessing import (
    active_children,
    context,
    forkserver,
    parent_process,
    popen_forkserver,
    process,
    resource_tracker,
)
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dclr.data.pages import Pages

FOR_THE_TRAINER = {signal.SIGTERM, signal.SIGINT}  # it ends a run by them, and needs its workers until then
GLANCE = 1.0  # seconds between a worker's looks whether its trainer is gone

_starting = threading.Lock()  # one process at a time


def worker_context() -> context.BaseContext:
    """What starts loader processes; its server begins to import, where it has not yet, and this process goes on meanwhile.

    A loader calls it. A program that calls it before it imports torch has its first batch earlier. Where the server has no
    place for its socket (no folder for temporary files, or one with a long path), the processes are spawned."""
    try:
        _server(os.getpid())
    except OSError:
        return _SpawnContext()
    return _Context()


@cache
def _server(process: int) -> forkserver.ForkServer:
    """The fork server of this ``process``; a fork of it has no use for its parent's.

    It is not the one that a program's own processes come from: it hands down blocked signals, and a pool cannot end such."""
    server = forkserver.ForkServer()
    server.set_forkserver_preload(["dclr.data.loader"])
    resource_tracker.ensure_running()  # its start would unblock the signals
    path = os.pathsep.join(place or os.getcwd() for place in sys.path)
    # the same code as here, also where another copy lies in the current folder; and no pool of BLAS, which forks would lose
    with signals_blocked(), _variables(PYTHONPATH=path, PYTHONSAFEPATH="1", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1"):
        server.ensure_running()
    return server


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Processes that are started inside have these signals blocked from their first moment, and never die of them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_TRAINER)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _variables(**values: str) -> Iterator[None]:
    """Processes that are started inside have these environment variables."""
    before = {name: os.environ[name] for name in values if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]
        os.environ.update(before)


class _Process(context.ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> popen_forkserver.Popen:
        with _starting:
            its = forkserver.connect_to_new_process
            forkserver.connect_to_new_process = _server(os.getpid()).connect_to_new_process
            try:
                return popen_forkserver.Popen(process_obj)
            finally:
                forkserver.connect_to_new_process = its


class _Context(context.ForkServerContext):
    Process = _Process


class _Spawned(context.SpawnProcess):
    pass


class _SpawnContext(context.SpawnContext):
    Process = _Spawned


@atexit.register  # before multiprocessing's own, which waits for them
def stop_workers() -> None:
    """End the loader processes of this one at once, also those that are stopped or wait for a store. What does not end, because
    it waits for a disk, is left: nothing waits for it."""
    ours = [process for process in active_children() if isinstance(process, _Process | _Spawned)]
    for one in ours:
        one.kill()
    for one in ours:
        one.join(GLANCE)
        if one.is_alive():
            process._children.discard(one)  # type: ignore[attr-defined]


def start_worker(environment: Mapping[str, str], pages: Pages | None, worker: int) -> None:
    """What a worker does first: it takes the trainer's ``environment``, which may be another than when the server started, one
    core, a place in ``pages`` to say where it is, and no signals but the trainer's.

    Ctrl-C, torchrun and Slurm signal the trainer's whole process group. A worker that died of that would end the trainer before
    its checkpoint is written. So a worker ends by a signal of the trainer itself, which is how multiprocessing ends its
    children, or when the trainer is gone. torch's own loop would look for the server, which stays as long as its workers."""
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=_heed, daemon=True).start()
    if pages:
        from dclr.data.watch import report_to

        report_to(pages.numbers()[worker])
    one_core()


def _heed() -> None:
    trainer = parent_process()
    while trainer and trainer.is_alive():
        received = signal.sigtimedwait(FOR_THE_TRAINER, GLANCE)
        if received and received.si_pid == trainer.pid:
            break
    os._exit(0)


def one_core(worker: int = 0) -> None:
    """Make this process, ``worker`` or not, one core: the pools of OpenCV and torch would fight those of other workers."""
    import cv2
    import torch

    from dclr.hardware import keep_freed_memory

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    keep_freed_memory()
