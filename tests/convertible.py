"""Models of torchvision and timm, freshly initialised, that convert; the smallest of each family of ReLU networks."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Library and name -> the smallest size of images, for which the model takes batches of 64 in training mode too.
MODELS = {
    "torchvision alexnet": 64,
    "torchvision vgg11": 32,
    "torchvision vgg11_bn": 32,
    "torchvision resnet18": 32,
    "torchvision resnext50_32x4d": 32,
    "torchvision wide_resnet50_2": 32,
    "torchvision squeezenet1_1": 32,
    "torchvision densenet121": 32,
    "torchvision inception_v3": 75,
    "torchvision googlenet": 32,
    "torchvision shufflenet_v2_x0_5": 32,
    "torchvision mobilenet_v2": 32,
    "torchvision mnasnet0_5": 32,
    "torchvision regnet_x_400mf": 32,
    "timm resnet18d": 32,
    "timm resnetv2_50": 32,
    "timm vgg11": 32,
    "timm regnetx_002": 32,
    "timm densenet121": 32,
    "timm repvgg_a0": 32,
    "timm dla34": 32,
    "timm hrnet_w18_small": 64,
    "timm legacy_xception": 75,
    "timm xception41": 64,
    "timm inception_v3": 75,
    "timm inception_v4": 75,
    "timm selecsls42": 32,
    "timm res2net50_14w_8s": 32,
    "timm mobilenetv1_100": 32,
    "timm mobilenetv2_050": 32,
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


def make(name: str) -> nn.Module:
    """The model with random weights of seed 0.

    Raises:
        ImportError: its library is not installed.
    """
    library, _, model = name.partition(" ")
    torch.manual_seed(0)
    if library == "timm":
        return importlib.import_module("timm").create_model(model)  # type: ignore[no-any-return]
    options: dict[str, Any] = {"init_weights": True} if model in ("googlenet", "inception_v3") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the time that initialisation takes
        return getattr(importlib.import_module("torchvision.models"), model)(**options)  # type: ignore[no-any-return]


@torch.no_grad()
def settled(net: nn.Module, images: Tensor) -> nn.Module:
    """In evaluation mode, with the statistics of ``images`` in batches of 64."""
    norms = {module: module.momentum for module in net.eval().modules() if isinstance(module, _BatchNorm)}
    for norm in norms:
        norm.momentum = None  # the mean over the batches
        norm.train()
    for batch in images.split(64):
        net(batch)
    for norm, momentum in norms.items():
        norm.momentum = momentum
    return net.eval()


def at_size(images: Tensor, size: int) -> Tensor:
    return images if images.shape[-1] == size else F.interpolate(images, size=(size, size), mode="bilinear")


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's over samples and classes, each class's mean subtracted first."""
    pair = torch.stack([(t.double() - t.double().mean(0)).flatten() for t in (a, b)])
    return torch.corrcoef(pair)[0, 1].item()
