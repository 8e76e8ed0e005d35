"""The input of an ANN: an example that is given, or what convert finds from the layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tandem_snn import calibrate, convert, freeze, to_ann


def test_an_example_moves_no_statistics() -> None:
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Conv2d(4, 3, 1), nn.ReLU()
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, 2)).train()
    before = copy.deepcopy(net.state_dict())
    snn = convert(net, T=4, example=torch.rand(5, 1, 6, 6))
    assert snn.training
    assert net[1].training
    torch.testing.assert_close(dict(net.state_dict()), dict(before), atol=0, rtol=0)


class Viewed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 12)


@pytest.mark.parametrize("layer", [nn.Linear(2, 3), nn.Conv1d(2, 3, 50), nn.Conv3d(2, 3, 5), nn.Conv2d(2, 3, 60)])
def test_what_the_ann_takes_is_found(layer: nn.Module) -> None:
    """Kernels and a Linear behind them that the first guess does not fit."""
    side = {nn.Linear: [], nn.Conv1d: [600], nn.Conv3d: [9] * 3, nn.Conv2d: [61] * 2}[type(layer)]
    x = torch.rand(3, 2, *side)
    body = nn.Sequential(layer, nn.ReLU(), nn.Flatten())
    net = nn.Sequential(body, nn.Linear(body(x).shape[1], 4))
    snn = convert(net, T=4)
    assert snn(x).shape == (3, 4)
    assert torch.equal(to_ann(snn)(x), net(x))
    wide = nn.Sequential(nn.Linear(9, 9), nn.Unflatten(1, (1, 3, 3)), nn.Conv2d(1, 2, 2), nn.ReLU()).double()
    assert convert(wide, T=4)(torch.rand(2, 9).double()).shape == (2, 2, 2, 2)


@pytest.mark.parametrize("flatten", [nn.Flatten(), Viewed()])
def test_a_flattened_image_streams(flatten: nn.Module) -> None:
    layers = nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3)
    frozen, x = freeze(convert(nn.Sequential(flatten, *layers).eval(), T=4)), torch.rand(5, 1, 3, 4)
    assert torch.equal([frozen.step(x) for _ in range(4)][-1], frozen(x))


def test_rows_as_samples_are_no_flattened_image() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x.view(-1, 4))))

    net, x = Rows(), torch.rand(5, 3, 4)
    snn = convert(net, T=4, example=x)
    assert snn(x).shape == (15, 3)
    assert torch.equal(to_ann(snn)(x), net(x))


def test_where_no_size_is_given_none_is_taken_for_granted() -> None:
    """Windows that depend on it are those of each image: the general way; with an example they are a layer's."""
    layers = nn.Conv2d(2, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 8), nn.ReLU()
    net = nn.Sequential(*layers, nn.Linear(8, 3)).eval()
    x = torch.rand(4, 2, 17, 17)
    snn = calibrate(convert(net, T=255), [x], percentile=100)
    assert snn.meta["ways"]["5"] == "general: adaptive_avg_pool2d, flatten, linear"
    assert convert(net, T=255, example=x).meta["ways"]["4"] == "fused: linear"
    for size in (17, 17), (11, 20):
        x = torch.rand(4, 2, *size)
        torch.testing.assert_close(snn(x), net(x), atol=0.02, rtol=0.02)
        assert torch.equal(to_ann(snn)(x), net(x))


def test_batches_and_sizes_are_free() -> None:
    depthwise = nn.Conv2d(6, 6, 3, groups=6)
    layers = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU6(), depthwise, nn.Conv2d(6, 8, 1), nn.ReLU()
    net = nn.Sequential(*layers, nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    snn = convert(net, T=8, example=torch.rand(1, 2, 8, 8))
    for shape in (1, 2, 8, 8), (5, 2, 11, 9):
        x = torch.rand(shape)
        torch.testing.assert_close(to_ann(snn)(x), net(x))
        assert snn(x).shape == (shape[0], 5)


def test_auxiliary_heads_are_left_out_and_said() -> None:
    class Aux(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.aux, self.head = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Any:
            a = torch.relu(self.body(x))
            return (self.head(a), self.aux(a)) if self.training else self.head(a)

    net = Aux().train()
    with pytest.warns(UserWarning, match="aux takes no part in evaluation"):
        snn = convert(net, T=8, example=torch.rand(1, 4))
    assert snn(torch.rand(3, 4)).shape == (3, 3)
