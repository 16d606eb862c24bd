"""File systems of a test's own, in a mount namespace that ends with its command; skipped where the rights are lacking."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
OURS = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]


def privately(script: str, *command: object) -> subprocess.CompletedProcess[str]:
    """Run the command where the shell's ``script`` has mounted what it needs."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*OURS, "sh", "-ec", f'{script}\nexec "$@"', "sh", *map(str, command)],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def _possible(script: str) -> bool:
    return shutil.which("unshare") is not None and privately(script, "true").returncode == 0


needs_mounts = pytest.mark.skipif(
    not _possible("mount -t tmpfs none /mnt"), reason="no rights to mount a file system of its own: root, or user namespaces"
)
needs_loop = pytest.mark.skipif(
    shutil.which("mkfs.ext4") is None
    or not _possible("image=$(mktemp); truncate -s 4M $image; mkfs.ext4 -q $image; mount -o loop $image /mnt; rm $image"),
    reason="no rights to mount an image: root, loop devices and mkfs.ext4",
)
