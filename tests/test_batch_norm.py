"""linear_bn_if, conv1d_bn_if and conv2d_bn_if against the reference: equal bits on dyadic numbers."""

import pytest
import torch
from cases import assert_same, dtypes, dyadic, neurons, seeds, train, train_with_edge
from hypothesis import given
from hypothesis import strategies as st

import tandem_ext as te

f, ref = te.functional, te.reference
LAYERS = {
    "linear": (f.linear_bn_if, ref.linear_bn_if, (6, 11), (7, 11)),
    "conv1d": (f.conv1d_bn_if, ref.conv1d_bn_if, (2, 11, 5), (7, 11, 3)),
    "conv2d": (f.conv2d_bn_if, ref.conv2d_bn_if, (2, 11, 5, 4), (7, 11, 3, 3)),
}


@given(data=st.data(), name=st.sampled_from(list(LAYERS)), T=st.sampled_from([1, 8, 9, 33]), dtype=dtypes, seed=seeds,
       affine=st.booleans(), kind=st.sampled_from(["train", "constant", "impulse"]))  # fmt: skip
def test_is_the_reference(data, name, T, dtype, seed, affine, kind, device):
    torch.manual_seed(seed)
    layer, expected_layer, shape, weight_shape = LAYERS[name]
    gain = data.draw(st.sampled_from([1.0, 0.5]))
    if kind == "train":
        x = train(T, *shape, gain=gain, device=device)
    else:
        cls = te.ConstantInput if kind == "constant" else te.ImpulseInput
        x = cls(dyadic(*shape, dtype=dtype, device=device), T, gain)
    weight, bias = dyadic(*weight_shape, dtype=dtype, device=device), dyadic(7, device=device)
    arguments = {"bias": bias, "gamma": dyadic(7, device=device), "beta": dyadic(7, device=device)} if affine else {}
    if name != "linear":
        arguments |= {"padding": 1, "stride": 2}
    shape = expected_layer(x, weight, **arguments)[0].shape
    neuron = data.draw(neurons(T, shape, dtype, device))
    arguments |= {k: v for k, v in neuron.items() if k not in ("scale", "shift")}
    expected = expected_layer(x, weight, **arguments)
    with torch.no_grad():
        assert_same(layer(x, weight, **arguments), expected)
    assert_same(layer(x, weight.requires_grad_(), **arguments), expected)


@pytest.mark.parametrize("kind", ["train", "constant"])
@pytest.mark.parametrize("name", ["conv1d", "conv2d"])
def test_padding_that_differs_from_side_to_side(name, kind, device):
    layer, expected_layer, shape, _ = LAYERS[name]
    kernel = {"conv1d": (4,), "conv2d": (3, 2)}[name]
    gain = torch.tensor(0.5, device=device)
    x = train(9, *shape, gain=gain, device=device)
    if kind == "constant":
        x = te.ConstantInput(dyadic(*shape, device=device), 8, gain)
    weight = dyadic(7, shape[1], *kernel, device=device)
    assert_same(layer(x, weight, padding="same"), expected_layer(x, weight, padding="same"))


@pytest.mark.parametrize(("T", "groups", "width"), [(8, 1, 24), (255, 1, 5), (40, 2, 12), (3, 4, 25)])
def test_many_rows_are_the_reference(T, groups, width, device):
    """So many that the sums of all steps leave the cache: their statistics come from the counts where that is cheap."""
    x = train(T, 2, 8 * groups, width, width, device=device)
    weight = dyadic(21 * groups, 8, 3, 3, device=device)
    arguments = {
        "groups": groups,
        "padding": 2,
        "dilation": 2,
        "return_v": True,
        "gamma": dyadic(21 * groups, device=device),
    }
    with torch.no_grad():
        assert_same(f.conv2d_bn_if(x, weight, **arguments), ref.conv2d_bn_if(x, weight, **arguments))


@pytest.mark.parametrize("name", list(LAYERS))
def test_gradients_are_the_references(name, device):
    layer, expected_layer, shape, weight_shape = LAYERS[name]
    x = train_with_edge(
        8, *shape, gain=torch.tensor(0.5, requires_grad=True, device=device), dtype=torch.float64, device=device
    )
    weight, *vectors = (dyadic(*s, low=1, dtype=torch.float64, device=device) for s in (weight_shape, (7,), (7,), (7,)))
    arguments = [t.requires_grad_() for t in (weight, *vectors)]
    grads = []
    for rule in (layer, expected_layer):
        weight, gamma, beta, theta = arguments
        y, *_ = rule(x, weight, None, gamma, beta, threshold=theta)
        total = (y.counts * torch.arange(y.counts.numel(), device=device).view_as(y.counts)).sum()
        grads.append(torch.autograd.grad(total, [x.counts, x.gain, *arguments]))
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
        assert want.abs().sum() > 0


def test_tensor_threshold_is_the_reference(device):
    x, weight = train(8, 6, 11, device=device), dyadic(7, 11, device=device)
    for affine in ({}, {"gamma": dyadic(7, device=device), "beta": dyadic(7, device=device)}):
        arguments = affine | {"threshold": torch.rand(7, device=device) + 0.1, "return_v": True, "v_init": 0.5}
        assert_same(f.linear_bn_if(x, weight, **arguments), ref.linear_bn_if(x, weight, **arguments))


@pytest.mark.parametrize("kind", ["train", "constant"])
def test_a_constant_channel(kind, device):
    """No variance: eps decides, and rounding must not make the variance negative."""
    weight = torch.randn(97, 11, dtype=torch.float64, device=device, requires_grad=True)
    if kind == "train":
        x = train(8, 7, 11, rate=1.0, device=device)
    else:
        x = te.ConstantInput(torch.randn(1, 11, dtype=torch.float64, device=device).expand(7, 11), 8)
    y, _, var = f.linear_bn_if(x, weight, beta=torch.full((97,), 16.0, device=device))
    assert (var >= 0).all()
    assert (y.counts == 8).all()
    y.counts.sum().backward()
    assert weight.grad.isfinite().all()


def test_autocast(device):
    x, weight = train_with_edge(8, 6, 11, device=device), torch.randn(7, 11, device=device, requires_grad=True)
    with torch.autocast(device.type, torch.bfloat16):
        y, mean, _ = f.linear_bn_if(x, weight)
    assert (y.counts.dtype, mean.dtype) == (torch.bfloat16, torch.float32)
    assert not mean.requires_grad
    y.counts.sum().backward()
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("shape", [(1, 11), (0, 11)])
def test_one_value_has_no_variance(shape):
    with pytest.raises(ValueError, match="more than one value"):
        f.linear_bn_if(train(8, *shape), dyadic(7, 11))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_have_no_variance(value, device):
    """Nor does a running statistic that takes it up, as torch's does not."""
    weight = dyadic(4, 7, device=device)
    weight[1, 2] = value
    x = te.SpikeTrain.from_dense(torch.ones(8, 5, 7, device=device))
    _, *got = te.functional.linear_bn_if(x, weight)
    _, *want = te.reference.linear_bn_if(x, weight)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
    assert got[1].isnan().tolist() == [False, True, False, False]
