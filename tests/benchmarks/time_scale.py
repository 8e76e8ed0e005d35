"""T as a scale: what becomes of the loss and of training when the counts that a readout sees grow with T.

python tests/benchmarks/time_scale.py
"""

from __future__ import annotations

from statistics import fmean

import torch
import torch.nn.functional as F
from torch import nn

import tandem_snn as ts
import tandem_snn.nn as tnn

STEPS = (2, 8, 32, 128)
GAINS = {"1": lambda T: 1.0, "8/T": lambda T: 8 / T, "1/T": lambda T: 1 / T}
EPOCHS, SEEDS = 10, 2


def network(T: int, norm: bool, gain: float) -> nn.Module:
    """64-64-64-10, of which the readout sees the last layer's counts times the gain."""
    net = nn.Sequential(
        tnn.Encoder(T),
        tnn.Flatten(),
        tnn.Linear(64, 64, norm=norm),
        tnn.Linear(64, 64, norm=norm, gain=gain),
        tnn.Readout(64, 10),
    )
    if norm:
        tnn.init_gamma_(net)
    return net


def measure(T: int, norm: bool, gain: float, sgd: bool, data: ts.data.Dataset) -> tuple[float, float]:
    """(cross-entropy before training, accuracy after it in per cent) on the test split, means over the seeds."""
    x, y = next(data.test.batches(1000))
    losses, accuracies = [], []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        net = network(T, norm, gain)
        with torch.no_grad():
            losses.append(F.cross_entropy(net(x), y).item())
        optimizer = torch.optim.SGD(net.parameters(), 0.05) if sgd else torch.optim.Adam(net.parameters(), 2e-3)
        for epoch in range(EPOCHS):
            for images, labels in data.train.batches(64, seed=epoch):
                optimizer.zero_grad()
                F.cross_entropy(net(images), labels).backward()
                optimizer.step()
        net.eval()
        accuracies.append(100 * (net(x).argmax(1) == y).double().mean().item())
    return fmean(losses), fmean(accuracies)


if __name__ == "__main__":
    digits = ts.data.load("digits", validation=False)
    print("| batch norm | T | " + " | ".join(f"gain {name}" for name in GAINS) + " |")
    print("| --- |" + " --- |" * (1 + len(GAINS)))
    for norm in False, True:
        for T in STEPS:
            cells = []
            for gain in GAINS.values():
                (loss, sgd), (_, adam) = (measure(T, norm, gain(T), method, digits) for method in (True, False))
                cells.append(f"{loss:.1f}, {sgd:.1f}, {adam:.1f}")
            print(f"| {'yes' if norm else 'no'} | {T} | {' | '.join(cells)} |", flush=True)
