"""Samples behind a URL: the same batches as from the disk, few bytes and requests, whatever the network does."""

import itertools
import multiprocessing
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, needs, refuse, succeed, upload
from servers import FileServer, Proxy, for_a_while, free_port, serving
from test_loader import CLIP, assert_same, loader, take

from dclr.data import fetch
from dclr.data.fetch import Cache, MiddleFrames
from dclr.data.loader import eval_loader
from dclr.data.manifest import ShardSet
from dclr.errors import AGAIN, InputError, Unreachable
from dclr.storage import open_folder

pytestmark = needs("aiohttp")


@pytest.fixture
def copied(synthetic_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(synthetic_set, tmp_path / "copy", ignore=shutil.ignore_patterns("videos")))


@pytest.fixture
def web(copied: Path) -> Iterator[tuple[type[FileServer], str]]:
    """A set behind a web server: its handler, and the URL."""
    with serving(FileServer, folder=copied) as (handler, port):
        yield handler, f"http://127.0.0.1:{port}"


def tars(handler: type[FileServer] | type[Proxy]) -> tuple[int, int]:
    """(requests, bytes) for shards."""
    return tuple(sum(n for path, n in counts.items() if path.endswith(".tar")) for counts in (handler.requests, handler.sent))  # type: ignore[return-value]


def selected_bytes(folder: Path, split: str = "train") -> int:
    shards = ShardSet(folder)
    return int(shards.size_N[shards.select([split])].sum())


@pytest.mark.parametrize("workers", [0, 2])
def test_http_gives_the_batches_of_the_disk_for_the_bytes_selected(
    copied: Path, web: tuple[type[FileServer], str], workers: int
) -> None:
    handler, url = web
    shards = ShardSet(url)
    assert dict(handler.requests) == {"/manifest.json": 1, "/index.npz": 1}
    for rank in range(2):
        share = {"rank": rank, "world": 2, "epochs": 1}
        assert_same(list(loader(copied, **share)), list(loader(url, workers=workers, **share)))
    assert selected_bytes(copied) <= tars(handler)[1] <= 1.1 * selected_bytes(copied)
    assert shards.digest == ShardSet(copied).digest


def test_an_evaluation_asks_for_neighbours_at_once(copied: Path, web: tuple[type[FileServer], str]) -> None:
    handler, url = web
    local, remote = ShardSet(copied), ShardSet(url)
    test = local.select(["test"])
    assert_same(list(eval_loader(local, test, CLIP, clips=2)), list(eval_loader(remote, test, CLIP, clips=2)))
    requests, sent = tars(handler)
    assert requests <= len(local.manifest.shards) and sent == selected_bytes(copied, "test")


def test_what_lies_ahead_is_bounded(web: tuple[type[FileServer], str], monkeypatch: pytest.MonkeyPatch) -> None:
    handler, url = web
    some = loader(url, batch=4)
    largest = int(some._stages[0].shards.size_N.max()) * 4
    monkeypatch.setattr(fetch, "AHEAD", 4 * largest)
    used = 0
    for batch in some:
        used += int(some._stages[0].shards.size_N[batch["sample"]].sum())
        assert tars(handler)[1] - used <= 4 * largest


@pytest.mark.parametrize("fault", ["500", "reset", "hang up", "short", "garbled", "late"])
def test_what_the_network_does_changes_no_byte(
    copied: Path, web: tuple[type[FileServer], str], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, url = web
    monkeypatch.setattr(fetch, "AHEAD", 2**20)  # many requests
    handler.faults = itertools.cycle([fault, "", ""])
    assert_same(list(loader(copied)), list(loader(url)))
    assert handler.served.count(fault) >= 10


@pytest.mark.parametrize("fault", ["503", "408", "429", "reset", "hang up"])
def test_an_outage_is_waited_for(copied: Path, web: tuple[type[FileServer], str], fault: str) -> None:
    handler, url = web
    some = loader(url)
    handler.faults, handler.more = for_a_while(fault, 0.4), {"Retry-After": "0"}
    assert_same(list(loader(copied)), list(some))
    assert handler.served.count(fault) >= 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_is_gone_for_a_while_is_waited_for(copied: Path, workers: int) -> None:
    with serving(FileServer, folder=copied) as (_, port):
        some = loader(f"http://127.0.0.1:{port}", workers=workers)

    def later() -> None:
        time.sleep(0.5)
        with serving(FileServer, port=port, folder=copied):
            seen.wait()

    seen = threading.Event()
    back = threading.Thread(target=later)
    back.start()
    try:
        assert_same(list(loader(copied)), list(some))
    finally:
        seen.set()
        back.join()


@pytest.mark.parametrize("workers", [0, 1])
def test_patience_ends(web: tuple[type[FileServer], str], workers: int) -> None:
    """With the URL and the last error; --on-error skip is for damage, not for an outage."""
    handler, url = web
    some = loader(url, workers=workers, on_error="skip")
    some._stages[0].shards.root.patience = 0.01
    handler.faults = itertools.repeat("503")
    said = rf"^{url}/shard-\d+.tar: ClientResponseError: 503, .*; no answer for 0.01 minutes \(--patience\); check the name"
    with pytest.raises(Unreachable, match=said):
        list(some)


@pytest.mark.parametrize("fault", ["403", "404", "400"])
def test_what_will_not_pass_is_asked_once(web: tuple[type[FileServer], str], fault: str) -> None:
    handler, url = web
    handler.faults = itertools.repeat(fault)
    with pytest.raises(InputError, match=f"{url}.*(no manifest|{fault})"):
        ShardSet(url)
    assert handler.served == [fault]


def test_a_server_that_packs_what_it_sends_is_asked_not_to(copied: Path, web: tuple[type[FileServer], str]) -> None:
    handler, url = web
    handler.packs = True
    assert_same(take(loader(copied), 2), take(loader(url), 2))


def test_a_changed_object_is_named_with_what_was_found_and_expected(copied: Path, web: tuple[type[FileServer], str]) -> None:
    _, url = web
    shards = ShardSet(url)
    sample = int(shards.select(["train"])[0])
    name, offset, size = shards.where(sample)
    with (copied / name).open("r+b") as file:
        file.seek(offset + size // 2)
        file.write(b"something else")
    said = rf"{url}/{name}, sample '{shards.keys[sample]}' at byte {offset}: crc32 is \d+, {shards.crc32_N[sample]} expected"
    with pytest.raises(InputError, match=said):
        list(loader(url))
    some = loader(url, on_error="skip")
    assert len(list(some)) == 8 and some.skipped == {sample}


def test_a_truncated_or_missing_object_is_named(copied: Path, web: tuple[type[FileServer], str]) -> None:
    _, url = web
    last = ShardSet(url).manifest.shards[-1].name
    (copied / last).write_bytes((copied / last).read_bytes()[:-5000])
    for how in ("416|bytes found", "the shard is missing"):
        with pytest.raises(InputError, match=f"{last}.*({how})"):
            list(loader(url))
        (copied / last).unlink(missing_ok=True)


def test_servers_that_cannot_serve_are_told_in_one_line(
    copied: Path, web: tuple[type[FileServer], str], tmp_path: Path
) -> None:
    handler, url = web
    common = ("train_pretrain.py", "--split", "train", *SMALL, "-b", "8", "--out", tmp_path / "no", "--shards")
    assert f"{url}/nothing: no manifest.json there" in refuse(*common, f"{url}/nothing")
    nobody = f"http://127.0.0.1:{free_port()}/set"
    said = refuse(*common, nobody, "--patience", "0.005", code=AGAIN)
    assert re.search(
        rf"error: {nobody}/manifest.json: ClientConnectorError: .* no answer for 0.005 minutes \(--patience\)", said
    )
    handler.ranges = False
    handler.requests.clear()
    assert "the server sends whole files where byte ranges are asked for" in refuse(*common, url)
    assert not any(path.endswith(".tar") for path in handler.requests)  # it was found before the first shard
    assert "a web server cannot say what it holds" in refuse(
        "-m", "preprocess", "folder", "--root", url, "--out", tmp_path / "x"
    )


def test_a_trainer_and_an_evaluation_run_from_a_url(web: tuple[type[FileServer], str], tmp_path: Path) -> None:
    _, url = web
    common = ("--shards", url, "--cache", tmp_path / "cache")
    run = tmp_path / "run"
    succeed("train_pretrain.py", *common, "--split", "train", *SMALL, "-b", "8", "--epochs", "1", "--out", run, ranks=2)
    probe = (
        "--train-split",
        "train",
        "--test-split",
        "test",
        "-cpv",
        "1",
        "--test-clips",
        "1",
        "--pretrained",
        run / "last.pt",
    )
    succeed("train_eval.py", "linear", *common, *probe, "--out", tmp_path / "probe")


@needs("moto", "s3fs")
def test_s3_gives_the_batches_of_the_disk(
    copied: Path, bucket: str, unreliable: type[Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"s3://{bucket}/set"
    upload(copied, place)
    unreliable.sent.clear()
    for rank in range(2):
        share = {"rank": rank, "world": 2, "epochs": 1}
        assert_same(list(loader(copied, **share)), list(loader(place, **share)))
    assert selected_bytes(copied) <= tars(unreliable)[1] <= 1.1 * selected_bytes(copied)
    unreliable.faults = itertools.cycle(["500", "", "reset", "", "hang up", ""])
    assert_same(list(loader(copied)), list(loader(place)))
    unreliable.faults = itertools.cycle([""])
    name, offset, _ = ShardSet(copied).where(90)
    data = open_folder(place).read(name)
    open_folder(place).write(name, data[: offset + 600] + b"!" + data[offset + 601 :])
    with pytest.raises(InputError, match=rf"{name}, sample .* at byte {offset}: crc32 is"):
        list(eval_loader(ShardSet(place), np.array([90]), CLIP, clips=1))
    open_folder(place).remove(name)
    with pytest.raises(InputError, match=f"{name} is missing, manifest.json says"):
        ShardSet(place)


def test_a_cache_serves_the_second_epoch(copied: Path, web: tuple[type[FileServer], str], tmp_path: Path) -> None:
    handler, url = web
    some = loader(url, cache=Cache(tmp_path / "cache", 10**9), epochs=2)
    first = list(some)
    assert tars(handler)[1] == selected_bytes(copied)
    assert_same(list(some), take(loader(copied), 16)[8:])
    assert tars(handler)[1] == selected_bytes(copied)  # not a byte more
    assert int((tmp_path / "cache/used").read_text()) == selected_bytes(copied)
    spoilt = next((tmp_path / "cache").glob("*/*"))
    spoilt.write_bytes(spoilt.read_bytes()[:-1] + b"?")
    assert_same(first, list(loader(url, cache=Cache(tmp_path / "cache", 10**9), epochs=1)))
    assert tars(handler)[1] == selected_bytes(copied) + spoilt.stat().st_size  # it was fetched anew


def files(folder: Path) -> int:
    """Bytes of the samples in a cache."""
    return sum(path.stat().st_size for path in folder.glob("*/*") if path.suffix != ".tmp")


def test_a_full_cache_keeps_its_share_and_gives_way_to_another_set(
    copied: Path, web: tuple[type[FileServer], str], tmp_path: Path
) -> None:
    handler, url = web
    limit = selected_bytes(copied) // 2
    list(loader(url, cache=Cache(tmp_path / "cache", limit), epochs=1))
    before = tars(handler)[1]
    list(loader(url, cache=Cache(tmp_path / "cache", limit), epochs=1))
    share = (tars(handler)[1] - before) / selected_bytes(copied)
    assert 0.45 < share < 0.6 and 0.8 * limit < files(tmp_path / "cache") <= limit
    other = tmp_path / "other"
    succeed("-m", "preprocess", "synthetic", "--out", other, "--videos", "64", "--size", "24")
    with serving(FileServer, folder=other) as (_, port):
        list(loader(f"http://127.0.0.1:{port}", cache=Cache(tmp_path / "cache", limit)))
    kept = {path.parent.name for path in (tmp_path / "cache").glob("*/*")}
    assert {shard.sha256[:32] for shard in ShardSet(other).manifest.shards} & kept and files(tmp_path / "cache") <= limit


@pytest.mark.parametrize("codec", ["jpeg", "h264"])
def test_a_picture_takes_few_bytes_of_each_video(codec: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The middle frame of each is that of the whole sample. What the cache has is not fetched."""
    folder = request.getfixturevalue({"jpeg": "synthetic_set", "h264": "h264_set"}[codec])
    local, some = ShardSet(folder), range(0, 60, 5)
    with serving(FileServer, folder=folder) as (handler, port):
        shards, cache = ShardSet(f"http://127.0.0.1:{port}"), Cache(tmp_path / "cache", 10**9)
        frames = MiddleFrames(shards, cache)
        for ahead in (True, False):
            handler.sent.clear()
            if ahead:
                frames.begin(some)
            for sample in some:
                expected = local.read(sample)
                middle = len(expected) // 2
                np.testing.assert_array_equal(frames.read(sample).frames([middle]), expected.frames([middle]))
            frames.end()
            assert 0 < tars(handler)[1] < 0.5 * local.size_N[list(some)].sum()  # of 2 s of 32 pixels; of 128 a hundredth
        fetch.fetch(shards, [5], cache)
        handler.sent.clear()
        assert len(frames.read(5)) == local.frames_N[5] and not handler.sent
        handler.faults = itertools.repeat("503")
        frames.begin(some)
        frames._until = 0.0
        with pytest.raises(Unreachable, match="its frames did not come within 10 seconds"):
            frames.read(0)
        frames.end()


def read_all(url: str, cache: Path, limit: int) -> None:
    shards = ShardSet(url)
    kept = Cache(cache, limit)
    for sample in range(len(shards)):
        assert len(next(iter(fetch.fetch(shards, [sample], kept).values()))) == shards.size_N[sample]  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [2.0, 0.5])
def test_processes_share_a_cache_without_races(
    copied: Path, web: tuple[type[FileServer], str], tmp_path: Path, share: float
) -> None:
    """Four processes read every sample through one cache at the same time; what it says it uses is what it uses."""
    total = sum(shard.bytes for shard in ShardSet(copied).manifest.shards)
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=read_all, args=(web[1], tmp_path / "cache", int(share * total))) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    used = int((tmp_path / "cache/used").read_text())
    assert used == files(tmp_path / "cache") <= share * total and not list((tmp_path / "cache").glob("*/*.tmp"))


def test_a_process_killed_while_it_writes_leaves_a_cache_that_is_right(
    copied: Path, web: tuple[type[FileServer], str], tmp_path: Path
) -> None:
    """Killed at ten moments; what the cache says it uses is never below what it uses, and everything in it is served right."""
    total = sum(shard.bytes for shard in ShardSet(copied).manifest.shards)
    spawn, used = multiprocessing.get_context("spawn"), tmp_path / "cache/used"
    for moment in range(10):
        process = spawn.Process(target=read_all, args=(web[1], tmp_path / "cache", total))
        process.start()
        while files(tmp_path / "cache") < total * moment // 12 and process.is_alive():
            time.sleep(0.001)
        process.kill()
        process.join()
        assert files(tmp_path / "cache") <= int(used.read_text() or 0 if used.exists() else 0)
    assert_same(list(loader(copied)), list(loader(web[1], cache=Cache(tmp_path / "cache", total))))


def test_a_cache_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=re.escape(f"--cache {tmp_path}/file: cannot be written to")):
        Cache(tmp_path / "file", 5)
    with pytest.raises(InputError, match="--cache-size 0: expected gigabytes above 0"):
        Cache(tmp_path / "cache", 0)


def test_trouble_with_the_disk_costs_the_cache_not_the_run(
    copied: Path,
    web: tuple[type[FileServer], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    cache = Cache(tmp_path / "cache", 10**9)
    monkeypatch.setattr(Path, "write_bytes", full)
    assert_same(list(loader(copied)), list(loader(web[1], cache=cache)))
    assert capsys.readouterr().err.count("No space left on device; going on without keeping more") >= 1
    assert not list((tmp_path / "cache").glob("*/*")) and cache.full
