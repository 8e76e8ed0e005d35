"""gpu-check's smoke runs every kernel that is compiled, each by the tiles that its case names."""

import os
import subprocess
import sys

from harness import build_ops

from build_tools.compile import ROOT
from build_tools.decide import Toolkit

# It prints the cases that do not run the tiles of their name, and the kernels that no case runs.
SMOKE = """
import ctypes, os, torch
from gpu import smoke, stages

machine = ctypes.CDLL(os.environ["TANDEM_LIBRARY"])
machine.emulation_counters.restype = ctypes.POINTER(ctypes.c_uint64)
machine.emulation_unused.restype = ctypes.c_char_p
every, other = machine.emulation_unused().split(), []
assert len(every) > 100
for case in smoke.cases():
    named = smoke.tile_of(case.name) or ""
    before = machine.emulation_counters(named.encode())[0]
    assert not stages.failure_of(case, torch.device("cpu")), case.name
    if machine.emulation_counters(named.encode())[0] == before:
        other.append(case.name)
print(other, machine.emulation_unused().split())
"""


def test_every_kernel(toolkit: Toolkit) -> None:
    folders = ":".join(str(ROOT / name) for name in ("", "python", "python/experiments", "tests"))
    env = {**os.environ, "PYTHONPATH": folders, "TANDEM_LIBRARY": str(build_ops(toolkit))}
    done = subprocess.run([sys.executable, "-c", SMOKE], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout == "[] []\n", done.stdout + done.stderr
