"""Long windows of events: a network of the Spiking Heidelberg Digits' shape."""

from __future__ import annotations

from functools import partial

import torch

from ..case import Case, Limit, Quantity, faster, of_network
from ..network import Problem, Shape, make_problem, spiking_input

RIVALS = ("tandem", "ANN", "BPTT", "SpikingJelly", "SpikingJelly, compiled", "snnTorch")


def problem(T: int) -> Problem:
    """Random events on 2 % of the neurons at each step; layers fire at 5 %."""
    g = torch.Generator().manual_seed(0)
    data = spiking_input(T, (64, 700), 0.02, "iid", 2, g)
    return make_problem(T, data, [Shape(256), Shape(256)], 0.05, 20, g)


def _case(T: int, quantity: Quantity, what: str, *limits: Limit) -> Case:
    name, title = f"events-{quantity}-T{T}", f"Events, 700-256-256-20, T={T}, B=64, {what}"
    return of_network(name, title, partial(problem, T), RIVALS, *limits, training=True, quantity=quantity)


CASES = [
    _case(128, "time", "training step", faster(5, "SpikingJelly"), faster(5, "snnTorch")),
    _case(128, "kept", "kept for backward"),
]
