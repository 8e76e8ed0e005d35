"""Files of strangers: recipes, NIR graphs, event recordings, images.

Whatever is in them, they are read or refused in one line; nothing in them is run, and nothing larger than they are is
allocated. Frozen files: test_frozen_file.py. Checkpoints: test_checkpoints.py. Names in reports: test_report.py.
"""

import os
import random
import resource
import struct
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data import write_images
from test_data_events import aedat4, recording
from torch import nn

import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_snn import data
from tandem_snn.errors import UserError
from tandem_snn.training import Recipe, load_recipe

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)


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


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, removed or written twice."""
    new = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        first = draw.randrange(len(new) + 1)
        last = min(len(new), first + int(draw.expovariate(0.1)))
        kind = draw.randrange(4)
        if kind == 0 and first < len(new):
            new[first] = draw.randrange(256)
        elif kind == 1:
            del new[first:last]
        elif kind == 2:
            new[first:first] = new[first:last]
        else:
            new[first:last] = draw.choice([b"\xff" * 8, b"\0" * 8, b"9" * 20, b"-1", b"\x7f\xff\xff\xff"])
    return bytes(new)


RECIPE = b"""# A recipe: what damage to a comment does not change.
data: fashion-mnist
model: cnn
T: 8
augment: [flip, "shift:2"]
init_from: twin
init_gain: 2.5
synops_penalty: 0.1
lr: 2e-3
"""
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates() | st.binary()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(scalars, inner), max_leaves=10)


@quiet
@given(st.dictionaries(st.sampled_from(list(Recipe().to_dict())), values, max_size=4))
def test_recipes_of_any_values(given_values: dict[str, Any]) -> None:
    try:
        recipe = Recipe.from_dict(given_values)
    except UserError:
        return
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.digest()
    assert recipe.override(["T=4"]).T == 4


@pytest.mark.parametrize("seed", range(4))
def test_recipes_of_damaged_text(seed: int, tmp_path: Path) -> None:
    draw, read = random.Random(seed), 0
    for _ in range(100):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(damaged(RECIPE, draw))
        try:
            load_recipe(path)
            read += 1
        except UserError:
            pass
    assert 0 < read < 100


BOMB = "options:\n  a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"  {b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
TEXTS = {
    "a bomb": (BOMB, "options: expected a mapping of names to single values, got {'a': "),
    "a loop": ("options: &a {x: *a}", "options: expected a mapping of names to single values"),
    "depth": ("model: " + "[" * 20_000, "is not YAML: maximum recursion depth"),
    "a long number": ("seed: " + "9" * 5000, "is not YAML: Exceeds the limit"),
    "a long number in hexadecimal": ("T: 0x" + "f" * 10_000, "T: a number of 40000 bits"),
    "a long option": ("options: {eps: 0x" + "f" * 10_000 + "}", "eps: a number of 40000 bits"),
    "a day that is none": ("model: 2001-99-99", "is not YAML: month must be"),
    "code": ("model: !!python/object/apply:os.system ['touch pwned']", "is not YAML: could not determine"),
    "a device as base": ("base: /dev/zero", "/dev/zero is not a file"),
    "a pipe as base": ("base: ./pipe.yaml", "pipe.yaml is not a file"),
    "bytes": ("model: !!binary aGVsbG8=", "model: expected a name"),
    "nested options": ("options: {eps: {x: 1}}", "options: expected a mapping of names to single values"),
    "seeds": (f"seed: {2**62}\nseeds: {2**62}", "expected seeds up to"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_hostile_recipes(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    text, message = TEXTS[name]
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "recipe.yaml").write_text(text)
    start = time.process_time()
    with pytest.raises(UserError, match=message), little_memory():
        load_recipe("./recipe.yaml")
    assert time.process_time() - start < 10
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("keys", [{"model": f"FC{10**12}"}, {"model": f"8C{10**14}"}, {"width": 1e12}, {"width": 1e30}])
def test_networks_of_absurd_sizes_are_not_built(keys: dict[str, Any]) -> None:
    digits = data.load("digits")
    with pytest.raises(UserError, match=r"model \w+: .*(would take|overflow|Overflow)"), little_memory():
        Recipe(**keys).build(digits)


def test_looking_at_the_size_draws_no_random_numbers() -> None:
    digits = data.load("digits")
    nets = []
    for build in Recipe().build, lambda d: ts.create_model("cnn", shape=d.shape, classes=10, T=8):
        torch.manual_seed(0)
        nets.append(build(digits).state_dict())
    assert all(torch.equal(value, nets[1][key]) for key, value in nets[0].items())


def test_a_great_number_of_seeds_takes_no_memory() -> None:
    with little_memory():
        assert len(Recipe(seeds=10**12).all_seeds) == 10**12


def nir_file(path: Path) -> bytes:
    nir = pytest.importorskip("nir", reason="the package nir is not installed")
    net = nn.Sequential(tnn.Encoder(8), tnn.Conv2d(1, 2, 3), tnn.Flatten(), tnn.Linear(8, 3), tnn.Readout(3, 2))
    nir.write(path, ts.to_nir(net.eval(), torch.rand(1, 1, 4, 4)))
    return path.read_bytes()


def outcomes(read: str, error: str, files: dict[str, bytes], folder: Path) -> list[str]:
    """What became of each file, read or refused, in a process of its own, which ends well: it has large C libraries."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    program = f"""
import sys
from pathlib import Path
import tandem_snn as ts
from tandem_snn.data.readers import RECORDINGS, _frames
from tandem_snn.errors import UserError
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        {read}
        print("read")
    except {error}:
        print("refused")
"""
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_damaged_nir_files_are_read_or_refused(tmp_path: Path) -> None:
    content, draw = nir_file(tmp_path / "whole.nir"), random.Random(0)
    (tmp_path / "damaged").mkdir()
    files = {
        f"{i}.nir": damaged(content, draw) if i % 3 else content[: draw.randrange(len(content))] for i in range(150)
    }
    found = outcomes("ts.from_nir(path)", "ValueError", files, tmp_path / "damaged")
    assert len(found) == 150


def test_hdf5_that_declares_more_than_it_holds(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    path, outside = tmp_path / "x.nir", tmp_path / "secret"
    outside.write_bytes(b"secret" * 1000)

    def weight_as(**options: Any) -> None:
        nir_file(path)
        with h5py.File(path, "r+") as file:
            node = file["node/nodes/n3"]
            del node["weight"]
            make = options.pop("make", None)
            if make is None:
                node.create_dataset("weight", **options)
            else:
                make(node)

    layout, packed = h5py.VirtualLayout((3, 8), "f4"), {"compression": "gzip"}
    cases = {
        "declares 4,000,000,000,000 bytes": {"shape": (10**6, 10**6), "dtype": "f4"},
        "declares 40,000,000,000 bytes": {"shape": (10**5, 10**5), "dtype": "f4", "chunks": True, **packed},
        "lies in another file": {"shape": (3, 8), "dtype": "f4", "external": [(str(outside), 0, 96)]},
        "lies in another file ": {"make": lambda node: node.create_virtual_dataset("weight", layout)},
        "link to another place": {"make": lambda node: node.update({"weight": h5py.ExternalLink(str(outside), "/x")})},
        "link to another place ": {"make": lambda node: node.update({"weight": h5py.SoftLink("/node")})},
        "nested more than 16 times": {"make": lambda node: node.update({"weight": node})},
    }
    for message, options in cases.items():
        weight_as(**options)
        with pytest.raises(UserError, match=message.strip()), little_memory():
            ts.from_nir(path)


NAMES = ['x") or print("', "a.b", "class", "0", "a b", "\n", "forward", "graph", "encoder", "readout", "ü", "x'"]


@pytest.mark.parametrize("name", [*NAMES, 'n") or getattr(__import__("os"), "mkdir")("pwned") or getattr(self, "n'])
def test_names_of_nir_nodes_are_no_code(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    """torch.fx writes the names of modules into a program."""
    nir = pytest.importorskip("nir", reason="the package nir is not installed")
    monkeypatch.chdir(tmp_path)
    net = nn.Sequential(tnn.Encoder(8), tnn.Linear(4, 3), tnn.Linear(3, 3), tnn.Readout(3, 2)).eval()
    x = torch.rand(2, 4)
    graph = ts.to_nir(net, x)

    def renamed(old: str) -> str:
        return name if old == "n2_neurons" else old

    new = nir.NIRGraph(
        {renamed(key): node for key, node in graph.nodes.items()}, [(renamed(a), renamed(b)) for a, b in graph.edges]
    )
    new.metadata = graph.metadata
    torch.testing.assert_close(ts.from_nir(new)(x), net(x))
    assert not list(tmp_path.iterdir())


@quiet
@given(st.data())
def test_nir_graphs_of_any_arrays(drawn: Any) -> None:
    pytest.importorskip("nir", reason="the package nir is not installed")
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


def npy(shape: tuple[int, ...], content: bytes = b"", kind: str = "<i8") -> bytes:
    header = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def gestures(folder: Path, content: bytes) -> None:
    for part in "ibmGestureTrain", "ibmGestureTest":
        path = folder / "DVSGesture" / part / "user01_led" / "0.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path_factory.mktemp("cache")))


HOSTILE_NPY = {
    "absurd": npy((10**12, 4)), "negative": npy((-1, 4), b"\0" * 64), "overflow": npy((2**62, 2**62)),
    "objects": npy((1, 4), b"cos\nsystem\n(S'touch pwned'\ntR.", "|O"), "text": npy((1, 4), b"\0" * 64, "<U4"),
    "none": npy((0, 4)), "a time that is none": npy((1, 4), struct.pack("<4d", 1, 1, 1, float("nan")), "<f8"),
    "code in the header": b"\x93NUMPY\x01\x00\x28\x00" + b"__import__('os').system('touch pwned')\n   ",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NPY)
def test_hostile_recordings_of_gestures(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    gestures(tmp_path / "data", HOSTILE_NPY[name])
    with pytest.raises(UserError, match=r"damaged file .*0\.npy"), little_memory():
        data.load("dvs128-gesture", tmp_path / "data")
    assert not (tmp_path / "pwned").exists()


def whole_npy() -> bytes:
    events = recording(40, 128, 128)
    return npy((40, 4), np.stack([events[key] for key in "xypt"], 1).astype("<i8").tobytes())


READERS = {
    "dvs128-gesture": (".npy", whole_npy),
    "dvs-cifar10": (".aedat4", lambda: aedat4(recording(40, 128, 128))),
    "n-mnist": (".bin", lambda: random.Random(0).randbytes(200)),
}


@pytest.mark.parametrize("name", READERS)
def test_damaged_recordings_are_read_or_refused(name: str, tmp_path: Path) -> None:
    pytest.importorskip("aedat" if name == "dvs-cifar10" else "tonic")
    suffix, whole = READERS[name]
    content, draw = whole(), random.Random(0)
    files = {f"{i:03}{suffix}": damaged(content, draw) for i in range(200)}
    read = f"_frames({name!r}, RECORDINGS[{name!r}], path, 20, 'time', (16, 16))"
    found = outcomes(read, "UserError", files, tmp_path)
    assert len(found) == 200
    assert "refused" in found


def jpeg(width: int, height: int) -> bytes:
    """The start of an image, which declares its size, and nothing of its pixels."""
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, height, width, 3) + b"\x01\x11\0\x02\x11\0\x03\x11\0"
    return b"\xff\xd8" + frame + b"\xff\xd9"


def test_images_of_absurd_sizes_are_not_decoded(tmp_path: Path) -> None:
    for part in "train", "test":
        write_images(tmp_path / "cifar10-jpeg" / part, ["cat", "dog"], 2, ".jpg")
    for part in "train", "val":
        write_images(tmp_path / "imagenet" / part, ["cat", "dog"], 2, ".JPEG")
    (tmp_path / "cifar10-jpeg/train/dog/0001.jpg").write_bytes(jpeg(60_000, 60_000))
    for path in (tmp_path / "imagenet/val").rglob("*.JPEG"):
        path.write_bytes(jpeg(60_000, 60_000))
    with pytest.raises(UserError, match=r"damaged file .*dog/0001.jpg"), little_memory():
        data.load("cifar10-jpeg", tmp_path)
    with pytest.raises(UserError, match=r"damaged file .*imagenet/val"), little_memory():
        data.load("imagenet", tmp_path, size=16)
