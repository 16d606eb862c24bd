"""python tests/fuzz/make_corpus.py: write the corpus anew, but for what make fuzz has found: tiny files of every format."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import torch
import yaml
from targets import CORPUS, KINDS, SAMPLES, SPLITS, training

from dclr.checkpoint import load_trunk
from dclr.compare import RESULT
from dclr.cues import CUES
from dclr.data.manifest import Entry, Header, Manifest, Shard, pack_columns
from dclr.evaluation.baseline import Each, keep
from dclr.export import _safetensors
from dclr.method.backbones import build
from dclr.pretraining.config import PretrainConfig
from dclr.record import SampleMeta, Source, pack, pack_array
from dclr.training.state import PRETRAINING, TrainState
from preprocess.plan import Failure, RunPlan, options_table
from preprocess.transcode import JpegEncoder, Options, PacketEncoder

FRAMES, SIDE = 4, 16


def write(name: str, data: bytes | str) -> None:
    path = CORPUS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def sample(codec: str) -> bytes:
    """A sample with all cues."""
    encoder: type[JpegEncoder] | type[PacketEncoder] = JpegEncoder if codec == "jpeg" else PacketEncoder
    quality = {"jpeg": 90, "h264": 20}[codec]
    rgb, diff, flow = encoder(quality), encoder(quality, "diff."), JpegEncoder(90, "flow.")
    luma_HW = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)
    for n in range(FRAMES):
        rgb.add([np.roll(luma_HW, n, 1), *np.full((2, SIDE // 2, SIDE // 2), 128, np.uint8)])
        diff.add([luma_HW])
        flow.add([np.zeros((2 * (SIDE // 4), SIDE // 4), np.uint8)])
    members = rgb.members() | diff.members() | flow.members()
    for cue in CUES.values():
        members |= {f"{name}.npy": pack_array(np.ones((FRAMES, *shape), dtype)) for name, (dtype, shape) in cue.arrays.items()}
    source = Source("walk/a.mp4", 64, 64, 0, content="0" * 32, sar="4:3")
    meta = SampleMeta(
        "walk/a.mp4", FRAMES, SIDE, SIDE, codec, tuple(CUES), 25, 0, "walk", {"action": 0}, ("train",), source, (2,)
    )
    return b"".join(pack("walk_a", members, meta))


def main() -> None:
    for codec in ("jpeg", "h264"):
        write(f"record/{codec}.tar", sample(codec))

    entries = [
        Entry(f"k{n}", 1024 * n, 1024, n, 0, {"action": 0}, ["train"], 4, 25.0, f"v{n}", 1.5, "0" * 32, [2])
        for n in range(SAMPLES)
    ]
    shard = Shard("shard-000000.tar", SAMPLES, 4096, "0" * 64)
    options = options_table(Options()) | {"cues": ["diff"]}
    splits, classes = {"train": SAMPLES, "test": 0}, {"action": ["walk", "run"]}
    assert (len(splits), len(classes)) == (SPLITS, KINDS)
    write("index/manifest.json", Manifest("csv", (shard,), splits, classes, options, {"open": 1}, "0" * 64).dumps())
    header = Header(shard.name, SAMPLES, 4096, "0" * 64, "r")
    write("index/shard.jsonl", "\n".join([header.dumps(), *(entry.dumps() for entry in entries)]) + "\n")
    write("index/index.npz", pack_columns(entries, list(splits), list(classes)))

    failure = Failure("walk/b.mp4", "open", "no video", 0.5, {"action": 1}, ("train",), (1.5, None))
    plan = RunPlan(
        "csv",
        "videos",
        classes,
        options,
        ["shard-000000"],
        {"shard-000001": "r"},
        (failure,),
        3.5,
        first={"cues": [], "shards": {}},
    )
    write("plan/plan.json", plan.dumps())
    write("plan/failures.jsonl", f"{failure.dumps()}\n{replace(failure, span=None).dumps()}\n")

    for name, text in {
        "csv-mine.csv": "path,label,split,start,end\nwalk/a.mp4,walk,train,0,8\nrun/b.mp4,run,test,,\n",
        "csv-words.csv": "walk/a.mp4 1\nrun/b c.mp4 2\n",
        "csv-tabs.csv": "path\tlabel\tstart_seconds\tend_seconds\nwalk/a.mp4\t3\t0.5\t2\n",
        "ucf101-classInd.txt": "1 walk\n2 run\n",
        "ucf101-trainlist01.txt": "walk/a.mp4 1\nrun/b.avi 2\n",
        "ucf101-train-classInd.txt": "1 walk\n2 run\n",
        "hmdb51-walk_test_split1.txt": "a.mp4 1\nb.avi 2\nc.avi 0\n",
        "kinetics-train.csv": 'label,youtube_id,time_start,time_end,split\nwalk,a,0,10,train\n"run, fast",b,5,15,train\n',
        "ssv2-train.json": json.dumps([{"id": "a", "label": "walk", "template": "walk"}]),
        "ssv2-labels.json": json.dumps({"walk": "0"}),
        "ssv2-labels-train.json": json.dumps([{"id": "a", "label": "walk", "template": "walk"}]),
        "diving48-Diving48_train.json": json.dumps([{"vid_name": "a", "label": 0, "start_frame": 0, "end_frame": 9}]),
        "diving48-Diving48_test.json": json.dumps([{"vid_name": "b", "label": 0, "start_frame": 0, "end_frame": 9}]),
        "diving48-Diving48_vocab.json": json.dumps([["Back", "15som"]]),
    }.items():
        write(f"lists/{name}", text)

    torch.manual_seed(0)
    trunk = {f"f_q.backbone.{name}": x for name, x in build("r2plus1d_10", 1).state_dict().items() if "num_batches" not in name}
    config = {"arch": "r2plus1d_10", "frames": 4, "stride": 2, "size": 16, "mean": [0.5] * 3, "std": [0.5] * 3, "order": "rgb"}
    made = CORPUS / "checkpoint/weights.pt"
    made.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"version": 1, "config": config, "model": trunk}, made)
    _safetensors(load_trunk(made), CORPUS / "checkpoint/weights.safetensors")
    model, optimiser, scaler, loader = training()
    model(torch.ones(2, 2)).sum().backward()
    optimiser.step()
    state = TrainState.of(PRETRAINING, {"epochs": 2}, model, optimiser, scaler, loader)  # type: ignore[arg-type]
    torch.save({"version": 1, **state.table()}, CORPUS / "checkpoint/state.pt")
    each = Each(2, ["v0", "v1"], ["walk", "run"], frozenset(), {"top1": np.array([1.0, 0.0])})
    keep(CORPUS / "checkpoint", each, ["run", "walk"], scores=np.zeros((2, 2), np.float32))

    settings = PretrainConfig(shards=("a",), split=("b",), out="c")
    write("config/config.yaml", yaml.safe_dump(settings.as_dict(), sort_keys=False))
    write("config/recipe.yaml", "# a recipe\nlr: 0.05\nwithout: [static]\nepochs: 20\ncos: true\nqueue: null\n")
    result = {
        "top1": 0.5, "metrics": {"top1": {"kind": "share", "title": ""}}, "interval": {"top1": [0.1, 0.9]}, "videos": 2,
        "skipped": [], "classes": 2, "chance": 0.5, "majority": 0.5, "unseen": {}, "label": "action", "arch": "r2plus1d_10",
        "width": 1, "pictures": ["confusion.png"], "deviation": {"top1": 0.1},
        "options": {"mode": "linear", "pretrained": "last.pt"}, "random": {"top1": 0.25},
    }  # fmt: skip
    write(f"config/{RESULT}", json.dumps(result, indent=1))
    lines = [{"step": n, "loss/total": 1 / n, "speed/clips": 10.0, "speed/wait": 0.1, "knn/top1": 0.5} for n in (1, 2)]
    write("config/metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
