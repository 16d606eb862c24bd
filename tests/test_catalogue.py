"""Every error that a user may meet: how it is worded, that the suite has tried it, and those that no other test makes."""

from __future__ import annotations

import io
import re
import sys
import tarfile
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import catalogue
import numpy as np
import pytest
from catalogue import REPOSITORY, TRIED, UNTRIED, Place, places, untried

from dclr.data.config import share
from dclr.data.manifest import ShardSet, parse_columns, read_index
from dclr.errors import InputError, exit_on_input_error
from dclr.evaluation.config import EvalConfig, Prediction, made_otherwise
from dclr.evaluation.rows import columns
from dclr.export import _onnx, export
from dclr.record import SampleMeta, _header, _padded, glance, pack, pack_array, parse_array, unpack
from dclr.report import report
from dclr.storage import Folder, open_folder
from dclr.training.state import TrainState
from preprocess.add_cues import _check_space
from preprocess.on_ray import _connected
from preprocess.transcode import JpegEncoder

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
    assert not [place for place in untried(TRIED) if place.file == "preprocess/plan.py" and "a plan" in place.says]


def test_what_is_untried_is_there() -> None:
    assert {str(place) for place in places()} >= UNTRIED and len(UNTRIED) < 20


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
    found.damage = partial(ShardSet.damage, found)
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
        io.BytesIO(b"x"), memoryview(b"x"), 1, 1, 1, "index.npz"
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
    "the checkpoint to resume from lacks .*: an older version made it": lambda at: TrainState.read({}, "pretraining"),
    "the new shards take about 1.*GB are free; free some space": lambda at: _check_space(Folder(str(at)), 1e30),
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
