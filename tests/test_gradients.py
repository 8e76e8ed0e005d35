"""Gradients against the explicit formula of the ANN at the real counts, written out here in float64.

grad_z = grad_c · gate(z) / θ; then dW = (scale·gain·grad_z)ᵀ c, dc = scale·gain·grad_z W, dbias = Σ scale·grad_z,
dshift = Σ grad_z, dscale = Σ grad_z·(gain·W c + bias), dgain = Σ grad_z·scale·W c, dθ = -Σ grad_c·gate·count/θ; a
residual's counts get gain_r·grad_z, its gain Σ grad_z·c_r, residual currents grad_z at every step.
"""

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, dyadic, spikes, train, train_with_edge

import tandem_ext as te

f = te.functional
TOLERANCE = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 1e-5, "atol": 1e-4},
    torch.bfloat16: {"rtol": 3e-2, "atol": 0.5},
    torch.float16: {"rtol": 3e-3, "atol": 0.1},
}
PRODUCTS = {
    "linear": ((6, 11), (7, 11), F.linear, f.linear_if, f.linear_bn_if, {}),
    "conv1d": ((3, 6, 9), (8, 3, 3), F.conv1d, f.conv1d_if, f.conv1d_bn_if, {"stride": 2, "padding": 1, "groups": 2}),
    "conv2d": ((3, 5, 6, 5), (7, 5, 3, 2), F.conv2d, f.conv2d_if, f.conv2d_bn_if,
               {"stride": (1, 2), "padding": (1, 0), "dilation": (1, 2)}),
}  # fmt: skip


def leaf(tensor):
    return tensor.clone().requires_grad_()


def over_space(vector, like):
    return vector.view(-1, *[1] * (like.dim() - 2))


def channel_sum(tensor):
    return tensor.sum([d for d in range(tensor.dim()) if d != 1])


def gate_of(z, gate, theta, T):
    return (z > 0) & (z < theta * T) if gate == "clip" else z > 0


def product_gradients(product, conv, counts, weight, grad):
    """(dc, dW) of a product in float64: by hand for the matrix, by torch's own linear map for the convolution."""
    counts, weight = leaf(counts.double()), leaf(weight.double())
    if not conv:
        return grad @ weight.detach(), grad.T @ counts.detach()
    return torch.autograd.grad(product(counts, weight, **conv), (counts, weight), grad)


@pytest.mark.parametrize("name", list(PRODUCTS))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate", ["relu", "clip", "resu"])
def test_product_layer(name, dtype, gate, device):
    T, (x_shape, weight_shape, product, layer, _, conv) = 8, PRODUCTS[name]
    C = torch.float64 if dtype == torch.float64 else torch.float32
    N = weight_shape[0]
    x = train_with_edge(T, *x_shape, gain=leaf(torch.tensor(0.5, dtype=C, device=device)), dtype=dtype, device=device)
    weight = leaf(dyadic(*weight_shape, dtype=dtype, unit=16, low=-16, high=16, device=device))
    vectors = [leaf(dyadic(N, low=1, unit=16, dtype=C, device=device)) for _ in range(3)]
    bias, scale, shift = vectors
    shape = layer(x, weight, **conv).shape
    r = train_with_edge(T, *shape, gain=leaf(torch.tensor(0.25, dtype=C, device=device)), dtype=dtype, device=device)
    theta = leaf(torch.tensor([0.5, 1.0, 2.0, 4.0] * 2, dtype=C, device=device)[:N])
    grad = dyadic(*shape, low=-8, high=8, unit=8, dtype=dtype, device=device)

    y = layer(x, weight, bias, **conv, scale=scale, shift=shift, residual=r, threshold=theta, gate=gate)
    y.counts.backward(grad)

    c = x.counts.detach().double()
    wide = {key: over_space(v.detach().double(), grad) for key, v in
            {"bias": bias, "scale": scale, "shift": shift, "theta": theta}.items()}  # fmt: skip
    Wc = product(c, weight.detach().double(), **conv)
    z = wide["scale"] * (0.5 * Wc + wide["bias"]) + wide["shift"] + 0.25 * r.counts.detach()
    gated = grad.double() * gate_of(z, gate, wide["theta"], T)
    grad_z = gated / wide["theta"]
    dc, dW = product_gradients(product, conv, c, weight.detach(), 0.5 * wide["scale"] * grad_z)

    def check(actual, expected):
        torch.testing.assert_close(actual.double(), expected, **TOLERANCE[dtype])

    assert 0.1 < gate_of(z, gate, wide["theta"], T).double().mean() < 0.9
    check(x.counts.grad, dc)
    check(weight.grad, dW)
    check(bias.grad, channel_sum(wide["scale"] * grad_z))
    check(shift.grad, channel_sum(grad_z))
    check(scale.grad, channel_sum(grad_z * (0.5 * Wc + wide["bias"])))
    check(x.gain.grad, (grad_z * wide["scale"] * Wc).sum())
    check(theta.grad, -channel_sum(gated * y.counts.detach().double() / wide["theta"]))
    check(r.counts.grad, 0.25 * grad_z)
    check(r.gain.grad, (grad_z * r.counts.detach()).sum())
    assert (weight.grad.dtype, bias.grad.dtype, x.counts.grad.dtype) == (dtype, C, dtype)


@pytest.mark.parametrize("name", list(PRODUCTS))
def test_plain_layer_and_residual_currents(name, device):
    T, (x_shape, weight_shape, product, layer, _, conv) = 8, PRODUCTS[name]
    x = train_with_edge(T, *x_shape, dtype=torch.float64, device=device)
    weight = leaf(dyadic(*weight_shape, dtype=torch.float64, device=device))
    shape = layer(x, weight, **conv).shape
    currents, grad = leaf(dyadic(T, *shape, dtype=torch.float64, device=device)), dyadic(*shape, device=device).double()
    layer(x, weight, **conv, residual=currents, threshold=0.5).counts.backward(grad)
    z = product(x.counts.detach(), weight.detach(), **conv) + currents.detach().sum(0)
    grad_z = grad * (z > 0) / 0.5
    dc, dW = product_gradients(product, conv, x.counts.detach(), weight.detach(), grad_z)
    torch.testing.assert_close(x.counts.grad, dc)
    torch.testing.assert_close(weight.grad, dW)
    assert all(torch.equal(step, grad_z) for step in currents.grad)


def spiking(v):
    return te.SpikeTrain(v["planes"], 8, v["counts"], v["gain"])


def constant(v):
    return te.ConstantInput(v["counts"], 8, v["gain"])


# By name: the layer, seven neurons of it, and the arguments that a gradient flows to.
LAYERS = {
    "linear": (lambda v, **k: f.linear_if(spiking(v), v["weight"], v["bias"], scale=v["scale"], shift=v["shift"], **k),
               {"weight", "counts", "gain", "bias", "scale", "shift"}),
    "scan": (lambda v, **k: f.if_scan(v["currents"], scale=v["scale"], shift=v["shift"], **k),
             {"currents", "scale", "shift"}),
    "direct": (lambda v, **k: f.linear_if(constant(v), v["weight"], v["bias"], scale=v["scale"], **k),
               {"weight", "counts", "gain", "bias", "scale"}),
    "norm": (lambda v, **k: f.linear_bn_if(spiking(v), v["weight"], None, v["gamma"], v["beta"], **k)[0],
             {"weight", "counts", "gain", "gamma", "beta"}),
    "direct norm": (lambda v, **k: f.linear_bn_if(constant(v), v["weight"], None, v["gamma"], v["beta"], **k)[0],
                    {"weight", "counts", "gain", "gamma", "beta"}),
}  # fmt: skip


@pytest.mark.parametrize(("layer", "needed"), [
    (layer, needed) for layer, (_, names) in LAYERS.items()
    for needed in [*sorted(names), "theta", "residual", "residual gain"]
])  # fmt: skip
def test_each_gradient_alone(layer, needed, device):
    T, call = 8, LAYERS[layer][0]
    x, r = train(T, 6, 11, device=device), train(T, 6, 7, device=device)
    values = {
        "weight": dyadic(7, 11, device=device), "counts": x.counts, "bias": dyadic(7, device=device),
        "scale": dyadic(7, low=1, device=device), "shift": dyadic(7, device=device),
        "gain": torch.tensor(0.5, device=device), "currents": dyadic(T, 6, 7, device=device),
        "gamma": dyadic(7, low=1, device=device), "beta": dyadic(7, low=1, device=device),
        "theta": torch.rand(7, device=device) + 0.5, "residual": r.counts,
        "residual gain": torch.tensor(0.5, device=device),
    }  # fmt: skip

    def gradient(names):
        v = {key: leaf(value) if key in names else value for key, value in values.items()}
        residual = te.SpikeTrain(r.planes, T, v["residual"], v["residual gain"])
        y = call(v | {"planes": x.planes}, threshold=v["theta"], residual=residual)
        (y.counts * torch.arange(7, device=device)).sum().backward()
        return v[needed].grad

    torch.testing.assert_close(gradient([needed]), gradient(list(values)))
    assert gradient([needed]).abs().sum() > 0


@pytest.mark.parametrize("kind", ["train", "constant", "impulse"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scan(kind, dtype, device):
    T, shape = 8, (3, 5, 4)
    C = torch.float64 if dtype == torch.float64 else torch.float32
    currents = leaf(dyadic(*((T, *shape) if kind == "train" else shape), unit=16, dtype=dtype, device=device))
    scale, shift = (leaf(dyadic(5, low=1, unit=16, dtype=C, device=device)) for _ in range(2))
    theta, gain = (leaf(torch.tensor(0.5, dtype=C, device=device)) for _ in range(2))
    grad = dyadic(*shape, low=-8, high=8, unit=8, dtype=dtype, device=device)
    if kind == "train":
        y = f.if_scan(currents, scale=scale, shift=shift, threshold=theta)
    else:
        cls = te.ConstantInput if kind == "constant" else te.ImpulseInput
        y = f.if_scan(cls(currents, T, gain), scale=scale, shift=shift, threshold=theta)
    y.counts.backward(grad)

    window = {"train": 1, "constant": T, "impulse": 1}[kind]
    worth = 1.0 if kind == "train" else 0.5
    total = currents.detach().double()
    total = total.sum(0) if kind == "train" else window * total
    s, k = (over_space(v.detach().double(), grad) for v in (scale, shift))
    gated = grad.double() * (worth * s * total + k > 0)
    grad_z = gated / 0.5

    def check(actual, expected):
        torch.testing.assert_close(actual.double(), expected.expand_as(actual), **TOLERANCE[dtype])

    check(currents.grad, window * worth * s * grad_z)
    check(scale.grad, channel_sum(grad_z * worth * total))
    check(shift.grad, channel_sum(grad_z))
    check(theta.grad, -(gated * y.counts.detach().double()).sum() / 0.5)
    if kind != "train":
        check(gain.grad, (grad_z * s * total).sum())


def test_gradient_of_currents_is_a_view():
    currents = leaf(torch.randn(8, 3, 5))
    (grad,) = torch.autograd.grad(f.if_scan(currents).counts.sum(), currents)
    assert grad.stride(0) == 0


@pytest.mark.parametrize("name", list(PRODUCTS))
@pytest.mark.parametrize("kind", ["train", "constant", "impulse"])
@pytest.mark.parametrize("gate", ["relu", "clip"])
def test_batch_norm(name, kind, gate, device):
    """The explicit backward pass of batch norm: with x̂ and n values per channel,
    du = γ·rstd·(grad_z - Σ grad_z/n - x̂·Σ(grad_z·x̂)/n)."""
    T, (x_shape, weight_shape, product, _, layer, conv) = 8, PRODUCTS[name]
    N, D = weight_shape[0], torch.float64
    gain = leaf(torch.tensor(0.5, dtype=D, device=device))
    weight = leaf(dyadic(*weight_shape, dtype=D, device=device))
    gamma, beta = leaf(dyadic(N, low=1, dtype=D, device=device)), leaf(dyadic(N, dtype=D, device=device))
    if kind == "train":
        x = train_with_edge(T, *x_shape, gain=gain, dtype=D, device=device)
        source, c = x.counts, x.counts.detach()
    else:
        source = leaf(dyadic(*x_shape, dtype=D, device=device))
        x = (te.ConstantInput if kind == "constant" else te.ImpulseInput)(source, T, gain)
        c = x.counts.detach()
    arguments = {**conv, "gamma": gamma, "beta": beta, "eps": 0.25, "gate": gate}
    shape = layer(x, weight, **arguments)[0].shape
    r = train_with_edge(T, *shape, gain=leaf(torch.tensor(0.25, dtype=D, device=device)), dtype=D, device=device)
    theta = leaf(torch.tensor([0.5, 1.0, 2.0, 4.0] * 2, dtype=D, device=device)[:N])
    grad = dyadic(*shape, dtype=D, device=device)
    y, _, _ = layer(x, weight, **arguments, residual=r, threshold=theta)
    y.counts.backward(grad)

    u = product(c, weight.detach(), **conv)
    n = u.numel() / N
    mean = channel_sum(0.5 * u) / n
    var = channel_sum((0.5 * u - over_space(mean, u)) ** 2) / n
    rstd, g, b, th = (over_space(v.detach(), u) for v in (1 / (var + 0.25).sqrt(), gamma, beta, theta))
    xhat = (0.5 * u - over_space(mean, u)) * rstd
    z = g * xhat + b + 0.25 * r.counts.detach()
    gated = grad * gate_of(z, gate, th, T)
    grad_z = gated / th
    centre = over_space(channel_sum(grad_z), u) / n + xhat * over_space(channel_sum(grad_z * xhat), u) / n
    grad_normed = g * rstd * (grad_z - centre)  # of gain·u
    dc, dW = product_gradients(product, conv, c, weight.detach(), 0.5 * grad_normed)

    def check(actual, expected):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)

    check(source.grad, dc * (T if kind == "constant" else 1))
    check(weight.grad, dW)
    check(gamma.grad, channel_sum(grad_z * xhat))
    check(beta.grad, channel_sum(grad_z))
    check(gain.grad, (grad_normed * u).sum())
    check(theta.grad, -channel_sum(gated * y.counts.detach() / th))
    check(r.counts.grad, 0.25 * grad_z)
    check(r.gain.grad, (grad_z * r.counts.detach()).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_norm_in_low_precision(dtype, device):
    x = train_with_edge(8, 32, 11, dtype=dtype, device=device)
    exact = te.SpikeTrain(x.planes, 8, x.counts.detach().double().requires_grad_())
    weight = leaf(dyadic(7, 11, dtype=dtype, device=device))
    wide = leaf(weight.detach().double())
    grad = dyadic(32, 7, dtype=dtype, device=device)
    f.linear_bn_if(x, weight)[0].counts.backward(grad)
    f.linear_bn_if(exact, wide)[0].counts.backward(grad.double())
    torch.testing.assert_close(weight.grad.double(), wide.grad, **TOLERANCE[dtype])
    torch.testing.assert_close(x.counts.grad.double(), exact.counts.grad, **TOLERANCE[dtype])


def test_two_layers_and_dense_spikes(device):
    """The second layer's gradient is taken at the first one's real counts."""
    dense = leaf(spikes(8, 6, 11, device=device).double())
    a, b = leaf(dyadic(7, 11, device=device).double()), leaf(dyadic(5, 7, device=device).double())
    hidden = f.linear_if(te.SpikeTrain.from_dense(dense), a)
    y = f.linear_if(hidden, b, threshold=0.5)
    grad = dyadic(6, 5, device=device).double()
    y.counts.backward(grad)
    c0, c1 = dense.detach().sum(0), hidden.counts.detach()
    grad_2 = grad * (c1 @ b.detach().T > 0) / 0.5
    grad_1 = grad_2 @ b.detach() * (c0 @ a.detach().T > 0)
    torch.testing.assert_close(b.grad, grad_2.T @ c1)
    torch.testing.assert_close(a.grad, grad_1.T @ c0)
    assert all(torch.equal(step, dense.grad[0]) for step in dense.grad)
    torch.testing.assert_close(dense.grad[0], grad_1 @ a.detach())


def test_the_reference_has_the_same_gradients():
    """So that either may check the other: everything at once, in float64."""
    torch.manual_seed(1)
    x = train_with_edge(9, 2, 3, 6, 5, gain=leaf(torch.tensor(0.5, dtype=torch.float64)), dtype=torch.float64)
    inputs = [leaf(dyadic(4, 3, 3, 3).double()), leaf(dyadic(4).double()), leaf(dyadic(4, low=1).double())]
    theta = leaf(torch.rand(4, dtype=torch.float64) + 0.5)
    layer = [r.conv2d_if(x, *inputs[:2], scale=inputs[2], threshold=theta, padding=1) for r in (te.reference, f)]
    grads = [torch.autograd.grad(y.counts.sum(), [x.counts, x.gain, *inputs, theta]) for y in layer]
    for actual, expected in zip(*grads, strict=True):
        torch.testing.assert_close(actual, expected)


def second_by_backward(loss, x, weight):
    (grad,) = torch.autograd.grad(loss(x), x, create_graph=True)
    grad.sum().backward()


def second_by_grad(loss, x, weight):
    (grad,) = torch.autograd.grad(loss(x), x, create_graph=True)
    torch.autograd.grad(grad.square().sum(), weight)


def second_by_nested_grads(loss, x, weight):
    torch.func.grad(lambda x: torch.func.grad(loss)(x).square().sum())(x.detach())


SECOND = {
    "backward": second_by_backward,
    "autograd.grad": second_by_grad,
    "func.grad": second_by_nested_grads,
    "jacrev": lambda loss, x, weight: torch.func.jacrev(torch.func.jacrev(loss))(x.detach()),
    "hessian": lambda loss, x, weight: torch.autograd.functional.hessian(loss, x.detach()),
}


@pytest.mark.parametrize("ask", SECOND.values(), ids=SECOND)
def test_second_derivatives_are_refused(ask):
    """torch alone gives zeros, or what is left without a layer's own part."""
    torch.manual_seed(0)
    x, weights = leaf(torch.rand(3, 7)), [leaf(torch.randn(5, 7)), leaf(torch.randn(5, 5))]
    norm = {"gamma": leaf(torch.ones(5)), "beta": leaf(torch.zeros(5))}

    def linear(x):
        return f.linear_if(f.linear_if(te.ConstantInput(x, 8), weights[0]), weights[1]).counts.square().sum()

    def normed(x):
        return f.linear_bn_if(te.ConstantInput(x, 8), weights[0], **norm)[0].counts.square().sum()

    def coupled(x):
        z = x @ weights[0].T
        return f.couple(train(8, 3, 5), z).counts.pow(3).sum()

    for loss in (linear, normed, coupled):
        with pytest.raises(RuntimeError, match="second derivatives of spiking layers are not supported"):
            ask(loss, x, weights[0])


def _dual(function, at):
    with torch.autograd.forward_ad.dual_level():
        return function(torch.autograd.forward_ad.make_dual(at, torch.ones_like(at)))


FORWARD = {
    "jvp": lambda function, at: torch.func.jvp(function, (at,), (torch.ones_like(at),)),
    "jacfwd": lambda function, at: torch.func.jacfwd(function)(at),
    "dual numbers": _dual,  # which need not require a gradient
}


@pytest.mark.parametrize("ask", FORWARD.values(), ids=FORWARD)
def test_forward_mode_is_refused(ask):
    x = train(8, 3, 7)
    for function, at in (
        (lambda weight: f.linear_if(x, weight).counts, dyadic(5, 7)),
        (lambda weight: f.linear_bn_if(x, weight)[0].counts, dyadic(5, 7)),
        (lambda z: f.couple(x, z).counts, dyadic(3, 7)),
    ):
        with pytest.raises(
            NotImplementedError, match=r"forward-mode derivatives .* of spiking layers are not supported"
        ):
            ask(function, at)


def test_first_derivatives_with_a_graph_are_those_without():
    weight = leaf(torch.randn(5, 7))
    x = train(8, 3, 7)

    def loss(weight):
        return f.linear_if(x, weight).counts.square().sum()

    (expected,) = torch.autograd.grad(loss(weight), weight)
    (grad,) = torch.autograd.grad(loss(weight), weight, create_graph=True)
    assert torch.equal(grad, expected)
    assert torch.equal(torch.func.grad(loss)(weight.detach()), expected)


def test_nothing_but_counts_has_a_gradient():
    y, v = f.linear_if(train(8, 3, 7), leaf(torch.randn(5, 7)), return_v=True)
    assert y.counts.requires_grad
    assert not v.requires_grad


def test_unused_counts():
    weight = leaf(torch.randn(5, 7))
    y = f.linear_if(train(8, 3, 7), weight)
    (y.counts.detach().sum() + weight.sum()).backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


@pytest.mark.parametrize("norm", [False, True])
def test_activation_checkpointing_changes_nothing(norm):
    x = te.SpikeTrain.from_dense(torch.rand(8, 5, 12).lt(0.4).float())
    theta = torch.full((), 0.75, requires_grad=True)
    weights = [torch.randn(12, 12, requires_grad=True) for _ in range(2)]

    def layers(planes):
        train = te.SpikeTrain(planes, 8)
        for weight in weights:
            if norm:
                train, *_ = te.functional.linear_bn_if(train, weight, residual=train, threshold=theta)
            else:
                train = te.functional.linear_if(train, weight, residual=train, threshold=theta)
        return train.counts

    expected = torch.autograd.grad(layers(x.planes).square().sum(), [*weights, theta])
    counts = torch.utils.checkpoint.checkpoint(layers, x.planes, use_reentrant=False)
    for got, want in zip(torch.autograd.grad(counts.square().sum(), [*weights, theta]), expected, strict=True):
        assert torch.equal(got, want)
