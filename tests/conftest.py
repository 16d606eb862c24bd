"""What the tests share: a small embedded set, made once, an S3 server, and the real clips where they are at hand."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from catalogue import pytest_sessionfinish, pytest_testnodedown  # noqa: F401  # hooks
from hypothesis import settings
from servers import Proxy, free_port, serving
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dclr.record import Record, pack, unpack
from dclr.storage import open_folder
from preprocess.synthetic import HARD
from preprocess.transcode import Options, transcode

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")
REPOSITORY = Path(__file__).parent.parent
REAL = REPOSITORY.parent / "shared" / "data"


def needs(*modules: str) -> pytest.MarkDecorator:
    """Skip, saying so, where an extra is not installed."""
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)} (pip install -e '.[dev]')")


needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real clips are not at {REAL}")


def run(*command: object, ranks: int = 0, installed: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a documented command (``train_pretrain.py``, ``-m preprocess``, ...) as a user would, from the repository. Packages
    in the folder ``installed`` are installed too."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    packages = os.pathsep.join(map(str, filter(None, (REPOSITORY, installed))))
    environment = os.environ | {"PYTHONPATH": packages, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *launch, *map(str, command)],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def succeed(*command: object, ranks: int = 0, installed: Path | None = None) -> str:
    """:func:`run`, which must succeed; returns what it printed."""
    done = run(*command, ranks=ranks, installed=installed)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refuse(*command: object, code: int = 2) -> str:
    """The command, which must be refused as a user's mistake: exit code 2, a last line with the error, no traceback. Another
    ``code`` is that of another error for a user.

    Python runs it as ``python command...`` does, within this process: starting another takes longer than most refusals.
    """
    module, said = command[0] == "-m", io.StringIO()
    argv, path = sys.argv, list(sys.path)
    try:
        sys.argv = [str(part) for part in command[module:]]
        sys.path.insert(0, str(REPOSITORY))
        with contextlib.chdir(REPOSITORY), contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True) if module else runpy.run_path(
                str(REPOSITORY / sys.argv[0]), run_name="__main__"
            )
    except SystemExit as ended:
        assert ended.code == code, (ended.code, said.getvalue())
    else:
        raise AssertionError(f"not refused: {said.getvalue()}")
    finally:
        sys.argv, sys.path[:] = argv, path
    assert "Traceback" not in said.getvalue()
    return said.getvalue().strip().splitlines()[-1]


def scalars(run: Path) -> dict[str, list[float]]:
    """The TensorBoard curves of a run's folder."""
    events = EventAccumulator(str(run))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def stored(path: Path, **options: object) -> Record:
    """The one sample of a video, read back."""
    (done,) = transcode(path, Options(**options))  # type: ignore[arg-type]
    return unpack(b"".join(pack("k", done.members, done.meta)))


def render(motion: str, scene: str, seed: tuple[object, ...]) -> tuple[np.ndarray, int]:
    """A drawn video of 40 to 64 frames, uint8 (N, H, W, 3), about 110 pixels a side, and its frame rate."""
    return HARD.render(motion, scene, "", seed)


@pytest.fixture(scope="session")
def synthetic_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 embedded videos (64 train, 32 test), short side 32, in shards of about 1 MB."""
    out = tmp_path_factory.mktemp("shards") / "tiny"
    cues = ("--cues", "diff,flow,energy")
    succeed(
        "-m", "preprocess", "synthetic", "--hard", "--out", out, "--videos", "96", "--size", "32", "--shard-size", "1", *cues
    )
    return out


@pytest.fixture(scope="session")
def h264_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 embedded videos as H.264."""
    out = tmp_path_factory.mktemp("shards") / "h264"
    succeed("-m", "preprocess", "synthetic", "--hard", "--out", out, "--videos", "64", "--size", "32", "--codec", "h264")
    return out


@pytest.fixture(scope="session")
def checkpoint(synthetic_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network pretrained for two epochs on the embedded set, in one process."""
    out = tmp_path_factory.mktemp("runs") / "first"
    succeed(
        "train_pretrain.py", "--shards", synthetic_set, "--split", "train", "--out", out, *SMALL, "-b", "8", "--epochs", "2"
    )
    return out / "last.pt"


@pytest.fixture(scope="session")
def server() -> Iterator[int]:
    """The port of moto's S3 server, a process of its own."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"MOTO_S3_DEFAULT_MAX_KEYS": "10"},
    )  # fmt: skip
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def unreliable(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Proxy]]:
    """A way to the server that can fail; the environment leads there."""
    with serving(Proxy, upstream=server) as (handler, port):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        yield handler


@pytest.fixture
def bucket(server: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A new bucket, with the environment that a user has for it."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server}",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    import s3fs

    name = f"bucket-{abs(hash(request.node.name)) % 10**9}"
    s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"], skip_instance_cache=True).mkdir(name)
    return name


def upload(folder: Path, place: str) -> None:
    remote = open_folder(place)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            remote.write(path.relative_to(folder).as_posix(), path.read_bytes())


SMALL = ["-a", "r2plus1d_10", "--width", "4", "-fpc", "4", "-cs", "32", "--precision", "fp32", "-j", "0"]
