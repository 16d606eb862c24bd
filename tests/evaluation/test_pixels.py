"""A network with other pixels than ours sees its own in every mode of evaluation and in a pretraining that begins from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from dclr.checkpoint import load, load_trunk
from dclr.data.clips import ClipConfig
from dclr.data.loader import eval_loader
from dclr.data.manifest import ShardSet
from dclr.errors import InputError
from dclr.evaluation import bias
from dclr.evaluation.config import EvalConfig
from dclr.evaluation.features import name
from dclr.evaluation.finetune import finetune
from dclr.evaluation.modes import MODES
from dclr.evaluation.setting import Setting, prepare
from dclr.method.backbones import build
from dclr.method.backbones.layers import Backbone, bare
from dclr.method.pixels import TORCHVISION, InputPixels
from dclr.pretraining.config import PretrainConfig
from dclr.pretraining.pretrain import pretrain
from dclr.storage import open_folder

THEIRS = InputPixels(TORCHVISION.mean, TORCHVISION.std, "bgr")
FLAGS: dict[str, Any] = {
    "frames": 4, "stride": 2, "size": 32, "workers": 0, "precision": "fp32", "train_split": ("train",), "test_split": ("test",),
    "label": "motion", "test_clips": 1, "cpv": 1, "order": "bgr",
}  # fmt: skip


@pytest.fixture(scope="module")
def plain() -> Backbone:
    """As somebody else trained it."""
    torch.manual_seed(1)
    return build("r3d_18", 2).eval()


@pytest.fixture
def weights(plain: Backbone, tmp_path: Path) -> Path:
    torch.save({"state_dict": plain.state_dict()}, tmp_path / "theirs.pth")
    return tmp_path / "theirs.pth"


@torch.no_grad()
def features(plain: Backbone, rgb_NTSSC: torch.Tensor) -> torch.Tensor:
    """What it makes of clips uint8 (N, T, S, S, 3) by itself, pooled."""
    mean, std = (torch.tensor(some).view(3, 1, 1, 1) for some in (THEIRS.mean, THEIRS.std))
    return plain((rgb_NTSSC.permute(0, 4, 1, 2, 3) / 255).flip(1).sub(mean).div(std)).mean((2, 3, 4))


def test_frozen_features_are_those_of_the_plain_network(
    plain: Backbone, weights: Path, synthetic_set: Path, tmp_path: Path
) -> None:
    config = EvalConfig(mode="knn", shards=str(synthetic_set), pretrained=str(weights), out=str(tmp_path / "knn"), **FLAGS)
    result = MODES["knn"].run(config)
    assert {one: result["options"][one] for one in THEIRS.said} == THEIRS.said
    shards = ShardSet(open_folder(str(synthetic_set)))
    samples = shards.select(["test"])
    loader = eval_loader(shards, samples, ClipConfig(4, 2, 32), clips=1)
    expected = np.stack([features(plain, batch["rgb"][0]).numpy() for batch in loader])
    kept = {path: load_file(path) for path in (tmp_path / "knn" / "features").glob("*.safetensors")}
    (found,) = (one["value"] for one in kept.values() if np.isin(one["sample"], samples).all())
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * expected.max())
    others = [prepare(replace(config, order=order, force=True)) for order in ("bgr", None)]
    names = [name(setting, samples, 1, 1, "") for setting in others]
    assert names[0] in {path.stem for path in kept} and names[1] != names[0]  # other pixels are other features


def test_finetuned_weights_record_them(plain: Backbone, weights: Path, synthetic_set: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {"epochs": 1, "lr": 1e-12, "wd": 0.0, "bn": "frozen", "batch": 32, "val": 0.1}
    config = EvalConfig(
        mode="finetune", shards=str(synthetic_set), pretrained=str(weights), out=str(tmp_path / "ft"), **FLAGS, **more
    )
    finetune(config)
    for file in ("last.pt", "best.pt"):
        trunk = load_trunk(tmp_path / "ft" / file)
        assert trunk.module.pixels == THEIRS and "as the file says" in trunk.matched
        clip = torch.randn(1, 3, 4, 32, 32)
        torch.testing.assert_close(bare(trunk.module)(clip), plain(clip))  # lr is next to nothing
        assert len(trunk.classes) == len(trunk.head["fc.weight"]) and set(trunk.head) == {"fc.weight", "fc.bias"}
    (tmp_path / "ft" / "result.json").unlink()
    with pytest.raises(InputError, match=r"--order rgb: the run in .* was made with --order bgr"):
        finetune(replace(config, order=None))


def test_the_bias_report_blanks_with_their_colour_and_its_random_network_sees_the_same(
    weights: Path, synthetic_set: Path, tmp_path: Path
) -> None:
    setting = prepare(
        EvalConfig(mode="bias", shards=str(synthetic_set), pretrained=str(weights), out=str(tmp_path / "bias"), **FLAGS)
    )
    batch = {"moving": torch.zeros(1, 1, 4, 8, 8), "rgb": torch.zeros(1, 1, 4, 8, 8, 3, dtype=torch.uint8)}
    blank = bias.under("background blanked", setting, batch)
    assert blank[0, 0, 0, 0].tolist() == [96, 101, 110]  # RGB of TORCHVISION, whose channels were said to be BGR
    assert setting.with_random_weights().trunk.module.pixels == THEIRS
    ours = cast(Setting, SimpleNamespace(trunk=SimpleNamespace(module=build("r3d_18", 2))))
    assert bias.under("background blanked", ours, batch)[0, 0, 0, 0].tolist() == [124, 116, 104]


def test_a_pretraining_begins_from_them_and_goes_on(
    plain: Backbone, weights: Path, synthetic_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = PretrainConfig(
        shards=(str(synthetic_set),), split=("train",), out=str(tmp_path / "run"), arch="r3d_18", width=2, frames=4, size=32,
        workers=0, precision="fp32", batch=16, epochs=1, lr=1e-12, wd=0.0, pretrained=str(weights), order="bgr",
    )  # fmt: skip
    last = pretrain(config)
    assert f"pixels: {THEIRS} (as given)" in capsys.readouterr().out
    saved = load(last)
    assert {one: saved["config"][one] for one in THEIRS.said} == THEIRS.said
    trunk = load_trunk(last)
    assert trunk.module.pixels == THEIRS
    for one, x in plain.named_parameters():
        torch.testing.assert_close(trunk.module.get_parameter(one), x)
    weights.unlink()  # a run that goes on has no need of them
    assert load(pretrain(replace(config, epochs=2)))["step"] == 2 * saved["step"]
    with pytest.raises(InputError, match=r"--order rgb: the run in .* was made with bgr; give that again"):
        pretrain(replace(config, epochs=3, order="rgb"))
    with pytest.raises(InputError, match=r"it is r3d_18 of width 2, not r3d_18 of width 4: give -a r3d_18 --width 2"):
        pretrain(replace(config, out=str(tmp_path / "other"), width=4, pretrained=str(last), order=None))
