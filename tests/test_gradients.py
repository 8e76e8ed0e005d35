"""Gradients are those of the ANN at the real counts, by torch alone; what has none; what is refused.

Any layer with any arguments: test_functional.py, against the reference.
"""

import pytest
import torch
import torch.nn.functional as F
from cases import dyadic, train, train_with_edge

import tandem_ext as te

f = te.functional


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


def test_gradient_of_currents_is_a_view():
    currents = leaf(torch.randn(8, 3, 5))
    (grad,) = torch.autograd.grad(f.if_scan(currents).counts.sum(), currents)
    assert grad.stride(0) == 0


def first(loss, x):
    return torch.autograd.grad(loss(x), x, create_graph=True)[0]


SECOND = {
    "backward": lambda loss, x, weight: first(loss, x).sum().backward(),
    "autograd.grad": lambda loss, x, weight: torch.autograd.grad(first(loss, x).square().sum(), weight),
    "func.grad": lambda loss, x, _: torch.func.grad(lambda x: torch.func.grad(loss)(x).square().sum())(x.detach()),
    "jacrev": lambda loss, x, weight: torch.func.jacrev(torch.func.jacrev(loss))(x.detach()),
    "hessian": lambda loss, x, weight: torch.autograd.functional.hessian(loss, x.detach()),
}


@pytest.mark.parametrize("ask", SECOND.values(), ids=SECOND)
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


FORWARD = {
    "jvp": lambda function, at: torch.func.jvp(function, (at,), (torch.ones_like(at),)),
    "jacfwd": lambda function, at: torch.func.jacfwd(function)(at),
    "dual numbers": dual,  # which need not require a gradient
}


@pytest.mark.parametrize("ask", FORWARD.values(), ids=FORWARD)
def test_forward_mode_is_refused(ask):
    x = train(8, 3, 7)
    for function, at in (
        (lambda weight: f.linear_if(x, weight).counts, dyadic(5, 7)),
        (lambda weight: f.bn_if(x, weight)[0].counts, dyadic(5, 7)),
        (lambda z: f.couple(x, z).counts, dyadic(3, 7)),
    ):
        with pytest.raises(NotImplementedError, match=r"forward-mode derivatives .* of spiking layers are not supp"):
            ask(function, at)


def test_first_derivatives_with_a_graph_are_those_without():
    weight, x = leaf(torch.randn(5, 7)), train(8, 3, 7)
    loss = lambda weight: f.linear_if(x, weight).counts.square().sum()  # noqa: E731
    (expected,) = torch.autograd.grad(loss(weight), weight)
    assert torch.equal(first(loss, weight), expected)
    assert torch.equal(torch.func.grad(loss)(weight.detach()), expected)


def test_nothing_but_counts_has_a_gradient():
    weight = leaf(torch.randn(5, 7))
    y, v = f.linear_if(train(8, 3, 7), weight, return_v=True)
    assert y.counts.requires_grad
    assert not v.requires_grad
    (y.counts.detach().sum() + weight.sum()).backward()  # unused counts are no error
