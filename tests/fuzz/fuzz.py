"""python tests/fuzz/fuzz.py: many executions of every target, and what raised anything but an InputError as new corpus files.

Each target runs in a process of its own. Where atheris is installed (pip install 'dclr[fuzz]') it chooses the inputs by what
code they reach; else each is a corpus file with some changes, drawn from the seed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

EVERY, SLOW_RUNS = 1_000_000, 20_000  # executions: of all targets, and of each slow one
TOLD = 100  # executions between two lines to the parent
SECONDS = 30  # that one execution may take


def child(target: str, runs: int, seed: int) -> None:
    """Run a target; a JSON line to standard output from time to time, and at the end."""
    if importlib.util.find_spec("atheris"):
        import atheris

        with atheris.instrument_imports(include=["dclr", "preprocess"]):
            import targets
    else:
        import targets  # type: ignore[no-redef]
    from mutate import mutated

    corpus, done, foreign, slowest = targets.CORPUS / target, 0, 0, 0.0
    out = os.fdopen(os.dup(1), "w", buffering=1)
    scratch = Path(tempfile.mkdtemp(dir=os.environ["FUZZ_SCRATCH"]))

    def one(data: bytes) -> None:
        nonlocal done, foreign, slowest
        began = time.perf_counter()
        try:
            targets.execute(target, data, scratch)
        except Exception as error:
            foreign += 1
            kept = corpus / f"found-{hashlib.sha256(data).hexdigest()[:12]}"
            kept.write_bytes(data)
            where = traceback.extract_tb(error.__traceback__)[-1]
            print(json.dumps({"found": f"{kept}: {type(error).__name__}: {error} ({where.filename}:{where.lineno})"}), file=out)
        slowest = max(slowest, time.perf_counter() - began)
        done += 1
        if done % TOLD == 0 or done == runs:
            print(json.dumps({"done": done, "foreign": foreign, "slowest": round(slowest, 2)}), file=out)

    files = sorted(corpus.iterdir())
    if importlib.util.find_spec("atheris"):
        grown = tempfile.mkdtemp(dir=os.environ["FUZZ_SCRATCH"])
        limits = (
            f"-runs={runs}",
            f"-seed={seed + 1}",
            f"-timeout={SECONDS}",
            "-rss_limit_mb=8192",
            "-max_len=200000",
            "-verbosity=0",
        )
        changed = lambda data, size, number: mutated(bytes(data), random.Random(number))[:size]  # noqa: E731
        atheris.Setup([target, *limits, grown, str(corpus)], one, custom_mutator=changed)
        atheris.Fuzz()
        return
    for number in range(runs):
        one(mutated(files[number % len(files)].read_bytes(), random.Random(f"{target}, {seed}, {number}")))


def lines(target: str, runs: int, seed: int, scratch: str) -> Iterator[dict]:
    """What the process of a target says; a process that dies is foreign too."""
    command = [sys.executable, __file__, "--child", target, "--runs", str(runs), "--seed", str(seed)]
    environment = os.environ | {"FUZZ_SCRATCH": scratch, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=scratch
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
        if process.wait():
            said = process.stderr.read().strip().splitlines()[-1:]
            yield {"found": f"{target}: the process ended with {process.returncode}: {' '.join(said)}", "died": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all six")
    parser.add_argument("--runs", type=int, help=f"executions of each (default: {SLOW_RUNS} of a slow one, {EVERY} in all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked.child, asked.runs, asked.seed)
        return
    import targets
    from tqdm import tqdm

    rest = (EVERY - SLOW_RUNS * len(targets.SLOW)) // (len(targets.TARGETS) - len(targets.SLOW))
    each = {name: asked.runs or (SLOW_RUNS if name in targets.SLOW else rest) for name in asked.targets or targets.TARGETS}
    engine = "atheris" if importlib.util.find_spec("atheris") else "drawn changes (atheris is not installed)"
    total = foreign = 0
    with tqdm(total=sum(each.values()), unit=" runs", smoothing=0) as bar, tempfile.TemporaryDirectory() as scratch:
        for name, runs in each.items():
            bar.set_description(name)
            done, found, slowest = 0, 0, 0.0
            for said in lines(name, runs, asked.seed, scratch):
                if "found" in said:
                    bar.write(said["found"])
                found = said.get("foreign", found) + said.get("died", 0)
                bar.update(said.get("done", done) - done)
                done, slowest = said.get("done", done), said.get("slowest", slowest)
            bar.write(f"{name}: {done} executions, {found} foreign errors, the slowest took {slowest} s")
            total, foreign = total + done, foreign + found
    print(f"{total} executions by {engine}, {foreign} foreign errors")
    raise SystemExit(bool(foreign))


if __name__ == "__main__":
    main()
