"""What is taken out of test clips, and the report of what a network still names."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import succeed

from dclr.compare import compare
from dclr.evaluation import bias


@pytest.fixture
def batch() -> dict:
    """Two clips of five frames, whose top left corner moves."""
    rgb = torch.arange(2 * 5 * 4 * 4 * 3, dtype=torch.uint8).view(1, 2, 5, 4, 4, 3)
    moving = torch.zeros(1, 2, 5, 4, 4, dtype=torch.uint8)
    moving[..., :2, :2] = 1
    return {"rgb": rgb, "moving": moving, "key": ["a_video"]}


def test_what_is_taken_out_of_clips(batch: dict) -> None:
    rgb = batch["rgb"][0]
    assert torch.equal(bias.static(batch), rgb[:, 2:3].expand_as(rgb))
    assert torch.equal(bias.backwards(batch).flip(1), rgb)
    corner, rest = bias.moving_part(batch), bias.still_part(batch)
    assert torch.equal(corner[..., :2, :2, :], rgb[..., :2, :2, :]) and torch.equal(rest[..., 2:, :, :], rgb[..., 2:, :, :])
    assert (corner[..., 2:, :, :] == bias.FILL).all() and (rest[..., :2, :2, :] == bias.FILL).all()
    assert rgb.dtype == corner.dtype == rest.dtype == torch.uint8


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
    conditions = ["whole", *bias.ALTERED, "scenes swapped", "neighbours"]
    names = [f"{kind}: {condition}" for kind in ("motion", "scene") for condition in conditions]
    assert [name for name in result if ": " in name] == names == list(result["random"])
    assert all(0 <= result[name] <= 1 for name in names)
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


def test_without_stored_energy_nothing_is_blanked(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    succeed("-m", "preprocess", "synthetic", "--hard", "--out", shards, "--videos", "48", "--size", "32", "--cues", "diff")
    said = succeed(
        "train_eval.py", "bias", "--shards", shards, "--train-split", "train", "--test-split", "test", "--pretrained", "random",
        "-a", "r2plus1d_10", "--width", "4", "-fpc", "4", "-cs", "32", "-j", "0", "--test-clips", "1", "-cpv", "1",
        "--label", "scene", "--out", tmp_path / "out",
    )  # fmt: skip
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert "nothing is blanked" in said and "--cues diff,energy" in said
    assert [name for name in result if ": " in name] == [
        f"scene: {name}" for name in ("whole", "static", "shuffled", "reversed", "neighbours")
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
