"""Frozen networks: one call, step by step and layer by layer give the same bits."""

import copy
import math
import threading
from functools import partial

import networks
import pytest
import torch
from cases import dyadic
from networks import (
    assert_frozen_is,
    average,
    averaged,
    conv,
    lif,
    mlp,
    of_timing,
    shortcut,
    spikes,
    spiking_net,
    trained,
)
from torch import nn
from torch.nn.utils import prune

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_snn.frozen import freeze, load

POOLS = tnn.AdaptiveAvgPool2d(1), tnn.AdaptiveAvgPool2d((2, 3)), tnn.AvgPool2d(3, spiking=False)


def residual_of_the_input():
    torch.manual_seed(5)
    first, second = tnn.Linear(30, 30, threshold=1.0), tnn.Linear(30, 7, threshold=1.0)
    blocks = tnn.Residual(first), tnn.Residual(second, tnn.Linear(30, 7))
    return nn.Sequential(*blocks, tnn.Readout(7, 5)).eval()


OTHERS = {
    "lif": lif, "spikes in": lambda: (spiking_net(), spikes(19)), "a single step": lambda: (spiking_net(), spikes(1)),
    "a residual of the input": lambda: (residual_of_the_input(), spikes(19)),
    "a residual without its name": lambda: (shortcut(named=False), torch.rand(4, 6)),
    "one neuron after spikes that are worth a tensor": lambda: (
        nn.Sequential(
            tnn.Encoder(T=8), tnn.Linear(6, 4, threshold=torch.tensor(0.5)), tnn.Linear(4, 1),
            tnn.Linear(1, 4), tnn.Readout(4, 2),
        ), torch.rand(5, 6),
    ),
    # Only the last one gives the answer, which is smaller than what others give.
    "a readout that reads another": lambda: (
        nn.Sequential(tnn.Encoder(8), tnn.Linear(3, 5), tnn.Readout(5, 3000), tnn.Readout(3000, 3)), torch.rand(4, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("make", [*networks.NETWORKS, *OTHERS.values()])
def test_one_call_is_the_evaluation_and_the_stream(make, dtype, tmp_path):
    torch.manual_seed(0)
    net, x = make()
    net, x = trained(net, x).to(dtype), x.to(dtype)
    frozen = assert_frozen_is(net, x, tmp_path)
    assert torch.allclose(frozen(x[2:3]), frozen(x)[2:3], atol=1e-5)  # torch's own first product may round otherwise


@pytest.mark.parametrize("every", ["", "even", "odd", "own"])
@pytest.mark.parametrize("T", [1, 2, 8, 200])
@pytest.mark.parametrize("make", [*networks.NETWORKS, average])
def test_one_call_is_the_evaluation_of_windows(make, T, every):
    """test_following.py runs them by steps."""
    net, x = of_timing(make, T, every)
    frozen = freeze(net)
    assert torch.equal(frozen(x), net(x))
    assert next(iter(frozen._programs.values())).refusal is None


@pytest.mark.parametrize("waits", [[], [0], [1], [0, 1]])
def test_trains_of_both_forms_in(waits, tmp_path):
    net = nn.Sequential(tnn.Residual(tnn.Linear(30, 30)), tnn.Linear(30, 20), tnn.Readout(20, 4)).eval()
    for number in waits:
        next(m for m in net[number].modules() if isinstance(m, tnn.Linear)).timing = "window"
    burst = te.SpikeTrain.from_counts(torch.randint(0, 12, (5, 30)), 11)
    frozen = freeze(net, T=11)
    frozen.save(tmp_path / "net.tandem")
    loaded = load(tmp_path / "net.tandem")
    for x in burst, te.SpikeTrain(burst.planes, 11), te.SpikeTrain.from_dense(burst.to_dense().flip(0)):
        assert torch.equal(frozen(x), net(x))
        assert torch.equal(loaded.net(x), net(x))  # stage by stage
        if len(waits) == 2:
            assert torch.equal(frozen.readouts(x)[-1], net(x))


def test_a_frozen_network_inside_of_a_compiled_function():
    net, x = of_timing(mlp, 8)
    frozen = freeze(net)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: frozen(x).softmax(1), backend="aot_eager")
    assert torch.equal(compiled(x), frozen(x).softmax(1))


@pytest.mark.parametrize("net", [spiking_net(), residual_of_the_input()], ids=["layers", "residual"])
def test_what_a_spike_of_the_input_is_worth(net, tmp_path):
    frozen, dense = freeze(net), spikes().to_dense()
    frozen.save(tmp_path / "net.tandem")
    loaded = load(tmp_path / "net.tandem")
    for gain in (1.0, 0.5, torch.tensor(2.0), torch.rand(30) + 0.5):
        x = te.SpikeTrain.from_dense(dense, gain=gain)
        assert torch.equal(frozen(x), net(x))
        assert torch.equal(frozen.readouts(x)[-1], net(x))
        if isinstance(gain, float) and gain == 1:
            assert torch.equal(loaded(x), net(x))
            continue
        for call in (loaded, loaded.readouts):
            with pytest.raises(ValueError, match="a network from a file was saved for a gain of 1"):
                call(x)


def test_what_has_no_frozen_form_is_refused_by_name():
    net = nn.Sequential(tnn.Encoder(8), tnn.Linear(4, 5, norm=True), tnn.Readout(5, 1)).eval()
    with pytest.raises(ValueError, match="a single output"):
        freeze(net).anytime(torch.rand(2, 4))

    with pytest.raises(ValueError, match=r"net: expected a network of layers of tandem_snn\.nn, found none"):
        freeze(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    with pytest.raises(ValueError, match=r"net: expected a network that ends in a Readout .*'1', gives spikes"):
        freeze(nn.Sequential(tnn.Encoder(8), tnn.Linear(4, 5)))
    net[1].norm.running_mean = net[1].norm.running_var = None
    with pytest.raises(ValueError, match="norm: without running statistics"):
        freeze(net)
    net = nn.Sequential(tnn.Encoder(T=8), tnn.Residual(tnn.Linear(4, 4)), tnn.Readout(4, 3)).eval()
    for run in net, freeze(net):
        with pytest.raises(TypeError, match="residual: expected a SpikeTrain, got ConstantInput"):
            run(torch.rand(2, 4))


class Odd(nn.Module):
    """Networks whose forward does something that a program cannot."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.encoder, self.calls, self.best = kind, tnn.Encoder(4), 0, math.nan
        self.layer = tnn.Linear(24, 32, neurons=False, timing="window")
        self.fire, self.readout = tnn.Neurons(timing="window"), tnn.Readout(32, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        kind, u = self.kind, self.layer(self.encoder(x))
        self.calls = self.calls + (kind == "number")
        if kind == "buffer":
            self.seen.add_(1)
        u = u + torch.rand(32) if kind == "random" else u * (1 + self.calls)
        self.fire.threshold = 0.2 if kind == "setting before" else None
        y = self.readout(self.fire(u))
        self.fire.threshold = 0.2 if kind == "setting after" else None
        if kind == "weight":
            self.layer.weight = nn.Parameter(self.layer.weight * 0.5)
        if kind == "quotient":
            return y / 1.7 / torch.tensor([2.0, 3.0, 4.0])
        if kind == "type":
            return y * torch.ones(3, dtype=torch.float64) * 1.7
        return y / torch.tensor([4]) + nn.functional.dropout(self.seen, 0.0) + self.seen


@pytest.mark.kernels
@pytest.mark.filterwarnings("ignore:freeze. the network runs layer by layer")
@pytest.mark.parametrize(("kind", "why"), [
    ("plain", "None"), ("number", "net: a forward changes its 'calls'"), ("random", "it draws random numbers"),
    ("setting before", "fire: a forward changes its 'threshold'"), ("buffer", "net: a forward changes its 'seen'"),
    ("setting after", "fire: a forward changes its 'threshold'"), ("quotient", "a quotient rounds"),
    ("weight", "layer: a forward changes its 'weight'"), ("type", "a constant of torch.float64 gives"),
])  # fmt: skip
def test_what_a_forward_does_beside_its_layers(kind, why):
    net, x = Odd(kind).eval(), torch.rand(4, 24)
    frozen = freeze(net)
    assert why in str(frozen.why_slow)
    if kind in ("random", "buffer"):  # each call has another answer
        assert not torch.equal(frozen(x), frozen(x))
    else:
        for _ in range(2):
            found, expected = frozen(x), net(x)
            assert torch.equal(found, expected)
            assert found.dtype == expected.dtype


@pytest.mark.filterwarnings("ignore:freeze. the network runs layer by layer")
@pytest.mark.parametrize("number", range(3))
def test_a_forward_of_one_layer_s_own(number):
    net, x = (
        nn.Sequential(tnn.Encoder(4), tnn.Linear(6, 5, timing="window"), tnn.Readout(5, 3)).eval(),
        torch.rand(2, 6),
    )
    before, layer = net(x), net[number]
    forward = layer.forward
    layer.forward = lambda x: (lambda y: y.replace(gain=2 * y.gain) if hasattr(y, "gain") else 2 * y)(forward(x))
    assert not torch.equal(net(x), before)
    frozen = freeze(net)
    assert torch.equal(frozen(x), net(x))
    with pytest.raises(ValueError, match=f"layer '{number}' cannot be saved: its forward is another one"):
        frozen.save("none")


@pytest.mark.filterwarnings("ignore:freeze. the network runs layer by layer")
def test_networks_that_keep_what_they_computed():
    net, x = nn.Sequential(tnn.Encoder(8), tnn.Linear(4, 5), tnn.Readout(5, 1)), torch.rand(2, 4)
    scaled = net[1].weight * 2
    net[1].kept = [scaled, {"of the output": (scaled.sum(),)}]
    assert torch.equal(freeze(net)(x), net(x))
    net[1].kept = {}
    net[1].kept["itself"] = net[1].kept
    assert torch.equal(freeze(net)(x), net(x))
    net[1].lock = threading.Lock()
    with pytest.raises(ValueError, match="net: 'lock' of layer '1' cannot be copied: cannot pickle"):
        freeze(net)


def test_weights_change_by_load_state_dict_alone():
    (net, x), (other, _) = mlp(), mlp()
    frozen = freeze(net.eval())
    before = frozen(x)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3.0)
        assert torch.equal(copy.deepcopy(frozen)(x), before)
        for p in frozen.parameters():
            p.mul_(2.0)
    assert torch.equal(frozen(x), before)
    frozen.load_state_dict(frozen.state_dict())
    assert not torch.equal(frozen(x), before)
    assert set(frozen.state_dict()) == {f"net.{key}" for key in net.state_dict()}
    frozen.load_state_dict(freeze(other.eval()).state_dict())
    assert torch.equal(frozen(x), other(x))
    assert torch.equal(frozen.double()(x.double()), frozen.net(x.double()))
    with pytest.raises(TypeError, match=r"x is torch\.float32, but weight is torch\.float64: cast one of them"):
        frozen(x)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("change", [
    partial(prune.l1_unstructured, name="weight", amount=0.5), nn.utils.weight_norm, nn.utils.spectral_norm,
    nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.orthogonal,
])  # fmt: skip
def test_weights_that_are_made_before_each_forward(change, tmp_path):
    """They are neither leaves nor, after a step of the optimiser, up to date."""
    net = nn.Sequential(tnn.Encoder(8), tnn.Linear(4, 5), tnn.Readout(5, 2))
    change(net[1])
    x = torch.rand(3, 4)
    net(x).sum().backward()
    torch.optim.SGD(net.parameters(), 0.5).step()
    kept = net[1].weight, {key: value.clone() for key, value in net.state_dict().items()}
    frozen = freeze(net)
    assert torch.equal(net[1].weight, kept[0])
    assert net[1].weight.grad_fn is not None
    assert all(torch.equal(value, kept[1][key]) for key, value in net.state_dict().items())
    assert frozen._program_for(1.0).refusal is None
    assert set(frozen.net.state_dict()) == {"1.weight", "1.bias", "2.weight", "2.bias"}
    expected = net.eval()(x).detach()
    assert torch.equal(frozen(x), expected)
    torch.testing.assert_close(ts.from_nir(ts.to_nir(net, x))(x), expected)
    frozen.save(tmp_path / "net")


def test_hooks_run_and_have_no_program(tmp_path):
    """Only Python knows what they do."""
    x = torch.rand(3, 4)
    for hang, name in (
        (lambda net: net[1].register_forward_pre_hook(lambda _, args: (te.ConstantInput(args[0].x / 2, 8),)), "1"),
        (lambda net: net[2].register_forward_hook(lambda _, __, y: y / 8), "2"),
        (lambda net: net.register_forward_hook(lambda _, __, y: y / 8), "net"),
    ):
        net = nn.Sequential(tnn.Encoder(8), tnn.Linear(4, 5), tnn.Readout(5, 2)).eval()
        hang(net)
        frozen = freeze(net)
        assert torch.equal(frozen(x), net(x))
        for use, *arguments in (
            (frozen.step, x),
            (frozen.save, tmp_path / "net.tandem"),
            (ts.to_nir, net, x),
            (ts.to_onnx, net, tmp_path / "net.onnx", x),
        ):
            with pytest.raises(ValueError, match=rf"{name}'?:? .*forward hook"):
                use(*arguments)
    net = nn.Sequential(tnn.Encoder(8), tnn.Linear(4, 5), tnn.Readout(5, 2))
    penalty = ts.measure.synops_penalty(net)
    assert "synops_penalty" in str(freeze(net).why_slow)
    penalty.remove()
    assert freeze(net).why_slow is None
    net = nn.Sequential(tnn.Linear(4, 5), tnn.Readout(5, 2))
    net[0].register_full_backward_hook(lambda *_: None)
    assert freeze(net, T=8)._program_for(1.0).refusal is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_more_steps_than_a_type_counts(dtype):
    most, layers = (
        {torch.bfloat16: 256, torch.float16: 2048}[dtype],
        [tnn.Linear(30, 4, threshold=1.0), tnn.Readout(4, 3)],
    )
    train = te.SpikeTrain.from_dense(torch.ones(most + 1, 2, 30))
    why = f"T={most + 1}: {dtype}, the type of the weights, cannot count so many spikes"
    net = nn.Sequential(tnn.Encoder(most + 1), *layers).to(dtype)
    with pytest.warns(UserWarning, match=f"freeze: the network runs layer by layer.*{why}"):
        frozen = freeze(net)
    x = torch.rand(2, 30).to(dtype)
    assert torch.equal(frozen(x), net.eval()(x))
    for call in frozen.step, frozen.readouts, frozen.anytime:
        with pytest.raises(ValueError, match=why):
            call(x)
    events = freeze(nn.Sequential(*layers).to(dtype))
    events(train.replace(stored=train.stored[:-1], T=most))
    with pytest.warns(UserWarning, match=f"x: the network runs layer by layer on it.*{why}"):
        events(train)
    with pytest.raises(ValueError, match=why):
        events.readouts(train)


@pytest.mark.parametrize("make", [mlp, conv, averaged, OTHERS["spikes in"], OTHERS["a residual of the input"]])
@pytest.mark.parametrize("warm", [True, False])
def test_an_empty_batch(make, warm):
    net, x = make()
    frozen = freeze(net.eval(), T=x.T if make in OTHERS.values() else None)
    if warm:
        frozen(x)
    outputs = net(x).shape[1]
    assert net(x[:0]).shape == frozen(x[:0]).shape == (0, outputs)
    assert frozen.step(x[:0].to_dense()[0] if make in OTHERS.values() else x[:0]).shape == (0, outputs)
    logits, steps = frozen.anytime(x[:0])
    assert (logits.shape, steps.shape) == ((0, outputs), (0,))
    assert frozen.readouts(x[:0]).shape == (frozen.T, 0, outputs)


@pytest.mark.parametrize("shape", [(6,), (3, 5, 4)])
def test_a_stream_whose_image_changes(shape):
    """It keeps W x of a direct encoder while x is the same, and no longer."""
    layer = tnn.Linear(6, 5) if len(shape) == 1 else tnn.Conv2d(3, 5, 3, padding=1)
    with torch.no_grad():
        layer.weight.copy_(dyadic(*layer.weight.shape))
        layer.bias.copy_(dyadic(5))
    layer.threshold = 1.0
    net = nn.Sequential(tnn.Encoder(T=8, gain=8), layer, *[] if len(shape) == 1 else [tnn.Flatten()])
    features = 5 * math.prod(shape[1:])
    net.append(tnn.Readout(features, 3))
    images = [dyadic(2, *shape) for _ in range(3)]
    order = [0, 0, 1, 1, 1, 0, 2, 2]
    frozen = freeze(net)
    for k in order:
        so_far = frozen.step(images[k])
    with torch.no_grad():
        y = torch.stack([nn.functional.linear(images[k], layer.weight) if len(shape) == 1
                         else nn.functional.conv2d(images[k], layer.weight, padding=1) for k in order])  # fmt: skip
        assert torch.equal(so_far, net[2:](te.functional.if_scan(y, shift=layer.bias)))


def test_a_stream_of_a_view():
    """It notices what changes anywhere in an image whose numbers do not lie side by side."""
    frozen = freeze(nn.Sequential(tnn.Encoder(T=4), tnn.Linear(6, 5), tnn.Readout(5, 3)).eval())
    numbers = torch.rand(3, 12)
    view, before = numbers[:, ::2], numbers[:, ::2].clone()
    frozen.step(view)
    numbers[2, 10] += 5  # further on than the view has numbers
    answer = frozen.step(view)
    frozen.reset()
    frozen.step(before)
    assert torch.equal(answer, frozen.step(view.clone()))
    assert torch.equal(frozen(numbers[:1, :6].expand(4, 6)), frozen(numbers[:1, :6].repeat(4, 1)))


def test_a_stream_has_the_gain_of_its_trains():
    frozen, dense = freeze(spiking_net(), T=8), spikes().to_dense()
    for gain in (0.25, torch.linspace(0.25, 4, 30)):
        whole = te.SpikeTrain.from_dense(dense, gain)
        for t in range(8):
            so_far = frozen.step(te.SpikeTrain.from_dense(dense[t : t + 1], gain))
        assert torch.equal(so_far, frozen(whole))
        assert not torch.equal(so_far, frozen(te.SpikeTrain.from_dense(dense)))
        frozen.reset()


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("gain", [None, "a tensor"])
def test_weights_take_up_the_gains_of_channels(gain, timing, bits, tmp_path):
    def settings(n):
        threshold = torch.rand(n) + 0.5
        worth = gain and threshold.clone()
        return {"threshold": threshold, "v_init": threshold / 2, "gain": worth, "timing": timing}

    net = nn.Sequential(
        tnn.Encoder(8), tnn.Conv2d(2, 6, 3, norm=True, **settings(6)), tnn.MaxPool2d(2),
        tnn.Residual(tnn.Conv2d(6, 6, 3, padding=1, groups=2, weight_bits=bits, **settings(6))),
        tnn.Conv2d(6, 8, 3, weight_bits=bits, **settings(8)), tnn.Flatten(),
        tnn.Linear(32, 9, weight_bits=bits, **settings(9)), tnn.Readout(9, 4),
    ).eval()  # fmt: skip
    grid = assert_frozen_is(net, 4 * torch.rand(5, 2, 10, 10), tmp_path).grids.get("3.body")
    assert (grid is None) == (bits is None)
    assert grid is None or len((grid.weight() / net[1].threshold[:3].repeat(2).view(6, 1, 1, 1)).unique()) > 15


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("end", ["means", "flat", "readout"])
@torch.no_grad()
def test_means_are_of_what_spikes_are_worth(pool, end, timing, tmp_path):
    threshold, images = torch.rand(6) + 0.5, 4 * torch.rand(33, 2, 9, 8)
    layer = tnn.Conv2d(2, 6, 3, threshold=threshold, v_init=threshold / 2, timing=timing)
    net = nn.Sequential(tnn.Encoder(8), layer, pool)
    net.extend([tnn.Flatten()] * (end != "means"))
    net.extend([tnn.Readout(net(images).shape[1], 5)] * (end == "readout"))
    assert_frozen_is(net.eval(), images, tmp_path)


@pytest.mark.parametrize("every", ["", "odd", "own"])
@pytest.mark.parametrize("make", [conv, networks.residual, networks.projection, networks.image_paths])
def test_a_large_batch_in_pieces(make, every):
    """Values of so many samples exceed the cache."""
    net, x = of_timing(make, 8, every)
    x = x.repeat(320, 1, 1, 1)
    x *= torch.rand_like(x)
    with torch.no_grad():
        assert torch.equal(freeze(net)(x), net(x))


def test_a_sample_of_a_later_piece_that_is_not_finite():
    bare = tnn.Linear(9, 256, neurons=False, timing="window"), tnn.Neurons(timing="window")
    net = nn.Sequential(tnn.Encoder(4), *bare, tnn.Linear(256, 256, timing="window"), tnn.Readout(256, 3)).eval()
    x = torch.rand(8000, 9)
    x[7000] = math.inf
    with torch.no_grad():
        torch.testing.assert_close(freeze(net)(x), net(x), atol=0, rtol=0, equal_nan=True)
    assert net(x).isnan().any(1).nonzero().tolist() == [[7000]]
