"""The integer graph of a network: neurons with timing "window" as thresholds of integer sums.

The count of such a neuron is a monotone function of the sum u of its weights times the counts that it reads, with every
rounding of the rule. So its channel has integers θ_1 <= ... <= θ_T with count(u) = #{k : u >= θ_k}, which bisection
finds by the rule itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tandem_ext import SpikeTrain
from tandem_ext.functional.neuron import fold, over_inputs
from tandem_ext.rule import affine, fire_after_window, times

from ..frozen import FrozenNetwork
from ..frozen.instruction import CannotLower, Instruction
from ..listing import Listing, NamedStage, listing_of
from ..nn.currents import Currents
from ..nn.passing import SIGNALS

LARGEST_SUM = 2**31 - 2  # a threshold may be one more
LARGEST_TABLE = 2048  # thresholds of a channel with a residual; with more its neurons compute in floats
MOVES = ("gather", "flatten", "max_pool")


@dataclass
class Node:
    """A stage as integers.

    Attributes:
        most: the largest count of its train, or the largest magnitude of its sums.
        weight: int64 [N, C / groups, *kernel]; negated where the scale is negative, if there are thresholds.
        sums: the largest magnitude of the sums of its weights.
        thresholds: int64 [counts of the residual, places, N, T]. None: it has no neurons, or they compute in floats.
        start: float32 [places, N], the potentials before the window.
        place: int64 [pixels], which of the places each pixel is.
        ends: float32 [2, N or 1], the least and the largest of its currents.
        divisor, gain: what a sum of means is divided by, and then multiplied by.
    """

    stage: NamedStage
    most: int
    weight: Tensor | None = None
    sums: int = 0
    thresholds: Tensor | None = None
    start: Tensor | None = None
    place: Tensor | None = None
    ends: Tensor | None = None
    divisor: int = 1
    gain: float = 1.0

    @property
    def geometry(self) -> Instruction:
        """The geometry of its product, also if that is a mean."""
        i, pooling = self.stage.instruction, self.stage.layer.weight is None and self.stage.pooling()
        if not pooling:
            return i
        sizes: Any = dict(zip(("kernel", "stride", "padding"), pooling, strict=True))
        return replace(i, **sizes, groups=self.stage.in_shape[0])

    @property
    def apart(self) -> int:
        """What a count of the residual adds to the sums, so that they lie beyond those of the count before."""
        return 2 * self.sums + 1

    def logits(self) -> tuple[Tensor | None, Tensor | None]:
        """Return by what a readout's sums, or their quotients by the divisor, are multiplied, and what is added."""
        layer = self.stage.layer
        return fold(None, layer.shift, None, None, layer.step, self.gain, self.stage.shape[0], torch.zeros(()))

    def staircase(self) -> Tensor:
        """Return all thresholds [N, 1 or pixels, n] as one table of sums and residual.

        Of sums u and the count r of a residual, u + apart·r reaches count + T·r of them.
        """
        assert self.thresholds is not None
        levels = self.thresholds + self.apart * torch.arange(len(self.thresholds)).view(-1, 1, 1, 1)
        levels = levels if self.place is None else levels[:, self.place]
        return levels.permute(2, 1, 0, 3).flatten(2)


class IntegerGraph:
    """The nodes of a listing by name; ``refusals`` say which stages have no integer form, and why."""

    def __init__(self, network: Listing) -> None:
        self.network = network
        self.nodes: dict[str, Node] = {}
        self.refusals: list[CannotLower] = []
        for stage in network.stages:
            self._add(stage)

    @classmethod
    def of(cls, frozen: FrozenNetwork) -> IntegerGraph:
        """Return the graph of a frozen network all of whose stages have an integer form; else raise CannotLower."""
        if not isinstance(frozen, FrozenNetwork):
            raise TypeError(f"frozen: expected what tandem_snn.freeze returns, got {type(frozen).__name__}")
        if frozen.T is None or frozen.shape is None:
            raise ValueError("frozen: its T and shape are not known yet: call it on an input first")
        if len(frozen._modes) > 1:
            raise CannotLower("net", "it has several inputs")
        mode, x = frozen._modes[0], torch.zeros(1, *frozen.shape)
        given: Any = SpikeTrain.from_counts(x, frozen.T) if mode == "events" else x.byte() if mode == "pixels" else x
        graph = cls(listing_of(frozen, given))
        for refusal in graph.refusals:
            raise refusal
        return graph

    def most(self, name: str) -> int:
        """Return the largest count of a train, or the largest magnitude of a sum."""
        return self.nodes[name].most if name in self.nodes else self.network.levels[name]

    def sums(self, counts: Tensor) -> Tensor:
        """Return the integer sums, int64, at counts of the input [B, *features]."""
        network = self.network
        x: Any = SpikeTrain.from_counts(counts, network.levels["input"])
        x = SIGNALS[network.mode](counts.byte(), network.T) if network.mode == "pixels" else x
        values: dict[str | None, Any] = {"input": x}
        for name, node in self.nodes.items():
            stage, x = node.stage, values[node.stage.x]
            if stage.signal is not Tensor:
                values[name] = stage.layer(x, values.get(stage.residual))
                continue
            x = (x.counts if isinstance(x, SpikeTrain) else x).double()
            values[name] = x.flatten(1) if node.weight is None else _product(node, x).view(-1, *stage.shape)
        return values[name].long()

    def _add(self, stage: NamedStage) -> None:
        try:
            self.nodes[stage.name] = self._node(stage)
        except CannotLower as refusal:
            self.refusals.append(refusal)

    def _node(self, stage: NamedStage) -> Node:
        i = stage.instruction
        if i.kind == "output" or (i.kind == "sum" and stage.signal is Tensor):
            raise stage.refusal("an answer that is not that of one Readout: end the network with one")
        if i.kind == "attention":
            raise stage.refusal("attention has no integer form yet: to_onnx takes it")
        if stage.reads not in (SpikeTrain, Currents) and i.kind not in ("flatten", "readout"):
            if stage.x in self.nodes:
                raise stage.refusal("it reads means: give the pooling before it neurons (timing='window')")
            raise stage.refusal("it reads real numbers: put counts into the network")
        unknown = [name for name in (stage.x, stage.residual) if name not in (None, *self.network.levels, *self.nodes)]
        if unknown:
            raise stage.refusal(f"it reads real numbers, of layer {unknown[0]!r}: give the network counts")
        if i.timing != "window" and (stage.fires or stage.signal is Currents):
            raise stage.refusal('its timing is "step": train it with "window", whose neurons have thresholds')
        if i.kind in MOVES:
            return self._moved(stage)
        node = Node(stage, self.network.levels.get(stage.name, 0))
        if i.kind in ("sum", "neurons"):
            u = self._ends(stage.x)
        else:
            if stage.reads is Currents:
                raise stage.refusal("its sums of currents round in torch's order: put tnn.Neurons before it")
            self._multiply(node)
            u = torch.tensor([[-1.0], [1.0]]) * node.sums
        if stage.signal is Tensor:
            node.most = node.sums
            self._average(node)
            return node
        if stage.fires:
            node.start, node.place = _starts(stage)
        self._check_ends(node, u)
        if stage.fires and i.kind != "neurons":
            self._find_thresholds(node)
        return node

    def _moved(self, stage: NamedStage) -> Node:
        names = [name for name in (stage.x, stage.residual) if name is not None]
        node = Node(stage, max(self.most(name) for name in names))
        if stage.reads is Currents:
            ends = torch.cat([self._ends(name) for name in names], 1)
            node.ends = torch.stack([ends.amin().clamp(max=0), ends.amax().clamp(min=0)]).view(2, 1)
        self._average(node)
        return node

    def _multiply(self, node: Node) -> None:
        """Set the weights of a product, or of a mean or its neurons."""
        stage = node.stage
        layer = stage.layer
        if layer.weight is None:
            pooling = stage.pooling()
            if pooling is None or layer.scale is not None:
                uneven = "kernels of different sizes: take an output size that divides that of its input"
                gains = "a gain for each channel: put a Readout after them"
                raise stage.refusal(f"its means have {uneven if pooling is None else gains}")
            kernel = node.geometry.over_axes(node.geometry.kernel)
            node.weight = torch.ones(stage.in_shape[0], 1, *kernel, dtype=torch.int64)
        else:
            if layer.step is None or layer.dtype != torch.float32:
                raise stage.refusal("its weights are not of 2 to 8 bits, in float32: freeze with weight_bits")
            node.weight = layer.weight.long()
        node.sums = int(node.weight.flatten(1).abs().sum(1).max()) * self.most(stage.x)
        if node.sums > LARGEST_SUM or bool((node.weight < -127).any()):
            why = f"its sums reach {node.sums}, more than 32 bits hold, or a weight is -128"
            raise stage.refusal(f"{why}: take fewer bits or a smaller T")

    def _average(self, node: Node) -> None:
        """Set what the sums of a mean, and of what reads it, are divided and multiplied by."""
        i, before = node.stage.instruction, self.nodes.get(node.stage.x)
        node.divisor = 1 if node.weight is None or i.kind == "readout" else node.weight[0].numel()
        node.gain = i.gain
        if before is not None:
            node.divisor, node.gain = node.divisor * before.divisor, node.gain * before.gain

    def _ends(self, name: str) -> Tensor:
        """Return the least and the largest of currents of each channel, or of all or of counts: [2, channels or 1]."""
        node = self.nodes.get(name)
        if node is not None and node.ends is not None:
            return node.ends
        return torch.tensor([[0.0], [self.network.levels[name]]])

    def _check_ends(self, node: Node, u: Tensor) -> None:
        """Compute the potentials, or currents, at the ends of u and of the residual: between them all are finite."""
        stage = node.stage
        r = None if stage.residual is None else self._ends(stage.residual).view(1, 2, 1, -1)
        v = _potential(node, u.view(2, 1, 1, -1), r).flatten(0, -2)
        lost = (~v.isfinite()).any(0).nonzero()
        if len(lost):
            raise stage.refusal(f"potentials of its channel {int(lost[0])} may overflow: scale it down")
        if stage.signal is Currents:
            node.ends = torch.stack([v.amin(0), v.amax(0)])

    def _find_thresholds(self, node: Node) -> None:
        """Bisect for the least sums that reach the least potential of each count."""
        stage, T = node.stage, node.most
        assert node.start is not None
        assert node.weight is not None
        more = 0 if stage.residual is None else self.network.levels.get(stage.residual, LARGEST_TABLE)
        if more and (more + 1) * T > LARGEST_TABLE:
            return
        r = None if stage.residual is None else torch.arange(more + 1.0).view(1, -1, 1, 1)
        scale = stage.layer.scale
        if scale is not None:
            node.weight = node.weight * over_inputs(torch.where(scale < 0, -1, 1), node.weight)
            scale = scale.abs()
        needed = least_potentials(stage.instruction.threshold, T).view(-1, 1, 1, 1)
        below = torch.full((T, more + 1, *node.start.shape), -node.sums - 1)  # the count is too small, or no sum is
        reached = torch.full_like(below, node.sums + 1)  # the count is large enough, or no sum is larger
        while bool((reached - below > 1).any()):
            u = (below + reached) // 2
            reaches = _potential(node, u.float(), r, scale) >= needed
            below, reached = u.where(~reaches, below), u.where(reaches, reached)
        node.thresholds = reached.movedim(0, -1)


def _product(node: Node, x: Tensor) -> Tensor:
    """Return the product with integers in float64, which is exact."""
    g, weight = node.geometry, node.weight
    assert weight is not None
    x, weight = (t.double().view(*t.shape[:2], *[1] * (4 - t.dim()), *t.shape[2:]) for t in (x, weight))
    return F.conv2d(F.pad(x, (0, g.after[1], 0, g.after[0])), weight, None, g.stride, g.padding, g.dilation, g.groups)


def _potential(node: Node, u: Tensor, r: Tensor | None, scale: Tensor | None = None) -> Tensor:
    """Return potentials [..., places, N], or currents, for sums u and the residual r that broadcast to them."""
    layer = node.stage.layer
    z = affine(u, layer.scale if scale is None else scale, layer.shift)
    z = z if r is None else z + times(layer.residual_scale, r)
    return z if node.start is None else node.start + z


def _starts(stage: NamedStage) -> tuple[Tensor, Tensor | None]:
    """Return the different potentials of a pixel's neurons before the window, [places, N], and the place of each."""
    v_init, channels = stage.layer.v_init, stage.shape[0]
    v_init = torch.zeros(()) if v_init is None else v_init.float()
    if v_init.dim() < 2:
        return v_init.expand(1, channels), None
    places, place = v_init.expand(stage.shape).flatten(1).t().unique(dim=0, return_inverse=True)
    return places, place if len(places) > 1 else None


@lru_cache
def least_potentials(threshold: float, T: int) -> Tensor:
    """Return for k = 1..T the least potential from which a neuron fires k times; positive floats order as their bits.

    >>> least_potentials(0.5, 3)
    tensor([0.5000, 1.0000, 1.5000])
    """
    k = torch.arange(1, T + 1)
    below, reached = torch.zeros(T, dtype=torch.int32), torch.full((T,), 0x7F7FFFFF, dtype=torch.int32)
    while bool((reached - below > 1).any()):
        bits = below + (reached - below) // 2
        fires = fire_after_window(bits.view(torch.float32), threshold, T)[0] >= k
        below, reached = bits.where(~fires, below), bits.where(fires, reached)
    return reached.view(torch.float32)


def space(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return channels, height and width."""
    channels, height, width = (shape[0], *[1] * (3 - len(shape)), *shape[1:])
    return channels, height, width


def in_order(shape: tuple[int, ...]) -> bool:
    """Whether a shape has the same order in memory with the channels first and last."""
    return shape[0] == 1 or math.prod(shape[1:]) == 1
