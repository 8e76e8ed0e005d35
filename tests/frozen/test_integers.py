"""Networks in integers, as C99: their sums, and so the counts of every layer, are those of the frozen network."""

import copy
import ctypes
import subprocess
import sys
from pathlib import Path

import networks
import pytest
import torch
from any_window import FIRST, counts_of, drawn, of_pixels
from networks import conv, depthwise, few_bits, line, mlp, of_timing, projection, residual
from test_currents import Dense, Fired, Pooled, PreActivation
from torch import nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_snn.frozen.instruction import INPUT, CannotLower, Instruction
from tandem_snn.frozen.stages import Stage, Stages
from tandem_snn.integer.graph import IntegerGraph

sys.path.append(str(Path(__file__).parents[1] / "data"))
import make_networks

pytestmark = pytest.mark.kernels
POOLS = (tnn.MaxPool1d, tnn.MaxPool2d)
STRICT = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Wconversion", "-Werror"]


def of_counts(frozen, x):
    """The network after its first layer, and the counts of that layer."""
    stages = copy.deepcopy(frozen._program_for(1.0).layers)
    seen = {}
    stages(x, watch=lambda number, _, y: seen.setdefault(number, y))
    _, *others = stages.stages
    assert all(stage.instruction.input != INPUT for stage in others)
    popcount = Stage("input", Instruction("popcount", INPUT, timing="window"))
    rest = ts.FrozenNetwork(Stages([popcount, *others], "events", frozen.T), frozen.weight_bits, frozen.T)
    counts = te.SpikeTrain.from_counts(seen[0].counts.clone(), frozen.T)
    assert torch.equal(rest(counts), frozen(x))
    return rest, counts


def linked(folder, *command):
    subprocess.run([*command, *STRICT, "-shared", "-fPIC", "-o", folder / "net.so", folder / "net.c"], check=True)
    return ctypes.CDLL(str(folder / "net.so"))


def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


def compiled(frozen, folder, *command):
    """The program as a function of counts: its sums and its logits."""
    footprint = ts.to_c(frozen, folder)
    library = linked(folder, *command or ("gcc", "-O1"))
    assert library.net_test() == 0
    assert f"RAM: {footprint.ram} bytes, constants: {footprint.flash} bytes" in (folder / "net.h").read_text()

    def run(counts, shape):
        sums, logits = torch.zeros(len(counts), *shape, dtype=torch.int32), torch.zeros(len(counts), *shape)
        for x, y, z in zip(counts.to(torch.uint8).contiguous(), sums, logits, strict=True):
            assert library.net_run(pointer(x), pointer(y)) == 0
            library.net_logits(pointer(y), pointer(z))
        return sums, logits

    return run


def check(frozen, x, folder, *command):
    """The sums are the network's, and so are the logits."""
    expected = frozen(x)
    sums, logits = compiled(frozen, folder, *command)(x.counts, expected.shape[1:])
    assert torch.equal(sums.long(), IntegerGraph.of(frozen).sums(x.counts))
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("seeds", [range(24), pytest.param(range(24, 1000), marks=pytest.mark.slow)])
def test_random_networks(seeds, tmp_path):
    done = 0
    for seed in seeds:
        frozen, x = drawn(seed)
        try:
            check(frozen, x, tmp_path / str(seed), "gcc", "-O0")
            done += 1
        except CannotLower as refusal:
            assert "overflow" in refusal.why  # noqa: PT017
    assert done > 0.7 * len(seeds)


@pytest.mark.parametrize("seeds", [range(12), pytest.param(range(12, 200), marks=pytest.mark.slow)])
def test_steps_of_following_neurons(seeds, tmp_path):
    """Each step is the stream's, and at rest the sums are those of the window, whatever came before."""
    taken = 0
    for seed in seeds:
        frozen, x = drawn(seed)
        ts.to_c(frozen, folder := tmp_path / str(seed))
        if isinstance(frozen.net[0], POOLS) or "There is no net_step" in (folder / "net.h").read_text():
            continue  # a stream pools the spikes that come in, not their counts
        library = linked(folder, "gcc", "-O0", "-DNET_STEP")
        right, counts = IntegerGraph.of(frozen).sums(x.counts).int(), torch.zeros_like(x.counts[0]).char()
        sums, logits = torch.zeros_like(right[0]), torch.zeros_like(frozen(x)[0])
        for n in range(3):
            moved = 1
            while moved:
                changes = (x.counts[n].short() - counts).sign().char().contiguous()
                counts = counts.short() + changes
                moved = library.net_step(pointer(changes), pointer(sums))
                expected = frozen.step(x[n : n + 1])
                assert moved == frozen.moved.item()
                library.net_logits(pointer(sums), pointer(logits))
                assert torch.equal(logits, expected[0])
                taken += 1
            assert torch.equal(sums, right[n])
    assert taken > 100


@pytest.mark.parametrize("make", [mlp, conv, residual, projection, line, few_bits, depthwise])
def test_every_layer(make, tmp_path):
    net, x = of_timing(make, 8)
    check(*of_counts(ts.freeze(net, weight_bits=8), x), tmp_path)


@pytest.mark.parametrize("block", [PreActivation, Dense, Fired, Pooled])
def test_currents(block, tmp_path):
    torch.manual_seed(0)
    first = tnn.Conv2d(3, 16, 3, padding=1, neurons=False, timing="window")
    last = tnn.Neurons(16, norm=True, timing="window"), tnn.ReadoutConv2d(16, 5, 3, padding=1)
    x = te.SpikeTrain.from_counts(torch.randint(7, (4, 3, 7, 9)), T=6)
    net = networks.trained(nn.Sequential(first, block(16, "window"), *last), x)
    frozen = ts.freeze(net, weight_bits=8, T=6)
    check(frozen, x, tmp_path)
    assert "Neurons that compute in floats" in (tmp_path / "net.h").read_text()


@torch.no_grad()
def wide(inputs, bias=0.0):
    """Two neurons whose sums reach 127 * 255 * inputs, and trains that reach both ends."""
    layer = tnn.Linear(inputs, 2, timing="window", threshold=1.0, v_init=0.0)
    layer.weight.copy_(torch.tensor([[1.0], [-1.0]]).expand(2, inputs))
    layer.bias.fill_(bias)
    x = te.SpikeTrain.from_counts(torch.tensor([[255], [254], [0], [1]]).expand(4, inputs), T=255)
    return ts.freeze(nn.Sequential(layer, tnn.Readout(2, 3)).eval(), weight_bits=8, T=255, example=x), x


@pytest.mark.parametrize("bias", [0.0, 1e7, -1e7, -16909560.0, 16909560.0])
def test_thresholds_at_the_ends_of_32_bits(bias, tmp_path):
    frozen, x = wide(66311, bias)
    check(frozen, x, tmp_path)
    assert IntegerGraph.of(frozen).nodes["n0"].sums == 127 * 255 * 66311 > 2**31 - 2**16
    with pytest.raises(CannotLower, match="0: its sums reach 2147514120, more than 32 bits hold"):
        IntegerGraph.of(wide(66312)[0])


def of_layers(*layers, T=8, inputs=4, bits=8):
    x = te.SpikeTrain.from_counts(torch.ones(1, inputs), T)
    frozen = ts.freeze(nn.Sequential(*layers).eval(), weight_bits=bits, T=T)
    frozen(x)
    return frozen


def test_what_has_no_integer_form_is_refused_by_name(tmp_path):
    window, readout = tnn.Linear(4, 3, timing="window"), tnn.Readout(3, 2)
    large = copy.deepcopy(window)
    large.weight.data.fill_(1e38)
    image = ts.freeze(nn.Sequential(tnn.Encoder(8), window, readout).eval(), weight_bits=8)
    image(torch.rand(1, 4))
    x = te.SpikeTrain.from_counts(torch.ones(1, 3, 4), 8)
    pools = nn.Sequential(tnn.AvgPool1d(2, spiking=False), tnn.AvgPool1d(2, spiking=False), tnn.Flatten(), readout)
    for frozen, why in [
        (ts.freeze(pools.eval(), weight_bits=8, T=8, example=x), "1: it reads means: give the pooling before it neur"),
        (of_layers(tnn.Linear(4, 3), readout), '0: its timing is "step": train it with "window"'),
        (of_layers(tnn.Linear(4, 3), readout, T=9), '0: its timing is "step": train it with "window"'),
        (of_layers(window, readout, bits=None), "0: its weights are not of 2 to 8 bits, .*: freeze with weight_bits"),
        (of_layers(large, readout), "0: potentials of its channel 0 may overflow: scale it down"),
        (image, "1: it reads real numbers"),
        (
            of_layers(tnn.Linear(4, 4, neurons=False, timing="window"), window, readout),
            "1: its sums of currents .*: put tnn.Neurons before it",
        ),
        (ts.freeze(nn.Sequential(window, readout).eval(), weight_bits=8, T=8), "frozen: its T and shape are not known"),
    ]:
        with pytest.raises(ValueError, match=why):
            ts.to_c(frozen, tmp_path / "net")
    images = te.SpikeTrain.from_counts(torch.ones(1, 4, 5, 5), T=8)
    conv = tnn.Conv2d(4, 3, 1, timing="window", threshold=torch.rand(3) + 0.5)
    for size, ends, why in [
        (2, [tnn.Flatten(), tnn.Readout(12, 2)], "kernels of different sizes: take an output size that divides"),
        (1, [], "a gain for each channel: put a Readout after them"),
    ]:
        layers = conv, tnn.AdaptiveAvgPool2d(size), *ends
        with pytest.raises(CannotLower, match=f"its means have {why}"):
            ts.to_c(ts.freeze(nn.Sequential(*layers).eval(), 8, T=8, example=images), tmp_path / "net")
    layers = tnn.SelfAttention(4, 2), tnn.Neurons(timing="window"), tnn.Flatten(), tnn.Readout(20, 2)
    tokens = te.SpikeTrain.from_counts(torch.ones(1, 5, 4), T=8)
    with pytest.raises(CannotLower, match="attention has no integer form yet: to_onnx takes it"):
        ts.to_c(ts.freeze(nn.Sequential(*layers).eval(), 8, T=8, example=tokens), tmp_path / "net")
    with pytest.raises(TypeError, match=r"frozen: expected .*, got Sequential"):
        ts.to_c(nn.Sequential(window, readout), tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_counts_that_are_too_large(tmp_path):
    frozen = of_layers(tnn.Linear(4, 3, timing="window"), tnn.Readout(3, 2))
    compiled(frozen, tmp_path)
    x, sums = (ctypes.c_uint8 * 4)(1, 9, 0, 8), (ctypes.c_int32 * 2)(7, 7)
    assert ctypes.CDLL(str(tmp_path / "net.so")).net_run(x, sums) == 1
    assert list(sums) == [7, 7]


@pytest.mark.parametrize("given", [{}, {"std": [0.2, 0.3, 0.25]}, {"mean": [0.4, 0.5, 0.3], "std": 0.5}])
@pytest.mark.parametrize("first", FIRST)
def test_pixels(first, given, tmp_path):
    """An image of bytes in, with its usual normalisation; by steps the same sums, whatever was shown before."""
    frozen, x = of_pixels(first, given)
    expected = frozen(x)
    sums, logits = compiled(frozen, tmp_path, "gcc", "-O1", "-DNET_STEP")(x, expected.shape[1:])
    assert torch.equal(logits, expected)
    assert torch.equal(sums.long(), IntegerGraph.of(frozen).sums(x))
    library, shown = ctypes.CDLL(str(tmp_path / "net.so")), torch.zeros(3, 8, 6, dtype=torch.int16)
    for image, right in zip(x.short(), sums, strict=True):
        final, moved = torch.zeros_like(right), 1
        while moved:
            changes = (image - shown).clamp(-127, 127).char()
            shown, moved = shown + changes, library.net_step(pointer(changes), pointer(final))
        assert torch.equal(final, right)


def test_the_committed_network_of_pixels(tmp_path):
    """All test digits: the sums by C, whose logits have the committed hash, and every count, by steps until rest."""
    pytest.importorskip("sklearn")
    frozen, x = ts.load(make_networks.FILES["pixels"]), make_networks.shown("pixels", make_networks.digits()[0][1347:])
    sums, logits = compiled(frozen, tmp_path, "gcc", "-O2", "-DNET_STEP")(x, (10,))
    assert torch.equal(sums.long(), IntegerGraph.of(frozen).sums(x))
    assert torch.equal(logits, frozen(x))
    library, shown = ctypes.CDLL(str(tmp_path / "net.so")), torch.zeros(64, dtype=torch.int16)
    layers = [counts.movedim(1, -1).flatten(1) for counts in counts_of(frozen, x).values()]
    wanted = torch.cat(layers, 1).int()
    moves = torch.frombuffer((ctypes.c_int8 * wanted.shape[1]).in_dll(library, "net_moves"), dtype=torch.int8)
    counts, final = torch.zeros_like(wanted[0]), torch.zeros(10, dtype=torch.int32)
    for image, right, expected in zip(x.flatten(1).short(), wanted, sums, strict=True):
        moved = 1
        while moved:
            changes = (image - shown).clamp(-127, 127).char()
            shown += changes
            moved = library.net_step(pointer(changes), pointer(final))
            counts += moves
        assert torch.equal(counts, right)
        assert torch.equal(final, expected)
