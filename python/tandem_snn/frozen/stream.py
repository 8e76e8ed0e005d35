"""The state of a frozen network between steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from tandem_ext import SpikeTrain
from tandem_ext.train import add_flags, spoiled

from .program import Program

_ops = torch.ops.tandem
_UNTIL_REST = 2**40  # more steps than any network takes


@contextmanager
def clearer(program: Program, x: Tensor | SpikeTrain | None, T: int) -> Iterator[None]:
    """If x does not fit, raise the error of the program's layers, which is clearer."""
    try:
        yield
    except (RuntimeError, ValueError):
        if isinstance(x, SpikeTrain) and x.T != T:
            x = SpikeTrain.unchecked(x.stored[:1].expand((T + 7) // 8, *x.shape), T)
        if x is not None:
            program.layers(x)
        raise


class Stream:
    """Runs a program step by step for inputs of one shape, T and gain.

    With step timing each step needs its input. Neurons of window timing follow: the state is that of the present input.

    Attributes:
        T: the number of time steps of a window.
        follows: whether neurons follow their input.
        moved: the neurons that moved in the last step, int64 [B].
        synapses: the synaptic operations of the last call, int64 [B].
    """

    def __init__(self, program: Program, x: Tensor | SpikeTrain, T: int) -> None:
        self.program, self.T, self.shape = program, T, list(x.shape)
        with clearer(program, x, T):
            self._state, self.follows = program.state(self.shape, T)
        self._steps = 0
        self.moved = self.synapses = torch.zeros(len(x), dtype=torch.int64)
        self._bad: deque[Tensor | None] = deque(maxlen=T)  # the NaN flags of the last T steps, once there are any

    def check(self, program: Program, x: Tensor | SpikeTrain, T: int) -> None:
        """Raise ValueError if an input is not for this stream."""
        if list(x.shape) != self.shape:
            why = "x: the shape differs from that of the steps before"
        elif T != self.T:
            why = f"T: {self.T} in the steps before, now {T}"
        elif program is not self.program:
            why = "x: the gain of its spikes differs from that of the steps before"
        else:
            return
        raise ValueError(f"{why}; reset() begins a new stream")

    def step(self, x: Tensor | SpikeTrain) -> Tensor:
        """Run a step of neurons with step timing; return the readout so far."""
        with clearer(self.program, x, self.T):
            answer = self.program.run(x, self.T, self._state, self._steps)
        self._steps += 1
        return answer

    def follow(self, x: Tensor | SpikeTrain | None, steps: int | None, moves: bool = False) -> tuple[Tensor, ...]:
        """Show an input, or go on with the one before, and take steps, by default until everything rests.

        Returns:
            (readout [B, outputs], the steps of each sample [B], with ``moves`` those of a single step [B, *]).
        """
        source: Any = x
        if isinstance(x, SpikeTrain):
            source = x.planes
            if self._bad or x.bad is not None:
                self._bad.extend([x.bad] * x.T)
        with clearer(self.program, x, self.T):
            answer, facts, moved = _ops.frozen_follow.default(
                source, isinstance(x, SpikeTrain) and x.T == 1, self.shape, self.T, *self.program.tensors,
                self._state, self._steps == 0, _UNTIL_REST if steps is None else steps, moves,
            )  # fmt: skip
        self._steps = 1
        taken, self.moved, self.synapses = facts
        return spoiled(answer, reduce(add_flags, self._bad, None)), taken, moved

    def until_rest(self, x: Tensor | SpikeTrain, steps: int | None = None, moves: bool = False) -> Iterator[Any]:
        """Show an input; yield (readout, moves) after each step, until nothing moves or for a number of steps."""
        answer, _, moved = self.follow(x, 1, moves)
        taken = 1
        while True:
            yield answer, moved
            if taken == steps:
                return
            answer, _, moved = self.follow(None, 1, moves)
            if steps is None and not bool(self.moved.any()):
                return
            taken += 1

    def by_layer(self, moves: Tensor) -> dict[str, Tensor]:
        """Return the moves [B, *] of a step by the name of the layer, and "input", as int8 [B, *features]."""
        places = _ops.frozen_moves.default(*self.program.tensors[:2], self.shape, self.T).tolist()
        layers: Any = self.program.layers
        parts = {}
        for stage, (start, dims, channels, *space) in zip(layers.stages, places, strict=True):
            if start >= 0 and stage.kind != "max_pool":
                part = moves[:, start : start + channels * space[0] * space[1]]
                shaped = part.unflatten(1, (*space[3 - dims :], channels)).movedim(-1, 1)
                parts["input" if stage.kind == "popcount" else stage.name] = shaped
        return parts
