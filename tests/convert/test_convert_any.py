"""convert on graphs of torch.export: any sum of linear maps of trains into neurons."""

import copy
import pickle
import random

import pytest
import torch
import torch.nn.functional as F
from networks import Net, at_the_counts, check_frozen, settled
from test_convert import NETWORKS, strided
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn import calibrate, convert, freeze, load, to_ann, to_nir, to_onnx
from tandem_snn.convert import CannotConvert
from tandem_snn.measure import Monitor, firing_rates, synops
from tandem_snn.nn import general
from tandem_snn.nn.signals import effective_counts

QUICK = ("line", "strided", "trains side by side", "maximum of currents")


def built(body, out=6, **modules):
    """A stem with spikes, ``body``, and a head: what is between is any function of the module and the spikes."""

    def forward(m, x):
        a = body(m, F.relu(m.bn(m.stem(x)))).relu()
        return m.head(a.mean([2, 3] if a.dim() == 4 else 2))

    stem = {"stem": nn.Conv2d(2, 8, 3, padding=1, bias=False), "bn": nn.BatchNorm2d(8)}
    return Net(forward, **stem, **(modules or {"c": conv()}), head=nn.Linear(out, 5))


def conv(inputs=8, outputs=6, kernel=3, **options):
    return nn.Conv2d(inputs, outputs, kernel, **options)


class Parameters(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(8, 1, 1) + 0.5), nn.Parameter(torch.randn(8, 1, 1) / 4)

    def forward(self, x):
        return x * self.scale - self.shift


BODIES = {
    "transposed": lambda: built(lambda m, a: m.up(a), 6, up=nn.ConvTranspose2d(8, 6, 3, 2, 1, groups=2)),
    "transposed to a size": lambda: built(
        lambda m, a: m.up(a, output_size=[16, 16]), 6, up=nn.ConvTranspose2d(8, 6, 3, 2, 1)
    ),
    "transposed alone": lambda: built(lambda m, a: m.up(a), 6, up=nn.ConvTranspose2d(8, 6, 2, bias=False)),
    "volume": lambda: built(lambda m, a: m.c(a.unsqueeze(1)).mean(2), 3, c=nn.Conv3d(1, 3, 3)),
    "lines": lambda: built(lambda m, a: m.c(a.flatten(2)).unflatten(2, (4, -1)), 4, c=nn.Conv1d(8, 4, 3, dilation=2)),
    "depthwise, pointwise": lambda: built(
        lambda m, a: m.n(m.p(m.d(a))), 6, d=conv(8, 8, groups=8), p=conv(8, 6, 1), n=nn.BatchNorm2d(6)
    ),
    "batch norm of spikes": lambda: built(lambda m, a: m.c(m.n(a)), 6, n=nn.BatchNorm2d(8), c=conv(padding=1)),
    "batch norm without gamma": lambda: built(lambda m, a: m.n(m.c(a)), 6, c=conv(), n=nn.BatchNorm2d(6, affine=False)),
    "three branches": lambda: built(
        lambda m, a: m.n(m.a(a)) + m.b(a) + m.i(a), 8, a=conv(8, 8, padding=1), n=nn.BatchNorm2d(8), b=conv(8, 8, 1),
        i=nn.BatchNorm2d(8),
    ),
    "two readers": lambda: built(lambda m, a: F.relu(m.c(a)) + m.c(a)),
    "current read twice": lambda: built(
        lambda m, a: (lambda z: m.d(F.relu(m.n(z))) + z)(m.c(a)), 6, c=conv(), d=conv(6, 6, 1), n=nn.BatchNorm2d(6)
    ),
    "trains side by side": lambda: built(
        lambda m, a: m.d(torch.cat([a, F.relu(m.c(a)), m.c(a)], 1)), 4, c=conv(padding=1), d=conv(20, 4)
    ),
    "shuffled": lambda: built(
        lambda m, a: m.c(a.view(a.size(0), 2, 4, *a.shape[2:]).transpose(1, 2).reshape(a.shape).flip(3))),
    "split": lambda: built(lambda m, a: m.c(a.chunk(2, 1)[1]) - a[:, :4, 1:-1, 1:-1], 4, c=conv(4, 4)),
    "pooled at the border": lambda: built(
        lambda m, a: m.c(F.avg_pool2d(a, 3, 2, 1, ceil_mode=True, count_include_pad=False))),
    "averages of uneven windows": lambda: built(lambda m, a: m.c(F.adaptive_avg_pool2d(a, 3))),
    "pooled before the ReLU": lambda: built(lambda m, a: F.avg_pool2d(m.c(a), 2)),
    "upsampled": lambda: built(
        lambda m, a: m.c(F.interpolate(a, scale_factor=2)) + m.u(F.interpolate(a, scale_factor=2, mode="bilinear")),
        6, c=conv(), u=conv(),
    ),
    "reflected": lambda: built(lambda m, a: m.c(a), 6, c=conv(padding=1, padding_mode="reflect")),
    "padded": lambda: built(lambda m, a: m.c(F.pad(a, (1, 0, 2, 1))) + m.c(F.pad(a, (1, 0, 2, 1), value=0.5))),
    "permuted": lambda: built(lambda m, a: m.l(a.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 7, l=nn.Linear(8, 7)),
    "scaled and shifted": lambda: built(lambda m, a: m.c(2 * m.s(a) / 3), 6, s=Parameters(), c=conv()),
    "computed weight": lambda: built(lambda m, a: F.conv2d(a, m.c.weight * 2, m.c.bias)),
    "parametrised": lambda: built(lambda m, a: m.c(a), 6, c=nn.utils.parametrizations.weight_norm(conv())),
    "maximum of currents": lambda: built(lambda m, a: m.d(F.max_pool2d(m.c(a), 3, 2, 1)), 4, c=conv(), d=conv(6, 4, 1)),
    "pooled": lambda: built(lambda m, a: m.c(F.max_pool2d(a, 2))),
    "maximum of a line": lambda: built(lambda m, a: m.c(F.max_pool1d(a.flatten(2), 2)), 4, c=nn.Conv1d(8, 4, 3)),
    "image and spikes": lambda: built(lambda m, a: m.c(a) + 0.5),
    "functional batch norm": lambda: built(
        lambda m, a: F.batch_norm(m.c(a), m.n.running_mean, m.n.running_var, m.n.weight, m.n.bias, m.training), 6,
        c=conv(), n=nn.BatchNorm2d(6),
    ),
}  # fmt: skip
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in BODIES if name not in QUICK]


def made(name):
    if name in BODIES:
        net, x = BODIES[name](), torch.rand(6, 2, 8, 8)
    else:
        net, x = {"strided": strided, **NETWORKS}[name]()
    return settled(net, x), x


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_many_steps_approach_the_ann(name):
    net, x = made(name)
    errors = []
    with torch.no_grad():
        expected = net(x) - net.head.bias if name in BODIES else net(x)
        for T in (8, 200):
            example = x[:1] if name in BODIES else None
            snn = calibrate(convert(net, T, example=example, timing="step"), [x], percentile=100)
            errors.append(((snn(x) - net(x)).norm() / expected.norm()).item())
    assert errors[1] < (0.03 if name in BODIES else 0.1)
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["train", "eval"])
@pytest.mark.parametrize("name", [*BODIES, *NETWORKS])
def test_the_way_back_the_gradients_and_the_statistics_are_the_anns(name, training):
    net, x = made(name)
    snn = calibrate(convert(net, T=8, example=x[:1], timing="step"), [x])
    torch.testing.assert_close(to_ann(snn)(x), net(x), rtol=1e-4, atol=1e-5)
    ours, theirs = ({id(p) for p in each.parameters()} for each in (snn, net))
    assert ours == theirs
    net.train(training)
    snn.train(training)
    for module in snn.modules():
        if isinstance(module, tnn.Dropout):
            module.eval()
    target = torch.randn_like(net(x))
    start = copy.deepcopy(net.state_dict())
    results = []
    for answer in (lambda: snn(x), lambda: at_the_counts(snn, x)):
        net.load_state_dict(start)
        net.zero_grad()
        y = answer()
        (y * target).sum().backward()
        results.append((y.detach(), {n: p.grad for n, p in net.named_parameters() if id(p) in ours}))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-3, atol=1e-3)
    for key, expected in results[1][1].items():
        scale = expected.abs().max().clamp_min(0.1)  # a bias before a batch norm: zero but for rounding
        torch.testing.assert_close(results[0][1][key] / scale, expected / scale, atol=2e-3, rtol=1e-3, msg=key)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_example_changes_nothing_where_none_is_needed(name):
    net, x = made(name)
    plain, told = convert(net, T=7), convert(net, T=7, example=x[:1])
    assert torch.equal(told(x), plain(x))
    assert torch.equal(to_ann(told)(x), net(x))
    norms = [{id(m) for m in each.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)} for each in (plain, net)]
    assert norms[0] <= norms[1]


@pytest.mark.parametrize("name", ["trains side by side", "depthwise, pointwise", "three branches", "shuffled"])
def test_with_windows_a_count_is_the_activation_rounded(name):
    net, x = made(name)
    snn = calibrate(convert(net, T=8, example=x[:1], timing="window"), [x]).eval()
    twin = to_ann(snn)

    def rounded(layer):
        unit = layer.threshold.view(-1, 1, 1)
        return lambda module, given, a: (a / unit).add(0.5).floor().clamp(0, 8) * unit

    for path in snn.meta["ways"]:
        twin.get_submodule(path).register_forward_hook(rounded(snn.get_submodule(path)))
    with torch.no_grad():
        torch.testing.assert_close(snn(x), twin(x), atol=0.02, rtol=0.02)  # but for a count at an edge
    snn.train()(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_fused_layers_read_trains_side_by_side():
    """Channels of two layers, in another order, with a ceiling on some: each is worth what it is worth."""

    def mixed(m, x):
        kept, passed = torch.cat([F.relu(m.a(x)), F.relu6(20 * m.b(x))], 1).chunk(2, 1)
        y = torch.cat([F.pad(kept, (1, 1, 1, 1)), F.relu(m.c(F.pad(passed, (1, 1, 1, 1))))], 1)
        return F.relu(m.d(F.channel_shuffle(y, 2)))

    convs = {"a": conv(2, 4), "b": conv(2, 4), "c": conv(4, 4, padding=1, groups=2), "d": conv(8, 6, groups=2)}
    net, x = Net(mixed, **convs).eval(), torch.rand(6, 2, 8, 8)
    snn = calibrate(convert(net, T=200, example=x[:1], timing="step"), [x], percentile=100)
    assert snn.meta["ways"]["c"] == snn.meta["ways"]["d"] == "fused: conv2d"
    with torch.no_grad():
        assert isinstance(snn(x), Tensor), "the answer is what the ANN's is, spikes too"
        torch.testing.assert_close(snn(x), net(x), atol=0.02, rtol=0.05)
        assert torch.equal(to_ann(snn)(x), net(x))


@pytest.mark.kernels
def test_parts_of_channels_are_joined():
    def forward(m, x):
        a, b = (F.relu(conv(x)).unflatten(1, (2, 4)).flip(2) for conv in (m.a, m.b))
        return m.head(F.relu(m.c(torch.cat([a, b], 1).flatten(1, 2))).mean([2, 3]))

    net = Net(forward, a=conv(2, 8), b=conv(2, 8), c=conv(16), head=nn.Linear(6, 5))
    x = torch.rand(3, 2, 8, 7)
    snn = convert(net, T=8, data=[x]).eval()
    with pytest.warns(UserWarning, match="has more dimensions than channels, height and width"):
        assert torch.equal(freeze(snn)(x), snn(x))


@pytest.mark.kernels
def test_parts_of_vectors_behind_neurons_and_between_them(timing, tmp_path):
    def forward(m, x):
        a, b = F.relu(m.stem(x)).flatten(1).chunk(2, 1)
        return m.first(a) + m.second(F.relu(m.c(b[:, 8:])).flip(1)[:, 1:])

    net = Net(forward, stem=conv(2, 8), first=nn.Linear(120, 5), c=nn.Linear(112, 33), second=nn.Linear(32, 5)).eval()
    x = torch.rand(3, 2, 8, 7)
    snn = convert(net, T=8, data=[x], timing=timing).eval()
    assert torch.equal(to_ann(snn)(x), net(x))
    check_frozen(snn, x, tmp_path, timing)


def test_the_mode_and_the_modules_are_live():
    """What torch.export would bake in: functions and modules that look at the mode."""

    def forward(m, x):
        a = F.dropout(torch.relu(m.bn(m.conv(x))), 0.5, m.training).flatten(1)
        return m.fc2(m.drop(torch.relu(m.fc1(a))))

    layers = {"conv": nn.Conv2d(2, 6, 3), "bn": nn.BatchNorm2d(6), "drop": nn.Dropout(0.5), "fc2": nn.Linear(20, 5)}
    fc1, x = nn.utils.parametrizations.weight_norm(nn.Linear(6 * 36, 20)), torch.rand(6, 2, 8, 8)
    net = Net(forward, **layers, fc1=fc1)
    net.bn.eval()
    seen = []
    net.fc1.register_forward_hook(lambda m, given, y: seen.append(given[0]))
    snn = convert(net, T=8, example=x[0:1])
    assert net.training
    assert snn.training
    assert not net.bn.training, "a mode that was set by itself stays"
    before = net.bn.running_mean.clone()
    assert not torch.equal(snn(x), snn(x)), "dropout"
    assert torch.equal(net.bn.running_mean, before)
    net.bn.momentum = 1.0
    snn.train()(x)
    torch.testing.assert_close(net.bn.running_mean, net.conv(x).mean([0, 2, 3]), rtol=1e-4, atol=1e-5)
    assert torch.equal(snn.eval()(x), snn(x))
    assert not net.bn.training
    assert seen[-1].shape == (6, 216), "hooks see the ANN branch, once"
    calls = len(seen)
    before = snn(x)
    assert len(seen) == calls + 1
    with torch.no_grad():
        net.fc1.parametrizations.weight.original0.mul_(2)
    assert not torch.equal(snn(x), before)
    assert torch.equal(to_ann(snn)(x), net.eval()(x))


@pytest.mark.parametrize("drop", [
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
])  # fmt: skip
@pytest.mark.parametrize("where", ["hidden", "behind", "answer"])
def test_dropout_by_functions(drop, where, timing):
    """In training equal samples differ, and places within a feature do where the ANN's do."""
    dims = {F.dropout1d: 1, F.dropout3d: 3}.get(drop, 2)
    conv = getattr(nn, f"Conv{dims}d")

    def forward(m, x):
        a = torch.relu(m.a(x))
        a = drop(a, 0.5, m.training) if where == "hidden" else a
        a = torch.relu(m.b(a))
        a = a if where == "behind" else m.c(a)
        return a if where == "hidden" else drop(a, 0.5, m.training)

    layers = {"a": conv(2, 8, 1), "b": conv(8, 8, 1, groups=8), "c": conv(8, 8, 1, groups=8)}
    net = Net(forward, **{name: layer for name, layer in layers.items() if name != "c" or where != "behind"}).eval()
    with torch.no_grad():
        for layer in net.children():
            layer.weight.abs_(), layer.bias.fill_(0.1)
    x = torch.ones(64, 2, *[3] * dims)
    snn = convert(net, T=64, data=[x], timing=timing)
    assert torch.equal(to_ann(snn)(x), net(x))
    answers = [each.train()(x).detach().flatten(2) for each in (snn, net)]
    ours, theirs = ((a.var(0).sum() > 1e-3, (a - a[..., :1]).abs().amax() < 1e-3) for a in answers)
    assert ours == theirs, "whether samples differ, and whether places do not"
    assert ours[0]


@pytest.mark.parametrize("drop", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_dropout_of_currents_is_that_of_tensors(drop, p):
    """From the same random numbers: alpha dropout adds, too, to each step its part."""
    train = te.SpikeTrain.from_dense(torch.randint(0, 2, (8, 4, 32, 7, 9)).float(), gain=0.5)
    torch.manual_seed(0)
    u = general.dropped(train, drop(p))
    torch.manual_seed(0)
    expected = drop(p)(effective_counts(train))
    torch.testing.assert_close(u.total, expected)
    torch.testing.assert_close(u.steps(0, 8).sum(0), expected)


@pytest.mark.kernels
@pytest.mark.parametrize("read", [
    lambda m, a: m.c(a), lambda m, a: m.c(torch.relu(m.b(a))), lambda m, a: m.c(torch.relu(m.b(m.n(a)))),
    lambda m, a: m.c(torch.relu(a)), lambda m, a: m.c(torch.relu(m.b(a) + a)),
    lambda m, a: m.c(a[:, :, 1:] + a[:, :, :-1]),
    lambda m, a: m.c(torch.relu(m.b(F.avg_pool2d(a, 2)))), lambda m, a: m.c(torch.relu(m.n(a))),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:convert. .*takes no part in evaluation")
def test_a_dropout_of_features_freezes_with_the_same_bits(read, tmp_path):
    layers = {"a": nn.Conv2d(3, 16, 3), "b": nn.Conv2d(16, 16, 1, groups=4), "c": nn.Conv2d(16, 8, 1)}
    net = Net(
        lambda m, x: read(m, m.d(torch.relu(m.a(x)))), **layers, n=nn.BatchNorm2d(16, momentum=1.0), d=nn.Dropout2d(0.2)
    )
    x = torch.rand(4, 3, 16, 9)
    net(x)
    net.eval()
    snn = convert(net, T=12, data=[x]).eval()
    with torch.no_grad():
        assert torch.equal(to_ann(snn)(x), net(x))
    check_frozen(snn, x, tmp_path, "window")


@pytest.mark.kernels
@pytest.mark.parametrize("drop", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout])
@pytest.mark.parametrize("read", [
    lambda m, a, b: m.d(b).mean((2, 3)), lambda m, a, b: [m.d(b).mean((2, 3)), m.c(b)],
    lambda m, a, b: m.c(torch.cat([b, m.d(a)], 1)[:, 16:]), lambda m, a, b: m.c(m.d(b.flip(3)).flip(3)),
    lambda m, a, b: m.d(m.c(b)), lambda m, a, b: F.avg_pool2d(m.d(b), 2), lambda m, a, b: m.d(b.mean((2, 3))),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:convert. .*takes no part in evaluation", "ignore:dropout2d")
def test_networks_with_dropout_behind_the_neurons_freeze(drop, read, timing):
    def forward(m, x):
        a = torch.relu(m.a(x))
        return read(m, a, torch.relu(m.b(a)))

    layers = {"a": nn.Conv2d(3, 16, 3), "b": nn.Conv2d(16, 16, 1, groups=4), "c": nn.Conv2d(16, 8, 1)}
    net, x = Net(forward, **layers, d=drop(0.5)).eval(), torch.rand(4, 3, 16, 9)
    snn = convert(net, T=12, data=[x], timing=timing)
    assert all(map(torch.equal, tree_leaves(to_ann(snn)(x)), tree_leaves(net(x))))
    frozen = freeze(snn)
    assert frozen.why_slow is None
    assert all(map(torch.equal, tree_leaves(frozen(x)), tree_leaves(snn(x))))
    answer = tree_leaves(snn.train()(x))[0]
    assert not torch.equal(answer, tree_leaves(snn(x))[0])
    answer.sum().backward()


@pytest.mark.filterwarnings("ignore:freeze. the network runs layer by layer")
@pytest.mark.parametrize("drop", [nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout])
@pytest.mark.parametrize("answer", [torch.relu, lambda z: z], ids=["neurons", "head"])
@pytest.mark.parametrize("move", [
    lambda a: a.permute(0, 3, 2, 1), lambda a: a.transpose(1, 2), lambda a: a.reshape(a.shape[0], 8, 16, 8),
    lambda a: a.view(-1, 2, 8, 8, 8).transpose(1, 2).reshape(-1, 16, 8, 8)[:, :8],
    lambda a: a.permute(0, 2, 3, 1).chunk(2, 1)[1].repeat(1, 2, 1, 1)[:, :, :1],
])  # fmt: skip
def test_spikes_of_several_values_that_move_between_channels_keep_them(drop, answer, move):
    """Their channels differ by 10⁴, so that a gain at the wrong place is seen."""
    net = Net(
        lambda m, x: answer(m.c(move(m.d(torch.relu(m.a(x)))))), a=nn.Conv2d(3, 16, 3), c=nn.Conv2d(8, 8, 1), d=drop()
    ).eval()
    with torch.no_grad():
        net.a.weight.mul_(torch.logspace(-2, 2, 16).view(-1, 1, 1, 1))
    x = torch.rand(4, 3, 10, 10)
    snn = convert(net, T=64, data=[x])
    assert ((snn(x) - net(x)).norm() / net(x).norm()).item() < 0.2
    assert torch.equal(freeze(snn)(x), snn(x))


@pytest.mark.kernels
@pytest.mark.filterwarnings("ignore:freeze. the network runs layer by layer", "ignore:convert.*takes no part")
@pytest.mark.parametrize("seed", range(20))
def test_average_pooling_of_any_arguments(seed, timing, tmp_path):
    """What tnn.AvgPool2d lacks runs layer by layer, and cannot be saved."""
    pick = random.Random(seed).choice
    pool = nn.AvgPool2d(
        pick([2, 3, 4, (4, 3)]), pick([None, 1, 2, (2, 1)]), pick([0, 1]), pick([True, False]), pick([True, False]),
        pick([None, None, 3, 7]),
    )  # fmt: skip
    read = pick([
        lambda m, a: m.h(torch.relu(m.c(m.p(a))).mean((2, 3))), lambda m, a: m.p(a), lambda m, a: m.c(m.p(a)),
        lambda m, a: m.h(torch.relu(m.p(m.c(a))).mean((2, 3))),
    ])  # fmt: skip
    layers = {"a": conv(3, 16, padding=1), "c": conv(16, 8, 1), "h": nn.Linear(8, 5), "p": pool}
    net, x = Net(lambda m, x: read(m, torch.relu(m.a(x))), **layers).eval(), torch.rand(4, 3, pick([7, 9, 14]), 12)
    snn = convert(net, T=64, data=[x], timing=timing)
    assert ((snn(x) - net(x)).norm() / net(x).norm()).item() < 0.1
    torch.testing.assert_close(to_ann(snn)(x), net(x))
    frozen = freeze(snn)
    assert torch.equal(frozen(x), snn(x))
    if frozen.why_slow is None:
        frozen.save(tmp_path / "net.tandem")
        assert torch.equal(load(tmp_path / "net.tandem")(x), snn(x))
    else:
        with pytest.raises(ValueError, match="averages have no ceil_mode"):
            frozen.save(tmp_path / "net.tandem")
        with pytest.raises(ValueError, match="averages have no ceil_mode"):
            to_onnx(frozen, tmp_path / "net.onnx", x)


@pytest.mark.filterwarnings("ignore:freeze. the network runs layer by layer")
@pytest.mark.parametrize("base", [nn.Dropout, tnn.Dropout])
def test_a_dropout_of_the_users_is_not_passed_over(base):
    always = type(
        "Always", (base,), {"forward": lambda m, x: x * 0.5 if isinstance(x, Tensor) else tnn.Dropout(1.0)(x)}
    )
    net = nn.Sequential(tnn.Encoder(4), tnn.Linear(4, 8), always(), tnn.Readout(8, 3)).eval()
    assert freeze(net).why_slow is not None


def test_a_part_that_spikes():
    layers = {
        "stem": nn.Sequential(conv(2, 8, padding=1), nn.GELU()),
        "layer1": nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 8), nn.ReLU()),
        "layer2": nn.Sequential(conv(8, 8), nn.SiLU(), nn.Flatten(), nn.Linear(32, 5)),
    }
    net, x = Net(lambda m, x: m.layer2(m.layer1(m.stem(x))), **layers).eval(), torch.rand(6, 2, 8, 8)
    with pytest.raises(CannotConvert, match="GELU"):
        convert(net, 8, example=x)
    expected = net(x)
    net.layer1 = snn = convert(net.layer1, 200, example=net.stem(x))
    assert [type(m).__name__ for m in snn.modules() if isinstance(m, tnn.SpikingLayer)] == ["Conv2d", "Conv2d"]
    calibrate(snn, [net.stem(x)], percentile=100)
    torch.testing.assert_close(net(x), expected, atol=0.02, rtol=0.05)


def test_it_says_which_way_it_took():
    net = nn.Sequential(conv(2, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8, groups=8), conv(8, 6, 1), nn.ReLU6())
    snn = convert(net, T=8, example=torch.rand(1, 2, 8, 8))
    assert snn.meta["ways"] == {"0": "fused: conv2d, batch norm", "4": "fused: conv2d"}


@pytest.mark.parametrize("name", ["trains side by side", "depthwise, pointwise", "maximum of currents", "shuffled"])
def test_copies_and_frozen_networks(name):
    net, x = made(name)
    snn = calibrate(convert(net, T=12, example=x[:1], timing="step"), [x]).eval()
    for other in (copy.deepcopy(snn), pickle.loads(pickle.dumps(snn)), freeze(snn)):
        assert torch.equal(other(x), snn(x))
    state = {key: value.clone() for key, value in snn.state_dict().items()}
    again = convert(copy.deepcopy(net), T=12, example=x[:1], timing="step")
    again.load_state_dict(state)
    assert torch.equal(again.eval()(x), snn(x))


@pytest.mark.parametrize(("name", "message"), [
    ("pooled", r'max_pool2d.*: max_pool2d is not a layer .*timing="window", or put tnn.MaxPool2d'),
    ("maximum of a line", r"max_pool1d.*: max_pool1d is not a layer .*: only tnn.MaxPool2d, of images, is"),
])  # fmt: skip
def test_what_needs_a_step_names_the_layer(name, message, tmp_path):
    """ONNX and frozen files have layers only, and NIR no maximum pooling."""
    net, x = BODIES[name](), torch.rand(2, 2, 8, 8)
    snn = convert(net.eval(), T=8, example=x, timing="step")
    with pytest.raises(ValueError, match=message):
        to_onnx(snn, tmp_path / "net.onnx", x)
    with pytest.raises(ValueError, match=message):
        freeze(snn).save(tmp_path / "net.tandem")
    if "max_pool" in message:
        with pytest.raises(ValueError, match=message):
            to_nir(snn, x)


def test_measures_see_the_general_way_or_say_that_they_do_not():
    net, x = made("depthwise, pointwise")
    snn = calibrate(convert(net, T=12, example=x[:1], timing="step"), [x]).eval()
    assert list(firing_rates(snn, x)) == ["stem", "p"]
    with Monitor(snn, potentials=True) as monitor, torch.no_grad():
        snn(x)
    assert torch.equal(monitor["p"].counts, monitor["p"].train.to_dense().sum(0))
    layer, v = snn.get_submodule("p"), monitor["p"].potentials
    assert v.shape == (12, 6, 6, 6, 6)
    assert (v[-1] < layer.threshold).any()
    ops = synops(snn, x).layers
    assert ops["d"].macs == 0 < ops["d"].acs
    assert ops["p"] == (12 * 6 * 8 * 36, 6 * 8 * 36, 0) or ops["p"].macs == 12 * ops["p"].ann_macs
    assert torch.equal(*(each(x) for each in (freeze(snn, weight_bits=4), freeze(snn, weight_bits=4).net)))


def test_ceilings(timing):
    """ReLU6 and hardtanh(0, c) are exact in the limit, beyond which no gradient passes."""
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU6(), nn.Linear(8, 8), nn.Linear(8, 6), nn.Hardtanh(0.0, 0.5))
    net.append(nn.Linear(6, 3))
    x = 20 * torch.rand(30, 4) - 8
    snn = convert(net, T=255, example=x[:1], timing=timing)
    ceilings = [6.0, 0.5]
    for layer, c in zip([m for m in snn.modules() if hasattr(m, "ceiling")], ceilings, strict=True):
        assert layer.threshold * 255 == pytest.approx(c)
    torch.testing.assert_close(snn(x), net(x), atol=0.02, rtol=0.05)
    gradients = []
    for answer in (lambda: snn(x), lambda: net(x)):
        net.zero_grad()
        answer().sum().backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, atol=0.5, rtol=0.1)
    assert torch.equal(to_ann(calibrate(snn, [x]))(x), net(x))


@pytest.mark.parametrize("percentile", [None, 100])
def test_calibration_keeps_below_the_ceilings(percentile):
    """A count above the ceiling stands for what the ANN never gives."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 3), nn.ReLU6())
    net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]).eval()
    x = 20 * torch.rand(64, 3, 16, 16)
    for timing in "step", "window":
        snn = convert(net, T=255, example=x[:1], timing=timing)
        calibrate(snn, [x], percentile)
        thresholds = [m.threshold for m in snn.modules() if hasattr(m, "ceiling")]
        assert len(thresholds) == 2
        assert all(bool((torch.as_tensor(t) <= 6 / 255 + 1e-7).all()) for t in thresholds)


def test_memory_does_not_grow_with_the_steps():
    """Eight steps of currents at once, whatever T."""
    net, x = made("depthwise, pointwise")
    sizes = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point())
            return result

    largest = []
    for T in (8, 64):
        snn = convert(net, T, example=x[:1], timing="step")
        sizes.clear()
        with torch.no_grad(), Watching():
            snn(x)
        largest.append(max(sizes))
    assert largest[0] == largest[1]


@pytest.mark.kernels
@pytest.mark.parametrize("name", [
    "depthwise, pointwise", "batch norm of spikes", "batch norm without gamma", "three branches", "two readers",
    "current read twice", "trains side by side", "shuffled", "split", "averages of uneven windows", "lines",
    "pooled before the ReLU", "reflected", "maximum of currents", "image and spikes", "functional batch norm",
])  # fmt: skip
def test_what_stands_between_layers_of_an_ann_freezes(name, timing, tmp_path):
    if (name, timing) == ("maximum of currents", "step"):
        pytest.skip("the maximum of currents step by step is not the maximum of their sums")
    net, x = made(name)
    snn = calibrate(convert(net, T=12, example=x[:1], timing=timing), [x]).eval()
    check_frozen(snn, x, tmp_path, timing)
