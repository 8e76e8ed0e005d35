"""Which models of torchvision and timm convert, by which way, and how near the spiking network comes to the ANN?

    python tests/benchmarks/convertible_models.py --data-dir DIR [--models MODEL,...]

measures them all, or those that are named and leaves the others' results. Each model is initialised at random, its
batch norms get the statistics of three batches of CIFAR-10 (JPEG), it is converted at T = 64 and calibrated on 64
images. The correlation of the logits with the ANN's, with timing "step" and "window", is beside those of the ANN itself
when its activations are rounded to the same levels, when those of its first layer alone are, and with noise of half a
grey level in its images: how far the network magnifies what nobody sees.
It writes docs/results/convertible.json; `--table` writes the table in docs/convert.md from that.
"""

import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from documents import program, read, results
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

sys.path.insert(0, str(Path(__file__).parents[1]))
from networks import in_windows
from test_convert_models import MODELS, NOT, make

import tandem_snn as ts
from tandem_ext.functional.neuron import over_space

T, IMAGES = 64, 16


@torch.no_grad()
def settled(net: nn.Module, images: Tensor) -> nn.Module:
    """In evaluation mode, with the statistics of ``images`` in batches of 64."""
    norms = {module: module.momentum for module in net.eval().modules() if isinstance(module, _BatchNorm)}
    for norm in norms:
        norm.momentum = None  # the mean over the batches
        norm.train()
    for batch in images.split(64):
        net(batch)
    for norm, momentum in norms.items():
        norm.momentum = momentum
    return net.eval()


def at_size(images: Tensor, size: int) -> Tensor:
    return images if images.shape[-1] == size else F.interpolate(images, size=(size, size), mode="bilinear")


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's over samples and classes, each class's mean subtracted first."""
    pair = torch.stack([(t.double() - t.double().mean(0)).flatten() for t in (a, b)])
    return torch.corrcoef(pair)[0, 1].item()


@torch.no_grad()
def answers(net: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([net(batch) for batch in x.split(8)])


def rounded(snn: nn.Module, names: list[str]) -> nn.Module:
    """The ANN with the activations of these layers rounded to the multiples 0..T of the spiking layer's threshold."""
    twin = ts.to_ann(snn)

    def hook(layer: Any) -> Any:
        def rounding(_: nn.Module, args: Any, a: Tensor) -> Tensor:
            threshold = over_space(layer.threshold, tuple(a.shape))
            return (a / threshold + 0.5).floor().clamp_max(T) * threshold

        return rounding

    for name in names:
        twin.get_submodule(name).register_forward_hook(hook(snn.get_submodule(name)))
    return twin


def trains(snn: nn.Module, x: Tensor) -> bool:
    """Is every gradient of a step in training finite?"""
    snn.train()(x).square().mean().backward()
    return all(p.grad is not None and bool(p.grad.isfinite().all()) for p in snn.parameters())


def measure(name: str, images: Tensor) -> dict[str, Any]:
    x = at_size(images, MODELS[name])
    net = settled(make(name), x)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of auxiliary heads
        snn = ts.convert(net, T, example=x[:1])
    seconds = time.process_time() - start
    ts.calibrate(snn, [x[:64]])
    ways: dict[str, str] = snn.meta["ways"]
    x, others = x[:IMAGES], x[64 : 64 + IMAGES]
    expected = answers(net, x)
    returned = answers(ts.to_ann(snn), x)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    grey = (images.amax((0, 2, 3)) - images.amin((0, 2, 3))).view(-1, 1, 1) / 255  # one level of 8 bits
    step = correlation(answers(snn, x), expected)
    in_windows(snn)
    shared = {id(p) for p in snn.parameters()} <= {id(p) for p in net.parameters()}
    result = {
        "model": name,
        "size": MODELS[name],
        "fused": sum(way.startswith("fused") for way in ways.values()),
        "general": sum(way.startswith("general") for way in ways.values()),
        "convert_seconds": round(seconds, 1),
        "to_ann_error": ((returned - expected).norm() / expected.norm()).item(),
        "step": round(step, 3),
        "window": round(correlation(answers(snn, x), expected), 3),
        "others": round(correlation(answers(snn, others), answers(net, others)), 3),
        "rounded": round(correlation(answers(rounded(snn, list(ways)), x), expected), 3),
        "first": round(correlation(answers(rounded(snn, list(ways)[:1]), x), expected), 3),
        "noisy": round(correlation(answers(net, x + noise * grey), expected), 3),
    }
    return {**result, "parameters_shared": shared, "trains": trains(snn, x[:4])}  # last: it moves the statistics


def table(result: dict[str, Any]) -> str:
    lines = [
        "| model | size | fused | general | r, step | r, window | the same, other images "
        "| ANN, rounded | ANN, its first layer rounded | ANN, noisy images |",
        "|" + " --- |" * 10,
    ]
    order = {name: i for i, name in enumerate(MODELS)}
    for run in sorted(result["runs"], key=lambda run: order[run["model"]]):
        row = [run[key] for key in ("model", "size", "fused", "general")]
        row += [f"{run[r]:.2f}" for r in ("step", "window", "others", "rounded", "first", "noisy")]
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def measure_all(arguments: Any, write: Any) -> None:
    images, _ = next(ts.data.load("cifar10-jpeg", arguments.data_dir).train.batches(192, seed=0))
    named = arguments.models.split(",") if arguments.models else list(MODELS)
    known = read("convertible")["runs"] if results("convertible").exists() else []
    runs: list[dict[str, Any]] = [run for run in known if run["model"] not in named]
    for name in named:
        runs.append(measure(name, images))
        print(runs[-1], flush=True)
        write({"T": T, "images": IMAGES, "not": NOT, "runs": runs})


if __name__ == "__main__":
    program(__file__, __doc__, "convert.md", "convertible", measure_all, table, models="")
