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
from torch.utils import _pytree as pytree

import tandem_ext as te

pytestmark = pytest.mark.usefixtures("on_device")
shapes = st.lists(st.integers(0, 9), min_size=1, max_size=4)
windows, seeds = st.sampled_from(WINDOWS), st.integers(0, 2**16)


@given(T=windows, shape=shapes, seed=seeds)
def test_pack_is_the_reference(T, shape, seed):
    torch.manual_seed(seed)
    dense = spikes(T, *shape)
    planes = te.pack(dense)
    assert torch.equal(planes, te.reference.pack(dense))
    assert is_channels_last(planes, batch=1)
    assert torch.equal(te.unpack(planes, T), dense)
    assert torch.equal(te.counts(planes), dense.sum(0))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.bfloat16,
                                   torch.float32, torch.float64])  # fmt: skip
def test_dtypes(dtype, device):
    dense = spikes(9, 3, 5, dtype=dtype, device=device)
    x = te.SpikeTrain.from_dense(dense)
    assert torch.equal(x.planes, te.reference.pack(dense))
    assert torch.equal(x.to_dense(dtype), dense)
    if dtype.is_floating_point:
        assert x.counts.dtype == dtype
        assert torch.equal(te.counts(x.planes, dtype), dense.sum(0))


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 7), (3, 5, 4, 6)])
def test_views(shape, device):
    dense = spikes(9, *shape, device=device)
    planes = te.pack(dense)
    for view in views(dense):
        assert torch.equal(te.pack(view), planes)
    for view in views(planes):
        assert torch.equal(te.unpack(view, 9), dense)
        assert torch.equal(te.counts(view), dense.sum(0))
        assert torch.equal(te.SpikeTrain(view, 9).to_dense(), dense)


def test_unused_high_bits_are_zero():
    x = train(9, 3, 5, rate=1.0)
    assert x.planes[1].unique().tolist() == [1]


def test_fields():
    x = train(9, 3, 5, gain=0.5)
    assert [f.name for f in dataclasses.fields(x)] == ["counts"]  # what is walked: the batch comes first in it
    assert list(inspect.signature(te.SpikeTrain).parameters) == ["planes", "T", "counts", "gain", "timing", "bad"]
    assert (x.T, x.shape, x.device, x.gain, len(x)) == (9, (3, 5), x.planes.device, 0.5, 3)
    copy = dataclasses.replace(x)
    assert_same(copy, x)
    assert copy.gain == 0.5
    assert x != copy  # identity, as tensors
    assert repr(x) == f"SpikeTrain(T=9, shape=[3, 5], gain=0.5, device={x.planes.device})"


def test_counts_are_made_once_when_asked_for():
    x = train(8, 3, 5)
    spec = pytree.tree_structure(x)
    assert x._counts is None
    assert x.counts is x.counts
    assert pytree.tree_structure(x) == spec  # so that a graph exported for a train takes every train of that shape
    given_counts = x.counts.double()
    assert te.SpikeTrain(x.planes, 8, given_counts).counts is given_counts
    x.counts = given_counts
    assert x.counts is given_counts


def test_the_type_of_counts_that_are_yet_to_be_made():
    x = te.SpikeTrain.from_dense(spikes(8, 3, 5, dtype=torch.bfloat16))
    leaves, spec = pytree.tree_flatten(x)
    for y in (x.detach(), x.to(x.device), x[1], te.cat([x, x]), pytree.tree_unflatten(leaves, spec)):
        assert y._counts is None
        assert y.counts.dtype == torch.bfloat16
    assert train(8, 3, 5).counts.dtype == torch.float32
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
    assert train(8, 3, 5).to(torch.float64).counts.dtype == torch.float64
    assert x.to(x.device).planes is x.planes
    assert x.to(device="meta").device.type == "meta"


@pytest.mark.parametrize(("index", "rows"), [
    (1, [1]), (-1, [3]), (np.int64(-1), [3]), (slice(1, 3), [1, 2]), (torch.tensor([2, 0]), [2, 0]), ([0, 3], [0, 3]),
    (np.array([0, 3]), [0, 3]), ([True, False, False, True], [0, 3]), ([], []),
])  # fmt: skip
def test_indexing_keeps_the_batch(index, rows):
    """Samples are chosen by what chooses rows of a tensor, and by a number."""
    x, image = train(8, 4, 3, 5, 5), te.ConstantInput(dyadic(4, 5), 8)
    assert torch.equal(x[index].to_dense(), x.to_dense()[:, rows])
    assert torch.equal(x[index].counts, x.counts[rows])
    assert torch.equal(image[index].x, image.x[rows])
    assert len(list(x)) == 4


def test_samples_that_are_not_there():
    x = train(8, 4, 3)
    for index in 4, np.int64(4):
        with pytest.raises(IndexError, match="4 is out of range"):
            x[index]
    with pytest.raises(TypeError, match="index: "):
        x["x"]


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


@pytest.mark.parametrize("cls", [te.ConstantInput, te.ImpulseInput])
def test_direct_inputs(cls):
    x = dyadic(4, 5).requires_grad_()
    signal = cls(x, 8, 0.5)
    assert (signal.T, signal.shape, signal.gain, len(signal)) == (8, (4, 5), 0.5, 4)
    assert torch.equal(signal.counts, x * (8 if cls is te.ConstantInput else 1))
    assert torch.equal(signal[1].x, x[1:2])
    assert torch.equal(te.cat([signal, signal[:2]]).x, torch.cat([x, x[:2]]))
    assert not signal.detach().x.requires_grad
    assert signal.to(torch.float64).x.dtype == torch.float64
    assert [f.name for f in dataclasses.fields(signal)] == ["x"]
    assert list(inspect.signature(cls).parameters) == ["x", "T", "gain"]
    copy = dataclasses.replace(signal)
    assert (type(copy), copy.x is x, copy.T, copy.gain) == (cls, True, 8, 0.5)


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
    for y in (pytree.tree_unflatten(leaves, spec), whole, pickle.loads(pickle.dumps(x))):
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
    assert torch.equal(x.planes, te.reference.pack(dense))
    assert is_channels_last(x.planes, batch=1)
    assert torch.equal(x.counts, counts.float())
    assert x.stored.numel() == counts.numel()  # a byte each, whatever T
    as_steps = te.SpikeTrain(x.planes, T)
    assert torch.equal(as_steps.count_bytes, x.stored)
    assert_same(te.SpikeTrain(x.planes, T, timing="window"), x)


def test_bursts_pass_like_tensors():
    counts = torch.randint(10, (6, 3, 4)).double().requires_grad_()
    x = te.SpikeTrain.from_counts(counts, 9, gain=0.5)
    for same in (copy.copy(x), dataclasses.replace(x), x.to(x.device)):
        assert (same.timing, same.gain, same.T) == ("window", 0.5, 9)
        assert torch.equal(same.counts, counts)
    assert x.edge is counts
    assert torch.equal(x[[5, 0]].counts, counts[[5, 0]])
    assert x.to(torch.float32).counts.dtype == torch.float32
    assert repr(x) == f"SpikeTrain(T=9, shape=[6, 3, 4], gain=0.5, device={x.device}, timing=window)"


def test_bursts_beside_other_trains():
    x, y = te.SpikeTrain.from_counts(torch.randint(10, (2, 5)), 9), train(9, 3, 5)
    assert te.cat([x, x]).timing == "window"
    both = te.cat([x, y])
    assert both.timing == "step"
    assert torch.equal(both.to_dense(), torch.cat([x.to_dense(), y.to_dense()], 1))
