"""Cases in which the ops on a device must give the reference's bits. All numbers are dyadic: no sum of float64 or
of a gradient rounds; but for weights of no grid, which must give the bits of the CPU's kernels."""

import functools
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import any_layer
import torch
from cases import DTYPES, dyadic, train
from torch import Tensor

import tandem_ext as te

F, REFERENCE = te.functional, te.reference


class Case(NamedTuple):
    """``run`` takes the device and raises AssertionError where something differs. Inputs are made on the CPU."""

    name: str
    run: Callable[[torch.device], None]


def same(got: tuple[te.SpikeTrain, Tensor], want: tuple[te.SpikeTrain, Tensor], what: str = "") -> None:
    (train, v), (expected, v_expected) = got, want
    equal("spikes", train.planes, expected.planes, what)
    equal("counts", train.counts, expected.counts, what)
    equal("potentials", v, v_expected, what)


def equal(name: str, got: Tensor, want: Tensor, what: str = "") -> None:
    got = got.detach().cpu()
    assert got.shape == want.shape, f"{what}{name}: {list(got.shape)}, expected {list(want.shape)}"
    differing = (got != want.detach()).nonzero()
    if len(differing):
        first = tuple(differing[0].tolist())
        values = f"the first at {list(first)}: {got[first].item()}, expected {want[first].item()}"
        raise AssertionError(f"{what}{name}: {len(differing)} of {want.numel()} differ, {values}")


def seeds(of: tuple[str, str, torch.dtype], each: int) -> list[str]:
    """Seeds of any_layer's layers: so many that read spikes, whose products are kernels, and so many that do not."""
    found: dict[bool, list[str]] = {True: [], False: []}
    for seed in (f"{of} {i}" for i in range(20 * each)):
        if min(map(len, found.values())) >= each:
            break
        (_, kind, *_), _ = any_layer.drawn(random.Random(seed), *of)
        found[kind in ("train", "bursts")].append(seed)
    return found[True][:each] + found[False][:each]


def layers(small: bool) -> Iterator[Case]:
    """Any inputs, weights, neurons and layouts, with gradients and without, as in test_functional.py."""

    def run(device: torch.device, of: tuple[str, str, torch.dtype]) -> None:
        for seed in seeds(of, 2 if small else 12):
            any_layer.check(random.Random(seed), *of, device)

    for of in itertools.product(any_layer.PRODUCTS, ("step", "window"), DTYPES):
        yield Case(f"{of[0]} {of[1]} {str(of[2])[6:]}", functools.partial(run, of=of))
    for timing in ("step", "window"):
        practical = functools.partial(any_layer.check_practical, random.Random(0), timing, 20 if small else 100)
        yield Case(f"practical {timing}", practical)


def large(small: bool) -> Iterator[Case]:
    """Many blocks of outputs, samples and inputs."""

    def run(device: torch.device, name: str, x_shape: tuple[int, ...], w_shape: tuple[int, ...]) -> None:
        norm = name == "bn_if"
        for dtype, T in itertools.product([*DTYPES, *[torch.int8] * (not norm)], (4, 8, 21)):
            x, weight = train(T, *x_shape), dyadic(*w_shape, unit=1 if dtype == torch.int8 else 64, dtype=dtype)
            layer, want_of = getattr(F, name), getattr(REFERENCE, name)
            got, want = layer(x.to(device), weight.to(device), return_v=True), want_of(x, weight, return_v=True)
            same(*(both[0] if norm else both for both in (got, want)), f"{dtype}, T={T}: ")

    for of in [] if small else [
        ("linear_if", (128, 784), (800, 784)), ("linear_if", (300, 1000), (96, 1000)),
        ("conv2d_if", (2, 128, 16, 16), (256, 128, 3, 3)), ("conv2d_if", (2, 144, 9, 9), (72, 144, 1, 1)),
        ("bn_if", (128, 800), (800, 800)), ("bn_if", (32, 64, 16, 16), (128, 64, 3, 3)),
    ]:  # fmt: skip
        yield Case(f"{of[0]} {list(of[1])} {list(of[2])}", lambda d, of=of: run(d, *of))


def planes(small: bool) -> Iterator[Case]:
    def run(device: torch.device, N: int) -> None:
        for T, dtype in itertools.product((1, 8, 13), (torch.float32, torch.bool, torch.float16)):
            spikes = torch.rand(T, 2, N) < 0.3
            x = te.SpikeTrain.from_dense(spikes.to(device, dtype))
            equal("planes", x.planes, te.SpikeTrain.from_dense(spikes).planes)
            equal("spikes", x.to_dense(dtype), spikes.to(dtype))
            equal("counts", x.counts, spikes.sum(0).float())

    for N in (7, 100) if small else (1, 7, 100, 1028, 100_000):
        yield Case(f"pack, unpack, counts of {N}", lambda d, N=N: run(d, N))


def on_both(device: torch.device, name: str, x: te.SpikeTrain, weight: Tensor, autocast: bool, **options: Any) -> None:
    """A layer on the CPU and on a device: spikes, counts, potentials, and the gates, as the gradient of its shift."""
    results = []
    for on in (device, torch.device("cpu")):
        shift = torch.zeros(len(weight), device=on, requires_grad=True)
        with torch.autocast(on.type, torch.bfloat16, enabled=autocast):
            y, v = getattr(F, name)(x.to(on), weight.to(on), shift=shift, return_v=True, **options)
        results.append(((y, v), torch.autograd.grad(y.counts.float().sum(), shift)[0]))
    (got, gates), (want, expected) = results
    same(got, want, f"{list(weight.shape)}: ")
    equal("gates", gates, expected, f"{list(weight.shape)}: ")


def any_weights(small: bool) -> Iterator[Case]:
    """Of layers that read spikes, in every type and under autocast: linear, by tiles and plain, wide and few samples,
    outputs that do not fill bytes of the mask; whatever the precision of torch's products is."""

    def run(device: torch.device, T: int, timing: str, dtype: torch.dtype | None) -> None:
        rest = {"autocast": dtype is None, "timing": timing}
        for B, K, N in [(3, 40, 24), (40, 700, 72), (5, 300, 10), (70, 130, 100), (20, 64, 300)]:
            on_both(device, "linear_if", train(T, B, K), torch.randn(N, K).to(dtype or torch.float32), **rest)
        for C, N, groups in [(16, 32, 1), (32, 32, 2), (12, 12, 12)]:
            weight = torch.randn(N, C // groups, 3, 3).to(dtype or torch.float32)
            on_both(device, "conv2d_if", train(T, 2, C, 6, 5), weight, padding=1, groups=groups, **rest)

    windows = [(2, "step"), (5, "step"), (8, "step"), (10, "step"), (21, "step"), (8, "window"), (255, "window")]
    for (T, timing), dtype in itertools.product(windows[2:6:3] if small else windows, (*DTYPES[:3], None)):
        name = f"weights of no grid T={T} {timing} {str(dtype)[6:] if dtype else 'autocast'}"
        yield Case(name, lambda d, of=(T, timing, dtype): run(d, *of))


def cases(small: bool = False) -> list[Case]:
    """All of them; ``small`` ones for tools that slow a kernel down a hundredfold."""
    kinds = (planes, layers, large, any_weights)
    return [case for kind in kinds for case in kind(small)]
