"""Cases of ``tandem-snn bench`` at an instruction set, relative to the ANN that is held to the same one.

python tests/benchmarks/capabilities.py v3
python tests/benchmarks/capabilities.py v4 'mlp-train-*' mlp-infer-1-rate
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from statistics import quantiles

from tandem_snn.bench.run import choose, measure, ratio

PORTABLE = ("mlp-infer-128-rate", "conv-128-256-rate-10", "conv-64-64-rate-10")
RIVALS = ("frozen", "frozen, windows", "tandem", "windows", "ANN")
TORCH = {
    "default": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "v3": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "v4": {},
}


def main(capability: str, *names: str) -> None:
    os.environ |= {"TANDEM_CPU_CAPABILITY": capability, **TORCH[capability]}
    print(f"{capability}, 1 thread, process CPU time: median and fastest tenth, and both relative to the ANN's")
    for case in choose(names or PORTABLE):
        row = measure(replace(case, rivals=tuple(r for r in case.rivals if r in RIVALS)), threads=1, quick=False)
        fast = {name: quantiles(seconds, n=10, method="inclusive")[0] for name, seconds in row["values"].items()}
        middle = {name: quantiles(seconds, n=2)[0] for name, seconds in row["values"].items()}
        for name in row["values"]:
            times = f"{middle[name] * 1e3:8.3f} {fast[name] * 1e3:8.3f} ms"
            ratios = f"{ratio(row, name)['median']:6.2f} {fast[name] / fast['ANN']:6.2f}"
            print(f"{case.name:22} {name:16} {times} {ratios}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
