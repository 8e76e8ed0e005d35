"""Frozen networks as files: what comes back is the same bit for bit, and no file does harm."""

from __future__ import annotations

import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import conv, lif, line, mlp, projection, residual, trained
from torch import Tensor, nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_snn import container
from tandem_snn.errors import UserError
from tandem_snn.frozen.file import FORMAT

pytest.importorskip("safetensors", reason="safetensors is not installed")
NETWORKS = [mlp, lif, conv, residual, projection, line]


def through_a_file(frozen: ts.FrozenNetwork, folder: Path) -> ts.FrozenNetwork:
    frozen.save(folder / "net.tandem")
    loaded = ts.load_frozen(folder / "net.tandem")
    loaded.save(folder / "again.tandem")
    assert (folder / "net.tandem").read_bytes() == (folder / "again.tandem").read_bytes()
    ours, theirs = frozen.state_dict(), loaded.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (loaded.T, loaded.weight_bits) == (frozen.T, frozen.weight_bits)
    return loaded


@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("make", NETWORKS)
def test_one_call_stream_and_early_answers_are_the_same_bits(make: Any, bits: int | None, tmp_path: Path) -> None:
    net, x = make()
    frozen = ts.freeze(trained(net, x), weight_bits=bits)
    loaded = through_a_file(frozen, tmp_path)
    assert torch.equal(loaded(x), frozen(x))
    for _ in range(frozen.T or 0):
        assert torch.equal(loaded.step(x), frozen.step(x))
    for ours, theirs in zip(frozen.anytime(x, 0.2), loaded.anytime(x, 0.2), strict=True):
        assert torch.equal(ours, theirs)
    assert all(ours.words.equal(theirs.words) for ours, theirs in zip(programs(frozen), programs(loaded), strict=True))


def programs(frozen: ts.FrozenNetwork) -> list[Any]:
    return list(frozen._programs.values())


def converted() -> tuple[nn.Module, Tensor]:
    x = torch.rand(6, 1, 8, 8)
    layers = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 5)]
    return ts.calibrate(ts.convert(nn.Sequential(*layers).eval(), 8), [x]), x


def learned() -> tuple[nn.Module, Tensor]:
    options = {"width": 0.1, "learn_threshold": "channel", "weight_bits": 6, "bn_stats": "running"}
    return ts.create_model("resnet18-cifar", shape=(3, 8, 8), classes=4, T=5, **options), torch.rand(2, 3, 8, 8)


def events() -> tuple[nn.Module, te.SpikeTrain]:
    x = te.SpikeTrain.from_dense(torch.rand(11, 3, 2, 9, 9).lt(0.3).float())
    return nn.Sequential(tnn.Conv2d(2, 4, 3), tnn.Flatten(), tnn.Readout(196, 3)), x


def of_float64() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(tnn.Encoder(4), tnn.AvgPool2d(2), tnn.Conv2d(2, 3, 2), tnn.Flatten(), tnn.Readout(3, 2))
    return net.double(), torch.rand(3, 2, 4, 4).double()


def partly_ann() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(9, 7, norm=True), tnn.Linear(7, 6), tnn.Readout(6, 3)).eval()
    net[2].analog = True
    return net, torch.rand(4, 9)


@pytest.mark.parametrize("make", [converted, learned, events, of_float64, partly_ann])
def test_other_networks(make: Callable[[], tuple[nn.Module, Any]], tmp_path: Path) -> None:
    net, x = make()
    frozen = ts.freeze(net)
    expected = frozen(x)
    assert torch.equal(through_a_file(frozen, tmp_path)(x), expected)


def test_a_stream_can_begin_with_the_loaded_network(tmp_path: Path) -> None:
    net, x = events()
    loaded = through_a_file(ts.freeze(net, T=11), tmp_path)
    for t in range(11):
        so_far = loaded.step(x.to_dense()[t])
    assert torch.equal(so_far, net(x))


def test_weights_of_few_bits_take_a_byte(tmp_path: Path) -> None:
    net, x = nn.Sequential(tnn.Encoder(4), tnn.Linear(200, 300), tnn.Readout(300, 10)), torch.rand(1, 200)
    ts.freeze(net).save(tmp_path / "float")
    frozen = ts.freeze(net, weight_bits=4)
    frozen.save(tmp_path / "few")
    assert (tmp_path / "few").stat().st_size < 0.3 * (tmp_path / "float").stat().st_size
    assert torch.equal(ts.load_frozen(tmp_path / "few")(x), frozen(x))


def test_what_a_file_cannot_hold_is_named(tmp_path: Path) -> None:
    class Own(tnn.Linear):
        pass

    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.readout = tnn.Linear(4, 4), tnn.Readout(4, 2)

        def forward(self, x: Any) -> Tensor:
            return 2 * self.readout(self.layer(x))

    for net, message in (
        (Doubled(), "mul.* is not a layer of tandem_snn.nn"),
        (nn.Sequential(Own(4, 3), tnn.Readout(3, 2)), "layer '0' cannot be saved: Own is not a layer"),
        (nn.Sequential(tnn.Linear(4, 3), nn.Linear(3, 2)), "layer '1' cannot be saved"),
        (nn.Sequential(tnn.Conv2d(1, 1, 3, padding=1000), tnn.Readout(3, 2)), "padding: .*0 to 255"),
    ):
        with pytest.raises(ValueError, match=message):
            ts.freeze(net).save(tmp_path / "net")
    assert not list(tmp_path.iterdir())


# --- files from anyone ------------------------------------------------------------------------------------------------


def refused(path: Path, content: bytes, match: str = "net.tandem") -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match=match) as caught:
        ts.load_frozen(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, bytes]:
    net = nn.Sequential(tnn.Encoder(3), tnn.Linear(5, 4, norm=True), tnn.Residual(tnn.Linear(4, 4)), tnn.Readout(4, 2))
    path = tmp_path / "net.tandem"
    ts.freeze(net, weight_bits=8).save(path)
    return path, path.read_bytes()


def test_every_byte_is_checked(small: tuple[Path, bytes]) -> None:
    path, content = small
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        refused(path, bytes(damaged))


def test_every_length_is_checked(small: tuple[Path, bytes]) -> None:
    path, content = small
    for length in range(0, len(content), 7):
        refused(path, content[:length], "damaged")
    refused(path, content[:-1], "damaged")
    refused(path, content + b"\0", "damaged")


def test_absurd_sizes_are_refused_before_anything_is_read(small: tuple[Path, bytes]) -> None:
    path, content = small
    for length in (2**63, 2**40, len(content), 2**64 - 1):
        refused(path, length.to_bytes(8, "little") + content[8:], "header cannot be read")
    path.write_bytes(content)
    os.truncate(path, 2**40)
    with pytest.raises(UserError, match="its header says"):
        ts.load_frozen(path)
    os.truncate(path, 0)
    huge = {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}, "__metadata__": {"checksum": "0"}}
    header = json.dumps(huge).encode()
    refused(path, len(header).to_bytes(8, "little") + header, "its header says")
    header = b"[" * 100_000
    refused(path, len(header).to_bytes(8, "little") + header, "header cannot be read")


def test_other_files_are_refused(small: tuple[Path, bytes]) -> None:
    path, _ = small
    tensors, facts = container.unpack(path, FORMAT, "", "")
    refused(path, pickle.dumps({"a": 1}), "damaged|not written")
    refused(path, container.pack(tensors, facts, "tandem_snn 1"), "not a frozen network, or")
    refused(path, container.pack(tensors, facts, "tandem_snn frozen 2"), "another version")
    with pytest.raises(UserError, match="no frozen network"):
        ts.load_frozen(path.parent)
    with pytest.raises(UserError, match="no frozen network"):
        ts.load_frozen(path.parent / "none")
    assert isinstance(UserError("x"), ValueError)


def changed(facts: dict[str, Any], *keys: Any, to: Any) -> dict[str, Any]:
    facts = json.loads(json.dumps(facts))
    place: Any = facts
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    return facts


HOSTILE: list[tuple[tuple[Any, ...], Any, str]] = [
    (("T",), 10**9, "T: expected"),
    (("T",), True, "T: expected"),
    (("weight_bits",), 64, "weight_bits"),
    (("layers",), [], "is not a frozen network that can be"),
    (("layers", "1"), {}, "no layer is called None"),
    (("layers", "1", "kind"), "Module", "no layer is called 'Module'"),
    (("layers", "1", "kind"), ["Linear"], "no layer is called"),
    (("layers", "1", "kind"), "Readout", "Readout has no setting"),
    (("layers", "1", "kind"), "Conv2d", "stride"),
    (("layers", "1", "gate"), "__import__('os')", "gate"),
    (("layers", "1", "leak"), 2.0, "leak"),
    (("layers", "1", "leak"), float("nan"), "leak"),
    (("layers", "1", "eps"), "1e-5", "eps: expected a finite number"),
    (("layers", "1", "threshold"), -1.0, "threshold"),
    (("layers", "1", "threshold"), None, "threshold: expected a finite"),
    (("layers", "1", "device"), "cuda", "no setting 'device'"),
    (("layers", "1", "analog"), 1, "analog"),
    (("layers", "0", "T"), 256, "T: expected an int from 1 to 255"),
    (("layers", "0", "mode"), "sideways", "mode"),
    (("layers", "0", "gain"), float("inf"), "gain"),
    (("layers", "x');print('y"), {"kind": "Dropout", "p": 0.5}, "a layer's name"),
    (("layers", "forward"), {"kind": "Dropout", "p": 0.5}, "already exists"),
    (("layers", "1.weight"), {"kind": "Dropout", "p": 0.5}, "is not a frozen network that can be"),
    (("uses",), [], "no layers"),
    (("uses", 0, 0), "nowhere", "no layer 'nowhere'"),
    (("uses", 1, 1), 1, "earlier use"),
    (("uses", 1, 1), -2, "earlier use"),
    (("uses", 1, 2), 10**30, "earlier use"),
    (("uses", 1, 1), None, "no input"),
    (("uses", 1, 3), "yes", "no layer"),
    (("uses", 1), [1, 2], "is not a frozen network that can be"),
]


@pytest.mark.parametrize(("keys", "value", "message"), HOSTILE)
def test_hostile_facts(small: tuple[Path, bytes], keys: tuple[Any, ...], value: Any, message: str) -> None:
    path, _ = small
    tensors, facts = container.unpack(path, FORMAT, "", "")
    refused(path, container.pack(tensors, changed(facts, *keys, to=value), FORMAT), message)


def test_hostile_tensors(small: tuple[Path, bytes]) -> None:
    path, _ = small
    tensors, facts = container.unpack(path, FORMAT, "", "")
    missing = {name: tensor for name, tensor in tensors.items() if name != "1.norm.running_var"}
    for changes, message in (
        (missing, "running_var: expected the shape"),
        ({**tensors, "9.weight": torch.ones(2)}, "belongs to no layer"),
        ({**tensors, "1.extra": torch.ones(2)}, "no tensor 'extra'"),
        ({**tensors, "1.weight": torch.ones(4, 5, 1, dtype=torch.int8)}, "weight: expected 2 dimensions"),
        ({**tensors, "1.weight": torch.ones(0, 5, dtype=torch.int8)}, "steps of shape"),
        ({**tensors, "1.weight.step": torch.ones(())}, "steps of shape"),
        ({**tensors, "1.bias": torch.ones(4, dtype=torch.int64)}, "floating-point"),
        ({**tensors, "1.bias": torch.ones(1)}, "bias: expected the shape"),
    ):
        refused(path, container.pack(changes, facts, FORMAT), message)


def test_random_facts_are_a_network_or_refused(small: tuple[Path, bytes]) -> None:
    """Some place of the description says something else: then the file is refused, or runs, or its run is refused."""
    path, _ = small
    tensors, facts = container.unpack(path, FORMAT, "", "")
    junk = [
        None,
        True,
        -1,
        0,
        7,
        2**31,
        2**63,
        10**40,
        0.5,
        -0.0,
        1e308,
        "",
        "relu",
        "threshold",
        [],
        [1],
        {},
        "1.norm",
    ]
    generator = random.Random(0)
    for _ in range(400):
        keys: list[Any] = []
        place: Any = facts
        while isinstance(place, (dict, list)) and place and (not keys or generator.random() < 0.9):
            keys.append(generator.choice(list(place) if isinstance(place, dict) else range(len(place))))
            place = place[keys[-1]]
        path.write_bytes(container.pack(tensors, changed(facts, *keys, to=generator.choice(junk)), FORMAT))
        try:
            loaded = ts.load_frozen(path)
        except UserError:
            continue
        try:
            assert loaded(torch.rand(2, 5)).shape == (2, 2)
        except (TypeError, ValueError, RuntimeError):
            continue
