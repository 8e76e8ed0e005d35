"""SpikingLayer, the base class of layers with synapses, batch norm and neurons."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import Unpack

from tandem_ext import SpikeTrain, checks
from tandem_ext.functional.couple import couple
from tandem_ext.functional.layer import by_channel, layer, window_product
from tandem_ext.functional.neuron import Static, Tensors, fold, over_space, tensors_of
from tandem_ext.functional.products import LINEAR, Product
from tandem_ext.signal import needs_grad

from .batch_norm import SyncBatchNorm, batch_affine, fold_norm, initial_gamma, own_norm, track, uses_batch
from .currents import NEVER, residual_total, step_currents, step_of, until, window_trace
from .options import CHECKS, DEFAULTS, HasNeurons, NeuronOptions, silent
from .quantise import byte_integers, integers, rounded
from .signals import Signal, check_input, check_signal, describe, effective_counts

MOMENTUM = {"batch": 0.1, "running": 0.9}


class Lowered(NamedTuple):
    """A layer in evaluation mode, folded into the arguments of its op. None is the neutral value.

    The input current is I[t] = scale·(weight s_in[t]) + shift/T + residual_scale·residual[t]; neurons start at v_init.
    """

    static: Static  # with T = 1
    weight: Tensor  # integers if ``static.few_bits``; scale then includes their quantisation step
    scale: Tensor | None
    shift: Tensor | None
    residual_scale: Tensor | None
    v_init: Tensor | None  # broadcasts against [*features]


class SpikingLayer(HasNeurons):
    """Base class of :class:`Linear`, :class:`Conv1d` and :class:`Conv2d`, which are also subclasses of torch's layers.

    The keyword arguments :class:`NeuronOptions` become attributes, which may be changed.

    Attributes:
        analog: True makes the layer an ANN layer, which does not spike: it takes signals and tensors and returns the
            tensor gain·ρ(z)/ϑ. In this way a network can be partly spiking.

    >>> layer = tnn.Linear(4, 3)
    >>> layer.analog = True
    >>> layer(torch.rand(2, 4)).shape
    torch.Size([2, 3])
    """

    _product: ClassVar[Callable[..., Tensor]]
    _norm_class: ClassVar[type[_BatchNorm]]

    weight: Tensor
    bias: Tensor | None
    norm: _BatchNorm | None
    bn_stats: str
    weight_bits: int | None
    _channels: int
    analog: bool = False

    def _add_neurons(
        self,
        channels: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **given: Unpack[NeuronOptions],
    ) -> None:
        unknown = given.keys() - DEFAULTS.keys()
        if unknown:
            known = ", ".join(DEFAULTS)
            raise TypeError(f"{min(unknown)}: {type(self).__name__} has no such argument; its neurons have {known}")
        options: Any = DEFAULTS | given
        checks.threshold(options["threshold"], channels, self.weight.device)
        checks.eps(options["eps"])
        if not isinstance(options["norm"], bool):
            raise TypeError(f"norm: expected True or False, got {describe(options['norm'])}")
        momentum = options["momentum"]
        if momentum is not None and not (isinstance(momentum, (int, float)) and 0 <= momentum <= 1):
            raise ValueError(f"momentum: expected None or a number from 0 to 1, got {momentum!r}")
        self._channels = channels
        for name in CHECKS:
            setattr(self, name, options[name])
        self.norm = None
        if options["norm"]:
            momentum = MOMENTUM[self.bn_stats] if momentum is None else momentum
            self.norm = self._norm_class(channels, options["eps"], momentum, device=device, dtype=dtype)
            gamma = initial_gamma(8, self.timing) if options["gamma"] is None else options["gamma"]
            nn.init.constant_(self.norm.weight, gamma)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, own_norm(value) if name == "norm" else value)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Like torch's, but converts ``nn.SyncBatchNorm``, which runs on GPUs only."""
        super().add_module(name, own_norm(module) if name == "norm" else module)

    def _geometry(self) -> tuple[Any, ...]:
        """The arguments of the product after weight and bias."""
        return ()

    def synapses(self) -> Product:
        """Return the product that applies the weights to spikes."""
        return LINEAR

    def forward(
        self, x: Signal | Tensor, residual: SpikeTrain | Tensor | None = None, *, fire: bool = True
    ) -> SpikeTrain | Tensor:
        """Return the output spikes of the layer.

        Args:
            x: the input signal; an ``analog`` layer also takes tensors.
            residual: further input currents of the neurons: a train with the output's shape, or currents
                [T, B, *features]; also their sum: [B, *features] in an ``analog`` layer, [1, B, *features] with timing
                "window".
            fire: False returns the input currents [T, B, *features] instead of spikes; or their sum: [B, *features] in
                an ``analog`` layer, [1, B, *features] with timing "window".

        Raises:
            TypeError: x is a plain tensor, and the layer is not ``analog``.
            ValueError: shapes, devices or T do not fit, or a residual is given with fire=False.
        """
        if self.analog:
            return self._activation(x, residual) if fire else self.preactivation(x)
        check_signal(x, type(self).__name__)
        assert not isinstance(x, Tensor)
        if not fire:
            if residual is not None:
                raise ValueError("residual: with fire=False there are no neurons to receive it")
            return self._currents(x)
        norm = self.norm
        if norm is None:
            train = self._run(x, None, None, residual)
        elif not uses_batch(norm):
            train = self._run(x, *fold_norm(norm), residual)
        elif self.bn_stats == "running" or isinstance(norm, SyncBatchNorm):
            train = self._coupled(x, norm, residual)
        else:
            train = self._normed(x, norm, residual)
        return self.worth(train)

    def _activation(self, x: Signal | Tensor, residual: SpikeTrain | Tensor | None) -> Tensor:
        """Return the activation that the spikes approximate, in the units of the next layer."""
        check_input(x, type(self).__name__)
        activation = torch.relu(self.preactivation(x, residual))
        if self.gain == "threshold":
            return activation
        assert not isinstance(self.gain, str)
        return activation / over_space(self.threshold, activation.shape) * self.gain

    def _static(self, T: int, eps: float | None = None) -> Static:
        return self.static(self.synapses(), T, eps, self.weight_bits is not None)

    def _weights(self, x: Any) -> tuple[Any, Tensor, Tensor | None]:
        """Return the input and weight of the product, and with ``weight_bits`` the quantisation step of each row.

        Quantised weights are int8 if the input is a train and no gradient is needed.
        """
        weight = self.weight
        if isinstance(x.gain, Tensor):
            x, weight = by_channel(x, weight, self.synapses())
        if self.weight_bits is None:
            return x, weight, None
        exact = isinstance(x, SpikeTrain) and not (torch.is_grad_enabled() and needs_grad(weight))
        return x, *(byte_integers if exact else integers)(weight, self.weight_bits)

    def _fire(
        self,
        given: tuple[Any, Tensor, Tensor | None],
        scale: Tensor | None,
        shift: Tensor | None,
        residual: SpikeTrain | Tensor | None,
        v_init: float | Tensor,
        static: Static,
    ) -> tuple[Any, Any, Any]:
        """Call :func:`tandem_ext.functional.layer.layer` with the result of :meth:`_weights`."""
        x, weight, step = given
        threshold = NEVER if static.threshold == NEVER else self.threshold
        return layer(x, weight, self.bias, scale, shift, step, residual, threshold, v_init, static)

    def _run(
        self, x: Signal, scale: Tensor | None, shift: Tensor | None, residual: SpikeTrain | Tensor | None
    ) -> SpikeTrain:
        """Return the spikes, without batch norm or with batch norm folded into scale and shift."""
        train: SpikeTrain = self._fire(self._weights(x), scale, shift, residual, self.v_init, self._static(x.T))[0]
        return train

    def _normed(self, x: Signal, norm: _BatchNorm, residual: SpikeTrain | Tensor | None) -> SpikeTrain:
        """Return the spikes, with batch norm that uses the statistics of this batch."""
        # A bias cancels, but needs a zero gradient, because distributed training waits for every parameter.
        beta: Tensor | None = norm.bias
        if self.bias is not None:
            beta = 0 * self.bias if beta is None else torch.add(beta, self.bias, alpha=0)
        train: SpikeTrain
        static = self._static(x.T, norm.eps)
        train, mean, var = self._fire(self._weights(x), norm.weight, beta, residual, self.v_init, static)
        if norm.running_mean is not None:
            n = math.prod(train.shape) // norm.num_features  # Size.numel() would not be a SymInt
            track(norm, mean, var, n / (n - 1))
        return train

    def _coupled(self, x: Signal, norm: _BatchNorm, residual: SpikeTrain | Tensor | None) -> SpikeTrain:
        """Return the spikes, with separate products for z and spikes, for statistics that the fused layer lacks."""
        z, scale, shift = self._normalised(norm, self._window_product(x))
        z = z if residual is None else z + residual_total(residual, z)
        with torch.no_grad():
            train = self._run(x, scale, shift, residual)
        return couple(train, z, threshold=self.threshold, gate=self.gate)

    def lowered(
        self,
        gain: float | Tensor = 1.0,
        residual_gain: float | Tensor = 1.0,
        *,
        fire: bool = True,
        weight: Tensor | None = None,
    ) -> Lowered:
        """Fold the layer in evaluation mode, for frozen networks and exports.

        Args:
            gain, residual_gain: the value of a spike of the input (one number) and of the residual.
            fire: False makes neurons that never fire, so that their potential is the sum of the currents.
            weight: replaces the weight of the layer, for example if a gain per channel is multiplied into it.
        """
        weight, step = self.weight if weight is None else weight, None
        if self.weight_bits is not None:
            weight, step = integers(weight, self.weight_bits)
        scale, shift = (None, None) if self.norm is None else fold_norm(self.norm)
        static, tensors, channels = self._static(1), Tensors(), len(weight)
        if fire:
            given = self.v_init.shape if isinstance(self.v_init, Tensor) and self.v_init.dim() > 1 else ()
            shape = (1, *(given or (channels, *[1] * (weight.dim() - 2))))
            tensors = tensors_of(weight, 1, shape, None, self.threshold, self.v_init)
        else:
            static = silent(static)
        scale, shift = fold(tensors.theta, self.bias, scale, shift, step, gain, channels, weight)
        residual_scale, _ = fold(tensors.theta, None, None, None, None, residual_gain, channels, weight)
        return Lowered(static, weight, scale, shift, residual_scale, tensors.v_init)

    def used_weight(self) -> Tensor:
        """Return the weights that the layer computes with: rounded if it has ``weight_bits``."""
        return rounded(self.weight, self.weight_bits)

    def preactivation(self, x: Signal | Tensor, residual: SpikeTrain | Tensor | None = None) -> Tensor:
        """Return z, the pre-activation of the ANN branch at the real counts of the input, [B, *features].

        With batch norm in training mode this updates the running statistics, as torch's batch norm does.
        """
        u = self._ann_product(x)
        z = u if self.norm is None else self.norm(u)
        return z if residual is None else z + residual_total(residual, z)

    @torch.no_grad()
    def potentials(self, x: Signal, residual: SpikeTrain | Tensor | None = None) -> Tensor:
        """Return the membrane potential after each step, after the reset, [T, B, *features], computed by the kernel.

        With timing "window" the result is [2T, B, *features]: T steps of integration, then T steps of firing. Bias and
        shift are included from the first step.

        Raises:
            ValueError: batch norm is in training mode.
        """
        check_signal(x, type(self).__name__)
        norm, scale, shift = self.norm, None, None
        if norm is not None:
            if uses_batch(norm):
                raise ValueError("potentials: batch norm must be in evaluation mode, call eval() first")
            scale, shift = fold_norm(norm)
        static = self._static(x.T)._replace(gate="relu", return_v=True)
        x, weight, step = self._weights(x)

        def integrated(t: int) -> Tensor:
            more: Any = residual
            if residual is not None:
                more = residual[:t] if isinstance(residual, Tensor) else until(residual, t)
            quiet = silent(static)._replace(T=t, steps=t)
            return self._fire((until(x, t), weight, step), scale, shift, more, self.v_init, quiet)[0][1]

        if self.timing == "window":
            return window_trace(x.T, integrated, self.threshold)
        trace, v = [], self.v_init
        for t in range(x.T):
            more: Any = residual
            if residual is not None:
                more = residual[t : t + 1] if isinstance(residual, Tensor) else step_of(residual, t)
            now = step_of(x, t), weight, step
            (_, v), *_ = self._fire(now, scale, shift, more, v, static._replace(T=1))
            trace.append(v)
        return torch.stack(trace)

    def _ann_product(self, x: Signal | Tensor) -> Tensor:
        counts = effective_counts(x).to(self.weight.dtype)
        return self._product(counts, self.used_weight(), self.bias, *self._geometry())

    def _window_product(self, x: Signal) -> Tensor:
        """Return the input of batch norm: the product at the counts of x, computed by the same kernel as the spikes."""
        if not isinstance(x, SpikeTrain):
            return self._ann_product(x)
        read: Any
        read, weight, step = self._weights(x)
        u = window_product(read, weight, self.synapses()).to(self.weight.dtype)
        worth = read.gain if step is None else step * read.gain
        if isinstance(worth, Tensor) or worth != 1.0:
            u = u * over_space(worth, u.shape)
        return u if self.bias is None else u + over_space(self.bias, u.shape)

    def _currents(self, x: Signal) -> Tensor:
        """Return the input currents of each step, with the gradient of their sum."""
        norm = self.norm
        batch = norm is not None and uses_batch(norm)
        z = self._window_product(x) if batch or torch.is_grad_enabled() else None
        scale = shift = None
        if norm is not None and z is not None:
            z, scale, shift = self._normalised(norm, z)
        elif norm is not None:
            scale, shift = fold_norm(norm)
        with torch.no_grad():
            x, weight, step = self._weights(x)

        def potential(signal: Signal, T: int) -> Tensor:
            quiet = silent(self._static(signal.T))._replace(return_v=True, steps=T)
            return self._fire((signal, weight, step), scale, shift, None, 0.0, quiet)[0][1]

        return step_currents(x, z, potential, self.timing)

    def _normalised(self, norm: _BatchNorm, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return z of the product u, and the scale and shift of the currents, without a gradient."""
        batch = uses_batch(norm) and self.bn_stats == "batch"
        if batch and isinstance(norm, SyncBatchNorm):
            return norm.normalise(u)
        z = norm(u)
        with torch.no_grad():
            return z, *(batch_affine(norm, u) if batch else fold_norm(norm))

    def extra_repr(self) -> str:
        return ", ".join([super().extra_repr(), *self.settings(DEFAULTS)])
