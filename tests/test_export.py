"""The exported trunk gives the features of the checkpoint, in safetensors and in ONNX."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import needs, refuse, succeed
from safetensors import safe_open

from dclr.checkpoint import load_trunk
from dclr.export import export
from dclr.method.backbones import ARCHITECTURES, build

METADATA = {
    "architecture": "r2plus1d_10", "width": "4", "frames": "4", "stride": "2", "size": "32",
    "mean": "[0.485, 0.456, 0.406]", "std": "[0.229, 0.224, 0.225]",
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
            expected = trunk.module(clip)
        features, feature_map = session.run(None, {"clip": clip.numpy()})
        for found, wanted in ((features, expected.mean((2, 3, 4))), (feature_map, expected)):
            np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=1e-5 * max(1, float(wanted.max())))
    if arch == "r2plus1d_10":
        assert session.get_modelmeta().custom_metadata_map == METADATA
