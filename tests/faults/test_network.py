"""A web server and an S3 server that break off, lie, never end and lead elsewhere: the same batches or one error."""

from __future__ import annotations

import itertools
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import needs, upload
from servers import FileServer, Proxy, for_a_while, serving

from dclr import storage
from dclr.data.clips import ClipConfig
from dclr.data.loader import TrainLoader
from dclr.data.manifest import INDEX, MANIFEST, ShardSet
from dclr.errors import InputError
from dclr.storage import open_folder

pytestmark = needs("aiohttp")
CLIP = ClipConfig(frames=4, stride=2, size=16)
Web = tuple[type[FileServer], str]


@pytest.fixture
def web(synthetic_set: Path) -> Iterator[Web]:
    with serving(FileServer, folder=synthetic_set) as (handler, port):
        yield handler, f"http://127.0.0.1:{port}"


def batches(place: str | Path) -> list[np.ndarray]:
    """The pictures of an epoch."""
    shards = ShardSet(place)
    loader = TrainLoader(shards, shards.select(["train"]), CLIP, clips=1, batch=16, seed=0, epochs=1)
    return [batch["rgb"].numpy() for batch in loader]


def assert_same(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    assert len(one) == len(other) == 4
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("fault", ["broken", "long"])
def test_a_body_that_is_broken_off_or_of_another_length_is_asked_for_again(synthetic_set: Path, web: Web, fault: str) -> None:
    """Others: tests/data/test_fetch.py."""
    handler, url = web
    handler.faults = itertools.cycle([fault, "", ""])
    assert_same(batches(synthetic_set), batches(url))
    assert handler.served.count(fault) >= 3


def test_a_body_without_an_end_is_left_after_what_was_asked_for(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes no more memory than that."""
    handler, url = web
    shards = ShardSet(url)
    monkeypatch.setattr(storage, "WHOLE_BYTES", 10**6)
    handler.faults = itertools.repeat("endless")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        InputError, match=rf"^{url}/manifest.json: above 0 GB, or without an end; expected a file of a shard set"
    ):
        ShardSet(url)
    name, offset, size = shards.where(0)
    with pytest.raises(InputError, match=rf"^{url}/{name}: the server sends whole files where byte ranges are asked for"):
        shards.root.read(name, offset, size)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


@pytest.mark.parametrize("scheme", ["file:", "ftp://127.0.0.1:21", "data:,"])
def test_a_server_leads_to_no_other_scheme(web: Web, scheme: str) -> None:
    """A file of this machine would be read in the place of a set's."""
    handler, url = web
    handler.faults = itertools.cycle([scheme])
    with pytest.raises(InputError, match=rf"^{url}/manifest.json: NonHttpUrlRedirectClientError: {scheme}"):
        ShardSet(url)
    assert handler.served == [scheme]


def test_a_server_may_lead_to_another_host_and_not_in_a_circle(synthetic_set: Path, web: Web) -> None:
    """As those do that hand on to a store; what comes from there is checked as ever."""
    handler, url = web
    with serving(FileServer, folder=synthetic_set) as (other, port):
        handler.faults = itertools.repeat(f"http://localhost:{port}")
        assert_same(batches(synthetic_set), batches(url))
        assert len(handler.served) == len(other.served) > 5
        other.faults = itertools.repeat(url)
        with pytest.raises(InputError, match=rf"^{url}/manifest.json: TooManyRedirects"):
            ShardSet(url)


def test_a_stale_object_is_never_mixed_with_fresh_ones(synthetic_set: Path, h264_set: Path, web: Web) -> None:
    """A cache on the way has the index, or the manifest, or a shard of before."""
    handler, url = web
    handler.faults = itertools.repeat("stale")
    for name, says in ((INDEX, f"/{INDEX}: sha256 is .* says .*: copy both again"), (MANIFEST, f"/{INDEX}: sha256 is ")):
        handler.old = {f"/{name}": (h264_set / name).read_bytes()}
        with pytest.raises(InputError, match=rf"^{url}{says}"):
            ShardSet(url)
    name = ShardSet(synthetic_set).where(0)[0]
    handler.old, handler.faults = {}, itertools.repeat("")
    shards = ShardSet(url)
    handler.folder = h264_set
    with pytest.raises(
        InputError, match=rf"^{url}/{name}, sample .* at byte 0: crc32 is \d+, \d+ expected; the shard is damaged"
    ):
        shards.read(0)


@needs("moto", "s3fs")
@pytest.mark.parametrize("fault", ["503", "429", "broken", "long"])
def test_s3_that_is_busy_or_breaks_off_gives_the_batches_of_the_disk(
    synthetic_set: Path, bucket: str, unreliable: type[Proxy], fault: str, tmp_path: Path
) -> None:
    few = shutil.copytree(synthetic_set, tmp_path / "set", ignore=shutil.ignore_patterns("videos"))
    upload(Path(few), f"s3://{bucket}/set")
    unreliable.more = {"Retry-After": "0"}
    unreliable.faults = for_a_while(fault, 0.4) if fault.isdecimal() else itertools.cycle([fault, "", "", ""])
    assert_same(batches(few), batches(f"s3://{bucket}/set"))
    assert unreliable.served.count(fault) >= 2


@needs("moto", "s3fs")
def test_s3_leads_to_no_other_scheme(bucket: str, unreliable: type[Proxy]) -> None:
    unreliable.faults = itertools.repeat("file:")
    with pytest.raises(InputError, match=rf"^s3://{bucket}/a: HTTPClientError: .* file:/{bucket}/a; check the name and AWS_"):
        open_folder(f"s3://{bucket}", 0.01).read("a")
    assert unreliable.served == ["file:"]
