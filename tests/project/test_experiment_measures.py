"""Measures of experiments: comparisons, accuracy over time, following, times of a step."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import tandem_snn as ts
import tandem_snn.nn as tnn
from architectures import create
from measures import compared, early_exit, over_time, packed, step_times
from recipe import Recipe
from training import Task

RECIPE = Recipe(model="FC32-D0.2-FC32", augment=("shift:1",), epochs=3, seed=5)


def test_comparisons():
    """About 95 % of intervals of three seeds hold the true difference; McNemar's test counts samples that differ."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for luck, own, twin in torch.randn(2000, 3, 3, generator=generator).mul(0.3).transpose(1, 2).tolist():
        per_seed = [
            {"test_accuracy": 92.9 + both + a, "ann_test_accuracy": 93.3 + both + b}
            for both, a, b in zip(luck, own, twin, strict=True)
        ]
        low, high = re.fullmatch(r"\S+ \[(\S+), (\S+)\]", compared(per_seed)).groups()
        found.append(float(low) <= -0.4 <= float(high))
    assert 0.93 < sum(found) / len(found) < 0.97
    right, other = torch.zeros(100), torch.zeros(100)
    right[:90] = other[5:91] = 1  # 5 of the first alone, 1 of the other alone: 2 * (1 + 6) / 2 ** 6
    one = {"test_accuracy": 90.0, "right": packed(right), "ann_test_accuracy": 86.0, "ann_right": packed(other)}
    assert compared([one]) == "+4.00, p = 0.22"
    assert compared([one, {**one, "ann_right": one["right"]}]) == "+4.00 [+4.00, +4.00], p = 0.22, 1"
    assert compared([{name: value for name, value in one.items() if "right" not in name}]) == "+4.00"


def on_digits(digits, timing):
    net = create(tnn, "FC32-FC16", (1, 8, 8), 10, 6, timing=timing)
    x, y = next(digits.test.batches(450))
    net(x)
    return over_time(replace(RECIPE, timing=timing), digits, [net.eval()]), ts.freeze(net), x, y


def test_over_time_and_early_exit_are_those_of_single_steps(digits):
    found, frozen, x, y = on_digits(digits, "step")
    readouts = torch.stack([frozen.step(x) for _ in range(6)])
    expected = [100 * (r.argmax(1) == y).double().mean().item() for r in readouts]
    assert found["test_accuracy_over_time"] == pytest.approx(expected, abs=1e-4)
    for one in found["early_exit"]:
        logits, steps = frozen.anytime(x, one["confidence"])
        assert one["steps"] == pytest.approx(steps.double().mean().item())
        assert one["accuracy"] == pytest.approx((logits.argmax(1) == y).double().mean().item())
    assert early_exit(readouts, y)[-1]["steps"] == 6
    assert Task(RECIPE).values(readouts[-1], y).mean().item() == pytest.approx(expected[-1] / 100)


def test_following_ends_in_the_answer_of_the_window(digits):
    found, frozen, x, y = on_digits(digits, "window")
    right = (frozen.readouts(x).argmax(2) == y).double().mean(1)
    assert found["test_accuracy_over_time"] == pytest.approx((100 * right).tolist(), abs=1e-4)
    steps, following = frozen.settle(x)[1], found["following"]
    assert (following["steps"], following["most_steps"]) == (pytest.approx(steps.double().mean().item()), steps.max())
    assert following["synops_ratio"] >= 1  # each spike of the window is a move, and some are taken back


def test_step_times_leave_the_networks_alone():
    nets = [nn.Linear(64, 10) for _ in range(2)]
    before = [net.weight.clone() for net in nets]
    times = step_times(nets, torch.rand(8, 64), torch.zeros(8, dtype=torch.int64), nn.functional.cross_entropy, 3)
    assert [len(seconds) for seconds in times] == [3, 3]
    assert all(torch.equal(net.weight, weight) for net, weight in zip(nets, before, strict=True))
