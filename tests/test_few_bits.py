"""Training with weights of few bits: the frozen network has the evaluation's bits."""

import copy

import pytest
import torch
from torch import nn

import tandem_snn.nn as tnn
from tandem_snn import create_model, create_twin, freeze
from tandem_snn.nn.quantise import quantise, rounded

OPTIONS = {"shape": (3, 8, 8), "classes": 10, "T": 8, "width": 0.2}


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_gradient_goes_straight_through(bits):
    weight = torch.randn(5, 4, 3, 3, requires_grad=True)
    q, step = quantise(weight, bits)
    assert q.abs().amax((1, 2, 3)).tolist() == [2 ** (bits - 1) - 1] * 5
    few = rounded(weight, bits)
    assert torch.equal(few, q * step.view(-1, 1, 1, 1))
    assert (few - weight).abs().le(step.view(-1, 1, 1, 1) * 0.501).all()
    grad = torch.randn_like(few)
    few.backward(grad)
    assert torch.equal(weight.grad, grad)
    assert rounded(weight, None) is weight
    assert torch.equal(rounded(torch.zeros(2, 3), bits), torch.zeros(2, 3))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["cnn", "resnet18-cifar", "8C3-MP2-8C3-AP2-FC16"])
def test_frozen_it_has_the_bits_of_its_evaluation(name, bits):
    net = create_model(name, **OPTIONS, weight_bits=bits)
    x, y = torch.randn(16, 3, 8, 8), torch.arange(16) % 10
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < losses[0]

    net.eval()
    expected = net(x)
    frozen = freeze(net)
    assert torch.equal(frozen(x), expected)
    for _ in range(8):
        so_far = frozen.step(x)
    assert torch.equal(so_far, expected)
    for layer in frozen.net.modules():
        if isinstance(layer, tnn.SpikingLayer | tnn.Readout):
            assert all(len(row.unique()) <= 2**bits - 1 for row in layer.weight.flatten(1))

    plain = create_model(name, **OPTIONS).eval()
    plain.load_state_dict(net.state_dict())
    assert torch.equal(freeze(plain, weight_bits=bits)(x), expected)
    assert not torch.equal(plain(x), expected)
    assert torch.equal(freeze(freeze(net).net)(x), expected)
    assert torch.equal(copy.deepcopy(net)(x), expected)


def test_the_twin_keeps_its_weights():
    twin = create_twin("cnn", **OPTIONS, weight_bits=2)
    net = create_model("cnn", **OPTIONS, weight_bits=2)
    assert not hasattr(twin.conv1, "weight_bits")
    assert "weight_bits=2" in repr(net.conv1)
    assert net.state_dict().keys() == twin.state_dict().keys()


def test_bits_are_checked():
    for bits in (1, 9, 4.0, True):
        with pytest.raises(ValueError, match="weight_bits: expected None or an int from 2 to 8"):
            tnn.Linear(3, 2, weight_bits=bits)
        with pytest.raises(ValueError, match="weight_bits"):
            tnn.Readout(3, 2, weight_bits=bits)
