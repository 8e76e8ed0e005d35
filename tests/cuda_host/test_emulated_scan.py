"""The scan's CUDA source on the emulation: the reference's bits, no report of the checker, each byte moved once."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Collection

import pytest
import torch
from harness import DTYPES, INOUT, Emulator, NeuronArgs, pointer
from neuron_layers import (
    CONSTANT,
    GATES,
    IMPULSE,
    TRAIN,
    Layer,
    Outputs,
    check_outputs,
    compute_dtype,
    expected,
    pack,
    place_neurons,
    random_layer,
)

# Neurons as [B, C]: tails of the block, of the warp, of a byte of the mask, of four neurons; channels that are no
# multiple of four; more than one block of each kernel.
SHAPES = [(1, 1), (3, 7), (2, 12), (5, 36), (1, 130), (3, 172), (4, 144)]


def run(
    emulator: Emulator, layer: Layer, seed: int = 0, offset: int = 0, shifted: Collection[str] | None = None
) -> Outputs:
    emulator.begin(seed)
    dtype = DTYPES[layer.currents.dtype]
    shift = offset if shifted is None or "currents" in shifted else 0
    currents = pointer(emulator.place("currents", layer.currents, offset=shift))
    args, out = place_neurons(emulator, layer, offset, shifted)
    call = emulator.lib.emulated_if_scan64 if dtype == DTYPES[torch.float64] else emulator.lib.emulated_if_scan
    status = call(currents, dtype, layer.source, ctypes.byref(args))
    reports = emulator.reports()
    assert status == 0, reports
    assert not reports
    return out


def check(emulator: Emulator, layer: Layer, seed: int = 0, offset: int = 0) -> None:
    check_outputs(layer, run(emulator, layer, seed, offset))


@pytest.mark.parametrize("residual", [None, "planes", "currents"])
@pytest.mark.parametrize("source", [TRAIN, CONSTANT, IMPULSE])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_bits(plain: Emulator, dtype: torch.dtype, source: int, residual: str | None) -> None:
    for i, (T, shape) in enumerate(itertools.product([1, 2, 4, 7, 8, 9, 16, 33, 255], SHAPES)):
        check(plain, random_layer(i, T, shape, dtype, source, residual), seed=i % 3, offset=i % 2)


@pytest.mark.parametrize("residual", [None, "planes", "currents"])
@pytest.mark.parametrize("source", [TRAIN, CONSTANT, IMPULSE])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_accesses(checked: Emulator, dtype: torch.dtype, source: int, residual: str | None) -> None:
    for i, (T, shape) in enumerate(itertools.product([4, 8, 16, 19], [(3, 7), (2, 12), (5, 36), (3, 172)])):
        check(checked, random_layer(i, T, shape, dtype, source, residual), seed=i % 3, offset=i % 2)
        for name in ("currents", "residual"):
            if name in checked.buffers:
                touches = checked.touches(name)
                assert (touches.least_reads, touches.most_reads) == (1, 1), name


@pytest.mark.parametrize("residual", [None, "planes", "currents"])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_long_windows(checked: Emulator, dtype: torch.dtype, residual: str | None) -> None:
    for (i, shape), gate in itertools.product(enumerate([(3, 7), (5, 36)]), GATES):
        layer = random_layer(i, 300, shape, dtype, TRAIN, residual)
        layer.gate = gate
        layer.threshold = max(layer.threshold, 0.8)  # counts that a bfloat16 holds
        check(checked, layer, offset=i)
        if dtype == torch.float32:
            check_outputs(layer, run_in_pieces(checked, layer, [8, 264, 28]))


def test_as_many_steps_before_as_after(checked: Emulator) -> None:
    """A piece in the middle is no window of its own, whatever its size."""
    layer = random_layer(1, 24, (5, 36), torch.float32, TRAIN, None)
    check_outputs(layer, run_in_pieces(checked, layer, [8, 8, 8]))


def run_in_pieces(emulator: Emulator, layer: Layer, pieces: list[int]) -> Outputs:
    emulator.begin()
    neurons, currents = layer.currents[0].numel(), layer.currents.split(pieces)
    placed = [emulator.place(f"currents {i}", part.contiguous()) for i, part in enumerate(currents)]
    args, out = place_neurons(emulator, layer)
    types = {"carried v": torch.float32, "carried z": torch.float32, "carried counts": torch.int16}
    state = [emulator.place(name, torch.zeros(neurons, dtype=dtype), INOUT) for name, dtype in types.items()]
    for i, steps in enumerate(pieces):
        window = sum(pieces[:i]), steps, *map(pointer, state)
        status = emulator.lib.emulated_if_scan_piece(pointer(placed[i]), 0, ctypes.byref(args), *window)
        assert status == 0
    assert not emulator.reports()
    return out


def random_window(
    seed: int, T: int, shape: tuple[int, int], dtype: torch.dtype, source: int, residual: str | None
) -> Layer:
    """Of window timing, on both sides of the gates and of its most spikes."""
    layer = random_layer(seed, T, shape, dtype, source, None)
    layer.window, layer.leak, layer.steps, layer.gate = True, 1.0, T, GATES[seed % 2]
    if source == IMPULSE:
        layer.currents *= T
    if residual == "planes":
        layer.residual = torch.randint(0, 256, (1, *shape), dtype=torch.uint8)
        layer.residual_scale = torch.randn(shape[-1]).to(compute_dtype(dtype)) / 16 if seed % 3 else None
    elif residual == "currents":
        layer.residual = torch.randn(1, *shape).to(compute_dtype(dtype))
    return layer


@pytest.mark.parametrize("residual", [None, "planes", "currents"])
@pytest.mark.parametrize("source", [TRAIN, CONSTANT, IMPULSE])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_window(checked: Emulator, dtype: torch.dtype, source: int, residual: str | None) -> None:
    for i, (T, shape) in enumerate(itertools.product([1, 8, 21, 255], [(3, 7), (2, 12), (5, 36), (3, 172)])):
        check(checked, random_window(i, T, shape, dtype, source, residual), seed=i % 3, offset=i % 2)


def test_window_traffic(checked: Emulator) -> None:
    """A product of float32 comes in, a byte, a count and a bit of the mask go out."""
    layer = random_window(2, 8, (16, 64), torch.float32, IMPULSE, "planes")
    check(checked, layer)
    for name, moved, write in [("currents", 4096, False), ("residual", 1024, False), ("planes", 1024, True)]:
        traffic = checked.traffic(name, write)
        assert traffic.bytes == moved
        assert traffic.sectors == traffic.least_sectors


BUFFERS = ["currents", "scale", "shift", "residual_scale", "v_init", "residual", "planes", "counts", "v"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BUFFERS)
def test_alignment(checked: Emulator, name: str, dtype: torch.dtype) -> None:
    """One buffer alone that is not aligned for four neurons at a time."""
    shape = (2, 8)
    for residual, (T, offset) in itertools.product(["planes", "currents"], [(3, 1), (8, 2)]):
        layer = random_layer(3, T, shape, dtype, TRAIN, residual)
        layer.scale, layer.shift, layer.residual_scale, layer.v_init = torch.randn(4, 8).unbind()
        layer.v_init = layer.v_init.clone()
        check_outputs(layer, run(checked, layer, offset=offset, shifted=[name]))


@pytest.mark.parametrize("T", [4, 8, 16, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_traffic(checked: Emulator, dtype: torch.dtype, T: int) -> None:
    """Whole sectors, by the widest instructions that four neurons allow."""
    scale, shift, v_init = torch.randn(3, 64).unbind()
    layer = Layer(torch.randn(T, 16, 64).to(dtype), T, scale=scale, shift=shift, v_init=v_init.clone())
    N, size = 16 * 64, layer.currents.element_size()
    check(checked, layer)
    read = checked.traffic("currents")
    assert read.bytes == T * N * size
    assert read.sectors == read.least_sectors == read.bytes // 32
    assert read.requests == T * N // (32 * 4)
    for name, bytes_out in {"planes": (T + 7) // 8 * N, "counts": N * size, "v": 4 * N, "mask": N // 8}.items():
        written = checked.traffic(name, write=True)
        assert written.bytes == bytes_out
        assert written.sectors == written.least_sectors, name


@pytest.mark.parametrize("name", ["scale", "shift", "residual_scale", "v_init"])
def test_parameters_that_begin_anew_within_four_neurons(checked: Emulator, name: str) -> None:
    """Four samples of six features: four neurons at a time would reach over the end of one parameter."""
    residual = pack(torch.rand(8, 4, 6) < 0.5) if name == "residual_scale" else None
    check(checked, Layer(torch.randn(8, 4, 6), 8, residual=residual, **{name: torch.randn(6)}))


def test_special_values(plain: Emulator) -> None:
    """NaN never fires and closes every gate; infinities go where IEEE sends them."""
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e38, -1e38, 1e-45, -0.0, 0.0])
    for gate in GATES:
        layer = Layer(special.repeat(8, 4, 1), 8, gate=gate)
        got, want = run(plain, layer), expected(layer)
        for name, tensor in got.items():
            assert torch.equal(tensor.nan_to_num(7.0), want[name].nan_to_num(7.0)), name
        assert got["counts"][0, 0] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("T", [8, 12])
def test_samples_that_are_not_finite(checked: Emulator, T: int, dtype: torch.dtype) -> None:
    """They are marked by any number of threads, the others by none; a mark from before stays."""
    layer = Layer(torch.randn(T, 40, 36, dtype=dtype), T)
    layer.currents[T - 1, 3, 35], layer.currents[0, 17], layer.currents[T // 2, 39, 0] = math.nan, math.inf, -math.inf
    bad = run(checked, layer)["bad"]
    assert bad.isnan().nonzero().flatten().tolist() == [3, 17, 39]
    assert torch.equal(bad.nan_to_num(0), torch.zeros(40))


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize(("channels", "v_init"), [(6, None), (6, 1), (64, 64), (64, 128)])
def test_four_neurons_to_a_thread(checked: Emulator, channels: int, v_init: int | None, window: bool) -> None:
    """Where they are aligned and no parameter begins anew within them, and no thread is without."""
    layer = Layer(torch.zeros(8, 3072 // channels, channels), 8, window=window)
    layer.v_init = None if v_init is None else torch.zeros(v_init)
    layer.residual_scale = torch.ones(channels) if channels == 64 else None
    layer.residual = torch.zeros(1, *layer.currents.shape[1:], dtype=torch.uint8)
    run(checked, layer)
    assert checked.traffic("residual").requests == checked.warps("if_") == 3072 // 128


def test_empty(plain: Emulator) -> None:
    plain.begin()
    args = NeuronArgs(neurons=0, channels=4, T=8)
    assert plain.lib.emulated_if_scan(None, 0, TRAIN, ctypes.byref(args)) == 0
