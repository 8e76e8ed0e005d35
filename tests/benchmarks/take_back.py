"""Do networks trained with window timing stream if neurons can take spikes back, or wait? Measured in plain PyTorch.

    python tests/benchmarks/take_back.py runs/fashion-mnist-window-from-twin/seed-*/snn/model.safetensors
    python tests/benchmarks/take_back.py runs/.../model.safetensors --waits 0 1 2 3 4 5 6 7 --samples 1000

A layer adds its first currents up for some steps (``--waits``) before it fires, and then fires T times. In each step a
neuron fires +1 if its potential has reached the threshold. With spikes taken back it fires -1, and adds the threshold,
if its potential is negative and it has fired more often than it has taken back. The table has the accuracy after each
step of the readout, and the SynOps relative to the twin, on the test samples or, with ``--samples``, on validation
samples.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tandem_snn.nn as tnn
from tandem_ext.functional.neuron import over_space
from tandem_ext.functional.products import LINEAR, Product
from tandem_snn.nn.batch_norm import fold_norm
from tandem_snn.training.checkpoint import load_checkpoint, read_recipe

Fire = Callable[[Tensor, float, Tensor], Tensor]


def synapses(product: Product, weight: Tensor, x: Tensor) -> float:
    """How many synapses the spikes x reach; x may be negative."""
    return product.direct(x.abs(), torch.ones_like(weight)).sum().item()


def plain(v: Tensor, threshold: float, net_spikes: Tensor) -> Tensor:
    """Spikes of neurons with these potentials; ``net_spikes`` were fired before."""
    return (v >= threshold).float()


def taking_back(v: Tensor, threshold: float, net_spikes: Tensor) -> Tensor:
    return plain(v, threshold, net_spikes) - ((v < 0) & (net_spikes > 0)).float()


def simulate(net: nn.Module, x: Tensor, T: int, fire: Fire = plain, wait: int = 0) -> tuple[Tensor, float, float]:
    """(answers after each step, synaptic operations, the twin's multiply-accumulates) of a batch of images."""
    layers = [module for module in net.modules() if isinstance(module, tnn.SpikingLayer | tnn.Flatten | tnn.Readout)]
    operations = macs = 0.0
    train = [x]  # one item: the same in every step
    for layer in layers:
        if isinstance(layer, tnn.Flatten):
            train = [spikes.flatten(1) for spikes in train]
            continue
        product = LINEAR if isinstance(layer, tnn.Readout) else layer.synapses()
        currents = [product.direct(spikes, layer.weight) for spikes in train]
        own = currents[0].numel() * layer.weight[0].numel()
        macs += own
        # The products of a real-valued input count once.
        operations += own if len(train) == 1 else sum(synapses(product, layer.weight, spikes) for spikes in train)
        currents = currents if len(train) == T else currents * T
        if isinstance(layer, tnn.Readout):
            return (torch.stack(currents) + layer.bias / T).cumsum(0), operations, macs
        scale, shift = (over_space(value, currents[0].shape) for value in fold_norm(layer.norm))
        currents = [scale * u + shift / T for u in currents]
        train, net_spikes = [], torch.zeros_like(currents[0])
        v = layer.v_init + sum(currents[:wait])
        for t in range(T):
            v = v + currents[t + wait] if t + wait < T else v
            spikes = fire(v, layer.threshold, net_spikes)
            v = v - layer.threshold * spikes
            net_spikes = net_spikes + spikes
            train.append(spikes)
    raise ValueError("the network has no readout")


@torch.no_grad()
def measure(net: nn.Module, batches: Iterable[Any], T: int, fire: Fire, wait: int) -> tuple[Tensor, float]:
    """(accuracy after each step in per cent, SynOps relative to the twin)."""
    right, samples, operations, macs = torch.zeros(T), 0, 0.0, 0.0
    for images, labels in batches:
        answers, own, twin = simulate(net, images, T, fire, wait)
        right += (answers.argmax(-1) == labels).sum(1)
        samples, operations, macs = samples + len(labels), operations + own, macs + twin
    return 100 * right / samples, operations / macs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--data-dir", default=os.environ.get("TANDEM_DATA"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--waits", type=int, nargs="*", default=[0])
    parser.add_argument("--samples", type=int, help="this many validation samples instead of the test samples")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        "| checkpoint | T | waits | takes back | accuracy after each step | SynOps |\n"
        "| --- | --- | --- | --- | --- | --- |"
    )
    for path in arguments.checkpoints:
        recipe = read_recipe(path)
        data = recipe.load(arguments.data_dir)
        split = data.validation.subset(range(arguments.samples)) if arguments.samples else data.test
        net = recipe.build(data, "SNN")
        load_checkpoint(path, net)
        for fire, wait in itertools.product((plain, taking_back), arguments.waits):
            accuracy, operations = measure(net.eval(), split.batches(250), recipe.T, fire, wait)
            by_step = " ".join(f"{value:.2f}" for value in accuracy.tolist())
            answer = "no" if fire is plain else "yes"
            print(f"| {path} | {recipe.T} | {wait} | {answer} | {by_step} | {operations:.2f} |", flush=True)


if __name__ == "__main__":
    main()
