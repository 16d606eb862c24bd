"""The same set from a Ray cluster of two nodes, one of which is killed in the middle."""

import os
import subprocess
import sys
import time
from pathlib import Path

from conftest import REPOSITORY, needs, render, succeed

from dclr.data.manifest import ShardSet
from preprocess.synthetic import encode

pytestmark = needs("ray")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name not in ("plan.json", "failures.jsonl")}


def test_a_lost_node_changes_no_byte(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    for number in range(24):
        encode(render("left", "dots", ("ray", number))[0], 25, tmp_path / "root" / f"{number:02d}.avi")
    flags = ("--size", "120", "--shard-size", "1", "--cues", "diff,flow,energy", "--stabilise")
    folder = ("-m", "preprocess", "folder", "--root", str(tmp_path / "root"))
    succeed(*folder, "--out", tmp_path / "local", *flags)
    names = [shard.name for shard in ShardSet(tmp_path / "local").manifest.shards]
    assert len(names) >= 6

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        doomed = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        out = tmp_path / "ray"
        log = (tmp_path / "log").open("w")
        run = subprocess.Popen(
            [sys.executable, *folder, "--out", str(out), *flags, "--engine", "ray"],
            cwd=REPOSITORY, env=os.environ | {"RAY_ADDRESS": cluster.address, "PYTHONPATH": str(REPOSITORY)},
            stdout=log, stderr=log,
        )  # fmt: skip
        for _ in range(1200):  # until the first shard is there: the other node is at work then
            if list(out.glob("shard-*.jsonl")) or run.poll() is not None:
                break
            time.sleep(0.05)
        assert run.poll() is None, (tmp_path / "log").read_text()
        assert len(list(out.glob("shard-*.jsonl"))) < len(names)
        cluster.remove_node(doomed, allow_graceful=False)
        assert run.wait(300) == 0, (tmp_path / "log").read_text()
    finally:
        cluster.shutdown()
    assert contents(out) == contents(tmp_path / "local")
    assert not list(out.glob(".*"))
