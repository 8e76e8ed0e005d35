"""Layers of tandem_snn.nn as a network calls them, beside their ANN twins: forward, and forward with backward."""

from __future__ import annotations

import pytest
import torch

import tandem_ext as te
import tandem_snn.ann as twins
import tandem_snn.nn as tnn

LAYERS = {
    "tiny": (lambda kind: kind.Linear(16, 16), (1, 16)),  # what a call costs by itself
    "linear": (lambda kind: kind.Linear(800, 800), (128, 800)),
    "linear-norm": (lambda kind: kind.Linear(800, 800, norm=True), (128, 800)),
    "conv": (lambda kind: kind.Conv2d(64, 128, 3, stride=2, padding=1), (4, 64, 32, 32)),
    "conv-norm": (lambda kind: kind.Conv2d(64, 128, 3, stride=2, padding=1, norm=True), (4, 64, 32, 32)),
}
layers = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)


def twin_input(shape: tuple[int, ...]) -> torch.Tensor:
    x = torch.rand(*shape)
    return x.to(memory_format=torch.channels_last) if x.dim() == 4 else x


@layers
@torch.inference_mode()
def test_forward(benchmark, train_of, make, shape):
    layer, train = make(tnn).eval(), train_of(8, shape, 0.12)
    layer(train)
    benchmark(layer, train)


@layers
@torch.inference_mode()
def test_forward_of_the_twin(benchmark, make, shape):
    layer, x = make(twins).eval(), twin_input(shape)
    layer(x)
    benchmark(layer, x)


@layers
def test_step(benchmark, train_of, make, shape):
    layer, train = make(tnn), train_of(8, shape, 0.12)
    counts = train.counts.clone().requires_grad_()
    train = te.SpikeTrain.unchecked(train.planes, train.T, counts)
    grad = torch.randn_like(layer(train).counts)

    def step() -> None:
        layer.zero_grad()
        counts.grad = None
        layer(train).counts.backward(grad)

    step()
    benchmark(step)


@layers
def test_step_of_the_twin(benchmark, make, shape):
    layer, x = make(twins), twin_input(shape).requires_grad_()
    grad = torch.randn_like(layer(x))

    def step() -> None:
        layer.zero_grad()
        x.grad = None
        layer(x).backward(grad)

    step()
    benchmark(step)
