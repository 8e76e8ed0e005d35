"""Import from and export to snnTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import extra
from .exporting import export_network
from .importing import import_network
from .neurons import Neuron


def from_snntorch(net: nn.Module, T: int, *, mode: str = "direct", example: Any = None) -> fx.GraphModule:
    """Import an snnTorch network for T steps as a network of ``tandem_snn.nn``, with the same spikes.

    Like :func:`from_spikingjelly`, but for ``Leaky`` neurons that reset by subtraction. Their potentials may be hidden,
    or inputs and outputs of the forward of ``net``, which is one time step. snnTorch fires at v > ϑ and this package at
    v ≥ ϑ, so thresholds become the next larger number. Except for rounding, the spikes equal those of ``net`` in
    evaluation mode.

    Args:
        net: a network with one input and one output, not counting potentials.
        T, mode, example: as in :func:`from_spikingjelly`.

    Returns:
        A network, as in :func:`from_spikingjelly`.

    Raises:
        CannotConvert: a module or an operation is not supported, such as a reset to zero; the message names it. It is a
            ValueError.
        UserError: snnTorch is not installed.

    >>> import snntorch
    >>> theirs = nn.Sequential(nn.Linear(4, 3), snntorch.Leaky(beta=0.9, init_hidden=True))
    >>> x = torch.rand(2, 4)
    >>> torch.equal(sum(theirs(x) for _ in range(8)), from_snntorch(theirs, T=8)(x).counts)
    True
    """
    library = extra("snntorch", "the import from snnTorch")

    def tells(leaky: Any) -> bool:
        return bool(leaky.output or not leaky.init_hidden)

    return import_network(net, T, mode, example, lambda module: _read(module, library), tells=tells)


def _read(module: Any, library: Any) -> Neuron | None:
    kind = type(module)
    if kind is not library.Leaky:
        if isinstance(module, library.SpikingNeuron):
            raise ValueError(f"snnTorch's {kind.__name__} is not supported: use Leaky")
        return None
    for fault, what in (
        (module._reset_mechanism != "subtract", f"reset_mechanism={module._reset_mechanism!r}"),
        (not module.reset_delay, "reset_delay=False"),
        (bool(module.state_quant), "state_quant"),
        (module.inhibition, "inhibition=True"),
        (bool((module.graded_spikes_factor != 1).any()), "graded_spikes_factor other than 1"),
    ):
        if fault:
            raise ValueError(
                f'snnTorch\'s Leaky with {what} is not supported: use reset_mechanism="subtract" and its other defaults'
            )
    beta = module.beta.detach().clamp(0, 1).flatten()
    if not bool((beta == beta[0]).all()) or beta[0] == 0:
        raise ValueError("snnTorch's Leaky with a beta that is 0 or differs between neurons is not supported")
    threshold = module.threshold.detach().flatten()
    threshold = threshold.nextafter(torch.full_like(threshold, torch.inf))  # v > ϑ
    same = bool((threshold == threshold[0]).all())
    return Neuron(threshold[0].item() if same else threshold, beta[0].item())


def to_snntorch(net: nn.Module, x: Any) -> fx.GraphModule:
    """Export a network in evaluation mode as an snnTorch network of one time step, with the same spikes.

    Like :func:`to_spikingjelly`, but with ``Leaky`` neurons that have hidden states and reset by subtraction. snnTorch
    fires at v > ϑ and this package at v ≥ ϑ, so thresholds become the next smaller float32. ``snntorch.utils.reset``
    resets the network.

    Args:
        net, x: as in :func:`to_spikingjelly`.

    Returns:
        A ``torch.fx.GraphModule``.

    Raises:
        CannotLower: a layer is not supported, or it has an initial potential, which Leaky does not support; the message
            names it. It is a ValueError.
        UserError: snnTorch is not installed.

    >>> from tandem_snn import nn as tnn
    >>> net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3), tnn.Readout(3, 2))
    >>> x = torch.rand(2, 4)
    >>> theirs = to_snntorch(net, x)
    >>> torch.allclose(sum(theirs(x) for _ in range(8)), net(x), atol=1e-5)
    True
    """
    library = extra("snntorch", "the export to snnTorch")

    def write(neuron: Neuron) -> tuple[nn.Module, float | Tensor]:
        if isinstance(neuron.v_init, Tensor) or neuron.v_init != 0:
            raise ValueError("snnTorch's neurons have no initial potential: set v_init=0")
        threshold = torch.tensor(neuron.threshold).nextafter(torch.tensor(0.0))  # v ≥ ϑ
        return library.Leaky(neuron.leak, threshold, init_hidden=True, reset_mechanism="subtract"), 0.0

    return export_network(net, x, write)
