"""What is taken out of test clips, and the report of what a network still names."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from conftest import succeed

from dclr.compare import compare
from dclr.evaluation import bias
from dclr.evaluation.setting import Setting
from preprocess.synthetic import encode


@pytest.fixture
def batch() -> dict:
    """Two clips of five frames, whose top left corner moves, and those of a partner."""
    rgb = torch.arange(2 * 2 * 5 * 4 * 4 * 3).remainder(251).to(torch.uint8).view(2, 2, 5, 4, 4, 3)
    moving = torch.zeros(2, 2, 5, 4, 4, dtype=torch.uint8)
    moving[..., :2, :2] = 1
    moving[:, :, 3, :2, :2] = 0
    ground, stripes = (torch.full((2, 2, 4, 4, 3), 252 + n, dtype=torch.uint8) for n in (0, 1))
    ground[1, 1], stripes[0, 1] = 254, 255
    return {
        "rgb": rgb,
        "moving": moving,
        "ground": ground,
        "stripes": stripes,
        "noise": 255 - rgb,
        "fill": torch.tensor([1, 2, 3], dtype=torch.uint8),
        "key": ["a_video", "another"],
    }


def test_what_is_taken_out_of_clips(batch: dict) -> None:
    rgb = batch["rgb"][0]
    assert torch.equal(bias.static(batch), rgb[:, 2:3].expand_as(rgb))
    assert torch.equal(bias.backwards(batch).flip(1), rgb)
    corner, rest = bias.moving_part(batch), bias.still_part(batch)
    assert (corner[:, 3] == batch["fill"]).all() and torch.equal(rest[:, 3], rgb[:, 3])
    corner, rest, rgb = (clip[:, [0, 1, 2, 4]] for clip in (corner, rest, rgb))
    assert torch.equal(corner[..., :2, :2, :], rgb[..., :2, :2, :]) and torch.equal(rest[..., 2:, :, :], rgb[..., 2:, :, :])
    assert (corner[..., 2:, :, :] == batch["fill"]).all() and (rest[..., :2, :2, :] == batch["fill"]).all()
    assert rgb.dtype == corner.dtype == rest.dtype == torch.uint8


def test_what_moves_stands_over_stripes_or_over_another_background(batch: dict) -> None:
    rgb = batch["rgb"][0]
    assert torch.equal(bias.noise(batch), 255 - rgb)
    for made, behind in ((bias.over_stripes(batch), (253, 255)), (bias.over_another(batch), (252, 254))):
        assert made.shape == rgb.shape and made.dtype == torch.uint8
        for clip, own, level in zip(made, rgb, behind, strict=True):  # each clip over its own stripes, its own background
            assert torch.equal(clip[[0, 1, 2, 4], :2, :2], own[[0, 1, 2, 4], :2, :2])
            assert (clip[:, 2:] == level).all() and (clip[:, :, 2:] == level).all() and (clip[3] == level).all()
    striped, still = bias.over_stripes(batch), bias.static_stripes(batch)
    assert torch.equal(still, striped[:, 2:3].expand_as(striped))


def setting_of(seed: int, **labels: list[int]) -> Setting:
    """Videos with these labels, of which a report asks."""
    count = len(next(iter(labels.values())))
    shards = SimpleNamespace(
        labels={kind: np.array(values) for kind, values in labels.items()}, video_N=np.arange(count) + 100,
        keys=[f"v{n}" for n in range(count)], manifest=SimpleNamespace(options={"cues": ["diff", "flow"]}),
    )  # fmt: skip
    config = SimpleNamespace(seed=seed, shards="set")
    return cast(Setting, SimpleNamespace(shards=shards, config=config, test_N=np.arange(count), skipped=["v5"]))


def test_a_partner_is_of_another_class_in_every_kind_drawn_from_seed_and_video() -> None:
    motion, scene = np.random.default_rng(0).integers(4, size=(2, 400)).tolist()
    every = np.arange(400)
    found = bias.partners(setting_of(0, motion=motion, scene=scene), every, ["motion", "scene"])
    assert list(found) == every.tolist()
    assert all(motion[n] != motion[other] and scene[n] != scene[other] for n, other in found.items())
    assert len(set(found.values())) > 200  # 1 - 1 / e of them, were they independent
    assert found == bias.partners(setting_of(0, motion=motion, scene=scene), every, ["motion", "scene"])
    assert found != bias.partners(setting_of(1, motion=motion, scene=scene), every, ["motion", "scene"])
    rare = [*[0] * 2000, 1]
    *most, last = bias.partners(setting_of(0, motion=rare), np.arange(2001), ["motion"]).values()
    assert set(most) == {2000} and last < 2000
    assert bias.partners(setting_of(0, motion=rare, scene=[1] * 2001), np.arange(2001), ["motion", "scene"]) == {}


def test_conditions_are_those_that_the_set_can_be_asked() -> None:
    """What is damaged is neither asked about nor a partner. What a condition lacks is told."""
    setting = setting_of(7, motion=[0, 1, 2, 3] * 5)
    asked, left_out = bias.choose(setting, ["motion"])
    assert asked.conditions == list(bias.CONDITIONS) and not left_out
    assert set(asked.beside.names) == {"moving", "noise", "stripes", "ground"} and asked.beside.seed == 7
    assert asked.sample_M.tolist() == [n for n in range(20) if n != 5] == list(asked.beside.partner)
    assert 5 not in asked.beside.partner.values()
    cues = setting.shards.manifest.options
    cues["cues"] = ["flow"]
    asked, left_out = bias.choose(setting, ["motion"])
    assert asked.conditions == ["static", "shuffled", "reversed", "appearance removed"] and asked.beside.partner == {}
    ((why, names),) = left_out.items()
    assert why.startswith("set has no cue diff; ") and names == [
        "motion blanked", "background blanked", "stripes", "static stripes", "swap",
    ]  # fmt: skip
    cues["cues"] = ["diff"]
    asked, left_out = bias.choose(setting_of(7, motion=[0] * 20), ["motion"])
    assert list(left_out.values()) == [["swap"]] and "ground" not in asked.beside.names and asked.beside.partner == {}
    asked, left_out = bias.choose(setting, ["motion"])
    assert list(left_out.values()) == [["appearance removed"]]


def test_frames_are_shuffled_by_key_and_clip(batch: dict) -> None:
    rgb, mixed = batch["rgb"][0], bias.shuffled(batch)
    orders = [
        [next(t for t in range(5) if torch.equal(frame, clip[t])) for frame in out]
        for clip, out in zip(rgb, mixed, strict=True)
    ]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders) and orders[0] != orders[1]
    assert torch.equal(bias.shuffled(batch), mixed)
    assert not torch.equal(bias.shuffled(batch | {"key": ["another"]}), mixed)


def test_the_report_of_a_checkpoint_beside_random_weights(checkpoint: Path, tmp_path: Path) -> None:
    """Both kinds of label under every condition, the same over two processes, from features that are extracted once."""
    shards = tmp_path / "shards"
    succeed(
        "-m", "preprocess", "synthetic", "--hard", "--out", shards, "--videos", "96", "--size", "32", "--swap-scenes",
    )  # fmt: skip
    common = (
        "--shards", shards, "--train-split", "train", "--test-split", "test", "--pretrained", checkpoint, "--precision", "fp32",
        "-j", "0", "--test-clips", "1", "-cpv", "1", "--features", tmp_path / "features",
    )  # fmt: skip
    said = succeed("train_eval.py", "bias", *common, "--out", tmp_path / "one")
    result = json.loads((tmp_path / "one/result.json").read_text())
    swaps = [f"swap as {whose}" for whose in ("foreground", "background", "neither")]
    stripes = ["stripes", "static stripes", "stripes by motion"]
    conditions = ["whole", "static", "shuffled", "reversed", "motion blanked", "background blanked", *stripes, *swaps]
    conditions += ["scenes swapped", "neighbours"]
    names = [f"{kind}: {condition}" for kind in ("motion", "scene") for condition in conditions]
    assert [name for name in result if ": " in name] == names == list(result["random"])
    assert all(0 <= result[name] <= 1 for name in names)
    for numbers in (result, result["random"]):
        for kind in ("motion", "scene"):
            assert sum(numbers[f"{kind}: {name}"] for name in swaps) == pytest.approx(1)
            moving, still, by_motion = (numbers[f"{kind}: {name}"] for name in stripes)
            assert moving - still <= by_motion + 1e-9 and by_motion <= min(moving, 1 - still) + 1e-9
    assert "left out: appearance removed: " in said and "no cue flow" in said
    apart = result["random_paired"]
    assert list(apart["difference"]) == names == list(apart["interval"])
    for name in names:
        assert apart["difference"][name] == pytest.approx(result[name] - result["random"][name])
    assert result["random"] != {name: result[name] for name in names}
    assert result["chance"] == {"motion: chance": 0.125, "scene: chance": 0.125}
    assert result["majority"].keys() == {"motion: majority", "scene: majority"}
    rows = [line.split("  ")[0] for line in said.splitlines()]
    assert all(condition in rows for condition in conditions)
    assert len(list((tmp_path / "features").iterdir())) == 8  # train, test, altered, swapped; twice
    for name in ("bias", "conditions", "neighbours", "maps"):
        assert (tmp_path / f"one/{name}.png").stat().st_size > 1000
    rows = {line.split("  ")[0]: line.split()[-2:] for line in compare([tmp_path / "one"]).splitlines()}
    for name in names:
        assert rows[name] == [f"{100 * result[name]:.1f}", f"{100 * result['random'][name]:.1f}"]
    for name, value in (result["chance"] | result["majority"]).items():
        assert rows[name] == [f"{100 * value:.1f}"] * 2
    succeed("train_eval.py", "bias", *common[:-1], tmp_path / "anew", "--out", tmp_path / "two", ranks=2)
    two = json.loads((tmp_path / "two/result.json").read_text())
    assert [two[name] for name in names] == [result[name] for name in names] and two["random"] == result["random"]


def test_what_moves_answers_a_swap_with_its_own_class_and_what_rests_with_the_backgrounds(tmp_path: Path) -> None:
    """A coloured square moves over a grey ground, and both are labels: random weights tell them apart."""
    colours, greys = (240, 20, 20), (10, 245, 128)
    lines, rng = ["path,split,square,ground"], np.random.default_rng(0)
    for n in range(108):
        square, ground, split = n % 3, n // 3 % 3, "test" if n >= 72 else "train"
        frames = np.full((16, 48, 48, 3), greys[ground], np.uint8)
        (left, top), looks = rng.integers(0, 8, 2), rng.uniform(0.5, 1, (24, 24, 1)) * np.roll(colours, square)
        for t in range(16):
            frames[t, top : top + 24, left + t : left + t + 24] = looks
        encode(frames, 25, tmp_path / f"videos/v{n}.avi")
        lines.append(f"v{n}.avi,{split},{square},{ground}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    shards, out = tmp_path / "shards", tmp_path / "out"
    listed = ("--root", tmp_path / "videos", "--list", tmp_path / "list.csv", "--label-column", "square", "ground")
    succeed("-m", "preprocess", "csv", *listed, "--out", shards, "--size", "48", "--cues", "diff")
    succeed(
        "train_eval.py", "bias", "--shards", shards, "--train-split", "train", "--test-split", "test", "--pretrained", "random",
        "-a", "r2plus1d_10", "--width", "8", "-fpc", "4", "-cs", "32", "-j", "0", "--test-clips", "1", "-cpv", "1",
        "--precision", "fp32", "--out", out,
    )  # fmt: skip
    result = json.loads((out / "result.json").read_text())
    assert result["square: whole"] > 0.8 and result["ground: whole"] > 0.8
    assert result["square: swap as foreground"] > 0.6 > 0.3 > result["square: swap as background"]
    assert result["ground: swap as background"] > 0.5 > 0.4 > result["ground: swap as foreground"]


def test_without_stored_differences_nothing_is_blanked_or_swapped(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    succeed(
        "-m", "preprocess", "synthetic", "--hard", "--out", shards, "--videos", "48", "--size", "32", "--cues", "energy,flow"
    )
    said = succeed(
        "train_eval.py", "bias", "--shards", shards, "--train-split", "train", "--test-split", "test", "--pretrained", "random",
        "-a", "r2plus1d_10", "--width", "4", "-fpc", "4", "-cs", "32", "-j", "0", "--test-clips", "1", "-cpv", "1",
        "--label", "scene", "--out", tmp_path / "out",
    )  # fmt: skip
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert "left out: motion blanked, background blanked, stripes, static stripes, swap: " in said and "no cue diff" in said
    assert [name for name in result if ": " in name] == [
        f"scene: {name}" for name in ("whole", "static", "shuffled", "reversed", "appearance removed", "neighbours")
    ]
    assert np.isfinite(result["scene: whole"]) and result["random"] == {}


def test_a_list_with_several_labels_is_reported_like_the_embedded_set(tmp_path: Path) -> None:
    shards, own = tmp_path / "shards", tmp_path / "own"
    common = ("--size", "32", "--cues", "none")
    succeed("-m", "preprocess", "synthetic", "--out", shards, "--videos", "192", *common)
    root = shards / "videos/lab0"
    lines = ["path,split,scene,motion"]
    for video in sorted(root.rglob("*_*.*")):
        split, motion, name = video.relative_to(root).parts
        lines.append(f"{split}/{motion}/{name},{split},{name.partition('_')[0]},{motion}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    listed = ("--root", root, "--list", tmp_path / "list.csv", "--label-column", "motion", "scene", "--out", own)
    succeed("-m", "preprocess", "csv", *listed, *common)
    results = []
    for name, of in (("embedded", shards), ("listed", own)):
        succeed(
            "train_eval.py", "bias", "--shards", of, "--train-split", "train", "--test-split", "test", "--pretrained", "random",
            "-a", "r2plus1d_10", "--width", "4", "-fpc", "4", "-cs", "32", "-j", "0", "--test-clips", "1", "-cpv", "1",
            "--precision", "fp32", "--out", tmp_path / name,
        )  # fmt: skip
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
    embedded, mine = results
    names = [name for name in mine if ": " in name]
    assert {name.partition(": ")[0] for name in names} == {"motion", "scene"}
    assert names == [name for name in embedded if ": " in name and not name.startswith("texture")]
    assert [mine[name] for name in names] == pytest.approx([embedded[name] for name in names], abs=0.05)
    neighbours = [name for name in names if name.endswith("neighbours")]
    assert len(neighbours) == 2 and all(mine[name] == embedded[name] for name in neighbours)
