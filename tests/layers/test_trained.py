"""A network trained on real data: what every path must agree on, and what holds at every step of its training."""

import copy

import pytest
import torch
from networks import assert_frozen_is, own_trains
from torch import nn

import tandem_ext as te
import tandem_snn.nn as tnn
from architectures import create
from tandem_snn import freeze

BATCH = 32


def fresh():
    return create(tnn, "16C3-24C3s2-AP2-FC64", (1, 8, 8), 10)


def steps_of(net, data, epochs):
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    net.train()
    for epoch in range(epochs):
        for images, labels in data.train.epoch(epoch, BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            yield loss.item()


@pytest.fixture(scope="module")
def trained(digits):
    """The network after training, and the test images."""
    torch.manual_seed(0)
    net = fresh()
    for _ in steps_of(net, digits, 3):
        pass
    images, labels = next(digits.test.batches(300))
    assert (net.eval()(images).argmax(1) == labels).double().mean() > 0.9
    return net, images


def by_reference(x, weight, product, settings):
    given = settings._asdict()
    for name in ("T", "eps", "unit", "timing", "steps", "return_v"):
        del given[name]
    layer = te.reference.conv2d_if if product.stride else te.reference.linear_if
    return layer(x, weight, given.pop("bias"), *(product[:4] if product.stride else ()), **given), None, None


def test_it_is_the_reference_bit_for_bit(trained, monkeypatch):
    net, images = copy.deepcopy(trained[0]), trained[1]
    # Weights, batch norms and images are rounded to dyadic numbers, for which every float32 sum is exact.
    snap = lambda x, unit: (x * unit).round() / unit  # noqa: E731
    with torch.no_grad():
        for layer in (m for m in net.modules() if isinstance(m, tnn.SpikingLayer)):
            norm = layer.norm
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            norm.bias.copy_(snap(norm.bias - scale * norm.running_mean, 64))
            norm.weight.copy_(snap(scale, 64))
            norm.eps = 0.0
            norm.running_var.fill_(1.0)
            norm.running_mean.zero_()
            layer.weight.copy_(snap(layer.weight, 64))
            layer.threshold = 0.25
    images = snap(images, 16)
    ours, answers = own_trains(net, images)
    monkeypatch.setattr(tnn.neuron, "product_if", by_reference)
    theirs, expected = own_trains(net, images)
    assert len(ours) == 4
    for a, b in zip(ours, theirs, strict=True):
        assert 0.01 < a.counts.mean() / a.T < 0.5
        assert torch.equal(a.planes, b.planes)
    assert torch.equal(answers, expected)
    assert torch.equal(freeze(net)(images), expected)


def test_every_path_gives_the_evaluations_bits(trained):
    net, images = trained
    assert_frozen_is(net, images)
    trains, _ = own_trains(net, images)
    for i in (0, 1, 150):
        alone, _ = own_trains(net, images[i : i + 1])
        assert all(torch.equal(a.planes, b.planes[:, i : i + 1]) for a, b in zip(alone, trains, strict=True))


@pytest.mark.parametrize("steps", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_what_holds_at_every_step(steps, digits, monkeypatch):
    """Behind batch norm, what flowed in left as spikes or is in the potential; parameters and gradients are finite."""
    product_if, checked = tnn.neuron.product_if, []

    def checking(x, weight, product, settings):
        (train, v), mean, var = product_if(x, weight, product, settings._replace(return_v=True))
        with torch.no_grad():
            u = product.direct(tnn.signals.effective_counts(x), weight)
            z = nn.functional.batch_norm(u, mean, var, settings.scale, settings.shift, False, 0.0, settings.eps)
            assert bool(((train.counts >= 0) & (train.counts <= train.T)).all())
            assert torch.equal(train.counts, te.planes.counts(train.planes))
            # Eight float32 additions of currents, and a product in another order.
            assert torch.allclose(train.counts * settings.threshold + v, z / settings.unit, rtol=1e-4, atol=1e-3)
        checked.append(type(x).__name__)
        return train, mean, var

    monkeypatch.setattr(tnn.neuron, "product_if", checking)
    net, losses = fresh(), []
    for loss in steps_of(net, digits, -(-steps // (len(digits.train) // BATCH))):
        for name, parameter in net.named_parameters():
            assert bool(parameter.grad.isfinite().all() & parameter.isfinite().all()), name
        losses.append(loss)
    assert len(losses) >= steps
    assert len(checked) == 3 * len(losses)
    assert losses[-1] < losses[0]
