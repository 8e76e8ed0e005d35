"""What benchmarks share: where their results stand, and the tables in docs/ that follow from them."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tandem_snn import machine

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "pages"))
from tables import with_table  # noqa: E402


def origin(script: str) -> dict[str, Any]:
    """How a result comes about, wherever files lie."""
    paths = {"--data-dir": "DIR", "--ann": "FILE"}
    given = [paths.get(before, one) for before, one in zip(sys.argv, sys.argv[1:], strict=False)]
    return machine.origin(" ".join(["python", str(Path(script).resolve().relative_to(ROOT)), *given]))


def results(name: str) -> Path:
    return ROOT / "docs" / "results" / f"{name}.json"


def read(name: str) -> dict[str, Any]:
    return json.loads(results(name).read_text())  # type: ignore[no-any-return]


def write_table(document: str, name: str, table: str) -> None:
    path = ROOT / "docs" / document
    path.write_text(with_table(path.read_text(), name, table))


def program(
    script: str,
    description: str | None,
    document: str,
    name: str,
    measure: Callable[[argparse.Namespace, Callable[[dict[str, Any]], object]], object],
    table: Callable[[dict[str, Any]], str],
    **options: Any,
) -> None:
    """The program ``script``: ``measure`` gets its arguments and a function that writes the results so far, then the
    table that follows from them is written. ``options`` are further arguments with their defaults.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=os.environ.get("TANDEM_DATA"))
    parser.add_argument("--table", action="store_true", help=f"only write the table in docs/{document}")
    for option, default in options.items():
        parser.add_argument(f"--{option}", type=type(default), default=default)
    arguments = parser.parse_args()
    if not arguments.table:
        torch.set_num_threads(1)
        facts = origin(script)  # before the measurement, which takes minutes
        measure(arguments, lambda found: results(name).write_text(json.dumps(facts | found) + "\n"))
    write_table(document, name, table(read(name)))
