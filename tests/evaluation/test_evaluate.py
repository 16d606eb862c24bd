"""Finetuning and what is tried with frozen features, as a user runs them, over one to three processes; what is refused."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, refuse, render, run, scalars, succeed
from safetensors.numpy import load_file

from dclr import metrics
from dclr.checkpoint import load
from dclr.compare import compare
from dclr.data.manifest import ShardSet
from dclr.errors import InputError
from dclr.evaluation import pieces, probe
from dclr.evaluation import setting as evaluation
from dclr.evaluation.features import name as features_name
from dclr.evaluation.probe import Labelled
from dclr.evaluation.setting import EvalConfig, held_out, over_videos
from preprocess.synthetic import encode

GOOD = EvalConfig(mode="linear", shards="s", out="o", train_split=("a",), test_split=("b",), pretrained="x.pt")
TINY = ["-fpc", "4", "-cs", "32", "--precision", "fp32", "-j", "0", "--test-clips", "2", "-cpv", "2"]


def evaluate(mode: str, shards: Path, out: Path, *more: object, ranks: int = 0) -> dict:
    succeed(
        "train_eval.py", mode, "--shards", shards, "--train-split", "train", "--test-split", "test", "--out", out,
        *TINY, *map(str, more), ranks=ranks,
    )  # fmt: skip
    return json.loads((out / "result.json").read_text())


def test_the_linear_probe_is_the_same_over_one_to_three_processes(
    checkpoint: Path, synthetic_set: Path, tmp_path: Path
) -> None:
    """32 test videos do not divide by 3: each is counted once all the same, and its scores do not depend on its rank."""
    results = [
        evaluate("linear", synthetic_set, tmp_path / str(n), "--pretrained", checkpoint, "--label", "scene", ranks=n)
        for n in (0, 2, 3)
    ]
    scores = [load_file(tmp_path / str(n) / "scores.safetensors") for n in (0, 2, 3)]
    for found in scores:
        assert len(found["sample"]) == len(set(found["sample"])) == 32
        np.testing.assert_array_equal(found["sample"], scores[0]["sample"])
        np.testing.assert_allclose(found["scores"], scores[0]["scores"], atol=1e-5)
    for result in results:
        assert result["videos"] == 32 and result["classes"] == 8 and result["label"] == "scene"
        assert np.sum(result["confusion"]) == 32
        assert result["top1"] == np.trace(result["confusion"]) / 32 <= result["top5"] <= 1
        assert result["options"]["frames"] == 4 and result["options"]["pretrained"] == str(checkpoint)
        assert [result[n] for n in ("top1", "top5", "mean_class", "confusion")] == [
            results[0][n] for n in ("top1", "top5", "mean_class", "confusion")
        ]
    assert (tmp_path / "0/confusion.png").stat().st_size > 1000
    assert scalars(tmp_path / "2")["result/top1"] == [pytest.approx(results[0]["top1"])]


def test_statistics_are_reestimated_on_rgb_before_the_probe(checkpoint: Path, synthetic_set: Path, tmp_path: Path) -> None:
    """The network changes and with it the result; the same on two processes as on one."""
    results = {}
    for name, flags, ranks in (("as it is", (), 0), ("one", ("--precise-bn", "3"), 0), ("two", ("--precise-bn", "3"), 2)):
        common = ("--pretrained", checkpoint, "--label", "scene", "-b", "24", *flags)
        results[name] = evaluate("linear", synthetic_set, tmp_path / name, *common, ranks=ranks)["confusion"]
    assert results["one"] == results["two"] != results["as it is"]


def test_what_is_tried_with_frozen_features(checkpoint: Path, synthetic_set: Path, tmp_path: Path) -> None:
    """Extracted once, on two processes, and kept: everything after reads them, and gives what it gives without."""
    kept = tmp_path / "features"
    common = ("--pretrained", checkpoint, "--label", "scene", "--features", kept)
    linear = evaluate("linear", synthetic_set, tmp_path / "linear", *common, ranks=2)
    files = sorted(kept.iterdir())
    before = [file.stat().st_mtime_ns for file in files]
    assert len(files) == 2  # of the training and of the test split
    knn = evaluate("knn", synthetic_set, tmp_path / "knn", *common)
    assert knn["videos"] == 32 == np.sum(knn["confusion"]) and knn["weights"] == linear["weights"] and len(knn["set"]) == 64
    retrieval = evaluate("retrieval", synthetic_set, tmp_path / "retrieval", *common)
    recalls = [retrieval[f"R@{k}"] for k in metrics.RECALLS]
    assert recalls == sorted(recalls) and 0 < recalls[0] < recalls[-1] <= 1 and "top1" not in retrieval
    few = evaluate("fewshot", synthetic_set, tmp_path / "few", *common, "--shots", 1, 3, 60, "--draws", 3)
    assert len(few["draws"]["1"]) == 3 and few["3-shot"] == np.mean(few["draws"]["3"]) and "60-shot" not in few
    assert files == sorted(kept.iterdir()) and [file.stat().st_mtime_ns for file in files] == before
    again = evaluate("retrieval", synthetic_set, tmp_path / "again", "--pretrained", checkpoint, "--label", "scene")
    assert [again[f"R@{k}"] for k in metrics.RECALLS] == recalls
    said = compare([tmp_path / name for name in ("linear", "knn", "retrieval", "few")]).splitlines()
    assert said[0].split()[7:] == [
        "top1",
        "top5",
        "mean_class",
        "R@1",
        "R@5",
        "R@10",
        "R@20",
        "R@50",
        "1-shot",
        "3-shot",
        "chance",
        "majority",
    ]
    assert said[-1].split()[7] == "-" and said[-1].count("±") == 2
    files[0].write_bytes(b"nothing")
    options = ("--train-split", "train", "--test-split", "test", "--out", tmp_path / "damaged", *TINY)
    assert "not features that train_eval.py kept" in refuse(
        "train_eval.py", "knn", "--shards", synthetic_set, *options, *common
    )


def test_few_shot_probes_take_that_many_of_each_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws are by seed, and the videos of a draw hold those of fewer shots."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    train = (np.eye(3)[labels][:, None] * 2 + rng.normal(size=(24, 2, 3))).astype(np.float32)
    known = Labelled(train, labels)

    def few_shot(shots: tuple[int, ...], draws: int, seed: int) -> dict[int, list[list[bool]]]:
        found = probe.few_shot(known, known, 3, replace(GOOD, shots=shots, draws=draws, seed=seed))
        return {count: right_DM.tolist() for count, right_DM in found.items()}

    found = few_shot((1, 4, 9), 4, 0)
    assert found.keys() == {1, 4} and found == few_shot((1, 4), 4, 0)
    assert np.mean(found[4]) > 0.7 and np.mean(found[4]) >= np.mean(found[1])
    assert found[1] != few_shot((1,), 4, 1)[1]
    seen = []
    fit = probe.fit_and_score
    monkeypatch.setattr(probe, "fit_and_score", lambda few, *more: seen.append(few) or fit(few, *more))
    few_shot((1, 4), 1, 0)
    one, four = seen
    assert one.label.tolist() == [0, 1, 2] and np.bincount(four.label).tolist() == [4, 4, 4]
    assert {video.tobytes() for video in one.value} < {video.tobytes() for video in four.value}
    seen.clear()
    few_shot((1,), 5, 0)
    assert len({few.value.tobytes() for few in seen}) == 5  # each draw takes others
    place = {video.tobytes(): n // 3 for n, video in enumerate(train)}
    places = [[place[video.tobytes()] for video in few.value] for few in seen]
    assert any(len(set(of_classes)) > 1 for of_classes in places)  # and others of each class
    with pytest.raises(InputError, match="the smallest class of --train-split has 8 videos"):
        few_shot((9,), 1, 0)


def test_shots_that_no_class_has_are_refused_before_features_are_extracted(
    synthetic_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "both", lambda setting: pytest.fail("extracted"))
    config = replace(
        GOOD, mode="fewshot", shards=str(synthetic_set), train_split=("train",), test_split=("test",), shots=(1000,),
        out=str(tmp_path / "out"), pretrained="random", arch="r2plus1d_10", width=4, size=32,
    )  # fmt: skip
    with pytest.raises(InputError, match="--shots 1000: the smallest class of --train-split has 8 videos, expected at most"):
        probe.frozen(config, probe.fewshot)


def test_the_authors_probe_and_its_learning_rate() -> None:
    """SGD comes near the convex probe, and the rate is the one that does best on what is held out, never on the test videos."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = (np.eye(3)[labels][:, None] + rng.normal(size=(60, 2, 3)) * 0.4 + 3).astype(np.float32)
    known, held = Labelled(features, labels), np.arange(60) >= 45
    config = replace(GOOD, probe="sgd", probe_lr=(100.0, 0.1), val=0.25)
    scores, tried = probe.sgd_probe(known, held, features, 3, config)
    assert tried["lr"] == 0.1 and tried["val_top1"][100.0] < tried["val_top1"][0.1] == 1
    np.testing.assert_allclose(scores.sum(1), 1)
    assert metrics.accuracies(scores, labels)["top1"] > 0.95
    again, _ = probe.sgd_probe(known, held, features, 3, config)
    np.testing.assert_array_equal(again, scores)
    one, tried = probe.sgd_probe(known, held, features, 3, replace(config, probe_lr=(0.1,)))
    np.testing.assert_array_equal(one, scores)  # on all training videos, those that were held out too
    assert tried["val_top1"] == {}


def test_probabilities_or_logits_of_a_videos_clips_are_averaged() -> None:
    logits = torch.tensor([[[9.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]])  # one sure clip against two that lean the other way
    probabilities = torch.stack([clip.softmax(0) for clip in logits[0]]).mean(0)
    torch.testing.assert_close(probe.averaged(logits)[0], probabilities)
    torch.testing.assert_close(probe.averaged(logits, "logits")[0], torch.tensor([7 / 3, 0.0]).softmax(0))
    assert probe.averaged(logits)[0, 0] < 0.55 < 0.9 < probe.averaged(logits, "logits")[0, 0]


class Groups:
    """A set whose videos come in groups, as UCF101's do: five groups of four clips in each of three classes."""

    def __init__(self) -> None:
        self.keys = [f"Class{c}_v_Class{c}_g{g:02}_c{n:02}" for c in range(3) for g in range(5) for n in range(4)]
        self.video_N = np.arange(60)
        self.labels = {"action": np.repeat(np.arange(3), 20)}


@pytest.mark.parametrize("share", [0.2, 0.3, 0.99])
def test_what_is_held_out_is_whole_groups_of_the_training_split(share: float) -> None:
    shards: Any = Groups()
    samples = np.arange(60)
    train, val = held_out(shards, "action", samples, share, 0)
    assert sorted([*train, *val]) == samples.tolist()

    def groups(part: np.ndarray) -> set[str]:
        return {shards.keys[n].rsplit("_c", 1)[0] for n in part}

    assert not groups(train) & groups(val)
    expected = min(-(-share * 20 // 4), 4) * 4  # whole groups until the share is reached, and one stays
    for label in range(3):
        assert (shards.labels["action"][val] == label).sum() == expected
        assert (shards.labels["action"][train] == label).any()
    np.testing.assert_array_equal(held_out(shards, "action", samples, share, 0)[1], val)
    assert share == 0.99 or any((held_out(shards, "action", samples, share, seed)[1] != val).any() for seed in (1, 2, 3))
    assert held_out(shards, "action", samples, 0, 0)[1].size == 0


def test_an_extraction_that_is_killed_goes_on(synthetic_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found of a video is not asked for again, and the result is that of an extraction that ran through."""
    shards = ShardSet(synthetic_set)
    config = replace(GOOD, train_split=("train",), test_split=("test",), frames=4, size=32, workers=0)
    device, clip = torch.device("cpu"), config.clip({})
    trunk, weights = evaluation.random_weights("r2plus1d_10", 4, 0)
    setting = evaluation.labelled(config, trunk, weights, shards, None, clip, device, torch.float32)
    asked: list[int] = []

    def found(batch: dict[str, Any], until: int = 99) -> torch.Tensor:
        if len(asked) == until:
            raise KeyboardInterrupt
        asked.append(int(batch["sample"]))
        return batch["rgb"][0].float().mean((1, 2, 3))

    straight = over_videos(setting, setting.test_N, 2, 1, "straight", found)
    monkeypatch.setattr(pieces, "SECONDS", 0)
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        over_videos(setting, setting.test_N, 2, 1, "cut", lambda batch: found(batch, 10), tmp_path / "kept")
    (tmp_path / "kept" / "000000000099.safetensors").write_bytes(b"cut by the kill")
    resumed = over_videos(setting, setting.test_N, 2, 1, "resumed", found, tmp_path / "kept")
    assert sorted(asked) == setting.test_N.tolist()  # each once in both
    for one, other in zip(straight, resumed, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("ranks", [0, 2])
def test_finetuning_from_a_checkpoint_and_from_random(
    checkpoint: Path, synthetic_set: Path, tmp_path: Path, ranks: int
) -> None:
    """It learns the scenes of the training videos, and over two processes it is the training of one."""
    curves = {}
    options = ("--label", "scene", "--epochs", 5, "-b", 16, "--lr", 0.05, "--dropout", 0, "--flip", 0, "--min-scale", 0.8)
    for name, weights in (("ours", [checkpoint]), ("random", ["random", "-a", "r2plus1d_10", "--width", "4"])):
        result = evaluate("finetune", synthetic_set, tmp_path / name, *options, "--pretrained", *weights, ranks=ranks)
        assert result["videos"] == 32 and result["label"] == "scene" and np.sum(result["confusion"]) == 32
        curves[name] = scalars(tmp_path / name)["finetune/loss"]
        assert len(curves[name]) == 8  # of 40 steps, every tenth and the last of each epoch
        assert min(curves[name]) < np.log(8) - 0.15  # below that of guessing
    assert abs(curves["ours"][0] - curves["random"][0]) > 1e-3  # the checkpoint's weights were there
    said = compare([tmp_path / "ours", tmp_path / "random"])
    assert said.count("finetune") == 2 and "12.5" in said


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 12 training and 4 test videos of two classes; two of the test videos are training videos under another name."""
    root = tmp_path_factory.mktemp("copies")
    lines = ["path,label,split"]
    for number in range(16):
        path = root / f"{number}.mp4"
        if number < 14:
            encode(render(("left", "up")[number % 2], "dots", ("copies", number))[0], 25, path)
        else:
            shutil.copy(root / f"{number - 14}.mp4", path)
        lines.append(f"{number}.mp4,{number % 2},{'train' if number < 12 else 'test'}")
    (root / "list.csv").write_text("\n".join(lines))
    succeed("-m", "preprocess", "csv", "--root", root, "--list", root / "list.csv", "--size", "32", "--out", root / "set")
    return root / "set"


def test_an_evaluation_trains_on_the_videos_that_are_chosen(copies: Path, tmp_path: Path) -> None:
    """It says how many of how many they are, keeps how they were chosen, and warns of those that it tests too."""
    common = ("--shards", copies, "--train-split", "train", "--test-split", "test", *SMALL, "--pretrained", "random")
    small = (*common, "--test-clips", "1", "-cpv", "1")
    done = run("train_eval.py", "linear", *small, "--out", tmp_path / "all")
    assert done.returncode == 0 and "are chosen by" not in done.stdout, done.stderr
    warning = "warning: 2 videos are in train and in test (the same packets): "
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert line.startswith(warning) and "0 and 14" in line and "1 and 15" in line
    one_epoch = ("train_eval.py", "finetune", *small, "-b", "4", "--epochs", "1", "--out", tmp_path / "some")
    assert "9 of 12 videos of train are chosen by --share 0.75" in succeed(*one_epoch, "--share", "75%")
    result = json.loads((tmp_path / "some/result.json").read_text())
    assert result["options"]["share"] == 0.75 and result["options"]["min_motion"] is None and result["videos"] == 4
    assert load(tmp_path / "some/last.pt")["loader"]["samples"] == 9
    (tmp_path / "some/result.json").unlink()
    other = refuse(*one_epoch, "--share", "50%")
    assert "--share 0.5: the run in" in other and "was made with --share 0.75" in other
    none = refuse("train_eval.py", "knn", *small, "--min-motion", "200", "--out", tmp_path / "none")
    assert "--min-motion 200 leaves none of 12 videos of" in none


def test_features_of_a_network_whose_statistics_are_of_other_videos_are_others(copies: Path) -> None:
    config = replace(GOOD, train_split=("train",), test_split=("test",), frames=4, size=32, workers=0)
    trunk, weights = evaluation.random_weights("r2plus1d_10", 4, 0)

    def name(**how: Any) -> str:
        device, some = torch.device("cpu"), replace(config, **how)
        setting = evaluation.labelled(some, trunk, weights, ShardSet(copies), None, some.clip({}), device, torch.float32)
        return features_name(setting, setting.test_N, 1, 1, "")

    assert name() == name(share=0.5)  # nothing of the test features depends on the training videos
    assert len({name(precise_bn=1), name(precise_bn=1, share=0.5), name(precise_bn=1, min_motion=0.1)}) == 3


def test_the_probe_reaches_the_minimum_of_its_objective() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 5, generator=generator).double(), torch.arange(60) % 3
    layer = probe.logistic_regression(x, y, 3)
    loss = torch.nn.functional.cross_entropy(layer(x), y) + layer.weight.square().sum() / 120
    layer.zero_grad()
    loss.backward()
    assert all(float(p.grad.abs().max()) < 1e-5 for p in layer.parameters() if p.grad is not None)


def test_the_probe_separates_what_is_separable() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    features = (np.eye(3)[labels][:, None] * 4 + rng.normal(size=(30, 2, 3))).astype(np.float32)
    scores = probe.fit_and_score(Labelled(features, labels), features, 3)
    np.testing.assert_allclose(scores.sum(1), 1)
    assert metrics.accuracies(scores, labels)["top1"] > 0.9


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"mode": "guess"}, "finetune, linear"),
        ({"pretrained": "random"}, "name it with -a"),
        ({"arch": "vgg"}, "r2plus1d_10"),
        ({"test_clips": 0}, "test-clips 0"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"shots": (0, 5)}, "--shots 0: expected 1 to 1000000"),
        ({"average": "votes"}, "expected one of probabilities, logits"),
        ({"head": "mlp"}, "expected one of linear, bn"),
        ({"bn": "shuffle"}, "expected one of sync, local, frozen"),
        ({"early_stop": 2}, "--early-stop 2: it needs --val"),
        ({"probe_lr": (1.0, 5.0)}, "of several one is chosen on --val"),
        ({"baseline": "./o"}, "--baseline ./o: it is --out itself, expected the folder of another evaluation"),
        ({"val": 1.0}, "--val 1.0: expected 0 to below 1"),
    ],
)
def test_configurations_that_cannot_work_are_refused(wrong: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        replace(GOOD, **wrong)


class Escape:
    def __reduce__(self) -> tuple:
        return (open, ("/nonexistent/escaped", "w"))


def test_wrong_input_is_answered_in_one_line(checkpoint: Path, synthetic_set: Path, tmp_path: Path) -> None:
    def linear(pretrained: object, *more: str, train: str = "train", test: str = "test", shards: Path = synthetic_set) -> str:
        return refuse(
            "train_eval.py", "linear", "--shards", shards, "--train-split", train, "--test-split", test,
            "--out", tmp_path / "out", "--pretrained", str(pretrained), *TINY, *more,
        )  # fmt: skip

    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Escape()))
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    torch.save({"version": 1, "config": {"arch": "r2plus1d_10"}, "model": {}}, tmp_path / "hollow.pt")
    nowhere = tmp_path / "no-shards"
    assert "no such checkpoint" in linear(tmp_path / "none.pt", shards=nowhere)  # checkpoints before shard sets
    assert "not a readable checkpoint" in linear(tmp_path / "text.pt", shards=nowhere)
    assert "not a readable checkpoint" in linear(tmp_path / "pickle.pt")
    assert "it holds no weights" in linear(tmp_path / "other.pt")
    assert "it holds no weights" in linear(tmp_path / "hollow.pt")
    assert "not the r2plus1d_18 of -a" in linear(checkpoint, "-a", "r2plus1d_18")
    assert "no manifest.json there" in linear(checkpoint, shards=nowhere)
    assert "it has: motion, scene" in linear(checkpoint, "--label", "action")
    assert "it has: test (32), train (64)" in linear(checkpoint, test="test01")
    assert "trains or tests, not both" in linear(checkpoint, test="test,train")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_damaged_shard_is_one_line_that_names_it(checkpoint: Path, synthetic_set: Path, tmp_path: Path, workers: str) -> None:
    copy = Path(shutil.copytree(synthetic_set, tmp_path / "copy", ignore=shutil.ignore_patterns("videos")))
    shard = copy / "shard-000000.tar"
    shard.write_bytes(bytes(shard.stat().st_size))
    said = refuse(
        "train_eval.py", "linear", "--shards", copy, "--train-split", "train", "--test-split", "test",
        "--out", tmp_path / "out", "--pretrained", checkpoint, *TINY, "-j", workers,
    )  # fmt: skip
    assert "shard-000000.tar" in said and "the shard is damaged, copy it again" in said


def test_a_finished_evaluation_says_so_and_is_made_anew_by_force_alone(
    checkpoint: Path, synthetic_set: Path, tmp_path: Path
) -> None:
    out, weights = tmp_path / "r", Path(shutil.copy(checkpoint, tmp_path / "w.pt"))
    result = evaluate("linear", synthetic_set, out, "--pretrained", weights)
    before = (out / "result.json").read_bytes()
    command = (
        "train_eval.py", "linear", "--shards", synthetic_set, "--train-split", "train", "--test-split", "test",
        "--out", out, "--pretrained", weights, *TINY,
    )  # fmt: skip
    told = f"{out} is finished: linear on motion: top1 {100 * result['top1']:.1f} % of 32 videos; {out}/"
    said = succeed(*command, "-j", "1", "--features", tmp_path / "f")  # these decide no number
    assert said.strip() == f"{told}report.html; --force evaluates anew"
    (out / "report.html").unlink()
    assert succeed(*command, ranks=2).strip() == f"{told}result.json; --force evaluates anew"
    other = f"the result in {out} was made"
    assert f"--test-clips 3: {other} with --test-clips 2; give that again" in refuse(*command, "--test-clips", "3")
    assert f"--seeds 1: {other} with --seeds 0" in refuse(*command, "--seeds", "1")
    assert f"--seeds 0,1: {other} with --seeds 0" in refuse(*command, "--seeds", "0", "1")
    assert f"--cross-cuts: {other} with --no-cross-cuts" in refuse(*command, "--cross-cuts")
    assert f"knn: {other} by linear" in refuse(*command[:1], "knn", *command[2:])
    weights.write_bytes(weights.read_bytes() + b"\0")  # trained anew under the same name
    assert f"--pretrained {weights}: the result in {out} was made from another content" in refuse(*command)
    assert (out / "result.json").read_bytes() == before
    shutil.copy(checkpoint, weights)
    assert "is finished" not in succeed(*command, "--force") and (out / "result.json").read_bytes() != before
