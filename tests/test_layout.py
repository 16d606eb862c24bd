"""The packages as a whole: one name means one thing, imports point one way, and what makes shards needs nothing that trains."""

import ast
from collections import Counter

from conftest import REPOSITORY

FILES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("preprocess", "dclr")
    for path in sorted((REPOSITORY / package).rglob("*.py"))
}
SHARED = {"canvas", "data.manifest", "draws", "errors", "files", "record", "storage", "text", "threads"}  # of dclr


def imports(module: str) -> set[str]:
    """The modules of this project that a module imports, in its functions too."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & FILES.keys() - {module}


def test_no_two_classes_have_one_name() -> None:
    nodes = [node for path in FILES.values() for node in ast.parse(path.read_text()).body]
    counts = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    assert len(counts) > 50 and {name: count for name, count in counts.items() if count > 1} == {}


def test_preprocess_needs_nothing_of_the_trainer() -> None:
    needed, new = set[str](), {module for module in FILES if module.startswith("preprocess.")}
    while new:
        needed |= new
        new = set[str]().union(*(imports(module) for module in new)) - needed
    assert {"dclr.record"} <= {module for module in needed if module.startswith("dclr.")} <= {f"dclr.{name}" for name in SHARED}


def test_no_imports_go_in_a_circle() -> None:
    wanted = {module: imports(module) for module in FILES}
    while free := [module for module, of in wanted.items() if not of & wanted.keys()]:
        for module in free:
            del wanted[module]
    assert wanted == {}
