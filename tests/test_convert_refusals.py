"""What convert takes as the ANN's input, what convert and to_ann refuse, and how they say it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Net
from torch import Tensor, nn
from torch.nn.utils import prune

import tandem_snn.nn as tnn
from tandem_snn import convert, freeze, to_ann
from tandem_snn.convert import CannotConvert


class Bilinear(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(x + y)


class Gate(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return torch.relu(z) * torch.sigmoid(z)


class Last(nn.LSTM):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x.unsqueeze(1))[0][:, -1]


def image(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), *layers)


def linear(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), *layers, nn.Linear(4, 4), nn.ReLU())


def vectors(forward: Callable[[Any, Tensor], Any]) -> nn.Module:
    return Net(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4))


def images(forward: Callable[[Any, Tensor], Any]) -> nn.Module:
    return Net(forward, a=nn.Conv2d(1, 4, 3), b=nn.Conv2d(4, 4, 3))


def shuffled(m: Any, x: Tensor) -> Tensor:
    """It asks for the size, so the numbers in its graph are those of one size."""
    a = torch.relu(m.a(x))
    return torch.relu(m.b(a.view(a.shape[0], 2, 2, *a.shape[2:]).transpose(1, 2).reshape(a.shape)))


relu = torch.relu
REFUSED = {
    "GELU": (
        linear(nn.GELU()),
        r"'gelu' \(aten.gelu.default in module '1', GELU\): it has no spiking counterpart: put nn.ReLU",
    ),
    "LeakyReLU": (linear(nn.LeakyReLU()), r"'1'.*put nn.ReLU"),
    "LayerNorm": (linear(nn.LayerNorm(4)), r"'1'.*use batch norm"),
    "no ReLU": (nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4)), "'1', Sigmoid.*nothing would spike"),
    "hardtanh": (linear(nn.Hardtanh()), r"module '1', Hardtanh\): it has no spiking counterpart"),
    "lazy": (nn.Sequential(nn.LazyLinear(4), nn.ReLU()), "module '0', LazyLinear: give it a batch first"),
    "spiking": (nn.Sequential(tnn.Encoder(4), tnn.Linear(4, 2)), "module '0': it is spiking already"),
    "recurrent": (nn.Sequential(Last(4, 4, batch_first=True), nn.ReLU(), nn.Linear(4, 4)), "'lstm'.*recurrent"),
    "adaptive maximum": (image(nn.AdaptiveMaxPool2d(5), nn.Conv2d(4, 4, 3), nn.ReLU()), "use max_pool"),
    "behind a transposed convolution": (
        nn.Sequential(
            nn.ConvTranspose2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.SiLU(), nn.Conv2d(4, 4, 1), nn.ReLU()
        ),
        r"'silu'.*module '3', SiLU.*put nn.ReLU",
    ),
    "no activation": (nn.Sequential(nn.Linear(4, 4), nn.Flatten()), "nothing would spike: put nn.ReLU between"),
    "indices": (
        images(lambda m, x: relu(m.b(F.max_pool2d(relu(m.a(x)), 2, return_indices=True)[0]))),
        "'max_pool2d_with_indices'.*indices",
    ),
    "indices of a maximum": (
        vectors(lambda m, x: relu(m.b(relu(m.a(x)).max(1, keepdim=True)[1] + m.a(x)))), "indices",
    ),
    "sizes": (images(shuffled), "depend on the size of its input: give `example`"),
    "not square": (image(nn.Flatten(), nn.Linear(12, 2)), "found no input.*mat1 and mat2.*give `example`"),
    "data": (vectors(lambda m, x: x if x.sum() > 0 else -x), "depends on values of the data"),
    "two inputs": (
        vectors(lambda m, x: m.b(relu(m.a(x)) + None)), "found no input that the ANN accepts .*None.*give `example`",
    ),
    "two outputs": (vectors(lambda m, x: (relu(m.a(x)), m.b(x))), "returns 2 values, tuple"),
    "gate": (
        nn.Sequential(Gate(4, 4), nn.Linear(4, 4), nn.ReLU()),
        r"'sigmoid' \(aten.sigmoid.default in module '0', Gate; test_convert_refusals.py:\d+: .*sigmoid.*: .*a gate",
    ),
    "product": (vectors(lambda m, x: m.b(relu(relu(m.a(x)) * m.b(x)))), r"'mul'.*a product of two activations"),
    "batch": (
        vectors(lambda m, x: m.b(relu(m.b(relu(m.a(x)).sum(0, keepdim=True) + m.a(x))))), "'sum_1'.*mixes the samples",
    ),
    "concatenated": (
        vectors(lambda m, x: m.b(relu(m.b(torch.cat([relu(m.a(x)), relu(m.a(x))]))))),
        "'cat'.*puts samples together|'cat'.*mixes the samples",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_named(name: str) -> None:
    net, message = REFUSED[name]
    with pytest.raises(CannotConvert, match=message):
        convert(net.train(), T=8)
    assert all(module.training for module in net.modules())


def written(kind: str) -> Callable[[Any, Tensor], Tensor]:
    """Part of a tensor is written in place, and the whole is read."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        if kind == "relu":
            x.flatten(2).relu_()
        elif kind == "mul":
            part = torch.relu_(x)[:, :2]
            part *= 2
        else:
            x = torch.relu(x)
            x[:, :2] = 0.0
        return torch.relu(m.b(x))

    return forward


@pytest.mark.parametrize("kind", ["relu", "mul", "fill"])
def test_what_is_written_in_place_through_a_view_is_named(kind: str) -> None:
    with pytest.raises(CannotConvert, match=rf"'{kind}_' .*test_convert_refusals.py:\d+.* writes into"):
        convert(images(written(kind)), T=8, example=torch.rand(1, 1, 8, 8))


def test_the_reason_is_the_modules_own() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), layer, nn.Linear(8, 8), nn.ReLU())
    with pytest.raises(CannotConvert, match=r"MultiheadAttention.*: attention; use a convolutional network"):
        convert(net, T=8, example=torch.rand(1, 5, 8))


@pytest.mark.parametrize(("keywords", "error", "message"), [
    ({"example": [1]}, TypeError, "example: expected a batch"),
    ({"example": torch.rand(4)}, ValueError, r"example: expected at least one sample, .*\[4\]"),
    ({"example": torch.rand(0, 4)}, ValueError, "at least one sample"),
    ({"example": torch.rand(2, 3)}, ValueError, "example: the ANN does not accept it: .*mat1 and mat2"),
    ({"T": 0}, ValueError, "T"), ({"mode": "rate"}, ValueError, "mode"),
    ({"T": 256}, ValueError, r"T: expected .* timing='window' \(up to 65535 with timing='step'\), got 256"),
    ({"threshold": -1.0}, ValueError, "threshold: expected a positive number, got -1.0"),
    ({"threshold": "1"}, TypeError, r"threshold: expected a number, got '1' \(str\)"),
    ({"v_init": float("nan")}, ValueError, "v_init: expected a finite number, got nan"),
    ({"ann": "resnet18"}, TypeError, r"ann: expected a torch\.nn\.Module, got str"),
    ({"ann": Bilinear()}, CannotConvert, "a second input, 'y'"),
])  # fmt: skip
def test_arguments(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        convert(**{"ann": nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "T": 8, **keywords})


def test_long_windows_need_step_timing() -> None:
    assert convert(linear(), T=256, timing="step")(torch.rand(1, 4)).shape == (1, 4)


def test_what_has_no_twin() -> None:
    with pytest.raises(TypeError, match=r"net: expected a torch\.nn\.Module, got str"):
        to_ann("resnet18")  # type: ignore[arg-type]
    pruned = tnn.Linear(4, 4)
    prune.l1_unstructured(pruned, "weight", 0.5)
    with pytest.raises(ValueError, match=r"net: the weight of '0' is made before each forward pass.*prune.remove"):
        to_ann(nn.Sequential(pruned, tnn.Readout(4, 2)))


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
def test_what_the_ann_takes_is_found_if_its_size_is_usual(layer: nn.Module) -> None:
    side = {nn.Linear: [], nn.Conv1d: [1024], nn.Conv3d: [16] * 3, nn.Conv2d: [64] * 2}[type(layer)]
    x = torch.rand(3, 2, *side)
    body = nn.Sequential(layer, nn.ReLU(), nn.Flatten())
    net = nn.Sequential(body, nn.Linear(body(x).shape[1], 4))
    snn = convert(net, T=4)
    assert snn(x).shape == (3, 4)
    assert torch.equal(to_ann(snn)(x), net(x))
    wide = nn.Sequential(nn.Linear(9, 9), nn.Unflatten(1, (1, 3, 3)), nn.Conv2d(1, 2, 2), nn.ReLU()).double()
    assert convert(wide, T=4)(torch.rand(2, 9).double()).shape == (2, 2, 2, 2)
    odd = nn.Sequential(nn.Conv2d(1, 1, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4))
    with pytest.raises(CannotConvert, match=r"found no input that the ANN accepts .*give `example`"):
        convert(odd, T=4)
    assert convert(odd, T=4, example=torch.rand(1, 1, 7, 7))(torch.rand(2, 1, 7, 7)).shape == (2, 4)


@pytest.mark.parametrize("flatten", [nn.Flatten(), Viewed()])
def test_a_flattened_image_streams(flatten: nn.Module) -> None:
    layers = nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3)
    frozen, x = freeze(convert(nn.Sequential(flatten, *layers).eval(), T=4)), torch.rand(5, 1, 3, 4)
    assert torch.equal([frozen.step(x) for _ in range(4)][-1], frozen(x))


def test_rows_as_samples_are_no_flattened_image() -> None:
    layers, x = {"a": nn.Linear(4, 6), "b": nn.Linear(6, 3)}, torch.rand(5, 3, 4)
    net = Net(lambda m, x: m.b(torch.relu(m.a(x.view(-1, 4)))), **layers)
    snn = convert(net, T=4, example=x)
    assert snn(x).shape == (15, 3)
    assert torch.equal(to_ann(snn)(x), net(x))


def test_auxiliary_heads_are_left_out_and_said() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        a = torch.relu(m.body(x))
        return (m.head(a), m.aux(a)) if m.training else m.head(a)

    net = Net(forward, body=nn.Linear(4, 4), aux=nn.Linear(4, 2), head=nn.Linear(4, 3)).train()
    with pytest.warns(UserWarning, match="aux takes no part in evaluation"):
        snn = convert(net, T=8, example=torch.rand(1, 4))
    assert snn(torch.rand(3, 4)).shape == (3, 3)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_is_named() -> None:
    net, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.rand(2, 4)
    for module in torch.jit.trace(net, x), torch.jit.script(net):
        with pytest.raises(TypeError, match=r"ann: TorchScript .*: give the module that was traced or scripted"):
            convert(module, T=8, example=x)
