"""Functions for all inputs of layers: trains, direct inputs, and tensors of counts."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tandem_ext import SpikeTrain, signal
from tandem_ext._torch import uncompiled
from tandem_ext.functional.layer import Input
from tandem_ext.functional.neuron import cast, values_of
from tandem_ext.ops import compute_dtype
from tandem_ext.train import with_flags

X = TypeVar("X", bound=Input | Tensor)


def check_signal(x: object, layer: str, more: str = "only a Readout takes mean counts") -> None:
    """Check the input of a layer with neurons. A plain tensor is not allowed, because it has no time steps."""
    if not isinstance(x, signal.Signal):
        raise TypeError(
            f"x: {layer} takes a SpikeTrain, ConstantInput or ImpulseInput, got {describe(x)}: put tnn.Encoder(T) "
            f"before the first layer; {more}"
        )


def check_input(x: object, layer: str) -> None:
    """Check the input of a layer without neurons. A plain tensor of counts is allowed."""
    if not isinstance(x, (signal.Signal, Tensor)):
        raise TypeError(f"x: {layer} takes a SpikeTrain, ConstantInput, ImpulseInput or counts, got {describe(x)}")


def check_images(x: object, layer: str, axes: int = 2) -> None:
    """Check the input of a pooling layer."""
    check_input(x, layer)
    if len(x.shape) != 2 + axes:  # type: ignore[attr-defined]
        takes = "[B, C, L]" if axes == 1 else "[B, C, H, W]"
        raise ValueError(f"x: {layer} takes {takes}, got shape {list(x.shape)}")  # type: ignore[attr-defined]


def check_batch(x: object) -> None:
    """Check the input of a whole network."""
    if isinstance(x, Tensor):
        if not x.dim():
            raise ValueError(f"x: expected a batch [B, *features], got {describe(x)}")
    elif not isinstance(x, SpikeTrain):
        raise TypeError(f"x: expected a tensor [B, *features] or a SpikeTrain, got {describe(x)}")


def batches(x: object) -> tuple[Any, ...]:
    """Return the inputs of a whole network: x, or each item of a tuple, after a check."""
    inputs = x if isinstance(x, tuple) else (x,)
    for each in inputs:
        check_batch(each)
    return inputs


def check_network(name: str, value: object) -> nn.Module:
    """Return the network, without what may wrap it for training: torch.compile, data parallelism, averages."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name}: expected a torch.nn.Module, got {describe(value)}")
    wrappers = nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel
    inner = value.module if isinstance(value, wrappers) else uncompiled(value)
    return value if inner is value else check_network(name, inner)


def inputs_of(net: nn.Module) -> list[str]:
    """Return the names of the arguments that the forward of a network needs."""
    arguments = inspect.signature(net.forward).parameters.values()
    return [a.name for a in arguments if a.default is a.empty and a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]


def called(net: nn.Module, x: object) -> object:
    """Call a network with x, or with each item of a tuple."""
    return net(*x) if isinstance(x, tuple) else net(x)


def describe(x: object) -> str:
    return f"a tensor of shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__


def effective_counts(x: Input | Tensor) -> Tensor:
    """Return the input of the ANN branch, counts times gain, [B, *features]. A tensor is returned unchanged."""
    return x if isinstance(x, Tensor) else values_of(x)


class MeanCounts(NamedTuple):
    """What a tensor of mean counts is the mean of, so that a readout can add the integers.

    Attributes:
        counts: the means without the gain and without a gradient, float32 or float64.
        n: a number that makes integers of them: that of the averaged counts, or a multiple if there are several.
        gain, bad: those of the train.
    """

    counts: Tensor
    n: int
    gain: float | Tensor
    bad: Tensor | None

    def replace(self, **parts: Any) -> "MeanCounts":
        return self._replace(**parts)


def mean_counts(x: Input | Tensor, average: Callable[[Tensor], Tensor], n: int) -> Tensor:
    """Return averages of the effective counts; those of a train, of whose counts n are averaged, are known as such."""
    if not isinstance(x, SpikeTrain):
        return average(effective_counts(x))
    counts = x.clean_counts()
    if x.offset is not None:
        return with_flags(average(values_of(x, counts)), x.bad)  # flags are added to the smaller tensor
    means = average(cast(counts, compute_dtype(counts.dtype)))
    y = with_flags(values_of(x, cast(means, counts.dtype)), x.bad)
    has_float64 = y.device.type != "mps"
    return known_as(y, MeanCounts(means.detach(), n, x.gain, x.bad)) if has_float64 else y


def known_as(y: Tensor, means: MeanCounts) -> Tensor:
    y.mean_counts = means  # type: ignore[attr-defined]
    return y


def means_of(x: Any) -> MeanCounts | None:
    """Return what a tensor of mean counts is the mean of; None of others, also of functions of mean counts."""
    return getattr(x, "mean_counts", None) if isinstance(x, Tensor) else None


def map_features(x: X, f: Callable[[Tensor], Tensor]) -> X:
    """Apply ``f`` to stored, counts or values, and keep the gain. ``f`` sees the features as the last dimensions."""
    if isinstance(x, Tensor):
        return f(x)  # type: ignore[return-value]
    return x.replace(gain=1.0).map(f).replace(gain=x.gain)  # type: ignore[return-value]


def features_first(x: Any, axes: int) -> Any:
    """Return tokens [B, *space, features] as channels [B, features, *space]."""
    if x is None or isinstance(x, Tensor):
        return x if x is None else x.movedim(-1, -1 - axes)
    y, gain = map_features(x, lambda t: t.movedim(-1, -1 - axes)), x.gain
    if not isinstance(gain, Tensor) or not gain.dim():
        return y
    if gain.dim() == 1:
        raise ValueError("x: Linear takes one gain, or one for each feature of a token, got one for each token")
    return y.replace(gain=gain.flatten(0, -2)[0])


def features_last(x: Any, axes: int) -> Any:
    if isinstance(x, Tensor):
        return x.movedim(-1 - axes, -1)
    y, gain = map_features(x, lambda t: t.movedim(-1 - axes, -1)), x.gain
    return y.replace(gain=gain.expand(y.shape[1:])) if isinstance(gain, Tensor) and gain.dim() else y
