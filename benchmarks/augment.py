"""What colours cost: ``python benchmarks/augment.py [--device cpu]``

Clips a second (8 of 16x112x112, then 16 of 8x32x32) through our colour jitter, grey, blur and normalisation
(dclr/method/views.py) and through kornia's own batched chain with one draw a clip, alternately in one process; then each with
hue left out, which is where kornia's time goes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from kornia import augmentation

from dclr.data.clips import draw_colours
from dclr.method.views import MEAN, STD, photometry

ROUNDS = 5
SHAPES = ((8, 16, 112), (16, 8, 32))  # clips, frames, side


def kornias(hue: float, side: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A draw a clip, the same for its frames."""
    kernel = max(3, side // 10 // 2 * 2 + 1)
    return augmentation.VideoSequential(
        augmentation.ColorJitter(0.4, 0.4, 0.4, hue, p=0.8),
        augmentation.RandomGrayscale(p=0.2),
        augmentation.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5),
        augmentation.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        data_format="BCTHW",
        same_on_frame=True,
    )


def rate(run: Callable[[torch.Tensor], torch.Tensor], clips: torch.Tensor) -> float:
    began = time.perf_counter()
    for _ in range(3):
        run(clips)
    if clips.is_cuda:
        torch.cuda.synchronize()
    return 3 * len(clips) / (time.perf_counter() - began)


def ours(draws_BP: np.ndarray) -> Callable[[torch.Tensor], torch.Tensor]:
    """From the same clips as kornia's; what the trainer gives are planes already."""
    return lambda x: photometry(x.transpose(0, 1).flatten(1, 2).clone(), draws_BP.repeat(x.shape[2], 0))


def measure(batch: int, frames: int, side: int, device: torch.device) -> None:
    clips = torch.rand(batch, 3, frames, side, side, device=device)
    draws = np.stack([draw_colours(np.random.default_rng(n)) for n in range(batch)])
    still = draws.copy()
    still[:, 3] = 0
    ways = {
        "ours": ours(draws),
        "kornia": kornias(0.1, side),
        "ours, no hue": ours(still),
        "kornia, no hue": kornias(0.0, side),
    }
    for run in ways.values():
        run(clips)
    found = [{name: rate(run, clips) for name, run in ways.items()} for _ in range(ROUNDS)]
    print(f"\n{batch} clips of {frames}x{side}x{side}")
    for name in ways:
        print(f"{name}: {statistics.median(each[name] for each in found):.0f} clips/s")
    for one, other in (("ours", "kornia"), ("ours, no hue", "kornia, no hue")):
        ratios = sorted(each[one] / each[other] for each in found)
        print(f"{one} / {other}: {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    device = torch.device(parser.parse_args().device)
    torch.manual_seed(0)
    for shape in SHAPES:
        measure(*shape, device)


if __name__ == "__main__":
    main()
