"""Killed, stopped and started again at any moment, each command leaves what an undisturbed run leaves."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from harness import commands, disturbed

SEED = 19


@pytest.mark.parametrize(
    ("name", "kills"), [("preprocess", 1), ("pretrain", 1), ("extract", 1), pytest.param("finetune", 3, marks=pytest.mark.soak)]
)
def test_a_command_that_is_killed_leaves_the_same(
    name: str, kills: int, synthetic_set: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """More kills: make soak. Killed finetunings: tests/evaluation/test_finetune.py."""
    command = commands(synthetic_set, checkpoint, tmp_path)[name]
    seconds = command.straight(tmp_path / "straight")
    print(f"seed {SEED}")
    met = disturbed(command, tmp_path / "straight", seconds, tmp_path / "out", random.Random(f"{SEED} {name}"), kills)
    assert met["SIGKILL"] + met["SIGTERM"] == kills and met["compared"]
