"""The modes of train_eval.py by name; without torch, which is imported where a mode runs.

Another mode is a :class:`Mode` in :data:`MODES` (docs/extending.md, "Another evaluation mode").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dclr.metrics import RECALLS, Metric

if TYPE_CHECKING:
    from dclr.evaluation.config import EvalConfig


@dataclass(frozen=True)
class Mode:
    """What ``train_eval.py NAME`` is.

    Attributes:
        help: what ``--help`` says of it.
        run: evaluates; returns what :func:`dclr.evaluation.result.save_result` returns.
        settings: the fields of EvalConfig that are this mode's and not every mode's.
        config: a dataclass that inherits from EvalConfig, where the mode has settings that EvalConfig lacks.
        metrics: its numbers by name. Those whose names depend on settings or on the set are given to ``save_result``.
        captions: of the pictures that it draws, by file name.
        examples: which flags do what, at the end of its ``--help``, beside those that every mode has.
    """

    help: str
    run: Callable[[EvalConfig], dict[str, Any]]
    settings: tuple[str, ...] = ()
    config: type[EvalConfig] | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)
    examples: Mapping[str, str] = field(default_factory=dict)


GIVEN = "--shards shards/mine --train-split train01 --test-split test01 --pretrained runs/mine/last.pt"  # in examples
ACCURACIES = {"top1": Metric("share"), "top5": Metric("share"), "mean_class": Metric("percent")}
OF_SCORES = {  # captions
    "confusion.png": "Confusion matrix",
    "classes.png": "Each class, with 95 % intervals and its number of test videos",
}
OF_MAPS = {"maps.png": "Where the network is active"}
OF_FEATURES = {"neighbours.png": "Test videos, and the training videos nearest to each", **OF_MAPS}


def _finetune(config: EvalConfig) -> dict[str, Any]:
    from dclr.evaluation.finetune import finetune

    return finetune(config)


def _bias(config: EvalConfig) -> dict[str, Any]:
    from dclr.evaluation.bias import bias

    return bias(config)


def _on_features(name: str) -> Callable[[EvalConfig], dict[str, Any]]:
    def run(config: EvalConfig) -> dict[str, Any]:
        from dclr.evaluation import probe

        return probe.frozen(config, getattr(probe, name))

    return run


MODES = {
    "finetune": Mode(
        "train the whole network with labels",
        _finetune,
        (
            "val",
            "average",
            "epochs",
            "optimiser",
            "lr",
            "schedule",
            "wd",
            "dropout",
            "head",
            "bn",
            "early_stop",
            "save_minutes",
        ),
        metrics=ACCURACIES,
        captions={**OF_SCORES, "curves.png": "Training curves", **OF_MAPS},
        examples={"the epoch that is best on held-out videos": f"{GIVEN} --val 0.1 --early-stop 3 --out runs/mine-held-out"},
    ),
    "linear": Mode(
        "logistic regression on frozen features",
        _on_features("linear"),
        ("val", "average", "features", "probe", "probe_lr"),
        metrics=ACCURACIES,
        captions={**OF_SCORES, **OF_FEATURES},
        examples={
            "the authors' probe, its rate chosen on held-out videos": f"{GIVEN} --probe sgd --probe-lr 0.5 5 50 --val 0.1 "
            "--out runs/mine-sgd"
        },
    ),
    "knn": Mode(
        "weighted k-NN on frozen features",
        _on_features("knn"),
        ("features",),
        metrics=ACCURACIES,
        captions={**OF_SCORES, **OF_FEATURES},
    ),
    "retrieval": Mode(
        "test videos ask training videos by frozen features",
        _on_features("retrieval"),
        ("features",),
        metrics={f"R@{k}": Metric("share") for k in RECALLS},
        captions=OF_FEATURES,
    ),
    "fewshot": Mode(
        "the linear probe on a few training videos a class",
        _on_features("fewshot"),
        ("average", "features", "shots", "draws"),
        captions=OF_FEATURES,
        examples={"other numbers of videos": f"{GIVEN} --shots 1 2 4 8 --draws 20 --out runs/mine-few"},
    ),
    "bias": Mode(
        "the linear probe on test clips that lack motion or scene, beside random weights",
        _bias,
        ("average", "features"),
        captions={
            "bias.png": "Top-1 of the probe by what the test clips lack",
            "conditions.png": "A test clip under each condition",
            **OF_FEATURES,
        },
    ),
}
