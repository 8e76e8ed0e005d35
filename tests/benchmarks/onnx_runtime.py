"""Does onnxruntime give our spike counts on real images with trained weights?

    python tests/benchmarks/onnx_runtime.py --data-dir DIR

trains a small convolutional network on 20,000 images of Fashion-MNIST for one epoch (T = 8), freezes it with float, 8-
and 4-bit weights, exports each, and runs the files on 500 test images. It writes docs/results/onnx.json; `--table`
writes the table in docs/onnx.md from that.
"""

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from documents import program

import tandem_snn as ts

sys.path.insert(0, str(Path(__file__).parents[1]))
from networks import differing, own_counts, trained_on_fashion_mnist
from test_onnx import by_onnxruntime

IMAGES, T = 500, 8


def table(result: dict[str, Any]) -> str:
    lines = ["| weights | file | neurons with another count, by layer | accuracy: ours, theirs |", "| --- " * 4 + "|"]
    for row in result["rows"]:
        shares = ", ".join(f"{100 * share:.2g} %" for share in row["differing"])
        accuracy = f"{100 * row['ours']:.1f} %, {100 * row['theirs']:.1f} %"
        lines.append(f"| {row['weights']} | {row['bytes'] / 1000:.0f} kB | {shares} | {accuracy} |")
    return "\n".join(lines)


def measure(arguments: Any, write: Any) -> None:
    net, x, labels = trained_on_fashion_mnist(arguments.data_dir, T, IMAGES)
    rows = []
    for weights, bits in ("float32", None), ("int8", 8), ("int4", 4):
        frozen = ts.freeze(net, weight_bits=bits)
        counts, answer = own_counts(frozen.net, x)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.onnx"
            ts.to_onnx(frozen, path, x)
            theirs, answers = by_onnxruntime(path, x)
            row: dict[str, Any] = {"weights": weights, "bytes": path.stat().st_size}
        row["neurons"] = [c.numel() for c in counts]
        row["differing"] = differing(counts, theirs)
        for name, given in ("ours", answer), ("theirs", answers[-1]):
            row[name] = (given.argmax(1) == labels).double().mean().item()
        rows.append(row)
        print(row, flush=True)
    packages = {name: version(name) for name in ("onnx", "onnxruntime")}
    write({**packages, "images": IMAGES, "T": T, "rows": rows})


if __name__ == "__main__":
    program(__file__, __doc__, "onnx.md", "onnx", measure, table)
