"""Do the unit tests notice a fault? ``python benchmarks/mutation.py``, with the dev extras and ``cosmic-ray==8.7.0`` installed.

cosmic-ray makes every small fault that it knows (``+`` for ``-``, ``<`` for ``<=``, 2 for 1, a decorator left out, ...) in the
modules of :data:`TESTS`, and ``--mutants`` of them are drawn by ``--seed``. Each is put into a copy of the repository, where
the fast tests of its module run until one fails; those that start processes are left out. Faults in annotations are not drawn:
nothing evaluates these. A fault that no test notices is printed as a line of what was and what is, and all go to ``--out``, a
line of JSON each; ``--only 7 12`` tries these of the drawn ones again. One process at a time.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parent.parent
TESTS = {  # of each module, those that notice most faults first
    "dclr/method/losses.py": ("method/test_losses", "method/test_reference", "method/test_model"),
    "dclr/method/queue.py": ("method/test_queue", "method/test_reference"),
    "dclr/method/views.py": ("method/test_views", "pretraining/test_step"),
    "dclr/method/norm.py": ("method/test_norm", "method/test_model", "method/test_reference", "pretraining/test_step"),
    "dclr/metrics.py": ("test_metrics",),
    "dclr/data/clips.py": ("data/test_clips", "method/test_views"),
    "dclr/data/plan.py": ("data/test_plan",),
}
SLOW = "two_ranks"  # of these files, the tests that start processes
SETS = ("synthetic_set", "h264_set")  # fixtures that do: made once, by the first run, which has no fault in it
MEMORY = 16 << 30  # bytes of addresses that a run may ask for: a fault may ask for any number
LIMIT = 4.0  # times what the run without a fault takes


class Annotations(ast.NodeTransformer):
    """Leaves them out."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)


def evaluated(source: str) -> str:
    """What two sources have in common that do the same but for their annotations and layout."""
    return ast.dump(Annotations().visit(ast.parse(source)))


def drawn(seed: int, count: int) -> list[tuple[str, str]]:
    """So many different faults, in the order of the draw: the module, and its source with the fault."""
    try:
        from cosmic_ray.ast import ast_nodes, get_ast
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator, operator_names
    except ImportError:
        sys.exit("error: cosmic-ray is not installed: pip install cosmic-ray==8.7.0")

    sources = {module: (REPOSITORY / module).read_text() for module in TESTS}
    places = []
    for module, source in sources.items():
        nodes = list(ast_nodes(get_ast(source)))
        for name in sorted(operator_names()):
            kind = get_operator(name)
            if not kind.arguments():  # those that take some put variables in the place of others by chance
                known = sum(len(list(kind().mutation_positions(node))) for node in nodes)
                places += [(module, kind, place) for place in range(known)]
    random.Random(seed).shuffle(places)
    found, seen = [], {evaluated(source) for source in sources.values()}
    for module, kind, place in places:
        faulty = mutate_code(sources[module], kind(), place)
        with suppress(SyntaxError):
            if faulty and (does := evaluated(faulty)) not in seen:
                seen.add(does)
                found.append((module, faulty))
        if len(found) == count:
            break
    print(f"{len(found)} faults of {len(places)} places, drawn by seed {seed}", flush=True)
    return found


class Sets:
    """A plugin: the sets of shards that an earlier run left in ``folder`` are there already."""

    def __init__(self, folder: Path):
        self._kept = folder / "sets.json"

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Any:
        if fixturedef.argname not in SETS:
            return (yield)
        made = json.loads(self._kept.read_text()) if self._kept.exists() else {}
        if fixturedef.argname in made:
            fixturedef.func = lambda **_: Path(made[fixturedef.argname])
        path = yield
        self._kept.write_text(json.dumps(made | {fixturedef.argname: str(path)}))
        return path


def bring_in(copy: Path) -> None:
    """Import, once and not for each fault, all that the tests import but for the project itself."""
    before, names = list(sys.path), {Path(name) for names in TESTS.values() for name in names}
    sys.path[:0] = [str(copy), *{str(copy / "tests" / folder) for folder in (".", *(name.parent for name in names))}]
    for name in names:
        importlib.import_module(name.name)
    sys.path[:] = before
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(copy)):
            del sys.modules[name]


def tried(copy: Path, module: str, seconds: float) -> tuple[str, str, float]:
    """``survived``, ``killed`` or ``timeout``, what was printed, and the seconds, of the module's tests in ``copy``.

    They run in a fork of this process, see :func:`bring_in`.
    """
    began, log = time.monotonic(), copy.with_suffix(".log")
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(copy)
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, 1)
        os.dup2(target, 2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        sys.path.insert(0, str(copy))
        files = [f"tests/{name}.py" for name in TESTS[module]]
        base = f"--basetemp={tempfile.mkdtemp(dir=copy.parent)}/pytest"
        options, code = ["-x", "-q", "--tb=line", "-p", "no:cacheprovider", "-k", f"not ({SLOW})"], 1
        try:
            code = int(pytest.main([*options, base, *files], [Sets(copy.parent)]))
        finally:
            os._exit(code)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            state = "killed" if os.waitstatus_to_exitcode(status) else "survived"
            break
        if time.monotonic() - began > seconds:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            state = "timeout"
            break
        time.sleep(0.02)
    return state, log.read_text(errors="replace"), round(time.monotonic() - began, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], help="numbers of those that are drawn")
    parser.add_argument("--out", type=Path, default=Path("runs/mutation.jsonl"))
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    sys.dont_write_bytecode = True  # a fault of the same length within the same second would not be seen
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

    args.out.parent.mkdir(parents=True, exist_ok=True)
    faults = [(number, *fault) for number, fault in enumerate(drawn(args.seed, args.mutants))]
    only = {int(part) for word in args.only for part in word.split(",") if part}
    faults, counts = [fault for fault in faults if not only or fault[0] in only], Counter[str]()
    with tempfile.TemporaryDirectory() as folder, args.out.open("w") as out:
        copy = Path(folder) / "copy"
        for part in ("dclr", "preprocess", "tests"):
            shutil.copytree(REPOSITORY / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPOSITORY / "pyproject.toml", copy)
        bring_in(copy)
        limits = {}
        for module in dict.fromkeys(module for _, module, _ in faults):
            state, said, seconds = tried(copy, module, 600)
            if state != "survived":
                sys.exit(f"{said}\nerror: the tests of {module} fail without a fault, expected them to pass")
            limits[module] = 20 + LIMIT * seconds
            print(f"{module}: {seconds:.1f} s without a fault", flush=True)
        for number, module, source in faults:
            plain = (copy / module).read_text()
            (copy / module).write_text(source)
            state, said, seconds = tried(copy, module, limits[module])
            (copy / module).write_text(plain)
            counts[state] += 1
            changed = list(difflib.unified_diff(plain.splitlines(), source.splitlines(), module, "", n=0, lineterm=""))[2:]
            by = next((line.partition(" - ")[0][7:] for line in said.splitlines() if line.startswith("FAILED ")), "")
            line = {"number": number, "module": module, "state": state, "by": by, "seconds": seconds, "change": changed}
            out.write(json.dumps(line) + "\n")
            out.flush()
            if state != "killed":
                print(f"{number} {state} {module} {' '.join(part.strip() for part in changed)}", flush=True)
    killed, late, survived = (counts[state] for state in ("killed", "timeout", "survived"))
    print(f"{killed} of {counts.total()} were noticed, {late} more by running too long, {survived} were not")


if __name__ == "__main__":
    main()
