"""Every model: both branches, its twin, frozen, counted; and the notation they are written in."""

import pytest
import torch
from torch import nn

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn import create_model, create_twin, freeze, list_models, measure
from tandem_snn.errors import UserError

SHAPES = {
    "alexnet": (3, 64, 64), "dvs-gesture-net": (2, 32, 32), "mlp": (20,), "n-mnist-net": (2, 12, 12),
    "dvs-cifar10-net": (2, 16, 16), "resnet18": (3, 64, 64), "vgg11": (3, 16, 16), "vgg16": (3, 32, 32),
}  # fmt: skip
SMALL = {"classes": 10, "T": 4, "width": 0.05}


def options(name):
    return {"shape": SHAPES.get(name, (3, 8, 8)), **SMALL}


def inputs(name, batch=3):
    shape = SHAPES.get(name, (3, 8, 8))
    if name in ("n-mnist-net", "dvs-cifar10-net", "dvs-gesture-net"):
        return te.SpikeTrain.from_dense(torch.rand(4, batch, *shape).lt(0.3).float())
    return torch.randn(batch, *shape)


@pytest.mark.parametrize("name", list_models())
def test_every_model_learns_is_frozen_and_counted(name):
    net, twin, x = create_model(name, **options(name)), create_twin(name, **options(name)), inputs(name)
    twin.load_state_dict(net.state_dict())
    net.load_state_dict(twin.state_dict())
    for each in net, twin:
        answer = each(x)
        assert answer.shape == (3, 10)
        answer.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in each.parameters())
    net(x)
    frozen, expected = freeze(net.eval()), net(x)
    assert torch.equal(frozen(x), expected)
    assert all(program.refusal is None for program in frozen._programs.values())
    for step in x.to_dense() if isinstance(x, te.SpikeTrain) else [x] * 4:
        so_far = frozen.step(step)
    assert torch.equal(so_far, expected)
    ops = measure.synops(net, x)
    layers = [m for m in net.modules() if isinstance(m, tnn.SpikingLayer | tnn.Readout | tnn.AvgPool2d)]
    assert len(ops.layers) == len(layers)
    assert ops.ann > 0
    assert ops.snn > 0
    assert list(measure.mismatch(net, x)) == list(measure.firing_rates(net, x))


NEURONS = [
    {"leak": 0.9}, {"gate": "clip", "v_init": 0.5, "threshold": 2.0}, {"gate": "resu"}, {"norm": False},
    {"encoding": "zero_expand", "gamma": 1.0, "momentum": 0.2}, {"bn_stats": "running"}, {"learn_threshold": "layer"},
    {"learn_threshold": "channel", "threshold": 1.5}, {"weight_bits": 4}, {"weight_bits": 8},
]  # fmt: skip


@pytest.mark.parametrize("neurons", NEURONS, ids=str)
@pytest.mark.parametrize("name", ["cnn", "resnet18-cifar", "8C3-MP2-8C3-AP2-FC16"])
def test_neurons_of_every_kind_learn_and_freeze(name, neurons):
    torch.manual_seed(1)
    net = create_model(name, **{**options(name), "width": 0.2}, **neurons)
    x, y = torch.randn(16, 3, 8, 8), torch.arange(16) % 10
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < losses[0]
    net.eval()
    assert torch.equal(freeze(net)(x), net(x))


def test_thresholds_are_learned_per_layer_or_channel():
    net = create_model("cnn", **options("cnn"), learn_threshold="channel", threshold=1.5)
    assert net.conv1.threshold.shape == (net.conv1.out_channels,)
    net(torch.rand(2, 3, 8, 8)).sum().backward()
    assert net.conv1.threshold.grad.abs().sum() > 0
    net = create_model("cnn", **options("cnn"), learn_threshold="layer")
    assert net.conv1.threshold.shape == ()
    assert net.conv1.threshold is not net.conv2.threshold


def test_the_published_sizes():
    """Parameters as counted in the released code, less the biases that its batch norms cancel."""
    net = create_twin("cifarnet", shape=(3, 32, 32), classes=10)
    biases = 128 + 256 + 512 + 1024 + 512 + 1024
    assert sum(p.numel() for p in net.parameters()) + biases == pytest.approx(44.49e6, rel=1e-3)
    macs = measure.synops(create_model("cifarnet", shape=(3, 32, 32), classes=10, T=1), torch.rand(1, 3, 32, 32)).ann
    assert macs == pytest.approx(792.1e6, rel=1e-3)


def test_an_architecture_may_be_written_out():
    net = create_model("4C3s2-AP2-8C5p0-D0.1-FC7", shape=(1, 28, 28), classes=3, T=8, dropout=0.5)
    assert [name for name, _ in net.named_children()] == [
        "encoder", "conv1", "pool1", "conv2", "dropout1", "flatten", "fc1", "readout",
    ]  # fmt: skip
    assert net.dropout1.p == 0.5
    assert net(torch.rand(2, 1, 28, 28)).shape == (2, 3)


@pytest.mark.parametrize("name", list_models())
def test_a_named_network_knows_what_it_is_made_for(name):
    with torch.device("meta"):
        net, twin = create_model(name), create_twin(name)
    assert {key: t.shape for key, t in net.state_dict().items()} == {k: t.shape for k, t in twin.state_dict().items()}
    assert net.encoder.T == 8


def test_shapes_and_classes_of_ones_own():
    assert create_model("resnet18-cifar", classes=100, width=0.1).readout.out_features == 100
    assert create_model("cnn", shape=(3, 8, 8)).conv1.in_channels == 3
    assert create_model("autoencoder", shape=(1, 8, 8)).readout.out_features == 64
    for known in {}, {"shape": (1, 8, 8)}, {"classes": 3}:
        with pytest.raises(UserError, match="architecture '8C3' has no defaults, so expected both"):
            create_model("8C3", **known)


BAD = {
    "shape": (28, (0, 28, 28), (1.5, 28, 28), "abc", (1, -3, 5)), "classes": (2.5, "10", True, -1),
    "width": (float("inf"), float("nan"), "1", 0, "wide"), "norm": ("no", 1), "threshold": ("a", -1.0), "gamma": ("x",),
    "v_init": ("x", float("nan")), "dropout": (2, 1.0, -0.1, "x"), "eps": (-1, "x"), "momentum": (2, "x"),
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values])
def test_arguments_are_named_when_they_are_refused(key, value):
    with pytest.raises(ValueError, match=f"^{key}: expected "):
        create_model("mlp", **{key: value})


def test_a_name_is_text():
    with pytest.raises(TypeError, match="name: expected a model's name, got None"):
        create_model(None)


@pytest.mark.parametrize(("name", "changes", "message"), [
    ("cmn", {}, "did you mean 'cnn'"),
    ("32C3-FC", {}, "unknown model '32C3-FC': 'FC' is neither nCk"),
    ("FC0", {}, "model 'FC0': the numbers of 'FC0' must be 1 or more"),
    ("8C3-MP2-MP2-MP2-MP2", {}, r"too small: at 'MP2' nothing of \[1, 1, 1\] is left"),
    ("8C3", {"shape": (64,)}, r"'8C3' works on images .* shape \[64\]"),
    ("FC8-8C3", {"shape": (64,)}, r"'8C3' works on images .* shape \[1\]"),
    ("cnn", {"width": -1.0}, "width: expected a positive number"),
    ("cnn", {"classes": 0}, "classes: expected at least 1, got 0"),
    ("cnn", {"leek": 0.9}, "leek"),
    ("cnn", {"learn_threshold": "chanel"}, "unknown learn_threshold 'chanel': did you mean 'channel'"),
    ("mlp", {"dropout": 0.5}, r"dropout: 'mlp' has no dropout whose probability could be 0\.5"),
    ("32C3-banana", {}, "unknown model '32C3-banana': 'banana' is neither"),
])  # fmt: skip
def test_what_cannot_be_built(name, changes, message):
    with pytest.raises(TypeError if "leek" in changes else UserError, match=message):
        create_model(name, **options(name) | changes)


def test_an_encoder_of_events_lets_them_pass():
    train = te.SpikeTrain.from_dense(torch.ones(8, 2, 3))
    encoder = tnn.Encoder(8, "events")
    assert encoder(train) is train
    with pytest.raises(TypeError, match="takes a SpikeTrain, got a tensor of shape"):
        encoder(torch.ones(2, 3))
    with pytest.raises(TypeError, match="Encoder with mode \"events\", this one has 'direct'"):
        tnn.Encoder(8)(train)
    with pytest.raises(ValueError, match="T=8 takes a SpikeTrain of as many steps, got T=4"):
        encoder(te.SpikeTrain.from_dense(torch.ones(4, 2, 3)))
