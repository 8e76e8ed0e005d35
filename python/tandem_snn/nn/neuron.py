"""What the layers with neurons have in common: the IF neuron's settings and batch norm for both branches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import tandem_ext as te
from tandem_ext import SpikeTrain, checks
from tandem_ext.functional.neuron import over_space

from .batch_norm import SyncBatchNorm, batch_affine, fold_norm, own_sync, track
from .currents import NEVER, potential_trace, residual_total, step_currents, step_of
from .gamma import initial_gamma
from .quantise import check_bits, rounded
from .signals import Signal, check_input, check_signal, effective_counts, with_gain

BN_STATS = ("batch", "running")
MOMENTUM = {"batch": 0.1, "running": 0.9}


class NeuronOptions(TypedDict, total=False):
    """The keyword arguments that every layer with neurons takes; see :class:`SpikingLayer`."""

    norm: bool
    threshold: float | Tensor
    leak: float
    v_init: float | Tensor
    gain: float | str
    gate: str
    eps: float
    momentum: float | None
    bn_stats: str
    gamma: float | None
    weight_bits: int | None


class SpikingLayer(nn.Module):
    """Base of :class:`Linear`, :class:`Conv1d` and :class:`Conv2d`, each of which is also torch's layer of that name.

    Keyword arguments of all of them:
        norm: batch norm between the synapses and the neurons. One set of statistics serves the currents and the ANN
            branch: those of the batch in training, the running ones in evaluation. Its parameters and buffers are those
            of torch's batch norm, in the submodule ``norm``; ``layer.norm.eval()`` freezes it.
        threshold: positive float; a tensor, 0-dim or one per channel, which becomes a buffer; or a Parameter, which is
            learned.
        leak: λ in (0, 1]; 1 is the IF neuron, less the LIF neuron.
        v_init: the potential before the first step, float or tensor [*features].
        gain: what one of its spikes is worth to the next layer. "threshold": as much as ϑ, a float or 0-dim, so that
            gain times count stands for ρ(z), an activation in the ANN's own units, whatever ϑ is.
        gate: which neurons pass the gradient on: "relu" z > 0, "clip" 0 < z < threshold·T, "resu" as "relu", and those
            it closes stay silent.
        eps, momentum: of the batch norm. momentum None: 0.1, or 0.9 with ``bn_stats="running"``.
        bn_stats: "running" folds the running statistics into the currents already in training, as the rule's first
            release does; the gradient then is that of the batch norm of the batch. It costs a second product.
        gamma: the initial γ; None is :func:`initial_gamma` of 8 steps. 1 leaves most of the counts' range unused.
            :func:`init_gamma_` sets it throughout a network for the network's T.
        weight_bits: None, or 2 to 8: the layer computes with its weights rounded to that many bits, symmetrically, one
            step per output channel; gradients go straight through to the weights. ``tandem_snn.freeze`` has the same.

    Attributes:
        analog: True makes the layer what it is in the ANN, without spikes: it takes signals and tensors and returns the
            tensor ρ(z)/ϑ, times what a spike is worth. So a network can be part spiking, part ANN.
    """

    _if: ClassVar[Callable[..., Any]]
    _bn_if: ClassVar[Callable[..., Any]]
    _product: ClassVar[Callable[..., Tensor]]
    _norm_class: ClassVar[type[_BatchNorm]]

    weight: Tensor
    bias: Tensor | None
    norm: _BatchNorm | None
    threshold: float | Tensor
    v_init: float | Tensor
    gain: float | str
    weight_bits: int | None
    analog: bool = False

    def _add_neurons(
        self,
        channels: int,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        norm: bool = False,
        threshold: float | Tensor = 1.0,
        leak: float = 1.0,
        v_init: float | Tensor = 0.0,
        gain: float | str = 1.0,
        gate: str = "relu",
        eps: float = 1e-5,
        momentum: float | None = None,
        bn_stats: str = "batch",
        gamma: float | None = None,
        weight_bits: int | None = None,
        **unknown: Any,
    ) -> None:
        if unknown:
            options = ", ".join(NeuronOptions.__annotations__)
            raise TypeError(f"{min(unknown)}: {type(self).__name__} has no such argument; its neurons have {options}")
        checks.threshold(threshold, channels, self.weight.device)
        checks.leak(leak)
        checks.gate(gate)
        if bn_stats not in BN_STATS:
            raise ValueError(f"bn_stats: expected one of {', '.join(map(repr, BN_STATS))}, got {bn_stats!r}")
        if gain != "threshold":
            checks.gain("gain", gain)
        elif isinstance(threshold, Tensor) and threshold.dim():
            raise ValueError("gain: spikes can be worth the threshold where it is one number, not one per channel")
        if not isinstance(v_init, Tensor):
            checks.v_init(v_init, (), self.weight.device)
        checks.eps(eps)
        if momentum is not None and not (isinstance(momentum, (int, float)) and 0 <= momentum <= 1):
            raise ValueError(f"momentum: expected None or a number from 0 to 1, got {momentum!r}")
        check_bits(weight_bits)
        self.weight_bits = weight_bits
        self.leak = leak
        self.gain = gain
        self.gate = gate
        self.bn_stats = bn_stats
        self._add_number("threshold", threshold)
        self._add_number("v_init", v_init)
        self.norm = None
        if norm:
            momentum = MOMENTUM[bn_stats] if momentum is None else momentum
            self.norm = self._norm_class(channels, eps=eps, momentum=momentum, device=device, dtype=dtype)
            nn.init.constant_(self.norm.weight, initial_gamma(8) if gamma is None else gamma)

    def _add_number(self, name: str, value: float | Tensor) -> None:
        """Tensors belong to the state_dict, and move with the module."""
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            self.register_buffer(name, value)
        else:
            setattr(self, name, value)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """As torch's; ``nn.SyncBatchNorm.convert_sync_batchnorm`` comes this way, whose norm runs on GPUs alone."""
        super().add_module(name, own_sync(module))

    def _geometry(self) -> tuple[Any, ...]:
        """What the product takes after weight and bias."""
        return ()

    def forward(
        self, x: Signal | Tensor, residual: SpikeTrain | Tensor | None = None, *, fire: bool = True
    ) -> SpikeTrain | Tensor:
        """The layer's spikes.

        Args:
            x: the input signal; an ``analog`` layer takes tensors too.
            residual: further currents into the same neurons: a train of the output's shape, or currents [T, B, *], or
                for an ``analog`` layer their sum [B, *].
            fire: False returns the currents [T, B, *features] that the neurons would receive, or their sum.
        """
        if self.analog:
            return self._activation(x, residual) if fire else self.preactivation(x)
        check_signal(x, type(self).__name__)
        assert not isinstance(x, Tensor)
        if not fire:
            if residual is not None:
                raise ValueError("residual: with fire=False there are no neurons to receive it")
            return self._currents(x)
        train = self._fire(x, residual)
        gain = self.threshold if self.gain == "threshold" else self.gain
        return train if isinstance(gain, float) and gain == 1.0 else with_gain(train, gain)  # type: ignore[arg-type]

    def _activation(self, x: Signal | Tensor, residual: SpikeTrain | Tensor | None) -> Tensor:
        """What the spikes stand for, in the next layer's units."""
        check_input(x, type(self).__name__)
        activation = torch.relu(self.preactivation(x, residual))
        if self.gain == "threshold":
            return activation
        assert not isinstance(self.gain, str)
        threshold = self.threshold
        if isinstance(threshold, Tensor) and threshold.dim():
            threshold = over_space(threshold, tuple(activation.shape))
        return activation / threshold * self.gain

    def _fire(self, x: Signal, residual: SpikeTrain | Tensor | None) -> SpikeTrain:
        neuron = {
            "threshold": self.threshold,
            "leak": self.leak,
            "v_init": self.v_init,
            "gate": self.gate,
            "residual": residual,
        }
        norm = self.norm
        if norm is None:
            return self._if(x, self.used_weight(), self.bias, *self._geometry(), **neuron)
        if not self._uses_batch(norm):
            scale, shift = fold_norm(norm)
            return self._if(x, self.used_weight(), self.bias, *self._geometry(), scale=scale, shift=shift, **neuron)
        if self.bn_stats == "running" or isinstance(norm, SyncBatchNorm):
            return self._coupled(x, norm, neuron)
        # A bias cancels. Its gradient is then zero, not absent: distributed training waits for every parameter's.
        beta = norm.bias if self.bias is None else norm.bias + 0 * self.bias
        train, mean, var = self._bn_if(
            x, self.used_weight(), self.bias, norm.weight, beta, *self._geometry(), eps=norm.eps, **neuron
        )
        if norm.running_mean is not None:
            n = math.prod(train.shape) // norm.num_features  # not Size.numel(), which is no SymInt
            track(norm, mean, var, n / (n - 1))
        return train

    def used_weight(self) -> Tensor:
        """The weights the layer computes with: rounded where it has ``weight_bits``."""
        return rounded(self.weight, self.weight_bits)

    def preactivation(self, x: Signal | Tensor, residual: SpikeTrain | Tensor | None = None) -> Tensor:
        """z, the pre-activation of the layer's ANN branch at the real counts of its input, [B, *features].

        In training mode with batch norm it updates the running statistics, as torch's batch norm does.
        """
        u = self._ann_product(x)
        z = u if self.norm is None else self.norm(u)
        return z if residual is None else z + residual_total(residual, z)

    @torch.no_grad()
    def potentials(self, x: Signal, residual: SpikeTrain | Tensor | None = None) -> Tensor:
        """The membrane potential after each step, after leak and reset, [T, B, *features], by the kernel that fires.

        Raises:
            ValueError: the layer would normalise by the batch's statistics, which are those of training.
        """
        check_signal(x, type(self).__name__)
        norm, scale, shift = self.norm, None, None
        if norm is not None:
            if self._uses_batch(norm):
                raise ValueError("potentials: batch norm must be in evaluation mode, call eval() first")
            scale, shift = fold_norm(norm)
        weight = self.used_weight()

        def after(t: int, v: float | Tensor) -> Tensor:
            more = step_of(residual, t) if isinstance(residual, SpikeTrain) else residual
            _, v = self._if(
                step_of(x, t), weight, self.bias, *self._geometry(), scale=scale, shift=shift, steps=x.T, v_init=v,
                residual=more[t : t + 1] if isinstance(more, Tensor) else more, threshold=self.threshold,
                leak=self.leak, return_v=True,
            )  # fmt: skip
            return v  # type: ignore[return-value]

        return potential_trace(x.T, self.v_init, after)

    def _ann_product(self, x: Signal | Tensor) -> Tensor:
        counts = effective_counts(x).to(self.weight.dtype)
        return self._product(counts, self.used_weight(), self.bias, *self._geometry())

    def _currents(self, x: Signal) -> Tensor:
        norm = self.norm
        batch = norm is not None and self._uses_batch(norm)
        z = self._ann_product(x) if batch or torch.is_grad_enabled() else None
        scale = shift = None
        if norm is not None and z is not None:
            z, scale, shift = self._normalised(norm, z)
        elif norm is not None:
            scale, shift = fold_norm(norm)
        weight = self.used_weight()

        def potential(step: Signal, T: int) -> Tensor:
            _, v = self._if(
                step, weight, self.bias, *self._geometry(), scale=scale, shift=shift, threshold=NEVER, steps=T,
                return_v=True,
            )  # fmt: skip
            return v

        return step_currents(x, z, potential)

    def _coupled(self, x: Signal, norm: _BatchNorm, neuron: dict[str, Any]) -> SpikeTrain:
        """z and the spikes by a product each, where the fused layer's statistics are not those that are wanted."""
        z, scale, shift = self._normalised(norm, self._ann_product(x))
        z = z if neuron["residual"] is None else z + residual_total(neuron["residual"], z)
        with torch.no_grad():
            train = self._if(x, self.used_weight(), self.bias, *self._geometry(), scale=scale, shift=shift, **neuron)
        return te.functional.couple(train, z, threshold=self.threshold, gate=self.gate)

    def _normalised(self, norm: _BatchNorm, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z of the product u, and the scale and shift of the currents, without a gradient."""
        batch = self._uses_batch(norm) and self.bn_stats == "batch"
        if batch and isinstance(norm, SyncBatchNorm):
            return norm.normalise(u)
        z = norm(u)
        with torch.no_grad():
            return z, *(batch_affine(norm, u) if batch else fold_norm(norm))

    def _uses_batch(self, norm: _BatchNorm) -> bool:
        return norm.training or norm.running_mean is None

    def extra_repr(self) -> str:
        defaults = {
            "threshold": 1.0,
            "leak": 1.0,
            "v_init": 0.0,
            "gain": 1.0,
            "gate": "relu",
            "bn_stats": "batch",
            "weight_bits": None,
        }
        shown = [super().extra_repr()]
        for name, default in defaults.items():
            value = getattr(self, name)
            if isinstance(value, Tensor):
                shown.append(f"{name}={type(value).__name__}{list(value.shape)}")
            elif value != default:
                shown.append(f"{name}={value!r}")
        return ", ".join(shown)
