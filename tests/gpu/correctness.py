"""Cases in which the ops on a device must give the reference's bits. All numbers are dyadic: no sum rounds; but for
float32 weights of no grid, which must give those of the CPU's kernels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

import tandem_ext as te

F, REFERENCE = te.functional, te.reference
DTYPES = torch.float32, torch.float16, torch.bfloat16, torch.float64
WEIGHTS = *DTYPES, torch.int8


class Case(NamedTuple):
    """``run`` takes the device and raises AssertionError where something differs."""

    name: str
    run: Callable[[torch.device], None]


def dyadic(g: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randint(-64, 65, shape, generator=g) / 64).to(dtype)


def weights(g: torch.Generator, *shape: int, dtype: torch.dtype) -> Tensor:
    return (
        torch.randint(-128, 128, shape, generator=g).to(dtype)
        if dtype == torch.int8
        else dyadic(g, *shape, dtype=dtype)
    )


def random_train(g: torch.Generator, T: int, *shape: int) -> te.SpikeTrain:
    return te.SpikeTrain.from_dense((torch.rand(T, *shape, generator=g) < 0.3).float())


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def neurons(g: torch.Generator, i: int, T: int, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, object]:
    """Keywords of a layer's neurons, other ones for every i."""
    C, channels = wide(dtype), shape[1]
    residual = [None, random_train(g, T, *shape), dyadic(g, T, *shape, dtype=C)][i % 3]
    return {
        "threshold": (1.0, 0.5, 1.25)[i % 3],
        "leak": (1.0, 0.5)[i % 2],
        "v_init": (0.0, dyadic(g, *shape[1:], dtype=C), dyadic(g, *shape, dtype=C))[i // 2 % 3],
        "scale": dyadic(g, channels, dtype=C).abs() + 0.25 if i % 2 else None,
        "shift": dyadic(g, channels, dtype=C) if i % 5 else None,
        "residual": residual,
        "gate": ("relu", "clip", "resu")[i % 3],
        "return_v": True,
    }


def moved(value: object, device: torch.device) -> object:
    return value.to(device) if isinstance(value, Tensor | te.SpikeTrain | te.ConstantInput | te.ImpulseInput) else value


def same(got: tuple[te.SpikeTrain, Tensor], want: tuple[te.SpikeTrain, Tensor], what: str = "") -> None:
    (train, v), (expected, v_expected) = got, want
    equal("spikes", train.planes, expected.planes, what)
    equal("counts", train.counts, expected.counts, what)
    equal("potentials", v, v_expected, what)


def equal(name: str, got: Tensor, want: Tensor, what: str = "") -> None:
    got = got.detach().cpu()
    assert got.shape == want.shape, f"{what}{name}: {list(got.shape)}, expected {list(want.shape)}"
    differing = (got != want.detach()).sum().item()
    assert differing == 0, f"{what}{name}: {differing} of {want.numel()} differ"


def compare(name: str, x: object, weight: Tensor | None, device: torch.device, **arguments: object) -> None:
    """One layer on the device, with and without gradients, and by the reference on the CPU."""
    given = {k: moved(v, device) for k, v in arguments.items()}
    layer, want_of = getattr(F, name), getattr(REFERENCE, name)
    if weight is None:
        same(layer(moved(x, device), **given), want_of(x, **arguments))
        return
    want = want_of(x, weight, **arguments)
    for needs_grad in (False, True) if weight.is_floating_point() else (False,):
        leaf = weight.detach().clone().to(device).requires_grad_(needs_grad)
        same(layer(moved(x, device), leaf, **given), want, f"{needs_grad=}: ")


# --- the ops, one kind after the other --------------------------------------------------------------------------------


def scans(small: bool) -> Iterator[Case]:
    shapes = [(3, 7), (2, 12, 5)] if small else [(1, 1), (3, 7), (5, 36), (2, 12, 5), (7, 130), (64, 4096)]

    def run(device: torch.device, dtype: torch.dtype, T: int) -> None:
        g = torch.Generator().manual_seed(T)
        for i, shape in enumerate(shapes):
            compare("if_scan", dyadic(g, T, *shape, dtype=dtype), None, device, **neurons(g, i + T, T, shape, dtype))
            for cls in (te.ConstantInput, te.ImpulseInput):
                x, weight = cls(dyadic(g, shape[0], 6, dtype=dtype), T), dyadic(g, 9, 6, dtype=dtype)
                compare("linear_if", x, weight, device, **neurons(g, i, T, (shape[0], 9), dtype))

    for dtype, T in itertools.product(DTYPES, (4, 9) if small else (1, 4, 7, 8, 16, 33, 255)):
        yield Case(f"scan {str(dtype)[6:]} T={T}", lambda d, dtype=dtype, T=T: run(d, dtype, T))


def linears(small: bool) -> Iterator[Case]:
    shapes = [(5, 40, 16), (9, 33, 24)] if small else [
        (1, 1, 1), (3, 17, 10), (8, 130, 40), (9, 144, 72), (33, 400, 64), (128, 784, 800), (300, 1000, 96),
    ]  # fmt: skip

    def run(device: torch.device, dtype: torch.dtype, T: int) -> None:
        g = torch.Generator().manual_seed(T)
        for i, (B, K, N) in enumerate(shapes):
            x, weight = random_train(g, T, B, K), weights(g, N, K, dtype=dtype)
            compare("linear_if", x, weight, device, bias=dyadic(g, N), **neurons(g, i + T, T, (B, N), dtype))

    for dtype, T in itertools.product(WEIGHTS, (8,) if small else (1, 4, 8, 16, 21)):
        yield Case(f"linear {str(dtype)[6:]} T={T}", lambda d, dtype=dtype, T=T: run(d, dtype, T))


def convolutions(small: bool) -> Iterator[Case]:
    windows = [
        (16, 24, (5, 6), (3, 3), {"padding": 1}),
        (3, 40, (6, 6), (3, 3), {"padding": 2, "stride": 2}),
        (32, 64, (4, 4), (3, 3), {"groups": 2}),
        (8, 8, (7, 5), (3, 3), {"groups": 8, "padding": 1}),
        (16, 8, (9, 7), (3, 2), {"stride": (2, 1), "dilation": (1, 2)}),
    ]
    if not small:
        windows += [(128, 256, (16, 16), (3, 3), {"padding": 1}), (144, 72, (9, 9), (1, 1), {})]

    def run(device: torch.device, dtype: torch.dtype, T: int) -> None:
        g = torch.Generator().manual_seed(T)
        for i, (C, N, size, kernel, window) in enumerate(windows):
            x = random_train(g, T, 2, C, *size)
            weight = weights(g, N, C // int(window.get("groups", 1)), *kernel, dtype=dtype)
            shape = tuple(REFERENCE.conv2d_if(x, weight, **window).shape)
            compare("conv2d_if", x, weight, device, **window, **neurons(g, i + T, T, shape, dtype))

    for dtype, T in itertools.product(WEIGHTS, (8,) if small else (4, 8, 18)):
        yield Case(f"conv {str(dtype)[6:]} T={T}", lambda d, dtype=dtype, T=T: run(d, dtype, T))


def batch_norms(small: bool) -> Iterator[Case]:
    """Statistics and spikes bit for bit; gradients, whose sums round, within rounding of the reference's in float64."""

    def run(device: torch.device, name: str, x_shape: tuple[int, ...], w_shape: tuple[int, ...]) -> None:
        g = torch.Generator().manual_seed(0)
        x, weight = random_train(g, 8, *x_shape), dyadic(g, *w_shape)
        affine = {"gamma": dyadic(g, w_shape[0]), "beta": dyadic(g, w_shape[0])}
        layer, want_of = getattr(F, name), getattr(REFERENCE, name)
        (want, v), mean, var = want_of(x, weight, **affine, return_v=True)
        leaf = weight.clone().to(device).requires_grad_()
        out, got_mean, got_var = layer(
            x.to(device), leaf, **{k: moved(t, device) for k, t in affine.items()}, return_v=True
        )
        same(out, (want, v))
        equal("mean", got_mean, mean)
        equal("var", got_var, var)
        grad = dyadic(g, *want.shape)
        out[0].counts.backward(grad.to(device))
        exact = weight.double().requires_grad_()
        result, *_ = layer(x, exact, **{k: t.double() for k, t in affine.items()})
        assert isinstance(result, te.SpikeTrain)
        if torch.equal(result.planes, want.planes):
            result.counts.backward(grad.double())
            torch.testing.assert_close(leaf.grad.cpu().double(), exact.grad, rtol=1e-4, atol=1e-3)

    layers: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = [
        ("linear_bn_if", (6, 11), (16, 11)),
        ("linear_bn_if", (6, 11), (7, 11)),
        ("conv2d_bn_if", (2, 16, 5, 4), (24, 16, 3, 3)),
    ]
    if not small:
        layers += [("linear_bn_if", (128, 800), (800, 800)), ("conv2d_bn_if", (32, 64, 16, 16), (128, 64, 3, 3))]
    for name, x_shape, w_shape in layers:
        yield Case(f"{name} {list(w_shape)}", lambda d, n=name, x=x_shape, w=w_shape: run(d, n, x, w))


def gradients(small: bool) -> Iterator[Case]:
    """dW = grad_zᵀ c and dc = grad_z W have exact sums on dyadic numbers."""

    def run(device: torch.device, B: int, K: int, N: int) -> None:
        g = torch.Generator().manual_seed(0)
        x, weight, grad = random_train(g, 8, B, K), dyadic(g, N, K), dyadic(g, B, N)
        results = []
        for place in (device, torch.device("cpu")):
            counts = x.counts.to(place).requires_grad_()
            train = te.SpikeTrain.unchecked(x.planes.to(place), 8, counts)
            leaf = weight.clone().to(place).requires_grad_()
            F.linear_if(train, leaf).counts.backward(grad.to(place))
            results.append((leaf.grad, counts.grad))
        for name, got, want in zip(("dW", "dc"), *results, strict=True):
            equal(name, got, want)

    for B, K, N in [(5, 12, 16)] if small else [(5, 12, 16), (64, 300, 100)]:
        yield Case(f"gradients {B}x{K}x{N}", lambda d, B=B, K=K, N=N: run(d, B, K, N))


def planes(small: bool) -> Iterator[Case]:
    def run(device: torch.device, N: int) -> None:
        g = torch.Generator().manual_seed(N)
        for T, dtype in itertools.product((1, 8, 13), (torch.float32, torch.bool, torch.float16)):
            spikes = torch.rand(T, 2, N, generator=g) < 0.3
            train = te.SpikeTrain.from_dense(spikes.to(device, dtype))
            equal("planes", train.planes, te.SpikeTrain.from_dense(spikes).planes)
            equal("spikes", train.to_dense(dtype), spikes.to(dtype))
            equal("counts", train.counts, spikes.sum(0).float())

    for N in (7, 100) if small else (1, 7, 100, 1028, 100_000):
        yield Case(f"pack, unpack, counts of {N}", lambda d, N=N: run(d, N))


def precisions(_: bool) -> Iterator[Case]:
    """What each setting makes of a float32 weight, on a GPU."""

    def run(device: torch.device, precision: str) -> None:
        g = torch.Generator().manual_seed(0)
        weight = torch.randint(-(2**19), 2**19, (16, 6), generator=g) / 2**18
        first = weight.bfloat16().float()
        seen = {"highest": weight, "high": first + (weight - first).bfloat16().float(), "medium": first}[precision]
        x = random_train(g, 8, 4, 6)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            got = F.linear_if(x.to(device), weight.to(device), return_v=True)
        finally:
            torch.set_float32_matmul_precision(before)
        same(got, REFERENCE.linear_if(x, seen, return_v=True))

    for precision in ("highest", "high", "medium"):
        yield Case(f"precision {precision}", lambda d, p=precision: run(d, p))


def any_weights(small: bool) -> Iterator[Case]:
    """Of layers that read spikes, at "highest": linear, by tiles and plain, wide and few samples."""

    def run(device: torch.device, T: int, timing: str) -> None:
        g = torch.Generator().manual_seed(T)
        for B, K, N in [(3, 40, 24), (40, 700, 72), (5, 300, 10)]:
            x, weight = random_train(g, T, B, K), torch.randn(N, K, generator=g)
            want = F.linear_if(x, weight, return_v=True, timing=timing)
            same(F.linear_if(x.to(device), weight.to(device), return_v=True, timing=timing), want)
        for C, N, groups in [(16, 32, 1), (32, 32, 2), (12, 12, 12)]:
            x, weight = random_train(g, T, 2, C, 6, 5), torch.randn(N, C // groups, 3, 3, generator=g)
            window = {"padding": 1, "groups": groups, "return_v": True, "timing": timing}
            same(F.conv2d_if(x.to(device), weight.to(device), **window), F.conv2d_if(x, weight, **window))

    for T, timing in (
        [(8, "step")] if small else [(4, "step"), (8, "step"), (21, "step"), (8, "window"), (255, "window")]
    ):
        yield Case(f"weights of no grid T={T} {timing}", lambda d, T=T, timing=timing: run(d, T, timing))


def cases(small: bool = False) -> list[Case]:
    """All of them; ``small`` ones for tools that slow a kernel down a hundredfold."""
    kinds = (planes, scans, linears, convolutions, batch_norms, gradients, precisions, any_weights)
    return [case for kind in kinds for case in kind(small)]
