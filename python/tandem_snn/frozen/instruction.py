"""The description of a frozen layer: lowering makes it, files hold it, stages run it, and exports read it."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tandem_ext import checks

Pair = tuple[int, int]
# The executor gives the names of the fields of headers and instructions, the kinds of instructions, and constants.
HEADER, FIELDS, KINDS, _constants = (line.split() for line in torch.ops.tandem.frozen_fields.default().splitlines())
CONSTANTS = {name: int(value) for name, value in (each.split("=") for each in _constants)}
ABSENT, INPUT = CONSTANTS["absent"], CONSTANTS["input"]  # the numbers of two special values: none, the network's input
FIRES = ("layer", "average", "neurons")  # kinds with neurons
CONVERSIONS = {"popcount": "window", "burst": "step"}  # kinds that convert trains to another timing
TENSORS = ("weight", "step", "scale", "shift", "residual_scale", "v_init", "index")
_NAMES = {"kind": KINDS, "timing": checks.TIMINGS}  # words are indices of these


class CannotLower(ValueError):
    """The network cannot be lowered to stages or a program. ``layer`` names the layer, or is "net"."""

    def __init__(self, layer: str, why: str) -> None:
        super().__init__(f"{layer}: {why}")
        self.layer, self.why = layer, why


@dataclass(frozen=True)
class Instruction:
    """One layer, or one move (pooling, flatten): the fields of an instruction (``csrc/kernels/network/program.h``).

    Attributes:
        kind: "layer": synapses and neurons; "neurons" on currents; "sum" of currents or trains; "readout"; or a move.
        input, residual: the numbers of the values it reads: earlier instructions, or INPUT.
        fires: False returns currents: of every step, or with timing "window" their sum.
        axes: the number of spatial dimensions.
        outputs, channels: N and C / groups of the weight [N, C / groups, *kernel]. Of other kinds outputs is the number
            of channels; channels, of a gather, how many channels or features its index may name.
        kernel, stride, padding, after, dilation: (vertical, horizontal); ``after`` is extra padding at the end.
        ceil: ceil_mode of a max_pool. first, last: the dimensions of a flatten.
        few_bits: whether the weight is int8, in units of ``step``.
        weight, step, scale, shift, residual_scale, v_init, index: where a program's numbers have these tensors, or
            ABSENT; see :class:`tandem_snn.frozen.stages.Stage`, which holds them.
        v_size: the spatial sizes of a v_init for each neuron, which may be 1; (0, 0): it is one number.
        gain: a factor of counts, for an instruction that reads counts instead of spikes.
        timing: the timing of neurons or currents, which is also that of the trains that it reads. The kinds
            "popcount" and "burst" convert it.
        own_T: T of neurons with timing "window", or of the train that attention reads; 0: T of the network.
        by_channel: whether the index of a gather names channels; else features, and ``kernel`` is the result's size.
    """

    kind: str
    input: int
    residual: int = ABSENT
    fires: bool = True
    axes: int = 2
    outputs: int = 0
    channels: int = 0
    groups: int = 1
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    after: Pair = (0, 0)
    dilation: Pair = (1, 1)
    ceil: bool = False
    first: int = 1
    last: int = -1
    few_bits: bool = False
    weight: int = ABSENT
    step: int = ABSENT
    scale: int = ABSENT
    shift: int = ABSENT
    residual_scale: int = ABSENT
    v_init: int = ABSENT
    v_size: Pair = (0, 0)
    threshold: float = 1.0
    leak: float = 1.0
    gain: float = 1.0
    timing: str = "step"
    own_T: int = 0
    index: int = ABSENT
    by_channel: bool = False

    def over_axes(self, sizes: Pair) -> tuple[int, ...]:
        return sizes[2 - self.axes :]

    def words(self) -> list[int]:
        """Return the fields as a program has them, an int64 each."""
        words: list[int] = []
        for name, example in _EXAMPLE.items():
            value: Any = getattr(self, name)
            if name in _PAIRS:
                words += value
            elif isinstance(example, float):
                words += struct.unpack("<q", struct.pack("<d", value))
            else:
                words.append(_NAMES[name].index(value) if name in _NAMES else int(value))
        return words

    @classmethod
    def of_words(cls, words: Iterable[int]) -> Instruction:
        """Return the instruction with these words, which the executor has checked."""
        word, values = iter(words), dict[str, Any]()
        for name, example in _EXAMPLE.items():
            if name in _PAIRS:
                values[name] = (next(word), next(word))
            elif isinstance(example, float):
                (values[name],) = struct.unpack("<d", struct.pack("<q", next(word)))
            else:
                values[name] = _NAMES[name][next(word)] if name in _NAMES else type(example)(next(word))
        return cls(**values)


_EXAMPLE = asdict(Instruction("layer", INPUT))
_PAIRS = [name for name, value in _EXAMPLE.items() if isinstance(value, tuple)]
_FLAT = [f"{name}{axis}" for name in _EXAMPLE for axis in (("_h", "_w") if name in _PAIRS else ("",))]
if _FLAT != FIELDS:
    raise ImportError(f"tandem_snn and tandem_ext are of different versions: their instructions are {_FLAT}, {FIELDS}")
