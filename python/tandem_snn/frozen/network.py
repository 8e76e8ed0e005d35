"""FrozenNetwork: a snapshot of a network's evaluation that runs as one call, or step by step."""

from __future__ import annotations

import copy
from numbers import Real
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tandem_ext import SpikeTrain, checks

from .. import nn as tnn
from ..nn.quantise import check_bits
from ..nn.signals import check_network, describe
from . import file
from .graph import MOST_GRAPHS, Graph, capture, key_of
from .program import Builder
from .quantise import quantise_
from .trace import CannotLower, trace

MOST_PROGRAMS = 8  # each has its own copy of the packed weights


class _Program:
    """The program for inputs of one shape."""

    def __init__(self, net: nn.Module, x: Any) -> None:
        kept = {p.dtype for p in net.parameters()} | (set() if isinstance(x, SpikeTrain) else {x.dtype})
        if kept != {torch.float32}:
            raise CannotLower(f"a program computes in float32, the network and its input are {_names(kept)}")
        traced = trace(net, x)
        builder = Builder(traced)
        self.words, self.blob = builder.build()
        self.prefix = traced.prefix
        self.padding = builder.padding
        self.T = builder.T
        self.streams = builder.streams
        self.segments = builder.segments
        self.outputs = builder.outputs

    def run(
        self, x: Any, state: Tensor | None = None, step: int = 0, every_step: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The readout and the state after the whole window, or after each of its steps or, given a state, after one."""
        for layer in self.prefix:
            x = layer(x)
        source = x.planes if isinstance(x, SpikeTrain) else x.x
        source = F.pad(source, self.padding) if self.padding else source
        return torch.ops.tandem.frozen_run.default(source, self.words, self.blob, state, step, every_step)

    def first_state(self, batch: int) -> Tensor:
        return torch.zeros(sum(self.segments) * batch)


class FrozenNetwork(nn.Module):
    """What :func:`freeze` returns. Calling it takes what the network took and returns the network's readout.

    Attributes:
        net: the snapshot: the network in evaluation mode, with its own copy of every weight.
        weight_bits: bits per weight, or None for the weights as the network's evaluation has them.
        T: the number of time steps; None until it is known (see :func:`freeze`).
        shape: [*features] of its input; None until it has run.
        grids: the integers and steps of the weights that were rounded, by the layer's name.

    >>> net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(3, 5), tnn.Readout(5, 2)).eval()
    >>> frozen = tandem_snn.freeze(net)
    >>> frozen(torch.rand(4, 3)).shape, frozen.T, frozen.shape
    (torch.Size([4, 2]), 8, (3,))
    """

    def __init__(self, net: nn.Module, weight_bits: int | None = None, T: int | None = None) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.weight_bits = weight_bits
        self.grids = quantise_(self.net, weight_bits)
        encoders = [m for m in self.net.modules() if isinstance(m, tnn.Encoder)]
        windows = {m.T for m in encoders}
        self._takes_images = any(m.mode != "events" for m in encoders)
        self.T = windows.pop() if len(windows) == 1 else T
        self.shape: tuple[int, ...] | None = None
        self._programs: dict[Any, _Program | CannotLower] = {}
        self._graphs: dict[Any, Graph | None] = {}
        self.reset()

    def forward(self, x: Tensor | SpikeTrain) -> Tensor:
        """The readout [B, outputs] of the whole window, for a batch x of images or spike trains."""
        if not torch.is_inference_mode_enabled():  # to enter it anew takes as long as a small layer
            with torch.inference_mode():
                return self.forward(x)
        _check_batch("x", x)
        if isinstance(x, SpikeTrain) and x.T != self.T:
            self.T = x.T
        if x.device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
            return self._replay(x)
        program = self._program(x)
        if isinstance(program, CannotLower) or x.device.type != "cpu":
            answer: Tensor = self.net(x)
            return answer
        return program.run(x)[0]

    def _replay(self, x: Tensor | SpikeTrain) -> Tensor:
        """On a GPU: the kernels of the layers as one CUDA graph, or one by one where there can be none."""
        key = key_of(x)
        if key is not None and key not in self._graphs:
            if len(self._graphs) == MOST_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[key] = capture(self.net, x)
        graph = self._graphs.get(key)
        answer: Tensor = self.net(x) if graph is None else graph(x)
        return answer

    def _apply(self, *arguments: Any, **keywords: Any) -> Any:
        self._forget_weights()
        return super()._apply(*arguments, **keywords)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        self._forget_weights()
        super()._load_from_state_dict(*arguments, **keywords)

    def _forget_weights(self) -> None:
        """Programs have a copy of the weights, and graphs read them where they were."""
        self._programs.clear()
        self._graphs.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Without the programs: another version or machine may pack weights in another way. Graphs are not data."""
        return self.__dict__ | {"_programs": {}, "_graphs": {}}

    def example(self) -> Any:
        """A sample [1, *features] of zeros of what the network takes.

        Raises:
            ValueError: the network has not run, and so does not know.
        """
        if self.shape is not None and self._takes_images:
            return torch.zeros(1, *self.shape)
        if self.shape is not None and self.T is not None:
            silence = torch.zeros((self.T + 7) // 8, 1, *self.shape, dtype=torch.uint8)
            return SpikeTrain.unchecked(silence, self.T)
        raise ValueError("x: give a batch of what the network takes: it has not run, and does not know the shape")

    def reset(self) -> None:
        """Forgets the stream: the next :meth:`step` is step 0."""
        self._state: Tensor | None = None
        self._steps = 0

    @torch.inference_mode()
    def step(self, x_t: Tensor) -> Tensor:
        """One time step: its spikes x_t [B, *features], 0 and 1, or the image of a direct encoder.

        Returns:
            The readout so far [B, outputs], in which the bias counts t/T: after T steps exactly that of the whole
            window.

        Raises:
            TypeError: x_t is not a tensor.
            ValueError: T is not known; a layer has the gate "resu", which needs the end of the window; a network that
                has no program; x_t is not on the CPU; spikes other than 0 and 1; a batch that changed without
                :meth:`reset`.

        >>> net = nn.Sequential(tnn.Encoder(T=4), tnn.Linear(3, 5), tnn.Readout(5, 2))
        >>> frozen = freeze(net)
        >>> x = torch.rand(1, 3)
        >>> for _ in range(4):
        ...     so_far = frozen.step(x)
        >>> torch.equal(so_far, frozen(x))
        True
        """
        _check_batch("x_t", x_t, trains=False)
        if not self._takes_images:
            checks.binary("x_t", x_t)
        program = self._streaming_program(x_t)
        if self._state is None:
            self._state = program.first_state(len(x_t))
        if self._state.numel() != sum(program.segments) * len(x_t):
            raise ValueError("x_t: the batch differs from that of the steps before; reset() begins a new stream")
        answer, self._state = program.run(self._signal(x_t), self._state, self._steps)
        self._steps += 1
        return answer

    @torch.inference_mode()
    def readouts(self, x: Tensor | SpikeTrain) -> Tensor:
        """What :meth:`step` would return at each step, [T, B, outputs], in one call, at about the price of one.

        Args:
            x: a batch as for a call.

        Raises:
            TypeError: x is no batch.
            ValueError: a network that cannot stream (see :meth:`step`).

        >>> net = nn.Sequential(tnn.Encoder(T=4), tnn.Linear(3, 5), tnn.Readout(5, 2))
        >>> frozen, x = freeze(net), torch.rand(6, 3)
        >>> torch.equal(frozen.readouts(x), torch.stack([frozen.step(x) for _ in range(4)]))
        True
        """
        _check_batch("x", x)
        if isinstance(x, SpikeTrain):
            self.T = x.T
        return _streaming(self._program(x), x.device).run(x, every_step=True)[0]

    @torch.inference_mode()
    def anytime(self, x: Tensor | SpikeTrain, confidence: float = 0.9) -> tuple[Tensor, Tensor]:
        """Answers each sample as it is as soon as it is sure of it.

        A processor that takes one step after the other may stop there. This one computes all steps together, which
        takes it less time than a few of them one by one.

        Args:
            x: a batch as for a call.
            confidence: in (0, 1]: a sample is done when the softmax of its readout so far reaches it, or at step T.

        Returns:
            The readouts [B, outputs] at those steps, and the numbers of steps [B] (int64) they took.

        Raises:
            TypeError: x is no batch, or confidence no number.
            ValueError: confidence out of range, or a network that cannot stream (see :meth:`step`).

        >>> net = nn.Sequential(tnn.Encoder(T=4), tnn.Linear(3, 5), tnn.Readout(5, 2))
        >>> logits, steps = freeze(net).anytime(torch.rand(6, 3), confidence=0.6)
        >>> logits.shape, bool((steps >= 1).all() and (steps <= 4).all())
        (torch.Size([6, 2]), True)
        """
        if not isinstance(confidence, Real):
            raise TypeError(f"confidence: expected a number in (0, 1], got {describe(confidence)}")
        if not 0.0 < confidence <= 1.0:
            raise ValueError(f"confidence: expected a number in (0, 1], got {confidence}")
        answers = self.readouts(x)
        sure = answers.softmax(2).amax(2) >= confidence
        sure[-1] = True
        last = sure.int().argmax(0)  # the first step of those
        return answers[last, torch.arange(len(last))], last + 1

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the network as one file, for :func:`load_frozen`: its layers, weights, T and weight bits.

        The file is safetensors with a format version and a checksum, and appears whole or not at all. Weights of few
        bits take a byte each. The stream's state is not in it.

        Args:
            path: the file.

        Raises:
            ValueError: something other than layers of ``tandem_snn.nn`` works between the input and the answer: a file
                holds no code. The message names it.
            UserError: the package safetensors is not installed.
        """
        file.write(path, file.Contents(self.net, self.T, self.shape, self.weight_bits, self.grids))

    def _signal(self, x_t: Tensor) -> Any:
        return x_t if self._takes_images else SpikeTrain.unchecked((x_t != 0).to(torch.uint8).unsqueeze(0), 1)

    def _streaming_program(self, x_t: Tensor) -> _Program:
        if self._takes_images:
            program = self._program(x_t)
        elif self.T is None:
            raise ValueError("T: not known yet: freeze(net, T=...), or call the frozen network on a train first")
        else:
            self.shape = tuple(x_t.shape[1:])
            program = self._program(self.example())
        return _streaming(program, x_t.device)

    def _program(self, x: Tensor | SpikeTrain) -> _Program | CannotLower:
        key = tuple(x.shape[1:]), self.T, float(x.gain) if isinstance(x, SpikeTrain) else x.dtype
        program = self._programs.get(key)
        if program is None:
            self.shape = tuple(x.shape[1:])
            try:
                program = _Program(self.net, x[:1] if len(x) else _silence(x))
            except CannotLower as reason:
                program = reason.with_traceback(None)  # whose frames hold every value of the network
            if len(self._programs) >= MOST_PROGRAMS:
                self._programs.pop(next(iter(self._programs)), None)
            self._programs[key] = program
        return program


def freeze(net: nn.Module, weight_bits: int | None = None, *, T: int | None = None) -> FrozenNetwork:
    """A snapshot of the network's evaluation, for inference: the whole network is one call.

    Batch norm is folded into scale and shift, weights are packed once, and nothing runs in Python between the layers.
    Sums over spikes are exact integers, so the answer is bit for bit that of the network's evaluation, whatever the
    threads or the processor, and :meth:`FrozenNetwork.step` arrives at it step by step. A sample's answer does not
    depend on its batch, but for how torch rounds the one product of a real-valued input in batches of other sizes.
    A network that has no program (other modules between the layers, weights other than float32) runs layer by layer
    instead. On a GPU the kernels of the layers are captured in one CUDA graph for each shape of batch, the last eight
    of which are kept; sums there are float32.

    Args:
        net: a network of this package's layers that ends in a Readout, in any mode; it is not changed.
        weight_bits: round the weights to that many bits, 2 to 8, symmetrically: integers times one step per output
            channel, see ``grids``. None rounds as the network itself does (``weight_bits`` of its layers).
        T: the number of time steps, for a network without Encoder that is to stream before it saw a train.

    Raises:
        TypeError: net is no module, or T no int.
        ValueError: weight_bits or T out of range.

    >>> net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(6, 5, norm=True), tnn.Linear(5, 5), tnn.Readout(5, 3)).eval()
    >>> x = torch.rand(4, 6)
    >>> torch.equal(freeze(net)(x), net(x))
    True
    """
    check_network("net", net)
    check_bits(weight_bits)
    if T is not None:
        checks.T("T", T)
    return FrozenNetwork(net, weight_bits, T)


def load_frozen(path: str | PathLike[str]) -> FrozenNetwork:
    """A frozen network from the file that :meth:`FrozenNetwork.save` wrote: its answers are bit for bit the same.

    The file may come from anyone. It holds numbers, never code, and is read with its sizes checked before anything is
    allocated, its checksum compared, and every setting of every layer checked. What a network then costs to run is what
    its layers cost.

    Args:
        path: the file.

    Raises:
        UserError: no such file, not a frozen network, damaged, written by another version of the format, or a network
            that cannot be. It is a ValueError.

    >>> net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(6, 5), tnn.Readout(5, 3))
    >>> x, frozen = torch.rand(4, 6), freeze(net, weight_bits=4)
    >>> frozen.save("net.tandem")
    >>> torch.equal(load_frozen("net.tandem")(x), frozen(x))
    True
    """
    contents = file.read(path)
    frozen = FrozenNetwork(contents.net, T=contents.T)
    frozen.weight_bits, frozen.grids, frozen.shape = contents.weight_bits, dict(contents.grids), contents.shape
    return frozen


def _names(dtypes: set[torch.dtype]) -> str:
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def _streaming(program: _Program | CannotLower, device: torch.device) -> _Program:
    """The program, if it is one that can stream."""
    if device.type != "cpu":
        raise ValueError(f"steps are computed on the CPU: move the network and its input there from {device}")
    if isinstance(program, CannotLower):
        raise program
    if not program.streams:
        raise ValueError('gate: a network with the gate "resu" needs the whole window and cannot stream')
    return program


def _check_batch(name: str, x: object, trains: bool = True) -> None:
    if isinstance(x, Tensor):
        if not x.dim():
            raise ValueError(f"{name}: expected a batch [B, *features], got {describe(x)}")
    elif not trains or not isinstance(x, SpikeTrain):
        expected = "a tensor [B, *features]" + " or a SpikeTrain" * trains
        raise TypeError(f"{name}: expected {expected}, got {describe(x)}")


def _silence(x: Tensor | SpikeTrain) -> Tensor | SpikeTrain:
    """One sample like those of an empty batch."""
    if isinstance(x, SpikeTrain):
        return SpikeTrain.unchecked(x.planes.new_zeros(len(x.planes), 1, *x.shape[1:]), x.T, None, x.gain)
    return x.new_zeros(1, *x.shape[1:])
