"""How many threads, and how they wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from dclr import threads


@pytest.mark.parametrize(
    "files, group, quotas",
    [
        ({"job/cpu.max": "150000 100000", "cpu.max": "max 100000"}, "0::/job", [2]),
        ({"job/step/cpu.max": "max 100000", "job/cpu.max": "300000 100000"}, "0::/job/step", [3]),
        ({"cpu.max": "50000 100000"}, "0::/", [1]),  # inside a container
        ({"cpu,cpuacct/a/cpu.cfs_quota_us": "400000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/a", [4]),
        ({"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, "4:cpu:/a\n3:memory:/a", []),
        ({}, "nonsense", []),
    ],
)
def test_a_control_groups_quota_is_cores(files: dict[str, str], group: str, quotas: list[int], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    mine = tmp_path / "mine"
    mine.write_text(group + "\n")
    assert threads._quotas(tmp_path, mine) == quotas


def test_permitted_are_those_of_affinity_and_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "_quotas", lambda: [])
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert threads.permitted() == 8
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    assert threads.permitted() == 6
    monkeypatch.setattr(threads, "_quotas", lambda: [5, 7])
    assert threads.permitted() == 5


@pytest.mark.parametrize(
    "by_user, ranks, expected",
    [({}, 2, "4"), ({"OMP_NUM_THREADS": "3"}, 2, "3"), ({"OMP_NUM_THREADS": "1"}, 2, "1"), ({}, 0, "8")],
)
def test_ranks_share_the_cores_unless_a_user_says_otherwise(
    by_user: dict[str, str], ranks: int, expected: str, tmp_path: Path
) -> None:
    """By torchrun itself, which sets OMP_NUM_THREADS=1 where it is not set: two ranks of eight cores get four each."""
    script = tmp_path / "rank.py"
    script.write_text(
        "import os\nfrom pathlib import Path\nfrom dclr import threads\n"
        "threads.permitted = lambda: 8\nthreads.settle()\n"
        "Path(__file__).with_name(os.environ.get('RANK', '0')).write_text(os.environ['OMP_NUM_THREADS'])\n"
    )
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": str(REPOSITORY), **by_user}
    subprocess.run([sys.executable, *launch, str(script)], env=environment, check=True, capture_output=True)
    assert [(tmp_path / str(rank)).read_text() for rank in range(max(1, ranks))] == [expected] * max(1, ranks)


@pytest.mark.parametrize("launcher", ["train_pretrain", "train_eval"])
def test_a_launcher_settles_before_numpy_and_torch_are_imported(launcher: str) -> None:
    """Their runtimes read the environment once; what a user has set stays."""
    code = (
        f"import os, sys\nimport {launcher}\nassert not {{'numpy', 'torch'}} & set(sys.modules)\nsys.argv = ['x', '--help']\n"
    )
    code += f"try:\n    {launcher}.main()\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules\n"
    code += "print(os.environ['GOMP_SPINCOUNT'], os.environ['OMP_NUM_THREADS'], file=sys.stderr)"
    for given, expected in (({}, f"{threads.SPINS} {threads.permitted()}"), ({"GOMP_SPINCOUNT": "7"}, "7")):
        environment = {n: v for n, v in os.environ.items() if not n.startswith(("OMP_", "GOMP_"))} | given
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stderr.startswith(expected)
