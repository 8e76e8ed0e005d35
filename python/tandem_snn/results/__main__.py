"""Writes a page with tables and pictures from results of ``tandem-snn sweep``.

python -m tandem_snn.results docs/results/training/*.json --cost docs/results/cost.json --out docs/results.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .cost import read_cost
from .page import write
from .result import read

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tandem_snn.results", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", nargs="+", type=Path, help="JSON files, each the summary of a run")
    parser.add_argument("--out", type=Path, required=True, help="the page; its pictures go into a folder beside it")
    parser.add_argument("--cost", type=Path, help="what tandem-snn bench --case 'cost-*' has written")
    arguments = parser.parse_args()
    try:
        cost = None if arguments.cost is None else read_cost(arguments.cost)
        write([read(path) for path in arguments.results], arguments.out, cost)
    except (ValueError, OSError) as error:
        parser.error(str(error))
