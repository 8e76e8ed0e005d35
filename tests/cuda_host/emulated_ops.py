"""Builds the extension once more, with the CUDA kernels, run by the machine, behind the same ops for CPU tensors.

TANDEM_LIBRARY makes tandem_ext load it in place of its own: every test of an op, a layer or a network is then one of
the CUDA kernels and of the code between them and torch.
"""

from __future__ import annotations

from pathlib import Path

from harness import kernel_sources, link, machine_parts, machine_rules

from build_tools.compile import build_folder, commands, ninja_text, read_sources
from build_tools.decide import Plan, Toolkit


def build_ops(toolkit: Toolkit) -> Path:
    """The library. Objects stay in build/ beside those of the extension, whose CPU kernels it shares."""
    folder, sources = build_folder(), read_sources()
    rules, flags = commands(Plan(toolkit, ("emulated",)), "emulated")
    ops = [*rules["ops"], "-DTANDEM_EMULATION", "-O1"]  # compiled for few calls
    rules = {"ops": ops, "cpu": rules["cpu"], **machine_rules(toolkit)}
    parts = [("cpu", path, folder / f"{path}.o") for path in sources["cpu"]]
    parts += [("ops", path, folder / "emulated" / f"{path}.o") for path in sources["ops"]]
    parts += machine_parts(kernel_sources())
    library = folder / "emulated_ops.so"
    return link("emulated_ops", ninja_text(folder, rules, flags, parts, library), library)
