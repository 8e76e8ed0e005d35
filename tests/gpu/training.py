"""CifarNet's training step and its answers, by each way."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tandem_snn.nn as tnn
from architectures import create
from tandem_snn import ann, freeze

from .clock import Bench, Row, T


def cifarnet(bench: Bench) -> dict[str, Any]:
    width = bench.size(1, 0) or 1 / 16
    return {"shape": (3, 32, 32), "outputs": 10, "T": T, "width": width}


def batch_of(bench: Bench) -> tuple[Tensor, Tensor]:
    B = bench.size(128, 2)
    x = torch.rand(B, 3, 32, 32, device=bench.device).contiguous(memory_format=torch.channels_last)
    return x, torch.arange(B, device=bench.device) % 10


def step_of(bench: Bench, net: nn.Module, autocast: bool) -> Callable[[], None]:
    """Forward, loss and backward of a batch."""
    x, labels = batch_of(bench)
    net = net.to(bench.device, memory_format=torch.channels_last)

    def run() -> None:
        for p in net.parameters():
            p.grad = None
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(net(x), labels)
        loss.backward()

    return run


def training(bench: Bench) -> Iterator[Row]:
    """A step of CifarNet by each way, in float32 and by autocast."""
    B, options, step = bench.size(128, 2), cifarnet(bench), partial(step_of, bench)
    for autocast in (False, True):
        case = f"cifarnet training step, B={B}" + ", bfloat16 autocast" * autocast
        yield bench.row(case, "tandem", step(create(tnn, "cifarnet", **options), autocast))
        yield bench.row(case, "ANN twin", step(create(ann, "cifarnet", **options), autocast))


@torch.inference_mode()
def inference(bench: Bench) -> Iterator[Row]:
    """CifarNet's answers, layer by layer and frozen, which on a GPU is one CUDA graph."""
    options = cifarnet(bench)
    net, twin = (
        create(layers, "cifarnet", **options).eval().to(bench.device, memory_format=torch.channels_last)
        for layers in (tnn, ann)
    )
    frozen = freeze(net)
    for B in (2,) if bench.small else (1, 128):
        x = torch.rand(B, 3, 32, 32, device=bench.device).contiguous(memory_format=torch.channels_last)
        case = f"cifarnet inference, B={B}"
        yield bench.row(case, "tandem, frozen", partial(frozen, x))
        yield bench.row(case, "tandem, layer by layer", partial(net, x))
        yield bench.row(case, "ANN twin", partial(twin, x))
