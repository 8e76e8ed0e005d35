"""Loading the compiled part: as a module, or by path, as a Python that it was not built for must."""

import os
import subprocess
import sys
from pathlib import Path

import tandem_ext as te


def test_build_info():
    info = te.build_info()
    assert {"version", "torch_target", "cuda_archs", "cpu_capability", "compiler"} <= info.keys()
    assert te.__version__ == info["version"]
    info["version"] = "changed"
    assert te.build_info()["version"] != "changed"


def test_load_by_path():
    (library,) = Path(te.__path__[0]).glob("_C.*.so")
    program = (
        "import torch, tandem_ext as te; assert 'tandem_ext._C' not in __import__('sys').modules;"
        "print(te.build_info()['library'], te.pack(torch.ones(2, 1, 1)).item())"
    )
    path = os.pathsep.join([str(library.parent.parent), os.environ.get("PYTHONPATH", "")])
    output = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"TANDEM_LIBRARY": str(library), "PYTHONPATH": path},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert output.stdout.split() == [str(library), "3"]


def test_an_import_brings_nothing_that_only_some_need():
    """Optional packages, and Dynamo, which costs most of a second, are imported where they are used."""
    rare = {
        "aedat", "matplotlib", "nir", "onnx", "onnxruntime", "rich", "safetensors", "sklearn", "tensorboard", "tonic",
        "torch._dynamo", "torch._inductor", "torchvision", "typer", "yaml",
    }  # fmt: skip
    program = "import sys, tandem_ext, tandem_snn, tandem_snn.nn; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "tandem_snn" in output.stdout.split()
    assert not rare & set(output.stdout.split())
