"""What has no kernels runs by torch's operators: for every op and device, in full precision, and it is said. With
TANDEM_KERNELS=0 the other tests of ops, layers, conversion and torch's tools run this way.
"""

import child
import pytest
import torch
from torch._C import _dispatch_has_computed_kernel_for_dispatch_key as has_kernel

from tandem_ext.functional.products import full_precision

ON_CPU_ALONE = {"quantise"}
SAID = """
import warnings, torch, tandem_ext as te, tandem_snn, tandem_snn.nn as tnn
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for dtype in (torch.float32, torch.float64) * 2:
        te.functional.if_scan(torch.ones(8, 3, 5, dtype=dtype))
    print(*[str(warning.message).partition(":")[0] for warning in said])
    net = tandem_snn.freeze(torch.nn.Sequential(tnn.Encoder(8), tnn.Linear(3, 5), tnn.Readout(5, 2)))
    print("no kernels" in repr(net), "no kernels" in repr(net.double()))
print([line for line in tandem_snn.info.info().splitlines() if line.startswith("kernels ")][0])
"""


@pytest.mark.parametrize(("kernels", "devices", "frozen", "listed"), [
    ("1", "float64", "False True", "cpu"), ("0", "cpu", "True True", "none")
])  # fmt: skip
def test_it_is_said_once(kernels, devices, frozen, listed):
    lines = child.run("-c", SAID, TANDEM_KERNELS=kernels).splitlines()
    assert lines[:2] == [devices, frozen]
    assert f" {listed}" in lines[2]


@pytest.mark.parametrize("backend", ["CUDA", "MPS", "XPU", "HPU", "PrivateUse1"])
def test_every_op_runs_on_every_device(backend):
    schemas = (schema.name.partition("::") for schema in torch._C._jit_get_all_schemas())
    names = {name for namespace, _, name in schemas if namespace == "tandem" and not name.startswith("frozen_")}
    assert {name for name in names if not has_kernel(f"tandem::{name}", backend)} == ON_CPU_ALONE


@pytest.mark.parametrize("ask", [
    lambda: torch.set_float32_matmul_precision("high"), lambda: torch.set_float32_matmul_precision("medium"),
    lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
])  # fmt: skip
def test_products_are_not_rounded_to_tf32(ask):
    """Whichever of torch's names the user asked by."""
    matmul = torch.backends.cuda.matmul
    try:
        ask()
        kept = matmul.fp32_precision
        with full_precision(torch.device("cpu")):
            assert matmul.fp32_precision == kept == "tf32"
        with full_precision(torch.device("cuda")):
            assert matmul.fp32_precision == "ieee"
            assert not matmul.allow_tf32
        assert matmul.fp32_precision == kept
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("product", ["matmul", "conv"])
def test_products_are_not_rounded_to_bfloat16(product):
    """By oneDNN, which does so on processors with AMX."""
    setting = getattr(torch.backends.mkldnn, product)
    try:
        setting.fp32_precision = "bf16"
        with full_precision(torch.device("cpu")):
            assert setting.fp32_precision == "ieee"
        assert setting.fp32_precision == "bf16"
    finally:
        setting.fp32_precision = "none"
