"""Layers under torch.compile, torch.export, torch.func and in files: SpikeTrain passes like a tensor."""

import io

import pytest
import torch
from cases import assert_same, bursts, dyadic, spikes, train, train_with_edge
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, vmap

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_ext.functional.layer import window_product
from tandem_ext.functional.products import convolution

f = te.functional


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


def network(dense, w1, w2, w3, bias, theta, gain):
    """A bit of everything, from dense spikes to a tensor."""
    x = te.SpikeTrain.from_dense(dense, gain)
    x = f.linear_if(x, w1, bias, threshold=theta)
    x, v = f.linear_if(x, w2, residual=x, gate="clip", return_v=True)
    x, u = f.linear_if(x, w2, residual=x, return_v=True, timing="window")
    x = f.linear_if(x, w2, residual=x)  # which reads bursts
    x, *_ = f.linear_bn_if(x, w2, timing="window")
    x, mean, _ = f.linear_bn_if(x, w3)
    return x.counts, v, u, mean, x.to_dense()


def arguments():
    return [leaf.requires_grad_() for leaf in (
        spikes(8, 4, 12), dyadic(10, 12), dyadic(10, 10), dyadic(5, 10), dyadic(10), torch.tensor(1.25),
        torch.tensor(0.5),
    )]  # fmt: skip


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_forward_and_backward(backend):
    inputs = arguments()
    results = []
    for function in (network, torch.compile(network, fullgraph=True, backend=backend)):
        counts, *others = function(*inputs)
        grads = torch.autograd.grad((counts * torch.arange(5)).sum(), inputs)
        results.append([counts.detach(), *others, *grads])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("timing", ["step", "window"])
def test_layers_that_share_a_tensor_of_thresholds_compile(timing):
    options = {"threshold": torch.nn.Parameter(torch.tensor([0.25, 0.5, 1.0, 2.0])), "gain": "threshold"}
    layers = [tnn.Linear(4, 4, timing=timing, **options) for _ in range(3)]
    net = torch.nn.Sequential(tnn.Encoder(8), *layers[:2], tnn.Residual(layers[2]), tnn.Readout(4, 2))
    x, results = torch.rand(5, 4), []
    for function in (net, torch.compile(net, fullgraph=True, backend="aot_eager")):
        answer = function(x)
        results.append([answer.detach(), *torch.autograd.grad(answer.square().sum(), net.parameters())])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def conv_network(x, w1, w2):
    y = f.conv2d_if(x, w1, stride=2, padding=1)
    y = f.conv2d_if(y, w2, padding="same", residual=y)
    return f.if_scan(y.to_dense())


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("make", [lambda: train(8, 2, 3, 6, 6), lambda: te.ConstantInput(dyadic(2, 3, 6, 6), 8)],
                         ids=["train", "constant"])  # fmt: skip
def test_compile_trains_in_and_out(backend, make):
    x, w1, w2 = make(), dyadic(4, 3, 3, 3), dyadic(4, 4, 3, 3)
    compiled = torch.compile(conv_network, fullgraph=True, backend=backend)
    with torch.no_grad():
        expected, actual = conv_network(x, w1, w2), compiled(x, w1, w2)
    assert_same(actual, expected)
    assert actual.planes.stride() == expected.planes.stride()


class Layer(torch.nn.Module):
    def __init__(self, timing):
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(dyadic(5, 7)), torch.nn.Parameter(dyadic(5))
        self.timing = timing

    def forward(self, x):
        return f.linear_if(x, self.weight, self.bias, timing=self.timing)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("timing", "make"), [("step", train), ("window", bursts)])
def test_export_save_load(strict, dynamic, timing, make):
    module, x = Layer(timing), make(20, 3, 7)
    shapes = {"x": [{1: torch.export.Dim("B", min=2, max=64)}]} if dynamic else None
    with torch.no_grad():
        program = torch.export.export(module, (x,), strict=strict, dynamic_shapes=shapes)
    calls = [node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    start = [torch.ops.aten.full.default] if timing == "window" else []  # of the potential, ϑ/2
    assert calls == [*start, torch.ops.tandem.linear_if.default]
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch in (3, 8) if dynamic else (3,):
        y = make(20, batch, 7)
        assert_same(loaded(y), module(y))
    with pytest.raises(ValueError, match="spec"):
        loaded((bursts if timing == "step" else train)(20, 3, 7))  # a program is for the form that it has seen


def test_fake_and_meta_tensors_are_not_read():
    for context, options in ((FakeTensorMode(), {}), (torch.no_grad(), {"device": "meta"})):
        with context:
            x = te.SpikeTrain(torch.empty(1, 4, 7, dtype=torch.uint8, **options), 7)
            weight, theta = torch.empty(5, 7, **options), torch.empty(5, **options)
            assert f.linear_if(x, weight, threshold=theta, v_init=theta).counts.shape == (4, 5)
            assert te.SpikeTrain.from_dense(torch.empty(8, 4, 7, **options)).shape == (4, 7)


def loss(weight, planes, bias=None, T=8):
    hidden = f.linear_if(te.SpikeTrain(planes, T), weight, bias, gate="clip")
    hidden = f.linear_if(te.SpikeTrain.from_counts(hidden.counts, T), torch.eye(len(weight)), timing="window")
    y = f.linear_if(hidden, torch.ones(5, len(weight)) / 4)
    return (y.counts * torch.arange(5)).sum()


def loss_grad(weight, planes, *args):
    leaf = weight.clone().requires_grad_()
    (result,) = torch.autograd.grad(loss(leaf, planes, *args), leaf)
    return result


@pytest.mark.parametrize("N", [8, 7])  # with and without a mask of whole bytes
@pytest.mark.parametrize("B", [1, 3])
def test_per_sample_gradients(N, B):
    weight, planes = dyadic(N, 12), train(8, 4 * B, 12).planes.view(1, 4, B, 12)
    expected = torch.stack([loss_grad(weight, planes[:, i]) for i in range(4)])
    assert torch.equal(vmap(grad(loss), in_dims=(None, 1))(weight, planes), expected)
    assert torch.equal(grad(lambda w: vmap(loss, in_dims=(None, 1))(w, planes).sum())(weight), expected.sum(0))


def test_vmap_over_weights_and_vectors():
    weights, biases, planes = dyadic(4, 8, 12), dyadic(4, 8), train(8, 3, 12).planes
    expected = torch.stack([loss_grad(w, planes, b) for w, b in zip(weights, biases, strict=True)])
    assert torch.equal(vmap(grad(loss), in_dims=(0, None, 0))(weights, planes, biases), expected)


@pytest.mark.parametrize("channels", [8, 5])
def test_vmap_of_every_layer(channels):
    x = train(8, 6, channels, 6, 6).planes.view(1, 3, 2, channels, 6, 6)
    r = dyadic(3, 8, 2, channels, 6, 6)
    weight, v_init = dyadic(channels, channels, 3, 3), dyadic(2, channels, 6, 6)
    w = weight.clone().requires_grad_()
    image, counts = dyadic(3, 2, channels, 6, 6), torch.randint(9, (3, 2, channels, 6, 6))

    def conv(planes, residual):
        y, v = f.conv2d_if(te.SpikeTrain(planes, 8), w, padding=1, residual=residual, return_v=True)
        return y.planes, y.counts, v

    layers = [
        (conv, (x, r), (1, 0)),
        (lambda p: f.conv2d_if(te.SpikeTrain(p, 8), weight, padding=1, v_init=v_init).counts, (x,), 1),
        (lambda p: f.conv2d_bn_if(te.SpikeTrain(p, 8), weight)[0].counts, (x,), 1),
        (lambda c: f.if_scan(c, residual=te.SpikeTrain(x[:, 0], 8)).counts, (r,), 0),
        (lambda a: f.conv2d_if(te.ConstantInput(a, 8), weight, padding=1).counts, (image,), 0),
        (lambda a: f.if_scan(te.ImpulseInput(a, 8)).planes, (image,), 0),
        (lambda p: window_product(te.SpikeTrain(p, 8), w, convolution((3, 3), 2, 1, 1, 1)), (x,), 1),
        (lambda p: te.SpikeTrain(p, 8).to_dense(), (x,), 1),
        (lambda c: f.conv2d_if(te.SpikeTrain.from_counts(c, 8), weight, timing="window").counts, (counts,), 0),
        (lambda c: f.conv2d_if(te.SpikeTrain.from_counts(c, 8), weight).planes, (counts,), 0),
        (lambda s: te.SpikeTrain.from_dense(s).planes, (spikes(8, 2, 3, 5, 5),), 2),
    ]  # fmt: skip
    for layer, inputs, in_dims in layers:
        dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(inputs)
        mapped = vmap(layer, in_dims=dims)(*inputs)
        size = inputs[0].shape[dims[0]]
        single = [layer(*(t.select(d, i) for t, d in zip(inputs, dims, strict=True))) for i in range(size)]
        if not isinstance(mapped, tuple):
            mapped, single = (mapped,), [(s,) for s in single]
        for result, expected in zip(mapped, zip(*single, strict=True), strict=True):
            assert torch.equal(result, torch.stack(expected))


def test_vmap_over_a_train():
    x, weight = te.SpikeTrain.unchecked(train(8, 6, 7).planes.view(1, 3, 2, 7), 8), dyadic(8, 7)
    dims = te.SpikeTrain.unchecked(1, 8)
    planes = vmap(lambda x: f.linear_if(x, weight).planes, in_dims=(dims,))(x)
    assert torch.equal(planes[1], f.linear_if(te.SpikeTrain(x.planes[:, 1], 8), weight).planes)


def test_torch_save_and_safe_load():
    x, file = train(9, 3, 5), io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    assert_same(torch.load(file, weights_only=True), x)


def test_torch_distributed_walks_dataclasses():
    from torch.distributed.utils import _apply_to_tensors
    from torch.nn.parallel.distributed import _find_tensors

    x = train_with_edge(9, 3, 5)
    assert_same(_apply_to_tensors(torch.clone, x), x)
    assert any(t is x.counts for t in _find_tensors(x))
