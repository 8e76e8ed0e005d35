"""Calls of every op. Valid ones: what torch.library asks of an op. Hostile ones: an error that names what is wrong, or
the very result of the same values laid out plainly.

A valid call is one that a layer makes. Hostile is what the schema's type allows: other layouts, shapes, dtypes, devices
and values of tensors, numbers at and beyond their borders, strings that are no gate. `make fuzz` runs this file with
other seeds each time.
"""

import math
from functools import partial
from random import Random

import any_layer
import cases
import pytest
import torch
from cases import WINDOWS, assert_same, dyadic, train
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import tandem_ext as te

f, ref = te.functional, te.reference
ERRORS = (RuntimeError, ValueError, TypeError)
sizes = st.sampled_from([0, 1, 2, 3, 5, 7, 13, 16, 17, 33])

INTS = (-(2**63), -(2**31), -1, 0, 1, 2, 7, 255, 256, 2**31, 2**40, 2**62, 2**63 - 1)
FLOATS = (0.0, -0.0, -1.0, 1e-45, 1e-320, 0.5, 1.0, 2.0, 1e38, 1e308, math.inf, -math.inf, math.nan)
STRINGS = ("", "RELU", "relu\0", "clip", "\N{GREEK SMALL LETTER RHO}" * 500)
DTYPES = (torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32,
          torch.float64, torch.complex64)  # fmt: skip
NOT_NUMBERS = (math.nan, math.inf, -math.inf)


class Recorder(TorchDispatchMode):
    """Keeps the last call of every op that layers make: by name, its arguments."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "tandem":
            schema = func._schema.arguments
            names = [argument.name for argument in schema]
            given = {argument.name: argument.default_value for argument in schema}
            given |= dict(zip(names, args, strict=False)) | (kwargs or {})
            self.calls[func._schema.name.removeprefix("tandem::")] = {
                name: value.detach() if torch.is_tensor(value) else value for name, value in given.items()
            }
        return func(*args, **(kwargs or {}))


@st.composite
def recorded(draw, op, *products):
    """A call that any layer makes of an op, in its forward or backward pass."""
    random = Random(draw(st.integers(0, 2**32)))
    recorder = Recorder()
    while op not in recorder.calls:
        timing = random.choice(["step", "step", "window"])
        call, can = any_layer.drawn(random, random.choice(products), timing, random.choice(cases.DTYPES))
        with recorder:
            any_layer.evaluate(te.functional, *call, random.choice([[], can]))
    found = recorder.calls[op]
    others = {"train": [True, False], "return_v": [True, False]}
    if "bad" in found:
        batch = next(iter(found.values())).shape["current" not in found]
        others["bad"] = [None, torch.zeros(batch), torch.full((1,), math.nan)]
    return found | {name: draw(st.sampled_from(values)) for name, values in others.items() if name in found}


@st.composite
def product(draw):
    """A product of the window, linear where there are no axes."""
    layer = draw(recorded("linear_if", "linear") | recorded("conv_if", "conv"))
    axes = {name: layer.get(name, []) for name in ("stride", "padding", "dilation")}
    kept = {name: layer[name] for name in ("stored", "T", "weight")}
    return {**kept, **axes, "groups": layer.get("groups", 1), "timing": layer["timing"]}


@st.composite
def quantise(draw):
    shape = draw(st.sampled_from([(5, 7), (6, 3, 4), (4, 2, 3, 3), (0, 2, 3, 3)]) | st.tuples(sizes, sizes))
    return {"weight": dyadic(*shape), "bits": draw(st.integers(2, 8))}


@st.composite
def bits(draw, op):
    features = st.sampled_from([(), (5,), (3, 7), (2, 3, 5)]) | st.tuples(sizes)
    T, dtype = draw(st.sampled_from(WINDOWS)), draw(st.sampled_from(cases.DTYPES))
    spikes = train(T, draw(sizes), *draw(features))
    planes = {"planes": spikes.planes}
    if op == "count_bytes":
        return planes
    if op == "burst_planes":
        return {"counts": torch.ops.tandem.count_bytes(planes["planes"]), "T": T}
    if op == "pack":
        return {"spikes": spikes.to_dense().to(draw(st.sampled_from(DTYPES[:-1])))}
    return planes | ({"T": T} if op == "unpack" else {}) | {"dtype": dtype}


@st.composite
def statistics(draw):
    layer = draw(recorded("bn_if", "linear_bn", "conv_bn"))
    norm = {name: layer[name] for name in ("gain", "gamma", "beta", "eps", "unit", "number")}
    shape = draw(st.integers(1, 9)), len(layer["weight"]), *draw(st.sampled_from([(), (3,), (2, 3)]))
    return {"product": dyadic(*shape, dtype=cases.compute_dtype(layer["weight"].dtype)), "factor": 8.0, **norm}


CALLS = {
    **{op: recorded(op, "scan") for op in ("if_scan", "constant_if", "impulse_if")},
    **{f"{layer}_if": recorded(f"{layer}_if", layer) for layer in ("linear", "conv")},
    "bn_if": recorded("bn_if", "linear_bn", "conv_bn"),
    **{name: bits(name) for name in ("pack", "unpack", "counts", "count_bytes", "burst_planes")},
    "window_product": product(),
    "quantise": quantise(),
    "gate_grad": recorded("gate_grad", "scan", "linear", "conv"),
    "bn_statistics": statistics(),
    "bn_grad": recorded("bn_grad", "linear_bn", "conv_bn"),
}
OPS = sorted(CALLS)

LAYOUTS = (
    lambda x: x[:1].expand(x.shape) if x.dim() and len(x) else x,
    lambda x: x.contiguous().as_strided(x.shape, [min(1, s) for s in x.contiguous().stride()]) if x.numel() else x,
    lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape) if x.numel() else x,
    lambda x: torch.stack([x, x], -1)[..., 0],
    # Real numbers of which torch only notes that their sign is the other one.
    lambda x: torch.complex(torch.zeros_like(x), -x).conj().imag if x.dtype in (torch.float32, torch.float64) else x,
    lambda x: x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() > 1 else x,
    lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0) if x.dim() else x, lambda x: x.flip(0) if x.dim() else x,
)  # fmt: skip
SHAPES = (
    lambda x: x[:0] if x.dim() else x, lambda x: x.unsqueeze(0), lambda x: x.unsqueeze(-1),
    lambda x: x[0] if x.dim() and len(x) else x, lambda x: torch.cat([x, x]) if x.dim() else x,
    lambda x: x[..., :-1] if x.dim() else x, lambda x: x.flatten(), lambda x: x.new_zeros(()),
    lambda x: x.expand(256, *x.shape), lambda x: x.to("meta"), lambda x: x.to_sparse(),
    lambda x: x.detach().requires_grad_() if x.is_floating_point() else x,
)  # fmt: skip


def with_value(x, value):
    """One element replaced; in a plane by a byte that has every bit, also those beyond T."""
    x = x.clone(memory_format=torch.contiguous_format)
    if x.numel():
        value = value if x.is_floating_point() else 255 if x.dtype == torch.uint8 else 1
        x.view(-1)[int(torch.randint(x.numel(), ()))] = value
    return x


VALUES = tuple(partial(with_value, value=value) for value in (math.nan, math.inf, -math.inf, -0.0, 1e-45, 3e38))


def hostile(kind, value):
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
    """Arguments by name, so many of which are hostile."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    arguments = draw(CALLS[op])
    schema = {a.name: str(a.type) for a in getattr(torch.ops.tandem, op).default._schema.arguments}
    assert list(schema) == list(arguments)
    for name in draw(st.permutations(sorted(arguments)))[:changes]:
        arguments[name] = draw(hostile(schema[name], arguments[name]))
    return arguments


def plainly(value):
    """The same values in an ordinary tensor."""
    if not torch.is_tensor(value):
        return value
    return value.detach().resolve_neg().clone(memory_format=torch.contiguous_format)


def same(a, b):
    if a is None or b is None:
        return a is b
    if a.dtype != b.dtype or a.shape != b.shape or a.device != b.device:
        return False
    return a.is_meta or (torch.equal(a.nan_to_num(1e30), b.nan_to_num(1e30)) and torch.equal(a.isnan(), b.isnan()))


def complaint_of(function, arguments):
    try:
        result = function(*arguments)
        return (result,) if torch.is_tensor(result) else result, None
    except ERRORS as error:
        return None, error


def opcheck(op, data, *utils, compared=False):
    """torch's checks of an op, but of autograd, which it leaves to a Function around it; tensors may lie in any way.
    Where results are ``compared`` no NaN is equal to itself.
    """
    arguments = data.draw(calls(op, 0))
    layouts = st.sampled_from([lambda x: x, *LAYOUTS])
    call = [data.draw(layouts)(value) if torch.is_tensor(value) else value for value in arguments.values()]
    function = getattr(torch.ops.tandem, op).default
    results, _ = complaint_of(function, call)
    assume(not (compared and any(tensor.isnan().any() for tensor in results if tensor is not None)))
    torch.library.opcheck(function, call, test_utils=utils)


def test_every_op_is_called_here():
    """All but build_info, without arguments, and frozen_*, whose results have shapes that tensors' contents decide."""
    schemas = (schema.name.partition("::") for schema in torch._C._jit_get_all_schemas())
    names = {name for namespace, _, name in schemas if namespace == "tandem"}
    assert names - CALLS.keys() == {name for name in names if name.startswith("frozen_")} | {"build_info"}


@pytest.mark.parametrize("op", OPS)
@given(data=st.data())
@settings(max_examples=32)
def test_a_valid_call_is_as_its_schema_and_fake_say(op, data):
    opcheck(op, data, "test_schema", "test_faketensor")


@pytest.mark.parametrize("op", OPS)
@given(data=st.data())
@settings(max_examples=3)  # a trace takes long
def test_a_valid_call_is_traced(op, data):
    opcheck(op, data, "test_aot_dispatch_static", "test_aot_dispatch_dynamic", compared=True)


@pytest.mark.kernels
@pytest.mark.parametrize("op", OPS)
@given(data=st.data())
def test_a_hostile_call_is_refused_or_right(op, data):
    function = getattr(torch.ops.tandem, op).default
    arguments = data.draw(calls(op, data.draw(st.integers(0, 3))))
    results, error = complaint_of(function, arguments.values())
    if error is None:
        expected, error = complaint_of(function, map(plainly, arguments.values()))
        assert error is None
        assert all(same(a, b) for a, b in zip(results, expected, strict=True))
    else:  # torch's own refusals name the op, failed allocations the size
        names = (*arguments, "T, the number of steps", "tandem::", "bytes", "memory", "Storage size")
        assert any(name in str(error) for name in names), f"{type(error).__name__}: {error}"


@given(random=st.randoms(), T=st.sampled_from([1, 8, 9]), seed=st.integers(0, 2**16))
def test_what_is_no_number_goes_where_the_reference_sends_it(random, T, seed):
    """NaN never fires, an infinite current always does, in shifts and residual currents; an infinite weight makes its
    output's current NaN; a scale that is infinite has no meaning where it meets an absent bias, one that is NaN has.
    """
    torch.manual_seed(seed)
    x, weight, image, kernel = train(T, 3, 7), dyadic(5, 7), train(T, 2, 4, 5, 5), dyadic(6, 4, 3, 3)
    for layer, data_, w, shape in (
        ("linear_if", x, weight, (3, 5)),
        ("conv2d_if", image, kernel, (2, 6, 3, 3)),
        ("if_scan", dyadic(T, 3, 5), None, (3, 5)),
    ):
        arguments = any_layer.neurons(random, T, shape)
        kept = arguments["v_init"], arguments["threshold"]
        victims = [a for a in (w, *arguments.values()) if torch.is_tensor(a) and not any(a is other for other in kept)]
        if victims:
            victim = random.choice(victims)
            values = NOT_NUMBERS[:1] if victim is arguments["scale"] else NOT_NUMBERS
            victim.view(-1)[random.randrange(victim.numel())] = random.choice(values)
        given_ = (data_,) if w is None else (data_, w)
        ours, theirs = (getattr(m, layer)(*given_, **arguments) for m in (f, ref))
        assert_same(ours[0], theirs[0])
        assert same(ours[1], theirs[1])
