"""Fused linear and convolutional layers for the tests of emulated kernels: arguments, calls and costs."""

from dataclasses import dataclass
from typing import Any

import torch
from harness import AS_IT_LIES, INOUT, Buffer, Emulator, Outputs, Struct, check_same, output
from neuron_layers import IMPULSE, Layer, pack, random_layer, random_window
from torch import Tensor

WEIGHTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 4}  # DType
MOST_DIGITS = {torch.float32: 4, torch.bfloat16: 2, torch.float16: 2, torch.int8: 1}
NONE, PLAIN, NARROW, DEEP, WIDE, LARGE = range(6)  # cuda::Choice


@dataclass(frozen=True)
class Conv:
    """A 2-d convolution; with the defaults a linear layer, on images of one pixel."""

    size: tuple[int, int] = (1, 1)
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    last: bool = True  # in the memory of the weights channels are last, or first

    @property
    def pixels(self) -> int:
        """The pixels of an output image."""
        axes = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in axes)
        return height * width

    def geometry(self, batch: int, channels: int, outputs: int) -> dict[str, Any]:
        axes = {"kernel": self.kernel, "stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        sizes = {"batch": batch, "height": self.size[0], "width": self.size[1], "channels": channels}
        return {**sizes, "outputs": outputs, "groups": self.groups, **axes}


LINEAR = Conv()
IMAGE = Conv((8, 4), kernel=(3, 3), padding=(1, 1))
CONVS = [
    (16, 24, Conv((5, 6), kernel=(3, 3), padding=(1, 1))),
    (16, 8, Conv((9, 7), kernel=(3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))),
    (32, 16, Conv((1, 11), kernel=(1, 5), stride=(1, 2), padding=(0, 2))),
    (3, 40, Conv((6, 6), kernel=(3, 3), padding=(2, 2))),  # channels that are not a multiple of sixteen
    (32, 32, Conv((4, 4), kernel=(3, 3), groups=2)),
    (24, 16, Conv((4, 4), kernel=(3, 3))),  # copied by eight
    (12, 9, Conv((4, 3), kernel=(2, 2), groups=3)),
    (144, 70, Conv((3, 3))),
]


def random_weight(g: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weights of several magnitudes, on no grid; some outputs have few bits."""
    if dtype == torch.int8:
        return torch.randint(-128, 128, shape, dtype=dtype, generator=g)
    weight = torch.randn(shape, generator=g) * torch.rand(shape[0], *[1] * (len(shape) - 1), generator=g)
    weight[::5] = (8 * weight[::5]).round() / 8
    return weight.to(dtype)


def in_memory(weight: Tensor, conv: Conv, name: str) -> dict[str, Any]:
    """The fields of Weights. ``weight`` is [N, *kernel, C / groups]."""
    stored = weight if conv.last else weight.permute(0, 3, 1, 2).contiguous()
    return {"data": Buffer(stored, name=name), "dtype": WEIGHTS[weight.dtype], "channels_last": conv.last}


def prepare(emulator: Emulator, conv: Conv, weight: Tensor, offset: int = 0) -> Tensor:
    """The prepared form of weights: digits, units and the number of digits of each output."""
    N = len(weight)
    shape = Struct("Geometry", conv.geometry(1, weight.shape[-1] * conv.groups, N))
    memory = torch.full((emulator.call("prepared_size", shape, WEIGHTS[weight.dtype]),), 0x55, dtype=torch.uint8)
    parts = {"digits": len(memory) - 8 * N, "units": 4 * N, "digit counts": 4 * N}
    weights = Struct("Weights", in_memory(weight, conv, "weight to prepare"))
    prepared = Buffer(memory, INOUT, parts=parts)
    shifted = ["weight to prepare"]
    return emulator.launch("prepare", offset, shifted, geometry=shape, weights=weights, prepared=prepared)["prepared"]


def layer_of(
    emulator: Emulator, conv: Conv, stored: Tensor, weight: Tensor, neuron: dict[str, Any], offset: int = 0
) -> Struct:
    """The arguments of a kernel. ``stored``: planes or counts [P, B, *size, C]."""
    geometry = conv.geometry(stored.shape[1], stored.shape[-1], len(weight))
    prepared = Buffer(prepare(emulator, conv, weight, offset), AS_IT_LIES)
    if neuron.get("mask") is not None and len(weight) // conv.groups % 8:
        neuron = neuron | {"open": Buffer(torch.zeros(neuron["neurons"], dtype=torch.uint8), INOUT)}
    fields = {"geometry": geometry, "weights": in_memory(weight, conv, "weight"), "neuron": neuron}
    return Struct("Layer", fields | {"prepared": prepared, "stored": Buffer(stored, name="spikes")})


def fire(
    emulator: Emulator, conv: Conv, layer: Layer, spikes: Tensor, weight: Tensor, seed: int = 0, offset: int = 0
) -> Outputs:
    """The outputs of the kernel that fires a layer, which must equal the CPU's. ``layer`` has everything but the
    currents. With window timing ``spikes`` are counts, [1, ...]."""
    emulator.begin(seed % 3)
    stored = spikes if layer.window else pack(spikes)
    given = layer_of(emulator, conv, stored, weight, layer.neuron().fields, offset)
    out = emulator.launch("run", offset, ["spikes"], layer=given)
    out.pop("open", None)
    check_same(out, emulator.on_cpu("run", layer=given))
    return out


def window_product(
    emulator: Emulator, conv: Conv, counts: Tensor, weight: Tensor, seed: int = 0, offset: int = 0
) -> Tensor:
    """The product of counts, in float32, which must equal the CPU's."""
    emulator.begin(seed % 3)
    u = output(counts.shape[1] * conv.pixels, len(weight))
    given = {"layer": layer_of(emulator, conv, counts, weight, {"T": 255, "timing": 1}), "u": u}
    out = emulator.launch("window_product", offset, ["spikes", "u"], **given)
    check_same(out, emulator.on_cpu("window_product", **given))
    return out["u"]


def check(
    emulator: Emulator,
    T: int,
    B: int,
    N: int,
    C: int,
    dtype: torch.dtype,
    seed: int,
    offset: int = 0,
    conv: Conv = LINEAR,
    window: bool = False,
) -> Outputs:
    """Checks a layer with random neurons, C input channels and N outputs."""
    g = torch.Generator().manual_seed(seed)
    weight = random_weight(g, N, *conv.kernel, C // conv.groups, dtype=dtype)
    spikes = torch.rand(T, B, *conv.size, C, generator=g) < 0.25
    spikes = spikes.sum(0, dtype=torch.uint8).unsqueeze(0) if window else spikes
    residual = [None, "planes", "currents"][seed % 3]
    make = random_window if window else random_layer
    layer = make(seed, T, (B * conv.pixels, N), torch.float32, IMPULSE, residual)
    if dtype == torch.int8:
        layer.scale = torch.rand(N, generator=g) / 64
    return fire(emulator, conv, layer, spikes, weight, seed, offset)


def digits_read(emulator: Emulator, N: int, outputs: int) -> tuple[int, int]:
    """How the products of N outputs, ``outputs`` per block, read the digits: bytes per input, and the number of passes
    over the inputs (one for each digit of a block)."""
    counts = emulator.buffers["prepared"][1][-4 * N :].view(torch.int32)
    return int(counts.sum()), sum(int(block.max()) for block in counts.split(outputs))


def check_banks(emulator: Emulator) -> None:
    """Shared memory has no bank conflicts."""
    for write in (False, True):
        shared = emulator.traffic("shared dynamic shared memory", write)
        assert shared.waves == shared.least_waves
