"""What convert takes, of inputs and of torchvision's and timm's models; what convert and to_ann refuse, and how."""

import copy
import importlib
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from networks import Net
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import update_bn

import tandem_snn.nn as tnn
from tandem_snn import ann, calibrate, convert, freeze, to_ann
from tandem_snn.convert import CannotConvert
from tandem_snn.frozen.lowering import lower

relu = torch.relu
QUICK = ("torchvision squeezenet1_1", "timm regnetx_002", "timm mobilenetv2_050")
# Library and name -> the smallest size of images, for which the model takes batches of 64 in training mode too.
MODELS = {
    f"{library} {name}": int(size or 32)
    for library, models in {
        "torchvision": "alexnet:64 vgg11 vgg11_bn resnet18 resnext50_32x4d wide_resnet50_2 squeezenet1_1 densenet121 "
        "inception_v3:75 googlenet shufflenet_v2_x0_5 mobilenet_v2 mnasnet0_5 regnet_x_400mf",
        "timm": "resnet18d resnetv2_50 vgg11 regnetx_002 densenet121 repvgg_a0 dla34 hrnet_w18_small:64 "
        "legacy_xception:75 xception41:64 inception_v3:75 inception_v4:75 selecsls42 res2net50_14w_8s "
        "mobilenetv1_100 mobilenetv2_050",
    }.items()
    for name, _, size in (model.partition(":") for model in models.split())
}
# The other families of classifiers of torchvision, with what has no spiking counterpart in them.
NOT = {
    "torchvision mobilenet_v3_small": "hardswish",
    "torchvision efficientnet_b0": "silu",
    "torchvision efficientnet_v2_s": "silu",
    "torchvision regnet_y_400mf": "sigmoid|product",
    "torchvision convnext_tiny": "layer_norm|gelu|nothing would spike",
    "torchvision swin_t": "writes into|layer_norm|nothing would spike|mixes|gelu",
    "torchvision vit_b_16": "layer_norm|nothing would spike|softmax|mixes|gelu",
    "torchvision maxvit_t": "gelu|sigmoid|layer_norm|product|mixes",
}


class Bilinear(nn.Module):
    def forward(self, x, y):
        return torch.relu(x + y)


class Gate(nn.Linear):
    def forward(self, x):
        z = super().forward(x)
        return torch.relu(z) * torch.sigmoid(z)


def image(*layers):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), *layers)


def linear(*layers):
    return nn.Sequential(nn.Linear(4, 4), *layers, nn.Linear(4, 4), nn.ReLU())


def vectors(forward):
    return Net(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4))


def images(forward):
    return Net(forward, a=nn.Conv2d(1, 4, 3), b=nn.Conv2d(4, 4, 3))


@pytest.mark.parametrize(("net", "message"), [
    (linear(nn.GELU()),
     r"'gelu' \(aten.gelu.default in module '1', GELU\): it has no spiking counterpart: put nn.ReLU"),
    (linear(nn.LeakyReLU()), r"'1'.*put nn.ReLU"), (linear(nn.LayerNorm(4)), r"'1'.*use batch norm"),
    (nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4)), "'1', Sigmoid.*nothing would spike"),
    (linear(nn.Hardtanh()), r"module '1', Hardtanh\): it has no spiking counterpart"),
    (nn.Sequential(nn.LazyLinear(4), nn.ReLU()), "module '0', LazyLinear: give it a batch first"),
    (nn.Sequential(tnn.Encoder(4), tnn.Linear(4, 2)), "module '0': it is spiking already"),
    (nn.Sequential(ann.SelfAttention(4, 2), nn.ReLU()), "attention is not converted: .* loads the state"),
    (Net(lambda m, x: relu(m.a(x[None])[0][0]), a=nn.LSTM(4, 4)), "'a', LSTM.*a recurrent layer"),
    (images(lambda m, x: relu(m.b(F.adaptive_max_pool2d(relu(m.a(x)), 5, return_indices=True)[1].float()))), "indices"),
    (image(nn.ConvTranspose2d(4, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 1), nn.ReLU()),
     r"'silu'.*module '3', SiLU.*put nn.ReLU"),
    (nn.Sequential(nn.Linear(4, 4), nn.Flatten()), "nothing would spike: put nn.ReLU between"),
    (images(lambda m, x: relu(m.b(F.max_pool2d(relu(m.a(x)), 2, return_indices=True)[0]))),
     "'max_pool2d_with_indices'.*indices"),
    (vectors(lambda m, x: relu(m.b(relu(m.a(x)).max(1, keepdim=True)[1] + m.a(x)))), "indices"),
    (images(lambda m, x: relu(m.b((a := relu(m.a(x))).view(a.shape[0], 4, -1).view(a.shape)))),
     "depend on the size of its input: give `example`"),
    (image(nn.Flatten(), nn.Linear(12, 2)), "found no input.*mat1 and mat2.*give `example`"),
    (vectors(lambda m, x: x if x.sum() > 0 else -x), r"depends on values of the data .*; test_conv.*py:\d+: .*sum"),
    (vectors(lambda m, x: m.b(relu(m.a(torch.from_numpy(x.numpy()))))), r"cannot trace .*numpy.*; test_conv.*py:\d+: "),
    (vectors(lambda m, x: m.b(relu(m.a(x)) + None)), "found no input that the ANN accepts .*None.*give `example`"),
    (vectors(lambda m, x: (relu(m.a(x)), 3)), "returns int: expected tensors, alone or in dicts, lists"),
    (nn.GRU(4, 4), "GRU returns a tensor of shape .*: a recurrent layer; use convolutions over time"),
    (nn.Sequential(Gate(4, 4), nn.Linear(4, 4), nn.ReLU()),
     r"'sigmoid' \(aten.sigmoid.default in module '0', Gate; test_convert_refusals.py:\d+: .*sigmoid.*: .*a gate"),
    (vectors(lambda m, x: m.b(relu(relu(m.a(x)) * m.b(x)))), r"'mul'.*a product of two activations"),
    (vectors(lambda m, x: m.b(relu(m.b(relu(m.a(x)).sum(0, keepdim=True) + m.a(x))))), "'sum_1'.*mixes the samples"),
    (vectors(lambda m, x: m.b(relu(m.b(torch.cat([relu(m.a(x)), relu(m.a(x))]))))),
     "'cat'.*puts samples together|'cat'.*mixes the samples"),
])  # fmt: skip
def test_what_cannot_be_converted_is_named(net, message):
    with pytest.raises(CannotConvert, match=message):
        convert(net.train(), T=8)
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize("f", [F.dropout, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout])
def test_dropout_in_evaluation_is_refused(f):
    name = {F.dropout: "Dropout", F.dropout2d: "Dropout2d", F.alpha_dropout: "AlphaDropout"}
    forwards = [lambda m, x: m.b(relu(f(m.a(x), 0.5, True))), lambda m, x: f(m.b(relu(m.a(x))), 0.5, training=True)]
    for forward in forwards:
        with pytest.raises(
            CannotConvert, match=rf"drops features in evaluation.*nn.{name.get(f, 'FeatureAlphaDropout')}$"
        ):
            convert(images(forward), T=8, example=torch.rand(1, 1, 16, 16))
    net = images(lambda m, x: m.b(relu(f(m.a(x), 0.5 if m.training else 0.0, True)))).eval()
    x = torch.rand(3, 1, 16, 16)
    assert torch.equal(to_ann(convert(net, T=8, data=[x]))(x), net(x))


@pytest.mark.kernels
@pytest.mark.filterwarnings("ignore:freeze. the network runs layer by layer")
def test_what_draws_random_numbers_is_not_frozen_in():
    net = vectors(lambda m, x: m.b(relu(m.a(x)) * torch.bernoulli(torch.full((4,), 0.5)))).eval()
    x = torch.rand(5, 4)
    frozen = freeze(convert(net, T=8, data=[x]))
    assert "random numbers" in str(frozen.why_slow)
    assert any(not torch.equal(frozen(x), frozen(x)) for _ in range(30))


FIXED = {
    "size": lambda m, x: (lambda a: m.c(a + F.interpolate(relu(m.b(a)), size=a.shape[-2:])))(relu(m.a(x))),
    "size of the answer": lambda m, x: F.interpolate(m.c(relu(m.a(x))), size=x.shape[-2:], mode="bilinear"),
    "view": lambda m, x: m.c((a := relu(m.a(x))).view(a.shape[0], 2, 8, *a.shape[2:]).transpose(1, 2).reshape(a.shape)),
    "constant": lambda m, x: m.c(relu(m.a(x)) + torch.linspace(0, 1, x.shape[3])),
    "kernel": lambda m, x: m.c((a := relu(m.a(x))) - F.avg_pool2d(a, a.shape[2:])),
    "hidden pool": lambda m, x: m.c(relu(m.b(F.adaptive_avg_pool2d(relu(m.a(x)), 1)))),
    "hidden maximum": lambda m, x: m.c(relu(m.b(relu(m.a(x)).amax((2, 3), keepdim=True)))),
    "pool to its own size": lambda m, x: m.c(relu(m.b(F.adaptive_avg_pool2d(relu(m.a(x)), (24, 16))))),
    "ceil": lambda m, x: m.c(relu(m.b(F.avg_pool2d(relu(m.a(x)), 2, ceil_mode=True)))),
}  # fmt: skip
FREE = {
    "scale": lambda m, x: m.c((a := relu(m.a(x))) + F.interpolate(relu(m.b(a)), scale_factor=2)),
    "pool": lambda m, x: F.adaptive_avg_pool2d(m.c(F.max_pool2d(relu(m.a(x)), 2)), 1).flatten(1),
    "crop": lambda m, x: m.c(relu(m.a(x))[:, :, :4, 1:-1]),
    "like": lambda m, x: m.c((a := relu(m.a(x))).flatten(2).view_as(a) + torch.ones_like(a)),
}


@pytest.mark.kernels
@pytest.mark.filterwarnings("ignore:freeze. the network runs layer by layer", "ignore:convert.*takes no part")
@pytest.mark.parametrize("name", [*FIXED, *FREE])
def test_a_network_follows_the_size_of_its_input_or_refuses_it(name, timing):
    a, b, c = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 2, 1), nn.Conv2d(16, 8, 3, 1, 1)
    net, x, other = (
        Net({**FIXED, **FREE}[name], a=a, b=b, c=c).eval(),
        torch.rand(2, 3, 24, 16),
        torch.rand(3, 3, 28, 20),
    )
    snn = convert(net, T=16, data=[x], timing=timing)
    frozen = freeze(snn)
    fast = frozen.why_slow is None
    if name in FREE or (timing == "step" and name == "hidden maximum"):  # which then is exact for any size
        torch.testing.assert_close(to_ann(snn)(other), net(other))
        assert torch.equal(frozen(other), snn(other))
    else:
        for each in snn, frozen, to_ann(snn), frozen:
            with pytest.raises(
                ValueError, match=r"x: expected samples of shape \[3, 24, 16\].*, got \[3, 28, 20\]: convert"
            ):
                each(other)
    assert torch.equal(frozen(x), snn(x))
    assert (frozen.why_slow is None) == fast


def written(kind):
    """Part of a tensor is written in place, and the whole is read."""

    def forward(m, x):
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
def test_what_is_written_in_place_through_a_view_is_named(kind):
    with pytest.raises(CannotConvert, match=rf"'{kind}_' .*test_convert_refusals.py:\d+.* writes into"):
        convert(images(written(kind)), T=8, example=torch.rand(1, 1, 8, 8))


def test_the_reason_is_the_modules_own():
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), layer, nn.Linear(8, 8), nn.ReLU())
    with pytest.raises(CannotConvert, match=r"MultiheadAttention.*: a softmax; build the network with tnn"):
        convert(net, T=8, example=torch.rand(1, 5, 8))


@pytest.mark.parametrize(("keywords", "error", "message"), [
    ({"example": [1]}, TypeError, "example: expected a batch"),
    ({"example": torch.rand(4)}, ValueError, r"example: expected at least one sample, .*\[4\]"),
    ({"example": torch.rand(0, 4)}, ValueError, "at least one sample"),
    ({"example": torch.rand(2, 3)}, ValueError,
     r"example: the ANN does not accept two samples of shape \[3\] .*size\): .*mat1"),
    ({"example": (1, 4)}, TypeError, r"example: expected a batch, such as torch.rand\(1, 3, 32, 32\), got int"),
    ({"data": []}, ValueError, "data: expected at least one sample, got none"),
    ({"data": [(torch.zeros(4), torch.rand(4, 4))]}, ValueError, r"data: expected at least one sample, .*\[4\]"),
    ({"data": [torch.rand(2, 3)]}, ValueError, r"data: the ANN does not accept two samples of shape \[3\] .*mat1 and"),
    ({"data": [torch.rand(2, 4).byte()]}, ValueError, r"data: the ANN does not accept two samples of shape \[4\]"),
    ({"example": torch.rand(2, 4), "data": [torch.rand(2, 3)]}, ValueError,
     r"data: the network does not accept torch.float32 \[2, 3\]: mat1 and"),
    ({"T": 0}, ValueError, "T"), ({"mode": "rate"}, ValueError, "mode"),
    ({"T": 256}, ValueError, r"T: expected .* timing='window' \(up to 65535 with timing='step'\), got 256"),
    ({"threshold": -1.0}, ValueError, "threshold: expected a positive number, got -1.0"),
    ({"threshold": "1"}, TypeError, r"threshold: expected a number, got '1' \(str\)"),
    ({"v_init": float("nan")}, ValueError, "v_init: expected a finite number, got nan"),
    ({"timing": "late"}, ValueError, "timing: expected one of 'step', 'window', got 'late'"),
    ({"ann": "resnet18"}, TypeError, r"ann: expected a torch\.nn\.Module, got str"),
    ({"ann": Bilinear()}, CannotConvert, "its forward takes x, y: give `example`"),
])  # fmt: skip
def test_bad_arguments_are_named(keywords, error, message):
    with pytest.raises(error, match=message):
        convert(**{"ann": nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "T": 8, **keywords})


@pytest.mark.filterwarnings("ignore")  # torch moves it to another package
def test_quantized_modules_are_named():
    net = nn.Sequential(torch.ao.nn.quantized.dynamic.Linear(4, 4), nn.ReLU())
    with pytest.raises(CannotConvert, match=r"module '0', Linear, is quantized: convert the ANN of floating point"):
        convert(net, T=8, example=torch.rand(2, 4))


def test_long_windows_need_step_timing():
    assert convert(linear(), T=256, timing="step")(torch.rand(1, 4)).shape == (1, 4)


def test_what_has_no_twin():
    with pytest.raises(TypeError, match=r"net: expected a torch\.nn\.Module, got str"):
        to_ann("resnet18")
    frozen = freeze(nn.Sequential(tnn.Encoder(4), tnn.Linear(4, 3), tnn.Readout(3, 2)))
    for net in frozen, nn.Sequential(frozen), lower(frozen.net):
        with pytest.raises(ValueError, match="net: a frozen network has no ANN twin"):
            to_ann(net)
    pruned = tnn.Linear(4, 4)
    prune.l1_unstructured(pruned, "weight", 0.5)
    with pytest.raises(ValueError, match=r"net: the weight of '0' is made before each forward pass.*prune.remove"):
        to_ann(nn.Sequential(pruned, tnn.Readout(4, 2)))
    for base, given in ((tnn.Encoder, (8,)), (tnn.Linear, (4, 4)), (tnn.MaxPool2d, (2,)), (tnn.Readout, (4, 2))):
        own = type("Own", (base,), {"forward": lambda layer, x: type(layer).__base__.forward(layer, x)})
        with pytest.raises(ValueError, match=r"net: '1' \(Own\) has a forward of its own, which a twin lacks"):
            to_ann(nn.Sequential(nn.Identity(), own(*given)))
        to_ann(type("Same", (base,), {})(*given))


def test_an_example_moves_no_statistics():
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Conv2d(4, 3, 1), nn.ReLU()
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, 2)).train()
    before = copy.deepcopy(net.state_dict())
    snn = convert(net, T=4, example=torch.rand(5, 1, 6, 6))
    assert snn.training
    assert net[1].training
    torch.testing.assert_close(dict(net.state_dict()), dict(before), atol=0, rtol=0)


@pytest.mark.parametrize("layer", [nn.Linear(2, 3), nn.Conv1d(2, 3, 50), nn.Conv3d(2, 3, 5), nn.Conv2d(2, 3, 60)])
def test_what_the_ann_takes_is_found_if_its_size_is_usual(layer):
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


@pytest.mark.parametrize("flatten", [nn.Flatten(), Net(lambda m, x: x.view(-1, 12))])
def test_a_flattened_image_streams(flatten):
    layers = nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3)
    frozen, x = freeze(convert(nn.Sequential(flatten, *layers).eval(), T=4)), torch.rand(5, 1, 3, 4)
    assert torch.equal([frozen.step(x) for _ in range(4)][-1], frozen(x))


def test_rows_as_samples_are_no_flattened_image():
    layers, x = {"a": nn.Linear(4, 6), "b": nn.Linear(6, 3)}, torch.rand(5, 3, 4)
    net = Net(lambda m, x: m.b(torch.relu(m.a(x.view(-1, 4)))), **layers)
    snn = convert(net, T=4, example=x)
    assert snn(x).shape == (15, 3)
    assert torch.equal(to_ann(snn)(x), net(x))


def test_auxiliary_heads_are_left_out_and_said():
    def forward(m, x):
        a = torch.relu(m.body(x))
        return (m.head(a), m.aux(a)) if m.training else m.head(a)

    net = Net(forward, body=nn.Linear(4, 4), aux=nn.Linear(4, 2), head=nn.Linear(4, 3)).train()
    with pytest.warns(UserWarning, match="aux takes no part in evaluation"):
        snn = convert(net, T=8, example=torch.rand(1, 4))
    assert snn(torch.rand(3, 4)).shape == (3, 3)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_is_named():
    net, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.rand(2, 4)
    for module in torch.jit.trace(net, x), torch.jit.script(net):
        with pytest.raises(TypeError, match=r"ann: TorchScript .*: give the module that was traced or scripted"):
            convert(module, T=8, example=x)


def marked(name):
    kind = pytest.mark.slow if name not in QUICK else pytest.mark.clients if name.startswith("timm") else ()
    return pytest.param(name, marks=kind)


def make(name):
    library, _, model = name.partition(" ")
    pytest.importorskip(library)
    torch.manual_seed(0)
    if library == "timm":
        return importlib.import_module("timm").create_model(model)
    options = {"init_weights": True} if model in ("googlenet", "inception_v3") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the time that initialisation takes
        return getattr(importlib.import_module("torchvision.models"), model)(**options)


def is_finite_after_a_step(snn, x):
    snn.train()(x).square().mean().backward()
    finite = all(p.grad is not None and p.grad.isfinite().all() for p in snn.parameters())
    snn.zero_grad()
    return finite


@pytest.mark.filterwarnings("ignore:convert. .* takes no part in evaluation")
@pytest.mark.parametrize("name", [marked(name) for name in MODELS])
def test_models(name):
    """At random weights gradients are finite, or a warning names a batch norm; with statistics of data they are."""
    net, x = make(name), torch.rand(8, 3, MODELS[name], MODELS[name])
    with warnings.catch_warnings(record=True) as caught:
        snn = convert(net, T=4, data=[x])
    named = any(re.search("batch norms, most of all '.+', normalise", str(warning.message)) for warning in caught)
    assert named or is_finite_after_a_step(snn, x)
    used = {id(p) for p in snn.parameters()}
    assert used <= {id(p) for p in net.parameters()}
    assert used == {id(p) for p in net.parameters()} or name in ("torchvision googlenet", "torchvision inception_v3")
    net.eval()
    with torch.no_grad():
        expected = net(x)
        atol = 1e-4 * expected.abs().max().item()
        torch.testing.assert_close(to_ann(snn.eval())(x), expected, rtol=1e-4, atol=atol)
    update_bn([x], to_ann(snn))
    calibrate(snn, [x])
    assert is_finite_after_a_step(snn, x)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOT)
def test_what_stops_the_others(name):
    with pytest.raises(CannotConvert, match=NOT[name]):
        convert(make(name), T=4, example=torch.rand(1, 3, 224, 224))
