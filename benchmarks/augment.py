"""What colours cost: ``python benchmarks/augment.py [--device cpu]``

Clips a second (16x112x112) through our colour jitter, grey, blur and normalisation (dclr/method/views.py) and through kornia's
own chain with one draw a clip, alternately in one process; then each with hue left out, which is where kornia's time goes.
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

ROUNDS, BATCH = 5, 8


def kornias(hue: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """A draw a clip, the same for its frames."""
    return augmentation.VideoSequential(
        augmentation.ColorJitter(0.4, 0.4, 0.4, hue, p=0.8),
        augmentation.RandomGrayscale(p=0.2),
        augmentation.RandomGaussianBlur((11, 11), (0.1, 2.0), p=0.5),
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
    return 3 * BATCH / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    device = torch.device(parser.parse_args().device)
    torch.manual_seed(0)
    clips = torch.rand(BATCH, 3, 16, 112, 112, device=device)
    draws = torch.from_numpy(np.stack([draw_colours(np.random.default_rng(n)) for n in range(BATCH)]))
    still = draws.clone()
    still[:, 3] = 0
    ways = {
        "ours": lambda x: photometry(x, draws),
        "kornia": kornias(0.1),
        "ours, no hue": lambda x: photometry(x, still),
        "kornia, no hue": kornias(0.0),
    }
    for run in ways.values():
        run(clips)
    found = [{name: rate(run, clips) for name, run in ways.items()} for _ in range(ROUNDS)]
    for name in ways:
        print(f"{name}: {statistics.median(each[name] for each in found):.0f} clips/s")
    for one, other in (("ours", "kornia"), ("ours, no hue", "kornia, no hue")):
        ratios = sorted(each[one] / each[other] for each in found)
        print(f"{one} / {other}: {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
