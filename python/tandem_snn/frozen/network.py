"""FrozenNetwork: a snapshot of a network in evaluation mode that runs as one call, or step by step."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, fx, nn

from tandem_ext import SpikeTrain, checks
from tandem_ext._load import has_kernels
from tandem_ext._torch import WeightKeeper, pytree
from tandem_ext.train import with_flags

from .. import nn as tnn
from ..nn.hooks import FIRING, READOUTS
from ..nn.signals import describe, inputs_of
from .graphs import MOST_KEPT, Graph, capture, key_of
from .instruction import FIRES, CannotLower
from .lowering import lower, snapshot
from .program import Metadata, Program, inference, write
from .stages import Stage, Stages, check_finite, flags_of
from .stream import Inputs, Stream
from .streaming import Streaming, changes_nothing_if_refused, check_input
from .weights import Grid, grids_of

_KEEPING = threading.Lock()


class FrozenNetwork(Streaming, WeightKeeper):
    """A network for inference, made by :func:`freeze`. Call it with the input of the network to get its readout.

    Attributes:
        net: the snapshot: the network in evaluation mode, with its own copy of every weight; for a network from a file,
            its list of stages. Weights are packed once, so a later change of its parameters in place has no effect: use
            ``load_state_dict``, or freeze the changed network.
        weight_bits: bits per weight, or None if weights were not rounded by :func:`freeze`.
        T: the number of time steps; None until it is known (see :func:`freeze`). It cannot be set.
        shape: the shape [*features] of its last input, or of each of several; before it has run that of the example or
            data of :func:`tandem_snn.convert`, or None.

    >>> net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(3, 5), tnn.Readout(5, 2)).eval()
    >>> frozen = tandem_snn.freeze(net)
    >>> frozen(torch.rand(4, 3)).shape, frozen.T, frozen.shape
    (torch.Size([4, 2]), 8, (3,))
    """

    def __init__(
        self,
        net: nn.Module,
        weight_bits: int | None = None,
        T: int | None = None,
        example: Inputs | None = None,
    ) -> None:
        super().__init__()
        self.net = snapshot(net)
        self.weight_bits = weight_bits
        for layer in self.net.modules() if weight_bits is not None else ():
            if isinstance(layer, (tnn.SpikingLayer, *READOUTS)):
                layer.weight_bits = weight_bits
        sources = [m for m in self.net.modules() if isinstance(m, tnn.Encoder | Stages)]
        windows = {m.T for m in sources} - {None}
        self._T = next(iter(windows)) if T is None and len(windows) == 1 else T
        if self._T is not None:
            in_windows = any(getattr(layer, "timing", None) == "window" for layer in self.net.modules())
            checks.T("T", self._T, "window" if in_windows else "step")
        if T is not None and windows - {T}:
            raise ValueError(f"T: the network's Encoder has T={windows.pop()}, got {T}")
        self._given = len(self.net.modes if isinstance(self.net, Stages) else inputs_of(self.net)) or 1
        shapes: Any = net.meta.get("shapes") if isinstance(net, fx.GraphModule) else None
        if example is not None:
            if len(example) != self._given:
                raise TypeError(f"example: the network takes {self._given} inputs, got {len(example)}")
            _check_example(self.net, example)
            shapes = tuple(tuple(x.shape[1:]) for x in example)
        self._shapes = self._example = shapes  # of the last inputs, and for layers that move features
        self._fits: tuple[tuple[int, ...], ...] | None = None  # shapes of inputs that all programs are known to suit
        self._programs: dict[Any, Program] = {}  # by the gains of the inputs
        self._graphs: dict[Any, Graph | None] = {}
        check_finite(self._program_for(1.0).layers)  # trace before several threads may use the network
        self._stream: Stream | None = None

    @property
    def shape(self) -> Any:
        """[*features] of the input, or of each of several; None until it is known."""
        return self._shapes if self._shapes is None or self._given > 1 else self._shapes[0]

    @property
    def _modes(self) -> Sequence[str]:
        """Of each input, as in ``tnn.Encoder``."""
        layers = self._program_for(1.0).layers
        if isinstance(layers, Stages):
            return layers.modes
        encoders = [m.mode for m in self.net.modules() if isinstance(m, tnn.Encoder)]
        return [next((mode for mode in encoders if mode != "events"), "events")] * self._given

    @property
    def T(self) -> int | None:
        """The number of time steps; None until it is known."""
        return self._T

    @T.setter
    def T(self, value: object) -> None:
        instead = "give the network, or its Encoder, another T, and freeze it again"
        raise ValueError(f"T: a frozen network keeps its {self._T} steps, got {value}: {instead}")

    def train(self, mode: bool = True) -> FrozenNetwork:
        """Stay in evaluation mode, also as a part of a network that is trained."""
        return super().train(False)

    @property
    def why_slow(self) -> CannotLower | None:
        """Why the network runs layer by layer; None if it runs as one call, or on a GPU as stages, in a CUDA graph."""
        program = self._program_for(1.0)
        on_gpu = any(tensor.is_cuda for tensor in (*self.net.parameters(), *self.net.buffers()))
        if not on_gpu and not has_kernels(torch.device("cpu")):
            return CannotLower("net", "TANDEM_KERNELS=0; step() and settle() have no other way than kernels")
        return program.unlowered if on_gpu else program.refuses(self.T)

    def extra_repr(self) -> str:
        program = self._program_for(1.0)
        instructions = [m.instruction for m in program.layers.modules() if isinstance(m, Stage)]
        timings = sorted({
            *(layer.timing for layer in program.layers.modules() if isinstance(layer, FIRING)),
            *(i.timing for i in instructions if i.kind in FIRES),
        })  # fmt: skip
        values = (*self.net.named_parameters(), *self.net.named_buffers())
        weights = [value for name, value in values if name.endswith("weight") and value.dim() > 1]
        how = "one call" if self.why_slow is None else f"layer by layer: {self.why_slow}"
        if not all(has_kernels(weight.device, weight.dtype) for weight in weights):
            how += ", by torch's operators, as there are no kernels"
        size = f"{sum(weight.numel() for weight in weights):,} weights"
        return f"T={self.T}, timing={'+'.join(timings)}, weight_bits={self.weight_bits}, {size}, {how}"

    @property
    def grids(self) -> dict[str, Grid]:
        """The integers and quantisation steps of layers with ``weight_bits``, by layer name."""
        return grids_of(self._program_for(1.0).layers)

    @inference
    def forward(self, *inputs: Tensor | SpikeTrain) -> Any:
        """Return the answer of the whole window, for a batch of images or a SpikeTrain, or for several inputs.

        It is a readout [B, outputs], or what the network returns of such: a dict, list or tuple.
        """
        if len(inputs) != self._given:
            names = ", ".join(f"x{n + 1}" for n in range(self._given))
            raise TypeError(f"x: the network takes {self._given} inputs, got {len(inputs)}: call frozen({names})")
        answer, bad = self._answer(inputs), flags_of(inputs)
        return answer if bad is None else pytree.tree_map(lambda y: with_flags(y, bad), answer)

    def _window_of(self, inputs: Inputs) -> int | None:
        """Return T of this call, which self.T may not be if another thread calls with another T."""
        T = self._T
        for x in inputs:
            check_input(x)
            T = x.T if isinstance(x, SpikeTrain) else T
        if len(inputs) > 1 and any(isinstance(x, SpikeTrain) and x.T != T for x in inputs):
            raise ValueError("x: expected trains of one T")
        if T != self._T:
            self._T = T
        return T

    @changes_nothing_if_refused
    def _answer(self, inputs: Inputs) -> Any:
        T, x = self._window_of(inputs), inputs[0]
        if x.device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
            return self._replay(inputs)
        program = self._program(inputs)
        by_layers = x.device.type != "cpu" or not has_kernels(x.device) or torch.compiler.is_compiling()
        if by_layers or program.refusal is not None:
            return program.layers(*inputs)
        why = program.refuses(T)
        if why is None:
            try:
                return program.layers.answer(program.run(inputs, T))
            except (RuntimeError, ValueError):  # the layers may support x, or raise a clearer error
                pass
        answer = program.layers(*inputs)
        if why is None or program.layers.T is None:  # else freeze() said it
            said = f"one call does not take {describe(x)}" if why is None else why
            warnings.warn(f"x: the network runs layer by layer on it, which takes longer: {said}", stacklevel=7)
        return answer

    def _replay(self, inputs: Inputs) -> Any:
        """Run on a GPU, as one CUDA graph, or layer by layer if there can be no graph."""
        layers, key = self._program(inputs).layers, key_of(inputs)
        graph = None if key is None else _kept(self._graphs, key, lambda: capture(layers, inputs))
        return layers(*inputs) if graph is None else graph(inputs)

    def _forget_weights(self) -> None:
        """Drop programs and the stream, which depend on the weights, and graphs, which have their addresses."""
        self._stream = None
        self._programs.clear()
        self._graphs.clear()
        for stage in self.net.modules():
            if isinstance(stage, Stage):
                stage.digits = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without graphs, programs and stream: another version or machine may pack weights differently."""
        return self.__dict__ | {"_programs": {}, "_graphs": {}, "_stream": None}

    def save(self, path: str | PathLike[str]) -> None:
        """Save the network to the file ``path``, for :func:`load` and for programs without Python.

        The file is safetensors with a format version and a checksum, and is written atomically. It contains the program
        and its data; weights of 2 to 8 bits take a byte each. A network of tokens, or one whose layers depend on the
        size of its input, is saved for inputs of the present ``shape``. The state of a stream is not saved. Programs
        without Python may need ``shape`` and ``T``: a warning says if the file cannot tell them.

        Raises:
            ValueError: the network contains something other than layers of ``tandem_snn.nn``, which the message names;
                a file contains no code.
            UserError: the package safetensors is not installed.

        >>> net = nn.Sequential(tnn.Encoder(T=4), tnn.Linear(3, 5), tnn.Readout(5, 2))
        >>> tandem_snn.freeze(net).save("net.tandem")
        """
        try:
            stages = lower(self.net, (), self._T, self._example)
            write(path, stages, Metadata(self.T, self.weight_bits, self._shapes))
        except CannotLower as error:
            raise ValueError(f"net: layer {error.layer!r} cannot be saved: {error.why}") from error
        unknown = [name for name in ("shape", "T") if getattr(self, name) is None]
        if unknown:
            tokens = ", whose linear layers take vectors, no tokens" if stages.unsized else ""
            warnings.warn(
                f"net: programs without Python cannot run a file without {' and '.join(unknown)}{tokens}: call the "
                "frozen network on an input before save()",
                stacklevel=2,
            )

    def _program(self, inputs: Inputs) -> Program:
        shapes = tuple([tuple(x.shape[1:]) for x in inputs])
        if shapes != self._fits:  # in a small network the question takes as long as a layer
            self._shapes, known, programs = shapes, self._example is not None, [*self._programs.values()]
            again = any(program.sized if known else program.needs(shapes) for program in programs)
            if shapes != self._example and (again or (known and not programs)):
                self._example, self._programs, self._graphs = shapes, {}, {}
            self._fits = shapes
        return self._program_for(*(x.gain if isinstance(x, SpikeTrain) else 1.0 for x in inputs))

    def _program_for(self, *gains: float | Tensor) -> Program:
        key = tuple(tuple(g.tolist()) if isinstance(g, Tensor) and g.dim() > 0 else float(g) for g in gains)
        key += (1.0,) * (self._given - len(key))

        def make() -> Program:
            by_channel = any(isinstance(gain, tuple) for gain in key)
            if by_channel and any(getattr(layer, "weight_bits", None) for layer in self.net.modules()):
                raise ValueError("x: weights of few bits are rounded already, so the gain must be one for all channels")
            worth = [g if isinstance(k, tuple) else k for g, k in zip(gains, key, strict=False)]
            self._fits = None
            return Program(self.net, worth, self._T, self._example)

        with _KEEPING:
            return _kept(self._programs, key, make)


@torch.no_grad()
def _check_example(net: nn.Module, example: Inputs) -> None:
    """Raise an error unless the network accepts a sample of the example: files keep its shape."""
    device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    try:
        net(*(x[:1].to(device) for x in example))
    except (RuntimeError, TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"example: the network does not accept it: {str(error).splitlines()[0]}") from error


def _kept(values: dict[Any, Any], key: Any, make: Callable[[], Any]) -> Any:
    """Return the value of a key, which is made if it is missing; the oldest value then makes room."""
    if key not in values:
        if len(values) == MOST_KEPT:
            del values[next(iter(values))]
        values[key] = make()
    return values[key]
