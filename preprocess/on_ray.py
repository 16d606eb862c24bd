"""Shards on a Ray cluster: small ones in bundles, each made on a node that has the packages and the videos.

What is sent to a node is bytes, and a function that needs Python alone, so that a node without the packages can say so. A node
on which a listed file is not there makes nothing of a bundle, which goes to another one. Where all nodes lack files, the bundle
is made where the fewest are absent, and these count as failed.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, NamedTuple

from dclr.errors import InputError
from preprocess.plan import Job

BUNDLE = 256e6  # estimated bytes of the shards that a task makes: one of usual size, or many small ones
PACKAGES = ("numpy", "cv2", "av", "simplejpeg")  # modules that decide bytes

Tell = Callable[[int, bool], None]


class Outcome(NamedTuple):
    """What a task says. Nothing is made where ``refused`` says why the node cannot, or files are ``absent``."""

    node: str
    host: str
    refused: str = ""
    absent: tuple[str, ...] = ()
    told: tuple[tuple[int, bool], ...] = ()  # of each video the frames, and whether it failed


def bundles(todo: Sequence[Job], cores: int) -> list[list[Job]]:
    """The shards in order, in tasks of about :data:`BUNDLE` bytes, or of an equal share for each core where that is less."""
    limit = min(BUNDLE, sum(job.estimate for job in todo) / cores)
    made, filled = list[list[Job]](), limit
    for job in todo:
        if filled >= limit:
            made.append([])
            filled = 0.0
        made[-1].append(job)
        filled += job.estimate
    return made


def on_ray(
    todo: Sequence[Job], absent: Callable[[Any], str | None], make: Callable[[Sequence[Job], Tell], None], tell: Tell
) -> None:
    """Make these shards on the Ray cluster that RAY_ADDRESS names, or on one of this machine. A bundle whose node is lost is
    made on another.

    Args:
        absent: of a task of a :class:`Job`, the file that is not there and should be. It is sent to the nodes, as ``make`` is.
        make: makes shards on one core, and tells of each video.

    Raises InputError where Ray is not installed, the cluster does not answer, or a node has other packages.
    """
    ray = _connected()
    from ray.exceptions import RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=1, max_retries=-1)(_task())
    versions = {name: importlib.import_module(name).__version__ for name in PACKAGES}
    running, warned, turn = dict[Any, tuple[bytes, dict[str, int]]](), set[str](), count()

    def start(work: bytes, tried: dict[str, int], node: str | None = None, anyway: bool = False) -> None:
        where = {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True)} if node else {}
        running[task.options(**where).remote(work, versions, os.getcwd(), anyway)] = work, tried

    for some in bundles(todo, max(1, int(ray.cluster_resources().get("CPU", 1)))):
        start(pickle.dumps((some, absent, make)), {})
    while running:
        (ready,), _ = ray.wait(list(running))
        work, tried = running.pop(ready)
        try:
            outcome = Outcome(*ray.get(ready))
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, (InputError, OSError)) else error) from None
        if outcome.refused:
            raise InputError(
                f"--engine ray: {outcome.host}: {outcome.refused}; install the same packages on every node "
                "(pip install 'dclr[ray]'), or take this one out (ray stop), and start the same command again"
            )
        for frames, failed in outcome.told:
            tell(frames, failed)
        if not outcome.absent:
            continue
        if outcome.node not in warned:
            warned.add(outcome.node)
            print(f"warning: {outcome.absent[0]}; other nodes are tried", file=sys.stderr)
        tried[outcome.node] = len(outcome.absent)
        alive = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        others = [node for node in alive if node not in tried]
        if others:
            node = others[next(turn) % len(others)]
            start(work, tried | {node: sys.maxsize}, node)  # it may be lost before it has tried
        else:
            start(work, tried, min(tried, key=tried.__getitem__), anyway=True)


def _connected() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError("--engine ray: Ray is not installed; pip install 'dclr[ray]'") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that begins here
    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:  # none answers, or one with another Python or Ray
        where, why = os.environ.get("RAY_ADDRESS", "a cluster of this machine"), " ".join(str(error).split())
        raise InputError(f"--engine ray: {where}: {why}; RAY_ADDRESS names the cluster's head as HOST:PORT") from None
    return ray


def _task() -> Callable[[bytes, dict[str, str], str, bool], tuple[Any, ...]]:
    """What a node runs. A function within a function is sent as it is; of a module it would be imported there, with all that
    the module needs."""

    def task(work: bytes, versions: dict[str, str], folder: str, anyway: bool) -> tuple[Any, ...]:
        import importlib
        import os
        import pickle
        import socket

        import ray

        here = ray.get_runtime_context().get_node_id(), socket.gethostname()
        try:
            for name, expected in versions.items():
                found = importlib.import_module(name).__version__
                if found != expected:
                    raise ImportError(f"{name} is {found}, where the command runs it is {expected}")
            todo, absent, make = pickle.loads(work)
        except ImportError as error:
            return *here, str(error)
        if os.path.isdir(folder):
            os.chdir(folder)  # a path may be relative to where the command runs
        gone = [] if anyway else [said for job in todo for one in job.tasks if (said := absent(one))]
        if gone:
            return *here, "", gone
        told = []
        make(todo, lambda frames, failed: told.append((frames, failed)))
        return *here, "", (), told

    return task
