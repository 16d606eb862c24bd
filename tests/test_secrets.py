"""What is secret in a place that a user names reaches no file, picture, log, error or TensorBoard event."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SMALL, needs, run
from servers import FileServer, serving

from dclr.data.manifest import ShardSet
from dclr.errors import AGAIN

pytestmark = needs("aiohttp")
WORD, SIGNATURE = "pa55w0rd", "51gnature"


@pytest.fixture
def place(synthetic_set: Path) -> Iterator[str]:
    """The set behind a web server that wants the signature behind every name, as a signed folder's does."""

    class Signed(FileServer):
        def answer(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            path, _, query = self.path.partition("?")
            if query != f"X-Signature={SIGNATURE}" or not (self.headers["Authorization"] or "").startswith("Basic "):
                return 403, {}, b""
            self.path = path
            return super().answer(body)

    with serving(Signed, folder=synthetic_set) as (_, port):
        yield f"http://me:{WORD}@127.0.0.1:{port}?X-Signature={SIGNATURE}"


def searched(folder: Path) -> int:
    """How many files there are, none with a secret in it or in its name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        for secret in (WORD, SIGNATURE):
            assert secret.encode() not in path.read_bytes() and secret not in str(path), path
    return len(files)


def test_a_whole_run_keeps_no_secret(place: str, tmp_path: Path) -> None:
    assert len(ShardSet(place)) == 96
    out, cache = tmp_path / "run", tmp_path / "cache"
    common = ("--shards", place, *SMALL, "--cache", cache)
    runs = [run("train_pretrain.py", *common, "--split", "train", "-b", "8", "--epochs", "1", "--out", out)]
    splits = ("--train-split", "train", "--test-split", "test", "--test-clips", "1", "-cpv", "1")
    trained = [*common[:2], *SMALL[4:], "--cache", cache, *splits, "--pretrained", out / "last.pt"]
    for mode in ("linear", "finetune"):
        more = ("--epochs", "1", "-b", "16") if mode == "finetune" else ()
        runs.append(run("train_eval.py", mode, *trained, *more, "--out", tmp_path / mode))
    for done in runs:
        assert done.returncode == 0, done.stderr
    runs.append(run("train_pretrain.py", *common, "--split", "train", "-b", "8", "--epochs", "1", "--out", out))  # resumed
    assert "it is finished" in runs[-1].stdout
    gone = place.replace("127.0.0.1", "127.0.0.1/gone")
    lost = ("--shards", gone, "--split", "train", "--patience", "0.002")
    runs.append(run("train_pretrain.py", *common[2:], *lost, "--out", tmp_path / "gone"))
    runs.append(run("-m", "preprocess", "folder", "--root", gone, "--out", tmp_path / "made"))
    runs.append(run("-m", "preprocess", "stats", f"s3://k:{WORD}@bucket/set"))
    assert [done.returncode for done in runs[-3:]] == [AGAIN, 2, 2]
    for done in runs:
        assert not any(secret in done.stdout + done.stderr for secret in (WORD, SIGNATURE)), (done.stdout, done.stderr)
    assert searched(tmp_path) > 20
    kept = json.loads((tmp_path / "linear" / "result.json").read_text())["options"]["shards"]
    assert kept == "http://" + place.partition("@")[2].partition("?")[0]
