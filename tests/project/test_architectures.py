"""Networks of the experiments: every name learns, is frozen and counted, has a twin, and can start from it."""

from itertools import product

import pytest
import torch
from networks import assert_frozen_is, settled

import tandem_ext as te
import tandem_snn.nn as tnn
from architectures import MODELS, create
from tandem_snn import ann, measure, to_ann

SHAPES = {
    "dvs-gesture-net": (2, 32, 32), "mlp": (20,), "n-mnist-net": (2, 12, 12), "dvs-cifar10-net": (2, 16, 16),
    "vgg11": (3, 16, 16), "vgg16": (3, 32, 32),
}  # fmt: skip
EVENTS = ("n-mnist-net", "dvs-cifar10-net", "dvs-gesture-net")
TRANSFORMERS, TOKENS = ("spikformer-small", "sdt-small"), {"timing": "window", "width": 0.25}
COLOUR = (3, 8, 8)
SMALL = ("resnet18", "8C3-MP2-8C3-AP2-FC16")
OPTIONS = {"T": 16, "width": 0.2}


def small(layers, name, **options):
    return create(layers, name, SHAPES.get(name, COLOUR), 10, 4, **{"width": 0.05, "events": name in EVENTS, **options})


@pytest.mark.parametrize(("name", "neurons"), [*((name, TOKENS if name in TRANSFORMERS else {}) for name in MODELS),
    *product(SMALL, [
    {"leak": 0.9}, {"gate": "relu", "v_init": 0.5, "threshold": 2.0}, {"norm": False}, {"gamma": 1.0, "momentum": 0.2},
    {"bn_stats": "running"}, {"learn_threshold": "layer"}, {"learn_threshold": "channel", "threshold": 1.5},
    {"weight_bits": 4}, {"weight_bits": 8}, {"timing": "window"},
])])  # fmt: skip
def test_every_model_learns_is_frozen_and_counted(name, neurons):
    net, twin, shape = small(tnn, name, **neurons), small(ann, name, **neurons), SHAPES.get(name, COLOUR)
    x = torch.randn(3, *shape)
    if name in EVENTS:
        x = te.SpikeTrain.from_dense(torch.rand(4, 3, *shape).lt(0.3).float())
    silent = [f"block{i}.shortcut.threshold" for i in (3, 5, 7)]  # they give currents
    if "learn_threshold" not in neurons:
        twin.load_state_dict(net.state_dict())
        net.load_state_dict(twin.state_dict())
    for each in net, twin:
        answer = each(x)
        assert answer.shape == (3, 10)
        answer.square().sum().backward()
        trained = [p for name, p in each.named_parameters() if name not in silent]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    net(x)
    assert_frozen_is(net.eval(), x)
    ops = measure.synops(net, x)
    counted = [
        m for m in net.modules() if isinstance(m, tnn.SpikingLayer | tnn.Readout | tnn.AvgPool2d | tnn.Attention)
    ]
    assert len(ops.layers) == sum(not isinstance(m, tnn.Neurons) and getattr(m, "spiking", True) for m in counted)
    assert min(ops.ann, ops.snn) > 0
    assert {*measure.mismatch(net, x)} == {*measure.firing_rates(net, x)} - {"pool2", "average"}


def test_settings_reach_their_neurons():
    net = small(tnn, "cnn", learn_threshold="channel", threshold=1.5, timing="window", v_init=0.25)
    assert net.conv1.threshold.shape == (net.conv1.out_channels,)
    assert (net.conv1.v_init, net.conv1.timing) == (0.375, "window")  # v_init is in thresholds
    net(torch.rand(2, 3, 8, 8)).sum().backward()
    assert net.conv1.threshold.grad.abs().sum() > 0
    net = small(tnn, "cnn", learn_threshold="layer")
    assert net.conv1.threshold.shape == ()
    assert net.conv1.threshold is not net.conv2.threshold
    assert net.conv1.threshold.item() == pytest.approx(tnn.default_threshold(4))
    assert small(tnn, "cnn", v_init=0.25).conv1.v_init == 0.25


def test_written_out_and_published_sizes():
    """Parameters as counted in the released code, less the biases that its batch norms cancel."""
    net = create(tnn, "4C3s2-AP2-8C5-D0.1-FC7", (1, 28, 28), 3)
    assert [name for name, _ in net.named_children()] == [
        "encoder", "conv1", "pool1", "conv2", "dropout1", "flatten", "fc1", "readout",
    ]  # fmt: skip
    assert net(torch.rand(2, 1, 28, 28)).shape == (2, 3)
    net = create(ann, "cifarnet", (3, 32, 32), 10)
    biases = 128 + 256 + 512 + 1024 + 512 + 1024
    assert sum(p.numel() for p in net.parameters()) + biases == pytest.approx(44.49e6, rel=1e-3)
    macs = measure.synops(create(tnn, "cifarnet", (3, 32, 32), 10, 1), torch.rand(1, 3, 32, 32)).ann
    assert macs == pytest.approx(792.1e6, rel=1e-3)


@pytest.mark.parametrize(("name", "shape", "message"), [
    ("cmn", COLOUR, "unknown model 'cmn': 'cmn' is no layer .* none of alexnet, "),
    ("32C3-FC", COLOUR, "unknown model '32C3-FC': 'FC' is no layer"), ("FC0", COLOUR, "'FC0' is no layer"),
    ("8C3-MP2-MP2-MP2-MP2", COLOUR, r"nothing of \[8, 1, 1\] is left after MP2"),
    ("8C3", (64,), r"8C3 works on images .* meet \[64\]"), ("FC8-8C3", (64,), r"8C3 works on images .* meet \[8\]"),
])  # fmt: skip
def test_what_cannot_be_built(name, shape, message):
    with pytest.raises(ValueError, match=message):
        create(tnn, name, shape, 10)


def trained(name, **options):
    """An ANN whose batch norms have seen data and have parameters of their own."""
    torch.manual_seed(2)
    return settled(create(ann, name, COLOUR, 10, **OPTIONS, **options), torch.randn(64, *COLOUR))


@pytest.mark.parametrize(("name", "options"), [
    ("cnn", {}), ("resnet18", {}), ("8C3-MP2-8C3-AP2-FC16", {}), ("cnn", {"norm": False}), ("cnn", {"threshold": 2.0}),
    ("cnn", {"learn_threshold": "channel", "threshold": 0.5}),
])  # fmt: skip
def test_a_checkpoint_of_the_twin_is_one_of_the_network(name, options):
    """With real numbers in the place of counts, it is the twin."""
    twin, net = trained(name, norm=options.get("norm", True)), create(tnn, name, COLOUR, 10, **OPTIONS, **options)
    net.load_state_dict(twin.state_dict(), strict="learn_threshold" not in options)
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(to_ann(net.eval())(x), twin(x))


def test_many_steps_answer_as_the_trained_network():
    twin, net = trained("cnn"), create(tnn, "cnn", COLOUR, 10, T=255, width=0.2, timing="window")
    net.load_state_dict(twin.state_dict())
    x = torch.randn(32, 3, 8, 8)
    ours, theirs = net.eval()(x), twin(x)
    assert (ours - theirs).norm() < 0.05 * theirs.norm()


def test_a_vit_is_as_large_as_a_transformer_of_spikes():
    sizes = []
    for softmax in (False, True):
        net = create(ann, "spikformer-small", (1, 28, 28), 10, timing="window", softmax=softmax)
        assert net(torch.rand(2, 1, 28, 28)).shape == (2, 10)
        sizes.append(sum(p.numel() for p in net.parameters()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)
    for model, why in (("8C3-8T2", "end in GAP"), ("8C3-8T2-FC4", "GAP alone"), ("8C3-16T2-GAP", "takes 16 channels")):
        with pytest.raises(ValueError, match=why):
            create(tnn, model, (1, 8, 8), 10, timing="window")
