"""Timing "window": neurons that integrate a whole window and then fire, against a plain simulation, step by step, of
layers that work on one window while the next comes in. Against the reference: test_functional.py."""

from itertools import pairwise

import pytest
import torch
from cases import assert_same, bursts, dyadic, seeds, train
from hypothesis import given
from hypothesis import strategies as st

import tandem_ext as te
from tandem_ext.functional.layer import window_product
from tandem_ext.functional.products import convolution

f, ref = te.functional, te.reference


def long_weights(*shape):
    """Of 18 bits, so that float32 does not hold their sums: exact are integers and float64."""
    return torch.randint(-(2**17), 2**17, shape) / 2**17


# --- against the reference --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [1, 3, 8, 15, 16, 255])
@pytest.mark.parametrize(("K", "N", "B"), [(784, 100, 1), (784, 100, 40), (33, 70, 5)])
def test_sums_that_float32_does_not_hold(T, K, N, B):
    x, weight = bursts(T, B, K), long_weights(N, K)
    options = {"timing": "window", "v_init": 0.5, "scale": torch.rand(N), "shift": torch.randn(N), "return_v": True}
    assert_same(f.linear_if(x, weight, **options), ref.linear_if(x, weight, **options))
    image, kernel = bursts(T, max(1, B // 8), 64, 6, 6), long_weights(N, 64, 3, 3)
    assert_same(f.conv2d_if(image, kernel, padding=1, **options), ref.conv2d_if(image, kernel, padding=1, **options))


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


def test_the_sum_over_a_window_is_that_of_both_forms():
    x, weight = bursts(20, 3, 6, 8, 8), torch.randn(5, 6, 3, 3)
    as_steps, product = te.SpikeTrain(x.planes, 20), convolution((3, 3), 1, 1, 1, 1)
    assert torch.equal(window_product(x, weight, product), window_product(as_steps, weight, product))
