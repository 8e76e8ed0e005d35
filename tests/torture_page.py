"""The figures of the last run of `make torture`, as a table in docs/reliability.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tandem_snn.machine import short

START, END = "<!-- figures -->", "<!-- end of figures -->"


def with_figures(text: str, figures: dict[str, Any]) -> str:
    """The page ``text`` with the table of these stages between its marks."""
    before, rest = text.split(START)
    return f"{before}{START}\n\n{table(figures)}\n{END}{rest.split(END)[1]}"


def table(figures: dict[str, Any]) -> str:
    """Markdown."""
    rows = ["| what | figures | time | commit |", "| --- | --- | --- | --- |"]
    for name in filter(figures.get, _STAGES):
        stage, (title, text) = figures[name], _STAGES[name]
        commit = short(stage["commit"], 7)
        # A stage whose parts were run one by one has no time of its own.
        minutes = f"{stage['seconds'] / 60:.0f} min" if "seconds" in stage else ""
        rows.append(f"| {title} | {text(stage['result'])} | {minutes} | {commit}, {stage['date']} |")
    machines = sorted({f"{s['machine'].get('cpu', '?')}, {s['machine'].get('cores')} cores" for s in figures.values()})
    left_out = [title for name, (title, _) in _STAGES.items() if name not in figures]
    not_run = f" Not run: {'; '.join(left_out)}." if left_out else ""
    return "\n".join([*rows, "", f"On {'; '.join(machines)}.{not_run}"])


def _calls(result: dict[str, Any]) -> str:
    seed = result["failed_seed"]
    end = "all refused by name or equal to the reference" if seed is None else f"**one was wrong, seed {seed}**"
    return f"{result['cases']:,} calls in {result['rounds']} rounds, {end}; {result['minutes']:g} minutes"


def _arguments(result: dict[str, Any]) -> str:
    targets = "; ".join(
        f"`{target['name']}`: {target['executions']:,} calls, {'**a crash**' if target['crashed'] else 'no crash'}"
        for target in result["targets"]
    )
    return f"{targets}; {result['minutes']:g} minutes"


def _tests(result: dict[str, Any]) -> str:
    failed = f", **failed: {', '.join(result['failed'])}**" if result["failed"] else ", none failed"
    return f"{result['passed']} tests passed{failed}, {result['skipped']} skipped"


def _sanitizers(result: dict[str, Any]) -> str:
    return "; ".join(
        f"{name}: {preset['programs']} programs, {'clean' if preset['clean'] else '**not clean**'}"
        for name, preset in result.items()
    )


def _mutants(result: dict[str, Any]) -> str:
    share = 100 * result["killed"] / max(result["tried"], 1)
    return f"{result['killed']} of {result['tried']} changes, drawn at random ({share:.1f} %)"


def _coverage(result: dict[str, Any]) -> str:
    return "; ".join(
        f"`{folder}`: {part['lines']} % of lines, {part['branches']} % of branches" for folder, part in result.items()
    )


# Title and words of each stage.
_STAGES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "calls": ("hostile calls of every op", _calls),
    "arguments": ("hostile arguments of the kernels, ASan and UBSan", _arguments),
    "faults": ("faults: kills, damage, disks, files", _tests),
    "threads": ("threads and processes", _tests),
    "numbers": ("equal numbers, 2,000-step soak", _tests),
    "sanitizers": ("the kernels' C++ tests under sanitizers", _sanitizers),
    "mutants-python": ("changes of the Python code that tests notice", _mutants),
    "mutants-cpp": ("changes of the CPU kernels that tests notice", _mutants),
    "mutants-cuda": ("changes of the CUDA kernels that tests of the emulation notice", _mutants),
    "coverage": ("lines and branches that the C++ tests and those of the ops reach", _coverage),
}
