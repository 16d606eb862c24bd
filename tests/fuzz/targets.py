"""Six families of readers, each fed with hostile bytes. They may raise an InputError, and take a bounded memory: nothing else.

Every reader of a family gets the same bytes; those of another format than its own it refuses at once.
"""

from __future__ import annotations

import contextlib
import io
import resource
from collections.abc import Callable
from pathlib import Path

import torch

from dclr import checkpoint
from dclr.compare import RESULT, compare
from dclr.data.manifest import Manifest, Names, parse_columns, read_index
from dclr.errors import InputError
from dclr.evaluation.baseline import SCORES, Each, read
from dclr.pretraining import page
from dclr.pretraining.config import PretrainConfig
from dclr.record import glance, unpack
from dclr.settings import Parser, from_flags
from dclr.storage import Folder
from dclr.training import saver
from dclr.training.lines import LINES
from dclr.training.optimiser import build_optimiser
from dclr.training.state import PRETRAINING, TrainState
from preprocess.browse import _failure
from preprocess.datasets import csv, diving48, hmdb51, kinetics, ssv2, ucf101
from preprocess.plan import RunPlan, options_of
from preprocess.write import read_failures

MAX_MEMORY = 200 << 20  # bytes that one execution may add to what the process took at most before
CORPUS = Path(__file__).parent / "corpus"
SAMPLES, SPLITS, KINDS = 3, 2, 1  # of the corpus' index.npz
PARSER = Parser(prog="train_pretrain.py").add(PretrainConfig)
Reader = Callable[[bytes, Path], object]


def tar(data: bytes, _: Path) -> None:
    record = unpack(data)
    middle = [len(record) // 2]
    for frames in (record.frames, *(lambda at, cue=cue: record.pictures(cue, at) for cue in record.streams)):
        with contextlib.suppress(InputError):  # the others may decode
            frames(middle)
    for cue in record.streams.keys() & {"flow"}:
        record.vectors(cue, middle)


def thumbnail(data: bytes, _: Path) -> None:
    record = glance(lambda start, size: data[start : start + size], len(data))
    record.frames([len(record) // 2])


def manifest(data: bytes, _: Path) -> None:
    Manifest.loads(data.decode(errors="replace")).dumps()


def shard_index(data: bytes, scratch: Path) -> None:
    (scratch / "shard.jsonl").write_bytes(data)
    _, entries = read_index(Folder(str(scratch)), "shard.jsonl")
    for entry in entries:
        entry.dumps().encode()


def columns(data: bytes, _: Path) -> None:
    found = parse_columns(data, SAMPLES, SPLITS, KINDS, "index.npz")
    list(Names(found["keys"], found["key_ends"]))


def plan(data: bytes, _: Path) -> None:
    found = RunPlan.loads(data)
    options_of(found)
    found.dumps().encode()


def failures(data: bytes, scratch: Path) -> None:
    _failure(data.decode(errors="replace"))
    (scratch / "failures.jsonl").write_bytes(data)
    for failure in read_failures(Folder(str(scratch)), "failures.jsonl"):
        failure.dumps().encode()


def listing(name: str, find: Callable[..., object], corpus: str, folder: bool = True) -> Reader:
    """The lists of a data set, of which the file ``name`` is hostile and those that belong to it are the corpus'."""

    def read_lists(data: bytes, scratch: Path) -> None:
        root, lists = scratch / "videos", scratch / corpus
        if not lists.exists():
            (root / "walk").mkdir(parents=True, exist_ok=True)
            (root / "walk/a.mp4").touch()
            lists.mkdir()
            for path in (CORPUS / "lists").glob(f"{corpus}-*"):
                (lists / path.name.removeprefix(f"{corpus}-")).write_bytes(path.read_bytes())
        (lists / name).write_bytes(data)
        find(Folder(str(root)), lists if folder else lists / name)

    return read_lists


def weights(suffix: str) -> Reader:
    def load(data: bytes, scratch: Path) -> None:
        path = scratch / f"weights{suffix}"
        path.write_bytes(data)
        encoder = checkpoint.load_encoder(path)
        with torch.no_grad():
            encoder.map(torch.zeros(1, 3, 2, 16, 16))

    return load


def training() -> tuple[torch.nn.Module, torch.optim.Optimizer, torch.amp.GradScaler, Loader]:
    """What the corpus' state.pt is the state of."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    return model, build_optimiser("adamw", model.parameters(), 0.1, 0.0), torch.amp.GradScaler("cpu"), Loader()


class Loader:
    """A loader's state alone."""

    step = 1

    def state_dict(self) -> dict[str, object]:
        return {"step": self.step, "seed": 0}

    def load_state_dict(self, state: dict[str, object]) -> None:
        if type(state.get("step")) is not int or state.get("seed") != 0:
            raise InputError("the loader's state")
        self.step = state["step"]  # type: ignore[assignment]


def state(data: bytes, scratch: Path) -> None:
    path = scratch / "state.pt"
    path.write_bytes(data)
    model, optimiser, scaler, loader = training()
    TrainState.read(saver.valid(path), PRETRAINING).restore(model, optimiser, scaler, loader)  # type: ignore[arg-type]
    model(torch.ones(2, 2)).sum().backward()
    optimiser.step()  # it goes on


def scores(data: bytes, scratch: Path) -> None:
    folder = scratch / "evaluation"
    folder.mkdir(exist_ok=True)
    (folder / RESULT).write_bytes((CORPUS / "config" / RESULT).read_bytes())
    (folder / SCORES).write_bytes(data)
    _, each = read(folder)
    assert isinstance(each, Each)


def recipe(data: bytes, scratch: Path) -> None:
    path = scratch / "recipe.yaml"
    path.write_bytes(data)
    from_flags(PretrainConfig, PARSER.given(["--config", str(path), "--shards", "a", "--split", "b", "--out", "c"]))


def result(data: bytes, scratch: Path) -> None:
    folder = scratch / "result"
    folder.mkdir(exist_ok=True)
    (folder / RESULT).write_bytes(data)
    compare([folder])


def training_page(name: str) -> Reader:
    def write(data: bytes, scratch: Path) -> None:
        folder = scratch / name.partition(".")[0]
        if not folder.exists():
            folder.mkdir()
            for beside in (LINES, page.CONFIG):
                (folder / beside).write_bytes((CORPUS / "config" / beside).read_bytes())
        (folder / name).write_bytes(data)
        page.write(folder)

    return write


TARGETS: dict[str, tuple[Reader, ...]] = {
    "record": (tar, thumbnail),
    "index": (manifest, shard_index, columns),
    "plan": (plan, failures),
    "lists": (
        listing("mine.csv", csv.find, "csv", folder=False),
        listing("classInd.txt", ucf101.find, "ucf101"),
        listing("trainlist01.txt", ucf101.find, "ucf101-train"),
        listing("walk_test_split1.txt", hmdb51.find, "hmdb51"),
        listing("train.csv", kinetics.find, "kinetics"),
        listing("train.json", ssv2.find, "ssv2"),
        listing("labels.json", ssv2.find, "ssv2-labels"),
        listing("Diving48_train.json", diving48.find, "diving48"),
    ),
    "checkpoint": (weights(".pt"), weights(".safetensors"), state, scores),
    "config": (recipe, result, training_page(page.CONFIG), training_page(LINES)),
}
SLOW = ("record", "checkpoint", "config", "lists")  # of which make fuzz runs fewer


def execute(target: str, data: bytes, scratch: Path) -> None:
    """One execution. Raises what is neither an InputError nor a bounded take of memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        for reader in TARGETS[target]:
            with contextlib.suppress(InputError):
                reader(data, scratch)
    if (taken := 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)) > MAX_MEMORY:
        raise MemoryError(f"{target} took {taken >> 20} MB for {len(data)} bytes")
