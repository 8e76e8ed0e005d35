"""Layers with batch norm inside a network: forward and backward, with the gradient of the input."""

from __future__ import annotations

from functools import partial

import torch

from ..case import Case, at_most, of_network
from ..network import Problem, Shape, make_problem, spiking_input

RIVALS = ("tandem", "ANN", "naive", "naive, loop compiled")


def conv_problem(kind: str) -> Problem:
    g = torch.Generator().manual_seed(0)
    data = spiking_input(8, (32, 64, 32, 32), 0.15, kind, 3, g)
    return make_problem(8, data, [Shape(128, kernel=3, stride=2, padding=1, norm=True)], 0.15, 0, g)


def linear_problem(kind: str) -> Problem:
    g = torch.Generator().manual_seed(0)
    data = spiking_input(8, (128, 800), 0.15, kind, 4, g)
    return make_problem(8, data, [Shape(800, norm=True)], 0.15, 0, g)


def _conv(kind: str, *ratio: float) -> Case:
    title = f"Conv 64→128 3×3 s2 on 32×32 + batch norm, T=8, B=32, training step, 15% {kind}"
    build = partial(conv_problem, kind)
    limits = [at_most(r) for r in ratio]
    return of_network(f"conv-norm-train-{kind}", title, build, RIVALS, *limits, training=True, input_gradient=True)


def _linear(kind: str, *ratio: float) -> Case:
    title = f"Linear 800×800 + batch norm, T=8, B=128, training step, 15% {kind}"
    build = partial(linear_problem, kind)
    limits = [at_most(r) for r in ratio]
    return of_network(f"linear-norm-train-{kind}", title, build, RIVALS, *limits, training=True, input_gradient=True)


CASES = [_conv("rate", 1.3), _conv("iid"), _linear("rate", 1.2), _linear("iid")]
