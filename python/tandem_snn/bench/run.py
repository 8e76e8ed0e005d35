"""Measures cases and gathers what is written as JSON, with the verdict on every limit.

A result has the fields machine, versions, commit, command, date, threads, quick and rows. A row has the fields of its
:class:`~tandem_snn.bench.case.Case`, the values of :mod:`~tandem_snn.bench.worker` (lists: one number per round), the
ratios of their medians to the base's, and the limits with what was reached.
"""

from __future__ import annotations

import datetime
import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from tandem_ext import build_info

from ..errors import check_name
from ..machine import commit, machine, versions
from .case import COMPILED, OURS, Case, Limit
from .cases import CASES
from .measure import Spread
from .process import in_own_process
from .rivals import available

DIFFERENT = 0.01  # of the counts: float32 statistics move a spike in a million, and that one others, layer by layer
PORTABLE = 1.5  # limits hold on a machine with AVX-512; the portable path may take this much longer


def choose(patterns: Iterable[str]) -> list[Case]:
    """The cases with these names, which may have wildcards; all of them where there is none.

    Raises:
        UserError: a name that no case has.
    """
    patterns = list(patterns)
    for pattern in patterns:
        if not fnmatch.filter(CASES, pattern):
            check_name("case", pattern, CASES)
    return [case for name, case in CASES.items() if not patterns or any(fnmatch.fnmatch(name, p) for p in patterns)]


def describe(command: str, threads: int, quick: bool) -> dict[str, Any]:
    """A result that has no rows yet."""
    return {
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "command": command,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "threads": threads,
        "quick": quick,
        "rows": [],
    }


def measure(case: Case, threads: int, quick: bool) -> dict[str, Any]:
    """The row of a case; ``quick`` takes few samples, and leaves out what has to be compiled first."""
    rivals = [r for r in case.rivals if not (quick and COMPILED in r) and available(r)]
    groups = [[r] for r in rivals] if case.quantity == "peak" else [rivals]
    measured: dict[str, Any] = {}
    for group in groups:
        for name, value in in_own_process(case.name, case.quantity, threads, quick, group).items():
            measured[name] = measured.get(name, {}) | value if isinstance(value, dict) else value
    values = measured["values"]
    return {
        "case": case.name,
        "title": case.title,
        "quantity": case.quantity,
        "base": case.base,
        **measured,
        "ratios": {r: asdict(spread(values[r], values[case.base])) for r in values},
        "missing": [r for r in case.rivals if r not in values],
        "limits": [judge(limit, values, case.quantity, measured.get("answers", {})) for limit in case.limits],
    }


def spread(a: Sequence[float], b: Sequence[float]) -> Spread:
    """Of the ratio of two rivals, round by round."""
    return Spread.of([x / y for x, y in zip(a, b, strict=True)])


def judge(
    limit: Limit, values: dict[str, list[float]], quantity: str, answers: dict[str, dict[str, float]] | None = None
) -> dict[str, Any]:
    """What was reached, and whether that meets the limit: None where a competitor was not measured.

    Whoever gives another answer meets no limit.
    """
    portable = quantity == "time" and build_info()["cpu_capability"] != "v4"
    at_most = limit.at_most * (PORTABLE if portable else 1)
    ours = next((name for name in OURS if name in values), None)
    verdict: dict[str, Any] = {
        "text": limit.text,
        "of": limit.of,
        "ours": ours,
        "at_most": at_most,
        "quantity": quantity,
    }
    verdict["portable"] = portable
    if ours is None or (limit.of is not None and limit.of not in values):
        return verdict | {"reached": None, "met": None}
    reached = spread(values[ours], values[limit.of] if limit.of else [1.0] * len(values[ours])).median
    alike = all(difference["spikes"] <= DIFFERENT for difference in (answers or {}).values())
    return verdict | {"reached": reached, "met": reached <= at_most and alike}
