"""How far do other simulators' answers to an exported file lie from ours, on real images with trained weights?

    python tests/benchmarks/nir_consumers.py --data-dir DIR

trains a small convolutional network on 20,000 images of Fashion-MNIST for one epoch (T = 8), exports it, and runs the
file on 500 test images in each simulator: as its own import has it, and with the neuron put right. It writes
docs/results/nir.json; `--table` writes the table in docs/nir.md from that.
"""

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from documents import program

sys.path.insert(0, str(Path(__file__).parents[1]))
from networks import differing, own_counts, trained_on_fashion_mnist
from nir_simulators import by_nirtorch, by_norse, by_sinabs, by_snntorch, by_spikingjelly, counts_of, file_of

IMAGES, T = 500, 8
PACKAGES = ("nir", "nirtorch", "norse", "sinabs", "snntorch", "spikingjelly")


def table(result: dict[str, Any]) -> str:
    lines = ["| simulator | neurons with another count, by layer | accuracy |", "| --- | --- | --- |"]
    for row in result["rows"]:
        shares = ", ".join(f"{100 * share:.2g} %" for share in row["differing"])
        lines.append(f"| {row['simulator']} | {shares} | {100 * row['accuracy']:.1f} % |")
    return "\n".join(lines)


def measure(arguments: Any, write: Any) -> None:
    net, x, labels = trained_on_fashion_mnist(arguments.data_dir, T, IMAGES)
    counts, answer = own_counts(net, x)
    rows: list[dict[str, Any]] = []

    def add(simulator: str, shares: list[float], theirs: torch.Tensor) -> None:
        accuracy = (theirs.argmax(1) == labels).double().mean().item()
        rows.append({"simulator": simulator, "differing": shares, "accuracy": accuracy})
        print(rows[-1], flush=True)

    def run(simulator: str, consumer: Any) -> None:
        spikes, theirs = counts_of(*consumer, x)
        add(simulator, differing(counts, spikes), theirs)

    add("tandem_snn", [], answer)
    with tempfile.TemporaryDirectory() as folder:
        run('nirtorch, `neurons="primitives"`', by_nirtorch(file_of(net, x, Path(folder), neurons="primitives")))
        path = file_of(net, x, Path(folder))
        run("SpikingJelly, its import, then `v_reset=None`", by_spikingjelly(path))
        run("sinabs, its import, then `spike_fn=SingleSpike`, `min_v_mem=None`", by_sinabs(path, len(x)))
        run("snnTorch, its import, then `beta=1`, `reset_delay=True`", by_snntorch(path))
        alone = by_sinabs(path, len(x), soft=False)
        run("sinabs, its import alone (several spikes a step, a floor at -ϑ)", alone)
        run("snnTorch, its import alone (leak of 0.9)", by_snntorch(path, soft=False))
        run("SpikingJelly, its import alone (hard reset)", by_spikingjelly(path, soft=False))
        run("Norse, its import (hard reset; its IF has no other)", by_norse(path))
    packages = {name: version(name) for name in PACKAGES}
    write({"packages": packages, "images": IMAGES, "T": T, "rows": rows})


if __name__ == "__main__":
    program(__file__, __doc__, "nir.md", "nir", measure, table)
