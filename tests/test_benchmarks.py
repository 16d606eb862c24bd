"""The benchmark of a training step at a tiny size, and those of its parts that only a GPU's run would show to be wrong; the
study's arithmetic."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from safetensors.numpy import save_file
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent

from dclr.method.backbones import build


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "benchmarks" / f"{name}.py")
    assert spec and spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench = script("step")
evidence = script("evidence")
study = script("study")
ranks = script("ranks")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, and what the device can do at most is not measured."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(bench, "fastest", lambda run: 1.0)


def test_a_tiny_run_prints_the_table(quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    size = "--batch 2 --rounds 1 --clip 8 32 --width 4 --pad"
    monkeypatch.setattr(sys, "argv", ["step.py", *size.split()])
    bench.main()
    heading, *table = capsys.readouterr().out.partition("## ")[2].splitlines()
    assert size in heading
    rows = [line.split(" | ") for line in table if line.startswith("| ")]
    assert len({len(row) for row in rows}) == 1
    assert [row[1] for row in rows[:3]] == ["way", "authors' arithmetic", "ours, fp32"] and rows[-1][1].endswith(", padded")
    assert all(0 < float(row[9].rstrip("%")) < 100 for row in rows[2:])
    notes = "\n".join(table)
    assert (
        notes.count("units of work a sample") == 3
        and "the same mathematics" in notes
        and "colours and views" in notes
        and "the loader's wait" in notes
    )


def test_work_is_counted_without_a_clock(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench, "timed", None)
    monkeypatch.setattr(sys, "argv", ["step.py", "--count", "--json", "--batch", "2", "--clip", "16", "64", "--width", "16"])
    bench.main()
    found = json.loads(capsys.readouterr().out)
    assert found["augmentation_operators"] > 100 and found["units"] < 11.4
    units = [found[f"units_{way}"] for way in ("all_frames", "authors")]
    assert [round(n) for n in units] == [14, 18] and found["flop_authors"] / found["flop"] > 18 / 11.4 - 0.1
    assert found["units_symmetric"] < 2 * found["units"] - 2.5  # f_k passes each view of both clips once


def event(number: int, name: str, begin: int, end: int, device: DeviceType = DeviceType.CPU, **more: Any) -> FunctionEvent:
    return FunctionEvent(number, name, 1, begin, end, use_device="cuda", device_type=device, stack=[], **more)


def test_a_kernels_time_is_its_operators() -> None:
    """What the profiler makes of a step on a GPU: operators, their kernels once more as events, and an annotation on both."""
    conv, inner = event(1, "aten::convolution_backward", 0, 10), event(2, "aten::copy_", 2, 4)
    norm, note = event(3, "aten::native_batch_norm", 11, 20), event(4, "Optimizer.step", 21, 30, is_user_annotation=True)
    kernels = [(conv, "sm90_xmma_wgrad", 60), (inner, "elementwise", 10), (norm, "bn_fw", 20), (note, "Optimizer.step", 50)]
    for operator, name, duration in kernels:
        operator.append_kernel(name, 0, duration)
    events = [conv, inner, norm, note]
    for number, (name, duration) in enumerate([*((name, duration) for _, name, duration in kernels), ("triton_fused", 10)]):
        on_note = name == note.name
        events.append(event(10 + number, name, 100, 100 + duration, DeviceType.CUDA, is_user_annotation=on_note))
    every = EventList(events, use_device="cuda")
    every._build_tree()
    spent = bench.time_by_operator(every.key_averages(), on_gpu=True)
    expected = {"aten::convolution_backward": 60, "aten::copy_": 10, "aten::native_batch_norm": 20, "others": 10}
    assert spent == expected


def test_padding_is_the_same_function_in_training_too() -> None:
    torch.manual_seed(0)
    trunk, padded = build("r2plus1d_10", 4).double(), build("r2plus1d_10", 4).double()
    padded.load_state_dict(trunk.state_dict())
    bench.pad(padded)
    middle = [module for module in padded.modules() if isinstance(module, torch.nn.Sequential) and len(module) > 3]
    assert len(middle) == 9 and all(module.get_parameter("0.weight").shape[0] % 8 == 0 for module in middle)
    clips, outs = torch.randn(2, 3, 8, 32, 32, dtype=torch.float64), []
    for module in (trunk, padded):
        optimiser = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
        for _ in range(3):
            optimiser.zero_grad()
            out = module(clips)
            out.square().mean().backward()
            optimiser.step()
        outs += [out.detach(), module.eval()(clips).detach()]
    torch.testing.assert_close(outs[:2], outs[2:])


def test_work_counted_of_one_convolution() -> None:
    layers = torch.nn.Conv3d(3, 5, 1, bias=False), torch.nn.BatchNorm3d(5), torch.nn.ReLU()
    multiplied, elements = 2 * 3 * 5 * 4 * 6 * 6, 5 * 4 * 6 * 6
    found = bench.count(torch.nn.Sequential(*layers), (3, 4, 6, 6))
    assert found.tolist() == [[multiplied, 5 * elements], [2 * multiplied, 13 * elements]]  # no gradient of the clip


def test_batches_are_halved_and_doubled_to_what_fits(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(way: Any) -> torch.Tensor:
        if way.batch > 6:
            raise torch.OutOfMemoryError
        return torch.zeros(())

    monkeypatch.setattr(bench.Way, "step", step)
    arguments = argparse.Namespace(width=4, clip=(8, 32), rounds=1, compile=None, pad=False)
    measured = bench.Bench("r2plus1d_10", arguments, torch.device("cpu"))
    way = measured.ours("fp32", bench.random_clips(16, measured.shape, measured.device))
    way.warm()
    assert way.batch == 4
    measured.largest(1, authors=1.0)
    assert measured.rows[-1].split(" | ")[2] == "4"


def test_dimensions_answer_to_what_pairs_of_videos_share() -> None:
    """Of nine dimensions six are the motion, two the scene, and one is constant."""
    motion, scene, texture = np.indices((3, 3, 2)).reshape(3, -1)
    keys = [f"test_{number:05d}" for number in range(18)]
    here = study.Videos(torch.empty(0), {"motion": motion, "scene": scene, "texture": texture}, keys)
    moved = (scene + 1) % 3
    there = study.Videos(
        torch.empty(0), {"motion": motion, "scene": moved, "texture": texture}, [f"swapped_{key}" for key in keys]
    )
    one, other = (np.stack([*[motion] * 6, *[of] * 2, 0 * motion], 1).astype(float) for of in (scene, moved))
    pairs = {kind: study.alike(here, there, kind) for kind in ("motion", "scene")}
    for kind, pair in pairs.items():
        for label in here.labels:
            same = here.labels[label][:, None] == there.labels[label]
            assert pair.any(1).all() and (same[pair].all() if label == kind else not same[pair].any())
    found = {kind: study.correlation(one, other, pair) for kind, pair in pairs.items()}
    unlike = -1 / 2  # of three values that lie evenly and never meet themselves
    assert found == pytest.approx({"motion": (6 + 2 * unlike) / 9, "scene": (2 + 6 * unlike) / 9})
    assert study.correlation(one, other, study.twins(here, there)) == pytest.approx((6 + 2 * unlike) / 9)
    assert study.shares(0, 0) == pytest.approx((21.194, 21.194), abs=1e-3)
    static, dynamic = study.shares(found["scene"], found["motion"])
    assert static < 21.2 < dynamic and study.shares(1, 0) == pytest.approx((42.232, 15.536), abs=1e-3)


def test_the_studys_table_and_what_a_run_logged() -> None:
    probes = {"motion": 50.0, "scene": 25.0, "texture": 12.5}
    end = {"probes": {"f_q(v)": probes, "f_q(d)": probes | {"motion": 60.0}}, "correlations": {"scene": 0, "motion": 0}}
    mined = end | {"logged": {"contrast/mined_same_motion": 0.5}}
    *_, one, other = study.table({"dclr-m1": mined, "moco-m1": end | {"logged": {}}}).splitlines()
    assert one == "| dclr-m1 | 50.0 | 25.0 | 12.5 | 60.0 | 25.0 | 50.0 | 21.2 | 21.2 |"
    assert other == "| moco-m1 | 50.0 | 25.0 | 12.5 | 60.0 | 25.0 |  | 21.2 | 21.2 |"
    lines = [{"step": step, "loss/total": float(step), "optimiser/lr": 1.0} for step in range(10, 130, 10)]
    lines[-1]["contrast/top1_vv"] = 0.5
    assert study.logged(lines, 120) == {"contrast/top1_vv": 0.5, "loss/total": 100.0} and study.logged(lines, 0) == {}


def test_the_evidences_table_is_of_what_is_kept() -> None:
    page = (REPOSITORY / "docs/evidence.md").read_text()
    for line in evidence.tables().split("\n"):
        assert line in page


def test_a_fresh_cell_is_held_against_the_kept_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three seeds leave 50 +- 4.3 x 2 / sqrt(3) for their mean, twice that for another seed; one leaves what 512 videos do."""
    monkeypatch.setattr(evidence, "KEPT", tmp_path)
    for seed, motion in ((1, 48.0), (2, 50.0), (3, 52.0)):
        evidence.Cell("lab", "moco", seed).keep({"motion": motion, "scene": 50.0} if seed == 1 else {"motion": motion})
    assert evidence.spread([48.0, 50.0, 52.0]) == pytest.approx(4.3 * 2 / 3**0.5)
    assert evidence.leaves([48.0, 50.0, 52.0], 512) == pytest.approx(2 * 4.3 * 2 / 3**0.5)
    assert evidence.leaves([50.0], 512) == pytest.approx(196 * (0.25 / 512) ** 0.5)
    cell = evidence.Cell("lab", "moco", 1)
    assert evidence.outside(cell, {"motion": 59.5, "scene": 54.0, "texture": 0.0}) == []
    assert evidence.outside(cell, {"motion": 60.5, "scene": 45.0}) == ["motion", "scene"]
    assert capsys.readouterr().out.count("OUTSIDE") == 2
    every = [evidence.Cell("lab", row, seed) for row in ("moco", "dclr") for seed in (1, 2)]
    assert [cell.name for cell in evidence.chosen(every, ["lab/dclr/*", "*/seed2"])] == [
        "lab/moco/seed2", "lab/dclr/seed1", "lab/dclr/seed2",
    ]  # fmt: skip


def test_paired_differences_are_of_the_same_videos() -> None:
    """Of four videos ours is right on two more: 1, 0, 1 and 0 points apart, or with a second seed 1, 0, 1/2 and 0."""
    ours, theirs = [{"right": {"class": "1110"}}], [{"right": {"class": "0100"}}]
    assert evidence.paired(ours, theirs, "class") == "+50.0 ± 56.6"  # 100 x 1.96 x sqrt(1/3) / 2
    assert evidence.paired([*ours, {"right": {"class": "1100"}}], theirs, "class") == "+37.5 ± 46.9"


def test_a_worlds_random_network_is_that_of_its_pretraining() -> None:
    said = " ".join(evidence.network(evidence.WORLDS["weizmann"]))
    assert said == "-a r2plus1d_10 --width 8 --frames 8 --stride 2 --size 48"
    assert {row for world in evidence.WORLDS.values() for row in world.rows} == set(evidence.ROWS)
    assert all(one not in fit.split(",") for _, fit, one in evidence.WORLDS["weizmann"].folds)


def test_a_worlds_own_list_has_a_split_for_each_actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(evidence, "ROOT", tmp_path)
    monkeypatch.setattr(evidence.subprocess, "run", lambda made, **_: calls.append(made))
    (tmp_path / "data/weizmann/videos/walk").mkdir(parents=True)
    (tmp_path / "data/weizmann/videos/walk/ira_walk.avi").touch()
    evidence.make_set(evidence.WORLDS["weizmann"], tmp_path / "data")
    listed = tmp_path / "shards/weizmann.csv"
    assert listed.read_text() == "path,label,split\nwalk/ira_walk.avi,walk,ira\n"
    assert calls[0][2:8] == ["preprocess", "csv", "--root", str(tmp_path / "data/weizmann/videos"), "--list", str(listed)]


def test_what_was_right_is_read_from_the_scores(tmp_path: Path) -> None:
    scores = {"scores": np.eye(3, dtype=np.float32), "label": np.array([0, 2, 2])}
    save_file(scores, tmp_path / "scores.safetensors")
    assert evidence.correct(tmp_path) == "101"


def test_weights_are_apart_by_their_greatest_difference() -> None:
    """Of what is trained: not of running statistics, other encoders or counters."""
    one = {name: torch.zeros(3) for name in ("f_q.fc.weight", "f_q.fc.bias", "f_q.bn.running_mean", "f_k.fc.weight")}
    one["f_q.bn.batches"] = torch.tensor(1)
    other = {name: x + 5 for name, x in one.items()} | {
        "f_q.fc.weight": torch.tensor([0.0, -3, 2]),
        "f_q.fc.bias": torch.ones(3),
    }
    assert ranks.apart(one, other) == 3 and ranks.apart(one, one) == 0
