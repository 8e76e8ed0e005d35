"""Trains, layers and networks in PyTorch: compiled whole, exported, mapped, checkpointed, copied, saved, profiled."""

import copy
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from cases import assert_same, bursts, dyadic, dyadic_, spikes, train, train_with_edge
from networks import Net, exported, in_windows
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.utils import _apply_to_tensors
from torch.func import functional_call, grad, grad_and_value, vmap
from torch.nn.parallel.distributed import _find_tensors
from torch.utils.checkpoint import checkpoint

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_ext.functional.layer import window_product
from tandem_ext.functional.products import convolution

f = te.functional


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


def everything(dropout=0.0, T=8):
    """All layers at once."""
    return nn.Sequential(
        tnn.Encoder(T), tnn.Conv2d(1, 8, 3, padding=1, norm=True),
        tnn.Residual(tnn.Conv2d(8, 8, 3, padding=1, norm=True), tnn.Conv2d(8, 8, 1, norm=True)), tnn.MaxPool2d(2),
        tnn.Residual(tnn.Conv2d(8, 8, 3, padding=1, norm=True)), tnn.AvgPool2d(2), tnn.Dropout(dropout), tnn.Flatten(),
        tnn.Linear(32, 16, threshold=nn.Parameter(torch.ones(16)), weight_bits=4), tnn.Readout(16, 10),
    )  # fmt: skip


def with_linear_norm():
    return everything().insert(9, tnn.Linear(16, 16, norm=True))


def batch(size):
    return torch.rand(size, 1, 8, 8), torch.randint(10, (size,))


def for_any(name, axis=0):
    return {axis: torch.export.Dim(name, min=2, max=64)}


def assert_compiles(function, inputs, leaves, backend="aot_eager"):
    """As one graph, to the same results, of which the first has gradients."""
    results = []
    for call in (function, torch.compile(function, fullgraph=True, backend=backend)):
        first, *others = call(*inputs)
        grads = torch.autograd.grad((first * torch.arange(first.shape[-1])).sum(), leaves)
        results.append([first.detach(), *others, *grads])
    torch.testing.assert_close(*results)


def functions(dense, w1, w2, w3, bias, theta, gain):
    """A bit of everything, from dense spikes to a tensor."""
    x = te.SpikeTrain.from_dense(dense, gain)
    x = f.linear_if(x, w1, bias, threshold=theta)
    x, v = f.linear_if(x, w2, residual=x, gate="clip", return_v=True)
    x, u = f.linear_if(x, w2, residual=x, return_v=True, timing="window")
    x = f.linear_if(x, w2, residual=x)  # which reads bursts
    x, *_ = f.bn_if(x, w2, timing="window")
    x, mean, _ = f.bn_if(x, w3)
    return x.counts, v, u, mean, x.to_dense()


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_forward_and_backward(backend):
    leaves = [leaf.requires_grad_() for leaf in (
        spikes(8, 4, 12), dyadic(10, 12), dyadic(10, 10), dyadic(5, 10), dyadic(10), torch.tensor(1.25),
        torch.tensor(0.5),
    )]  # fmt: skip
    assert_compiles(functions, leaves, leaves, backend)


def test_layers_that_share_a_tensor_of_thresholds_compile(timing):
    options = {"threshold": nn.Parameter(torch.tensor([0.25, 0.5, 1.0, 2.0]))}
    layers = [tnn.Linear(4, 4, timing=timing, **options) for _ in range(3)]
    net = nn.Sequential(tnn.Encoder(8), *layers[:2], tnn.Residual(layers[2]), tnn.Readout(4, 2))
    assert_compiles(lambda x: [net(x).square()], [torch.rand(5, 4)], [*net.parameters()])


def joined(m, x):
    u = m.conv(m.encoder(x))
    return te.cat([m.fire(u), u], 1)


@pytest.mark.parametrize("output_size", [1, 3, (2, None)])
def test_currents_and_their_averages_compile(output_size, timing):
    net = Net(
        lambda m, x: m.readout(m.pool(m.fire(m.constants[0] + (1 - m.constants[1] - (joined(m, x) - m.constants[1]))))),
        encoder=tnn.Encoder(8), conv=tnn.Conv2d(3, 8, 3, norm=True, neurons=False, timing=timing),
        constants=nn.ParameterList(torch.randn(shape) for shape in ((16, 1, 1), (5, 7))),
        fire=tnn.Neurons(timing=timing), pool=tnn.AdaptiveAvgPool2d(output_size), readout=tnn.ReadoutConv2d(16, 4, 1),
    )  # fmt: skip
    assert_compiles(lambda x: [net(x).square()], [torch.rand(5, 3, 7, 9)], [*net.parameters()])
    compiled = torch.compile(net.pool, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in (7, 14):
        x = train(8, 2, 16, size, 6)
        assert torch.equal(compiled(x), net.pool(x))


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 1, 7), (5, 1, 1)])
def test_numbers_of_each_place_compile_for_images_of_any_size(shape, timing):
    layer = tnn.Conv2d(3, 5, 3, padding=1, neurons=False, timing=timing)
    fire, constant = tnn.Neurons(timing=timing, v_init=torch.rand(5, 6, 7)), nn.Parameter(torch.randn(shape))
    x = te.ConstantInput(torch.rand(4, 3, 6, 7), 8)
    compiled = torch.compile(lambda x: fire(layer(x) + constant).counts, fullgraph=True, backend="eager", dynamic=True)
    assert torch.equal(compiled(x), fire(layer(x) + constant).counts)


def convolutions(x, w1, w2):
    y = f.conv2d_if(x, w1, stride=2, padding=1)
    y = f.conv2d_if(y, w2, padding="same", residual=y)
    return f.if_scan(y.to_dense())


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("make", [lambda: train(8, 2, 3, 6, 6), lambda: te.ConstantInput(dyadic(2, 3, 6, 6), 8)],
                         ids=["train", "constant"])  # fmt: skip
def test_compile_trains_in_and_out(backend, make):
    x, w1, w2 = make(), dyadic(4, 3, 3, 3), dyadic(4, 4, 3, 3)
    compiled = torch.compile(convolutions, fullgraph=True, backend=backend)
    with torch.no_grad():
        expected, actual = convolutions(x, w1, w2), compiled(x, w1, w2)
    assert_same(actual, expected)
    assert actual.planes.stride() == expected.planes.stride()


def training_step(net, lr):
    """Forward, backward and update as one function of tensors, which Dynamo takes as one graph."""

    @torch.no_grad()
    def step(x, y):
        parameters, buffers = dict(net.named_parameters()), dict(net.named_buffers())

        def loss(p):
            new = {name: b.clone() for name, b in buffers.items()}
            return F.cross_entropy(functional_call(net, (p, new), (x,)), y), new

        grads, (value, new) = grad_and_value(loss, has_aux=True)(parameters)
        for name, p in parameters.items():
            p.sub_(lr * grads[name])
        for name, b in buffers.items():
            b.copy_(new[name])
        return value

    return step


@pytest.mark.skipif(torch.__version__ < (2, 12), reason="Dynamo took no autograd.Function inside torch.func.grad")
def test_a_whole_training_step_is_one_graph():
    nets = [with_linear_norm()]
    nets += [copy.deepcopy(nets[0]) for _ in range(2)]
    counter = CompileCounterWithBackend("aot_eager")
    eager, compiled = (training_step(net, 0.125) for net in nets[:2])
    compiled = torch.compile(compiled, fullgraph=True, backend=counter)
    optimizer = torch.optim.SGD(nets[2].parameters(), lr=0.125)
    for i, size in enumerate((16, 16, 24, 40)):
        x, y = batch(size)
        torch.testing.assert_close(compiled(x, y), eager(x, y))
        if i == 0:  # later a spike may differ, where an optimizer rounds its product and sum differently
            F.cross_entropy(nets[2](x), y).backward()
            optimizer.step()
            torch.testing.assert_close(nets[2].state_dict(), nets[1].state_dict())
    assert counter.frame_count <= 2  # one more where the batch first changes
    torch.testing.assert_close(nets[1].state_dict(), nets[0].state_dict())


def test_a_network_compiles_once_for_batches_that_were_announced():
    net = with_linear_norm()
    compiled, counter = copy.deepcopy(net), CompileCounterWithBackend("aot_eager")
    loss = torch.compile(lambda x, y: F.cross_entropy(compiled(x), y), fullgraph=True, backend=counter)
    for size in (16, 24, 40):  # below 16 torch's own convolution of the first layer takes another path
        x, y = batch(size)
        F.cross_entropy(net(x), y).backward()
        torch._dynamo.mark_dynamic(x, 0, min=16, max=1024)
        torch._dynamo.mark_dynamic(y, 0, min=16, max=1024)
        loss(x, y).backward()
    assert counter.frame_count == 1
    found, expected = (
        dict(n.named_buffers())
        | {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in n.named_parameters()}
        for n in (compiled, net)
    )  # torch 2.10 leaves out gradients that are zero: that of a bias before batch norm
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("timing", "make"), [("step", train), ("window", bursts)])
def test_a_layer_is_exported_as_its_op(strict, dynamic, timing, make):
    module, shapes = (
        dyadic_(tnn.Linear(7, 5, timing=timing, threshold=1.0)),
        {"x": [for_any("B", 1)]} if dynamic else None,
    )
    with torch.no_grad():
        loaded = exported(module, make(20, 3, 7), strict=strict, dynamic_shapes=shapes)
    calls = [node.target for node in loaded.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    assert calls == [torch.ops.tandem.linear_if.default]
    for size in (3, 8) if dynamic else (3,):
        y = make(20, size, 7)
        assert_same(loaded(y), module(y))
    with pytest.raises(ValueError, match="spec"):
        loaded((bursts if timing == "step" else train)(20, 3, 7))  # a program is for the form that it has seen


@pytest.mark.filterwarnings("error:x. the network runs layer by layer")  # export always does
@pytest.mark.parametrize(("dynamic", "T", "every"), [(0, 8, None), (1, 8, None), (0, 300, None), (0, 8, "odd")])
def test_a_whole_network_is_exported(dynamic, T, every):
    """With step timing, and with both."""
    net = everything(T=T) if every is None else in_windows(everything(T=T), every)
    net(batch(4)[0])
    compiled = torch.compile(net.eval(), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        loaded = exported(net, batch(4)[0], dynamic_shapes=(for_any("batch"),) if dynamic else None)
    for size in (4, 9) if dynamic else (4,):
        x, _ = batch(size)
        torch.testing.assert_close(loaded(x), net(x))
        torch.testing.assert_close(compiled(x), net(x))
    if (T, every) == (8, None):
        frozen = torch.export.export(ts.freeze(net), (x,)).module()
        torch.testing.assert_close(frozen(x), net(x))


def test_training_mode_is_exported_for_any_batch():
    net, (x, _) = everything().train(), batch(9)
    program = torch.export.export(net, (batch(4)[0],), dynamic_shapes=(for_any("batch"),)).module()
    torch.testing.assert_close(program(x), net(x))
    torch.testing.assert_close(dict(program.named_buffers())["1.norm.running_var"], net[1].norm.running_var)
    with torch.autocast("cpu", torch.bfloat16):
        torch.export.export(everything(T=300), (x,))  # fakes know the type of counts that bfloat16 does not hold


def test_fake_and_meta_tensors_are_not_read():
    for context, options in ((FakeTensorMode(), {}), (torch.no_grad(), {"device": "meta"})):
        with context:
            x = te.SpikeTrain(torch.empty(1, 4, 7, dtype=torch.uint8, **options), 7)
            weight, theta = torch.empty(5, 7, **options), torch.empty(5, **options)
            assert f.linear_if(x, weight, threshold=theta, v_init=theta).counts.shape == (4, 5)
            assert te.SpikeTrain.from_dense(torch.empty(8, 4, 7, **options)).shape == (4, 7)


def loss(weight, planes, bias=None):
    hidden = f.linear_if(te.SpikeTrain(planes, 8), weight, bias, gate="clip")
    hidden = f.linear_if(te.SpikeTrain.from_counts(hidden.counts, 8), torch.eye(len(weight)), timing="window")
    y = f.linear_if(hidden, torch.ones(5, len(weight)) / 4)
    return (y.counts * torch.arange(5)).sum()


def loss_grad(weight, *args):
    leaf = weight.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, *args), leaf)[0]


@pytest.mark.parametrize("N", [8, 7])  # with and without a mask of whole bytes
@pytest.mark.parametrize("B", [1, 3])
def test_gradients_of_each_sample_and_of_each_weight(N, B):
    weight, planes = dyadic(N, 12), train(8, 4 * B, 12).planes.view(1, 4, B, 12)
    expected = torch.stack([loss_grad(weight, planes[:, i]) for i in range(4)])
    assert torch.equal(vmap(grad(loss), in_dims=(None, 1))(weight, planes), expected)
    assert torch.equal(grad(lambda w: vmap(loss, in_dims=(None, 1))(w, planes).sum())(weight), expected.sum(0))
    weights, biases = dyadic(4, N, 12), dyadic(4, N)
    expected = torch.stack([loss_grad(w, planes[:, 0], b) for w, b in zip(weights, biases, strict=True)])
    assert torch.equal(vmap(grad(loss), in_dims=(0, None, 0))(weights, planes[:, 0], biases), expected)


def test_gradients_of_each_sample_of_a_network():
    net = nn.Sequential(tnn.Encoder(8), tnn.Conv2d(1, 4, 3), tnn.Flatten(), tnn.Linear(144, 12), tnn.Readout(12, 10))
    x, y = batch(5)

    def loss(p, x, y):
        return F.cross_entropy(functional_call(net, p, (x[None],)), y[None])

    found = vmap(grad(loss), in_dims=(None, 0, 0))(dict(net.named_parameters()), x, y)
    for i in range(5):
        net.zero_grad()
        F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]).backward()
        torch.testing.assert_close({k: g[i] for k, g in found.items()}, {k: p.grad for k, p in net.named_parameters()})


@pytest.mark.parametrize("channels", [8, 5])
def test_vmap_of_every_layer_and_over_a_train(channels):
    x = train(8, 6, channels, 6, 6).planes.view(1, 3, 2, channels, 6, 6)
    r = dyadic(3, 8, 2, channels, 6, 6)
    weight, v_init = dyadic(channels, channels, 3, 3), dyadic(2, channels, 6, 6)
    w = weight.clone().requires_grad_()
    image, counts = dyadic(3, 2, channels, 6, 6), torch.randint(9, (3, 2, channels, 6, 6))

    def conv(planes, residual):
        y, v = f.conv2d_if(te.SpikeTrain(planes, 8), w, padding=1, residual=residual, return_v=True)
        return y.planes, y.counts, v

    layers = [
        (conv, (x, r), (1, 0)),
        (lambda p: f.conv2d_if(te.SpikeTrain(p, 8), weight, padding=1, v_init=v_init).counts, (x,), 1),
        (lambda p: f.bn_if(te.SpikeTrain(p, 8), weight)[0].counts, (x,), 1),
        (lambda c: f.if_scan(c, residual=te.SpikeTrain(x[:, 0], 8)).counts, (r,), 0),
        (lambda a: f.conv2d_if(te.ConstantInput(a, 8), weight, padding=1).counts, (image,), 0),
        (lambda a: f.if_scan(te.ImpulseInput(a, 8)).planes, (image,), 0),
        (lambda p: window_product(te.SpikeTrain(p, 8), w, convolution((3, 3), 2, 1, 1, 1)), (x,), 1),
        (lambda p: te.SpikeTrain(p, 8).to_dense(), (x,), 1),
        (lambda c: f.conv2d_if(te.SpikeTrain.from_counts(c, 8), weight, timing="window").counts, (counts,), 0),
        (lambda c: f.conv2d_if(te.SpikeTrain.from_counts(c, 8), weight).planes, (counts,), 0),
        (lambda s: te.SpikeTrain.from_dense(s).planes, (spikes(8, 2, 3, 5, 5),), 2),
    ]  # fmt: skip
    for layer, inputs, in_dims in layers:
        dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(inputs)
        mapped = vmap(layer, in_dims=dims)(*inputs)
        size = inputs[0].shape[dims[0]]
        single = [layer(*(t.select(d, i) for t, d in zip(inputs, dims, strict=True))) for i in range(size)]
        if not isinstance(mapped, tuple):
            mapped, single = (mapped,), [(s,) for s in single]
        for result, expected in zip(mapped, zip(*single, strict=True), strict=True):
            assert torch.equal(result, torch.stack(expected))
    x, weight = te.SpikeTrain.unchecked(train(8, 6, 7).planes.view(1, 3, 2, 7), 8), dyadic(8, 7)
    dims = te.SpikeTrain.unchecked(1, 8)
    planes = vmap(lambda x: f.linear_if(x, weight).planes, in_dims=(dims,))(x)
    assert torch.equal(planes[1], f.linear_if(te.SpikeTrain(x.planes[:, 1], 8), weight).planes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    """Products in low precision; potentials, statistics and the gradients of parameters stay float32."""
    net, (x, y) = everything(0.2), batch(16)
    with torch.autocast("cpu", dtype):
        output = net(x)
        trains = net[1](net[0](x))
    assert output.dtype == dtype
    assert trains.counts.dtype == dtype
    F.cross_entropy(output.float(), y).backward()
    for name, p in net.named_parameters():
        assert p.grad.dtype == torch.float32, name
        assert p.grad.isfinite().all(), name
    assert net[1].norm.running_mean.dtype == torch.float32
    net.eval()
    with torch.autocast("cpu", dtype):
        output = net(x)
        frozen = ts.freeze(net)
        answers = frozen(x), frozen.readouts(x)[-1]
    assert F.cosine_similarity(output.float(), net(x)).min() > 0.95
    for answer in answers:  # computes in its own type
        assert torch.equal(answer, net(x))


def test_channels_last_is_the_same_network():
    net = everything().eval()
    x, _ = batch(4)
    expected = net(x)
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    assert last[2].body.weight.is_contiguous(memory_format=torch.channels_last)
    for images in x, x.to(memory_format=torch.channels_last):
        torch.testing.assert_close(last(images), expected)
    grads = []
    x = x.double()
    for module, images in (net.double(), x), (last.double(), x.to(memory_format=torch.channels_last)):
        module(images).square().sum().backward()
        grads.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(*grads)


def test_activation_checkpointing():
    layers = [tnn.Conv2d(4, 8, 3, padding=1), tnn.Dropout(0.5), tnn.Residual(tnn.Conv2d(8, 8, 3, padding=1))]
    segment, x = nn.Sequential(*layers), train(8, 3, 4, 6, 6)
    weights, runs = torch.randn(3, 8, 6, 6), []
    segment[0].register_forward_hook(lambda *_: runs.append(1))
    results = []
    for call in segment, lambda x: checkpoint(segment, x, use_reentrant=False):
        torch.manual_seed(1)
        y = call(x)
        results.append([y.planes, *torch.autograd.grad((y.counts * weights).sum(), [*segment.parameters()])])
    assert len(runs) == 3
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("layer", [
    lambda: tnn.Linear(4, 4, norm=True, bn_stats="running"),
    lambda: nn.Sequential(tnn.Linear(4, 4, neurons=False), tnn.Neurons(4, norm=True, bn_stats="running")),
])  # fmt: skip
@pytest.mark.parametrize("reentrant", [False, True])
def test_running_statistics_are_not_recomputed(layer, reentrant):
    """They have changed since the forward pass: its spikes would be others, and gradients wrong without a word."""
    segment, readout = layer(), tnn.Readout(4, 2)
    x = te.SpikeTrain.from_counts(torch.randint(0, 4, (8, 4)).float().requires_grad_(), 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reentrant: torch's, that gradients are lost
        y = checkpoint(lambda c: readout(segment(x.replace(counts=c))), x.counts, use_reentrant=reentrant)
    with pytest.raises(ValueError, match=r'bn_stats: "running" does not go with activation checkpointing.*"batch"'):
        y.sum().backward()


def test_files_hold_plain_tensors_and_trains_are_walked_like_them(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    net, x = everything(), batch(4)[0]
    net(x)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    safetensors.save_model(net, tmp_path / "net.safetensors")
    for load in (
        lambda other: other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True)),
        lambda other: safetensors.load_model(other, tmp_path / "net.safetensors"),
    ):
        other = everything()
        load(other)
        assert torch.equal(other.eval()(x), net.eval()(x))
    x, file = train_with_edge(9, 3, 5), io.BytesIO()
    torch.save(x.detach(), file)
    file.seek(0)
    assert_same(torch.load(file, weights_only=True), x)
    assert_same(_apply_to_tensors(torch.clone, x), x)
    assert any(t is x.counts for t in _find_tensors(x))


def test_a_network_made_on_the_meta_device():
    real = everything()
    with torch.device("meta"):
        empty = everything()
    assert all(t.is_meta for t in [*empty.parameters(), *empty.buffers()])
    assert empty(torch.empty(3, 1, 8, 8, device="meta")).shape == (3, 10)
    initialised = copy.deepcopy(empty).to_empty(device="cpu")
    loaded = copy.deepcopy(initialised)
    for module in initialised.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    with torch.no_grad():
        initialised[8].threshold.fill_(1.0)
    for (name, a), b in zip(real.state_dict().items(), initialised.state_dict().values(), strict=True):
        if name.endswith(("norm.weight", "running_var", "running_mean", "threshold")):
            assert torch.equal(a, b), name
        else:
            assert b.isfinite().all(), name
            spread = [values.double().std(unbiased=False).item() for values in (a, b)]
            assert spread[1] == pytest.approx(spread[0], rel=0.5)
    loaded.load_state_dict(real.state_dict(), assign=True)
    x, _ = batch(4)
    assert torch.equal(loaded.eval()(x), real.eval()(x))
    assert nn.utils.skip_init(tnn.Linear, 5, 3).weight.shape == (3, 5)


def test_names_in_a_profile():
    net, (x, y) = everything(), batch(8)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        F.cross_entropy(net(x), y).backward()
    names = {event.key for event in profile.key_averages()}
    assert {"tandem::bn_if", "tandem::linear_if", "tandem::constant_if", "FireBackward"} <= names
