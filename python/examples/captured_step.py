"""Train by a whole step that was captured as a CUDA graph, so that the host launches once; or on the CPU, uncaptured.

    python python/examples/captured_step.py

Numbers such as the learning rate are fixed in the graph, tensors are not; Adam needs ``capturable=True``.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tandem_snn.nn as tnn

Step = Callable[[], Tensor]


def make_step(device: str) -> tuple[nn.Module, Tensor, Tensor, Step]:
    """A network, the images and labels that each step reads, and the step, which returns its loss."""
    net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(64, 128, norm=True), tnn.Linear(128, 128), tnn.Readout(128, 10))
    net.to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    images, labels = torch.rand(64, 64, device=device), torch.arange(64, device=device) % 10

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return net, images, labels, step


def capture(step: Step) -> Step:
    """Take a step, capture another one, which trains nothing, and return what takes one more at each call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # it makes what must not be made while capturing
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a DataLoader's threads go on
        loss = step()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    data = load_digits()
    x, y = torch.from_numpy(data.data).float().to(device) / 16, torch.from_numpy(data.target).to(device)
    net, images, labels, step = make_step(device)
    images.copy_(x[:64])
    labels.copy_(y[:64])  # for the step that a capture takes
    step = capture(step) if device == "cuda" else step
    for epoch in range(options.epochs):
        for batch in torch.randperm(1347, device=device)[:1344].view(-1, 64):
            images.copy_(x[batch])
            labels.copy_(y[batch])
            loss = step()
        print(f"  epoch {epoch + 1}: loss {loss.item():.3f}")
    with torch.no_grad():
        right = (net.eval()(x[1347:]).argmax(1) == y[1347:]).float().mean()
    print(f"on {device}: test accuracy {100 * right:.2f} %")


if __name__ == "__main__":
    main()
