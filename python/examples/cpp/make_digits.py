"""Makes digits.tandem, a network with 8-bit weights for scikit-learn's digits, and digits.f32, ten of these digits.

python python/examples/cpp/make_digits.py
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import tandem_snn as ts
import tandem_snn.nn as tnn

HERE = Path(__file__).parent


def main() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    images, labels = torch.from_numpy(digits.images).float().unsqueeze(1) / 16, torch.from_numpy(digits.target)
    net = nn.Sequential(
        *(tnn.Encoder(T=8), tnn.Conv2d(1, 8, 3, padding=1, norm=True), tnn.MaxPool2d(2)),
        *(tnn.Conv2d(8, 16, 3, padding=1, norm=True), tnn.Flatten(), tnn.Linear(256, 32, norm=True)),
        tnn.Readout(32, 10),
    )
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(30):
        for batch in torch.randperm(1500).split(50):
            optimizer.zero_grad()
            F.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
    frozen = ts.freeze(net, weight_bits=8)
    right = (frozen(images[1500:]).argmax(1) == labels[1500:]).float().mean().item()
    print(f"{100 * right:.1f} % of {len(images) - 1500} digits that it was not trained on")
    frozen.save(HERE / "digits.tandem")
    (HERE / "digits.f32").write_bytes(images[1500:1510].numpy().tobytes())


if __name__ == "__main__":
    main()
