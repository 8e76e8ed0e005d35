"""NIR graphs of any tool, in memory and in files: they run as NIR's formulas say, or are refused by name."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extras import needs
from networks import assert_same, own_counts
from nir_simulators import T, simulated
from test_nir import every_other, pooled, powers_of_two, vector
from torch import Tensor, nn

import tandem_ext as te
from tandem_snn import from_nir, to_nir
from tandem_snn.errors import UserError

nir = needs("nir")


def chain(*nodes: Any, shape: tuple[int, ...] = (2, 4, 4)) -> Any:
    every = ["input", *(f"n{i}" for i in range(len(nodes))), "output"]
    ends = nir.Input({"input": np.array(shape)}), nir.Output({"output": np.array(shape)})
    named = dict(zip(every, [ends[0], *nodes, ends[1]], strict=True))
    edges = list(itertools.pairwise(every))
    return nir.NIRGraph(named, edges, metadata={"T": T, "input": "events"}, type_check=False)


def powers(*shape: int) -> np.ndarray:
    return powers_of_two(*shape).numpy()


def eighths(*shape: int) -> np.ndarray:
    return (torch.randint(-8, 16, shape) / 8).numpy()


def conv(channels: int = 2, kernel: int = 1) -> Any:
    return nir.Conv2d((4, 4), eighths(channels, 2, kernel, kernel), 1, kernel // 2, 1, 1, eighths(channels) / 8)


def neurons(*shape: int, kind: Any = nir.IF, metadata: Any = None) -> Any:
    """Of threshold 1/2 and, if they leak, half of their potential a step."""
    shape = shape or (2, 4, 4)
    one, leaks = np.ones(shape, np.float32), {"tau": 2, "v_leak": 0} if kind is nir.LIF else {}
    numbers = {"r": 2 if leaks else 1, "v_threshold": 0.5, "v_reset": 0} | leaks
    metadata = {"reset": "subtract"} if metadata is None else metadata
    return kind(**{name: np.float32(value) * one for name, value in numbers.items()}, metadata=metadata)


def graphs() -> dict[str, Any]:
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
    return {
        "sums, a convolution": chain(sums, conv(), neurons()),
        "neurons, sums, other neurons": chain(neurons(), sums, neurons()),
        "a scale, pooling": chain(each, pool, neurons(2, 2, 2)),
        "a scale, pooling, a convolution": chain(each, pool, conv(), neurons(2, 2, 2)),
        "a scale of each neuron, a convolution": chain(each, conv(kernel=3), neurons()),
        "a scale of each channel, a convolution": chain(each_channel, conv(kernel=3), neurons()),
        "a convolution, a scale of each neuron": chain(conv(), each, neurons()),
        "neurons, a scale, an affine map": chain(neurons(), each, flatten, affine, neurons(6)),
        "pooling, a convolution": chain(pool, conv(), neurons(2, 2, 2)),
        "two convolutions": chain(conv(), conv(kernel=3), neurons()),
        "no synapses": chain(neurons(), each), "a scale at the end": chain(conv(), neurons(), each),
        "a shortcut with its sign changed": shortcut, "three paths and a shortcut": three,
    }  # fmt: skip


def spikes(*shape: int) -> te.SpikeTrain:
    return te.SpikeTrain.from_dense(torch.rand(T, 3, *(shape or (2, 4, 4))).lt(0.5).float())


@pytest.mark.parametrize("name", graphs())
def test_any_sum_of_maps_is_read(name: str) -> None:
    torch.manual_seed(5)
    graph, x = graphs()[name], spikes()
    assert_same(own_counts(from_nir(graph), x), simulated(graph, x))


@pytest.mark.parametrize("kind", [nir.IF, nir.LIF])
@pytest.mark.parametrize("shape", [(2, 4, 4), (6,)])
def test_the_reset_is_not_guessed(shape: tuple[int, ...], kind: Any, tmp_path: Path) -> None:
    """Files of nir before 1.0.8 meant subtraction: v ← v + dt/τ·(r·I - v), a spike if v ≥ ϑ, then v ← v - ϑ."""
    import h5py

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


def narrowed(values: Tensor) -> Tensor:
    half = values.bfloat16()  # which NumPy does not have
    return half if torch.equal(half.float(), values) else values.double()


@pytest.mark.parametrize("kind", [Tensor.clone, nn.Parameter, narrowed])
def test_graphs_in_memory_may_have_tensors(kind: Callable[[Tensor], Tensor]) -> None:
    net, x = pooled()
    graph = to_nir(net, x)
    for node in graph.nodes.values():
        for name, value in vars(node).items():
            if isinstance(value, np.ndarray) and value.dtype == np.float32:
                setattr(node, name, kind(torch.from_numpy(value)))
    assert_same(own_counts(net, x), own_counts(from_nir(graph), x))


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    net, x = vector()
    graph = to_nir(net, x)
    with pytest.raises(ValueError, match="reset"):
        from_nir(graph, reset="zero")
    for given, error, message in (
        ((net, None), TypeError, r"x: expected a tensor \[B, \*features\] or a SpikeTrain, got NoneType"),
        ((net, torch.tensor(1.0)), ValueError, r"x: expected a batch \[B, \*features\], got a tensor of shape \[\]"),
        (("net", x), TypeError, r"net: expected a torch\.nn\.Module, got str"),
    ):
        with pytest.raises(error, match=message):
            to_nir(*given)
    with pytest.raises(TypeError, match=r"graph: expected a nir\.NIRGraph or the path of a file, got Linear"):
        from_nir(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"T: expected an int from 1 to 65535, got 2.5"):
        from_nir(graph, T=2.5)  # type: ignore[arg-type]
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
    ("timing", "later", "timing 'later'"), ("v_init", np.zeros(3), "v_init is not of"),
])  # fmt: skip
def test_wrong_metadata_are_named(key: str, value: Any, message: str) -> None:
    graph = to_nir(*every_other(), window=True)
    graph.nodes["n1_neurons"].metadata[key] = value
    with pytest.raises(ValueError, match=f"node 'n1_neurons': .*{message}"):
        from_nir(graph)
