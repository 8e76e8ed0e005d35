"""Which kernel runs a layer, and how a launch fails."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from gpu import predictions
from harness import Emulator, Struct, output
from neuron_layers import pack
from products import DEEP, LARGE, LINEAR, NARROW, NONE, PLAIN, WEIGHTS, WIDE, check, layer_of

from build_tools.compile import ROOT

H100, T4 = (132, 228), (40, 64)  # multiprocessors, their shared memory in kB


def choice(
    emulator: Emulator,
    geometry: dict[str, Any],
    T: int = 8,
    window: bool = False,
    card: Any = H100,
    dtype: torch.dtype = torch.float32,
) -> int:
    weights, neuron = {"dtype": WEIGHTS[dtype]}, {"T": T, "timing": int(window)}
    layer = {"geometry": geometry, "weights": weights, "neuron": neuron}
    given = Struct("Card", {"multiprocessors": card[0], "shared": card[1] * 1024})
    return emulator.call("choose_kernel", Struct("Layer", layer), given)


@pytest.mark.parametrize(
    ("T", "rows", "outputs", "card", "chosen"),
    [
        (8, 8, 4096, H100, NARROW),
        (8, 64, 4096, H100, WIDE),  # 128 blocks for 132 multiprocessors
        (8, 64, 3136, H100, DEEP),  # 98
        (8, 64, 3200, H100, WIDE),  # 100
        (4, 64, 3136, H100, DEEP),
        (16, 64, 768, H100, DEEP),  # 96
        (16, 64, 800, H100, WIDE),  # 100
        (16, 64, 928, T4, WIDE),
        (16, 33, 64, T4, DEEP),
        (8, 33, 64, T4, DEEP),
        (8, 10**6, 10, H100, WIDE),
    ],
)
def test_tiles(plain: Emulator, T: int, rows: int, outputs: int, card: tuple[int, int], chosen: int) -> None:
    assert choice(plain, LINEAR.geometry(rows, 64, outputs), T, card=card) == chosen


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "dtype", "card", "chosen"),
    [
        (64, 4096, 4096, torch.float16, H100, NARROW),
        (16384, 2304, 512, torch.float16, H100, LARGE),  # 256 blocks for 132 multiprocessors
        (16384, 2304, 512, torch.float16, T4, LARGE),
        (16384, 2304, 512, torch.float32, H100, WIDE),
        (16384, 8225, 512, torch.float16, H100, WIDE),  # the sum of two digits does not fit
        (16384, 8224, 512, torch.float16, H100, LARGE),
        (16384, 8224, 512, torch.int8, H100, LARGE),
        (4096, 2304, 512, torch.float16, H100, WIDE),  # 64, and 128
        (3072, 2304, 512, torch.float16, H100, NARROW),  # 96
        (10**6, 2304, 64, torch.float16, H100, NARROW),
        (10**6, 2304, 65, torch.float16, H100, LARGE),
    ],
)
def test_tiles_of_windows(
    plain: Emulator, rows: int, inputs: int, outputs: int, dtype: torch.dtype, card: tuple[int, int], chosen: int
) -> None:
    geometry = LINEAR.geometry(rows, inputs, outputs)
    assert choice(plain, geometry, window=True, card=card, dtype=dtype) == chosen


@pytest.mark.parametrize(
    ("change", "steps", "window"),  # what is chosen for either timing
    [
        ({}, NARROW, NARROW),
        ({"outputs": 100}, NARROW, NARROW),
        ({"kernel": (3, 3), "height": 3, "width": 3}, NARROW, NARROW),
        ({"channels": 0}, PLAIN, PLAIN),
        ({"channels": 65_792}, NARROW, NARROW),
        ({"channels": 65_794}, NARROW, PLAIN),  # sums of a digit of counts exceed 2^31
        ({"channels": 2**24 - 1}, NARROW, PLAIN),
        ({"channels": 2**24}, NONE, NONE),
        ({"height": 2**16, "width": 2**15}, NONE, NONE),
        ({"height": 2**16, "width": 2**15 - 1}, WIDE, NARROW),
        ({"width": 2**31 - 1}, WIDE, NARROW),
        ({"channels": 2**20, "outputs": 2**20, "groups": 2**16}, PLAIN, PLAIN),
        ({"channels": 2**20, "outputs": 2**19, "groups": 2**15}, NARROW, NARROW),
        ({"channels": 64, "outputs": 64, "groups": 64}, PLAIN, PLAIN),  # depthwise
        ({"channels": 64, "outputs": 64, "groups": 4}, NARROW, NARROW),
        ({"outputs": 2**31, "groups": 2**12}, NONE, NONE),
        ({"outputs": 16 * 65535 + 8}, PLAIN, PLAIN),  # more blocks than a launch can have
        ({"outputs": 16 * 65535}, NARROW, NARROW),
        ({"width": 2, "stride": (1, 4), "padding": (0, 2**30 - 1)}, NONE, NONE),  # positions exceed 2^31
        ({"width": 1, "stride": (1, 4), "padding": (0, 2**30 - 1)}, WIDE, NARROW),
        ({"width": 2**15, "height": 2**15, "padding": (2**15, 2**15)}, NONE, NONE),
        ({"width": 2**30, "kernel": (1, 2), "dilation": (1, 2**29)}, NONE, NONE),
    ],
)
def test_choice(plain: Emulator, change: dict[str, Any], steps: int, window: int) -> None:
    geometry = LINEAR.geometry(2, 16, 16) | change
    assert choice(plain, geometry) == steps
    assert choice(plain, geometry, window=True) == window


@pytest.mark.parametrize("layer", [predictions.LINEAR, predictions.CONV], ids=lambda layer: layer.name)
@pytest.mark.parametrize("way", predictions.KERNELS)
def test_what_the_predictions_assume(plain: Emulator, layer: predictions.Layer, way: str) -> None:
    geometry = LINEAR.geometry(layer.pixels, layer.inputs, layer.outputs)
    choices = {"narrow": NARROW, "wide": WIDE, "large": LARGE}
    for name, shared in {"H100": 228, "A100": 164, "4090": 100, "T4": 64}.items():
        card, window = predictions.CARDS[name], way == predictions.WINDOW
        for digits, dtype in {2: torch.float16, 3: torch.float32}.items():
            where = card.multiprocessors, shared
            chosen = choice(plain, geometry, window=window, card=where, dtype=dtype)
            assert chosen == choices[predictions.tile_of(card, layer, way, digits)], (name, digits)


def test_a_layer_without_a_kernel_is_refused(plain: Emulator) -> None:
    plain.begin()
    neuron = {"neurons": 32, "T": 1, "mask": output(4, dtype=torch.uint8)}
    geometry = LINEAR.geometry(2, 2**24, 16)
    assert plain.call("run", Struct("Layer", {"geometry": geometry, "neuron": neuron}), plain.stream) != 0


def test_gates_that_do_not_fill_bytes_need_their_own(checked: Emulator) -> None:
    checked.begin()
    spikes, weight = pack(torch.ones(1, 2, 1, 1, 16)), torch.ones(12, 1, 1, 16)
    sizes = {"neurons": 24, "channels": 12, "T": 1, "steps": 1}
    neuron = {**sizes, "threshold": 1.0, "leak": 1.0, "stored": output(1, 24, dtype=torch.uint8)}
    layer = layer_of(checked, LINEAR, spikes, weight, neuron)
    layer.fields["neuron"]["mask"] = output(3, dtype=torch.uint8)
    assert checked.call("run", layer, checked.stream) == 1  # cudaErrorInvalidValue
    assert not checked.lib.emulation_reports()


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["75", "90"])
def test_the_kernels_of_other_gpus(arch: str) -> None:
    """Turing needs valid addresses of lanes whose rows ldmatrix does not load."""
    files = [f"tests/cuda_host/test_{name}.py" for name in ("checker", "emulated_product", "emulated_smoke")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "TANDEM_EMULATED_ARCH": arch}, capture_output=True)
    assert done.returncode == 0, done.stdout.decode()[-4000:]


def test_an_error_stays_with_its_launch(plain: Emulator) -> None:
    """On a GPU with less shared memory the launch fails, but the next launch does not."""
    plain.card(most=32 * 1024)
    with pytest.raises(AssertionError):
        check(plain, 8, 9, 24, 16, torch.float16, seed=0)
    plain.card()
    check(plain, 4, 1, 8, 16, torch.int8, seed=0)
