"""More than 2^31 elements: offsets do not wrap around. Only the last block runs, in memory that is reserved but mostly
untouched; a 32-bit offset would hit other pages of it."""

import math
import mmap
from typing import Any

import pytest
import torch
from harness import AS_IT_LIES, DTYPES, Buffer, Emulator, Outputs, Struct
from neuron_layers import IMPULSE, TRAIN, Layer, pack, pack_mask, random_layer
from products import LINEAR, layer_of, random_weight
from torch import Tensor

BEFORE = 9 * 2**30  # reach of an offset that wraps around
NO_RESERVE = 0x4000


def huge(*shape: int, dtype: torch.dtype) -> Tensor:
    """Zeros whose pages are allocated on first access."""
    size = math.prod(shape) * dtype.itemsize
    try:
        memory = mmap.mmap(-1, BEFORE + size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    except OSError:
        pytest.skip(f"the system reserves no {(BEFORE + size) >> 30} GB of addresses")
    return torch.frombuffer(memory, dtype=dtype, offset=BEFORE).view(shape)


def lies(tensor: Tensor) -> Buffer:
    return Buffer(tensor, AS_IT_LIES)


def neuron_in(layer: Layer, size: int) -> tuple[Struct, Outputs]:
    """Arguments and outputs of ``size`` neurons, the last of which are those of ``layer``."""
    neuron, channels = layer.neuron(), layer.currents.shape[-1]
    out = {
        "stored": huge((layer.T + 7) // 8, size, dtype=torch.uint8),
        "counts": huge(size, dtype=torch.float32),
        "v": huge(size, dtype=torch.float32),
        "mask": huge(size // 8, dtype=torch.uint8),
        "bad": huge(size // channels, dtype=torch.float32),
    }
    neuron.fields |= {"neurons": size} | {name: lies(tensor) for name, tensor in out.items()}
    return neuron, out


def compare(want: Outputs, out: Outputs) -> None:
    for name, tensor in out.items():
        last = want[name][0].numel() if name == "stored" else want[name].numel()
        assert torch.equal(tensor[..., -last:].flatten(), want[name].flatten()), name


def test_scan(plain: Emulator) -> None:
    block, T = 512, 10
    size = 2**31 + block
    layer = random_layer(3, T, (1, block), torch.float32, TRAIN, None)
    layer.scale, layer.shift = torch.randn(2, block).unbind()
    layer.steps, layer.gate, layer.v_init = T, "relu", None
    currents = huge(T, size, dtype=torch.float32)
    currents[:, -block:] = layer.currents[:, 0]
    kind = {"dtype": DTYPES[torch.float32], "source": TRAIN}
    plain.begin(0, size // block - 1, 1)
    neuron, out = neuron_in(layer, size)
    plain.launch("if_scan", currents=lies(currents), **kind, neuron=neuron)
    compare(plain.on_cpu("if_scan", currents=layer.currents, **kind, neuron=layer.neuron()), out)


def test_product(plain: Emulator) -> None:
    K, N, B, T = 16, 16, 2**27 + 16, 16
    plain.begin()
    g = torch.Generator().manual_seed(0)
    weight = random_weight(g, N, 1, 1, K)
    spikes = pack(torch.rand(T, 16, 1, 1, K, generator=g) < 0.3)
    layer = Layer(torch.zeros(16, N), T, IMPULSE)
    planes = huge(T // 8, B, K, dtype=torch.uint8)
    planes[:, -16:] = spikes.view(-1, 16, K)
    neuron, out = neuron_in(layer, B * N)
    large = layer_of(plain, LINEAR, spikes, weight, neuron.fields)
    large.fields |= {"geometry": LINEAR.geometry(B, K, N), "stored": lies(planes)}
    small = layer_of(plain, LINEAR, spikes, weight, layer.neuron().fields)
    plain.begin(0, B // 16 - 1, 1)  # not of the kernel that prepares the weights
    plain.launch("run", layer=large)
    compare(plain.on_cpu("run", layer=small), out)


def test_planes_and_gradients(plain: Emulator) -> None:
    block, T = 1024, 10
    size = 2**31 + block

    def launch(name: str, **arguments: Any) -> None:
        given = {key: lies(value) if isinstance(value, Tensor) else value for key, value in arguments.items()}
        plain.launch(name, **given)

    spikes = (torch.rand(T, block) < 0.3).to(torch.uint8)
    dense, planes = huge(T, size, dtype=torch.uint8), huge(2, size, dtype=torch.uint8)
    dense[:, -block:] = spikes
    plain.begin(0, size // block - 1, 1)
    launch("pack", spikes=dense, size=1, is_float=False, T=T, neurons=size, planes=planes)
    assert torch.equal(planes[:, -block:], pack(spikes))
    dense[:, -block:] = 7
    launch("unpack", planes=planes, T=T, neurons=size, spikes=dense, size=1, one=1)
    assert torch.equal(dense[:, -block:], spikes)
    counts = huge(size, dtype=torch.float32)
    launch("counts", planes=planes, P=2, neurons=size, counts=counts, dtype=DTYPES[torch.float32])
    assert torch.equal(counts[-block:], spikes.sum(0).float())
    grad, out, mask = counts, huge(size, dtype=torch.float32), huge(size // 8, dtype=torch.uint8)
    grad[-block:] = torch.randn(block)
    is_open = torch.rand(block) < 0.5
    mask[-block // 8 :] = pack_mask(is_open)
    launch("gate_grad", grad=grad, dtype=DTYPES[torch.float32], mask=mask, threshold=0.5, neurons=size, grad_z=out)
    assert torch.equal(out[-block:], torch.where(is_open, grad[-block:] / 0.5, 0.0))
