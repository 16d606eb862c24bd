"""Run by test_distributed.py, plainly and under torchrun: four steps in float64 on a fixed batch; rank 0 saves the outcome."""

import sys

import torch

from dclr import distributed
from dclr.model import DCLR

BATCH, STEPS = 4, 4


def main() -> None:
    distributed.setup(torch.device("cpu"))
    rank, world = distributed.rank(), distributed.world()
    torch.manual_seed(0)
    model = DCLR("r2plus1d_10", 4, queue_length=9).double().train()
    parallel = distributed.parallel(model)
    optimiser = torch.optim.SGD(model.f_q.parameters(), 0.01, momentum=0.9)
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    totals = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        clips = [
            {v: torch.randn(BATCH, 3, 4, 16, 16, generator=generator, dtype=torch.float64)[mine] for v in "vsd"} for _ in "qk"
        ]
        video = (torch.arange(BATCH) + 3 * step)[mine]  # a video of each batch is in the queue already
        output = parallel(*clips, video)
        optimiser.zero_grad()
        output.total.backward()
        gradients = {f"gradient.{name}": p.grad.clone() for name, p in model.f_q.named_parameters() if p.grad is not None}
        optimiser.step()
        model.queue.enqueue(output.keys, output.video)
        totals.append(distributed.total(output.total.detach()) / world)
    state = model.state_dict() | gradients | {"totals": torch.stack(totals)}
    every = distributed.joined_objects({name: float(value.double().sum()) for name, value in model.state_dict().items()})
    assert all(other == every[0] for other in every), "the ranks' models differ"
    if rank == 0:
        torch.save(state, sys.argv[1])
    distributed.shutdown()


if __name__ == "__main__":
    main()
