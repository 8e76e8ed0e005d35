"""Trains whose channels are worth different things: layers that read them put that into their weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import assert_same, dyadic_, train
from torch import Tensor, nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_snn.convert.calibrate import covering, set_threshold
from tandem_snn.nn.signals import effective_counts


def test_trains_of_counts_and_events_take_one_gain_per_channel() -> None:
    for made in (
        lambda gain: te.SpikeTrain.from_counts(torch.ones(3, 2, 5, dtype=torch.int), 4, gain),
        lambda gain: te.SpikeTrain.from_events(([0, 1], [0, 3]), [2, 2], 4, gain=gain),
    ):
        assert torch.equal(made(torch.tensor([0.5, 2.0])).gain, torch.tensor([0.5, 2.0]))
        with pytest.raises(ValueError, match=r"gain: expected shape \[2\], one value per channel, got \[3\]"):
            made(torch.ones(3))


def test_what_passes_it_on() -> None:
    gain = 2.0 ** torch.randint(-3, 3, (4,))
    x = train(11, 3, 4, 6, 6, rate=0.4, gain=gain)
    expected = x.counts * gain.view(-1, 1, 1)
    for passed, worth in (
        (x, expected), (x[1:], expected[1:]), (tnn.Flatten()(x), expected.flatten(1)),
        (tnn.Flatten(2)(x), expected.flatten(2)), (te.cat([x, x], 1), torch.cat([expected, expected], 1)),
        (te.cat([x, x]), torch.cat([expected, expected])),
    ):  # fmt: skip
        assert torch.equal(effective_counts(passed), worth)
    assert torch.equal(tnn.AdaptiveAvgPool2d(1)(x), F.adaptive_avg_pool2d(expected, 1))
    assert torch.equal(tnn.AvgPool2d(2)(x).gain, gain)
    dropped = tnn.Dropout(0.5)(x)
    assert set((effective_counts(dropped) / expected).nan_to_num().unique().tolist()) <= {0.0, 2.0}
    readout = tnn.Readout(4 * 36, 5)
    torch.testing.assert_close(readout(tnn.Flatten()(x)), F.linear(expected.flatten(1), readout.weight, readout.bias))
    body = dyadic_(tnn.Conv2d(4, 4, 3, padding=1))
    z = F.conv2d(expected, body.weight, body.bias, padding=1) + expected
    torch.testing.assert_close(body.preactivation(x, x), z)
    assert_same(tnn.Residual(body)(x), te.reference.conv2d_if(x, body.weight, body.bias, padding=1, residual=x))


@torch.no_grad()
def everywhere(net: nn.Module, images: Tensor, timing: str, folder: Path) -> ts.FrozenNetwork:
    """The frozen network, whose every path gives the evaluation's bits."""
    frozen, expected = ts.freeze(net), net(images)
    frozen.save(folder / "net.tandem")
    steps = [frozen.step(images) for _ in range(8 if timing == "step" else 40)]
    loaded, (answers, after) = ts.load(folder / "net.tandem"), frozen.anytime(images)
    for answer in frozen(images), frozen.net(images), loaded(images), frozen.readouts(images)[-1], steps[-1]:
        assert torch.equal(answer, expected)
    assert answers.shape == expected.shape
    assert after.max() <= 8
    return frozen


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("timing", ["step", "window"])
@pytest.mark.parametrize("gain", ["threshold", "a tensor"])
def test_frozen_networks_have_it_in_their_weights(gain: str, timing: str, bits: int | None, tmp_path: Path) -> None:
    def settings(n: int) -> dict[str, Any]:
        threshold = torch.rand(n) + 0.5
        worth = gain if gain == "threshold" else threshold.clone()
        return {"threshold": threshold, "v_init": threshold / 2, "gain": worth, "timing": timing}

    net = nn.Sequential(
        tnn.Encoder(8, gain=1 / 8), tnn.Conv2d(2, 6, 3, norm=True, **settings(6)), tnn.MaxPool2d(2),
        tnn.Residual(tnn.Conv2d(6, 6, 3, padding=1, groups=2, weight_bits=bits, **settings(6))),
        tnn.Conv2d(6, 8, 3, weight_bits=bits, **settings(8)), tnn.Flatten(),
        tnn.Linear(32, 9, weight_bits=bits, **settings(9)), tnn.Readout(9, 4),
    ).eval()  # fmt: skip
    frozen = everywhere(net, 4 * torch.rand(5, 2, 10, 10), timing, tmp_path)
    grid = frozen.grids.get("3.body")
    assert (grid is None) == (bits is None)
    assert grid is None or len((grid.weight() / net[1].threshold[:3].repeat(2).view(6, 1, 1, 1)).unique()) > 15


POOLS = tnn.AdaptiveAvgPool2d(1), tnn.AdaptiveAvgPool2d((2, 3)), tnn.AvgPool2d(3, spiking=False)


@pytest.mark.parametrize("timing", ["step", "window"])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("end", ["means", "flat", "readout"])
def test_frozen_means_are_of_what_spikes_are_worth(pool: nn.Module, end: str, timing: str, tmp_path: Path) -> None:
    threshold, images = torch.rand(6) + 0.5, 4 * torch.rand(33, 2, 9, 8)
    layer = tnn.Conv2d(2, 6, 3, threshold=threshold, v_init=threshold / 2, gain="threshold", timing=timing)
    net = nn.Sequential(tnn.Encoder(8, gain=1 / 8), layer, pool)
    net.extend([tnn.Flatten()] * (end != "means"))
    net.extend([tnn.Readout(net(images).shape[1], 5)] * (end == "readout"))
    everywhere(net.eval(), images, timing, tmp_path)


def test_thresholds_that_cover() -> None:
    """Least squared error of what saturates and what is rounded, against a search."""
    a = torch.randn(5, 4000).relu() * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).view(-1, 1)
    for T in 4, 8, 64:
        best, error = covering(a, T, 0.5), []
        for factor in 0.7, 1.0, 1.4:
            unit = (factor * best / T).view(-1, 1)
            error.append(((a / unit).round().clamp(0, T) * unit - a).square().mean())
        assert error[1] < min(error[0], error[2])
        torch.testing.assert_close(best / best[0], torch.arange(1.0, 6.0), atol=0.5, rtol=0.1)
    few = torch.cat([a[:1, :64], torch.zeros(1, 64)])
    assert (covering(few, 8, 0.5) > 0).all(), "a channel that was silent"
    layer = tnn.Conv2d(2, 5, 3, threshold=torch.ones(5), v_init=torch.full((5,), 0.25))
    set_threshold(layer, torch.arange(1.0, 6.0))
    torch.testing.assert_close(layer.v_init, 0.25 * torch.arange(1.0, 6.0))
