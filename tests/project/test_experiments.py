"""Experiments: recipes and their options, runs that end whatever happens to them, what a run writes."""

import base64
import json
import os
import re
import signal
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

import child
import numpy as np
import pytest
import torch
from torch import nn

import converted
import recipe as recipes
import tandem_snn as ts
import tandem_snn.nn as tnn
import train as script
from architectures import create
from data import augmented, load
from measures import packed
from recipe import Recipe
from training import Task, World, evaluate, make_optimizer, train

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "python/experiments/train.py"
RESULTS = ROOT / "docs/results/training"
# Dropout and augmentation, so that the random numbers of the steps matter.
RECIPE = Recipe(model="FC32-D0.2-FC32", augment=("shift:1",), epochs=3, seed=5)
assert_same = partial(torch.testing.assert_close, rtol=0, atol=0)
SMALL = ("--model", "FC16", "--epochs", "2", "--init-from", "twin", "--seeds", "2")
SEEDS = ("seed-0/snn.pt", "seed-0/ann.pt", "seed-1/ann-continued.pt", "seed-1/snn.tandem")
NAMES = ("summary.json", "picture.png", *SEEDS)


def main(*arguments):
    return script.main([*map(str, arguments)])


@pytest.fixture
def refused(capsys):
    """Runs the script, which must refuse in one line that has the given words."""

    def run(arguments, words):
        capsys.readouterr()
        assert main(*arguments) == 2
        error = capsys.readouterr().err
        assert re.fullmatch(r"train\.py: [^\n]*\n", error)
        assert words in error

    return run


@pytest.mark.parametrize("name", recipes.describe())
def test_every_recipe_is_one(name):
    keys = recipes.load(name)
    assert keys.pop("about")
    recipe = Recipe(**keys)
    augmented(torch.zeros(2, 1, 8, 8), recipe.augment, torch.rand(2, 3))
    data = load(Recipe(task=recipe.task), None)
    shape = (2, 34, 34) if recipe.data == "n-mnist" else (3, 32, 32) if "cifar" in recipe.data else (1, 28, 28)
    with torch.device("meta"):
        net = script.build(recipe, replace(data, shape=shape), "SNN")
    assert {layer.timing for layer in net.modules() if isinstance(layer, tnn.SpikingLayer)} == {recipe.timing}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_results_are_of_recipes(path):
    """What a recipe says is what made the result of its name."""
    there = json.loads(path.read_text())["recipe"]
    here = asdict(Recipe(**{key: value for key, value in recipes.load(path.stem).items() if key != "about"}))
    if "init_gain" in there:  # made before layers had the ANN's units
        there["gate"] = there["gate"] or "relu"
        there["threshold"] = there["threshold"] or 1 / there["init_gain"]
    remade = {"fashion-mnist-from-scratch": {"twin"}}  # its twins are of an earlier run, see ann_origin
    for name in here.keys() & there.keys() - {"seeds"} - remade.get(path.stem, set()):
        ours, theirs = here[name], there[name]
        ours = list(ours) if isinstance(ours, tuple) else ours
        if name == "threshold" and ours is None:  # then the default, which there was none of
            continue
        default = next(one.default for one in fields(Recipe) if one.name == name)
        if name == "v_init" and here["timing"] == "window":
            default = 0.5
        assert ours == theirs or (theirs is None and ours == default) or (ours is None and theirs == default), name


def test_keys_are_options(monkeypatch, tmp_path):
    """Of every type; they replace the recipe's own, which come after those of its base."""
    made = []
    monkeypatch.setattr(script, "run", lambda recipe, *_: made.append(recipe))
    path = tmp_path / "own.yaml"
    path.write_text("base: fashion-mnist-window\nT: 2\nlr: 2e-4\n")
    assert main(path) == 0
    assert (made[-1].timing, made[-1].T, made[-1].lr, made[-1].augment) == ("window", 2, 2e-4, ("flip", "shift:2"))
    options = "--T 4 --no-validation --augment flip shift:1 --leak 0.5 --timing step --init-from none --weight-bits 3"
    assert main(path, *options.split()) == 0
    keys = {"T": 4, "validation": False, "augment": ("flip", "shift:1"), "leak": 0.5, "timing": "step"}
    assert made[-1] == replace(made[-2], **keys, init_from=None, weight_bits=3)
    assert main(path, "--augment") == 0
    assert made[-1].augment == ()


@pytest.mark.parametrize(("arguments", "words"), [
    (["digit"], "unknown recipe 'digit': expected a .yaml file or one of digits, mnist, "),
    (["nowhere.yaml"], "recipe nowhere.yaml cannot be read"), (["--T", "0"], "T: expected 1 or more, got 0"),
    (["--T", "4.5"], "T: expected int, got '4.5'"), (["--gate", "none"], "gate: expected one of relu, clip"),
    (["--lr", "fast"], "lr: expected float, got 'fast'"), (["--init-from", "nn"], "init_from: expected one of twin"),
    (["--draw-T", "few"], "draw_T: expected each int, got"),
    (["--layer-T", "conv9:4"], "layer_T: expected a layer of conv1, conv2, conv3, fc1 and its T, got 'conv9:4'"),
    (["--layer-T", "conv1:16", "--timing", "step", "--encoding", "direct"], "T: with timing='step'"),
    (["--layer-T", "fc1:4", "fc1:8"], "layer_T: expected one T for each layer, got fc1:4, fc1:8"),
    (["--width", "0"], "width: expected 0.001 or more"), (["--softmax"], "softmax: model cnn has no transformers"),
    (["--draw-T", "4", "8", "--threshold", "0.5"], "threshold: with draw_T it is that of each T"),
    (["--timing", "step"], "with timing window: expected encoding direct"),
    (["--distill", "2"], "distill: expected 0 to 1"), (["--weight-decay", "-1"], "weight_decay: expected 0 or more"),
    (["--model", "FC"], "unknown model 'FC'"), (["--weight-bits", "9"], "weight_bits"), (["--leak", "2"], "leak"),
    (["--device", "abacus"], "--device: 'abacus' cannot be used"), (["mnist"], "data set 'mnist' cannot be read"),
    (["--augment", "turn"], "augment: expected flip, shift or shift:PIXELS, got 'turn'"),
    # content of a file
    ("- 1", "expected lines `key: value`"), ("T: [", "cannot be read"), ("t: 4", "unknown key 't'"),
    ("validation: 1", "validation: expected bool, got 1"), ("augment: flip", "augment: expected each str"),
    ("base: digit", "unknown recipe 'digit'"), ("T: null", "T: expected int, got None"),
])  # fmt: skip
def test_what_is_wrong_is_one_line(arguments, words, refused, tmp_path):
    if isinstance(arguments, str):
        (tmp_path / "own.yaml").write_text(arguments)
        arguments = [tmp_path / "own.yaml"]
    refused([*arguments, "--data-dir", tmp_path, "--out", tmp_path / "run"], words)


def ended(recipe, path, stop=None):
    """The weights after training with a checkpoint at ``path``; None if it was stopped at a step."""

    def check(step, _):
        if step == stop:
            raise KeyboardInterrupt

    data = load(recipe, None)
    torch.manual_seed(recipe.seed)
    net = script.build(recipe, data, "SNN")
    try:
        result = train(net, data, recipe, recipe.seed, path, World(), check)
    except KeyboardInterrupt:
        return None
    assert_same(dict(net.state_dict()), result["weights"])
    return result["weights"]


@pytest.mark.parametrize("variant", [
    {}, {"optimizer": "sgd", "lr": 0.05, "timing": "window", "gate": "relu"},
    {"precision": "bf16", "synops_penalty": 0.1, "schedule": "constant"},
    {"timing": "window", "draw_T": ("2", "16"), "layer_T": ("fc1:16",)},
    {"validation": False, "learn_threshold": "channel", "weight_decay": 0.1},
])  # fmt: skip
def test_a_run_goes_on_bit_for_bit(variant, tmp_path):
    recipe = replace(RECIPE, **variant)
    whole = ended(recipe, tmp_path / "whole.pt")
    steps = (1234 if recipe.validation else 1347) // 64
    for stop in 3, 2 * steps, 2 * steps + 1, 3 * steps - 1:
        assert ended(recipe, tmp_path / "snn.pt", stop) is None
    assert_same(ended(recipe, tmp_path / "snn.pt"), whole)
    assert_same(ended(recipe, tmp_path / "snn.pt"), whole)  # of a finished network


def test_checkpoints_that_cannot_be_written_or_do_not_fit(tmp_path, monkeypatch):
    path = tmp_path / "snn.pt"
    assert ended(RECIPE, path, 25) is None
    content = path.read_bytes()
    with pytest.raises(ValueError, match=r"another recipe: T is 8 there and 4 here; choose another folder with --out"):
        ended(replace(RECIPE, T=4), path)
    for damaged in content[:-200], b"", bytes(len(content)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"snn\.pt is damaged: delete it"):
            ended(RECIPE, path)
    path.write_bytes(content)
    monkeypatch.setattr(os, "fsync", lambda _: exec("raise OSError(28, 'No space left on device')"))
    with pytest.raises(OSError, match="No space left"):
        ended(RECIPE, path)
    assert path.read_bytes() == content
    monkeypatch.undo()
    assert_same(ended(RECIPE, path), ended(RECIPE, tmp_path / "whole.pt"))


def test_weights_alone_decay():
    """Without a gradient, by lr times the decay; not batch norm, biases and thresholds."""
    recipe = Recipe(model="8C3-FC8", learn_threshold="channel", weight_decay=0.5, lr=0.125)
    for optimizer in "adam", "sgd":
        net = create(tnn, recipe.model, (1, 8, 8), 10, learn_threshold="channel")
        before = {name: p.clone() for name, p in net.named_parameters()}
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        make_optimizer(net, replace(recipe, optimizer=optimizer)).step()
        for name, p in net.named_parameters():
            assert_same(p, before[name] * (1 - 0.125 * 0.5) if p.dim() > 1 else before[name])


def test_the_loss_is_distilled():
    torch.manual_seed(0)
    output, teacher = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.randn(5, 4, dtype=torch.float64)
    target, task = torch.arange(5) % 4, Task(Recipe(distill=0.25, temperature=3))
    p, q = (logits.div(3).softmax(1) for logits in (teacher, output))
    expected = 0.75 * nn.functional.cross_entropy(output, target) + 0.25 * 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(task.loss(output, target, teacher), expected)
    task = Task(Recipe(distill=1))
    (grad,) = torch.autograd.grad(task.loss(output, target, output.detach()), output)
    assert grad.abs().max() < 1e-15


@pytest.mark.parametrize("start", [None, "twin"])
def test_the_control_is_taught_by_the_twin_too(start, digits, monkeypatch):
    """It starts as the spiking network does: from the twin, or from the weights that the twin started from."""
    seen = []

    def fake(net, *arguments):
        seen.append((net.readout.weight.detach().clone(), arguments[-1]))
        nn.init.ones_(net.readout.weight)  # of training
        return {"weights": net.state_dict()}

    monkeypatch.setattr(script, "train", fake)
    recipe = Recipe(model="FC8", init_from=start, distill=0.5)
    nets, _ = script.train_seed(0, recipe, digits, Path("nowhere"), "cpu", World(), lambda *_: None, False)
    assert list(nets) == ["ANN", "SNN", script.CONTINUED]
    assert [teacher for _, teacher in seen] == [None, nets["ANN"], nets["ANN"]]
    for weight, _ in seen[1:]:
        assert_same(weight, seen[0][0] if start is None else torch.ones_like(weight))


def test_twins_of_a_run_are_converted(tmp_path):
    run, out = tmp_path / "run", tmp_path / "converted.json"
    assert main("--model", "FC16", "--epochs", "4", "--seeds", "2", "--out", run) == 0
    converted.main([str(run), "--T", "4", "64", "--seeds", "1", "--out", str(out)])
    (found,) = json.loads(out.read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert (found["recipe"], found["T"], found["seeds"]) == ("run", 8, 2)
    assert found["synops_ratio"] == summary["synops_ratio"]
    few, many = (found["converted"][T] for T in ("4", "64"))
    twin = summary["per_seed"][0]["ann_test_accuracy"]
    assert many["to_ann"] == pytest.approx(many["test_accuracy"] - twin, abs=1e-3)
    assert abs(many["to_ann"]) < 3
    assert few["synops_ratio"] < many["synops_ratio"]


def test_one_network_for_all_T(tmp_path):
    arguments = ["--model", "FC32", "--epochs", 2, "--no-twin", "--T", 4, "--draw-T", 2, 4, "--timing", "window"]
    assert main(*arguments, "--seeds", 1, "--out", tmp_path) == 0
    found = json.loads((tmp_path / "summary.json").read_text())
    (one,) = found["per_seed"]
    assert one["test_accuracy_at_T"].keys() == {"2", "4"}
    assert one["test_accuracy_at_T"]["4"] == one["test_accuracy"] == found["test_accuracy"]


def test_an_infinite_loss_is_said():
    with pytest.raises(ValueError, match=r"the loss became .* in epoch 1: try a smaller learning rate"):
        ended(replace(RECIPE, lr=1e37, optimizer="sgd", schedule="constant", norm=False), Path("nowhere.pt"))
    assert not Path("nowhere.pt").exists()


def test_the_kept_weights_are_the_best_on_the_validation_split(tmp_path):
    """Of equals the later; without a validation split they are the last."""
    data, recipe, path = load(RECIPE, None), replace(RECIPE, epochs=8, lr=0.02), tmp_path / "snn.pt"
    ended(replace(recipe, validation=False), tmp_path / "last.pt")
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == 8
    net = script.build(recipe, data, "SNN")
    net.load_state_dict(ended(recipe, path))
    found = torch.load(path, weights_only=True)
    values = [record["validation_accuracy"] for record in found["history"]]
    assert found["epoch"] == max(range(8), key=lambda i: (values[i], i)) + 1
    assert evaluate(net, data.validation, recipe).mean().item() == max(values)


def test_mixed_precision_is_measured_in_float32():
    """As the frozen network computes: the accuracy of a summary is that of its file."""
    low = replace(RECIPE, task="regression", precision="bf16")
    data = load(low, None)
    torch.manual_seed(0)
    net = script.build(low, data, "SNN")
    assert_same(evaluate(net, data.test, low), evaluate(net, data.test, replace(low, precision="fp32")))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert main(*SMALL, "--tensorboard", "--out", folder) == 0
    return folder


def test_a_run_writes_what_it_found(run):
    """The control starts from the twin, with its schedule from the beginning; samples are the same."""
    assert all((run / name).stat().st_size for name in NAMES)
    assert list((run / "seed-1/tensorboard/snn").iterdir())
    summary = json.loads((run / "summary.json").read_text())
    before = json.loads((RESULTS / "fashion-mnist.json").read_text())
    assert before.keys() - summary.keys() <= {"results"}  # names are those of the results that are there
    assert summary["seeds"] == [0, 1]
    assert summary["recipe"]["init_from"] == "twin"
    assert summary["commit"]
    assert summary["machine"]["cores"]
    data = load(Recipe(encoding="pixels", timing="window", validation=False), None)
    targets = data.test.targets
    for prefix, name in ("", "snn"), ("ann_", "ann"), ("ann_continued_", "ann-continued"):
        seeds = [one[f"{prefix}test_accuracy"] for one in summary["per_seed"]]
        assert summary[f"{prefix}test_accuracy"] == pytest.approx(sum(seeds) / 2, abs=1e-3)
        for one in summary["per_seed"]:
            bits = np.frombuffer(base64.b64decode(one[f"{prefix}right"]), np.uint8)
            right = np.unpackbits(bits, count=len(targets))
            assert 100 * right.mean() == pytest.approx(one[f"{prefix}test_accuracy"], abs=1e-4)
            assert (run / f"seed-{one['seed']}/{name}.pt").exists()
    for name in "step_time_ratio", "synops_ratio", "peak_memory", "ann_peak_memory":
        assert summary[name] > 0
    twin, control, net = (torch.load(run / f"seed-0/{name}.pt", weights_only=True)
                          for name in ("ann", "ann-continued", "snn"))  # fmt: skip
    assert [one["lr"] for one in twin["history"]] == [one["lr"] for one in control["history"]]
    assert control["history"][0]["loss"] < twin["history"][-1]["loss"]
    assert net["history"][0]["loss"] < twin["history"][0]["loss"]
    weights = torch.load(run / "seed-1/snn.pt", weights_only=True)["weights"]
    net = create(tnn, "FC16", (1, 8, 8), 10, 8, timing="window", gate="clip").eval()
    net.encoder = tnn.Encoder(8, "pixels", mean=data.pixels[0], std=data.pixels[1])
    net.load_state_dict(weights)
    x, y = next(data.test.batches(450))
    right = json.loads((run / "summary.json").read_text())["per_seed"][1]["right"]
    with torch.no_grad():
        assert torch.equal(ts.load(run / "seed-1/snn.tandem")(x), net(x))
        assert packed(net(x).argmax(1) == y) == right


def test_a_finished_run_is_shown_and_never_overwritten(run, refused, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    before = {name: ((run / name).read_bytes(), (run / name).stat().st_mtime_ns) for name in NAMES}
    assert main(*SMALL, "--out", run) == 0
    shown = capsys.readouterr().out
    for words in ("digits, FC16, T=8, mean of 2 seeds", "test accuracy", "the twin, trained on", "peak memory",
                  "operations at inference", "fc1", "early exit, first seed", "finished before"):  # fmt: skip
        assert words in shown
    refused([*SMALL, "--T", "4", "--out", run], "holds a finished run of another recipe: choose another folder")
    assert before == {name: ((run / name).read_bytes(), (run / name).stat().st_mtime_ns) for name in NAMES}


def test_images_are_reconstructed(tmp_path):
    options = "--task regression --encoding direct --model FC16 --epochs 1"
    assert main(*options.split(), "--out", tmp_path) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert 0 < summary["test_mse"] < 0.3
    assert summary["test_mse_over_time"][-1] == pytest.approx(summary["test_mse"], abs=1e-6)  # at rest
    assert "right" not in summary["per_seed"][0]


def test_killed_at_any_moment_it_goes_on_bit_for_bit(tmp_path):
    """Processes, each killed after so many changes of files: what is on disk between two of them, a next run finds."""
    program = f"""
import os, signal, sys
sys.path[:0] = [{str(SCRIPT.parent)!r}]
import train
folder, calls, number = sys.argv[sys.argv.index("--out") + 1], [], float(os.environ["DIES"])
def watch(event, arguments):
    if event in ("open", "os.rename", "os.mkdir") and str(arguments[0]).startswith(folder):
        calls.append(event)
        if len(calls) > number:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
sys.exit(train.main(sys.argv[1:]))
"""

    def run(folder, dies):
        options = ("--model", "FC32-D0.1", "--epochs", 6, "--no-twin", "--seeds", 1, "--out", tmp_path / folder)
        process = child.start("-c", program, *options, OMP_NUM_THREADS="1", DIES=dies)
        _, error = process.communicate()
        assert process.returncode == (0 if dies == "inf" else -signal.SIGKILL), error
        assert (tmp_path / folder / "summary.json").exists() == (dies == "inf")

    run("whole", "inf")
    for dies in "4", "7", "12", "inf":
        run("killed", dies)
    assert_same(*(torch.load(tmp_path / name / "seed-0/snn.pt")["weights"] for name in ("killed", "whole")))
    ours, theirs = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("killed", "whole"))
    assert ours["per_seed"] == theirs["per_seed"]


def test_an_interruption_is_one_line(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "train", interrupted)
    assert main("--out", tmp_path) == 130
    error = capsys.readouterr().err
    assert error == "train.py: interrupted; the same command resumes from the last whole epoch\n"
