"""Import from and export to SpikingJelly."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from ...errors import extra
from .exporting import export_network
from .importing import import_network
from .neurons import Neuron


def from_spikingjelly(net: nn.Module, T: int, *, mode: str = "direct", example: Any = None) -> fx.GraphModule:
    """Import a SpikingJelly network for T steps as a network of ``tandem_snn.nn``, with the same spikes.

    ``net`` may consist of torch's or SpikingJelly's Linear, Conv1d, Conv2d, BatchNorm, MaxPool2d, AvgPool2d, Flatten
    and Dropout, additions of currents, and neurons that reset by subtraction (``v_reset=None``): IFNode, LIFNode and
    ParametricLIFNode. It is not changed; the new network has copies of its parameters. Biases and batch norms act at
    every step in SpikingJelly and once per window here, so they are multiplied by T.

    In SpikingJelly's LIF neurons the leak also acts on the reset. Such a neuron equals one of ours with another
    threshold, a constant current and an initial potential. Except for rounding, the spikes equal those of ``net`` in
    evaluation mode.

    Args:
        net: a network with one input, in step mode "s" or "m".
        T: the number of time steps.
        mode: the input of each step: "direct": the same input; "zero_expand": the input, then zeros; "events": the
            steps of a SpikeTrain.
        example: a batch of inputs, as in :func:`convert`. None: find an input that the network accepts.

    Returns:
        A network that returns the SpikeTrain of the last neurons or, if ``net`` ends in a Linear layer, the sum of its
        outputs over the T steps.

    Raises:
        CannotConvert: a module or an operation is not supported, such as a hard reset; the message names it. It is a
            ValueError.
        UserError: SpikingJelly is not installed.

    >>> from spikingjelly.activation_based import neuron
    >>> theirs = nn.Sequential(nn.Linear(4, 3), neuron.IFNode(v_reset=None))
    >>> x = torch.rand(2, 4)
    >>> torch.equal(sum(theirs(x) for _ in range(8)), from_spikingjelly(theirs, T=8)(x).counts)
    True
    """
    base = extra("spikingjelly.activation_based.base", "the import from SpikingJelly")
    nodes = extra("spikingjelly.activation_based.neuron", "the import from SpikingJelly")
    return import_network(net, T, mode, example, lambda module: _read(module, base, nodes), base.StepModule)


def _read(module: Any, base: Any, nodes: Any) -> Neuron | None:
    kind = type(module)
    name = f"SpikingJelly's {kind.__name__}"
    if kind not in (nodes.IFNode, nodes.LIFNode, nodes.ParametricLIFNode):
        if isinstance(module, base.MemoryModule) and kind.__name__ != "Dropout":
            raise ValueError(f"{name} is not supported: use IFNode, LIFNode or ParametricLIFNode")
        return None
    if module.v_reset is not None:
        raise ValueError(
            f"{name} with the hard reset v_reset={module.v_reset} is not supported: train it with v_reset=None, the "
            "reset by subtraction"
        )
    if not module.surrogate_function.spiking:
        raise ValueError(f"{name} does not spike: its surrogate function has spiking=False")
    v_init = module.get_reset_value("v")
    if kind is nodes.IFNode:
        return Neuron(module.v_threshold, v_init=v_init)
    lost = 1 / module.tau if kind is nodes.LIFNode else module.w.detach().sigmoid().item()
    factor = lost if module.decay_input else 1.0
    return Neuron(module.v_threshold, 1 - lost, v_init, factor).leaks_its_reset()


def to_spikingjelly(net: nn.Module, x: Any) -> fx.GraphModule:
    """Export a network in evaluation mode as a SpikingJelly network of one time step, with the same spikes.

    The result consists of torch's layers and ``IFNode(v_reset=None)``, or ``LIFNode`` for a leak. Batch norm and gains
    are folded into the weights. The input of each step is the image (direct encoding), the image and then zeros, or the
    spikes of the step. The sum of the outputs over T steps is the answer of ``net``. ``functional.reset_net`` resets
    the network.

    With timing "window" the network is a pipeline: neurons sum the currents of T steps and fire in the next T. Run
    :attr:`FrozenNetwork.latency` steps; the answer is the sum over the last T of them.

    Args:
        net: a network of layers of ``tandem_snn.nn``, or a frozen network.
        x: a batch of inputs, for the shapes.

    Returns:
        A ``torch.fx.GraphModule``.

    Raises:
        CannotLower: a layer is not supported; the message names it. It is a ValueError.
        UserError: SpikingJelly is not installed.

    >>> from tandem_snn import nn as tnn
    >>> net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3), tnn.Readout(3, 2))
    >>> x = torch.rand(2, 4)
    >>> theirs = to_spikingjelly(net, x)
    >>> torch.allclose(sum(theirs(x) for _ in range(8)), net(x), atol=1e-5)
    True
    """
    nodes = extra("spikingjelly.activation_based.neuron", "the export to SpikingJelly")

    def write(neuron: Neuron) -> tuple[nn.Module, float | Tensor]:
        if isinstance(neuron.v_init, Tensor):
            raise ValueError("an initial potential that differs between neurons is not supported")
        theirs = neuron if neuron.leak == 1 else neuron.with_leaking_reset()
        if theirs.leak == 1:
            node = nodes.IFNode(float(theirs.threshold), v_reset=None)
        else:
            node = nodes.LIFNode(1 / (1 - theirs.leak), False, float(theirs.threshold), v_reset=None)
        node.set_reset_value("v", theirs.v_init)
        node.reset()
        return node, theirs.offset

    from . import spikingjelly_windows

    return export_network(net, x, write, spikingjelly_windows)
