"""Compares two builds of the package: both measure the same cases, in turns, a process each.

    python tests/benchmarks/compare.py OLD_TREE NEW_TREE --cases 'mlp-*-rate' call --ways tandem windows

OLD_TREE and NEW_TREE are checkouts in which the extension is built. A row has new/old of the fastest tenths of the
samples with its 95 % interval (bootstrap over the rounds), of the medians, and whether both give the same bits. The
processes are started anew a few times, since where its memory lies makes one faster than the next.
"""

import json
from pathlib import Path

from competitors import OURS
from interleaved import Settings, amount, arguments, fastest, measure, ratio
from table import choose


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("old", type=Path, metavar="OLD_TREE")
    parser.add_argument("new", type=Path, metavar="NEW_TREE")
    parser.add_argument("--ways", nargs="+", choices=OURS, default=OURS)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    settings = Settings(options.rounds, 0.002, 600.0, options.threads, options.capability)
    measured = []
    try:
        for case in choose(options.cases):
            ways = [way for way in case.ways if way in options.ways]
            old, new = measure(case, ways, settings, (options.old, options.new), starts=4)
            measured.append({"old": old, "new": new})
            for way in ways:
                times, found = [row["values"][way] for row in (old, new)], ratio(new["values"][way], old["values"][way])
                shown = " ".join(f"{amount(fastest(values), case.quantity):>10}" for values in times)
                print(
                    f"{case.name:24} {way:24} {shown}  {found.fast:5.3f} [{found.low:.3f}, {found.high:.3f}]  "
                    f"median {found.median:5.3f}{'' if old['digests'][way] == new['digests'][way] else '  OTHER BITS'}",
                    flush=True,
                )
            if options.out:
                options.out.write_text(json.dumps(measured) + "\n")
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
