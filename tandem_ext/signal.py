"""What the three kinds of input have in common: a batch of signals over T time steps, made of tensors."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

S = TypeVar("S", bound="Signal")
C = TypeVar("C", bound=type)

_INSTEAD = {
    "cpu": 'to("cpu") moves it',
    "cuda": 'to("cuda") moves it',
    "flatten": "tandem_snn.nn.Flatten() flattens its features",
    "mT": "T is the number of time steps, not a transpose",
    "plot": "tandem_snn.plots.raster draws a train",
    "size": "shape is [B, *features], T the number of time steps",
    "t": "T is the number of time steps, not a transpose",
}  # what people look for in a tensor


class Signal:
    """Base of :class:`SpikeTrain`, :class:`ConstantInput` and :class:`ImpulseInput`."""

    T: int
    gain: float | Tensor
    _instead: ClassVar[Mapping[str, str]] = _INSTEAD
    _tensors: ClassVar[str] = ""  # which of its tensors to use instead

    def map(self: S, f: Callable[[Tensor], Tensor]) -> S:
        """The same signal with ``f`` applied to each of its tensors. Nothing is checked."""
        raise NotImplementedError

    def but(self: S, **parts: Any) -> S:
        """The same signal with other parts, named as ``unchecked`` names them. Nothing is checked."""
        raise NotImplementedError

    @classmethod
    def concatenate(cls: type[S], signals: Sequence[S], dim: int) -> S:
        """The signals side by side in dimension ``dim`` of [B, *features]. Nothing is checked; use :func:`cat`."""
        raise NotImplementedError

    @property
    def shape(self) -> torch.Size:
        """[B, *features]."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        raise NotImplementedError

    def to(
        self: S,
        device: torch.device | str | int | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> S:
        """The signal on another device or, for everything but spikes, in another floating-point type.

        As with ``Tensor.to``, the type may be the only argument: ``x.to(torch.bfloat16)``.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype: expected a floating-point type, got {dtype}")

        _refuse_dispatch()

        def move(t: Tensor) -> Tensor:
            return t.to(device=device, dtype=dtype if t.is_floating_point() else None, non_blocking=non_blocking)

        return self._moved(move)

    def detach(self: S) -> S:
        """The signal cut from the autograd graph."""
        return self.map(Tensor.detach)

    def pin_memory(self: S) -> S:
        """The signal in page-locked memory, as a DataLoader with ``pin_memory=True`` asks."""
        return self._moved(Tensor.pin_memory)

    def _moved(self: S, f: Callable[[Tensor], Tensor]) -> S:
        """``f`` applied to everything it holds, of whatever shape."""
        return self.map(f)

    def __len__(self) -> int:
        return self.shape[0]

    if not TYPE_CHECKING:  # where it would stand for every name

        def __getattr__(self, name: str) -> Any:
            """Says what to use where a tensor's attribute is looked for."""
            hint = self._instead.get(name, self._tensors if hasattr(Tensor, name) else "")
            message = f"{type(self).__name__!r} object has no attribute {name!r}" + (hint and f": {hint}")
            raise AttributeError(message, name=name, obj=self)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Says what to use where a function of torch is called, of which its layers consist."""
        joining = func in (torch.stack, torch.cat, torch.concat, torch.concatenate)
        hint = "tandem_ext.cat joins them" if joining else f"layers that do are in tandem_snn.nn; {cls._tensors}"
        raise TypeError(f"torch's {getattr(func, '__name__', func)} takes no {cls.__name__}: {hint}")


def dataclass_of(field: str, *others: str) -> Callable[[C], C]:
    """A decorator that makes a dataclass of one field, whose first dimension is the batch and through which gradients
    flow. Libraries that walk dataclasses then find what they need and nothing else: Lightning the batch size, DDP and
    FSDP the gradient. ``dataclasses.replace`` keeps the ``others``.
    """

    def decorate(cls: C) -> C:
        cls.__annotations__ = {field: Any, **dict.fromkeys(others, InitVar[Any])}
        for name in others:
            setattr(cls, name, getattr(cls, name, None))  # else replace() asks for them
        dataclass(init=False, eq=False, repr=False)(cls)
        return cls

    return decorate


def _refuse_dispatch() -> None:
    """accelerate's dispatcher moves a batch before it splits it; it can split tensors only, and does not say so."""
    if torch.compiler.is_compiling():
        return
    module = sys.modules.get("accelerate.data_loader")
    if module is None:
        return
    between = ("to", "send_to_device", "honor_type", "<genexpr>", "<dictcomp>")
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_name in between:
        frame = frame.f_back  # type: ignore[assignment]
    if frame is not None and frame.f_code is module.DataLoaderDispatcher.__iter__.__code__:
        raise TypeError(
            "accelerate cannot dispatch spike trains from one process to the others: give Accelerator "
            "dataloader_config=DataLoaderConfiguration(dispatch_batches=False), so that each loads its own"
        )


def needs_grad(*tensors: Tensor | None) -> bool:
    """Could a gradient flow to one of them? Under torch.func transforms and in forward mode requires_grad does not
    tell: then yes.
    """
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    for tensor in tensors:
        if tensor is not None and (tensor.requires_grad or (transformed and tensor.is_floating_point())):
            return True
    return False


def batch_index(index: Any, length: int) -> slice | Tensor:
    """An index over the batch that keeps the dimension: an int becomes a slice of one."""
    if isinstance(index, (list, np.ndarray)):
        index = torch.as_tensor(index, dtype=None if len(index) else torch.int64)
    if isinstance(index, slice) or (isinstance(index, Tensor) and index.dim() == 1):
        return index
    if isinstance(index, (int, np.integer)) and not isinstance(index, bool):
        index = operator.index(index)
        if not -length <= index < length:
            raise IndexError(f"index {index} is out of range for a batch of {length}")
        return slice(index % length, index % length + 1)
    raise TypeError(f"index: expected an int, a slice or a 1-d list, array or tensor over the batch, got {index!r}")


def register_pytree(
    cls: type[S],
    fields: Sequence[str],
    static: Sequence[str] = ("T",),
    later: Mapping[str, Any] = MappingProxyType({}),
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Make ``cls`` a pytree node. Its children are the ``fields`` that hold a value per batch, as a rule tensors; the
    ``static`` fields, absent tensors and a gain that is a float belong to the context.

    Older exported programs do not know the fields ``later``: such a field is left out while it has the value given
    here, the class's own. They may also know a field by a name from before it was ``renamed``. Unflattening bypasses
    ``__init__``: torch puts fakes, batched tensors and plain objects in the children's places.
    """

    def flatten_with_keys(signal: S) -> tuple[list[tuple[pytree.KeyEntry, Any]], Any]:
        children: list[tuple[pytree.KeyEntry, Any]] = []
        names, context = [], []
        for name in fields:
            value = getattr(signal, name)
            if name in later and not isinstance(value, Tensor) and value == later[name]:
                continue
            if name in static or value is None or isinstance(value, float):
                context.append((name, value))
            else:
                names.append(name)
                children.append((pytree.GetAttrKey(name), value))
        return children, (tuple(names), tuple(context))

    def flatten(signal: S) -> tuple[list[Any], Any]:
        children, context = flatten_with_keys(signal)
        return [child for _, child in children], context

    def unflatten(children: Iterable[Any], context: Any) -> S:
        names, rest = context
        signal = object.__new__(cls)
        for name, value in (*zip(names, children, strict=True), *rest):
            setattr(signal, name, value)
        return signal

    torch.serialization.add_safe_globals([cls])  # exported programs load their example inputs by torch.load
    pytree.register_pytree_node(
        cls,
        flatten,
        unflatten,
        serialized_type_name=f"tandem_ext.{cls.__name__}",
        flatten_with_keys_fn=flatten_with_keys,
        to_dumpable_context=_dump,
        from_dumpable_context=lambda dumped: _load(dumped, renamed),
    )


def _dump(context: Any) -> Any:
    names, rest = context
    return [list(names), [[n, str(v) if isinstance(v, torch.dtype) else v] for n, v in rest]]


def _load(dumped: Any, renamed: Mapping[str, str]) -> Any:
    def value(v: Any) -> Any:
        return getattr(torch, v.removeprefix("torch.")) if isinstance(v, str) and v.startswith("torch.") else v

    names, rest = dumped
    return tuple(renamed.get(n, n) for n in names), tuple((n, value(v)) for n, v in rest)
