"""Square roots are those of the processor, which rounds to nearest."""

import math

import pytest
import torch

from tandem_ext.rounding import square_root


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_square_root(dtype):
    x = torch.cat([torch.rand(20000, dtype=dtype) * 10.0**e for e in range(-30, 31, 10)])
    want = [math.sqrt(v) for v in x.tolist()]
    assert square_root(x).tolist() == torch.tensor(want, dtype=torch.float64).to(dtype).tolist()


def test_special_values():
    x = torch.tensor([0.0, math.inf, 1e308, 5e-324, -1.0, math.nan], dtype=torch.float64)
    root = square_root(x)
    assert root[:4].tolist() == [0.0, math.inf, math.sqrt(1e308), math.sqrt(5e-324)]
    assert root[4:].isnan().all()
