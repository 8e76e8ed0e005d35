"""Convert a trained ANN to a spiking network, without training and after one epoch of the tandem rule.

python python/examples/convert.py     # scikit-learn's handwritten digits, half a minute
"""

from __future__ import annotations

import copy

import torch

import tandem_snn as ts
from train import accuracy, arguments, digits, ordinary, train


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--epochs", type=int, default=10, help="of the ANN")
    parser.add_argument("--T", type=int, nargs="+", default=[4, 8, 16], help="time steps")
    options = parser.parse_args()
    torch.manual_seed(0)
    batches, images, labels = digits()

    ann = ordinary()
    print("ANN")
    train(ann, batches, options.epochs, lr=2e-3)
    print(f"test accuracy of the ANN: {accuracy(ann, images, labels):.2f} %")

    for T in options.T:
        # Thresholds come from the activations of real images. Without the copy the two would share their parameters.
        snn = ts.convert(copy.deepcopy(ann), T, data=batches)
        print(f"T = {T}: converted {accuracy(snn, images, labels):.2f} %")
        train(snn, batches, epochs=1, lr=5e-4)
        print(f"T = {T}: after one tandem epoch {accuracy(snn, images, labels):.2f} %")

    print(f"the last one as an ANN again: {accuracy(ts.to_ann(snn), images, labels):.2f} %")


if __name__ == "__main__":
    main()
