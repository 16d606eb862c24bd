"""Stores beside S3: a fake one takes the place of Google's, Azure's and Hugging Face's clients, and fails on purpose."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
from conftest import REPOSITORY, SMALL, refuse, render, run, succeed
from fsspec.registry import _registry as KNOWN

from dclr.errors import AGAIN, InputError
from dclr.storage import STORES, open_folder
from preprocess.synthetic import encode

FAKE = '''"""Places below $FAKE_STORE. Of seven answers of a process three are errors that may pass, and one is a byte short."""
import itertools, os
from pathlib import Path
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

class Busy(Exception):
    code = 503

class Denied(Exception):
    status_code = 403

FAULTS = itertools.cycle([ConnectionResetError("reset"), Busy("busy"), TimeoutError("late"), None, "short", None, None])

class Fake(DirFileSystem):
    def __init__(self, **options):
        super().__init__(path=os.environ["FAKE_STORE"], fs=LocalFileSystem(auto_mkdir=True), **options)

    @classmethod
    def _strip_protocol(cls, path):
        return path.partition("://")[2] if "://" in path else path

    def _asked(self, path):
        asked = Path(os.environ["FAKE_STORE"], "requests")
        with asked.open("a") as file:
            file.write(f"{path}\\n")
        if "denied" in path:
            raise Denied("no")
        if os.environ.get("FAKE_DOWN", "none is") in path:
            raise ConnectionRefusedError("down")
        fault = next(FAULTS)
        if isinstance(fault, Exception):
            raise fault
        return fault

    def cat_file(self, path, start=None, end=None, **options):
        fault = self._asked(path)
        data = super().cat_file(path, start, end)
        return data[:-1] if fault == "short" and end else data

    def find(self, path, **options):
        self._asked(path)
        return super().find(path, **options)

    def info(self, path, **options):
        self._asked(path)
        return super().info(path, **options)

    def get_file(self, path, local, **options):
        self._asked(path)
        return super().get_file(path, local)

    def put_file(self, local, path, **options):
        self._asked(path)
        return super().put_file(local, path)

    def pipe_file(self, path, value, **options):
        self._asked(path)
        return super().pipe_file(path, value)
'''


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the fake client is installed; places are folders of ``tmp_path / "store"``."""
    packages, store = tmp_path / "packages", tmp_path / "store"
    installed = packages / "fake_store-1.0.dist-info"
    installed.mkdir(parents=True)
    store.mkdir()
    (packages / "fake_store.py").write_text(FAKE)
    (installed / "METADATA").write_text("Name: fake_store\nVersion: 1.0\n")
    names = "".join(f"{name} = fake_store:Fake\n" for name in ("gs", "az", "hf"))
    (installed / "entry_points.txt").write_text(f"[fsspec.specs]\n{names}")
    monkeypatch.setenv("FAKE_STORE", str(store))
    return packages


def test_a_set_made_and_read_in_a_store_that_fails_is_the_local_one(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        encode(render("left", "dots", (number,))[0], 25, tmp_path / "store/in" / "AB"[number % 2] / f"{number}.mp4")
    made = ("-m", "preprocess", "folder", "--size", "32", "--workers", "1")
    local, place = tmp_path / "local", "gs://out"
    succeed(*made, "--root", tmp_path / "store/in", "--out", local)
    for lost, at in (("A/2.mp4", "gs://in/A/2.mp4"), ("shard-", "gs://out/shard-000000.tar")):  # one reads, one writes
        monkeypatch.setenv("FAKE_DOWN", lost)
        done = run(*made, "--root", "gs://in", "--out", place, "--patience", "0.01", installed=fake)
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode == AGAIN and last.startswith(f"error: {at}: ConnectionRefusedError: down; no answer for 0.01")
    monkeypatch.delenv("FAKE_DOWN")
    assert "4 videos in 1 shards" in succeed(*made, "--root", "gs://in", "--out", place, installed=fake)
    for name in ("shard-000000.tar", "shard-000000.jsonl", "index.npz", "manifest.json"):
        assert (tmp_path / "store/out" / name).read_bytes() == (local / name).read_bytes()
    assert "no faults" in succeed("-m", "preprocess", "verify", place, "--workers", "1", installed=fake)
    flags = ("--split", "all", *SMALL, "-b", "2", "--mined", "1", "--epochs", "1")
    succeed("train_pretrain.py", "--shards", place, *flags, "--out", tmp_path / "run", installed=fake)
    assert (tmp_path / "run/last.pt").is_file()


def test_what_a_store_denies_is_asked_once_and_its_own_variables_are_named(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(fake))
    client = __import__("fake_store").Fake
    named = {"gs": "GOOGLE_APPLICATION_CREDENTIALS", "az": "AZURE_STORAGE_CONNECTION_STRING", "hf": "HF_TOKEN"}
    for scheme, variable in named.items():
        monkeypatch.setitem(KNOWN, scheme, client)
        (tmp_path / "store/requests").unlink(missing_ok=True)
        with pytest.raises(InputError, match=rf"^{scheme}://bucket/denied: Denied: no; check the name and .*{variable}"):
            open_folder(f"{scheme}://bucket").read("denied")
        assert (tmp_path / "store/requests").read_text().splitlines() == [f"{scheme}://bucket/denied"]


@pytest.mark.parametrize("scheme", ["gs", "az", "hf"])
def test_a_client_that_is_missing_is_named_with_its_extra(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("gcsfs", "adlfs", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"^{scheme}://bucket/set: .*; for this place: pip install 'dclr\[{scheme}\]'$"):
        open_folder(f"{scheme}://bucket/set").files()


def test_every_extra_of_a_store_is_there() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert {store.extra for store in STORES.values()} <= project["optional-dependencies"].keys()


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("file:///data/set", "a path needs no scheme"),
        ("local:///data/set", "a path needs no scheme"),
        ("memory://set", "each process has a memory of its own"),
        ("github://org:repo@main/set", "a source repository holds no videos and no shards"),
        ("dir://set::file:///data", "it is a place inside another one"),
        ("simplecache::s3://bucket/set", "it is a place inside another one"),
        ("zip://set::s3://bucket/a.zip", "it is a place inside another one"),
    ],
)
def test_a_scheme_that_makes_no_sense_is_refused_by_name(place: str, why: str, tmp_path: Path) -> None:
    for command in (
        ("-m", "preprocess", "folder", "--root", place, "--out", tmp_path / "set"),
        ("-m", "preprocess", "folder", "--root", REPOSITORY / "docs", "--out", place),
        ("train_pretrain.py", "--shards", place, "--split", "all", "--out", tmp_path / "run"),
    ):
        assert why in refuse(*command)
