"""Calls of every op. Valid ones: what torch.library asks of an op. Hostile ones: an error that names what is wrong, or
the very result of the same values laid out plainly.

`make fuzz` runs this file with other seeds each time.
"""

import math

import attack
import pytest
import torch
from any_layer import neurons
from cases import assert_same, dyadic, train
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tandem_ext as te

f, ref = te.functional, te.reference
OPS = sorted(attack.CALLS)
ERRORS = (RuntimeError, ValueError, TypeError)


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
    """(the results, None) or (None, the error)."""
    try:
        result = function(*arguments)
        return (result,) if torch.is_tensor(result) else result, None
    except ERRORS as error:
        return None, error


def opcheck(op, data, *utils, compared=False):
    """torch's checks of an op, but of autograd, which it leaves to a Function around it; tensors may lie in any way.
    Where results are ``compared`` no NaN is equal to itself.
    """
    arguments, _ = data.draw(attack.calls(op, 0))
    layouts = st.sampled_from([lambda x: x, *attack.LAYOUTS])
    call = [data.draw(layouts)(value) if torch.is_tensor(value) else value for value in arguments.values()]
    function = getattr(torch.ops.tandem, op).default
    results, _ = complaint_of(function, call)
    assume(not (compared and any(tensor.isnan().any() for tensor in results if tensor is not None)))
    torch.library.opcheck(function, call, test_utils=utils)


def test_every_op_is_called_here():
    """All but frozen_*, whose results have shapes that a program, a tensor's content, decides."""
    schemas = (schema.name.partition("::") for schema in torch._C._jit_get_all_schemas())
    names = {name for namespace, _, name in schemas if namespace == "tandem"}
    assert names - set(OPS) == {name for name in names if name.startswith("frozen_")}


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


@pytest.mark.parametrize("op", OPS)
@given(data=st.data())
def test_a_hostile_call_is_refused_or_right(op, data):
    function = getattr(torch.ops.tandem, op).default
    arguments, _ = data.draw(attack.calls(op, data.draw(st.integers(0, 3))))
    results, error = complaint_of(function, arguments.values())
    if error is None:
        expected, error = complaint_of(function, map(plainly, arguments.values()))
        assert error is None
        assert all(same(a, b) for a, b in zip(results, expected, strict=True))
    else:  # torch's own refusals name the op, failed allocations the size
        names = (*arguments, "T, the number of steps", "tandem::", "bytes", "memory")
        assert any(name in str(error) for name in names), f"{type(error).__name__}: {error}"


NOT_NUMBERS = (math.nan, math.inf, -math.inf)


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
        arguments = neurons(random, T, shape)
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
