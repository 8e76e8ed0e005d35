"""Other simulators as judges: neurons, NIR files that they write and read, copied networks: the same counts."""

from pathlib import Path

import any_layer
import child
import networks
import pytest
import torch
import torch.nn.functional as F
from cases import WINDOWS, dyadic, train
from hypothesis import given
from hypothesis import strategies as st
from networks import images, in_windows, meeting, network, own_counts
from nir_simulators import Stepped, counts_of, file_of, read_by
from torch import nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn

pytestmark = pytest.mark.clients
EXAMPLE = Path(__file__).parents[2] / "python" / "examples" / "spikingjelly.py"
LAYERS = {2: F.linear, 3: F.conv1d, 4: F.conv2d}
T, SYNAPSES = 8, (torch.randint(-32, 33, (20, 12)) / 64, torch.randint(-32, 33, (20,)) / 64)  # sums of these are exact


@given(random=st.randoms(), seed=st.integers(0, 2**16), T=st.sampled_from([T for T in WINDOWS if T <= 33]))
def test_layers_spike_as_neurons_of_spikingjelly(random, seed, T):
    """Of any product, on dyadic numbers, step by step; a shortcut's currents and the first potential too."""
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    torch.manual_seed(seed)
    weight_shape, features, geometry = any_layer.conv_geometry(random)
    if any_layer.chance(random):
        weight_shape, features, geometry = (random.randint(1, 40), 30), (30,), {}
    x, weight, theta = train(T, 3, *features, rate=random.choice([0.1, 0.5])), dyadic(*weight_shape), 0.75
    step = LAYERS[weight.dim()]
    currents = torch.stack([step(s, weight, **geometry) for s in x.to_dense()])
    residual, start = dyadic(*currents.shape), dyadic(*currents.shape[1:])
    name = f"conv{len(features) - 1}d_if" if geometry else "linear_if"
    ours, v = getattr(te.functional, name)(
        x, weight, **geometry, threshold=theta, residual=residual, v_init=start, return_v=True
    )
    node = neuron.IFNode(v_threshold=theta, v_reset=None, step_mode="m")
    node.v = start.clone()
    assert torch.equal(ours.to_dense(), node(currents + residual))
    assert torch.equal(v, node.v)


def of_sinabs(batch):
    layers, write = pytest.importorskip("sinabs.layers"), pytest.importorskip("sinabs.nir").to_nir
    from sinabs.activation import SingleSpike

    soft = {"batch_size": batch, "spike_fn": SingleSpike, "min_v_mem": None}
    fire = [layers.IAFSqueeze(spike_threshold=torch.tensor(theta), **soft) for theta in (0.5, 1.0)]
    net = nn.Sequential(nn.Conv2d(1, 4, 3), fire[0], nn.Flatten(), nn.Linear(144, 10), fire[1])
    return net, write, {}, ["1", "4"]


def of_snntorch(batch):
    """With the reset of NIR's formula, before the next decay."""
    snntorch, write = pytest.importorskip("snntorch"), pytest.importorskip("snntorch.export_nir").export_to_nir
    settings = {"beta": torch.full((10,), 0.5), "threshold": torch.ones(10), "init_hidden": True}
    fire = [snntorch.Leaky(**settings, reset_delay=False) for _ in range(2)]
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), fire[0], nn.Linear(10, 10), fire[1])
    return net, lambda net, x: write(net, x, ignore_dims=[0]), {"dt": 1e-4}, ["2", "4"]


def of_spikingjelly(batch):
    """Neurons that subtract it does not write: it writes those that reset to 0, and both sides then subtract."""
    layer, neuron = (pytest.importorskip(f"spikingjelly.activation_based.{name}") for name in ("layer", "neuron"))
    write = pytest.importorskip("spikingjelly.activation_based.nir_exchange").export_to_nir
    fire = [neuron.IFNode(theta) for theta in (0.5, 1.0)]
    net = nn.Sequential(layer.Conv2d(1, 4, 3), fire[0], layer.Flatten(), layer.Linear(144, 10), fire[1])
    return net, lambda net, x: write(net, x, dt=1.0), {}, ["1", "4"]


@pytest.mark.parametrize("make", [of_sinabs, of_snntorch, of_spikingjelly])
@torch.no_grad()
def test_files_that_others_write_run_as_there(make, tmp_path):
    nir = pytest.importorskip("nir")
    x = images(20)
    net, write, options, names = make(len(x))
    networks.dyadic(net)
    if make is of_sinabs:
        net(x)  # it knows the sizes of its neurons then
    given = write(net, x)
    if make is not of_sinabs:  # whose nodes cannot be stored
        nir.write(tmp_path / "net.nir", given)
        given = tmp_path / "net.nir"
    with pytest.raises(ValueError, match=r'resets to v_reset.*give reset="subtract"'):
        ts.from_nir(given, 8, **options)
    ours = ts.from_nir(given, 8, reset="subtract", **options)
    for node in net.modules():
        if hasattr(node, "v_reset"):
            node.v_reset = None
        for forget in {"reset_mem", "reset_states"} & {*dir(node)}:
            getattr(node, forget)()
    fire = [net.get_submodule(name) for name in names]
    networks.assert_same(own_counts(ours, x), counts_of(Stepped(net), fire, x))


def test_a_recurrent_file_is_refused_by_name(tmp_path):
    """As the braille reader of the NIR paper: neurons whose spikes come back to them."""
    nir, snntorch = pytest.importorskip("nir"), pytest.importorskip("snntorch")
    loop = snntorch.RLeaky(beta=0.5, linear_features=10, init_hidden=True)
    net = nn.Sequential(nn.Linear(12, 10), loop, nn.Linear(10, 3), snntorch.Leaky(torch.full((3,), 0.5), torch.ones(3)))
    graph = pytest.importorskip("snntorch.export_nir").export_to_nir(net, torch.rand(2, 12), ignore_dims=[0])
    nir.write(tmp_path / "braille.nir", graph)
    with pytest.raises(ValueError, match=r"1\.lif.*recurrent connections are not supported"):
        ts.from_nir(tmp_path / "braille.nir", 8, reset="subtract", dt=1e-4)


@torch.no_grad()
def test_synaptic_operations_are_those_that_spikingjelly_counts():
    counter = pytest.importorskip("spikingjelly.activation_based.op_counter")
    ones = {"threshold": 0.5, "gain": 1.0}
    layers = [
        tnn.Conv2d(1, 4, 3, padding=1, **ones),
        tnn.Conv2d(4, 6, 3, 2, 1, **ones),
        tnn.Conv2d(6, 6, 2, groups=3, **ones),
    ]
    net, x = nn.Sequential(tnn.Encoder(8, gain=8), *layers, tnn.Flatten(), tnn.Readout(54, 10)), images(64)
    ops, seen = ts.measure.synops(net, x).layers, networks.seen_by(net, x)
    convolution = lambda spikes, c: F.conv2d(spikes, c.weight, None, c.stride, c.padding, c.dilation, c.groups)  # noqa: E731
    for name, product in ("2", convolution), ("3", convolution), ("5", lambda spikes, c: F.linear(spikes, c.weight)):
        layer, count = net.get_submodule(name), counter.SynOpCounter()
        with counter.DispatchCounterMode([count]):
            for spikes in seen[name][0].to_dense():
                product(spikes, layer)
        assert count.get_total() == ops[name].acs * len(x) > 0


def test_networks_of_spikingjelly_are_copied_there_and_back():
    pytest.importorskip("spikingjelly")
    assert child.run(EXAMPLE).count("the same counts in both libraries") == 2


def thirds():
    """Averages that are sums in the file, which not every simulator knows."""
    layers = tnn.Conv2d(1, 8, 3), tnn.AvgPool2d(3), tnn.Conv2d(8, 4, 1), tnn.Flatten(), tnn.Readout(16, 3)
    return networks.dyadic(nn.Sequential(tnn.Encoder(8), *layers))


@pytest.mark.parametrize("make", [network, lambda: meeting(network()), thirds], ids=["", "meeting", "thirds"])
@pytest.mark.parametrize("name", ["nirtorch", "sinabs", "snntorch", "spikingjelly"])
def test_a_simulator_runs_the_file_to_the_same_counts(make, name, tmp_path):
    """Also where potentials equal the threshold, and of sums, which two of them know."""
    if make is thirds and name in ("snntorch", "spikingjelly"):
        pytest.skip("it does not read SumPool2d")
    net, x = make(), images()
    path = file_of(net, x, tmp_path)
    networks.assert_same(own_counts(net, x), counts_of(*read_by(name, path), x))


@torch.no_grad()
def test_spikingjelly_runs_windows_layer_by_layer(tmp_path):
    """Its import, and the two phases that the metadata ask for: currents are added up, then the neurons fire."""
    nir, (net, x) = pytest.importorskip("nir"), (in_windows(network()), images())
    path = file_of(net, x, tmp_path)
    model, _ = read_by("spikingjelly", path)
    facts = {name: node.metadata for name, node in nir.read(path).nodes.items() if isinstance(node, nir.IF)}
    assert {value["timing"] for value in facts.values()} == {"window"}
    train, counts = [x] * T, []
    for name, module in model.named_children():
        if name in facts:
            node = module.module
            node.reset()
            node.v = torch.tensor(facts[name]["v_init"]) + torch.stack(train).sum(0)
            train = [node(torch.zeros_like(node.v)) for _ in range(T)]
            counts.append(torch.stack(train).sum(0))
        elif name not in ("input", "output"):
            train = [module(value) for value in train]
    networks.assert_same(own_counts(net, x), (counts, torch.stack(train).sum(0)))


@pytest.mark.parametrize(("decay_input", "factor"), [(False, 1.0), (True, 0.5)])
def test_leaky_neurons_of_spikingjelly_line_by_line(decay_input, factor):
    """As docs/coming-from.md says: its leak acts on the reset too."""
    neuron, (weight, bias), tau, theta = pytest.importorskip("spikingjelly.activation_based.neuron"), SYNAPSES, 2.0, 1.0
    spikes, leak = (torch.rand(T, 5, 12) < 0.4).float(), 1 - 1 / tau
    node = neuron.LIFNode(tau=tau, decay_input=decay_input, v_threshold=theta, v_reset=None, step_mode="m")
    ours = te.functional.linear_if(
        te.SpikeTrain.from_dense(spikes), factor * weight, T * (factor * bias - (1 - leak) ** 2 * theta),
        leak=leak, threshold=leak * theta, v_init=-leak * (1 - leak) * theta,
    )  # fmt: skip
    assert torch.equal(ours.to_dense(), node(F.linear(spikes, weight, bias)))


def test_neurons_losses_and_encoder_of_snntorch_line_by_line():
    """As docs/coming-from.md says: it spikes at v > 1, and here at v ≥ the next number."""
    snntorch, (weight, bias) = pytest.importorskip("snntorch"), SYNAPSES
    spikes = (torch.rand(T, 5, 12) < 0.4).float()
    node = snntorch.Leaky(beta=0.5, threshold=1.0, reset_mechanism="subtract")
    potential, recorded = node.init_leaky(), []
    for current in F.linear(spikes, weight, bias):
        fired, potential = node(current, potential)
        recorded.append(fired)
    theirs = torch.stack(recorded)
    train = te.SpikeTrain.from_dense(spikes)
    ours = te.functional.linear_if(train, weight, T * bias, leak=0.5, threshold=1 + 2**-20)
    assert torch.equal(ours.to_dense(), theirs)
    loss, labels = pytest.importorskip("snntorch.functional"), torch.arange(5)
    one_hot = F.one_hot(labels, 20).float()
    torch.testing.assert_close(F.mse_loss(ours.counts / T, one_hot), F.mse_loss(theirs.mean(0), one_hot))
    torch.testing.assert_close(F.cross_entropy(ours.counts, labels), loss.ce_count_loss()(theirs, labels))
    correct, incorrect = 0.8, 0.3
    target = torch.where(one_hot > 0, int(T * correct), int(T * incorrect)).float()
    found = loss.mse_count_loss(correct_rate=correct, incorrect_rate=incorrect)(theirs, labels)
    torch.testing.assert_close(F.mse_loss(ours.counts, target) / T, found)
    frames = spikes.transpose(0, 1)  # [B, T, features], as a DataLoader stacks them
    assert torch.equal(te.SpikeTrain.from_frames(frames, batch_first=True).planes, train.planes)
    spikegen, x = pytest.importorskip("snntorch.spikegen"), torch.rand(5, 12)
    ours = torch.arange(T).view(-1, 1, 1) == ((1 - x) * (T - 1)).round()
    assert torch.equal(ours.float(), spikegen.latency(x, T, normalize=True, linear=True))
