"""The base class of spike trains and direct inputs: a batch of signals over T time steps, stored in tensors."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from ._torch import forward_mode_active, pytree, register_collate, transforms_active

S = TypeVar("S", bound="Signal")
C = TypeVar("C", bound=type)

_INSTEAD = {
    "cpu": 'to("cpu") moves it',
    "cuda": 'to("cuda") moves it',
    "dim": "len(shape) is the number of dimensions; for batch norm give the layer before it norm=True",
    "flatten": "tandem_snn.nn.Flatten() flattens its features",
    "mT": "T is the number of time steps, not a transpose",
    "plot": "tandem_snn.plots.raster draws a train",
    "size": "shape is [B, *features], T the number of time steps",
    "t": "T is the number of time steps, not a transpose",
}  # attributes of tensors that users may expect
_LAYERS = (
    *("AdaptiveAvgPool2d", "AdaptiveMaxPool1d", "AdaptiveMaxPool2d", "AvgPool1d", "AvgPool2d", "Conv1d", "Conv2d"),
    *("ConvTranspose1d", "ConvTranspose2d", "Dropout", "Flatten", "MaxPool1d", "MaxPool2d"),
)
_LAYER_INSTEAD = {name.lower(): f"use tandem_snn.nn.{name}" for name in _LAYERS} | {
    "batchnorm": "give the layer before it norm=True",
    "add": "spikes are 0 and 1, and cannot be added; currents can, which layers return with neurons=False; "
    "tandem_snn.nn.Residual adds the currents of two paths",
    "interpolate": "use tandem_snn.nn.Upsample",
    "getitem": "slice features before the encoder; of N tokens tandem_snn.nn.AvgPool1d(1, N) reads the first",
    "matmul": "use tandem_snn.nn.Linear; tandem_snn.nn.Attention multiplies trains",
    "mul": "the value of a spike is its gain: x.replace(gain=2 * x.gain); currents are multiplied by constants",
    "linear": "use tandem_snn.nn.Linear, or Readout for the outputs of the network",
    "relu": "remove it, the neurons are in the layer before it",
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), "tandem_ext.cat joins them"),
}  # by the name of torch's function, without "_"


class Signal:
    """Base class of :class:`SpikeTrain`, :class:`ConstantInput` and :class:`ImpulseInput`."""

    T: int
    gain: float | Tensor
    timing: Any = "step"
    joins_gains: ClassVar[bool] = False  # whether signals with different numbers as gains can be joined by channel
    offset: Tensor | None = None  # [1, *features], what is added to the counts of a train before the gain
    joins_kinds: ClassVar[bool] = False  # whether other kinds can be joined with it
    as_currents: ClassVar[Any] = None  # a method of values that are only traced, which have no tensors
    _fields: ClassVar[tuple[str, ...]]  # the attributes that define it
    _instead: ClassVar[Mapping[str, str]] = _INSTEAD
    _tensors: ClassVar[str] = ""  # for error messages: which tensors it has

    def replace(self: S, **parts: Any) -> S:
        """Return a copy with some attributes replaced. Nothing is checked."""
        copy = object.__new__(type(self))
        for name in self._fields:
            setattr(copy, name, getattr(self, name))
        for name, value in parts.items():
            setattr(copy, name, value)
        return copy

    def map(self: S, f: Callable[[Tensor], Tensor]) -> S:
        """Return a copy with ``f`` applied to each tensor, except to NaN flags, which have no features."""
        values = {name.removeprefix("_"): getattr(self, name) for name in self._fields if name != "bad"}
        return self.replace(**{name: f(value) for name, value in values.items() if isinstance(value, Tensor)})

    @classmethod
    def concatenate(cls: type[S], signals: Sequence[S], dim: int) -> S:
        """Concatenate along dimension ``dim`` of [B, *features] without checks. Use :func:`cat` instead."""
        raise NotImplementedError

    @classmethod
    def check_fit(cls, signals: Sequence[Any], dim: int) -> int:
        """Raise an error unless these signals can be concatenated along ``dim``; return it, counted from the front."""
        first = signals[0]
        dims = len(first.shape)
        if dim not in range(-dims, dims):
            raise ValueError(f"dim: expected a dimension of {list(first.shape)}, got {dim}")
        dim %= dims
        for other in signals[1:]:
            if not (isinstance(other, type(first)) or isinstance(first, type(other))):
                raise TypeError(f"signals: expected one kind, got {type(first).__name__} and {type(other).__name__}")
            if other.T != first.T and not first.timing == other.timing == "window":
                only = "only trains with timing 'window' may have different ones"
                raise ValueError(f"signals: expected the same T, got {first.T} and {other.T}: {only}")
            outside, others = ([*s.shape[:dim], *s.shape[dim + 1 :]] for s in (first, other))
            if len(other.shape) != dims or outside != others:
                raise ValueError(f"signals: {list(first.shape)} and {list(other.shape)} differ outside dimension {dim}")
            gains: list[Any] = [first.gain, other.gain]
            tensors = [isinstance(gain, Tensor) for gain in gains]
            # Comparing the values of tensors would synchronise, and one of two gradients would be lost.
            same = gains[0] is gains[1] if any(tensors) else gains[0] == gains[1]
            of_channels = [cls.joins_gains or (isinstance(gain, Tensor) and gain.dim() > 0) for gain in gains]
            if not same and not (dim == 1 and all(of_channels)):
                raise ValueError(
                    f"signals: expected the same gain in all signals, got gain {first.gain} and {other.gain}"
                )
            if dim == 0 and first.offset is not other.offset:
                raise ValueError("signals: expected one offset in all signals, got several: encode the batch at once")
        return dim

    @property
    def network_T(self) -> int:
        """The T that layers which read it have by default: T, unless a layer with its own T made it."""
        return self.T

    @property
    def shape(self) -> torch.Size:
        """[B, *features]."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""
        device: torch.device = getattr(self, self._fields[0]).device
        return device

    def to(
        self: S,
        device: torch.device | str | int | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> S:
        """Move the signal to another device, or convert its floating-point tensors to another dtype.

        As with ``Tensor.to``, the dtype may be the only argument: ``x.to(torch.bfloat16)``. Spikes have no dtype.

        Raises:
            TypeError: dtype is not a floating-point type.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype: expected a floating-point type, got {dtype}")

        exact = None if dtype is None else self._exact(dtype)

        def move(t: Tensor) -> Tensor:
            return t.to(device=device, dtype=exact if t.is_floating_point() else None, non_blocking=non_blocking)

        return self._moved(move, exact)

    def detach(self: S) -> S:
        """Return the signal detached from the autograd graph."""
        return self.map(Tensor.detach)

    def pin_memory(self: S) -> S:
        """Return the signal in page-locked memory. A DataLoader with ``pin_memory=True`` calls this."""
        return self._moved(Tensor.pin_memory)

    def _exact(self, dtype: torch.dtype) -> torch.dtype:
        """Return the floating-point type that its tensors get for ``dtype``."""
        return dtype

    def _moved(self: S, f: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> S:
        """Apply ``f`` to every tensor, also to those that ``map`` leaves out because they have no features."""
        return self.map(f)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        timing = ", timing=window" * (self.timing == "window")
        gain: object = self.gain
        if isinstance(gain, Tensor) and gain.dim():
            gain = f"tensor of shape {list(gain.shape)}"
        shown = f"T={self.T}, shape={list(self.shape)}, gain={gain}, device={self.device}{timing}"
        return f"{type(self).__name__}({shown})"

    if not TYPE_CHECKING:  # type checkers would then accept every attribute

        def __getattr__(self, name: str) -> Any:
            """Raise an error that names a replacement for the tensor attribute."""
            hint = self._instead.get(name, self._tensors if hasattr(Tensor, name) else "")
            message = f"{type(self).__name__!r} object has no attribute {name!r}" + (hint and f": {hint}")
            raise AttributeError(message, name=name, obj=self)

        def __add__(self, other: Any) -> Any:
            if isinstance(other, Signal) and type(other) is not type(self):
                return NotImplemented  # currents know what their sum is
            return self.__torch_function__(torch.add, ())

        __radd__ = __sub__ = __rsub__ = __add__

        def __mul__(self, factor: Any = None) -> Any:
            return self.__torch_function__(torch.mul, ())

        __rmul__ = __neg__ = __mul__

        def __matmul__(self, other: Any) -> Any:
            return self.__torch_function__(torch.matmul, ())

        __rmatmul__ = __matmul__

        def __getitem__(self, index: Any) -> Any:
            return self.__torch_function__(Tensor.__getitem__, ())

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Raise an error that names a replacement for the torch function. torch's layers get here too."""
        if not cls.joins_kinds and any(getattr(other, "joins_kinds", False) for other in types):
            return NotImplemented  # as of operators: currents know what their sum is
        name = getattr(func, "__name__", str(func))
        others = f"layers that do are in tandem_snn.nn; {cls._tensors}"
        hint = _LAYER_INSTEAD.get(name.replace("_", ""), others)
        raise TypeError(f"torch's {name} takes no {cls.__name__}: {hint}")


def dataclass_of(field: str, *others: str) -> Callable[[C], C]:
    """A class decorator for dataclasses with one field, through which gradients flow.

    Libraries that walk dataclasses then see this field only: Lightning takes the batch size from its first dimension,
    DDP and FSDP find the gradient. ``dataclasses.replace`` keeps the ``others``.
    """

    def decorate(cls: C) -> C:
        cls.__annotations__ = {field: Any, **dict.fromkeys(others, InitVar[Any])}
        for name in others:
            setattr(cls, name, getattr(cls, name, None))  # without a default, replace() would require them
        dataclass(init=False, eq=False, repr=False)(cls)
        return cls

    return decorate


def needs_grad(*tensors: Tensor | None) -> bool:
    """Return whether a gradient may flow to any of the tensors; always True under transforms and in forward mode."""
    for tensor in tensors:
        if tensor is not None and tensor.requires_grad:
            return True
    if transforms_active() or forward_mode_active():
        return any(tensor is not None and tensor.is_floating_point() for tensor in tensors)
    return False


def offsets_of(offsets: Sequence[Tensor | None], features: Iterable[Sequence[int]]) -> list[Tensor]:
    """Return the offsets of several signals with these features, zeros for None; an empty list if none has one."""
    like = next((offset for offset in offsets if offset is not None), None)
    if like is None:
        return []
    pairs = zip(offsets, features, strict=True)
    return [like.new_zeros(()).expand(1, *sizes) if offset is None else offset for offset, sizes in pairs]


def batch_index(index: Any, length: int) -> slice | Tensor:
    """Convert an index over the batch so that it keeps the batch dimension: an int becomes a slice of length one."""
    if isinstance(index, (list, np.ndarray)):
        index = torch.as_tensor(index, dtype=None if len(index) else torch.int64)
    if isinstance(index, slice) or (isinstance(index, Tensor) and index.dim() == 1):
        return index
    if isinstance(index, (int, np.integer)) and not isinstance(index, bool):
        index = operator.index(index)
        if not -length <= index < length:
            raise IndexError(f"index {index} is out of range for a batch of {length}")
        return slice(index % length, index % length + 1)
    expected = "an int, a slice or a 1-d list, array or tensor over the batch"
    raise TypeError(f"index: expected {expected}, got {index!r}: features are sliced before the encoder, as tensors")


def register_pytree(cls: type[S], static: Sequence[str] = ("T",)) -> None:
    """Register ``cls`` as a pytree node.

    Its children are the fields that are tensors; ``static`` fields, None and a float gain are in the context.
    Unflattening bypasses ``__init__``, because torch replaces children by fake tensors, batched tensors and plain
    objects.
    """

    def flatten_with_keys(signal: S) -> tuple[list[tuple[pytree.KeyEntry, Any]], Any]:
        values = {name: getattr(signal, name) for name in cls._fields}
        fixed = {n: v for n, v in values.items() if n in static or v is None or isinstance(v, float)}
        children: list[Any] = [(pytree.GetAttrKey(n), v) for n, v in values.items() if n not in fixed]
        return children, tuple(fixed.items())

    def flatten(signal: S) -> tuple[list[Any], Any]:
        children, context = flatten_with_keys(signal)
        return [child for _, child in children], context

    def unflatten(children: Iterable[Any], context: Any) -> S:
        signal, fixed, values = object.__new__(cls), dict(context), iter(children)
        for name in cls._fields:
            setattr(signal, name, fixed[name] if name in fixed else next(values))
        return signal

    torch.serialization.add_safe_globals([cls])  # torch.load reads the example inputs of exported programs
    pytree.register_pytree_node(
        cls,
        flatten,
        unflatten,
        serialized_type_name=f"tandem_ext.{cls.__name__}",
        flatten_with_keys_fn=flatten_with_keys,
        to_dumpable_context=lambda context: [[n, str(v) if isinstance(v, torch.dtype) else v] for n, v in context],
        from_dumpable_context=_load,
    )


def _load(dumped: Any) -> Any:
    return tuple((n, getattr(torch, v.removeprefix("torch.")) if n == "_dtype" else v) for n, v in dumped)


def cat(signals: Sequence[S], dim: int = 0) -> S:
    """Concatenate spike trains, or direct inputs, along the batch or another dimension.

    Args:
        signals: at least one :class:`SpikeTrain`, :class:`ConstantInput` or :class:`ImpulseInput`. All have the same
            class, T and gain. Trains with timing "window" may have different T, of which the result has the largest.
            Trains joined along the channels may each have their own gain: numbers, 0-dim or [C]. With currents among
            them (``tandem_snn.nn.Currents``) all become currents. Or tensors, which an ANN twin has in their place.
        dim: the dimension of [B, *features], by default the batch.

    Returns:
        A signal of the same class. Gradients flow to all signals.

    Raises:
        TypeError: not a list or tuple of signals, or signals of different classes.
        ValueError: an empty sequence, different T or gain, shapes that do not fit, dim out of range.

    >>> train = te.SpikeTrain.from_dense(torch.ones(8, 2, 3))
    >>> te.cat([train, train[0]])
    SpikeTrain(T=8, shape=[3, 3], gain=1.0, device=cpu)
    """
    if isinstance(signals, (list, tuple)) and signals and all(isinstance(s, Tensor) for s in signals):
        return torch.cat(signals, dim)  # type: ignore[return-value]
    if not isinstance(signals, (list, tuple)) or not all(isinstance(s, Signal) for s in signals):
        found: Any = type(signals).__name__
        hint = ""
        if isinstance(signals, (list, tuple)):
            found = [type(s).__name__ for s in signals]
            if any(isinstance(s, Tensor) for s in signals):
                hint = ": ConstantInput(x, T, gain=1 / T) makes one of a tensor [B, *features]"
        raise TypeError(f"signals: expected a sequence of SpikeTrain, ConstantInput or ImpulseInput, got {found}{hint}")
    if not signals:
        raise ValueError("signals: expected at least one, got an empty sequence")
    kind = next((s for s in signals if s.joins_kinds), signals[0])
    return kind.concatenate(signals, kind.check_fit(signals, dim))


def collate(samples: Sequence[Any]) -> Any:
    """Stack samples to a batch as torch's ``default_collate`` does, and join spike trains by :func:`cat`.

    A DataLoader does the same without it; it serves where a ``collate_fn`` is called by name, or is part of another.

    >>> train = te.SpikeTrain.from_dense(torch.ones(8, 1, 3))
    >>> te.collate([(train, 3), (train, 5)])
    [SpikeTrain(T=8, shape=[2, 3], gain=1.0, device=cpu), tensor([3, 5])]
    """
    return default_collate(list(samples))


register_collate(Signal, cat)
