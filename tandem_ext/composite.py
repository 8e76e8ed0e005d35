"""The ops in torch's own operators, for devices and dtypes for which this build has no kernels: float64 anywhere.

The neurons are those of ``rule.py``; products are torch's, exact where its sums are. Tensors are in the order of memory
here, [B, *space, C]. Kernels pass float64 on to ``torch.ops.tandem_composite``. With the environment variable
TANDEM_KERNELS=0 there are no kernels.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import Library

from . import checks
from ._load import KERNELS, has_kernels
from ._torch import arguments_of, schema_of
from .functional.products import Product, products_of_steps, torch_product
from .ops import Arguments, compute_dtype, counts_dtype, grad_dtype
from .rule import Residual, batch_statistics, divided, fire, inverse_deviation, lost, pack, spikes_of

_ops, _own = Library("tandem", "IMPL"), Library("tandem_composite", "DEF")
_said: set[str] = set()


def rows(x: Tensor, channel: int) -> Tensor:
    """Return x [..., C, *space], with C in a dimension ``channel``, as [..., *space, C], contiguous."""
    return (x.movedim(channel, -1) if x.dim() > channel + 1 else x).contiguous()


def images(x: Tensor, channel: int) -> Tensor:
    """The inverse of :func:`rows`, as a view."""
    return x.movedim(-1, channel) if x.dim() > channel + 1 else x


def pack_bits(bits: Tensor) -> Tensor:
    """bool [n] -> uint8 [ceil(n / 8)], bit n % 8 of byte n // 8."""
    return (F.pad(bits.view(torch.uint8), (0, -len(bits) % 8)).view(torch.int64) * 0x0102040810204080 >> 56).byte()


def unpack_bits(mask: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`pack_bits`: 0 and 1 in the shape and dtype of ``like``."""
    if mask.dtype != torch.uint8:
        raise TypeError(f"mask: expected uint8, got {mask.dtype}")
    step = torch.arange(256, device=mask.device).unsqueeze(1) >> torch.arange(8, device=mask.device)
    bits = torch.embedding((step & 1).to(like.dtype), mask.int())  # faster than shifts of each bit
    return bits.view(-1)[: like.numel()].view(like.shape)


# --- neurons ----------------------------------------------------------------------------------------------------------


def _fire(a: Arguments, T: int, shape: Sequence[int], like: Tensor, y: Iterable[Tensor], u: Tensor | None) -> Any:
    """Run neurons of a shape [B, *space, C], driven by the products y; return (stored, counts, mask, v, bad)."""
    check(a, T)
    dtype, window = compute_dtype(like.dtype), a["timing"] == "window"
    v, r, residual = a["v_init"], a["residual"], None
    if v is None:
        v = torch.full((), a["threshold"] / 2 if window else 0.0, dtype=dtype, device=like.device)
    else:
        v = rows(v, int(v.dim() == len(shape))).to(dtype)
    scale, shift, unit = a["scale"], a["shift"], a.get("unit", 1.0)
    if (factor := a.get("gain", 1.0) / unit) != 1:
        scale = torch.full(shape[-1:], factor, dtype=dtype, device=like.device) if scale is None else scale * factor
    if unit != 1 and shift is not None:
        shift = divided(shift, unit)
    if r is not None:
        r = rows(r, 2)
        if r.dtype == torch.uint8:
            r = r.to(dtype) if window else spikes_of(r, T, "step", dtype)
        residual = Residual(r, reduce(torch.add, r), a["residual_scale"])
    stored, counts, v, is_open = fire(
        y, u, scale, shift, residual, v.expand(shape), T, a["steps"], a["threshold"], a["leak"], a["gate"], a["timing"],
        ends=a["return_v"],
    )  # fmt: skip
    bad = lost(v).float() if a["bad"] is None else lost(v).float() + a["bad"]
    mask = None
    if a.get("train", True) and is_open is not None:
        counts, mask = images(counts.to(counts_dtype(like.dtype, T)), 1), pack_bits(is_open.flatten())
    return images(stored, 2), counts if mask is not None else None, mask, images(v, 1) if a["return_v"] else None, bad


def check(a: Arguments, T: int) -> None:
    checks.one_of("timing", a["timing"], checks.TIMINGS)
    checks.one_of("gate", a["gate"], checks.GATES)
    checks.T("T", T, a["timing"])
    checks.positive("steps", a["steps"])
    if a["timing"] == "window":
        checks.T("steps", a["steps"], a["timing"])
    checks.share("leak", a["leak"])
    checks.number("threshold", a["threshold"], "a float", "a positive number", math.ulp(0.0))


def _given(source: str, a: Arguments) -> Any:
    if source == "if_scan":
        y = rows(a["currents"], 2).to(compute_dtype(a["currents"].dtype))
        sums = a["train"] or a["timing"] == "window"
        return _fire(a, len(y), y.shape[1:], a["currents"], y, reduce(torch.add, y) if sums else None)
    y, T = rows(a["current"], 1).to(compute_dtype(a["current"].dtype)), a["T"]
    check(a, T)
    constant = source == "constant_if"
    steps = (y if constant or t == 0 else torch.zeros_like(y) for t in range(T))
    return _fire(a, T, y.shape, a["current"], steps, T * y if constant else y)


# --- products ---------------------------------------------------------------------------------------------------------


class Synapses:
    """What a train stores, and the weight that multiplies it."""

    def __init__(self, a: Arguments) -> None:
        weight = a["weight"]
        self.like = weight.float() if weight.dtype == torch.int8 else weight
        self.weight = self.like.to(compute_dtype(self.like.dtype))
        stride, padding, dilation = (tuple(a.get(name, ())) for name in ("stride", "padding", "dilation"))
        self.product = Product(stride, padding, dilation, a.get("groups", 1))
        batch, outputs, *space = self.product.output_shape(a["stored"].shape[1:], weight)
        self.shape = batch, *space, outputs
        self.stored, self.T, self.timing, self.lost = rows(a["stored"], 2), a["T"], a["timing"], lost(self.weight)

    def product_of(self, x: Tensor) -> Tensor:
        return rows(torch_product(images(x, 1), self.weight, self.product), 1).add_(self.lost)

    def window(self) -> Tensor:
        """u = W c, [B, *space, N]."""
        return self.product_of(counts_of(self.stored, self.timing, self.weight.dtype))

    def steps(self) -> Iterable[Tensor]:
        """The products of the steps."""
        first = [8 * p for p in range(len(self.stored))]
        spikes = (spikes_of(self.stored[t // 8 :], min(8, self.T - t), "step", self.weight.dtype) for t in first)
        return products_of_steps(spikes, self.product_of)

    def fire(self, a: Arguments, u: Tensor | None) -> Any:
        return _fire(a, self.T, self.shape, self.like, self.steps(), u)


def counts_of(stored: Tensor, timing: str, dtype: torch.dtype) -> Tensor:
    bytes_ = stored if timing == "window" else reduce(torch.add, [stored >> t & 1 for t in range(8)])
    return (bytes_[0] if len(bytes_) == 1 else bytes_.sum(0)).to(dtype)


def _layer(a: Arguments) -> Any:
    synapses = Synapses(a)
    return synapses.fire(a, synapses.window() if a["train"] or a["timing"] == "window" else None)


def _window_product(a: Arguments) -> Tensor:
    return images(Synapses(a).window(), 1)


# --- batch norm -------------------------------------------------------------------------------------------------------


def _statistics(u: Tensor, a: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    one = u.new_ones(u.shape[-1])
    names = {"gain": one * a["number"], "gamma": one, "beta": torch.zeros_like(one)}
    gain, gamma, beta = (neutral if a[name] is None else a[name].to(u.dtype) for name, neutral in names.items())
    gamma, beta = divided(gamma, a["unit"]), divided(beta, a["unit"])
    return batch_statistics(u.flatten(0, -2), gain, gamma, beta, a["eps"])


def _bn_if(a: Arguments) -> Any:
    synapses = Synapses(a)
    u = synapses.window()
    mean, var, scale, shift = _statistics(u, a)
    stored, counts, mask, v, bad = synapses.fire(a | {"scale": scale, "shift": shift, "gain": 1.0, "unit": 1.0}, u)
    return stored, counts, mask, v, images(u, 1), mean, var, bad


def _bn_statistics(a: Arguments) -> tuple[Tensor, ...]:
    product = rows(a["product"], 1)
    return _statistics(product.to(compute_dtype(product.dtype)) * a["factor"], a)


def _bn_grad(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """Through z = γ·(gain·u - mean)/deviation + β: torch's own, of u with a deviation that is divided by the gain."""
    product, grad, one = a["product"].to(compute_dtype(a["product"].dtype)), a["grad"], torch.ones_like(a["mean"])
    checks.shaped("grad", grad, product.shape, "product", product.device)
    for name in ("mean", "var", "gamma"):  # torch does not check them
        if a[name] is not None:
            checks.shaped(name, a[name], product.shape[1:2], "product", product.device)
    if not product.numel():
        return torch.empty_like(product), torch.zeros_like(one), torch.zeros_like(one)
    gain = one * a["number"] if a["gain"] is None else a["gain"].to(one.dtype).expand_as(one)
    gamma = one if a["gamma"] is None else a["gamma"].to(one.dtype)
    gamma = divided(gamma, a["unit"])
    gated = _gate_grad(a | {"grad": grad.to(product.dtype)})
    deviation = inverse_deviation(gain, a["var"], a["eps"])
    grads = torch.ops.aten.native_batch_norm_backward.default(
        gated, images(rows(product, 1), 1), gamma, None, None, a["mean"], gain * deviation, True, a["eps"], [True] * 3
    )
    grad_gamma, grad_beta = (divided(total, a["unit"]) for total in grads[1:])
    return images(rows(grads[0].to(grad_dtype(grad, product)), 1), 1), grad_gamma, grad_beta


def _gate_grad(a: Arguments) -> Tensor:
    """Return gate·grad/ϑ."""
    grad = rows(a["grad"], 1)
    if a["threshold"] != 1:
        grad = divided(grad.to(compute_dtype(grad.dtype)), a["threshold"]).to(grad.dtype)
    return images(torch.ops.aten.threshold_backward.default(grad, unpack_bits(a["mask"], grad), 0), 1)


def _burst_planes(a: Arguments) -> Tensor:
    return images(pack(spikes_of(rows(a["counts"], 2), a["T"], "window", torch.bool)), 2)


# --- registration -----------------------------------------------------------------------------------------------------


def _register(name: str, function: Callable[[Arguments], Any]) -> None:
    op = getattr(torch.ops.tandem, name).default
    defaults = {argument.name: argument.default_value for argument in arguments_of(op)}

    def run(*arguments: Any, **named: Any) -> Any:
        a = defaults | dict(zip(defaults, arguments, strict=False)) | named
        tensors = {key: value for key, value in a.items() if isinstance(value, Tensor)}
        for key, tensor in tensors.items():
            if tensor.layout != torch.strided:
                raise TypeError(f"{key}: expected a strided tensor, got {tensor.layout}")
        like = next(iter(tensors.values()))
        where = like.device.type if not has_kernels(like.device) else "float64"
        if where not in _said:
            _said.add(where)
            how = "its layers run by torch's operators: the same rule, sums in torch's order, slower"
            build = "; `TANDEM_CUDA=1 pip install .` makes kernels" * (where == "cuda")
            warnings.warn(
                f"{where}: this tandem_ext has no kernels for it, so {how}{build}", RuntimeWarning, stacklevel=2
            )
        try:
            with torch.no_grad():
                return function(a)
        except (IndexError, RuntimeError) as error:
            raise RuntimeError(f"tandem::{name}: {error}") from error

    _own.define(schema_of(op))
    _own.impl(name, run, "CompositeExplicitAutograd")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an implementation is replaced
        for key in ("CompositeExplicitAutograd",) if KERNELS else ("CompositeExplicitAutograd", "CPU", "CUDA"):
            _ops.impl(name, run, key)


for _source in ("if_scan", "constant_if", "impulse_if"):
    _register(_source, partial(_given, _source))
for _name in ("linear_if", "conv_if"):
    _register(_name, _layer)
_register("bn_if", _bn_if)
_register("window_product", _window_product)
_register("bn_statistics", _bn_statistics)
_register("bn_grad", _bn_grad)
_register("gate_grad", _gate_grad)
_register("pack", lambda a: images(pack(rows(a["spikes"], 2) != 0), 2))
_register("unpack", lambda a: images(spikes_of(rows(a["planes"], 2), a["T"], "step", a["dtype"]), 2))
_register("counts", lambda a: images(counts_of(rows(a["planes"], 2), "step", a["dtype"]), 1))
_register("count_bytes", lambda a: images(counts_of(rows(a["planes"], 2), "step", torch.uint8).unsqueeze(0), 2))
_register("burst_planes", _burst_planes)
_register("frozen_digits", lambda a: a["weight"].new_empty(0, dtype=torch.uint8))
