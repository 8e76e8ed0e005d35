"""Recipes: keys and their checks, overriding, files; and every recipe of the package trains."""

from dataclasses import replace

import pytest
import torch

import tandem_ext as te
from tandem_snn import data
from tandem_snn.data import Dataset, TensorSplit
from tandem_snn.data.catalogue import EVENTS
from tandem_snn.errors import UserError, check_name, extra
from tandem_snn.training import Recipe, Trainer, list_recipes, load_recipe
from tandem_snn.training.recipe import describe


def test_recipes_survive_a_file():
    keys = {"schedule": "multistep", "milestones": (3, 5), "gamma": 2, "T": 1000}
    recipe = Recipe(model="FC32", augment=["shift:2"], options={"eps": 1e-3}, **keys)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    earlier = recipe.to_dict() | {"progressive": False, "percentile": 99.9, "patience": None}
    assert Recipe.from_dict(earlier) == recipe


BAD = {
    "data": ("digit", "did you mean 'digits'"), "model": ("mpl", "unknown model 'mpl': did you mean 'mlp'"),
    "optimizer": ("Adam", "did you mean 'adam'"), "schedule": ("onecycle", "did you mean 'one-cycle'"),
    "precision": ("fp8", "unknown precision"), "gate": ("rely", "did you mean 'relu'"),
    "first_gate": ("resu:30", "first_gate: expected GATE:EPOCHS with a gate of .* and fewer epochs than the 30"),
    "timing": ("windows", "did you mean 'window'"), "encoding": ("poisson", "direct, zero_expand"),
    "T": (65536, "T: expected 1 to 65535"), "epochs": (0, "epochs"),
    "batch_size": (2.5, "batch_size: expected a whole number, got 2.5"),
    "lr": ("fast", "lr: expected a number, got 'fast'"), "width": (float("inf"), "width"),
    "threshold": (-1, "threshold"), "leak": (1.5, "leak"), "v_init": (float("nan"), "v_init"), "gamma": (0, "gamma"),
    "norm": ("yes", "norm: expected true or false"), "momentum": (1, "momentum"),
    "dropout": (1.5, "dropout: expected 0 or more and less than 1, got 1.5"),
    "label_smoothing": (-0.1, "label_smoothing"), "weight_decay": (-1, "weight_decay"),
    "synops_penalty": (-1, "synops_penalty"), "clip_grad_norm": (0, "clip_grad_norm"),
    "milestones": ([5, 3], "milestones: expected rising epochs"),
    "augment": (["flap"], "unknown augmentation 'flap': did you mean 'flip'"),
    "task": ("regresion", "did you mean 'regression'"), "bins": ("times", "did you mean 'time'"),
    "options": ([1], "options: expected a mapping"), "seed": (-1, "seed"),
    "patience": (3, "patience: progressive training, layer by layer, is no longer supported, got 3"),
    "validation": (None, "validation: expected true or false"),
}  # fmt: skip


@pytest.mark.parametrize("key", BAD)
def test_bad_values_are_refused(key):
    value, message = BAD[key]
    with pytest.raises(UserError, match=message):
        Recipe.from_dict({key: value})


def test_unknown_names_suggest_the_nearest(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="unknown recipe key 'epoch': did you mean 'epochs'"):
        Recipe.from_dict({"epoch": 3})
    with pytest.raises(UserError, match="unknown recipe 'fashon-mnist': did you mean 'fashion-mnist'"):
        load_recipe("fashon-mnist")
    for name, near in ("MNIST", "mnist"), ("FashionMNIST", "fashion-mnist"):
        with pytest.raises(UserError, match=f"unknown data set '{name}': did you mean '{near}'"):
            data.load(name)
    with pytest.raises(UserError, match="unknown recipe key 't': did you mean 'T'"):
        Recipe.from_dict({"t": 3})
    with pytest.raises(UserError, match=r"unknown colour 'zzz' \(known: red\)"):
        check_name("colour", "zzz", ["red"])
    with pytest.raises(UserError, match=r'the test needs no_such_module .*pip install "tandem-ext\[all\]"'):
        extra("no_such_module", "the test")
    (tmp_path / "outer_module.py").write_text("import PIL_that_is_not_there.Image")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"the test needs PIL_that_is_not_there \("):
        extra("outer_module", "the test")


def test_settings_override():
    recipe = Recipe().override(["lr=1e-3", "T=4", "norm=false", "gamma=null", "options.eps=1e-3", "model=mlp"])
    assert (recipe.lr, recipe.T, recipe.norm, recipe.gamma) == (1e-3, 4, False, None)
    assert recipe.options == {"eps": 1e-3}
    for setting, message in (("T", "expected key=value"), ("opt.eps=3", "unknown recipe key"), ("T=x", "whole number")):
        with pytest.raises(UserError, match=message):
            recipe.override([setting])


def test_files(tmp_path):
    (tmp_path / "base.yaml").write_text("model: mlp\nlr: 1e-3\n")
    (tmp_path / "mine.yaml").write_text("base: ./base.yaml\nT: 4\n")
    assert load_recipe(tmp_path / "mine.yaml") == Recipe(model="mlp", lr=1e-3, T=4)
    (tmp_path / "t2.yaml").write_text("base: fashion-mnist\nT: 2\n")
    assert load_recipe(tmp_path / "t2.yaml").data == "fashion-mnist"
    for text, message in {
        "base: ./bad.yaml": "refers to itself",
        "T: [": "is not YAML",
        "just words": "expected lines",
        "epoch: 3": "did you mean 'epochs'",
        "base: nowhere": "unknown recipe 'nowhere'",
        "base: [digits]": r"base: expected a recipe's name or path, got \['digits'\]",
        "T: 4\nlr: 1\nT: 8": r"bad\.yaml gives T twice",
        "options: {eps: 1, leak: 1, eps: 2}": "gives eps twice",
        "augment: [{a: 1, a: 2}]": "gives a twice",
        "milestones: [1, 2.5]": r"milestones: expected a list of whole numbers, such as \[10, 20\], got \[1, 2.5\]",
        "augment: flip": r"augment: expected a list of names, such as \[flip\], got 'flip'",
    }.items():
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            load_recipe(tmp_path / "bad.yaml")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_recipe(tmp_path / "absent.yaml")


def test_keys_reach_the_network():
    digits = data.load("digits")
    keys = {"threshold": 0.5, "leak": 0.9, "gate": "clip", "v_init": 0.25, "gamma": 1.5}
    layer = Recipe(model="FC16", options={"eps": 1e-3}, **keys).build(digits).fc1
    found = [getattr(layer, name) for name in ("threshold", "leak", "gate", "v_init")]
    assert found == [0.5, 0.9, "clip", 0.125]  # v_init counts in thresholds
    assert layer.norm.weight[0] == 1.5
    assert (layer.out_features, layer.norm.eps) == (16, 1e-3)
    assert Recipe(model="mlp", norm=False).build(digits).fc1.norm is None
    twin = Recipe(model="mlp", **keys).build(digits, "ANN")
    assert twin(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    window = Recipe(model="8C3-MP2-AP2-FC16", timing="window", T=255).build(digits)
    neurons = [layer for layer in window.modules() if hasattr(layer, "timing")]
    assert {(layer.timing, float(layer.v_init)) for layer in neurons} == {("window", 0.5)}
    with pytest.raises(UserError, match="T: expected 1 to 255 time steps with timing window, got 256"):
        Recipe(T=256, timing="window")
    for impossible in ({"leak": 0.9}, {"gate": "resu"}):
        with pytest.raises(UserError, match=f"model mlp: {min(impossible)}: with timing='window'"):
            Recipe(model="mlp", timing="window", **impossible).build(digits)
    with pytest.raises(UserError, match=r"model mlp: .*epz"):
        Recipe(model="mlp", options={"epz": 1}).build(digits)
    for options, message in (
        ({"eps": "small"}, "eps: expected a number of at least 0"),
        ({"momentum": 2}, "momentum: expected"),
    ):
        with pytest.raises(UserError, match=f"model mlp: {message}"):
            Recipe(model="mlp", options=options).build(digits)


def test_the_encoding_follows_the_data():
    digits = data.load("digits")
    split = data.TensorSplit(te.SpikeTrain(torch.zeros(1, 4, 2, 8, 8, dtype=torch.uint8), 8), torch.zeros(4).long())
    events = replace(digits, name="n-mnist", shape=(2, 8, 8), train=split)
    assert Recipe(model="mlp").build(digits).encoder.mode == "direct"
    assert Recipe(model="mlp").build(events).encoder.mode == "events"
    assert Recipe(model="n-mnist-net", width=0.01).build(digits).encoder.mode == "direct"
    for name, encoding, held in ("digits", "events", digits), ("n-mnist", "zero_expand", events):
        with pytest.raises(UserError, match=f"encoding: '{encoding}' does not fit data set '{name}', which contains"):
            Recipe(model="mlp", encoding=encoding).build(held)


SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "fashion-mnist": (1, 28, 28), "n-mnist": (2, 34, 34)}
COLOUR = (3, 32, 32)
SAMPLES, BATCH, STEPS = 64, 16, 16


def dataset(recipe: Recipe) -> Dataset:
    """Ten patterns, each sample one of them with noise."""
    shape = SHAPES.get(recipe.data, COLOUR)
    targets = torch.arange(SAMPLES) % 10
    patterns = torch.rand(10, *shape)
    if recipe.data in EVENTS:
        spikes = torch.rand(recipe.T, SAMPLES, *shape) < 0.3 * patterns[targets]
        split = TensorSplit(te.SpikeTrain.from_dense(spikes), targets)
    else:
        images = (200 * patterns[targets] + 55 * torch.rand(SAMPLES, *shape)).to(torch.uint8)
        regression = recipe.task == "regression"
        scale, offset = (1 / 255, 0.0) if regression else (1 / 60, -2.0)
        scaling = torch.tensor([[scale], [offset]]).expand(2, shape[0])
        split = TensorSplit(images, None if regression else targets, scaling=scaling)
    classes = images[0].numel() if recipe.task == "regression" else 10
    return Dataset(recipe.data, split, None, split, shape, classes, (), recipe.task)


TWINS = {load_recipe(name).of_twin().digest(): name for name in list_recipes()}
CASES = [(name, "SNN") for name in list_recipes()] + [(name, "ANN") for name in TWINS.values()]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_loss_goes_down(name, kind):
    recipe = load_recipe(name)
    epochs = STEPS * BATCH // SAMPLES
    recipe = replace(
        recipe, batch_size=BATCH, epochs=epochs, schedule="constant", milestones=(), width=0.25 * recipe.width,
        init_from=None, init_gain=1, first_gate=None,
    )  # fmt: skip
    data = dataset(recipe)
    trainer = Trainer(recipe.build(data, kind), data, recipe)
    while not trainer.finished:
        for _ in trainer.epoch():
            pass
        trainer.finish_epoch()
    first, *_, last = (record["loss"] for record in trainer.history)
    assert last < 0.8 * first


@pytest.mark.parametrize("name", list_recipes())
def test_each_says_what_it_is(name):
    assert describe(name).endswith(".")
