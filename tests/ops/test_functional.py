"""The layers of tandem_ext.functional: results and gradients are the reference's, whatever they are given."""

from random import Random

import any_layer
import pytest
import torch
from cases import DTYPES, assert_reference, assert_same, bursts, compute_dtype, dyadic, train, train_with_edge
from hypothesis import given
from hypothesis import strategies as st

import tandem_ext as te

f, ref = te.functional, te.reference


@pytest.mark.parametrize("product", any_layer.PRODUCTS)
@given(random=st.randoms(), dtype=st.sampled_from(DTYPES))
def test_results_and_gradients_are_the_reference(product, timing, random, dtype, device):
    any_layer.check(random, product, timing, dtype, device)


def test_layers_of_practice_are_the_reference(timing, device):
    any_layer.check_practical(Random(0), timing, device=device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate", ["relu", "clip"])
@pytest.mark.parametrize("rule", [f, ref], ids=["functional", "reference"])
def test_gates_at_their_borders(rule, gate, dtype, device):
    """In every lane of a vector: z below, at and above 0 and θT, and NaN."""
    z = torch.tensor([-1.0, 0.0, 0.125, 1.875, 2.0, 8.0, float("nan")], dtype=dtype, device=device).repeat(37)
    currents = (z / 4).expand(4, 1, -1).clone().requires_grad_()
    rule.if_scan(currents, gate=gate, threshold=0.5).counts.sum().backward()
    open_ = (z > 0) & (z < 2) if gate == "clip" else z > 0
    assert torch.equal(currents.grad[0, 0], open_ / 0.5)


@pytest.mark.parametrize("T", [3, 8, 24, 100])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", [f, ref], ids=["functional", "reference"])
def test_gates_are_closed_at_an_exact_zero(rule, dtype, T, device):
    """z is scale·Σ q c + shift, from a sum of integers, not the sum of currents that were rounded at each step."""
    x, scale = train(T, 64, 40, rate=2 / T, device=device), torch.rand(72, dtype=compute_dtype(dtype), device=device)
    weight = torch.randint(-1, 2, (72, 40)).to(device, dtype).requires_grad_()
    y = rule.linear_if(x, weight, scale=scale, shift=-2 * scale)
    u = x.counts.double() @ weight.detach().double().t()
    assert (u == 2).sum() > 50
    y.counts.sum().backward()
    expected = scale.view(-1, 1) * ((u > 2).double().t() @ x.counts.double())
    torch.testing.assert_close(weight.grad, expected.to(dtype), rtol=1e-2, atol=1e-6)


@given(T=st.integers(2, 70), seed=st.integers(0, 2**16), dtype=st.sampled_from(DTYPES))
def test_currents_that_are_not_dyadic(T, seed, dtype, device):
    """With a residual and a part of the shift: neurons only add in step order, so they are the reference's, with its
    gates, bit for bit."""
    torch.manual_seed(seed)
    C = compute_dtype(dtype)
    residual = train(T, 5, 37, gain=0.3, device=device) if seed % 2 else torch.randn(T, 5, 37, dtype=C, device=device)
    x, weight = train(T, 5, 20, device=device), dyadic(37, 20, low=-2, high=2, dtype=dtype, device=device)
    scale, shift = torch.randn(2, 37, dtype=C, device=device).unbind()
    options = {"threshold": 0.7, "leak": 0.9, "v_init": 0.1, "steps": T + seed % 3, "return_v": True}
    results, grads = [], []
    for rule in (f, ref):
        w = weight.clone().requires_grad_()
        results.append(rule.linear_if(x, w, scale=scale, shift=shift, residual=residual, **options))
        results[-1][0].counts.sum().backward()
        grads.append(w.grad)
    assert_same(*results)
    torch.testing.assert_close(*grads, rtol=1e-2, atol=1e-5)


def test_results_share_no_memory_with_arguments(device):
    v_init = dyadic(3, 5, device=device)
    _, v = f.if_scan(torch.zeros(8, 3, 5, device=device), v_init=v_init, threshold=9.0, return_v=True)
    assert torch.equal(v, v_init)
    assert v.data_ptr() != v_init.data_ptr()


def test_a_change_of_the_weights_by_any_route_is_seen(device):
    """Nothing of a weight is remembered from call to call, its address and version least of all."""
    x, weight = train(8, 4, 40, device=device), dyadic(33, 40, device=device)

    routes = {
        "in place": weight.neg_,
        "by its data": lambda: weight.data.copy_(dyadic(33, 40, device=device)),
        "by another tensor": lambda: setattr(weight, "data", dyadic(33, 40, device=device)),
    }
    if device.type == "cpu":
        routes["by NumPy"] = lambda: weight.numpy().__imul__(-1)
    for name, change in routes.items():
        before = f.linear_if(x, weight).planes
        change()
        after = f.linear_if(x, weight)
        assert_same(after, ref.linear_if(x, weight))
        assert not torch.equal(after.planes, before), name


def test_a_kernel_may_miss_a_single_pixel(timing, device):
    """Padding and stride skip it: no input is read, although there is one pixel and one row, as in a linear layer."""
    x = (train(8, 2, 16, 1, 1, rate=0.9) if timing == "step" else bursts(8, 2, 16, 1, 1)).to(device)
    weight = dyadic(20, 16, 1, 1, low=1, high=2, device=device)
    assert_reference("conv2d_if", x, weight, timing=timing, stride=3, padding=1)


@pytest.mark.parametrize(("shape", "weight_shape"), [((0, 3, 5, 5), (4, 3, 3, 3)), ((2, 3, 5, 5), (0, 3, 3, 3)),
                                                    ((2, 0, 5, 5), (4, 0, 3, 3))])  # fmt: skip
def test_empty_inputs_and_weights_have_empty_gradients(shape, weight_shape, device):
    x = train_with_edge(8, *shape, device=device)
    weight = dyadic(*weight_shape, device=device).requires_grad_()
    y = f.conv2d_if(x, weight, padding=1)
    assert y.shape == (shape[0], weight_shape[0], 5, 5)
    y.counts.sum().backward()
    assert weight.grad.shape == weight_shape
    assert x.counts.grad.shape == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_any_weights_are_the_reference(timing, dtype, device):
    """Sums are exact, whatever the weights: in the reference they are the same integers."""
    K = 203
    size = 2.0 ** torch.linspace(-40, 12, 38).unsqueeze(1)
    weight = torch.randn(38, K) * size
    weight[::5] *= 2.0 ** -torch.randint(0, 30, (K,))  # of several magnitudes in one row
    weight[1] = 0
    spikes = train if timing == "step" else bursts
    x, weight = spikes(9, 8, K).to(device), weight.to(device, dtype)
    assert_reference("linear_if", x, weight, timing=timing, threshold=0.3, return_v=True)
    assert_reference("bn_if", x, weight, timing=timing, return_v=True)
    image, kernel = spikes(9, 2, 13, 6, 5).to(device), torch.randn(21, 13, 3, 3, device=device).to(dtype)
    assert_reference("conv2d_if", image, kernel, padding=1, timing=timing, return_v=True)


@pytest.mark.kernels
def test_the_ends_of_sums(device):
    """Next to 1 the unit of a half-precision row is 2^-14, since 2^15 is more than two digits: half of it is rounded
    up, less is lost. float32 loses nothing."""
    x = te.SpikeTrain.from_dense(torch.ones(1, 1, 2, device=device))
    weight = torch.tensor([[1.0, 2.0**-15], [1.0, 0.99 * 2.0**-15]], device=device)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        given = weight.to(dtype)
        _, v = f.linear_if(x, given, threshold=100.0, return_v=True)
        if dtype == torch.float32:
            assert v[0].tolist() == given.sum(1).tolist()
        else:
            assert v[0, :2].tolist() == [1 + 2.0**-14, 1.0]
    K = 2**17 - 1
    x = te.SpikeTrain.from_dense(torch.ones(1, 1, K, device=device))
    weight = torch.full((8, K), -128, dtype=torch.int8, device=device)
    weight[1::2] = 127
    _, v = f.linear_if(x, weight, threshold=3e38, return_v=True)
    assert v[0].tolist() == [-128.0 * K, 127.0 * K] * 4


def test_autocast(timing, device):
    """Counts take its type, potentials, statistics and the gradients of weights do not; int8 and float64 are left.
    No current is rounded, as a product under autocast would be."""
    x, image = train(8, 6, 7, device=device), te.ConstantInput(dyadic(6, 7, device=device), 8)
    outputs = 9 if timing == "step" else 16
    weight = torch.randn(outputs, 7, device=device, requires_grad=True)
    scale = torch.full((outputs,), 0.01, device=device, requires_grad=True)
    with torch.autocast(device.type, torch.bfloat16):
        y, v = f.linear_if(x, weight, return_v=True, timing=timing)
        z = f.linear_if(image, weight, timing=timing)
        (normed, z_v), mean, _ = f.bn_if(x, weight, timing=timing, return_v=True)
        few, w = f.linear_if(x, weight.detach().to(torch.int8), scale=scale, return_v=True, timing=timing)
        double = f.linear_if(x, weight.detach().double(), timing=timing)
    assert {each.counts.dtype for each in (y, z, normed)} == {torch.bfloat16}
    assert {each.dtype for each in (v, mean, few.counts, w)} == {torch.float32}
    assert double.counts.dtype == torch.float64
    assert not mean.requires_grad
    assert_same((y, v), ref.linear_if(x, weight.bfloat16(), timing=timing, return_v=True))
    assert_same((normed, z_v), ref.bn_if(x, weight.bfloat16(), timing=timing, return_v=True)[0])
    (y.counts.sum() + z.counts.sum() + normed.counts.sum()).backward()
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize(("T", "groups", "width"), [(8, 1, 24), (255, 1, 5), (40, 2, 12), (3, 4, 25)])
def test_many_rows_are_the_reference(T, groups, width, device):
    """So many that the sums of all steps leave the cache: their statistics come from the counts where that is cheap."""
    x = train(T, 2, 8 * groups, width, width, device=device)
    weight = dyadic(21 * groups, 8, 3, 3, device=device)
    options = {"groups": groups, "padding": 2, "dilation": 2, "gamma": dyadic(21 * groups, device=device)}
    assert_reference("bn_if", x, weight, **options, return_v=True)


@pytest.mark.parametrize("kind", ["train", "constant"])
def test_a_constant_channel(kind, device):
    """No variance: eps decides, and rounding must not make the variance negative."""
    weight = torch.randn(97, 11, dtype=torch.float64, device=device, requires_grad=True)
    x = train(8, 7, 11, rate=1.0, device=device)
    if kind == "constant":
        x = te.ConstantInput(torch.randn(1, 11, dtype=torch.float64, device=device).expand(7, 11), 8)
    y, _, var = f.bn_if(x, weight, beta=torch.full((97,), 16.0, device=device))
    assert (var >= 0).all()
    assert (y.counts == 8).all()
    y.counts.sum().backward()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(3, 5), (2, 5, 3, 4)])
@pytest.mark.parametrize("gate", ["relu", "clip"])
@pytest.mark.parametrize("threshold", [0.5, torch.tensor(0.5), torch.tensor([0.25, 0.5, 1.0, 2.0, 4.0])],
                         ids=["float", "one", "per channel"])  # fmt: skip
def test_couple(shape, gate, threshold, device):
    """Given spikes get the gradient of a given pre-activation. Values and gain are the train's."""
    x, z, grad = train(4, *shape, gain=0.5, device=device), dyadic(*shape, low=-200, high=200), dyadic(*shape)
    z, grad = z.to(device).requires_grad_(), grad.to(device)
    theta = threshold.clone().to(device).requires_grad_() if torch.is_tensor(threshold) else threshold
    y = f.couple(x, z, threshold=theta, gate=gate)
    assert_same(y, x)
    assert (y.gain, y.counts.requires_grad) == (0.5, True)
    over = threshold.to(device).view(-1, *[1] * (z.dim() - 2)) if torch.is_tensor(threshold) else threshold
    open_ = (z > 0) & (z < 4 * over) if gate == "clip" else z > 0
    leaves = [z, theta] if torch.is_tensor(threshold) else [z]
    found = torch.autograd.grad(y.counts, leaves, grad)
    assert torch.equal(found[0], grad * open_ / over)
    if len(found) > 1:
        total = (-grad * open_ / over * x.counts).movedim(1, -1).flatten(0, -2)
        torch.testing.assert_close(found[1], total.sum(0) if threshold.dim() else total.sum())


@pytest.mark.parametrize("scaled", [True, False])
def test_numbers_of_an_op_are_tensors(scaled, timing, device):
    """gain and unit multiply and divide as tensors do; without v_init it is the default of the timing."""
    x, weight = train(8, 3, 40, device=device), torch.randn(33, 40, device=device)
    scale, shift = (torch.rand(33, device=device) + 0.5 if scaled else None for _ in range(2))
    gain, unit, op = 0.3, 0.7, torch.ops.tandem.linear_if
    neuron = x.stored_as(timing), 8, weight, 8, 0.9, 1.0, "clip", timing, True, True
    factor = torch.full((33,), gain / unit, device=device)
    tensors = (factor, None) if scale is None else (scale * factor, shift / torch.full_like(shift, unit))
    start = torch.tensor(0.45 if timing == "window" else 0.0, device=device)
    results = op(*neuron, scale, shift, gain=gain, unit=unit)
    for ours, theirs in zip(results, op(*neuron, *tensors, v_init=start), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("T", [1, 8, 255])
@pytest.mark.parametrize("threshold", [1.0, 0.25, 2.0**64, 2.0**-64, 0.3, 3.0e38])
def test_bursts_are_divided_as_steps_subtract(threshold, T, device):
    """Without the last potential a power of two divides; with it every step subtracts."""
    whole = threshold * torch.arange(T + 2.0)
    near = [whole, whole.nextafter(torch.tensor(torch.inf)), whole.nextafter(torch.tensor(-torch.inf))]
    ends = torch.tensor([0.0, -0.0, 1e-45, 2.0**24 * threshold, 2.0**26 * threshold, 3e38, torch.inf, torch.nan])
    u = torch.cat([*near, ends, -ends, 300 * threshold * torch.rand(1000)]).unsqueeze(0).to(device)
    neuron = u, T, T, threshold, 1.0, "clip", "window", True
    (divided, *of_them, _), (subtracted, *of_steps, _) = (
        torch.ops.tandem.impulse_if(*neuron, last, v_init=torch.zeros((), device=device)) for last in (False, True)
    )
    assert torch.equal(divided, subtracted)
    assert all(map(torch.equal, of_them[:2], of_steps[:2]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_batch_norm_reads_half_types(dtype, device):
    """As if they were float32; gradients are rounded once."""
    u, grad = (torch.randn(19, 37, 3, 2, device=device).to(dtype).to(memory_format=torch.channels_last) for _ in "ug")
    ops, mask = torch.ops.tandem, torch.randint(256, ((u.numel() + 7) // 8,), dtype=torch.uint8, device=device)
    gamma = torch.rand(37, device=device)
    moments, expected = (ops.bn_statistics(x, 8.0, None, gamma, gamma, 1e-5) for x in (u, u.float()))
    assert all(map(torch.equal, moments, expected))
    grads, expected = (
        ops.bn_grad(g, mask, x, *moments[:2], None, gamma, 1e-5, 0.7) for g, x in ((grad, u), (grad.float(), u.float()))
    )
    assert torch.equal(grads[0], expected[0].to(dtype))
    assert all(map(torch.equal, grads[1:], expected[1:]))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_the_precision_of_products_changes_no_spike(precision, device):
    """torch.set_float32_matmul_precision is for products that round."""
    x = train(8, 4, 60, rate=0.5, device=device)
    weight = torch.randn(16, 60, device=device)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        result = f.linear_if(x, weight, return_v=True)
    finally:
        torch.set_float32_matmul_precision(before)
    assert_same(result, ref.linear_if(x, weight, return_v=True))
