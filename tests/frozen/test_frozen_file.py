"""Frozen networks as files: what comes back is the same bit for bit, and no file does harm."""

import copy
import json
import math
import os
import pickle
import random
import struct
from itertools import product

import pytest
import torch
from networks import NETWORKS, Net, lif, of_timing, trained
from torch import nn
from torch.nn import functional as F

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from architectures import create
from tandem_snn import container
from tandem_snn.errors import UserError
from tandem_snn.frozen.instruction import FIELDS, HEADER, KINDS
from tandem_snn.frozen.lowering import lower
from tandem_snn.frozen.program import FORMAT, encode

pytest.importorskip("safetensors")
RESNET = {"width": 0.1, "learn_threshold": "channel", "weight_bits": 6, "bn_stats": "running"}
SMALL = {
    "small": lambda: nn.Sequential(
        tnn.Encoder(3), tnn.Linear(5, 4, norm=True), tnn.Residual(tnn.Linear(4, 4)), tnn.Readout(4, 2),
    ),
    "means": lambda: nn.Sequential(
        tnn.Encoder(3), tnn.Conv2d(1, 3, 1, threshold=torch.rand(3)), tnn.AdaptiveAvgPool2d(1),
    ),
    "average": lambda: nn.Sequential(tnn.AvgPool2d((2, 3)), tnn.Flatten(), tnn.Readout(4, 2)),
    "pooled": lambda: nn.Sequential(
        tnn.MaxPool2d(2), tnn.Encoder(3), tnn.Conv2d(1, 3, 1), tnn.AvgPool2d(2, spiking=False), tnn.Flatten(),
        tnn.Readout(12, 2),
    ),
}  # fmt: skip


def through_a_file(frozen, folder):
    frozen.save(folder / "net.tandem")
    loaded = ts.load(folder / "net.tandem")
    loaded.save(folder / "again.tandem")
    assert (folder / "net.tandem").read_bytes() == (folder / "again.tandem").read_bytes()
    ours, theirs = lower(frozen.net, T=frozen.T, shapes=frozen._example), loaded.net
    assert (ours.mode, ours.T) == (theirs.mode, theirs.T)
    assert set(ours.state_dict()) == set(theirs.state_dict()) != set()
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    assert (loaded.T, loaded.weight_bits) == (frozen.T, frozen.weight_bits)
    return loaded


@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize(
    ("make", "timing"), [(lif, "step"), *product(NETWORKS, ("step", "window", "own", "every other"))]
)
def test_a_loaded_network_runs_the_same_program(make, timing, bits, tmp_path):
    every = {"window": "", "own": "own"}.get(timing, "even")
    net, x = make() if timing == "step" else of_timing(make, 8, every)
    frozen = ts.freeze(trained(net, x), weight_bits=bits)
    loaded = through_a_file(frozen, tmp_path)
    assert torch.equal(loaded(x), frozen(x))
    assert torch.equal(loaded.net(x), frozen(x))
    if timing != "every other":
        assert torch.equal(loaded.readouts(x), frozen.readouts(x))
    for ours, theirs in zip(*(one._programs.values() for one in (frozen, loaded)), strict=True):
        assert all(map(torch.equal, encode(ours.layers)[:2], encode(theirs.layers)[:2]))


def converted():
    x = torch.rand(6, 1, 8, 8)
    layers = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 5)]
    return ts.calibrate(ts.convert(nn.Sequential(*layers).eval(), 8), [x]), x


def events():
    x = te.SpikeTrain.from_dense(torch.rand(11, 3, 2, 9, 9).lt(0.3).float())
    return nn.Sequential(tnn.Conv2d(2, 4, 3), tnn.Flatten(), tnn.Readout(196, 3)), x


@pytest.mark.parametrize("make", [
    converted, events, lambda: (create(tnn, "resnet18", (3, 8, 8), 4, 5, **RESNET), torch.rand(2, 3, 8, 8)),
    lambda: (nn.Sequential(
        tnn.Encoder(4), tnn.AvgPool2d(2), tnn.Conv2d(2, 2, 1), tnn.Conv2d(2, 3, 2, weight_bits=3), tnn.Flatten(),
        tnn.Readout(3, 2, weight_bits=4),
    ).double(), torch.rand(3, 2, 4, 4).double()),
])  # fmt: skip
def test_other_networks(make, tmp_path):
    net, x = make()
    frozen = ts.freeze(net, T=x.T if isinstance(x, te.SpikeTrain) else None)
    expected = frozen(x)
    assert torch.equal(through_a_file(frozen, tmp_path)(x), expected)


@pytest.mark.parametrize("size", [(), (9,), (7, 6)], ids=len)
@pytest.mark.parametrize("of", ["threshold", "v_init"])
def test_neurons_of_tensors_have_the_axes_of_their_input(of, size, timing, tmp_path):
    product = [tnn.Linear, tnn.Conv1d, tnn.Conv2d][len(size)]
    first = product(5, 16, *[1] * bool(size), neurons=False, timing=timing)
    fire = tnn.Neurons(16, timing=timing, **{of: torch.rand(16, *(size if of == "v_init" else ())) + 0.2})
    ends = [tnn.Flatten(), tnn.Readout(16 * math.prod(size), 3)]
    net, x = nn.Sequential(tnn.Encoder(4), first, fire, *ends).eval(), torch.rand(8, 5, *size)
    loaded = through_a_file(ts.freeze(net, example=x), tmp_path)
    assert torch.equal(loaded(x), net(x))
    assert torch.equal(loaded.net(x), net(x))


def test_a_stream_can_begin_with_the_loaded_network(tmp_path):
    net, x = events()
    loaded = through_a_file(ts.freeze(net, T=11), tmp_path)
    for t in range(11):
        so_far = loaded.step(x.to_dense()[t])
    assert torch.equal(so_far, net(x))


@pytest.mark.filterwarnings("error")
def test_a_converted_network_has_the_shape_of_its_data(tmp_path):
    """A file without it is of no use to a program that knows no more."""
    ann = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    for keywords in {"data": [torch.rand(5, 2, 7, 6)]}, {"example": torch.rand(1, 2, 7, 6), "threshold": 1.0}:
        ts.freeze(ts.convert(ann, 4, **keywords)).save(tmp_path / "net")
        assert ts.load(tmp_path / "net").shape == (2, 7, 6)
    with pytest.warns(UserWarning, match="cannot run a file without shape: call the frozen network on an input"):
        ts.freeze(ts.convert(ann, 4, threshold=1.0)).save(tmp_path / "net")


def resized():
    """An ANN that uses the size of its input, converted for it; the graph refuses another size."""
    ann = Net(lambda m, x: F.interpolate(m.b(m.a(x).relu()), size=x.shape[2:], mode="bilinear"),
              a=nn.Conv2d(3, 8, 3, 2, 1), b=nn.Conv2d(8, 5, 1))  # fmt: skip
    x = torch.rand(2, 3, 16, 16)
    return ts.calibrate(ts.convert(ann.eval(), 8, x), [x])


def pooled(*moves):
    ends = tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Readout(8, 5)
    return nn.Sequential(tnn.Encoder(4), tnn.Conv2d(3, 8, 3, timing="window"), *moves, *ends)


OF_ONE_SIZE = {
    "scale factor": lambda: pooled(tnn.Upsample(scale_factor=2, mode="bilinear"), tnn.Neurons(8, timing="window")),
    "largest": lambda: pooled(tnn.AdaptiveMaxPool2d(2), tnn.Conv2d(8, 8, 2, timing="window")),
    "tokens": lambda: nn.Sequential(
        tnn.Encoder(4), tnn.Conv2d(3, 24, 1, timing="window"), tnn.Flatten(2), tnn.Permute([0, 2, 1]), tnn.Attention(2),
        tnn.Permute([0, 2, 1]), tnn.Neurons(8, timing="window"), tnn.AvgPool1d(256, spiking=False), tnn.Flatten(),
        tnn.Readout(8, 5),
    ),
    "converted": resized,
}  # fmt: skip


@pytest.mark.parametrize("name", OF_ONE_SIZE)
def test_a_network_whose_stages_suit_one_size_answers_or_refuses_another(name, tmp_path):
    """In memory its stages are made again, for a copy and after other weights too; a file has none for another size."""
    net, x, other = OF_ONE_SIZE[name]().eval(), torch.rand(2, 3, 16, 16), torch.rand(2, 3, 24, 24)
    frozen = ts.freeze(net, example=x)
    loaded = through_a_file(frozen, tmp_path)
    assert torch.equal(loaded(x), net(x))
    assert torch.equal(loaded.settle(x)[0], net(x))
    for answers in loaded, loaded.net, loaded.step, loaded.settle, loaded.readouts:
        loaded.reset()
        with pytest.raises(ValueError, match=r"samples of (shape )?\[3, 16, 16\]"):
            answers(other)
    for make in copy.deepcopy, lambda frozen: frozen.float(), lambda frozen: frozen:
        if name in ("tokens", "converted"):
            with pytest.raises((ValueError, RuntimeError)):
                make(frozen)(other)
        else:
            assert torch.equal(make(frozen)(other), net(other))
        assert torch.equal(frozen(x), net(x))


def test_weights_of_few_bits_take_a_byte(tmp_path):
    net, x = nn.Sequential(tnn.Encoder(4), tnn.Linear(200, 300), tnn.Readout(300, 10)), torch.rand(1, 200)
    ts.freeze(net).save(tmp_path / "float")
    frozen = ts.freeze(net, weight_bits=4)
    frozen.save(tmp_path / "few")
    assert (tmp_path / "few").stat().st_size < 0.3 * (tmp_path / "float").stat().st_size
    assert torch.equal(ts.load(tmp_path / "few")(x), frozen(x))


def test_what_a_file_cannot_hold_is_named(tmp_path):
    class Own(tnn.Linear):
        pass

    class Flip(nn.Module):
        def forward(self, x):
            return x.map(lambda t: t.flip(-1))

    class Branch(nn.Module):
        def forward(self, x):
            return x if x.T > 3 else x.map(torch.clone)

    layers = {"layer": tnn.Linear(4, 4), "readout": tnn.Readout(4, 2)}
    power = Net(lambda m, x: 2 ** m.readout(m.layer(x)), **layers)
    layers = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "readout": nn.Linear(8, 2)}
    joined = Net(lambda m, x: m.readout(torch.cat([m.a(x).relu(), m.b(m.a(x).cumsum(1)).relu()], 1)), **layers)
    for net, message in (
        (
            ts.convert(joined, T=4, example=torch.rand(1, 4)),
            r"\(call_function cumsum\) is not a layer of tandem_snn.nn",
        ),
        (power, r"layer 'net' .* step by step .*\(unsupported operand type.*pow\(\): 'int' and 'SpikeTrain'"),
        (nn.Sequential(Own(4, 3), tnn.Readout(3, 2)), "layer '0' cannot be saved: Own is not a layer"),
        (nn.Sequential(tnn.Linear(4, 3), nn.Linear(3, 2)), "layer '1' cannot be saved"),
        (
            nn.Sequential(tnn.Linear(4, 3), nn.Sequential(Flip()), tnn.Readout(3, 2)),
            "layer '1.0' .*: Flip is not a layer .*'map'",
        ),
        (
            nn.Sequential(tnn.Linear(4, 3), Branch(), tnn.Readout(3, 2)),
            "layer '1' .*: Branch is not a layer .*'T'",
        ),
        (nn.Sequential(tnn.Conv2d(1, 1, 3, padding=1000), tnn.Readout(3, 2)), "padding: .*0 to 255"),
    ):
        with pytest.raises(ValueError, match=message):
            ts.freeze(net, T=4).save(tmp_path / "net")
    assert not list(tmp_path.iterdir())


def refused(path, content, match="net.tandem"):
    path.write_bytes(content)
    with pytest.raises(UserError, match=match) as caught:
        ts.load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500


def saved(name, folder):
    path = folder / "net.tandem"
    ts.freeze(SMALL[name](), weight_bits=8 if name == "small" else None).save(path)
    return path, path.read_bytes()


@pytest.fixture
def small(tmp_path):
    return saved("small", tmp_path)


def test_every_byte_and_every_length_is_checked(small):
    path, content = small
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        refused(path, bytes(damaged))
    for length in range(0, len(content), 7):
        refused(path, content[:length], "damaged")
    refused(path, content[:-1], "damaged")
    refused(path, content + b"\0", "damaged")


def test_absurd_sizes_are_refused_before_anything_is_read(small):
    path, content = small
    for length in (2**63, 2**40, len(content), 2**64 - 1):
        refused(path, length.to_bytes(8, "little") + content[8:], "header cannot be read")
    path.write_bytes(content)
    os.truncate(path, 2**40)
    with pytest.raises(UserError, match="its header says"):
        ts.load(path)
    os.truncate(path, 0)
    huge = {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}, "__metadata__": {"checksum": "0"}}
    header = json.dumps(huge).encode()
    refused(path, len(header).to_bytes(8, "little") + header, "its header says")
    header = b"[" * 100_000
    refused(path, len(header).to_bytes(8, "little") + header, "header cannot be read")


def test_other_files_are_refused(small):
    path, _ = small
    tensors = container.unpack(path, FORMAT, "", "")
    refused(path, pickle.dumps({"a": 1}), "damaged|not written")
    surrogate = rb'{"__metadata__":{"checksum":"\ud800"}}'
    refused(path, len(surrogate).to_bytes(8, "little") + surrogate, "do not have the checksum")
    refused(path, container.pack(tensors, "tandem_snn 1"), "not a frozen network, or")
    refused(path, container.pack(tensors, "tandem_snn frozen 3"), "another version.*format is 'tandem_snn frozen 3'")
    with pytest.raises(UserError, match="no frozen network"):
        ts.load(path.parent)
    with pytest.raises(UserError, match="no frozen network"):
        ts.load(path.parent / "none")
    assert isinstance(UserError("x"), ValueError)


def bits(value):
    return struct.unpack("<q", struct.pack("<d", value))[0]


def with_field(path, instruction, field, to):
    """A file with another number in an instruction of its program, or in its header."""
    tensors = container.unpack(path, FORMAT, "", "")
    program = tensors["program"].clone()
    offset = 0 if instruction is None else len(HEADER) + instruction * len(FIELDS)
    program[offset + (HEADER if instruction is None else FIELDS).index(field)] = to
    return container.pack({**tensors, "program": program}, FORMAT)


# The instruction of "small", None for the header; its layers are 1, 2.body and 3.
HOSTILE = [
    (None, "format", 3, "another version"), (None, "T", 10**9, "T: expected"), (None, "T", 0, "T: expected"),
    (None, "any_T", 1, "any_T: expected"), (None, "weight_bits", 64, "weight_bits"), (None, "dtype", 4, "dtype"),
    (None, "source", -1, "source"), (None, "dims", 4, "dims"), (None, "channels", 2**62, "shape"),
    (None, "fixed", 1, "fixed"), (None, "fixed", 2, "fixed"),
    (None, "instructions", 0, "instructions"), (None, "instructions", 2**62, "instructions"),
    (None, "instructions", 2, "length"), (0, "kind", len(KINDS), "layer '1': kind"), (0, "kind", -1, "kind"),
    (0, "axes", 3, "axes"), (0, "axes", -1, "axes"),
    (0, "input", 0, "layer '1': input: expected the number of an earlier"), (0, "input", 2**63 - 1, "input"),
    (1, "input", 1, "layer '2.body': input"), (1, "input", -(2**63), "input"), (1, "residual", 1, "residual"),
    (1, "residual", 10**18, "residual"), (0, "fires", 2, "fires"),
    (0, "outputs", 0, "outputs"), (0, "outputs", 2**62, "outputs"), (0, "outputs", 2**29, "too large"),
    (0, "channels", 2**30, "too large"), (0, "channels", -5, "channels"), (0, "groups", 2, "groups"),
    (0, "kernel_w", 3, "kernel_size, stride"), (0, "kernel_h", 2**40, "kernel_size"), (0, "stride_w", 0, "stride"),
    (0, "padding_w", 2**62, "padding"), (0, "after_w", 2, "padding"), (0, "dilation_h", 2**63 - 1, "dilation"),
    (0, "few_bits", 7, "few_bits"), (0, "weight", -1, "weight: layers and readouts need one"),
    (0, "weight", 2**62, "weight: its numbers lie outside"), (0, "step", -1, "step: weights of few bits need one"),
    (0, "scale", 1, "scale: its numbers lie outside"), (0, "shift", -64, "shift: its numbers lie outside"),
    (0, "residual_scale", 2**63 - 4, "residual_scale: its numbers lie outside"), (0, "v_size_h", 2**62, "v_init"),
    (0, "threshold", bits(-1.0), "threshold: expected a finite number above 0, got -1"),
    (0, "threshold", bits(float("nan")), "threshold"),
    (0, "leak", bits(2.0), "leak: expected a finite number above 0 and at most 1, got 2"),
    (0, "leak", bits(float("inf")), "leak"),
    (0, "timing", 2, "timing"), (1, "timing", 1, "layer '2.body': timing: it reads spikes with the other timing"),
    (2, "gain", bits(float("nan")), "layer '3': gain: expected a finite number, got nan"),
    (0, "index", 0, "index: only a gather"), (0, "by_channel", 2, "by_channel"),
]  # fmt: skip


# Sizes that the plan would have and the pooling itself would not: what reads it would read beyond its end.
POOLED = [
    ("pooled", 0, "weight", 0, "layer '0': weight, step, shift, residual: only layers and readouts have them"),
    *(("means", 1, field, value, f"layer '2': ({field}|scale|sizes)")
      for field, value in (("outputs", 0), ("outputs", 2**30), ("scale", 2**40), ("scale", -7))),
    ("average", 0, "threshold", bits(1.0), "layer '0': threshold: expected the number of values"),
    ("pooled", 0, "after_w", 1, "layer '0': padding"), ("pooled", 2, "after_h", 1, "layer '3': padding"),
    ("pooled", 2, "dilation_w", 2, "layer '3': dilation"), ("pooled", 0, "channels", 2**62, "layer '0': channels"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "instruction", "field", "value", "message"), [*(("small", *row) for row in HOSTILE), *POOLED]
)
def test_hostile_programs(name, instruction, field, value, message, tmp_path):
    path, _ = saved(name, tmp_path)
    refused(path, with_field(path, instruction, field, value), message)


def test_gains_of_other_channels_are_refused_when_it_runs(tmp_path):
    path, _ = saved("means", tmp_path)
    path.write_bytes(with_field(path, 1, "outputs", 2))
    with pytest.raises((ValueError, RuntimeError)):
        ts.load(path)(torch.rand(2, 1, 4, 4))


def test_hostile_tensors(small):
    path, _ = small
    tensors = container.unpack(path, FORMAT, "", "")
    program, numbers = tensors["program"], tensors["numbers"]
    for changes, message in (
        ({"program": program, "names": tensors["names"]}, "expected the tensors names, numbers and program, got"),
        ({**tensors, "more": torch.ones(2)}, "more"),
        ({**tensors, "seen.0": torch.tensor([0, 0])}, "seen.0 is no order"),
        ({**tensors, "seen.0": torch.tensor([1, 0]).float()}, "seen.0 is no order"),
        ({**tensors, "seen.9": torch.tensor([1, 0]).int()}, "seen.9 is no order"),
        ({**tensors, "program": program.int()}, "a program is int64"),
        ({**tensors, "program": program.view(1, -1)}, "a program is int64"),
        ({**tensors, "program": program[:3].clone()}, "too short"),
        ({**tensors, "program": program[:-1].clone()}, "length"),
        ({**tensors, "program": torch.zeros(0, dtype=torch.int64)}, "too short"),
        ({**tensors, "numbers": numbers.float()}, "bytes"),
        ({**tensors, "numbers": numbers[:-64].clone()}, "numbers lie outside|too large"),
        ({**tensors, "numbers": numbers[:0].clone()}, "numbers lie outside|too large"),
        ({**tensors, "names": torch.full((4,), 255, dtype=torch.uint8)}, "decode"),
        ({**tensors, "names": torch.full((4,), 27, dtype=torch.uint8)}, "name is no text"),
        ({**tensors, "names": torch.full((4,), 10, dtype=torch.uint8)}, "5 names for 3 stages"),
    ):
        refused(path, container.pack(changes, FORMAT), message)


def test_random_programs_are_a_network_or_refused(small):
    path, _ = small
    tensors = container.unpack(path, FORMAT, "", "")
    program = tensors["program"]
    junk = [-(2**63), -2, -1, 0, 1, 2, 3, 4, 7, 64, 255, 2**16, 2**31, 2**40, 2**63 - 1, bits(0.5), bits(-0.0)]
    generator = random.Random(0)
    ran = 0
    for _ in range(1000):
        tensors["program"] = program.clone()
        for _ in range(generator.randint(1, 3)):
            tensors["program"][generator.randrange(len(program))] = generator.choice(junk)
        path.write_bytes(container.pack(tensors, FORMAT))
        try:
            loaded = ts.load(path)
        except UserError:
            continue
        try:
            assert loaded(torch.rand(2, 5)).shape[0] == 2
            ran += 1
        except (TypeError, ValueError, RuntimeError, IndexError):
            continue
    assert ran > 50
