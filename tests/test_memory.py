"""What a layer keeps for its backward pass, and the floating-point operations that counters give it, whatever T."""

import pytest
import torch
from cases import bursts, train, train_with_edge
from networks import conv, in_windows, residual
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import tandem_ext as te
from tandem_snn import to_ann

f = te.functional
LAYERS = {
    "linear": (f.linear_if, (64, 256), (512, 256), 1.125),
    "conv2d": (lambda x, w, **k: f.conv2d_if(x, w, padding=1, **k), (8, 32, 16, 16), (32, 32, 3, 3), 1.125),
    "linear_bn": (lambda x, w, **k: f.bn_if(x, w, **k)[0], (64, 256), (512, 256), 5.125),
    "conv2d_bn": (lambda x, w, **k: f.bn_if(x, w, padding=1, **k)[0], (8, 32, 16, 16), (32, 32, 3, 3), 5.125),
}


def kept_by(function):
    """Result, and the storages saved for backward by saved_tensors_hooks."""
    storages = {}

    def pack(t):
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = function()
    return result, storages


@pytest.mark.parametrize(("T", "timing"), [(8, "step"), (64, "step"), (8, "window"), (255, "window")])
@pytest.mark.parametrize("name", list(LAYERS))
def test_bytes_per_neuron(name, T, timing):
    """Per neuron: its own byte of spikes, kept by the layer that reads them, and its bit of the gate."""
    layer, x_shape, weight_shape, limit = LAYERS[name]
    x = train(T, *x_shape) if timing == "step" else bursts(T, *x_shape)
    weight = torch.randn(weight_shape, requires_grad=True)
    weight2 = torch.randn(64, weight_shape[0], *[1] * (len(weight_shape) - 2), requires_grad=True)

    def network():
        hidden = layer(x, weight, timing=timing)
        out = (f.linear_if if weight2.dim() == 2 else f.conv2d_if)(hidden, weight2, timing=timing)
        return hidden, out

    (hidden, out), storages = kept_by(network)
    given = {t.untyped_storage().data_ptr() for t in (x.stored, weight, weight2)}
    kept = sum(size for pointer, size in storages.items() if pointer not in given)
    gate_of_out = out.counts.numel() / 8
    statistics = 4 * 2 * weight_shape[0] if "bn" in name else 0
    limit += T // 8 - 1 if timing == "step" else 0  # bytes of planes
    assert kept <= limit * hidden.counts.numel() + gate_of_out + statistics
    assert kept >= hidden.counts.numel()  # the spikes at least, or this test looks at nothing


@pytest.mark.parametrize("name", list(LAYERS))
def test_nothing_else_hangs_on_the_graph(name):
    layer, x_shape, weight_shape, _ = LAYERS[name]
    x, weight = train_with_edge(8, *x_shape), torch.randn(weight_shape, requires_grad=True)
    nodes, attributes = [layer(x, weight).counts.grad_fn], []
    while nodes:
        node = nodes.pop()
        attributes += getattr(node, "__dict__", {}).values()
        nodes += [child for child, _ in node.next_functions if child is not None]
    assert attributes  # the layer's own settings
    assert not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(attributes))


def test_a_learned_threshold_keeps_the_output_planes_too():
    x, weight = train(8, 64, 256), torch.randn(512, 256, requires_grad=True)
    theta = torch.ones(512, requires_grad=True)
    y, storages = kept_by(lambda: f.linear_if(x, weight, threshold=theta))
    assert y.planes.untyped_storage().data_ptr() in storages
    y, storages = kept_by(lambda: f.linear_if(x, weight, threshold=theta.detach()))
    assert y.planes.untyped_storage().data_ptr() not in storages


def flops(net, x, backward):
    with FlopCounterMode(display=False) as counter:
        output = net(x)
        if backward:
            output.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("make", [conv, residual])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize(("T", "timing"), [(1, "step"), (8, "step"), (20, "step"), (20, "window")])
def test_flops_are_those_of_the_twin(T, timing, backward, training, make):
    net, x = make()
    net[0].T = T
    net = (in_windows(net) if timing == "window" else net).train(training)
    twin = to_ann(net).train(training)
    assert flops(net, x, backward) == flops(twin, x, backward) > 0


def test_flops_of_one_dimension_and_of_int8_weights():
    x = te.SpikeTrain.from_dense((torch.rand(8, 3, 5, 12) < 0.3).float())
    flat = te.SpikeTrain.from_dense((torch.rand(8, 3, 5) < 0.3).float())
    with FlopCounterMode(display=False) as counter:
        te.functional.conv1d_if(x, torch.rand(4, 5, 3))
        te.functional.linear_if(flat, torch.ones(7, 5, dtype=torch.int8), scale=torch.ones(7))
    assert counter.get_total_flops() == 2 * (3 * 4 * 10 * 5 * 3 + 3 * 7 * 5)
