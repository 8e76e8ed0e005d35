"""The cost of training over T, from a result of ``tandem-snn bench --case 'cost-*'``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import UserError
from ..machine import short

EPOCH = 60_000  # images
_CASE = re.compile(r"cost-(time|peak)-T(\d+)")
_BATCH = re.compile(r"B=(\d+)")


def read_cost(path: Path) -> dict[str, Any]:
    """The result of a benchmark.

    Raises:
        UserError: not JSON, or without the cases of training's cost.
    """
    try:
        result = json.loads(path.read_text())
        rows = [row for row in result["rows"] if _CASE.fullmatch(row["case"])]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a result of tandem-snn bench: {error}") from error
    if not rows:
        raise UserError(f"{path} has no case cost-*: tandem-snn bench --case 'cost-*' --out {path}")
    return {**result, "rows": rows}


def cost_section(result: dict[str, Any]) -> Iterator[str]:
    """The lines of the page."""
    rows = result["rows"]
    rivals = list(rows[0]["values"])
    clock = "process CPU time" if result["threads"] == 1 else "wall time"
    yield "## What training costs"
    yield ""
    yield (
        f"Forward and backward of {rows[0]['title'].partition(': ')[2].partition(', T=')[0]}, without batch norm, at a "
        f"firing rate of 10%; {result['threads']} thread{'s' * (result['threads'] > 1)}, {clock}, medians. An epoch is "
        f"{EPOCH:,} images. Memory is what the process grows by in a step, weights and inputs not counted. BPTT is "
        "backpropagation through time with a surrogate gradient in plain PyTorch, its products batched over time. The "
        "ANN has no T and is measured each time."
    )
    yield ""
    heads = [f"{name}, s per epoch" for name in rivals] + [f"{name}, peak MiB" for name in rivals]
    yield f"| T | {' | '.join(heads)} |"
    yield f"|{' --- |' * (len(heads) + 1)}"
    by_T: dict[int, dict[str, Any]] = {}
    for row in rows:
        kind, T = _CASE.fullmatch(row["case"]).groups()  # type: ignore[union-attr]
        by_T.setdefault(int(T), {})[kind] = row
    for T, kinds in sorted(by_T.items()):
        times, peaks = ([f"{value:.1f}" for value in _values(kinds.get(kind), rivals)] for kind in ("time", "peak"))
        yield f"| {T} | {' | '.join([*times, *peaks])} |"
    yield ""
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    yield f"`{result['command']}` on {result['date'][:10]}, commit {short(result['commit'])}; {machine}."
    yield ""


def _values(row: dict[str, Any] | None, rivals: list[str]) -> list[float]:
    """Seconds per epoch, or MiB."""
    if row is None:
        return [float("nan")] * len(rivals)
    batch = int(_BATCH.search(row["title"])[1])  # type: ignore[index]
    scale = 1 / 2**20 if row["quantity"] == "peak" else EPOCH / batch
    return [scale * median(row["values"][name]) for name in rivals]
