"""convert takes the ReLU networks of torchvision and timm, and says what stops it in the others."""

import importlib
import warnings
from typing import Any

import pytest
import torch
from extras import needs
from torch import nn

import tandem_snn as ts
from tandem_snn.convert import CannotConvert

# Library and name -> the smallest size of images, for which the model takes batches of 64 in training mode too.
MODELS = {
    f"{library} {name}": int(size or 32)
    for library, models in {
        "torchvision": "alexnet:64 vgg11 vgg11_bn resnet18 resnext50_32x4d wide_resnet50_2 squeezenet1_1 densenet121 "
        "inception_v3:75 googlenet shufflenet_v2_x0_5 mobilenet_v2 mnasnet0_5 regnet_x_400mf",
        "timm": "resnet18d resnetv2_50 vgg11 regnetx_002 densenet121 repvgg_a0 dla34 hrnet_w18_small:64 "
        "legacy_xception:75 xception41:64 inception_v3:75 inception_v4:75 selecsls42 res2net50_14w_8s "
        "mobilenetv1_100 mobilenetv2_050",
    }.items()
    for name, _, size in (model.partition(":") for model in models.split())
}
# The other families of classifiers of torchvision, with what has no spiking counterpart in them.
NOT = {
    "torchvision mobilenet_v3_small": "hardswish",
    "torchvision efficientnet_b0": "silu",
    "torchvision efficientnet_v2_s": "silu",
    "torchvision regnet_y_400mf": "sigmoid|product",
    "torchvision convnext_tiny": "layer_norm|gelu|nothing would spike",
    "torchvision swin_t": "writes into|layer_norm|nothing would spike|mixes|gelu",
    "torchvision vit_b_16": "layer_norm|nothing would spike|attention|mixes|gelu",
    "torchvision maxvit_t": "gelu|sigmoid|layer_norm|product|mixes",
}

QUICK = ("torchvision squeezenet1_1", "timm regnetx_002", "timm mobilenetv2_050")


def marked(name: str) -> Any:
    kind = pytest.mark.slow if name not in QUICK else pytest.mark.clients if name.startswith("timm") else ()
    return pytest.param(name, marks=kind)


def make(name: str) -> nn.Module:
    library, _, model = name.partition(" ")
    needs(library)
    torch.manual_seed(0)
    if library == "timm":
        return importlib.import_module("timm").create_model(model)  # type: ignore[no-any-return]
    options: dict[str, Any] = {"init_weights": True} if model in ("googlenet", "inception_v3") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the time that initialisation takes
        return getattr(importlib.import_module("torchvision.models"), model)(**options)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:convert. .* takes no part in evaluation")
@pytest.mark.parametrize("name", map(marked, MODELS))
def test_models(name: str) -> None:
    net, x = make(name), torch.rand(2, 3, MODELS[name], MODELS[name])
    snn = ts.convert(net, T=4, example=x[:1])
    used = {id(p) for p in snn.parameters()}
    assert used <= {id(p) for p in net.parameters()}
    assert used == {id(p) for p in net.parameters()} or name in ("torchvision googlenet", "torchvision inception_v3")
    net.eval()
    with torch.no_grad():
        expected = net(x)
        atol = 1e-4 * expected.abs().max().item()
        torch.testing.assert_close(ts.to_ann(snn.eval())(x), expected, rtol=1e-4, atol=atol)
    answer = snn.train()(torch.rand(4, 3, MODELS[name], MODELS[name]))
    answer.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in snn.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", NOT)
def test_what_stops_the_others(name: str) -> None:
    with pytest.raises(CannotConvert, match=NOT[name]):
        ts.convert(make(name), T=4, example=torch.rand(1, 3, 224, 224))
