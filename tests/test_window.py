"""Timing "window": neurons that integrate a whole window and then fire. Kernels against the reference and against a
plain simulation, step by step, of layers that work on one window while the next comes in."""

from itertools import pairwise

import pytest
import torch
from cases import DTYPES, assert_same, bursts, compute_dtype, dtypes, dyadic, neurons, seeds, train, windows
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

import tandem_ext as te
from tandem_ext.functional.layer import window_product
from tandem_ext.functional.products import convolution

f, ref = te.functional, te.reference
CONVOLUTIONS = [
    (f.conv1d_if, (3, 6, 9), (8, 3, 3), {"stride": 2, "padding": 1, "groups": 2}),
    (f.conv2d_if, (3, 5, 6, 5), (7, 5, 3, 2), {"stride": (1, 2), "padding": (1, 0), "dilation": (1, 2)}),
    (f.conv2d_if, (2, 64, 8, 8), (48, 64, 3, 3), {"padding": 1}),
    (f.conv2d_if, (2, 40, 7, 7), (40, 1, 3, 3), {"padding": 1, "groups": 40}),
]


def in_windows(arguments):
    """The keyword arguments of neurons, with this timing."""
    gate = arguments["gate"].replace("resu", "relu")
    return arguments | {"leak": 1.0, "steps": None, "gate": gate, "timing": "window"}


def long_weights(*shape):
    """Of 18 bits, so that float32 does not hold their sums: exact are integers and float64."""
    return torch.randint(-(2**17), 2**17, shape) / 2**17


# --- against the reference --------------------------------------------------------------------------------------------


@given(data=st.data(), T=st.integers(1, 255) | windows, B=st.integers(0, 5), K=st.integers(0, 70),
       N=st.integers(0, 70), dtype=dtypes, seed=seeds, burst=st.booleans())  # fmt: skip
def test_linear_is_the_reference(data, T, B, K, N, dtype, seed, burst):
    torch.manual_seed(seed)
    x = bursts(T, B, K, gain=0.5) if burst else train(T, B, K)
    weight, bias = dyadic(N, K, dtype=dtype), dyadic(N, dtype=dtype)
    arguments = in_windows(data.draw(neurons(T, (B, N), dtype))) | {"bias": data.draw(st.sampled_from([None, bias]))}
    expected = ref.linear_if(x, weight, **arguments)
    assert_same(f.linear_if(x, weight, **arguments), expected)
    assert_same(f.linear_if(x, weight.requires_grad_(), **arguments), expected)


@given(data=st.data(), case=st.sampled_from(CONVOLUTIONS), T=windows, dtype=dtypes, seed=seeds)
def test_convolution_is_the_reference(data, case, T, dtype, seed):
    torch.manual_seed(seed)
    layer, x_shape, weight_shape, options = case
    x, weight = bursts(T, *x_shape), dyadic(*weight_shape, dtype=dtype)
    shape = tuple(layer(x, weight, **options).shape)
    arguments = in_windows(data.draw(neurons(T, shape, dtype))) | options
    assert_same(layer(x, weight, **arguments), ref.conv_if(x, weight, **arguments))


@given(data=st.data(), T=windows, dtype=dtypes, seed=seeds)
def test_currents_are_the_reference(data, T, dtype, seed):
    torch.manual_seed(seed)
    x = dyadic(3, 7, dtype=dtype)
    arguments = in_windows(data.draw(neurons(T, (3, 7), dtype)))
    for currents in (te.ConstantInput(x, T, 0.5), te.ImpulseInput(x, T), dyadic(T, 3, 7, dtype=dtype)):
        assert_same(f.if_scan(currents, **arguments), ref.if_scan(currents, **arguments))
    weight = dyadic(9, 7, dtype=dtype)
    x = te.ConstantInput(x, T)
    assert_same(f.linear_if(x, weight, timing="window"), ref.linear_if(x, weight, timing="window"))


@pytest.mark.parametrize("T", [1, 8, 40])
def test_batch_norm_is_the_reference(T):
    gamma, beta = dyadic(16, low=16), dyadic(16)
    options = {"timing": "window", "return_v": True, "v_init": 0.5, "residual": bursts(T, 5, 16, gain=0.5)}
    for x in (bursts(T, 5, 20), train(T, 5, 20), te.ConstantInput(dyadic(5, 20), T)):
        weight = dyadic(16, 20)
        assert_same(f.linear_bn_if(x, weight, None, gamma, beta, **options),
                    ref.linear_bn_if(x, weight, None, gamma, beta, **options))  # fmt: skip
    x, weight = bursts(T, 3, 6, 7, 5), dyadic(16, 6, 3, 3)
    assert_same(f.conv2d_bn_if(x, weight, None, gamma, beta, padding=1, timing="window"),
                ref.conv2d_bn_if(x, weight, None, gamma, beta, padding=1, timing="window"))  # fmt: skip


@pytest.mark.parametrize("T", [1, 3, 8, 15, 16, 255])
@pytest.mark.parametrize(("K", "N", "B"), [(784, 100, 1), (784, 100, 40), (33, 70, 5)])
def test_sums_that_float32_does_not_hold(T, K, N, B):
    x, weight = bursts(T, B, K), long_weights(N, K)
    options = {"timing": "window", "v_init": 0.5, "scale": torch.rand(N), "shift": torch.randn(N), "return_v": True}
    assert_same(f.linear_if(x, weight, **options), ref.linear_if(x, weight, **options))
    image, kernel = bursts(T, max(1, B // 8), 64, 6, 6), long_weights(N, 64, 3, 3)
    assert_same(f.conv2d_if(image, kernel, padding=1, **options), ref.conv2d_if(image, kernel, padding=1, **options))


def test_few_bits():
    x, weight = bursts(8, 40, 300), torch.randint(-127, 128, (70, 300), dtype=torch.int8)
    options = {"timing": "window", "scale": torch.rand(70) / 100, "return_v": True}
    assert_same(f.linear_if(x, weight, **options), ref.linear_if(x, weight, **options))


@pytest.mark.parametrize("threshold", [torch.tensor(0.7), torch.rand(9) + 0.1], ids=["one", "per channel"])
def test_tensor_threshold_is_the_reference(threshold):
    x, weight, bias = bursts(8, 3, 7), dyadic(9, 7), dyadic(9)
    options = {"threshold": threshold, "timing": "window", "residual": bursts(8, 3, 9, gain=0.5), "gate": "clip",
               "scale": dyadic(9), "v_init": dyadic(9), "return_v": True}  # fmt: skip
    assert_same(f.linear_if(x, weight, bias, **options), ref.linear_if(x, weight, bias, **options))


def test_what_is_not_a_number_does_not_fire():
    counts = f.if_scan(te.ImpulseInput(torch.tensor([[float("nan"), float("inf"), -float("inf")]]), 8), timing="window")
    assert counts.stored.tolist() == [[[0, 8, 0]]]
    assert counts.counts.isnan().all()


# --- what the timing means --------------------------------------------------------------------------------------------


class Simulated:
    """A layer in a pipeline: at each step it takes in the spikes of that step, and fires from the window before."""

    def __init__(self, weight, scale, shift, v_init, threshold, T):
        self.weight, self.scale, self.shift, self.v_init = weight, scale, shift, v_init
        self.threshold, self.T = torch.tensor(threshold), T
        self.sum, self.v, self.t = 0.0, None, 0

    def step(self, spikes):
        fired = torch.zeros(len(spikes), len(self.weight))
        if self.v is not None:
            fired = (self.v >= self.threshold).float()
            self.v = torch.where(fired > 0, self.v - self.threshold, self.v)
        self.sum = self.sum + spikes.double() @ self.weight.double().T
        self.t += 1
        if self.t % self.T == 0:
            self.v = self.v_init + (self.scale * self.sum.float() + self.shift)
            self.sum = 0.0
        return fired


@pytest.mark.parametrize("T", [1, 2, 5, 8, 9, 32])
def test_a_pipeline_simulated_step_by_step(T):
    """Window n of layer l leaves in time n + l + 1: its latency is that of all layers before it and its own."""
    sizes, inputs = (60, 40, 30, 20), [train(T, 6, 60, rate=0.4) for _ in range(3)]
    layers = [(long_weights(m, n), 0.5 * torch.rand(m), torch.rand(m), 0.5, 1.25, T)
              for n, m in pairwise(sizes)]  # fmt: skip
    expected = []
    for x in inputs:
        for weight, scale, shift, v_init, threshold, _ in layers:
            x = f.linear_if(x, weight, scale=scale, shift=shift, v_init=v_init, threshold=threshold, timing="window")
        expected.append(x.to_dense())
    pipeline = [Simulated(*layer) for layer in layers]
    silence, fired = torch.zeros(T, 6, 60), []
    for spikes in torch.cat([*(x.to_dense() for x in inputs), *[silence] * len(layers)]):
        for layer in pipeline:
            spikes = layer.step(spikes)
        fired.append(spikes)
    fired = torch.stack(fired).unflatten(0, (-1, T))
    assert all(0.02 < window.mean() < 0.9 for window in expected)
    for n, window in enumerate(expected):
        assert torch.equal(fired[n + len(layers)], window)


@given(T=st.integers(1, 255), seed=seeds, threshold=st.sampled_from([0.5, 1.0, 1.25]), v_init=st.sampled_from([0, 0.5]))
def test_properties(T, seed, threshold, v_init):
    torch.manual_seed(seed)
    z = dyadic(1, 50, low=-8 * T, high=64 * T + 64).sort(1).values
    y, v = f.if_scan(te.ImpulseInput(z, T), threshold=threshold, v_init=float(v_init), timing="window", return_v=True)
    assert bool((y.counts.diff(dim=1) >= 0).all())  # monotone in z
    assert torch.equal(threshold * y.counts + v, v_init + z)
    assert torch.equal(y.counts, ((v_init + z) / threshold).floor().clamp(0, T))
    assert torch.equal(y.to_dense().cummin(0).values, y.to_dense())  # bursts
    te.SpikeTrain(y.planes, T, timing="window")  # which are planes without a high bit


@pytest.mark.parametrize("T", [1, 8, 20])
def test_only_counts_of_the_input_matter(T):
    x, weight = train(T, 4, 30), torch.randn(20, 30)
    same = te.SpikeTrain.from_counts(x.counts, T)
    assert_same(f.linear_if(x, weight, timing="window"), f.linear_if(same, weight, timing="window"))


@pytest.mark.parametrize("T", [1, 8, 20])
def test_a_step_layer_reads_bursts(T):
    x, weight = bursts(T, 4, 30, gain=0.5), torch.randn(20, 30)
    as_steps = te.SpikeTrain(x.planes, T, gain=0.5)
    assert_same(f.linear_if(x, weight), f.linear_if(as_steps, weight))
    residual = bursts(T, 4, 20)
    assert_same(f.linear_if(x, weight, residual=residual),
                f.linear_if(as_steps, weight, residual=te.SpikeTrain(residual.planes, T)))  # fmt: skip


def test_the_sum_over_a_window_is_that_of_both_forms():
    x, weight = bursts(20, 3, 6, 8, 8), torch.randn(5, 6, 3, 3)
    as_steps, product = te.SpikeTrain(x.planes, 20), convolution((3, 3), 1, 1, 1, 1)
    assert torch.equal(window_product(x, weight, product), window_product(as_steps, weight, product))


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate", ["relu", "clip"])
def test_gradients_are_those_of_the_reference(dtype, gate):
    T, C = 8, compute_dtype(dtype)
    values = {
        "weight": dyadic(7, 11, dtype=dtype, unit=16, low=-16, high=16), "bias": dyadic(7, dtype=C),
        "scale": dyadic(7, low=1, dtype=C), "shift": dyadic(7, dtype=C), "gain": torch.tensor(0.5, dtype=C),
        "threshold": torch.tensor([0.5, 1, 2, 4, 0.5, 1, 2], dtype=C), "counts": train(T, 6, 11).counts.to(dtype),
        "residual": train(T, 6, 7).counts.to(dtype), "worth": torch.tensor(0.25, dtype=C),
    }  # fmt: skip
    direction, results = dyadic(6, 7, dtype=dtype), []
    for module in (f, ref):
        v = {name: value.clone().requires_grad_() for name, value in values.items()}
        x = te.SpikeTrain.from_counts(v["counts"], T, v["gain"])
        r = te.SpikeTrain.from_counts(v["residual"], T, v["worth"])
        y = module.linear_if(x, v["weight"], v["bias"], scale=v["scale"], shift=v["shift"], threshold=v["threshold"],
                             residual=r, gate=gate, timing="window")  # fmt: skip
        results.append([y, *torch.autograd.grad(y.counts, list(v.values()), direction)])
    (ours, *ours_), (theirs, *theirs_) = results
    assert_same(ours, theirs)
    bound = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}[dtype]
    for a, b in zip(ours_, theirs_, strict=True):
        scale = float(b.double().abs().max())
        assert float((a.double() - b.double()).abs().max()) <= bound * scale


@pytest.mark.parametrize("currents", ["constant", "impulse", "steps", "residual"])
def test_gradients_of_currents(currents):
    T, results = 6, []
    for module in (f, ref):
        torch.manual_seed(0)
        y = dyadic(*([T] if currents in ("steps", "residual") else []), 4, 9).requires_grad_()
        if currents == "residual":
            out = module.linear_if(bursts(T, 4, 8), dyadic(9, 8), residual=y, timing="window")
        else:
            given = {"constant": te.ConstantInput, "impulse": te.ImpulseInput}.get(currents)
            out = module.if_scan(y if given is None else given(y, T), scale=dyadic(9, low=1), timing="window")
        results.append(torch.autograd.grad(out.counts, y, dyadic(4, 9))[0])
    assert torch.equal(*results)


@pytest.mark.parametrize("bn", [False, True])
@pytest.mark.parametrize("T", [8, 32, 255])
def test_bytes_kept_for_backward_do_not_grow_with_time(T, bn):
    x, weight = bursts(T, 64, 256), torch.randn(512, 256, requires_grad=True)
    second, kept = torch.randn(64, 512, requires_grad=True), {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = f.linear_bn_if(x, weight, timing="window")[0] if bn else f.linear_if(x, weight, timing="window")
        out = f.linear_if(y, second, timing="window")
    for given_ in (x.stored, weight, second):
        kept.pop(given_.untyped_storage().data_ptr(), None)
    n = y.counts.numel()
    assert n <= sum(kept.values()) <= (5.25 if bn else 1.25) * n + out.counts.numel() / 8


# --- torch's transforms -----------------------------------------------------------------------------------------------


def network(counts, w1, w2, w3, theta, gain):
    x = te.SpikeTrain.from_counts(counts, 8, gain)
    x = f.linear_if(x, w1, threshold=theta, timing="window")
    x, v = f.linear_if(x, w2, residual=x, gate="clip", return_v=True, timing="window")
    x = f.linear_if(x, w2, residual=x)  # of the other timing
    x, mean, _ = f.linear_bn_if(x, w3, timing="window")
    return x.counts, v, mean, x.to_dense()


def arguments():
    values = (train(8, 4, 12).counts, dyadic(10, 12), dyadic(10, 10), dyadic(5, 10), torch.tensor(1.25),
              torch.tensor(0.5))  # fmt: skip
    return [value.requires_grad_() for value in values]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(backend):
    torch._dynamo.reset()
    inputs, results = arguments(), []
    for function in (network, torch.compile(network, fullgraph=True, backend=backend)):
        counts, *others = function(*inputs)
        results.append([counts.detach(), *others, *torch.autograd.grad((counts * torch.arange(5)).sum(), inputs)])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(dyadic(7, 7))

    def forward(self, x):
        y = f.linear_if(x, self.weight, residual=x, timing="window")
        return y, f.linear_if(y, self.weight)


@pytest.mark.parametrize("strict", [False, True])
def test_export_save_load(strict, tmp_path):
    x, block = bursts(20, 6, 7), Block().requires_grad_(False)
    shapes = {"x": [{1: torch.export.Dim("B", min=2, max=64)}]}
    program = torch.export.export(block, (x,), strict=strict, dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "block.pt2")
    loaded = torch.export.load(tmp_path / "block.pt2").module()
    for given_ in (x, bursts(20, 9, 7)):
        assert_same(loaded(given_), block(given_))
    with pytest.raises(ValueError, match="spec"):
        loaded(train(20, 6, 7))  # a program is for the form that it has seen


def test_vmap():
    x, weight = bursts(9, 6, 12), dyadic(5, 12)
    counts = x.counts.unflatten(0, (3, 2))

    def layer(c):
        train = te.SpikeTrain.from_counts(c, 9)
        return f.linear_if(train, weight, timing="window").counts, f.linear_if(train, weight).counts

    expected = [f.linear_if(x, weight, timing=t).counts.unflatten(0, (3, 2)) for t in ("window", "step")]
    assert_same(vmap(layer)(counts), tuple(expected))

    def loss(w, c):
        return f.linear_if(te.SpikeTrain.from_counts(c, 9), w, timing="window").counts.sum()

    each = vmap(grad(loss), in_dims=(None, 0))(weight, counts)
    for i, c in enumerate(counts):
        assert torch.equal(each[i], grad(loss)(weight, c))


def test_autocast():
    x, weight = bursts(8, 4, 12), torch.randn(5, 12)
    with torch.autocast("cpu", torch.bfloat16):
        y = f.linear_if(x, weight, timing="window")
    assert y.counts.dtype == torch.bfloat16
    assert_same(y, f.linear_if(x, weight.bfloat16(), timing="window"))


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "message"), [
    ({"timing": "late"}, "timing: expected one of 'step', 'window', got 'late'"),
    ({"timing": None}, "timing: expected one of"),
    ({"leak": 0.9}, "leak: with timing='window' neurons do not leak, expected 1, got 0.9"),
    ({"gate": "resu"}, "gate: with timing='window'"),
    ({"steps": 16}, "steps: with timing='window' x is the whole window, expected 8, got 16"),
    ({"residual": torch.ones(3, 2, 4)}, r"residual: expected currents of shape \[8, 2, 4\]"),
])  # fmt: skip
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        f.linear_if(bursts(8, 2, 5), torch.ones(4, 5), **{"timing": "window"} | options)


def test_summed_currents_are_for_windows():
    summed = torch.ones(1, 2, 4)
    f.linear_if(bursts(8, 2, 5), torch.ones(4, 5), residual=summed, timing="window")
    with pytest.raises(ValueError, match="their sum over the window is for layers with timing='window'"):
        f.linear_if(bursts(8, 2, 5), torch.ones(4, 5), residual=summed)
