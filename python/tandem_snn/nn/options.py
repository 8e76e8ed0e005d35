"""The settings of a layer's neurons: types, defaults, checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from torch import Tensor, nn

from tandem_ext import SpikeTrain, checks
from tandem_ext.functional.neuron import default_v_init, shows

from .currents import NEVER
from .quantise import check_bits

BN_STATS = ("batch", "running")


class NeuronOptions(TypedDict, total=False):
    """The keyword arguments that every layer with neurons takes.

    Args:
        norm: batch norm between the synapses and the neurons. The currents and the ANN branch use the same statistics:
            batch statistics in training, running statistics in evaluation. The submodule ``norm`` has the parameters
            and buffers of torch's batch norm; ``layer.norm.eval()`` freezes its statistics.
        threshold: ϑ, a positive float; a tensor, 0-dim or one per channel, which becomes a buffer; or a Parameter,
            which is learned.
        leak: λ in (0, 1]; 1 is the IF neuron, less is a leaky (LIF) neuron.
        v_init: the membrane potential before the first step, a float or tensor, 0-dim, one per channel or [*features].
            It is not learned. None: 0, or with timing "window" ϑ/2, which rounds to the nearest count.
        gain: the value of a spike for the next layer, a float or a tensor, 0-dim or one per channel. "threshold": ϑ, so
            that gain times count approximates ρ(z), an activation in the ANN's units, for any ϑ.
        gate: which neurons pass a gradient. "relu": z > 0; "clip": 0 < z < ϑT; "resu": z > 0, and neurons with z ≤ 0
            are silenced.
        eps, momentum: of the batch norm. momentum None: 0.1, or 0.9 with ``bn_stats="running"``.
        bn_stats: the statistics of the currents in training. "batch": of the batch. "running": the running statistics,
            as in the first release of the rule, while the gradient uses batch statistics; this takes a second product.
        gamma: the initial γ of the batch norm; None: :func:`initial_gamma` for T = 8. (With γ = 1 most of the counts 0
            to T are never used.) :func:`init_gamma_` sets γ in a whole network for the network's T.
        weight_bits: None, or 2 to 8: the layer computes with weights rounded symmetrically to this many bits, with one
            quantisation step per output channel, as ``tandem_snn.freeze`` does. Gradients pass straight through to the
            weights. A gain per input channel is multiplied into the weights before rounding.
        timing: "step": a neuron fires as soon as it reaches the threshold. "window": it integrates a whole window, then
            fires, so that the layer is one product for any T, and the order of input spikes does not matter. leak must
            be 1, and gate cannot be "resu".

    >>> options: tnn.NeuronOptions = {"threshold": 0.5, "norm": True}
    >>> tnn.Linear(3, 2, **options).threshold
    0.5
    """

    norm: bool
    threshold: float | Tensor
    leak: float
    v_init: float | Tensor | None
    gain: float | Tensor | str
    gate: str
    eps: float
    momentum: float | None
    bn_stats: str
    gamma: float | None
    weight_bits: int | None
    timing: str


DEFAULTS: dict[str, Any] = {
    "norm": False, "threshold": 1.0, "leak": 1.0, "v_init": None, "gain": 1.0, "gate": "relu", "eps": 1e-5,
    "momentum": None, "bn_stats": "batch", "gamma": None, "weight_bits": None, "timing": "step",
}  # fmt: skip
shows_neuron_options = shows(NeuronOptions, DEFAULTS)


class HasNeurons(nn.Module):
    """Base class of modules with neurons. Settings are attributes, which may be changed and are checked when set."""

    threshold: float | Tensor
    leak: float = 1.0
    v_init: float | Tensor | None
    gain: float | Tensor | str
    gate: str = "relu"
    timing: str = "step"
    _channels: int | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Check settings; of tensors, which can change in place, each forward pass checks the values.

        A tensor becomes a buffer, so that it is in the state_dict and moves with the module.
        """
        if name in CHECKS and (name == "gain" or not isinstance(value, Tensor)):
            CHECKS[name](self, value)
            if name in ("timing", "leak", "gate"):
                neuron: dict[str, Any] = {"timing": self.timing, "leak": self.leak, "gate": self.gate, name: value}
                checks.timing_fits(neuron["timing"], neuron["leak"], neuron["gate"])
        if name in TENSORS:  # a number may replace a tensor or Parameter, and the other way round
            for held in (self.__dict__, self._buffers, self._parameters):
                held.pop(name, None)
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                return self.register_buffer(name, value)
        super().__setattr__(name, value)

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

    def worth(self, train: SpikeTrain) -> SpikeTrain:
        """Return the train with the gain of these neurons."""
        gain = self.threshold if self.gain == "threshold" else self.gain
        return train if isinstance(gain, float) and gain == 1.0 else train.replace(gain=gain)

    def settings(self, defaults: Mapping[str, Any]) -> list[str]:
        """Return the settings that differ from these defaults, as text for the repr."""
        shown = []
        for name in (name for name in CHECKS if name in defaults):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                shown.append(f"{name}={type(value).__name__}{list(value.shape)}")
            elif value != defaults[name]:
                shown.append(f"{name}={value!r}")
        return shown


INTEGRATE_ONLY: dict[str, Any] = {"threshold": NEVER, "leak": 1.0, "gate": "relu"}  # settings; see HasNeurons.numbers


def _check_gain(layer: Any, gain: object) -> None:
    if not isinstance(gain, str):
        checks.gain("gain", gain, layer._channels)
    elif gain != "threshold":
        raise ValueError(f'gain: expected a number, a tensor or "threshold", got {gain!r}')


TENSORS = ("threshold", "v_init", "gain")  # settings that may be tensors
# In the order of the repr.
CHECKS: dict[str, Callable[[Any, Any], object]] = {
    "threshold": lambda layer, value: checks.threshold(value, layer._channels),
    "leak": lambda layer, value: checks.leak(value),
    "v_init": lambda layer, value: checks.v_init(value),
    "gain": _check_gain,
    "gate": lambda layer, value: checks.one_of("gate", value, checks.GATES),
    "bn_stats": lambda layer, value: checks.one_of("bn_stats", value, BN_STATS),
    "weight_bits": lambda layer, value: check_bits(value),
    "timing": lambda layer, value: checks.one_of("timing", value, checks.TIMINGS),
}
