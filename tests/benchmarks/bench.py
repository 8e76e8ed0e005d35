"""Compares the package, with both timings, with the ANN, plain PyTorch and other libraries: `make performance`.

    python tests/benchmarks/bench.py --cases 'mlp-*-rate' scan --threads 1 --out FILE

The machine should be idle. All cases take three quarters of an hour, with --quick a few minutes. A row has the fastest
tenth of the samples, beside the base's with the 95 % interval, the medians' ratio, and the limits that are missed.
"""

import json
import shlex
import sys
from datetime import datetime, timezone
from typing import Any

from competitors import COMPETITORS
from interleaved import QUICK, Settings, amount, arguments, fastest, measure, ratio
from table import LIMITS, choose

from tandem_snn.info import origin

DIFFERENT = 0.01  # of the counts: statistics in float32 move a spike in a million, and that one others


def missed(row: dict[str, Any], way: str) -> str:
    """The limits of the way that it does not reach; whoever gives other answers reaches none."""
    differs = row["answers"].get(way, {}).get("spikes", 0) > DIFFERENT
    found = [f"**{row['answers'][way]['spikes']:.0%} of the counts differ**"] if differs else []
    for limit, most in LIMITS.get(row["case"], {}).items():
        name, _, of = limit.partition(" / ")
        base = {"1": [1.0]} | row["values"]
        of = of or row["base"]
        if name == way and of in base and fastest(row["values"][way]) > most * fastest(base[of]):
            found.append(f"{most:.3g} {of}")
    return f"  missed: {', '.join(found)}" if found else ""


def show(row: dict[str, Any]) -> None:
    rates = ", ".join(f"{name} {100 * spikes:.1f}%/{nibbles:.2f}" for name, (spikes, nibbles) in row["rates"].items())
    print(f"\n{row['case']}: {row['title']}\n  spikes, nonzero nibbles per byte: {rates}")
    for way, values in row["values"].items():
        found = ratio(values, row["values"][row["base"]])
        print(
            f"  {way:24} {amount(fastest(values), row['quantity']):>10} {found.fast:7.2f} {row['base']} "
            f"[{found.low:.2f}, {found.high:.2f}]  median {found.median:.2f}{missed(row, way)}",
            flush=True,
        )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--ways", nargs="+", choices=COMPETITORS, default=list(COMPETITORS))
    parser.add_argument("--quick", action="store_true", help="few samples, and nothing that is compiled first")
    options = parser.parse_args()
    settings = (QUICK if options.quick else Settings())._replace(threads=options.threads, capability=options.capability)
    can_run = [way for way in options.ways if COMPETITORS[way].can_run(options.quick)]
    result = origin(shlex.join(["python", "tests/benchmarks/bench.py", *sys.argv[1:]])) | {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), **settings._asdict(), "rows": [],
    }  # fmt: skip
    try:
        for case in choose(options.cases):
            ways = [way for way in case.ways if way == case.base or way in can_run]
            result["rows"] += measure(case, ways, settings)
            show(result["rows"][-1])
            if options.out:  # after every case, since all of them take long
                options.out.write_text(json.dumps(result, separators=(",", ":")) + "\n")
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
