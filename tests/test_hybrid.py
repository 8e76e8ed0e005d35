"""Networks that are part spiking, part ANN."""

import pytest
import torch
from torch import nn

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn import create_model, create_twin

OPTIONS = {"shape": (3, 8, 8), "classes": 10, "T": 8, "width": 0.2}


def layers(net):
    return [layer for layer in net.modules() if isinstance(layer, tnn.SpikingLayer)]


@pytest.mark.parametrize("name", ["cnn", "resnet18-cifar", "8C3-MP2-8C3-AP2-D0.5-FC16", "autoencoder"])
def test_all_analog_it_is_the_ann(name):
    net, twin = create_model(name, **OPTIONS, ann_units=True), create_twin(name, **OPTIONS, ann_units=True)
    net.load_state_dict(twin.state_dict(), strict=False)
    for layer in layers(net):
        layer.analog = True
    x = torch.randn(6, 3, 8, 8)
    for training in True, False:
        torch.manual_seed(1)
        answer = net.train(training)(x)
        torch.manual_seed(1)
        expected = twin.train(training)(x)
        torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4)
    answer.sum().backward()
    expected.sum().backward()
    mine = dict(net.named_parameters())
    for key, parameter in twin.named_parameters():
        torch.testing.assert_close(mine[key].grad, parameter.grad, rtol=1e-3, atol=1e-4)


def test_in_units_of_counts_an_activation_is_divided_by_the_threshold():
    layer = tnn.Conv2d(2, 3, 3, threshold=torch.tensor([1.0, 2.0, 4.0]))
    x = te.SpikeTrain.from_dense((torch.rand(8, 2, 2, 5, 5) < 0.3).float())
    z = layer.preactivation(x)
    layer.analog = True
    torch.testing.assert_close(layer(x), z.relu() / torch.tensor([1.0, 2.0, 4.0]).view(-1, 1, 1))
    torch.testing.assert_close(layer(x.counts), layer(x))
    assert torch.equal(layer(x, fire=False), z)
    with pytest.raises(TypeError, match="Conv2d takes"):
        layer([1])


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
