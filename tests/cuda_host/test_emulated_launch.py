"""The layers that the fused product supports and prefers, and how a launch fails."""

import ctypes
from typing import Any

import pytest
import torch
from harness import Emulator, Struct, output
from products import FLOAT16, FLOAT32, FLOAT32_HIGH, FLOAT32_MEDIUM, INT8, LINEAR, Conv, check


@pytest.mark.parametrize(
    ("mode", "T", "rows", "inputs", "groups", "outputs", "fused"),
    [
        (FLOAT16, 8, 10**6, 4096, 1, 4096, True),
        (INT8, 8, 10**6, 4096, 1, 4096, True),
        (FLOAT32, 8, 10**6, 4096, 1, 4096, True),
        (FLOAT32_HIGH, 8, 32, 4096, 1, 4096, True),  # bound by the weights
        (FLOAT32_HIGH, 8, 33, 4096, 1, 4096, False),
        (FLOAT32_HIGH, 8, 33, 768, 1, 4096, True),  # bound by the currents
        (FLOAT32_HIGH, 8, 33, 769, 1, 4096, False),
        (FLOAT32_MEDIUM, 8, 10**6, 4096, 1, 4096, True),
        (FLOAT16, 8, 32, 64, 64, 64, False),  # depthwise
        (FLOAT16, 8, 32, 64, 4, 64, True),
        (FLOAT16, 8, 32, 64, 1, 10, True),
    ],
)
def test_where_it_is_favoured(
    plain: Emulator, mode: int, T: int, rows: int, inputs: int, groups: int, outputs: int, fused: bool
) -> None:
    layer = {"geometry": Conv(groups=groups).geometry(rows, inputs, outputs), "neuron": {"T": T}}
    assert plain.call("prefers_run", Struct("Layer", layer), mode, result=ctypes.c_bool) == fused


@pytest.mark.parametrize(
    ("change", "mode"),
    [
        ({}, FLOAT16),
        ({"outputs": 12}, None),  # the mask needs whole bytes
        ({"kernel": (3, 3), "height": 3, "width": 3, "channels_last": False}, None),  # the wrong order of weights
        ({"channels": 0}, None),
        ({"channels": 2**17}, FLOAT16),
        ({"channels": 2**17}, -INT8),  # sums exceed 2^31
        ({"channels": 2**17 - 16}, INT8),
        ({"channels": 2**24}, None),
        ({"height": 2**16, "width": 2**15}, None),
        ({"height": 2**16, "width": 2**15 - 1}, FLOAT16),
        ({"width": 2**31 - 1}, FLOAT16),
        ({"channels": 2**20, "outputs": 2**20, "groups": 2**16}, None),
        ({"channels": 2**20, "outputs": 2**19, "groups": 2**15}, FLOAT16),
        ({"channels": 2**20, "outputs": 2**20, "groups": 2**16}, FLOAT32),  # without tiles
        ({"outputs": 2**31, "groups": 2**12}, None),
        ({"outputs": 16 * 65535 + 8}, None),  # more blocks than a launch can have
        ({"outputs": 16 * 65535}, FLOAT16),
        ({"width": 2, "stride": (1, 4), "padding": (0, 2**30 - 1)}, None),  # positions exceed 2^31
        ({"width": 1, "stride": (1, 4), "padding": (0, 2**30 - 1)}, FLOAT16),
    ],
)
def test_what_it_takes(plain: Emulator, change: dict[str, Any], mode: int | None) -> None:
    """``mode``: supported weights; if negative or None, not supported."""
    geometry = LINEAR.geometry(2, 16, 16) | change
    weights = {"channels_last": geometry.pop("channels_last", True)}
    neuron = {"neurons": 24, "T": 1, "mask": output(3, dtype=torch.uint8)}
    layer = Struct("Layer", {"geometry": geometry, "weights": weights, "neuron": neuron})
    given = layer, FLOAT16 if mode is None else abs(mode)
    plain.begin()
    taken = plain.call("can_run", *given, result=ctypes.c_bool)
    assert taken == (mode is not None and mode >= 0)
    if not taken:
        assert plain.call("run", *given, plain.stream) != 0


def test_an_error_stays_with_its_launch(plain: Emulator) -> None:
    """On a GPU with less shared memory the launch fails, but the next launch does not."""
    limit = plain.lib.emulation_opt_in_limit(48 * 1024)
    try:
        with pytest.raises(AssertionError):
            check(plain, 8, 9, 24, 16, torch.float16, seed=0)
    finally:
        plain.lib.emulation_opt_in_limit(limit)
    check(plain, 4, 1, 8, 16, torch.int8, seed=0)
