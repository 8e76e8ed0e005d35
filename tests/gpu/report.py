"""What a check found, as JSON and as a table."""

import json
import math
import re
from pathlib import Path
from typing import Any

from .clock import Row


def file_name(card: str, commit: str) -> str:
    """gpu-<card>-<commit>.json, without what a file name had better not hold."""
    return f"gpu-{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}-{commit[:8]}.json"


def row_of(row: Row, peaks: dict[str, float]) -> dict[str, Any]:
    """A row as JSON: with its floor, and how near it comes to the measured bandwidth and rate, where they are known."""
    out: dict[str, Any] = {"case": row.case, "way": row.way}
    if row.note:
        return out | {"note": row.note}
    out |= {"microseconds": 1e6 * row.seconds, "memory": row.memory}
    if row.timing is not None:
        host = row.timing.host
        out |= {"tenth": 1e6 * row.timing.low, "nine_tenths": 1e6 * row.timing.high, "host": 1e6 * host}
        out["host_bound"] = host > row.seconds
    if floor := row.floor(peaks):
        out["floor"] = 1e6 * floor
    if row.bytes:
        out |= {"bytes": row.bytes, "bandwidth": row.bytes / row.seconds / peaks["copy"]}
    if row.rate:
        out |= {"operations": row.operations, "matrix": row.operations / row.seconds / peaks[row.rate]}
    return out


def targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the kernels were made to reach on an H100, as ratios; those whose rows were measured."""

    def of(case: str, way: str, key: str = "microseconds") -> list[float]:
        return [row[key] for row in rows if row["case"] == case and row["way"].startswith(way) and key in row]

    linear = "linear 4096x4096, B=64"
    ours = of(f"{linear} float16", "tandem")
    known = [
        ("scan: share of the copy bandwidth", 0.9, of("scan [8, 16777216] float32", "tandem", "bandwidth"), [1.0]),
        ("linear layer: the bare product's time over ours", 0.8, of(f"{linear} float16", "the bare product"), ours),
        ("linear layer: float16's time over int8's", 1.0, ours, of(f"{linear} int8", "tandem")),
    ]
    return [
        {"target": name, "least": least, "reached": min(theirs) / mine[0]}
        for name, least, theirs, mine in known
        if theirs and mine and mine[0] > 0
    ]


def table(result: dict[str, Any]) -> str:
    """The rows in Markdown, and what of the targets was reached."""
    peaks = result["peaks"]
    lines = [
        f"# {result['card']}, commit {result['commit']}",
        "",
        f"torch {result['torch']}, CUDA {result['cuda']}, driver {result['driver']}. "
        f"Copy {peaks.get('copy', math.nan) / 1e9:.0f} GB/s; "
        + ", ".join(f"{name} {rate / 1e12:.0f}" for name, rate in peaks.items() if name != "copy")
        + " times 10^12 operations a second, measured. Medians, caches cold.",
        "",
        "| case | way | µs | floor µs | % of copy | % of matrix | MB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        if "note" in row:
            lines.append(f"| {row['case']} | {row['way']} | {row['note']} | | | | |")
            continue
        shares = (f"{100 * row[k]:.0f}" if k in row else "" for k in ("bandwidth", "matrix"))
        floor = f"{row['floor']:.1f}" if "floor" in row else ""
        cells = [row["case"], row["way"], f"{row['microseconds']:.1f}", floor, *shares, f"{row['memory'] / 1e6:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    if result["targets"]:
        lines += ["", "| target | at least | reached |", "| --- | ---: | ---: |"]
        lines += [f"| {t['target']} | {t['least']:.1f} | {t['reached']:.2f} |" for t in result["targets"]]
    return "\n".join(lines) + "\n"


def write(result: dict[str, Any], folder: Path) -> Path:
    """Writes the JSON and, beside it, the table. Gives the path of the JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(result["card"], result["commit"])
    path.write_text(json.dumps(finite(result), indent=1) + "\n")
    path.with_suffix(".md").write_text(table(result))
    return path


def finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
