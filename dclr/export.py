"""python -m dclr.export CHECKPOINT --out FILE: the trunk alone, for other software, as FILE.safetensors or FILE.onnx.

safetensors: the trunk's tensors under their standard names (dclr/method/backbones). ONNX: clips (B, 3, T, H, W), float32,
ImageNet normalised -> ``features`` (B, C'), their pooled mean, and ``feature_map`` (B, C', T', H', W'); any B. Both carry as
metadata the architecture, its width, the clip (frames, stride or clip_fps, size) and the normalisation.
"""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from dclr.checkpoint import NO_WEIGHTS, Trunk, load_trunk
from dclr.data.clips import ClipConfig
from dclr.errors import InputError, exit_on_input_error, make_folder, path_flag
from dclr.files import whole
from dclr.method.views import MEAN, STD
from dclr.settings import Parser


class WithFeatures(nn.Module):
    """Clips (B, 3, T, H, W) -> features (B, C') and the feature map (B, C', T', H', W')."""

    def __init__(self, trunk: nn.Module):
        super().__init__()
        self.trunk = trunk

    def forward(self, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.trunk(clip)
        return found.mean((2, 3, 4)), found


def metadata(trunk: Trunk) -> dict[str, str]:
    """What is known of it: of weights that are not ours, neither the clip nor the normalisation."""
    said: dict[str, object] = {"architecture": trunk.arch, "width": trunk.width, **trunk.clip}
    if trunk.clip:
        said |= {"mean": list(MEAN), "std": list(STD)}
    return {name: str(value) for name, value in said.items()}


def export(checkpoint: Path, out: Path) -> None:
    """Write ``out`` whole or not at all; raises InputError as :func:`load_trunk` does, and for an unknown suffix."""
    if out.suffix not in (".safetensors", ".onnx"):
        raise InputError(f"--out {out}: expected a name that ends in .safetensors or .onnx")
    if out.exists():
        raise InputError(f"--out {out}: it exists; name another file or remove it")
    trunk = load_trunk(checkpoint)
    make_folder(out.parent, "--out")
    with whole(out) as unfinished:
        if out.suffix == ".safetensors":
            tensors = {n: x.contiguous() for n, x in trunk.module.state_dict().items() if not NO_WEIGHTS.search(n)}
            unfinished.write_bytes(save(tensors, metadata(trunk)))
        else:
            _onnx(trunk, unfinished)
    print(f"{trunk.matched}\n-> {out}")


def _onnx(trunk: Trunk, out: Path) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter is written in it
    except ImportError:
        raise InputError("ONNX export needs the packages onnx and onnxscript: pip install 'dclr[onnx]'") from None
    said = metadata(trunk)
    learned: dict[str, Any] = trunk.clip
    example = ClipConfig(**learned)
    clip = torch.zeros(2, 3, example.frames, example.size, example.size)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            WithFeatures(trunk.module).eval(),
            (clip,),
            input_names=["clip"],
            output_names=["features", "feature_map"],
            dynamic_shapes=({0: "batch"},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for key, value in said.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, out)


def parser() -> Parser:
    examples = {
        "the trunk's tensors": "runs/mine/last.pt --out mine.safetensors",
        "a graph for other runtimes": "runs/mine/last.pt --out mine.onnx",
    }
    made = Parser(prog="python -m dclr.export", description=__doc__, examples=examples)
    read = "checkpoint of train_pretrain.py, or any weights that train_eval.py --pretrained takes (required)"
    made.add_argument("checkpoint", type=path_flag, metavar="CHECKPOINT", help=read)
    written = "the file to write, whose name ends in .safetensors or .onnx (required)"
    made.add_argument("--out", type=path_flag, required=True, metavar="FILE", help=written)
    return made


if __name__ == "__main__":
    with exit_on_input_error():
        args = parser().parse_args()
        export(args.checkpoint, args.out)
