"""torch.ops.tandem with emulated CUDA kernels: runs the tests of ops, gradients, layers and networks.

In the library of build_ops() the code that calls kernels for CUDA tensors calls them for CPU tensors: checks,
allocations, layouts and dispatch are the GPU's; the device guard and the stream are missing.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import CAPABILITY, build_ops

from build_tools.compile import ROOT
from build_tools.decide import Toolkit

# By name: the files, and which of their tests. The program of a frozen network runs on the CPU's kernels, its layers
# and their graph on the emulated ones.
TESTS = {
    "planes": (["ops/test_spike_train", "ops/test_reference"], ""),
    "functional": (["ops/test_functional"], ""),
    "gradients": (["ops/test_gradients"], ""),
    "not finite": (["ops/test_not_finite"], "such_a_weight or bad_potentials"),
    "calls": (["ops/test_attack"], "schema or every_op"),
    "layers": (["layers/test_layers", "layers/test_layers_shape"], ""),
    "frozen": (
        ["frozen/test_frozen", "torch/test_capture"],
        "one_call and (float32 or -8-) and not projection or a_graph_of and (mlp or conv)",
    ),
}


@pytest.fixture(scope="session")
def library(toolkit: Toolkit) -> Path:
    return build_ops(toolkit)


def run(command: list[str], library: Path) -> str:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/python", "TANDEM_LIBRARY": str(library)}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("group", TESTS)
def test_ops(library: Path, group: str) -> None:
    names, chosen = TESTS[group]
    files = [f"tests/{name}.py" for name in names]
    out = run(["-m", "pytest", *files, "-q", "-p", "no:cacheprovider", "-k", chosen], library)
    assert " passed" in out


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(35, "update it, or build with an older nvcc"), (98, f"built for {CAPABILITY} and not for this GPU"),
     (209, "in TORCH_CUDA_ARCH_LIST"), (222, "update the driver, or build again")],
)  # fmt: skip
def test_a_card_or_driver_that_cannot_run_the_kernels(library: Path, status: int, remedy: str) -> None:
    script = f"""
import ctypes, os, torch, tandem_ext as te
ctypes.c_int.in_dll(ctypes.CDLL(os.environ["TANDEM_LIBRARY"]), "emulation_failure").value = {status}
try:
    te.planes.pack(torch.ones(2, 1, 1))
except RuntimeError as error:
    print(error)
print(te.planes.pack(torch.ones(2, 1, 1)).item())
"""
    out = run(["-c", script], library)
    assert remedy in out
    assert out.endswith("3\n")


def test_a_frozen_network_prepares_once(library: Path) -> None:
    """Digits are made when the graph is made, not in it. Without a graph every call makes them."""
    script = """
import ctypes, os, torch, tandem_ext as te
lib = ctypes.CDLL(os.environ["TANDEM_LIBRARY"])
lib.emulation_counters.restype = ctypes.POINTER(ctypes.c_uint64)
def made():
    return lib.emulation_counters(b"digits")[0]
x, weight = te.SpikeTrain.from_dense(torch.ones(8, 2, 30)), torch.randn(16, 30)
call = x.planes, 8, weight, 8, 1.0, 1.0, "relu", "step", True, True
digits = torch.ops.tandem.frozen_digits(weight, 1)
before = made()
outputs = torch.ops.tandem.linear_if(*call, digits=digits)
assert 0 < before == made()
assert all(map(torch.equal, outputs, torch.ops.tandem.linear_if(*call)))
assert made() == 2 * before
for wrong in (digits[1:], digits.float(), torch.ops.tandem.frozen_digits(weight[:8], 1)):
    try:
        torch.ops.tandem.linear_if(*call, digits=wrong)
    except RuntimeError as error:
        assert "digits must be what frozen_digits gives" in str(error)
    else:
        raise AssertionError
"""
    run(["-c", script], library)
