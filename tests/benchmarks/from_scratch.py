"""What narrows the gap of a network that streams and learns from random weights? Each idea alone, on a small network.

    python tests/benchmarks/from_scratch.py --seeds 2
    python tests/benchmarks/from_scratch.py --gradients

The first command trains 16C3s2-32C3s2-FC64 with T = 8 on 20,000 samples of Fashion-MNIST for six epochs, and its twin
for as many. The table has the accuracy on 5,000 samples held out of the training samples, the synaptic operations
relative to the twin, and of the last convolution the shares of the neurons that fire although z <= 0, of channels that
never fire, and of neurons that fire in every step. The second compares the tandem gradient of each weight, before
training and after it, with that of backpropagation through time with a surrogate, max(0, 1 - |v - ϑ|/ϑ).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from take_back import simulate
from torch import Tensor, nn

import tandem_snn.nn as tnn
from tandem_snn.data import Dataset
from tandem_snn.machine import freed_is_kept
from tandem_snn.measure import activations, synops
from tandem_snn.training import Recipe, Trainer, evaluate, make_task, start_from

BASE = Recipe(
    data="fashion-mnist", model="16C3s2-32C3s2-FC64", T=8, epochs=6, batch_size=64, augment=("flip", "shift:2"),
    gamma=3.0, v_init=0.5, synops_penalty=0.1,
)  # fmt: skip
Change = Callable[[Trainer, float], None]


def layers(net: nn.Module) -> list[Any]:
    return [module for module in net.modules() if isinstance(module, tnn.SpikingLayer)]


def attribute(name: str, *phases: tuple[float, Any]) -> Change:
    """Gives all layers an attribute's value by phase: (share of the training after which it begins, value)."""

    def change(trainer: Trainer, progress: float) -> None:
        value = [value for start, value in phases if progress >= start][-1]
        for layer in layers(trainer.net):
            setattr(layer, name, value)

    return change


def by_chance(trainer: Trainer, progress: float) -> None:
    """Gate "resu" in half of the steps, chosen at random, and never in the last third."""
    resu = progress < 2 / 3 and torch.rand((), generator=torch.Generator().manual_seed(trainer.step)) < 0.5
    for layer in layers(trainer.net):
        layer.gate = "resu" if resu else "clip"


def by_layer(trainer: Trainer, progress: float) -> None:
    """Gate "clip" in convolutions, "relu" in the rest."""
    for layer in layers(trainer.net):
        layer.gate = "clip" if isinstance(layer, tnn.Conv2d) else "relu"


def longer_windows(trainer: Trainer, progress: float) -> None:
    """T = 1, 2, 4 and 8 in turn."""
    for module in trainer.net.modules():
        if isinstance(module, tnn.Encoder):
            module.T = 2 ** min(3, int(4 * progress))


def penalty(of: Callable[[float], float]) -> Change:
    """A penalty on synaptic operations that depends on the progress."""

    def change(trainer: Trainer, progress: float) -> None:
        trainer.recipe = replace(trainer.recipe, synops_penalty=of(progress))

    return change


def faster_norm(trainer: Trainer, progress: float) -> None:
    """Three times the learning rate for the scale and shift of batch norm: after a step, the same twice more."""
    before = trainer.__dict__.get("norms")
    if before is not None:
        with torch.no_grad():
            for layer, values in before:
                for parameter, old in zip((layer.norm.weight, layer.norm.bias), values, strict=True):
                    parameter.add_(parameter - old, alpha=2.0)
    trainer.__dict__["norms"] = [
        (layer, [p.detach().clone() for p in (layer.norm.weight, layer.norm.bias)]) for layer in layers(trainer.net)
    ]


class Mismatch:
    """Adds the mean of (c - clip(z/ϑ, 0, T))²/T² to the loss."""

    def __init__(self, trainer: Trainer, weight: float = 1.0) -> None:
        self.terms: list[Tensor] = []
        self.weight, self.operations, self.recipe = weight, trainer._penalty, trainer.recipe
        trainer._penalty = self  # type: ignore[assignment]
        for layer in layers(trainer.net):
            layer.register_forward_hook(self.record)

    def record(self, layer: Any, args: tuple[Any, ...], output: Any) -> None:
        if not layer.training:
            return
        x, norm = args[0], layer.norm
        product = layer._product(x.counts, layer.weight, None, *layer._geometry())
        z = nn.functional.batch_norm(product, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
        ideal = (z / layer.threshold).clamp(0, output.T)
        self.terms.append((output.counts.detach() - ideal).square().mean() / output.T**2)

    def __call__(self) -> Tensor:
        assert self.operations is not None
        mismatch, self.terms = torch.stack(self.terms).mean(), []
        return self.operations() + self.weight / self.recipe.synops_penalty * mismatch

    def remove(self) -> None:
        assert self.operations is not None
        self.operations.remove()


def mismatch(trainer: Trainer, progress: float) -> None:
    """The mismatch between counts and activations in the loss."""
    if trainer.step == 0:
        Mismatch(trainer)


def nothing(trainer: Trainer, progress: float) -> None:
    """No change during training."""


AFTER_ANN = {"init_from": "twin", "init_gain": 2.5, "epochs": 3}
WINDOW = {"timing": "window", "gate": "clip"}
IDEAS: dict[str, tuple[dict[str, Any], Change]] = {
    "γ = 2, v_init = 0 (the paper's)": ({"gamma": 2.0, "v_init": 0.0}, nothing),
    "γ = 2, v_init = ϑ/2": ({"gamma": 2.0}, nothing),
    "γ = 3, v_init = 0": ({"v_init": 0.0}, nothing),
    "γ = 3, v_init = ϑ/2: below, unless it says otherwise": ({}, nothing),
    "gate clip": ({"gate": "clip"}, nothing),
    "gate clip in convolutions, relu in the rest": ({}, by_layer),
    "gate resu for 4 epochs, then clip": ({}, attribute("gate", (0, "resu"), (2 / 3, "clip"))),
    "gate resu in every other step at random, then clip": ({}, by_chance),
    "timing window for 4 epochs, then step": ({"gate": "clip"}, attribute("timing", (0, "window"), (2 / 3, "step"))),
    "penalty rises from 0 to twice": ({}, penalty(lambda progress: 0.2 * progress + 1e-9)),
    "twice the penalty, in the second half only": ({}, penalty(lambda progress: 0.2 * (progress >= 0.5) + 1e-9)),
    "three times the learning rate for γ and β": ({}, faster_norm),
    "thresholds learned, one per channel": ({"learn_threshold": "channel"}, nothing),
    "T = 1, 2, 4, 8 in turn": ({}, longer_windows),
    "mismatch in the loss": ({}, mismatch),
    "3 epochs as ANN, then 3": (AFTER_ANN, nothing),
    "3 epochs as ANN, then 3; gate clip": (AFTER_ANN | {"gate": "clip"}, nothing),
    "does not stream: gate resu": ({"gate": "resu"}, nothing),
    "does not stream: timing window": (WINDOW, nothing),
    "does not stream: 3 epochs as ANN, then timing window": (AFTER_ANN | WINDOW, nothing),
}  # fmt: skip


def train(recipe: Recipe, data: Dataset, kind: str, change: Change = nothing, start: Any = None) -> nn.Module:
    """The network after its last epoch."""
    torch.manual_seed(recipe.seed)
    net = recipe.build(data, kind)
    if start is not None:
        start_from(net, start, recipe.init_gain)
    trainer = Trainer(net, data, recipe.of(kind))
    steps = recipe.epochs * trainer.steps_per_epoch
    while not trainer.finished:
        change(trainer, trainer.step / steps)
        for step in trainer.epoch():
            if step < steps:
                change(trainer, step / steps)
        trainer.finish_epoch()
    trainer.release()
    return net


def accuracy(net: nn.Module, data: Dataset) -> float:
    """In per cent, on the samples that are held out."""
    return 100 * evaluate(net, data.test, make_task(data.task))["accuracy"]


def measure(net: nn.Module, data: Dataset) -> dict[str, float]:
    """What a row of the table has, in per cent and, for SynOps, relative to the twin."""
    x, _ = next(data.test.batches(500))
    with torch.no_grad():
        found = activations(net, x)
    last = [layer for layer in found if layer.counts.dim() == 4][-1]
    shares = (last.counts > 0) & (last.a <= 0), last.counts.amax((0, 2, 3)) == 0, last.counts == last.T
    spurious, dead, always = (100 * share.double().mean().item() for share in shares)
    return {"accuracy": accuracy(net, data), "SynOps": synops(net, x).ratio, "z <= 0": spurious,
            "dead channels": dead, "every step": always}  # fmt: skip


class Spike(torch.autograd.Function):
    """1 where v >= ϑ; a triangle around ϑ as its gradient."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, threshold: float, net_spikes: Tensor) -> Tensor:
        ctx.save_for_backward((1 - (v / threshold - 1).abs()).clamp_min(0) / threshold)
        return (v >= threshold).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] * ctx.saved_tensors[0], None, None


def compare_gradients(data: Dataset, when: str, net: nn.Module) -> None:
    """Prints, for each layer and gate, the cosine between the tandem gradient and that through time."""
    net.eval()
    inputs, targets = next(data.train.batches(500))
    weights = [layer.weight for layer in layers(net)]
    answer = simulate(net, inputs, BASE.T, Spike.apply)[0][-1]
    theirs = torch.autograd.grad(nn.functional.cross_entropy(answer, targets), weights)
    for gate in ("relu", "clip"):
        for layer in layers(net):
            layer.gate = gate
        ours = net(inputs)
        assert (ours.argmax(1) == answer.argmax(1)).double().mean() > 0.99  # the same network, but for rounding
        gradients = torch.autograd.grad(nn.functional.cross_entropy(ours, targets), weights)
        cosines = [
            nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()
            for a, b in zip(gradients, theirs, strict=True)
        ]
        print(f"| {when} | {gate} | " + " | ".join(f"{cosine:.2f}" for cosine in cosines) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=os.environ.get("TANDEM_DATA"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gradients", action="store_true")
    parser.add_argument("--only", nargs="*", default=[""], help="ideas whose names contain one of these")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    whole = BASE.load(arguments.data_dir)
    data = Dataset.of(whole.train.subset(range(20_000)), whole.validation, name=whole.name, classes=whole.class_names)
    seeds = range(arguments.seeds)
    if arguments.gradients:
        torch.manual_seed(0)
        start = BASE.build(data)
        with torch.no_grad():
            start.train()(next(data.train.batches(500))[0])
        compare_gradients(data, "before", start)
        compare_gradients(data, "after", train(BASE, data, "SNN"))
        return
    with freed_is_kept():
        theirs = [accuracy(train(BASE.with_seed(seed), data, "ANN"), data) for seed in seeds]
        print(f"twin: {fmean(theirs):.2f}", [round(value, 2) for value in theirs], flush=True)
        for name, (changes, change) in IDEAS.items():
            if not any(part in name for part in arguments.only):
                continue
            rows = []
            for seed in seeds:
                recipe = replace(BASE, **changes).with_seed(seed)
                start = train(recipe, data, "ANN").state_dict() if recipe.init_from else None
                rows.append(measure(train(recipe, data, "SNN", change, start), data))
            gap = fmean(row["accuracy"] - ann for row, ann in zip(rows, theirs, strict=True))
            means = {key: fmean(row[key] for row in rows) for key in rows[0]}
            cells = [f"{means['accuracy']:.2f}", f"{gap:+.2f}", f"{means['SynOps']:.2f}"]
            cells += [f"{means[key]:.0f} %" for key in ("z <= 0", "dead channels", "every step")]
            print(f"| {name} | " + " | ".join(cells) + " |", [round(row["accuracy"], 2) for row in rows], flush=True)


if __name__ == "__main__":
    main()
