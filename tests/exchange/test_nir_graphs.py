"""NIR graphs of any tool and of strangers: they run as NIR's formulas say, or are refused; nothing of them is run."""

import itertools
import random
import resource
from contextlib import contextmanager, suppress
from pathlib import Path

import child
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import assert_same, own_counts
from nir_simulators import T, simulated
from test_nir import every_other, pooled, powers_of_two, vector
from torch import Tensor, nn

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn import from_nir, to_nir
from tandem_snn.errors import UserError

nir = pytest.importorskip("nir")
NOISE = [b"\xff" * 8, b"\0" * 8, b"9" * 20, b"-1", b"\x7f\xff\xff\xff"]
NAMES = ['x") or print("', "a.b", "class", "0", "a b", "\n", "forward", "graph", "encoder", "readout", "ü", "x'"]


def chain(*nodes, shape=(2, 4, 4)):
    every = ["input", *(f"n{i}" for i in range(len(nodes))), "output"]
    ends = nir.Input({"input": np.array(shape)}), nir.Output({"output": np.array(shape)})
    named = dict(zip(every, [ends[0], *nodes, ends[1]], strict=True))
    edges = list(itertools.pairwise(every))
    return nir.NIRGraph(named, edges, metadata={"T": T, "input": "events"}, type_check=False)


def powers(*shape):
    return powers_of_two(*shape).numpy()


def eighths(*shape):
    return (torch.randint(-8, 16, shape) / 8).numpy()


def conv(channels=2, kernel=1):
    return nir.Conv2d((4, 4), eighths(channels, 2, kernel, kernel), 1, kernel // 2, 1, 1, eighths(channels) / 8)


def neurons(*shape, kind=nir.IF, metadata=None):
    """Of threshold 1/2 and, if they leak, half of their potential a step."""
    shape = shape or (2, 4, 4)
    one, leaks = np.ones(shape, np.float32), {"tau": 2, "v_leak": 0} if kind is nir.LIF else {}
    numbers = {"r": 2 if leaks else 1, "v_threshold": 0.5, "v_reset": 0} | leaks
    metadata = {"reset": "subtract"} if metadata is None else metadata
    return kind(**{name: np.float32(value) * one for name, value in numbers.items()}, metadata=metadata)


def graphs():
    torch.manual_seed(5)
    pool, sums = nir.AvgPool2d(*np.array([[2, 2], [2, 2], [0, 0]])), nir.SumPool2d(*np.array([[3, 3], [1, 1], [1, 1]]))
    each, flatten = nir.Scale(powers(2, 4, 4)), nir.Flatten({"input": np.array([2, 4, 4])}, 0, -1)
    affine = nir.Affine(eighths(6, 32), eighths(6))
    shortcut = chain(conv(), neurons())
    shortcut.nodes["scale"] = nir.Scale(-powers(2, 4, 4))
    shortcut.edges += [("input", "scale"), ("scale", "n1")]
    three = chain(conv(), neurons())
    three.nodes |= {"b": conv(kernel=3), "c": conv()}
    three.edges += [("input", "b"), ("input", "c"), ("b", "n1"), ("c", "n1"), ("input", "n1")]
    each_channel = nir.Scale(np.ones((2, 4, 4), np.float32) * powers(2, 1, 1))
    return [
        chain(sums, conv(), neurons()), chain(neurons(), sums, neurons()), chain(each, pool, neurons(2, 2, 2)),
        chain(each, pool, conv(), neurons(2, 2, 2)), chain(each, conv(kernel=3), neurons()),
        chain(each_channel, conv(kernel=3), neurons()), chain(conv(), each, neurons()),
        chain(neurons(), each, flatten, affine, neurons(6)), chain(pool, conv(), neurons(2, 2, 2)),
        chain(conv(), conv(kernel=3), neurons()), chain(neurons(), each), chain(conv(), neurons(), each),
        shortcut, three,
    ]  # fmt: skip


def spikes(*shape):
    return te.SpikeTrain.from_dense(torch.rand(T, 3, *(shape or (2, 4, 4))).lt(0.5).float())


@pytest.mark.parametrize("graph", graphs())
def test_any_sum_of_maps_is_read(graph):
    x = spikes()
    assert_same(own_counts(from_nir(graph), x), simulated(graph, x))


@pytest.mark.parametrize("kind", [nir.IF, nir.LIF])
@pytest.mark.parametrize("shape", [(2, 4, 4), (6,)])
def test_the_reset_is_not_guessed(shape, kind, tmp_path):
    """Files of nir before 1.0.8 meant subtraction: v ← v + dt/τ·(r·I - v), a spike if v ≥ ϑ, then v ← v - ϑ."""
    h5py = pytest.importorskip("h5py")
    torch.manual_seed(0)
    maps = [conv(kernel=3) if len(shape) == 3 else nir.Affine(eighths(6, 6), eighths(6) / 8) for _ in range(2)]
    layers = [node for each in maps for node in (each, neurons(*shape, kind=kind, metadata={}))]
    graph, x, path = chain(*layers, shape=shape), spikes(*shape), tmp_path / "old.nir"
    with pytest.raises(ValueError, match=rf"'n1': {kind.__name__} resets to v_reset.*reset=\"subtract\""):
        from_nir(graph)
    nir.write(path, graph)
    with h5py.File(path, "r+") as file:
        del file["version"]
        file["version"] = "1.0.4"
    for net in from_nir(graph, reset="subtract"), from_nir(path):
        assert_same(own_counts(net, x), simulated(graph, x))


def narrowed(values):
    half = values.bfloat16()  # which NumPy does not have
    return half if torch.equal(half.float(), values) else values.double()


@pytest.mark.parametrize("kind", [Tensor.clone, nn.Parameter, narrowed])
def test_graphs_in_memory_may_have_tensors(kind):
    net, x = pooled()
    graph = to_nir(net, x)
    for node in graph.nodes.values():
        for name, value in vars(node).items():
            if isinstance(value, np.ndarray) and value.dtype == np.float32:
                setattr(node, name, kind(torch.from_numpy(value)))
    assert_same(own_counts(net, x), own_counts(from_nir(graph), x))


def test_what_does_not_fit_is_named(tmp_path):
    net, x = vector()
    graph = to_nir(net, x)
    with pytest.raises(ValueError, match="reset"):
        from_nir(graph, reset="zero")
    for arguments, error, message in (
        ((net, None), TypeError, r"x: expected a tensor \[B, \*features\] or a SpikeTrain, got NoneType"),
        ((net, torch.tensor(1.0)), ValueError, r"x: expected a batch \[B, \*features\], got a tensor of shape \[\]"),
        (("net", x), TypeError, r"net: expected a torch\.nn\.Module, got str"),
    ):
        with pytest.raises(error, match=message):
            to_nir(*arguments)
    with pytest.raises(TypeError, match=r"graph: expected a nir\.NIRGraph or the path of a file, got Linear"):
        from_nir(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"T: expected an int from 1 to 65535, got 2.5"):
        from_nir(graph, T=2.5)
    for dt in 0.0, float("nan"):
        for call in (lambda dt=dt: from_nir(graph, dt=dt)), (lambda dt=dt: to_nir(net, x, dt=dt)):
            with pytest.raises(ValueError, match="dt: expected a positive number"):
                call()
    graph.nodes["n3_neurons"].v_threshold[0] = 2.0
    assert from_nir(graph).n3_neurons.threshold.tolist()[:2] == [2.0, 1.0]
    graph.metadata = {}
    with pytest.raises(ValueError, match="T: give"):
        from_nir(graph)
    graph.nodes["n3"] = nir.Delay(np.array([1.0]))
    with pytest.raises(ValueError, match="'n3'"):
        from_nir(graph, T)
    with pytest.raises(UserError, match="no file"):
        from_nir(tmp_path / "none.nir")
    (tmp_path / "bad.nir").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="not a NIR file"):
        from_nir(tmp_path / "bad.nir")


@pytest.mark.parametrize(("key", "value", "message"), [
    ("timing", "later", "timing 'later'"), ("v_init", np.zeros(3), "v_init: expected the shape"),
])  # fmt: skip
def test_wrong_metadata_are_named(key, value, message):
    graph = to_nir(*every_other(), window=True)
    graph.nodes["n1_neurons"].metadata[key] = value
    with pytest.raises(ValueError, match=f"node 'n1_neurons': .*{message}"):
        from_nir(graph)


@contextmanager
def little_memory(more=1 << 30):
    """As much address space as the process has, and a GiB: what asks for more fails."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def damaged(content, draw):
    new = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        first = draw.randrange(len(new) + 1)
        part = slice(first, first + draw.choice([1, int(draw.expovariate(0.1))]))
        new[part] = draw.choice([bytes([draw.randrange(256)]), b"", new[part] * 2, draw.choice(NOISE)])
    return bytes(new)


def nir_file(path):
    net = nn.Sequential(tnn.Encoder(8), tnn.Conv2d(1, 2, 3), tnn.Flatten(), tnn.Linear(8, 3), tnn.Readout(3, 2))
    nir.write(path, to_nir(net.eval(), torch.rand(1, 1, 4, 4)))
    return path.read_bytes()


def test_damaged_nir_files_are_read_or_refused(tmp_path):
    """In a process of its own, which ends well: the reader has large C libraries."""
    read_all = """
import sys
from pathlib import Path
from tandem_snn import from_nir
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        from_nir(path)
        print("read")
    except ValueError:
        print("refused")
"""
    content, draw = nir_file(tmp_path / "whole.nir"), random.Random(0)
    (tmp_path / "damaged").mkdir()
    for i in range(150):
        cut = content[: draw.randrange(len(content))] if i % 3 == 0 else damaged(content, draw)
        (tmp_path / "damaged" / f"{i}.nir").write_bytes(cut)
    said = child.run("-c", read_all, tmp_path / "damaged").splitlines()
    assert (len(said), set(said)) == (150, {"read", "refused"})


def test_hdf5_that_declares_more_than_it_holds(tmp_path):
    h5py = pytest.importorskip("h5py")
    path, outside = tmp_path / "x.nir", tmp_path / "secret"
    outside.write_bytes(b"secret" * 1000)

    def dataset(*shape, **options):
        return lambda node: node.create_dataset("weight", shape, "f4", **options)

    def linked(target):
        return lambda node: node.update({"weight": target})

    layout = h5py.VirtualLayout((3, 8), "f4")
    for message, make in (
        ("declares 4,000,000,000,000 bytes", dataset(10**6, 10**6)),
        ("declares 40,000,000,000 bytes", dataset(10**5, 10**5, chunks=True, compression="gzip")),
        ("lies in another file", dataset(3, 8, external=[(str(outside), 0, 96)])),
        ("lies in another file", lambda node: node.create_virtual_dataset("weight", layout)),
        ("link to another place", linked(h5py.ExternalLink(str(outside), "/x"))),
        ("link to another place", linked(h5py.SoftLink("/node"))),
        ("nested more than 16 times", lambda node: node.update({"weight": node})),
    ):
        nir_file(path)
        with h5py.File(path, "r+") as file:
            node = file["node/nodes/n3"]
            del node["weight"]
            make(node)
        with pytest.raises(UserError, match=message), little_memory():
            from_nir(path)


@pytest.mark.parametrize("name", [*NAMES, 'n") or getattr(__import__("os"), "mkdir")("pwned") or getattr(self, "n'])
def test_names_of_nir_nodes_are_no_code(name, tmp_path, monkeypatch):
    """torch.fx writes the names of modules into a program."""
    monkeypatch.chdir(tmp_path)
    net = nn.Sequential(tnn.Encoder(8), tnn.Linear(4, 3), tnn.Linear(3, 3), tnn.Readout(3, 2)).eval()
    x = torch.rand(2, 4)
    graph = to_nir(net, x)

    new_name = {key: name if key == "n2_neurons" else key for key in graph.nodes}
    edges = [(new_name[a], new_name[b]) for a, b in graph.edges]
    new = nir.NIRGraph({new_name[key]: node for key, node in graph.nodes.items()}, edges)
    new.metadata = graph.metadata
    torch.testing.assert_close(from_nir(new)(x), net(x))
    assert not list(tmp_path.iterdir())


@given(st.data())
def test_nir_graphs_of_any_arrays(drawn):
    net = nn.Sequential(tnn.Encoder(8), tnn.Conv2d(1, 2, 3), tnn.AvgPool2d(2), tnn.Flatten(), tnn.Linear(2, 3),
                        tnn.Readout(3, 2)).eval()  # fmt: skip
    graph = to_nir(net, torch.rand(1, 1, 4, 4))
    shapes = st.lists(st.integers(0, 3), max_size=5)
    for _ in range(drawn.draw(st.integers(1, 3))):
        name = drawn.draw(st.sampled_from(sorted(graph.nodes)))
        node = graph.nodes[name]
        fields = sorted(key for key in vars(node) if key not in ("input_type", "output_type", "metadata"))
        if fields and drawn.draw(st.booleans()):
            kind = drawn.draw(st.sampled_from([np.float32, np.int64, np.float64, np.bool_, object]))
            fill = drawn.draw(st.sampled_from([0, 1, -1, np.nan, np.inf, 2**62]))
            array = np.full(drawn.draw(shapes), fill if kind in (np.float32, np.float64, object) else 1, dtype=kind)
            setattr(node, drawn.draw(st.sampled_from(fields)), array)
        else:
            edges = [(drawn.draw(st.sampled_from(sorted(graph.nodes))), name), *graph.edges]
            graph.edges = edges[: drawn.draw(st.integers(0, len(edges)))]
    with suppress(ValueError):
        from_nir(graph)
