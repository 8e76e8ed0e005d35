"""Counters of floating-point operations give a spiking network its twin's figure, whatever T."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn import to_ann


def network(T, timing="step"):
    torch.manual_seed(0)
    net = nn.Sequential(
        tnn.Encoder(T),
        tnn.Conv2d(1, 4, 3, norm=True),
        tnn.Conv2d(4, 6, 3, stride=2, bias=False),
        tnn.Residual(tnn.Conv2d(6, 6, 3, padding=1, groups=3, norm=True)),
        tnn.Flatten(),
        tnn.Linear(6 * 36, 20, norm=True),
        tnn.Linear(20, 20),
        tnn.Readout(20, 10),
    )
    for layer in net.modules():
        if isinstance(layer, tnn.SpikingLayer):
            layer.timing = timing
    return net


def flops(net, x, backward):
    with FlopCounterMode(display=False) as counter:
        output = net(x)
        if backward:
            output.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize(("T", "timing"), [(1, "step"), (8, "step"), (20, "step"), (20, "window")])
def test_flops_are_those_of_the_twin(T, timing, backward, training):
    net, x = network(T, timing).train(training), torch.rand(2, 1, 16, 16)
    twin = to_ann(net).train(training)
    assert flops(net, x, backward) == flops(twin, x, backward) > 0


def test_flops_of_one_dimension_and_of_int8_weights():
    x = te.SpikeTrain.from_dense((torch.rand(8, 3, 5, 12) < 0.3).float())
    flat = te.SpikeTrain.from_dense((torch.rand(8, 3, 5) < 0.3).float())
    with FlopCounterMode(display=False) as counter:
        te.functional.conv1d_if(x, torch.rand(4, 5, 3))
        te.functional.linear_if(flat, torch.ones(7, 5, dtype=torch.int8), scale=torch.ones(7))
    assert counter.get_total_flops() == 2 * (3 * 4 * 10 * 5 * 3 + 3 * 7 * 5)


def test_fvcore_counts_the_same():
    fvcore = pytest.importorskip("fvcore.nn", reason="fvcore is not installed")
    net, x = network(8).eval(), torch.rand(2, 1, 16, 16)
    handles = te.flops.fvcore_handles()
    with torch.no_grad():
        ours, twins = (fvcore.FlopCountAnalysis(n, x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
                       for n in (net, to_ann(net)))  # fmt: skip
        products = [count for op, count in twins.by_operator().items() if op in ("conv", "linear")]
        assert ours.set_op_handle(**handles).total() == sum(products)
