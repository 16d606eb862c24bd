"""Features as rows in files: what they are, the same bytes from any number of processes and kills, what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import needs, refuse, succeed

from dclr.checkpoint import load_encoder
from dclr.data.clips import eval_clips
from dclr.data.manifest import ShardSet
from dclr.errors import InputError
from dclr.evaluation import pieces, rows
from dclr.evaluation.config import Extraction
from dclr.evaluation.rows import extract, parts, read
from dclr.method.views import normalise, to_clip

FLAGS = ("--split", "test", "--test-clips", "2", "-j", "0", "--precision", "fp32")


@pytest.fixture
def config(synthetic_set: Path, checkpoint: Path, tmp_path: Path) -> Extraction:
    """The 32 test videos, two clips each."""
    places = {"shards": str(synthetic_set), "pretrained": str(checkpoint), "out": str(tmp_path / "out")}
    return Extraction(split=("test",), test_clips=2, workers=0, precision="fp32", **places)  # type: ignore[arg-type]


def made(config: Extraction) -> dict[str, np.ndarray]:
    extract(config)
    with np.load(Path(config.out) / "features-00000.npz") as table:
        return dict(table)


def test_a_row_a_video_a_clip_or_a_position(config: Extraction, tmp_path: Path) -> None:
    """A video's are the mean of its clips', and a clip's the mean of its positions', which are the encoder's own."""
    shards, encoder = ShardSet(config.shards), load_encoder(config.pretrained)
    samples = shards.select(["test"])
    video, clip, position = (
        made(replace(config, out=str(tmp_path / per), per=per, crops=3)) for per in ("video", "clip", "position")
    )
    assert video["key"].tolist() == [shards.keys[sample] for sample in samples]
    for kind in ("motion", "scene"):
        np.testing.assert_array_equal(video[f"label_{kind}"], shards.labels[kind][samples])
        assert video[f"classes_{kind}"].tolist() == shards.classes[kind]
    assert video["split_test"].all() and not video["split_train"].any()
    assert clip["clip"].tolist() == [0, 0, 0, 1, 1, 1] * 32 and clip["crop"].tolist() == [0, 1, 2] * 64
    np.testing.assert_allclose(clip["features"].reshape(32, 6, -1).mean(1), video["features"], rtol=1e-5)
    length = shards.frames_N[samples] / shards.fps_N[samples]
    np.testing.assert_allclose(video["end"], length, atol=1e-4)  # the last clip ends where the video does
    begin, end = clip["start"].reshape(32, 6), clip["end"].reshape(32, 6)
    assert (begin[:, :3] == 0).all() and (begin[:, 3:] > 0).all()
    np.testing.assert_allclose(end - begin, (7 / shards.fps_N[samples])[:, None].repeat(6, 1), atol=2e-4)  # 4 frames, stride 2
    for number, sample in enumerate(samples[:2]):
        cut = eval_clips(shards.read(int(sample)), config.clip({"frames": 4, "stride": 2, "size": 32}), 2, 3)["rgb"]
        with torch.no_grad():
            expected = encoder.features(normalise(to_clip(torch.from_numpy(cut))))  # 6 C' T' H' W'
        cells = expected.shape[2:]
        mine = position["features"].reshape(32, 6, *cells, -1)[number]
        np.testing.assert_allclose(mine, expected.movedim(1, -1).numpy(), rtol=1e-4, atol=1e-4)
        place = np.indices((6, *cells)).reshape(4, -1)
        for name, column in zip(("t", "h", "w"), place[1:], strict=True):
            np.testing.assert_array_equal(position[name].reshape(32, -1)[number], column)
        np.testing.assert_array_equal(position["clip"].reshape(32, -1)[number], place[0] // 3)


def test_processes_threads_and_kills_change_no_byte(
    config: Extraction, synthetic_set: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes write what one does; one that is killed twice goes on after the videos and files that it has."""
    said = succeed("-m", "dclr.extract", synthetic_set, "--pretrained", checkpoint, *FLAGS, "--out", tmp_path / "two", ranks=2)
    assert f"32 rows: {tmp_path / 'two'}/features-00000.npz" in said
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    extract(replace(config, out=str(tmp_path / "one")))
    torch.set_num_threads(threads)
    assert (tmp_path / "two/features-00000.npz").read_bytes() == (tmp_path / "one/features-00000.npz").read_bytes()

    monkeypatch.setattr(rows, "FILE_BYTES", 12 * 4 * (2 + 32))  # 12 videos of 32 channels
    extract(replace(config, out=str(tmp_path / "straight")))
    straight = sorted((tmp_path / "straight").glob("*.npz"))
    assert [len(read(path, "key")) for path in straight] == [12, 12, 8]
    np.testing.assert_array_equal(
        np.concatenate([read(path, "features") for path in straight]), read(tmp_path / "one/features-00000.npz", "features")
    )
    asked: list[int] = []
    rows_of = rows.rows_of

    def killed(setting: Any) -> tuple[Callable[[dict[str, Any]], torch.Tensor], int]:
        found, size = rows_of(setting)

        def ask(batch: dict[str, Any]) -> torch.Tensor:
            if len(asked) in stops:
                stops.remove(len(asked))
                raise KeyboardInterrupt
            asked.append(int(batch["sample"]))
            return found(batch)

        return ask, size

    monkeypatch.setattr(rows, "rows_of", killed)
    monkeypatch.setattr(pieces, "SECONDS", 0)
    stops = [5, 20]
    for stopped in (True, True, False):
        if stopped:
            with pytest.raises(KeyboardInterrupt):
                extract(config)
        else:
            extract(config)
    assert sorted(asked) == ShardSet(synthetic_set).select(["test"]).tolist()  # each once
    assert sorted(path.name for path in Path(config.out).iterdir()) == ["extract.json", *(path.name for path in straight)]
    for path in straight:
        assert (Path(config.out) / path.name).read_bytes() == path.read_bytes()
    extract(config)
    assert len(asked) == 32  # and none where all is there


def test_what_was_made_otherwise_is_refused(config: Extraction, synthetic_set: Path, checkpoint: Path) -> None:
    extract(config)
    out = Path(config.out)
    before = (out / "features-00000.npz").read_bytes()
    common = ("-m", "dclr.extract", synthetic_set, "--pretrained", checkpoint, "--out", out, *FLAGS)
    assert "its features were made with other --split; name another folder" in refuse(*common, "--split", "train")
    assert "made with other --per, --test-clips or --crops; name" in refuse(*common, "--per", "clip")
    assert "it has: test (32), train (64)" in refuse(*common, "--split", "nothing")
    assert "name it with -a" in refuse(*common[:3], "--pretrained", "random", "--out", out)
    (out / "features.png").touch()
    extract(replace(config, per="clip", force=True))
    assert not (out / "features.png").exists()  # it showed what is gone
    assert len(read(out / "features-00000.npz", "key")) == 64 and (out / "features-00000.npz").read_bytes() != before
    (out / "features-00000.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"features-00000\.npz: not features of python -m dclr\.extract"):
        extract(replace(config, per="clip"))
    (out / "extract.json").write_text("[]")
    with pytest.raises(InputError, match=r"extract\.json: not of python -m dclr\.extract"):
        extract(config)


def test_extras_that_are_not_installed_are_named(config: Extraction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--plot needs scikit-learn: pip install 'dclr\[plot\]'"):
        extract(replace(config, plot=True))
    with pytest.raises(InputError, match=r"--format parquet needs pyarrow: pip install 'dclr\[parquet\]'"):
        extract(replace(config, format="parquet"))
    assert not Path(config.out).exists()


def test_segments_of_a_video_are_one_row_and_in_one_file() -> None:
    class Segments:
        video_N = np.array([7, 7, 3, 7, 5, 3, 9])

    shards: Any = Segments()
    found = parts(shards, np.arange(7), 3)
    assert [part.tolist() for part in found] == [[0, 1, 3], [2, 5, 4], [6]]
    assert [part.tolist() for part in parts(shards, np.arange(7), 1)] == [[0, 1, 3], [2, 5], [4], [6]]
    assert [part.tolist() for part in parts(shards, np.array([2, 4, 5]), 100)] == [[2, 5, 4]]
    row = rows.joined([np.array([4.0, 6, 1, 10]), np.array([0.0, 3, 3, 20])])
    assert row.tolist() == [0, 6, 2, 15]


def test_a_video_that_cannot_be_read_is_left_out(
    config: Extraction, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = ShardSet(config.shards)
    sample = int(shards.select(["test"])[3])
    broken = tmp_path / "broken"
    for path in Path(config.shards).glob("*.*"):
        (broken / path.name).parent.mkdir(exist_ok=True)
        (broken / path.name).write_bytes(path.read_bytes())
    name, offset, _ = shards.where(sample)
    data = bytearray((broken / name).read_bytes())
    data[offset] ^= 255
    (broken / name).write_bytes(data)
    skipping = replace(config, shards=str(broken), on_error="skip", max_skipped=5.0)
    table = made(skipping)
    assert shards.keys[sample] not in table["key"] and len(table["key"]) == 31
    assert f"skipped: {broken}/{name}, sample {shards.keys[sample]!r}" in capsys.readouterr().err
    with pytest.raises(InputError, match="1 of 32 videos could not be read, more than --max-skipped 1 percent"):
        extract(replace(skipping, max_skipped=1.0, out=str(tmp_path / "few")))


@needs("pyarrow")
def test_parquet_has_the_same_rows(config: Extraction, tmp_path: Path) -> None:
    from pyarrow import parquet

    extract(replace(config, format="parquet", per="clip", out=str(tmp_path / "parquet")))
    table, path = made(replace(config, per="clip")), tmp_path / "parquet/features-00000.parquet"
    found = parquet.read_table(path)
    assert set(found.column_names) == {name.replace("classes", "class") for name in table}
    for name in found.column_names:
        if not name.startswith("class_"):
            np.testing.assert_array_equal(read(path, name), table[name])
    assert found["class_motion"].to_pylist() == table["classes_motion"][table["label_motion"]].tolist()


@needs("sklearn")
def test_the_picture_is_the_same_for_the_same_seed(config: Extraction, monkeypatch: pytest.MonkeyPatch) -> None:
    picture, pictures = Path(config.out) / "features.png", []
    monkeypatch.setattr(rows, "DRAWN", 24)
    titles = []
    write = rows.canvas.write
    monkeypatch.setattr(rows.canvas, "write", lambda figure, out: titles.append(figure.axes[0]) or write(figure, out))
    for seed in (0, 0, 1):
        extract(replace(config, plot=True, seed=seed, label="scene"))
        pictures.append(picture.read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]
    present = len(titles[0].get_legend().get_texts())
    assert f"24 of 32 videos by scene, {present} classes (t-SNE)" in titles[0].get_title() and 1 < present <= 8
    assert json.loads((Path(config.out) / "extract.json").read_text())["options"]["plot"] is True
