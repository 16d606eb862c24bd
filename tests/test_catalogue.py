"""Every error that a user may meet: how it is worded, that the suite has tried it, and those that no other test makes."""

from __future__ import annotations

import os
import re
import sys
import tarfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import catalogue
import numpy as np
import pytest
import torch
from catalogue import REPOSITORY, TRIED, UNTRIED, Place, places, untried
from safetensors.numpy import save_file

from dclr.checkpoint import CHECKPOINT_VERSION, _pixels, _require_held, load, load_trunk
from dclr.data.clips import ClipConfig
from dclr.data.config import share
from dclr.data.fetch import Cache
from dclr.data.loader import ReadRecords, TrainLoader, _source, all_skipped, eval_loader
from dclr.data.loader import _check as _check_loader
from dclr.data.manifest import Entry, Header, ShardSet, parse_columns, read_index
from dclr.distributed import check_environment
from dclr.errors import InputError, exit_on_input_error
from dclr.evaluation.baseline import SCORES, Each, _each, _joined
from dclr.evaluation.config import EvalConfig, Prediction, made_otherwise
from dclr.evaluation.features import read as read_features
from dclr.evaluation.finetune import finetuned
from dclr.evaluation.repeat import _mean
from dclr.evaluation.rows import MADE, columns, extract
from dclr.evaluation.rows import _check as check_rows
from dclr.evaluation.rows import read as read_rows
from dclr.evaluation.setting import held_out, labelled, opened, over_videos
from dclr.evaluation.videos import Namer, predict
from dclr.export import _onnx, export
from dclr.hardware import require_memory
from dclr.method.backbones import build
from dclr.method.objective import Method
from dclr.method.pixels import IMAGENET, PixelSettings
from dclr.page import write as page_write
from dclr.pretraining.config import PretrainConfig
from dclr.pretraining.pretrain import begun
from dclr.record import SampleMeta, _header, _padded, glance, pack, pack_array, parse_array, unpack
from dclr.report import report
from dclr.settings import from_flags
from dclr.storage import Folder, open_folder
from dclr.training.state import FILE, TrainState
from preprocess.__main__ import _drawn
from preprocess.add_cues import Adding, _check_space, add_cues
from preprocess.add_cues import _videos as videos_now
from preprocess.browse import Catalogue, _failure, number, serve, words
from preprocess.datasets import Video, VideoSet
from preprocess.on_ray import _connected, on_ray
from preprocess.plan import Failure, manifest_options, options_of
from preprocess.run import How, _check_part, append, finish
from preprocess.synthetic import Drawing
from preprocess.transcode import JpegEncoder, Options
from preprocess.write import add_motion, failures_name, read_failures, write_index

# Words that say what was expected, or what to do
WAY_OUT = re.compile(
    r"expected|expects|needs|; |such as|pip install|choose|rename|adds|names the|"
    r": (give|leave|name|use|copy|make|save|start|call|remove|a video) "
)
# What is said where an error is passed on, or in a part of it that is another text
ELSEWHERE = (
    "FormatError(",
    "parsing(",
    "reason(error)",
    "{why}",
    "{error}{extra}",
    "{way",
    "_mistake(",
    "{made} to resume it, or name",
)
# The way out is another file: what these read is damaged, or is none of its kind
OF_FILES = ("dclr/checkpoint.py", "dclr/training/saver.py", "dclr/compare.py", "dclr/evaluation/baseline.py", "--config {path}")


def source(place: Place) -> str:
    lines = (REPOSITORY / place.file).read_text().split("\n")[place.first - 1 : place.last]
    return re.sub(r'"\s+f?"', "", " ".join(line.strip() for line in lines))


@pytest.mark.parametrize("place", places(), ids=str)
def test_a_message_says_what_was_expected_or_the_way_out(place: Place) -> None:
    said = source(place)
    exempt = any(mark in said for mark in ELSEWHERE) or any(mark in f"{place.file} {said}" for mark in OF_FILES)
    assert exempt or WAY_OUT.search(said), said


def test_a_place_that_no_test_comes_to_is_found() -> None:
    """The recorder notes the line of an error, in a block of ``parsing`` too; a line that it has not seen is untried."""
    with pytest.raises(InputError):
        share("much")
    (here,) = [place for place in places() if place.file == "dclr/data/config.py"]
    assert here not in untried(TRIED) and here in untried(
        TRIED.keys() - {(here.file, n) for n in range(here.first, here.last + 1)}
    )
    from preprocess.plan import RunPlan

    with pytest.raises(InputError, match="not a plan of this version"):
        RunPlan.loads("{")
    assert not [place for place in untried(TRIED) if place.file == "preprocess/plan.py" and place.says.startswith("name ")]


def test_what_is_untried_is_there() -> None:
    assert {str(place) for place in places()} >= UNTRIED and len(UNTRIED) <= 6


class Session:
    """As much of pytest's session as the end of a suite looks at."""

    def __init__(self, **option: Any):
        self.exitstatus, self.shouldstop = 0, False
        self.config: Any = type("Config", (), {})()
        self.config.ArgsSource = pytest.Config.ArgsSource
        self.config.args_source = pytest.Config.ArgsSource.TESTPATHS
        self.config.option = type("Option", (), {"keyword": "", "markexpr": "", "collectonly": False} | option)


def test_a_suite_that_leaves_an_error_untried_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = {(place.file, place.first): "" for place in places()}
    (gone,) = [place for place in places() if place.file == "dclr/data/config.py"]
    for tried, code in ((seen, 0), ({key: "" for key in seen if key != (gone.file, gone.first)}, 1)):
        monkeypatch.setattr(catalogue, "TRIED", tried)
        catalogue.pytest_sessionfinish(session := Session())  # type: ignore[arg-type]
        assert session.exitstatus == code and (str(gone) in capsys.readouterr().out) == bool(code)
    catalogue.pytest_sessionfinish(part := Session(keyword="one"))  # type: ignore[arg-type]
    assert part.exitstatus == 0


@lru_cache
def sample() -> bytes:
    """Three grey frames without cues under the key k."""
    encoder = JpegEncoder(90)
    for _ in range(3):
        encoder.add([np.full((32, 48), 128, np.uint8), *[np.full((16, 24), 128, np.uint8)] * 2])
    members = {
        name: part if isinstance(part, bytes) else (part.seek(0), part.read())[1] for name, part in encoder.members().items()
    }
    return b"".join(pack("k", members, SampleMeta("v.avi", 3, 48, 32, "jpeg", (), 25.0)))


def first_member() -> bytes:
    """The pictures, as their member lies in the sample."""
    _, size = _header(sample()[:512])
    return sample()[: 512 + _padded(size)]


def part_of_set() -> Any:
    """A set of one sample, as far as it is looked at."""
    found = SimpleNamespace(
        keys=["other"], size_N=[len(sample())], where=lambda n: ("shard-000000.tar", 0, 9), folder=lambda n: "shards/mine",
        classes={},
    )  # fmt: skip
    found.place, found.damage = partial(ShardSet.place, found), partial(ShardSet.damage, found)
    return found


def header(name: str, size: int) -> bytes:
    """Of a tar's member."""
    one = tarfile.TarInfo(name)
    one.size = size
    return one.tobuf(tarfile.USTAR_FORMAT)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def without(module: str, make: Callable[[], object]) -> object:
    with mock.patch.dict(sys.modules, {module: None}):
        return make()


def raised(error: Exception) -> object:
    raise error


class Local:
    """A set on this machine."""

    remote = False

    def __str__(self) -> str:
        return "shards/mine"


def loader() -> Any:
    return SimpleNamespace(state_dict=lambda: {"batch": 1, "step": 0})


def labelled_by(train: list[int], test: list[int], labels: list[int]) -> object:
    select = {"a": np.array(train), "b": np.array(test)}
    shards: Any = SimpleNamespace(
        kind=lambda name: "action", select=lambda splits: select[splits[0]], keys=["k", "l"], labels={"action": labels}
    )
    return labelled(EvalConfig(**EVALUATION), None, "", shards, None, None, None, None)  # type: ignore[arg-type]


def opened_with(arch: str, asked: str) -> object:
    with (
        mock.patch("dclr.checkpoint.load_trunk", lambda *given: SimpleNamespace(arch=arch)),
        mock.patch("dclr.checkpoint.digest", lambda path: ""),
    ):
        return opened(EvalConfig(**EVALUATION, arch=asked))


def each(key: str) -> Each:
    return Each(1, [key], ["a"], frozenset(), {})


def no_module(make: Callable[[], object]) -> object:
    with mock.patch("importlib.util.find_spec", lambda name: None):
        return make()


def saved(at: Path, model: dict[str, torch.Tensor], only: bool = False, **more: object) -> Path:
    table = {"model": model} if only else {"version": CHECKPOINT_VERSION, "config": {}, "model": model, **more}
    torch.save(table, at / "x.pt")
    return at / "x.pt"


STATE: dict[str, Any] = {
    "kind": "pretraining", "state_version": 1, "config": {}, "model": {}, "optimiser": {}, "scaler": {}, "loader": {},
    "step": 0,
    "generator": torch.zeros(1, dtype=torch.uint8),
}  # fmt: skip


def trained() -> Any:
    return TrainState.read(STATE | {FILE: "f"}, "pretraining")


def folder_of(path: Path) -> Path:
    path.mkdir()
    return path


def unwritten(make: Callable[[], object]) -> object:
    with mock.patch("dclr.page.whole", side_effect=PermissionError(13, "Permission denied")):
        return make()


VIDEO = Video("a.mp4", {"action": 0}, ("all",), bytes=1)


def append_to(name: str, classes: dict[str, list[str]], videos: list[Video] | None = None, **options: Any) -> object:
    """To a set of a folder whose one video is in another split."""
    source = VideoSet(name, Folder("."), videos or [], classes)
    table = manifest_options(Options(), source)
    have = SimpleNamespace(manifest=SimpleNamespace(options=table, dataset="folder", classes={"action": ["a"]}))
    old = {VIDEO.id: ({"action": 0}, ["other"])}
    with mock.patch("preprocess.run.ShardSet", lambda out: have), mock.patch("preprocess.run._entries", lambda have: old):
        return append(source, Folder("shards/mine"), Options(**options), How())


def part_without_videos(at: Path) -> object:
    (at / "s.jsonl").write_text(Header("s.tar", 0, 0, "", "").dumps())
    (at / failures_name("s")).write_text(Failure("a.mp4", "open", "no video", 0.0).dumps())
    return _check_part([SimpleNamespace(name="s")], Folder(str(at)), (1, 2))  # type: ignore[list-item]


def no_host(at: Path) -> object:
    with (
        mock.patch("preprocess.browse.ShardSet"),
        mock.patch("preprocess.browse.Catalogue"),
        mock.patch("socket.getaddrinfo", side_effect=OSError(2, "no such host")),
    ):
        return serve(Folder(str(at)), "nowhere.invalid", 0)


def scored(at: Path) -> Path:
    save_file({"each": np.zeros((1, 1), np.float32)}, at / SCORES)
    return at


def finetuned_of(at: Path, state: dict[str, Any]) -> object:
    with (
        mock.patch("dclr.checkpoint.load_trunk", lambda path: SimpleNamespace(module=torch.nn.Identity())),
        mock.patch("dclr.checkpoint.read", lambda path: state),
    ):
        return finetuned(at / "x.pt")


def no_video_read() -> object:
    config = SimpleNamespace(on_error="skip", max_skipped=100, workers=0, stall_minutes=5)
    setting: Any = SimpleNamespace(config=config, shards=part_of_set(), clip=None, cache=None, skipped=[])
    with mock.patch("dclr.evaluation.setting.eval_loader", lambda *given, **more: []):
        return over_videos(setting, np.array([0]), 1, 1, "testing", lambda batch: torch.zeros(1))


def state_of(kind: str = "pretraining") -> dict[str, Any]:
    """The table of a training of no network."""
    parts: dict[str, Any] = {name: {} for name in ("config", "model", "optimiser", "scaler", "loader")}
    return {"kind": kind, "state_version": 1, "step": 0, "generator": torch.zeros(1), "revision": "r", **parts}


def begun_from(arch: str, width: int) -> object:
    trunk = SimpleNamespace(module=SimpleNamespace(pixels=IMAGENET), arch=arch, width=width)
    with mock.patch("dclr.pretraining.pretrain.load_trunk", lambda *given: trunk):
        return begun(PretrainConfig(shards=("s",), out="o", split=("a",), pretrained="w"), None)


def drawn_over(at: Path) -> object:
    (at / "manifest.json").touch()
    with (
        mock.patch("preprocess.__main__.Manifest.loads", lambda *given: SimpleNamespace(options={"seed": 5})),
        ExitStack() as stack,
    ):
        return _drawn(Drawing(), Folder(str(at)), 1, stack)


def cues_of_unfinished(at: Path) -> object:
    plan, manifest = SimpleNamespace(shards={"shard-000000": "r"}, names=[]), SimpleNamespace(options={}, shards=[])
    with (
        mock.patch("preprocess.add_cues.plan_of", lambda out: plan),
        mock.patch("preprocess.add_cues._manifest", lambda out: manifest),
    ):
        return add_cues(Folder(str(at)), ["flow"], How())


def no_cluster() -> object:
    with mock.patch.dict(sys.modules, {"ray": mock.Mock(init=mock.Mock(side_effect=ConnectionError("nobody answers")))}):
        return _connected()


def other_packages() -> object:
    """A cluster whose first node has another version of one."""
    ray = mock.MagicMock()
    ray.cluster_resources.return_value = {"CPU": 1}
    ray.wait.side_effect = lambda running: (running[:1], [])
    ray.get.return_value = ("id", "node7", "simplejpeg is 0.1")
    modules = {name: ray for name in ("ray", "ray.exceptions", "ray.util", "ray.util.scheduling_strategies")}
    with mock.patch.dict(sys.modules, modules), mock.patch.object(ray, "RayTaskError", KeyError):
        return on_ray([SimpleNamespace(estimate=1)], str, print, print)  # type: ignore[list-item, arg-type]


def environment(**given: str) -> object:
    with mock.patch.dict(os.environ, given):
        return check_environment()


def damaged(at: Path) -> Folder:
    """A set with a shard that is no tar, and whose index lacks the mean motion."""
    (at / "shard-000000.tar").write_bytes(b"x" * 2000)
    entry = Entry("k", 0, 1, 0, None, {}, [], 1, 25.0, "a.mp4")
    write_index(Folder(str(at)), "shard-000000", Header("shard-000000.tar", 1, 1, "", ""), [entry])
    return Folder(str(at))


def huge_preview() -> object:
    record = mock.MagicMock(size=(32, 48), key="k", **{"__len__.return_value": 1})
    with mock.patch("preprocess.browse.PREVIEW_BYTES", -1):
        return Catalogue._preview(None, record, [], 1)  # type: ignore[arg-type]


def unreadable() -> Any:
    """What reads the records of a set of one sample, which cannot be read."""
    broken = mock.Mock(side_effect=InputError("it is damaged"))
    return SimpleNamespace(shards=Local(), skip=True, told={0}, plan=SimpleNamespace(source=[]), _record=broken)


EVALUATION: dict[str, Any] = {
    "mode": "linear", "shards": "s", "out": "o", "pretrained": "x", "train_split": ("a",), "test_split": ("b",)
}  # fmt: skip
LABELLED = SimpleNamespace(keys=["k"], labels={"action": np.array([5])}, classes={"action": ["a"]}, splits=[])
# What the error says -> what makes it, given an empty folder
CASES: dict[str, Callable[[Path], object]] = {
    # record
    r"tar member 'k\.mjpg' twice in one sample": lambda at: unpack(first_member() + sample()),
    r"sample 'k' holds \['mjpg'\], and no json": lambda at: unpack(first_member()),
    r"x: expected \.npy version 1\.0": lambda at: parse_array(b"\x93NUMPY\x02\x00" + bytes(200), "<f4", (3,), "x"),
    r"x: 11 bytes, expected float32 \(3,\)": lambda at: parse_array(pack_array(np.zeros(3, "<f4"))[:-1], "<f4", (3,), "x"),
    r"k\.mjpg: 3 pictures, and k\.json says 2": lambda at: unpack(sample().replace(b'"frames": 3', b'"frames": 2')),
    "of 1 bytes is no sample's first member": lambda at: glance(lambda first, size: header("k.json", 1), 10**4),
    # manifest
    r"s-0\.jsonl, line 1: not the head of a shard's index .*; copy it again": lambda at: read_index(
        Folder(str(written(at / "s-0.jsonl", b"{").parent)), "s-0.jsonl"
    ),
    "index.npz: not a set's index .*; write it anew with python -m preprocess merge": lambda at: parse_columns(
        b"x", 1, 1, 1, "index.npz"
    ),
    r"shards/mine/shard-000000\.tar, sample 'other' at byte 0: 3 bytes found, \d+ expected; the shard is damaged, copy it": (
        lambda at: ShardSet.record(part_of_set(), 0, b"123")
    ),
    r"sample 'other' at byte 0: sample 'k' found": lambda at: ShardSet.record(part_of_set(), 0, sample()),
    "has no labels: make a set with labels": lambda at: ShardSet.kind(part_of_set()),
    # settings of an evaluation
    "--shots: expected numbers of videos a class": lambda at: EvalConfig(**EVALUATION, shots=()),
    r"--json .*/j: it exists; name another file or remove it": lambda at: Prediction(
        pretrained="x", json=str(written(at / "j", b""))
    ),
    "linear: the result was made by knn; name another --out": lambda at: raised(
        made_otherwise(EvalConfig(**EVALUATION), "mode", "linear", "knn", "the result")
    ),
    "--pretrained x: the result was made from another content": lambda at: raised(
        made_otherwise(EvalConfig(**EVALUATION), "weights", "1", "2", "the result")
    ),
    "a video has action 5, of 1 classes: copy the whole set again|copy the set again": lambda at: columns(
        LABELLED,
        np.zeros((1, 4)),
        np.array([0]),
        1,  # type: ignore[arg-type]
    ),
    # what is not there, or may not be
    "--out .*/x.onnx: it exists; name another or remove it": lambda at: export("x.pt", written(at / "x.onnx", b"")),
    r"pip install 'dclr\[onnx\]'": lambda at: without("onnx", lambda: _onnx(None, at / "x.onnx")),  # type: ignore[arg-type]
    r"--engine ray: Ray is not installed; pip install 'dclr\[ray\]'": lambda at: without("ray", _connected),
    r"gs://bucket/set: .*; for this place: pip install 'dclr\[gs\]'": lambda at: without(
        "fsspec", open_folder("gs://bucket/set").files
    ),
    "--baseline .*: .* is no evaluation; only these have one": lambda at: report(at, at),
    "the checkpoint to resume from: it lacks .*: an older version made it": lambda at: TrainState.read({}, "pretraining"),
    "the new shards take about 1.*GB are free; free some space": lambda at: _check_space(Folder(str(at)), 1e30),
    # what a network and its clips cannot be
    "--mean 0.5: expected three numbers, one a channel": lambda at: PixelSettings(mean=(0.5,)),
    "--mean and --std are of the same pixels: expected both or neither": lambda at: PixelSettings(mean=(0.5, 0.5, 0.5)),
    "a weight of alignment of -1: expected 0 or more": lambda at: Method(alignment=-1),
    "--mine-by energy with --flow-weight: .*, expected flow": lambda at: Method(mine_by="energy", flow_weight=1),
    "width 0: expected at least 1": lambda at: build("r3d_18", 0),
    "--quality 0: expected 1 to 100": lambda at: Options(quality=0),
    "--size 33: --codec h264 needs an even number": lambda at: Options(codec="h264", size=33),
    "--stabilise: there are no cues to stabilise; add --cues": lambda at: Options(stabilise=True, cues=()),
    "--crops 2: expected 1 .* or 3": lambda at: next(eval_loader(part_of_set(), np.array([0]), ClipConfig(), clips=1, crops=2)),
    "--on-error ask: expected one of stop, skip": lambda at: _check_loader("ask"),
    "--cache .*: shards/mine is on this machine; leave --cache out": lambda at: _check_loader(
        "stop",
        Cache(at / "cache", 1),
        Local(),  # type: ignore[arg-type]
    ),
    "2 processes and 1 samples selected": lambda at: TrainLoader(
        part_of_set(), np.array([0]), ClipConfig(), clips=1, batch=1, seed=0, world=2
    ),
    "no sample of b is selected: choose more splits": lambda at: _source(
        SimpleNamespace(first_S=np.array([0, 5]), roots=["a", "b"]),
        np.array([0, 1]),
        0,
        (),  # type: ignore[arg-type]
    ),
    "shards/mine: none of 1 samples tried could be read: copy the set again": lambda at: next(
        ReadRecords._attempts(unreadable(), 0, 0, {})
    ),
    "2 of 3 videos could not be read, more than --max-skipped 1 percent": lambda at: all_skipped({1, 2}, 3, 1.0),
    "the loader's state says batch 2, expected 1: resume with": lambda at: TrainLoader.load_state_dict(loader(), {"batch": 2}),
    "the loader's state says step -1, expected a number of batches": lambda at: TrainLoader.load_state_dict(
        loader(), {"batch": 1, "step": -1}
    ),
    # evaluations
    "expected --train-split and --test-split, or --folds in the place of both": lambda at: EvalConfig(
        **EVALUATION | {"train_split": ()}
    ),
    "--overlay o.avi: expected a name that ends in .mp4": lambda at: Prediction(pretrained="x", overlay="o.avi"),
    "--overlay o.mp4: it shows one video, and 2 are given": lambda at: predict(
        [at, at], Prediction(pretrained="x", overlay="o.mp4")
    ),
    "what is not readable: .*; finetune again": lambda at: Namer(
        SimpleNamespace(stored={"size": "x"}, precision="fp32", model=torch.nn.Identity())  # type: ignore[arg-type]
    ),
    "1 videos are in --train-split and in --test-split, such as k": lambda at: labelled_by([0], [0], [0]),
    "1 videos of .* have no label 'action', such as k: choose splits": lambda at: labelled_by([0], [1], [-1, 0]),
    "--val 0.5: every class of --train-split has one group of videos": lambda at: held_out(
        SimpleNamespace(labels={"action": np.zeros(1, int)}, keys=["k"], video_N=np.zeros(1, int)),  # type: ignore[arg-type]
        "action",
        np.array([0]),
        0.5,
        0,
    ),
    "x holds a r3d_18, not the i3d of -a: leave -a out": lambda at: opened_with("r3d_18", "i3d"),
    "seed0, seed1: seeds that could not read the same videos have no mean": lambda at: _joined(
        {"seed0": each("k"), "seed1": each("l")}
    ),
    "--out o: its results are of different set, some are older": lambda at: _mean(
        EvalConfig(**EVALUATION), (), (), [], [{"set": "1"}, {"set": "2"}]
    ),
    "features.npz: not features of python -m dclr.extract": lambda at: read_rows(written(at / "features.npz", b"x"), "key"),
    "extract.json: not of python -m dclr.extract .*; name another": lambda at: check_rows(written(at / MADE, b"x").parent, {}),
    "its features were made with other --size; name another folder": lambda at: check_rows(
        written(at / MADE, b'{"made": {"size": 1}}').parent, {"size": 2}
    ),
    r"x\.safetensors: not features that train_eval\.py kept": lambda at: read_features(written(at / "x.safetensors", b"x")),
    "--plot needs scikit-learn: pip install": lambda at: no_module(
        lambda: extract(
            SimpleNamespace(format="npz", plot=True)  # type: ignore[arg-type]
        )
    ),
    # checkpoints and runs
    "its classes are no list of names": lambda at: load_trunk(saved(at, {"a": torch.zeros(1)}, classes=5)),
    "a folder without .*: name one that dclr.export wrote": lambda at: load_trunk(at),
    r"not a checkpoint of train_pretrain\.py \(it lacks": lambda at: load(saved(at, {}, only=True)),
    "the checkpoint to resume from: it is of kind 'finetuning', expected 'pretraining'": lambda at: TrainState.read(
        state_of(kind="finetuning"), "pretraining"
    ),
    "the checkpoint to resume from: it is of another network": lambda at: TrainState.read(state_of(), "pretraining").restore(
        torch.nn.Linear(1, 1), None, None, None
    ),  # type: ignore[arg-type]
    "r: neither a training's folder .* nor an evaluation's .*; name one of these": lambda at: report(folder_of(at / "r")),
    "report.html: cannot be written .*; copy the folder": lambda at: unwritten(lambda: page_write(at, "t", [])),
    "the following arguments are required: --shards, --split, --out": lambda at: from_flags(PretrainConfig, {}),
    "--arch i3d --width 64: takes at least .* GB of memory": lambda at: require_memory(
        {"--arch i3d --width 64": 1 << 60}, torch.device("cpu")
    ),
    # stores
    "expected a bucket and a prefix alone; credentials come from": lambda at: open_folder("s3://bucket/x?key=1"),
    "a web server cannot say what it holds": lambda at: open_folder("http://localhost/x").files(),
    # sets that are made
    r"plan\.json: the set is made with size 5: .*; make it again": lambda at: options_of(
        SimpleNamespace(options={"size": 5})  # type: ignore[arg-type]
    ),
    "f, line 1: not a failure .*; remove the line": lambda at: read_failures(Folder(str(written(at / "f", b"x").parent)), "f"),
    "holds folder, not csv: name another folder": lambda at: append_to("csv", {"action": ["a"]}),
    r"has labels \['action'\], the videos to append none; expected the same": lambda at: append_to("folder", {}),
    "--size 64: .* was made with --size 128; give the same": lambda at: append_to("folder", {"action": ["a"]}, size=64),
    "1 videos in it have other labels or splits now": lambda at: append_to("folder", {"action": ["a"]}, [VIDEO]),
    "1 of 1 shards are not made yet .*; run the parts": lambda at: finish(
        Folder(str(at)),
        SimpleNamespace(shards={"shard-000000": "r"}),  # type: ignore[arg-type]
    ),
    "part 1/2 on .* kept none of its 1 videos": lambda at: part_without_videos(at),
    "crc32 is .*, its index says 0; the shard is damaged": lambda at: Adding._read(
        SimpleNamespace(out=Folder(str(written(at / "s.tar", b"abc").parent))),  # type: ignore[arg-type]
        "s.tar",
        SimpleNamespace(offset=0, size=3, crc32=0),  # type: ignore[arg-type]
    ),
    "a web server .*; --root says where the videos are now, --root none": lambda at: videos_now(
        SimpleNamespace(root="http://localhost/x", dataset="folder"),
        None,
        1,
        True,  # type: ignore[arg-type]
    ),
    "x: what it says of its pixels is not readable": lambda at: _pixels(
        Path("x"),
        "r3d_18",
        SimpleNamespace(config={"mean": "x", "std": "y", "order": "rgb"}),
        PixelSettings(),  # type: ignore[arg-type]
    ),
    "x: it says its pixels are .*: leave --mean, --std and --order out": lambda at: _pixels(
        Path("x"),
        "r3d_18",
        SimpleNamespace(config=IMAGENET.said),
        PixelSettings(order="bgr"),  # type: ignore[arg-type]
    ),
    "it does not say numbers, keys, labels, videos, as those of an earlier version": lambda at: _each(scored(at), {}),
    "not a checkpoint of train_eval.py finetune .*; finetune again": lambda at: finetuned_of(
        at, {"classes": [], "stored": {}, "config": {}, "model": {}}
    ),
    "its tensors up to a claim 36 bytes, and the file has 1": lambda at: _require_held(
        written(at / "w.pt", b"x"), {"a": torch.zeros(9)}
    ),
    "plan.json: not of options that a set can have .*; make the set again": lambda at: options_of(
        SimpleNamespace(options={"quality": []})  # type: ignore[arg-type]
    ),
    "last.pt: not a pretraining's": lambda at: begun(
        PretrainConfig(shards=("s",), out="o", split=("a",)), {"file": "last.pt", "config": {"mean": 3, "std": 3}}
    ),
    "none of 1 videos could be read: python -m preprocess verify": lambda at: no_video_read(),
    "--out x.txt: expected a name that ends in": lambda at: export("x", "x.txt"),
    "--epochs 200: the run in o was made with --cos over 3, which decide its learning rate": lambda at: PretrainConfig(
        shards="s",
        out="o",
        split=("a",),
        cos=True,  # type: ignore[arg-type]
    ).check_resumed({"cos": True, "epochs": 3}, [64], 1),
    "--pretrained w: it is i3d of width 8, not r2plus1d_10 of width 64: give -a i3d": lambda at: begun_from("i3d", 8),
    "a finished shard set is there already; name another folder": lambda at: drawn_over(at),
    r"a run that adds videos to it is not finished \(shard-000000\); start": lambda at: cues_of_unfinished(at),
    "--engine ray: .*: nobody answers; RAY_ADDRESS names": lambda at: no_cluster(),
    "--engine ray: node7: simplejpeg is 0.1; install the same packages on every node": lambda at: other_packages(),
    "shard-000000.tar: .*; the shard is damaged": lambda at: add_motion(damaged(at), "shard-000000"),
    "no such split, kind of label or order": lambda at: Catalogue._chosen(
        SimpleNamespace(shards=[0], splits={}, kinds={}),
        "9",
        "",
        "",
        "",  # type: ignore[arg-type]
    ),
    "k: its pictures are too large to show": lambda at: huge_preview(),
    "the environment has RANK=0 and no WORLD_SIZE: torchrun sets": lambda at: environment(RANK="0"),
    "the environment has WORLD_SIZE=x, expected a number from 1": lambda at: environment(WORLD_SIZE="x", RANK="0"),
    "--baseline o: it is --out itself, expected the folder of another": lambda at: EvalConfig(**EVALUATION, baseline="o"),
    "gone.avi: no such file, expected a video": lambda at: predict([at / "gone.avi"], Prediction(pretrained="x")),
    # the page of a set
    "'a': expected a number": lambda at: number("a"),
    "words to search for, expected at most": lambda at: words("a " * 1000),
    "--host nowhere.invalid --port 0: .*; expected an address": lambda at: no_host(at),
}


@pytest.mark.parametrize(("says", "make"), CASES.items(), ids=CASES)
def test_an_error_is_one_line_and_exit_code_2(
    says: str, make: Callable[[Path], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, exit_on_input_error():
        make(tmp_path)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and re.fullmatch(
        r"error: [^\n]+\n", said.partition("error: ")[1] + said.partition("error: ")[2]
    )
    assert re.search(says, said) and "Traceback" not in said


def test_a_line_of_failures_that_is_none_is_shown_with_its_reason() -> None:
    path, stage, reason = _failure("x")
    assert (path, stage) == ("", "") and reason.startswith("x: not a failure (JSON")
