"""Networks by name, or from the usual notation of architectures; as spiking networks and as their ANN twins.

cifarnet, alexnet-cifar, autoencoder and n-mnist-net are those of tandem learning; vgg11 and vgg16, with strides instead
of pooling, of progressive tandem learning; dvs-cifar10-net and dvs-gesture-net our own.

nCk is a convolution with n channels, k×k, padded by k//2; sN sets its stride. FCn is a fully connected layer. Both have
batch norm and neurons. nRs is a residual block: two paths of currents into one layer of neurons. MPk and APk are
maximum and average pooling, GAP is the mean over the image, DP is dropout with probability P. Every network ends with a
linear readout.
"""

from __future__ import annotations

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import tandem_snn.nn as tnn
from tandem_ext import checks

MODELS = {
    "alexnet-cifar": "96C3-256C3s2-384C3s2-384C3-256C3-FC1024-D0.2",
    "autoencoder": "FC128-FC64-FC32-FC64-FC128",
    "cifarnet": "128C3-256C3s2-512C3s2-1024C3-512C3-FC1024-D0.2",
    "cnn": "32C3-64C3s2-128C3s2-FC256",
    "dvs-cifar10-net": "128C3-256C3s2-512C3s2-1024C3s2-512C3-FC1024-D0.2",
    "dvs-gesture-net": "64C3s2-128C3s2-128C3s2-256C3s2-D0.5-FC256-D0.5",
    "mlp": "FC256-FC256",
    "n-mnist-net": "128C3-256C3s2-512C3s2-1024C3-512C3-FC1024-D0.2",
    "resnet18": "64C3-64R1-64R1-128R2-128R1-256R2-256R1-512R2-512R1-GAP",
    "vgg11": "64C3-128C3s2-256C3-256C3s2-512C3-512C3s2-512C3-512C3s2-FC4096-D0.5-FC4096-D0.5",
    "vgg16": "64C3-64C3s2-128C3-128C3s2-256C3-256C3-256C3s2-512C3-512C3-512C3s2-512C3-512C3-512C3s2",
}
_N = r"[1-9]\d*"
_PART = re.compile(
    rf"(?P<conv>{_N})C(?P<k>{_N})(?:s(?P<s>{_N}))?|(?P<block>{_N})R(?P<stride>{_N})|(?P<pool>[MA])P(?P<size>{_N})"
    rf"|FC(?P<fc>{_N})|D(?P<drop>0?\.\d+)|(?P<gap>GAP)"
)


def create(
    layers: ModuleType,
    model: str,
    shape: Sequence[int],
    outputs: int,
    T: int = 8,
    *,
    width: float = 1.0,
    events: bool = False,
    norm: bool = True,
    threshold: float | None = None,
    learn_threshold: str | None = None,
    v_init: float | None = None,
    gamma: float | None = None,
    timing: checks.Timing = "step",
    ann_units: bool = False,
    **neuron: Any,
) -> nn.Sequential:
    """A network with random weights; its modules are named encoder, conv1, pool1, flatten, fc1, ..., readout.

    Args:
        layers: ``tandem_snn.nn`` or, for the twin with the same state_dict keys but learned thresholds,
            ``tandem_snn.ann``.
        model: one of :data:`MODELS`, or an architecture such as "32C3-64C3s2-FC256".
        shape, outputs: of one input sample, such as (1, 28, 28), and the number of classes.
        T: time steps, to which batch norm's γ is set.
        width: multiplier of the channels.
        events: inputs are spike trains of T steps; else they are images, the current of each of T steps.
        v_init: in thresholds; None: the layers' default.
        ann_units: every z is in the units of an ANN with the same weights; thresholds are 4/T by default, for
            activations up to 4.
        norm, threshold, learn_threshold, gamma, timing: as in :class:`recipe.Recipe`.
        neuron: further settings of the layers with neurons, see :class:`tandem_snn.nn.NeuronOptions`.

    Raises:
        ValueError: an unknown model, or one that the shape is too small for.

    >>> create(tnn, "mlp", (64,), 10, T=4)(torch.rand(2, 64)).shape
    torch.Size([2, 10])
    """
    notation = MODELS.get(model, model)
    start = (4 / T if ann_units else 1.0) if threshold is None else threshold
    if norm and gamma is None:
        gamma = 1.0 if ann_units else tnn.initial_gamma(T, timing)
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    numbers: Counter[str] = Counter()
    gain = 1 / T if ann_units and not events else 1.0
    modules["encoder"] = layers.Encoder(T, "events" if events else "direct", gain=gain)
    shape = tuple(shape)

    def add(kind: str, module: nn.Module) -> None:
        numbers[kind] += 1
        modules[f"{kind}{numbers[kind]}"] = module

    def channels(base: str) -> int:
        return max(1, round(int(base) * width))

    def neurons(number: int) -> dict[str, Any]:
        level: float | Tensor = start
        if learn_threshold is not None:
            level = nn.Parameter(torch.full(() if learn_threshold == "layer" else (number,), start))
        options: dict[str, Any] = {"norm": norm, "bias": not norm, "threshold": level, "gamma": gamma, "timing": timing}
        options |= {"v_init": None if v_init is None else v_init * start, "gain": "threshold" if ann_units else 1.0}
        return options | neuron

    def conv(inputs: int, number: int, kernel: int, stride: int = 1) -> nn.Module:
        made: nn.Module = layers.Conv2d(inputs, number, kernel, stride, kernel // 2, **neurons(number))
        return made

    def smaller(part: str, kernel: int, stride: int, padding: int) -> list[int]:
        if len(shape) != 3:
            raise ValueError(f"model {model}: {part} works on images [C, H, W], and here it would meet {list(shape)}")
        space = [(n + 2 * padding - kernel) // stride + 1 for n in shape[1:]]
        if min(space) < 1:
            raise ValueError(f"model {model}: nothing of {list(shape)} is left after {part}")
        return space

    for part in notation.split("-"):
        found = _PART.fullmatch(part)
        if found is None:
            raise ValueError(
                f"unknown model {model!r}: {part!r} is no layer such as 32C3s2, FC256, MP2, AP2 or D0.5, and the whole "
                f"is none of {', '.join(MODELS)}"
            )
        if found["conv"]:
            number, kernel, stride = channels(found["conv"]), int(found["k"]), int(found["s"] or 1)
            space = smaller(part, kernel, stride, kernel // 2)
            add("conv", conv(shape[0], number, kernel, stride))
            shape = (number, *space)
        elif found["block"]:
            number, stride = channels(found["block"]), int(found["stride"])
            space = smaller(part, 3, stride, 1)
            body = nn.Sequential(conv(shape[0], number, 3, stride), conv(number, number, 3))
            same = shape[0] == number and stride == 1
            add("block", layers.Residual(body, None if same else conv(shape[0], number, 1, stride)))
            shape = (number, *space)
        elif found["pool"]:
            kernel = int(found["size"])
            shape = (shape[0], *smaller(part, kernel, kernel, 0))
            if found["pool"] == "M":
                add("pool", layers.MaxPool2d(kernel))
            else:
                add("pool", layers.AvgPool2d(kernel, timing=timing))
        elif found["drop"]:
            add("dropout", layers.Dropout(float(found["drop"])))
        elif found["gap"]:
            modules["average"] = layers.AdaptiveAvgPool2d(1)
            shape = shape[:1]
        else:
            modules.setdefault("flatten", layers.Flatten())
            number = channels(found["fc"])
            add("fc", layers.Linear(math.prod(shape), number, **neurons(number)))
            shape = (number,)
    modules.setdefault("flatten", layers.Flatten())
    modules["readout"] = layers.Readout(math.prod(shape), outputs, weight_bits=neuron.get("weight_bits"))
    return nn.Sequential(modules)


@torch.no_grad()
def start_from_twin(net: nn.Module, twin: nn.Module, gain: float = 1.0) -> None:
    """Gives a spiking network the weights of its trained twin, in place.

    In every layer the pre-activations z and activations a = ρ(z) of the twin become

        z' = g·z        and so, but for rounding, the counts        c = g·a,

    with g = ``gain``; the readout's answer stays the same. For that, γ' = g·γ and β' = g·β; without batch norm,
    W' = (g/k)·W and b' = g·b; the readout has W' = W/g. k is the ratio of a layer's input to the input in the twin:
    T for the first layer after an image, which sees T·x, and g for the others. The running statistics of u = W x
    follow: mean' = k·mean, var' = k²·var. With thresholds ϑ other than 1, g·ϑ replaces g in z', γ', β', W' and b'.

    If a spike counts as its threshold (``ann_units``), the weights are copied unchanged; the gain must be 1.

    Raises:
        ValueError: the gain is not positive, or not 1 with ``ann_units``.

    >>> from tandem_snn import ann
    >>> net, twin = (create(layers, "mlp", (64,), 10) for layers in (tnn, ann))
    >>> start_from_twin(net, twin, gain=3.0)
    >>> torch.equal(net.fc1.norm.weight, 3 * twin.fc1.norm.weight)
    True
    """
    if not 0 < gain < math.inf:
        raise ValueError(f"init_gain: expected a positive number, got {gain}")
    kept = {name: value for name, value in net.state_dict().items() if name.endswith(".threshold")}
    net.load_state_dict(twin.state_dict() | kept)
    layers = [module for module in net.modules() if isinstance(module, tnn.SpikingLayer)]
    if any(layer.gain == "threshold" for layer in layers):
        if gain != 1:
            raise ValueError(f"init_gain: expected 1 for a network in the units of its ANN, got {gain:g}")
        return
    k = next((float(m.T) for m in net.modules() if isinstance(m, tnn.Encoder) and m.mode == "direct"), 1.0)
    for layer in layers:
        scale = gain * torch.as_tensor(layer.threshold, dtype=layer.weight.dtype).detach()
        if layer.norm is None:
            layer.weight.mul_((scale / k).reshape(-1, *[1] * (layer.weight.dim() - 1)))
            if layer.bias is not None:
                layer.bias.mul_(scale)
        else:
            layer.norm.weight.mul_(scale)
            layer.norm.bias.mul_(scale)
            for statistic, factor in (layer.norm.running_mean, k), (layer.norm.running_var, k * k):
                assert statistic is not None
                statistic.mul_(factor)
        k = gain
    for module in net.modules():
        if isinstance(module, tnn.Readout):
            module.weight.div_(gain)
