"""Checkpoints, stores and logs: damage, exact resumption after any end, what stays when nothing can be written."""

import errno
import json
import signal
from dataclasses import replace

import pytest
import torch

from tandem_snn import data
from tandem_snn.container import atomically
from tandem_snn.errors import Interrupted, UserError
from tandem_snn.training import Recipe, Store, Trainer, fit, load_checkpoint, read_recipe, save_checkpoint
from tandem_snn.training.checkpoint import NEWEST, PREVIOUS, pack, unpack

# Dropout and augmentation, so that the random numbers of the steps matter.
RECIPE = Recipe(model="FC64-D0.2-FC64", augment=("shift:1",), epochs=3, seed=5)


@pytest.fixture(scope="module")
def digits():
    return RECIPE.load()


def build(digits, recipe=RECIPE):
    torch.manual_seed(recipe.seed)
    return recipe.build(digits)


def assert_equal(net, other):
    ours, theirs = net.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_checkpoints_carry_their_recipe(digits, tmp_path):
    net, other = RECIPE.build(digits), RECIPE.build(digits)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, net, RECIPE, kind="SNN")
    assert read_recipe(path) == RECIPE
    assert load_checkpoint(path, other)["kind"] == "SNN"
    assert_equal(net, other)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_shared_and_strided_tensors_survive(tmp_path):
    a = torch.arange(24.0).view(2, 3, 4)
    tensors = {"a": a, "view": a[0], "turned": a.movedim(0, -1), "empty": torch.empty(0), "number": torch.tensor(3)}
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack(tensors, {"facts": [1, None, 0.1]}))
    loaded, facts = unpack(path)
    assert facts == {"facts": [1, None, 0.1]}
    assert all(torch.equal(tensors[key], loaded[key]) for key in tensors)


def test_bad_checkpoints_are_refused(digits, tmp_path):
    net, path = RECIPE.build(digits), tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="no checkpoint"):
        load_checkpoint(path, net)
    save_checkpoint(path, net, RECIPE)
    with pytest.raises(UserError, match=r"another model: fc1.weight is \[64, 64\] there and \[128, 64\] in the model"):
        load_checkpoint(path, Recipe(model="mlp", width=0.5).build(digits))
    with pytest.raises(UserError, match=r"another model: .* absent"):
        load_checkpoint(path, Recipe(model="cnn").build(digits))
    from safetensors.torch import save_file

    save_file(net.state_dict(), path)
    with pytest.raises(UserError, match="was not written by tandem-snn"):
        load_checkpoint(path, net)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path, kept = tmp_path / "summary.json", tmp_path / "old.json"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomically(path, fail, keep=kept)

    def fill(temporary):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*summary\.json'$"):
        atomically(path, fill)
    assert path.read_text() == "old"
    atomically(path, lambda temporary: temporary.write_text("new"), keep=kept)
    assert (path.read_text(), kept.read_text()) == ("new", "old")
    assert sorted(tmp_path.iterdir()) == [kept, path]


class After:
    """Asks to stop after so many steps."""

    def __init__(self, steps):
        self.left = steps
        self.signal = signal.SIGINT

    def requested(self):
        self.left -= 1
        return self.left < 0


VARIANTS = {
    "adam": {},
    "sgd": {"optimizer": "sgd", "lr": 0.05, "schedule": "multistep", "milestones": (1, 2)},
    "bf16": {"precision": "bf16", "clip_grad_norm": 1.0, "synops_penalty": 0.1},
    "fp16": {"precision": "fp16", "optimizer": "adamw", "weight_decay": 0.01},
    "first gate": {"first_gate": "resu:2", "gate": "clip"},
    "no validation": {"validation": False},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_goes_on_bit_for_bit(name, tmp_path):
    recipe = replace(RECIPE, **VARIANTS[name])
    split = recipe.load()
    whole = build(split, recipe)
    expected = fit(whole, split, recipe)
    for steps in (0, 7):  # each process takes a few more steps
        with pytest.raises(Interrupted, match="--resume"):
            fit(build(split, recipe), split, recipe, store=Store(tmp_path), interruption=After(steps))
        assert (tmp_path / NEWEST).exists()
    net = build(split, recipe)
    fitted = fit(net, split, recipe, store=Store(tmp_path))
    assert_equal(net, whole)
    timing = ("seconds", "images_per_second")
    cut = [[{k: v for k, v in r.items() if k not in timing} for r in f.history] for f in (fitted, expected)]
    assert cut[0] == cut[1]
    assert (fitted.test, fitted.epoch) == (expected.test, expected.epoch)
    # Finished: loaded, not trained again.
    again = build(split, recipe)
    assert fit(again, split, recipe, store=Store(tmp_path)) == fitted
    assert_equal(again, whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "last.safetensors", "metrics.jsonl", "model.safetensors", "result.json",
    ]  # fmt: skip


def test_a_finished_run_is_trained_on(digits, tmp_path):
    """With a schedule that does not depend on the epochs it becomes the run that was longer from the first."""
    short, long = (replace(RECIPE, schedule="constant", epochs=epochs) for epochs in (2, 3))
    whole = build(digits, long)
    expected = fit(whole, digits, long)
    fit(build(digits, short), digits, short, store=Store(tmp_path))
    with pytest.raises(UserError, match=r"a training of 2 epochs, not 3: .* --resume` or .*train_on=True"):
        fit(build(digits, long), digits, long, store=Store(tmp_path))
    with pytest.raises(UserError, match=r"epochs: expected more than 2, for which .* was trained already, got 1"):
        fit(build(digits, short), digits, replace(short, epochs=1), store=Store(tmp_path, train_on=True))
    with pytest.raises(UserError, match=r"another recipe: lr is .* only the epochs may change"):
        fit(build(digits, long), digits, replace(long, lr=1e-3), store=Store(tmp_path, train_on=True))
    with pytest.raises(Interrupted):
        fit(build(digits, long), digits, long, store=Store(tmp_path, train_on=True), interruption=After(3))
    assert fit(build(digits, short), digits, short, store=Store(tmp_path)).epoch <= 2  # what was finished still is
    net = build(digits, long)
    fitted = fit(net, digits, long, store=Store(tmp_path, train_on=True))
    assert_equal(net, whole)
    steps = len(digits.train) // RECIPE.batch_size
    assert fitted.trained_on == [{"epochs": 2, "steps": 2 * steps}]
    assert ([r["loss"] for r in fitted.history], fitted.test) == ([r["loss"] for r in expected.history], expected.test)
    (tmp_path / "last.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot be continued: .*last\.safetensors, .* is missing"):
        fit(net, digits, replace(long, epochs=4), store=Store(tmp_path, train_on=True))


def test_a_run_that_is_further_than_the_epochs_is_refused(digits, tmp_path):
    with pytest.raises(Interrupted):
        fit(build(digits), digits, RECIPE, store=Store(tmp_path), interruption=After(30))
    with pytest.raises(UserError, match=r"epochs: .* was trained for 31 steps already, more than 1 epochs of 19"):
        fit(build(digits), digits, replace(RECIPE, epochs=1), store=Store(tmp_path, train_on=True))


def test_stopping_at_the_end_of_an_epoch(digits, tmp_path):
    whole = build(digits)
    expected = fit(whole, digits, RECIPE)
    steps = len(digits.train) // RECIPE.batch_size
    with pytest.raises(Interrupted, match=f"after 0 of 3 epochs and {steps} of {steps} steps"):
        fit(build(digits), digits, RECIPE, store=Store(tmp_path), interruption=After(steps - 1))
    net = build(digits)
    fitted = fit(net, digits, RECIPE, store=Store(tmp_path))
    assert_equal(net, whole)
    assert [record["lr"] for record in fitted.history] == [record["lr"] for record in expected.history]


def test_what_cannot_be_continued_is_refused(digits, tmp_path):
    with pytest.raises(Interrupted):
        fit(build(digits), digits, RECIPE, store=Store(tmp_path), interruption=After(3))
    with pytest.raises(UserError, match=r"another recipe: lr is 0\.002 there and 0\.001 here"):
        fit(build(digits), digits, replace(RECIPE, lr=1e-3), store=Store(tmp_path))
    for name in (NEWEST, PREVIOUS):
        (tmp_path / name).write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="damaged"):
        fit(build(digits), digits, RECIPE, store=Store(tmp_path))


def test_logs(digits, tmp_path):
    pytest.importorskip("tensorboard")
    with pytest.raises(Interrupted):
        fit(build(digits), digits, RECIPE, store=Store(tmp_path, tensorboard=True), interruption=After(30))
    fit(build(digits), digits, RECIPE, store=Store(tmp_path, tensorboard=True))
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert "validation_accuracy" in records[0]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(digits, tmp_path):
    recipe = replace(RECIPE, lr=0.01, optimizer="sgd", schedule="multistep", milestones=(1,), lr_factor=1e35)
    with pytest.raises(UserError, match=r"the loss became nan after 1 .* last good checkpoint was written after 1"):
        fit(build(digits, recipe), digits, recipe, store=Store(tmp_path, steps=1))
    trainer = Trainer(build(digits, recipe), digits, recipe)
    assert Store(tmp_path).restore(trainer)
    assert all(value.isfinite().all() for value in trainer.net.state_dict().values())


@pytest.mark.parametrize("model", ["SNN", "ANN"])
def test_rates_of_layers(model, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe, digits = Recipe(model="FC16-FC8", epochs=2, T=4), data.load("digits")
    net = recipe.build(digits, model)
    fit(net, digits, recipe, store=Store(tmp_path, tensorboard=True))
    found = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"histograms": 0})
    found.Reload()
    rates = [name for name in found.Tags()["scalars"] if name.startswith("firing_rate/")]
    assert rates == (["firing_rate/fc1", "firing_rate/fc2"] if model == "SNN" else [])
    assert "loss" in found.Tags()["scalars"]
    if model == "SNN":
        assert [event.step for event in found.Scalars("firing_rate/fc1")] == [1, 2]
        assert 0 < found.Scalars("firing_rate/fc2")[1].value < 1
        assert found.Histograms("firing_rates/fc1")[1].histogram_value.num == 16  # one of each neuron
