"""Compares two builds of the package: both measure the same cases, in turns, a process each.

    python tests/benchmarks/compare.py OLD_TREE NEW_TREE --cases 'mlp-*-rate' call --ways tandem windows

OLD_TREE and NEW_TREE are checkouts in which the extension is built. A row has new/old of the fastest tenths of the
samples with its 95 % interval (bootstrap over the rounds), of the medians, and whether both give the same bits. The
processes are started anew a few times, since where its memory lies makes one faster than the next.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any

from competitors import OURS
from interleaved import CAPABILITIES, Process, Settings, interleave, ratio
from table import CASES, Case, choose

TREES = ("old", "new")
STARTS = 4


def measure(case: Case, ways: list[str], trees: list[Path], settings: Settings) -> list[dict[str, Any]]:
    """A row for each way: the samples of both trees, and whether their answers are the same bits."""
    starts = STARTS if case.quantity == "time" else 1
    rounds = max(1, settings.rounds // starts) if case.quantity == "time" else 1
    rows = [{"case": case.name, "way": way, "quantity": case.quantity, "same": True, "old": [], "new": []}
            for way in ways]  # fmt: skip
    for _ in range(starts):
        # A way's peak hides in memory that another has left.
        for group in [[row] for row in rows] if case.quantity == "peak" else [rows]:
            names = [row["way"] for row in group]
            with Process(case, names, settings, trees[0]) as old, Process(case, names, settings, trees[1]) as new:
                both = dict(zip(TREES, (old, new), strict=True))
                takes = {(way, age): partial(both[age].take, way) for way in names for age in TREES}
                samples = interleave(takes, settings._replace(rounds=rounds))
            for row in group:
                row["same"] &= old.facts["digests"][row["way"]] == new.facts["digests"][row["way"]]
                for age in TREES:
                    row[age] += samples[row["way"], age]
    return rows


def line(row: dict[str, Any]) -> str:
    found = ratio(row["new"], row["old"])
    if row["quantity"] == "time":
        old, new = (1e6 * quantiles(row[age] * 2, n=10, method="inclusive")[0] for age in TREES)
        unit = "µs"
    else:
        (old,), (new,) = row["old"], row["new"]
        unit = "bytes"
    return (
        f"{row['case']:24} {row['way']:24} {old:12.6g} {new:12.6g} {unit:5}  {found.fast:5.3f} "
        f"[{found.low:.3f}, {found.high:.3f}]  median {found.median:5.3f}  {'' if row['same'] else 'OTHER BITS'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD_TREE")
    parser.add_argument("new", type=Path, metavar="NEW_TREE")
    parser.add_argument("--cases", nargs="+", default=[], help=f"names, wildcards are allowed: {', '.join(CASES)}")
    parser.add_argument("--ways", nargs="+", choices=OURS, default=OURS)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1, help="1: process CPU time; 2 or more: wall time")
    parser.add_argument("--capability", choices=CAPABILITIES)
    parser.add_argument("--out", type=Path, help="the samples as JSON, a row a line")
    options = parser.parse_args()
    settings = Settings(options.rounds, 0.002, 600.0, options.threads, options.capability)
    try:
        for case in choose(options.cases):
            for row in measure(case, [w for w in case.ways if w in options.ways], [options.old, options.new], settings):
                print(line(row), flush=True)
                if options.out:
                    with options.out.open("a") as file:
                        print(json.dumps(row), file=file)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
