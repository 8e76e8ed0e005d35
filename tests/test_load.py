"""Loading the compiled part: as a module, or by path, as a Python that it was not built for must."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tandem_ext as te
from tandem_ext._load import _old_driver


@pytest.mark.parametrize(
    ("toolkit", "driver", "says"),
    [(13000, 12060, "CUDA 13.0 .* supports CUDA 12.6, "), (13000, 13000, None), (13010, 13000, None), (13000, 0, None),
     (12080, 13000, None)],
)  # fmt: skip
def test_an_old_driver(toolkit, driver, says):
    """A driver runs what any toolkit of its major version has made."""
    note = _old_driver(toolkit, driver)
    assert (note is None) == (says is None)
    assert note is None or re.search(says, note)


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
