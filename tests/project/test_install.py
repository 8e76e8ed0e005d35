"""`pip install .` as a user calls it, in a new environment on a machine without a CUDA toolkit; it takes minutes."""

import os
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"build_tools", "csrc", "python", "tandem_ext", "setup.py", "pyproject.toml", "README.md", "LICENSE"}
USUAL = 'USUAL = Path("/usr/local/cuda")'


def unwanted(folder, names):
    """What a clone does not have."""
    if Path(folder) == ROOT:
        return {*names} - NAMES
    return {name for name in names if name.endswith((".so", "__pycache__"))}


@pytest.mark.slow
def test_pip_brings_the_toolkit(tmp_path):
    sources, environment = tmp_path / "sources", tmp_path / "environment"
    shutil.copytree(ROOT, sources, ignore=unwanted)
    toolkit = sources / "build_tools/toolkit.py"
    assert USUAL in toolkit.read_text()
    toolkit.write_text(toolkit.read_text().replace(USUAL, f'USUAL = Path("{tmp_path}/nowhere")'))
    venv.create(environment, with_pip=True)
    folders = [folder for folder in os.environ["PATH"].split(os.pathsep) if not Path(folder, "nvcc").exists()]
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CUDA_HOME", "CUDA_PATH")}
    env |= {
        "PATH": os.pathsep.join([f"{environment}/bin", *folders]),
        "TANDEM_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": "8.0",
    }

    def run(*command):
        out, err = subprocess.PIPE, subprocess.STDOUT  # where pip says what the backend does
        done = subprocess.run(command, cwd=tmp_path, env=env, stdout=out, stderr=err, text=True)
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    run("pip", "install", "-q", "torch>=2.10", "numpy")
    said = run("pip", "install", "-v", str(sources))
    assert said.count("tandem_ext: no CUDA toolkit here, so pip brings that of CUDA 13.0 (100 MB)") == 1
    assert "tandem_ext: CPU kernels + CUDA kernels for sm_80 (nvcc 13.0)" in said
    assert "Collecting torch" not in said  # the environment's is built with
    assert "nvidia-cuda-nvcc" not in run("pip", "list")  # it was there for the build alone
    assert "'cuda_archs': ['8.0']" in run("python", str(ROOT / "tests/project/smoke.py"))
