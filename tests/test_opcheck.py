"""torch.library.opcheck of every op: schema, fake kernel (shapes, strides, dtypes), tracing; on all layouts."""

from pathlib import Path

import pytest
import torch
from cases import DTYPES, compute_dtype, dyadic, spikes, train

ops = torch.ops.tandem
LAYOUTS = ("contiguous", "transposed", "channels_last", "empty")
GRID = [(layout, dtype) for layout in LAYOUTS for dtype in DTYPES]


def check(layout, op, *arguments):
    """All that opcheck has for an op that leaves autograd to a Function around it.

    Tracing through AOTAutograd takes most of the time; layouts reach it through the fake kernels, checked for all.
    """
    traced = ("test_aot_dispatch_static", "test_aot_dispatch_dynamic") if layout == "contiguous" else ()
    torch.library.opcheck(op.default, arguments, test_utils=("test_schema", "test_faketensor", *traced))


def lay_out(tensor, layout):
    """The tensor, or another of its shape, with dimensions in another order in memory."""
    if layout == "transposed":
        return tensor.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "channels_last" and tensor.dim() > 3:
        return tensor.movedim(2, -1).contiguous().movedim(-1, 2)
    return tensor


def neuron(shape, T, dtype, train_mode=True, return_v=True, full=True, timing="step"):
    C, channels = compute_dtype(dtype), shape[1] if len(shape) > 1 else 1
    tensors = [None] * 5
    if full:
        residual = train(T, *shape).planes
        tensors = [dyadic(channels, dtype=C), dyadic(channels, dtype=C), residual, dyadic(channels, dtype=C),
                   dyadic(*shape[1:], dtype=C)]  # fmt: skip
    return *tensors, T, 0.5, 1.0, "clip", train_mode, return_v, timing


@pytest.mark.parametrize(("layout", "dtype"), GRID)
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4, 5)])
def test_scans(layout, dtype, shape):
    shape = (0, *shape[1:]) if layout == "empty" else shape
    currents = lay_out(dyadic(9, *shape, dtype=dtype), layout)
    check(layout, ops.if_scan, currents, *neuron(shape, 9, dtype))
    check(layout, ops.if_scan, currents, *neuron(shape, 9, dtype, train_mode=False, return_v=False, full=False))
    check(layout, ops.constant_if, currents[0], 9, *neuron(shape, 9, dtype))
    check(layout, ops.impulse_if, currents[0], 9, *neuron(shape, 9, dtype))


@pytest.mark.parametrize(("layout", "dtype"), GRID)
def test_linear(layout, dtype):
    B = 0 if layout == "empty" else 3
    planes = lay_out(train(9, B, 7).planes, layout)
    weight = dyadic(7, 5, dtype=dtype).t() if layout == "transposed" else dyadic(5, 7, dtype=dtype)
    layer = planes, 9, weight, "highest"
    check(layout, ops.linear_if, *layer, *neuron((B, 5), 9, dtype))
    check(layout, ops.linear_if, *layer, *neuron((B, 5), 9, dtype, train_mode=False, return_v=False, full=False))


@pytest.mark.parametrize("train_mode", [False, True])
def test_int8_weights_as_float32(train_mode):
    weight = torch.randint(-128, 128, (5, 7), dtype=torch.int8)
    layer = train(9, 3, 7).planes, 9, weight, "highest"
    check("contiguous", ops.linear_if, *layer, *neuron((3, 5), 9, torch.float32, train_mode))
    layer = train(9, 3, 7, 4).planes, 9, weight.view(5, 7, 1), "highest", [1], [0], [1], 1
    check("contiguous", ops.conv_if, *layer, *neuron((3, 5, 4), 9, torch.float32, train_mode))


@pytest.mark.parametrize(("layout", "dtype"), GRID)
@pytest.mark.parametrize("space", [(9,), (6, 5)])
def test_conv(layout, dtype, space):
    B, dims = 0 if layout == "empty" else 2, len(space)
    planes = lay_out(train(9, B, 4, *space).planes, layout)
    weight = dyadic(6, 2, *[3] * dims, dtype=dtype)
    layer = planes, 9, weight, "high", [2] * dims, [1] * dims, [1] * dims, 2
    shape = (B, 6, *((n - 1) // 2 + 1 for n in space))
    check(layout, ops.conv_if, *layer, *neuron(shape, 9, dtype))
    check(layout, ops.conv_if, *layer, *neuron(shape, 9, dtype, train_mode=False, full=False))


def norm(channels, dtype, full):
    C = compute_dtype(dtype)
    if not full:
        return None, None, None, 1e-5
    return torch.tensor(0.5, dtype=C), dyadic(channels, dtype=C), dyadic(channels, dtype=C), 1e-5


@pytest.mark.parametrize(("layout", "dtype"), [case for case in GRID if case[0] != "empty"])
@pytest.mark.parametrize("full", [False, True])
def test_batch_norm(layout, dtype, full):
    def arguments(shape):
        _, _, residual, residual_scale, v_init, *scalars = neuron(shape, 9, dtype, full=full)
        steps, threshold, leak, gate, _, return_v, timing = scalars
        return residual, residual_scale, v_init, steps, threshold, leak, gate, return_v, timing

    planes, weight = lay_out(train(9, 4, 7).planes, layout), dyadic(5, 7, dtype=dtype)
    check(layout, ops.linear_bn_if, planes, 9, weight, "highest", *norm(5, dtype, full), *arguments((4, 5)))
    planes, weight = lay_out(train(9, 2, 3, 6, 5).planes, layout), dyadic(4, 3, 3, 3, dtype=dtype)
    layer = planes, 9, weight, "medium", [1, 1], [1, 1], [1, 1], 1
    check(layout, ops.conv_bn_if, *layer, *norm(4, dtype, full), *arguments((2, 4, 6, 5)))


@pytest.mark.parametrize(("layout", "dtype"), [*GRID, ("contiguous", torch.int8)])
def test_window_product(layout, dtype):
    B = 0 if layout == "empty" else 3
    planes, image = (lay_out(train(9, B, *shape).planes, layout) for shape in ((7,), (4, 6, 5)))
    weight, kernel = (dyadic(*shape, unit=1, dtype=dtype) for shape in ((5, 7), (6, 2, 3, 3)))
    check(layout, ops.window_product, planes, 9, weight, "highest", [], [], [], 1, False)
    check(layout, ops.window_product, image, 9, kernel, "high", [2, 1], [1, 0], [1, 1], 2, False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(5, 7), (6, 3, 4), (4, 2, 3, 3)])
def test_quantise(layout, shape):
    shape = (0, *shape[1:]) if layout == "empty" else shape
    check(layout, ops.quantise, lay_out(dyadic(1, *shape), layout)[0], 4)


@pytest.mark.parametrize("T", [1, 7, 8, 16, 17, 255])
def test_windows(T):
    check("transposed", ops.pack, spikes(T, 3, 5))
    check("transposed", ops.if_scan, dyadic(T, 3, 5), *neuron((3, 5), T, torch.float32))
    layer = train(T, 3, 7).planes, T, dyadic(5, 7), "highest"
    check("transposed", ops.linear_if, *layer, *neuron((3, 5), T, torch.float32))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4, 5)])
def test_planes(layout, shape):
    shape = (0, *shape[1:]) if layout == "empty" else shape
    check(layout, ops.pack, lay_out(spikes(9, *shape), layout))
    check(layout, ops.pack, lay_out(spikes(9, *shape, dtype=torch.bool), layout))
    planes = lay_out(train(9, *shape).planes, layout)
    check(layout, ops.unpack, planes, 9, torch.bfloat16)
    check(layout, ops.counts, planes, torch.bfloat16)
    check(layout, ops.count_bytes, planes)
    check(layout, ops.burst_planes, ops.count_bytes(planes), 9)


@pytest.mark.parametrize(("layout", "dtype"), GRID)
def test_window_timing(layout, dtype):
    """Trains are counts there, and so are the residual and what comes out."""
    B = 0 if layout == "empty" else 3

    def counted(shape, **options):
        *tensors, residual, residual_scale, v_init, steps, threshold, leak, gate, train_mode, return_v, timing = neuron(
            shape, 9, dtype, timing="window", **options
        )
        residual = None if residual is None else ops.count_bytes(residual)
        rest = residual, residual_scale, v_init, steps, threshold, leak, gate
        return (*tensors, *rest, train_mode, return_v, timing), (*rest, return_v, timing)

    counts, image = (ops.count_bytes(lay_out(train(9, B, *shape).planes, layout)) for shape in ((7,), (4, 6, 5)))
    weight, kernel = dyadic(5, 7, dtype=dtype), dyadic(6, 2, 3, 3, dtype=dtype)
    check(layout, ops.if_scan, lay_out(dyadic(9, B, 5, dtype=dtype), layout), *counted((B, 5))[0])
    check(layout, ops.constant_if, lay_out(dyadic(1, B, 5, dtype=dtype), layout)[0], 9, *counted((B, 5))[0])
    check(layout, ops.linear_if, counts, 9, weight, "highest", *counted((B, 5))[0])
    check(layout, ops.linear_if, counts, 9, weight, "highest", *counted((B, 5), train_mode=False, full=False)[0])
    windows = [2, 1], [1, 0], [1, 1], 2
    check(layout, ops.conv_if, image, 9, kernel, "high", *windows, *counted((B, 6, 3, 3))[0])
    check(layout, ops.window_product, image, 9, kernel, "high", *windows, True)
    if B > 0:
        gain = norm(5, dtype, True)
        check(layout, ops.linear_bn_if, counts, 9, weight, "highest", *gain, *counted((B, 5))[1])


@pytest.mark.parametrize(("layout", "dtype"), GRID)
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4, 5)])
def test_gradients(layout, dtype, shape):
    shape = (0, *shape[1:]) if layout == "empty" else shape
    C = compute_dtype(dtype)
    grad = lay_out(dyadic(1, *shape, dtype=dtype), layout)[0]
    mask = torch.randint(0, 256, ((grad.numel() + 7) // 8,), dtype=torch.uint8)
    check(layout, ops.gate_grad, grad, mask, 0.5)
    product = lay_out(dyadic(1, *shape, dtype=C), layout)[0]
    gain, gamma, mean, eps = norm(shape[1], dtype, True)
    check(layout, ops.bn_grad, grad, mask, product, mean, mean.abs(), gain, gamma, eps, 0.5)
    check(layout, ops.bn_grad, grad, mask, product, mean, mean.abs(), None, None, eps, 0.5)
    if layout != "empty":
        check(layout, ops.bn_statistics, product, 3.0, gain, gamma, None, eps)


def test_every_op_is_checked_here():
    """All but frozen_*, whose results have shapes that a program, a tensor's content, decides."""
    source = Path(__file__).read_text()
    for schema in torch._C._jit_get_all_schemas():
        namespace, _, name = schema.name.partition("::")
        if namespace == "tandem" and not name.startswith("frozen_"):
            assert f"ops.{name}," in source, name
