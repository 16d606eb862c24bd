"""What a pretraining learns, view by view, as it goes on: ``python benchmarks/study.py``

A cell is study/OBJECTIVE-mMOMENTUM/seed1: a training in the laboratory with one objective and one momentum of f_k. After each
of :data:`EPOCHS` its checkpoint is asked what the features of each view name, how far f_k has moved its keys, and which
dimensions answer to what is still and to what moves. The numbers are kept in docs/evidence/study, and what is kept is not run
again. Two cells run side by side with a thread each. A cell that was stopped goes on. ``--table`` and ``--figure FILE`` show
what is kept and run nothing.

Probes are fitted on the split fit and asked about validation. Both are parts of the split train, whose videos, without their
labels, the pretraining sees.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence import LAB, PUBLISHED, Cell, chosen, kept, make_set, one_thread, side_by_side

from dclr import canvas, checkpoint, metrics
from dclr.data.clips import ClipConfig
from dclr.data.loader import eval_loader
from dclr.data.manifest import ShardSet
from dclr.evaluation.probe import Labelled, fit_and_score
from dclr.method import norm
from dclr.method.model import DCLR, Encoder
from dclr.method.views import normalise, rgb_difference, to_clip
from dclr.pretraining.config import PretrainConfig
from dclr.pretraining.pretrain import make_model
from dclr.settings import completed
from dclr.training.lines import read_lines
from dclr.training.saver import LAST, found, number

STUDY, SEED = "study", 1
EPOCHS = (0, 1, 2, 3, 6, 12, 18, 24, 32)  # after which it is probed; each has 64 steps, and the last ends the training
COURSES = {  # objectives: flags of train_pretrain.py beside the laboratory's
    "dclr": PUBLISHED,
    "dclr-nomining": f"{PUBLISHED} --without mining",
    "moco": f"{PUBLISHED} --objective moco",
    "dclr-flow": "",
}
FOLLOWS = ("1", "0.999", "0.99", "0.97")  # momenta of f_k
ROWS = [f"{objective}-m{momentum}" for objective in COURSES for momentum in FOLLOWS]
PROBED = (("f_q", "v"), ("f_q", "d"), ("f_k", "s"), ("f_k", "d"))
CHANCE = 12.5  # percent, of each of the laboratory's kinds of label
LOGGED, WINDOW = ("loss/total", "contrast/top1_", "contrast/mined_same_"), 50  # scalars of a run; steps whose mean is taken
STYLES = {"motion": "-", "scene": "--"}  # lines of the figure
TOGETHER = 64  # videos that pass a network at once


@dataclass(frozen=True)
class Course(Cell):
    """One training, with what is measured along it."""

    def course(self, out: Path, epochs: int) -> dict[str, Any]:
        """Train in a folder below ``out`` and measure. Of the checkpoints only those that were measured stay."""
        torch.set_num_threads(1)
        objective, _, momentum = self.row.rpartition("-m")
        flags = [*LAB.pretrain.split(), *COURSES[objective].split(), "--momentum", momentum, "--seed", str(self.seed)]
        commands: list[str] = []
        command = ["train_pretrain.py", "--shards", LAB.shards, *flags, "--epochs", str(epochs), "--milestone", "1"]
        run = self._call(commands, command, out / self.name)
        points = measured(run, [epoch for epoch in EPOCHS if epoch <= epochs])
        for path in found(run):
            if number(path) not in [point["step"] for point in points]:
                path.unlink()
        return {"cell": self.name, "commands": commands, "points": points}


@dataclass(frozen=True)
class Videos:
    """The uniform clips of a split's videos: ``rgb`` uint8 (N, V, T, S, S, 3), their ``labels`` int64 (N,) of each kind, and
    their ``keys``."""

    rgb: torch.Tensor
    labels: dict[str, np.ndarray]
    keys: list[str]

    @classmethod
    def of(cls, shards: ShardSet, split: str, clip: ClipConfig) -> Videos:
        batches = list(eval_loader(shards, shards.select([split]), clip, clips=2))
        samples_N = np.array([int(batch["sample"]) for batch in batches])
        labels = {kind: label_N[samples_N] for kind, label_N in shards.labels.items()}
        return cls(torch.cat([batch["rgb"] for batch in batches]), labels, [shards.keys[n] for n in samples_N])

    def clips(self, view: str) -> Iterator[torch.Tensor]:
        """The clips as one of the views v, s and d, float32 (B V, 3, T, S, S) of up to :data:`TOGETHER` videos at a time. The
        frame of s is the middle one."""
        for part in self.rgb.split(TOGETHER):
            v = normalise(to_clip(part.flatten(0, 1)))
            if view == "s":
                yield v[:, :, v.shape[2] // 2, None].expand_as(v)
            else:
                yield (rgb_difference(v) if view == "d" else v).contiguous(memory_format=torch.channels_last_3d)


@torch.no_grad()
def pooled(encoder: Encoder, videos: Videos, view: str) -> np.ndarray:
    """The mean over a video's clips of the pooled features of one view, float32 (N, C')."""
    features = torch.cat([encoder.features({view: clips})[view].mean((2, 3, 4)) for clips in videos.clips(view)])
    return features.unflatten(0, videos.rgb.shape[:2]).mean(1).numpy()


@torch.no_grad()
def keys_of(encoder: Encoder, videos: Videos) -> torch.Tensor:
    """The embedding vv of every clip, float32 (N V, D)."""
    return torch.cat([encoder.head("vv", encoder.features({"v": clips})["v"]) for clips in videos.clips("v")])


@torch.no_grad()
def settle_statistics(model: DCLR, fit: Videos, views: Sequence[str]) -> None:
    """Take BatchNorm's statistics of these views from ``fit``, because the training has passed none such."""
    for encoder in (model.f_q, model.f_k):
        for view in views:
            norm.use_view(encoder, view)
            norm.reestimate(encoder.backbone, fit.clips(view))


def named(fit: Videos, asked: Videos, fit_NC: np.ndarray, asked_MC: np.ndarray) -> dict[str, float]:
    """How many of the videos ``asked`` a linear probe of each kind of label names, in percent."""
    result = {}
    for kind, label_N in fit.labels.items():
        scores = fit_and_score(Labelled(fit_NC[:, None], label_N), asked_MC[:, None], int(label_N.max()) + 1)
        result[kind] = round(100 * metrics.accuracies(scores, asked.labels[kind])["top1"], 2)
    return result


def alike(here: Videos, there: Videos, kind: str) -> np.ndarray:
    """The pairs of videos that share the label of this kind and of no other, bool (N, M)."""
    same = {name: here.labels[name][:, None] == there.labels[name] for name in here.labels}
    return np.logical_and.reduce([one if name == kind else ~one for name, one in same.items()])


def twins(here: Videos, there: Videos) -> np.ndarray:
    """The pairs of a video and the same one over another scene, bool (N, M): their keys end in one number."""
    ours, theirs = (np.array([key.rpartition("_")[2] for key in videos.keys]) for videos in (here, there))
    return ours[:, None] == theirs


def correlation(one_NC: np.ndarray, other_MC: np.ndarray, pair_NM: np.ndarray) -> float:
    """The correlation of a dimension over these pairs of videos, as its mean over the dimensions; 0 of one that is constant."""
    pair_NM = pair_NM / pair_NM.sum()
    one, other = one_NC - pair_NM.sum(1) @ one_NC, other_MC - pair_NM.sum(0) @ other_MC
    deviation_C = np.sqrt((pair_NM.sum(1) @ one**2) * (pair_NM.sum(0) @ other**2))
    covariance_C = (one * (pair_NM @ other)).sum(0)
    return float(np.divide(covariance_C, deviation_C, out=np.zeros_like(deviation_C), where=deviation_C > 0).mean())


def shares(static: float, dynamic: float) -> tuple[float, float]:
    """The shares of the dimensions that encode what is still and what moves, in percent: Kowal et al. 2022 ("A Deeper Dive Into
    What Deep Spatiotemporal Networks Encode"), after Esser et al. 2020.

    Both scores are the :func:`correlation` of videos that share that factor alone. The residual, which is all else, has the
    score 1, and the shares are the softmax of the three. So two factors without any correlation have 21 % each, and one that
    alone fills every dimension has 42 %. (Their program weighs dimensions by their variance; here all weigh the same.)
    """
    weights = [math.exp(score) for score in (static, dynamic, 1.0)]
    return 100 * weights[0] / sum(weights), 100 * weights[1] / sum(weights)


def logged(lines: Sequence[Mapping[str, float]], step: int) -> dict[str, float]:
    """What the run said of itself before ``step``: the means of its scalars :data:`LOGGED` over :data:`WINDOW` steps."""
    near = [line for line in lines if step - WINDOW < line["step"] <= step]
    names = sorted({name for line in near for name in line if name.startswith(LOGGED)})
    return {name: round(statistics.mean(line[name] for line in near if name in line), 4) for name in names}


def measured(run: Path, epochs: Sequence[int]) -> list[dict[str, Any]]:
    """What the checkpoints of ``run`` after these epochs know; that of epoch 0 are the weights as they were drawn."""
    config = PretrainConfig(**completed(PretrainConfig, checkpoint.load(run / LAST)["config"]))
    shards, lines = ShardSet(*config.shards), read_lines(run)
    splits = ("fit", "validation", "test", "swapped")
    videos = {split: Videos.of(shards, split, replace(config.clip, cue=None)) for split in splits}
    trained = len(shards.select(config.split))
    model = make_model(config, config.queue_length(trained), torch.float32)
    paths, points = {number(path): path for path in found(run)}, []
    before: torch.Tensor | None = None
    for step in (epoch * (trained // config.batch) for epoch in epochs):
        if step:
            model.load_state_dict(checkpoint.load(paths[step])["model"])
        unseen = [view for view in norm.VIEWS if not step or view not in config.method.views]
        settle_statistics(model.eval(), videos["fit"], unseen)
        keys = keys_of(model.f_k, videos["validation"])
        points.append({"step": step, **known(model, videos), "logged": logged(lines, step)})
        points[-1]["keys_alike"] = round(float(keys.mean(0).square().sum()), 4)  # the mean cosine of two clips' keys
        if before is not None:  # the mean cosine of a clip's keys now and at the point before
            points[-1]["key_cosine"] = round(float((keys * before).sum(1).mean()), 4)
        before = keys
    return points


def known(model: DCLR, videos: Mapping[str, Videos]) -> dict[str, Any]:
    """What the features of each view name, and how the dimensions of f_q(v) answer to what videos share: the scene alone, the
    motion alone, or with a twin the motion and the object with its texture and its places."""
    probes = {}
    for name, view in PROBED:
        features = [pooled(getattr(model, name), videos[split], view) for split in ("fit", "validation")]
        probes[f"{name}({view})"] = named(videos["fit"], videos["validation"], *features)
    test, swapped = (videos[split] for split in ("test", "swapped"))
    test_NC, swapped_NC = (pooled(model.f_q, of, "v").astype(np.float64) for of in (test, swapped))
    pairs = {kind: alike(test, swapped, kind) for kind in ("scene", "motion")} | {"twins": twins(test, swapped)}
    correlations = {name: round(correlation(test_NC, swapped_NC, pair), 4) for name, pair in pairs.items()}
    return {"probes": probes, "correlations": correlations}


def last_points() -> dict[str, dict[str, Any]]:
    """What is kept of each cell's end, by objective and momentum."""
    return {row: cells[0]["points"][-1] for row in ROWS if (cells := kept(STUDY, row))}


def table(ends: Mapping[str, Mapping[str, Any]]) -> str:
    """The last points of cells by name, in percent."""
    columns = ["motion", "scene", "texture", "motion of d", "scene of d", "mined same motion", "static", "dynamic"]
    lines = [f"| {STUDY} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, end in ends.items():
        probes, mined = end["probes"], end["logged"].get("contrast/mined_same_motion")
        values = [*probes["f_q(v)"].values(), probes["f_q(d)"]["motion"], probes["f_q(d)"]["scene"]]
        values += [mined and 100 * mined, *shares(end["correlations"]["scene"], end["correlations"]["motion"])]
        lines.append(f"| {name} | {' | '.join('' if value is None else f'{value:.1f}' for value in values)} |")
    return "\n".join(lines)


def draw(out: Path) -> Path:
    """Write a PNG of what is kept: a panel for each objective, a colour for each momentum."""
    figure, (axes,) = canvas.axes(1, len(COURSES), 3.4 * len(COURSES), 3.4, sharey=True)
    for axis, objective in zip(axes, COURSES, strict=True):
        for colour, momentum in enumerate(FOLLOWS):
            for cell in kept(STUDY, f"{objective}-m{momentum}"):
                for kind, style in STYLES.items():
                    values = [point["probes"]["f_q(v)"][kind] for point in cell["points"]]
                    axis.plot([point["step"] for point in cell["points"]], values, style, color=f"C{colour}", marker=".")
        axis.axhline(CHANCE, linestyle=":", color="0.4")
        axis.set_title(objective, fontsize=9)
        axis.set_xscale("symlog", linthresh=64, linscale=0.4)
        axis.set_xlim(-10, 2400)
        axis.set_xticks(ticks := [0, 64, 192, 384, 768, 2048], [str(step) for step in ticks])
        axis.tick_params(labelsize=7)
        axis.set_xticks([], minor=True)
        axis.set_xlabel("step", fontsize=8)
    axes[0].set_ylabel("% of validation, from f_q(v)", fontsize=8)
    lines = [axes[0].plot([], [], color=f"C{colour}", label=f"m = {momentum}")[0] for colour, momentum in enumerate(FOLLOWS)]
    lines += [axes[0].plot([], [], style, color="k", label=kind)[0] for kind, style in {**STYLES, "chance": ":"}.items()]
    axes[0].legend(handles=lines, fontsize=7, ncols=2)
    return canvas.write(figure, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", help="patterns such as 'study/dclr-m0.99/*'; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="cells side by side, a thread each")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--epochs", type=int, choices=EPOCHS[1:], default=EPOCHS[-1], help="fewer: printed, not kept")
    parser.add_argument("--table", action="store_true", help="print what is kept, run nothing")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw what is kept, run nothing")
    args = parser.parse_args()
    if args.figure:
        print(draw(args.figure))
    if args.figure or args.table:
        print(table(last_points()))
        return
    cells = chosen([Course(STUDY, row, SEED) for row in ROWS], args.cells)
    if not cells:
        parser.error(f"no cell is named {' '.join(args.cells)}: expected study/ROW/seed{SEED} of {', '.join(ROWS)}")
    whole = args.epochs == EPOCHS[-1]
    cells = [cell for cell in cells if not (whole and cell.kept.exists())]
    make_set(LAB, Path())
    os.environ.update(one_thread())
    pool = ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn"))  # the weights are drawn from the one generator
    for cell, result in side_by_side(pool, partial(Course.course, out=args.out, epochs=args.epochs), cells):
        if whole:
            cell.keep(result)
        else:
            print(json.dumps(result, indent=1))
    print(table(last_points()))


if __name__ == "__main__":
    main()
