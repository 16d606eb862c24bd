"""Pretraining as a user runs it: one process and two, the same mathematics; checkpoints; what is refused."""

import copy
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import SMALL, refuse, run, scalars, succeed
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dclr import hardware
from dclr.checkpoint import load, load_trunk
from dclr.data.manifest import ShardSet
from dclr.errors import InputError
from dclr.hardware import resolve_precision
from dclr.method.backbones import build
from dclr.method.model import DCLR
from dclr.method.objective import DYNAMICS, Method
from dclr.pretraining import pretrain
from dclr.pretraining.config import PretrainConfig
from dclr.pretraining.pretrain import Pretraining, flow_weight, guessing, make_optimiser, momentum, needed, pretraining_rate
from dclr.pretraining.watch import Videos
from dclr.training.rate import learning_rate
from dclr.training.saver import Saver


def test_a_run_leaves_checkpoint_curves_config_and_picture(checkpoint: Path) -> None:
    folder = checkpoint.parent
    assert {"last.pt", "config.yaml", "maps.png", "neighbours.png", "metrics.jsonl"} <= {p.name for p in folder.iterdir()}
    assert not list(folder.glob(".*"))
    found = scalars(folder)
    events = EventAccumulator(str(folder), {"images": 0}).Reload()
    for name in ("maps", "neighbours"):
        assert [event.step for event in events.Images(name)] == [8, 16]
        assert events.Images(name)[-1].width == cv2.imread(str(folder / f"{name}.png")).shape[1]
    assert {f"loss/{name}" for name in ("total", "L_vv", "L_vs", "L_vd", "L_sv", "L_dv", "align")} <= set(found)
    assert {"speed/clips_per_second", "speed/data_wait", "optimiser/lr", "optimiser/gradient_norm"} <= set(found)
    assert {"contrast/top1_vs", "contrast/top5_dv", "contrast/entropy_v", "memory/peak_gb"} <= set(found)
    assert 0 < found["contrast/entropy_v"][-1] <= 1
    for kind in ("motion", "scene"):
        assert all(0 <= share <= 1 for share in found[f"contrast/mined_same_{kind}"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [8, 10, 16]
    assert [line["loss/total"] for line in lines] == pytest.approx(found["loss/total"])
    assert found["contrast/queue_fill"][-1] == 1 and found["contrast/mined"][-1] == 5
    state = load(checkpoint)
    assert state["step"] == 16 and state["config"] == yaml.safe_load((folder / "config.yaml").read_text())
    trunk = load_trunk(checkpoint)
    assert (trunk.arch, trunk.width, trunk.clip) == ("r2plus1d_10", 4, {"frames": 4, "stride": 2, "size": 32})
    torch.testing.assert_close(trunk.module.state_dict()["stem.0.weight"], state["model"]["f_q.backbone.stem.0.weight"])


def test_what_is_mined_is_held_against_labels(synthetic_set: Path) -> None:
    shards = ShardSet(synthetic_set)
    videos, samples = Videos(shards, shards.select(["train"])), shards.select(["train"])[:6]
    found = videos.sample(torch.from_numpy(shards.video_N[samples]))
    assert found.tolist() == samples.tolist()
    query, entries = samples[:2], samples[2:]
    mined = torch.tensor([[True, False, True, False], [False, True, False, False]])
    shares = {}
    for kind, label in ((kind, label_N[samples]) for kind, label_N in shards.labels.items()):
        shares[f"contrast/mined_same_{kind}"] = sum([label[0] == label[2], label[0] == label[4], label[1] == label[3]]) / 3
    assert list(shares)[:2] == ["contrast/mined_same_motion", "contrast/mined_same_scene"]
    assert videos.alike(mined, query, entries) == pytest.approx(shares)
    assert videos.alike(mined & False, query, entries) == {}
    rows = videos.pictures(mined, query, entries)
    assert [len(row) for row in rows] == [3, 2] and rows[0][0][0].shape == (*shards.read(int(samples[0])).size, 3)
    assert rows[1][1][1] == shards.manifest.classes["motion"][shards.labels["motion"][samples[3]]]
    for kind, label in (("motion", -1), ("scene", 0)):  # unlabelled, and of one class, where all are alike
        shards.labels[kind] = np.full_like(shards.labels[kind], label)
    few = Videos(shards, shards.select(["train"])).alike(mined, query, entries)
    assert list(few) == [f"contrast/mined_same_{kind}" for kind in list(shards.labels)[2:]]


def test_two_processes_make_the_run_of_one(synthetic_set: Path, tmp_path: Path) -> None:
    """The same videos in the same queue slots and, float32's rounding apart, the same losses (float64: test_distributed.py).

    Before the queue is full and with a small learning rate: training a network this small amplifies rounding (another number
    of threads changes the losses by a hundredth within four steps at 0.01), and mining turns it into other positives.
    """
    small = ("-b", "16", "--queue", "64", "--epochs", "1", "--lr", "0.00001")
    common = ("--shards", synthetic_set, "--split", "train", *SMALL, *small)
    for ranks in (0, 2):
        succeed("train_pretrain.py", *common, "--out", tmp_path / str(ranks), ranks=ranks)
    one, two = (load(tmp_path / ranks / "last.pt")["model"] for ranks in "02")
    assert torch.equal(one["queue.video_K"], two["queue.video_K"])
    assert scalars(tmp_path / "2")["loss/total"] == pytest.approx(scalars(tmp_path / "0")["loss/total"], rel=1e-4)


def test_the_same_seed_gives_the_same_weights_with_any_workers(checkpoint: Path, synthetic_set: Path, tmp_path: Path) -> None:
    common = ("--shards", synthetic_set, "--split", "train", *SMALL[:-2], "-b", "8", "--epochs", "2")
    succeed("train_pretrain.py", *common, "-j", "2", "--out", tmp_path / "again")
    succeed("train_pretrain.py", *common, "-j", "0", "--out", tmp_path / "other", "--seed", "1")
    first, again, other = (load(p)["model"] for p in (checkpoint, tmp_path / "again/last.pt", tmp_path / "other/last.pt"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["f_q.heads.vv.0.weight"], other["f_q.heads.vv.0.weight"])


def test_stored_cues_are_dynamic_views(synthetic_set: Path, tmp_path: Path) -> None:
    common = ("--shards", synthetic_set, "--split", "train,test", *SMALL, "-b", "16", "--queue", "20", "--epochs", "1")
    for dynamic in DYNAMICS:
        succeed("train_pretrain.py", *common, "--dynamic", dynamic, "--out", tmp_path / dynamic)
    losses = [scalars(tmp_path / dynamic)["loss/L_dv"][-1] for dynamic in DYNAMICS]
    assert min(losses) > 0 and len(set(losses)) == 3


def test_switches_leave_out_what_they_say(synthetic_set: Path, tmp_path: Path) -> None:
    common = ("--shards", synthetic_set, "--split", "train", *SMALL, "-b", "16", "--queue", "16", "--epochs", "1")
    bare = (
        "--without",
        "static",
        "alignment",
        "mining",
        "--loss",
        "mean-log",
        "--symmetric",
        "--bn",
        "local",
        "--bn-groups",
        "4",
    )
    less_memory = ("--accumulate", "2", "--checkpoint-gradients", "--precision", "auto")
    succeed("train_pretrain.py", *common, *bare, *less_memory, "--out", tmp_path / "bare")
    found = scalars(tmp_path / "bare")
    assert {name for name in found if name.startswith("loss/")} == {"loss/total", "loss/L_vv", "loss/L_vd", "loss/L_dv"}
    assert found["contrast/mined"][-1] == 0 and found["contrast/queue_fill"][-1] == 1
    kept = load(tmp_path / "bare" / "last.pt")["config"]
    assert kept["without"] == ["static", "alignment", "mining"] and kept["precision"] in ("fp32", "bf16")


def test_statistics_of_groups_are_averaged_over_processes(synthetic_set: Path, tmp_path: Path) -> None:
    """What is saved is the mean of what the processes saw: one process with two groups is two with one."""
    small = ("-b", "16", "--queue", "64", "--epochs", "1", "--lr", "0.00001", "--bn", "shuffle")
    common = ("--shards", synthetic_set, "--split", "train", *SMALL, *small)
    for ranks in (0, 2):
        succeed("train_pretrain.py", *common, "--out", tmp_path / str(ranks), ranks=ranks)
    one, two = (load(tmp_path / ranks / "last.pt")["model"] for ranks in "02")
    running = [name for name in one if "running" in name]
    assert len(running) > 60
    for name in running:
        torch.testing.assert_close(one[name], two[name], rtol=1e-2, atol=1e-3)


def test_learning_rate_is_a_function_of_the_epoch() -> None:
    rates = [learning_rate(0.01, (120, 160), epoch) for epoch in (0, 119, 120, 159, 160, 199)]
    assert rates == pytest.approx([0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])


def test_the_pretraining_rate_is_a_function_of_the_place_in_the_run() -> None:
    def rates(*places: float, **more: object) -> list[float]:
        config = PretrainConfig(shards="s", out="o", split=("train",), **({"lr": 0.01, "epochs": 200} | more))  # type: ignore[arg-type]
        return [pretraining_rate(config, place) for place in places]

    assert rates(0, 119.9, 120, 160) == pytest.approx([0.01, 0.01, 1e-3, 1e-4])
    assert rates(0, 50, 100, 200, cos=True) == pytest.approx([0.01, 0.01 * (1 + 0.5**0.5) / 2, 0.005, 0])
    assert rates(0, 2.5, 5, 10, warmup=5.0) == pytest.approx([0, 0.005, 0.01, 0.01])
    assert rates(0, batch=256, scale_lr=True) == pytest.approx([0.04])


def test_the_momentum_is_a_function_of_the_place_in_the_run() -> None:
    def momenta(*places: float, **more: object) -> list[float]:
        config = PretrainConfig(shards="s", out="o", split=("train",), epochs=200, **more)  # type: ignore[arg-type]
        return [momentum(config, place) for place in places]

    assert momenta(0, 100, 200) == [0.999] * 3
    assert momenta(0, 50, 100, 200, momentum=0.9, momentum_end=1.0) == pytest.approx([0.9, 0.95 - 0.05 * 0.5**0.5, 0.95, 1])


def test_the_flows_weight_falls_by_the_same_factor() -> None:
    config = PretrainConfig(shards="s", out="o", split=("train",), epochs=200, flow_weight=100.0, flow_weight_end=1.0)
    assert [flow_weight(config, place) for place in (0, 50, 100, 200)] == pytest.approx([100, 10**1.5, 10, 1])
    assert flow_weight(replace(config, flow_weight_end=None), 100) == 100
    assert flow_weight(replace(config, flow_weight=0.0), 100) == 0


def test_a_run_says_where_its_teacher_will_hardly_follow(synthetic_set: Path, tmp_path: Path) -> None:
    flags = ("--shards", synthetic_set, "--split", "train", *SMALL, "-b", "16", "--epochs", "2", "--queue", "16", "--out")
    slow = "warning: after 8 steps f_k is still 99% as it was drawn"
    assert slow in succeed("train_pretrain.py", *flags, tmp_path / "slow")
    for name, value in (("fast", "0.9"), ("frozen", "1")):  # 0.9^8 is 0.43; frozen is what was asked for
        assert "as it was drawn" not in succeed("train_pretrain.py", *flags, tmp_path / name, "--momentum", value)
    others = ("--momentum", "0.5", "--static-momentum", "0.95", "--dynamic-momentum", "1", "--mining-momentum", "0.5")
    said = succeed("train_pretrain.py", *flags, tmp_path / "others", *others)
    assert "warning: after 8 steps the encoder of --static-momentum is still 66% as it was drawn" in said
    assert said.count("as it was drawn") == 1 and "lower --static-momentum, or" in said


def test_every_step_is_taken_at_the_rate_of_its_place(
    synthetic_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps an epoch: one of warm-up, one at the whole rate, one after the drop."""
    rates, momenta, take = [], [], pretrain.train_step

    def watched(config: PretrainConfig, model: Any, optimiser: torch.optim.Optimizer, *more: Any) -> Any:
        rates.extend(group["lr"] for group in optimiser.param_groups)
        momenta.append(model.momentum)
        return take(config, model, optimiser, *more)

    monkeypatch.setattr(pretrain, "train_step", watched)
    pretrain.pretrain(
        PretrainConfig(
            shards=str(synthetic_set), out=str(tmp_path / "run"), split=("train",), width=4, frames=2, size=32, batch=16,
            epochs=3, lr=0.01, schedule=(2,), warmup=1.0, precision="fp32", workers=0, momentum=0.5, momentum_end=0.9,
        )
    )  # fmt: skip
    assert rates == pytest.approx([0, 0.0025, 0.005, 0.0075, *[0.01] * 4, *[0.001] * 4])
    assert momenta == pytest.approx([0.7 - 0.2 * math.cos(math.pi * step / 12) for step in range(12)])
    assert scalars(tmp_path / "run")["optimiser/lr"] == pytest.approx([rates[step] for step in (3, 7, 9, 11)])


def test_contrasts_that_are_at_guessing_are_named() -> None:
    """Loss by loss, without its weight; a mined positive makes a guess better, but not for the mean of logits."""
    found = {"contrast/mined": 5.0, "contrast/queue_fill": 0.5, **{f"loss/L_{name}": 1.0 for name in ("vv", "sv", "dv", "vs")}}
    guess = math.log(33 / 6)
    method = Method(dynamic_weight=2.0)
    assert guessing(found | {"loss/L_vd": 2 * 0.96 * guess}, method, 64) == {"vd": pytest.approx((0.96 * guess, guess))}
    assert guessing(found | {"loss/L_vd": 2 * 0.94 * guess}, method, 64) == {}
    mean_log = Method(loss="mean-log", dynamic_weight=0.0)
    assert guessing(found | {"loss/L_vv": math.log(33), "loss/L_vd": 0.0}, mean_log, 64) == {"vv": (math.log(33),) * 2}


def test_a_run_that_does_not_learn_is_warned_of_once(synthetic_set: Path, tmp_path: Path) -> None:
    flags = ("--split", "train", *SMALL, "-b", "8", "--epochs", "3", "--temperature", "100", "--out", tmp_path / "run")
    said = run("train_pretrain.py", "--shards", synthetic_set, *flags)
    assert said.returncode == 0
    told = said.stdout + said.stderr
    assert told.count("the contrast vv is still at guessing") == 1 and "a tenth of the run" in told


def test_weight_decay_can_spare_biases_and_batchnorm() -> None:
    model = DCLR(build("r2plus1d_10", 4), 8)
    config = PretrainConfig(shards="s", out="o", split=("train",), decay_weights_only=True)
    decayed, spared = make_optimiser(model, config).param_groups
    assert decayed["weight_decay"] == 1e-4 and {p.dim() for p in decayed["params"]} == {2, 5}
    assert spared["weight_decay"] == 0 and {p.dim() for p in spared["params"]} == {1}
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.f_q.parameters()))


@pytest.mark.parametrize(("name", "plain"), [("sgd", partial(torch.optim.SGD, momentum=0.9)), ("adamw", torch.optim.AdamW)])
def test_a_step_that_is_left_out_changes_nothing(name: str, plain: Callable[..., torch.optim.Optimizer]) -> None:
    """The first one too, where torch 2.13 would leave SGD's momentum unwritten; afterwards the optimiser is the plain one."""
    model = DCLR(build("r2plus1d_10", 4), 8)
    config = PretrainConfig(shards="s", out="o", split=("train",), lr=0.1, optimiser=name)
    optimiser, copied = make_optimiser(model, config), copy.deepcopy(model.f_q)
    theirs = plain(copied.parameters(), lr=0.1, weight_decay=1e-4)
    for good in (False, True, False, True):
        for p, q in zip(model.f_q.parameters(), copied.parameters(), strict=True):
            p.grad = torch.full_like(p, 0.5 if good else float("nan"))
            q.grad = torch.full_like(q, 0.5)
        optimiser.found_inf = torch.tensor(float(not good))  # type: ignore[attr-defined]
        optimiser.step()
        if good:
            theirs.step()
    for p, q in zip(model.f_q.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(checkpoint: Path, synthetic_set: Path, tmp_path: Path) -> None:
    """From step 10 on the clips are NaN: the checkpoint of step 8 stays, bit for bit that of a run whose clips are good, and
    the videos since the last look are named."""
    script = tmp_path / "breaks.py"
    script.write_text(
        "from dclr.pretraining import pretrain\n"
        "import train_pretrain\n"
        "make, calls = pretrain.make_views, []\n"
        "def breaking(*args):\n"
        "    calls.append(1)\n"
        "    views = make(*args)\n"
        "    return views if len(calls) <= 18 else {name: view * float('nan') for name, view in views.items()}\n"
        "pretrain.make_views = breaking\n"
        "train_pretrain.main()\n"
    )
    done = run(
        script, "--shards", synthetic_set, "--split", "train", *SMALL, "-b", "8", "--epochs", "3", "--out", tmp_path / "o"
    )
    assert done.returncode == 1 and "not finite in 1 of the last steps up to 10" in done.stderr
    assert len((tmp_path / "o" / "bad-keys.txt").read_text().split()) == 2 * 8  # steps 9 and 10
    assert f"{tmp_path}/o/step-000000008.pt is from before that" in done.stderr
    state, good = load(tmp_path / "o" / "last.pt"), load(checkpoint.parent / "step-000000008.pt")
    assert state["step"] == 8 and all(torch.equal(x, good["model"][name]) for name, x in state["model"].items())


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    """A step of a finite gradient can be too large; before anything is lost the run ends and says what it has."""
    model = torch.nn.Linear(2, 2)
    learner: Any = SimpleNamespace(model=model, _bad=torch.tensor(0), _shown=[])
    Pretraining.check(learner, 5, saver := Saver(tmp_path, 2, 10))
    with torch.no_grad():
        model.weight[0, 0] = math.inf
    with pytest.raises(
        FloatingPointError, match=r"the weights were not finite by step 5, .*; no checkpoint was saved before; try"
    ):
        Pretraining.check(learner, 5, saver)
    for step in (4, 6):  # the later one is of a course that the run has left
        (tmp_path / f"step-{step:09d}.pt").touch()
    with pytest.raises(FloatingPointError, match=rf"{tmp_path}/step-000000004\.pt is from before that"):
        Pretraining.check(learner, 5, saver)


def test_knn_watches_the_training_and_does_not_change_it(checkpoint: Path, synthetic_set: Path, tmp_path: Path) -> None:
    common = ("--shards", synthetic_set, "--split", "train", *SMALL, "-b", "8", "--epochs", "2", "--knn-split", "test")
    said = succeed("train_pretrain.py", *common, "--knn-every", "1", "--out", tmp_path / "one")
    assert all(
        torch.equal(x, load(tmp_path / "one" / "last.pt")["model"][name]) for name, x in load(checkpoint)["model"].items()
    )
    found = scalars(tmp_path / "one")
    assert len(found["knn/top1"]) == len(found["knn/top5"]) == 2 and said.count("k-NN top-1") == 2
    assert all(one * 32 == round(one * 32) for one in found["knn/top1"])  # shares of the 32 test videos
    still = ("--knn-every", "1", "--epochs", "1", "--lr", "1e-9")  # training amplifies rounding until neighbours differ
    for ranks in (0, 2):
        succeed("train_pretrain.py", *common, *still, "--out", tmp_path / str(ranks), ranks=ranks)
    one, two = (scalars(tmp_path / ranks) for ranks in "02")
    assert one["knn/top5"] == pytest.approx(two["knn/top5"], abs=1 / 32) and one["knn/top1"] == two["knn/top1"]


def test_precision_is_resolved_or_refused() -> None:
    cpu = torch.device("cpu")
    assert resolve_precision("fp32", cpu) == torch.float32 and resolve_precision("bf16", cpu) == torch.bfloat16
    assert resolve_precision("auto", cpu) in (torch.float32, torch.bfloat16)
    for name in ("fp16", "fp8"):
        with pytest.raises(InputError, match=name):
            resolve_precision(name, cpu)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"arch": "resnet50"}, "r2plus1d_10, r2plus1d_18"),
        ({"batch": 0}, "batch 0: expected 1 to 1000000"),
        ({"frames": 1}, "frames 1: expected 2 to 10000"),
        ({"lr": 0.0}, "--lr 0.0: expected above 0 to 1000"),
        ({"queue": 8, "batch": 16}, "queue 8 is smaller than the batch 16"),
        ({"queue": 8, "batch": 8, "mined": 8}, "--mined 8: the queue has 8 entries, all would be positives"),
        ({"lr": math.inf}, "--lr inf: expected above 0 to 1000"),
        ({"clip_grad": math.nan}, "--clip-grad nan"),
        ({"wd": math.nan}, "--wd nan"),
        ({"save_minutes": math.inf}, "--save-minutes inf"),
        ({"cache_size": math.nan}, "--cache-size nan"),
        ({"stride": 10**21}, "--stride 10{21}: expected 1 to 1e.06"),
        ({"seed": 10**22}, "--seed 10{22}: expected -9223372036854775807 to 9223372036854775807"),
        ({"schedule": (10**10,)}, "--schedule 10000000000"),
        ({"out": ""}, "--out '': it is empty"),
        ({"cache": " "}, "--cache ' ': it is empty"),
        ({"dynamic": "sound"}, "rgbdiff, cue, flow"),
        ({"objective": "simclr"}, "expected one of dclr, moco"),
        ({"without": ("sound",)}, "any of static, dynamic, decoupling, mining, alignment"),
        ({"bn": "group"}, "sync, shuffle, local"),
        ({"bn": "shuffle", "batch": 9}, "batch 9 does not divide into 1 process"),
        ({"bn_groups": 2}, "sync has one"),
        ({"static_momentum": 0.0, "bn_views": "shared"}, "--static-momentum 0.0 with --bn-views shared: there one encoder"),
        ({"dynamic_momentum": 2.0}, "--dynamic-momentum 2.0: expected 0 to 1"),
        ({"mine_by": "s", "without": ("static",)}, "--mine-by s: that view is left out"),
        ({"plain_query": True, "symmetric": True}, "--plain-query with --symmetric"),
        ({"mine_by": "sound"}, "--mine-by sound: expected one of both, s, d, energy, flow"),
        ({"mine_by": "flow", "dynamic": "cue"}, "--mine-by flow with --dynamic cue: a clip has one stored cue"),
        ({"bn": "local", "bn_groups": 0}, "--bn-groups 0"),
        ({"objective": "moco", "without": ("static",)}, "moco has none of these parts"),
        ({"loss": "nce"}, "--loss nce"),
        ({"flow_weight": 1.0, "dynamic": "cue"}, "--flow-weight with --dynamic cue: a clip has one stored cue"),
        ({"stride": 0}, "--stride 0: expected 1 to 1e.06"),
        ({"workers": -1}, "workers -1"),
        ({"warmup": 300.0}, "expected fewer epochs than 200"),
        ({"clip_grad": -1.0}, "clip-grad -1.0"),
        ({"keep": 0}, "keep 0"),
        ({"in_batch": True, "accumulate": 2, "batch": 8}, "--in-batch --accumulate 2: a part knows the keys of itself alone"),
    ],
)
def test_configurations_that_cannot_work_are_refused(wrong: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        PretrainConfig(**{"shards": "s", "out": "o", "split": ("train",)} | wrong)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (("--queue", "1000000000"), "--queue 1000000000 --dim 128: takes at least 2,560.0 GB"),
        (("--dim", "65536", "--queue", "10000000"), "--queue 10000000 --dim 65536"),
        (("--width", "65536"), "--arch r2plus1d_10 --width 65536"),
        (("-b", "1000000", "--last-batch", "wrap"), "--batch 1000000 --frames 4 --size 32"),
        (("-fpc", "10000", "-b", "10000", "--last-batch", "wrap"), "--batch 10000 --frames 10000"),
    ],
)
def test_what_no_machine_holds_is_refused_with_its_memory(
    flags: tuple[str, ...], names: str, synthetic_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "memory_bytes", lambda device: 40 * 10**9)
    out = tmp_path / "o"
    said = refuse("train_pretrain.py", "--shards", synthetic_set, "--split", "train", *SMALL, "-b", "8", "--out", out, *flags)
    assert (
        names in said and "GB of memory, a process as a whole" in said and "this machine has 40.0 GB; make it smaller" in said
    )
    assert not out.exists()


def test_what_a_process_needs_is_no_more_than_it_takes() -> None:
    """Against what is really allocated: the queue, four times the weights, and the clips of a batch."""
    config = PretrainConfig(shards="s", out="o", split=("a",), arch="r2plus1d_10", width=4, frames=4, size=32, batch=8)
    said = list(needed(config, 16, 1).values())
    model = pretrain.make_model(config, 16, torch.float32)
    assert said[0] == model.queue.keys_RKD.numel() * 4
    assert said[1] == 4 * 4 * sum(p.numel() for p in build("r2plus1d_10", 4).parameters())
    clips = 2 * 8 * 4 * 32 * 32 * 3
    assert said[2] == clips + 3 * 4 * clips and list(needed(config, 16, 2).values())[2] == said[2] / 2
    assert 10**8 < hardware.memory_bytes(torch.device("cpu")) < 10**15


def test_each_of_several_sets_is_checked(synthetic_set: Path, h264_set: Path, tmp_path: Path) -> None:
    common = ("train_pretrain.py", *SMALL, "-b", "8", "--split", "train", "--out", tmp_path / "no", "--shards", synthetic_set)
    assert f"{h264_set} holds no cue 'flow' (it has: diff, energy)" in refuse(*common, h264_set, "--dynamic", "flow")
    assert f"short side 32 of {synthetic_set}" in refuse(*common, h264_set, "-cs", "64")
    assert f"--shards {synthetic_set}: the same set twice" in refuse(*common, synthetic_set)
    assert "--weights 1.0: expected a number above 0 for each set" in refuse(*common, h264_set, "--weights", "1")
    assert "--weights 0.0: expected above 0 to 1e+09" in refuse(*common, h264_set, "--weights", "1", "0")
    assert "--share 0.0: expected above 0 to 1" in refuse(*common, "--share", "0%")
    said = refuse(*common, h264_set, "--min-seconds", "100")
    assert f"--min-seconds 100 leaves none of 64 videos of {synthetic_set}" in said
    said = refuse(*common, h264_set, "--split", "train,train01")
    assert f"no split 'train01' in any of {synthetic_set}, {h264_set}; they have: test, train" in said
    assert "no manifest.json there" in refuse(*common, tmp_path / "nothing")


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = PretrainConfig(shards="~/set", out="~/run", split=("train",), cache="s3://b/~")
    assert (config.shards, config.out, config.cache) == (("/home/me/set",), "/home/me/run", "s3://b/~")


def test_wrong_input_is_answered_in_one_line(
    checkpoint: Path, synthetic_set: Path, h264_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretrain(*more: object, split: str = "train", shards: Path = synthetic_set) -> str:
        return refuse("train_pretrain.py", "--shards", shards, "--split", split, *SMALL, *map(str, more))

    out = ("--out", tmp_path / "run")
    assert "it has: test (32), train (64)" in pretrain(*out, split="train07")
    assert "no manifest.json there" in pretrain(*out, shards=tmp_path)
    assert "fewer than one batch of 65" in pretrain(*out, "-b", 65)
    assert "trains or tests, not both" in pretrain(*out, "--knn-split", "test,train", "-b", 16)
    assert "above the stored short side 32" in pretrain(*out, "-cs", 64)
    assert "--precision int8" in pretrain(*out, "--precision", "int8", shards=tmp_path)  # flags before files
    assert "no cue 'flow' (it has: diff, energy)" in pretrain(*out, "--dynamic", "flow", shards=h264_set)
    before = checkpoint.read_bytes()
    monkeypatch.setattr(hardware, "cpu_has_bf16", lambda: True)  # auto is not what it was where the run began
    said = pretrain("--out", checkpoint.parent, "-b", "8", "--epochs", "2", "--precision", "auto")
    assert "--precision bf16: the run in" in said and "was made with fp32" in said
    assert "--batch 64: the run in" in pretrain("--out", checkpoint.parent)  # another run's folder
    assert checkpoint.read_bytes() == before and not (tmp_path / "run").exists()


@pytest.mark.parametrize("gpu", [False, True])
def test_freed_memory_is_kept_on_any_device(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = list[bool]()
    monkeypatch.setattr(hardware, "keep_freed_memory", lambda: kept.append(True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    assert hardware.pick_device().type == ("cuda" if gpu else "cpu") and kept == [True]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("gpu", [False, True])
def test_a_gpu_tries_kernels_unless_the_bits_are_to_be_the_same(
    gpu: bool, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    for name in ("benchmark", "deterministic"):
        monkeypatch.setattr(torch.backends.cudnn, name, False)
    try:
        hardware.pick_device(deterministic)
        same = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
        assert same == (gpu and deterministic,) * 2 and torch.backends.cudnn.benchmark == (gpu and not deterministic)
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if gpu and deterministic else None)
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
