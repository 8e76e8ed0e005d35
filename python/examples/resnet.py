"""A ResNet of torchvision as a spiking network: converted, then distilled from itself for one epoch.

    python python/examples/resnet.py --data-dir DIR                # Fashion-MNIST, which torchvision downloads
    python python/examples/resnet.py --images DIR/cifar10-jpeg     # your own: train/CLASS/*.jpg, test/CLASS/*.jpg

It trains the ANN, converts it at each T, trains each spiking network for one epoch with the ANN as its teacher, and
beside them the ANN itself for one more epoch. --out writes the accuracies.
"""

import argparse
import copy
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import datasets
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.transforms.v2.functional import pil_to_tensor

import tandem_snn as ts
from tandem_snn.info import origin

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of logits, images, labels


class SmallResNet(ResNet):
    """torchvision's, with a quarter of its channels and a first convolution for small images."""

    def __init__(self, blocks: list[int], channels: int, classes: int) -> None:
        super().__init__(BasicBlock, blocks, classes)
        self.conv1 = nn.Conv2d(channels, 16, 3, stride=2, padding=1, bias=False)
        self.bn1, self.maxpool, self.fc = nn.BatchNorm2d(16), nn.Identity(), nn.Linear(128, classes)

    def _make_layer(self, block: Any, planes: int, *arguments: Any, **keywords: Any) -> nn.Sequential:
        if planes == 64:
            self.inplanes = 16  # the first stage follows the first convolution
        return super()._make_layer(block, planes // 4, *arguments, **keywords)


class Samples:
    """Images [N, C, H, W] as bytes, which become numbers of unit variance, and their labels."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images.contiguous(memory_format=torch.channels_last), labels

    def take(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The images with these indices as numbers, and their labels."""
        return self.images[chosen].float().sub(128).div(64), self.labels[chosen]

    def epoch(self, seed: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """In random order, half of them mirrored."""
        generator = torch.Generator().manual_seed(seed)
        for chosen in torch.randperm(len(self.labels), generator=generator).split(batch):
            images, labels = self.take(chosen)
            mirrored = torch.rand(len(chosen), 1, 1, 1, generator=generator) < 0.5
            yield torch.where(mirrored, images.flip(-1), images), labels


def load(options: argparse.Namespace) -> tuple[Samples, Samples]:
    """Samples for training and for the test."""
    if options.images is None:
        both = [datasets.FashionMNIST(options.data_dir, train, download=True) for train in (True, False)]
        return tuple(Samples(part.data.unsqueeze(1), part.targets) for part in both)
    found = [datasets.ImageFolder(options.images / part, pil_to_tensor) for part in ("train", "test")]
    return tuple(Samples(torch.stack([x for x, _ in part]), torch.tensor(part.targets)) for part in found)


def some(samples: Samples, number: int | None) -> Samples:
    """So many of them, drawn at random."""
    chosen = torch.randperm(len(samples.labels), generator=torch.Generator().manual_seed(0))[:number]
    return Samples(samples.images[chosen], samples.labels[chosen])


def train(net: nn.Module, samples: Samples, epochs: int, lr: float, loss: Loss, seed: int = 0) -> None:
    steps = epochs * -(-len(samples.labels) // 128)
    optimizer = torch.optim.Adam(net.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.25)
    net.train()
    for epoch in range(epochs):
        for images, labels in samples.epoch(seed + epoch, 128):
            optimizer.zero_grad()
            loss(net(images), images, labels).backward()
            optimizer.step()
            schedule.step()


def cross_entropy(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels)


def distilled(teacher: nn.Module, tau: float = 2.0) -> Loss:
    """The mean of the cross-entropies with the labels and with the teacher's answers, these softened by tau."""

    def loss(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            answers = (teacher(images) / tau).softmax(1)
        return 0.5 * F.cross_entropy(logits, labels) + 0.5 * tau**2 * F.cross_entropy(logits / tau, answers)

    return loss


@torch.no_grad()
def accuracy(net: nn.Module, samples: Samples) -> float:
    """In per cent."""
    right = 0
    for chosen in torch.arange(len(samples.labels)).split(500):
        images, labels = samples.take(chosen)
        right += int((net.eval()(images).argmax(1) == labels).sum())
    return 100 * right / len(samples.labels)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where Fashion-MNIST is, or will be")
    parser.add_argument("--images", type=Path, help="a folder of your own images")
    parser.add_argument("--blocks", type=int, nargs=4, default=[2, 2, 2, 2], help="in each stage; ResNet-18: 2 2 2 2")
    parser.add_argument("--epochs", type=int, default=10, help="of the ANN")
    parser.add_argument("--samples", type=int, help="for training; default: all")
    parser.add_argument("--T", type=int, nargs="+", default=[2, 4, 8], help="time steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file for the accuracies")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    training, test = load(options)
    training = some(training, options.samples)
    channels, classes = training.images.shape[1], int(training.labels.max()) + 1

    ann = SmallResNet(options.blocks, channels, classes).to(memory_format=torch.channels_last)
    train(ann, training, options.epochs, 2e-3, cross_entropy)
    result: dict[str, Any] = {"ann": accuracy(ann, test), "T": {}}
    print(f"ANN: {result['ann']:.2f} %", flush=True)

    images, _ = next(training.epoch(0, 1000))
    for T in options.T:
        # Without the copies the two would share their parameters.
        snn = ts.convert(copy.deepcopy(ann), T, data=images.split(100))
        before = accuracy(snn, test)
        train(snn, training, 1, 5e-4, distilled(copy.deepcopy(ann).eval()), seed=options.epochs)
        after = accuracy(snn, test)
        result["T"][str(T)] = {"converted": before, "distilled": after}
        print(f"T = {T}: converted {before:.2f} %, after one distilled epoch {after:.2f} %", flush=True)

    further = copy.deepcopy(ann)
    train(further, training, 1, 5e-4, distilled(copy.deepcopy(ann).eval()), seed=options.epochs)
    result["ann_further_epoch"] = accuracy(further, test)
    print(f"ANN, after one further epoch: {result['ann_further_epoch']:.2f} %")
    if options.out is not None:
        given = sys.argv[1:] if arguments is None else arguments
        result |= {"samples": len(training.labels)} | origin(
            shlex.join(["python", "python/examples/resnet.py", *given])
        )
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
