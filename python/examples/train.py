"""Train a spiking network in your own loop, and the ANN with the same layers for comparison.

    python python/examples/train.py                                          # handwritten digits, half a minute
    python python/examples/train.py --data fashion-mnist --data-dir DIR      # files as torchvision lays them out

It writes runs/example/snn.pt, which deploy.py reads.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

import tandem_snn as ts
import tandem_snn.nn as tnn


def spiking(data: ts.data.Dataset, T: int) -> nn.Sequential:
    channels, height, width = data.shape
    return nn.Sequential(
        tnn.Encoder(T),                                       # the image is the current of each of T steps
        tnn.Conv2d(channels, 32, 3, padding=1, norm=True),    # synapses, batch norm and neurons
        tnn.Conv2d(32, 64, 3, stride=2, padding=1, norm=True),
        tnn.Flatten(),
        tnn.Linear(64 * ((height + 1) // 2) * ((width + 1) // 2), 128, norm=True),
        tnn.Readout(128, data.classes),                       # a linear map of the spike counts
    )  # fmt: skip


def ordinary(data: ts.data.Dataset) -> nn.Sequential:
    channels, height, width = data.shape
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * ((height + 1) // 2) * ((width + 1) // 2), 128), nn.BatchNorm1d(128), nn.ReLU(),
        nn.Linear(128, data.classes),
    )  # fmt: skip


def train(net: nn.Module, data: ts.data.Dataset, epochs: int, lr: float) -> None:
    """Train a network. The same code trains the spiking network and the ANN."""
    batch = 64
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    steps = epochs * (len(data.train) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    net.train()
    for epoch in range(epochs):
        for images, labels in data.train.batches(batch, seed=epoch):
            loss = nn.functional.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"  epoch {epoch + 1}: loss {loss.item():.3f}")


@torch.no_grad()
def accuracy(net: nn.Module, data: ts.data.Dataset) -> float:
    """Return the test accuracy in per cent."""
    net.eval()
    right = sum(int((net(images).argmax(1) == labels).sum()) for images, labels in data.test.batches(500))
    return 100 * right / len(data.test)


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="digits, mnist, fashion-mnist or cifar10")
    parser.add_argument("--data-dir", type=Path, help="folder of the data sets' files")
    parser.add_argument("--out", type=Path, default=Path("runs/example"), help="folder of the results")
    return parser


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--T", type=int, default=8, help="time steps")
    options = parser.parse_args()
    torch.manual_seed(0)
    data = ts.data.load(options.data, options.data_dir)

    snn = spiking(data, options.T)
    tnn.init_gamma_(snn)  # spread the spike counts over 0..T
    print("SNN")
    train(snn, data, options.epochs, lr=2e-3)
    ann = ordinary(data)
    print("ANN")
    train(ann, data, options.epochs, lr=2e-3)

    images, _ = next(data.test.batches(500))
    print(f"test accuracy: SNN {accuracy(snn, data):.2f} %, ANN {accuracy(ann, data):.2f} %")
    rates = ts.measure.firing_rates(snn, images)
    print("firing rates: " + ", ".join(f"layer {name} {100 * rate:.0f} %" for name, rate in rates.items()))
    print(f"synaptic operations: {ts.measure.synops(snn, images).ratio:.2f} of the ANN's")

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "snn.pt"
    torch.save({"data": options.data, "T": options.T, "weights": snn.state_dict()}, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
