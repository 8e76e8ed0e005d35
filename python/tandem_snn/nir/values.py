"""The values of NIR nodes: arrays, tensors of one shape or another, text and numbers of files."""

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor


def with_arrays(node: Any) -> Any:
    """Return the node with arrays instead of torch's tensors, which a graph in memory may have."""
    node = copy.copy(node)
    for name, value in vars(node).items():
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            setattr(node, name, (value.float() if value.is_floating_point() else value).numpy())
    return node


def plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return value.decode() if isinstance(value, bytes) else value


def tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float32))


def numbers(value: Any) -> Any:
    if isinstance(value, (str, bytes)):
        return plain(value)
    array = np.asarray(value)
    return int(array) if array.ndim == 0 else tuple(int(v) for v in array)


def uniform(name: str, what: str, values: Any) -> float:
    first, *others = np.unique(np.asarray(values))
    if others:
        raise ValueError(f"node {name!r}: {what} must be the same for all neurons")
    return float(first)


def near_one(factor: float) -> float:
    """Return 1 if the factor differs from 1 only by the rounding of float32, else the factor."""
    return 1.0 if math.isclose(factor, 1.0, rel_tol=2**-23) else factor


def compact(scale: Tensor) -> Tensor:
    """Return a 0-dim factor if all factors are equal, else all factors."""
    first = scale.flatten()[0]
    return first if bool((scale == first).all()) else scale


def by_channel(values: Tensor) -> float | Tensor | None:
    """Return one number if all values are equal, [C] if each channel has one value, else None."""
    values = compact(values)
    if not values.dim():
        return values.item()
    rows = values.reshape(len(values), -1)
    return rows[:, 0].clone() if bool((rows == rows[:, :1]).all()) else None


def per_channel(name: str, what: str, values: float | Tensor) -> float | Tensor:
    found = by_channel(torch.as_tensor(values))
    if found is None:
        raise ValueError(f"node {name!r}: {what} must be the same throughout a channel")
    return found
