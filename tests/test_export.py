"""The exported trunk gives the features of the checkpoint, in safetensors, in ONNX and in a model folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import needs, refuse, render, stored, succeed
from safetensors import safe_open

from dclr.checkpoint import digest, load_encoder, load_trunk, save
from dclr.data.clips import ClipConfig, eval_clips
from dclr.errors import InputError
from dclr.evaluation.finetune import Classifier
from dclr.export import export
from dclr.method.backbones import ARCHITECTURES, build
from dclr.method.backbones.layers import bare
from dclr.method.pixels import SYMMETRIC, TORCHVISION, InputPixels, PixelSettings
from dclr.method.views import to_clip
from preprocess.synthetic import encode

METADATA = {
    "architecture": "r2plus1d_10", "width": "4", "frames": "4", "stride": "2", "size": "32",
    "mean": "[0.485, 0.456, 0.406]", "std": "[0.229, 0.224, 0.225]", "order": "rgb",
}  # fmt: skip


def test_safetensors_holds_the_trunk_under_its_standard_names(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "backbone.safetensors"
    said = succeed("-m", "dclr.export", checkpoint, "--out", out)
    assert "matched     105" in said and f"-> {out}" in said
    trunk, again = load_trunk(checkpoint), load_trunk(out)
    with safe_open(out, "pt") as file:
        names = set(file.keys())
        assert file.metadata() == METADATA
    assert names == {name for name in trunk.module.state_dict() if not name.endswith("num_batches_tracked")}
    assert (again.arch, again.width, again.clip) == (trunk.arch, trunk.width, trunk.clip)
    clip = torch.randn(2, 3, 4, 32, 32)
    assert torch.equal(trunk.module(clip), again.module(clip))
    assert "it exists" in refuse("-m", "dclr.export", checkpoint, "--out", out)
    assert "ends in .safetensors or .onnx" in refuse("-m", "dclr.export", checkpoint, "--out", tmp_path / "b.pt")
    assert "expected one of them" in refuse("-m", "dclr.export", checkpoint, "--pretrained", checkpoint, "--out", "b.onnx")
    assert "required: --pretrained, --out" in refuse("-m", "dclr.export")
    assert not list(tmp_path.glob(".*"))


@needs("onnx", "onnxscript", "onnxruntime")
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_onnx_gives_the_same_features(arch: str, checkpoint: Path, tmp_path: Path) -> None:
    import onnxruntime

    source, out, size = checkpoint, tmp_path / "backbone.onnx", 32
    if arch != "r2plus1d_10":
        torch.save(build(arch, 4).state_dict(), source := tmp_path / "weights.pth")
        size = 112
    export(source, out)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    trunk = load_trunk(source)
    for batch in (1, 3):  # any number of clips
        clip = torch.randn(batch, 3, trunk.clip.get("frames", 16), size, size)
        with torch.no_grad():
            expected = bare(trunk.module)(clip)  # the graph takes the network's own pixels
        features, feature_map = session.run(None, {"clip": clip.numpy()})
        for found, wanted in ((features, expected.mean((2, 3, 4))), (feature_map, expected)):
            np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=1e-5 * max(1, float(wanted.max())))
    if arch == "r2plus1d_10":
        assert session.get_modelmeta().custom_metadata_map == METADATA
    else:
        pixels = SYMMETRIC if arch == "i3d" else TORCHVISION
        said = session.get_modelmeta().custom_metadata_map
        assert said["mean"] == str(list(pixels.mean)) and said["std"] == str(list(pixels.std)) and said["order"] == "rgb"


def test_exports_record_the_pixels_of_other_peoples_networks(tmp_path: Path) -> None:
    plain = build("i3d", 4).eval()
    torch.save(plain.state_dict(), tmp_path / "w.pth")
    told = PixelSettings(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), order="bgr")
    for name in ("trunk.safetensors", "folder"):
        export(tmp_path / "w.pth", tmp_path / name, told)
        trunk = load_trunk(tmp_path / name)
        assert trunk.module.pixels == InputPixels(told.mean, told.std, "bgr") and "as the file says" in trunk.matched
        clip = torch.randn(1, 3, 8, 32, 32)
        assert torch.equal(bare(trunk.module)(clip), plain(clip))
    said = tmp_path / "folder" / "preprocessing.json"
    said.write_text(said.read_text().replace("bgr", "rgb"))  # what it says there counts
    assert load_encoder(tmp_path / "folder").backbone.pixels.order == "rgb"
    said.write_text("[" * 10**5)
    with pytest.raises(InputError, match=r"preprocessing.json: not what dclr.export writes"):
        load_encoder(tmp_path / "folder")


def test_a_model_folder_says_what_it_is_and_where_it_came_from(checkpoint: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "model"
    run.mkdir()
    (run / "last.pt").write_bytes(checkpoint.read_bytes())
    for name, weights, top1 in (("linear", digest(checkpoint), 0.123), ("of-another", "0" * 64, 0.456)):
        (tmp_path / name).mkdir()
        options = {"mode": "linear", "pretrained": "run/last.pt"}
        table = {"top1": top1, "metrics": {"top1": {"kind": "share"}}, "classes": 8, "weights": weights, "options": options}
        (tmp_path / name / "result.json").write_text(json.dumps(table))
    succeed("-m", "dclr.export", "--pretrained", run / "last.pt", "--out", f"{out}/")
    assert {path.name for path in out.iterdir()} == {
        "model.safetensors", "config.json", "preprocessing.json", "README.md", "usage.py",
    }  # fmt: skip
    assert json.loads((out / "config.json").read_text()) == {"architecture": "r2plus1d_10", "width": 4}
    assert json.loads((out / "preprocessing.json").read_text()) == {
        "frames": 4, "stride": 2, "size": 32, "stored": {"size": 128}, "test_clips": 10,
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
        "order": "rgb",
    }  # fmt: skip
    card = (out / "README.md").read_text()
    assert "of it train" in card and "12.3" in card and "45.6" not in card and "epochs: 2\n" in card
    assert digest(run / "last.pt") in card and digest(out) == digest(out / "model.safetensors")
    clip = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_trunk(out).module(clip), load_trunk(checkpoint).module(clip))
        assert torch.equal(load_encoder(out).map(clip), load_encoder(checkpoint).map(clip))
    assert "it exists" in refuse("-m", "dclr.export", checkpoint, "--out", out)
    assert "a folder without model.safetensors" in refuse("-m", "dclr.export", run, "--out", tmp_path / "other")
    assert not list(tmp_path.glob(".*"))


def test_usage_of_a_finetuned_model_names_a_video(tmp_path: Path) -> None:
    """As the classifier does on the clips of an evaluation."""
    torch.manual_seed(3)
    names, clip = ["clap", "wave", "run"], {"frames": 4, "stride": 2, "size": 32}
    model = Classifier(build("r2plus1d_10", 4), 3, head="bn").eval()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm3d):
            layer.running_var.uniform_(0.5, 2)
    torch.nn.init.normal_(model.fc.weight)
    config = {"arch": "r2plus1d_10", "width": 4, **clip, "mean": [0.5] * 3, "std": [0.25] * 3, "order": "rgb"}
    save(
        tmp_path / "best.pt",
        {
            "config": config | {"test_clips": 3},
            "classes": names,
            "model": model.state_dict(),
            "stored": {"size": 64, "codec": "jpeg"},
        },
    )
    export(tmp_path / "best.pt", tmp_path / "model")
    frames, rate = render("left", "checks", (0,))
    encode(frames, rate, tmp_path / "video.mp4")
    said = succeed(tmp_path / "model" / "usage.py", tmp_path / "video.mp4").splitlines()
    clips = torch.from_numpy(eval_clips(stored(tmp_path / "video.mp4", size=64), ClipConfig(**clip), 3)["rgb"])
    with torch.no_grad():
        shares = model((to_clip(clips) - 0.5) / 0.25).softmax(1).mean(0)
    assert said[0].startswith("feature (32,):")
    assert said[1:] == [f"{shares[n]:.1%}  {names[n]}" for n in shares.argsort(descending=True).tolist()]
