"""The same set from a Ray cluster: a node is killed in the middle, another has no videos, a third has other packages."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, needs, render, succeed

from dclr.data.manifest import ShardSet
from preprocess.on_ray import BUNDLE, bundles
from preprocess.plan import Job
from preprocess.synthetic import encode

FLAGS = ("--size", "120", "--shard-size", "1", "--cues", "diff,flow,energy", "--stabilise")
needs_mounts = pytest.mark.skipif(
    not shutil.which("unshare") or os.getuid() != 0, reason="a node without the videos' mount: needs root and unshare"
)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name not in ("plan.json", "failures.jsonl")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Videos, and the set that this machine makes of them."""
    folder = tmp_path_factory.mktemp("made")
    for number in range(16):
        encode(render("left", "dots", ("ray", number))[0], 25, folder / "root" / f"{number:02d}.avi")
    succeed("-m", "preprocess", "folder", "--root", folder / "root", "--out", folder / "local", *FLAGS)
    return folder / "root", folder / "local"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """One node with one CPU. Its workers are not made nicer, as Ray makes them: tests share the machine with each other."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_worker_niceness", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        yield cluster
        cluster.shutdown()


def start(cluster: Any, root: Path, out: Path, *flags: str, before: Sequence[str] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "preprocess", "folder", "--root", str(root), "--out", str(out), *FLAGS, *flags]
    return subprocess.Popen(
        [*before, *command, "--engine", "ray"], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"RAY_ADDRESS": cluster.address, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


@needs("ray")
def test_a_lost_node_changes_no_byte(cluster: Any, made: tuple[Path, Path], tmp_path: Path) -> None:
    root, local = made
    names, out = [shard.name for shard in ShardSet(local).manifest.shards], tmp_path / "ray"
    assert len(names) >= 4
    doomed = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    run = start(cluster, root, out)
    halves = names[: len(names) // 2], names[len(names) // 2 :]  # two bundles, nearly
    while not all(any((out / name).exists() for name in half) for half in halves) and run.poll() is None:
        time.sleep(0.05)
    assert run.poll() is None and not all((out / name).exists() for name in names)
    cluster.remove_node(doomed, allow_graceful=False)
    said = run.communicate()[0]
    assert run.returncode == 0, said
    assert contents(out) == contents(local)
    assert not list(out.glob(".*"))


@pytest.fixture
def blind(cluster: Any, made: tuple[Path, Path]) -> Iterator[None]:
    """Beside the first node one that has an empty folder in the place of the videos."""
    there = f"mount -t tmpfs none {made[0]} && exec {sys.executable} -m ray.scripts.scripts start"
    command = f"{there} --address={cluster.address} --num-cpus=1 --block"
    node = subprocess.Popen(["unshare", "--mount", "bash", "-c", command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while sum(one["Alive"] for one in cluster.global_state.node_table()) < 2:
            assert node.poll() is None
            time.sleep(0.1)
        yield
    finally:
        node.terminate()
        node.wait()


@needs("ray")
@needs_mounts
def test_a_node_without_the_videos_changes_no_byte(cluster: Any, blind: None, made: tuple[Path, Path], tmp_path: Path) -> None:
    """Its share is made elsewhere, and the run says so. What no node has counts as failed, with host and path."""
    root, local = made
    run = start(cluster, root, tmp_path / "ray")
    said = run.communicate()[0]
    assert run.returncode == 0, said
    assert (
        f"warning: {socket.gethostname()}: {root}/" in said and ".avi: No such file or directory; other nodes are tried" in said
    )
    assert contents(tmp_path / "ray") == contents(local)
    (root / "mounted").mkdir()
    there = f"mount -t tmpfs none {root}/mounted && cp {root}/00.avi {root}/mounted && exec"  # for the command alone
    before = ["unshare", "--mount", "bash", "-c", f'{there} "$@"', "bash"]
    run = start(cluster, root, tmp_path / "more", "--max-failures", "10", before=before)
    said = run.communicate()[0]
    assert run.returncode == 0, said
    path = "mounted/00.avi"
    reason = f"{socket.gethostname()}: {root}/{path}: No such file or directory"
    assert f"failed: 1 videos: {path} (open: {reason})" in said
    assert len(ShardSet(tmp_path / "more").keys) == 16


@needs("ray")
def test_a_node_with_other_packages_is_named(cluster: Any, made: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "simplejpeg.py").write_text("__version__ = '0.1'\n")
    other = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"})
    cluster.wait_for_nodes()
    run = start(cluster, made[0], tmp_path / "out")
    said = run.communicate()[0]
    cluster.remove_node(other)
    assert run.returncode == 2 and "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"error: --engine ray: {socket.gethostname()}: simplejpeg is 0.1, where the command runs it is ")
    assert "install the same packages on every node" in last


def test_small_shards_are_bundled_and_every_core_has_some() -> None:
    def sizes(estimates: Sequence[float], cores: int) -> list[int]:
        made = bundles([Job(str(n), (), estimate, "") for n, estimate in enumerate(estimates)], cores)
        assert [job.name for some in made for job in some] == [str(n) for n in range(len(estimates))]
        return [len(some) for some in made]

    assert sizes([1e6] * 60, 2) == [30, 30] and sizes([1e6] * 3, 8) == [1, 1, 1]
    assert sizes([BUNDLE] * 3, 2) == [1, 1, 1] and sizes([BUNDLE / 2] * 8, 2) == [2, 2, 2, 2]
    assert sizes([3e6, 1e6, 1e6, 1e6], 2) == [1, 3]
    assert sizes([0.0, 0.0], 2) == [1, 1] and sizes([], 2) == []
