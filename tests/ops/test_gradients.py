"""Gradients are those of the ANN at the real counts, by torch alone; what has none; what is refused; what a layer keeps
for them, and what counters of operations give it. Any layer with any arguments: test_functional.py.
"""

import pytest
import torch
import torch.nn.functional as F
from cases import bursts, dyadic, train, train_with_edge
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


def leaf(tensor):
    return tensor.detach().clone().requires_grad_()


@pytest.mark.parametrize("rule", [f, te.reference], ids=["functional", "reference"])
@pytest.mark.parametrize("gate", ["relu", "clip"])
@pytest.mark.parametrize("norm", [False, True])
def test_gradients_are_the_anns(rule, gate, norm, device):
    """Of Σ grad·ρ(z)/ϑ with the gate of z; the threshold's is -Σ grad·gate·count/ϑ."""
    T, N, conv, on = 8, 7, {"stride": (1, 2), "padding": (1, 0), "dilation": (1, 2)}, {"device": device}
    number = lambda value: leaf(torch.tensor(value, dtype=torch.float64, **on))  # noqa: E731
    vector = lambda: leaf(dyadic(N, low=1, dtype=torch.float64, **on))  # noqa: E731
    x = train_with_edge(T, 3, 5, 6, 5, gain=number(0.5), dtype=torch.float64, **on)
    weight, theta = leaf(dyadic(N, 5, 3, 2, dtype=torch.float64, **on)), vector()
    affine = {"scale": vector(), "shift": vector(), "bias": vector()}
    if norm:
        affine = {"gamma": vector(), "beta": leaf(-vector()), "eps": 0.25}  # with a small one the gain has no effect
    layer = rule.bn_if if norm else rule.conv2d_if
    run = lambda **more: layer(x, weight, **conv, **affine, threshold=theta, gate=gate, **more)  # noqa: E731
    shape = (run()[0] if norm else run()).shape
    r = train_with_edge(T, *shape, gain=number(0.25), dtype=torch.float64, **on)
    y = run(residual=r)[0] if norm else run(residual=r)
    direction = dyadic(*shape, dtype=torch.float64, **on)
    leaves = [x.counts, x.gain, weight, *filter(torch.is_tensor, affine.values()), r.counts, r.gain]
    *grads, of_threshold = torch.autograd.grad(y.counts, [*leaves, theta], direction)

    u = x.gain * F.conv2d(x.counts, weight, None, **conv)
    over = {key: value.view(-1, 1, 1) for key, value in (affine | {"theta": theta}).items() if key != "eps"}
    if norm:
        z = F.batch_norm(u, None, None, affine["gamma"], affine["beta"], True, eps=0.25)
    else:
        z = over["scale"] * (u + over["bias"]) + over["shift"]
    z = z + r.gain * r.counts
    gated = direction * (z > 0) * (z < over["theta"] * T if gate == "clip" else 1)
    assert 0.1 < (gated != 0).double().mean() < 0.9
    expected = torch.autograd.grad((z * gated / over["theta"].detach()).sum(), leaves)
    for got, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(of_threshold, -(gated * y.counts / over["theta"]).sum((0, 2, 3)).detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_norm_in_low_precision(dtype, device):
    tolerance = {"rtol": 3e-2, "atol": 0.5} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-4}
    x = train_with_edge(8, 32, 11, dtype=dtype, device=device)
    exact = te.SpikeTrain(x.planes, 8, x.counts.detach().double().requires_grad_())
    weight = leaf(dyadic(7, 11, dtype=dtype, device=device))
    wide = leaf(weight.detach().double())
    grad = dyadic(32, 7, dtype=dtype, device=device)
    f.bn_if(x, weight)[0].counts.backward(grad)
    f.bn_if(exact, wide)[0].counts.backward(grad.double())
    torch.testing.assert_close(weight.grad.double(), wide.grad, **tolerance)
    torch.testing.assert_close(x.counts.grad.double(), exact.counts.grad, **tolerance)


def test_sums_do_not_overflow_in_float16(device):
    """128000 - 122880 = 5120: the terms are beyond float16. Other sums in half types: test_functional.py."""
    numbers = lambda *values: torch.tensor(values, dtype=torch.float16, device=device)  # noqa: E731
    counts = lambda *shape: te.SpikeTrain.from_counts(torch.full(shape, 20, device=device), 20)  # noqa: E731
    one = lambda: leaf(torch.ones(1, device=device))  # noqa: E731
    scale, gain, theta, both = one(), leaf(numbers(1.0)), one(), numbers(1.0, -1.0)
    f.linear_if(counts(64, 2), numbers([100.0, -96.0]), scale=scale, timing="window").counts.sum().backward()
    x = te.SpikeTrain(counts(64, 1).planes, 20, gain=gain)
    f.linear_if(x, numbers([100.0], [96.0])).counts.backward(both.expand(64, 2))
    f.couple(counts(1, 2), leaf(numbers([4.0, 4.0])), threshold=theta[0]).counts.backward(numbers([6144.0, -6400.0]))
    assert scale.grad.item() == gain.grad.item() == theta.grad.item() == 5120


def first(loss, x):
    return torch.autograd.grad(loss(x), x, create_graph=True)[0]


@pytest.mark.parametrize("ask", [
    lambda loss, x, weight: first(loss, x).sum().backward(),
    lambda loss, x, weight: torch.autograd.grad(first(loss, x).square().sum(), weight),
    lambda loss, x, _: torch.func.grad(lambda x: torch.func.grad(loss)(x).square().sum())(x.detach()),
    lambda loss, x, _: torch.func.jacrev(torch.func.jacrev(loss))(x.detach()),
    lambda loss, x, _: torch.autograd.functional.hessian(loss, x.detach()),
])  # fmt: skip
def test_second_derivatives_are_refused(ask):
    """torch alone gives zeros, or what is left without a layer's own part."""
    x, weights = leaf(torch.rand(3, 7)), [leaf(torch.randn(5, 7)), leaf(torch.randn(5, 5))]
    norm = {"gamma": leaf(torch.ones(5)), "beta": leaf(torch.zeros(5))}

    for loss in (
        lambda x: f.linear_if(f.linear_if(te.ConstantInput(x, 8), weights[0]), weights[1]).counts.square().sum(),
        lambda x: f.bn_if(te.ConstantInput(x, 8), weights[0], **norm)[0].counts.square().sum(),
        lambda x: f.couple(train(8, 3, 5), x @ weights[0].T).counts.pow(3).sum(),
    ):
        with pytest.raises(RuntimeError, match="second derivatives of spiking layers are not supported"):
            ask(loss, x, weights[0])


def dual(function, at):
    with torch.autograd.forward_ad.dual_level():
        return function(torch.autograd.forward_ad.make_dual(at, torch.ones_like(at)))


@pytest.mark.parametrize("ask", [
    lambda function, at: torch.func.jvp(function, (at,), (torch.ones_like(at),)),
    lambda function, at: torch.func.jacfwd(function)(at), dual,  # which need not require a gradient
])  # fmt: skip
def test_forward_mode_is_refused(ask):
    x = train(8, 3, 7)
    for function, at in (
        (lambda weight: f.linear_if(x, weight).counts, dyadic(5, 7)),
        (lambda weight: f.bn_if(x, weight)[0].counts, dyadic(5, 7)),
        (lambda z: f.couple(x, z).counts, dyadic(3, 7)),
    ):
        with pytest.raises(NotImplementedError, match=r"forward-mode derivatives .* of spiking layers are not supp"):
            ask(function, at)


def test_first_derivatives():
    """With a graph they are those without; nothing but counts has one; that of currents is a view."""
    weight, x = leaf(torch.randn(5, 7)), train(8, 3, 7)
    loss = lambda weight: f.linear_if(x, weight).counts.square().sum()  # noqa: E731
    (expected,) = torch.autograd.grad(loss(weight), weight)
    assert torch.equal(first(loss, weight), expected)
    assert torch.equal(torch.func.grad(loss)(weight.detach()), expected)
    y, v = f.linear_if(train(8, 3, 7), weight, return_v=True)
    assert y.counts.requires_grad
    assert not v.requires_grad
    (y.counts.detach().sum() + weight.sum()).backward()  # unused counts are no error
    currents = leaf(torch.randn(8, 3, 5))
    (grad,) = torch.autograd.grad(f.if_scan(currents).counts.sum(), currents)
    assert grad.stride(0) == 0


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
    counts = layer(x, weight).counts
    nodes, attributes = [counts.grad_fn], []
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
