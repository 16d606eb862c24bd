"""One evaluation on several folds of a data set and with several seeds: a result for each, and the mean of all."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from dclr import distributed
from dclr.checkpoint import digest
from dclr.compare import GUESSES, RESULT, compare, headline, measured, read_result, read_table
from dclr.data.clips import LEARNED
from dclr.data.manifest import ShardSet, read_manifest
from dclr.data.sets import choose
from dclr.errors import InputError, dispensable
from dclr.evaluation import baseline, page
from dclr.evaluation.config import EvalConfig, made_otherwise, renamed
from dclr.evaluation.modes import MODES
from dclr.evaluation.result import circumstances, events, write
from dclr.files import run_folder
from dclr.hardware import pick_device
from dclr.method.pixels import IMAGENET, recorded
from dclr.parse import parsing
from dclr.settings import completed, free
from dclr.storage import open_folder
from dclr.text import public

HELD = {"epochs", "shards", "pretrained"}  # may differ in a run that is gone on with, and not in a result that is kept
NETWORK = ("arch", "width")
PLACES = {"seed", "train_split", "test_split", "out", "baseline"}  # not of a mean


Evaluate = Callable[[EvalConfig], dict[str, Any]]


def everything(configs: Sequence[EvalConfig], folds: Sequence[int], seeds: Sequence[int]) -> None:
    """Evaluate modes on the same features, each into a folder of its name in ``out``, which all have.

    Modes that are done already are kept. ``report.html`` has all of them."""
    out = Path(configs[0].out)
    folders = [out / config.mode for config in configs]
    with run_folder(str(out), RESULT):
        for config, folder in zip(configs, folders, strict=True):
            kept = config.features or str(out / "features")
            one = replace(config, out=str(folder), features=kept, baseline=_within(config.baseline, config.mode))
            distributed.setup(pick_device(one.deterministic))
            repeat(one, folds, seeds, MODES[one.mode].run)
            distributed.wait()
        if distributed.rank() == 0:
            print(compare([out]))
            with dispensable("report.html"):
                print(page.write(out, folders))


def repeat(config: EvalConfig, folds: Sequence[int], seeds: Sequence[int], evaluate: Evaluate) -> dict[str, Any]:
    """``evaluate`` for each fold (splits train0N and test0N, as ``python -m preprocess`` names UCF101's and HMDB51's) and seed,
    each into a folder of its own in ``config.out``, whose result.json has the mean of every accuracy and, as ``deviation``, its
    standard deviation (of a sample). Without folds and with one seed it is ``evaluate`` alone.

    Started again, it keeps the results that are there. Raises InputError for one of other options.
    """
    with run_folder(config.out, RESULT):
        once = not folds and len(seeds) == 1
        one = replace(config, seed=seeds[0]) if once else config
        if (kept := finished(one, folds, seeds)) is not None:
            return kept
        return evaluate(one) if once else _several(config, folds, seeds, evaluate)


def _several(config: EvalConfig, folds: Sequence[int], seeds: Sequence[int], evaluate: Evaluate) -> dict[str, Any]:
    for flag, given in (("--folds", folds), ("--seeds", seeds)):
        if len(set(given)) < len(given):
            raise InputError(f"{flag} {' '.join(map(str, given))}: expected each once")
    out = Path(config.out)
    every: Sequence[int | None] = folds or [None]
    features, runs = config.features or str(out / "features"), []  # a seed that draws few shots changes none of them
    for fold, seed in itertools.product(every, seeds):
        parts = ([] if fold is None else [f"fold{fold}"]) + ([f"seed{seed}"] if len(seeds) > 1 else [])
        splits: dict[str, Any] = (
            {} if fold is None else {"train_split": (f"train{fold:02}",), "test_split": (f"test{fold:02}",)}
        )
        name = "-".join(parts)
        beside = _within(config.baseline, name)
        runs.append(replace(config, seed=seed, out=str(out / name), baseline=beside, features=features, **splits))
    distributed.setup(pick_device(config.deterministic))
    kept = distributed.from_first([finished(run) for run in runs] if distributed.rank() == 0 else None)
    shards = ShardSet(config.shards)
    for run in runs:  # before the first of them takes hours
        choose(shards, shards.select(run.train_split), run), shards.select(run.test_split)
        if run.baseline:
            baseline.read(Path(run.baseline))
    distributed.wait()
    results = []
    for run, result in zip(runs, kept, strict=True):
        if result is None:
            with run_folder(run.out, RESULT):
                result = evaluate(run)
        results.append(result)
        distributed.wait()
    return _mean(config, folds, seeds, runs, results) if distributed.rank() == 0 else {}


def finished(config: EvalConfig, folds: Sequence[int] = (), seeds: Sequence[int] = (0,)) -> dict[str, Any] | None:
    """The result in ``config.out``, which is told; None where there is none (or ``--force``). Raises InputError for one of
    other options, weights or shards."""
    path = Path(config.out) / RESULT
    if config.force or not path.exists():
        return None
    result = read_result(path.parent)
    wanted = json.loads(json.dumps(asdict(config)))
    with parsing(str(path), "a result of train_eval.py"):
        made = completed(type(config), renamed(result["options"])) | {
            name: result[name] for name in NETWORK if name in result
        }  # an older version kept those that were asked for
        pixels = recorded(made) or IMAGENET  # those of the weights, where none were given
    made, wanted = made | pixels.said, wanted | config.pixels(pixels).said
    if config.pretrained != "random":
        del wanted["width"]  # the checkpoint's
    if "folds" in made or folds or len(seeds) > 1:  # a mean
        wanted = {name: value for name, value in wanted.items() if name not in PLACES}
        wanted, made = wanted | {"folds": list(folds), "seeds": list(seeds)}, {"folds": [], "seeds": [made.get("seed")]} | made
    may, what = free(type(config)) - HELD, f"the result in {path.parent}"
    for name, value in wanted.items():
        ours = name in (*LEARNED, *NETWORK) and value is None  # the checkpoint's, which made it too
        if name not in may and not ours and _public(made.get(name)) != _public(value):
            raise made_otherwise(config, name, value, made.get(name), what)
    for name, now in _hashes(config).items():
        if result.get(name) not in (None, now, [now]):
            raise made_otherwise(config, name, now, result[name], what)
    if os.environ.get("RANK", "0") == "0":
        page = path.with_name("report.html")
        where = page if page.exists() else path
        print(f"{path.parent} is finished: {headline(result)}; {where}; --force evaluates anew")
        if config.baseline:
            _beside(path.parent, Path(config.baseline))
    return result


def _hashes(config: EvalConfig) -> dict[str, str]:
    """Those of the weights and of the set as they are now, where they are still there."""
    found = {}
    if config.pretrained != "random":
        with suppress(OSError):
            found["weights"] = digest(Path(config.pretrained))
    with suppress(OSError, InputError):
        found["set"] = hashlib.sha256(read_manifest(open_folder(config.shards))).hexdigest()
    return found


def _beside(out: Path, folder: Path) -> None:
    """Put the baseline in ``folder`` beside the result that is in ``out``, and on its page."""
    result, ours = baseline.read(out)
    written = read_table(out / RESULT)
    written["baseline"] = baseline.against(ours, measured(result), folder)
    write(out, written, f"the differences to {folder}")
    print(baseline.lines(written))
    with dispensable("report.html"):
        page.write(out, page.folders(out))


def _within(baseline: str | None, name: str) -> str | None:
    """The part of a baseline that is beside the part of this name."""
    return baseline and str(Path(baseline, name))


def _public(value: Any) -> Any:
    return public(value) if isinstance(value, str) else value


def _averaged(values: list[Any]) -> Any:
    """The mean of numbers, or of tables of numbers by name; whole where all are the same."""
    if isinstance(values[0], dict):
        return {name: _averaged([value[name] for value in values]) for name in values[0] if all(name in v for v in values)}
    return values[0] if len(set(values)) == 1 else float(np.mean(values))


def _mean(
    config: EvalConfig, folds: Sequence[int], seeds: Sequence[int], runs: list[EvalConfig], results: list[dict[str, Any]]
) -> dict[str, Any]:
    out = Path(config.out)
    for name in ("set", "weights"):
        if len({result[name] for result in results}) > 1 and (name == "set" or config.pretrained != "random"):
            raise InputError(
                f"--out {out}: its results are of different {name}, some are older than --pretrained or --shards; --force "
                "makes them anew"
            )
    shared = {name: one for name, one in measured(results[0]).items() if all(name in result for result in results)}
    values = {name: [result[name] for result in results] for name in shared}
    unseen = [result.get("unseen", {}) for result in results]
    mean = {
        **{name: float(np.mean(found)) for name, found in values.items()},
        "metrics": {name: asdict(one) for name, one in shared.items()},
        "deviation": {name: float(np.std(found, ddof=1)) for name, found in values.items()} if len(results) > 1 else {},
        "runs": [Path(run.out).name for run in runs],
        "videos": sum(result["videos"] for result in results) // len(seeds),
        "skipped": sorted({key for result in results for key in result["skipped"]}),
        **{
            name: _averaged([result[name] for result in results])
            for name in ("classes", *GUESSES)
            if all(name in result for result in results)
        },
        "unseen": {
            kind: sorted({name for of in unseen for name in of.get(kind, [])})
            for kind in dict.fromkeys(itertools.chain(*unseen))
        },
        **{name: results[0][name] for name in ("label", "arch", "width", "set", "versions")},
        **{name: results[0][name] for name in ("precision",) if name in results[0]},  # not of earlier versions
        "weights": sorted({result["weights"] for result in results}),
        "options": {n: v for n, v in results[0]["options"].items() if n not in PLACES}
        | {"folds": list(folds), "seeds": list(seeds)},
        **circumstances(sum(result.get("seconds", 0) for result in results)),
    }
    write(out, mean, ", ".join(f"{name} {one.text(mean[name])}{one.unit}" for name, one in shared.items()))
    if config.baseline:
        with dispensable(f"the comparison with {config.baseline}"):
            _beside(out, Path(config.baseline))
    events(out, mean["options"], {name: mean[name] for name in shared})
    print(compare([*(Path(run.out) for run in runs), out]))
    with dispensable("report.html"):
        print(page.write(out, page.folders(out)))
    return mean
