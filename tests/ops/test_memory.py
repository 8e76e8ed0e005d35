"""Calls keep no memory: a few bytes of each, all over the heap, let a long training grow by gigabytes."""

import ctypes
import gc

import pytest
import torch

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn

LIBC = ctypes.CDLL(None)
LEAST = 24  # bytes of the smallest block of malloc


class Allocated(ctypes.Structure):
    """struct mallinfo2 of glibc: the eighth of ten sizes is of the blocks in use."""

    _fields_ = (("before", ctypes.c_size_t * 7), ("in_use", ctypes.c_size_t), ("after", ctypes.c_size_t * 2))


def allocated():
    gc.collect()
    LIBC.mallinfo2.restype = Allocated
    return LIBC.mallinfo2().in_use


def training(timing):
    layers = tnn.Conv2d(2, 8, 3, norm=True, timing=timing), tnn.Flatten(), tnn.Linear(8 * 16, 8, timing=timing)
    net = torch.nn.Sequential(tnn.Encoder(T=4), *layers, tnn.Readout(8, 3))

    def step():
        net(torch.rand(2, 2, 6, 6)).sum().backward()
        net.zero_grad()

    return step


def inference(timing):
    net = torch.nn.Sequential(tnn.Encoder(T=4), tnn.Linear(8, 8, timing=timing), tnn.Readout(8, 3))
    frozen = ts.freeze(net.eval())
    x = torch.rand(2, 8)

    def step():
        frozen(x)
        frozen.step(x)

    return step


@pytest.mark.kernels
@pytest.mark.skipif(not hasattr(LIBC, "mallinfo2"), reason="mallinfo2 is of glibc 2.33 or later")
@pytest.mark.parametrize("made", [training, inference])
def test_calls_keep_no_memory(made, timing):
    step, calls = made(timing), 400
    for _ in range(50):
        step()
    before = allocated()
    for _ in range(calls):
        step()
    assert allocated() - before < LEAST * calls


@pytest.mark.kernels
def test_strings_are_read():
    with pytest.raises(RuntimeError, match=r'timing must be "step" or "window", got "a long name, .*x"'):
        torch.ops.tandem.window_product(
            te.SpikeTrain.from_counts(torch.ones(2, 4), T=4).stored, 4, torch.rand(3, 4), [], [], [], 1,
            "a long name, longer than any string that is stored in place, x",
        )  # fmt: skip
