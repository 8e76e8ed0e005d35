"""What is kept from the forward to the backward pass, per neuron."""

from __future__ import annotations

from functools import partial

import torch

from ..case import at_most, no_more_than, of_network
from ..network import Problem, Shape, make_problem, spiking_input


def problem(norm: bool) -> Problem:
    """Three layers of 800 neurons with 800 inputs each: what a layer keeps of its input counts as its own."""
    g = torch.Generator().manual_seed(0)
    data = spiking_input(8, (128, 800), 0.14, "rate", 1, g)
    return make_problem(8, data, [Shape(800, norm=norm)] * 3, 0.14, 0, g)


CASES = [
    of_network(
        "kept", "Kept for backward, linear layers, T=8", partial(problem, False), ("tandem", "ANN", "naive", "BPTT"),
        no_more_than(1.25, "bytes per neuron"), at_most(1.0), training=True, input_gradient=True, quantity="kept",
    ),
    of_network(
        "kept-norm", "Kept for backward, linear layers + batch norm, T=8", partial(problem, True),
        ("tandem", "ANN", "naive"), no_more_than(5.25, "bytes per neuron"), at_most(1.0), training=True,
        input_gradient=True, quantity="kept",
    ),
]  # fmt: skip
