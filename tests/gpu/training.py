"""CifarNet's training step and its answers, by each way; SpikingJelly's where it is installed."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tandem_snn import freeze
from tandem_snn.models import create_model, create_twin

from .clock import Bench, Row, T


def cifarnet(bench: Bench) -> dict[str, Any]:
    width = bench.size(1, 0) or 1 / 16
    return {"shape": (3, 32, 32), "classes": 10, "T": T, "width": width}


def batch_of(bench: Bench) -> tuple[Tensor, Tensor]:
    B = bench.size(128, 2)
    x = torch.rand(B, 3, 32, 32, device=bench.device).contiguous(memory_format=torch.channels_last)
    return x, torch.arange(B, device=bench.device) % 10


def step_of(
    bench: Bench, net: nn.Module, autocast: bool, forward: Callable[[Tensor], Tensor] | None = None, reset: Any = None
) -> Callable[[], None]:
    """Forward, loss and backward of a batch."""
    x, labels = batch_of(bench)
    net = net.to(bench.device, memory_format=torch.channels_last)

    def run() -> None:
        for p in net.parameters():
            p.grad = None
        if reset is not None:
            reset()
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy((forward or net)(x), labels)
        loss.backward()

    return run


def kernel_table(bench: Bench, most: int = 40) -> list[dict[str, Any]]:
    """What a training step runs on the device: kernels by the time they take, of three steps."""
    kind = torch.profiler.ProfilerActivity
    run = step_of(bench, create_model("cifarnet", **cifarnet(bench)), autocast=False)
    for _ in range(3):
        run()
    with torch.profiler.profile(activities=[kind.CUDA if bench.device.type == "cuda" else kind.CPU]) as profile:
        for _ in range(3):
            run()
        if bench.device.type == "cuda":
            torch.cuda.synchronize(bench.device)
    name = "self_device_time_total" if bench.device.type == "cuda" else "self_cpu_time_total"
    found = sorted(profile.key_averages(), key=lambda event: -getattr(event, name))
    return [
        {"kernel": event.key[:200], "calls": event.count, "microseconds": getattr(event, name)}
        for event in found[:most]
    ]


def training(bench: Bench) -> Iterator[Row]:
    """A step of CifarNet by each way, in float32 and by autocast."""
    B, options, step = bench.size(128, 2), cifarnet(bench), partial(step_of, bench)
    for autocast in (False, True):
        case = f"cifarnet training step, B={B}" + ", bfloat16 autocast" * autocast
        yield bench.row(case, "tandem", step(create_model("cifarnet", **options), autocast))
        yield bench.row(case, "ANN twin", step(create_twin("cifarnet", **options), autocast))
        if find_spec("spikingjelly") is None:
            yield Row(case, "SpikingJelly", float("nan"), note="not installed")
        else:
            yield from spikingjelly(
                bench, case, partial(create_twin, "cifarnet", **options), partial(step, autocast=autocast)
            )


@torch.inference_mode()
def inference(bench: Bench) -> Iterator[Row]:
    """CifarNet's answers, layer by layer and frozen, which on a GPU is one CUDA graph."""
    options = cifarnet(bench)
    net, twin = (
        create("cifarnet", **options).eval().to(bench.device, memory_format=torch.channels_last)
        for create in (create_model, create_twin)
    )
    frozen = freeze(net)
    for B in (2,) if bench.small else (1, 128):
        x = torch.rand(B, 3, 32, 32, device=bench.device).contiguous(memory_format=torch.channels_last)
        case = f"cifarnet inference, B={B}"
        yield bench.row(case, "tandem, frozen", partial(frozen, x))
        yield bench.row(case, "tandem, layer by layer", partial(net, x))
        yield bench.row(case, "ANN twin", partial(twin, x))


def spikingjelly(bench: Bench, case: str, twin: Callable[[], nn.Sequential], step: Callable[..., Any]) -> Iterator[Row]:
    """By each of its backends; from version 2 on, which chooses its kernels itself, also compiled."""
    from spikingjelly.activation_based import functional, neuron

    by_name = "backend" in inspect.signature(neuron.IFNode.__init__).parameters
    for backend in ("torch", "cupy", "triton") if by_name else ("eager", "compiled"):
        keywords = {"backend": backend} if by_name else {}
        with contextlib.suppress(ImportError, NotImplementedError, ValueError, AssertionError):
            net = spikingjelly_net(twin(), **keywords)
            forward = bench.compiled(net) if backend == "compiled" else net
            reset = partial(functional.reset_net, net)
            yield bench.row(case, f"SpikingJelly, {backend}", step(net, forward=forward, reset=reset))


def spikingjelly_net(twin: nn.Sequential, **backend: str) -> nn.Module:
    """The twin's products and norms in multi-step mode, with SpikingJelly's neurons in the place of ReLU."""
    from spikingjelly.activation_based import functional, layer, neuron

    class Repeat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.unsqueeze(0).repeat(T, *[1] * x.dim())

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(0)

    modules: list[nn.Module] = [Repeat()]
    for module in twin:
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Flatten):
            modules.append(layer.Flatten())
        elif weight is not None and weight.dim() == 4:
            out, channels, *kernel = weight.shape
            modules += [layer.Conv2d(channels, out, kernel, module.stride, module.padding, bias=False),
                        layer.BatchNorm2d(out), neuron.IFNode(v_reset=None, **backend)]  # fmt: skip
        elif weight is not None:
            out, features = weight.shape
            modules.append(layer.Linear(features, out, bias=False))
            if module is not twin[-1]:
                modules += [layer.BatchNorm1d(out), neuron.IFNode(v_reset=None, **backend)]
    net = nn.Sequential(*modules, Mean())
    functional.set_step_mode(net, "m")
    return net
