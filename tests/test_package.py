"""The package as others install it: the source distribution makes the wheel, and the wheel's commands run outside a clone."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, SMALL

from dclr.pretraining.config import PretrainConfig

WORDS = ("-j", "0", "--precision", "fp32")


def done(*command: object, cwd: Path, code: int = 0) -> str:
    """What a command prints that ends with this exit code and knows nothing of the clone."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def made_here(folder: str, names: list[str]) -> set[str]:
    """What the repository ignores: environments, runs, shards, caches."""
    if Path(folder) == REPOSITORY / "shards":
        return set(names) - {"README.md"}
    left = (".git", ".venv*", "runs", "build", "__pycache__", "*.egg-info", ".*_cache")
    return shutil.ignore_patterns(*left)(folder, names)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution, made from a copy of the repository without what is made in it."""
    work = tmp_path_factory.mktemp("source")
    shutil.copytree(REPOSITORY, work / "clone", symlinks=True, ignore=made_here)
    done(sys.executable, "-c", "from setuptools import build_meta as b; b.build_sdist('..')", cwd=work / "clone")
    (made,) = work.glob("*.tar.gz")
    with tarfile.open(made) as tar:
        tar.extractall(work / "unpacked", filter="data")
    (unpacked,) = (work / "unpacked").iterdir()
    return unpacked


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    """Built from the source distribution."""
    done(sys.executable, "-c", "from setuptools import build_meta as b; b.build_wheel('..')", cwd=source)
    (made,) = source.parent.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The commands of an environment that has the wheel, and what it needs from this one."""
    place = wheel.parent / "venv"
    venv.create(place, symlinks=True)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "beside.pth").write_text("\n".join(site.getsitepackages()))  # what is editable there stays out
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", place / "bin" / "python")
    done(*pip, "install", "--quiet", "--no-index", "--no-deps", "--ignore-installed", wheel, cwd=wheel.parent)
    return place / "bin"


def test_the_source_distribution_has_what_its_build_and_its_tests_need(source: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip("not in a git repository")
    there = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert set(listed.stdout.split()) - {"dclr/recipes"} <= there
    assert len(list((source / "dclr" / "recipes").glob("*.yaml"))) == len(list((source / "recipes").glob("*.yaml"))) > 4


def test_the_wheel_has_the_commands_and_the_recipes_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        commands = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert {f"dclr/recipes/{path.name}" for path in (REPOSITORY / "recipes").iterdir()} <= names
    assert {"dclr/py.typed", "dclr/usage.py", "train_eval.py", "train_pretrain.py"} <= names
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {
        "dclr", "preprocess", "train_eval.py", "train_pretrain.py",
    }  # fmt: skip
    assert all(f"dclr-{name} = " in commands for name in ("preprocess", "pretrain", "eval"))


def test_its_commands_run_outside_a_clone(installed: Path, tmp_path: Path) -> None:
    where = done(installed / "python", "-c", "import dclr.hardware as h; print(h.__file__, h.revision())", cwd=tmp_path)
    assert where.startswith(str(installed.parent)) and where.split()[1] == "0.1.0"
    small = ("--videos", "24", "--size", "32")
    done(installed / "dclr-preprocess", "synthetic", "--hard", "--out", "set", *small, "--workers", "1", cwd=tmp_path)
    config = ("--config", "lab", "--shards", "set", "--split", "train", *SMALL, *WORDS, "-b", "8", "--epochs", "1")
    done(installed / "dclr-pretrain", *config, "--flow-weight", "0", "--schedule", "none", "--out", "run", cwd=tmp_path)
    kept, recipe = (
        yaml.safe_load(path.read_text()) for path in (tmp_path / "run/config.yaml", REPOSITORY / "recipes/lab.yaml")
    )
    assert kept["wd"] == recipe["wd"] != PretrainConfig.wd and kept["epochs"] == 1
    splits = ("--train-split", "train", "--test-split", "test", "--label", "motion", "-cpv", "1", "--test-clips", "1")
    said = done(
        installed / "dclr-eval",
        "knn",
        "--shards",
        "set",
        *splits,
        *WORDS,
        "--pretrained",
        "run/last.pt",
        "--out",
        "knn",
        cwd=tmp_path,
    )
    assert "knn on motion: top1" in said


@pytest.mark.parametrize("command", ["dclr-preprocess", "dclr-pretrain", "dclr-eval"])
def test_a_mistake_names_the_command_as_it_was_typed(command: str, installed: Path, tmp_path: Path) -> None:
    assert (
        done(installed / command, "--no-such", cwd=tmp_path, code=2)
        .splitlines()[-1]
        .endswith(f"; {command} --help says what there is")
    )
