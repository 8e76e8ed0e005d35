"""What a check found: as JSON, a table, an archive, and one line for an issue."""

import itertools
import json
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import predictions

PROOF = ("smoke", "memcheck", "racecheck", "verdict")


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
    """Nothing failed, and the smoke and the verdict, if asked for, came to their ends; what else was cut is named."""
    checks = result["checks"]
    whole = all("unfinished" not in checks.get(stage, {}) for stage in ("smoke", "verdict"))
    return whole and not any(found.get("failures") for found in checks.values())


def verdict(result: dict[str, Any]) -> str:
    """Of the stages up to the verdict."""
    found = {stage: result["checks"].get(stage, {"skipped": "not asked for"}) for stage in PROOF}
    if wrong := [f"{stage}: {case}" for stage, of in found.items() for case in of.get("failures", {})]:
        return f"kernels WRONG: {'; '.join(wrong)}"
    cut = [f"{stage}: {of['unfinished']}" for stage, of in found.items() if "unfinished" in of]
    if any(part.startswith(("smoke", "verdict")) for part in cut):
        return f"no verdict, {'; '.join(cut)}"
    without = [stage for stage, of in found.items() if "skipped" in of or "unfinished" in of]
    return "kernels right" + (f" (without {', '.join(without)})" if without else "")


def number(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:,.0f}" if row.get(key, 0) >= 100 else f"{row[key]:.1f}" if key in row else ""


def table(result: dict[str, Any]) -> str:
    """The rows in Markdown."""
    peaks = {name: f"{rate / 1e12:.3g}" for name, rate in result["peaks"].items()}
    lines = [
        f"measured: copy {peaks.pop('copy', '?')} TB/s; {', '.join(f'{n} {p}' for n, p in peaks.items())} x 10^12 "
        "operations a second; medians, caches cold; host: putting a call into the queue; steps by wall clock",
        "| case | way | µs | predicted | host µs | % of copy |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for rows, clocks in result["clocks"].items():
        of = "; ".join(f"{low:g}, {median:g}, {high:g} {unit}" for unit, (low, median, high) in clocks.items())
        lines.insert(0, f"during {rows}, least, median, most: {of or 'nvidia-smi says nothing'}")
    for row in result["rows"]:
        numbers = [number(row, key) for key in ("predicted_us", "host_us", "of_copy")]
        lines.append(f"| {' | '.join([row['case'], row['way'], row.get('note') or number(row, 'us'), *numbers])} |")
    return "\n".join(lines)


def kernels(result: dict[str, Any], most: int = 6) -> str:
    """Of each profiled call the kernels that take longest, in Markdown."""
    lines = ["| call | kernel | calls | µs |", "| --- | --- | ---: | ---: |"]
    for case, rows in itertools.groupby(result["kernels"], key=lambda row: row["case"]):
        shown = itertools.islice(rows, most)
        lines += [f"| {case} | {row['kernel']} | {row['calls']:g} | {number(row, 'us')} |" for row in shown]
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
