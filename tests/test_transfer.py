"""Starting a spiking network from a trained one: what its weights become, and what the network then does."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tandem_snn import create_model, create_twin, to_ann
from tandem_snn.errors import UserError
from tandem_snn.training import Recipe, compare, fit, save_checkpoint, start_from
from tandem_snn.training.transfer import start_from_checkpoint

OPTIONS = {"shape": (3, 8, 8), "classes": 10, "T": 16, "width": 0.2}


def trained(name, **options):
    """An ANN whose batch norms have seen data and have parameters of their own."""
    torch.manual_seed(2)
    twin = create_twin(name, **{**OPTIONS, **options})
    with torch.no_grad():
        for module in twin.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    for _ in range(40):
        twin(torch.randn(32, 3, 8, 8))
    return twin.eval()


@pytest.mark.parametrize("gain", [1.0, 3.0])
@pytest.mark.parametrize(("name", "options"), [
    ("cnn", {}), ("resnet18-cifar", {}), ("8C3-MP2-8C3-AP2-FC16", {"encoding": "zero_expand"}),
    ("cnn", {"norm": False}), ("cnn", {"threshold": 2.0}), ("cnn", {"learn_threshold": "channel", "threshold": 0.5}),
    ("cnn", {"ann_units": True}),
])  # fmt: skip
def test_without_spikes_it_is_the_trained_network(name, options, gain):
    """With real numbers in the place of counts, every activation is g times the twin's, and the answer is the same."""
    twin, net = trained(name, norm=options.get("norm", True)), create_model(name, **{**OPTIONS, **options})
    before = {key: value.clone() for key, value in net.state_dict().items() if "threshold" in key}
    if "ann_units" in options and gain != 1:
        with pytest.raises(UserError, match=r"expected 1 for a network in the units of its ANN, .*, got 3"):
            start_from(net, twin.state_dict(), gain)
        return
    start_from(net, twin.state_dict(), gain)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(to_ann(net.eval())(x), twin(x), rtol=1e-3, atol=1e-3)


def test_units_of_the_ann_are_kept_at_any_threshold():
    torch.manual_seed(3)
    options = {**OPTIONS, "T": 255, "ann_units": True, "v_init": 0.5}
    net, twin = create_model("cnn", **options), create_twin("cnn", **options)
    x = torch.randn(16, 3, 8, 8)
    for _ in range(30):
        twin(x)
    net.load_state_dict(twin.state_dict(), strict=False)
    assert {key.rsplit(".", 1)[-1] for key in net.state_dict().keys() - twin.state_dict().keys()} == {
        "threshold", "v_init",
    }  # fmt: skip
    answer, expected = net.eval()(x), twin.eval()(x)
    assert nn.functional.cosine_similarity(answer, expected).min() > 0.99


def test_gain_1_leaves_the_weights_alone():
    twin, net = trained("cnn"), create_model("cnn", **OPTIONS)
    start_from(net, twin.state_dict())
    theirs, ours = twin.state_dict(), net.state_dict()
    for key in theirs:
        k = OPTIONS["T"] if key.startswith("conv1") else 1
        factor = {"running_mean": k, "running_var": k * k}.get(key.rpartition(".")[2], 1)
        assert torch.equal(ours[key], theirs[key] * factor), key


def test_many_steps_answer_as_the_trained_network():
    twin, net = trained("cnn"), create_model("cnn", **{**OPTIONS, "T": 255, "v_init": 0.5})
    start_from(net, twin.state_dict(), 40.0)
    x = torch.randn(32, 3, 8, 8)
    assert nn.functional.cosine_similarity(net.eval()(x), twin(x)).min() > 0.98


SMALL = Recipe(model="FC64-FC32", epochs=1)


def test_the_twin_is_trained_on_beside_a_network_that_started_from_it(tmp_path):
    """The control has the twin's weights at its start, the schedule from its beginning, and the same samples."""
    data = SMALL.load()
    recipe = replace(SMALL, init_from="twin", init_gain=2, T=4, synops_penalty=0.1, seeds=2)
    start = {}

    def on_step(kind, seed, trainer):
        if trainer.step == 0:
            start[kind, seed] = {key: value.clone() for key, value in trainer.net.state_dict().items()}

    run = compare(recipe, data, folder=tmp_path, on_step=on_step)
    assert run.kinds == ["SNN", "ANN", "ANN continued"]
    for seed, one in enumerate(run.runs):
        twin, continued = (one.nets[kind].state_dict() for kind in ("ANN", "ANN continued"))
        assert all(torch.equal(start["ANN continued", seed][key], value) for key, value in twin.items())
        assert not any(torch.equal(continued[key], value) for key, value in twin.items() if value.dim() > 1)
        assert [r["lr"] for r in one.fitted["ANN"].history] == [r["lr"] for r in one.fitted["ANN continued"].history]
    summary = run.summary()
    assert summary["ann_continued_test_accuracy"] == pytest.approx(
        sum(seed["ann_continued_test_accuracy"] for seed in summary["per_seed"]) / 2, abs=1e-3
    )
    assert summary["ann_continued_test_accuracy_std"] >= 0
    assert summary["step_time_ratio"] > 0
    assert (tmp_path / "seed-1/ann-continued/result.json").exists()


@pytest.mark.parametrize("kind", ["SNN", "ANN"])
def test_a_recipe_starts_from_a_checkpoint(kind, tmp_path):
    data, path = SMALL.load(), tmp_path / "model.safetensors"
    source = SMALL.build(data, kind)
    fit(source, data, SMALL)
    save_checkpoint(path, source, SMALL, kind=kind)
    net = replace(SMALL, T=4).build(data)
    start_from_checkpoint(net, path, 2.0)
    k = 4 / 8 if kind == "SNN" else 4
    assert torch.equal(net.fc1.norm.running_mean, source.fc1.norm.running_mean * k)
    assert torch.equal(net.fc2.norm.running_var, source.fc2.norm.running_var * 4)
    assert torch.equal(net.readout.weight, source.readout.weight / 2)
    same = SMALL.build(data)
    start_from_checkpoint(same, path)
    if kind == "SNN":
        ours, theirs = same.state_dict(), source.state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    with pytest.raises(UserError, match=r"is the checkpoint of another model: fc1\.weight is \[64, 64\] there"):
        compare(replace(SMALL, model="mlp", init_from=str(path)), data, twin=False)


def test_what_cannot_be(tmp_path):
    with pytest.raises(UserError, match="init_gain: needs init_from"):
        Recipe(init_gain=2)
    with pytest.raises(UserError, match="init_gain: expected a positive number"):
        Recipe(init_from="twin", init_gain=0)
    net, twin = SMALL.build(SMALL.load()), SMALL.build(SMALL.load(), "ANN")
    for gain in 0, -1.0, float("inf"):
        with pytest.raises(UserError, match="gain: expected a positive number"):
            start_from(net, twin.state_dict(), gain)
    with pytest.raises(UserError, match=r"no checkpoint .*absent\.safetensors"):
        compare(replace(SMALL, init_from=str(tmp_path / "absent.safetensors")), SMALL.load(), twin=False)
