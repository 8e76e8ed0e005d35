"""Progressive tandem learning: stages, measured thresholds, what is frozen, resumption within a stage."""

from dataclasses import replace
from functools import partial

import pytest
import test_checkpoints
import torch
from test_checkpoints import After

import tandem_snn.nn as tnn
from tandem_snn.errors import Interrupted, UserError
from tandem_snn.training import Progressive, Recipe, Store, Trainer, compare, fit, load_checkpoint

RECIPE = Recipe(model="FC32-D0.2-FC24-FC16", progressive=True, epochs=8, batch_size=128, lr=5e-3, v_init=0.5)


build = partial(test_checkpoints.build, recipe=RECIPE)


@pytest.fixture(scope="module")
def digits():
    return RECIPE.load()


def weights(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


def take_epoch(trainer):
    for _ in trainer.epoch():
        pass
    return trainer.finish_epoch()


def test_layers_begin_to_spike_one_by_one_and_freeze_behind(digits):
    net = build(digits)
    trainer = Trainer(net, digits, RECIPE)
    names = ("fc1", "fc2", "fc3")
    for stage in range(4):
        assert [net.get_submodule(name).analog for name in names] == [i > stage for i in range(3)]
        assert (trainer.stages.stage, trainer.stages.start) == (stage, 2 * stage)  # 8 epochs, 4 stages
        before = weights(net)
        assert take_epoch(trainer)["stage"] == stage + 1
        for key, value in weights(net).items():
            frozen = any(key.startswith(name) for name in names[:stage])
            constant = frozen or "threshold" in key or "v_init" in key
            assert torch.equal(before[key], value) == constant, (stage, key)
        assert take_epoch(trainer)["stage"] == stage + 1
    assert trainer.finished
    assert not any(layer.analog for layer in trainer.stages.layers)


def test_a_threshold_covers_the_activations_of_the_network_as_it_is(digits):
    net = build(digits)
    recipe = replace(RECIPE, percentile=100)
    stages = Progressive(net, digits, recipe)
    samples = next(digits.train.batches(1000))[0]
    for i, name in enumerate(("fc1", "fc2", "fc3")):
        seen = []
        layer = net.get_submodule(name)
        handle = layer.register_forward_hook(lambda m, x, y, seen=seen: seen.append(y))
        with torch.no_grad():
            net.eval()(samples)
        handle.remove()
        stages.advance(i)
        assert layer.threshold.item() == pytest.approx(seen[0].max().item() / 8, rel=1e-5)
        assert layer.v_init.item() == pytest.approx(0.5 * layer.threshold.item())
    assert "fc3.threshold" in net.state_dict()


def worse_every_time(trainer):
    return lambda split: {"loss": 1.0, "accuracy": 1.0 / (1 + trainer.epochs)}


def test_a_stage_begins_at_the_best_of_the_one_before(digits):
    net = build(digits)
    trainer = Trainer(net, digits, RECIPE)
    trainer.evaluate = worse_every_time(trainer)
    take_epoch(trainer)
    best = weights(net)
    take_epoch(trainer)
    assert trainer.stages.stage == 1
    assert {key for key, value in weights(net).items() if not torch.equal(value, best[key])} == {
        "fc2.threshold", "fc2.v_init",
    }  # fmt: skip
    assert trainer.best is None
    assert not trainer.optimizer.state_dict()["state"]
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert id(net.fc2.weight) in trained
    assert id(net.fc1.weight) not in trained


def test_patience_ends_stages_and_the_training(digits):
    recipe = replace(RECIPE, epochs=60, patience=1)
    trainer = Trainer(build(digits), digits, recipe)
    trainer.evaluate = worse_every_time(trainer)
    while not trainer.finished:
        take_epoch(trainer)
    assert [r["stage"] for r in trainer.history] == [1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("patience", [None, 1])
def test_it_goes_on_bit_for_bit_in_the_middle_of_a_stage(patience, digits, tmp_path):
    recipe = replace(RECIPE, patience=patience)
    whole = build(digits)
    expected = fit(whole, digits, recipe)
    for steps in (4, 9, 13, 11):
        with pytest.raises(Interrupted):
            fit(build(digits), digits, recipe, store=Store(tmp_path), interruption=After(steps))
    net = build(digits)
    fitted = fit(net, digits, recipe, store=Store(tmp_path))
    assert [r["stage"] for r in fitted.history] == [r["stage"] for r in expected.history]
    assert fitted.test == expected.test
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())
    # The thresholds are in the checkpoint: what is loaded answers as what was trained.
    loaded = recipe.build(digits)
    load_checkpoint(tmp_path / "model.safetensors", loaded)
    x = next(digits.test.batches(50))[0]
    assert torch.equal(loaded.eval()(x), net.eval()(x))


def test_from_the_twin_it_keeps_most_of_its_accuracy(digits):
    result = compare(replace(RECIPE, init_from="twin", epochs=12, patience=3, T=16), digits)
    assert result.test("SNN") > result.test("ANN") - 0.04
    assert result.runs[0].fitted["ANN"].history[0].keys().isdisjoint({"stage"})


def test_residual_blocks(digits):
    """A shortcut works as the currents into its block's neurons do, and freezes with them."""
    recipe = replace(RECIPE, model="resnet18-cifar", width=0.05, epochs=18)
    net = build(digits, recipe=recipe)
    stages = Progressive(net, digits, recipe)
    assert len(stages.layers) == 17
    x, targets = next(digits.train.batches(16))
    for stage in range(18):
        stages.advance(stage)
        net.train()
        stages.keep_frozen()
        frozen = {key for key, value in net.named_parameters() if not value.requires_grad}
        torch.nn.functional.cross_entropy(net(x), targets).backward()
    trained = {key for key, _ in net.named_parameters()} - frozen
    assert trained == {"readout.weight", "readout.bias"}
    assert not any(m.analog for m in net.modules() if isinstance(m, tnn.SpikingLayer))


def test_what_cannot_be(digits):
    with pytest.raises(UserError, match=r"expected 4 or more, got 3: .* stage for each of 3 layers"):
        Trainer(build(digits), digits, replace(RECIPE, epochs=3))
    for values, message in (
        ({"patience": 2}, "patience: needs progressive"),
        ({"progressive": True, "patience": 2, "validation": False}, "a validation split"),
        ({"progressive": True, "patience": 0}, "patience: expected a positive"),
        ({"progressive": True, "percentile": 0}, "percentile: expected more than 0"),
        ({"progressive": True, "init_from": "twin", "init_gain": 2}, "init_gain, ann_units: progressive"),
    ):
        with pytest.raises(UserError, match=message):
            Recipe(**values)
