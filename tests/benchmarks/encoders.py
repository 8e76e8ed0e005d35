"""Three ways to give an image its time steps: its pixels as a current, as Poisson spikes, as the time of one spike.

    python tests/benchmarks/encoders.py            # handwritten digits, T = 8 and 32, three seeds, three minutes

The same network for each: test accuracy, spikes per pixel and step, and the time of an epoch beside direct encoding's.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor, nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn

EPOCHS, SEEDS = 8, 3


def direct(x: Tensor, T: int) -> te.ConstantInput:
    return te.ConstantInput(x, T)


def poisson(x: Tensor, T: int) -> te.SpikeTrain:
    return te.SpikeTrain.from_dense(torch.rand(T, *x.shape) < x)


def latency(x: Tensor, T: int) -> te.SpikeTrain:
    steps = torch.arange(T).view(-1, *[1] * x.dim())
    return te.SpikeTrain.from_dense(steps == ((1 - x) * (T - 1)).round())


def network(T: int) -> nn.Sequential:
    net = nn.Sequential(
        tnn.Conv2d(1, 16, 3, padding=1, norm=True),
        tnn.Conv2d(16, 32, 3, stride=2, padding=1, norm=True),
        tnn.Flatten(),
        tnn.Linear(512, 64, norm=True),
        tnn.Readout(64, 10),
    )
    return tnn.init_gamma_(net, T)


def run(encode, T: int, seed: int) -> tuple[float, float, float]:
    """Test accuracy, per cent; spikes per pixel and step; seconds of CPU per epoch."""
    torch.manual_seed(seed)
    data = ts.data.load("digits", task="regression")  # whose images are in 0..1
    labels = ts.data.load("digits")
    net = network(T)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    start = time.process_time()
    for epoch in range(EPOCHS):
        batches = zip(data.train.batches(64, seed=epoch), labels.train.batches(64, seed=epoch), strict=True)
        for (x, _), (_, y) in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(encode(x, T)), y).backward()
            optimizer.step()
    seconds = (time.process_time() - start) / EPOCHS
    net.eval()
    (x, _), (_, y) = next(data.test.batches(450)), next(labels.test.batches(450))
    with torch.no_grad():
        signal = encode(x, T)
        right = (net(signal).argmax(1) == y).double().mean().item()
    return 100 * right, signal.counts.mean().item() / T, seconds


def main() -> None:
    print("| T | encoding | test accuracy, % | spikes per pixel and step | time of an epoch |")
    print("| --- | --- | --- | --- | --- |")
    for T in 8, 32:
        base = 0.0
        for encode in direct, poisson, latency:
            accuracies, rates, seconds = zip(*(run(encode, T, seed) for seed in range(SEEDS)), strict=True)
            base = base or statistics.median(seconds)
            spread = f"{statistics.mean(accuracies):.1f} ± {statistics.stdev(accuracies):.1f}"
            rate = "a current" if encode is direct else f"{statistics.mean(rates):.3f}"
            print(
                f"| {T} | {encode.__name__} | {spread} | {rate} | {statistics.median(seconds) / base:.2f} |", flush=True
            )


if __name__ == "__main__":
    main()
