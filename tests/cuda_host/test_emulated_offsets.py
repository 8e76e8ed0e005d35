"""More than 2^31 elements: offsets do not wrap around. Only the last block runs, in memory that is reserved and hardly
touched; an offset of 32 bits would hit other pages of it."""

from __future__ import annotations

import ctypes
import math
import mmap

import pytest
import torch
from harness import DTYPES, Emulator, NeuronArgs, pointer
from neuron_layers import TRAIN, Layer, expected, pack, pack_mask, random_layer
from test_emulated_product import FLOAT16, LINEAR, dyadic_weight
from torch import Tensor

BEFORE = 9 * 2**30  # what an offset that wraps around reaches
NO_RESERVE = 0x4000


def huge(*shape: int, dtype: torch.dtype) -> Tensor:
    """Zeros, whose pages are made when they are touched."""
    size = math.prod(shape) * dtype.itemsize
    try:
        memory = mmap.mmap(-1, BEFORE + size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    except OSError:
        pytest.skip(f"the system reserves no {(BEFORE + size) >> 30} GB of addresses")
    return torch.frombuffer(memory, dtype=dtype, offset=BEFORE).view(shape)


def last_block(emulator: Emulator, blocks: int) -> None:
    emulator.begin()
    emulator.lib.emulation_only_blocks(ctypes.c_uint64(blocks - 1), ctypes.c_uint64(1))


def neurons(layer: Layer, size: int, channels: int) -> tuple[ctypes.Structure, dict[str, Tensor]]:
    """Arguments for ``size`` neurons of which the last are those of ``layer``."""
    out = {
        "planes": huge((layer.T + 7) // 8, size, dtype=torch.uint8),
        "counts": huge(size, dtype=torch.float32),
        "v": huge(size, dtype=torch.float32),
        "mask": huge(size // 8, dtype=torch.uint8),
        "bad": huge(size // channels, dtype=torch.float32),
    }
    args = NeuronArgs(neurons=size, channels=channels, sample=channels, T=layer.T, steps=layer.T,
                      threshold=layer.threshold, leak=layer.leak, scale=pointer(layer.scale),
                      shift=pointer(layer.shift), **{name: pointer(t) for name, t in out.items()})  # fmt: skip
    return args, out


def compare(layer: Layer, out: dict[str, Tensor]) -> None:
    for name, want in expected(layer).items():
        got = out[name][..., -want[0].numel() :] if name == "planes" else out[name][-want.numel() :]
        assert torch.equal(got.flatten(), want.flatten()), name


def test_scan(plain: Emulator) -> None:
    block, T = 512, 10
    size = 2**31 + block
    layer = random_layer(3, T, (1, block), torch.float32, TRAIN, None)
    layer.scale, layer.shift = torch.randn(2, block).unbind()
    layer.steps, layer.gate, layer.v_init = T, "relu", None
    currents = huge(T, size, dtype=torch.float32)
    currents[:, -block:] = layer.currents[:, 0]
    last_block(plain, size // block)
    args, out = neurons(layer, size, block)
    assert plain.lib.emulated_if_scan(pointer(currents), DTYPES[torch.float32], TRAIN, ctypes.byref(args)) == 0
    compare(layer, out)


def test_product(plain: Emulator) -> None:
    K, N, B, T = 16, 16, 2**27 + 32, 16
    g = torch.Generator().manual_seed(0)
    weight = dyadic_weight(g, N, K, torch.float16).view(N, 1, 1, K)
    spikes = torch.rand(T, 32, 1, 1, K, generator=g) < 0.3
    layer = Layer(LINEAR(spikes, weight), T)
    planes = huge(T // 8, B, K, dtype=torch.uint8)
    planes[:, -32:] = pack(spikes).view(-1, 32, K)
    last_block(plain, B // 32)
    args, out = neurons(layer, B * N, N)
    sizes = (ctypes.c_int64 * 15)(B, 1, 1, K, N, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1)
    arguments = pointer(planes), pointer(weight), None, sizes, FLOAT16, ctypes.byref(args)
    assert plain.lib.emulated_product_if(*arguments) == 0
    compare(layer, out)


def test_planes_and_gradients(plain: Emulator) -> None:
    block, T = 1024, 10
    size = 2**31 + block
    n = ctypes.c_int64(size)
    spikes = (torch.rand(T, block) < 0.3).to(torch.uint8)
    dense, planes = huge(T, size, dtype=torch.uint8), huge(2, size, dtype=torch.uint8)
    dense[:, -block:] = spikes
    last_block(plain, size // block)
    assert plain.lib.emulated_pack(pointer(dense), 1, False, T, n, pointer(planes)) == 0
    assert torch.equal(planes[:, -block:], pack(spikes))
    dense[:, -block:] = 7
    assert plain.lib.emulated_unpack(pointer(planes), T, n, pointer(dense), 1, ctypes.c_uint64(1)) == 0
    assert torch.equal(dense[:, -block:], spikes)
    counts = huge(size, dtype=torch.float32)
    assert plain.lib.emulated_counts(pointer(planes), 2, n, pointer(counts), DTYPES[torch.float32]) == 0
    assert torch.equal(counts[-block:], spikes.sum(0).float())
    grad, out, mask = counts, huge(size, dtype=torch.float32), huge(size // 8, dtype=torch.uint8)
    grad[-block:] = torch.randn(block)
    is_open = torch.rand(block) < 0.5
    mask[-block // 8 :] = pack_mask(is_open)
    arguments = pointer(grad), DTYPES[torch.float32], pointer(mask), ctypes.c_double(0.5), n, pointer(out)
    assert plain.lib.emulated_gate_grad(*arguments) == 0
    assert torch.equal(out[-block:], torch.where(is_open, grad[-block:] / 0.5, 0.0))
