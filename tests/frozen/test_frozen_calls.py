"""Calls of frozen networks: what they refuse and say, what wraps them, what threads and programs share."""

import copy
import math

import pytest
import torch
from networks import Net, averaged, mlp, of_timing, spikes, spiking_net
from torch import nn
from torch.optim.swa_utils import AveragedModel

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn.frozen import freeze, load


def test_a_network_without_a_program_runs_layer_by_layer():
    layers = {"layer": tnn.Linear(4, 4, threshold=1.0), "readout": tnn.Readout(4, 2)}
    net = Net(lambda m, x: m.readout(te.cat([m.layer(x), m.layer(x)])), **layers)
    x = te.SpikeTrain.from_dense(torch.ones(3, 2, 4))
    why = "cat: it joins samples, along dimension 0"
    with pytest.warns(UserWarning, match=f"freeze: the network runs layer by layer, which takes longer: {why}"):
        frozen = freeze(net)
    assert f"T=None, timing=step, weight_bits=None, 24 weights, layer by layer: {why}" in repr(frozen)
    assert torch.equal(frozen(x), net(x))
    with pytest.raises(ValueError, match=why):
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
        (lambda: video.settle(torch.ones(1, 1, 9, 9).byte()), ValueError,
         r"the shape differs from that of the steps before, \[1, 1, 8, 8\], got torch.uint8 \[1, 1, 9, 9\]; reset"),
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
    assert torch.equal(ops.frozen_run([x], 8, "step", handle, False)[0], expected)
    assert copy.deepcopy(frozen)._programs == {}
    del program
    frozen.float()
    for wrong in handle, torch.zeros(2, dtype=torch.int64), torch.zeros(16, dtype=torch.uint8), torch.zeros(0):
        with pytest.raises(RuntimeError, match="network must be what frozen_read gives, until it is freed"):
            ops.frozen_run([x], 8, "step", wrong, False)
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


@pytest.mark.kernels
def test_spikes_of_a_layer_with_its_own_T_are_no_input():
    front = nn.Sequential(tnn.Encoder(8), tnn.Linear(6, 20, timing="window", T=16, gain=1.0))
    train = front(torch.rand(4, 6)).detach()
    frozen = freeze(nn.Sequential(tnn.Linear(20, 16, timing="window"), tnn.Readout(16, 4)), T=8)
    for call in (frozen, frozen.step, frozen.settle, frozen.readouts, frozen.anytime):
        with pytest.raises(ValueError, match=r"x: expected spikes in the steps of the network, got .* T=16 .* T=8"):
            call(train)


@pytest.mark.kernels
@pytest.mark.parametrize("reader", ["step", "window"])
@pytest.mark.parametrize("T", [5, 9])
def test_joins_of_both_timings_keep_the_steps_that_a_reader_needs(reader, T, tmp_path):
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.flat = tnn.Encoder(T), tnn.Flatten()
            self.a, self.b = (tnn.Conv1d(2, 8, 3, padding=1, timing=timing) for timing in ("step", "window"))
            self.c, self.readout = tnn.Linear(16 * 6, 16, timing=reader), tnn.Readout(16, 3)

        def forward(self, x):
            x = self.encoder(x)
            return self.readout(self.c(self.flat(te.cat([self.a(x), self.b(x)], 1))))

    net, x = Joined().eval(), torch.randn(50, 2, 6)
    frozen = freeze(net, example=x)
    frozen.save(tmp_path / "net.tandem")
    assert frozen.why_slow is None
    assert torch.equal(frozen(x), net(x))
    assert torch.equal(load(tmp_path / "net.tandem")(x), net(x))
