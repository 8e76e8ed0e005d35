"""The state of a frozen network between steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import count
from typing import Any

import torch
from torch import Tensor

from tandem_ext import SpikeTrain
from tandem_ext.train import add_flags, with_flags

from .instruction import FIRES
from .program import Program

_step = torch.ops.tandem.frozen_step.default
UNTIL_REST = 2**40  # more steps than any network takes


def explained(
    program: Program, x: Tensor | SpikeTrain | None, T: int, op: Callable[..., Any], *arguments: Any, **named: Any
) -> Any:
    """Call ``op``. If x does not fit, raise the error of the program's layers, which is clearer than the executor's."""
    try:
        return op(*arguments, **named)
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
        facts: of each sample in the last call, int64 [3, B]: its steps, the neurons that moved in the last of them, and
            its synaptic operations.
    """

    def __init__(self, program: Program, x: Tensor | SpikeTrain, T: int) -> None:
        self.program, self.T, self.shape = program, T, x.shape
        self._state, self.follows = explained(program, x, T, program.state, self.shape, T)
        self._bad: deque[Tensor | None] = deque(maxlen=T)  # the NaN flags of the last T steps, once there are any
        self.restart()

    def restart(self) -> None:
        """Begin again from silence, in the same memory."""
        self.is_new = True
        self.facts = torch.zeros(3, 0, dtype=torch.int64)
        self._bad.clear()

    def refusal(self, program: Program, x: Tensor | SpikeTrain, T: int) -> str:
        """Return why an input is not for this stream, or ""."""
        if x.shape != self.shape:
            return "x: the shape differs from that of the steps before"
        if T != self.T:
            return f"T: {self.T} in the steps before, now {T}"
        if program is not self.program:
            return "x: the gain of its spikes differs from that of the steps before"
        return "" if x.device.type == "cpu" else f"x: the steps before were on the CPU, now on {x.device}"

    def step(self, x: Tensor | SpikeTrain | None, steps: int = 1, moves: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Show an input and take a step. Neurons that follow may go on with the input before, and take several steps.

        Returns:
            (readout [B, outputs], with ``moves`` those of a single step by stage [B, *features]).
        """
        source: Any = x
        if isinstance(x, SpikeTrain):
            source = x.planes
            if self._bad or x.bad is not None:
                self._bad.extend([x.bad] * x.T)
        answer, self.facts, moved = explained(
            self.program, x, self.T, _step,
            source, isinstance(x, SpikeTrain) and x.T == 1, self.shape, self.T, self.program.network, self._state,
            self.is_new, steps, moves,
        )  # fmt: skip
        self.is_new = False
        return (with_flags(answer, reduce(add_flags, self._bad, None)) if self._bad else answer), moved

    def until_rest(self, x: Tensor | SpikeTrain, steps: int | None = None, moves: bool = False) -> Iterator[Any]:
        """Show an input; yield (readout, moves) after each step, until nothing moves or for a number of steps."""
        yield self.step(x, 1, moves)
        for taken in count(1):
            if taken == steps:
                return
            answer = self.step(None, 1, moves)
            if steps is None and not bool(self.facts[1].any()):
                return
            yield answer

    def by_layer(self, moves: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the moves of a step by the name of the layer, and "input", as int8 [B, *features]."""
        layers: Any = self.program.layers
        kinds = (*FIRES, "popcount")
        return {
            "input" if stage.instruction.kind == "popcount" else stage.name: of
            for stage, of in zip(layers.stages, moves, strict=True)
            if stage.instruction.kind in kinds and of.dim() > 1
        }
