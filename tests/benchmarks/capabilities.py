"""Both timings beside the ANN, all at one instruction set: cases of ``tandem-snn bench``, one thread, CPU time.

python tests/benchmarks/capabilities.py v3
python tests/benchmarks/capabilities.py v4 'mlp-*-rate' 'conv-*-rate-10' --out docs/results/timings-v4.json
"""

import argparse
import json
import os
import shlex
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import quantiles

from tandem_snn.bench.cases import FROZEN
from tandem_snn.bench.measure import choose, measure, ratio
from tandem_snn.machine import origin

PORTABLE = ("mlp-infer-128-rate", "conv-128-256-rate-10", "conv-64-64-rate-10")
RIVALS = (*FROZEN, "tandem", "windows", "ANN", "naive, windows")
TORCH = {
    "default": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "v3": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "v4": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("capability", choices=TORCH)
    parser.add_argument("cases", nargs="*", default=PORTABLE)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.environ |= {"TANDEM_CPU_CAPABILITY": arguments.capability, **TORCH[arguments.capability]}
    result = origin(shlex.join(["python", "tests/benchmarks/capabilities.py", *sys.argv[1:]]))
    result |= {"date": f"{datetime.now(timezone.utc):%Y-%m-%d}", "capability": arguments.capability, "rows": []}
    print("seconds, median and fastest tenth; the same relative to the ANN")
    for case in choose(arguments.cases):
        row = measure(replace(case, rivals=tuple(r for r in case.rivals if r in RIVALS)), threads=1, quick=False)
        fast = {name: quantiles(seconds, n=10, method="inclusive")[0] for name, seconds in row["values"].items()}
        middle = {name: quantiles(seconds, n=2)[0] for name, seconds in row["values"].items()}
        ratios = {name: (ratio(row, name)["median"], fast[name] / fast["ANN"]) for name in fast}
        for name in fast:
            print(f"{case.name:22} {name:24} {middle[name]:.3g} {fast[name]:.3g}  %.2f %.2f" % ratios[name], flush=True)
        kept = {name: [float(f"{x:.3g}") for x in (middle[name], fast[name], *ratios[name])] for name in fast}
        different = max(difference["spikes"] for difference in row["answers"].values())
        result["rows"].append({"case": case.name, "different": different, "values": kept})
        if arguments.out:
            arguments.out.write_text(json.dumps(result, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
