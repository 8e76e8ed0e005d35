"""IF neurons driven by given currents."""

from __future__ import annotations

from torch import Tensor

from .. import checks
from ..inputs import ConstantInput, ImpulseInput
from ..train import SpikeTrain
from .layer import Result, scan_layer, source_of


def if_scan(
    currents: Tensor | ConstantInput | ImpulseInput,
    *,
    threshold: float | Tensor = 1.0,
    leak: float = 1.0,
    v_init: float | Tensor = 0.0,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: SpikeTrain | Tensor | None = None,
    gate: str = "relu",
    steps: int | None = None,
    return_v: bool = False,
) -> Result:
    """A layer of integrate-and-fire neurons with currents that something else has computed.

    As :func:`linear_if`, with the currents in the place of y. In the backward pass each step's currents receive the
    same gradient, scale·grad_z, as a view that is expanded over time.

    Args:
        currents: floating point [T, B, *features], T in 1..255; or a :class:`ConstantInput` or :class:`ImpulseInput`,
            whose x [B, *features] is then the current itself. Channels are the first feature.
        threshold, leak, v_init, scale, shift, residual, gate, steps, return_v: as in :func:`linear_if`; per-channel
            tensors have one value for each channel.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`linear_if`.

    >>> train, v = te.functional.if_scan(torch.full((4, 1, 1), 0.375), return_v=True)
    >>> train.to_dense(torch.int).flatten().tolist(), v.item()
    ([0, 0, 1, 0], 0.5)
    """
    neuron = residual, threshold, leak, v_init, gate, steps, return_v
    if isinstance(currents, (ConstantInput, ImpulseInput)):
        checks.device("currents", currents.x)
        return scan_layer(currents.x, source_of(currents), currents.T, currents.gain, None, scale, shift, *neuron)
    checks.currents("currents", currents)
    return scan_layer(currents, "train", currents.shape[0], 1.0, None, scale, shift, *neuron)
