"""TensorBoard sees how often layers fire: a scalar for each layer, a histogram of its neurons."""

import pytest

from tandem_snn import data
from tandem_snn.training import Recipe, Store, fit


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
