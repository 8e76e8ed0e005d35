"""How far do other simulators' answers to an exported file lie from ours, on real images with trained weights?

    python tests/benchmarks/nir_consumers.py --data-dir DIR

trains a small convolutional network on 20,000 images of Fashion-MNIST for one epoch (T = 8), exports it, and runs the
file on 500 test images in each simulator: as its own import has it, and with the neuron put right. docs/nir.md has the
table it prints.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch

from tandem_snn.data import load

sys.path.insert(0, str(Path(__file__).parents[1]))
from networks import differing, own_counts, trained_on_fashion_mnist
from test_nir import by_nirtorch, by_norse, by_sinabs, by_snntorch, by_spikingjelly, counts_of, file_of

IMAGES, T = 500, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default=os.environ.get("TANDEM_DATA"))
    data = load("fashion-mnist", parser.parse_args().data_dir, validation=False)
    torch.set_num_threads(1)
    net = trained_on_fashion_mnist(data, T)
    x, labels = next(data.test.batches(IMAGES))
    counts, answer = own_counts(net, x)

    def report(simulator: str, spikes: list[torch.Tensor], theirs: torch.Tensor) -> None:
        shares = ", ".join(f"{100 * share:.3g} %" for share in differing(counts, spikes))
        right = 100 * (theirs.argmax(1) == labels).double().mean().item()
        print(f"| {simulator} | {shares} | {right:.1f} % |", flush=True)

    print("| simulator | neurons with another count, by layer | accuracy |\n| --- | --- | --- |")
    report("tandem_snn", counts, answer)
    with tempfile.TemporaryDirectory() as folder:
        report("nirtorch, primitives", *counts_of(*by_nirtorch(file_of(net, x, Path(folder), neurons="primitives")), x))
        path = file_of(net, x, Path(folder))
        report("SpikingJelly, v_reset=None", *counts_of(*by_spikingjelly(path), x))
        report("snnTorch, beta=1", *counts_of(*by_snntorch(path), x))
        report("sinabs, single spikes, no floor", *counts_of(*by_sinabs(path, len(x)), x))
        report("SpikingJelly, its own import", *counts_of(*by_spikingjelly(path, soft=False), x))
        report("snnTorch, its own import", *counts_of(*by_snntorch(path, soft=False), x))
        report("sinabs, its own import", *counts_of(*by_sinabs(path, len(x), soft=False), x))
        report("Norse, its own import", *counts_of(*by_norse(path), x))


if __name__ == "__main__":
    main()
