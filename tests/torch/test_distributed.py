"""Two processes, through gloo, are one process with the same global batch."""

import copy
import itertools
import os
import pickle
import socket
import tempfile
from dataclasses import replace
from pathlib import Path

import child
import pytest
import torch
from cases import dyadic_
from cases import train as spikes
from torch import nn
from torch.distributed.fsdp import fully_shard

import tandem_ext as te
import tandem_snn.nn as tnn
from data import load
from recipe import Recipe
from tandem_snn import ann, freeze, to_ann
from tandem_snn.nn import batch_norm, currents
from train import build, processes
from training import World, train, with_shared_statistics

WORLD = 2
SCRIPT = Path(__file__).parents[2] / "python/experiments/train.py"
RECIPE = Recipe(model="FC32-FC32", optimizer="sgd", lr=0.02, epochs=2)


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return str(s.getsockname()[1])


def work(rank, port, folder):
    """What a process makes of the functions that take a world, by their names."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "MASTER_ADDR": "localhost",
                   "MASTER_PORT": port}  # fmt: skip
    torch.set_num_threads(1)
    with processes("cpu") as (world, _):
        found = {run.__name__: run(world) for run in (all_layers, sharded, whole_training)}
        torch.save(found, folder / f"{rank}.pt")


def share(world, n=16):
    """The samples of a process."""
    return slice(world.rank * n // world.size, (world.rank + 1) * n // world.size)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    torch.multiprocessing.spawn(work, (free_port(), folder), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def block(layers, **options):
    options |= {"bias": False, "norm": True}
    return layers.Residual(layers.Conv2d(12, 8, 3, padding=1, **options), layers.Conv2d(12, 8, 1, **options))


LAYERS = {
    "linear": lambda layers: layers.Linear(12, 8, bias=False, norm=True),
    "conv": lambda layers: layers.Conv2d(12, 8, 3, padding=1, bias=False, norm=True),
    "residual": block,
    "windows": lambda layers: block(layers, timing="window"),
}


def layer_and_input(name, layers):
    """Dyadic weights and spikes, so that every sum is exact, for the whole batch."""
    torch.manual_seed(1)
    return dyadic_(LAYERS[name](layers)), spikes(8, 16, 12, *([5, 4] if name != "linear" else []))


def pass_through(name, layers, world):
    """Counts, state and gradients; and counts and state with torch's own way to say it, which is Lightning's too."""
    layer, x = layer_and_input(name, layers)
    x, converted = x[share(world)], None
    if layers is tnn:
        other = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(layer))
        converted = other(x).counts.detach(), other.state_dict()
    if world.size > 1:
        with_shared_statistics(layer)
    counts = layer(x.counts) if layers is ann else layer(x).counts
    torch.manual_seed(2)
    (counts * torch.randn(16, *counts.shape[1:])[share(world)]).sum().backward()
    return counts.detach(), layer.state_dict(), {key: p.grad for key, p in layer.named_parameters()}, converted


def all_layers(world):
    return {(name, layers.__name__): pass_through(name, layers, world) for name in LAYERS for layers in (tnn, ann)}


def test_layers_are_those_of_one_process(parts):
    for key, (counts, state, grads, converted) in all_layers(World()).items():
        found = [part["all_layers"][key] for part in parts]
        together = torch.cat([part[0] for part in found])
        torch.testing.assert_close(together, counts, rtol=1e-5, atol=1e-5)
        for part in found:
            torch.testing.assert_close(dict(part[1]), dict(state), rtol=1e-5, atol=1e-6)
        for name, grad in grads.items():
            torch.testing.assert_close(sum(part[2][name] for part in found), grad, rtol=1e-4, atol=1e-4)
        if converted is not None:
            assert torch.equal(together, counts), key
            assert torch.equal(torch.cat([part[3][0] for part in found]), counts)
            for part in found:
                torch.testing.assert_close(part[3][1], dict(part[1]), rtol=1e-5, atol=1e-6)
                # The statistics of a shortcut's currents are torch's own in one process, summed in float32.
                for name in (name for name in state if not name.startswith("shortcut")):
                    assert torch.equal(part[1][name], state[name]), (key, name)


def test_a_converted_network_is_one_as_before():
    net = nn.Sequential(tnn.Encoder(8), tnn.Linear(5, 7, norm=True), tnn.Linear(7, 7, norm=True), tnn.Readout(7, 3))
    x = torch.rand(16, 5)
    net(x).sum().backward()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net), torch.distributed.group.WORLD)
    assert all(isinstance(converted[i].norm, tnn.SyncBatchNorm) for i in (1, 2))
    assert [name for name, _ in converted.named_parameters()] == [name for name, _ in net.named_parameters()]
    for n in net, converted:
        n(x)
    torch.testing.assert_close(dict(converted.state_dict()), dict(net.state_dict()))
    converted.load_state_dict(net.state_dict())  # sums in another order differ by rounding
    net.eval()
    copied = pickle.loads(pickle.dumps(copy.deepcopy(converted.eval())))
    assert torch.equal(copied(x), net(x))
    assert torch.equal(freeze(copied)(x), freeze(net)(x))
    assert torch.equal(to_ann(copied)(x), to_ann(net)(x))


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 4), (2, 3, 4, 5)])
@pytest.mark.parametrize("affine", [True, False])
def test_alone_it_is_batch_norm(shape, affine):
    cls = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[len(shape) - 2]
    norm = cls(3, affine=affine, dtype=torch.float64)
    sync = tnn.SyncBatchNorm(cls(3, affine=affine, dtype=torch.float64))
    u = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    v = u.detach().clone().requires_grad_()
    weights = torch.randn(shape, dtype=torch.float64)
    for x, layer in (u, norm), (v, sync):
        (layer(x) * weights).sum().backward()
    torch.testing.assert_close(v.grad, u.grad)
    torch.testing.assert_close(dict(sync.state_dict()), dict(norm.state_dict()))
    torch.testing.assert_close(sync.eval()(v), norm.eval()(u))
    if affine:
        assert torch.autograd.gradcheck(tnn.SyncBatchNorm(norm.train()), (v,))
    with pytest.raises(ValueError, match="at least one value"):
        sync.train()(torch.empty(0, *shape[1:], dtype=torch.float64))


def test_currents_have_the_statistics_of_all_processes(monkeypatch):
    """Those of its currents, too, so that their sum is z."""
    other = torch.tensor([64.0, 10.0, 20.0, 30.0, 10.0, 90.0, 40.0], dtype=torch.float64)
    monkeypatch.setattr(batch_norm, "_total", lambda sums, group: sums + other)
    x = spikes(8, 6, 3)
    u = currents.normalise(x, tnn.SyncBatchNorm(nn.BatchNorm1d(3)))
    torch.testing.assert_close(u.steps(0, 8).sum(0), u.total)


@pytest.mark.parametrize(("name", "options"), [
    *((name, {}) for name in (*LAYERS, "constant")),
    *itertools.product(("linear", "constant"), [{"bias": True}, {"gate": "clip"}, {"threshold": torch.tensor(0.5)}]),
])  # fmt: skip
def test_alone_the_layer_is_the_fused_one(name, options, monkeypatch):
    """Its statistics are those of the kernels' product: the very spikes and running statistics, on any numbers."""
    calls = []
    window_product = tnn.neuron.window_product
    monkeypatch.setattr(tnn.neuron, "window_product", lambda *a: calls.append(a) or window_product(*a))
    if options:
        fused, x = tnn.Linear(12, 8, **{"bias": False, "norm": True, **options}), spikes(8, 16, 12)
    else:
        fused, x = layer_and_input("linear" if name == "constant" else name, tnn)
        fused = getattr(fused, "body", fused)
    x = te.ConstantInput(torch.randn(16, 12), 8) if name == "constant" else x
    nn.init.normal_(fused.weight)
    synced = copy.deepcopy(fused)
    synced.norm = tnn.SyncBatchNorm(synced.norm)
    a, b = fused(x), synced(x)
    assert a.timing == b.timing
    if name != "constant" and "bias" not in options:  # a product of torch's, a mean that rounds
        assert len(calls) == 1
        assert torch.equal(a.planes, b.planes)
        assert torch.equal(fused.norm.running_var, synced.norm.running_var)
    for y in a, b:
        y.counts.square().sum().backward()
    for (key, p), (_, q) in zip(fused.named_parameters(), synced.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4, msg=key)


def sharded(world):
    """Three steps with FSDP2, each process of which holds half of every weight."""
    torch.manual_seed(0)
    layers = tnn.Linear(12, 16), tnn.Residual(tnn.Linear(16, 16)), tnn.Linear(16, 8), tnn.Readout(8, 3)
    net, x, weights = dyadic_(nn.Sequential(*layers)), spikes(8, 8, 12), torch.randn(8, 3)
    if world.size > 1:
        mesh = torch.distributed.init_device_mesh("cpu", (WORLD,))
        for layer in [*net, net]:
            fully_shard(layer, mesh=mesh)
        assert net[0].weight.to_local().shape == (8, 12)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        loss = (net(x[share(world, 8)]) * weights[share(world, 8)]).sum()
        (loss * world.size / WORLD).backward()  # FSDP takes the mean over processes
        optimizer.step()
    return {name: getattr(value, "full_tensor", lambda v=value: v)() for name, value in net.state_dict().items()}


def whole_training(world):
    data, found = load(RECIPE, None), {}
    for kind in "SNN", "ANN":
        torch.manual_seed(0)
        net = build(RECIPE, data, kind)
        net = with_shared_statistics(net) if world.size > 1 else net
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint.pt"
            found[kind] = train(net, data, RECIPE, 0, path, world, lambda *_: None)
            assert path.exists() == (world.rank == 0)
    return found


def test_training_and_fsdp2_are_those_of_one_process(parts):
    for kind, one in whole_training(World()).items():
        for other in (part["whole_training"][kind] for part in parts):
            assert other["epoch"] == one["epoch"]
            torch.testing.assert_close(dict(other["weights"]), dict(one["weights"]), rtol=1e-5, atol=1e-5)
            for record, expected in zip(other["history"], one["history"], strict=True):
                for name in ("loss", "accuracy", "validation_accuracy"):
                    assert record[name] == pytest.approx(expected[name], abs=1e-5)
    for part in parts:
        torch.testing.assert_close(part["sharded"], sharded(World()), rtol=1e-5, atol=1e-6)


def test_one_process_writes(tmp_path):
    """The script under torchrun; of a finished run only the tables are printed."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", WORLD, "--master-port"]
    options = ["--model", "FC32", "--epochs", "2", "--no-twin", "--seeds", "1", "--out", tmp_path]
    for last in "snn.pt", "finished before":
        out = child.run(*launch, free_port(), SCRIPT, *options, OMP_NUM_THREADS="1")
        assert out.count("test accuracy") == 2  # in the first table, and in that of early exit
        assert last in out or (tmp_path / "seed-0" / last).exists()
    assert {"picture.png", "summary.json", "seed-0"} == {path.name for path in tmp_path.iterdir()}
    recipe = replace(RECIPE, batch_size=65)
    data = load(recipe, None)
    with pytest.raises(ValueError, match="65 samples cannot be divided among 2 processes"):
        train(build(recipe, data, "SNN"), data, recipe, 0, tmp_path / "x.pt", World(0, 2), print)
