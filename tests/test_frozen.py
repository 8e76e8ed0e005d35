"""Frozen networks: one call, step by step and layer by layer give the same bits."""

import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import networks
import pytest
import torch
from cases import dyadic
from networks import Net, Shortcut, conv, image_paths, impulse_paths, lif, line, mlp, projection, residual, trained
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_snn.frozen import freeze, load


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("make", [mlp, lif, conv, residual, projection, image_paths, impulse_paths, line])
def test_one_call_is_the_evaluation_and_the_stream(make: object, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net, x = make()  # type: ignore[operator]
    net, x = trained(net, x).to(dtype), x.to(dtype)
    frozen = networks.assert_frozen_is(net, x)
    assert torch.equal(frozen(x[2:3]), frozen(x)[2:3]) or torch.allclose(frozen(x[2:3]), frozen(x)[2:3], atol=1e-5)


def spiking_net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(tnn.Linear(30, 60), tnn.Linear(60, 20), tnn.Readout(20, 5)).eval()


def residual_of_the_input() -> nn.Module:
    torch.manual_seed(5)
    blocks = tnn.Residual(tnn.Linear(30, 30)), tnn.Residual(tnn.Linear(30, 7), tnn.Linear(30, 7))
    return nn.Sequential(*blocks, tnn.Readout(7, 5)).eval()


@pytest.mark.parametrize("T", [1, 8, 19])
@pytest.mark.parametrize("net", [spiking_net(), residual_of_the_input()], ids=["layers", "residual"])
def test_spikes_in(net: nn.Module, T: int) -> None:
    x = te.SpikeTrain.from_dense(torch.rand(T, 7, 30).lt(0.4).float())
    frozen = networks.assert_frozen_is(net, x)
    assert frozen(x[:0]).shape == frozen.anytime(x[:0])[0].shape == (0, 5)


@pytest.mark.parametrize("net", [spiking_net(), residual_of_the_input()], ids=["layers", "residual"])
def test_what_a_spike_of_the_input_is_worth(net: nn.Module, tmp_path: Path) -> None:
    frozen, spikes = freeze(net), torch.rand(8, 7, 30).lt(0.4).float()
    frozen.save(tmp_path / "net.tandem")
    loaded = load(tmp_path / "net.tandem")
    for gain in (1.0, 0.5, torch.tensor(2.0), torch.rand(30) + 0.5):
        x = te.SpikeTrain.from_dense(spikes, gain=gain)
        assert torch.equal(frozen(x), net(x))
        assert torch.equal(frozen.readouts(x)[-1], net(x))
        if isinstance(gain, float) and gain == 1:
            assert torch.equal(loaded(x), net(x))
            continue
        for call in (loaded, loaded.readouts):
            with pytest.raises(ValueError, match="a network from a file was saved for a gain of 1"):
                call(x)


def test_a_residual_that_is_given_without_its_name(tmp_path: Path) -> None:
    torch.manual_seed(6)
    net, x = Shortcut(named=False).eval(), torch.rand(4, 6)
    frozen = freeze(net)
    frozen.save(tmp_path / "net.tandem")
    for one in frozen, load(tmp_path / "net.tandem"):
        assert torch.equal(one(x), net(x))
        assert torch.equal(one.readouts(x)[-1], net(x))


def test_what_has_no_frozen_form_is_refused_by_name() -> None:
    net = nn.Sequential(tnn.Encoder(8), tnn.Linear(4, 5, norm=True), tnn.Readout(5, 1)).eval()
    with pytest.raises(ValueError, match="a single output"):
        freeze(net).anytime(torch.rand(2, 4))

    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
            return x + y

    with pytest.raises(ValueError, match="forward takes x, y, where a frozen network takes one"):
        freeze(Two())
    net[1].norm.running_mean = net[1].norm.running_var = None
    with pytest.raises(ValueError, match="norm: without running statistics"):
        freeze(net)


def test_it_is_a_snapshot() -> None:
    net, x = mlp()
    trained(net, x)
    frozen = freeze(net)
    before = frozen(x)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3.0)
    assert torch.equal(frozen(x), before)
    assert torch.equal(copy.deepcopy(frozen)(x), before)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("change", [
    partial(prune.l1_unstructured, name="weight", amount=0.5), nn.utils.weight_norm, nn.utils.spectral_norm,
    nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.orthogonal,
])  # fmt: skip
def test_weights_that_are_made_before_each_forward(change: Callable[[nn.Module], object], tmp_path: Path) -> None:
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


def test_hooks_run_and_have_no_program(tmp_path: Path) -> None:
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
    assert freeze(net)._program_for(1.0).refusal is None


def test_a_network_without_a_program_runs_layer_by_layer() -> None:
    layers = {"layer": tnn.Linear(4, 4), "readout": tnn.Readout(4, 2)}
    net = Net(lambda m, x: m.readout(te.cat([m.layer(x), m.layer(x)])), **layers)
    x = te.SpikeTrain.from_dense(torch.ones(3, 2, 4))
    frozen = freeze(net)
    assert torch.equal(frozen(x), net(x))
    with pytest.raises(ValueError, match="contains something that is not a layer"):
        frozen.step(torch.ones(2, 4))


def test_a_shortcut_of_an_image_needs_synapses() -> None:
    net = nn.Sequential(tnn.Encoder(T=8), tnn.Residual(tnn.Linear(4, 4)), tnn.Readout(4, 3)).eval()
    for run in net, freeze(net):
        with pytest.raises(TypeError, match="residual: expected a SpikeTrain, got ConstantInput"):
            run(torch.rand(2, 4))


def averaged() -> tuple[nn.Module, Tensor]:
    layers = tnn.Encoder(T=8), tnn.Conv2d(1, 4, 3), tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Readout(4, 3)
    return nn.Sequential(*layers), torch.rand(2, 1, 6, 6)


@pytest.mark.parametrize("make", [mlp, conv, averaged])
@pytest.mark.parametrize("warm", [True, False])
def test_an_empty_batch(make: object, warm: bool) -> None:
    net, x = make()  # type: ignore[operator]
    frozen = freeze(net.eval())
    if warm:
        frozen(x)
    outputs = net(x).shape[1]
    assert net(x[:0]).shape == frozen(x[:0]).shape == (0, outputs)
    assert frozen.step(x[:0]).shape == (0, outputs)
    logits, steps = frozen.anytime(x[:0])
    assert logits.shape == (0, outputs)
    assert steps.shape == (0,)
    assert frozen.readouts(x[:0]).shape == (frozen.T, 0, outputs)


def test_errors() -> None:
    net, x = mlp()
    frozen, streamed, fresh = freeze(net), freeze(net), freeze(net)
    streamed.step(x)
    events, spikes = freeze(spiking_net(), T=8), te.SpikeTrain.from_dense(torch.ones(1, 1, 30))
    video, frame = (
        freeze(nn.Sequential(tnn.Encoder(4), tnn.Conv2d(1, 2, 3), tnn.AdaptiveAvgPool2d(1))),
        torch.rand(1, 1, 8, 8),
    )
    video.step(frame)
    of_arrays = r"x: expected a tensor \[B, \*features\] or a SpikeTrain, got ndarray"
    for call, error, message in (
        (lambda: freeze("net.tandem"), TypeError, r"net: expected a torch\.nn\.Module, got str"),
        (lambda: freeze(net, T=2.5), TypeError, "T: expected an int from 1 to 65535"),
        (lambda: freeze(net, T=65536), ValueError, "T: expected"),
        (lambda: freeze(net, T=16), ValueError, "T: the network's Encoder has T=8, got 16"),
        *((lambda bits=bits: freeze(net, weight_bits=bits), ValueError, "weight_bits") for bits in (1, 9)),
        (lambda: freeze(net, weight_bits=4.0), TypeError, "weight_bits: expected None or an int from 2 to 8"),
        *((lambda use=use: use(x.numpy()), TypeError, of_arrays) for use in (frozen, frozen.anytime)),
        (lambda: frozen(torch.tensor(1.0)), ValueError, "x: expected a batch"),
        (lambda: frozen.anytime(torch.tensor(1.0)), ValueError, "x: expected a batch"),
        (lambda: events(torch.rand(1, 30)), TypeError, "x: the network takes a SpikeTrain, got a tensor"),
        (lambda: events.step(spikes[[0, 0]].replace(T=2)), ValueError, "x: expected one step, got SpikeTrain"),
        (lambda: streamed.step(spikes), ValueError, "x: expected an image, got SpikeTrain"),
        (lambda: events.step(torch.full((1, 30), 0.3)), ValueError, "x: expected only 0 and 1"),
        (lambda: frozen.anytime(x, "0.9"), TypeError, r"confidence: expected a float in \(0, 1\]"),
        (lambda: frozen.anytime(x, 1.5), ValueError, "confidence"),
        (lambda: streamed.step(x[:2]), ValueError, "the shape differs from that of the steps before"),
        (lambda: video.step(torch.rand(1, 1, 9, 9)), ValueError, "the shape differs from that of the steps before"),
        *((lambda use=use: use(x[:2, 1:]), ValueError, "x has 19 features") for use in (fresh.step, fresh.readouts)),
        *((lambda use=use: use(x.double()), TypeError, "x is torch.float64") for use in (fresh.step, fresh.anytime)),
        (lambda: freeze(spiking_net()).step(torch.ones(1, 30)), ValueError, "T: not known"),
        (lambda: freeze(spiking_net(), weight_bits=4)(te.SpikeTrain(spikes.planes, 1, gain=torch.rand(30))), ValueError,
         "x: weights of few bits are rounded already"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()
    assert fresh.step(x).shape == (6, 10)  # calls that failed began no stream


def test_what_wraps_a_network_is_left_out(tmp_path: Path) -> None:
    net, x = mlp()
    for wrapped in AveragedModel(net), nn.DataParallel(net), freeze(net):
        frozen = freeze(wrapped.eval(), weight_bits=3)
        assert torch.equal(frozen(x), freeze(net, weight_bits=3)(x))
        frozen.save(tmp_path / "net")
    with pytest.raises(ValueError, match="weight_bits: a network from a file cannot be rounded"):
        freeze(load(tmp_path / "net"), weight_bits=2)
    assert torch.equal(freeze(load(tmp_path / "net"))(x), frozen(x))


def test_a_call_keeps_its_T_when_another_thread_calls_with_another(monkeypatch: pytest.MonkeyPatch) -> None:
    net, train = spiking_net().eval(), te.SpikeTrain.from_dense((torch.rand(8, 3, 30) < 0.3).float())
    frozen = freeze(net)
    alone = frozen(train), frozen.readouts(train)
    program = frozen._program

    def interrupted(x: Tensor | te.SpikeTrain) -> object:
        frozen.T = 3
        return program(x)

    monkeypatch.setattr(frozen, "_program", interrupted)
    assert torch.equal(frozen(train), alone[0])
    assert torch.equal(frozen.readouts(train), alone[1])


def test_one_neuron_after_spikes_that_are_worth_a_tensor() -> None:
    worth = tnn.Linear(6, 4, threshold=torch.tensor(0.5), gain="threshold")
    net = nn.Sequential(tnn.Encoder(T=8), worth, tnn.Linear(4, 1), tnn.Linear(1, 4), tnn.Readout(4, 2)).eval()
    x = torch.rand(5, 6)
    assert torch.equal(freeze(net)(x), net(x))


def test_other_weights_make_another_program() -> None:
    (net, x), (other, _) = mlp(), mlp()
    frozen = freeze(net.eval())
    assert set(frozen.state_dict()) == {f"net.{key}" for key in net.state_dict()}
    frozen(x)
    frozen.load_state_dict(freeze(other.eval()).state_dict())
    assert torch.equal(frozen(x), other(x))
    assert torch.equal(frozen.double()(x.double()), frozen.net(x.double()))
    with pytest.raises(TypeError, match=r"x is torch\.float32, but weight is torch\.float64: cast one of them"):
        frozen(x)


def test_weights_are_prepared_once_whatever_the_sizes() -> None:
    net, _ = averaged()
    frozen = freeze(net.eval())
    for size in range(4, 16):
        x = torch.rand(2, 1, size, size)
        assert torch.equal(frozen(x), net(x))
    assert len(frozen._programs) == 1


def test_programs_do_not_pile_up() -> None:
    net = spiking_net()
    frozen = freeze(net)
    for gain in range(1, 13):
        x = te.SpikeTrain.from_dense(torch.rand(8, 2, 30).lt(0.4).float(), gain=gain / 4)
        assert torch.equal(frozen(x), net(x))
    assert len(frozen._programs) == 8


@pytest.mark.parametrize("shape", [(6,), (3, 5, 4)])
def test_a_stream_whose_image_changes(shape: tuple[int, ...]) -> None:
    """It keeps W x of a direct encoder while x is the same, and no longer."""
    layer: tnn.Linear | tnn.Conv2d = tnn.Linear(6, 5) if len(shape) == 1 else tnn.Conv2d(3, 5, 3, padding=1)
    with torch.no_grad():
        layer.weight.copy_(dyadic(*layer.weight.shape))
        layer.bias.copy_(dyadic(5))
    net = nn.Sequential(tnn.Encoder(T=8), layer, *[] if len(shape) == 1 else [tnn.Flatten()])
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


def test_a_stream_of_a_view() -> None:
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


def test_a_readout_that_reads_another() -> None:
    """Only the last one gives the answer, which is smaller than what others give."""
    net = nn.Sequential(tnn.Encoder(8), tnn.Linear(3, 5), tnn.Readout(5, 3000), tnn.Readout(3000, 3)).eval()
    frozen, x = freeze(net), torch.rand(4, 3)
    assert torch.equal(frozen(x), net(x))
    assert torch.equal([frozen.step(x) for _ in range(8)][-1], net(x))


def test_a_stream_has_the_gain_of_its_trains() -> None:
    net, dense = spiking_net(), torch.rand(8, 5, 30).lt(0.4).float()
    frozen = freeze(net, T=8)
    for gain in (0.25, torch.linspace(0.25, 4, 30)):
        whole = te.SpikeTrain.from_dense(dense, gain)
        for t in range(8):
            so_far = frozen.step(te.SpikeTrain.from_dense(dense[t : t + 1], gain))
        assert torch.equal(so_far, frozen(whole))
        assert not torch.equal(so_far, frozen(te.SpikeTrain.from_dense(dense)))
        frozen.reset()


def test_weights_change_by_load_state_dict_alone() -> None:
    net, x = mlp()
    frozen = freeze(net)
    before = frozen(x)
    with torch.no_grad():
        for parameter in frozen.parameters():
            parameter.mul_(2)
    assert torch.equal(frozen(x), before)
    frozen.load_state_dict(frozen.state_dict())
    assert not torch.equal(frozen(x), before)
