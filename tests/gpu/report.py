"""What a check found: as JSON, a table, an archive, and one line for an issue."""

import json
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import predictions


def write(result: dict[str, Any], folder: Path) -> None:
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")


def archive(result: dict[str, Any], folder: Path, logs: Iterable[Path]) -> Path:
    """The JSON and these logs in one file: gpu-<card>-<commit>.zip, without what a file name had better not hold."""
    write(result, folder)
    card = re.sub(r"[^a-z0-9]+", "-", "rehearsal" if result["rehearsal"] else result["preflight"]["card"].lower())
    path = folder / f"gpu-{card}-{result['commit'][:8]}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for part in [folder / "result.json", *sorted(logs)]:
            file.write(part, f"{path.stem}/{part.name}")
    return path


def state(found: dict[str, Any]) -> str:
    """How a stage ended, in words."""
    if "skipped" in found:
        return f"skipped, {found['skipped']}"
    failures = found.get("failures", {})
    parts = [f"{found['passed']} right"] if "passed" in found else []
    parts += [f"{len(failures)} WRONG ({', '.join(list(failures)[:4])})"] if failures else []
    return ", ".join(parts + ([f"unfinished: {found['unfinished']}"] if "unfinished" in found else []))


def right(result: dict[str, Any]) -> bool:
    """Nothing failed, and the verdict, if it was asked for, was reached. What was skipped or cut is only named."""
    checks = result["checks"]
    whole = "unfinished" not in checks.get("verdict", {})
    return whole and not any(found.get("failures") for found in checks.values())


def verdict(result: dict[str, Any]) -> str:
    found = result["checks"]["verdict"]
    if failures := found.get("failures"):
        return f"kernels WRONG: {'; '.join(failures)}"
    return f"no verdict, {found['unfinished']}" if "unfinished" in found else "kernels right"


def number(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:,.0f}" if row.get(key, 0) >= 100 else f"{row[key]:.1f}" if key in row else ""


def table(result: dict[str, Any]) -> str:
    """The rows in Markdown."""
    peaks = {name: f"{rate / 1e12:.3g}" for name, rate in result["peaks"].items()}
    lines = [
        f"measured: copy {peaks.pop('copy', '?')} TB/s; {', '.join(f'{n} {p}' for n, p in peaks.items())} x 10^12 "
        "operations a second; medians, caches cold, host: putting a call into the queue",
        "| case | way | µs | predicted | host µs | % of copy |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        numbers = [number(row, key) for key in ("predicted_us", "host_us", "of_copy")]
        lines.append(f"| {' | '.join([row['case'], row['way'], row.get('note') or number(row, 'us'), *numbers])} |")
    return "\n".join(lines)


def line(result: dict[str, Any]) -> str:
    """All that matters, on one line."""
    found, checks = result["preflight"], result["checks"]
    card = f"{found.get('card', 'no GPU')} ({found.get('capability', 'CPU')})"
    parts = [
        f"gpu-check {result['commit'][:8]}, {card}, driver {result['driver'] or 'none'}, torch {found.get('torch')}"
    ]
    parts += [verdict(result)] if "verdict" in checks else []
    parts += [f"{stage}: {state(ended)}" for stage, ended in checks.items()]
    known = [row for row in result["rows"] if "predicted_us" in row and "us" in row]
    known = [row for row in known if row["way"] in predictions.SHOWN]
    shown = [f"{r['case']} {r['way']} {number(r, 'us')} µs ({number(r, 'predicted_us')} predicted)" for r in known]
    return "; ".join(["rehearsal"] * result["rehearsal"] + parts + shown)
