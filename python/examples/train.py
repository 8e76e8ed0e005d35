"""Train a spiking network in your own loop, and the ANN with the same layers for comparison.

    python python/examples/train.py     # scikit-learn's handwritten digits, half a minute

It writes runs/example/snn.pt, which deploy.py reads.
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import tandem_snn as ts
import tandem_snn.nn as tnn


def spiking(T: int) -> nn.Sequential:
    return nn.Sequential(
        tnn.Encoder(T),                                       # the image is the current of T steps
        tnn.Conv2d(1, 32, 3, padding=1, norm=True),           # synapses, batch norm and neurons
        tnn.Conv2d(32, 64, 3, stride=2, padding=1, norm=True),
        tnn.Flatten(),
        tnn.Linear(64 * 16, 128, norm=True),
        tnn.Readout(128, 10),                                 # a linear map of the spike counts
    )  # fmt: skip


def ordinary() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 16, 128), nn.BatchNorm1d(128), nn.ReLU(),
        nn.Linear(128, 10),
    )  # fmt: skip


def digits() -> tuple[DataLoader[tuple[Tensor, ...]], Tensor, Tensor]:
    """Training batches, and the images and labels of the test."""
    loaded = load_digits()
    samples = TensorDataset(torch.from_numpy(loaded.images).float().unsqueeze(1) / 16, torch.from_numpy(loaded.target))
    training, test = random_split(samples, [1347, 450], torch.Generator().manual_seed(0))
    images, labels = test[:]
    return DataLoader(training, batch_size=64, shuffle=True, drop_last=True), images, labels


def train(net: nn.Module, batches: DataLoader[tuple[Tensor, ...]], epochs: int, lr: float) -> None:
    """Train a network. The same code trains the spiking network and the ANN."""
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * len(batches), pct_start=0.1)
    net.train()
    for epoch in range(epochs):
        for images, labels in batches:
            loss = nn.functional.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"  epoch {epoch + 1}: loss {loss.item():.3f}")


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the accuracy in per cent."""
    return 100 * (net.eval()(images).argmax(1) == labels).float().mean().item()


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/example"), help="folder of the results")
    return parser


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--T", type=int, default=8, help="time steps")
    options = parser.parse_args()
    torch.manual_seed(0)
    batches, images, labels = digits()

    snn = spiking(options.T)
    print("SNN")
    train(snn, batches, options.epochs, lr=2e-3)
    ann = ordinary()
    print("ANN")
    train(ann, batches, options.epochs, lr=2e-3)

    print(f"test accuracy: SNN {accuracy(snn, images, labels):.2f} %, ANN {accuracy(ann, images, labels):.2f} %")
    rates = ts.measure.firing_rates(snn, images)
    print("firing rates: " + ", ".join(f"layer {name} {100 * rate:.0f} %" for name, rate in rates.items()))
    print(f"synaptic operations: {ts.measure.synops(snn, images).ratio:.2f} of the ANN's")

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "snn.pt"
    torch.save({"T": options.T, "weights": snn.state_dict()}, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
