"""Batch norm: one set of statistics for both branches, torch's bookkeeping, and the release's variant."""

import pytest
import torch
from cases import train_with_edge
from torch import nn

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn import ann

pytestmark = pytest.mark.usefixtures("on_device")
F64 = torch.float64
LAYERS = {
    "linear": (tnn.Linear, ann.Linear, (6, 5), {}, (6,)),
    "conv1d": (tnn.Conv1d, ann.Conv1d, (4, 6, 3), {"stride": 2}, (4, 9)),
    "conv2d": (tnn.Conv2d, ann.Conv2d, (4, 6, 3), {"padding": "same"}, (4, 5, 7)),
}


def pair(name, **options):
    cls, twin_cls, sizes, geometry, features = LAYERS[name]
    layer = cls(*sizes, **geometry, norm=True, dtype=F64, **options)
    twin = twin_cls(*sizes, **geometry, norm=True, dtype=F64, eps=layer.norm.eps, momentum=layer.norm.momentum)
    nn.init.normal_(layer.norm.weight)
    nn.init.normal_(layer.norm.bias)
    twin.load_state_dict(layer.state_dict(), strict="threshold" not in options)
    return layer, twin, features


def test_the_release_fires_by_the_running_statistics_in_training():
    layer, _, features = pair("linear", bn_stats="running")
    assert layer.norm.momentum == 0.9
    x = te.SpikeTrain.from_dense((torch.rand(8, 6, *features) < 0.3).double())
    train = layer(x)
    layer.eval()
    assert torch.equal(train.planes, layer(x).planes)  # the statistics already include the batch


@pytest.mark.parametrize("gate", ["clip", "resu"])
def test_the_release_with_other_gates_and_a_learned_threshold(gate):
    theta = nn.Parameter(torch.full((5,), 0.5, dtype=F64))
    layer, _, features = pair("linear", bn_stats="running", gate=gate, threshold=theta)
    x = train_with_edge(8, 6, *features, dtype=F64)
    residual = train_with_edge(8, 6, 5, gain=0.5, dtype=F64)
    train = layer(x, residual=residual)
    layer.norm.momentum = 0.0
    z = layer.preactivation(x, residual)
    opened = (z > 0) & ((z < 8 * 0.5) | (gate == "resu"))
    w = torch.randn_like(z)
    got = torch.autograd.grad((train.counts * w).sum(), [theta, residual.counts])
    torch.testing.assert_close(got[0], -(w * opened * train.counts / 0.5).sum(0))
    torch.testing.assert_close(got[1], 0.5 * w * opened / 0.5)


def test_momentum_none_averages_and_norm_eval_freezes():
    layer, twin, features = pair("conv2d")
    layer.norm.momentum = twin.norm.momentum = None
    for _ in range(3):
        x = torch.randn(4, *features, dtype=F64)
        layer(te.ConstantInput(x, 2))
        twin(2 * x)
    torch.testing.assert_close(layer.norm.running_var, twin.norm.running_var)
    layer.norm.eval()
    before = layer.norm.running_mean.clone()
    layer(te.ConstantInput(x, 2))
    assert torch.equal(layer.norm.running_mean, before)


def test_without_running_statistics_evaluation_uses_the_batch():
    layer, _, features = pair("linear")
    layer.norm = nn.BatchNorm1d(5, track_running_stats=False, dtype=F64)
    x = te.ConstantInput(torch.randn(6, *features, dtype=F64), 8)
    assert torch.equal(layer(x).planes, layer.eval()(x).planes)


def test_a_bias_before_batch_norm_only_moves_the_running_mean():
    layer, _, features = pair("linear")
    x = te.ConstantInput(torch.randn(6, *features, dtype=F64), 8)
    planes = layer(x).planes
    mean = layer.norm.running_mean.clone()
    with torch.no_grad():
        layer.bias += 1
        layer.norm.running_mean.zero_()
    assert torch.equal(layer(x).planes, planes)
    torch.testing.assert_close(layer.norm.running_mean - mean, torch.full((5,), 0.1, dtype=F64))
    layer(x).counts.sum().backward()
    assert layer.bias.grad.tolist() == [0.0] * 5
