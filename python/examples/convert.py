"""Convert a trained ANN to a spiking network, without training and after one epoch of the tandem rule.

python python/examples/convert.py                                        # handwritten digits, half a minute
python python/examples/convert.py --data fashion-mnist --data-dir DIR
"""

from __future__ import annotations

import copy

import torch

import tandem_snn as ts
from train import accuracy, arguments, ordinary, train


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--epochs", type=int, default=10, help="of the ANN")
    parser.add_argument("--T", type=int, nargs="+", default=[4, 8, 16], help="time steps")
    options = parser.parse_args()
    torch.manual_seed(0)
    data = ts.data.load(options.data, options.data_dir)

    ann = ordinary(data)
    print("ANN")
    train(ann, data, options.epochs, lr=2e-3)
    print(f"test accuracy of the ANN: {accuracy(ann, data):.2f} %")

    for T in options.T:
        images = next(data.train.batches(1000))  # thresholds come from the activations of real images
        snn = ts.convert(copy.deepcopy(ann), T, data=[images])  # without the copy the two would share their parameters
        print(f"T = {T}: converted {accuracy(snn, data):.2f} %")
        train(snn, data, epochs=1, lr=5e-4)
        print(f"T = {T}: after one tandem epoch {accuracy(snn, data):.2f} %")

    print(f"the last one as an ANN again: {accuracy(ts.to_ann(snn), data):.2f} %")


if __name__ == "__main__":
    main()
