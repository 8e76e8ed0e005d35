"""What training costs as T grows, beside the ANN and backpropagation through time: a convolutional network."""

from __future__ import annotations

from functools import partial

import torch

from ..case import Quantity, of_network
from ..network import Problem, Shape, image_input, make_problem

STEPS = (4, 8, 16, 32)
BATCH = 128
RIVALS = ("tandem", "ANN", "BPTT")


def problem(T: int) -> Problem:
    g = torch.Generator().manual_seed(0)
    shapes = [Shape(outputs, kernel=3, stride=s, padding=1) for outputs, s in ((32, 1), (64, 2), (128, 2))]
    return make_problem(T, image_input((BATCH, 1, 28, 28), 3, g, nonzero=0.2), shapes, 0.1, 10, g)


_QUANTITIES: dict[Quantity, str] = {"time": "Training step", "peak": "Extra peak memory"}
CASES = [
    of_network(
        f"cost-{quantity}-T{T}", f"{what}: 1→32→64(s2)→128(s2)→10 on 28×28, T={T}, B={BATCH}, 10%", partial(problem, T),
        RIVALS, training=True, quantity=quantity,
    )
    for quantity, what in _QUANTITIES.items()
    for T in STEPS
]  # fmt: skip
