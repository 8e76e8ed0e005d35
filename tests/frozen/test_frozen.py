"""Frozen networks: one call, step by step and layer by layer give the same bits."""

import copy
import math
from functools import partial

import networks
import pytest
import torch
from cases import dyadic
from networks import Net, assert_frozen_is, average, conv, lif, mlp, of_timing, shortcut, trained
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_snn.frozen import freeze, load

POOLS = tnn.AdaptiveAvgPool2d(1), tnn.AdaptiveAvgPool2d((2, 3)), tnn.AvgPool2d(3, spiking=False)


def spikes(T=8, batch=7, gain=1.0):
    return te.SpikeTrain.from_dense(torch.rand(T, batch, 30).lt(0.4).float(), gain)


def spiking_net():
    torch.manual_seed(1)
    layers = tnn.Linear(30, 60, threshold=1.0), tnn.Linear(60, 20, threshold=1.0)  # for any T
    return nn.Sequential(*layers, tnn.Readout(20, 5)).eval()


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


@pytest.mark.parametrize("every", ["", "even", "odd"])
@pytest.mark.parametrize("T", [1, 2, 8, 200])
@pytest.mark.parametrize("make", [*networks.NETWORKS, average])
def test_one_call_is_the_evaluation_of_windows(make, T, every):
    """test_following.py runs them by steps."""
    net, x = of_timing(make, T, every)
    frozen = freeze(net)
    assert torch.equal(frozen(x), net(x))
    assert next(iter(frozen._programs.values())).refusal is None


@pytest.mark.parametrize("waits", [[0], [1], [0, 1]])
def test_trains_of_both_forms_in(waits):
    net = nn.Sequential(tnn.Residual(tnn.Linear(30, 30)), tnn.Linear(30, 20), tnn.Readout(20, 4)).eval()
    for number in waits:
        next(m for m in net[number].modules() if isinstance(m, tnn.Linear)).timing = "window"
    burst = te.SpikeTrain.from_counts(torch.randint(0, 12, (5, 30)), 11)
    frozen = freeze(net, T=11)
    for x in burst, te.SpikeTrain(burst.planes, 11), te.SpikeTrain.from_dense(burst.to_dense().flip(0)):
        assert torch.equal(frozen(x), net(x))
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

    class Two(nn.Module):
        def forward(self, x, y, scale=1.0):
            return x + y

    with pytest.raises(ValueError, match="forward takes x, y, where a frozen network takes one"):
        freeze(Two())
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
    net = nn.Sequential(tnn.Linear(4, 5), tnn.Readout(5, 2))
    net[0].register_full_backward_hook(lambda *_: None)
    assert freeze(net, T=8)._program_for(1.0).refusal is None


def test_a_network_without_a_program_runs_layer_by_layer():
    layers = {"layer": tnn.Linear(4, 4, threshold=1.0), "readout": tnn.Readout(4, 2)}
    net = Net(lambda m, x: m.readout(te.cat([m.layer(x), m.layer(x)])), **layers)
    x = te.SpikeTrain.from_dense(torch.ones(3, 2, 4))
    with pytest.warns(
        UserWarning, match="freeze: the network runs layer by layer, which takes longer: net: it contains"
    ):
        frozen = freeze(net)
    assert "T=None, timing=step, weight_bits=None, 24 weights, layer by layer: net: it contains" in repr(frozen)
    assert torch.equal(frozen(x), net(x))
    with pytest.raises(ValueError, match="contains something that is not a layer"):
        frozen.step(torch.ones(2, 4))


@pytest.mark.filterwarnings("error")
def test_its_repr_says_what_it_is_and_a_warning_what_is_slow(tmp_path):
    net, x = of_timing(mlp, 8, "even")
    frozen = freeze(net, weight_bits=4)
    assert "T=8, timing=step+window, weight_bits=4, 2,980 weights, one call\n" in repr(frozen)
    frozen(x)
    frozen.save(tmp_path / "net")
    assert "T=8, timing=step+window, weight_bits=4, 2,980 weights, one call\n" in repr(load(tmp_path / "net"))
    flat = nn.Sequential(tnn.Encoder(8), tnn.Flatten(), *net[1:])
    with pytest.warns(
        UserWarning, match=r"x: .*layer by layer.*one call does not take a tensor of shape \[6, 1, 2, 2, 5\]"
    ):
        assert torch.equal(freeze(flat)(x.view(6, 1, 2, 2, 5)), net(x))


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


def test_what_a_frozen_network_cannot_do():
    net, x = mlp()
    frozen, events = freeze(net), freeze(spiking_net())
    with pytest.raises(
        ValueError, match="T: a frozen network keeps its 8 steps, got 4: give the network, or its Encoder"
    ):
        frozen.T = 4
    assert frozen.T == 8
    assert not any(module.training for module in nn.Sequential(frozen).train()[0].modules())
    image, counts = x.clone().requires_grad_(), torch.ones(2, 30, requires_grad=True)
    for use in (
        lambda: frozen(image), lambda: frozen.step(image), lambda: frozen.readouts(image),
        lambda: events(te.SpikeTrain.from_counts(counts, 8)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="x: a frozen network has no gradients: use the network that was frozen"):
            use().sum().backward()
    for use in frozen, frozen.step:
        with pytest.raises(ValueError, match="x: a frozen network has no gradients"):
            torch.func.jvp(use, (x,), (x,))
    assert torch.equal(torch.func.jvp(lambda a: a.sum() * frozen(x), (x,), (x,))[1], x.sum() * frozen(x))
    with torch.no_grad():
        assert not frozen(image).requires_grad


@pytest.mark.parametrize("timing", ["step", "window"])
def test_answers_are_tensors_that_a_loss_may_use_and_a_caller_may_change(timing):
    """Not those of inference mode: a student learns from them, and classes are masked in place."""
    net, x = of_timing(mlp, 8) if timing == "window" else mlp()
    frozen, no_program = freeze(net), freeze(nn.Sequential(*net.eval(), nn.Identity()))
    student = torch.zeros(6, 10, requires_grad=True)
    answers = [frozen(x), no_program(x), frozen.step(x), frozen.readouts(x)[-1], frozen.anytime(x)[0]]
    answers += [] if timing == "step" else [frozen.settle(x)[0], next(frozen.follow(x))[0]]
    for answer in answers:
        student.grad = None
        (student * answer).sum().backward()
        assert torch.equal(student.grad, answer)
        answer[:, 3] = -math.inf
    for first, second in ((torch.inference_mode, torch.enable_grad), (torch.enable_grad, torch.inference_mode)):
        frozen.float()
        with first():  # a program and a stream may begin in one mode and go on in another
            frozen.step(x).zero_()
        with second():
            assert torch.equal(frozen.step(x), frozen.readouts(x)[1])


def averaged():
    layers = tnn.Encoder(T=8), tnn.Conv2d(1, 4, 3), tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Readout(4, 3)
    return nn.Sequential(*layers), torch.rand(2, 1, 6, 6)


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


def test_bad_calls_are_named_and_begin_no_stream():
    net, x = mlp()
    frozen, streamed, fresh = freeze(net), freeze(net), freeze(net)
    streamed.step(x)
    events, train = freeze(spiking_net(), T=8), te.SpikeTrain.from_dense(torch.ones(1, 1, 30))
    video = freeze(nn.Sequential(tnn.Encoder(4), tnn.Conv2d(1, 2, 3), tnn.AdaptiveAvgPool2d(1)))
    video.step(torch.rand(1, 1, 8, 8))
    of_arrays = r"x: expected a tensor \[B, \*features\] or a SpikeTrain, got ndarray"
    for call, error, message in (
        (lambda: freeze("net.tandem"), TypeError, r"net: expected a torch\.nn\.Module, got str"),
        (lambda: freeze(net, T=2.5), TypeError, "T: expected an int from 1 to 65535"),
        (lambda: freeze(net, T=65536), ValueError, "T: expected"),
        (lambda: freeze(net, T=16), ValueError, "T: the network's Encoder has T=8, got 16"),
        (lambda: freeze(net, T=8.0), TypeError, "T: expected an int from 1 to 65535, got 8.0"),
        *((call, ValueError, "T: expected an int from 1 to 255 with timing='window'") for call in (
            lambda: freeze(tnn.Linear(4, 3, timing="window"), T=256),
            lambda: freeze(nn.Sequential(tnn.Encoder(256), tnn.AvgPool2d(2, timing="window"))),
        )),
        *((lambda use=use: use(x.to_sparse()), TypeError, "got a torch.float32 torch.sparse_coo tensor")
          for use in (frozen, fresh.step, fresh.readouts, fresh.anytime)),
        *((lambda bits=bits: freeze(net, weight_bits=bits), ValueError, "weight_bits") for bits in (1, 9)),
        (lambda: freeze(net, weight_bits=4.0), TypeError, "weight_bits: expected None or an int from 2 to 8"),
        *((lambda use=use: use(x.numpy()), TypeError, of_arrays) for use in (frozen, frozen.anytime)),
        (lambda: frozen(torch.tensor(1.0)), ValueError, "x: expected a batch"),
        (lambda: frozen.anytime(torch.tensor(1.0)), ValueError, "x: expected a batch"),
        (lambda: events(torch.rand(1, 30)), TypeError, "x: the network takes a SpikeTrain, got a tensor"),
        (lambda: events.step(train[[0, 0]].replace(T=2)), ValueError, "x: expected one step, got SpikeTrain"),
        (lambda: streamed.step(train), ValueError, "x: expected an image, got SpikeTrain"),
        (lambda: events.step(torch.full((1, 30), 0.3)), ValueError, "x: expected only 0 and 1"),
        (lambda: frozen.anytime(x, "0.9"), TypeError, r"confidence: expected a float in \(0, 1\]"),
        (lambda: frozen.anytime(x, 1.5), ValueError, "confidence"),
        (lambda: streamed.step(x[:2]), ValueError, "the shape differs from that of the steps before"),
        (lambda: video.step(torch.rand(1, 1, 9, 9)), ValueError, "the shape differs from that of the steps before"),
        *((lambda use=use: use(x[:2, 1:]), ValueError, "x has 19 features") for use in (fresh.step, fresh.readouts)),
        *((lambda use=use: use(x.double()), TypeError, "x is torch.float64") for use in (fresh.step, fresh.anytime)),
        (lambda: freeze(spiking_net()).step(torch.ones(1, 30)), ValueError, "T: not known"),
        (lambda: freeze(spiking_net(), weight_bits=4)(te.SpikeTrain(train.planes, 1, gain=torch.rand(30))), ValueError,
         "x: weights of few bits are rounded already"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()
    assert fresh.step(x).shape == (6, 10)  # calls that failed began no stream


def test_what_wraps_a_network_is_left_out(tmp_path):
    net, x = mlp()
    for wrapped in AveragedModel(net), nn.DataParallel(net), torch.compile(nn.DataParallel(net)), freeze(net):
        frozen = freeze(wrapped.eval(), weight_bits=3)
        assert torch.equal(frozen(x), freeze(net, weight_bits=3)(x))
        frozen.save(tmp_path / "net")
    with pytest.raises(ValueError, match=r"weight_bits: net .*freeze the original of a network from a file"):
        freeze(load(tmp_path / "net"), weight_bits=2)
    with pytest.warns(UserWarning, match="weight_bits=8 replaces 4 bits, with which a layer was trained"):
        freeze(nn.Sequential(tnn.Encoder(8), tnn.Linear(20, 5, weight_bits=4), tnn.Readout(5, 2)), weight_bits=8)
    assert torch.equal(freeze(load(tmp_path / "net"))(x), frozen(x))


def test_what_is_no_network_that_was_read():
    """A handle ends with its network, in a copy of the frozen network too, and is one in its own process only."""
    net, x = mlp()
    frozen, ops = freeze(net), torch.ops.tandem
    expected, program = frozen(x), frozen._program_for(1.0)
    handle = program.network
    assert torch.equal(ops.frozen_run(x, 8, "step", handle, False), expected)
    assert copy.deepcopy(frozen)._programs == {}
    del program
    frozen.float()
    for wrong in handle, torch.zeros(2, dtype=torch.int64), torch.zeros(16, dtype=torch.uint8), torch.zeros(0):
        with pytest.raises(RuntimeError, match="network must be what frozen_read gives, until it is freed"):
            ops.frozen_run(x, 8, "step", wrong, False)
        with pytest.raises(RuntimeError, match="network must be what frozen_read gives, until it is freed"):
            ops.frozen_free(wrong)
    assert torch.equal(frozen(x), expected)


def test_a_call_keeps_its_T_when_another_thread_calls_with_another(monkeypatch):
    frozen, train = freeze(spiking_net()), spikes()
    alone = frozen(train), frozen.readouts(train)
    program = frozen._program

    def interrupted(x):
        frozen._T = 3
        return program(x)

    monkeypatch.setattr(frozen, "_program", interrupted)
    assert torch.equal(frozen(train), alone[0])
    assert torch.equal(frozen.readouts(train), alone[1])


def test_programs_are_made_once_whatever_the_sizes_and_do_not_pile_up():
    net = spiking_net()
    frozen = freeze(net)
    for gain in range(1, 13):
        x = spikes(gain=gain / 4)
        assert torch.equal(frozen(x), net(x))
    assert len(frozen._programs) == 8
    net, _ = averaged()
    frozen = freeze(net.eval())
    for size in range(4, 16):
        x = torch.rand(2, 1, size, size)
        assert torch.equal(frozen(x), net(x))
    assert len(frozen._programs) == 1


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
        spikes = te.functional.if_scan(y, shift=layer.bias).counts.flatten(1)
        assert torch.equal(so_far, nn.functional.linear(spikes, net[-1].weight, net[-1].bias))


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
