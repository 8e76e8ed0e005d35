"""What a frozen network offers step by step."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from tandem_ext import SpikeTrain, checks
from tandem_ext.train import with_flags

from ..nn.firing import part_of
from ..nn.signals import check_batch, describe
from .program import Program, inference
from .stages import flags_of
from .stream import Inputs, Stream, explained

UNTIL_REST = 2**40  # more steps than any network takes

Call = TypeVar("Call", bound=Callable[..., Any])


def changes_nothing_if_refused(call: Call) -> Call:
    """A method of a frozen network that may trace it for new shapes or another T: kept only if it raises no error."""

    @functools.wraps(call)
    def run(net: Any, *args: Any) -> Any:
        before = net._T, net._shapes, net._example, net._fits, net._programs, net._graphs
        try:
            return call(net, *args)
        except Exception:
            net._T, net._shapes, net._example, net._fits, net._programs, net._graphs = before
            raise

    return run  # type: ignore[return-value]


class Streaming:
    """What a :class:`FrozenNetwork` does over time, as a base class of it."""

    _T: int | None
    _stream: Stream | None

    @property
    def _modes(self) -> Sequence[str]:
        raise NotImplementedError

    def _program(self, x: Inputs) -> Program:
        raise NotImplementedError

    def _window_of(self, x: Inputs) -> int | None:
        raise NotImplementedError

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
    def step(self, x: Tensor | SpikeTrain | None = None) -> Any:
        """Run one time step of a stream.

        With timing "step" the state carries over from step to step, also beyond T; call :meth:`reset` before the next
        recording. With timing "window" neurons follow the input: in each step a neuron moves its count by at most one
        towards the count that it would have for the present counts of its inputs, so that no reset is needed between
        inputs, and the network comes to rest in the answer of :meth:`forward` (:meth:`settle`).

        Args:
            x: the image, [B, *features], if the network has a direct encoder; else the spikes of the step, 0 and 1
                [B, *features] or a train of one step, which join the last T steps and push out the oldest. With timing
                "window" also a train of T steps, which takes the place of the last T; or None: the input stays as it
                is. On the CPU. Of several inputs a tuple.

        Returns:
            The answer so far, as of a call. With timing "step" it has t/T of the bias, and after T steps equals the
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
        stream, signals = self._shown(x)
        whole = any(each is None or (isinstance(each, SpikeTrain) and each.T != 1) for each in signals)
        if not stream.follows and whole:
            raise ValueError(f"x: expected one step, got {describe(x)}")
        answers, _ = stream.step(signals)
        self._go_on(stream)
        return stream.answer(answers)

    @inference
    def settle(self, x: Tensor | SpikeTrain | None = None, steps: int | None = None) -> tuple[Any, Tensor]:
        """Show an input to a network with window timing, and take steps until no neuron moves any more.

        At rest every count is that of the window, whatever came before: the readout is that of :meth:`forward` for the
        image, for the train of T steps, or for the last T steps of spikes, bit for bit.

        Args:
            x: as for :meth:`step`. Spikes of one step move time once, then it stands still.
            steps: the most steps to take; None: no limit. At most T for each consecutive layer, and T for spikes as
                the input, are needed.

        Returns:
            (answer, steps): the answer as of a call, and the number of steps in which anything of the sample moved,
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
        stream, signals = self._shown(x)
        _check_follows(stream)
        answers, _ = stream.step(signals, UNTIL_REST if steps is None else steps)
        self._go_on(stream)
        return stream.answer(answers), stream.facts[0]

    def _go_on(self, stream: Stream) -> None:
        """Keep the stream of a call that did not fail."""
        if stream is not self._stream:  # a module takes as long to set an attribute as a small layer runs
            self._stream, self._T = stream, stream.T

    def inputs(self, x: Any) -> Inputs:
        """Return the inputs in x: itself, or of a network with several inputs a tuple."""
        n = len(self._modes)
        if n == 1:
            return (x,)
        if x is None:
            return (None,) * n
        if not isinstance(x, tuple) or len(x) != n:
            raise TypeError(f"x: the network has {n} inputs: expected a tuple of as many, got {describe(x)}")
        return x

    @changes_nothing_if_refused
    def _shown(self, x: Any) -> tuple[Stream, Inputs]:
        """Return the stream, which x may begin, and x as its signals."""
        stream, given = self._stream, self.inputs(x)
        if any(each is None for each in given) and (stream is None or stream.is_new):
            raise ValueError("x: expected an input, got None: a new stream has none yet that could stay")
        if stream is not None and all(each is None for each in given):
            return stream, given
        signals = tuple(map(_signal, given, self._modes))
        trains = [each for each in signals if isinstance(each, SpikeTrain)]
        if len({train.T for train in trains}) > 1:
            raise ValueError(f"x: expected trains of one T, got {[train.T for train in trains]}")
        T = trains[0].T if trains and trains[0].T not in (1, self._T) else self._T
        if T is None:
            raise ValueError("T: not known yet: freeze(net, T=...), or call the frozen network on a train first")
        known = (
            signals
            if stream is None
            else tuple(before if now is None else now for now, before in zip(signals, stream.given, strict=True))
        )
        if stream is None or stream.is_new or trains:
            program = self._program(known).streaming(known[0].device, T)
        else:
            program = stream.program
        why = "" if stream is None else stream.refusal(program, known, T)
        if stream is None or (why and stream.is_new):
            stream = Stream(program, known, T)
        elif why:
            raise ValueError(f"{why}; reset() begins a new stream")
        return stream, signals

    @changes_nothing_if_refused
    def _stream_of(self, x: Any, steps: int | None) -> Stream:
        """Return a new stream, which begins with a batch of inputs as for a call, for at most so many steps."""
        if steps is not None:
            checks.T("steps", steps)
        inputs = self.inputs(x)
        T: Any = self._window_of(inputs)
        return Stream(self._program(inputs).streaming(inputs[0].device, T), inputs, T)

    @inference
    def readouts(self, x: Tensor | SpikeTrain, steps: int | None = None) -> Any:
        """Return the readout after each step, from silence, and leave the stream as it is.

        Args:
            x: a batch of inputs, as for a call.
            steps: the number of steps; None: T with timing "step", and until everything is at rest with "window".

        Returns:
            [steps, B, outputs], or a structure of such.

        Raises:
            TypeError: x is not a batch, or steps is not an int.
            ValueError: steps is less than 1, or more than T with timing "step"; or the network cannot stream (see
                :meth:`step`).

        >>> net = nn.Sequential(tnn.Encoder(T=4), tnn.Linear(3, 5), tnn.Readout(5, 2))
        >>> frozen, x = tandem_snn.freeze(net), torch.rand(6, 3)
        >>> torch.equal(frozen.readouts(x), torch.stack([frozen.step(x) for _ in range(4)]))
        True
        """
        stream = self._stream_of(x, steps)
        return stream.answer(self._over_time(stream, stream.given, steps)[0])

    def _over_time(
        self,
        stream: Stream,
        x: Inputs,
        steps: int | None = None,
        enough: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[list[Tensor], Tensor | None]:
        """Return the answers, each [steps, B, ...], from silence, and in which steps a neuron moved, [steps, B].

        With timing "window" no step follows once ``enough(answer)`` was true for each sample.
        """
        if stream.follows:
            after, moves, done = [], [], torch.zeros(len(x[0]), dtype=torch.bool)
            for answers, _ in stream.until_rest(x, steps):
                after.append(answers)
                moves.append(stream.facts[1] > 0)
                if enough is not None and bool((done := done | enough(answers[0])).all()):
                    break
            return [torch.stack(each) for each in zip(*after, strict=True)], torch.stack(moves)
        T = stream.T
        if steps is not None and steps > T:
            raise ValueError(f'steps: expected at most T={T} with timing "step", got {steps}')
        each = explained(stream.program, x, T, stream.program.run, x, T, every_step=True)
        if any(bool(answer.isnan().any()) for answer in each):  # a potential may have become NaN at a later step
            for t in range(T):
                now = tuple(part_of(each, t, t + 1) if isinstance(each, SpikeTrain) else each for each in x)
                for answer, then in zip(each, stream.step(now)[0], strict=True):
                    answer[t] = then
        bad = flags_of(x)
        if bad is not None:
            each = [with_flags(answer.movedim(1, 0), bad).movedim(0, 1) for answer in each]
        return [answer[:steps] for answer in each], None

    @torch.no_grad()
    def anytime(self, x: Tensor | SpikeTrain, confidence: float = 0.9) -> tuple[Tensor, Tensor]:
        """Early exit: return the answer of each sample at the first step at which the network is confident.

        Hardware that works step by step can stop there. With timing "step" all steps are computed together here, in
        less time than a few single ones. With timing "window" the network follows the input from silence, and a sample
        also ends at rest. The stream is left as it is.

        Args:
            x: a batch of inputs, as for a call.
            confidence: in (0, 1]: a sample stops when the softmax of its readout so far reaches this value, or, with
                timing "step", at T, or, with timing "window", at rest.

        Returns:
            (readouts, steps): the readouts [B, outputs] at these steps, and the number of steps of each sample, int64
            [B].

        Raises:
            TypeError: x is not a batch, or confidence is not a number.
            ValueError: confidence is out of range, the network has one output or several answers, or it cannot
                stream (see :meth:`step`).

        >>> net = nn.Sequential(tnn.Encoder(T=4), tnn.Linear(3, 5), tnn.Readout(5, 2))
        >>> logits, steps = tandem_snn.freeze(net).anytime(torch.rand(6, 3), confidence=0.6)
        >>> logits.shape, bool((steps >= 1).all() and (steps <= 4).all())
        (torch.Size([6, 2]), True)
        """
        checks.share("confidence", confidence)

        def sure(answers: Tensor) -> Tensor:
            return answers.flatten(1).softmax(1).amax(1) >= confidence

        stream = self._stream_of(x, None)
        if stream.program.layers.structure != 0:
            raise ValueError("confidence: it is that of one answer, and the network has several: call readouts")
        (answers,), moves = self._over_time(stream, stream.given, None, sure)
        if answers.shape[2:].numel() == 1:
            raise ValueError("confidence: the softmax of a single output is always 1, so it cannot be a confidence")
        ends = sure(answers.flatten(0, 1)).view(answers.shape[:2])
        ends[-1] = True
        last = ends.int().argmax(0)  # the first step that is sure
        if moves is not None:
            last = torch.minimum(last, moves.sum(0).clamp(min=1) - 1)
        return answers[last, torch.arange(len(last))], last + 1

    @torch.no_grad()
    def follow(self, x: Tensor | SpikeTrain, steps: int | None = None) -> Iterator[tuple[Any, dict[str, Tensor]]]:
        """Yield, after each step of a network with window timing, the readout and the moves of every layer.

        It starts from silence, ends at rest or after ``steps``, and leaves the stream as it is.

        Args:
            x: a batch of inputs, as for a call.
            steps: the most steps; None: until rest.

        Yields:
            (answer as of a call, moves): by the name of the layer int8 [B, *features], 1 where a count rises and -1
            where it falls; the moves of spikes that come in have the name "input".

        Raises:
            ValueError: the network has step timing, or as for :meth:`step`.

        >>> net = nn.Sequential(tnn.Encoder(T=4), tnn.Linear(3, 5, timing="window"), tnn.Readout(5, 2))
        >>> [moves["1"].shape for _, moves in tandem_snn.freeze(net).follow(torch.rand(6, 3), steps=2)]
        [torch.Size([6, 5]), torch.Size([6, 5])]
        """
        stream = self._stream_of(x, steps)
        _check_follows(stream)
        for answers, moves in stream.until_rest(stream.given, steps, moves=True):
            yield stream.answer(answers), stream.by_layer(moves)


def check_input(x: Any) -> None:
    """Check the input of a frozen network, whose layers have the T of its trains."""
    check_batch(x)
    if isinstance(x, SpikeTrain) and x.network_T != x.T:
        own = f"got the spikes of a layer with its own T={x.T} in a network of T={x.network_T}"
        raise ValueError(f"x: expected spikes in the steps of the network, {own}: freeze that layer as a part of it")
    if isinstance(x, SpikeTrain) and x.offset is not None:
        raise ValueError("x: expected a train without an offset: freeze the encoder as a part of the network")


def _signal(x: Any, mode: str) -> Any:
    if x is None:
        return x
    check_input(x)
    if isinstance(x, SpikeTrain) and mode != "events":
        raise ValueError(f"x: expected an image, got {describe(x)}")
    if isinstance(x, SpikeTrain) or mode != "events":
        return x
    checks.binary("x", x)
    return SpikeTrain.unchecked((x != 0).to(torch.uint8).unsqueeze(0), 1)


def _check_follows(stream: Stream) -> None:
    if not stream.follows:
        raise ValueError('timing: only neurons with timing "window" follow; with "step" call step() with each input')
