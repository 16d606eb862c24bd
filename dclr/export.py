"""python -m dclr.export CHECKPOINT --out FILE or DIR/: the trunk alone, for other software.

FILE.safetensors: the trunk's tensors under their standard names (dclr/method/backbones). FILE.onnx: clips (B, 3, T, H, W),
float32, normalised -> ``features`` (B, C'), their pooled mean, and ``feature_map`` (B, C', T', H', W'); any B. Both carry as
metadata the architecture, its width, the clip (frames, stride or clip_fps, size) and the pixels (mean, std, order) that the
network takes: its own, also where these are not ours. DIR/ is a model folder: model.safetensors, config.json,
preprocessing.json, README.md and usage.py; load_encoder and --pretrained read it.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save
from torch import nn

from dclr import compare
from dclr.checkpoint import FOLDER_SAID, NO_WEIGHTS, WEIGHTS, Trunk, digest, load_trunk
from dclr.data.clips import CENTRE, ClipConfig
from dclr.errors import InputError, exit_on_input_error, make_folder
from dclr.evaluation.finetune import BEST
from dclr.evaluation.setting import RESULT
from dclr.files import whole
from dclr.hardware import revision
from dclr.method.backbones.layers import bare
from dclr.method.pixels import PixelSettings
from dclr.settings import Parser, from_flags, setting
from dclr.text import public

USAGE, CARD = "usage.py", "README.md"
SHORT_SIDE, TEST_CLIPS = 128, 10  # of the stored frames, in pixels, and of a video, where the file does not say it


@dataclass(frozen=True, kw_only=True)
class Exporting(PixelSettings):
    title = ""
    pretrained: str = setting(
        help="what to export: a checkpoint, weights of other projects, or a model folder", metavar="CHECKPOINT", place=True
    )
    out: str = setting(help="FILE.safetensors, FILE.onnx, or a model folder DIR/", metavar="OUT", place=True)


class WithFeatures(nn.Module):
    """Clips (B, 3, T, H, W) -> features (B, C') and the feature map (B, C', T', H', W')."""

    def __init__(self, trunk: nn.Module):
        super().__init__()
        self.trunk = trunk

    def forward(self, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.trunk(clip)
        return found.mean((2, 3, 4)), found


def metadata(trunk: Trunk) -> dict[str, Any]:
    """What the network is and what it takes."""
    return {"architecture": trunk.arch, "width": trunk.width, **trunk.clip, **trunk.module.pixels.said}


def export(checkpoint: Path | str, out: Path | str, pixels: PixelSettings | None = None) -> None:
    """Write ``out`` whole or not at all: a file by its suffix, or a folder where it ends in / or has no suffix. Raises
    InputError as :func:`load_trunk` does, for another suffix, and for what exists."""
    folder, checkpoint, out = str(out).endswith("/"), Path(checkpoint), Path(out)
    folder = folder or out.is_dir() or not out.suffix
    if not folder and out.suffix not in (".safetensors", ".onnx"):
        raise InputError(f"--out {out}: expected a name that ends in .safetensors or .onnx, or a folder, {out}/")
    if out.exists() and not (folder and out.is_dir() and not any(out.iterdir())):
        raise InputError(f"--out {out}: it exists; name another or remove it")
    trunk = load_trunk(checkpoint, pixels)
    make_folder(out.parent, "--out")
    if folder:
        _folder(trunk, checkpoint, out)
    else:
        with whole(out) as unfinished:
            if out.suffix == ".safetensors":
                _safetensors(trunk, unfinished)
            else:
                _onnx(trunk, unfinished)
    print(f"{trunk.matched}\n-> {out}{'/' * folder}")


def _safetensors(trunk: Trunk, out: Path, more: Mapping[str, torch.Tensor] | None = None) -> None:
    tensors = {n: x.contiguous() for n, x in trunk.module.state_dict().items() if not NO_WEIGHTS.search(n)}
    said = {name: str(value) for name, value in metadata(trunk).items()}
    out.write_bytes(save(tensors | dict(more or {}), said))


def _folder(trunk: Trunk, checkpoint: Path, out: Path) -> None:
    """The model folder, made beside its place and renamed."""
    learned: dict[str, Any] = trunk.clip
    clip = ClipConfig(**learned)
    network = {"architecture": trunk.arch, "width": trunk.width} | ({"classes": trunk.classes} if trunk.classes else {})
    preprocessing = {name: value for name, value in clip.said.items() if value is not None}
    stored = {name: value for name, value in trunk.stored.items() if name != "segment"}  # whole videos are asked
    preprocessing |= {"stored": {"size": max(SHORT_SIDE, round(clip.size / CENTRE)), **stored}}
    preprocessing |= {"test_clips": trunk.config.get("test_clips", TEST_CLIPS), **trunk.module.pixels.said}
    unfinished = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir()
        for name, table in zip(FOLDER_SAID, (network, preprocessing), strict=True):
            (unfinished / name).write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (unfinished / CARD).write_text(card(trunk, checkpoint, out.name, preprocessing), encoding="utf-8")
        shutil.copyfile(Path(__file__).with_name(USAGE), unfinished / USAGE)
        _safetensors(trunk, unfinished / WEIGHTS, trunk.head)
        for path in unfinished.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        unfinished.replace(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def results(checkpoint: Path) -> list[Path]:
    """The folders of evaluations of a checkpoint that lie beside it: its own, of a finetuning, and in the folders around it
    those of the same weights."""
    here, found = checkpoint.parent, list[Path]()
    if (here / RESULT).is_file() and (checkpoint.name == BEST or not (here / BEST).exists()):
        found.append(here)  # it is of the best epoch where there is one
    weights = digest(checkpoint)
    for depth in ("*", "*/*"):
        for path in sorted(here.parent.glob(f"{depth}/{RESULT}")):
            with contextlib.suppress(OSError, InputError):
                if compare.read_table(path).get("weights") == weights:
                    found.append(path.parent)
    return found


def card(trunk: Trunk, checkpoint: Path, name: str, preprocessing: Mapping[str, Any]) -> str:
    """The model card: what it is, what it takes, how it was made and what evaluations of it found, in Markdown."""
    plain = json.loads(json.dumps(trunk.config, default=str))  # whatever else a file may hold there
    made = {key: public(value) if isinstance(value, str) else value for key, value in plain.items()}
    classes = f"It names {len(trunk.classes)} classes, which config.json lists.\n" if trunk.classes else ""
    task = "video-classification" if trunk.classes else "feature-extraction"
    splits, beside = made.get("split") or made.get("train_split") or [], results(checkpoint)
    if trunk.classes and beside:  # a finetuning's checkpoint leaves out what another start may say otherwise
        with contextlib.suppress(InputError):
            options = compare.read_result(beside[0])["options"]
            made = {name: options[name] for name in ("shards", "pretrained") if name in options} | made
    data = "Its file does not say what it was trained on"
    if made.get("shards"):
        data = f"{'Finetuned' if trunk.classes else 'Trained'} on `{made['shards']}`, of it {', '.join(splits)}"
    begun = f", beginning with `{made['pretrained']}`" if made.get("pretrained") else ""
    tables = []
    for folder in beside:
        with contextlib.suppress(InputError):
            tables.append(compare.compare([folder]))
    found = "\n\n".join(f"```\n{text}\n```" for text in tables) or "None lies beside the checkpoint."
    rows = "\n".join(f"| {key} | {json.dumps(value)} |" for key, value in preprocessing.items())
    return f"""---
library_name: dclr
pipeline_tag: {task}
---

# {name}

A {trunk.arch} of width {trunk.width}: video clips in, a feature map of {trunk.module.channels} channels out.
{classes}
```
python usage.py VIDEO
```

## What it takes

| | |
|---|---|
{rows}

A clip is `frames` frames, `stride` of them apart (or `clip_fps` a second), cut out of the middle of frames that were `stored`
so (there `size` is their short side, in pixels): a square of 112/128 of that, resized to `size`. Colours are in 0..1, in
`order`, less `mean`, divided by `std`.
`dclr.checkpoint.load_encoder` takes what `dclr.method.views.normalise` makes, whatever these are.

## How it was made

{data}{begun}. Exported by dclr {revision()} from `{checkpoint.name}`, sha256
`{digest(checkpoint)}`.

## Results

{found}

## All settings

```yaml
{yaml.safe_dump(made, sort_keys=False).strip() if made else "# none is recorded"}
```
"""


def _onnx(trunk: Trunk, out: Path) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter is written in it
    except ImportError:
        raise InputError("ONNX export needs the packages onnx and onnxscript: pip install 'dclr[onnx]'") from None
    learned: dict[str, Any] = trunk.clip
    example = ClipConfig(**learned)
    clip = torch.zeros(2, 3, example.frames, example.size, example.size)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            WithFeatures(bare(trunk.module)).eval(),
            (clip,),
            input_names=["clip"],
            output_names=["features", "feature_map"],
            dynamic_shapes=({0: "batch"},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for key, value in metadata(trunk).items():
        model.metadata_props.add(key=key, value=str(value))
    onnx.save(model, out)


def parser() -> Parser:
    examples = {
        "the trunk's tensors": "runs/mine/last.pt --out mine.safetensors",
        "a graph for other runtimes": "runs/mine/last.pt --out mine.onnx",
        "a model folder": "--pretrained runs/mine/last.pt --out models/mine/",
    }
    made = Parser(prog="python -m dclr.export", description=__doc__, examples=examples)
    made.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="the same as --pretrained (default: none)")
    return made.add(Exporting)


def main() -> None:
    given = parser().given()
    checkpoint = given.pop("checkpoint")
    if checkpoint is not None:
        if "pretrained" in given:
            raise InputError(f"{checkpoint} and --pretrained {given['pretrained']}: expected one of them")
        given["pretrained"] = checkpoint
    config = from_flags(Exporting, given)
    export(config.pretrained, config.out, config)


if __name__ == "__main__":
    with exit_on_input_error():
        main()
