"""Videos in and shards out of object storage: a real S3 server on loopback, also when it fails, stalls and hangs up."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
from conftest import needs, refuse, render, run, succeed, upload
from servers import Proxy, free_port

from dclr.data.manifest import ShardSet
from dclr.errors import AGAIN, InputError
from dclr.storage import open_folder
from preprocess.datasets import EMPTY_CLASS, folder
from preprocess.found import HIDDEN, ONE_FRAME
from preprocess.synthetic import encode

pytestmark = needs("moto", "s3fs")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for number in range(6):
        encode(render("left", "dots", (number,))[0], 25, root / "AB"[number % 2] / f"{number}.mp4")
    (root / "A/text.avi").write_text("no video")
    return root


def contents(place: str | Path) -> dict[str, bytes]:
    """What must be the same wherever a set is made."""
    folder = open_folder(place)
    return {name: folder.read(name) for name in folder.files() if not name.endswith(("plan.json", "failures.jsonl"))}


OPTIONS = ("--size", "32", "--shard-size", "1", "--max-failures", "50")


@pytest.fixture(scope="module")
def local_set(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "set"
    succeed("-m", "preprocess", "folder", "--root", videos, "--out", out, *OPTIONS)
    return out


def test_a_set_made_in_object_storage_is_the_local_one(videos: Path, local_set: Path, bucket: str, tmp_path: Path) -> None:
    upload(videos, f"s3://{bucket}/in")
    said = succeed("-m", "preprocess", "folder", "--root", f"s3://{bucket}/in", "--out", f"s3://{bucket}/out/set", *OPTIONS)
    assert "6 videos" in said and "failed: 1 videos: A/text.avi (open" in said
    assert contents(f"s3://{bucket}/out/set") == contents(local_set)
    place = f"s3://{bucket}/out/set"
    assert "no faults" in succeed("-m", "preprocess", "verify", place, "--deep")
    assert "6 videos in 6 samples" in succeed("-m", "preprocess", "stats", place, "--out", tmp_path / "s.png")
    succeed("-m", "preprocess", "preview", place, "--out", tmp_path / "p.png")
    succeed("-m", "preprocess", "preview", local_set, "--out", tmp_path / "q.png")
    assert (tmp_path / "p.png").read_bytes() == (tmp_path / "q.png").read_bytes()
    again = succeed("-m", "preprocess", "folder", "--root", f"s3://{bucket}/in", "--out", place, *OPTIONS)
    assert "6 videos" in again
    tar = contents(place)["shard-000000.tar"]
    open_folder(place).write("shard-000000.tar", tar[:700] + b"!" + tar[701:])
    done = run("-m", "preprocess", "verify", place)
    assert done.returncode == 1 and "crc32" in done.stdout + done.stderr


def test_what_is_not_taken_from_object_storage_is_named(videos: Path, bucket: str) -> None:
    root = open_folder(f"s3://{bucket}/in")
    for name in ("A/0.mp4", "B/1.mp4"):
        root.write(name, (videos / name).read_bytes())
    root.write("B/moving", (videos / "B/1.mp4").read_bytes())  # no suffix: fetched and looked into
    left_out = {"A/.DS_Store": HIDDEN, "A/readme.txt": "text", "A/still": ONE_FRAME, "C/cover.jpg": "a picture"}
    for name in left_out:
        root.write(name, b"x")
    for marker in ("", "A/", "A/deep/", "D/"):  # what consoles make for a new folder
        open_folder(f"s3://{bucket}").write(f"in/{marker}", b"")
    source = folder.find(root)
    assert [video.path for video in source.videos] == ["A/0.mp4", "B/1.mp4", "B/moving"]
    assert source.left_out == left_out | {"C/": EMPTY_CLASS, "A/deep/": "an empty folder", "D/": "an empty folder"}


def test_errors_stalls_and_dropped_connections_change_no_byte(
    videos: Path, local_set: Path, bucket: str, unreliable: type[Proxy]
) -> None:
    upload(videos, f"s3://{bucket}/in")
    faults = ["", "500", "", "", "late", "hang up", "", "", "", "", ""]  # a listing of several begins anew with each
    unreliable.faults = itertools.cycle(faults)
    succeed("-m", "preprocess", "folder", "--root", f"s3://{bucket}/in", "--out", f"s3://{bucket}/set", *OPTIONS)
    assert {"500", "late", "hang up"} <= set(unreliable.served)
    unreliable.faults = itertools.cycle([""])
    assert contents(f"s3://{bucket}/set") == contents(local_set)


@needs("s3fs", "moto")
def test_a_listing_of_many_requests_goes_on_where_one_fails(bucket: str, unreliable: type[Proxy]) -> None:
    folder, names = open_folder(f"s3://{bucket}/many"), [f"{n}.txt" for n in range(45)]  # ten in an answer
    for name in names:
        folder.write(name, b"x")
    unreliable.served.clear()
    unreliable.faults = itertools.cycle(["", "500"])
    assert folder.files() == dict.fromkeys(sorted(names), 1)
    assert unreliable.served.count("") == 5


def test_a_video_that_never_arrives_is_given_up(videos: Path, bucket: str, unreliable: type[Proxy], tmp_path: Path) -> None:
    upload(videos, f"s3://{bucket}/in")
    unreliable.stalled = "B/3.mp4"
    said = succeed(
        "-m", "preprocess", "folder", "--root", f"s3://{bucket}/in", "--out", tmp_path / "set", *OPTIONS, "--timeout", "6"
    )  # fmt: skip
    assert "5 videos" in said and "B/3.mp4 (timeout: not done after 6 seconds)" in said
    line = next(json.loads(n) for n in (tmp_path / "set/failures.jsonl").read_text().splitlines() if "B/3" in n)
    assert line["stage"] == "timeout" and line["seconds"] >= 6
    unreliable.stalled = ""
    again = succeed("-m", "preprocess", "retry", tmp_path / "set", "--max-failures", "100")
    assert "6 videos in" in again and "A/text.avi" in again


def test_a_store_that_says_no_is_one_line(bucket: str, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = refuse("-m", "preprocess", "folder", "--root", videos, "--out", "s3://there-is-no-such-bucket/set", *OPTIONS)
    assert "s3://there-is-no-such-bucket/set" in absent
    assert "no manifest.json" in refuse("-m", "preprocess", "verify", f"s3://{bucket}/nothing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    nobody = "-m", "preprocess", "verify", f"s3://{bucket}/nothing", "--patience", "0.005"
    assert "no answer for 0.005 minutes (--patience); check the name and AWS_" in refuse(*nobody, code=AGAIN)


def test_a_trainer_reads_samples_where_they_lie(local_set: Path, bucket: str) -> None:
    upload(local_set, f"s3://{bucket}/set")
    remote, local = ShardSet(f"s3://{bucket}/set"), ShardSet(local_set)
    assert remote.keys == local.keys
    for sample in (0, len(local) - 1):
        assert (remote.read(sample).frames([0, 5]) == local.read(sample).frames([0, 5])).all()
    open_folder(f"s3://{bucket}/set").remove("shard-000000.tar")
    with pytest.raises(InputError, match=r"shard-000000\.tar is missing"):
        ShardSet(f"s3://{bucket}/set")


def test_a_local_folder_shows_whole_files_only(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "a")
    assert folder.files() == {} and folder.size("x") is None
    folder.write("x", b"one")
    folder.write("x", b"second")
    assert folder.read("x") == b"second" and folder.read("x", 2, 3) == b"con" and folder.files() == {"x": 6}
    shutil.copy(tmp_path / "a/x", tmp_path / "a/.x.tmp")
    folder.remove(".x.tmp")
    folder.remove("not there")
    assert folder.files() == {"x": 6} and (folder.free() or 0) > 0
