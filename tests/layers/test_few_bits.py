"""Training with weights of few bits: the frozen network has the evaluation's bits."""

import copy

import pytest
import torch
from cases import dyadic, train, train_with_edge
from networks import assert_frozen_is, settled

import tandem_ext as te
import tandem_snn.nn as tnn
from architectures import create
from tandem_ext.functional.neuron import over_inputs
from tandem_snn import freeze
from tandem_snn.frozen.lowering import lower
from tandem_snn.nn.quantise import quantise

OPTIONS = {"shape": (3, 8, 8), "outputs": 10, "T": 8, "width": 0.2}
LAYERS = {
    "linear": (tnn.Linear, (5,), ()),
    "conv1d": (tnn.Conv1d, (5, 6), (3,)),
    "conv2d": (tnn.Conv2d, (5, 6, 4), (3,)),
}


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
@pytest.mark.parametrize("shape", [(9, 300), (4, 3, 5, 5), (3, 0), (0, 4)])
def test_the_kernel_rounds_as_torch_does(shape, bits):
    """Halves too, which a product with the inverse of the step may miss; and numbers below the normal ones."""
    largest = 2 ** (bits - 1) - 1
    weight = torch.randn(shape)
    if weight.numel():
        weight[0] = torch.randint(-2 * largest, 2 * largest + 1, shape[1:]) * 0.05
        weight[0].view(-1)[0] = 2 * largest * 0.05
        weight[1] = 0
        weight[2] *= 1e-44
    image = weight.dim() == 4
    for w in (weight, weight.to(memory_format=torch.channels_last) if image else weight.t().clone().t()):
        q, step = torch.ops.tandem.quantise(w, bits)
        peak = w.abs().flatten(1).amax(1) if w[:1].numel() else w.new_zeros(len(w))
        shares = torch.tensor([[1], [0.75], [0.5], [0.375], [0.25]] if bits <= 3 else [[1]])
        assert (step == shares * torch.where(peak / largest == 0, 1.0, peak / largest)).any(0).all()
        quotient = w / over_inputs(step, w)
        assert torch.equal(q.float(), quotient.round().clamp(-largest, largest))
        assert w.dim() == 2 or q.stride() == w.stride()


@pytest.mark.parametrize("bits", [2, 3])
def test_a_large_weight_does_not_round_the_others_to_zero(bits, monkeypatch):
    """The step has the least squared error of five, and is the same with and without the kernel."""
    largest = 2 ** (bits - 1) - 1
    weight = torch.distributions.StudentT(3.0).sample((40, 333))
    q, step = quantise(weight, bits)
    shares = weight.abs().amax(1) / largest * torch.tensor([[1], [0.75], [0.5], [0.375], [0.25]])
    rounded = (weight / shares.unsqueeze(-1)).round().clamp(-largest, largest) * shares.unsqueeze(-1)
    errors = (rounded - weight).square().sum(-1)
    assert ((q * step[:, None] - weight).square().sum(-1) <= errors.amin(0) * 1.001).all()
    assert errors.amin(0).sum() < 0.8 * errors[0].sum()
    grid, same = quantise(q * step[:, None], bits)
    assert torch.equal(grid, q)
    torch.testing.assert_close(same, step)
    monkeypatch.setattr("tandem_snn.nn.quantise._has_kernel", lambda weight: False)
    for ours, theirs in zip((q, step), quantise(weight, bits), strict=True):
        assert torch.equal(ours, theirs)


def test_weights_that_are_no_numbers_make_the_step_none():
    weight = torch.ones(3, 20)
    weight[0, 3], weight[1, 4] = torch.nan, -torch.inf
    assert quantise(weight, 2)[1][:2].isfinite().logical_not().all()
    q, step = torch.ops.tandem.quantise(weight, 8)
    assert step.isnan().tolist() == [True, False, False]
    assert step[1].isinf()
    assert q[2].eq(127).all()
    layer = tnn.Linear(20, 3, weight_bits=8).eval()
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.zero_()
        train = layer(te.SpikeTrain.from_dense(torch.ones(8, 2, 20)))
    assert train.planes[0, :, 2].eq(255).all()
    assert train.bad.isnan().all()


@pytest.mark.parametrize("bits", [4, 8])
def test_freezing_rounds_as_training_does(bits):
    net, plain = create(tnn, "cnn", **OPTIONS, weight_bits=bits), create(tnn, "cnn", **OPTIONS).eval()
    x = torch.randn(16, 3, 8, 8)
    settled(net, x)
    frozen, expected = assert_frozen_is(net.eval(), x), net(x)
    plain.load_state_dict(net.state_dict())
    assert torch.equal(freeze(plain, weight_bits=bits)(x), expected)
    assert not torch.equal(plain(x), expected)
    assert torch.equal(freeze(frozen.net)(x), expected)
    assert torch.equal(copy.deepcopy(net)(x), expected)
    double = copy.deepcopy(net).double()
    assert torch.equal(freeze(double)(x.double()), double(x.double()))
    layers = [m for m in frozen.net.modules() if isinstance(m, tnn.SpikingLayer | tnn.Readout)]
    assert len(frozen.grids) == len(layers)
    assert all(len(row.unique()) <= 2**bits - 1 for grid in frozen.grids.values() for row in grid.q.flatten(1))


def few_bits(name, bits, **options):
    """A layer whose weights are not on their grid, of steps that are powers of two; with dyadic biases."""
    cls, features, kernel = LAYERS[name]
    layer = cls(5, 7, *kernel, weight_bits=bits, **options)
    largest = 2 ** (bits - 1) - 1
    with torch.no_grad():
        q = torch.randint(-largest, largest + 1, layer.weight.shape).float()
        q.view(7, -1)[:, 0] = largest
        q.view(7, -1)[:, 1:] += torch.rand_like(q.view(7, -1)[:, 1:]) * 0.2 - 0.1
        step = 2.0 ** (torch.randint(-3, 0, (7,)) - bits + 2)
        layer.weight.copy_(q.clamp(-largest, largest) * over_inputs(step, q))
        layer.bias.copy_(dyadic(7))
    expected, found = quantise(layer.weight.detach(), bits)
    assert torch.equal(found, step)
    assert not torch.equal(expected * over_inputs(step, q), layer.weight)
    return layer, features, expected.requires_grad_(), step


def gradients(train, of):
    torch.manual_seed(1)
    return torch.autograd.grad((train.counts * dyadic(*train.shape)).sum(), of)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("bits", "norm"), [(2, False), (4, False), (8, False), (4, True)])
@pytest.mark.parametrize("kind", ["train", "constant"])
def test_training_is_the_reference(name, bits, norm, kind):
    """Integers are multiplied, the weights get the gradient of step·q; without batch norm it is bit for bit."""
    options = {"threshold": 1.0, "gate": "relu"} if norm else {"threshold": 0.25, "leak": 0.5, "gate": "relu"}
    layer, features, q, step = few_bits(name, bits, norm=norm, **options)
    x = train_with_edge(8, 4, *features, gain=0.5)
    x = x if kind == "train" else te.ConstantInput(dyadic(4, *features, low=0).requires_grad_(), 8, 0.5)
    if norm:
        affine = layer.bias.detach(), layer.norm.weight.detach(), layer.norm.bias.detach()
        expected, mean, var = te.reference.bn_if(x, q, *affine, eps=layer.norm.eps, step=step)
    else:
        expected = getattr(te.reference, f"{name}_if")(x, q, layer.bias.detach(), step=step, **options)
    actual, leaf = layer(x), x.counts if kind == "train" else x.x
    assert torch.equal(actual.planes, expected.planes)
    assert 0.02 < actual.counts.mean() / 8 < 0.95
    ours, (of_q, of_x) = gradients(actual, [layer.weight, leaf]), gradients(expected, [q, leaf])
    assert of_q.abs().sum() > 0
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if norm else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(ours[0], of_q / over_inputs(step, q), **tolerance)
    torch.testing.assert_close(ours[1], of_x, rtol=1e-3, atol=1e-4)
    if norm:
        torch.testing.assert_close(layer.norm.running_mean, 0.1 * mean)
        n = actual.shape.numel() // 7
        torch.testing.assert_close(layer.norm.running_var, 0.9 + 0.1 * var * n / (n - 1))
    else:
        with torch.no_grad():
            assert torch.equal(layer.eval()(x).planes, expected.planes)


def test_in_evaluation_the_step_is_a_part_of_the_scale():
    layer, features, q, step = few_bits("linear", 4, norm=True, threshold=1.0, gain=1.0)
    layer.eval()
    with torch.no_grad():
        layer.norm.running_mean.copy_(dyadic(7))
        layer.norm.running_var.fill_(4.0)
    norm, x = layer.norm, train(8, 3, *features)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    folded = {"scale": scale, "shift": norm.bias - norm.running_mean * scale, "step": step}
    (stage,) = lower(layer).stages
    with torch.no_grad():
        assert torch.equal(layer(x).planes, te.reference.linear_if(x, q, layer.bias, **folded).planes)
        assert torch.equal(stage.scale, scale * step)
        assert torch.equal(stage.shift, scale * layer.bias + folded["shift"])
        assert torch.equal(stage.weight, q.to(torch.int8))
