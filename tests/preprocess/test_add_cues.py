"""Cues that a set gets later: the bytes that it would have had, and at every moment a whole set."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import needs, refuse, render, succeed, upload

from dclr.data.manifest import Entry, Manifest, ShardSet, read_index
from dclr.errors import InputError
from dclr.record import Record, members
from dclr.storage import Folder, open_folder
from preprocess.__main__ import main
from preprocess.synthetic import encode
from preprocess.verify import verify

Say = Callable[..., str]


def panned() -> np.ndarray:
    """24 frames of a camera that moves over a picture: what --stabilise takes out."""
    noise = np.random.default_rng(0).integers(0, 256, (120, 240, 3), np.uint8)
    picture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX)
    return np.stack([picture[10:106, 3 * n : 3 * n + 128] for n in range(24)])


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos in two class folders, of which the last is by a moving camera, and one that is none."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(6):
        frames = panned() if number == 5 else render("left", "dots", ("cues", number))[0][:24]
        encode(frames, 25, root / "AB"[number % 2] / f"{number}.avi")
    (root / "A/text.avi").write_text("no video")
    return root


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Run ``python -m preprocess`` in this process; what it printed."""

    def run(*command: object) -> str:
        capsys.readouterr()
        main([str(part) for part in command])
        return capsys.readouterr().out

    return run


def make(say: Say, root: Path, out: Path, cues: str, *flags: object) -> Path:
    small = ("--size", "32", "--workers", "1", "--shard-size", "1", "--max-failures", "50")
    say("folder", "--root", root, "--out", out, "--cues", cues, *small, *flags)
    return out


def samples(out: Path) -> dict[str, bytes]:
    """Key -> the bytes of each sample."""
    shards = ShardSet(out)
    return {shards.keys[n]: Folder.read(Folder(str(out)), *shards.where(n)) for n in range(len(shards))}


def entries(out: Path) -> dict[str, dict[str, Any]]:
    """Key -> what the shards' indexes say of it, but for its place."""
    all_of: list[Entry] = [e for shard in ShardSet(out).tars for e in read_index(open_folder(out), shard.index_name)[1]]
    return {entry.key: json.loads(entry.dumps()) | {"offset": 0} for entry in all_of}


def whole(out: Path) -> bool:
    """Whether a reader opens it and every byte is right."""
    return not verify(open_folder(out), deep=False, workers=1)


@pytest.mark.parametrize(
    ("before", "after", "flags"),
    [
        ("diff,energy", "diff,flow,energy", ("--size", "64")),
        ("none", "diff,energy", ("--codec", "h264")),
        ("flow", "diff,flow,energy", ("--codec", "h264", "--stabilise")),
        ("energy", "flow,energy", ("--segment", "0.4")),
    ],
)
def test_with_the_videos_no_byte_differs_from_a_set_made_with_the_cue(
    videos: Path, tmp_path: Path, say: Say, before: str, after: str, flags: tuple[str, ...]
) -> None:
    out, straight = make(say, videos, tmp_path / "set", before, *flags), make(say, videos, tmp_path / "all", after, *flags)
    old, failures = ShardSet(out), (out / "failures.jsonl").read_bytes()
    new = sorted(set(after.split(",")) - set(before.split(",")))
    said = say("add-cues", out, "--cues", *new, "--workers", "2")
    assert all(f"{cue}: {len(old)} samples from their videos, 0 from their stored frames" in said for cue in new)
    assert "GB beside the old ones until all are whole" in said
    assert samples(out) == samples(straight) and entries(out) == entries(straight)
    manifest, wanted = ShardSet(out).manifest, ShardSet(straight).manifest
    assert manifest.options == wanted.options and manifest.splits == wanted.splits and manifest.failures == {"open": 1}
    assert (out / "failures.jsonl").read_bytes() == failures
    assert whole(out) and not {shard.name for shard in old.tars} & {path.name for path in out.iterdir()}
    if "energy" in after:
        assert ShardSet(out).motion_N.tolist() == ShardSet(straight).motion_N.tolist()


def test_without_the_videos_the_cue_is_that_of_the_stored_frames_and_the_set_says_so(
    videos: Path, tmp_path: Path, say: Say, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    shutil.copytree(videos, root)
    out, straight = make(say, root, tmp_path / "set", "energy"), make(say, videos, tmp_path / "all", "flow,energy")
    before = {key: members(data) for key, data in samples(out).items()}
    shutil.rmtree(root)
    said = say("add-cues", out, "--cues", "flow", "--workers", "1")
    assert f"6 of 6 videos are not at {root}: A/0.avi" in said and "6 from their stored frames" in said
    for key, data in samples(out).items():
        contents = members(data)
        assert all(contents[name] == old for name, old in before[key].items() if name != "json")
        assert json.loads(bytes(contents["json"])) == json.loads(bytes(before[key]["json"])) | {
            "cues": ["flow", "energy"], "from_stored": ["flow"],
        }  # fmt: skip
    shards, exact = ShardSet(out), ShardSet(straight)
    assert shards.manifest.from_stored == {"flow": 6} and ShardSet(straight).manifest.from_stored == {}
    flows = [[of.read(n).vectors("flow", np.arange(24)) for n in range(6)] for of in (shards, exact)]
    errors = [np.linalg.norm(mine - true, axis=-1).mean() for mine, true in zip(*flows, strict=True)]
    assert 0 < np.mean(errors) < 0.5 * np.mean([np.linalg.norm(true, axis=-1).mean() for true in flows[1]])
    assert whole(out) and "flow in 6 of 6 samples from the stored frames" in capsys.readouterr().out
    assert Manifest.loads((straight / "manifest.json").read_text()).dumps() == (straight / "manifest.json").read_text()


def test_the_difference_of_stored_frames_is_that_of_their_luma(videos: Path, tmp_path: Path, say: Say) -> None:
    out = make(say, videos, tmp_path / "set", "none", "--quality", "60")
    say("add-cues", out, "--cues", "energy", "--root", "none", "--workers", "1")
    record: Record = ShardSet(out).read(3)
    luma = record.rgb.decode(range(len(record)), *record.size, grey=True).astype(int)
    by_hand = np.abs(np.diff(luma, axis=0)).mean(axis=(1, 2))
    np.testing.assert_allclose(record.array("energy"), [by_hand[0], *by_hand], rtol=1e-6)


def test_each_video_that_is_not_what_it_was_gives_its_stored_frames(videos: Path, tmp_path: Path, say: Say) -> None:
    root, moved = tmp_path / "root", tmp_path / "moved"
    shutil.copytree(videos, root)
    out = make(say, root, tmp_path / "set", "diff")
    root.rename(moved)
    (moved / "A/0.avi").unlink()
    shutil.copy(moved / "B/1.avi", moved / "A/2.avi")  # other packets under the name
    (moved / "B/3.avi").write_text("no video any more")
    said = say("add-cues", out, "--cues", "energy,flow", "--root", moved, "--workers", "1")
    assert f"1 of 6 videos are not at {moved}: A/0.avi" in said
    assert "flow: 3 samples from their videos, 3 from their stored frames" in said
    assert {key for key, entry in entries(out).items() if "from_stored" in entry} == {"A_0", "A_2", "B_3"}
    assert ShardSet(out).manifest.from_stored == {"energy": 3, "flow": 3} and whole(out)


def test_a_video_that_hangs_costs_its_exact_cue(videos: Path, tmp_path: Path, say: Say) -> None:
    out = make(say, videos, tmp_path / "set", "diff")
    assert "6 from their stored frames" in say("add-cues", out, "--cues", "flow", "--workers", "1", "--timeout", "0.001")
    assert whole(out)


class Stop(BaseException):
    """The process ends here."""


class Here:
    """A pool without processes: their start would take most of the time."""

    def __init__(self, function: Callable[[Any], Any], workers: int, timeout: float):
        self._function = function

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: object) -> None: ...

    def map(self, tasks: Iterable[Any]) -> Iterator[Any]:
        return map(self._function, tasks)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.run.Pool", Here)


def test_interrupted_at_any_step_there_is_a_whole_set_and_the_next_start_finishes(
    videos: Path, tmp_path: Path, say: Say, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(say, videos, tmp_path / "made", "diff", "--size", "128")
    finished, old = shutil.copytree(made, tmp_path / "finished"), samples(made)
    assert len(ShardSet(made).tars) == 2
    say("add-cues", finished, "--cues", "energy", "--workers", "1")
    new, steps, puts, removes = samples(finished), 0, Folder.put, Folder.remove

    def counted(step: Callable[..., None], last: int) -> Callable[..., None]:
        def counting(*arguments: object) -> None:
            nonlocal steps
            steps += 1
            if steps > last:
                raise Stop
            step(*arguments)

        return counting

    for last in range(100):
        out, steps = Path(shutil.copytree(made, tmp_path / "stopped")), 0
        with monkeypatch.context() as patched:
            patched.setattr(Folder, "put", counted(puts, last))
            patched.setattr(Folder, "remove", counted(removes, last))
            try:
                say("add-cues", out, "--cues", "energy", "--workers", "1")
            except Stop:
                pass
            else:
                break
        assert samples(out) in (old, new) and whole(out)
        if last % 2:
            say("merge", out, "--max-failures", "50")  # whichever command comes next
        say("add-cues", out, "--cues", "energy", "--workers", "1")
        assert samples(out) == new and whole(out)
        assert {path.name for path in out.iterdir()} == {path.name for path in finished.iterdir()}
        shutil.rmtree(out)
    assert last == 15  # a put for each tar and index, the plan and the manifest; a remove for each old file


def test_finished_shards_are_kept_for_the_same_cues_and_videos_only(
    videos: Path, tmp_path: Path, say: Say, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, puts = make(say, videos, tmp_path / "made", "diff", "--size", "128"), Folder.put

    def put(self: Folder, name: str, file: Path) -> None:
        if name == "shard-000003.tar":
            raise Stop
        puts(self, name, file)

    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(Folder, "put", put)
        say("add-cues", made, "--cues", "flow", "--workers", "1")
    for cues, root, kept in (("flow", videos, True), ("flow", "none", False), ("energy", videos, False)):
        out = Path(shutil.copytree(made, tmp_path / f"{cues}{kept}"))
        before = (out / "shard-000002.tar").stat().st_ino
        say("add-cues", out, "--cues", cues, "--root", root, "--workers", "1")
        assert ((out / "shard-000002.tar").stat().st_ino == before) == kept
        assert ShardSet(out).manifest.from_stored == ({"flow": 6} if root == "none" else {}) and whole(out)


def test_other_cues_for_a_finished_set_name_the_way(videos: Path, tmp_path: Path, say: Say) -> None:
    out = make(say, videos, tmp_path / "set", "diff,energy")
    before = samples(out)
    command = ("-m", "preprocess", "folder", "--root", videos, "--size", "32", "--shard-size", "1", "--out", out)
    for append in ((), ("--append",)):
        said = refuse(*command, "--cues", "diff,flow", *append)
        assert f"--cues diff,flow: {out} is finished and has the cues diff,energy; python -m preprocess add-cues {out} " in said
        assert "--cues flow adds flow to it" in said
    assert "give --cues diff,energy" in refuse(*command, "--cues", "diff")
    assert "made with --quality 90" in refuse(*command, "--cues", "diff,flow", "--quality", "80")
    assert samples(out) == before


def test_a_set_with_later_cues_is_that_of_the_command_with_all_of_them(videos: Path, tmp_path: Path, say: Say) -> None:
    root = tmp_path / "root"
    shutil.copytree(videos, root)
    out = make(say, root, tmp_path / "set", "diff")
    say("add-cues", out, "--cues", "energy", "--workers", "1")
    say("add-cues", out, "--cues", "flow", "--workers", "1", "--root", "none")
    manifest = (out / "manifest.json").read_bytes()
    make(say, root, out, "diff,flow,energy")
    say("merge", out, "--max-failures", "50")
    assert (out / "manifest.json").read_bytes() == manifest
    command = ("-m", "preprocess", "folder", "--root", root, "--size", "32", "--shard-size", "1", "--out", out)
    assert "has the cues diff,flow,energy; give --cues diff,flow,energy" in refuse(*command, "--cues", "diff")
    encode(render("up", "rings", ("new",))[0][:24], 25, root / "A/new.avi")
    assert "made from other videos" in refuse(*command, "--cues", "diff,flow,energy")
    make(say, root, out, "diff,flow,energy", "--append")
    encode(render("up", "rings", ("text",))[0][:24], 25, root / "A/text.avi")
    assert "8 videos" in say("retry", out, "--workers", "1")
    shards = ShardSet(out)
    assert shards.manifest.from_stored == {"flow": 6} and whole(out)
    assert all(len(shards.read(n).vectors("flow", [1])) for n in range(8))


def test_a_set_of_several_runs_gets_a_cue(videos: Path, tmp_path: Path, say: Say) -> None:
    """Parts of files as a list names them, and shards that were appended."""
    out, table = tmp_path / "set", tmp_path / "list.csv"
    table.write_text("path,label,start_seconds,end_seconds\nA/0.avi,x,0.2,0.6\nA/0.avi,y,0.6,\n")
    csv = ("csv", "--root", videos, "--list", table, "--out", out, "--size", "32", "--workers", "1")
    say(*csv, "--cues", "diff")
    table.write_text(table.read_text() + "B/1.avi,z,0.2,\n")
    say(*csv, "--cues", "diff", "--append")
    say("add-cues", out, "--cues", "energy", "--workers", "1")
    say(*csv[:-4], "--cues", "diff,energy", *csv[-4:], "--out", tmp_path / "all")
    assert samples(out) == samples(tmp_path / "all") and whole(out) and len(samples(out)) == 3


def test_what_cannot_be_is_refused_and_what_is_there_is_named(
    videos: Path, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = make(say, videos, tmp_path / "set", "diff")
    before, add = samples(out), ("-m", "preprocess", "add-cues", out)
    assert f"{out} has the cue diff already" in say("add-cues", out, "--cues", "diff")
    assert "--cues taste: expected any of diff, flow, energy" in refuse(*add, "--cues", "taste")
    (tmp_path / "empty").mkdir()
    none = f"--root {tmp_path / 'empty'}: it holds none of the set's 6 videos; expected A/0.avi in it"
    assert none in refuse(*add, "--cues", "flow", "--root", tmp_path / "empty")
    assert "no plan.json there" in refuse(*add[:-1], tmp_path / "empty", "--cues", "flow")
    with monkeypatch.context() as patched:
        patched.setattr(Folder, "free", lambda self: 1000)
        said = refuse(*add, "--cues", "flow")
        assert "beside the old ones until all are whole, and 0.00 GB are free" in said
    manifest = (out / "manifest.json").read_bytes()
    (out / "manifest.json").unlink()
    assert "no manifest.json there; finish the set first" in refuse(*add, "--cues", "flow")
    (out / "manifest.json").write_bytes(manifest)
    assert samples(out) == before
    data = bytearray((out / "shard-000000.tar").read_bytes())
    data[5000] ^= 1
    (out / "shard-000000.tar").write_bytes(data)
    said = refuse(*add, "--cues", "flow", "--workers", "1")
    assert f"{out}/shard-000000.tar, A_0: crc32 is " in said and "copy it again; the set is as it was" in said


@needs("s3fs", "moto")
def test_a_set_in_object_storage_gets_a_cue_where_it_lies(videos: Path, tmp_path: Path, say: Say, bucket: str) -> None:
    out, place = make(say, videos, tmp_path / "set", "diff"), f"s3://{bucket}/set"
    upload(out, place)
    for where in (out, place):
        say("add-cues", where, "--cues", "energy", "--root", videos, "--workers", "1")
    remote, local = open_folder(place), open_folder(out)
    assert {name: remote.read(name) for name in remote.files()} == {name: local.read(name) for name in local.files()}
    assert ShardSet(place).motion_N.min() > 0


def test_a_hostile_plan_or_index_is_one_line(videos: Path, tmp_path: Path, say: Say) -> None:
    out = make(say, videos, tmp_path / "set", "diff")
    plan = json.loads((out / "plan.json").read_text())
    (out / "plan.json").write_text(json.dumps(plan | {"first": {"cues": 3}}))
    assert "not a plan of this version" in refuse("-m", "preprocess", "add-cues", out, "--cues", "flow")
    (out / "plan.json").write_text(json.dumps(plan))
    text = (out / "manifest.json").read_text()
    with pytest.raises(InputError, match="index_sha256: expected str, got int"):
        Manifest.loads(json.dumps(json.loads(text) | {"index_sha256": 5}))
    for wrong in ('"flow"', '{"flow": "x"}', '{"flow": [1]}'):
        changed = text.rstrip()[:-1] + f', "from_stored": {wrong}}}'
        with pytest.raises(InputError, match="not a shard set's manifest"):
            Manifest.loads(changed)


@needs("ray")
def test_ray_adds_the_same_bytes(videos: Path, tmp_path: Path, say: Say) -> None:
    made = make(say, videos, tmp_path / "set", "diff", "--size", "128")
    local = Path(shutil.copytree(made, tmp_path / "local"))
    say("add-cues", local, "--cues", "energy", "--workers", "1")
    succeed("-m", "preprocess", "add-cues", made, "--cues", "energy", "--engine", "ray")
    assert len(ShardSet(made).tars) == 2
    assert {p.name: p.read_bytes() for p in made.iterdir()} == {p.name: p.read_bytes() for p in local.iterdir()}
