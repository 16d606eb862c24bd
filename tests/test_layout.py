"""The layout that CONTRIBUTING.md draws: arrows point one way, launchers are short, and so is every function."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import REPOSITORY

SOURCES = sorted([*REPOSITORY.glob("dclr/**/*.py"), *REPOSITORY.glob("preprocess/**/*.py"), *REPOSITORY.glob("train_*.py")])
TRAINERS = {"dclr.method", "dclr.training", "dclr.pretraining", "dclr.evaluation"}


def room(module: str) -> str:
    """The package or file of ``dclr`` that a module is in, or another top-level name."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "dclr" else parts[0]


def imports(path: Path) -> set[str]:
    """The modules of the project that a file imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" if node.module == "dclr" else node.module for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {module for module in found if module.split(".")[0] in ("dclr", "preprocess")}


def arrows() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        here = room(".".join(path.relative_to(REPOSITORY).with_suffix("").parts))
        graph.setdefault(here, set()).update({room(module) for module in imports(path)} - {here})
    return graph


def test_no_package_imports_in_a_circle() -> None:
    graph = arrows()
    assert {"dclr.data", "dclr.method", "preprocess", "train_eval"} <= set(graph) and len(graph["dclr.pretraining"]) > 5
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def test_arrows_point_one_way() -> None:
    graph = arrows()
    assert not graph["preprocess"] & TRAINERS and not graph["dclr.method"] & (TRAINERS - {"dclr.method"})
    assert (
        not graph["dclr.training"] & {"dclr.pretraining", "dclr.evaluation"}
        and "dclr.pretraining" not in graph["dclr.evaluation"]
    )
    assert not graph["dclr.record"] & {"dclr.data", "dclr.storage", *TRAINERS}


def test_launchers_and_functions_are_short() -> None:
    for path in SOURCES:
        text = path.read_text()
        assert not path.name.startswith("train_") or len(text.splitlines()) <= 100, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno:
                assert node.end_lineno - node.lineno < 60, (path, node.name)


def test_no_two_classes_and_no_two_constants_have_one_name() -> None:
    where: dict[str, Path] = {}
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            names = [target.id for target in targets if isinstance(target, ast.Name) and target.id.isupper()]
            names = [name for name in names if len(name) > 1]  # of a letter are type variables
            for name in [node.name] if isinstance(node, ast.ClassDef) else names:
                # the optional columns of a list are those in every data set that has some
                assert name not in where or name == "OPTIONAL", (name, path, where[name])
                where[name] = path


def test_the_tests_have_a_folder_for_each_package() -> None:
    packages = {path.parent.name for path in SOURCES if path.name == "__init__.py" and path.parent.parent.name != "preprocess"}
    folders = {path.parent.name for path in REPOSITORY.glob("tests/*/test_*.py")}
    assert folders - {"faults", "fuzz"} == packages - {"dclr", "backbones"}  # these test the whole
