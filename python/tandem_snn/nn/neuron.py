"""SpikingLayer, the base class of layers with synapses, batch norm and neurons."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from tandem_ext import SpikeTrain, checks
from tandem_ext._torch import BatchNorm
from tandem_ext.functional.couple import couple
from tandem_ext.functional.layer import Input, by_channel, product_if, window_product
from tandem_ext.functional.neuron import fold, over_space
from tandem_ext.functional.products import LINEAR, Product
from tandem_ext.functional.settings import Settings
from tandem_ext.ops import compute_dtype
from tandem_ext.signal import needs_grad

from .batch_norm import AnyBatchNorm, SyncBatchNorm, applied, fold_norm, normalised, own_norm, track, uses_batch
from .currents import AT_ONCE, Currents, currents_of, normalise, product, real_product
from .firing import fire, in_units, part_of, residual_total, window_trace
from .options import DEFAULTS, INTEGRATE_ONLY, BNStats, HasNeurons, NeuronOptions, checked_options
from .quantise import byte_integers, integers, rounded
from .signals import check_signal, effective_counts

_FROM_SUMS = "tnn.Currents(z[0], lambda *_: z / T, T, True) makes currents of attention's z"
MOMENTUM = {"batch": 0.1, "running": 0.9}


class SpikingLayer(HasNeurons):
    """Base class of :class:`Neurons` and of layers with weights and neurons, the latter subclasses of torch's layers.

    The keyword arguments :class:`NeuronOptions` become attributes, which may be changed.
    """

    _norm_class: ClassVar[type[BatchNorm]]
    _geometry: ClassVar[tuple[str, ...]] = ()
    arranges: ClassVar[Any] = False

    weight: Tensor
    bias: Tensor | None
    norm: BatchNorm | None
    bn_stats: BNStats
    weight_bits: int | None

    def _add_neurons(self, channels: Any, like: Tensor, **keywords: Unpack[NeuronOptions]) -> None:
        options = checked_options(type(self), keywords, channels)
        device, dtype = like.device, like.dtype
        if options["threshold"] is not None:
            checks.threshold(options["threshold"], channels, device)
        self._channels = channels
        for name in DEFAULTS:
            setattr(self, name, options[name])
        self.norm = None
        if options["norm"]:
            momentum = MOMENTUM[self.bn_stats] if options["momentum"] is None else options["momentum"]
            self.norm = self._norm_class(channels, options["eps"], momentum, device=device, dtype=dtype)
            if options["gamma"] is not None:
                nn.init.constant_(self.norm.weight, options["gamma"])

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, own_norm(value) if name == "norm" else value)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Like torch's, but converts ``nn.SyncBatchNorm``, which runs on GPUs only."""
        super().add_module(name, own_norm(module) if name == "norm" else module)

    def geometry(self) -> dict[str, Any]:
        """Return the arguments of the product after weight and bias."""
        return {name: getattr(self, name) for name in self._geometry}

    def synapses(self, axes: int = 0) -> Product:
        """Return the product that applies the weights to spikes with this number of axes beside the channels."""
        return LINEAR

    def arranged(self, x: Any) -> Any:
        """Return the input as the product takes it, for example padded; only if ``arranges`` is True another one."""
        return x

    def kernel_of(self, weight: Tensor) -> Tensor:
        """Return the weights as the product takes them, [N, ...], or, from these, ``weight`` again."""
        return weight

    def forward(self, x: Input | Currents, residual: SpikeTrain | Currents | Tensor | None = None) -> Any:
        """Return the output spikes of the layer; with ``neurons=False`` the currents.

        Args:
            x: the input signal, or currents.
            residual: further input currents of the neurons: a train with the output's shape, currents, or a tensor of
                currents [T, B, *features]; with timing "window" also their sum [1, B, *features].

        Raises:
            TypeError: x is a plain tensor.
            ValueError: shapes, devices or T do not fit, or a residual is given to a layer without neurons.
        """
        check_signal(x, type(self).__name__)
        x = self.arranged(x)
        if not self.neurons:
            if residual is not None:
                raise ValueError("residual: with neurons=False there are no neurons to receive it: add it by +")
            return self._currents(x)
        norm = self.norm
        batch = norm is not None and uses_batch(norm)
        in_steps, learns = self.timing == "step", batch or torch.is_grad_enabled()
        more: Any = residual
        if isinstance(more, Currents):
            many = isinstance(x, SpikeTrain) and x.T > 2 * AT_ONCE  # fewer steps take less time together
            more = more if many and in_steps and not learns else more.residual(self.timing)
        if isinstance(x, Currents) and in_steps and learns:
            train = self._coupled(x, norm, more)
        elif norm is None or not batch:
            train = self._fire(*self._arguments(x, *fold_norm(norm), more))[0]
        elif self.bn_stats == "running" or isinstance(norm, SyncBatchNorm):
            train = self._coupled(x, norm, more)
        else:
            train = self._normed(x, norm, more)
        return self.with_gain(train, x.network_T)

    def _arguments(
        self, x: Any, scale: Any, shift: Any, residual: Any = None, eps: float | None = None
    ) -> tuple[Any, Tensor, Settings]:
        """Return input, weight and what else the layer is given, for :meth:`_fire`."""
        x, weight, step = self._weights(x)
        neuron = self.fires_at, self.leak, self.v_init, self.gate, self.timing
        T = x.network_T
        steps = self.own_T(T) if self.timing == "window" else None
        return x, weight, Settings(x.T, self.bias, scale, shift, step, eps, self.unit(T), *neuron, residual, steps)

    def _weights(self, x: Any) -> tuple[Any, Tensor, Tensor | None]:
        """Return input, weight and, with ``weight_bits``, the quantisation step of each row.

        Quantised weights are int8 if the input is a train and no gradient is needed.
        """
        weight = self._kernel(x)
        if isinstance(x.gain, Tensor):
            x, weight = by_channel(x, weight, self.synapses(weight.dim() - 2))
        if self.weight_bits is None:
            return x, weight, None
        exact = isinstance(x, SpikeTrain) and not (torch.is_grad_enabled() and needs_grad(weight))
        return x, *(byte_integers if exact else integers)(weight, self.weight_bits)

    def _kernel(self, x: Any) -> Tensor:
        weight = self.kernel_of(self.weight)
        axes = len(x.shape) - weight.dim()  # of tokens; without them exported graphs have no further node
        return weight.view(*weight.shape, *[1] * axes) if axes > 0 else weight

    def _fire(self, x: Any, weight: Any, settings: Settings) -> tuple[Any, Any, Any]:
        synapses = self.synapses(weight.dim() - 2)
        if isinstance(x, Currents) or isinstance(settings.residual, Currents):
            return fire(product(x, weight, synapses), settings, x.gain)
        return product_if(x, weight, synapses, settings)

    def _normed(self, x: Input | Currents, norm: BatchNorm, residual: SpikeTrain | Tensor | None) -> SpikeTrain:
        """Return the spikes, with batch norm that uses the statistics of this batch."""
        # A bias cancels, but needs a zero gradient, because distributed training waits for every parameter.
        beta: Tensor | None = norm.bias
        bias = self.bias
        if bias is not None:
            beta = 0 * bias if beta is None else torch.add(beta, bias, alpha=0)
        train: SpikeTrain
        train, mean, var = self._fire(*self._arguments(x, norm.weight, beta, residual, norm.eps))
        if norm.running_mean is not None:
            n = math.prod(train.shape) // norm.num_features  # Size.numel() would not be a SymInt
            track(norm, mean, var, n / (n - 1))
        return train

    def _coupled(self, x: Input | Currents, norm: BatchNorm | None, residual: SpikeTrain | Tensor | None) -> SpikeTrain:
        """Return the spikes, with separate products for z and spikes, where the fused layer cannot compute both."""
        z, scale, shift = self._window_product(x), None, None
        if norm is not None:
            z, scale, shift = normalised(norm, z, self.bn_stats == "batch")
        z = z if residual is None else z + residual_total(residual, z)
        with torch.no_grad():
            train = self._fire(*self._arguments(x, scale, shift, residual))[0]
        train = couple(train, z, threshold=self.threshold_for(x.network_T), gate=self.gate)
        return train.to(x.dtype) if isinstance(x, Currents) and x.dtype != compute_dtype(x.dtype) else train

    def used_weight(self) -> Tensor:
        """Return the weights that the layer computes with: rounded if it has ``weight_bits``."""
        return self.kernel_of(rounded(self.kernel_of(self.weight), self.weight_bits))

    def preactivation(self, x: Input | Tensor, residual: SpikeTrain | Tensor | None = None) -> Tensor:
        """Return z, the pre-activation of the ANN branch at the real counts of the input, [B, *features].

        With batch norm in training mode this updates the running statistics, as torch's batch norm does.
        """
        u = self.real_product(self.arranged(effective_counts(x)), self.bias)
        z = u if self.norm is None else applied(self.norm, u)
        return z if residual is None else z + residual_total(residual, z)

    @torch.no_grad()
    def potentials(self, x: Input, residual: SpikeTrain | Tensor | None = None) -> Tensor:
        """Return the membrane potential after each step, after the reset, [T, B, *features], computed by the kernel.

        With timing "window" the result is [2T, B, *features]: T steps of integration, then T steps of firing. If the
        layer, or that before it, has its own T, these are as many as their spikes take. Bias and shift are included
        from the first step, with timing "window" also the sum of the currents that the layer reads. Without a
        ``threshold`` the unit is :func:`default_threshold`.

        Raises:
            ValueError: batch norm is in training mode, or the layer has no neurons: it returns its currents.
        """
        check_signal(x, type(self).__name__)
        if not self.neurons:
            raise ValueError("potentials: with neurons=False there are none: the layer returns its currents")
        if self.norm is not None and uses_batch(self.norm):
            raise ValueError("potentials: batch norm must be in evaluation mode, call eval() first")
        if isinstance(residual, Currents):
            residual = residual.residual(self.timing)
        T = max(x.T, residual.T if isinstance(residual, SpikeTrain) else 1)
        x, weight, settings = self._arguments(self.arranged(x), *fold_norm(self.norm))
        settings = settings._replace(return_v=True, steps=x.T if self.timing == "step" else settings.steps)
        like: Any = x.total if weight is None else weight
        shape = like.shape if weight is None else self.synapses(like.dim() - 2).output_shape(x.shape, like)
        settings = settings._replace(v_init=self.initial_potential, residual=residual)
        settings, theta = in_units(settings, like, tuple(shape), x.gain)
        start: Any = settings.v_init
        x = x if theta is None else x.replace(gain=1.0)

        def after(start: int, stop: int, v: float | Tensor, settings: Settings) -> Tensor:
            """Return the potentials after some steps of the input that begin at v."""
            part = None if settings.residual is None else part_of(settings.residual, start, stop)
            whole = isinstance(x, Currents) and self.timing == "window"
            read = x if whole else part_of(x, start, stop)
            return self._fire(read, weight, settings._replace(T=read.T, v_init=v, residual=part))[0][1]

        if self.timing == "window":
            quiet = settings._replace(**INTEGRATE_ONLY)
            v = window_trace(T, self.own_T(x.network_T), lambda t: after(0, t, start, quiet), settings.threshold)
        else:
            trace: list[Any] = [start]
            for t in range(x.T):
                trace.append(after(t, t + 1, trace[t], settings))
            v = torch.stack(trace[1:])
        return v if theta is None else v * over_space(theta, v.shape[1:])

    def real_product(self, counts: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the product of the weights with real numbers as :meth:`arranged` returns them, [B, *features]."""
        weight = rounded(self._kernel(counts), self.weight_bits)
        return real_product(counts, weight, self.synapses(weight.dim() - 2), bias)

    def _window_product(self, x: Any) -> Tensor:
        """Return the input of batch norm: the product at the counts of x, computed by the same kernel as the spikes."""
        if not isinstance(x, SpikeTrain):
            return self.real_product(effective_counts(x), self.bias)
        read: Any
        read, weight, step = self._weights(x)
        u = window_product(read, weight, self.synapses(weight.dim() - 2)).to(self.weight.dtype)
        scale = read.gain if step is None else step * read.gain
        if isinstance(scale, Tensor) or scale != 1.0:
            u = u * over_space(scale, u.shape)
        return u if self.bias is None else u + over_space(self.bias, u.shape)

    def _currents(self, x: Input | Currents) -> Currents:
        norm = self.norm
        read: Any
        read, weight, step = self._weights(x)
        channels = len(weight)
        u, gain = product(read, weight, self.synapses(weight.dim() - 2)), read.gain
        if norm is None or not uses_batch(norm):
            return u.affine(*fold(None, self.bias, *fold_norm(norm), step, gain, channels, weight))
        scale, _ = fold(None, None, None, None, step, gain, channels, weight)
        return normalise(u.affine(scale, self.bias), norm, self.bn_stats == "batch")

    def extra_repr(self) -> str:
        shown = [super().extra_repr(), *self.changed(DEFAULTS | {"range_T": None})]
        return ", ".join(filter(None, shown))


class Neurons(SpikingLayer):
    """Neurons on currents, one for each: what layers with ``neurons=False`` and sums of these are for.

    With ``norm=True`` batch norm comes first, as in a ResNet that normalises before the activation.

    Args:
        channels: the number of channels, which batch norm and settings of each channel need. None: any.
        device, dtype: of the batch norm.
        norm and other settings of the neurons: see :class:`NeuronOptions`.

    Shape: currents or train [B, channels, *space] -> SpikeTrain of the same shape.

    State: ``norm.*`` as in torch's batch norm.

    Raises:
        TypeError, ValueError: a setting has the wrong type or is out of range; or, when called, x is a plain tensor.

    >>> first, fire = tnn.Linear(3, 5, neurons=False), tnn.Neurons(5, norm=True)
    >>> u = first(te.SpikeTrain.from_dense(torch.ones(8, 2, 3)))
    >>> u = u + tnn.Linear(5, 5, neurons=False)(fire(u))  # a residual stream of currents
    """

    _norm_class = AnyBatchNorm

    def __init__(
        self,
        channels: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **neuron: Unpack[NeuronOptions],
    ) -> None:
        super().__init__()
        if channels is not None:
            checks.positive("channels", channels)
        elif neuron.get("norm"):
            raise ValueError("channels: batch norm needs their number")
        for name, given in (("neurons", not neuron.get("neurons", True)), ("weight_bits", neuron.get("weight_bits"))):
            if given:
                raise ValueError(f"{name}: a setting of synapses, of which Neurons has none, got {neuron[name]}")  # type: ignore[literal-required]
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        self._add_neurons(channels, torch.empty(0, device=device, dtype=dtype), **neuron)

    def forward(self, x: Any) -> Any:  # type: ignore[override]
        check_signal(x, "Neurons", _FROM_SUMS)
        return super().forward(currents_of(x))

    def potentials(self, x: Any) -> Tensor:  # type: ignore[override]
        check_signal(x, "Neurons", _FROM_SUMS)
        return super().potentials(currents_of(x))

    def _weights(self, x: Any) -> tuple[Any, Any, None]:
        return x, None, None

    def _fire(self, x: Currents, weight: None, settings: Settings) -> tuple[Any, Any, Any]:
        shape = x.shape if self.timing == "window" else x.steps(0, min(x.T, AT_ONCE)).shape[1:]
        if self._channels is not None and (len(shape) < 2 or shape[1] != self._channels):
            raise ValueError(f"x: expected {self._channels} channels, got shape {list(shape)}")
        return fire(x, settings)

    def real_product(self, counts: Tensor, bias: Tensor | None = None) -> Tensor:
        return counts if bias is None else counts + over_space(bias, counts.shape)
