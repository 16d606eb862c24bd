"""Classes of videos as they are: what python -m dclr.predict does.

A video becomes a sample as ``python -m preprocess`` would make it, of the options that the network's set was made with, and is
cut into clips as a set's samples are. So its pixels are those of the shards, and memory holds none of it: what is encoded lies
in a temporary file.
"""

from __future__ import annotations

import json
import mmap
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import nn

from dclr.data.clips import ClipConfig, eval_clips, eval_crops
from dclr.errors import InputError, make_folder
from dclr.evaluation import overlay
from dclr.evaluation.config import Prediction
from dclr.evaluation.finetune import Finetuned, finetuned
from dclr.evaluation.probe import averaged
from dclr.evaluation.setting import forward
from dclr.hardware import pick_device, place, resolve_precision
from dclr.method import losses
from dclr.record import DEFAULT_FPS, Record, parse
from dclr.settings import flags
from dclr.text import plain
from preprocess.transcode import Options, Transcoded, TranscodeError, transcode

LONGEST = 1e6  # seconds of a video


@dataclass(frozen=True)
class Window:
    """A clip of a video: it shows what is between the seconds ``begin`` and ``end``, and what follows from it: ``scores`` of
    the classes (K,) and the mean-1 activation ``maps`` (crops, T', H', W') over ``seconds`` from its beginning on."""

    begin: float
    end: float
    seconds: float
    scores: np.ndarray
    maps: np.ndarray


@dataclass(frozen=True)
class Named:
    """A video's ``windows``, its ``scores`` as a whole (K,), and what is cut of its frames: the ``boxes`` (top, left, height,
    width) of frames of ``size`` (height, width)."""

    windows: list[Window]
    scores: np.ndarray
    size: tuple[int, int]
    boxes: list[tuple[int, int, int, int]]


class Namer:
    """A finetuned network that names the classes of videos. Raises InputError where its checkpoint does not fit."""

    def __init__(self, found: Finetuned, precision: str | None = None):
        self.found, self.device = found, pick_device()
        self.dtype = resolve_precision(precision or found.precision, self.device)
        self.model = place(found.model, self.device)
        kinds: dict[str, Any] = flags(Options)
        try:
            stored: dict[str, Any] = {
                name: None if value is None else kinds[name].kind(value) for name, value in found.stored.items()
            }
            self.options = Options(**stored | {"cues": (), "max_seconds": LONGEST})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the checkpoint says of its set's frames what is not readable: {error}; finetune again") from None

    def __call__(self, video: Path) -> Named:
        """Raises TranscodeError for a video that cannot be read."""
        how, windows, every = self.found.how, list[Window](), list[np.ndarray]()
        for made in transcode(video.absolute(), self.options):
            record = as_record(made)
            windows += self._windows(record)
            clips = torch.from_numpy(eval_clips(record, self.found.clip, how.test_clips, how.crops)["rgb"])
            every.append(averaged(forward(self.model, self, clips), how.average).cpu().numpy())
        scores_K = np.mean(every, axis=0)  # of a set that cuts videos into segments, as its evaluation does
        if not np.isfinite(scores_K).all():
            raise FloatingPointError(f"{video}: its scores are not finite: try --precision fp32")
        return Named(windows, scores_K, record.size, eval_crops(*record.size, how.crops))

    def _windows(self, record: Record) -> Iterator[Window]:
        """The clips that follow each other from the first frame to the last; the last one ends there."""
        found, crops = self.found, self.found.how.crops
        clip = found.clip.of(record.meta.fps)
        starts = window_starts(len(record), clip)
        seconds = clip.span / (record.meta.fps or DEFAULT_FPS)
        for part in (starts[n : n + found.how.test_clips] for n in range(0, len(starts), found.how.test_clips)):
            cut = eval_clips(record, found.clip, len(part), crops, starts=part)
            with _kept(self.model.backbone) as features:
                logits_NK = forward(self.model, self, torch.from_numpy(cut["rgb"]))
            map_NTHW = losses.mean_one(losses.activation_map(features[0])).cpu().numpy()
            scores = averaged(logits_NK.unflatten(0, (-1, crops)), found.how.average).cpu().numpy()
            for n, (begin, end) in enumerate(cut["seconds"][::crops].tolist()):
                yield Window(begin, end, seconds, scores[n], map_NTHW[n * crops : (n + 1) * crops])


@contextmanager
def _kept(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Inside, a list of what the module returned."""
    kept: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _, inputs, output: kept.append(output))
    try:
        yield kept
    finally:
        handle.remove()


def window_starts(total: int, clip: ClipConfig) -> list[int]:
    """Where clips begin that show all of ``total`` frames, side by side but for the last one.

    >>> window_starts(100, ClipConfig(frames=16, stride=2)), window_starts(20, ClipConfig(frames=16, stride=2))
    ([0, 31, 62, 69], [0])
    """
    last = max(0, total - clip.span)
    return [*range(0, last, clip.span), last]


def as_record(made: Transcoded) -> Record:
    """The sample as a reader of shards has it; what is large is mapped from its temporary file."""
    contents = {name: _view(member) for name, member in made.members.items()}
    return parse(contents | {"json": memoryview(made.meta.dumps()), "key": memoryview(b"video")})


def _view(member: bytes | IO[bytes]) -> memoryview:
    if isinstance(member, bytes):
        return memoryview(member)
    number = member.fileno()  # which puts it on the disk
    member.flush()
    return memoryview(mmap.mmap(number, 0, access=mmap.ACCESS_READ))


def predict(videos: Sequence[Path], config: Prediction) -> None:
    """Print what the videos show, and write ``--json`` and ``--overlay``. Exits with 1 where a video could not be read; the
    others are done."""
    if config.overlay and len(videos) > 1:
        raise InputError(f"--overlay {config.overlay}: it shows one video, and {len(videos)} are given; give one")
    if absent := [plain(str(video), 300) for video in videos if not video.is_file()]:
        raise InputError(f"{absent[0]}: no such file, expected a video" + f" ({len(absent)} are not there)" * (len(absent) > 1))
    namer, failed = Namer(finetuned(Path(config.pretrained)), config.precision), 0
    for path in filter(None, (config.json, config.overlay)):
        make_folder(Path(path).parent, f"--{'json' if path == config.json else 'overlay'}")
    for video in videos:
        try:
            named = namer(video)
            lines = said(named, namer.found.classes, config.top)
            print("\n".join([plain(str(video), 300), *lines]), flush=True)
            table = table_of(named, namer.found.classes)
            if config.overlay:
                shown = {namer.found.classes[k]: k for k in best(named.scores, config.top)}
                overlay.write(video, named, shown, namer.options, Path(config.overlay))
                print(config.overlay)
        except TranscodeError as error:
            failed, table = failed + 1, {"error": f"{error.stage}: {error}"}
            print(f"failed: {plain(str(video), 300)}: {error.stage}: {error}", file=sys.stderr)
        if config.json:
            with Path(config.json).open("a") as file:
                file.write(json.dumps({"video": str(video), **table}) + "\n")
    if failed:
        raise SystemExit(f"error: {failed} of {len(videos)} videos could not be read; the others are done")


def said(named: Named, classes: Sequence[str], top: int) -> list[str]:
    """A line for each window, and one for the whole video."""
    rows = [(f"{one.begin:7.2f} to {one.end:.2f} s", one.scores) for one in named.windows] + [("whole video", named.scores)]
    width = max(len(when) for when, _ in rows)
    return [
        f"{when.rjust(width)}  " + ", ".join(f"{plain(classes[k])} {100 * scores[k]:.1f} %" for k in best(scores, top))
        for when, scores in rows
    ]


def best(scores_K: np.ndarray, top: int) -> list[int]:
    """The classes with the highest scores, the best first."""
    return np.argsort(-scores_K, kind="stable")[:top].tolist()


def table_of(named: Named, classes: Sequence[str]) -> dict[str, Any]:
    """A line of ``--json``: the classes, and the probability of each in the whole video and in each window."""
    windows = [{"start": one.begin, "end": one.end, "scores": one.scores.tolist()} for one in named.windows]
    return {"classes": list(classes), "scores": named.scores.tolist(), "windows": windows}
