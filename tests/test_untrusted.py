"""Files of strangers: NIR graphs. Frozen files: test_frozen_file.py.

Whatever is in them, they are read or refused in one line; nothing in them is run, and nothing larger than they are is
allocated.
"""

import random
import resource
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import child
import numpy as np
import pytest
import torch
from extras import needs
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_snn.errors import UserError


@contextmanager
def little_memory(more: int = 1 << 30) -> Any:
    """As much address space as the process has, and a GiB: what asks for more fails."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


NOISE = [b"\xff" * 8, b"\0" * 8, b"9" * 20, b"-1", b"\x7f\xff\xff\xff"]


def damaged(content: bytes, draw: random.Random) -> bytes:
    new = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        first = draw.randrange(len(new) + 1)
        part = slice(first, first + draw.choice([1, int(draw.expovariate(0.1))]))
        new[part] = draw.choice([bytes([draw.randrange(256)]), b"", new[part] * 2, draw.choice(NOISE)])
    return bytes(new)


def nir_file(path: Path) -> bytes:
    nir = needs("nir")
    net = nn.Sequential(tnn.Encoder(8), tnn.Conv2d(1, 2, 3), tnn.Flatten(), tnn.Linear(8, 3), tnn.Readout(3, 2))
    nir.write(path, ts.to_nir(net.eval(), torch.rand(1, 1, 4, 4)))
    return path.read_bytes()


READ_ALL = """
import sys
from pathlib import Path
import tandem_snn as ts
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        ts.from_nir(path)
        print("read")
    except ValueError:
        print("refused")
"""


def test_damaged_nir_files_are_read_or_refused(tmp_path: Path) -> None:
    """In a process of its own, which ends well: it has large C libraries."""
    content, draw = nir_file(tmp_path / "whole.nir"), random.Random(0)
    (tmp_path / "damaged").mkdir()
    for i in range(150):
        cut = content[: draw.randrange(len(content))] if i % 3 == 0 else damaged(content, draw)
        (tmp_path / "damaged" / f"{i}.nir").write_bytes(cut)
    assert len(child.run("-c", READ_ALL, tmp_path / "damaged").splitlines()) == 150


def test_hdf5_that_declares_more_than_it_holds(tmp_path: Path) -> None:
    h5py = needs("h5py")
    path, outside = tmp_path / "x.nir", tmp_path / "secret"
    outside.write_bytes(b"secret" * 1000)

    def dataset(*shape: int, **options: Any) -> Callable[[Any], object]:
        return lambda node: node.create_dataset("weight", shape, "f4", **options)

    def linked(target: Any) -> Callable[[Any], object]:
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
            ts.from_nir(path)


NAMES = ['x") or print("', "a.b", "class", "0", "a b", "\n", "forward", "graph", "encoder", "readout", "ü", "x'"]


@pytest.mark.parametrize("name", [*NAMES, 'n") or getattr(__import__("os"), "mkdir")("pwned") or getattr(self, "n'])
def test_names_of_nir_nodes_are_no_code(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    """torch.fx writes the names of modules into a program."""
    nir = needs("nir")
    monkeypatch.chdir(tmp_path)
    net = nn.Sequential(tnn.Encoder(8), tnn.Linear(4, 3), tnn.Linear(3, 3), tnn.Readout(3, 2)).eval()
    x = torch.rand(2, 4)
    graph = ts.to_nir(net, x)

    new_name = {key: name if key == "n2_neurons" else key for key in graph.nodes}
    edges = [(new_name[a], new_name[b]) for a, b in graph.edges]
    new = nir.NIRGraph({new_name[key]: node for key, node in graph.nodes.items()}, edges)
    new.metadata = graph.metadata
    torch.testing.assert_close(ts.from_nir(new)(x), net(x))
    assert not list(tmp_path.iterdir())


@given(st.data())
def test_nir_graphs_of_any_arrays(drawn: Any) -> None:
    needs("nir")
    net = nn.Sequential(tnn.Encoder(8), tnn.Conv2d(1, 2, 3), tnn.AvgPool2d(2), tnn.Flatten(), tnn.Linear(2, 3),
                        tnn.Readout(3, 2)).eval()  # fmt: skip
    graph = ts.to_nir(net, torch.rand(1, 1, 4, 4), neurons=drawn.draw(st.sampled_from(["IF", "primitives"])))
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
        ts.from_nir(graph)
