"""What only a GPU can show: more than 2^31 elements, CUDA graphs, other streams, the same bits every time."""

from collections.abc import Callable
from typing import Any

import torch
from cases import dyadic, train
from torch import Tensor, nn

import tandem_ext as te
import tandem_snn
import tandem_snn.nn as tnn

from .correctness import Case, equal

BIG = 2**31 + 4096


def big_scan(device: torch.device) -> None:
    """One step: a spike wherever the current reaches the threshold. In pieces, because a check takes memory too."""
    currents = torch.empty(1, 1, BIG, dtype=torch.float16, device=device)
    for piece in currents.view(-1).split(2**28):
        piece.copy_(torch.arange(len(piece), device=device) % 3 - 0.5)
    result = te.functional.if_scan(currents)
    total = 0
    for spikes, piece in zip(result.planes.view(-1).split(2**28), currents.view(-1).split(2**28), strict=True):
        assert torch.equal(spikes, (piece >= 1).to(torch.uint8))
        total += int(spikes.sum(dtype=torch.int64))
    assert 0 < total < BIG


def big_planes(device: torch.device) -> None:
    """Counts, spikes, planes again, and gradients of more than 2^31 neurons."""
    planes = torch.empty(1, 1, BIG, dtype=torch.uint8, device=device)
    for piece in planes.view(-1).split(2**28):
        piece.copy_(torch.arange(len(piece), device=device) % 5 < 2)
    spikes = torch.ops.tandem.unpack(planes, 1, torch.bool)
    assert torch.equal(spikes.view(torch.uint8), planes)
    assert torch.equal(torch.ops.tandem.pack(spikes), planes)
    counts = torch.ops.tandem.counts(planes, torch.float16)
    mask = torch.full(((BIG + 7) // 8,), 0b10010110, dtype=torch.uint8, device=device)
    gates = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1], dtype=torch.float16, device=device)
    grad = torch.ops.tandem.gate_grad(counts, mask, 0.5)
    pieces = (t.view(-1).split(2**28) for t in (planes, counts, grad))
    for plane, count, gated in zip(*pieces, strict=True):
        assert torch.equal(count, plane.half())
        assert torch.equal(gated.view(-1, 8), 2 * plane.half().view(-1, 8) * gates)


def big_product(device: torch.device) -> None:
    """More than 2^31 neurons; each sample is one of sixteen."""
    x, weight = train(8, 16, 16), dyadic(1024, 16)
    samples = BIG // 1024 + 16
    samples -= samples % 16
    planes = x.planes.to(device).repeat(1, samples // 16, 1)
    got = te.functional.linear_if(te.SpikeTrain.unchecked(planes, 8), weight.to(device)).planes
    want = te.reference.linear_if(x, weight).planes.to(device)
    for piece in got.view(-1, 16, 1024).split(4096):
        assert torch.equal(piece, want.expand_as(piece))


def half_type(device: torch.device) -> torch.dtype:
    """What autocast is for: a T4 has no bfloat16, and torch does not compile it there."""
    old = device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)
    return torch.float16 if old else torch.bfloat16


def layers(timing: str = "step") -> nn.Sequential:
    torch.manual_seed(0)
    options = {"norm": True, "timing": timing, "threshold": 1.0, "gain": 1.0}
    return nn.Sequential(
        tnn.Conv2d(8, 32, 3, padding=1, **options), tnn.MaxPool2d(2), tnn.Conv2d(32, 64, 3, stride=2, **options),
        tnn.Flatten(), tnn.Linear(64 * 9, 48, **options), tnn.Readout(48, 10),
    )  # fmt: skip


def step_of(net: nn.Module, mixed: bool = False) -> Callable[[Tensor], list[Tensor]]:
    """A training step on planes or images, by autocast if ``mixed``; what comes of it."""

    def step(x: Tensor) -> list[Tensor]:
        for p in net.parameters():
            p.grad = None
        with torch.autocast(x.device.type, half_type(x.device), enabled=mixed):
            answer = net(x if x.is_floating_point() else te.SpikeTrain.unchecked(x, 8))
        answer.float().square().mean().backward()
        return [answer.detach(), *(p.grad for p in net.parameters() if p.grad is not None)]

    return step


def capture(step: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A step as a CUDA graph, and what it gave. The first call leaves what must not be made while capturing."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = step()
    return graph, result


def captured_step(device: torch.device) -> None:
    """A training step as a CUDA graph gives the bits of the step itself, on inputs it has not seen."""
    net = layers().to(device)
    step = step_of(net)
    inputs = [train(8, 4, 8, 16, 16).planes.to(device) for _ in range(3)]
    static = inputs[0].clone(memory_format=torch.preserve_format)
    graph, outputs = capture(lambda: step(static))
    for planes in inputs:
        static.copy_(planes)
        graph.replay()
        got = [t.clone() for t in outputs]
        for i, (a, b) in enumerate(zip(got, step(planes), strict=True)):
            equal(f"result {i}", a, b.cpu())


def other_streams(device: torch.device) -> None:
    """Work is done on the stream that is current: behind what delays it, and not before."""
    x, weight = train(8, 33, 100), dyadic(64, 100)
    want = te.reference.linear_if(x, weight).planes
    late, on_device = torch.zeros_like(x.planes, device=device), x.planes.to(device)
    weight = weight.to(device)
    torch.cuda.synchronize(device)
    streams = [torch.cuda.Stream(device) for _ in range(4)]
    results = []
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            mine = late.clone()
            mine.copy_(on_device)
            results.append(te.functional.linear_if(te.SpikeTrain.unchecked(mine, 8), weight).planes)
    torch.cuda.synchronize(device)
    for got in results:
        equal("spikes", got, want)


def another_device(device: torch.device) -> None:
    """Tensors decide where a kernel runs, not the device that is current."""
    other = torch.device(device.type, 1 - device.index)
    x, weight = train(8, 33, 100), dyadic(64, 100)
    with torch.cuda.device(device):
        got = te.functional.linear_if(x.to(other), weight.to(other))
    assert got.device == other
    equal("spikes", got.planes, te.reference.linear_if(x, weight).planes)


def same_every_time(device: torch.device) -> None:
    """On random weights, whose sums do round: every run rounds alike."""
    net = layers().to(device)
    step = step_of(net)
    planes = train(8, 16, 8, 16, 16).planes.to(device)
    first = [t.clone() for t in step(planes)]
    for _ in range(5):
        for i, (a, b) in enumerate(zip(step(planes), first, strict=True)):
            equal(f"result {i}", a, b.cpu())


def frozen_graph(device: torch.device) -> None:
    """A frozen network is one CUDA graph, and answers as the network does."""
    net = layers().eval().to(device)
    frozen = tandem_snn.freeze(net)
    for batch in (4, 1, 4):
        x = train(8, batch, 8, 16, 16).to(device)
        equal("readout", frozen(x), net(x).cpu())
    if device.type == "cuda":
        has_graphs(frozen, 2)


def has_graphs(frozen: torch.nn.Module, shapes: int) -> None:
    """The answers came from graphs, one a shape, and not from a network that ran layer by layer."""
    found = list(frozen._graphs.values())
    missing = found.count(None)
    assert (len(found), missing) == (shapes, 0), f"{len(found)} shapes, {missing} without a graph"


def cases(dry_run: bool) -> list[Case]:
    """Those that this machine can run: the large ones need 20 GB."""
    found = [same_every_time, frozen_graph]
    if not dry_run:
        found += [captured_step, other_streams]
        found += [another_device] if torch.cuda.device_count() > 1 else []
        found += [big_scan, big_planes, big_product] if torch.cuda.mem_get_info()[0] > 24 * 2**30 else []
    return [Case(f.__name__.replace("_", " "), f) for f in found]
