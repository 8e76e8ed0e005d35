"""The convolutional network on which libraries of spiking networks were compared: 3→128→256→512 on 32×32 images."""

from __future__ import annotations

from functools import partial

import torch

from ..case import Limit, at_most, faster, of_network
from ..network import Problem, Shape, image_input, make_problem

RIVALS = (
    "tandem", "ANN", "naive", "naive, loop compiled", "BPTT", "SpikingJelly", "SpikingJelly, compiled", "snnTorch",
)  # fmt: skip

PEERS = faster(8, "SpikingJelly, compiled")


def problem(rate: float) -> Problem:
    g = torch.Generator().manual_seed(0)
    shapes = [Shape(outputs, kernel=3, stride=s, padding=1) for outputs, s in ((128, 1), (256, 2), (512, 2))]
    return make_problem(8, image_input((16, 3, 32, 32), 3, g), shapes, rate, 10, g)


def title(percent: int) -> str:
    return f"Conv net 3→128→256(s2)→512(s2)→10 on 32×32, T=8, B=16, training step, {percent}%, direct encoding"


_LIMITS: dict[int, tuple[Limit, ...]] = {9: (at_most(1.0), PEERS), 20: (at_most(1.2), PEERS)}

CASES = [
    *(
        of_network(f"conv-net-train-{p}", title(p), partial(problem, p / 100), RIVALS, *limits, training=True)
        for p, limits in _LIMITS.items()
    ),
    of_network(
        "conv-net-peak", f"Extra peak memory of: {title(9)}", partial(problem, 0.09), RIVALS, at_most(2), training=True,
        quantity="peak",
    ),
]  # fmt: skip
