"""Attention of tokens: a transformer of currents trains as its ReLU twin, at the counts."""

import pytest
import torch
from networks import at_the_counts
from tokens import transformer
from torch import nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_snn import ann


def test_gradients_are_the_ann_s_at_the_counts():
    net = transformer(gate="relu").double().train()
    x, target = torch.rand(4, 3, 12, 8, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    for _ in range(2):
        net(x)
    answers = net(x), at_the_counts(net, x)
    torch.testing.assert_close(*answers)
    parameters = list(net.parameters())
    torch.testing.assert_close(*(torch.autograd.grad((y * target).sum(), parameters) for y in answers))


def test_the_twin_is_what_many_steps_come_to():
    net, x = transformer().train(), torch.rand(8, 3, 12, 8)
    twin = transformer(ann)
    for _ in range(3):
        net(x)
    twin.load_state_dict(net.state_dict())
    assert torch.equal(ts.to_ann(net.eval())(x), twin.eval()(x))
    errors = [(tnn.set_T(net, T)(x) - twin(x)).abs().max() for T in (4, 255)]
    assert errors[1] < errors[0] / 10


def test_permute():
    x = te.SpikeTrain.from_dense((torch.rand(5, 2, 3, 4, 6) < 0.5).float(), gain=torch.rand(3))
    y = tnn.Permute([0, 3, 1, 2])(x)
    assert torch.equal(y.counts, x.counts.permute(0, 3, 1, 2))
    assert torch.equal(y.gain, x.gain.view(3, 1, 1).expand(3, 4, 6).permute(2, 0, 1))
    assert torch.equal(tnn.Permute([0, 1, 3, 2])(x).gain, x.gain)
    with pytest.raises(ValueError, match=r"dims: expected 0, the batch, and the other dimensions in some order"):
        tnn.Permute([1, 0])
    with pytest.raises(ValueError, match=r"x: Permute\(\[0, 2, 1\]\) takes 3 dimensions, got shape \[2, 3, 4, 6\]"):
        tnn.Permute([0, 2, 1])(x)


def test_errors():
    tokens = te.SpikeTrain.from_counts(torch.ones(2, 5, 12), T=3)
    with pytest.raises(ValueError, match="heads: expected a divisor of dim=12, got 5"):
        tnn.SelfAttention(12, 5)
    with pytest.raises(ValueError, match="q: attention reads whole windows"):
        tnn.SelfAttention(12, 4, timing="step")(tokens.replace(timing="step", stored=tokens.planes))
    with pytest.raises(ValueError, match=r"x: Attention takes q, k and v of tokens, \[B, N, 3·D\], got"):
        tnn.Attention(1)(te.SpikeTrain.from_counts(torch.ones(2, 5, 13), T=3))
    with pytest.raises(ValueError, match="timing: attention gives the currents of a whole window"):
        nn.Sequential(tnn.Attention(2), tnn.Neurons())(tokens)
