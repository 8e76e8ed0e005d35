"""Two processes, through gloo, are one process with the same global batch."""

import copy
import itertools
import os
import pickle
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
from cases import dyadic, train
from torch import nn

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn import ann, freeze, to_ann
from tandem_snn.nn import batch_norm, general
from tandem_snn.nn.batch_norm import SyncBatchNorm
from tandem_snn.training import Interruption, Recipe, World, fit, join, synchronised
from tandem_snn.training.trainer import Trainer

WORLD = 2


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def environment(rank, port):
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}  # fmt: skip


def _work(rank, port, folder):
    os.environ |= environment(rank, port)
    torch.set_num_threads(1)
    with join("cpu") as (world, _):
        found = {run.__name__: run(world) for run in (all_layers, exact_step, whole_training)}
        torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """What each process makes of the functions that take a world, by their names."""
    folder = tmp_path_factory.mktemp("parts")
    torch.multiprocessing.spawn(_work, (free_port(), folder), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def _join_twice(rank, port):
    os.environ |= environment(rank, port) | {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    for attempt in range(2):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(attempt)
        time.sleep(attempt * (1 - rank))  # so that the other one looks for its address before it is there
        with join("cpu", timedelta(seconds=60)) as (world, _):
            assert world.sum(torch.ones(1)).item() == WORLD


def test_processes_that_are_started_again_do_not_find_the_addresses_of_those_before():
    """torchrun keeps its store, and what is in it, where it does not negotiate who takes part."""
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    torch.multiprocessing.spawn(_join_twice, (store.port,), nprocs=WORLD)


LAYERS = {
    "linear": lambda layers: layers.Linear(12, 8, bias=False, norm=True),
    "conv": lambda layers: layers.Conv2d(12, 8, 3, padding=1, bias=False, norm=True),
    "residual": lambda layers: layers.Residual(
        layers.Conv2d(12, 8, 3, padding=1, bias=False, norm=True), layers.Conv2d(12, 8, 1, bias=False, norm=True)
    ),
    "windows": lambda layers: layers.Residual(
        layers.Conv2d(12, 8, 3, padding=1, bias=False, norm=True, timing="window"),
        layers.Conv2d(12, 8, 1, bias=False, norm=True, timing="window"),
    ),
}


def layer_and_input(name, layers):
    """Dyadic weights and spikes, so that every sum is exact, for the whole batch."""
    torch.manual_seed(1)
    layer = LAYERS[name](layers)
    with torch.no_grad():
        for weight in (p for p in layer.parameters() if p.dim() > 1):
            weight.copy_(dyadic(*weight.shape))
    x = train(8, 16, 12, *([5, 4] if name != "linear" else []))
    return layer, x


def pass_through(name, layers, world):
    layer, x = layer_and_input(name, layers)
    share = slice(world.rank * 16 // world.size, (world.rank + 1) * 16 // world.size)
    x = x[share]
    # By torch's own way to say it, which is Lightning's too.
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(layer)) if layers is tnn else layer
    converted_counts = converted(x).counts.detach() if layers is tnn else None
    with synchronised(layer, world):
        y = layer(x.counts if layers is ann else x)
        counts = y if layers is ann else y.counts
        torch.manual_seed(2)
        weights = torch.randn(16, *counts.shape[1:])[share]
        (counts * weights).sum().backward()
    assert not any(isinstance(module, SyncBatchNorm) for module in layer.modules())
    return {
        "out": counts.detach(),
        "state": layer.state_dict(),
        "converted": (converted_counts, converted.state_dict()),
        "grads": {key: p.grad for key, p in layer.named_parameters()},
    }


def all_layers(world):
    return {(name, layers.__name__): pass_through(name, layers, world) for name in LAYERS for layers in (tnn, ann)}


def test_layers_are_those_of_one_process(parts):
    parts = [part["all_layers"] for part in parts]
    for key, one in all_layers(World()).items():
        spiking = key[1] == "tandem_snn.nn"
        out = torch.cat([part[key]["out"] for part in parts])
        if spiking:
            assert torch.equal(out, one["out"]), key
            assert torch.equal(torch.cat([part[key]["converted"][0] for part in parts]), one["out"])
            for part in parts:
                torch.testing.assert_close(part[key]["converted"][1], dict(part[key]["state"]), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(out, one["out"], rtol=1e-5, atol=1e-5)
        for name, value in one["state"].items():
            for part in parts:
                same = part[key]["state"][name]
                # The statistics of a shortcut's currents are torch's own in one process, summed in float32.
                if spiking and not name.startswith("shortcut"):
                    assert torch.equal(same, value), (key, name)
                torch.testing.assert_close(same, value, rtol=1e-5, atol=1e-6)
        for name, grad in one["grads"].items():
            total = sum(part[key]["grads"][name] for part in parts)
            torch.testing.assert_close(total, grad, rtol=1e-4, atol=1e-4)


def test_a_converted_network_is_one_as_before():
    net = nn.Sequential(tnn.Encoder(8), tnn.Linear(5, 7, norm=True), tnn.Linear(7, 7, norm=True), tnn.Readout(7, 3))
    x = torch.rand(16, 5)
    net(x).sum().backward()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net), torch.distributed.group.WORLD)
    assert all(isinstance(converted[i].norm, SyncBatchNorm) for i in (1, 2))
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
    sync = SyncBatchNorm(cls(3, affine=affine, dtype=torch.float64))
    u = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    v = u.detach().clone().requires_grad_()
    weights = torch.randn(shape, dtype=torch.float64)
    for x, layer in (u, norm), (v, sync):
        (layer(x) * weights).sum().backward()
    torch.testing.assert_close(v.grad, u.grad)
    torch.testing.assert_close(dict(sync.state_dict()), dict(norm.state_dict()))
    torch.testing.assert_close(sync.eval()(v), norm.eval()(u))
    if affine:
        assert torch.autograd.gradcheck(SyncBatchNorm(norm.train()), (v,))
    with pytest.raises(ValueError, match="at least one value"):
        sync.train()(torch.empty(0, *shape[1:], dtype=torch.float64))


def test_the_general_way_has_the_statistics_of_all_processes(monkeypatch):
    """Those of its currents, too, so that their sum is z."""
    other = torch.tensor([64.0, 10.0, 20.0, 30.0, 10.0, 90.0, 40.0], dtype=torch.float64)
    monkeypatch.setattr(batch_norm, "_total", lambda sums, group: sums + other)
    x = train(8, 6, 3)
    u = general.normalise(x, SyncBatchNorm(nn.BatchNorm1d(3)))
    torch.testing.assert_close(u.steps(0, 8).sum(0), u.total)


@pytest.mark.parametrize(("name", "options"), [
    *((name, {}) for name in (*LAYERS, "constant")),
    *itertools.product(("linear", "constant"), [{"bias": True}, {"gate": "resu"}, {"threshold": torch.tensor(0.5)}]),
])  # fmt: skip
def test_alone_the_layer_is_the_fused_one(name, options, monkeypatch):
    """Its statistics are those of the kernels' product: the very spikes and running statistics, on any numbers."""
    calls = []
    window_product = tnn.neuron.window_product
    monkeypatch.setattr(tnn.neuron, "window_product", lambda *a: calls.append(a) or window_product(*a))
    if options:
        fused, x = tnn.Linear(12, 8, **{"bias": False, "norm": True, **options}), train(8, 16, 12)
    else:
        fused, x = layer_and_input("linear" if name == "constant" else name, tnn)
        fused = getattr(fused, "body", fused)
    x = te.ConstantInput(torch.randn(16, 12), 8) if name == "constant" else x
    nn.init.normal_(fused.weight)
    synced = copy.deepcopy(fused)
    synced.norm = SyncBatchNorm(synced.norm)
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


EXACT = Recipe(
    model="FC32", T=2, norm=False, optimizer="sgd", momentum=0.0, lr=2.0**-6, schedule="constant", batch_size=16,
    task="regression", epochs=1, validation=False,
)  # fmt: skip
ROUNDED = Recipe(model="FC32-FC32", optimizer="sgd", lr=0.02, batch_size=64, epochs=2, validation=True)


def exact_step(world):
    """One step of which every sum is exact: dyadic weights, images and learning rate, squared errors."""
    data = EXACT.load()
    torch.manual_seed(0)
    net = EXACT.build(data)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randint(-2, 3, p.shape) / 4)  # few bits, so that sums of their products need few
    trainer = Trainer(net, data, EXACT, world)
    next(trainer.epoch())
    return net.state_dict(), trainer.totals.loss


def whole_training(world):
    result = {}
    for kind in ("SNN", "ANN"):
        data = ROUNDED.load()
        torch.manual_seed(0)
        net = ROUNDED.build(data, kind)
        fitted = fit(net, data, ROUNDED, world=world)
        result[kind] = net.state_dict(), fitted
    return result


def test_a_step_is_that_of_one_process_bit_for_bit(parts):
    state, loss = exact_step(World())
    for other, other_loss in (part["exact_step"] for part in parts):
        assert other_loss == pytest.approx(loss, rel=1e-6)  # the mean over a batch is not a short number
        assert all(torch.equal(value, other[key]) for key, value in state.items())


def test_training_is_that_of_one_process(parts):
    for kind, (state, fitted) in whole_training(World()).items():
        for part in parts:
            other, other_fitted = part["whole_training"][kind]
            for key, value in state.items():
                torch.testing.assert_close(other[key], value, rtol=1e-5, atol=1e-5)
            assert other_fitted.test == pytest.approx(fitted.test, abs=1e-5)
            assert other_fitted.epoch == fitted.epoch
            for record, one in zip(other_fitted.history, fitted.history, strict=True):
                for name in ("loss", "accuracy", "validation_accuracy"):
                    assert record[name] == pytest.approx(one[name], abs=1e-5)


def start(port, rank, code, *arguments):
    script = (
        f"import sys, os, torch; torch.set_num_threads(1)\n{code}\nfrom tandem_snn.cli import main; sys.exit(main())"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, "train", "digits", "--set", "model=FC32", "--seeds", "1", *arguments],
        env={**os.environ, **environment(rank, port)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def outcomes(processes):
    found = [process.communicate(timeout=120) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, found, strict=True)]


def test_one_process_writes(tmp_path):
    for further in [], ["--resume"]:  # of a finished run
        port = free_port()
        options = ["--epochs", "2", "--out", str(tmp_path), *further]
        (first, shown, _), (second, silence, _) = outcomes([start(port, rank, "", *options) for rank in range(WORLD)])
        assert (first, second) == (0, 0)
        assert "test accuracy" in shown
        assert silence == ""
    assert {"model.safetensors", "summary.json", "seed-0"} <= {path.name for path in tmp_path.iterdir()}


def test_batches_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match="65 samples cannot be divided evenly among 2 processes"):
        Trainer(nn.Linear(1, 1), replace(EXACT, batch_size=65).load(), replace(EXACT, batch_size=65), _Unwrapped(0, 2))


class _Unwrapped(World):
    def wrap(self, net):
        return net


def test_when_one_dies_the_others_stop_and_say_so(tmp_path):
    port = free_port()
    dies = """
from tandem_snn.training import Trainer
step = Trainer.train_step
Trainer.train_step = lambda self, *batch: os._exit(9) if self.step == 5 else step(self, *batch)
"""
    processes = [start(port, rank, dies * rank, "--epochs", "50", "--out", str(tmp_path)) for rank in range(WORLD)]
    (status, _, error), (died, _, _) = outcomes(processes)
    assert (status, died) == (2, 9)
    assert re.search(r"^tandem-snn: another process of this run stopped", error, re.MULTILINE)
    assert "Traceback" not in error


def test_asked_to_stop_all_stop_after_the_same_step(tmp_path):
    port = free_port()
    asks = """
import signal
from tandem_snn.training import Trainer
step = Trainer.train_step
def slow(self, *batch):
    step(self, *batch)
    if self.step == 5:
        signal.raise_signal(signal.SIGTERM)
Trainer.train_step = slow
"""
    processes = [start(port, rank, asks * rank, "--epochs", "50", "--out", str(tmp_path)) for rank in range(WORLD)]
    for status, _, error in outcomes(processes):
        assert status == 143
        assert "after 0 of 50 epochs and 5 of 21 steps" in error
    assert Interruption().signal is None
    assert (tmp_path / "seed-0" / "snn" / "checkpoint.safetensors").exists()
