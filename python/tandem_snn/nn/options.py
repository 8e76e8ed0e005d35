"""The settings of a layer's neurons: keyword arguments, and attributes that are checked when they are set."""

import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal, NoReturn, TypedDict, get_args

from torch import Tensor, nn

from tandem_ext import SpikeTrain, checks
from tandem_ext.functional.settings import NeuronSettings, Setting, check_together, declared, default_v_init, shows
from tandem_ext.ops import refuse_graph

from .currents import NEVER
from .quantise import check_bits
from .signals import describe

Gain = float | Tensor | Literal["threshold"]
BNStats = Literal["batch", "running"]
_MOST = sys.float_info.max


def _check_norm(value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"norm: expected True or False, got {describe(value)}")


def _check_number(name: str, value: Any, within: str, least: float, most: float) -> None:
    if value is not None:
        checks.number(name, value, f"None or {within}", f"None or {within}", least, most)


def _check_gain(value: object, channels: int | None) -> None:
    if not isinstance(value, str):
        checks.gain("gain", value, channels)
    elif value != "threshold":
        raise ValueError(f'gain: expected a number, a tensor or "threshold", got {value!r}')


class BatchNormOptions(TypedDict, total=False):
    """The keyword arguments that make the batch norm of a layer; its submodule ``norm`` then has them."""

    norm: Annotated[bool, Setting(False, lambda value, _: _check_norm(value))]
    eps: Annotated[float, Setting(1e-5, lambda value, _: checks.eps(value))]
    momentum: Annotated[
        float | None, Setting(None, lambda value, _: _check_number("momentum", value, "a number from 0 to 1", 0, 1))
    ]
    gamma: Annotated[
        float | None, Setting(None, lambda value, _: _check_number("gamma", value, "a finite number", -_MOST, _MOST))
    ]


class LayerSettings(NeuronSettings, total=False):
    """The settings of a layer that are attributes, in the order of the repr."""

    gain: Annotated[Gain, Setting(1.0, _check_gain)]
    bn_stats: Annotated[BNStats, Setting("batch", lambda value, _: checks.one_of("bn_stats", value, get_args(BNStats)))]
    weight_bits: Annotated[int | None, Setting(None, lambda value, _: check_bits(value))]


class NeuronOptions(BatchNormOptions, LayerSettings, total=False):
    """The keyword arguments that every layer with neurons takes: ``tandem_ext.functional.NeuronSettings``, and others.

    Args:
        threshold, leak, v_init, gate, timing: as in ``tandem_ext.functional.NeuronSettings``. Tensors become buffers;
            a threshold that is a Parameter is learned.
        norm: batch norm between the synapses and the neurons. The currents and the ANN branch use the same statistics:
            batch statistics in training, running statistics in evaluation. The submodule ``norm`` has the parameters
            and buffers of torch's batch norm; ``layer.norm.eval()`` freezes its statistics.
        gain: the value of a spike for the next layer, a float or a tensor, 0-dim or one per channel. "threshold": ϑ, so
            that gain times count approximates ρ(z), an activation in the ANN's units, for any ϑ.
        eps, momentum: of the batch norm. momentum None: 0.1, or 0.9 with ``bn_stats="running"``.
        bn_stats: the statistics of the currents in training. "batch": of the batch. "running": the running statistics,
            as in the first release of the rule, while the gradient uses batch statistics; this takes a second product.
        gamma: the initial γ of the batch norm; None: :func:`initial_gamma` for T = 8. (With γ = 1 most of the counts 0
            to T are never used.) :func:`init_gamma_` sets γ in a whole network for the network's T.
        weight_bits: None, or 2 to 8: the layer computes with weights rounded symmetrically to this many bits, with one
            quantisation step per output channel, as ``tandem_snn.freeze`` does. Gradients pass straight through to the
            weights. A gain per input channel is multiplied into the weights before rounding.

    >>> options: tnn.NeuronOptions = {"threshold": 0.5, "norm": True}
    >>> tnn.Linear(3, 2, **options).threshold
    0.5
    """


OPTIONS = declared(NeuronOptions)
SETTINGS = declared(LayerSettings)  # those that are attributes
DEFAULTS = {name: setting.default for name, setting in SETTINGS.items()}
shows_neuron_options = shows(NeuronOptions)


def checked_options(layer: type, keywords: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """Return all options of a layer, after checking those that its construction needs."""
    for name in keywords:
        if name not in OPTIONS:
            raise TypeError(f"{name}: {layer.__name__} has no such argument; its neurons have {', '.join(OPTIONS)}")
        if name not in SETTINGS:
            OPTIONS[name].check(keywords[name], channels)
    options = {name: keywords.get(name, option.default) for name, option in OPTIONS.items()}
    for name in () if options["norm"] else declared(BatchNormOptions):
        if options[name] != OPTIONS[name].default:
            raise ValueError(f"{name}: it is a setting of the batch norm, which needs norm=True, got {options[name]!r}")
    return options


class HasNeurons(nn.Module):
    """Base class of modules with neurons. Settings are attributes, which may be changed and are checked when set."""

    threshold: float | Tensor
    leak: float = 1.0
    v_init: float | Tensor | None
    gain: Gain
    gate: checks.Gate = "relu"
    timing: checks.Timing = "step"
    _channels: int | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Check a setting. A tensor becomes a buffer, so that it is in the state_dict and moves with the module."""
        setting = SETTINGS.get(name)
        if setting is None:
            return super().__setattr__(name, value)
        if not (setting.each_call and isinstance(value, Tensor)):
            setting.check(value, self._channels)
        neuron = {"timing": self.timing, "leak": self.leak}
        if name in neuron:
            check_together(**{**neuron, name: value})
        with suppress(AttributeError):  # a number may replace a tensor, or the reverse
            delattr(self, name)
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            return self.register_buffer(name, value)
        super().__setattr__(name, value)

    def __prepare_scriptable__(self) -> NoReturn:
        """torch.jit.script calls it before it reads the layer."""
        refuse_graph()

    @property
    def initial_potential(self) -> float | Tensor:
        """The membrane potential before the first step: ``v_init``, or its default."""
        return default_v_init(self.threshold, self.timing) if self.v_init is None else self.v_init

    def dynamics(self) -> dict[str, Any]:
        """Return the settings that determine each time step, as arguments of :func:`tandem_ext.functional.if_scan`."""
        return {"threshold": self.threshold, "leak": self.leak}

    def numbers(self) -> dict[str, Any]:
        """Return the settings as arguments of an op, which takes a tensor threshold as the unit of potentials."""
        threshold = 1.0 if isinstance(self.threshold, Tensor) else float(self.threshold)
        return {"threshold": threshold, "leak": float(self.leak), "gate": self.gate, "timing": self.timing}

    def with_gain(self, train: SpikeTrain) -> SpikeTrain:
        """Return the train with the gain of these neurons."""
        gain = self.threshold if self.gain == "threshold" else self.gain
        return train if isinstance(gain, float) and gain == 1.0 else train.replace(gain=gain)

    def changed(self, defaults: Mapping[str, Any]) -> list[str]:
        """Return the settings that differ from these defaults, as text for the repr."""
        shown = []
        for name, default in defaults.items():
            value = getattr(self, name)
            if isinstance(value, Tensor):
                shown.append(f"{name}={type(value).__name__}{list(value.shape)}")
            elif value != default:
                shown.append(f"{name}={value!r}")
        return shown


INTEGRATE_ONLY: dict[str, Any] = {"threshold": NEVER, "leak": 1.0}  # settings; see HasNeurons.numbers
