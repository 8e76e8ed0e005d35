"""The weights of stages: times a gain for each channel, on a grid if they are of few bits, and their geometry."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tandem_ext.functional.neuron import over_inputs

from .. import nn as tnn
from ..nn.quantise import quantise
from .stages import Stages
from .trace import Value


def is_by_channel(gain: object) -> bool:
    """Whether a gain is one for each channel."""
    return isinstance(gain, Tensor) and gain.dim() > 0


def kernel_of(layer: Any) -> Callable[[Tensor], Tensor]:
    """Return the function that gives a layer's weights as its product takes them, or, from these, as it has them."""
    return layer.kernel_of if isinstance(layer, tnn.SpikingLayer) else lambda weight: weight


def weighted(layer: Any, x: Value, axes: int = 0) -> tuple[Tensor, float | Tensor]:
    """Multiply a gain per channel into the layer's weight; return the weight and the remaining gain."""
    gain = x.gain
    weight = kernel_of(layer)(layer.weight.detach())
    weight = weight.view(*weight.shape, *[1] * (axes + 2 - weight.dim()))
    if not is_by_channel(gain):
        return weight, gain
    product = layer.synapses(axes)
    features = weight.shape[1] * product.groups
    each = features // len(gain)  # type: ignore[arg-type]  # features per channel, if flattened
    gain = gain.detach().repeat_interleave(each)  # type: ignore[union-attr]
    return product.weighted(weight, gain), 1.0


def weights_of(layer: Any, weight: Tensor) -> dict[str, Any]:
    """Return the tensors of an instruction: weights or, if they are of few bits, integers and steps."""
    if layer.weight_bits is None:
        return {"weight": weight, "step": None}
    q, step = quantise(weight, layer.weight_bits)
    # int8 kernels do not support a float64 scale
    return {"weight": q if q.dtype == torch.float64 else q.to(torch.int8), "step": step}


def geometry_of(layer: Any, weight: Tensor) -> dict[str, Any]:
    """Return the fields of an instruction for the product of a layer with its weight; none of W [N, K]."""
    if weight.dim() == 2:
        return {}
    product = layer.synapses(weight.dim() - 2)
    return {
        "groups": product.groups,
        "kernel": pair(weight.shape[2:], 1),
        "stride": pair(product.stride, 1),
        "padding": pair(product.padding, 0),
        "dilation": pair(product.dilation, 1),
        "after": pair(() if product.spacing else product.sides[1::2][::-1], 0),
    }


def pair(sizes: Sequence[Any], neutral: int) -> tuple[int, int]:
    """Return sizes as (vertical, horizontal)."""
    vertical, horizontal = (neutral, neutral, *sizes)[-2:]
    return vertical, horizontal


@dataclass(frozen=True, eq=False)
class Grid:
    """Weights as integers q [N, ...], floats or int8, times a quantisation step [N] per output channel."""

    q: Tensor
    step: Tensor

    def weight(self) -> Tensor:
        """Return the weights step·q."""
        if self.q.dim() < 2 or self.step.shape != self.q.shape[:1]:
            raise ValueError(f"steps of shape {list(self.step.shape)} for weights of shape {list(self.q.shape)}")
        return self.q.to(self.step.dtype) * over_inputs(self.step, self.q)


@torch.no_grad()
def grids_of(net: nn.Module) -> dict[str, Grid]:
    """Return the grids of the layers with ``weight_bits``, by name."""
    if isinstance(net, Stages):
        return {stage.name: Grid(stage.weight, stage.step) for stage in net.stages if stage.step is not None}
    grids = {}
    for name, layer in net.named_modules():
        if getattr(layer, "weight_bits", None) is not None and layer.weight is not None:
            q, step = quantise(kernel_of(layer)(layer.weight), layer.weight_bits)
            grids[name] = Grid(q.to(torch.int8), step)
    return grids
