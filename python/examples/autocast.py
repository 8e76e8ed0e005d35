"""Train in mixed precision: products in bfloat16, weights and neurons' potentials in float32; on a GPU or the CPU.

python python/examples/autocast.py
"""

import argparse

import torch
import torch.nn.functional as F

from train import accuracy, digits, spiking


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    batches, images, labels = digits()
    net = spiking(T=8).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(options.epochs):
        for x, y in batches:
            with torch.autocast(device, torch.bfloat16):
                loss = F.cross_entropy(net(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print(f"on {device}: test accuracy {accuracy(net, images.to(device), labels.to(device)):.2f} %")


if __name__ == "__main__":
    main()
