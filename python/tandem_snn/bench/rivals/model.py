"""What a competitor is: parameters and a forward pass; how it infers and how it takes a training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tandem_ext import SpikeTrain

from ..network import Batch

Output = Tensor | SpikeTrain  # logits, or the last layer's activity


@dataclass(frozen=True)
class Candidate:
    """run takes the number of the call. answer: what such a call computes; None where that is not to be compared."""

    run: Callable[[int], Output]
    answer: Callable[[int], list[Tensor]] | None = None
    parameters: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Model:
    """parameters are in the order of :attr:`Network.tensors`.

    same, same_gradient: whether the spikes, and the gradients, are those of the tandem rule.
    """

    parameters: Sequence[Tensor]
    forward: Callable[[Batch], Output]
    same: bool = True
    same_gradient: bool = True

    def inference(self, batches: Sequence[Batch]) -> Candidate:
        def run(i: int) -> Output:
            with torch.inference_mode():
                return self.forward(batches[i % len(batches)])

        return Candidate(run, (lambda i: [values(run(i))]) if self.same else None)

    def training_step(self, batches: Sequence[Batch]) -> Candidate:
        """Forward, loss, backward; without an optimiser, which costs all of them the same."""

        def run(i: int) -> Output:
            batch = batches[i % len(batches)]
            for leaf in (*self.parameters, *batch.leaves):
                leaf.grad = None
            output = self.forward(batch)
            result = values(output)
            if batch.target.is_floating_point():
                result.backward(batch.target)
            else:
                F.cross_entropy(result, batch.target).backward()
            return output

        def answer(i: int) -> list[Tensor]:
            result = values(run(i)).detach()
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            return [result, *gradients] if self.same_gradient else [result]

        return Candidate(run, answer if self.same else None, self.parameters)


def values(output: Output) -> Tensor:
    return output.counts if isinstance(output, SpikeTrain) else output
