"""Build networks without branches from a notation such as "32C3-64C3s2-128C3s2-FC256"."""

from __future__ import annotations

import math
import re
from collections import Counter, OrderedDict

from torch import nn

from ..errors import UserError
from .build import Plan

_N = r"[1-9]\d*"
_CONV = re.compile(rf"(?P<n>{_N})C(?P<k>{_N})(?:s(?P<s>{_N}))?(?:p(?P<p>\d+))?")
_POOL = re.compile(rf"(?P<kind>[MA])P(?P<k>{_N})(?:s(?P<s>{_N}))?")
_FULL = re.compile(rf"FC(?P<n>{_N})")
_DROP = re.compile(r"D(?P<p>0?\.\d+)")
_ALL = (_CONV, _POOL, _FULL, _DROP)


def is_notation(text: str) -> bool:
    """Return whether the text is an architecture rather than the name of a network.

    >>> is_notation("32C3-FC256"), is_notation("cnn")
    (True, False)
    """
    return not _strange(text)


def _strange(text: str) -> list[str]:
    """Return the parts of the text that are not layers."""
    return [part for part in text.split("-") if not any(kind.fullmatch(part) for kind in _ALL)]


def check_notation(text: str) -> None:
    """Raise UserError for an architecture with mistakes: some parts are layers, or would be with other numbers."""
    strange = _strange(text)
    for part in strange:
        if not _strange(re.sub(r"\d+", "1", part)):
            raise UserError(f"model {text!r}: the numbers of {part!r} must be 1 or more, without leading zeros")
    if 0 < len(strange) < len(text.split("-")):
        raise UserError(f"unknown model {text!r}: {strange[0]!r} is neither nCk, FCn, MPk, APk nor DP, such as 32C3s2")


def build(notation: str, plan: Plan) -> nn.Sequential:
    """Build the network. Its layers are named encoder, conv1, pool1, flatten, fc1, dropout1, ..., readout."""
    modules: OrderedDict[str, nn.Module] = OrderedDict(encoder=plan.encoder())
    numbers: Counter[str] = Counter()
    shape = tuple(plan.shape)

    def add(kind: str, module: nn.Module) -> None:
        numbers[kind] += 1
        modules[f"{kind}{numbers[kind]}"] = module

    def flatten() -> int:
        if "flatten" not in modules:
            modules["flatten"] = plan.layers.Flatten()
        return math.prod(shape)

    for part in notation.split("-"):
        if conv := _CONV.fullmatch(part):
            kernel, stride = int(conv["k"]), int(conv["s"] or 1)
            padding = kernel // 2 if conv["p"] is None else int(conv["p"])
            out = plan.channels(int(conv["n"]))
            add("conv", plan.conv(_image(shape, part)[0], out, kernel, stride, padding))
            shape = (out, *_shrunk(plan, part, shape, kernel, stride, padding))
        elif pool := _POOL.fullmatch(part):
            kernel = int(pool["k"])
            stride = int(pool["s"] or kernel)
            make = plan.layers.MaxPool2d if pool["kind"] == "M" else plan.average
            add("pool", make(kernel, stride))
            shape = (shape[0], *_shrunk(plan, part, shape, kernel, stride, 0))
        elif full := _FULL.fullmatch(part):
            features, out = flatten(), plan.channels(int(full["n"]))
            add("fc", plan.layers.Linear(features, out, **plan.neurons(out)))
            shape = (out,)
        elif drop := _DROP.fullmatch(part):
            add("dropout", plan.layers.Dropout(float(drop["p"]) if plan.dropout is None else plan.dropout))
    features = flatten()
    modules["readout"] = plan.readout(features)
    return nn.Sequential(modules)


def _image(shape: tuple[int, ...], part: str) -> tuple[int, ...]:
    if len(shape) != 3:
        raise UserError(f"{part!r} works on images [C, H, W], and here it would meet the shape {list(shape)}")
    return shape


def _shrunk(plan: Plan, part: str, shape: tuple[int, ...], kernel: int, stride: int, padding: int) -> list[int]:
    space = [(n + 2 * padding - kernel) // stride + 1 for n in _image(shape, part)[1:]]
    if min(space) < 1:
        raise UserError(f"shape: {list(plan.shape)} is too small: at {part!r} nothing of {list(shape)} is left")
    return space
