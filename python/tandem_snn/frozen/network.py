"""FrozenNetwork: a snapshot of a network's evaluation that runs as one call, or step by step."""

from __future__ import annotations

import inspect
import threading
from numbers import Real
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tandem_ext import SpikeTrain, checks
from tandem_ext.train import spoiled

from .. import nn as tnn
from ..nn.currents import step_of
from ..nn.quantise import check_bits
from ..nn.signals import check_network, describe
from . import file
from .graph import MOST_GRAPHS, Graph, capture, key_of
from .lowering import lower, snapshot
from .program import Facts, Program, inference
from .quantise import Grid, grids_of, round_
from .stages import CannotLower, Stage, Stages, check_finite

MOST_PROGRAMS = 8  # each has its own copy of the packed weights
_TRACING = threading.Lock()  # torch.fx changes classes while it traces


class FrozenNetwork(nn.Module):
    """The result of :func:`freeze`. A call takes the network's input and returns its readout.

    Attributes:
        net: the snapshot: the network in evaluation mode, with its own copy of every weight; from a file, the list of
            its layers.
        weight_bits: bits per weight, or None for the weights of the network's evaluation.
        T: the number of time steps; None until it is known (see :func:`freeze`).
        shape: [*features] of its input; None until it has run.

    >>> net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(3, 5), tnn.Readout(5, 2)).eval()
    >>> frozen = tandem_snn.freeze(net)
    >>> frozen(torch.rand(4, 3)).shape, frozen.T, frozen.shape
    (torch.Size([4, 2]), 8, (3,))
    """

    def __init__(self, net: nn.Module, weight_bits: int | None = None, T: int | None = None) -> None:
        super().__init__()
        self.net = snapshot(net)
        self.weight_bits = weight_bits
        round_(self.net, weight_bits)
        if isinstance(self.net, Stages):
            windows, self._takes_images = {self.net.T} - {None}, self.net.mode != "events"
        else:
            encoders = [m for m in self.net.modules() if isinstance(m, tnn.Encoder)]
            windows, self._takes_images = {m.T for m in encoders}, any(m.mode != "events" for m in encoders)
        if T is not None and windows - {T}:
            raise ValueError(f"T: the network's Encoder has T={windows.pop()}, got {T}")
        self.T = windows.pop() if len(windows) == 1 else T
        self.shape: tuple[int, ...] | None = None
        self._programs: dict[Any, Program] = {}  # by the worth of a spike of the input
        self._graphs: dict[Any, Graph | None] = {}
        check_finite(self._program_for(1.0).layers)  # traced here, where no other thread serves the network
        self.reset()

    @property
    def grids(self) -> dict[str, Grid]:
        """The integers and steps of the weights of few bits, by the layer's name."""
        return grids_of(self._program_for(1.0).layers)

    @property
    def latency(self) -> int | None:
        """Steps of a stream from the first step of a window to its complete answer: T, and T more for each layer with
        timing "window" on the way. None while T is not known.

        >>> layers = tnn.Linear(3, 5, timing="window"), tnn.Linear(5, 4, timing="window")
        >>> freeze(nn.Sequential(tnn.Encoder(T=8), *layers, tnn.Readout(4, 2))).latency
        24
        """
        return None if self.T is None else self.T * (1 + self._windows)

    @property
    def _windows(self) -> int:
        """How many layers with timing "window" follow one another."""
        layers = self._program_for(1.0).layers
        return layers.windows if isinstance(layers, Stages) else 0

    @inference
    def forward(self, x: Tensor | SpikeTrain) -> Tensor:
        """The readout [B, outputs] of the whole window, for a batch x of images or spike trains."""
        T = self._window_of(x)
        return spoiled(self._answer(x, T), x.bad) if isinstance(x, SpikeTrain) else self._answer(x, T)

    def _window_of(self, x: Tensor | SpikeTrain) -> int | None:
        """T of this call: another thread may call with another."""
        _check_batch("x", x)
        if isinstance(x, SpikeTrain):
            if x.T != self.T:
                self.T = x.T
            return x.T
        if not self._takes_images and isinstance(self._program_for(1.0).layers, Stages):
            raise TypeError(f"x: expected a SpikeTrain, since the network has no Encoder for images, got {describe(x)}")
        return self.T

    def _answer(self, x: Tensor | SpikeTrain, T: int | None) -> Tensor:
        if x.device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
            return self._replay(x)
        program = self._program(x)
        if x.device.type == "cpu" and program.refusal is None:
            try:
                return program.run(x, T)[0]
            except (RuntimeError, ValueError) as error:  # the layers may do better, or say what is wrong with x
                if "instruction " not in str(error) and "tandem: " not in str(error):
                    raise
        answer: Tensor = program.layers(x)
        return answer

    def _replay(self, x: Tensor | SpikeTrain) -> Tensor:
        """On a GPU: the kernels of the layers as one CUDA graph, or one by one if there can be none."""
        layers, key = self._program(x).layers, key_of(x)
        if key is not None and key not in self._graphs:
            if len(self._graphs) == MOST_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[key] = capture(layers, x)
        graph = self._graphs.get(key)
        answer: Tensor = layers(x) if graph is None else graph(x)
        return answer

    def _apply(self, *arguments: Any, **keywords: Any) -> Any:
        self._forget_weights()
        return super()._apply(*arguments, **keywords)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        self._forget_weights()
        super()._load_from_state_dict(*arguments, **keywords)

    def _forget_weights(self) -> None:
        """Programs have copies of the weights, and graphs have their addresses."""
        self._programs.clear()
        self._graphs.clear()
        for stage in self.net.modules():
            if isinstance(stage, Stage):
                stage.digits = None

    def __getstate__(self) -> dict[str, Any]:
        """Without programs, since another version or machine may pack weights differently, and without graphs."""
        return self.__dict__ | {"_programs": {}, "_graphs": {}}

    def example(self) -> Any:
        """A sample [1, *features] of zeros, as input of the network.

        Raises:
            ValueError: the network has not run yet, so its input's shape is unknown.
        """
        if self.shape is not None and self._takes_images:
            return torch.zeros(1, *self.shape)
        if self.shape is not None and self.T is not None:
            silence = torch.zeros((self.T + 7) // 8, 1, *self.shape, dtype=torch.uint8)
            return SpikeTrain.unchecked(silence, self.T)
        raise ValueError("x: expected a batch of inputs: the network has not run, so it does not know their shape")

    def reset(self) -> None:
        """Forgets the stream: the next :meth:`step` is step 0."""
        self._state: Tensor | None = None
        self._steps = self._batch = 0
        self._window: int | None = None  # T of the stream

    @inference
    def step(self, x_t: Tensor) -> Tensor:
        """One time step.

        With timing "window" the network is a pipeline: the answer to a window comes :attr:`latency` - T steps later. Of
        images it uses the one at the first step of each window. Other networks go on after T steps, with all that came
        before: call :meth:`reset` before the next recording.

        Args:
            x_t: on the CPU, the step's spikes [B, *features], 0 and 1, or the image of a direct encoder.

        Returns:
            The readout so far [B, outputs], with t/T of the bias; after T steps exactly the readout of the window. NaN
            until the first window has passed a pipeline.

        Raises:
            TypeError: x_t is not a tensor.
            ValueError: T is not known; the gate "resu", which needs the end of the window; no program; other spikes
                than 0 and 1; batch or T changed without :meth:`reset`; a later layer of a pipeline reads the image.

        >>> net = nn.Sequential(tnn.Encoder(T=4), tnn.Linear(3, 5), tnn.Readout(5, 2))
        >>> frozen = freeze(net)
        >>> x = torch.rand(1, 3)
        >>> for _ in range(4):
        ...     so_far = frozen.step(x)
        >>> torch.equal(so_far, frozen(x))
        True
        """
        _check_batch("x_t", x_t, trains=False)
        signal: Tensor | SpikeTrain = x_t
        if not self._takes_images:
            checks.binary("x_t", x_t)
            if self.T is None:
                raise ValueError("T: not known yet: freeze(net, T=...), or call the frozen network on a train first")
            signal = SpikeTrain.unchecked((x_t != 0).to(torch.uint8).unsqueeze(0), 1)
        program = _streaming(self._program(signal), x_t.device)
        if self._state is None:
            self._state, self._batch, self._window = torch.empty(0), len(x_t), self.T
        if len(x_t) != self._batch:
            raise ValueError("x_t: the batch differs from that of the steps before; reset() begins a new stream")
        if self._window != self.T:
            raise ValueError(f"T: {self._window} in the steps before, now {self.T}; reset() begins a new stream")
        try:
            answer, self._state = program.run(signal, self.T, self._state, self._steps)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"x_t: {error}") from error
        self._steps += 1
        return answer

    @inference
    def readouts(self, x: Tensor | SpikeTrain) -> Tensor:
        """The results of :meth:`step` at all steps, [T, B, outputs], for a batch x as for a call, in about its time.

        Of a pipeline, the results at the steps of the window in which the answer comes.

        Raises:
            TypeError: x is not a batch.
            ValueError: the network cannot stream (see :meth:`step`).

        >>> net = nn.Sequential(tnn.Encoder(T=4), tnn.Linear(3, 5), tnn.Readout(5, 2))
        >>> frozen, x = freeze(net), torch.rand(6, 3)
        >>> torch.equal(frozen.readouts(x), torch.stack([frozen.step(x) for _ in range(4)]))
        True
        """
        T = self._window_of(x)
        program = _streaming(self._program(x), x.device)
        answers, state = program.run(x, T, every=True)
        if not self._windows and answers.isnan().any():  # of all steps, where it may have begun at one of them
            for t in range(len(answers)):
                now: Any = step_of(x, t) if isinstance(x, SpikeTrain) else x
                answers[t], state = program.run(now, T, state, t)
        return spoiled(answers.movedim(1, 0), x.bad).movedim(0, 1) if isinstance(x, SpikeTrain) else answers

    @torch.inference_mode()
    def anytime(self, x: Tensor | SpikeTrain, confidence: float = 0.9) -> tuple[Tensor, Tensor]:
        """Early exit: the answer of each sample at the first step at which the network is confident.

        Hardware that works step by step can stop there. Here all steps are computed together, in less time than a few
        single steps. Of a pipeline, the steps of its last window count.

        Args:
            x: a batch as for a call.
            confidence: in (0, 1]: a sample stops when the softmax of its readout so far reaches it, or at step T.

        Returns:
            The readouts [B, outputs] at these steps, and the numbers of steps [B] (int64).

        Raises:
            TypeError: x is not a batch, or confidence not a number.
            ValueError: confidence is out of range, the network has one output, or it cannot stream (see :meth:`step`).

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
        if answers.shape[2:].numel() == 1:
            raise ValueError("confidence: the softmax of a single output is always 1, so no step is surer than another")
        sure = answers.flatten(2).softmax(2).amax(2) >= confidence
        sure[-1] = True
        last = sure.int().argmax(0)  # the first step of those
        return answers[last, torch.arange(len(last))], last + 1

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the network as the file ``path``, for :func:`load_frozen` and for programs without Python.

        The file is safetensors with a format version and a checksum, written whole or not at all. It holds the program
        and its numbers; weights of few bits take a byte each. The stream's state is not saved.

        Raises:
            ValueError: the network has other parts than layers of ``tandem_snn.nn``: a file holds no code. The message
                names the part.
            UserError: the package safetensors is not installed.
        """
        try:
            file.write(path, lower(self.net), Facts(self.T, self.weight_bits, self.shape))
        except CannotLower as error:
            raise ValueError(f"net: layer {error.layer!r} cannot be saved: {error.why}") from error

    def _program(self, x: Tensor | SpikeTrain) -> Program:
        self.shape = tuple(x.shape[1:])
        return self._program_for(x.gain if isinstance(x, SpikeTrain) else 1.0)

    def _program_for(self, gain: float | Tensor) -> Program:
        worth = gain.tolist() if isinstance(gain, Tensor) else gain
        key = tuple(worth) if isinstance(worth, list) else worth
        if isinstance(key, tuple) and any(getattr(layer, "weight_bits", None) for layer in self.net.modules()):
            raise ValueError("x: weights of few bits are rounded already, so the gain must be one for all channels")
        with _TRACING:
            if key not in self._programs:
                if len(self._programs) == MOST_PROGRAMS:
                    self._programs.pop(next(iter(self._programs)))
                self._programs[key] = Program(self.net, gain if isinstance(worth, list) else worth)
            return self._programs[key]


def freeze(net: nn.Module, weight_bits: int | None = None, *, T: int | None = None) -> FrozenNetwork:
    """A snapshot of the network's evaluation, for inference: the whole network is one call.

    Batch norm is folded into scale and shift, weights are packed once, and nothing runs in Python between the layers.
    Sums over spikes are exact integers, so the answer is bit for bit that of the network's evaluation, whatever the
    threads or the processor, and :meth:`FrozenNetwork.step` arrives at it step by step. A sample's answer does not
    depend on its batch, except that torch may round the product of a real-valued input differently for other sizes.
    A network without a program (other modules between the layers, forward hooks, float64 weights) runs layer by layer,
    as do bfloat16 and float16 if T exceeds 256 and 2,048, up to which they count. On a GPU the kernels of the layers
    are one CUDA graph for each shape of batch, of which eight are kept, and multiply float32 weights as the same
    integers.

    Args:
        net: a network of this package's layers that ends in a Readout, in any mode; it is not changed. Of DataParallel,
            DistributedDataParallel and AveragedModel it is the network within.
        weight_bits: round the weights to that many bits, 2 to 8, symmetrically: integers times one step per output
            channel, see ``grids``. None rounds as the network itself does (``weight_bits`` of its layers).
        T: the number of time steps, for a network without Encoder that is to stream before it has seen a train.

    Raises:
        TypeError: net is no module, or T no int.
        ValueError: several inputs; weight_bits or T out of range; few bits for neurons of the general way; a weight,
            scale, threshold or statistic that is not finite (the message names the layer).

    >>> net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(6, 5, norm=True), tnn.Linear(5, 5), tnn.Readout(5, 3)).eval()
    >>> x = torch.rand(4, 6)
    >>> torch.equal(freeze(net)(x), net(x))
    True
    """
    check_network("net", net)
    if isinstance(net, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
        return freeze(net.module, weight_bits, T=T)
    if isinstance(net, FrozenNetwork):
        return freeze(net.net, weight_bits, T=net.T if T is None else T)
    if isinstance(net, Stages) and weight_bits is not None:
        raise ValueError("weight_bits: a network from a file has its weights already: freeze the one it was made of")
    check_bits(weight_bits)
    taken = inspect.signature(net.forward).parameters.values()
    needed = [p.name for p in taken if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(needed) > 1 and not isinstance(net, Stages):
        raise ValueError(f"net: its forward takes {', '.join(needed)}, where a frozen network takes one input")
    if T is not None:
        checks.T("T", T)
    return FrozenNetwork(net, weight_bits, T)


def load_frozen(path: str | PathLike[str]) -> FrozenNetwork:
    """A frozen network from the file ``path`` of :meth:`FrozenNetwork.save`, with bit-identical answers.

    The file may be untrusted: it has no code, sizes are checked before anything is allocated, and checksum and every
    setting of every layer are checked. The cost of running its layers has no limit.

    Raises:
        UserError: no such file, not a frozen network, damaged, another version of the format, or an impossible network;
            a ValueError.

    >>> net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(6, 5), tnn.Readout(5, 3))
    >>> x, frozen = torch.rand(4, 6), freeze(net, weight_bits=4)
    >>> frozen.save("net.tandem")
    >>> torch.equal(load_frozen("net.tandem")(x), frozen(x))
    True
    """
    stages, facts = file.read(path)
    frozen = FrozenNetwork(stages, facts.weight_bits, facts.T)
    frozen.shape = facts.shape
    return frozen


def _streaming(program: Program, device: torch.device) -> Program:
    """Checks that the program can stream, and returns it."""
    if device.type != "cpu":
        raise ValueError(f"steps are computed on the CPU: move the network and its input there from {device}")
    if program.refusal is not None:
        raise program.refusal
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
