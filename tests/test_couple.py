"""couple: given spikes with the gradient of a given pre-activation."""

import pytest
import torch
from cases import assert_same, dyadic, train

import tandem_ext as te

couple = te.functional.couple


def test_values_are_the_trains():
    x = train(9, 3, 5, gain=0.5)
    y = couple(x, torch.randn(3, 5, requires_grad=True))
    assert_same(y, x)
    assert (y.gain, y.counts.requires_grad) == (0.5, True)


@pytest.mark.parametrize("shape", [(3, 5), (2, 5, 3, 4)])
@pytest.mark.parametrize("gate", ["relu", "clip", "resu"])
@pytest.mark.parametrize("threshold", [0.5, torch.tensor(0.5), torch.tensor([0.25, 0.5, 1.0, 2.0, 4.0])],
                         ids=["float", "one", "per channel"])  # fmt: skip
def test_gradients(shape, gate, threshold):
    x, z, grad = train(4, *shape), dyadic(*shape, low=-200, high=200), dyadic(*shape)
    z.requires_grad_()
    theta = threshold
    if isinstance(threshold, torch.Tensor):
        threshold = threshold.clone().requires_grad_()
        theta = threshold.detach().view(-1, *[1] * (len(shape) - 2)) if threshold.dim() else threshold.detach()
    couple(x, z, threshold=threshold, gate=gate).counts.backward(grad)
    open_ = (z > 0) & (z < 4 * theta) if gate == "clip" else z > 0
    expected = grad * open_ / theta
    assert torch.equal(z.grad, expected)
    if isinstance(threshold, torch.Tensor):
        total = -expected * x.counts
        dims = [d for d in range(total.dim()) if d != 1] if threshold.dim() else list(range(total.dim()))
        torch.testing.assert_close(threshold.grad, total.sum(dims))


def test_it_is_what_a_layer_does():
    x, weight = train(8, 3, 7), dyadic(5, 7)
    a, b = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    te.functional.linear_if(x, a, threshold=0.5).counts.sum().backward()
    with torch.no_grad():
        spikes = te.functional.linear_if(x, b, threshold=0.5)
    couple(spikes, torch.nn.functional.linear(x.counts, b), threshold=0.5).counts.sum().backward()
    assert torch.equal(a.grad, b.grad)
