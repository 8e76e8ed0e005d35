"""The state of a frozen network between its steps."""

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
from .stages import flags_of, shown

_step = torch.ops.tandem.frozen_step.default

Inputs = tuple[Any, ...]  # of a network, each a tensor, a train or, in a stream, None


def explained(program: Program, x: Inputs, T: int, op: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call ``op``. If x does not fit, raise the error of the program's layers, which is clearer than the executor's."""
    try:
        return op(*arguments, **named)
    except (RuntimeError, ValueError):
        if all(each is not None for each in x):
            program.layers(*(_of_window(each, T) for each in x))
        raise


def _of_window(x: Tensor | SpikeTrain, T: int) -> Tensor | SpikeTrain:
    if isinstance(x, Tensor) or x.T == T:
        return x
    return SpikeTrain.unchecked(x.stored[:1].expand((T + 7) // 8, *x.shape), T)


class Stream:
    """Runs a program step by step for inputs of one shape, T and gain.

    With step timing each step needs its input. Neurons of window timing follow: the state is that of the present input.

    Attributes:
        T: the number of time steps of a window.
        follows: whether neurons follow their input.
        facts: of each sample in the last call, int64 [3, B]: its steps, the neurons that moved in the last of them, and
            its synaptic operations.
    """

    def __init__(self, program: Program, x: Inputs, T: int) -> None:
        self.program, self.T, self.given = program, T, x
        first, *more = (each.shape for each in shown(x, program.layers.modes))
        self._shape = [*first, *(size for shape in more for size in (-1, *shape[1:]))]
        self._state, self.follows = explained(program, x, T, program.state, self._shape, T)
        self._bad: deque[Tensor | None] = deque(maxlen=T)  # the NaN flags of the last T steps, once there are any
        self.restart()

    def restart(self) -> None:
        """Begin again from silence, in the same memory."""
        self.is_new = True
        self.facts = torch.zeros(3, 0, dtype=torch.int64)
        self._bad.clear()

    def refusal(self, program: Program, x: Inputs, T: int) -> str:
        """Return why inputs are not for this stream, or ""."""
        for now, before in zip(x, self.given, strict=True):
            if now.shape != before.shape:
                found = f"{getattr(now, 'dtype', type(now).__name__)} {list(now.shape)}"
                return f"x: the shape differs from that of the steps before, {list(before.shape)}, got {found}"
        if T != self.T:
            return f"T: {self.T} in the steps before, now {T}"
        if program is not self.program:
            return "x: the gain of its spikes differs from that of the steps before"
        device = next((each.device for each in x if each.device.type != "cpu"), None)
        return "" if device is None else f"x: the steps before were on the CPU, now on {device}"

    def step(self, x: Inputs, steps: int = 1, moves: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """Show inputs and take a step. Neurons that follow may go on with the input before, and take several steps.

        Returns:
            (the answers [B, *features], with ``moves`` those of a single step by stage [B, *features]).
        """
        trains = [each for each in x if isinstance(each, SpikeTrain)]
        modes = self.program.layers.modes
        sources = [
            (each.stored if mode == "pixels" else each.planes) if isinstance(each, SpikeTrain) else each
            for each, mode in zip(shown(x, modes), modes, strict=True)
        ]
        if trains and (self._bad or any(train.bad is not None for train in trains)):
            self._bad.extend([flags_of(trains)] * trains[0].T)
        answers, self.facts, moved = explained(
            self.program, x, self.T, _step,
            sources, any(train.T == 1 for train in trains), self._shape, self.T, self.program.network, self._state,
            self.is_new, steps, moves,
        )  # fmt: skip
        self.is_new = False
        self.given = tuple(before if now is None else now for now, before in zip(x, self.given, strict=True))
        if self._bad:
            bad = reduce(add_flags, self._bad, None)
            answers = [with_flags(answer, bad) for answer in answers]
        return answers, moved

    def until_rest(self, x: Inputs, steps: int | None = None, moves: bool = False) -> Iterator[Any]:
        """Show inputs; yield (answers, moves) after each step, until nothing moves or for a number of steps."""
        yield self.step(x, 1, moves)
        for taken in count(1):
            if taken == steps:
                return
            after = self.step((None,) * len(x), 1, moves)
            if steps is None and not bool(self.facts[1].any()):
                return
            yield after

    def answer(self, answers: list[Tensor]) -> Any:
        return self.program.layers.answer(answers)

    def by_layer(self, moves: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the moves of a step by the name of the layer, and "input", as int8 [B, *features]."""
        layers: Any = self.program.layers
        kinds = (*FIRES, "popcount")
        return {
            "input" if stage.instruction.kind == "popcount" else stage.name: (
                of if stage.seen is None else of.flatten(1)[:, stage.seen]
            )
            for stage, of in zip(layers.stages, moves, strict=True)
            if stage.instruction.kind in kinds and of.dim() > 1
        }
