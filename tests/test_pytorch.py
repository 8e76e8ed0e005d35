"""Networks as citizens of PyTorch: compiled whole, exported, checkpointed, copied, saved, profiled."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from cases import train
from extras import needs
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, grad_and_value, vmap
from torch.utils.checkpoint import checkpoint

import tandem_snn as ts
import tandem_snn.nn as tnn

SHAPE = (1, 8, 8)


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


def batch(size, shape=SHAPE):
    return torch.rand(size, *shape), torch.randint(10, (size,))


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
        dict(n.named_buffers()) | {name: p.grad for name, p in n.named_parameters()} for n in (compiled, net)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_whole_network_is_exported(dynamic):
    net = everything().eval()
    x, _ = batch(4)
    shapes = ({0: torch.export.Dim("batch", min=2, max=256)},) if dynamic else None
    with torch.no_grad():
        program = torch.export.export(net, (x,), dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for size in (4, 9) if dynamic else (4,):
        x, _ = batch(size)
        torch.testing.assert_close(loaded(x), net(x))


def test_training_mode_is_exported_for_any_batch():
    net = everything().train()
    program = torch.export.export(net, (batch(4)[0],), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
    exported, (x, _) = program.module(), batch(9)
    torch.testing.assert_close(exported(x), net(x))
    torch.testing.assert_close(dict(exported.named_buffers())["1.norm.running_var"], net[1].norm.running_var)


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


def test_gradients_of_each_sample():
    net = nn.Sequential(tnn.Encoder(8), tnn.Conv2d(1, 4, 3), tnn.Flatten(), tnn.Linear(144, 12), tnn.Readout(12, 10))
    x, y = batch(5)
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(p, x, y):
        return F.cross_entropy(functional_call(net, p, (x[None],)), y[None])

    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    for i in range(5):
        net.zero_grad()
        F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]).backward()
        for name, p in net.named_parameters():
            torch.testing.assert_close(found[name][i], p.grad)


def test_activation_checkpointing():
    layers = [tnn.Conv2d(4, 8, 3, padding=1), tnn.Dropout(0.5), tnn.Residual(tnn.Conv2d(8, 8, 3, padding=1))]
    segment, x = nn.Sequential(*layers), train(8, 3, 4, 6, 6)
    weights, runs = torch.randn(3, 8, 6, 6), []
    segment[0].register_forward_hook(lambda *_: runs.append(1))
    results = []
    for call in segment, lambda x: checkpoint(segment, x, use_reentrant=False):
        torch.manual_seed(1)
        segment.zero_grad()
        y = call(x)
        (y.counts * weights).sum().backward()
        results.append([y.planes, *(p.grad.clone() for p in segment.parameters())])
    assert len(runs) == 3
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_weights_are_plain_tensors_in_files(tmp_path):
    safetensors = needs("safetensors.torch")
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


def test_a_network_made_on_the_meta_device():
    real = everything()
    with torch.device("meta"):
        empty = everything()
    assert all(t.is_meta for t in [*empty.parameters(), *empty.buffers()])
    assert empty(torch.empty(3, *SHAPE, device="meta")).shape == (3, 10)
    initialised = copy.deepcopy(empty).to_empty(device="cpu")
    loaded = copy.deepcopy(initialised)
    for module in initialised.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    tnn.init_gamma_(initialised)
    with torch.no_grad():
        initialised[8].threshold.fill_(1.0)
    for (name, a), b in zip(real.state_dict().items(), initialised.state_dict().values(), strict=True):
        if name.endswith(("norm.weight", "running_var", "running_mean", "threshold")):
            assert torch.equal(a, b), name
        else:
            assert b.isfinite().all(), name
            assert b.double().std(unbiased=False).item() == pytest.approx(
                a.double().std(unbiased=False).item(), rel=0.5
            )
    loaded.load_state_dict(real.state_dict(), assign=True)
    x, _ = batch(4)
    assert torch.equal(loaded.eval()(x), real.eval()(x))


def test_initialisation_can_be_skipped():
    layer = nn.utils.skip_init(tnn.Linear, 5, 3)
    assert layer.weight.shape == (3, 5)
    layer.reset_parameters()
    assert layer(train(8, 2, 5)).shape == (2, 3)


def test_names_in_a_profile():
    net, (x, y) = everything(), batch(8)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        F.cross_entropy(net(x), y).backward()
    names = {event.key for event in profile.key_averages()}
    assert {"tandem::conv_bn_if", "tandem::linear_if", "tandem::constant_if", "FireBackward"} <= names
