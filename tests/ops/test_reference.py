"""The reference: a neuron in plain Python, laws, square roots, and the published implementation (data)."""

import itertools
import lzma
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, dyadic, train, train_with_edge
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import tandem_ext as te
from tandem_ext.rule import square_root

ref, seeds = te.reference, st.integers(0, 2**16)
with lzma.open(Path(__file__).parents[1] / "data" / "golden.npz.xz") as _file:
    GOLDEN = dict(np.load(_file))
CASES = sorted({name.split("/")[0] for name in GOLDEN})
# Squares and their neighbours; 1 - 2^-53, whose root is 2^-109 below the middle of two numbers; the ends of the range.
NEAR = [s * v for s in (0.25, 1.0, 2.0, 4.0, 9.0) for k in range(200) for v in (1 + k * 2.0**-52, 1 - k * 2.0**-53)]
ANY = torch.cat([torch.rand(20000, dtype=torch.float64) * 10.0**e for e in range(-30, 31, 10)])


def one_neuron(currents, threshold=1.0, leak=1.0, v=0.0):
    """The rule once more, for one neuron, in Python floats."""
    spikes = []
    for current in currents:
        v = v + current
        fired = v >= threshold
        v = leak * v - (threshold if fired else 0.0)
        spikes.append(float(fired))
    return spikes, v


@given(T=st.sampled_from([1, 2, 8, 33]), leak=st.sampled_from([1.0, 0.5]), dtype=st.sampled_from(DTYPES), seed=seeds)
def test_one_neuron_and_conservation(T, leak, dtype, seed):
    """θ c + v_T = v_init + Σ I: no charge is lost or made, but by a leak."""
    torch.manual_seed(seed)
    currents = dyadic(T, 3, 5, dtype=dtype if leak == 1 else torch.float64)
    result, v = ref.if_scan(currents, threshold=0.75, leak=leak, v_init=0.25, return_v=True)
    for b, n in itertools.product(range(3), range(5)):
        spikes, last = one_neuron(currents[:, b, n].tolist(), 0.75, leak, 0.25)
        assert result.to_dense()[:, b, n].tolist() == spikes
        assert v[b, n].item() == last
    if leak == 1:
        assert torch.equal(0.75 * result.counts.to(v.dtype) + v, 0.25 + currents.to(v.dtype).sum(0))


def test_currents_and_nan_that_never_fires():
    """A shift is spread over the window; spikes and residuals are worth their gain; a direct input counts T times."""
    x, weight, bias, r = train(8, 3, 7, gain=0.5), dyadic(5, 7), dyadic(5), train(8, 3, 5, gain=2.0)
    image, u = dyadic(3, 7), 0.5 * F.linear(x.counts, weight)
    for arguments, options, total in (
        ((x, weight, bias), {}, u + bias), ((x, weight, bias), {"steps": 16}, u + bias / 2),
        ((x, weight), {"residual": r}, u + 2 * r.counts),
        ((te.ConstantInput(image, 8), weight), {}, 8 * F.linear(image, weight)),
        ((te.ImpulseInput(image, 8), weight), {}, F.linear(image, weight)),
    ):  # fmt: skip
        assert torch.equal(ref.linear_if(*arguments, **options, threshold=1e9, return_v=True)[1], total)
    result = ref.if_scan(torch.tensor([math.nan, 5.0, 5.0]).view(3, 1, 1))
    assert not result.planes.any()
    assert result.counts.isnan().all()


@pytest.mark.kernels
@pytest.mark.parametrize("size", [(), (1, 1)])
def test_a_product_is_rounded_once(size):
    """An order of float32 sums loses the three ones; a GPU's fast convolutions round still more."""
    weight = torch.tensor([2.0**24, 1.0, 1.0, 1.0]).view(1, 4, *size)
    for x in te.SpikeTrain.from_dense(torch.ones(2, 1, 4, *size)), te.ConstantInput(torch.ones(1, 4, *size), 2):
        _, v = ref.linear_if(x, weight, threshold=2.0**30, return_v=True)
        assert v.item() == 2 * (2.0**24 + 4)


def test_batch_norm_is_torchs():
    x, weight, gamma, beta, bias = train(8, 16, 7, gain=0.5), dyadic(5, 7), dyadic(5, low=1), dyadic(5), dyadic(5)
    (_, v), mean, var = ref.bn_if(x, weight, bias, gamma, beta, threshold=1e9, return_v=True)
    product = 0.5 * F.linear(x.counts, weight) + bias
    torch.testing.assert_close(v, F.batch_norm(product, None, None, gamma, beta, True), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean, product.mean(0))
    torch.testing.assert_close(var, product.var(0, correction=0))


class Plain(TorchDispatchMode):
    """Refuses the extension's ops, and quotients by a Python number, which on a GPU are products: other numbers."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        assert func.namespace != "tandem", func
        assert not name.startswith("aten::mean"), "a mean is a product with the reciprocal of the size"
        if name.startswith("aten::div") and args[0].is_floating_point():
            assert isinstance(args[1], torch.Tensor), f"a quotient by the number {args[1]}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("threshold", [0.75, torch.tensor(0.75)])
def test_it_uses_no_op_of_the_extension_and_is_the_same_on_a_gpu(threshold):
    x, residual, shift = train(7, 3, 4), train(7, 3, 5), dyadic(5)
    neurons = {"shift": shift, "threshold": threshold, "v_init": 0.5, "residual": residual}
    image, weight = train_with_edge(8, 4, 3, 6, 6), dyadic(5, 3, 3, 3).requires_grad_()
    more = train(8, 4, 5, 6, 6)
    with Plain():
        ref.linear_if(x, dyadic(5, 4), dyadic(5), **neurons)
        ref.linear_if(te.ConstantInput(dyadic(4, 7), 8), dyadic(5, 7))
        ref.if_scan(dyadic(7, 3, 5), **neurons, steps=9)
        ref.bn_if(x, dyadic(5, 4), gamma=shift, beta=shift, residual=residual, threshold=threshold)
        y = ref.conv2d_if(image, weight, padding=1, residual=more)
        y, _, _ = ref.bn_if(y, dyadic(5, 5, 1, 1))
        y.counts.sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("rule", [te.functional, te.reference], ids=["functional", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_golden(case, rule, device):
    assert len(CASES) == 19
    data = {n.partition("/")[2]: torch.tensor(a, device=device) for n, a in GOLDEN.items() if n.startswith(f"{case}/")}
    weight, bias = data["weight"].requires_grad_(), data["bias"].requires_grad_()
    threshold = data["threshold"].item()
    neuron = {"threshold": threshold, "leak": data["leak"].item()}
    conv = {name: int(data[name]) for name in ("stride", "padding", "dilation") if name in data}

    if "x" in data:
        x = te.ConstantInput(data["x"], int(data["T"]))
    else:
        dense = data["spike_in"].float().transpose(0, 1).requires_grad_()  # theirs is [B, T, ...]
        x = te.SpikeTrain.from_dense(dense)
    layer = {2: rule.linear_if, 3: rule.conv1d_if, 4: rule.conv2d_if}[weight.dim()]
    train = layer(x, weight, bias, **conv, **neuron)
    train.counts.backward(data["grad_count_out"])

    assert torch.equal(train.to_dense(torch.uint8).transpose(0, 1), data["spike_out"])
    assert torch.equal(train.counts, data["count_out"])
    # The published gradients lack the factor 1/threshold. Powers of two divide exactly.
    exact = np.log2(threshold).is_integer()
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(weight.grad * threshold, data["grad_weight"], **tolerance)
    torch.testing.assert_close(bias.grad * threshold, data["grad_bias"], **tolerance)
    if "grad_count_in" in data:
        for step in dense.grad:
            torch.testing.assert_close(step * threshold, data["grad_count_in"], **tolerance)


@pytest.mark.parametrize("towards", [None, 0.0, math.inf])
@pytest.mark.parametrize("x", [ANY, ANY.float(), torch.tensor(NEAR, dtype=torch.float64)])
def test_square_roots_are_rounded_once_even_where_torchs_are_off_by_one(x, towards, monkeypatch):
    exact = torch.tensor([math.sqrt(v) for v in x.tolist()], dtype=torch.float64)
    if towards is not None:
        monkeypatch.setattr(torch.Tensor, "sqrt", lambda _: exact.nextafter(torch.full_like(exact, towards)))
    assert torch.equal(square_root(x), exact.to(x.dtype))


def test_square_roots_at_the_ends_of_the_range():
    ends = [0.0, math.inf, 1e308, 5e-324]
    assert square_root(torch.tensor(ends, dtype=torch.float64)).tolist() == [math.sqrt(v) for v in ends]
    assert square_root(torch.tensor([-1.0, math.nan], dtype=torch.float64)).isnan().all()
