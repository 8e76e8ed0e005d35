"""Inputs for the tests, and how their results are compared.

Dyadic numbers, multiples of 1/64 of modest size, make every sum exact in float32 in any order. On them a kernel must
give the reference's spikes, counts and potentials bit for bit. Without a device, inputs are on torch's default one.
"""

import numpy as np
import torch

import tandem_ext as te

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WINDOWS = (1, 2, 7, 8, 9, 16, 33, 255)


def compute_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def dyadic(*shape, low=-64, high=64, unit=64, dtype=torch.float32, device=None):
    return (torch.randint(low, high + 1, shape) / unit).to(device, dtype)


def dyadic_(net):
    """A module whose parameters are rounded to dyadic numbers."""
    with torch.no_grad():
        for p in net.parameters():
            p.copy_((64 * p).round() / 64)
    return net


def spikes(T, *shape, rate=0.3, dtype=torch.float32, device=None):
    return (torch.rand(T, *shape) < rate).to(device, dtype)


def train(T, *shape, rate=0.3, gain=1.0, device=None):
    return te.SpikeTrain.from_dense(spikes(T, *shape, rate=rate, device=device), gain)


def bursts(T, *shape, gain=1.0):
    """Any counts, as neurons of timing "window" fire them."""
    return te.SpikeTrain.from_counts(torch.randint(T + 1, shape), T, gain)


def recording(n, sensor, seed=0, until=100_000):
    """Events as tonic gives them, of a sensor (x, y, polarities)."""
    draw = np.random.default_rng(seed)
    events = np.zeros(n, [(name, int) for name in "txyp"])
    events["t"] = np.sort(draw.integers(until, size=n))
    for name, size in zip("xyp", sensor, strict=True):
        events[name] = draw.integers(size, size=n)
    return events


def train_with_edge(T, *shape, rate=0.3, gain=1.0, dtype=torch.float32, device=None):
    """A train whose counts are a leaf that collects a gradient."""
    x = train(T, *shape, rate=rate, device=device)
    return te.SpikeTrain(x.planes, T, x.counts.to(dtype).detach().requires_grad_(), gain)


def assert_same(result, expected):
    """Two results of a layer, of any kind, bit for bit."""
    if isinstance(result, tuple):
        assert len(result) == len(expected)
        for a, b in zip(result, expected, strict=True):
            assert_same(a, b)
    elif isinstance(result, te.SpikeTrain):
        assert result.T == expected.T
        assert_equal(result.planes, expected.planes)
        none = torch.zeros(len(result), device=result.device)
        for get in (lambda x: x.counts.detach(), lambda x: none if x.bad is None else x.bad):
            torch.testing.assert_close(get(result), get(expected), rtol=0, atol=0, equal_nan=True)
    else:
        assert result.dtype == expected.dtype
        assert_equal(result, expected)


def assert_equal(result, expected):
    """Says where they differ."""
    if not torch.equal(result, expected):
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


def assert_reference(name, *arguments, **keywords):
    """A layer gives the reference's results."""
    assert_same(*(getattr(module, name)(*arguments, **keywords) for module in (te.functional, te.reference)))


def is_channels_last(tensor, batch):
    """Channels innermost, everything before ``batch`` outermost: the layout of what ops return."""
    return tensor.movedim(batch + 1, -1).is_contiguous() if tensor.dim() > batch + 2 else tensor.is_contiguous()


def views(tensor):
    """The same values as seen through strides, an offset, and another order of the dimensions in memory."""
    big = torch.zeros(*(n + 2 for n in tensor.shape), dtype=tensor.dtype, device=tensor.device)
    inner = big[tuple(slice(1, n + 1) for n in tensor.shape)]
    inner.copy_(tensor)
    yield inner
    yield tensor.movedim(0, -1).contiguous().movedim(-1, 0)
    yield tensor.flip(0).flip(0)
    if tensor.dim() > 3:
        yield tensor.movedim(2, -1).contiguous().movedim(-1, 2)
