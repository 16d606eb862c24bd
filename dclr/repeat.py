"""One evaluation on several folds of a data set and with several seeds: a result for each, and their mean."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from dclr import checkpoint, distributed
from dclr.compare import ACCURACIES, compare
from dclr.errors import InputError, make_folder, refuse_used
from dclr.evaluate import EvalConfig
from dclr.hardware import pick_device

FREE = {"out", "frames", "stride", "size", "workers", "cache", "cache_size", "features", "force"}  # of a result that is kept


def repeat(
    config: EvalConfig, folds: Sequence[int], seeds: Sequence[int], evaluate: Callable[[EvalConfig], dict[str, Any]]
) -> dict[str, Any]:
    """``evaluate`` for each fold (splits train0N and test0N, as ``python -m preprocess`` names UCF101's and HMDB51's) and seed,
    each into a folder of its own in ``config.out``, whose result.json has the mean of every accuracy and, as ``deviation``, its
    standard deviation (of a sample). Without folds and with one seed it is ``evaluate`` alone.

    Started again after it was killed, it goes on after the results that are there. Raises InputError for one of other options.
    """
    if not folds and len(seeds) == 1:
        return evaluate(replace(config, seed=seeds[0]))
    out = Path(config.out)
    if not config.force:
        refuse_used(out, "result.json")
    distributed.setup(pick_device())
    results, names = [], []
    every: Sequence[int | None] = folds or [None]
    for fold, seed in itertools.product(every, seeds):
        parts = ([] if fold is None else [f"fold{fold}"]) + ([f"seed{seed}"] if len(seeds) > 1 else [])
        splits: dict[str, Any] = (
            {} if fold is None else {"train_split": (f"train{fold:02}",), "test_split": (f"test{fold:02}",)}
        )
        names.append("-".join(parts))
        one = replace(config, seed=seed, out=str(out / names[-1]), **splits)
        kept = distributed.from_first(finished(one) if distributed.rank() == 0 else None)
        results.append(kept or evaluate(one))
    if distributed.rank() != 0:
        return {}
    return _mean(config, out, names, results)


def finished(config: EvalConfig) -> dict[str, Any] | None:
    """The result in ``config.out``, None where there is none (or ``--force``); raises InputError for one of other options."""
    path = Path(config.out) / "result.json"
    if config.force or not path.exists():
        return None
    result = json.loads(path.read_text())
    wanted = json.loads(json.dumps(asdict(config)))
    for name in sorted(set(wanted) - FREE):
        if result["options"].get(name) != wanted[name]:
            raise InputError(
                f"{path}: made with --{name.replace('_', '-')} {result['options'].get(name)}, not {wanted[name]}; name another "
                "--out, or --force makes it anew"
            )
    print(f"{path}: it is there, and kept")
    return result


def _mean(config: EvalConfig, out: Path, names: list[str], results: list[dict[str, Any]]) -> dict[str, Any]:
    shared = [name for name in results[0] if ACCURACIES.fullmatch(name) and all(name in result for result in results)]
    values = {name: [result[name] for result in results] for name in shared}
    mean = {
        **{name: float(np.mean(found)) for name, found in values.items()},
        "deviation": {name: float(np.std(found, ddof=1)) for name, found in values.items()} if len(results) > 1 else {},
        "runs": names,
        "videos": sum(result["videos"] for result in results),
        **{name: results[0][name] for name in ("classes", "label", "arch", "width", "weights", "set", "versions")},
        "options": asdict(config),
    }
    make_folder(out)
    temporary = checkpoint.temporary(out / "result.json")
    temporary.write_text(json.dumps(mean, indent=1) + "\n")
    temporary.replace(out / "result.json")
    print(compare([out / name for name in names] + [out]))
    return mean
