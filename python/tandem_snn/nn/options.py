"""The settings of a layer's neurons: keyword arguments, and attributes that are checked when they are set."""

import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal, NoReturn, TypedDict, get_args

import torch
from torch import Tensor, nn

from tandem_ext import SpikeTrain, checks
from tandem_ext.functional.settings import NeuronSettings, Setting, check_together, declared, default_v_init, shows
from tandem_ext.ops import refuse_graph

from .quantise import check_bits
from .signals import describe

Gain = float | Tensor | None
BNStats = Literal["batch", "running"]
_MOST = sys.float_info.max


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {describe(value)}")


def _check_number(name: str, value: Any, within: str, least: float, most: float) -> None:
    if value is not None:
        checks.number(name, value, f"None or {within}", f"None or {within}", least, most)


def default_threshold(T: int, timing: checks.Timing = "step") -> float:
    """Return ϑ of a layer whose ``threshold`` is None, for T time steps: for activations of unit variance.

    With timing "window" ϑT, the largest activation that a count stands for, grows with the logarithm of T, as is best
    for rounding and saturation together; with "step" ϑ is 1/3, or 1.2/T if that is more (docs/rule.md).

    Args:
        T: the number of time steps, 1..65535, with timing "window" 1..255.
        timing: the timing of the layer's neurons, "step" or "window".

    Raises:
        TypeError, ValueError: T or timing is not allowed.

    >>> round(default_threshold(8, "window"), 4), round(default_threshold(16, "window"), 4)
    (0.325, 0.1906)
    """
    checks.one_of("timing", timing, checks.TIMINGS)
    checks.T("T", T, timing)
    if timing == "step":
        return max(1 / 3, 1.2 / T)
    octave = T.bit_length() - 1  # log2 T, linear between powers of two, has the same bits anywhere
    return (1.25 + 0.45 * (octave + T / 2**octave - 1)) / T


class BatchNormOptions(TypedDict, total=False):
    """The keyword arguments that make the batch norm of a layer; its submodule ``norm`` then has them."""

    norm: Annotated[bool, Setting(False, lambda value, _: _check_bool("norm", value))]
    eps: Annotated[float, Setting(1e-5, lambda value, _: checks.eps(value))]
    momentum: Annotated[
        float | None, Setting(None, lambda value, _: _check_number("momentum", value, "a number from 0 to 1", 0, 1))
    ]
    gamma: Annotated[
        float | None, Setting(None, lambda value, _: _check_number("gamma", value, "a finite number", -_MOST, _MOST))
    ]


class LayerSettings(NeuronSettings, total=False):
    """The settings of a layer that are attributes, in the order of the repr."""

    threshold: Annotated[  # type: ignore[misc]  # unlike that of a function, it may be None
        float | Tensor | None,
        Setting(None, lambda value, n: value is None or checks.threshold(value, n), each_call=True),
    ]
    T: Annotated[int | None, Setting(None, lambda value, _: value is None or checks.T("T", value, "window"))]
    gate: Annotated[checks.Gate, Setting("clip", lambda value, _: checks.one_of("gate", value, checks.GATES))]
    gain: Annotated[Gain, Setting(None, lambda value, n: value is None or checks.gain("gain", value, n))]
    neurons: Annotated[bool, Setting(True, lambda value, _: _check_bool("neurons", value))]
    bn_stats: Annotated[BNStats, Setting("batch", lambda value, _: checks.one_of("bn_stats", value, get_args(BNStats)))]
    weight_bits: Annotated[int | None, Setting(None, lambda value, _: check_bits(value))]


class NeuronOptions(BatchNormOptions, LayerSettings, total=False):
    """The keyword arguments that every layer with neurons takes: ``tandem_ext.functional.NeuronSettings``, and others.

    Args:
        threshold: ϑ, as in ``tandem_ext.functional.NeuronSettings``; a tensor becomes a buffer, a Parameter is learned.
            None: :func:`default_threshold` for T and the timing, where T is the layer's own or that of the input (after
            :func:`set_T` times T_old/T, for T_old). The layer then folds ϑ into scale and shift: its
            neurons fire at 1, and potentials, ``v_init`` among them, count in thresholds.
        leak, v_init, timing: as in ``tandem_ext.functional.NeuronSettings``. Tensors become buffers.
        T: the number of steps in which the neurons fire, with timing "window": their counts are 0 to T. None: that of
            the network, which its encoder or its recordings have.
        gate: likewise, but "clip" by default.
        norm: batch norm between the synapses and the neurons. The currents and the ANN branch use the same statistics:
            batch statistics in training, running statistics in evaluation. The submodule ``norm`` has the parameters
            and buffers of torch's batch norm; ``layer.norm.eval()`` freezes its statistics.
        gain: the value of a spike for the next layer, a float or a tensor, 0-dim or one per channel. None: ϑ, so that
            gain times count approximates ρ(z), the activation of an ANN with the same weights.
        neurons: False: the layer has no neurons and returns its currents, after batch norm, to which others can be
            added (:class:`Currents`). Its ``timing`` is that of their readers; it takes no other settings of neurons.
        eps, momentum: of the batch norm. momentum None: 0.1, or 0.9 with ``bn_stats="running"``.
        bn_stats: the statistics of the currents in training. "batch": of the batch. "running": the running statistics,
            as in the first release of the rule, while the gradient uses batch statistics; this takes a second product.
        gamma: the initial γ of the batch norm; None: 1, as in torch.
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
OF_NEURONS = ("threshold", "leak", "v_init", "T", "gate", "gain")  # not timing: programs ask for that of the readers
_SWITCHED = (
    ("norm", tuple(declared(BatchNormOptions)), "the batch norm, which needs norm=True"),
    ("neurons", OF_NEURONS, "neurons, which needs neurons=True"),
)
shows_neuron_options = shows(NeuronOptions)


def without_neurons(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a layer without neurons, of those of a layer with them.

    >>> without_neurons({"norm": True, "timing": "window", "gate": "clip"})
    {'neurons': False, 'norm': True, 'timing': 'window'}
    """
    return {"neurons": False} | {name: value for name, value in options.items() if name not in OF_NEURONS}


def checked_options(layer: type, keywords: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """Return all options of a layer, after checking those that its construction needs."""
    for name in keywords:
        if name not in OPTIONS:
            raise TypeError(f"{name}: {layer.__name__} has no such argument; its neurons have {', '.join(OPTIONS)}")
        if name not in SETTINGS:
            OPTIONS[name].check(keywords[name], channels)
    options = {name: keywords.get(name, option.default) for name, option in OPTIONS.items()}
    for switch, names, what in _SWITCHED:
        for name in () if options[switch] else names:
            value, default = options[name], OPTIONS[name].default
            if isinstance(value, Tensor) or value != default:
                got = describe(value) if isinstance(value, Tensor) else repr(value)
                raise ValueError(f"{name}: it is a setting of {what}, got {got}")
    return options


class HasNeurons(nn.Module):
    """Base class of modules with neurons. Settings are attributes, which may be changed and are checked when set."""

    threshold: float | Tensor | None
    leak: float = 1.0
    v_init: float | Tensor | None
    gain: Gain
    gate: checks.Gate = "relu"
    timing: checks.Timing = "step"
    T: int | None = None
    range_T: int | None = None  # set_T: a default threshold keeps the range that it has for this T
    _channels: int | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Check a setting. A tensor becomes a buffer, so that it is in the state_dict and moves with the module."""
        setting = SETTINGS.get(name)
        if setting is None:
            return super().__setattr__(name, value)
        if not (setting.each_call and isinstance(value, Tensor)):
            setting.check(value, self._channels)
        neuron = {"timing": self.timing, "leak": self.leak, "T": self.T}
        if name in neuron:
            neuron[name] = value
            if (T := neuron.pop("T")) is not None and neuron["timing"] == "step":
                raise ValueError(f"T: with timing='step' neurons fire in the network's steps, expected None, got {T}")
            check_together(**neuron)  # type: ignore[arg-type]
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
        return default_v_init(self.fires_at, self.timing) if self.v_init is None else self.v_init

    @property
    def fires_at(self) -> float | Tensor:
        """ϑ in the unit of potentials, which is that of a default threshold."""
        return 1.0 if self.threshold is None else self.threshold

    def own_T(self, T: Any) -> Any:
        """Return the number of steps in which the neurons fire, in a network of T steps: ``T``, or its default."""
        return T if self.T is None else self.T

    def threshold_for(self, T: int | None) -> float | Tensor:
        """Return ϑ in a network of T time steps: ``threshold``, or its default."""
        T = self.own_T(T)
        if self.threshold is not None:
            return self.threshold
        if T is None:
            raise ValueError("T: default thresholds depend on it, and no Encoder says it: freeze(net, T=...)")
        own = self.range_T or T
        return default_threshold(own, self.timing) * (own / T)

    def unit(self, T: int | None) -> Any:
        """Return the unit of potentials, which the layer folds into scale and shift: a default threshold, else 1."""
        return self.threshold_for(T) if self.threshold is None else 1.0

    def spike_value(self, T: int | None) -> float | Tensor:
        """Return the value of a spike in a network of T time steps: ``gain``, or its default."""
        return self.threshold_for(T) if self.gain is None else self.gain

    def with_gain(self, train: SpikeTrain, T: int) -> SpikeTrain:
        """Give a train that these neurons have just fired their gain, and the T of the network; return it."""
        train.gain = self.spike_value(T)
        train._network_T = None if train.T == T else T
        return train

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


NEVER = torch.finfo(torch.float32).max  # a threshold that no potential reaches
INTEGRATE_ONLY: dict[str, Any] = {"threshold": NEVER, "leak": 1.0}  # settings of neurons
