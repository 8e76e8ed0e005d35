"""Products of real-valued inputs are torch's convolutions, never one that reads or writes foreign memory: as in
float64, and the same bits in evaluation, frozen and in a stream. Each check is a process, since torch may end it.
"""

import ctypes.util
import random
import sys
from typing import Any, NamedTuple

import any_layer
import child
import pytest
import torch
from torch import nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn

# glibc's own checks of the heap, which find most writes beyond an array; memory that nobody wrote holds 3e38.
CHECKED = {"LD_PRELOAD": "libc_malloc_debug.so.0", "GLIBC_TUNABLES": "glibc.malloc.check=3:glibc.malloc.perturb=128"}
FLOAT32_MIN = torch.finfo(torch.float32).tiny
MORE = [f"map(random_shape, range({first}, {first + 1000}))" for first in range(0, 12_000, 1000)]


class Shape(NamedTuple):
    """A convolution over as many axes as ``size`` has, or a linear layer."""

    batch: int
    channels: int
    outputs: int
    size: tuple[int, ...] = ()
    geometry: tuple[Any, ...] = ()  # kernel, stride, padding, dilation, groups
    dtype: str = "float32"
    layout: str = "contiguous"  # of the image


def random_shape(seed):
    """Half as in networks, half small ones of every kind, of which a fifth has a single output along an axis and some
    are large with a strided 1x1 kernel.
    """
    r = random.Random(seed)
    kind = r.choice(["float32", "bfloat16"]), r.choice(["contiguous", "channels last", "strided", "slice"])
    batch, axes = r.choice([1, 1, 2, 3, 8]), r.choice([2, 2, 2, 2, 1, 0])
    if axes > 0 and any_layer.chance(r):
        weight, (channels, *size), window = any_layer.practical_geometry(r, axes)
        return Shape(batch, channels, weight[0], tuple(size), (weight[2:], *window.values()), *kind)
    channels = r.choice([1, 1, 2, 3, 3, 4, 5, 8, 15, 16, 17, 32])
    outputs = r.choice([1, 2, 3, 7, 8, 16, 24, 32, 48, 64])
    if axes == 0:
        return Shape(batch, channels * r.choice([1, 10, 49]), outputs, (), (), *kind)
    if axes == 2 and r.random() < 0.02:
        size, stride = (r.choice([64, 100, 128]), 128), r.choice([(2, 2), (1, 2), (2, 1)])
        return Shape(4, channels, outputs, size, ((1, 1), stride, (0, 0), (1, 1), 1), *kind)

    def along(*values):
        return (r.choice(values),) * axes if r.random() < 0.5 else tuple(r.choice(values) for _ in range(axes))

    groups = r.choice([1, 1, 1, 2, 3, channels])
    channels, outputs = (n if n % groups == 0 else n * groups for n in (channels, outputs))
    while True:
        kernel, stride, dilation = along(1, 1, 2, 3, 3, 4, 5, 7), along(1, 1, 2, 2, 3, 4), along(1, 1, 1, 2, 3)
        padding = along(0, 0, 1, 2, 3)
        size = along(1, 2, 3, 5, 6, 7, 8, 9, 12, 14, 16, 17, 20, 28, 32, 33)
        spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        if r.random() < 0.2:
            axis = r.randrange(axes)
            single = max(1, spans[axis] - 2 * padding[axis] + r.randrange(stride[axis]))
            size = (*size[:axis], single, *size[axis + 1 :])
        if all(n + 2 * p >= span for n, p, span in zip(size, padding, spans, strict=True)):
            break
    if max(stride) == 1 and r.random() < 0.2:
        padding = "same"
    return Shape(batch, channels, outputs, size, (kernel, stride, padding, dilation, groups), *kind)


def layer_of(shape, **neuron):
    kind = (tnn.Linear, tnn.Conv1d, tnn.Conv2d)[len(shape.size)]
    dtype = getattr(torch, shape.dtype)
    return kind(shape.channels, shape.outputs, *shape.geometry, bias=False, dtype=dtype, **neuron)


def laid_out(x, layout):
    if layout == "channels last":
        return x.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)
    if layout == "slice":  # it begins behind the start of its memory
        return torch.cat([x, x])[len(x) :]
    return torch.stack([x, x], -1)[..., 0] if layout == "strided" else x


def assert_near(got, want):
    tolerance = (1e-4 if got.dtype == torch.float32 else 5e-2) * (want.abs().max().item() + 1 if want.numel() else 1)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance)


def exact(layer, x, grad=None):
    """By plain torch in float64: the product, its gradient, and with that the gradients of x and of the weight."""
    x, weight = (t.detach().double().requires_grad_() for t in (x, layer.weight))
    if weight.dim() == 2:
        y = nn.functional.linear(x, weight)
    elif isinstance(layer, nn.modules.conv._ConvTransposeNd):
        f = (nn.functional.conv_transpose1d, nn.functional.conv_transpose2d)[weight.dim() - 3]
        y = f(x, weight, None, layer.stride, layer.padding, 0, layer.groups, layer.dilation)
    else:
        y = layer._conv_forward(x, weight, None)
    grad = torch.randn_like(y).to(layer.weight.dtype) if grad is None else grad
    y.backward(grad.double())
    return [y.detach(), grad, x.grad, weight.grad]


def check_transposed(seeds):
    """The gradients of transposed convolutions of random shapes, against float64; it says each before it runs it."""
    torch.set_num_threads(1)
    for shape in map(random_shape, seeds):
        if not shape.geometry or shape.geometry[2] == "same":
            continue
        kernel, stride, padding, dilation, groups = shape.geometry
        spans = [s * (n - 1) + d * (k - 1) + 1 for n, k, s, d in zip(shape.size, kernel, stride, dilation, strict=True)]
        if any(span <= 2 * p for span, p in zip(spans, padding, strict=True)):
            continue
        print(shape, flush=True)
        kind = (tnn.ConvTranspose1d, tnn.ConvTranspose2d)[len(shape.size) - 1]
        dtype = getattr(torch, shape.dtype)
        layer = kind(shape.channels, shape.outputs, kernel, stride, padding, 0, groups, False, dilation, dtype=dtype)
        counts = torch.randint(0, 3, (shape.batch, shape.channels, *shape.size))
        _, grad, *want = exact(layer, counts)
        stored, weight = counts.to(torch.uint8).unsqueeze(0), layer.kernel_of(layer.weight)
        grad_x, grad_weight = layer.synapses().gradients(grad, stored, "window", weight, True, True)
        assert_near(grad_x, want[0])
        assert_near(layer.kernel_of(grad_weight), want[1])


def check_values(shape):
    """The product, and its gradients in a first layer and behind spikes, against float64."""
    layer = layer_of(shape)
    image = torch.randn(shape.batch, shape.channels, *shape.size).to(layer.weight.dtype)
    want, grad, grad_x, grad_weight = exact(layer, image)
    given = laid_out(image, shape.layout).detach().requires_grad_()
    got = layer.real_product(given)
    assert_near(got, want)
    got.backward(laid_out(grad, "channels last"))
    assert_near(given.grad, grad_x)
    assert_near(layer.weight.grad, grad_weight)

    counts, synapses = torch.randint(0, 3, image.shape), layer.synapses()
    train = te.SpikeTrain.from_dense(torch.stack([counts > 0, counts > 1]))
    _, grad, *want = exact(layer, counts)
    stored = laid_out(train.planes[0], "channels last").unsqueeze(0)
    for layout in ("contiguous", "channels last"):
        found = synapses.gradients(laid_out(grad, layout), stored, "step", layer.weight, True, True)
        for a, b in zip(found, want, strict=True):
            assert_near(a, b)


@torch.no_grad()
def check_bits(shape):
    """Evaluation, a frozen network and its stream have the same currents: neurons that start at minus those of
    evaluation and fire at the least threshold show a larger one, and with the sign changed a smaller one.
    """
    image = torch.randn(1, shape.channels, *shape.size).to(getattr(torch, shape.dtype))
    images = laid_out(image.expand(shape.batch, *image.shape[1:]).clone(), shape.layout)
    layer = layer_of(shape, threshold=FLOAT32_MIN)
    for _ in range(2):
        layer.weight.neg_()
        layer.v_init = -layer.real_product(images)[0].float()
        layers = tnn.Encoder(1), layer, tnn.Flatten(), tnn.Readout(layer.v_init.numel(), 2, dtype=layer.weight.dtype)
        net = nn.Sequential(*layers).eval()
        counts = net[:2](images).counts
        assert not counts[0].any(), "evaluation"
        frozen = ts.freeze(net)
        want = net(images)
        assert torch.equal(frozen(images), want), "frozen"
        assert torch.equal(frozen.step(images), want), "stream"


def check_all(shapes):
    """It says each before it runs it."""
    torch.set_num_threads(1)
    for shape in shapes:
        print(shape, flush=True)
        torch.manual_seed(0)
        check_values(shape)
        check_bits(shape)


COLUMN = Shape(8, 1, 16, (9, 5), ((5, 5), (1, 3), (0, 0), (1, 1), 1))  # torch's convolution reads foreign memory
POINT = Shape(4, 2, 48, (128, 128), ((1, 1), (2, 2), (0, 0), (1, 1), 1))  # the gradient of the weight is written beyond


@pytest.mark.parametrize("shapes", [  # what torch gets wrong channels last, and random ones
    [COLUMN._replace(dtype=dtype, layout=layout)
     for dtype in ("float32", "bfloat16") for layout in ("contiguous", "channels last")],
    [POINT._replace(channels=channels) for channels in (2, 3, 15)],
    [Shape(1, 1, 32, (143, 143), ((2, 2), (1, 1), "same", (1, 1), 1))],  # padding makes it large
    [Shape(1, 3, 32, (64, 64), ((3, 3), (1, 1), (1, 1), (1, 1), 1))],  # another layout has other bits
    "map(random_shape, range(100))", *(pytest.param(more, marks=pytest.mark.slow) for more in MORE),
])  # fmt: skip
def test_products_of_any_shape_and_the_bits_of_their_frozen_networks(shapes):
    checked = CHECKED if sys.platform == "linux" and ctypes.util.find_library("c_malloc_debug") else {}
    child.run("-c", f"from test_first_layer import *; check_all({shapes})", **checked)


@pytest.mark.parametrize("seeds", [range(30), pytest.param(range(30, 2000), marks=pytest.mark.slow)])
def test_gradients_of_transposed_convolutions_of_any_shape(seeds):
    checked = CHECKED if sys.platform == "linux" and ctypes.util.find_library("c_malloc_debug") else {}
    child.run("-c", f"from test_first_layer import *; check_transposed({seeds})", **checked)
