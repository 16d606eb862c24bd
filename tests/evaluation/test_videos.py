"""Classes of plain videos: those that the shard path gives, over time, of odd videos too, with an overlay."""

import json
import mmap
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import REAL, needs_real_data, refuse, succeed
from safetensors import safe_open
from safetensors.numpy import load_file

from dclr.data.clips import ClipConfig, eval_clips
from dclr.data.manifest import ShardSet
from dclr.errors import InputError
from dclr.evaluation import overlay
from dclr.evaluation.config import Prediction
from dclr.evaluation.finetune import finetuned
from dclr.evaluation.probe import averaged
from dclr.evaluation.setting import forward
from dclr.evaluation.videos import Namer, as_record, best, predict, window_starts
from preprocess.synthetic import encode
from preprocess.transcode import Options, TranscodeError, transcode


@pytest.fixture(scope="module")
def run(synthetic_set: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finetuning of one epoch, which tests three clips of three crops of a video."""
    out = tmp_path_factory.mktemp("finetuned") / "run"
    succeed(
        "train_eval.py", "finetune", "--shards", synthetic_set, "--train-split", "train", "--test-split", "test",
        "--pretrained", checkpoint, "--label", "scene", "--epochs", "1", "-cpv", "1", "-b", "16", "-j", "0",
        "--precision", "fp32", "--test-clips", "3", "--crops", "3", "--average", "logits", "--head", "bn", "--out", out,
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def namer(run: Path) -> Namer:
    return Namer(finetuned(run))


def source_of(shards: ShardSet, sample: int) -> Path:
    (path,) = Path(str(shards)).glob(f"videos/*/{shards.read(sample).meta.video}")
    return path


def test_a_source_video_has_the_scores_of_its_shard(namer: Namer, run: Path, synthetic_set: Path) -> None:
    """The set's short side of 32, its JPEGs, clips, crops and average are in the checkpoint."""
    tested, shards = load_file(run / "scores.safetensors"), ShardSet(synthetic_set)
    for row in (0, 13, 31):
        named = namer(source_of(shards, int(tested["sample"][row])))
        np.testing.assert_allclose(named.scores, tested["scores"][row][: len(named.scores)], atol=1e-6)
    assert namer.found.stored["size"] == 32
    with safe_open(run / "scores.safetensors", "np") as file:
        assert json.loads(file.metadata()["classes"]) == namer.found.classes


def test_windows_follow_each_other_over_the_whole_video(namer: Namer, synthetic_set: Path) -> None:
    shards = ShardSet(synthetic_set)
    sample = next(n for n in shards.select(["test"]).tolist() if shards.frames_N[n] % 7)  # of 4 frames at stride 2
    named, rate = namer(source_of(shards, sample)), shards.fps_N[sample]
    begin, end = (np.array([getattr(one, name) for one in named.windows]) * rate for name in ("begin", "end"))
    np.testing.assert_allclose(begin, window_starts(int(shards.frames_N[sample]), ClipConfig(frames=4, stride=2)), atol=1e-9)
    np.testing.assert_allclose(end, begin + 7)
    assert end[-1] == pytest.approx(shards.frames_N[sample]) and (begin[1:] <= end[:-1]).all()
    for one in named.windows:
        assert one.scores.sum() == pytest.approx(1, abs=1e-5) and one.maps.shape[0] == 3
        np.testing.assert_allclose(one.maps.mean((1, 2, 3)), 1, rtol=1e-3)


def test_segments_are_averaged_as_those_of_a_set_that_cuts_videos(run: Path, synthetic_set: Path) -> None:
    found, shards = finetuned(run), ShardSet(synthetic_set)
    path = source_of(shards, 0)
    cut = Namer(replace(found, stored=found.stored | {"segment": 0.5}))
    named, parts = cut(path), list(transcode(path, cut.options))
    assert len(parts) > 1
    firsts = [made.meta.source.first / made.meta.fps for made in parts]
    begins = [one.begin for one in named.windows]
    assert all(any(abs(begin - first) < 1e-6 for begin in begins) for first in firsts) and begins == sorted(begins)
    clips = [torch.from_numpy(eval_clips(as_record(made), found.clip, 3, 3)["rgb"]) for made in parts]
    every = [averaged(forward(cut.model, cut, of), "logits").numpy() for of in clips]
    np.testing.assert_allclose(named.scores, np.mean(every, 0), atol=1e-6)
    assert np.abs(every[0] - every[1]).max() > 1e-4


def test_what_is_large_is_read_from_its_file(synthetic_set: Path) -> None:
    """So that a long video does not lie in memory."""
    (made,) = transcode(source_of(ShardSet(synthetic_set), 0), Options(cues=(), size=32))
    record = as_record(made)
    assert isinstance(record.rgb.data.obj, mmap.mmap)
    np.testing.assert_array_equal(record.frames([3]), ShardSet(synthetic_set).read(0).frames([3]))


def test_other_videos_are_done_where_one_fails(
    run: Path, synthetic_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, out, broken = ShardSet(synthetic_set), tmp_path / "new" / "found.jsonl", tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    good = [source_of(shards, sample) for sample in (1, 2)]
    with pytest.raises(SystemExit, match=r"error: 1 of 3 videos could not be read; the others are done"):
        predict([good[0], broken, good[1]], Prediction(pretrained=str(run / "last.pt"), top=2, json=str(out)))
    said = capsys.readouterr()
    assert f"failed: {broken}: open: Invalid data found" in said.err and said.out.count("whole video") == 2
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["video"] for line in lines] == [str(good[0]), str(broken), str(good[1])] and "error" in lines[1]
    for line in lines[::2]:
        first, second = best(np.array(line["scores"]), 2)
        names = [f"{line['classes'][k]} {100 * line['scores'][k]:.1f} %" for k in (first, second)]
        assert f"whole video  {', '.join(names)}\n" in said.out
        assert len(line["classes"]) == len(line["windows"][0]["scores"]) == 8 and line["scores"][first] >= max(line["scores"])
        assert f"{line['windows'][1]['start']:.2f} to {line['windows'][1]['end']:.2f} s  " in said.out


def test_mistakes(run: Path, checkpoint: Path, synthetic_set: Path, tmp_path: Path) -> None:
    path = source_of(ShardSet(synthetic_set), 0)
    command = ("-m", "dclr.predict", path, "--pretrained")
    assert "it names no classes, expected the folder of train_eval.py finetune" in refuse(*command, checkpoint)
    assert f"{tmp_path}: no best.pt and no last.pt in it, expected the folder of train_eval.py" in refuse(*command, tmp_path)
    assert "no_one.mp4: no such file, expected a video" in refuse(*command[:2], "no_one.mp4", *command[3:], run)
    (tmp_path / "usage.py").touch()  # as a model folder has
    assert f"python {tmp_path}/usage.py VIDEO names the classes" in refuse(*command, tmp_path)
    assert "expected a name that ends in .mp4" in refuse(*command, run, "--overlay", tmp_path / "a.avi")
    assert "it exists" in refuse(*command, run, "--json", run / "result.json")
    with pytest.raises(InputError, match="it shows one video, and 2 are given"):
        predict([path, path], Prediction(pretrained=str(run), overlay=str(tmp_path / "a.mp4")))


def test_an_overlay_shows_every_frame_with_maps_and_curves(namer: Namer, tmp_path: Path) -> None:
    """Where the network looks the picture is coloured, elsewhere it is as it was; the curves' line moves on."""
    grey = np.full((30, 120, 160, 3), 128, np.uint8)
    encode(grey, 20, tmp_path / "grey.mp4")
    named = namer(tmp_path / "grey.mp4")
    shown = {namer.found.classes[k]: k for k in best(named.scores, 3)}
    overlay.write(tmp_path / "grey.mp4", named, shown, namer.options, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as made:
        stream = made.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in made.decode(stream)]
        assert (stream.codec_context.name, stream.average_rate, len(frames)) == ("h264", 20, 30)
    height = frames[0].shape[0] - overlay.CURVES
    assert frames[0].shape == (240 + overlay.CURVES, overlay.LEAST_WIDTH, 3) and height == 240
    beside = (overlay.LEAST_WIDTH - 320) // 2
    (top, left, tall, wide), scale = named.boxes[1], 240 / 32
    for frame in frames:
        inside = frame[int((top + tall / 2) * scale), beside + int((left + wide / 2) * scale)]
        assert np.ptp(inside) > 30  # jet has no greys
        assert np.abs(frame[4, beside + 20 : beside + 300] - 128).max() < 12 and frame[100, 20].max() < 12
    columns = [int((frame[height + 20 : height + 100].sum((0, 2))[36:300]).argmin()) for frame in frames]
    assert columns[5] < columns[15] < columns[25]
    one = named.windows[0]
    assert overlay.window_at(named.windows, one.end - 0.01) is one and overlay.window_at(named.windows, 99) is named.windows[-1]


@needs_real_data
def test_odd_videos_work_or_say_why(namer: Namer, tmp_path: Path) -> None:
    wild, good = REAL / "wild", ("derived/odd_size_h264_322x182.mp4", "derived/vfr_h264.mp4", "derived/short_7frames.mp4")
    for name in (*good, "stray/rotation/video_90.mov", "stray/rotation/video_180.mov"):
        out = tmp_path / f"{Path(name).stem}.mp4"
        overlay.write(wild / name, namer(wild / name), {"first": 0}, namer.options, out)
        with av.open(str(out)) as made, av.open(str(wild / name)) as source:
            shown = [frame.height - overlay.CURVES for frame in made.decode(video=0)]
            assert len(shown) == sum(1 for _ in source.decode(video=0)), name
        assert (shown[0] > 480) == ("90" in name)  # upright
    for name in ("empty.avi", "audio_only.mp4", "not_a_video.avi", "truncated.mp4"):
        with pytest.raises(TranscodeError):
            namer(wild / "derived" / name)
    grey = REAL / "reports/video/hevc_gray_tv.mp4"
    assert not grey.exists() or len(namer(grey).windows) >= 1
