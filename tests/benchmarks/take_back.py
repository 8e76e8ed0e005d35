"""Do networks trained with timing "window" stream if neurons can take spikes back? Measured in plain PyTorch.

    python tests/benchmarks/take_back.py runs/fashion-mnist-window-from-twin/seed-*/snn/model.safetensors

Each network runs step by step. In each step a neuron fires +1 if its potential has reached the threshold. With spikes
taken back it fires -1, and adds the threshold, if its potential is negative and it has fired more often than it has
taken back. The table has the accuracy on the test samples after each step, and the SynOps relative to the twin.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tandem_snn.nn as tnn
from tandem_ext.functional.neuron import over_space
from tandem_ext.functional.products import LINEAR, Product
from tandem_snn.data import Split
from tandem_snn.nn.batch_norm import fold_norm
from tandem_snn.training.checkpoint import load_checkpoint, read_recipe


def synapses(product: Product, weight: Tensor, x: Tensor) -> float:
    """How many synapses the spikes x reach; x may be negative."""
    return product.direct(x.abs(), torch.ones_like(weight)).sum().item()


@torch.no_grad()
def simulate(net: nn.Module, x: Tensor, T: int, take_back: bool) -> tuple[Tensor, float, float]:
    """(answers after each step, synaptic operations, the twin's multiply-accumulates) of a batch of images."""
    layers = [module for module in net.modules() if isinstance(module, tnn.SpikingLayer | tnn.Flatten | tnn.Readout)]
    first = layers[0]
    operations = macs = 0.0
    potential: dict[Any, Tensor] = {}
    net_spikes: dict[Any, Tensor] = {}
    answers: list[Tensor] = []
    for t in range(T):
        train = x
        for layer in layers:
            if isinstance(layer, tnn.Flatten):
                train = train.flatten(1)
                continue
            product = LINEAR if isinstance(layer, tnn.Readout) else layer.synapses()
            u = product.direct(train, layer.weight)
            if t == 0:
                macs += u.numel() * layer.weight[0].numel()
            if layer is not first:
                operations += synapses(product, layer.weight, train)
            elif t == 0:
                operations = macs  # a real-valued input: its products count once
            if isinstance(layer, tnn.Readout):
                answers.append(u + layer.bias / T + (answers[-1] if answers else 0))
                continue
            scale, shift = fold_norm(layer.norm)
            if t == 0:
                potential[layer], net_spikes[layer] = layer.v_init + torch.zeros_like(u), torch.zeros_like(u)
            v = potential[layer] + over_space(scale, u.shape) * u + over_space(shift / T, u.shape)
            train = (v >= layer.threshold).float()
            if take_back:
                train -= ((v < 0) & (net_spikes[layer] > 0)).float()
            potential[layer] = v - layer.threshold * train
            net_spikes[layer] += train
    return torch.stack(answers), operations, macs


def measure(net: nn.Module, split: Split, T: int, take_back: bool) -> tuple[Tensor, float]:
    """(accuracy after each step in per cent, SynOps relative to the twin)."""
    right, operations, macs = torch.zeros(T), 0.0, 0.0
    for images, labels in split.batches(250):
        answers, own, twin = simulate(net, images, T, take_back)
        right += (answers.argmax(-1) == labels).sum(1)
        operations, macs = operations + own, macs + twin
    return 100 * right / len(split), operations / macs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--data-dir", default=os.environ.get("TANDEM_DATA"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| checkpoint | T | takes back | accuracy after each step | SynOps |\n| --- | --- | --- | --- | --- |")
    for path in arguments.checkpoints:
        recipe = read_recipe(path)
        data = recipe.load(arguments.data_dir)
        net = recipe.build(data, "SNN")
        load_checkpoint(path, net)
        for take_back in (False, True):
            accuracy, operations = measure(net.eval(), data.test, recipe.T, take_back)
            by_step = " ".join(f"{value:.2f}" for value in accuracy.tolist())
            answer = "yes" if take_back else "no"
            print(f"| {path} | {recipe.T} | {answer} | {by_step} | {operations:.2f} |", flush=True)


if __name__ == "__main__":
    main()
