"""Where a potential, threshold or statistic of a sample is not finite, its logits are NaN; nothing else changes."""

import copy
import dataclasses
import math
import pickle

import networks
import pytest
import torch
from cases import dyadic, train
from networks import by_onnxruntime, exported, in_windows
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.data import default_collate

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_ext.functional.layer import window_product
from tandem_ext.functional.products import LINEAR

NAN, INF = math.nan, math.inf
f, ref = te.functional, te.reference
T = 4


NETS = {"mlp": networks.mlp, "conv": networks.conv, "projection": networks.projection}


def made(name, value=NAN):
    """A network in evaluation mode, inputs, and the same with one number of sample 1 replaced."""
    net, x = NETS[name]()
    bad = x[:4].clone()
    bad[1].view(-1)[3] = value
    return net.eval(), x[:4], bad


def bad_train(*shape, sample=1):
    bad = torch.where(torch.arange(shape[0]) == sample, NAN, 0.0)
    return te.SpikeTrain(train(T, *shape).planes, T, bad=bad)


def clean(x):
    return te.SpikeTrain(x.planes, T)


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def spoiled_rows(logits):
    """Which samples are NaN: all of a row or none of it."""
    rows = logits.isnan().flatten(1)
    assert torch.equal(rows.all(1), rows.any(1))
    return rows.any(1).nonzero().flatten().tolist()


def check_sample_1(got, want):
    """As ``want``, but for sample 1, which is NaN. torch's own first product may round otherwise in another layout."""
    assert spoiled_rows(got) == [1]
    keep = [0, 2, 3]
    same(got[keep], want[keep])


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("grad", [False, True])
def test_an_input_spoils_its_own_sample(name, value, grad):
    net, x, bad = made(name, value)
    with torch.set_grad_enabled(grad):
        check_sample_1(net(bad), net(x))


def loaded(net, folder):
    ts.freeze(net).save(folder / "net.tandem")
    return ts.load(folder / "net.tandem")


@pytest.mark.parametrize("way", [
    lambda net, x, bad, _: [torch.compile(net, backend="aot_eager", fullgraph=True)(bad)],
    lambda net, x, bad, _: [exported(net, x)(bad)], lambda net, x, bad, _: [ts.freeze(net)(bad)],
    lambda net, x, bad, _: [*map(ts.freeze(net).step, [bad] * (24 if net[1].timing == "window" else 8))],
    lambda net, x, bad, _: ts.freeze(net).readouts(bad), lambda net, x, bad, folder: [loaded(net, folder)(bad)],
])  # fmt: skip
@torch.no_grad()
def test_wherever_a_network_runs(way, timing, tmp_path):
    net, x, bad = made("mlp")
    net = in_windows(net) if timing == "window" else net
    answers = way(net, x, bad, tmp_path)
    assert all(spoiled_rows(answer) == [1] for answer in answers)
    check_sample_1(answers[-1], net(x))


@pytest.mark.parametrize("statistics", ["batch", "running", "synchronised"])
def test_a_bad_sample_in_the_statistics_spoils_the_batch(statistics):
    layer = tnn.Linear(7, 5, norm=True, bn_stats="running" if statistics == "running" else "batch")
    if statistics == "synchronised":
        layer.norm = nn.SyncBatchNorm.convert_sync_batchnorm(layer.norm)
    bad = bad_train(3, 7)
    assert spoiled_rows(layer(bad).counts) == [0, 1, 2]
    if statistics == "batch":
        assert spoiled_rows(layer(clean(bad)).counts) == []
        assert spoiled_rows(layer.eval()(bad).counts) == [1]


@pytest.mark.parametrize(("what", "value"), [
    ("1.weight", NAN), ("1.weight", INF), ("2.weight", NAN), ("2.weight", INF), ("2.bias", NAN), ("2.norm.weight", NAN),
    ("2.threshold", INF), ("2.norm.running_var", NAN), ("2.norm.running_var", INF),
])  # fmt: skip
def test_constants_spoil_every_sample_and_are_not_frozen(what, value):
    layers = tnn.Linear(6, 9, norm=True), tnn.Linear(9, 5, norm=True, threshold=torch.ones(5)), tnn.Readout(5, 3)
    net = nn.Sequential(tnn.Encoder(T), *layers).eval()
    net.state_dict()[what].view(-1)[4] = value
    assert spoiled_rows(net(torch.rand(3, 6))) == [0, 1, 2]
    with pytest.raises(ValueError, match=f"net: layer '{what[0]}' has a .* that is not finite"):
        ts.freeze(net)


def test_a_statistic_that_overflows_spoils_the_batch():
    """The variance of finite numbers is infinite, their mean is not."""
    x, weight = train(T, 16, 3), torch.full((2, 3), 1e20)
    result, mean, var = f.bn_if(x, weight)
    assert mean.isfinite().all()
    assert var.isinf().all()
    assert spoiled_rows(result.counts) == list(range(16))


def test_gradients_are_nan_where_guards_look():
    net, x, bad = made("mlp")
    nn.functional.cross_entropy(net(x), torch.arange(4) % 3).backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0, error_if_nonfinite=True)
    net.zero_grad()
    nn.functional.cross_entropy(net(bad), torch.arange(4) % 3).backward()
    with pytest.raises(RuntimeError, match="non-finite"):
        nn.utils.clip_grad_norm_(net.parameters(), 1.0, error_if_nonfinite=True)


def late():
    """A network whose potentials overflow at step 2, and its input."""
    net = nn.Sequential(tnn.Encoder(T, gain=T), tnn.Linear(1, 1, bias=False, threshold=1.0), tnn.Readout(1, 2))
    net[1].weight.data.fill_(1.25e38)
    return net.eval(), torch.tensor([[0.5], [1.0]])


def test_a_stream_is_spoiled_from_its_step_on_and_never_confident():
    net, x = late()
    frozen = ts.freeze(net)
    steps = torch.stack([frozen.step(x) for _ in range(T)])
    assert [spoiled_rows(answer) for answer in steps] == [[], [], [1], [1]]
    same(frozen.readouts(x), steps)
    same(frozen(x), steps[-1])
    net, _, bad = made("mlp")
    _, steps = ts.freeze(net).anytime(bad, confidence=0.01)
    assert steps.tolist() == [1, 8, 1, 1]


def test_neurons_that_follow_are_spoiled_by_the_present_input_only():
    net, x, bad = made("mlp")
    frozen = ts.freeze(in_windows(net))
    for image, spoilt in (x, []), (bad, [1]), (bad, [1]), (x, []), (bad, [1]), (x, []):
        assert spoiled_rows(frozen.step(image)) == spoilt
        answer, _ = frozen.settle(image)
        assert spoiled_rows(answer) == spoilt
        same(answer, frozen(image))


def test_a_bad_train_spoils_a_frozen_network_and_a_stream_until_it_has_left():
    net = nn.Sequential(tnn.Linear(7, 5), tnn.Readout(5, 3)).eval()
    x = bad_train(4, 7)
    frozen = ts.freeze(net, T=T)
    for answer in frozen(x), frozen.readouts(x)[-1]:
        check_sample_1(answer, frozen(clean(x)))
    layers = ts.freeze(nn.Sequential(net, nn.LeakyReLU(1.0)), T=T)  # which has no program
    check_sample_1(layers(x), net(clean(x)))
    net = in_windows(nn.Sequential(tnn.Linear(7, 5), tnn.Readout(5, 3)).eval())
    x, frozen = bad_train(4, 7), ts.freeze(net, T=T)
    assert spoiled_rows(frozen.settle(x)[0]) == [1]
    for step in range(T):
        assert spoiled_rows(frozen.settle(torch.zeros(4, 7))[0]) == ([1] if step < T - 1 else [])


def test_onnx_spoils_the_same_samples(tmp_path):
    pytest.importorskip("onnx")
    for (net, x), steps in ((late(), [[], [], [1], [1]]), (made("conv")[::2], [[1]] * 8)):
        ts.to_onnx(net, tmp_path / "net.onnx", x)
        _, answers = by_onnxruntime(tmp_path / "net.onnx", x)
        assert [spoiled_rows(answer) for answer in answers] == steps
    for threshold in 1.0, 0.7:
        net, _, bad = made("conv")
        net = in_windows(net)
        net[1].threshold = threshold
        ts.to_onnx(net, tmp_path / "window.onnx", bad)
        _, (answer,) = by_onnxruntime(tmp_path / "window.onnx", bad)
        assert spoiled_rows(answer) == [1]


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("shape", [(3, 5, 7), (300, 100, 150)])  # prepared tile by tile, and at once
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_output_with_such_a_weight_has_nan_at_every_step(shape, dtype, value):
    """And no variance; nor does a running statistic that takes it up, as torch's does not."""
    B, N, K = shape
    x, weight = train(9, B, K), dyadic(N, K, dtype=dtype)
    weight[N // 2, 1] = value
    (ours, v), (theirs, w) = (m.linear_if(x, weight, return_v=True) for m in (f, ref))
    assert torch.equal(ours.planes, theirs.planes)
    same(v, w)
    assert v.isnan().any(0).nonzero().flatten().tolist() == [N // 2]
    assert ours.bad.isnan().all()
    assert theirs.bad.isnan().all()
    u = window_product(x, weight, LINEAR)
    assert u.isnan().all(0).nonzero().flatten().tolist() == [N // 2]
    (_, mean, var), (_, *expected) = (m.bn_if(x, weight) for m in (f, ref))
    same([mean, var], expected)
    assert var.isnan().nonzero().flatten().tolist() == [N // 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("features", [(), (5,), (3, 7), (8, 6, 5)])
def test_the_samples_of_bad_potentials(features, dtype):
    x = dyadic(9, 40, *features, dtype=dtype)
    victims = [0, 3, 17, 39]
    for b in victims:
        x[:, b].view(9, -1)[b % 9, -1] = [NAN, INF, -INF][b % 3]
    ours, theirs = f.if_scan(x), ref.if_scan(x)
    assert ours.bad.isnan().nonzero().flatten().tolist() == victims
    same(ours.bad, theirs.bad)
    assert spoiled_rows(ours.counts.unsqueeze(-1)) == victims


def test_a_residual_is_one_of_two_ways_and_channels_have_their_own_gain():
    x, r, weight = bad_train(4, 5), bad_train(4, 5, sample=2), dyadic(5, 5)
    for m in (f, ref):
        assert spoiled_rows(m.linear_if(x, weight, residual=r).counts) == [1, 2]
        assert spoiled_rows(m.linear_if(clean(x), weight, residual=r).counts) == [2]
        assert spoiled_rows(m.bn_if(clean(x), weight, residual=r)[0].counts) == [2]
        assert spoiled_rows(m.bn_if(x, weight, residual=r)[0].counts) == [0, 1, 2, 3]
    x, weight = bad_train(4, 3).replace(gain=torch.rand(3)), dyadic(5, 3)
    for m in (f, ref):
        assert spoiled_rows(m.linear_if(x, weight).counts) == [1]
        assert spoiled_rows(m.bn_if(x, weight)[0].counts) == [0, 1, 2, 3]
    assert spoiled_rows(tnn.Readout(3, 2)(x)) == [1]
    assert spoiled_rows(te.cat([x, x[[1, 0, 2, 3]]], 1).counts) == [0, 1]


def test_currents_spoil_their_own_sample():
    """Several linear maps in a row, from trains of which one sample is bad."""
    net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3), nn.Conv1d(4, 4, 1), nn.ReLU(), nn.Flatten(),
                        nn.Linear(24, 3))  # fmt: skip
    x = torch.rand(4, 2, 10)
    snn = ts.convert(net, T, example=x)
    assert any(not m.neurons for m in snn.modules() if isinstance(m, tnn.SpikingLayer))
    x[1, 0, 0] = NAN
    assert spoiled_rows(snn(x)) == [1]


@pytest.mark.parametrize(("way", "rows"), [
    (lambda x: x, [1]), (lambda x: x[1:3], [0]), (lambda x: x[[0, 1, 1]], [1, 2]), (lambda x: x[0], []),
    (lambda x: te.cat([train(T, 2, 3), x]), [3]), (lambda x: te.cat([x, train(T, 4, 2)], 1), [1]),
    (lambda x: te.cat([x, x[[1, 0, 2, 3]]], 1), [0, 1]), (lambda x: default_collate([x[0], x[1]]), [1]),
    (lambda x: x.to("cpu", torch.bfloat16), [1]), (lambda x: x.detach(), [1]), (copy.deepcopy, [1]),
    (lambda x: pickle.loads(pickle.dumps(x)), [1]), (dataclasses.replace, [1]),
    (lambda x: pytree.tree_map(torch.clone, x), [1]), (tnn.Dropout(0.5), [1]), (tnn.Flatten(), [1]),
    (lambda x: f.couple(x, torch.ones(4, 3, requires_grad=True)), [1]),
])  # fmt: skip
def test_it_goes_where_a_train_goes(way, rows):
    assert spoiled_rows(way(bad_train(4, 3)).counts) == rows


def test_flags_are_added_where_one_is_set():
    """Without, the counts are those of the layer, which has no sum in its graph."""
    x = dyadic(4, 6).requires_grad_()
    assert f.if_scan(te.ConstantInput(x, T)).counts.grad_fn.name() == "FireBackward"
    x = torch.where(torch.arange(4).unsqueeze(1) == 1, torch.nan, x.detach()).requires_grad_()
    counts = f.if_scan(te.ConstantInput(x, T)).counts
    assert spoiled_rows(counts) == [1]
    assert counts.grad_fn.name() == "AddBackward0"


def test_counts_that_were_looked_at_have_the_gradient():
    x = dyadic(4, 6).requires_grad_()
    hidden = f.if_scan(te.ConstantInput(x, T))
    with torch.no_grad():
        assert not hidden.counts.requires_grad
    seen = hidden.counts
    assert seen is hidden.counts
    loss = f.linear_if(hidden, dyadic(2, 6)).counts.sum()
    assert all(g is not None for g in torch.autograd.grad(loss, [seen, x]))
    assert [len(pytree.tree_leaves(x)) for x in (bad_train(4, 3), train(8, 2, 3))] == [2, 1]


def test_a_network_without_values_is_not_frozen():
    net = nn.Sequential(tnn.Encoder(4), tnn.Linear(3, 8), tnn.Readout(8, 2)).to("meta")
    with pytest.raises(ValueError, match="net: layer '1' has a weight without values, on the meta device"):
        ts.freeze(net)
