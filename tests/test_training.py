"""The training loop, tasks, optimizers, and the comparison with the ANN twin."""

from dataclasses import replace

import pytest
import torch

from tandem_snn import data, machine
from tandem_snn.cli.job import run
from tandem_snn.errors import UserError
from tandem_snn.measure import firing_rates
from tandem_snn.training import (
    Classification,
    Recipe,
    Regression,
    Store,
    Trainer,
    compare,
    evaluate,
    fit,
    learning_rate,
    make_optimizer,
    make_task,
)
from tandem_snn.training.measures import step_times

SMALL = Recipe(validation=False, model="mlp", epochs=2, width=0.25)


def build(recipe, data, kind="SNN"):
    torch.manual_seed(recipe.seed)
    return recipe.build(data, kind)


def test_a_seed_determines_the_result(digits):
    nets, fits = [], []
    for _ in range(2):
        torch.manual_seed(len(nets))  # what happened before does not matter
        nets.append(build(SMALL, digits))
        torch.rand(len(nets))
        fits.append(fit(nets[-1], digits, SMALL))
    assert all(torch.equal(value, nets[1].state_dict()[key]) for key, value in nets[0].state_dict().items())
    assert fits[0].test == fits[1].test
    history = fits[0].history
    assert [record["epoch"] for record in history] == [1, 2]
    assert history[1]["loss"] < history[0]["loss"]
    other = build(SMALL.with_seed(1), digits)
    assert not torch.equal(other.fc1.weight, build(SMALL, digits).fc1.weight)


def test_the_best_epoch_by_validation_is_kept_and_tested_once(digits, monkeypatch):
    split = data.load("digits")
    recipe = replace(SMALL, validation=True, epochs=4, lr=0.05, schedule="constant")
    tested = []
    batches = type(split.test).batches

    def watch(self, *args, **kwargs):
        if self is split.test:
            tested.append(1)
        return batches(self, *args, **kwargs)

    monkeypatch.setattr(type(split.test), "batches", watch)
    net = build(recipe, split)
    fitted = fit(net, split, recipe)
    assert len(tested) == 1
    accuracies = [record["validation_accuracy"] for record in fitted.history]
    assert fitted.epoch == max(range(1, 5), key=lambda epoch: (accuracies[epoch - 1], epoch))
    again = evaluate(net, split.validation, Classification())
    assert again["accuracy"] == accuracies[fitted.epoch - 1]


@pytest.mark.parametrize("kind", ["SNN", "ANN"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(digits, kind, precision):
    recipe = replace(SMALL, precision=precision)
    net = build(recipe, digits, kind)
    fitted = fit(net, digits, recipe)
    assert fitted.test["accuracy"] > 0.8
    assert net.fc1.weight.dtype == torch.float32


@pytest.mark.parametrize("validation", [False, True])
def test_weights_that_are_not_finite_after_the_last_step_are_no_result(validation, tmp_path):
    recipe = replace(SMALL, validation=validation, epochs=1, batch_size=10_000, lr=1e300)
    images = recipe.load()
    with pytest.raises(UserError, match=r"weights became infinite or NaN after 0 of 1 epochs and 1 of 1 steps"):
        fit(build(recipe, images), images, recipe, store=Store(tmp_path))
    assert not any(tmp_path.iterdir())


def test_an_epoch_is_finished_after_all_its_steps(digits):
    trainer = Trainer(build(SMALL, digits), digits, SMALL)
    next(trainer.epoch())
    with pytest.raises(RuntimeError, match="the epoch is not finished after 0 of 2 epochs and 1 of 21 steps"):
        trainer.finish_epoch()
    for _ in trainer.epoch():
        pass
    assert trainer.finish_epoch()["step"] == 21


def test_what_cannot_be_trained_or_measured(digits):
    nothing = replace(digits, train=digits.train.subset(torch.arange(0)))
    with pytest.raises(UserError, match="no training samples"):
        Trainer(build(SMALL, digits), nothing, SMALL)
    with pytest.raises(UserError, match="unknown precision 'fp8'"):
        evaluate(build(SMALL, digits), digits.test, make_task("classification"), precision="fp8")


def test_only_the_command_line_sets_the_allocator(digits, monkeypatch, tmp_path):
    """It is the user's process in which ``fit`` trains."""
    calls = []
    monkeypatch.setattr(machine, "_option", lambda *setting: calls.append(setting))
    recipe = replace(SMALL, epochs=1)
    fit(build(recipe, digits), digits, recipe)
    assert not calls
    run(recipe, tmp_path / "run", "test", twin=False, seconds=1e6)
    assert len(calls) == 4


def test_gradients_are_clipped(digits):
    recipe = replace(SMALL, clip_grad_norm=1e-3)
    trainer = Trainer(build(recipe, digits), digits, recipe)
    next(trainer.epoch())
    norms = [p.grad.norm() for p in trainer.net.parameters()]
    assert torch.stack(norms).norm() == pytest.approx(1e-3, rel=1e-3)


def test_a_synops_penalty_saves_spikes(digits):
    rates = []
    for weight in (0.0, 30.0):
        recipe = replace(SMALL, synops_penalty=weight, lr=0.02)
        net = build(recipe, digits)
        fit(net, digits, recipe)
        rates.append(sum(firing_rates(net, next(digits.test.batches(100))[0]).values()))
    assert rates[1] < 0.8 * rates[0]
    fit(build(recipe, digits, "ANN"), digits, recipe)  # without spikes there is nothing to penalise


def test_the_first_epochs_may_have_another_gate():
    """An epoch with that gate is never the best: the network with its weights would have another gate."""
    recipe = Recipe(model="mlp", epochs=3, width=0.25, gate="clip", first_gate="resu:2")
    digits = recipe.load()
    net, seen = build(recipe, digits), {}
    fitted = fit(net, digits, recipe, on_step=lambda trainer: seen.setdefault(trainer.epochs, trainer.net.fc1.gate))
    assert seen == {0: "resu", 1: "resu", 2: "clip"}
    assert fitted.epoch == 3
    with pytest.raises(UserError, match="first_gate: has an effect only on spiking layers"):
        fit(build(recipe, digits, "ANN"), digits, recipe)
    with pytest.raises(UserError, match=r"first_gate: .*window"):
        fit(build(replace(recipe, timing="window"), digits), digits, recipe)


def test_a_gate_that_is_set_during_training_stays(digits):
    net = build(SMALL, digits)

    def on_step(trainer):
        if trainer.step == 1:
            net.fc1.gate = "clip"

    fit(net, digits, SMALL, on_step=on_step)
    assert net.fc1.gate == "clip"


def test_regression():
    recipe = replace(SMALL, task="regression", epochs=4)
    images = recipe.load()
    fitted = fit(build(recipe, images), images, recipe)
    assert fitted.test["mse"] == pytest.approx(fitted.test["loss"])
    assert fitted.test["mse"] < 0.5 * fitted.history[0]["mse"]
    assert make_task("regression").higher_is_better is False


def test_tasks():
    logits, classes = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    assert Classification().total(logits, classes) == 1
    expected = torch.nn.functional.cross_entropy(logits, classes, label_smoothing=0.1)
    assert Classification(label_smoothing=0.1).loss(logits, classes) == expected
    assert Regression().total(torch.full((3, 4), 2.0), torch.zeros(3, 4)) == 12
    with pytest.raises(UserError, match="unknown task 'regresion': did you mean 'regression'"):
        make_task("regresion")


def test_learning_rates():
    def rates(**keys):
        recipe = Recipe(epochs=10, lr=1.0, **keys)
        return [learning_rate(recipe, step, 10) for step in range(100)]

    one_cycle = rates()
    assert one_cycle[0] == pytest.approx(0.04)
    assert max(one_cycle) == one_cycle[10] == 1
    assert one_cycle[99] < 1e-3
    cosine = rates(schedule="cosine")
    assert (cosine[0], cosine[50]) == (1, pytest.approx(0.5))
    assert cosine == sorted(cosine, reverse=True)
    steps = rates(schedule="multistep", milestones=(2, 5), lr_factor=0.5)
    assert (steps[19], steps[20], steps[49], steps[50]) == (1, 0.5, 0.5, 0.25)
    assert set(rates(schedule="constant")) == {1}


@pytest.mark.parametrize("key", [{"momentum": 0.5}, {"milestones": (1,)}, {"lr_factor": 0.5}], ids=str)
def test_a_key_without_effect_is_refused(key, digits):
    recipe = replace(SMALL, epochs=2, **key)
    with pytest.raises(
        UserError, match=f"{min(key)}: has an effect only if (optimizer is sgd, got adam|schedule is mu)"
    ):
        Trainer(build(recipe, digits), digits, recipe)
    recipe = replace(SMALL, task="regression", label_smoothing=0.1)
    data = recipe.load()
    with pytest.raises(UserError, match="label_smoothing: has an effect only on classification, got regression"):
        Trainer(build(recipe, data), data, recipe)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimizers(name, digits):
    recipe = replace(SMALL, optimizer=name, weight_decay=0.1, momentum=0.5)
    net = build(recipe, digits)
    optimizer = make_optimizer(net, recipe)
    assert type(optimizer).__name__.lower() == name
    decayed = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decayed[net.fc1.weight] == 0.1
    assert decayed[net.fc1.norm.weight] == 0
    assert len(decayed) == len(list(net.parameters()))


def test_step_times_leave_the_networks_alone(digits):
    nets = [build(SMALL, digits, kind) for kind in ("SNN", "ANN")]
    before = {key: value.clone() for key, value in nets[0].state_dict().items()}
    times = step_times(nets, *next(digits.train.batches(32)), rounds=3, warm_up=1)
    assert [len(record) for record in times] == [3, 3]
    assert min(map(min, times)) > 0
    assert all(torch.equal(before[key], value) for key, value in nets[0].state_dict().items())


def test_own_data_are_compared(tmp_path):
    inputs = torch.rand(60, 3, 8, 8)
    for targets, task in (inputs.mean((2, 3)), "regression"), (inputs[:, 0, 0, 0].round().long(), "classification"):
        split = data.TensorSplit(inputs, targets)
        classes = 3 if task == "regression" else 2
        own = data.Dataset("own", split, None, split, (3, 8, 8), classes, ("a", "b")[: 2 * (classes == 2)], task)
        result = compare(replace(SMALL, validation=True, epochs=1, T=4), own, folder=tmp_path / task)
        assert result.samples == {"train": 60, "validation": 0, "test": 60}
        assert "pictures" not in result.summary()


@pytest.mark.parametrize("keys", [{"gate": "resu"}, {"synops_penalty": 0.1}])
def test_a_summary_says_whether_a_network_streams(keys, digits):
    """And has nothing of a twin that was not trained."""
    streams = "gate" not in keys
    summary = compare(replace(SMALL, epochs=1, **keys), digits, twin=not streams).summary()
    why = summary.get("does_not_stream", "")
    assert why.startswith('gate: a network with the gate "resu" needs the whole window') == (not streams)
    assert bool(summary.get("early_exit")) == streams
    assert bool([key for key in summary if key.startswith("ann_") or key == "step_time_ratio"]) == (not streams)
