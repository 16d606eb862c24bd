"""What an evaluation leaves: result.json and scores first, then pictures, TensorBoard's events, report.html."""

from __future__ import annotations

import datetime
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.image import imread
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from dclr import figures, metrics
from dclr.compare import RESULT, guesses
from dclr.data.loader import eval_loader
from dclr.errors import NotKept, dispensable
from dclr.evaluation import baseline, page
from dclr.evaluation.baseline import SCORES
from dclr.evaluation.config import others
from dclr.evaluation.modes import ACCURACIES, MODES
from dclr.evaluation.setting import NO_SAMPLES, Setting
from dclr.files import whole
from dclr.hardware import machine, place, precision_name, revision
from dclr.method import losses
from dclr.method.views import normalise, to_clip
from dclr.metrics import Metric
from dclr.settings import flag
from dclr.text import plain, public
from dclr.training.curves import write_settings

Pictures = Mapping[str, Callable[[Path], object]]  # file name -> what writes it there
Numbers = Mapping[str, float | np.ndarray]  # each a number, or what each test video adds to it, (M,): it is their mean
PRINTED = 8  # numbers in the last line of an evaluation; a bias report has many
NO_SCORES: Mapping[str, np.ndarray] = {}


def overlays(setting: Setting, sample_M: np.ndarray, out: Path, trunk: nn.Module | None = None) -> Path:
    """Write a PNG: where the trunk (or ``trunk``) is active in the middle clips of up to four of these samples."""
    samples_N = np.unique(sample_M[np.linspace(0, len(sample_M) - 1, figures.SHOWN).astype(int)])
    module = place(trunk or setting.trunk.module, setting.device).eval()
    loader = eval_loader(setting.shards, samples_N, setting.clip, clips=1, cache=setting.cache, on_error="skip")
    batches = list(loader)
    clips = torch.cat([normalise(to_clip(batch["rgb"][0].to(setting.device))) for batch in batches])
    names = [setting.classes.names[c] for c in setting.label(np.concatenate([batch["sample"] for batch in batches]))]

    def active(clip_BCTHW: torch.Tensor, view: str) -> torch.Tensor:
        return losses.mean_one(losses.activation_map(module(clip_BCTHW)))

    return figures.activation_maps(active, {"v": clips}, names, out)


def save_scores(
    setting: Setting, scores_MK: np.ndarray, sample_M: np.ndarray, extra: dict[str, Any], pictures: Pictures
) -> dict[str, Any]:
    """Save scores (M, K) of M videos for the K classes that training has, by :func:`save_result`.

    Saved are accuracies, confusion counts, the accuracy of each class, and scores for all C classes, 0 for those that training
    lacks."""
    if not np.isfinite(scores_MK).all():
        rates = [f" or a smaller {flag(name)}" for name in ("lr", "probe_lr") if name in MODES[setting.config.mode].settings]
        raise FloatingPointError(f"scores are not finite and nothing was saved: try --precision fp32{''.join(rates)}")
    label_M, names = setting.label(sample_M), setting.classes.names
    counts = metrics.confusion(scores_MK.argmax(1), label_M, len(names))
    scores_MC = np.pad(scores_MK.astype(np.float32), ((0, 0), (0, len(names) - scores_MK.shape[1])))
    found = {"confused": metrics.confused(counts, names), "confusion": counts.tolist(), "class_names": names}
    return save_result(
        setting,
        metrics.each_accuracy(scores_MK, label_M),
        sample_M,
        extra | found,
        {
            "confusion.png": lambda out: figures.confusion_matrix(counts, names, out),
            "classes.png": lambda out: figures.class_bars(counts, names, out),
            **pictures,
        },
        what=ACCURACIES,
        tensors={"scores": np.ascontiguousarray(scores_MC)},
    )


def save_result(
    setting: Setting, given: Numbers, sample_M: np.ndarray, extra: dict[str, Any], pictures: Pictures,
    kinds: Sequence[str] = (), what: Mapping[str, Metric] | None = None, tensors: Mapping[str, np.ndarray] = NO_SCORES,
    beyond_B: np.ndarray = NO_SAMPLES,
) -> dict[str, Any]:  # fmt: skip
    """Write an evaluation's files and return its result.

    First result.json, with the numbers ``given`` by name of these test videos. Then what each video adds, with ``tensors``, as
    scores.safetensors; how far a baseline is; the ``pictures``, TensorBoard's events, result.json again with the names of the
    pictures that could be drawn, and report.html. With several ``kinds`` of label, chance and majority are tables by kind. What
    a number is says the mode in :data:`dclr.evaluation.modes.MODES`, or else ``what``; where neither does it is shown as it is.
    Where numbers ask other samples too, ``beyond_B``, each has values (M + B,), NaN where it does not ask.

    Raises NotKept, with the numbers in its message, where result.json cannot be written, and ValueError for a number whose name
    result.json has for something else. Any other file that fails costs that file and a warning.
    """
    out, videos = setting.out, len(sample_M)
    each = setting.each(given, sample_M, beyond_B)
    means = metrics.means(each.values)
    numbers = {name: means[name] if name in means else float(value) for name, value in given.items()}
    known = {**(what or {}), **MODES[setting.config.mode].metrics}
    measured = {name: known.get(name, Metric("number")) for name in numbers}
    result = _made(setting, numbers, measured, sample_M, extra, kinds)
    guessed = guesses(result)
    shown = {**measured, **dict.fromkeys(guessed, Metric("percent"))}
    texts = [f"{name} {shown[name].text(value)}{shown[name].unit}" for name, value in (numbers | guessed).items()]

    def said(most: int) -> str:
        more = [f"{len(numbers) - most} more numbers"] * (len(numbers) > most)
        text = ", ".join([*texts[: len(numbers)][:most], *more, *texts[len(numbers) :]])
        return f"{setting.config.mode} on {plain(setting.kind)}: {text} of {videos} videos, {result['classes']} classes"

    write(out, result, said(len(numbers)))
    print(said(PRINTED))
    for kind, names in result["unseen"].items():
        classes = setting.classes_of(kind)
        absent = int((classes.number(setting.shards.labels[kind][sample_M]) >= classes.known).sum())
        some = ", ".join(map(plain, names[:10]))
        print(
            f"no training video is of {len(names)} of the classes of {plain(kind)}: {some}{', ...' * (len(names) > 10)}; their "
            f"{absent} test videos count as wrong"
        )
    with dispensable(SCORES):
        samples = {"sample": sample_M, "label": setting.label(sample_M)}
        baseline.keep(out, each, setting.classes.names, **samples, **tensors)
    if setting.config.baseline:
        with dispensable(f"the comparison with {setting.config.baseline}"):
            result["baseline"] = baseline.against(each, measured, Path(setting.config.baseline))
            print(baseline.lines(result))
    result["pictures"] = _drawn(out, pictures)
    events(out, result["options"], numbers, result["pictures"])
    with dispensable("the list of pictures in result.json"):
        write(out, result, said(len(numbers)))
    made = [str(out / RESULT)]
    with dispensable("report.html"):
        (out / "report.html").unlink(missing_ok=True)
        made.append(str(page.write(out, [out])))
    print(", ".join(made))
    return result


def _made(
    setting: Setting, numbers: dict[str, float], measured: Mapping[str, Metric], sample_M: np.ndarray, extra: dict[str, Any],
    kinds: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """What result.json says before anything is drawn."""
    every = {kind: setting.classes_of(kind) for kind in kinds or [setting.kind]}
    guessed = {
        "chance": {kind: classes.chance for kind, classes in every.items()},
        "majority": {
            kind: classes.guessed(classes.number(setting.shards.labels[kind][sample_M])) for kind, classes in every.items()
        },
    }
    shares = {name: value for name, value in numbers.items() if measured[name].kind == "share"}
    rest = {
        "metrics": {name: asdict(metric) for name, metric in measured.items()},
        "interval": {name: metrics.interval(value, len(sample_M)) for name, value in shares.items()},
        "videos": len(sample_M),
        "skipped": sorted(set(setting.skipped)),
        "classes": len(setting.classes.names),
        **{
            name: {f"{kind}: {name}": value for kind, value in found.items()} if kinds else found[setting.kind]
            for name, found in guessed.items()
        },
        "unseen": {kind: names for kind, classes in every.items() if (names := classes.names[classes.known :])},
        "label": setting.kind,
        "arch": setting.trunk.arch,
        "width": setting.trunk.width,
        "precision": precision_name(setting.dtype),
        **extra,
        "pictures": [],
        "options": options(setting),
        "weights": setting.weights,
        "set": setting.shards.digest,
        "versions": {"dclr": revision(), "torch": torch.__version__, "numpy": np.__version__},
        **circumstances(time.monotonic() - setting.began),
    }
    if taken := numbers.keys() & rest.keys():
        raise ValueError(f"a number is called {min(taken)!r}, which result.json has for something else; it found {numbers}")
    return {**numbers, **rest}


def options(setting: Setting) -> dict[str, Any]:
    """Every option of an evaluation, and what those came to that the checkpoint decides."""
    used = {"arch": setting.trunk.arch, "width": setting.trunk.width} | setting.clip.said | setting.trunk.module.pixels.said
    given = {name: public(value) if isinstance(value, str) else value for name, value in vars(setting.config).items()}
    return given | used


def own(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without those that only other modes have."""
    return {name: value for name, value in options.items() if name not in others(options["mode"])}


def _drawn(out: Path, pictures: Pictures) -> list[str]:
    """Draw the pictures; returns the names of those that are there."""
    drawn: list[str] = []
    for name, draw in pictures.items():
        with dispensable(name):
            (out / name).unlink(missing_ok=True)
            draw(out / name)
            drawn.append(name)
        if name not in drawn:
            with suppress(OSError):
                (out / name).unlink(missing_ok=True)
    return drawn


def events(out: Path, settings: Mapping[str, Any], numbers: Mapping[str, float], pictures: Sequence[str] = ()) -> None:
    """Write TensorBoard's events: the numbers, the settings as hyperparameters and as text, and the pictures in ``out``."""
    with dispensable("TensorBoard's file"), SummaryWriter(out) as writer:
        write_settings(out, own(settings), ended=True)
        for name, value in numbers.items():
            writer.add_scalar(f"result/{name}", value)
        for name in pictures:
            writer.add_image(Path(name).stem, imread(out / name)[..., :3], dataformats="HWC")


def write(out: Path, result: Mapping[str, Any], said: str) -> None:
    """Write result.json. Where the disk does not take it, raises NotKept with ``said`` in its message: it is not lost."""
    try:
        with whole(out / RESULT) as unfinished:
            unfinished.write_text(json.dumps(result, indent=1) + "\n")
    except OSError as error:
        raise NotKept(
            f"{out / RESULT}: cannot be written ({error.strerror or error}); free some space, and the same command goes on "
            f"from what it kept. It found: {said}"
        ) from None


def circumstances(seconds: float) -> dict[str, Any]:
    """When, by which command and on what an evaluation was made, and how long it took since it was last started."""
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "command": shlex.join(map(public, sys.argv)),
        "hardware": machine(),
    }
