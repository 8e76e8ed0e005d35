"""SpikeTrain, direct inputs, planes, batching."""

import copy
import dataclasses
import inspect
import pickle

import numpy as np
import pytest
import torch
from cases import WINDOWS, assert_same, bursts, dyadic, is_channels_last, spikes, train, train_with_edge, views
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils import _pytree as pytree

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_ext.functional.neuron import values_of
from tandem_ext.rule import pack

pytestmark = pytest.mark.usefixtures("on_device")
shapes = st.lists(st.integers(0, 9), min_size=1, max_size=4)
windows, seeds = st.sampled_from(WINDOWS), st.integers(0, 2**16)
DTYPES = [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32,
          torch.float64]  # fmt: skip


@given(T=windows, shape=shapes, seed=seeds, dtype=st.sampled_from(DTYPES))
def test_pack_is_the_reference(T, shape, seed, dtype):
    torch.manual_seed(seed)
    dense = spikes(T, *shape, dtype=dtype)
    planes, counts = pack(dense), dense.float().sum(0)
    assert is_channels_last(te.planes.pack(dense), batch=1)
    for view in (dense, *views(dense)):
        assert torch.equal(te.planes.pack(view), planes)
    for view in views(planes):
        x = te.SpikeTrain(view, T)  # no high bit is set
        assert torch.equal(te.planes.unpack(view, T), dense.float())
        assert torch.equal(te.planes.counts(view), counts)
        assert torch.equal(x.to_dense(dtype), dense)
        assert torch.equal(te.reference.unpack(x, torch.float32), dense.float())
    x = te.SpikeTrain.from_dense(dense)
    assert torch.equal(x.planes, planes)
    for made in [x.counts, te.planes.counts(planes, dtype)] if dtype.is_floating_point else []:
        assert made.dtype == dtype
        assert torch.equal(made, counts.to(dtype))


TRAIN = ["planes", "T", "counts", "gain", "timing", "bad", "network_T", "offset"]


@pytest.mark.parametrize(("made", "fields", "parameters", "shown"), [
    (lambda: train(9, 3, 5, gain=0.5), ["counts"], TRAIN, "SpikeTrain"),
    (lambda: bursts(9, 3, 5, gain=0.5), ["counts"], TRAIN, "SpikeTrain"),
    (lambda: te.ConstantInput(dyadic(3, 5), 9, 0.5), ["x"], ["x", "T", "gain"], "ConstantInput"),
    (lambda: te.ImpulseInput(dyadic(3, 5), 9, 0.5), ["x"], ["x", "T", "gain"], "ImpulseInput"),
])  # fmt: skip
def test_fields(made, fields, parameters, shown):
    x = made()
    assert [f.name for f in dataclasses.fields(x)] == fields  # what is walked: the batch comes first in it
    assert list(inspect.signature(type(x)).parameters) == parameters
    assert (x.T, x.shape, x.gain, len(x)) == (9, (3, 5), 0.5, 3)
    assert x != dataclasses.replace(x)  # identity, as tensors
    timing = ", timing=window" * (getattr(x, "timing", "") == "window")
    assert repr(x) == f"{shown}(T=9, shape=[3, 5], gain=0.5, device={x.counts.device}{timing})"


def test_counts_are_made_once_and_of_their_type_when_asked_for():
    x = train(8, 3, 5)
    spec = pytree.tree_structure(x)
    assert x._counts is None
    assert x.counts is x.counts
    assert pytree.tree_structure(x) == spec  # so that a graph exported for a train takes every train of that shape
    given_counts = x.counts.double()
    assert te.SpikeTrain(x.planes, 8, given_counts).counts is given_counts
    x.counts = given_counts
    assert x.counts is given_counts
    x = te.SpikeTrain.from_dense(spikes(8, 3, 5, dtype=torch.bfloat16))
    leaves, spec = pytree.tree_flatten(x)
    for y in (x.detach(), x.to(x.device), x[1], te.cat([x, x]), pytree.tree_unflatten(leaves, spec)):
        assert y._counts is None
        assert y.counts.dtype == torch.bfloat16
    assert train(8, 3, 5).counts.dtype == torch.float32
    for x in train(8, 3, 5), bursts(8, 3, 5):
        assert x.to(torch.float64).counts.dtype == torch.float64
    mapped = train_with_edge(8, 4, 5).map(lambda t: t.double() if t.is_floating_point() else t)
    assert (mapped.counts.dtype, mapped.to_dense().dtype) == (torch.float64, torch.float64)


def test_the_edge_and_other_types_and_devices():
    assert train(8, 3, 5).edge is None
    x = train_with_edge(8, 3, 5, gain=torch.tensor(0.5))
    assert x.edge is x.counts
    assert x.detach().edge is None
    assert not x.detach().counts.requires_grad
    y = x.to(torch.bfloat16)
    assert (y.counts.dtype, y.gain.dtype, y.planes.dtype) == (torch.bfloat16, torch.bfloat16, torch.uint8)
    y.counts.sum().backward()
    assert x.counts.grad is not None
    assert x.to(x.device).planes is x.planes
    assert x.to(device="meta").device.type == "meta"
    counts = torch.randint(10, (6, 3, 4)).double().requires_grad_()
    assert te.SpikeTrain.from_counts(counts, 9).edge is counts


@pytest.mark.parametrize(("index", "rows"), [
    (1, [1]), (-1, [3]), (np.int64(-1), [3]), (slice(1, 3), [1, 2]), (torch.tensor([2, 0]), [2, 0]), ([0, 3], [0, 3]),
    (np.array([0, 3]), [0, 3]), ([True, False, False, True], [0, 3]), ([], []),
])  # fmt: skip
def test_indexing_keeps_the_batch(index, rows):
    """Samples are chosen by what chooses rows of a tensor, and by a number."""
    for x in train(8, 4, 3, 5, 5), bursts(8, 4, 3):
        assert torch.equal(x[index].to_dense(), x.to_dense()[:, rows])
        assert torch.equal(x[index].counts, x.counts[rows])
        assert len(list(x)) == 4
    image = te.ConstantInput(dyadic(4, 5), 8)
    assert torch.equal(image[index].x, image.x[rows])


@pytest.mark.parametrize("shape", [(5,), (3, 4, 6)])
def test_cat(shape):
    a, b = train(9, 2, *shape), train(9, 3, *shape)
    assert_same(te.cat([a, b]), te.SpikeTrain.from_dense(torch.cat([a.to_dense(), b.to_dense()], 1)))
    assert_same(te.cat([a, a], dim=1), te.SpikeTrain.from_dense(torch.cat([a.to_dense()] * 2, 2)))
    assert te.cat([a[i] for i in range(2)]).counts.tolist() == a.counts.tolist()
    edge = train_with_edge(9, 2, *shape, gain=0.5)
    joined = te.cat([edge, train(9, 3, *shape, gain=0.5)])
    assert joined.gain == 0.5
    joined.counts.sum().backward()
    assert edge.counts.grad is not None
    x, y = te.SpikeTrain.from_counts(torch.randint(10, (2, 5)), 9), train(9, 3, 5)
    assert te.cat([x, x]).timing == "window"
    both = te.cat([x, y])
    assert both.timing == "step"
    assert torch.equal(both.to_dense(), torch.cat([x.to_dense(), y.to_dense()], 1))


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("axes", [0, 1, 2])
def test_gains_of_channels_and_of_places_are_joined_with_the_spikes(axes, dim):
    """A permuted train has gains of places."""
    a, gain = bursts(9, 2, 5, 4), dyadic(5, 4)[tuple([slice(None)] * axes + [0] * (2 - axes))]
    other = a if dim != 1 or not axes else bursts(9, 2, 3, 4)
    values = [values_of(x := a.replace(gain=gain)), values_of(y := other.replace(gain=0.5 if other is not a else gain))]
    assert torch.equal(values_of(te.cat([x, y], dim)), torch.cat(values, dim))
    assert torch.equal(values_of(te.cat([y, x], dim)), torch.cat(values[::-1], dim))
    u = tnn.Linear(4, 4, neurons=False)(te.ConstantInput(dyadic(*x.shape), 9))
    joined = te.cat([x, u], dim)
    assert torch.equal(joined.total, torch.cat([values[0], u.total], dim))
    of_steps = x.to_dense()[:8] * values_of(x.replace(stored=torch.ones_like(x.stored), counts=None))
    assert torch.equal(joined.steps(0, 8), torch.cat([of_steps, u.steps(0, 8).expand(8, *u.shape)], dim + 1))


GAINS = {"number": lambda: 0.25, "0-dim": lambda: torch.tensor(0.5),
         "learned": lambda: nn.Parameter(torch.tensor(0.75)), "channels": lambda: nn.Parameter(dyadic(5)),
         "places": lambda: dyadic(5, 4)}  # fmt: skip


@pytest.mark.parametrize("second", GAINS)
@pytest.mark.parametrize("first", GAINS)
def test_any_two_gains_are_joined_by_channel(first, second):
    """Each keeps its gradient, also where both have one value."""
    trains = [bursts(9, 2, 5, 4).replace(gain=GAINS[kind]()) for kind in (first, second)]
    joined = values_of(te.cat(trains, 1))
    assert torch.equal(joined, torch.cat([values_of(x) for x in trains], 1))
    learned = [(x, x.gain) for x in trains if isinstance(x.gain, nn.Parameter)]
    if learned:
        parts = torch.autograd.grad(joined.sum(), [gain for _, gain in learned])
        for (x, gain), grad in zip(learned, parts, strict=True):
            assert torch.equal(grad, x.counts.sum() if gain.dim() == 0 else x.counts.sum([0, 2]))
    if first == second != "number":
        with pytest.raises(ValueError, match="expected the same gain"):
            te.cat(trains, 0)


@pytest.mark.parametrize("cls", [te.ConstantInput, te.ImpulseInput])
def test_direct_inputs(cls):
    x = dyadic(4, 5).requires_grad_()
    signal = cls(x, 8, 0.5)
    assert torch.equal(signal.counts, x * (8 if cls is te.ConstantInput else 1))
    assert torch.equal(te.cat([signal, signal[:2]]).x, torch.cat([x, x[:2]]))
    assert not signal.detach().x.requires_grad
    assert signal.to(torch.float64).x.dtype == torch.float64
    assert dataclasses.replace(signal).x is x


@pytest.mark.parametrize("gain", [2.0, torch.tensor(2.0)], ids=["float", "tensor"])
@pytest.mark.parametrize("signal", [
    lambda gain: train(8, 4, 5, gain=gain),
    lambda gain: train_with_edge(8, 4, 5, gain=gain),
    lambda gain: te.ConstantInput(dyadic(4, 5), 8, gain),
    lambda gain: te.ImpulseInput(dyadic(4, 5), 8, gain),
    lambda gain: bursts(9, 4, 5, gain=gain),
], ids=["train", "edge", "constant", "impulse", "bursts"])  # fmt: skip
def test_pytrees_and_copies(signal, gain, device):
    x = signal(gain.to(device) if isinstance(gain, torch.Tensor) else gain)
    leaves, spec = pytree.tree_flatten(x)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    whole = copy.deepcopy(x)
    copies = [copy.copy(x), dataclasses.replace(x), x.to(x.device), pickle.loads(pickle.dumps(x))]
    for y in (pytree.tree_unflatten(leaves, spec), whole, *copies):
        assert (type(y), y.T, y.gain) == (type(x), x.T, x.gain)
        assert getattr(y, "timing", "") == getattr(x, "timing", "")
        assert torch.equal(y.counts, x.counts)
        assert y.counts.requires_grad == x.counts.requires_grad
    tensors = ((a, b) for a, b in zip(vars(x).values(), vars(whole).values(), strict=True) if torch.is_tensor(a))
    assert all(a is not b for a, b in tensors)
    assert pytree.treespec_loads(pytree.treespec_dumps(spec)) == spec
    keys = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(x)[0]]
    assert keys[0] in (".stored", ".x")
    pytree.tree_unflatten([object()] * len(leaves), spec)  # nothing is checked


@given(T=windows, shape=shapes, seed=seeds)
def test_bursts(T, shape, seed):
    torch.manual_seed(seed)
    counts = torch.randint(T + 1, shape)
    x = te.SpikeTrain.from_counts(counts, T)
    dense = torch.stack([counts > t for t in range(T)]).float()
    assert (x.shape, x.T, x.timing) == (torch.Size(shape), T, "window")
    assert torch.equal(x.to_dense(), dense)
    assert torch.equal(x.planes, pack(dense))
    assert is_channels_last(x.planes, batch=1)
    assert torch.equal(x.counts, counts.float())
    assert x.stored.numel() == counts.numel()  # a byte each, whatever T
    as_steps = te.SpikeTrain(x.planes, T)
    assert torch.equal(as_steps.count_bytes, x.stored)
    assert_same(te.SpikeTrain(x.planes, T, timing="window"), x)
