"""Linear, Conv1d, Conv2d, Readout and Encoder, beside torch's layers of the same name."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from cases import train_with_edge
from torch import nn

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn import ann, to_ann
from tandem_snn.nn.signals import effective_counts

pytestmark = pytest.mark.usefixtures("on_device")
F64 = torch.float64

# (layer, its twin, features of one input sample)
LAYERS = {
    "linear": (tnn.Linear, nn.Linear, (6, 5), {}, (6,)),
    "conv1d": (tnn.Conv1d, nn.Conv1d, (4, 6, 3), {"stride": 2, "padding": 1}, (4, 9)),
    "conv1d groups": (tnn.Conv1d, nn.Conv1d, (4, 6, 3), {"dilation": 2, "groups": 2}, (4, 9)),
    "conv2d": (tnn.Conv2d, nn.Conv2d, (4, 6, 3), {"stride": 2, "padding": (1, 0)}, (4, 9, 7)),
    "conv2d same": (tnn.Conv2d, nn.Conv2d, (4, 6, (4, 3)), {"padding": "same"}, (4, 6, 7)),
    "conv2d same dilated": (tnn.Conv2d, nn.Conv2d, (4, 6, 2), {"padding": "same", "dilation": 3}, (4, 6, 7)),
    "conv2d valid": (tnn.Conv2d, nn.Conv2d, (4, 6, 3), {"padding": "valid", "groups": 2}, (4, 6, 7)),
}
KINDS = ("train", "constant", "impulse")


def signal(kind, *shape, T=8, gain=1.0, dtype=F64):
    if kind == "train":
        return train_with_edge(T, *shape, gain=gain, dtype=dtype)
    x = torch.randn(*shape, dtype=dtype, requires_grad=True)
    return (te.ConstantInput if kind == "constant" else te.ImpulseInput)(x, T, gain)


def leaf(x):
    return x.counts if isinstance(x, te.SpikeTrain) else x.x


def gate(z, loss_weights, threshold=1.0):
    """A function of z whose gradient is that of Σ loss_weights·counts by the rule."""
    return (torch.where(z.detach() > 0, z, 0) / threshold * loss_weights).sum()


def pair(name, norm=True, **options):
    """A layer, its twin and the features of their input."""
    cls, _, sizes, geometry, features = LAYERS[name]
    layer = cls(*sizes, **geometry, norm=norm, dtype=F64, **options)
    twin = getattr(ann, cls.__name__)(*sizes, **geometry, norm=norm, dtype=F64)
    if norm:
        twin.norm.momentum = layer.norm.momentum
        nn.init.normal_(layer.norm.weight)
        nn.init.normal_(layer.norm.bias)
    twin.load_state_dict(layer.state_dict(), strict=not torch.is_tensor(options.get("threshold")))
    return layer, twin, features


@pytest.mark.parametrize("norm", [None, "batch", "running"])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_and_statistics_are_the_twins(name, norm, timing):
    """In training and, with the statistics that came of it, in evaluation."""
    stats = {"norm": False} if norm is None else {"bn_stats": norm}
    layer, twin, features = pair(name, **stats, threshold=0.75, timing=timing, gate="relu")
    for training, kind in itertools.product((True, False), KINDS):
        x = signal(kind, 6, *features, gain=0.5)
        counts = leaf(x).detach().clone().requires_grad_()
        times = 8 if kind == "constant" else 1
        out, z = layer.train(training)(x), twin.train(training).preactivation(0.5 * times * counts)
        w = torch.randn(out.shape, dtype=F64)
        # A bias before a batch norm has none: rounding on the twin's side.
        names = [n for n, _ in layer.named_parameters() if n != "bias" or norm is None or not training]
        got = torch.autograd.grad((out.counts * w).sum(), [*map(layer.get_parameter, names), leaf(x)])
        expected = torch.autograd.grad(gate(z, w, 0.75), [*map(twin.get_parameter, names), counts])
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)
        for key, value in twin.state_dict().items():
            torch.testing.assert_close(layer.state_dict()[key], value, msg=key)
        if norm is None or not training:
            torch.testing.assert_close(layer.preactivation(x), z)


@pytest.mark.parametrize("gate", ["relu", "clip"])
def test_the_release_fires_by_the_running_statistics_with_each_gate_and_a_learned_threshold(gate):
    theta = nn.Parameter(torch.full((5,), 0.5, dtype=F64))
    layer, _, features = pair("linear", bn_stats="running", gate=gate, threshold=theta)
    x = train_with_edge(8, 6, *features, dtype=F64)
    residual = train_with_edge(8, 6, 5, gain=0.5, dtype=F64)
    train = layer(x, residual=residual)
    assert layer.norm.momentum == 0.9
    evaluated = copy.deepcopy(layer).eval()(x, residual=residual)
    assert torch.equal(train.planes, evaluated.planes)  # the running statistics already include the batch
    layer.norm.momentum = 0.0
    z = layer.preactivation(x, residual)
    opened = (z > 0) & ((z < 8 * 0.5) | (gate == "relu"))
    w = torch.randn_like(z)
    got = torch.autograd.grad((train.counts * w).sum(), [theta, residual.counts])
    torch.testing.assert_close(got[0], -(w * opened * train.counts / 0.5).sum(0))
    torch.testing.assert_close(got[1], 0.5 * w * opened / 0.5)


@pytest.mark.parametrize("order", [1, -1])
def test_a_layer_may_read_currents_in_one_place_and_spikes_in_another(order, timing):
    """It has the gradients of two layers, of which the second begins with the statistics of the first."""
    x = te.SpikeTrain.from_counts(torch.randint(6, (4, 3, 7, 9)), 5)
    with torch.no_grad():
        inputs = [tnn.Conv2d(3, 16, 1, neurons=neurons, timing=timing)(x) for neurons in (False, True)][::order]
    tied = tnn.Conv2d(16, 16, 3, padding=1, norm=True, timing=timing)
    first, second = copy.deepcopy(tied), copy.deepcopy(tied)
    expected = first(inputs[0]).counts.square().sum()
    second.norm.load_state_dict(first.norm.state_dict())
    (expected + second(inputs[1]).counts.square().sum()).backward()
    sum(tied(x).counts.square().sum() for x in inputs).backward()
    for both, a, b in zip(*(layer.parameters() for layer in (tied, first, second)), strict=True):
        assert torch.equal(both.grad, a.grad + b.grad)
    for a, b in zip(tied.norm.buffers(), second.norm.buffers(), strict=True):
        assert torch.equal(a, b)


def test_momentum_none_averages_and_norm_eval_freezes():
    layer, twin, features = pair("conv2d")
    layer.norm.momentum = twin.norm.momentum = None
    for _ in range(3):
        x = torch.randn(4, *features, dtype=F64)
        layer(te.ConstantInput(x, 2))
        twin(2 * x)
    torch.testing.assert_close(layer.norm.running_var, twin.norm.running_var)
    layer.norm.eval()
    before = layer.norm.running_mean.clone()
    layer(te.ConstantInput(x, 2))
    assert torch.equal(layer.norm.running_mean, before)


@pytest.mark.parametrize("affine", [True, False])
def test_without_running_statistics_evaluation_uses_the_batch(affine):
    layer, _, features = pair("linear")
    layer.norm = nn.BatchNorm1d(5, affine=affine, track_running_stats=False, dtype=F64)
    x = te.ConstantInput(torch.randn(6, *features, dtype=F64), 8)
    y = layer(x)
    assert torch.equal(y.planes, layer.eval()(x).planes)
    y.counts.sum().backward()
    assert torch.equal(layer.bias.grad, torch.zeros(5, dtype=F64))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_state_dict_goes_to_the_twin_and_back(name, norm):
    _, torchs, sizes, options, _ = LAYERS[name]
    layer, twin, features = pair(name, norm)
    assert layer.load_state_dict(twin.state_dict())
    keys = torchs(*sizes, **options).state_dict()
    keys |= {f"norm.{key}": value for key, value in layer._norm_class(sizes[1]).state_dict().items()} if norm else {}
    assert layer.load_state_dict(keys)
    assert list(layer.state_dict()) == list(twin.state_dict())
    x = torch.randn(2, *features, dtype=F64)
    assert twin(x).shape == layer(te.ConstantInput(x, 4)).shape


def test_moves_and_factory_arguments_reach_every_tensor():
    net = nn.Sequential(tnn.Encoder(8), tnn.Linear(4, 3, norm=True, threshold=torch.tensor(0.5)), tnn.Readout(3, 2))
    x = torch.randn(5, 4)
    double = net.to(F64)
    assert double(x.double()).dtype == F64
    assert double[1].threshold.dtype == F64
    half = copy.deepcopy(net).to(torch.bfloat16)
    assert half(x.bfloat16()).dtype == torch.bfloat16
    meta = net.to("meta")
    assert meta(x.to("meta", F64)).shape == (5, 2)
    layers = (
        tnn.Linear(4, 3, norm=True, device="meta", dtype=F64), tnn.Conv1d(4, 3, 2, norm=True, device="meta"),
        tnn.Conv2d(4, 3, 2, norm=True, device="meta"), tnn.Readout(3, 2, device="meta"),
    )  # fmt: skip
    for layer in layers:
        assert isinstance(layer, getattr(nn, type(layer).__name__, nn.Linear))
        assert all(t.is_meta for t in [*layer.parameters(), *layer.buffers()])
    assert {p.dtype for p in layers[0].parameters()} == {F64}


def test_encoder_modes():
    x, train = torch.randn(2, 3), te.SpikeTrain.from_dense(torch.ones(8, 2, 3))
    assert torch.equal(effective_counts(tnn.Encoder(8)(x)), x)
    assert torch.equal(tnn.Encoder(8, gain=8)(x).counts, 8 * x)
    assert torch.equal(tnn.Encoder(8, mode="zero_expand", gain=0.5)(x).counts, x)
    assert tnn.Encoder(8, gain=0.5)(x).gain == 0.5 / 8
    assert tnn.Encoder(8, "events")(train) is train
    for options in ({}, {"mode": "zero_expand", "gain": 0.5}, {"gain": 8.0}):
        encoder = tnn.Encoder(8, **options)
        assert torch.equal(ann.Encoder(8, **options)(x), effective_counts(encoder(x)))
        assert torch.equal(to_ann(encoder)(x), effective_counts(encoder(x)))


@pytest.mark.parametrize(("T", "error"), [(0, ValueError), ("8", TypeError), (None, TypeError)])
def test_the_T_of_an_encoder_is_checked_when_it_is_set(T, error):
    encoder = tnn.Encoder(8)
    with pytest.raises(error, match="T: expected"):
        encoder.T = T
    encoder.T = 4
    assert encoder(torch.ones(1, 2)).T == 4


@pytest.mark.parametrize(("layer", "text"), [
    (tnn.Linear(4, 3), "Linear(in_features=4, out_features=3, bias=True)"),
    (tnn.Linear(4, 3, leak=0.5, threshold=torch.ones(3)),
     "Linear(in_features=4, out_features=3, bias=True, threshold=Tensor[3], leak=0.5)"),
    (tnn.Readout(4, 3), "Readout(in_features=4, out_features=3, bias=True)"),
    (tnn.Readout(4, 3, weight_bits=5), "Readout(in_features=4, out_features=3, bias=True, weight_bits=5)"),
    (tnn.Encoder(4), "Encoder(T=4, mode='direct')"),
    (tnn.AvgPool2d(2, v_init=0.5),
     "AvgPool2d(kernel_size=(2, 2), stride=(2, 2), padding=(0, 0), spiking=True, v_init=0.5)"),
], ids=lambda value: str(value)[:8])  # fmt: skip
def test_reprs_name_what_is_not_default(layer, text):
    assert repr(layer) == text


@pytest.mark.parametrize("kind", [*KINDS, "tensor"])
def test_readout_is_a_linear_map_of_what_the_counts_are_worth(kind):
    readout = tnn.Readout(3, 2, dtype=F64)
    x = torch.rand(5, 3, dtype=F64) if kind == "tensor" else signal(kind, 5, 3, gain=0.25)
    worth = x if kind == "tensor" else 0.25 * x.counts
    torch.testing.assert_close(readout(x), F.linear(worth, readout.weight, readout.bias))
    assert not tnn.Readout(3, 2, bias=False).bias


@pytest.mark.parametrize(("given", "name", "value", "error", "message"), [
    *(({}, name, value, error, f"{name}: expected") for name, value, error in (
        ("threshold", -1, ValueError), ("threshold", "1", TypeError), ("threshold", math.nan, ValueError),
        ("leak", 1.5, ValueError), ("leak", None, TypeError), ("gate", "sigmoid", ValueError),
        ("bn_stats", "ema", ValueError), ("v_init", math.nan, ValueError), ("gain", math.inf, ValueError),
        ("gain", "threshold", TypeError), ("gain", torch.ones(3), ValueError),
        ("gain", torch.ones(2, dtype=torch.int64), TypeError), ("timing", "late", ValueError),
        ("weight_bits", 1, ValueError), ("weight_bits", 9, ValueError), ("weight_bits", 4.0, TypeError),
        ("weight_bits", True, TypeError),
    )),
    ({"leak": 0.9}, "timing", "window", ValueError, "leak: with timing='window' neurons do not leak"),
    ({"timing": "window"}, "leak", 0.9, ValueError, "leak: with timing='window'"),
])  # fmt: skip
@pytest.mark.parametrize("make", [lambda **o: tnn.Linear(3, 2, **o), lambda **o: tnn.Conv2d(2, 2, 3, **o)])
def test_an_attribute_is_checked_when_it_is_given_and_when_it_is_set(make, given, name, value, error, message):
    with pytest.raises(error, match=message):
        make(**given, **{name: value})
    layer = make(**given)
    before = getattr(layer, name)
    with pytest.raises(error, match=message):
        setattr(layer, name, value)
    assert getattr(layer, name) == before


def test_an_attribute_that_is_set_counts_in_the_next_call():
    layer, x = tnn.Linear(3, 2, bias=False, threshold=1.0), te.SpikeTrain.from_dense(torch.ones(4, 1, 3))
    torch.nn.init.constant_(layer.weight, 0.25)
    assert layer(x).counts.tolist() == [[3, 3]]
    layer.threshold = 1.5
    assert layer(x).counts.tolist() == [[2, 2]]
    layer.v_init, layer.leak = 1.0, 0.5
    assert layer(x).counts.tolist() == [[1, 1]]
    layer.threshold = torch.tensor([1.5, 1.0])
    layer.gain = layer.v_init = torch.tensor(0.5)
    assert layer.state_dict().keys() == {"weight", "threshold", "v_init", "gain"}
    layer.threshold, layer.v_init, layer.gain = 1.5, torch.nn.Parameter(torch.zeros(2)), None
    assert layer.state_dict().keys() == {"weight", "v_init"}
    layer.v_init = torch.ones(2)
    assert (layer(x).counts.tolist(), layer(x).gain, len(list(layer.parameters()))) == ([[1, 1]], 1.5, 1)


@pytest.mark.parametrize("norm", [torch.nn.Identity(), torch.nn.InstanceNorm1d(4), torch.nn.LayerNorm(4)], ids=str)
def test_only_batch_norm_is_between_synapses_and_neurons(norm):
    layer = tnn.Linear(4, 4, norm=True)
    for replace in (layer.__setattr__, layer.add_module):
        with pytest.raises(TypeError, match=r"norm: expected a batch norm of torch\.nn or None"):
            replace("norm", norm)
    layer.norm = torch.nn.SyncBatchNorm(4)
    assert isinstance(layer.norm, tnn.SyncBatchNorm)
