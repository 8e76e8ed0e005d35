"""Data, recipes, the training loop, checkpoints, and the comparison with the ANN twin."""

import json
import os
import struct

import pytest
import torch

from tandem_snn import create_model, create_twin, data, list_models
from tandem_snn.errors import UserError, check_name, extra
from tandem_snn.training import Recipe, accuracy, compare, fit, load_checkpoint, save_checkpoint, train_epoch
from tandem_snn.training.checkpoint import atomically, read_recipe
from tandem_snn.training.timing import median_ratio, step_times

SMALL = Recipe(model="mlp", epochs=2, width=0.25)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", validation=False)


# --- data -------------------------------------------------------------------------------------------------------------


def test_digits_are_split_the_same_way_every_time(digits):
    again = data.load("digits", validation=False)
    assert torch.equal(digits.test.targets, again.test.targets)
    assert (len(digits.train), len(digits.test), digits.shape) == (1347, 450, (1, 8, 8))
    assert digits.test.targets.bincount().min() >= 43  # stratified
    assert digits.train.inputs.mean().abs() < 1e-4
    assert digits.train.inputs.std() == pytest.approx(1, abs=1e-4)


def test_batches(digits):
    in_order = list(digits.test.batches(200))
    assert [len(labels) for _, labels in in_order] == [200, 200, 50]
    assert torch.equal(torch.cat([labels for _, labels in in_order]), digits.test.targets)
    shuffled = [labels for _, labels in digits.test.batches(200, seed=1)]
    assert [len(labels) for labels in shuffled] == [200, 200]
    again = [labels for _, labels in digits.test.batches(200, seed=1, start=1)]
    assert torch.equal(shuffled[1], again[0])


def test_processes_share_the_batches(digits):
    one = [labels for _, labels in digits.test.batches(60, seed=1)]
    ranks = [[labels for _, labels in digits.test.batches(20, seed=1, rank=rank, world=3)] for rank in range(3)]
    assert all(torch.equal(whole, torch.cat(parts)) for whole, *parts in zip(one, *ranks, strict=True))
    in_order = [labels for rank in range(3) for _, labels in digits.test.batches(64, rank=rank, world=3)]
    assert torch.equal(torch.cat(in_order).bincount(), digits.test.targets.bincount())


def test_validation_is_a_fixed_part_of_the_training_samples(digits):
    split, again = data.load("digits"), data.load("digits")
    assert (len(split.train), len(split.validation), len(split.test)) == (1234, 113, 450)
    assert torch.equal(split.validation.inputs, again.validation.inputs)
    together = torch.cat([split.train.targets, split.validation.targets])
    assert torch.equal(together.bincount(), digits.train.targets.bincount())


def write_idx(path, shape):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = torch.randint(10, shape, dtype=torch.uint8).numpy().tobytes()
    path.write_bytes(struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + content)


@pytest.fixture
def idx(tmp_path):
    """Small files in the exact format of MNIST."""
    for part, n in ("train", 20), ("t10k", 10):
        write_idx(tmp_path / f"MNIST/raw/{part}-images-idx3-ubyte", (n, 28, 28))
        write_idx(tmp_path / f"MNIST/raw/{part}-labels-idx1-ubyte", (n,))
    return tmp_path


def test_idx_files_are_read(idx, monkeypatch):
    loaded = data.load("mnist", idx)
    assert loaded.train.inputs.shape == (18, 1, 28, 28)
    assert loaded.test.targets.dtype == torch.int64
    monkeypatch.setenv("TANDEM_DATA", str(idx))
    assert len(data.load("mnist").test) == 10


def test_what_is_wrong_with_files_is_said(idx, monkeypatch):
    monkeypatch.delenv("TANDEM_DATA", raising=False)
    with pytest.raises(UserError, match="--data-dir or TANDEM_DATA"):
        data.load("mnist")
    with pytest.raises(UserError, match=r"no file .*FashionMNIST/raw/train-images.*download=True"):
        data.load("fashion-mnist", idx)
    with pytest.raises(UserError, match="unknown data set 'mnits': did you mean 'mnist'"):
        data.load("mnits", idx)
    images, labels = (idx / f"MNIST/raw/t10k-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
    whole = images.read_bytes()
    for damaged in (whole[:-100], b"", b"<html>", whole[:10]):
        images.write_bytes(damaged)
        with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte.*delete it"):
            data.load("mnist", idx)
    images.write_bytes(whole)
    write_idx(labels, (9,))
    with pytest.raises(UserError, match="10 t10k images but 9 labels"):
        data.load("mnist", idx)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_real_files(name):
    if "TANDEM_DATA" not in os.environ:
        pytest.skip("TANDEM_DATA is not set: no MNIST files to read")
    loaded = data.load(name, validation=False)
    assert (len(loaded.train), len(loaded.test), loaded.shape) == (60_000, 10_000, (1, 28, 28))
    assert loaded.test.targets.bincount().min() > 800


# --- models and recipes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_models())
def test_models_and_twins_exchange_their_weights(name):
    options = {"shape": (1, 8, 8), "classes": 10, "T": 4, "width": 0.25}
    net, twin = create_model(name, **options), create_twin(name, **options)
    net.load_state_dict(twin.state_dict())
    twin.load_state_dict(net.state_dict())
    x = torch.randn(3, 1, 8, 8)
    assert net(x).shape == twin(x).shape == (3, 10)
    assert create_model(name, **options, gamma=1.5)[2].norm.weight[0] == 1.5


def test_recipes_are_checked():
    assert Recipe.from_dict(SMALL.to_dict()) == SMALL
    with pytest.raises(UserError, match="unknown recipe key 'epoch': did you mean 'epochs'"):
        Recipe.from_dict({"epoch": 3})
    with pytest.raises(UserError, match="unknown model 'mpl': did you mean 'mlp'"):
        Recipe(model="mpl")
    with pytest.raises(UserError, match="T: expected 1 to 255"):
        Recipe(T=256)
    for name in ("epochs", "batch_size", "lr", "width"):
        with pytest.raises(UserError, match=name):
            Recipe(**{name: 0})
    with pytest.raises(UserError, match=r"unknown colour 'zzz': \(known: red\)"):
        check_name("colour", "zzz", ["red"])
    with pytest.raises(UserError, match=r'the test needs no_such_module .*pip install "tandem-ext\[all\]"'):
        extra("no_such_module", "the test")


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_seed_determines_the_result(digits):
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        net, _ = SMALL.networks(digits)
        history = fit(net, digits, SMALL, seed=3)
        states.append(net.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert len(history) == 2
    assert history[1].loss < history[0].loss
    assert history[1].test_accuracy == accuracy(net, digits.test)


def test_a_loss_that_is_not_finite_stops(digits):
    net, _ = SMALL.networks(digits)
    with torch.no_grad():
        net[-1].weight.fill_(float("nan"))
    with pytest.raises(UserError, match="nan at step 1"):
        train_epoch(net, digits.train.batches(64), torch.optim.SGD(net.parameters(), lr=0.1))


def test_step_times_leave_the_networks_alone(digits):
    nets = SMALL.networks(digits)
    before = {key: value.clone() for key, value in nets[0].state_dict().items()}
    times = step_times(nets, digits.train.inputs[:32], digits.train.targets[:32], rounds=3, warm_up=1)
    assert [len(record) for record in times] == [3, 3]
    assert median_ratio(*times) > 0
    assert all(torch.equal(before[key], value) for key, value in nets[0].state_dict().items())


def test_mlp_learns_the_digits(digits):
    steps = []
    result = compare(
        Recipe(model="mlp", epochs=10), digits, seeds=[0], on_step=lambda kind, seed: steps.append((kind, seed))
    )
    summary = result.summary()
    assert summary["test_accuracy"] >= 96
    assert abs(summary["test_accuracy"] - summary["ann_test_accuracy"]) < 2
    assert steps.count(("SNN", 0)) == steps.count(("ANN", 0)) == 10 * 21
    assert json.loads(json.dumps(summary)) == summary
    assert set(summary) >= {"test_accuracy", "ann_test_accuracy", "T", "synops_ratio", "step_time_ratio", "seeds"}


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_checkpoints_carry_their_recipe(digits, tmp_path):
    net, other = SMALL.networks(digits)[0], SMALL.networks(digits)[0]
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, net, SMALL)
    assert read_recipe(path) == SMALL
    load_checkpoint(path, other)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in net.state_dict().items())
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_bad_checkpoints_are_refused(digits, tmp_path):
    net, path = SMALL.networks(digits)[0], tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="no checkpoint"):
        load_checkpoint(path, net)
    save_checkpoint(path, net, SMALL)
    wider = Recipe(model="mlp", width=0.5).networks(digits)[0]
    with pytest.raises(UserError, match=r"another model: 2.weight is \[64, 64\] there and \[128, 64\] in the model"):
        load_checkpoint(path, wider)
    with pytest.raises(UserError, match=r"another model: .* absent"):
        load_checkpoint(path, Recipe(model="cnn").networks(digits)[0])
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:4], b"", b"x" * 200):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            load_checkpoint(path, net)
    from safetensors.torch import save_file

    save_file(net.state_dict(), path)
    with pytest.raises(UserError, match="no recipe"):
        load_checkpoint(path, net)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomically(path, fail)
    assert path.read_text() == "old"
    atomically(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
