"""What a stored frame costs and how near it is to its source: ``python benchmarks/quality.py [--data ../shared/data]``.

PSNR of the stored RGB frames against the resized source before any encode, and bytes a frame with and without cues, on real
UCF101, HMDB51 and Kinetics clips; the size of whole data sets, from bytes a frame and their published numbers and lengths of
videos; and how far stored flow is from the flow that was computed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from dclr.record import full_range_rgb, pack, unpack
from preprocess.motion import Motion
from preprocess.transcode import OpenedVideo, Options, Scaler, transcode

LEVELS = [("jpeg", 85), ("jpeg", 90), ("jpeg", 95), ("h264", 17), ("h264", 20), ("h264", 23)]
SETS = {  # folder, videos, mean frames: of the papers (UCF101 27 h at 25 fps, HMDB51 3.15 s at 30 fps), Kinetics 10 s at 30 fps
    "UCF101": ("ucf101/videos", 13_320, 182),
    "HMDB51": ("wild/hmdb51", 6_766, 95),
    "Kinetics-400": ("wild/kinetics", 306_245, 300),
}


def resized(path: Path, size: int) -> np.ndarray:
    """The source's frames at the stored size, uint8 (N, H, W, 3) RGB, from unencoded 4:2:0 planes as both codecs get them."""
    out, scaler = [], None
    with OpenedVideo(path) as opened:
        for frame in opened.frames():
            scaler = scaler or Scaler(frame, size)
            out.append(np.empty((scaler.height, scaler.width, 3), np.uint8))
            full_range_rgb(scaler(frame), out[-1])
    return np.stack(out)


def flow_errors(path: Path, size: int) -> np.ndarray:
    """Stored minus computed flow of a video in stored pixels, float32 (vectors, 2)."""
    motion, scaler, computed = Motion(["flow"]), None, []
    with OpenedVideo(path) as opened:
        for frame in opened.frames():
            scaler = scaler or Scaler(frame, size)
            if (pair := motion(scaler(frame)[0])) is not None:
                computed.append(pair.flow_hw2)
    (sample,) = transcode(path, Options(size=size, cues=("flow",)))
    found = unpack(b"".join(pack("k", sample.members, sample.meta)))
    stored = found.vectors("flow", range(1, len(found)))
    return (stored - np.stack(computed)).reshape(-1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data", help="real clips")
    parser.add_argument("--size", type=int, default=128)
    args = parser.parse_args()
    if not args.data.is_dir():
        sys.exit(f"error: no real clips at {args.data}; name their folder with --data")
    print(f"short side {args.size}\n")
    print("| set | codec | quality | PSNR of RGB, dB | bytes a frame | with diff + energy | with flow too | whole set, GB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name, (folder, videos, frames) in SETS.items():
        files = sorted(p for p in (args.data / folder).rglob("*") if p.suffix in (".avi", ".mp4", ".mkv"))
        files = files[:: max(1, len(files) // 24)][:24]
        sources = [resized(path, args.size) for path in files]
        total = sum(len(source) for source in sources)
        for codec, quality in LEVELS:
            size = {cues: 0 for cues in ((), ("diff", "energy"), ("diff", "flow", "energy"))}
            error = 0.0
            for path, source in zip(files, sources, strict=True):
                for cues in size:
                    options = Options(size=args.size, codec=codec, quality=quality, cues=cues)
                    (sample,) = transcode(path, options)
                    data = b"".join(pack("k", sample.members, sample.meta))
                    size[cues] += len(data)
                    if not cues:
                        stored = unpack(data).frames(range(sample.meta.frames))
                        error += sum(
                            float(np.square(a.astype(np.float32) - b).mean()) for a, b in zip(stored, source, strict=True)
                        )
            per_frame = {cues: count / total for cues, count in size.items()}
            plain, usual, all_three = per_frame.values()
            print(
                f"| {name} ({len(files)} clips) | {codec} | {quality} | {10 * np.log10(255**2 * total / error):.1f} "
                f"| {plain:.0f} | {usual:.0f} | {all_three:.0f} | {usual * frames * videos / 1e9:.1f} |",
                flush=True,
            )
        errors = np.concatenate([flow_errors(path, args.size) for path in files])
        distance, (right, down) = np.linalg.norm(errors, axis=-1), errors.mean(0, dtype=np.float64)
        print(f"\nend-point error of stored flow, {name}: mean {distance.mean():.3f} pixels", end="")
        print(f", 99 % below {np.quantile(distance, 0.99):.3f}; of its components {right:+.4f}, {down:+.4f}\n", flush=True)


if __name__ == "__main__":
    main()
