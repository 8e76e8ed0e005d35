"""Attention of tokens: a transformer of currents trains as its ReLU twin, at the counts."""

import inspect
from functools import partial

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


@pytest.mark.parametrize("timing", ["step", "window"])
@pytest.mark.parametrize("source", [lambda u: u.expand(6, 4, 5, 16), partial(te.ConstantInput, T=6)])
def test_neurons_of_tokens_need_no_other_order(source, timing):
    """Tokens whose features are last in memory stay so: the layout of a stream, and of its gradient, hangs on it."""
    tokens, grad = torch.randn(4, 5, 16), torch.randn(4, 5, 16)
    ways = []
    for threshold in (0.5, torch.full((5,), 0.5)):  # thresholds of each channel need the channels last
        u = tokens.clone().requires_grad_()
        train = te.functional.if_scan(source(u), threshold=threshold, timing=timing)
        (train.counts * grad).sum().backward()
        ways.append((train.counts, train.stored, u.grad))
    for one, other in zip(*ways, strict=True):
        assert torch.equal(one, other)
    (counts, stored, _), (_, other, _) = ways
    assert counts.stride() == tokens.stride()
    assert stored.stride(-1) == other.stride(-2) == 1


@pytest.mark.parametrize("layers", [tnn, ann])
def test_batch_norm_of_tokens_is_that_of_rows(layers):
    """Torch's takes ten times as long for their transpose."""
    counts, seen = torch.randint(5, (4, 6, 16)).float(), []
    layer = layers.Linear(16, 12, norm=True, neurons=False, timing="window")
    layer.norm.register_forward_hook(lambda norm, given, z: seen.append((given[0].stride(), z)))
    y = layer(te.SpikeTrain.from_counts(counts, T=4) if layers is tnn else counts)
    ((stride, z),) = seen
    assert stride == (12, 1)
    assert torch.equal(z.view(4, 6, 12), y.total if layers is tnn else y)


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


def test_help_shows_the_defaults_of_attention():
    shown = inspect.signature(tnn.SelfAttention).parameters
    assert (shown["norm"].default, shown["timing"].default) == (True, "window")
    assert shown["gate"] == inspect.signature(tnn.Linear).parameters["gate"]


def test_errors():
    tokens = te.SpikeTrain.from_counts(torch.ones(2, 5, 12), T=3)
    with pytest.raises(ValueError, match="heads: expected a divisor of dim=12, got 5"):
        tnn.SelfAttention(12, 5)
    with pytest.raises(ValueError, match="q: attention reads whole windows"):
        tnn.Attention(4)(tokens.replace(timing="step", stored=tokens.planes))
    with pytest.raises(ValueError, match=r"x: Attention takes q, k and v of tokens, \[B, N, 3·D\], got"):
        tnn.Attention(1)(te.SpikeTrain.from_counts(torch.ones(2, 5, 13), T=3))
    with pytest.raises(TypeError, match=r"x: Linear takes a SpikeTrain.*, got a tensor of shape \[2, 5, 12\]"):
        tnn.SelfAttention(12, 4)(torch.ones(2, 5, 12))
    with pytest.raises(ValueError, match="timing: attention gives the currents of a whole window"):
        nn.Sequential(tnn.Attention(2), tnn.Neurons())(tokens)


@pytest.mark.parametrize("layers", [tnn, ann])
@pytest.mark.parametrize(("setting", "said"), [
    ({"bias": False}, "bias: SelfAttention has no such argument; its neurons have norm, "),
    ({"timing": "step"}, "timing: expected 'window', because attention is of whole windows, got 'step'"),
    ({"neurons": False}, "neurons: expected True, because attention is of spikes, got False"),
    *(({name: torch.ones(n)}, rf"{name}: expected one value for all neurons, got a tensor of shape \[{n}\]: those of")
      for name, n in (("threshold", 12), ("threshold", 36), ("gain", 12), ("v_init", 36))),
])  # fmt: skip
def test_settings_that_attention_cannot_have(layers, setting, said):
    with pytest.raises((TypeError, ValueError), match=said):
        layers.SelfAttention(12, 4, **setting)
    layers.SelfAttention(12, 4, threshold=nn.Parameter(torch.tensor(0.5)), norm=False)


@pytest.mark.parametrize(("shape", "layer", "said"), [
    ((2, 64, 49), tnn.Linear(64, 8), r"x has 49 features \(shape \[2, 64, 49\]\), but Linear takes 64"),
    ((2, 64, 49), tnn.SelfAttention(64, 4), r"x has 49 features \(shape \[2, 64, 49\]\), but Linear takes 64"),
    ((2, 64, 7, 7), tnn.Linear(64, 8), r"7 features \(shape \[2, 64, 7, 7\]\), but Linear takes 64: .*Flatten"),
    ((2, 0, 64), tnn.SelfAttention(64, 4), r"x: expected at least one pixel or token, got a space of \[0\]"),
    ((2, 0, 64), tnn.Linear(64, 8, timing="window"), r"x: expected at least one pixel or token"),
])  # fmt: skip
def test_tokens_that_do_not_fit(shape, layer, said):
    x = te.SpikeTrain.from_counts(torch.randint(5, shape), T=4)
    with pytest.raises(ValueError, match=said):
        layer(x)
    if isinstance(layer, tnn.Linear) and shape[1]:
        twin = ann.Linear(64, 8)
        for call in (twin, twin.preactivation):
            with pytest.raises(ValueError, match=said):
                call(x.counts)
        for call in (layer.preactivation, layer.potentials):
            with pytest.raises(ValueError, match=said):
                call(x)


@pytest.mark.parametrize(("use", "said"), [
    (lambda u: u.mean(1), "no attribute 'mean': tandem_snn.nn.AvgPool1d, .*, averages tokens"),
    (lambda u: u.max(1), r"no attribute 'max': total is their sum over the window"),
    (lambda u: u[:, 0], r"takes no Currents: slice features before the encoder; .*AvgPool1d\(1, N\)"),
    *((use, r"\*: currents are multiplied by a number or a tensor, got Currents")
      for use in (lambda u: u * u, lambda u: torch.mul(u, u))),
    (lambda u: u * torch.ones(2, 5, 12), r"\*: expected a constant that broadcasts with a sample \[1, 5, 12\], got"),
    (lambda u: u / u, "unsupported operand"),
    (lambda u: u.replace(gain=2.0), r"gain: currents have the gain 1, got 2.0: factor \* currents scales them"),
    *((use, "matmul takes no Currents: use tandem_snn.nn.Linear; tandem_snn.nn.Attention multiplies trains")
      for use in (lambda u: u @ u, lambda u: u @ torch.ones(12, 3), lambda u: torch.ones(5, 5) @ u)),
    (lambda u: torch.softmax(u, -1), "softmax takes no Currents: layers that do are in tandem_snn.nn; total is"),
])  # fmt: skip
def test_what_currents_do_not_have_names_what_to_use(use, said):
    tokens = te.SpikeTrain.from_counts(torch.ones(2, 5, 12), T=3)
    with pytest.raises((TypeError, ValueError, AttributeError), match=said):
        use(tnn.SelfAttention(12, 4)(tokens))
    with pytest.raises(TypeError, match=r"matmul takes no SpikeTrain: use tandem_snn.nn.Linear"):
        tokens @ torch.ones(12, 3)


def test_neurons_name_currents_for_the_product_of_attention():
    q = te.SpikeTrain.from_counts(torch.ones(2, 5, 12), T=3)
    fire, z = tnn.Neurons(timing="window"), te.functional.attention(q, q, q, heads=2)
    for call in (fire, fire.potentials):
        with pytest.raises(TypeError, match=r"got a tensor of shape \[1, 2, 5, 12\]: .*tnn.Currents\(z\[0\], "):
            call(z)
