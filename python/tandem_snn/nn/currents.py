"""Currents: the input of neurons as real numbers, their sum over the window and step by step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from tandem_ext import ConstantInput, SpikeTrain
from tandem_ext._torch import BatchNorm, autocast_active
from tandem_ext.functional.autograd import apply
from tandem_ext.functional.currents import StraightThrough
from tandem_ext.functional.layer import Input, fitted, window_product
from tandem_ext.functional.neuron import cast, over, over_space
from tandem_ext.functional.products import Product
from tandem_ext.ops import compute_dtype
from tandem_ext.planes import unpack
from tandem_ext.signal import _INSTEAD, Signal
from tandem_ext.train import is_clean, with_flags

from .batch_norm import SyncBatchNorm, applied, fold_norm, normalised, scale_shift, uses_batch
from .signals import effective_counts

AT_ONCE = 8  # number of steps whose currents are in memory at the same time: one plane of spikes
_OPERATORS = {
    "add": (torch.add, Tensor.add),
    "sub": (torch.sub, torch.subtract, Tensor.sub, Tensor.__rsub__),
    "mul": (torch.mul, torch.multiply, Tensor.mul),
    "truediv": (torch.div, torch.divide, torch.true_divide, Tensor.div),
}
Steps = Callable[[int, int], Tensor]


class Remembered:
    """Steps of currents, computed without a gradient; those computed last are kept.

    What is made of currents step by step holds this alone, not their sum, which lives no longer than backward needs it.
    """

    def __init__(self, compute: Steps) -> None:
        self._compute = compute
        self._last: tuple[tuple[int, int], Tensor] | None = None

    def __call__(self, start: int, stop: int) -> Tensor:
        if self._last is None or self._last[0] != (start, stop):
            with torch.no_grad():
                self._last = (start, stop), self._compute(start, stop)
        return self._last[1]


class Currents(Signal):
    """Input currents of neurons: real numbers, the pre-activations of the ANN, which add up where spikes cannot.

    Layers with ``neurons=False`` return them; ``a + b`` is their sum, with each other or with the spikes of a train
    times its gain, ``a - b`` their difference. ``a * factor`` and ``a / factor`` scale them; ``a + constant``, such as
    the embedding of positions, counts once per window. Both are a number or a tensor that broadcasts with a sample.
    :class:`tandem_snn.nn.Neurons` and all layers read them.

    Args:
        total: [B, *features], the sum over the window: the value of the ANN at the real counts, with its gradient; or a
            function that computes it.
        steps: (start, stop) -> the currents of these steps, [stop - start, B, *features], without a gradient; start is
            a multiple of 8. They are computed on demand, so that memory does not grow with T, and without gradients
            the sum is, too: change weights and constants in place only after the neurons have read the currents.
        T: the number of time steps.
        constant: whether every step has the same currents; ``steps`` then returns one step for any range.
        dtype: that of the network's weights, and of the counts of neurons on these currents.

    >>> layer = tnn.Linear(3, 5, neurons=False)
    >>> u = layer(te.SpikeTrain.from_dense(torch.ones(8, 2, 3)))
    >>> (u + u * 0.5).shape, tnn.Neurons()(u).T
    (torch.Size([2, 5]), 8)
    """

    _fields = ("total", "T")
    _instead = _INSTEAD | {"mean": "tandem_snn.nn.AvgPool1d, behind Permute([0, 2, 1]), averages tokens"}
    _tensors = "total is their sum over the window, [B, *features]"
    gain = 1.0
    joins_kinds = True
    __array_ufunc__ = None  # numbers of numpy leave their operators to the currents

    def __init__(
        self,
        total: Tensor | Callable[[], Tensor],
        steps: Steps,
        T: int,
        constant: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._total, self._steps, self.T, self.constant, self.dtype = total, Remembered(steps), T, constant, dtype

    @property
    def total(self) -> Tensor:
        """The sum over the window, [B, *features]."""
        if not isinstance(self._total, Tensor):
            with torch.no_grad(), _no_autocast():
                self._total = self._total()
        return self._total

    @property
    def counts(self) -> Tensor:
        """The same, under the name that it has for trains and direct inputs."""
        return self.total

    @property
    def shape(self) -> torch.Size:
        """[B, *features]."""
        return self.total.shape

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""
        return self.total.device

    @property
    def steps(self) -> Steps:
        """(start, stop) -> the currents of steps start .. stop - 1, [stop - start, B, *features], without gradients."""
        return self._steps

    def replace(self, gain: float = 1.0) -> "Currents":  # type: ignore[override]
        """Return the currents: their gain is 1."""
        if isinstance(gain, Tensor) or gain != 1:
            raise ValueError(f"gain: currents have the gain 1, got {gain}: factor * currents scales them")
        return self

    def map(self, f: Callable[[Tensor], Tensor]) -> "Currents":
        """Return f of the currents, where f is linear and has no constant."""
        return combined(f, [self])

    def masked(self, dropout: Callable[[Tensor], Tensor]) -> "Currents":
        """Return the currents times a dropout of ones, with one mask for the whole window."""
        mask = dropout(torch.ones_like(self.total))
        return self._each(lambda u: u * mask, lambda u: u * mask)

    def affine(self, scale: Tensor | None, shift: Tensor | None) -> "Currents":
        """Return scale * currents + shift, of each channel; each step receives shift/T. None is neutral."""
        if scale is None and shift is None:
            return self
        scale, shift = (None if t is None else cast(t, compute_dtype(t.dtype)) for t in (scale, shift))
        share = None if shift is None else over(shift.detach(), self.T)
        return self._each(lambda u: _affine(u, u.shape, scale, shift), lambda u: _affine(u, u.shape[1:], scale, share))

    def plus(self, term: Any) -> "Currents":
        """Return the currents plus a constant that broadcasts with one sample; each step receives its T-th part."""
        part = over(term.detach() if isinstance(term, Tensor) else term, self.T)
        return self._each(lambda u: u + term, lambda u: u + part)

    def _each(self, of_total: Callable[[Tensor], Tensor], of_steps: Callable[[Tensor], Tensor]) -> "Currents":
        made = self.steps
        steps: Steps = lambda start, stop: of_steps(made(start, stop))  # noqa: E731
        return Currents(_made(lambda: of_total(self.total)), steps, self.T, self.constant, self.dtype)

    def residual(self, timing: str) -> Tensor:
        """Return the currents as the residual of a layer: of every step or, with timing "window", their sum."""
        if timing == "window":
            return self.total.unsqueeze(0)
        starts = range(0, 1 if self.constant else self.T, AT_ONCE)
        steps = torch.cat([self.steps(start, min(start + AT_ONCE, self.T)) for start in starts])
        steps = steps.expand(self.T, *steps.shape[1:]) if self.constant else steps
        if not torch.is_grad_enabled():
            return steps
        # The gradients of all parts are the same, since only their sum affects the loss.
        parts = (self.total.to(steps.dtype) / self.T).expand_as(steps)
        return apply(StraightThrough, parts, steps, None)

    @classmethod
    def check_fit(cls, signals: Any, dim: int) -> int:
        return super().check_fit([currents_of(x) for x in signals], dim)

    @classmethod
    def concatenate(cls, signals: Any, dim: int) -> "Currents":
        return combined(lambda *parts: torch.cat(parts, dim), [currents_of(x) for x in signals])

    def __add__(self, other: Any) -> "Currents":
        if isinstance(other, Signal):
            return combined(_added, [self, currents_of(other)], at_once=True)
        if not _is_constant(other):
            return NotImplemented
        self._check_constant("+: expected currents or", other)
        return self.plus(other)

    __radd__ = __add__

    def _check_constant(self, expected: str, value: Any) -> None:
        given, sample = list(getattr(value, "shape", ())), [1, *self.shape[1:]]
        if isinstance(value, Tensor) and value.is_complex():
            raise TypeError(f"{expected} a real constant, got {value.dtype}")
        fits = all(n == 1 or n == size for n, size in zip(reversed(given), reversed(sample)))  # noqa: B905
        if not fits or len(given) > len(sample):
            raise ValueError(f"{expected} a constant that broadcasts with a sample {sample}, got {given}")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do as operators do: ``torch.compile`` asks for torch's functions instead."""
        result = by_operator(cls, func, args, kwargs)
        return super().__torch_function__(func, types, args, kwargs) if result is NotImplemented else result

    def __mul__(self, factor: Any) -> "Currents":
        if not _is_constant(factor):
            raise TypeError(f"*: currents are multiplied by a number or a tensor, got {type(factor).__name__}")
        self._check_constant("*: expected", factor)
        return self._each(lambda u: u * factor, lambda u: u * factor)

    __rmul__ = __mul__

    def __truediv__(self, factor: Any) -> "Currents":
        return self * (1 / factor) if _is_constant(factor) else NotImplemented

    def __neg__(self) -> "Currents":
        return self * -1.0

    def __sub__(self, other: Any) -> "Currents":
        if isinstance(other, Signal):
            return self + -currents_of(other)
        return self + -other if _is_constant(other) else NotImplemented

    def __rsub__(self, other: Any) -> "Currents":
        return -self + other


def _is_constant(value: Any) -> bool:
    return isinstance(value, Real | Tensor)


def by_operator(kind: type, func: Any, args: Any, kwargs: Any) -> Any:
    """Return what the operator of torch's add, sub, mul or div makes of two operands, of which one is of this kind.

    NotImplemented: it is another function. Settings such as ``alpha`` have no operator: TypeError.
    """
    name = next((name for name, functions in _OPERATORS.items() if func in functions), None)
    if name is None:
        return NotImplemented
    given = dict(kwargs or {})
    args = [*args, *(given.pop(key) for key in ("input", "other") if key in given)]
    if len(args) != 2 or given.pop("alpha", 1) != 1 or given:
        raise TypeError(f"torch's {func.__name__}: expected two operands alone: write it with + - * or /, as u + 2 * v")
    a, b = args[::-1] if func is Tensor.__rsub__ else args
    if isinstance(a, kind):
        return getattr(a, f"__{name}__")(b)
    reflected = getattr(b, f"__r{name}__", None)
    return NotImplemented if reflected is None else reflected(a)


@contextmanager
def _no_autocast() -> Iterator[None]:
    if not autocast_active():  # exported graphs name each context
        yield
        return
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


def _added(a: Tensor, b: Tensor) -> Tensor:
    if a.shape != b.shape:
        raise ValueError(f"+: expected currents of one shape, got {list(a.shape)} and {list(b.shape)}")
    return a + b


def _made(f: Callable[[], Tensor]) -> Tensor | Callable[[], Tensor]:
    """Compute a sum now if it may get a gradient or depends on autocast, else when it is needed."""
    return f() if torch.is_grad_enabled() or autocast_active() else f


def _affine(u: Tensor, shape: torch.Size, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    if scale is not None:
        u = u * over_space(scale, shape)
    return u if shift is None else u + over_space(shift, shape)


def combined(f: Callable[..., Tensor], inputs: list[Currents], at_once: bool = False) -> Currents:
    """Return f of several currents with the same T, where f is linear in all of them together.

    ``at_once``: f takes [steps, B, *features] too; else it is asked step by step, since torch may round otherwise in a
    batch of another size.
    """
    return Currents(_made(lambda: f(*(x.total for x in inputs))), *in_steps(f, inputs, at_once), inputs[0].dtype)


def in_steps(f: Callable[..., Tensor], inputs: list[Currents], at_once: bool = False) -> tuple[Steps, int, bool]:
    """Return f of the steps of several currents, their T, and whether all steps are the same."""
    windows = {x.T for x in inputs}
    if len(windows) != 1:
        raise ValueError(f"T: the trains of a sum have different numbers of steps, {sorted(windows)}")

    made = [x.steps for x in inputs]

    def steps(start: int, stop: int) -> Tensor:
        parts = [steps_of(start, stop) for steps_of in made]
        n = max(len(part) for part in parts)
        parts = [part.expand(n, *part.shape[1:]) for part in parts]
        return f(*parts) if at_once else torch.stack([f(*of_step) for of_step in zip(*parts, strict=True)])

    return steps, windows.pop(), all(x.constant for x in inputs)


def currents_of(x: Any) -> Any:
    """Return the spikes or values of a signal, times its gain, as currents; a tensor is returned unchanged.

    >>> currents_of(te.SpikeTrain.from_dense(torch.ones(4, 1, 2), gain=0.5)).total
    tensor([[2., 2.]])
    """
    if isinstance(x, Currents | Tensor):
        return x
    if x.as_currents is not None:
        return x.as_currents()
    if x.offset is not None:
        value = x.offset * over_space(x.gain, x.shape)
        return currents_of(x.replace(offset=None)).plus(value.to(compute_dtype(x._dtype)))
    T, shape, detached = x.network_T, x.shape, x.gain.detach() if isinstance(x.gain, Tensor) else x.gain
    gain = over_space(detached, shape)
    if not isinstance(x, SpikeTrain):
        first = (x.x.detach() * gain).unsqueeze(0)
        return Currents(_made(lambda: effective_counts(x)), *_direct(first, T, isinstance(x, ConstantInput)))
    dtype = compute_dtype(x._dtype)
    worth = cast(x.gain, dtype) if isinstance(x.gain, Tensor) else x.gain
    total = _made(lambda: x.counts.to(dtype) * over_space(worth, shape))

    def steps(start: int, stop: int) -> Tensor:
        return _flagged(spikes_of(x.stored_as("step"), start, stop, dtype) * gain, x.bad)

    return Currents(total, steps, T, dtype=x._dtype)


def _direct(first: Tensor, T: int, constant: bool) -> tuple[Steps, int, bool]:
    def impulse(start: int, stop: int) -> Tensor:
        later = torch.zeros_like(first).expand(stop - start - (start == 0), *first.shape[1:])
        return torch.cat([first, later]) if start == 0 else later

    return (lambda start, stop: first) if constant else impulse, T, constant


def _flagged(steps: Tensor, bad: Tensor | None) -> Tensor:
    """Add NaN flags to the first of some steps, which is enough, because potentials stay NaN."""
    if bad is None or is_clean(bad):  # joining takes as long as adding two currents
        return steps
    return torch.cat([with_flags(steps[0], bad).unsqueeze(0), steps[1:]])


def product(x: Input | Currents, weight: Tensor, synapses: Product) -> Currents:
    """Return the product of a weight with a signal, without its gain: exact for a train, torch's for real numbers."""
    if isinstance(x, Currents):
        dtype = compute_dtype(weight.dtype)
        u = x.map(lambda u: real_product(u, weight, synapses).to(dtype))
        u.dtype = weight.dtype
        return u
    T = x.network_T
    if not isinstance(x, SpikeTrain):
        read, used, _ = fitted(x, weight, synapses)
        y = synapses.direct(read.x, used).to(compute_dtype(weight.dtype))
        constant = isinstance(x, ConstantInput)
        return Currents(y * T if constant else y, *_direct(y.detach().unsqueeze(0), T, constant), weight.dtype)
    bad, dtype = x.bad, x._dtype

    def steps(start: int, stop: int) -> Tensor:  # as samples of one batch
        spikes = spikes_of(x.stored_as("step"), start, stop)
        samples = SpikeTrain.unchecked(spikes.flatten(0, 1).unsqueeze(0), 1, None, 1.0, dtype)
        return _flagged(window_product(samples, weight, synapses).unflatten(0, spikes.shape[:2]), bad)

    counted = dtype if weight.dtype == torch.int8 else weight.dtype
    return Currents(_made(lambda: window_product(x, weight, synapses)), steps, T, dtype=counted)


def real_product(x: Tensor, weight: Tensor, synapses: Product, bias: Tensor | None = None) -> Tensor:
    """Return torch's product with real numbers, in the dtype of the weight."""
    x = x.to(weight.dtype)
    synapses.output_shape(x.shape, weight)  # its errors name what does not fit
    return synapses.direct(x, weight, bias)


def normalise(x: Any, norm: BatchNorm, batch: bool = True) -> Any:
    """Apply batch norm to currents, with the same statistics for the currents and the ANN branch.

    In training these are the statistics of z over the batch, which also update the running statistics; in evaluation
    they are the running statistics. ``batch=False`` takes scale and shift from the running statistics in any case.

    >>> norm = torch.nn.BatchNorm1d(2)
    >>> x = te.SpikeTrain.from_dense((torch.rand(4, 8, 2) < 0.5).float())
    >>> torch.equal(normalise(x, norm).total, norm(x.counts))
    True
    """
    if isinstance(x, Tensor):
        return norm(x)
    u = currents_of(x)
    if not uses_batch(norm):
        return u.affine(*fold_norm(norm))
    if not batch or isinstance(norm, SyncBatchNorm):
        z, scale, shift = normalised(norm, u.total, batch)
        return Currents(z, u.affine(scale, shift).steps, u.T, u.constant, u.dtype)
    made: list[Currents] = []

    def steps(start: int, stop: int) -> Tensor:  # window timing asks for none
        if not made:
            made.append(u.affine(*scale_shift(norm, u.total)))
        return made[0].steps(start, stop)

    return Currents(applied(norm, u.total), steps, u.T, u.constant, u.dtype)


def spikes_of(planes: Tensor, start: int, stop: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Return the spikes of steps start .. stop - 1, [stop - start, B, *features]; start is a multiple of 8."""
    return unpack(planes[start // 8 : (stop + 7) // 8], stop - start, dtype)
