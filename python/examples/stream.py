"""A digit moves across a field; the network follows, and computes only what changed.

python python/examples/stream.py [--epochs N] [--picture stream.png]
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tandem_snn as ts
import tandem_snn.nn as tnn

WIDTH = 24  # of the field; a digit has 8 x 8 pixels


def shown(digits: Tensor, left: Tensor) -> Tensor:
    """Digits [B, 1, 8, 8] in fields [B, 1, 8, WIDTH], from column ``left`` [B] on."""
    columns = torch.arange(WIDTH) - left.view(-1, 1, 1, 1)
    inside = columns.clamp(0, 7).expand(len(digits), 1, 8, WIDTH)
    return digits.gather(3, inside) * ((columns >= 0) & (columns < 8))


def trained(epochs: int) -> tuple[nn.Module, Tensor]:
    """A network that has learned digits anywhere in the field, and the digits that it has not seen."""
    torch.manual_seed(0)
    data = load_digits()
    images, labels = torch.from_numpy(data.images).float().unsqueeze(1) / 16, torch.from_numpy(data.target)
    neurons: tnn.NeuronOptions = {"norm": True, "timing": "window"}
    net = nn.Sequential(
        *(tnn.Encoder(T=4), tnn.Conv2d(1, 16, 3, padding=1, **neurons), tnn.MaxPool2d(2)),
        *(tnn.Conv2d(16, 32, 3, padding=1, **neurons), tnn.MaxPool2d(2), tnn.Flatten()),
        *(tnn.Linear(32 * 2 * WIDTH // 4, 64, **neurons), tnn.Readout(64, 10)),
    )
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(1500).split(50):
            optimizer.zero_grad()
            fields = shown(images[batch], torch.randint(0, WIDTH - 7, (len(batch),)))
            F.cross_entropy(net(fields), labels[batch]).backward()
            optimizer.step()
    return net.eval(), images[1500:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--picture")
    options = parser.parse_args()
    net, digits = trained(options.epochs)
    frozen = ts.freeze(net)

    frames = [shown(digits[3:4], torch.tensor([left])) for left in (0, *range(WIDTH - 7), WIDTH - 8)]
    costs = ts.measure.synops(frozen, frames)[:, 0].tolist()
    whole = [ts.measure.synops(net, frame).snn for frame in frames]
    for number, frame in enumerate(frames):
        answer, steps = frozen.settle(frame)
        assert torch.equal(answer, frozen(frame))  # bit for bit, without a reset
        print(
            f"frame {number:2}: class {answer.argmax().item()} after {steps.item()} steps, "
            f"{costs[number]:7} operations; evaluated anew {whole[number]:9.0f}"
        )
    if options.picture:
        import matplotlib.pyplot as plt

        figure, (video, cost) = plt.subplots(2, figsize=(6, 4), layout="constrained")
        video.imshow(sum(frames[1::4])[0, 0], cmap="gray_r")
        video.set(title="every fourth frame", xticks=[], yticks=[])
        cost.plot(costs, label="following")
        cost.plot(whole, label="evaluated anew")
        cost.set(xlabel="frame", ylabel="synaptic operations", ylim=0)
        cost.legend(frameon=False)
        figure.savefig(options.picture)


if __name__ == "__main__":
    main()
