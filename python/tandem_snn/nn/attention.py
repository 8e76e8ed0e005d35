"""Attention of spikes, without a softmax: its product, a block of it, and the order of dimensions that it needs."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from tandem_ext import checks
from tandem_ext.functional.attention import attention, mean_gain, product
from tandem_ext.functional.neuron import over_space
from tandem_ext.functional.settings import shows

from .currents import Currents
from .general import rearranged
from .neuron import Neurons
from .options import OF_NEURONS, NeuronOptions, checked_options, without_neurons
from .signals import X, check_input, describe, map_features
from .synapses import Linear


class Permute(nn.Module):
    """Permute the dimensions of [B, *features], as ``torchvision.ops.Permute``: ``Permute([0, 2, 1])`` of tokens.

    Args:
        dims: the dimensions in their new order; the batch stays the first.

    Shape: a signal or tensor -> the same with permuted features.

    Raises:
        ValueError: dims is no such order; or, when called, x has another number of dimensions.

    >>> image = te.SpikeTrain.from_dense(torch.ones(8, 2, 16, 4, 4))
    >>> tnn.Permute([0, 2, 1])(tnn.Flatten(2)(image)).shape
    torch.Size([2, 16, 16])
    """

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.dims = tuple(dims)
        if self.dims[:1] != (0,) or sorted(self.dims) != list(range(len(self.dims))):
            raise ValueError(f"dims: expected 0, the batch, and the other dimensions in some order, got {list(dims)}")

    def forward(self, x: X) -> X:
        check_input(x, "Permute")
        shape, n = x.shape, len(self.dims)
        if len(shape) != n:
            raise ValueError(f"x: Permute({list(self.dims)}) takes {n} dimensions, got shape {list(shape)}")
        y: Any = map_features(x, self._permuted)
        gain = 1.0 if isinstance(x, Tensor) else x.gain
        if isinstance(gain, Tensor) and gain.dim() and self.dims[1:2] != (1,):  # the channels are no longer the first
            y = y.replace(gain=self._permuted(over_space(gain, shape).expand(1, *shape[1:]))[0])
        return y

    def _permuted(self, t: Tensor) -> Tensor:
        more = t.dim() - len(self.dims)
        return t.permute(*range(more), *(more + d for d in self.dims))

    def extra_repr(self) -> str:
        return str(list(self.dims))


class Attention(nn.Module):
    """The product of attention, :func:`tandem_ext.functional.attention`, of queries, keys and values in one train.

    Args:
        heads: the number of heads, which divides the channels of q.

    Shape: a train with timing "window" [B, N, 3·D], q, k and v one after the other -> currents [B, N, D]; or tensors,
    as in an ANN.

    Raises:
        TypeError, ValueError: heads is not a positive int; or, when called, as the function.

    >>> tnn.Attention(heads=2)(te.SpikeTrain.from_counts(torch.ones(1, 5, 12), T=4)).shape
    torch.Size([1, 5, 4])
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        checks.positive("heads", heads)
        self.heads = heads

    def forward(self, x: Any) -> Any:
        check_input(x, "Attention")
        if len(x.shape) != 3 or x.shape[2] % 3:
            raise ValueError(f"x: Attention takes q, k and v of tokens, [B, N, 3·D], got shape {list(x.shape)}")
        q, k, v = rearranged("chunk", False, x, 3, 2)
        if isinstance(x, Tensor):
            return product(q, k, v, self.heads) * mean_gain(x.shape[1], q.shape[2] // self.heads)
        return Currents(attention(q, k, v, self.heads)[0], no_steps, x.network_T, dtype=x._dtype)

    def extra_repr(self) -> str:
        return f"heads={self.heads}"


def no_steps(start: int, stop: int) -> Tensor:
    raise ValueError('timing: attention gives the currents of a whole window, so their readers need timing "window"')


def _check_settings(settings: dict[str, Any]) -> None:
    """Check what attention asks of its neurons: those of q, k and v are three times as many as those of the product."""
    for name, needed, why in (("timing", "window", "whole windows"), ("neurons", True, "spikes")):
        value = settings.get(name, needed)
        if value != needed:
            raise ValueError(f"{name}: expected {needed!r}, because attention is of {why}, got {value!r}")
    for name in OF_NEURONS:
        value = settings.get(name)
        if isinstance(value, Tensor) and value.dim():
            got = f"got {describe(value)}: those of channels are attributes of fire"
            raise ValueError(f"{name}: expected one value for all neurons, {got}")


@shows(NeuronOptions, norm=True, timing="window")
class SelfAttention(nn.Module):
    """Self-attention of tokens: projections to q, k and v that fire, their product, neurons, a projection to currents.

    Its result joins a stream of currents, ``x + attention(fire(x))``. There is no softmax and no layer norm. Each
    projection has batch norm, and the product has batch norm of each channel before its neurons: from the first step on
    training normalises by the batch. The variance of the product is about 0.01, while running statistics begin at 1, so
    that its neurons are silent in evaluation before about fifty steps of training, until they have followed.

    Args:
        dim: the number of channels of a token.
        heads: the number of heads, a divisor of dim.
        device, dtype: of the parameters.
        neuron: settings of all neurons, see :class:`NeuronOptions`; here norm is True by default, and timing "window".
            A tensor has one value: that of each channel is an attribute of ``fire``; q, k and v have one gain.

    Shape: signal [B, N, dim] -> currents [B, N, dim].

    State: ``qkv``, a :class:`Linear` to 3·dim channels, ``fire``, :class:`Neurons`, and ``out``, a :class:`Linear`.

    Raises:
        TypeError, ValueError: a setting has the wrong type or is out of range; or, when called, x does not fit.

    >>> tokens = te.SpikeTrain.from_counts(torch.randint(5, (2, 16, 64)), T=4)
    >>> tnn.SelfAttention(64, heads=4)(tokens).shape
    torch.Size([2, 16, 64])
    """

    _layers: ClassVar[Any] = (Linear, Neurons)

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **neuron: Unpack[NeuronOptions],
    ) -> None:
        super().__init__()
        checks.positive("dim", dim)
        checks.positive("heads", heads)
        if dim % heads:
            raise ValueError(f"heads: expected a divisor of dim={dim}, got {heads}")
        settings: Any = {"norm": True, "timing": "window", **neuron}
        checked_options(type(self), settings, dim)
        _check_settings(settings)
        options: Any = {**settings, "device": device, "dtype": dtype}
        linear, neurons = self._layers
        without = {name: value for name, value in options.items() if name != "weight_bits"}
        self.qkv = linear(dim, 3 * dim, bias=not options["norm"], **options)
        self.attend = Attention(heads)
        self.swap = Permute([0, 2, 1])  # neurons have their channels first
        self.fire = neurons(dim, **without)
        self.out = linear(dim, dim, bias=not options["norm"], **without_neurons(options))

    def forward(self, x: Any) -> Any:
        fired = self.fire(self.swap(self.attend(self.qkv(x))))
        return self.out(self.swap(fired))
