"""Networks by name, or from the usual notation of architectures; as spiking networks and as their ANN twins.

cifarnet, alexnet-cifar, autoencoder and n-mnist-net are those of tandem learning; vgg11 and vgg16, with strides instead
of pooling, of progressive tandem learning; alexnet, with strides too, dvs-cifar10-net and dvs-gesture-net our own.

nCk is a convolution with n channels, k×k, padded by k//2; sN sets its stride. FCn is a fully connected layer. Both have
batch norm and neurons. nRs is a residual block: two paths of currents into one layer of neurons. MPk and APk are
maximum and average pooling, GAP is the mean over the image, DP is dropout with probability P. nSk and nTh are blocks on
a stream of currents (blocks.py): k×k convolutions of each of n channels apart, and transformers with h heads. Every
network ends with a linear readout.
"""

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import tandem_snn.nn as tnn
from blocks import Separable, Softmax, Transformer, bare
from tandem_ext import checks
from tandem_snn.nn.options import without_neurons

MODELS = {
    "alexnet": "96C11s4-256C5s2-384C3s2-384C3-256C3s2-FC4096-D0.5-FC4096-D0.5",
    "alexnet-cifar": "96C3-256C3s2-384C3s2-384C3-256C3-FC1024-D0.2",
    "autoencoder": "FC128-FC64-FC32-FC64-FC128",
    "cifarnet": "128C3-256C3s2-512C3s2-1024C3-512C3-FC1024-D0.2",
    "cnn": "32C3-64C3s2-128C3s2-FC256",
    "dvs-cifar10-net": "128C3-256C3s2-512C3s2-1024C3s2-512C3-FC1024-D0.2",
    "dvs-gesture-net": "64C3s2-128C3s2-128C3s2-256C3s2-D0.5-FC256-D0.5",
    "mlp": "FC256-FC256",
    "n-mnist-net": "128C3-256C3s2-512C3s2-1024C3-512C3-FC1024-D0.2",
    "sdt-small": "32C3-64C3s2-64S7-64S7-128C3s2-128T4-128T4-128T4-128T4-128T4-GAP",
    "spikformer-small": "32C3-64C3s2-128C3s2-128S3-128T4-128T4-128T4-128T4-128T4-GAP",
    "resnet18": "64C3-64R1-64R1-128R2-128R1-256R2-256R1-512R2-512R1-GAP",
    "vgg11": "64C3-128C3s2-256C3-256C3s2-512C3-512C3s2-512C3-512C3s2-FC4096-D0.5-FC4096-D0.5",
    "vgg16": "64C3-64C3s2-128C3-128C3s2-256C3-256C3-256C3s2-512C3-512C3-512C3s2-512C3-512C3-512C3s2",
}
_N = r"[1-9]\d*"
_PART = re.compile(
    rf"(?P<conv>{_N})C(?P<k>{_N})(?:s(?P<s>{_N}))?|(?P<block>{_N})R(?P<stride>{_N})"
    rf"|(?P<apart>{_N})S(?P<window>{_N})|(?P<tokens>{_N})T(?P<heads>{_N})|(?P<pool>[MA])P(?P<size>{_N})"
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
    softmax: bool = False,
    threshold: float | None = None,
    learn_threshold: str | None = None,
    v_init: float | None = None,
    timing: checks.Timing = "step",
    **neuron: Any,
) -> nn.Sequential:
    """A network with random weights; its modules are named encoder, conv1, pool1, flatten, fc1, ..., readout.

    Args:
        layers: ``tandem_snn.nn`` or, for the twin with the same state_dict keys but learned thresholds,
            ``tandem_snn.ann``.
        model: one of :data:`MODELS`, or an architecture such as "32C3-64C3s2-FC256".
        shape, outputs: of one input sample, such as (1, 28, 28), and the number of classes.
        T: time steps.
        width: multiplier of the channels.
        events: inputs are spike trains of T steps; else they are images, the current of each of T steps.
        softmax: transformers are those of a ViT, which only a twin can have.
        v_init: in thresholds; None: the layers' default.
        norm, threshold, learn_threshold, timing: as in :class:`recipe.Recipe`.
        neuron: further settings of the layers with neurons, see :class:`tandem_snn.nn.NeuronOptions`.

    Raises:
        ValueError: an unknown model, or one that the shape is too small for.

    >>> create(tnn, "mlp", (64,), 10, T=4)(torch.rand(2, 64)).shape
    torch.Size([2, 10])
    """
    notation = MODELS.get(model, model)
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    numbers: Counter[str] = Counter()
    modules["encoder"] = layers.Encoder(T, "events" if events else "direct")
    shape = tuple(shape)

    def add(kind: str, module: nn.Module) -> None:
        numbers[kind] += 1
        modules[f"{kind}{numbers[kind]}"] = module

    def channels(base: str) -> int:
        return max(1, round(int(base) * width))

    def neurons(number: int) -> dict[str, Any]:
        start = threshold
        level: float | Tensor | None = threshold
        if learn_threshold is not None:
            start = tnn.default_threshold(T, timing) if threshold is None else threshold
            level = nn.Parameter(torch.full(() if learn_threshold == "layer" else (number,), start))
        first = v_init if v_init is None or start is None else v_init * start  # without start it counts in thresholds
        return {"norm": norm, "bias": not norm, "threshold": level, "v_init": first, "timing": timing} | neuron

    def conv(inputs: int, number: int, kernel: int, stride: int = 1, fires: bool = True) -> nn.Module:
        given = neurons(number) if fires else without_neurons(neurons(number))
        made: nn.Module = layers.Conv2d(inputs, number, kernel, stride, kernel // 2, **given)
        return made

    def smaller(part: str, kernel: int, stride: int, padding: int) -> list[int]:
        if len(shape) != 3:
            raise ValueError(f"model {model}: {part} works on images [C, H, W], and here it would meet {list(shape)}")
        space = [(n + 2 * padding - kernel) // stride + 1 for n in shape[1:]]
        if min(space) < 1:
            raise ValueError(f"model {model}: nothing of {list(shape)} is left after {part}")
        return space

    streams = tokens = False  # whether what is there now is currents to which blocks add, and whether it is tokens
    parts = notation.split("-")
    for part, after in zip(parts, [*parts[1:], ""], strict=True):
        found = _PART.fullmatch(part)
        if found is None:
            raise ValueError(
                f"unknown model {model!r}: {part!r} is no layer such as 32C3s2, FC256, MP2, AP2 or D0.5, and the whole "
                f"is none of {', '.join(MODELS)}"
            )
        if streams and not (found["apart"] or found["tokens"]):
            swap = [layers.Permute([0, 2, 1])] if tokens else []  # neurons have their channels first
            fire = layers.Neurons(shape[0], **bare(neurons(shape[0])))
            add("fire", nn.Sequential(*([nn.LayerNorm(shape[0]), *swap] if softmax and tokens else [*swap, fire])))
            streams = False
        if tokens and not (found["tokens"] or found["gap"]):
            raise ValueError(f"model {model}: between transformers and the readout is GAP alone, got {part}")
        if found["apart"] or found["tokens"]:
            number, kind = channels(found["apart"] or found["tokens"]), "apart" if found["apart"] else "transformer"
            smaller(part, 1, 1, 0)
            if shape[0] != number or learn_threshold is not None:
                raise ValueError(f"model {model}: {part} takes {number} channels and no learned thresholds")
            if found["tokens"] and not tokens:
                modules["tokens"] = nn.Sequential(layers.Flatten(2), layers.Permute([0, 2, 1]))
            tokens = tokens or bool(found["tokens"])
            block: Any = Separable if found["apart"] else Softmax if softmax else Transformer
            add(kind, block(layers, number, int(found["window"] or found["heads"]), neurons(number)))
            streams = True
        elif found["conv"]:
            number, kernel, stride = channels(found["conv"]), int(found["k"]), int(found["s"] or 1)
            space = smaller(part, kernel, stride, kernel // 2)
            begins = "S" in after or "T" in after  # a stream, of currents
            add("conv", conv(shape[0], number, kernel, stride, not begins))
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
            if tokens:
                modules["average"] = layers.AvgPool1d(math.prod(shape[1:]), spiking=False)
            else:
                modules["average"] = layers.AdaptiveAvgPool2d(1)
            shape, tokens = shape[:1], False
        else:
            modules.setdefault("flatten", layers.Flatten())
            number = channels(found["fc"])
            add("fc", layers.Linear(math.prod(shape), number, **neurons(number)))
            shape = (number,)
    if streams or tokens:
        raise ValueError(f"model {model}: transformers and other blocks of currents end in GAP, or go on")
    modules.setdefault("flatten", layers.Flatten())
    modules["readout"] = layers.Readout(math.prod(shape), outputs, weight_bits=neuron.get("weight_bits"))
    return nn.Sequential(modules)
