"""Encode a list of stages as a program and its data, for ``frozen_run`` and files, and decode it.

A program is a header and the words of the instructions (``csrc/kernels/network/program.h``). The executor checks it. A
file has the program, its data and the names of the layers.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from tandem_ext import SpikeTrain
from tandem_ext._torch import autocast_active, forward_mode_active, pytree, unseen
from tandem_ext.ops import counts_dtype

from ..container import pack, unpack, write_atomically
from ..errors import UserError
from .answers import structured
from .instruction import ABSENT, CONSTANTS, FIELDS, HEADER, TENSORS, CannotLower, Instruction
from .lowering import lower
from .stages import MODES, Stage, Stages, check_finite, shown

_ops = torch.ops.tandem
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # in the order of the kernels' enum
_ALIGNMENT = 64
FORMAT = "tandem_snn frozen 2"
_NO_GRADIENTS = "x: a frozen network has no gradients: use the network that was frozen, or x.detach()"
Answer = TypeVar("Answer", bound=Callable[..., Any])


def inference(answer: Answer) -> Answer:
    """Without gradients, and without autocast: a frozen network computes in the type of its weights."""

    @functools.wraps(answer)
    def run(*args: Any, **kwargs: Any) -> Any:
        if forward_mode_active() and any(forward_ad.unpack_dual(edge).tangent is not None for edge in _edges(args)):
            raise ValueError(_NO_GRADIENTS)
        if autocast_active():
            with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
                return answer(*args, **kwargs)
        if not torch.is_grad_enabled():  # to say so again takes as long as a small layer
            return answer(*args, **kwargs)
        with torch.set_grad_enabled(False):  # tensors of inference mode are of no use to a loss
            y = answer(*args, **kwargs)
        edge = next((edge for edge in _edges(args) if edge.requires_grad), None)
        return y if edge is None else pytree.tree_map_only(Tensor, functools.partial(_without_gradient, edge), y)

    return run  # type: ignore[return-value]


def _edges(args: tuple[Any, ...]) -> list[Tensor]:
    """Return what gradients of a call would flow to: its inputs, or the counts of trains."""
    inputs = (x for arg in args[1:] for x in (arg if isinstance(arg, tuple) else (arg,)))
    edges = (x.edge if isinstance(x, SpikeTrain) else x for x in inputs)
    return [edge for edge in edges if isinstance(edge, Tensor)]


def _without_gradient(edge: Tensor, answer: Tensor) -> Tensor:
    constant: Any = _Constant  # of which only some versions of torch know the types
    return constant.apply(answer, edge) if answer.is_floating_point() else answer


class _Constant(torch.autograd.Function):
    """An answer, whose gradient for the input of the network is an error: that it is 0 would be wrong."""

    @staticmethod
    def forward(answer: Tensor, _: Tensor) -> Tensor:
        return answer.view_as(answer)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise ValueError(_NO_GRADIENTS)


class Metadata(NamedTuple):
    """What a file says beside the stages: T if there is no Encoder, the bits of the weights, the shapes of inputs."""

    T: int | None = None
    weight_bits: int | None = None
    shapes: tuple[tuple[int, ...], ...] | None = None


def encode(stages: Stages, metadata: Metadata | None = None) -> tuple[Tensor, Tensor, CannotLower | None]:
    """Return the program (int64), its data (uint8), and why the executor does not support it, if it does not."""
    known = metadata or Metadata()
    block = _Block()
    dtype = stages.dtype
    shapes = stages.shapes or known.shapes or [()] * len(stages.modes)
    sizes = [(len(shape), *_sizes(shape)) for shape in shapes]
    given = iter(sizes[1:])
    rows = [_words(stage, block, dtype, given) for stage in stages.stages]
    dims, channels, height, width = sizes[0]
    header = {
        "format": CONSTANTS["format"],
        "dtype": _DTYPES.index(dtype),
        "weight_bits": known.weight_bits or 0,
        "source": MODES.index(stages.mode),
        "T": stages.T or known.T or 0,
        "any_T": int(stages.T is None),
        "dims": dims,
        "channels": channels,
        "height": height,
        "width": width,
        "fixed": int(stages.shapes is not None),
        "instructions": len(rows),
    }
    program = torch.tensor([header[name] for name in HEADER] + [word for row in rows for word in row])
    numbers = block.tensor()
    return program, numbers, _checked(program, numbers, [stage.name for stage in stages.stages])


def decode(program: Tensor, numbers: Tensor, names: Sequence[str]) -> tuple[Stages, Metadata]:
    """Decode a program and its data, which may be untrusted: raise ValueError if they are not valid."""
    if program.dtype != torch.int64 or program.dim() != 1 or numbers.dtype != torch.uint8 or numbers.dim() != 1:
        raise ValueError("a program is int64, and its numbers are bytes")
    _checked(program, numbers, names)
    words = program.tolist()
    header = dict(zip(HEADER, words, strict=False))
    if header["instructions"] != len(names):
        raise ValueError(f"{len(names)} names for {header['instructions']} stages")
    rows = (Instruction.of_words(words[start:]) for start in range(len(HEADER), len(words), len(FIELDS)))
    stages = [_stage(name, row, numbers, _DTYPES[header["dtype"]]) for name, row in zip(names, rows, strict=True)]
    sizes = [tuple(header[name] for name in ("dims", "channels", "height", "width"))]
    further = [stage.instruction for stage in stages if stage.instruction.kind == "input"]
    sizes += [(i.axes + 1, i.outputs, *i.kernel) for i in further]
    shapes = tuple((channels, *(height, width)[3 - dims :]) for dims, channels, height, width in sizes)
    known = all(channels for _, channels, *_ in sizes)
    answers = [stage.name for stage in stages if stage.instruction.kind == "output"]
    T = None if header["any_T"] else header["T"]
    network = Stages(stages, MODES[header["source"]], T, structured(answers) if answers else 0)
    network.shapes = shapes if header["fixed"] else None
    check_finite(network)
    return network, Metadata(header["T"] or None, header["weight_bits"] or None, shapes if known else None)


def _checked(program: Tensor, numbers: Tensor, names: Sequence[str]) -> CannotLower | None:
    """Return why the executor does not support a program; raise CannotLower if it is not valid."""
    valid, instruction, why = _ops.frozen_check.default(program, numbers)
    refusal = _refusal(names, instruction, why)
    if not valid and refusal is not None:
        raise refusal
    return refusal


def _refusal(names: Sequence[str], instruction: int, why: str) -> CannotLower | None:
    return CannotLower(names[instruction] if 0 <= instruction < len(names) else "net", why) if why else None


def write(path: str | PathLike[str], stages: Stages, metadata: Metadata) -> None:
    """Save a network as a file, atomically; ValueError names the layer that cannot be saved."""
    program, numbers, _ = encode(stages, metadata)
    names = "\n".join(stage.name for stage in stages.stages).encode()
    tensors = {"program": program, "numbers": numbers, "names": torch.frombuffer(bytearray(names), dtype=torch.uint8)}
    orders = {f"seen.{n}": stage.seen for n, stage in enumerate(stages.stages)}  # behind what C++ reads, by its name
    tensors |= {name: order.int() for name, order in orders.items() if order is not None}
    write_atomically(Path(path), pack(tensors, FORMAT))


def read(path: str | PathLike[str]) -> tuple[Stages, Metadata]:
    """Load a file of :func:`write`, and check its sizes, checksum and program; UserError if it is not valid."""
    path = Path(path)
    tensors = unpack(path, FORMAT, "frozen network", "FrozenNetwork.save()")
    try:
        orders = {name: tensors.pop(name) for name in [*tensors] if name.startswith("seen.")}
        if set(tensors) != {"program", "numbers", "names"}:
            raise ValueError(f"expected the tensors names, numbers and program, got {sorted(tensors)}")
        names = bytes(tensors["names"].tolist()).decode().split("\n")
        if not all(name.isprintable() for name in names):
            raise ValueError("a layer's name is no text")
        stages, metadata = decode(tensors["program"], tensors["numbers"], names)
        _set_orders(stages, orders)
        return stages, metadata
    except Exception as error:  # an untrusted file may make torch raise anything
        why = f"layer {error.layer!r:.80}: {error.why}" if isinstance(error, CannotLower) else str(error)
        raise UserError(f"{path} is not a valid frozen network: {why[:300]}") from error


def _set_orders(stages: Stages, orders: dict[str, Tensor]) -> None:
    """Set ``seen`` of stages from a file, whose tensors may be untrusted."""
    known = {f"seen.{n}": stage for n, stage in enumerate(stages.stages)}
    for name, order in orders.items():
        flat = order.flatten()
        valid = order.dtype == torch.int32 and 0 < order.dim() < 4
        if name not in known or not valid or not torch.equal(flat.long().sort().values, torch.arange(len(flat))):
            raise ValueError(f"{name} is no order of the features of a stage")
        known[name].seen = order.long()


class Program:
    """A network for one gain of its input, as a program; ``layers`` runs layer by layer, as stages if possible."""

    def __init__(
        self,
        net: nn.Module,
        gains: Sequence[float | Tensor],
        T: int | None = None,
        shapes: Sequence[tuple[int, ...]] | None = None,
    ) -> None:
        self.layers: Any = net
        self.unlowered: CannotLower | None = None  # why there are no stages
        try:
            self.layers = lower(net, gains, T, shapes)
        except CannotLower as reason:
            self.unlowered = reason.with_traceback(None)  # the frames would keep all tensors of the network alive

    @property
    def sized(self) -> bool:
        """Whether the stages are for samples of one shape, and could be for another; also if there are none."""
        return self.unlowered is not None or (isinstance(self.layers, Stages) and self.layers.sized)

    def needs(self, shapes: Sequence[tuple[int, ...]]) -> bool:
        """Return whether the shapes of samples, which lowering did not know, may change the stages."""
        return self.unlowered is not None or (self.layers.unsized and any(len(shape) > 1 for shape in shapes))

    @functools.cached_property
    def refusal(self) -> CannotLower | None:
        """The reason why the executor cannot run the network; None if it can, and has read it and packed its weights.

        Then ``network`` is its handle, and ``most_steps`` the largest T that the type of the weights counts.
        """
        if self.unlowered is not None:
            return self.unlowered
        try:
            program, numbers, refusal = encode(self.layers)
        except CannotLower as reason:
            return reason.with_traceback(None)
        if refusal is None:
            self.network: Tensor = _ops.frozen_read.default(program, numbers)
            weakref.finalize(self, _free, self.network).atexit = False
            dtype = self.layers.dtype
            self.most_steps = max(T for T in (256, 2048, 65535) if counts_dtype(dtype, T) == dtype)
        return refusal

    def refuses(self, T: int | None) -> CannotLower | None:
        """Return the reason why the executor cannot run so many steps, or why it cannot run the network at all."""
        if self.refusal is not None or T is None or self.most_steps >= T:
            return self.refusal
        return CannotLower("net", f"T={T}: {self.layers.dtype}, the type of the weights, cannot count so many spikes")

    def streaming(self, device: torch.device, T: int) -> Program:
        """Return the program; raise ValueError if it cannot run T steps one by one on this device."""
        if device.type != "cpu":
            raise ValueError(f"steps are computed on the CPU: move the network and its input there from {device}")
        if (why := self.refuses(T)) is not None:
            raise why
        return self

    def run(self, inputs: Sequence[Tensor | SpikeTrain], T: int | None, every_step: bool = False) -> list[Tensor]:
        """Return the answers of the whole window, or after each of its steps."""
        modes = self.layers.modes
        pairs = list(zip(shown(inputs, modes), modes, strict=True))
        timings = {x.timing for x, mode in pairs if isinstance(x, SpikeTrain) and mode != "pixels"}
        timing = timings.pop() if len(timings) == 1 else "step"
        given = [
            x.stored_as("window" if mode == "pixels" else timing) if isinstance(x, SpikeTrain) else x
            for x, mode in pairs
        ]
        return _ops.frozen_run.default(given, T, timing, self.network, every_step)

    def state(self, shape: Sequence[int], T: int) -> tuple[Tensor, bool]:
        """Return memory for the state of a stream, and whether its neurons follow their input.

        The shape is [B, *features], and of several inputs [B, *features, -1, *features of the second, ...].

        Raise CannotLower, which names the layer, if the network does not run step by step.
        """
        state, follows, instruction, why = _ops.frozen_state.default(self.network, shape, T)
        if (refusal := _refusal([stage.name for stage in self.layers.stages], instruction, why)) is not None:
            raise refusal
        return state, follows


def _free(network: Tensor) -> None:
    with unseen():
        _ops.frozen_free.default(network)


class _Block:
    """A growing block of bytes in aligned pieces."""

    def __init__(self) -> None:
        self._pieces: list[Tensor] = [torch.zeros(0, dtype=torch.uint8)]
        self._size = 0

    def put(self, values: Tensor | None) -> int:
        """Append the bytes of a tensor and return their offset."""
        if values is None:
            return ABSENT
        offset = self._size
        flat = values.detach().cpu().contiguous().as_strided((values.numel(),), (1,))  # one element may have stride 0
        data = flat.view(torch.uint8)
        self._pieces += [data, torch.zeros(-data.numel() % _ALIGNMENT, dtype=torch.uint8)]
        self._size += data.numel() + len(self._pieces[-1])
        return offset

    def tensor(self) -> Tensor:
        return torch.cat(self._pieces)


def _sizes(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return channels, height and width of a sample; all 0 if its shape is not known."""
    if not shape:
        return 0, 0, 0
    channels, *space = shape
    height, width = (1, 1, *space)[-2:]
    return channels, height, width


def _words(stage: Stage, block: _Block, dtype: torch.dtype, given: Iterator[tuple[int, ...]]) -> list[int]:
    """Return the words of a stage's instruction, after its tensors were added to the block.

    ``given`` has dimensions and sizes of further inputs.
    """
    if stage.instruction.kind == "input":
        dims, channels, height, width = next(given)
        size: dict[str, Any] = {
            "axes": max(dims - 1, 0),
            "outputs": channels,
            "kernel": (max(height, 1), max(width, 1)),
        }
        return replace(stage.instruction, **size).words()
    if stage.weight is not None and stage.dtype != dtype:
        raise CannotLower(stage.name, f"its weights are {stage.dtype}, but other layers have {dtype}")
    offsets = dict[str, Any]()
    for name in TENSORS:
        tensor: Tensor | None = getattr(stage, name)
        if name == "v_init" and tensor is not None and tensor.dim() > 1:
            tensor = tensor.movedim(0, -1)  # neurons are channels-last
        stored = _stored(name, stage.instruction.few_bits, dtype)
        offsets[name] = block.put(None if tensor is None else tensor.to(stored))
    return replace(stage.instruction, **offsets).words()


def _stage(name: str, i: Instruction, numbers: Tensor, dtype: torch.dtype) -> Stage:
    """Return the stage of an instruction, whose offsets the executor has checked."""
    start = (*i.over_axes(i.v_size), i.outputs) if any(i.v_size) else ()
    pixels = () if i.by_channel else i.kernel
    shapes = {
        "weight": (i.outputs, i.channels, *i.over_axes(i.kernel)), "v_init": start, "index": (*pixels, i.outputs),
    }  # fmt: skip
    tensors = {}
    for key in TENSORS:
        if (offset := getattr(i, key)) == ABSENT:
            continue
        stored, shape = _stored(key, i.few_bits, dtype), shapes.get(key, (i.outputs,))
        tensor = numbers[offset : offset + stored.itemsize * math.prod(shape)].clone().view(stored).view(shape)
        if key == "v_init" and tensor.dim() > 1:
            tensor = tensor.movedim(-1, 0).contiguous()
        of_weights = key == "step" or (key, i.kind) == ("shift", "readout")
        of_weights |= key == "weight" and dtype == torch.float64  # int8 kernels do not support a float64 scale
        tensors[key] = tensor.to(dtype) if of_weights else tensor.flatten() if key == "index" else tensor
    return Stage(name, i, **tensors)


def _stored(name: str, few_bits: bool, dtype: torch.dtype) -> torch.dtype:
    """Return the type in which a program holds a tensor of a stage."""
    if name == "index":
        return torch.int32
    if name != "weight":
        return torch.promote_types(dtype, torch.float32)
    return torch.int8 if few_bits else dtype
