"""Is a training step faster when it is compiled? Forward, loss, backward and optimizer, one thread, process time.

    python tests/benchmarks/compiled_step.py

prints the time of an eager step and the ratio of a compiled one to it, median and quartiles, for three networks.
"""

from __future__ import annotations

from statistics import median

import torch
import torch.nn.functional as F

from tandem_snn import create_model
from tandem_snn.bench.timing import Protocol, Run, interleave, spread

CASES = {"cnn": ((1, 28, 28), 64), "FC800-FC800": ((784,), 128), "FC64-FC64": ((64,), 32)}


def step(architecture: str, shape: tuple[int, ...], batch: int, compiled: bool) -> Run:
    torch.manual_seed(0)
    net = create_model(architecture, shape=shape, classes=10, T=8)
    forward = torch.compile(net, fullgraph=True) if compiled else net
    optimizer = torch.optim.Adam(net.parameters())
    images, labels = torch.rand(batch, *shape), torch.randint(10, (batch,))

    def run(i: int) -> None:
        optimizer.zero_grad()
        F.cross_entropy(forward(images), labels).backward()
        optimizer.step()

    return run


def main() -> None:
    torch.set_num_threads(1)
    for architecture, (shape, batch) in CASES.items():
        candidates = {name: step(architecture, shape, batch, name == "compiled") for name in ("eager", "compiled")}
        timings = interleave(candidates, Protocol(rounds=40))
        eager, compiled = timings["eager"], timings["compiled"]
        ratio = spread(compiled, eager)
        print(
            f"{architecture}, batch {batch}: eager {1e3 * median(eager):.2f} ms, "
            f"compiled {ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]",
            flush=True,
        )


if __name__ == "__main__":
    main()
