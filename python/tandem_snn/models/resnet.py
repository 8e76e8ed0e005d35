"""ResNet-18: in each block two paths of currents enter one layer of neurons."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from .build import Plan

_BLOCKS = ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))


def resnet18(plan: Plan) -> nn.Sequential:
    """For images of 224×224: the first convolution is 7×7 with stride 2 and is followed by a maximum."""
    return _resnet(plan, 7, 2, pool=True)


def resnet18_cifar(plan: Plan) -> nn.Sequential:
    """For images of 32×32: the first convolution is 3×3."""
    return _resnet(plan, 3, 1, pool=False)


def _resnet(plan: Plan, kernel: int, stride: int, *, pool: bool) -> nn.Sequential:
    channels = plan.channels(64)
    modules: OrderedDict[str, nn.Module] = OrderedDict(
        encoder=plan.encoder(), conv1=plan.conv(plan.shape[0], channels, kernel, stride)
    )
    if pool:
        modules["pool1"] = plan.layers.MaxPool2d(3, 2, 1)
    for i, (base, block_stride) in enumerate(_BLOCKS, 1):
        out = plan.channels(base)
        modules[f"block{i}"] = _block(plan, channels, out, block_stride)
        channels = out
    modules["average"] = plan.layers.AdaptiveAvgPool2d(1)
    modules["flatten"] = plan.layers.Flatten()
    modules["readout"] = plan.readout(channels)
    return nn.Sequential(modules)


def _block(plan: Plan, inputs: int, outputs: int, stride: int) -> nn.Module:
    """Two convolutions beside the block's own input or, where the shape changes, its 1×1 projection."""
    body = nn.Sequential(plan.conv(inputs, outputs, 3, stride), plan.conv(outputs, outputs, 3))
    same = inputs == outputs and stride == 1
    shortcut = None if same else plan.conv(inputs, outputs, 1, stride)
    return plan.layers.Residual(body, shortcut)
