"""The extension with CUDA kernels beside a CUDA build of torch, without a GPU: in an environment that pip fills with
5 GB the module is imported that this torch compiled. One module serves both builds; a call without a GPU says so.
"""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

from build_tools.compile import ROOT, make_plan

pytestmark = pytest.mark.slow
STREAM = "aoti_torch_get_current_cuda_stream"


def run(folder, command, **environment):
    """Not in the repository's folder, whose own module Python would find first."""
    environment = os.environ | environment
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of the repository with the module that this environment's torch compiles, CUDA kernels and all."""
    if make_plan({**os.environ, "TANDEM_CUDA": "auto"}).toolkit is None:
        pytest.skip("needs a CUDA toolkit (nvcc and its headers)")
    folder = tmp_path_factory.mktemp("sources")
    for name in ("build_tools", "csrc", "python", "tandem_ext", "tests"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    options = {"TANDEM_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "8.0", "PYTHONPATH": str(folder)}
    run(folder, [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], **options)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The Python of an environment with PyPI's torch of this version, whatever pip is told to prefer elsewhere."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    wanted = f"torch=={torch.__version__.partition('+')[0]}"
    own = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_CONSTRAINT": ""}
    run(folder, [folder / "bin/python", "-m", "pip", "install", "-q", wanted, "numpy"], **own)
    yield folder / "bin/python"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def found(sources, python, tmp_path_factory):
    """What that Python sees, and which libraries the dynamic linker took the stream's function from."""
    look = """
import json, sys, torch, tandem_ext as te
has, ops = torch._C._dispatch_has_kernel_for_dispatch_key, torch._C._dispatch_get_all_op_names()
found = {"cuda": torch.version.cuda, "archs": te.build_info()["cuda_archs"]}
found["only_cpu"] = [name for name in ops if name.startswith("tandem::") and has(name, "CPU") and not has(name, "CUDA")]
found["both"] = [name for name in ops if name.startswith("tandem::") and has(name, "CUDA")]
try:
    te.SpikeTrain.from_dense(torch.ones(2, 1, 4)).to("cuda")
except RuntimeError as error:
    found["error"] = str(error)
class OnGpu(torch.Tensor):
    __new__ = lambda cls: torch.Tensor._make_wrapper_subclass(cls, (2, 1, 1), device="cuda:0")
    __torch_dispatch__ = classmethod(lambda *_: None)
try:
    torch.ops.tandem.pack.default.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), OnGpu())
except RuntimeError as error:
    found["kernel's"] = str(error).splitlines()[0]
print(json.dumps(found))
"""
    log = tmp_path_factory.mktemp("linker") / "log"
    paths = os.pathsep.join([str(sources), str(sources / "python")])
    linker = {"LD_DEBUG": "bindings", "LD_DEBUG_OUTPUT": str(log), "LD_BIND_NOW": "1"}
    seen = json.loads(run(sources, [python, "-c", look], PYTHONPATH=paths, **linker))
    (text,) = [part.read_text(errors="replace") for part in log.parent.glob("log.*")]
    lines = [line for line in text.splitlines() if f"`{STREAM}'" in line and "/_C." in line.partition(" to ")[0]]
    return seen | {"bound": [Path(line.partition(" to ")[2].split()[0]).name for line in lines]}


def test_the_module_is_loaded_beside_it_and_says_what_it_needs(found):
    assert found["cuda"] is not None
    assert found["archs"] == ["8.0"]
    assert set(found["bound"]) == {"libtorch_cuda.so"}, "the stream's symbol is weak, and null beside a CPU build"
    assert {"tandem::if_scan", "tandem::linear_if", "tandem::conv_if", "tandem::frozen_digits"} <= set(found["both"])
    cpu = {"quantise", *(f"frozen_{name}" for name in ("prepare", "state", "run", "moves", "follow", "check"))}
    assert {name.removeprefix("tandem::") for name in found["only_cpu"]} <= cpu
    assert found["error"].startswith("Found no NVIDIA driver on your system")
    assert "\n" not in found["error"]
    assert "tandem: CUDA driver version is insufficient" in found["kernel's"]


def test_gpu_check_says_so(sources, python, tmp_path):
    command = [python, sources / "tests/gpu/check.py", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.count("\n") == 1
    assert "sees none (Found no NVIDIA driver" in done.stdout
    done = subprocess.run([*command, "--dry-run", "--only", "verdict"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "kernels right" in done.stdout
