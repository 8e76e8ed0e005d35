"""A spiking network in the browser: draw a digit and watch the counts of its neurons settle, step by step.

    python python/examples/web/serve.py

It trains a small network on scikit-learn's digits, whose pixels 0 to 16 are counts, writes it as C of integers,
compiles that to WebAssembly (`pip install ziglang`) and serves the page on localhost. The page shows a hash of the
logits beside that of Python's.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from sklearn.datasets import load_digits

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn

HERE, T = Path(__file__).parent, 16
EXPORTS = ("net_step", "net_logits", "net_moves", "__heap_base")


def trained(epochs):
    """The frozen network, and the digits that it was not trained on as counts."""
    torch.manual_seed(0)
    digits = load_digits()
    order = torch.randperm(len(digits.images))
    counts = torch.from_numpy(digits.images).float().unsqueeze(1)[order]
    labels = torch.from_numpy(digits.target)[order]
    neurons = {"norm": True, "timing": "window"}
    net = torch.nn.Sequential(
        tnn.Encoder(T, mode="events"), tnn.Conv2d(1, 16, 3, padding=1, **neurons),
        tnn.Conv2d(16, 32, 3, stride=2, padding=1, **neurons), tnn.Flatten(), tnn.Linear(512, 64, **neurons),
        tnn.Readout(64, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(1347).split(64):
            optimizer.zero_grad()
            answers = net(te.SpikeTrain.from_counts(counts[batch], T))
            torch.nn.functional.cross_entropy(answers, labels[batch]).backward()
            optimizer.step()
    test = te.SpikeTrain.from_counts(counts[1347:], T)
    frozen = ts.freeze(net.eval(), weight_bits=8)
    right = (frozen(test).argmax(1) == labels[1347:]).float().mean()
    print(f"{right:.1%} of {len(test)} test digits are right")
    return frozen, test


def answer(frozen, counts):
    """What the page compares: the logits for the counts of a drawing, and the SHA-256 of their bytes."""
    x = te.SpikeTrain.from_counts(torch.tensor(counts, dtype=torch.float32).view(1, *frozen.shape), T)
    logits = frozen(x)[0].numpy()
    return {"logits": logits.tolist(), "sha256": hashlib.sha256(logits.tobytes()).hexdigest()}


def build(frozen, test, folder):
    """Write the page, the network as WebAssembly and what the page must know about both."""
    footprint = ts.to_c(frozen, folder)
    command = ["-target", "wasm32-freestanding", "-O2", "-DNET_STEP", "-nostdlib", "-Wl,--no-entry"]
    exports = [f"-Wl,--export={name}" for name in EXPORTS]
    compiler = [sys.executable, "-m", "ziglang", "cc"]
    subprocess.run([*compiler, *command, *exports, "-o", folder / "net.wasm", folder / "net.c"], check=True)
    shapes = {"Convolution 1": [8, 8, 16], "Convolution 2": [4, 4, 32], "Linear": [1, 1, 64]}
    samples = [row.flatten().int().tolist() for row in test.counts[:8]]
    facts = {"T": T, "layers": shapes, "sums": 10, "samples": samples, **footprint._asdict()}
    (folder / "net.json").write_text(json.dumps(facts))
    for name in ("index.html", "net.js"):
        shutil.copy(HERE / name, folder)


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder, and Python's answer to the counts that are posted."""

    def __init__(self, frozen, *arguments, **options):
        self.frozen = frozen
        super().__init__(*arguments, **options)

    def do_POST(self):
        counts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps(answer(self.frozen, counts)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/web"), help="where the page is written")
    parser.add_argument("--port", type=int, default=8000, help="0: only write the page")
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    frozen, test = trained(options.epochs)
    build(frozen, test, options.folder)
    if options.port:
        handler = partial(Handler, frozen, directory=str(options.folder))
        print(f"http://localhost:{options.port}")
        ThreadingHTTPServer(("localhost", options.port), handler).serve_forever()
    print(answer(frozen, test.counts[0].flatten().tolist())["sha256"])


if __name__ == "__main__":
    main()
