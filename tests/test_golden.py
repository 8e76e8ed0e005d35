"""The published reference implementation's own inputs and outputs; see data/golden/README.md."""

from pathlib import Path

import numpy as np
import pytest
import torch

import tandem_ext as te

FILES = sorted((Path(__file__).parent / "data" / "golden").glob("*.npz"))


def test_all_files_are_here():
    assert len(FILES) == 19


@pytest.mark.parametrize("rule", [te.functional, te.reference], ids=["functional", "reference"])
@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_golden(file, rule, device):
    data = {name: torch.from_numpy(np.array(value)).to(device) for name, value in np.load(file).items()}
    weight, bias = data["weight"].requires_grad_(), data["bias"].requires_grad_()
    threshold = data["threshold"].item()
    neuron = {"threshold": threshold, "leak": data["leak"].item()}
    conv = {name: int(data[name]) for name in ("stride", "padding", "dilation") if name in data}

    if "x" in data:
        x = te.ConstantInput(data["x"], int(data["T"]))
    else:
        dense = data["spike_in"].float().transpose(0, 1).requires_grad_()  # theirs is [B, T, ...]
        x = te.SpikeTrain.from_dense(dense)
    layer = {2: rule.linear_if, 3: rule.conv1d_if, 4: rule.conv2d_if}[weight.dim()]
    train = layer(x, weight, bias, **conv, **neuron)
    train.counts.backward(data["grad_count_out"])

    assert torch.equal(train.to_dense(torch.uint8).transpose(0, 1), data["spike_out"])
    assert torch.equal(train.counts, data["count_out"])
    # The published gradients lack the factor 1/threshold. Powers of two divide exactly.
    exact = np.log2(threshold).is_integer()
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(weight.grad * threshold, data["grad_weight"], **tolerance)
    torch.testing.assert_close(bias.grad * threshold, data["grad_bias"], **tolerance)
    if "grad_count_in" in data:
        for step in dense.grad:
            torch.testing.assert_close(step * threshold, data["grad_count_in"], **tolerance)
