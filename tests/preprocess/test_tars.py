"""Videos in tars: what is read of them where they lie, as if they were unpacked, and what a hostile one can do."""

import io
import json
import os
import pickle
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from conftest import needs, refuse, render, succeed, upload

from dclr.data.manifest import ShardSet
from dclr.errors import InputError
from dclr.storage import Folder, RemoteFolder
from preprocess.datasets import VideoSet, tars, wds
from preprocess.datasets.tars import CUT, NO_FILE, OUTSIDE, TWICE, TarFolder
from preprocess.found import ONE_FRAME
from preprocess.synthetic import encode
from preprocess.transcode import OpenedVideo

SMALL = ("--size", "32", "--cues", "diff,flow,energy")


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight videos as video2dataset writes them with --output_format webdataset (``tars/``) and files (``files/``), and a list
    of the files. Two downloads have failed."""
    out = tmp_path_factory.mktemp("downloaded")
    (out / "tars").mkdir()
    lines = ["path,label,scene"]
    for shard in ("00000", "00001"):
        (out / "files" / shard).mkdir(parents=True)
        with webdataset.TarWriter(str(out / f"tars/{shard}.tar")) as writer:
            for number in range(5):
                key, caption = f"{shard}{number:04d}", f"clip {number} of {shard}"
                meta: dict[str, Any] = {"url": f"https://host/{key}", "caption": caption, "key": key, "status": "success"}
                meta |= {"label": number % 3 * 5, "scene": "dots" if number % 2 else "rings", "width": 110, "clips": [[0, 1.5]]}
                if number == 4:
                    meta |= {"status": "failed_to_download", "error_message": "HTTP 404"}
                members = {"json": json.dumps(meta, indent=4).encode(), "txt": caption.encode()}
                if number < 4:
                    encode(render("left", meta["scene"], (key,))[0], 25, out / "video.mp4")
                    members["mp4"] = (out / "video.mp4").read_bytes()
                    lines.append(f"{shard}/{key}.mp4,{meta['label']},{meta['scene']}")
                writer.write({"__key__": key, **members})
                for suffix, data in members.items():
                    (out / f"files/{shard}/{key}.{suffix}").write_bytes(data)
        for folder in ("tars", "files"):
            (out / folder / f"{shard}.parquet").write_bytes(b"PAR1")
            (out / folder / f"{shard}_stats.json").write_text('{"count": 5}')
    (out / "list.csv").write_text("\n".join(lines))
    return out


def made(out: Path) -> dict[str, bytes]:
    """What a set is, but for the data set's name and the place of its videos."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name.startswith(("shard-", "index"))}


@pytest.fixture(scope="module")
def unpacked(downloaded: Path) -> Path:
    """The set of the same videos as files."""
    listed = ("--list", downloaded / "list.csv", "--label-column", "label,scene", *SMALL)
    succeed("-m", "preprocess", "csv", "--root", downloaded / "files", "--out", downloaded / "unpacked", *listed)
    return downloaded / "unpacked"


def test_tars_give_the_bytes_that_their_files_give(downloaded: Path, unpacked: Path, tmp_path: Path) -> None:
    command = ("-m", "preprocess", "wds", "--root", downloaded / "tars", "--label-column", "label", "scene", *SMALL)
    said = succeed(*command, "--out", tmp_path / "set")
    assert made(tmp_path / "set") == made(unpacked) and len(made(unpacked)) == 3
    mine, files = (json.loads((of / "manifest.json").read_text()) for of in (tmp_path / "set", unpacked))
    assert mine == files | {"dataset": "wds"} and mine["classes"] == {"action": ["0", "5", "10"], "scene": ["dots", "rings"]}
    assert "left out: 2 (no video of its name in the tar): 00000/000000004.json, 00001/000010004.json" in said
    assert "left out: 12 (text)" in said and "left out: 2 (data): 00000.parquet, 00001.parquet" in said
    assert {path.name for path in downloaded.iterdir()} == {"tars", "files", "list.csv", "video.mp4", "unpacked"}


@needs("s3fs", "moto")
def test_tars_in_object_storage_give_them_too(downloaded: Path, unpacked: Path, bucket: str, tmp_path: Path) -> None:
    upload(downloaded / "tars", f"s3://{bucket}/videos")
    labels = ("--label-column", "label,scene")
    root = ("--root", f"s3://{bucket}/videos")
    succeed("-m", "preprocess", "wds", *root, *labels, "--out", tmp_path / "set", *SMALL)
    assert made(tmp_path / "set") == made(unpacked)


def test_a_dry_run_says_how_tars_are_read(downloaded: Path, tmp_path: Path) -> None:
    command = ("-m", "preprocess", "wds", "--root", downloaded / "tars", "--out", tmp_path / "set", "--dry-run")
    assert succeed(*command).splitlines()[:4] == [
        f"{downloaded}/tars: 2 tars with 8 videos",
        "00000/000000000.mp4, action '0', split 'all'",
        "00000/000000001.mp4, action '5', split 'all'",
        "00000/000000002.mp4, action '10', split 'all'",
    ]
    assert "--label-column motion: no video of" in refuse(*command, "--label-column", "motion")
    assert "--split-column fold: no KEY.json of" in refuse(*command, "--split-column", "fold")


def test_failed_members_are_tried_again_where_they_lie_then(downloaded: Path, unpacked: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "tars", tmp_path / "set"
    root.mkdir()
    with tarfile.open(downloaded / "tars/00000.tar") as whole, tarfile.open(root / "00000.tar", "w") as broken:
        for member in whole:
            data = whole.extractfile(member).read()
            if member.name == "000000001.mp4":
                member.size, data = 8, b"no video"
            broken.addfile(member, io.BytesIO(data))
    labels = ("--label-column", "label,scene", *SMALL, "--max-failures", "50")
    assert "failed: 1 videos: 00000/000000001.mp4 (open" in succeed(
        "-m", "preprocess", "wds", "--root", root, "--out", out, *labels
    )
    (root / "00000.tar").write_bytes((downloaded / "tars/00000.tar").read_bytes())
    assert "4 videos in 2 shards" in succeed("-m", "preprocess", "retry", out)
    (root / "00001.tar").write_bytes((downloaded / "tars/00001.tar").read_bytes())
    succeed("-m", "preprocess", "wds", "--root", root, "--out", out, *labels, "--append")
    mine, files = ShardSet(out), ShardSet(unpacked)
    assert sorted(mine.keys) == sorted(files.keys) and mine.keys != files.keys
    for at, key in enumerate(mine.keys):
        there = files.keys.index(key)
        assert mine.crc32_N[at] == files.crc32_N[there] and mine.size_N[at] == files.size_N[there]
    assert "no faults" in succeed("-m", "preprocess", "verify", out)


# --- which videos, labels and splits


def tar(path: Path, **members: bytes | str) -> Path:
    """A tar: ``name__ext`` is name.ext."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            add(archive, name.replace("__", "."), data)
    return path


def add(archive: tarfile.TarFile, name: str, data: bytes | str = b"x", **changes: Any) -> None:
    header, data = tarfile.TarInfo(name), data if isinstance(data, bytes) else data.encode()
    header.size = len(data)
    for field, value in changes.items():
        setattr(header, field, value)
    archive.addfile(header, io.BytesIO(data))


def found(root: Path, **named: Any) -> VideoSet:
    return wds.find(Folder(str(root)), **named)


def videos(source: VideoSet) -> dict[str, tuple[dict[str, str], tuple[str, ...]]]:
    """Path -> labels by name, splits."""
    return {v.path: ({kind: source.classes[kind][label] for kind, label in v.labels.items()}, v.splits) for v in source.videos}


def test_labels_come_from_json_or_cls_and_splits_from_folders(tmp_path: Path) -> None:
    tar(tmp_path / "train/a-000.tar", k1__mp4="x", k1__json='{"label": "run"}', k1__txt="a caption", k1__jpg="x")
    tar(
        tmp_path / "train/a-001.tar", k2__mp4="x", k2__cls="walk\n", k3__webm="x", k4__left__mp4="x", k4__json='{"label": null}'
    )
    tar(tmp_path / "b.tar", k1__mp4="x", k1__cls="run", k1__json='{"label": "swim"}')
    assert videos(source := found(tmp_path)) == {
        "b/k1.mp4": ({"action": "swim"}, ("all",)),
        "train/a-000/k1.mp4": ({"action": "run"}, ("train",)),
        "train/a-001/k2.mp4": ({"action": "walk"}, ("train",)),
        "train/a-001/k3.webm": ({}, ("train",)),
        "train/a-001/k4.left.mp4": ({}, ("train",)),
    }
    assert source.left_out == {"train/a-000/k1.txt": "text", "train/a-000/k1.jpg": "a picture"}
    assert {v.bytes for v in source.videos} == {1}


def test_members_are_looked_into_where_no_name_tells(tmp_path: Path, downloaded: Path) -> None:
    video = (downloaded / "video.mp4").read_bytes()
    tar(tmp_path / "a.tar", k1__mp4="x", k1__bin=video, k1__json='{"label": "run"}', k2__bin=video, k2__cls="walk", k3__bin="x")
    source = found(tmp_path)
    assert videos(source) == {"a/k1.mp4": ({"action": "run"}, ("all",)), "a/k2.bin": ({"action": "walk"}, ("all",))}
    assert source.left_out == {"a/k1.bin": "beside a video of its name", "a/k3.bin": ONE_FRAME}


def test_fields_of_ones_own(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", k1__mp4="x", k1__json='{"who": "me", "n": 10, "set": "val"}', k2__mp4="x", k2__json='{"n": 9}')
    assert videos(found(tmp_path, label_column=("who", "n"), split_column="set")) == {
        "a/k1.mp4": ({"who": "me", "n": "10"}, ("val",)),
        "a/k2.mp4": ({"n": "9"}, ("all",)),
    }
    assert found(tmp_path).classes == {} and found(tmp_path, label_column=("n",)).classes == {"n": ["9", "10"]}
    with pytest.raises(InputError, match=r"--split-column fold: no KEY.json of .* has such a field"):
        found(tmp_path, split_column="fold")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not read: no table in JSON"),
        ("[" * 100_000, "not read: no table in JSON"),
        ('["run"]', "not read: no table in JSON"),
        ('{"label": ["run"]}', wds.NO_TEXT),
        ('{"label": 0.5}', wds.NO_TEXT),
        ('{"label": true}', wds.NO_TEXT),
        ('{"label": -1}', wds.NO_TEXT),
        ('{"label": "1000000001"}', wds.NO_TEXT),
        ('{"label": "\\ud800"}', wds.NO_TEXT),
        ('{"label": "esc\\u001b"}', wds.NO_TEXT),
        ('{"label": "' + "a" * 5_000_000 + '"}', "not read: above 4194304 bytes"),
    ],
)
def test_a_text_that_cannot_be_read_costs_the_label_and_is_named(tmp_path: Path, text: str, reason: str) -> None:
    tar(tmp_path / "a.tar", k1__mp4="x", k1__json=text, k2__mp4="x", k2__json='{"label": 3, "other": 0.5}')
    source = found(tmp_path)
    assert videos(source) == {"a/k1.mp4": ({}, ("all",)), "a/k2.mp4": ({"action": "3"}, ("all",))}
    assert source.left_out == {"a/k1.json": reason}


def test_what_is_no_tar_is_left_out_and_named(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", k__mp4="x")
    for name in ("b.tar.gz", "c.tgz", "d.mp4", "e.parquet", "._a.tar", "f.tar.tmp"):
        (tmp_path / name).write_bytes(b"x")
    source = found(tmp_path)
    assert [v.path for v in source.videos] == ["a/k.mp4"]
    compressed = "a compressed tar, whose members cannot be read one by one: gunzip it"
    assert source.left_out == {
        "b.tar.gz": compressed, "c.tgz": compressed, "d.mp4": "in no tar", "e.parquet": "data",
        "._a.tar": "hidden, or made by the system", "f.tar.tmp": "an unfinished download",
    }  # fmt: skip
    (tmp_path / "a.tar").unlink()
    with pytest.raises(InputError, match="no videos in it"):
        found(tmp_path)
    tar(tmp_path / "a.tar", k__txt="x", k__json="{}")
    with pytest.raises(InputError, match="no videos in it; of its 2 files are 1 text"):
        found(tmp_path)


# --- what the members are


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_where_tarfile_has_them(tmp_path: Path, form: int) -> None:
    long = ("d" * 60 + "/") * (1 if form == tarfile.USTAR_FORMAT else 4) + "e" * 80 + ".mp4"
    contents = {"a.mp4": b"1" * 700, "./b.mp4": b"", "d/c.mp4": b"3" * 512, long: b"4" * 1025, "ü.mp4": b"5"}
    with tarfile.open(tmp_path / "s.tar", "w", format=form) as archive:
        for name in (".", "./", "d", "/", ".."):
            add(archive, name, type=tarfile.DIRTYPE, data=b"")
        for name, data in contents.items():
            add(archive, name, data)
    folder = TarFolder(Folder(str(tmp_path)))
    files, others = folder.listing()
    assert files == {f"s/{name.removeprefix('./')}": len(data) for name, data in contents.items()} and not others
    for name, data in contents.items():
        path, _, place = folder.address(f"s/{name.removeprefix('./')}").rpartition("[")
        start, size = map(int, place[:-1].split(":"))
        assert (tmp_path / path).read_bytes()[start : start + size] == data


def test_a_worker_reads_a_member_by_its_address_and_holds_no_list(downloaded: Path) -> None:
    folder = TarFolder(Folder(str(downloaded / "tars")))
    name = next(path for path in folder.files() if path.endswith("3.mp4"))
    copy = pickle.loads(pickle.dumps(folder))
    assert len(pickle.dumps(folder)) < 300 + len(str(downloaded))
    with copy.local(folder.address(name)) as place, OpenedVideo(place) as member:
        assert str(place).startswith("part,")
        with OpenedVideo(downloaded / "files" / name) as file:
            frames, expected = ([frame.to_ndarray() for frame in opened.frames()] for opened in (member, file))
            assert (member.fps, member.rate) == (file.fps, file.rate)
    assert len(frames) >= 40 and np.array_equal(frames, expected)


class Elsewhere(RemoteFolder):
    """A folder of this machine as object storage, which counts what is asked of it."""

    def __init__(self, place: Path):
        super().__init__(f"s3://{place}")
        self.here, self.reads = Folder(str(place)), list[int]()

    def listing(self) -> tuple[dict[str, int], dict[str, str]]:
        return self.here.listing()

    def read(self, name: str, start: int = 0, size: int | None = None, check: Any = None) -> bytes:
        data = self.here.read(name, start, size)
        assert len(data) == size
        self.reads.append(len(data))
        return data


def test_listing_a_tar_elsewhere_asks_once_a_sample_and_fetches_no_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = {f"k{n}__{ext}": data for n in range(20) for ext, data in (("json", "{}"), ("mp4", b"v" * 300_000), ("txt", "c"))}
    tar(tmp_path / "a.tar", **samples)
    remote = Elsewhere(tmp_path)
    assert len(TarFolder(remote).files()) == 60 and len(remote.reads) <= 22 and sum(remote.reads) <= 22 * 65536
    remote.reads.clear()
    monkeypatch.setattr(tars, "FETCHED", 100_000)
    folder = TarFolder(remote)
    folder.files()
    remote.reads.clear()
    with folder.local(folder.address("a/k7.mp4")) as place:
        assert place.read_bytes() == b"v" * 300_000
    assert remote.reads == [100_000] * 3 and not place.exists()


def test_a_name_that_looks_like_a_url_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(render("left", "dots", ("url",))[0], 25, tmp_path / "v.mp4")
    (tmp_path / "concat:v.mp4|x.mp4").write_bytes((tmp_path / "v.mp4").read_bytes())
    monkeypatch.chdir(tmp_path)
    with Folder(".").local("concat:v.mp4|x.mp4") as place, OpenedVideo(place) as opened:
        assert len(list(opened.frames())) >= 40


# --- hostile tars


def test_names_that_leave_the_tar_and_members_that_are_no_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name in ("../up.mp4", "/etc/passwd.mp4", "a/../../b.mp4", "esc\x1b.mp4", "good.mp4"):
            add(archive, name)
        add(archive, "soft.mp4", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(archive, "hard.mp4", b"", type=tarfile.LNKTYPE, linkname="good.mp4")
        add(archive, "null.mp4", b"", type=tarfile.CHRTYPE)
        add(archive, "pipe.mp4", b"", type=tarfile.FIFOTYPE)
    source = found(tmp_path)
    assert [v.path for v in source.videos] == ["s/good.mp4"]
    outside = ("../up.mp4", "/etc/passwd.mp4", "a/../../b.mp4", "esc\\x1b.mp4")
    assert source.left_out == {f"s.tar: {name}": OUTSIDE for name in outside} | {
        f"s.tar: {name}.mp4": NO_FILE for name in ("soft", "hard", "null", "pipe")
    }


def test_a_member_that_is_there_again_is_the_last_one_as_if_unpacked(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "k.mp4", b"old")
        add(archive, "b/k.mp4", b"old")
        add(archive, "k.mp4", b"newer")
    tar(tmp_path / "a/b.tar", k__mp4="latest")
    source = found(tmp_path)
    assert [(v.path, v.bytes) for v in source.videos] == [("a/b/k.mp4", 6), ("a/k.mp4", 5)]
    assert source.left_out == {"a.tar: k.mp4": TWICE, "a.tar: a/b/k.mp4": TWICE}


def octal(number: int) -> bytes:
    return b"%011o\0" % number


def summed(header: bytearray) -> bytearray:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return header


def negative(data: bytearray) -> None:
    """The second member has -1024 bytes, in base 256: what follows it is the first, for ever."""
    data[1024 + 124 : 1024 + 136] = b"\xff" + (256**11 - 1024).to_bytes(11, "big")
    data[1024:1536] = summed(data[1024:1536])


def huge(data: bytearray) -> None:
    data[1024 + 124 : 1024 + 136] = b"\x80" + (2**62).to_bytes(11, "big")
    data[1024:1536] = summed(data[1024:1536])


def header_of(kind: bytes) -> Callable[[bytearray], None]:
    """The second member is a further header, of 5 MB."""

    def change(data: bytearray) -> None:
        data[1024 + 156 : 1024 + 157], data[1024 + 124 : 1024 + 136] = kind, octal(5_000_000)
        data[1024:1536] = summed(data[1024:1536])
        data[1536:1536] = b"9" * 5_000_192

    return change


def garbage(data: bytearray) -> None:
    data[1024:1100] = b"garbage " * 9 + b"1234"


def no_end(data: bytearray) -> None:
    del data[3 * 1024 :]


def cut(data: bytearray) -> None:
    del data[1024 + 512 + 100 :]


@pytest.mark.parametrize(
    ("damage", "taken", "others"),
    [
        (negative, ["a"], {"s.tar": "a size that cannot be"}),
        (huge, ["a"], {"s.tar": "unexpected end of data", "s.tar: b.mp4": CUT}),
        (header_of(b"x"), ["a"], {"s.tar": "5000192 bytes of a header"}),
        (header_of(b"L"), ["a"], {"s.tar": "5000192 bytes of a header"}),
        (garbage, ["a"], {"s.tar": "neither a header nor the mark of the end at byte 1024"}),
        (no_end, ["a", "b", "c"], {"s.tar": "neither a header nor the mark of the end at byte 3072"}),
        (cut, ["a"], {"s.tar": "unexpected end of data", "s.tar: b.mp4": CUT}),
    ],
)
def test_a_damaged_tar_gives_what_stands_before_the_damage(
    tmp_path: Path, damage: Callable[[bytearray], None], taken: list[str], others: dict[str, str]
) -> None:
    data = bytearray(tar(tmp_path / "s.tar", **{f"{name}__mp4": b"v" * 200 for name in "abc"}).read_bytes())
    assert not found(tmp_path).left_out
    damage(data)
    (tmp_path / "s.tar").write_bytes(data)
    source = found(tmp_path)
    assert [v.path for v in source.videos] == [f"s/{name}.mp4" for name in taken]
    assert source.left_out.keys() == others.keys() and all(others[path] in source.left_out[path] for path in others)


def test_a_tar_with_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "MEMBERS", 2)
    tar(tmp_path / "s.tar", a__mp4="x", b__mp4="x", c__mp4="x")
    source = found(tmp_path)
    assert len(source.videos) == 2 and "more than 2 members" in source.left_out["s.tar"]


def test_a_tar_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar(tmp_path / "a.tar", a__mp4="x")
    tar(tmp_path / "b.tar", a__mp4="x")
    whole = Folder.read

    def read(self: Folder, name: str, start: int = 0, size: int | None = None) -> bytes:
        if name == "b.tar":
            raise PermissionError(13, os.strerror(13), name)
        return whole(self, name, start, size)

    monkeypatch.setattr(Folder, "read", read)
    assert found(tmp_path).left_out == {"b.tar": "cannot be read (Permission denied)"}


def test_no_damage_gives_a_member_outside_of_its_tar(tmp_path: Path) -> None:
    """Tars with a few bytes of a header changed, its checksum put right: each is listed, and ends."""
    rng = random.Random(0)
    with tarfile.open(tmp_path / "whole.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        add(archive, "n" * 150 + ".mp4", b"v" * 600)
        add(archive, "b.mp4", b"v" * 20, pax_headers={"comment": "c"})
        add(archive, "c.json", b"{}")
    whole = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "whole.tar").unlink()
    fewer = 0
    for _ in range(300):
        data = bytearray(whole)
        at = rng.choice([start for start in range(0, len(whole), 512) if whole[start + 257 : start + 262] == b"ustar"])
        for _ in range(rng.randint(1, 4)):
            data[at + rng.choice([*range(100, 157), *range(345, 512)] if rng.random() < 0.8 else range(512))] = rng.randrange(
                256
            )
        data[at : at + 512] = summed(data[at : at + 512])
        (tmp_path / "s.tar").write_bytes(data[: rng.choice([len(data), len(data), rng.randrange(len(data))])])
        size = (tmp_path / "s.tar").stat().st_size
        folder = TarFolder(Folder(str(tmp_path)), lambda path, data: len(data))
        files, others = folder.listing()
        fewer += len(files) < 3
        assert len(files) + len(others) >= 1 or size < 512
        for path, length in files.items():
            start = int(folder.address(path).rpartition("[")[2].partition(":")[0])
            assert path.startswith("s/") and ".." not in path.split("/") and 0 <= length <= size - start and start >= 512
    assert fewer > 30
