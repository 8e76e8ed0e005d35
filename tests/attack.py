"""Calls of the ops as no one should make them: valid arguments, some of them then replaced by hostile ones.

A call is a dict of arguments in the order of the op's schema. Hostile is what the schema's type allows: other layouts,
shapes, dtypes, devices and values of tensors, numbers at and beyond their borders, strings that are no gate.
"""

from __future__ import annotations

import math

import torch
from cases import compute_dtype, dyadic, train
from hypothesis import strategies as st

sizes = st.sampled_from([0, 1, 2, 3, 5, 7, 13, 16, 17, 33])
windows = st.sampled_from([1, 7, 8, 9, 16, 17, 255])
precisions = st.sampled_from(["highest", "high", "medium"])
dtypes = st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64])

INTS = (-(2**63), -(2**31), -1, 0, 1, 2, 7, 255, 256, 2**31, 2**40, 2**62, 2**63 - 1)
FLOATS = (0.0, -0.0, -1.0, 1e-45, 1e-320, 0.5, 1.0, 2.0, 1e38, 1e308, math.inf, -math.inf, math.nan)
STRINGS = ("", "RELU", "relu\0", "resu", "clip", "\N{GREEK SMALL LETTER RHO}" * 500)
DTYPES = (torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32,
          torch.float64, torch.complex64)  # fmt: skip


# --- valid calls ------------------------------------------------------------------------------------------------------


timings = st.sampled_from(["step", "step", "window"])


@st.composite
def neuron(draw, T, shape, dtype, timing, norm=False):
    C, channels = compute_dtype(dtype), shape[1] if len(shape) > 1 else 1
    window = timing == "window"

    def maybe(*tensors):
        return draw(st.sampled_from([None, *tensors]))

    affine = {"scale": maybe(dyadic(channels, dtype=C)), "shift": maybe(dyadic(channels, dtype=C))}
    moments = {
        "gain": maybe(torch.tensor(0.5, dtype=C)),
        "gamma": maybe(dyadic(channels, dtype=C)),
        "beta": maybe(dyadic(channels, dtype=C)),
        "eps": draw(st.sampled_from([0.0, 1e-5])),
    }
    last = {"train": draw(st.booleans())}
    return {
        **(moments if norm else affine),
        "residual": maybe(read(train(T, *shape).planes, timing), dyadic(1 if window else T, *shape, dtype=C)),
        "residual_scale": maybe(dyadic(channels, dtype=C)),
        "v_init": maybe(dyadic(*shape, dtype=C), dyadic(*shape[1:], dtype=C), torch.tensor(0.5, dtype=C)),
        "steps": T if window else draw(st.sampled_from([T, 2 * T])),
        "threshold": draw(st.sampled_from([1.0, 0.5])),
        "leak": 1.0 if window else draw(st.sampled_from([1.0, 0.5])),
        "gate": draw(st.sampled_from(["relu", "clip"] if window else ["relu", "clip", "resu"])),
        **({} if norm else last),
        "return_v": draw(st.booleans()),
        "timing": timing,
        "bad": maybe(torch.zeros(shape[0]), torch.full((1,), math.nan)),
    }


def read(planes, timing):
    """What layers of this timing read: planes, or counts."""
    return torch.ops.tandem.count_bytes(planes) if timing == "window" else planes


@st.composite
def features(draw):
    return draw(st.sampled_from([(), (5,), (3, 7), (2, 3, 5)]) | st.tuples(sizes))


@st.composite
def scan(draw, source):
    T, dtype, shape = draw(windows), draw(dtypes), (draw(sizes), *draw(features()))
    rest = draw(neuron(T, shape, dtype, draw(timings)))
    if source == "train":
        return {"currents": dyadic(T, *shape, dtype=dtype), **rest}
    return {"current": dyadic(*shape, dtype=dtype), "T": T, **rest}


@st.composite
def weights(draw, norm, dtype, *shape):
    """Of the type, or in int8, of which few bits are used."""
    few = dtype != torch.float64 and not norm and draw(st.booleans())
    return dyadic(*shape, unit=1, dtype=torch.int8) if few else dyadic(*shape, dtype=dtype)


@st.composite
def linear(draw, norm):
    T, dtype, K = draw(windows), draw(dtypes), draw(sizes)
    B, N = (draw(sizes.filter(bool) if norm else sizes) for _ in range(2))
    timing, weight = draw(timings), draw(weights(norm, dtype, N, K))
    x = {"planes": read(train(T, B, K).planes, timing), "T": T, "weight": weight, "precision": draw(precisions)}
    return {**x, **draw(neuron(T, (B, N), dtype, timing, norm)), **digits(norm)}


def digits(norm):
    return {} if norm else {"digits": None}


@st.composite
def conv(draw, norm):
    T, dtype, B = draw(windows), draw(dtypes), draw(st.integers(int(norm), 3))
    dims, groups = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 3]))
    inputs, outputs = draw(st.integers(1, 3)), draw(st.integers(int(norm), 9))
    window = {
        name: [draw(st.integers(least, least + 2)) for _ in range(dims)]
        for name, least in (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1))
    }
    kernel = window.pop("kernel")
    space = [draw(st.integers(1, 6)) + d * (k - 1) for k, d in zip(kernel, window["dilation"], strict=True)]
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(space, kernel, *(window[i] for i in ("stride", "padding", "dilation")), strict=True)
    ]
    timing = draw(timings)
    x = {"planes": read(train(T, B, inputs * groups, *space).planes, timing), "T": T}
    weight = draw(weights(norm, dtype, outputs * groups, inputs, *kernel))
    rest = draw(neuron(T, (B, outputs * groups, *out), dtype, timing, norm))
    return {**x, "weight": weight, "precision": draw(precisions), **window, "groups": groups, **rest, **digits(norm)}


@st.composite
def product(draw):
    """A product of the window, linear where there are no axes."""
    layer = draw(linear(False) | conv(False))
    axes = {name: layer.get(name, []) for name in ("stride", "padding", "dilation")}
    kept = {name: layer[name] for name in ("planes", "T", "weight", "precision")}
    return {**kept, **axes, "groups": layer.get("groups", 1), "counted": layer["timing"] == "window"}


@st.composite
def quantise(draw):
    shape = draw(st.sampled_from([(5, 7), (6, 3, 4), (4, 2, 3, 3), (0, 2, 3, 3)]) | st.tuples(sizes, sizes))
    return {"weight": dyadic(*shape), "bits": draw(st.integers(2, 8))}


@st.composite
def bits(draw, op):
    T, shape, dtype = draw(windows), (draw(sizes), *draw(features())), draw(dtypes)
    planes = {"planes": train(T, *shape).planes}
    if op == "count_bytes":
        return planes
    if op == "burst_planes":
        return {"counts": read(planes["planes"], "window"), "T": T}
    if op == "pack":
        return {"spikes": (torch.rand(T, *shape) < 0.3).to(draw(st.sampled_from(DTYPES[:-1])))}
    return planes | ({"T": T} if op == "unpack" else {}) | {"dtype": dtype}


@st.composite
def gradient(draw, norm):
    shape, dtype = (draw(sizes), *draw(features())), draw(dtypes)
    if norm:
        shape = (1 + shape[0], *(shape[1:] if len(shape) > 1 and all(shape) else (5,)))
    C, grad = compute_dtype(dtype), dyadic(*shape, dtype=dtype)
    call = {"grad": grad, "mask": torch.randint(0, 256, ((grad.numel() + 7) // 8,), dtype=torch.uint8)}
    if norm:
        one = lambda: dyadic(shape[1], dtype=C)  # noqa: E731
        call |= {"product": dyadic(*shape, dtype=C), "mean": one(), "var": one().abs()}
        call |= {"gain": draw(st.sampled_from([None, torch.tensor(0.5, dtype=C)]))}
        call |= {"gamma": draw(st.sampled_from([None, one()])), "eps": 1e-5}
    return call | {"threshold": 0.5}


@st.composite
def statistics(draw):
    shape, C = (draw(st.integers(1, 9)), draw(sizes.filter(bool)), *draw(features().filter(all))), torch.float32
    rest = draw(neuron(1, shape, C, "step", norm=True))
    norm = {name: rest[name] for name in ("gain", "gamma", "beta", "eps")}
    return {"product": dyadic(*shape, dtype=C), "factor": float(draw(windows)), **norm}


CALLS = {
    "if_scan": scan("train"),
    "constant_if": scan("constant"),
    "impulse_if": scan("impulse"),
    "linear_if": linear(False),
    "conv_if": conv(False),
    "linear_bn_if": linear(True),
    "conv_bn_if": conv(True),
    **{name: bits(name) for name in ("pack", "unpack", "counts", "count_bytes", "burst_planes")},
    "window_product": product(),
    "quantise": quantise(),
    "gate_grad": gradient(False),
    "bn_statistics": statistics(),
    "bn_grad": gradient(True),
}


# --- hostile arguments ------------------------------------------------------------------------------------------------


def _expanded(x):
    return x[:1].expand(x.shape) if x.dim() and x.shape[0] else x


def _overlapping(x):
    if x.dim() == 0 or x.numel() == 0:
        return x
    return torch.as_strided(x.contiguous(), x.shape, [min(1, s) for s in x.contiguous().stride()])


def _offset(x):
    return torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape) if x.numel() else x


def _every_second(x):
    return torch.stack([x, x], -1)[..., 0]


def _negative_view(x):
    """Real numbers of which torch only notes that their sign is the other one."""
    return torch.complex(torch.zeros_like(x), -x).conj().imag if x.dtype in (torch.float32, torch.float64) else x


LAYOUTS = (
    _expanded,
    _overlapping,
    _offset,
    _every_second,
    _negative_view,
    lambda x: x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() > 1 else x,
    lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0) if x.dim() else x,
    lambda x: x.flip(0) if x.dim() else x,
)
SHAPES = (
    lambda x: x[:0] if x.dim() else x,
    lambda x: x.unsqueeze(0),
    lambda x: x.unsqueeze(-1),
    lambda x: x[0] if x.dim() and len(x) else x,
    lambda x: torch.cat([x, x]) if x.dim() else x,
    lambda x: x[..., :-1] if x.dim() else x,
    lambda x: x.flatten(),
    lambda x: x.new_zeros(()),
    lambda x: x.expand(256, *x.shape),
    lambda x: x.to("meta"),
    lambda x: x.to_sparse(),
    lambda x: x.detach().requires_grad_() if x.is_floating_point() else x,
)


def _with(value):
    """One element replaced; in a plane by a byte that has every bit, also those beyond T."""

    def put(x):
        x = x.clone(memory_format=torch.contiguous_format)
        if x.numel():
            x.view(-1)[int(torch.randint(x.numel(), ()))] = (
                value if x.is_floating_point() else 255 if x.dtype == torch.uint8 else 1
            )
        return x

    return put


VALUES = tuple(_with(value) for value in (math.nan, math.inf, -math.inf, -0.0, 1e-45, 3e38))


def hostile(kind: str, value: object) -> st.SearchStrategy:
    """Other values of an argument's schema type."""
    if kind.startswith("Optional") or kind.endswith("?"):
        return st.none() | hostile(kind.removeprefix("Optional[").removesuffix("]").removesuffix("?"), value)
    if kind == "Tensor":
        if value is None:
            return st.sampled_from([torch.ones(()), torch.ones(5), torch.zeros(3, 5, dtype=torch.uint8)])
        changes = st.sampled_from([*LAYOUTS, *SHAPES, *VALUES, *(lambda x, d=d: x.to(d) for d in DTYPES)])
        return changes.map(lambda change: change(value))
    if kind.startswith("List"):
        return st.lists(st.sampled_from(INTS) | st.integers(0, 3), max_size=3)
    return {
        "int": st.sampled_from(DTYPES) if isinstance(value, torch.dtype) else st.sampled_from(INTS),
        "float": st.sampled_from(FLOATS),
        "str": st.sampled_from(STRINGS),
        "bool": st.booleans(),
    }[kind]


@st.composite
def calls(draw, op, changes):
    """(arguments, the names of those that were replaced)."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    arguments = draw(CALLS[op])
    schema = {a.name: str(a.type) for a in getattr(torch.ops.tandem, op).default._schema.arguments}
    assert list(schema) == list(arguments)
    changes = min(changes, len(arguments))
    names = draw(st.lists(st.sampled_from(sorted(arguments)), min_size=changes, max_size=changes, unique=True))
    for name in names:
        arguments[name] = draw(hostile(schema[name], arguments[name]))
    return arguments, names
