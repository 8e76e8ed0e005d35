"""Makes counts.tandem and pixels.tandem, networks for scikit-learn's digits, and prints the hashes of their logits.

The first reads spike counts, the second images of bytes with weights of 8 bits. A file that is there stays. The first
1,347 digits are for training. Torch's gradients differ from machine to machine, so a new file has new hashes.
"""

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn

FILES = {name: Path(__file__).with_name(f"{name}.tandem") for name in ("counts", "pixels")}


def digits():
    """Counts 0..16 [1797, 1, 8, 8], and labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.from_numpy(data.images).byte().unsqueeze(1), torch.from_numpy(data.target)


def generated():
    """1,000 images of counts, each with more of them than the one before."""
    noise = torch.arange(64000) * 2654435761 % 2**32
    noise = (noise * (noise >> 16) % 2**32 >> 9).view(1000, 1, 8, 8)
    return (noise % (1 + torch.arange(1000).view(-1, 1, 1, 1) // 60)).byte()


def shown(name, counts):
    """The input of a network."""
    return te.SpikeTrain.from_counts(counts, T=16) if name == "counts" else 15 * counts


def logits(name, net, counts):
    return torch.cat([net(shown(name, part)) for part in counts.split(150)])


def digest(logits):
    return hashlib.sha256(logits.numpy().astype("<f4").tobytes()).hexdigest()


def main():
    counts, labels = digits()
    for name, file in FILES.items():
        if file.exists():
            continue
        torch.manual_seed(0)
        rows = 3 if name == "counts" else 2  # the kernels of 3 overlap, which has no integer form
        net = nn.Sequential(
            *([tnn.Encoder(16, "pixels", std=0.5)] if name == "pixels" else []),
            *(tnn.Conv2d(1, 12, 3, padding=1, norm=True, timing="window"), tnn.MaxPool2d(2)),
            tnn.Conv2d(12, 24, 3, padding=1, norm=True, timing="window"),
            tnn.Residual(tnn.Conv2d(24, 24, 3, padding=1, groups=4, norm=True, timing="window")),
            *(tnn.AdaptiveAvgPool2d((rows, 1)), tnn.Flatten(), tnn.Readout(24 * rows, 10)),
        )
        optimizer = torch.optim.Adam(net.parameters(), 4e-3)
        for _ in range(40):
            for batch in torch.randperm(1347).split(50):
                optimizer.zero_grad()
                F.cross_entropy(net(shown(name, counts[batch])), labels[batch]).backward()
                optimizer.step()
        bits = 8 if name == "pixels" else None
        frozen = ts.freeze(net.eval(), bits, T=16, example=shown(name, counts[:1]))
        answers = logits(name, frozen, counts[1347:])
        frozen.save(file)
        print(name, f"{(answers.argmax(1) == labels[1347:]).double().mean():.1%}", digest(answers))
        print(digest(logits(name, frozen, generated())))


if __name__ == "__main__":
    main()
