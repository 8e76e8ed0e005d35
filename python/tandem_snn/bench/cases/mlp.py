"""The fully connected network 784-800-800-10."""

from __future__ import annotations

from functools import partial

import torch

from ..case import Case, Limit, at_most, faster, of_network
from ..network import Problem, Shape, image_input, make_problem, spiking_input

INFERENCE = ("frozen", "tandem", "ANN", "naive", "naive, loop compiled", "SpikingJelly", "snnTorch")
TRAINING = (
    "tandem", "ANN", "naive", "naive, loop compiled", "BPTT", "SpikingJelly", "SpikingJelly, compiled", "snnTorch",
)  # fmt: skip


def problem(T: int, B: int, kind: str) -> Problem:
    """Layers fire at 14%; spikes in at 11%, or "direct": images of which a fifth of the pixels is not zero."""
    g = torch.Generator().manual_seed(0)
    batches = 16 if B == 1 else 4
    if kind == "direct":
        data = image_input((B, 784), batches, g, nonzero=0.2)
    else:
        data = spiking_input(T, (B, 784), 0.11, kind, batches, g)
    return make_problem(T, data, [Shape(800), Shape(800)], 0.14, 10, g)


def _infer(B: int, kind: str, *limits: Limit) -> Case:
    title = f"MLP 784-800-800-10, T=8, B={B}, inference, {LABEL[kind]}"
    return of_network(f"mlp-infer-{B}-{kind}", title, partial(problem, 8, B, kind), INFERENCE, *limits)


def _train(T: int, kind: str, *limits: Limit) -> Case:
    title = f"MLP 784-800-800-10, T={T}, B=128, training step, {LABEL[kind]}"
    return of_network(f"mlp-train-T{T}-{kind}", title, partial(problem, T, 128, kind), TRAINING, *limits, training=True)


LABEL = {"rate": "rate-coded spikes in", "iid": "iid spikes in", "direct": "direct encoding"}

CASES = [
    _infer(128, "rate", at_most(0.75), faster(10, "naive")),
    _infer(128, "iid"),
    _infer(1, "rate", at_most(0.30)),
    _infer(1, "iid"),
    _infer(128, "direct", at_most(1.1)),
    _train(8, "direct", at_most(1.15)),
    _train(8, "rate", at_most(1.05), faster(7, "BPTT")),
    _train(16, "rate", at_most(1.3), faster(12, "BPTT")),
]
