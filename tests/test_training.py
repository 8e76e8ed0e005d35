"""Data, recipes, the training loop, checkpoints, and the comparison with the ANN twin."""

import json

import pytest
import torch

from tandem_snn import data
from tandem_snn.errors import UserError, check_name, extra
from tandem_snn.training import Recipe, accuracy, compare, fit, load_checkpoint, save_checkpoint, train_epoch
from tandem_snn.training.checkpoint import atomically, read_recipe
from tandem_snn.training.timing import median_ratio, step_times

SMALL = Recipe(model="mlp", epochs=2, width=0.25)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", validation=False)


# --- models and recipes -----------------------------------------------------------------------------------------------


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
    times = step_times(nets, *next(digits.train.batches(32)), rounds=3, warm_up=1)
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
    with pytest.raises(UserError, match=r"another model: fc1.weight is \[64, 64\] there and \[128, 64\] in the model"):
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
