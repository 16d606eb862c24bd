"""python usage.py VIDEO: the feature of a video by the model of this folder, and the classes that it names, if any.

It needs the package dclr. The video is cut into clips as those of the evaluation are: preprocessing.json says how.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from dclr.checkpoint import load_encoder
from dclr.data.clips import ClipConfig, eval_clips
from dclr.method.views import normalise, to_clip
from dclr.record import pack, unpack
from preprocess.transcode import Options, TranscodeError, transcode

HERE = Path(__file__).parent


def clips_of(video: Path) -> torch.Tensor:
    """The uniform clips of a video, RGB, uint8 (N, T, S, S, 3)."""
    said = json.loads((HERE / "preprocessing.json").read_text(encoding="utf-8"))
    clip = ClipConfig(**{name: said[name] for name in ("frames", "stride", "clip_fps", "size") if name in said})
    (done,) = transcode(video, Options(cues=(), **said["stored"]))
    record = unpack(b"".join(pack("video", done.members, done.meta)))
    return torch.from_numpy(eval_clips(record, clip, said["test_clips"])["rgb"])


def classify(features_NC: torch.Tensor) -> torch.Tensor:
    """The probability of each class (K,), the mean over the clips; of a finetuned model."""
    head = load_file(HERE / "model.safetensors")
    if "norm.weight" in head:
        mean, var, weight, bias = (head[f"norm.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        features_NC = torch.nn.functional.batch_norm(features_NC, mean, var, weight, bias)
    return (features_NC @ head["fc.weight"].T + head["fc.bias"]).softmax(1).mean(0)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        clips_NTSS3 = clips_of(Path(sys.argv[1]))
    except (TranscodeError, OSError) as error:
        sys.exit(f"error: {sys.argv[1]}: {error}")
    model = load_encoder(HERE)
    with torch.no_grad():
        map_NCTHW = model.features(normalise(to_clip(clips_NTSS3)))
        features = map_NCTHW.mean((2, 3, 4))
    print(f"feature ({features.shape[1]},):", *(f"{value:.4f}" for value in features.mean(0)[:5].tolist()), "...")
    if names := json.loads((HERE / "config.json").read_text(encoding="utf-8")).get("classes"):
        for share, place in zip(*(found.tolist() for found in classify(features).topk(min(5, len(names)))), strict=True):
            print(f"{share:.1%}  {names[place]}")
