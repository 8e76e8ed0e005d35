"""What it gains to choose ways by the time that they took, undisturbed and beside a process that loads the processor.

    python tests/benchmarks/clock.py [--load "taskset -c 1 build/matrix_unit load"] [--cpu 0] [--seconds 20]

A process for each of TANDEM_PATH's values runs the same layers, in turns. Prints microseconds a call, the median of the
turns, in CPU time, which a slower matrix unit takes as well. `--load` is a command that runs in the second half.
Without a matrix unit the layers have timing "window", whose counts are multiplied as bytes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import time

import torch

import tandem_ext as te

PRODUCTS, TIMING = ("matrix", "step") if te.build_info()["byte_products"] == "amx" else ("dense", "window")
PATHS = ("lists", PRODUCTS, "model", "")
NAMES = (*PATHS[:3], "measured")


def layers() -> dict[str, object]:
    """Calls by name: what sparse and dense inputs make of linear layers and convolutions."""
    torch.manual_seed(0)
    calls: dict[str, object] = {}
    for rate in (0.02, 0.05, 0.1, 0.25):
        spikes = te.SpikeTrain.from_dense((torch.rand(8, 128, 784) < rate).float())
        weight = torch.randn(800, 784) / 28
        calls[f"linear 784-800, 128 rows, {rate:.0%}"] = lambda s=spikes, w=weight: te.functional.linear_if(
            s, w, timing=TIMING
        )
        image = te.SpikeTrain.from_dense((torch.rand(8, 4, 64, 32, 32) < rate).float())
        kernel = torch.randn(64, 64, 3, 3) / 24
        calls[f"conv 64-64 3x3, 4 images, {rate:.0%}"] = lambda s=image, w=kernel: te.functional.conv2d_if(
            s, w, padding=1, timing=TIMING
        )
    return calls


def serve() -> None:
    """Runs the layer whose number comes in for a while, and answers with microseconds a call."""
    torch.set_num_threads(1)
    calls = list(layers().values())
    for line in sys.stdin:
        call, until, count = calls[int(line)], time.process_time() + 0.1, 0
        start = now = time.process_time()
        while now < until:
            call()
            count += 1
            now = time.process_time()
        print(1e6 * (now - start) / count, flush=True)


def turns(servers: list[subprocess.Popen[str]], seconds: float) -> list[list[float]]:
    """The median of each layer, by server."""
    names = list(layers())
    times: list[list[list[float]]] = [[[] for _ in servers] for _ in names]
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or not times[0][0]:
        for number in range(len(names)):
            for k, server in enumerate(servers):
                assert server.stdin is not None
                assert server.stdout is not None
                server.stdin.write(f"{number}\n")
                server.stdin.flush()
                times[number][k].append(float(server.stdout.readline()))
    return [[statistics.median(one) for one in row] for row in times]


def main() -> None:
    """Parses the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", help="a command that loads the matrix unit, in the second half")
    parser.add_argument("--cpu", type=int, help="the core to run on")
    parser.add_argument("--seconds", type=float, default=20, help="of each half")
    args = parser.parse_args()
    if args.cpu is not None:
        os.sched_setaffinity(0, {args.cpu})
    command = [sys.executable, "-c", "import clock; clock.serve()"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(os.path.abspath(__file__)), *sys.path])}
    servers = [
        subprocess.Popen(
            command, env={**env, "TANDEM_PATH": path}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for path in PATHS
    ]
    for load in [None, args.load] if args.load else [None]:
        neighbour = subprocess.Popen(shlex.split(load)) if load else None
        print(f"\n{'beside ' + load if load else 'undisturbed':<38}" + "".join(f"{name:>10}" for name in NAMES))
        for name, row in zip(layers(), turns(servers, args.seconds), strict=True):
            print(f"{name:<38}" + "".join(f"{us:>10.0f}" for us in row))
        if neighbour is not None:
            neighbour.kill()
            neighbour.wait()
    for server in servers:
        server.terminate()


if __name__ == "__main__":
    main()
