"""Layers that take the size of their input from the first batch."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn import freeze, to_ann


def lazy() -> nn.Module:
    return nn.Sequential(
        tnn.Encoder(T=8),
        tnn.LazyConv2d(4, 3, padding=1, norm=True, threshold=torch.tensor([0.5, 1.0, 1.5, 2.0])),
        tnn.Residual(tnn.LazyConv2d(4, 3, padding="same"), tnn.LazyConv2d(4, 1)),
        tnn.Flatten(),
        tnn.LazyLinear(8, bias=False, threshold=nn.Parameter(torch.ones(8))),
        tnn.LazyReadout(3, weight_bits=4),
    )


def sized() -> nn.Module:
    return nn.Sequential(
        tnn.Encoder(T=8),
        tnn.Conv2d(2, 4, 3, padding=1, norm=True, threshold=torch.tensor([0.5, 1.0, 1.5, 2.0])),
        tnn.Residual(tnn.Conv2d(4, 4, 3, padding="same"), tnn.Conv2d(4, 4, 1)),
        tnn.Flatten(),
        tnn.Linear(4 * 36, 8, bias=False, threshold=nn.Parameter(torch.ones(8))),
        tnn.Readout(8, 3, weight_bits=4),
    )


def test_they_become_what_they_would_have_been() -> None:
    x = torch.rand(5, 2, 6, 6)
    torch.manual_seed(0)
    expected = sized()
    net = lazy()
    torch.manual_seed(0)
    net(x)
    assert repr(net) == repr(expected)
    assert [type(m) for m in net.modules()] == [type(m) for m in expected.modules()]
    for a, b in zip(net.parameters(), expected.parameters(), strict=True):
        assert a.shape == b.shape
    expected.load_state_dict(net.state_dict())
    assert torch.equal(net.eval()(x), expected.eval()(x))
    assert torch.equal(freeze(net)(x), net(x))
    assert to_ann(net)(x).shape == (5, 3)
    net(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_copies_and_files_before_the_first_batch() -> None:
    x, trained = torch.rand(5, 2, 6, 6), sized()
    for net in (copy.deepcopy(lazy()), pickle.loads(pickle.dumps(lazy())), lazy().double()):
        assert isinstance(net[1], tnn.LazyConv2d)
        assert net(x.to(net[1].weight.dtype)).shape == (5, 3)
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    net = lazy()
    net.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(net.eval()(x), trained.eval()(x))
    with torch.device("meta"):
        assert lazy()(torch.empty(5, 2, 6, 6)).shape == (5, 3)


def test_lines_and_spikes() -> None:
    layer = tnn.LazyConv1d(4, 3, leak=0.5)
    x = te.SpikeTrain.from_dense(torch.rand(8, 2, 3, 9).lt(0.5).float())
    assert layer(x).shape == (2, 4, 7)
    assert (type(layer), layer.in_channels, layer.leak) == (tnn.Conv1d, 3, 0.5)


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"x: Linear takes a SpikeTrain.*put tnn\.Encoder"):
        tnn.LazyLinear(3)(torch.rand(2, 4))
    with pytest.raises(ValueError, match="weight_bits"):
        tnn.LazyReadout(3, weight_bits=1)
    with pytest.raises(TypeError, match="treshold: LazyLinear has no such argument"):
        tnn.LazyLinear(3, treshold=1.0)  # type: ignore[call-arg]
