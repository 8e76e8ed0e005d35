"""FrozenNetwork: a snapshot of a network in evaluation mode that runs as one call, or step by step."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from os import PathLike
from typing import Any

import torch
from torch import Tensor, fx, nn

from tandem_ext import SpikeTrain, checks
from tandem_ext._torch import WeightKeeper
from tandem_ext.train import with_flags

from .. import nn as tnn
from ..nn.currents import part_of
from ..nn.hooks import FIRING
from ..nn.signals import check_batch, describe
from .graphs import MOST_KEPT, Graph, capture, key_of
from .instruction import FIRES, CannotLower
from .lowering import Grid, grids_of, lower, round_, snapshot
from .program import Metadata, Program, inference, write
from .stages import Stage, Stages, check_finite
from .stream import UNTIL_REST, Stream, explained

_KEEPING = threading.Lock()


class FrozenNetwork(WeightKeeper):
    """A network for inference, made by :func:`freeze`. Call it with the input of the network to get its readout.

    Attributes:
        net: the snapshot: the network in evaluation mode, with its own copy of every weight; for a network from a file,
            its list of stages. Weights are packed when the network first runs, so a later change of its parameters in
            place has no effect: use ``load_state_dict``, or freeze the changed network.
        weight_bits: bits per weight, or None if weights were not rounded by :func:`freeze`.
        T: the number of time steps; None until it is known (see :func:`freeze`). It cannot be set.
        shape: the shape [*features] of its last input; before it has run that of the example or data of
            :func:`tandem_snn.convert`, or None.

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
        sources = [m for m in self.net.modules() if isinstance(m, tnn.Encoder | Stages)]
        windows = {m.T for m in sources} - {None}
        self._takes_images = any(m.mode != "events" for m in sources)
        self._T = next(iter(windows)) if T is None and len(windows) == 1 else T
        if self._T is not None:
            in_windows = any(getattr(layer, "timing", None) == "window" for layer in self.net.modules())
            checks.T("T", self._T, "window" if in_windows else "step")
        if T is not None and windows - {T}:
            raise ValueError(f"T: the network's Encoder has T={windows.pop()}, got {T}")
        self.shape: tuple[int, ...] | None = net.meta.get("shape") if isinstance(net, fx.GraphModule) else None
        self._programs: dict[Any, Program] = {}  # by the gain of the input
        self._graphs: dict[Any, Graph | None] = {}
        check_finite(self._program_for(1.0).layers)  # trace before several threads may use the network
        self._stream: Stream | None = None

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
        """Why the network runs layer by layer on the CPU; None if it runs as one call."""
        return self._program_for(1.0).refuses(self.T)

    def extra_repr(self) -> str:
        program = self._program_for(1.0)
        instructions = [m.instruction for m in program.layers.modules() if isinstance(m, Stage)]
        timings = sorted({
            *(layer.timing for layer in program.layers.modules() if isinstance(layer, FIRING)),
            *(i.timing for i in instructions if i.kind in FIRES),
        })  # fmt: skip
        values = (*self.net.named_parameters(), *self.net.named_buffers())
        weights = sum(value.numel() for name, value in values if name.endswith("weight") and value.dim() > 1)
        how = "one call" if self.why_slow is None else f"layer by layer: {self.why_slow}"
        return f"T={self.T}, timing={'+'.join(timings)}, weight_bits={self.weight_bits}, {weights:,} weights, {how}"

    @property
    def grids(self) -> dict[str, Grid]:
        """The integers and quantisation steps of layers with ``weight_bits``, by layer name."""
        return grids_of(self._program_for(1.0).layers)

    @inference
    def forward(self, x: Tensor | SpikeTrain) -> Tensor:
        """Return the readout [B, outputs] of the whole window, for a batch x of images or a SpikeTrain."""
        T = self._window_of(x)
        return with_flags(self._answer(x, T), x.bad) if isinstance(x, SpikeTrain) else self._answer(x, T)

    def _window_of(self, x: Tensor | SpikeTrain) -> int | None:
        """Return T of this call, which self.T may not be if another thread calls with another T."""
        check_batch(x)
        if isinstance(x, SpikeTrain):
            if x.T != self._T:
                self._T = x.T
            return x.T
        return self._T

    def _answer(self, x: Tensor | SpikeTrain, T: int | None) -> Tensor:
        if x.device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
            return self._replay(x)
        program = self._program(x)
        if x.device.type != "cpu" or program.refusal is not None:
            return program.layers(x)
        why = program.refuses(T)
        if why is None:
            try:
                return program.run(x, T)
            except (RuntimeError, ValueError):  # the layers may support x, or raise a clearer error
                pass
        answer: Tensor = program.layers(x)
        if why is None or program.layers.T is None:  # else freeze() said it
            said = f"one call does not take {describe(x)}" if why is None else why
            warnings.warn(f"x: the network runs layer by layer on it, which takes longer: {said}", stacklevel=6)
        return answer

    def _replay(self, x: Tensor | SpikeTrain) -> Tensor:
        """Run on a GPU, as one CUDA graph, or layer by layer if there can be no graph."""
        layers, key = self._program(x).layers, key_of(x)
        graph = None if key is None else _kept(self._graphs, key, lambda: capture(layers, x))
        return layers(x) if graph is None else graph(x)

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

    def reset(self) -> None:
        """End the stream: the next :meth:`step` or :meth:`settle` begins a new one, from silence, as in a copy."""
        if self._stream is not None:
            self._stream.restart()

    @property
    def moved(self) -> Tensor:
        """The number of neurons of each sample that moved in the last step, int64 [B]; of inputs that are spikes, too.

        Only neurons with window timing move. If it is 0, the sample is at rest. Without a stream it is empty.
        """
        return torch.zeros(0, dtype=torch.int64) if self._stream is None else self._stream.facts[1]

    @inference
    def step(self, x: Tensor | SpikeTrain | None = None) -> Tensor:
        """Run one time step of a stream.

        With timing "step" the state carries over from step to step, also beyond T; call :meth:`reset` before the next
        recording. With timing "window" neurons follow the input: in each step a neuron moves its count by at most one
        towards the count that it would have for the present counts of its inputs, so that no reset is needed between
        inputs, and the network comes to rest in the answer of :meth:`forward` (:meth:`settle`).

        Args:
            x: the image, [B, *features], if the network has a direct encoder; else the spikes of the step, 0 and 1
                [B, *features] or a train of one step, which join the last T steps and push out the oldest. With timing
                "window" also a train of T steps, which takes the place of the last T; or None: the input stays as it
                is. On the CPU.

        Returns:
            The readout so far, [B, outputs]. With timing "step" it has t/T of the bias, and after T steps equals the
            readout of the window.

        Raises:
            TypeError: x is not a tensor or train.
            ValueError: the network cannot stream: T is not known, timings are mixed, or there is no program; or x is
                not on the CPU, is not 0 and 1, has another batch, shape, gain or T than before without :meth:`reset`,
                or is missing.

        >>> net = nn.Sequential(tnn.Encoder(T=4), tnn.Linear(3, 5), tnn.Readout(5, 2))
        >>> frozen = tandem_snn.freeze(net)
        >>> x = torch.rand(1, 3)
        >>> for _ in range(4):
        ...     so_far = frozen.step(x)
        >>> torch.equal(so_far, frozen(x))
        True
        """
        stream, signal = self._shown(x)
        if not stream.follows and (signal is None or (isinstance(signal, SpikeTrain) and signal.T != 1)):
            raise ValueError(f"x: expected one step, got {describe(x)}")
        answer, _ = stream.step(signal)
        self._go_on(stream)
        return answer

    @inference
    def settle(self, x: Tensor | SpikeTrain | None = None, steps: int | None = None) -> tuple[Tensor, Tensor]:
        """Show an input to a network with window timing, and take steps until no neuron moves any more.

        At rest every count is that of the window, whatever came before: the readout is that of :meth:`forward` for the
        image, for the train of T steps, or for the last T steps of spikes, bit for bit.

        Args:
            x: as for :meth:`step`. Spikes of one step move time once, then it stands still.
            steps: the most steps to take; None: no limit. At most T for each consecutive layer and T for the input are
                needed.

        Returns:
            (readouts, steps): the readouts [B, outputs], and the number of steps in which anything of the sample moved,
            int64 [B].

        Raises:
            TypeError: x is not a tensor or train, or steps is not an int.
            ValueError: steps is less than 1, the network has step timing, or as for :meth:`step`.

        >>> net = nn.Sequential(tnn.Encoder(T=4), tnn.Linear(3, 5, timing="window"), tnn.Readout(5, 2))
        >>> frozen, frames = tandem_snn.freeze(net), torch.rand(3, 1, 3)
        >>> all(torch.equal(frozen.settle(x)[0], frozen(x)) for x in frames)  # a video, without a reset
        True
        """
        if steps is not None:
            checks.T("steps", steps)
        stream, signal = self._shown(x)
        _check_follows(stream)
        answer, _ = stream.step(signal, UNTIL_REST if steps is None else steps)
        self._go_on(stream)
        return answer, stream.facts[0]

    def _go_on(self, stream: Stream) -> None:
        """Keep the stream of a call that did not fail."""
        if stream is not self._stream:  # a module takes as long to set an attribute as a small layer runs
            self._stream, self._T = stream, stream.T

    def _shown(self, x: Tensor | SpikeTrain | None) -> tuple[Stream, Tensor | SpikeTrain | None]:
        """Return the stream, which x may begin, and x as its signal."""
        stream = self._stream
        if x is None:
            if stream is None or stream.is_new:
                raise ValueError("x: expected an input, got None: a new stream has none yet that could stay")
            return stream, None
        check_batch(x)
        signal = x
        if isinstance(x, SpikeTrain) and self._takes_images:
            raise ValueError(f"x: expected an image, got {describe(x)}")
        if isinstance(x, Tensor) and not self._takes_images:
            checks.binary("x", x)
            signal = SpikeTrain.unchecked((x != 0).to(torch.uint8).unsqueeze(0), 1)
        T = self.T
        if isinstance(signal, SpikeTrain) and signal.T not in (1, T):
            T = signal.T
        if T is None:
            raise ValueError("T: not known yet: freeze(net, T=...), or call the frozen network on a train first")
        if stream is None or stream.is_new or isinstance(signal, SpikeTrain):
            program = self._program(signal).streaming(x.device, T)
        else:
            program = stream.program
        why = "" if stream is None else stream.refusal(program, signal, T)
        if stream is None or (why and stream.is_new):
            stream = Stream(program, signal, T)
        elif why:
            raise ValueError(f"{why}; reset() begins a new stream")
        return stream, signal

    def _stream_of(self, x: Tensor | SpikeTrain, steps: int | None) -> Stream:
        """Return a new stream, which begins with a batch of inputs as for a call, for at most so many steps."""
        if steps is not None:
            checks.T("steps", steps)
        T: Any = self._window_of(x)
        return Stream(self._program(x).streaming(x.device, T), x, T)

    @inference
    def readouts(self, x: Tensor | SpikeTrain, steps: int | None = None) -> Tensor:
        """Return the readout after each step, from silence, and leave the stream as it is.

        Args:
            x: a batch of inputs, as for a call.
            steps: the number of steps; None: T with timing "step", and until everything is at rest with "window".

        Returns:
            [steps, B, outputs].

        Raises:
            TypeError: x is not a batch, or steps is not an int.
            ValueError: steps is less than 1, or more than T with timing "step"; or the network cannot stream (see
                :meth:`step`).

        >>> net = nn.Sequential(tnn.Encoder(T=4), tnn.Linear(3, 5), tnn.Readout(5, 2))
        >>> frozen, x = tandem_snn.freeze(net), torch.rand(6, 3)
        >>> torch.equal(frozen.readouts(x), torch.stack([frozen.step(x) for _ in range(4)]))
        True
        """
        return self._over_time(x, steps)[0]

    def _over_time(
        self, x: Tensor | SpikeTrain, steps: int | None = None, enough: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the readouts [steps, B, outputs] from silence, and in which steps a neuron moved, [steps, B].

        With timing "window" no step follows once ``enough(readout)`` was true for each sample.
        """
        stream = self._stream_of(x, steps)
        if stream.follows:
            answers, moves, done = [], [], torch.zeros(len(x), dtype=torch.bool)
            for answer, _ in stream.until_rest(x, steps):
                answers.append(answer)
                moves.append(stream.facts[1] > 0)
                if enough is not None and bool((done := done | enough(answer)).all()):
                    break
            return torch.stack(answers), torch.stack(moves)
        T = stream.T
        if steps is not None and steps > T:
            raise ValueError(f'steps: expected at most T={T} with timing "step", got {steps}')
        each = explained(stream.program, x, T, stream.program.run, x, T, every_step=True)
        if each.isnan().any():  # a potential may have become NaN at a later step
            for t in range(len(each)):
                now: Any = part_of(x, t, t + 1) if isinstance(x, SpikeTrain) else x
                each[t], _ = stream.step(now)
        if isinstance(x, SpikeTrain):
            each = with_flags(each.movedim(1, 0), x.bad).movedim(0, 1)
        return each[:steps], None

    @torch.no_grad()
    def anytime(self, x: Tensor | SpikeTrain, confidence: float = 0.9) -> tuple[Tensor, Tensor]:
        """Early exit: return the answer of each sample at the first step at which the network is confident.

        Hardware that works step by step can stop there. With timing "step" all steps are computed together here, in
        less time than a few single ones. With timing "window" the network follows the input from silence, and a sample
        also ends at rest. The stream is left as it is.

        Args:
            x: a batch of inputs, as for a call.
            confidence: in (0, 1]: a sample stops when the softmax of its readout so far reaches this value, or at T,
                or at rest.

        Returns:
            (readouts, steps): the readouts [B, outputs] at these steps, and the number of steps of each sample, int64
            [B].

        Raises:
            TypeError: x is not a batch, or confidence is not a number.
            ValueError: confidence is out of range, the network has one output, or it cannot stream (see :meth:`step`).

        >>> net = nn.Sequential(tnn.Encoder(T=4), tnn.Linear(3, 5), tnn.Readout(5, 2))
        >>> logits, steps = tandem_snn.freeze(net).anytime(torch.rand(6, 3), confidence=0.6)
        >>> logits.shape, bool((steps >= 1).all() and (steps <= 4).all())
        (torch.Size([6, 2]), True)
        """
        checks.share("confidence", confidence)

        def sure(answers: Tensor) -> Tensor:
            return answers.flatten(1).softmax(1).amax(1) >= confidence

        answers, moves = self._over_time(x, None, sure)
        if answers.shape[2:].numel() == 1:
            raise ValueError("confidence: the softmax of a single output is always 1, so it cannot be a confidence")
        ends = sure(answers.flatten(0, 1)).view(answers.shape[:2])
        ends[-1] = True
        last = ends.int().argmax(0)  # the first step that is sure
        if moves is not None:
            last = torch.minimum(last, moves.sum(0).clamp(min=1) - 1)
        return answers[last, torch.arange(len(last))], last + 1

    @torch.no_grad()
    def follow(self, x: Tensor | SpikeTrain, steps: int | None = None) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Yield, after each step of a network with window timing, the readout and the moves of every layer.

        It starts from silence, ends at rest or after ``steps``, and leaves the stream as it is.

        Args:
            x: a batch of inputs, as for a call.
            steps: the most steps; None: until rest.

        Yields:
            (readout [B, outputs], moves): by the name of the layer int8 [B, *features], 1 where a count rises and -1
            where it falls; the moves of spikes that come in have the name "input".

        Raises:
            ValueError: the network has step timing, or as for :meth:`step`.

        >>> net = nn.Sequential(tnn.Encoder(T=4), tnn.Linear(3, 5, timing="window"), tnn.Readout(5, 2))
        >>> [moves["1"].shape for _, moves in tandem_snn.freeze(net).follow(torch.rand(6, 3), steps=2)]
        [torch.Size([6, 5]), torch.Size([6, 5])]
        """
        stream = self._stream_of(x, steps)
        _check_follows(stream)
        for answer, moves in stream.until_rest(x, steps, moves=True):
            yield answer, stream.by_layer(moves)

    def save(self, path: str | PathLike[str]) -> None:
        """Save the network to the file ``path``, for :func:`load` and for programs without Python.

        The file is safetensors with a format version and a checksum, and is written atomically. It contains the program
        and its data; weights of 2 to 8 bits take a byte each. The state of a stream is not saved. Programs without
        Python may need ``shape`` and ``T``: a warning says if the file cannot tell them.

        Raises:
            ValueError: the network contains something other than layers of ``tandem_snn.nn``, which the message names;
                a file contains no code.
            UserError: the package safetensors is not installed.

        >>> net = nn.Sequential(tnn.Encoder(T=4), tnn.Linear(3, 5), tnn.Readout(5, 2))
        >>> tandem_snn.freeze(net).save("net.tandem")
        """
        try:
            write(path, lower(self.net), Metadata(self.T, self.weight_bits, self.shape))
        except CannotLower as error:
            raise ValueError(f"net: layer {error.layer!r} cannot be saved: {error.why}") from error
        unknown = [name for name in ("shape", "T") if getattr(self, name) is None]
        if unknown:
            warnings.warn(
                f"net: programs without Python cannot run a file without {' and '.join(unknown)}: call the frozen "
                "network on an input before save()",
                stacklevel=2,
            )

    def _program(self, x: Tensor | SpikeTrain) -> Program:
        self.shape = tuple(x.shape[1:])
        return self._program_for(x.gain if isinstance(x, SpikeTrain) else 1.0)

    def _program_for(self, gain: float | Tensor) -> Program:
        key: Any = tuple(gain.tolist()) if isinstance(gain, Tensor) and gain.dim() > 0 else float(gain)
        if isinstance(key, tuple) and any(getattr(layer, "weight_bits", None) for layer in self.net.modules()):
            raise ValueError("x: weights of few bits are rounded already, so the gain must be one for all channels")
        with _KEEPING:
            return _kept(self._programs, key, lambda: Program(self.net, gain if isinstance(key, tuple) else key))


def _check_follows(stream: Stream) -> None:
    if not stream.follows:
        raise ValueError('timing: only neurons with timing "window" follow; with "step" call step() with each input')


def _kept(values: dict[Any, Any], key: Any, make: Callable[[], Any]) -> Any:
    """Return the value of a key, which is made if it is missing; the oldest value then makes room."""
    if key not in values:
        if len(values) == MOST_KEPT:
            del values[next(iter(values))]
        values[key] = make()
    return values[key]
