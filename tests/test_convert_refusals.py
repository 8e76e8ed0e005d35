"""What convert and to_ann refuse, and how they say it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tandem_snn.nn as tnn
from tandem_snn import convert, to_ann
from tandem_snn.convert import CannotConvert


class Branching(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(4, 4), nn.Linear(4, 4), kind

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        if self.kind == "data":
            return x if x.sum() > 0 else -x
        z = self.a(x)
        if self.kind == "two readers":
            return self.b(torch.relu(z) + z)
        if self.kind == "two inputs":
            return self.b(torch.relu(z) + y)
        if self.kind == "computed":
            return self.b(torch.relu(F.linear(x, self.a.weight * 2)))
        if self.kind == "activations":
            return self.b(torch.relu(z) + torch.relu(self.b(x)))
        if self.kind == "alpha":
            return self.b(torch.relu(torch.add(z, x, alpha=2)))
        if self.kind == "from the image":
            return self.b(torch.relu(z + x))
        a = torch.relu(z)
        return self.b(torch.cat([a, a]))


REFUSED = {
    "GELU": (nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4), nn.ReLU()), r"'_1'.*no spiking counterpart"),
    "no ReLU": (
        nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4)),
        r"'_1' \(call_module 1, Sigmoid\).*nothing would spike",
    ),
    "lazy": (nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2)), r"LazyLinear\): use nn.Linear itself"),
    "parametrised": (
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU()),
        "'_2' .*remove_parametrizations",
    ),
    "spiking": (nn.Sequential(tnn.Encoder(4), tnn.Linear(4, 2)), "module '0': it is spiking already"),
    "no activation": (nn.Sequential(nn.Linear(4, 4), nn.Flatten()), "nothing would spike: put nn.ReLU between"),
    "ReLU6": (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU6()), r"'_2' .*, ReLU6.*put nn.ReLU here"),
    "two in a row": (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()), r"'_1'.*without a ReLU"),
    "norm after": (
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.ReLU()),
        r"'_2'.*batch norm",
    ),
    "no gamma": (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.ReLU()), r"'_1'.*affine=True"),
    "pooled before": (nn.Sequential(nn.Conv2d(1, 4, 3), nn.AvgPool2d(2), nn.ReLU()), r"'_1'.*put the ReLU before"),
    "conv at the end": (nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), r"'_2'.*nn.Linear"),
    "padding": (nn.Sequential(nn.Conv2d(1, 4, 3, padding_mode="reflect"), nn.ReLU()), r"'_0'.*'zeros'"),
    "indices": (nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2, return_indices=True)), r"'_2'.*indices"),
    "adaptive": (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Conv2d(4, 2, 1), nn.ReLU()),
        r"'_3'.*example",
    ),
    **{
        kind: (Branching(kind), message)
        for kind, message in (
            ("data", "torch.fx cannot trace"),
            ("two readers", r"'a'.*one ReLU"),
            ("two inputs", r"'y'.*second input"),
            ("activations", "two activations"),
            ("alpha", "alpha"),
            ("computed", "'linear' .*neither computed nor inputs"),
            ("from the image", "two layers' results"),
            ("concatenated", "cat.*no spiking counterpart"),
        )
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_named(name: str) -> None:
    net, message = REFUSED[name]
    with pytest.raises(CannotConvert, match=message):
        convert(net, T=8)


def test_arguments() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    for keywords, message in (
        ({"T": 0}, "T"),
        ({"mode": "rate"}, "mode"),
        ({"threshold": -1.0}, "threshold: expected a positive number, got -1.0"),
        ({"threshold": "1"}, "threshold: expected a positive number, got '1'"),
        ({"v_init": float("nan")}, "v_init: expected a number, got nan"),
        ({"example": torch.rand(2, 3)}, "example: the ANN does not take it: .*mat1 and mat2"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(net, **{"T": 8, **keywords})
    with pytest.raises(TypeError, match=r"ann: expected a torch\.nn\.Module, got str"):
        convert("resnet18", T=8)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"net: expected a torch\.nn\.Module, got str"):
        to_ann("resnet18")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gain: spikes can be worth"):
        tnn.Linear(3, 2, threshold=torch.ones(2), gain="threshold")
