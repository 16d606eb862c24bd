"""docs/extending.md: its examples are written to files and its commands run, as they stand there."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, SMALL, render
from safetensors.numpy import load_file

from dclr.checkpoint import load_trunk
from dclr.data.manifest import ShardSet
from dclr.errors import InputError
from dclr.storage import open_folder
from preprocess.synthetic import encode

DOCUMENT = (REPOSITORY / "docs/extending.md").read_text()
CHEAP = ["--precision", "fp32", "-j", "0"]


def example(section: str, folder: Path) -> list[list[str]]:
    """A section's commands; its Python file is written to ``folder``, and what its toml says is installed there."""
    text = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", DOCUMENT, re.S | re.M)
    assert text is not None
    commands = []
    for language, content in re.findall(r"^```(\w*)\n(.*?)^```$", text[1], re.S | re.M):
        if language == "python":
            (folder / content[3 : content.index(":")]).write_text(content)
        elif language == "toml":
            project = tomllib.loads(content)["project"]
            installed = folder / f"{project['name']}-{project['version']}.dist-info"
            installed.mkdir()
            (installed / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
            groups = project["entry-points"].items()
            lines = [line for group, of in groups for line in (f"[{group}]", *(f"{name} = {at}" for name, at in of.items()))]
            (installed / "entry_points.txt").write_text("\n".join(lines) + "\n")
        else:
            commands += [shlex.split(line) for line in content.splitlines()]
    return commands


def run(folder: Path, command: list[str], *more: str) -> subprocess.CompletedProcess[str]:
    """``python ...`` with further flags; the project and what lies in ``folder`` are installed."""
    assert command[0] == "python"
    launcher = [str(REPOSITORY / part) if part.startswith("train_") else part for part in command[1:]]
    environment = os.environ | {
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "LAB_STORE": str(folder / "store"),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *launcher, *more], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def succeed(folder: Path, command: list[str], *more: str) -> str:
    done = run(folder, command, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def drawn(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        made = folder / f"drawn-{number}.mp4"
        encode(render("left", "dots", (number,))[0], 25, made)
        made.rename(folder / name)


def test_another_data_set(tmp_path: Path) -> None:
    (command,) = example("Another data set", tmp_path)
    drawn(tmp_path / "videos", "1.mp4", "2.mp4", "3.mp4", "4.mp4")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/labels.csv").write_text("Swiping Left\nDrumming Fingers\n")
    (tmp_path / "lists/train.csv").write_text("1;Drumming Fingers\n9;Swiping Left\n3;Swiping Left\n")
    (tmp_path / "lists/validation.csv").write_text("2;Drumming Fingers\n")
    small = ("--size", "32", "--workers", "1")
    assert "3 videos in 1 shards" in succeed(tmp_path, command, *small)
    shards = ShardSet(tmp_path / "shards/gestures")
    assert shards.manifest.dataset == "gestures" and shards.manifest.splits == {"train": 2, "validation": 1}
    assert shards.manifest.classes == {"action": ["Swiping Left", "Drumming Fingers"]}
    assert dict(zip(shards.keys, shards.labels["action"].tolist(), strict=True)) == {"1": 1, "2": 1, "3": 0}
    lines = [json.loads(line) for line in (tmp_path / "shards/gestures/failures.jsonl").read_text().splitlines()]
    assert {line["path"]: line["stage"] for line in lines} == {"9.mp4": "missing", "4.mp4": "left-out"}

    drawn(tmp_path / "videos", "9.mp4")
    retry = ["python", "-m", "preprocess", "retry", "shards/gestures"]  # which knows nothing of gestures.py
    assert "4 videos in 2 shards" in succeed(tmp_path, retry, "--workers", "1")
    (tmp_path / "lists/validation.csv").write_text("2;Drumming Fingers\n4;Waving\n")
    refused = run(tmp_path, command, *small, "--append")
    said = "error: lists/validation.csv, line 2: '4;Waving', expected 'number;class' with a class of labels.csv"
    assert refused.returncode == 2 and refused.stderr.splitlines()[-1] == said


def test_another_backbone(synthetic_set: Path, tmp_path: Path) -> None:
    pretrain, evaluate = example("Another backbone", tmp_path)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/demo").symlink_to(synthetic_set)
    small = ["--width", "4", "-fpc", "4", "-cs", "32", *CHEAP, "-b", "16"]
    succeed(tmp_path, pretrain, *small, "--epochs", "1", "--bn", "shuffle", "--checkpoint-gradients")
    succeed(tmp_path, evaluate, *CHEAP, "-cpv", "1", "--test-clips", "1")
    result = json.loads((tmp_path / "runs/c3d-linear/result.json").read_text())
    assert (result["options"]["arch"], result["options"]["width"]) == ("c3d", 4) and 0 <= result["top1"] <= 1
    features = [load_file(path)["value"] for path in (tmp_path / "runs/c3d-linear/features").glob("*.safetensors")]
    assert {value.shape[-1] for value in features} == {16} and all(np.ptp(value) > 0 for value in features)
    with pytest.raises(InputError, match="it says its network is 'c3d', expected one of r2plus1d_10, "):
        load_trunk(tmp_path / "runs/c3d/last.pt")  # by those who have no c3d.py


def test_another_store(tmp_path: Path) -> None:
    preprocess, pretrain = example("Another store", tmp_path)
    drawn(tmp_path / "store/videos/walk", "1.mp4", "2.mp4")
    drawn(tmp_path / "store/videos/run", "3.mp4", "4.mp4")
    assert "4 videos in 1 shards" in succeed(tmp_path, preprocess, "--size", "32", "--workers", "1")
    local = [part.replace("lab://", "store/") for part in preprocess[:-1]]
    succeed(tmp_path, [*local, "local"], "--size", "32", "--workers", "1")
    for name in ("shard-000000.tar", "shard-000000.jsonl", "index.npz", "manifest.json"):
        assert (tmp_path / "store/shards/mine" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    assert "no faults" in succeed(tmp_path, ["python", "-m", "preprocess", "verify", "lab://shards/mine"], "--workers", "1")
    succeed(tmp_path, pretrain, *SMALL, "-j", "1", "-b", "2", "--mined", "1", "--epochs", "1")
    assert (tmp_path / "runs/mine/last.pt").is_file()


def test_a_store_that_is_not_there_is_not_taken_for_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"Protocol not known: lab; check the name and what fsspec needs for lab$"):
        open_folder("lab://videos").files()
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match=r"^gs://bucket/videos: Please install gcsfs to access Google Storage$"):
        open_folder("gs://bucket/videos").files()
