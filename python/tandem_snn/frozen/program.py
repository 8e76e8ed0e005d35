"""A list of stages as a program and its numbers, and back: what ``frozen_run`` runs and a file holds.

Fields, kinds and constants are the executor's own (``csrc/kernels/network/program.h``), and it checks what is read.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tandem_ext import checks

from .. import nn as tnn
from .stages import INPUT, SIGNALS, CannotLower, Layer, Move, Stages

_ops = torch.ops.tandem
_HEADER, _FIELDS, _KINDS, _constants = (line.split() for line in _ops.frozen_fields.default().splitlines())
_CONSTANTS = {name: int(value) for name, value in (each.split("=") for each in _constants)}
_ABSENT, _NETWORK_INPUT = _CONSTANTS["absent"], _CONSTANTS["input"]
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # in the order of the kernels' enum
_ALIGNMENT = 64
_MODES = list(SIGNALS)
_LAYER_KINDS = {(1, 0): "neurons", (0, 0): "currents", (1, 1): "activation", (0, 1): "preactivation"}
_WINDOW = ("kernel", "stride", "padding", "after", "dilation")
Row = dict[str, int]


class Facts(NamedTuple):
    """What a program says beside its instructions: T where no Encoder gives it, and what is good to know."""

    T: int | None = None
    weight_bits: int | None = None
    shape: tuple[int, ...] | None = None


_NO_FACTS = Facts()


def encode(stages: Stages, facts: Facts = _NO_FACTS) -> tuple[Tensor, Tensor]:
    """The program (int64) and its numbers (uint8), which a file can hold.

    Raises:
        CannotLower: no program can hold it: the message names the layer.
    """
    block = _Block()
    dtype = next((stage.dtype for stage in stages.stages if isinstance(stage, Layer)), torch.float32)
    rows = [_row(stage, block, dtype) for stage in stages.stages]
    shape = facts.shape or ()
    channels, *space = shape or (0,)
    header = {
        "format": _CONSTANTS["format"],
        "dtype": _DTYPES.index(dtype),
        "weight_bits": facts.weight_bits or 0,
        "source": _MODES.index(stages.mode),
        "T": stages.T or facts.T or 0,
        "any_T": int(stages.T is None),
        "dims": len(shape),
        "channels": channels,
        "height": space[0] if len(space) == 2 else int(bool(shape)),
        "width": space[-1] if space else int(bool(shape)),
        "instructions": len(rows),
    }
    words = [header[name] for name in _HEADER] + [row.get(name, 0) for row in rows for name in _FIELDS]
    program, numbers = torch.tensor(words), block.tensor()
    _named([stage.name for stage in stages.stages], lambda: _ops.frozen_check.default(program, numbers))
    return program, numbers


def prepare(program: Tensor, numbers: Tensor, names: Sequence[str]) -> Tensor:
    """Weights as this processor's kernels want them.

    Raises:
        CannotLower: the executor does not run the program.
    """
    return _named(names, lambda: _ops.frozen_prepare.default(program, numbers))  # type: ignore[no-any-return]


def decode(program: Tensor, numbers: Tensor, names: Sequence[str]) -> tuple[Stages, Facts]:
    """The list, from words and bytes that may be anything.

    Raises:
        ValueError: they are no program.
    """
    if program.dtype != torch.int64 or program.dim() != 1 or numbers.dtype != torch.uint8 or numbers.dim() != 1:
        raise ValueError("a program is int64, and its numbers are bytes")
    _named(names, lambda: _ops.frozen_check.default(program, numbers))
    words = program.tolist()
    header = dict(zip(_HEADER, words, strict=False))
    rows = [words[i : i + len(_FIELDS)] for i in range(len(_HEADER), len(words), len(_FIELDS))]
    if len(rows) != len(names):
        raise ValueError(f"{len(names)} names for {len(rows)} stages")
    read = _Reader(numbers, _DTYPES[header["dtype"]])
    stages = [read.stage(dict(zip(_FIELDS, row, strict=True)), name) for row, name in zip(rows, names, strict=True)]
    shape = tuple(header[name] for name in ("channels", "height", "width")[: header["dims"]])
    shape = shape if header["dims"] != 2 else (header["channels"], header["width"])
    network = Stages(stages, _MODES[header["source"]], None if header["any_T"] else header["T"])
    return network, Facts(header["T"] or None, header["weight_bits"] or None, shape or None)


def _named(names: Sequence[str], call: Callable[[], Any]) -> Any:
    """What the executor says of instruction N is said of the layer."""
    try:
        return call()
    except (RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0]
        found = re.match(r"(?:.*?)instruction (\d+): (.*)", why)
        name = names[int(found[1])] if found and int(found[1]) < len(names) else "net"
        raise CannotLower(name, found[2] if found else why) from error


class _Block:
    """Bytes that grow by aligned pieces."""

    def __init__(self) -> None:
        self._pieces: list[Tensor] = [torch.zeros(0, dtype=torch.uint8)]
        self._size = 0

    def put(self, values: Tensor | None) -> int:
        """Appends the tensor's bytes and returns their offset."""
        if values is None:
            return _ABSENT
        offset = self._size
        flat = values.detach().cpu().contiguous().as_strided((values.numel(),), (1,))  # one number may have stride 0
        data = flat.view(torch.uint8)
        self._pieces += [data, torch.zeros(-data.numel() % _ALIGNMENT, dtype=torch.uint8)]
        self._size += data.numel() + len(self._pieces[-1])
        return offset

    def tensor(self) -> Tensor:
        return torch.cat(self._pieces)


def _row(stage: Layer | Move, block: _Block, dtype: torch.dtype) -> Row:
    row = {"input": _NETWORK_INPUT if stage.x == INPUT else stage.x, "gain": _bits(stage.gain), "groups": 1}
    if isinstance(stage, Layer):
        return row | _of_layer(stage, block, dtype)
    return row | _of_move(stage.layer, block)


def _of_layer(stage: Layer, block: _Block, dtype: torch.dtype) -> Row:
    if stage.dtype != dtype:
        raise CannotLower(stage.name, f"its weights are {stage.dtype}, those of others {dtype}")
    outputs, channels, *kernel = stage.weight.shape
    compute = torch.promote_types(dtype, torch.float32)
    vectors = {name: getattr(stage, name) for name in ("step", "scale", "shift", "residual_scale")}
    v_init = stage.v_init
    if v_init is not None and v_init.dim() > 1:
        v_init = v_init.movedim(0, -1)
    return {
        "kind": _KINDS.index("readout" if stage.kind == "answer" else "layer"),
        "residual": {None: _ABSENT, INPUT: _NETWORK_INPUT}.get(stage.residual, stage.residual),  # type: ignore[arg-type]
        "fires": int(stage.kind in ("neurons", "activation", "answer")),
        "analog": int(stage.kind in ("activation", "preactivation")),
        "axes": len(kernel),
        "outputs": outputs,
        "channels": channels,
        "groups": stage.groups,
        **_window(kernel, stage.stride, stage.padding, stage.after, stage.dilation),
        "few_bits": int(stage.step is not None),
        "weight": block.put(stage.weight),
        **{name: block.put(None if values is None else values.to(compute)) for name, values in vectors.items()},
        "v_init": block.put(v_init),
        "v_height": 0 if v_init is None or not v_init.dim() else v_init.shape[0] if v_init.dim() == 3 else 1,
        "v_width": 0 if v_init is None or not v_init.dim() else v_init.shape[-2] if v_init.dim() > 1 else 1,
        "threshold": _bits(stage.threshold),
        "leak": _bits(stage.leak),
        "gate": checks.GATES.index(stage.gate),
    }


def _of_move(layer: Any, block: _Block) -> Row:
    if isinstance(layer, tnn.Flatten):
        return {"kind": _KINDS.index("flatten"), "first": layer.start_dim, "last": layer.end_dim}
    if isinstance(layer, tnn.AdaptiveAvgPool2d):
        size = layer.output_size if isinstance(layer.output_size, tuple) else (layer.output_size,) * 2
        return {"kind": _KINDS.index("adaptive_mean"), **dict(zip(("kernel_h", "kernel_w"), size, strict=True))}
    window = _window(layer.kernel_size, layer.stride, layer.padding, (0, 0), getattr(layer, "dilation", (1, 1)))
    if isinstance(layer, tnn.MaxPool2d):
        return {"kind": _KINDS.index("max_pool"), "ceil": int(layer.ceil_mode), **window}
    start = torch.tensor(layer.v_init, dtype=torch.promote_types(layer.weight.dtype, torch.float32))
    neurons = {"threshold": _bits(1.0), "leak": _bits(1.0), "v_init": block.put(start) if layer.v_init else _ABSENT}
    return {"kind": _KINDS.index("average" if layer.spiking else "mean"), "residual": _ABSENT, **neurons, **window}


def _window(*values: Sequence[int]) -> Row:
    """kernel, stride, padding, after and dilation, each vertical and horizontal."""
    row: Row = {}
    for name, sizes in zip(_WINDOW, values, strict=True):
        neutral = int(name in ("kernel", "stride", "dilation"))
        row[f"{name}_h"], row[f"{name}_w"] = ([neutral, neutral, *sizes])[-2:]
    return row


class _Reader:
    def __init__(self, numbers: Tensor, dtype: torch.dtype) -> None:
        self.numbers, self.dtype = numbers, dtype
        self.compute = torch.promote_types(dtype, torch.float32)

    def stage(self, row: Row, name: str) -> Layer | Move:
        x = INPUT if row["input"] == _NETWORK_INPUT else row["input"]
        kind, gain = _KINDS[row["kind"]], _real(row["gain"])
        if kind not in ("layer", "readout"):
            return Move(name, x, self.move(kind, row), gain)
        axes, outputs = row["axes"], row["outputs"]
        geometry = {key: self.sizes(row, key, axes) for key in _WINDOW}
        kernel = geometry.pop("kernel")
        shape = (outputs, row["channels"], *kernel)
        few = bool(row["few_bits"])
        vectors = ("step",) * few + (("shift",) if kind == "readout" else ("scale", "shift", "residual_scale"))
        tensors = {key: self.take(row[key], (outputs,), self.compute) for key in vectors}
        tensors["weight"] = self.take(row["weight"], shape, torch.int8 if few else self.dtype)
        for key in ("step",) + ("shift",) * (kind == "readout"):
            if tensors.get(key) is not None:
                tensors[key] = tensors[key].to(self.dtype)
        if kind == "readout":
            return Layer(name, x, "answer", gain=gain, **tensors)
        residual = {_ABSENT: None, _NETWORK_INPUT: INPUT}.get(row["residual"], row["residual"])
        which = _LAYER_KINDS[row["fires"], row["analog"]]
        options: dict[str, Any] = {"residual": residual, "groups": row["groups"], "gain": gain}
        if which == "neurons":
            sizes = (row["v_height"], row["v_width"])[2 - axes :] if row["v_height"] else None
            v_init = self.take(row["v_init"], () if sizes is None else (*sizes, outputs), self.compute)
            options |= {"threshold": _real(row["threshold"]), "leak": _real(row["leak"])}
            options |= {"gate": checks.GATES[row["gate"]], "v_init": v_init}
            if v_init is not None and v_init.dim() > 1:
                options["v_init"] = v_init.movedim(-1, 0).contiguous()
        return Layer(name, x, which, **options, **geometry, **tensors)

    def move(self, kind: str, row: Row) -> Any:
        if kind == "flatten":
            return tnn.Flatten(row["first"], row["last"])
        size, stride, padding, _, dilation = (self.sizes(row, key, 2) for key in _WINDOW)
        if kind == "adaptive_mean":
            return tnn.AdaptiveAvgPool2d(size)
        if kind == "max_pool":
            return tnn.MaxPool2d(size, stride, padding, dilation, ceil_mode=bool(row["ceil"]))
        start = self.take(row["v_init"], (), self.compute) if kind == "average" else None
        v_init = 0.0 if start is None else start.item()
        return tnn.AvgPool2d(size, stride, padding, spiking=kind == "average", v_init=v_init, dtype=self.dtype).eval()

    @staticmethod
    def sizes(row: Row, name: str, axes: int) -> tuple[int, ...]:
        return (row[f"{name}_h"], row[f"{name}_w"])[2 - axes :]

    def take(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
        """A tensor of the block, whose place the executor has checked."""
        if offset == _ABSENT:
            return None
        length = torch.Size(shape).numel() * dtype.itemsize
        return self.numbers[offset : offset + length].clone().view(dtype).view(shape)


def _bits(value: float) -> int:
    return struct.unpack("<q", struct.pack("<d", value))[0]  # type: ignore[no-any-return]


def _real(bits: int) -> float:
    return struct.unpack("<d", struct.pack("<q", bits))[0]  # type: ignore[no-any-return]
