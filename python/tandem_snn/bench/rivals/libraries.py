"""Libraries of spiking networks, used as their documentation recommends, where they are installed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..network import Batch, Network
from .model import Model
from .plain import product, read


def spikingjelly(network: Network, compiled: bool = False) -> Model:
    """Multi-step mode: products of all steps at once."""
    from spikingjelly.activation_based import functional, neuron, surrogate
    from spikingjelly.activation_based import layer as sj

    def synapses(weight: Tensor, bias: Tensor, stride: int, padding: int) -> nn.Module:
        outputs, inputs, *kernel = weight.shape
        made = sj.Conv2d(inputs, outputs, kernel, stride, padding) if kernel else sj.Linear(inputs, outputs)
        made.weight = nn.Parameter(weight.clone(memory_format=torch.preserve_format))
        made.bias = nn.Parameter(bias / network.T)
        return made

    net = nn.Sequential()
    for layer in network.layers:
        assert layer.bias is not None
        net.append(synapses(layer.weight, layer.bias, layer.stride, layer.padding))
        net.append(neuron.IFNode(v_threshold=1.0, v_reset=None, surrogate_function=surrogate.ATan()))
    functional.set_step_mode(net, "m")
    own = network.trainable()
    run = torch.compile(net, dynamic=False) if compiled else net

    def forward(batch: Batch) -> Tensor:
        functional.reset_net(net)
        spikes = batch.spikes
        if spikes is None:
            spikes = batch.x.unsqueeze(0).repeat(network.T, *[1] * batch.x.dim())
        net.train(torch.is_grad_enabled())
        return read(run(spikes).sum(0), own)

    return Model([*net.parameters(), *(own.readout or ())], forward, same_gradient=False)


def spikingjelly_compiled(network: Network) -> Model:
    return spikingjelly(network, compiled=True)


def snntorch(network: Network) -> Model:
    """Step by step. Its neurons fire above the threshold, not at it: an initial potential finer than the grid of all
    currents makes that the same."""
    import snntorch as snn

    network = network.trainable()
    neurons = [snn.Leaky(beta=1.0, threshold=1.0, reset_mechanism="subtract") for _ in network.layers]

    def forward(batch: Batch) -> Tensor:
        v: list[Tensor | None] = [None for _ in neurons]
        total: Tensor | None = None
        for t in range(network.T):
            spikes = batch.x if batch.spikes is None else batch.spikes[t]
            for i, (layer, neuron) in enumerate(zip(network.layers, neurons, strict=True)):
                assert layer.bias is not None
                current = product(spikes, layer, layer.bias / network.T)
                before = torch.full_like(current, 2.0**-20) if v[i] is None else v[i]
                spikes, v[i] = neuron(current, before)
            total = spikes if total is None else total + spikes
        assert total is not None
        return read(total, network)

    return Model(network.tensors, forward, same_gradient=False)
