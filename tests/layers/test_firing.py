"""Neurons on the currents of many steps, which they read eight at a time: spikes and potentials of one call."""

import weakref

import pytest
import torch
from networks import trained
from torch import nn

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_ext.functional.settings import Settings


@pytest.mark.parametrize("T", [7, 8, 9, 20])
def test_residuals_of_layers_that_read_the_currents_of_steps(T):
    first, body = tnn.Linear(24, 16, neurons=False), tnn.Linear(16, 33, bias=False, threshold=torch.rand(33) + 0.2)
    x, spikes = (te.SpikeTrain.from_dense((torch.rand(T, 5, n) < 0.4).float(), gain=0.7) for n in (24, 33))
    u, more = first(x), tnn.Linear(24, 33, neurons=False)(x)
    y = torch.stack([nn.functional.linear(step, body.weight) for step in u.steps(0, T)]).detach()
    dense = torch.cat([more.steps(t, min(t + 8, T)) for t in range(0, T, 8)])
    for residual, given in ((more, dense), (dense, dense), (spikes, spikes)):
        expected = te.functional.if_scan(y, threshold=body.threshold, residual=given)
        assert torch.equal(body(u, residual).stored, expected.stored)
        with torch.no_grad():
            assert torch.equal(body(u, residual).stored, expected.stored)
    for wrong in (torch.cat([dense, dense]), dense[:1]):
        with pytest.raises(ValueError, match="residual: expected currents of shape"):
            body(u, wrong)


@pytest.mark.parametrize("threshold", [None, 0.8, "tensor"])
def test_currents_of_steps_as_a_residual_are_made_in_pieces_in_evaluation(threshold):
    for T, bits, leak in ((5, None, 1.0), (20, None, 0.9), (33, 4, 1.0), (64, None, 1.0)):
        of_channels = torch.rand(24) + 0.3 if threshold == "tensor" else threshold
        options = {"padding": 1, "threshold": of_channels, "weight_bits": bits, "leak": leak, "norm": True}
        body, shortcut = tnn.Conv2d(16, 24, 3, **options), tnn.Conv2d(16, 24, 1, neurons=False)
        x = te.SpikeTrain.from_dense((torch.rand(T, 3, 16, 9, 7) < 0.3).float(), gain=0.6)
        trained(nn.Sequential(tnn.Residual(body, shortcut)), x)
        with torch.no_grad():
            u = shortcut(x)
            expected = body(x, torch.cat([u.steps(t, min(t + 8, T)) for t in range(0, T, 8)]))
            if T > 16:
                u.residual = lambda _: pytest.fail("all steps at once")
            assert torch.equal(body(x, u).stored, expected.stored)
            with pytest.raises(ValueError, match="residual: expected currents of"):
                body(x, tnn.Currents(u.total, u.steps, T + 1))


def test_potentials_pass_from_part_to_part_as_they_are():
    currents, T = torch.rand(40, 50, 64), 40
    u = tnn.Currents(currents.sum(0), lambda start, stop: currents[start:stop], T)
    for threshold in (0.3, torch.tensor(0.7), torch.rand(64) + 0.3):
        neuron = {"threshold": threshold, "leak": 0.9, "v_init": torch.rand(64), "return_v": True}
        expected, v = te.functional.if_scan(currents, **neuron)
        (train, last), *_ = tnn.firing.fire(u, Settings(T, **neuron))
        assert torch.equal(train.stored, expected.stored)
        assert torch.equal(last, v)


def test_traces_end_in_the_potentials_of_one_call(timing):
    """With a tensor as threshold too, of which potentials are a multiple."""
    T, theta = 12, torch.rand(33) + 0.3
    neuron = {"threshold": theta, "timing": timing, "leak": 0.9 if timing == "step" else 1.0}
    layer, fire = tnn.Linear(24, 33, **neuron), tnn.Neurons(33, **neuron)
    x, residual = (te.SpikeTrain.from_dense((torch.rand(T, 50, n) < 0.4).float(), gain=0.7) for n in (24, 33))
    with torch.no_grad():
        for more in (None, residual):
            _, v = te.functional.linear_if(x, layer.weight, layer.bias, **neuron, residual=more, return_v=True)
            assert torch.equal(layer.potentials(x, more)[-1], v)
        if timing == "step":  # of windows the trace adds the currents of the steps
            u = tnn.Linear(24, 33, neurons=False)(x)
            _, v = te.functional.if_scan(torch.cat([u.steps(0, 8), u.steps(8, T)]), **neuron, return_v=True)
            assert torch.equal(fire.potentials(u)[-1], v)


@pytest.mark.parametrize("timing", ["window", "step"])
def test_sums_that_nobody_reads_again_are_freed_in_training(timing):
    stem, branch = (tnn.Conv2d(3, 3, 3, padding=1, neurons=False, timing=timing) for _ in range(2))
    x = te.SpikeTrain.from_dense((torch.rand(9, 2, 3, 8, 8) < 0.4).float())
    first = stem(x)
    total = weakref.ref(first.total)
    out = first + branch(tnn.Neurons(timing=timing)(first))
    del first
    assert total() is None
    out.total.sum().backward()
    assert stem.weight.grad.abs().sum() > 0
