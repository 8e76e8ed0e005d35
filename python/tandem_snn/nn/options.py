"""The settings of neurons that a layer has: types, defaults, checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from torch import Tensor, nn

from tandem_ext import SpikeTrain, checks
from tandem_ext.functional.neuron import Static, shows
from tandem_ext.functional.products import Product

from .currents import NEVER
from .quantise import check_bits

BN_STATS = ("batch", "running")


class NeuronOptions(TypedDict, total=False):
    """The keyword arguments that every layer with neurons takes.

    Args:
        norm: batch norm between the synapses and the neurons. The currents and the ANN branch use the same statistics:
            the batch's in training, the running ones in evaluation. The submodule ``norm`` has the parameters and
            buffers of torch's batch norm; ``layer.norm.eval()`` freezes it.
        threshold: a positive float; a tensor, 0-dim or one per channel, which becomes a buffer; or a Parameter, which
            is learned.
        leak: λ in (0, 1]; 1 is the IF neuron, less the LIF neuron.
        v_init: the potential before the first step, float or tensor, 0-dim, one per channel or [*features]. It is not
            learned.
        gain: the worth of a spike to the next layer. "threshold": ϑ, so that gain times count stands for ρ(z), an
            activation in the ANN's units, whatever ϑ is.
        gate: which neurons pass a gradient: "relu" z > 0, "clip" 0 < z < threshold·T, "resu" as "relu", and all other
            neurons are silenced.
        eps, momentum: of the batch norm. momentum None: 0.1, or 0.9 with ``bn_stats="running"``.
        bn_stats: "running" folds the running statistics into the currents in training too, as in the rule's first
            release; the gradient is that of batch norm with the batch's statistics. It costs a second product.
        gamma: the initial γ; None is :func:`initial_gamma` for 8 steps. 1 leaves most of the counts 0 to T unused.
            :func:`init_gamma_` sets it in a whole network for the network's T.
        weight_bits: None, or 2 to 8: the layer computes with weights rounded to this many bits, symmetrically, with one
            step per output channel; gradients pass straight through to the weights, as in ``tandem_snn.freeze``. If
            spikes have a different worth in each channel, it rounds the product of worth and weight.
        timing: "step": neurons fire in each time step. "window": they integrate a whole window, then fire, so that the
            layer is one product whatever T, and the order of the input does not matter. No leak and no gate "resu";
            v_init = ϑ/2 rounds to the nearest count.
    """

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
    timing: str


DEFAULTS: dict[str, Any] = {
    "norm": False, "threshold": 1.0, "leak": 1.0, "v_init": 0.0, "gain": 1.0, "gate": "relu", "eps": 1e-5,
    "momentum": None, "bn_stats": "batch", "gamma": None, "weight_bits": None, "timing": "step",
}  # fmt: skip
shows_neuron_options = shows(NeuronOptions, DEFAULTS)


class HasNeurons(nn.Module):
    """A module with neurons. Their settings are attributes, which may be changed, and are checked when set."""

    threshold: float | Tensor
    leak: float = 1.0
    v_init: float | Tensor
    gain: float | str
    gate: str = "relu"
    timing: str = "step"

    def __setattr__(self, name: str, value: Any) -> None:
        """Settings other than tensors are checked here, once; tensors, whose values change, in each forward pass."""
        if name in CHECKS and not isinstance(value, Tensor):
            CHECKS[name](self, value)
            if name in ("timing", "leak", "gate"):
                neuron: dict[str, Any] = {"timing": self.timing, "leak": self.leak, "gate": self.gate, name: value}
                checks.timing_fits(neuron["timing"], neuron["leak"], neuron["gate"])
        super().__setattr__(name, value)

    def static(self, source: Product | str, T: int, eps: float | None = None, few_bits: bool = False) -> Static:
        """The arguments of an op other than tensors."""
        threshold = self.threshold
        fire_at = 1.0 if isinstance(threshold, Tensor) else float(threshold)
        return Static(source, T, False, eps, few_bits, T, fire_at, float(self.leak), self.gate, self.timing)

    def dynamics(self) -> dict[str, Any]:
        """What the neuron does at a step, as arguments of :func:`tandem_ext.functional.if_scan`."""
        return {"threshold": self.threshold, "leak": self.leak}

    def worth(self, train: SpikeTrain) -> SpikeTrain:
        """The train with the gain of these neurons."""
        gain = self.threshold if self.gain == "threshold" else self.gain
        return train if isinstance(gain, float) and gain == 1.0 else train.but(gain=gain)

    def settings(self, defaults: Mapping[str, Any]) -> list[str]:
        """The settings that differ from these defaults, as text."""
        shown = []
        for name in (name for name in CHECKS if name in defaults):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                shown.append(f"{name}={type(value).__name__}{list(value.shape)}")
            elif value != defaults[name]:
                shown.append(f"{name}={value!r}")
        return shown


def silent(static: Static) -> Static:
    """Neurons that only integrate: they never fire and nothing leaks."""
    return static._replace(threshold=NEVER, leak=1.0, gate="relu")


def _check_gain(layer: Any, gain: object) -> None:
    if gain != "threshold":
        checks.gain("gain", gain)


# In the order in which they are shown.
CHECKS: dict[str, Callable[[Any, Any], None]] = {
    "threshold": lambda layer, value: checks.threshold(value, layer._channels),
    "leak": lambda layer, value: checks.leak(value),
    "v_init": lambda layer, value: checks.v_init(value),
    "gain": _check_gain,
    "gate": lambda layer, value: checks.one_of("gate", value, checks.GATES),
    "bn_stats": lambda layer, value: checks.one_of("bn_stats", value, BN_STATS),
    "weight_bits": lambda layer, value: check_bits(value),
    "timing": lambda layer, value: checks.one_of("timing", value, checks.TIMINGS),
}
