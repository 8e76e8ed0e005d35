"""convert on networks of tokens, as they are written: class tokens, positions, means over tokens."""

import pytest
import torch
from networks import Net, check_frozen
from torch import nn

import tandem_snn as ts

CLASS_TOKENS = {
    "expand": lambda m, x: torch.cat([m.cls.expand(x.shape[0], -1, -1), x], 1),
    "repeat": lambda m, x: torch.cat((m.cls.repeat(x.size(0), 1, 1), x), dim=1),
    "at the end": lambda m, x: torch.cat([x, m.cls.expand(x.size(0), 1, x.size(2))], dim=-2),
}
MEANS = {
    "mean": lambda m, x: x.mean(1),
    "kept": lambda m, x: x.mean(dim=1, keepdim=True).flatten(1),
    "pooled": lambda m, x: nn.functional.adaptive_avg_pool1d(x.transpose(1, 2), 1).squeeze(-1),
}


def vision(tokens, joined, read, fires=False):
    """Patches as tokens with positions, a residual block and a head; ``fires``: neurons read the answer of ``read``."""

    def forward(m, x):
        x = m.patches(x).flatten(2).transpose(1, 2)
        x = joined(m, x) + m.positions
        x = x + m.b(torch.relu(m.a(torch.relu(x))))
        x = read(m, torch.relu(x)) if not fires else torch.relu(read(m, x))
        return m.head(x)

    layers = {"patches": nn.Conv2d(1, 8, 4, 4), "a": nn.Linear(8, 16), "b": nn.Linear(16, 8), "head": nn.Linear(8, 3)}
    net = Net(forward, **layers)
    net.cls, net.positions = (nn.Parameter(torch.randn(1, n, 8)) for n in (1, tokens))
    return net.eval(), torch.rand(6, 1, 8, 8)


def first(m, x):
    return x[:, 0]


def stream(m, x):
    """Patches, a block that mixes tokens and one that mixes features, which add to a stream without a last ReLU."""
    x = m.patches(x).flatten(2).transpose(1, 2) + m.positions
    x = x + m.mix(torch.relu(x).transpose(1, 2)).transpose(1, 2)
    return x + m.b(torch.relu(m.a(torch.relu(x))))


STREAMS = {
    "mean": lambda m, x: m.head(stream(m, x).mean(1)),
    "norm": lambda m, x: m.head(m.norm(stream(m, x).mean(1))),
    "scaled": lambda m, x: m.head(0.5 * stream(m, x).transpose(1, 2).mean(2) + m.positions[:, 0]),
    "first": lambda m, x: m.head(stream(m, x)[:, 0]),
    "flat": lambda m, x: m.all(stream(m, x).flatten(1)),
    "two layers": lambda m, x: m.head(m.c(stream(m, x).mean(1))),
    "of each token": lambda m, x: m.head(stream(m, x)),
    "of spikes": lambda m, x: m.head(torch.relu(stream(m, x))),
    "joined": lambda m, x: m.head(m.d(torch.cat([torch.relu(stream(m, x)), m.c(stream(m, x)).relu()], -1)).mean(1)),
    "of answers": lambda m, x: m.head(m.c(stream(m, x))),
}


@pytest.mark.kernels
@pytest.mark.parametrize("answer", STREAMS)
def test_heads_read_the_stream_without_a_last_relu(answer, tmp_path):
    layers = {"patches": nn.Conv2d(3, 24, 4, 4), "mix": nn.Linear(6, 6), "a": nn.Linear(24, 48), "b": nn.Linear(48, 24)}
    layers |= {
        "norm": nn.BatchNorm1d(24),
        "c": nn.Linear(24, 24),
        "d": nn.Linear(48, 24),
        "head": nn.Linear(24, 5),
        "all": nn.Linear(144, 5),
    }
    net, x = Net(STREAMS[answer], **layers), torch.rand(4, 3, 12, 8)
    net.positions = nn.Parameter(torch.randn(1, 6, 24))
    net(x)
    net.eval()
    with torch.no_grad():
        snn = ts.convert(net, T=8, data=[x]).eval()
        check_frozen(snn, x, tmp_path, "window")
        torch.testing.assert_close(ts.to_ann(snn)(x), net(x))
        assert (ts.convert(net, T=128, data=[x])(x) - net(x)).norm() < 0.05 * net(x).norm()


@pytest.mark.kernels
@pytest.mark.parametrize("timing", ["window", "step"])
@pytest.mark.parametrize(
    ("tokens", "joined", "read", "fires"),
    [
        *((5, joined, first, False) for joined in CLASS_TOKENS.values()),
        *((4, lambda m, x: x, mean, fires) for mean in MEANS.values() for fires in (False, True)),
        (5, CLASS_TOKENS["expand"], MEANS["mean"], True),
    ],
)
def test_networks_of_tokens_are_saved_and_followed(tokens, joined, read, fires, timing, tmp_path):
    net, x = vision(tokens, joined, read, fires)
    snn = ts.convert(net, T=8, data=[x], timing=timing).eval()
    logits = snn(x)
    frozen = ts.freeze(snn)
    assert torch.equal(frozen(x), logits)
    frozen.save(tmp_path / "net.tandem")
    loaded = ts.load(tmp_path / "net.tandem")
    assert torch.equal(loaded(x[:2]), logits[:2])
    if timing == "window":
        assert torch.equal(loaded.settle(x)[0], logits)
        many, expected = ts.convert(net, T=128, data=[x]), net(x)
        torch.testing.assert_close(ts.to_ann(many)(x), expected)
        assert (many(x) - expected).norm() < 0.05 * (expected - net.head.bias).norm()


@pytest.mark.parametrize("answer", [torch.relu, lambda y: y], ids=["neurons", "head"])
def test_a_class_token_beside_spikes_of_several_values(answer, timing):
    """The features of a token differ by 10², so that a gain at the wrong place is seen."""

    def forward(m, x):
        x = torch.relu(m.patches(x)).flatten(2).transpose(1, 2)
        return answer(m.a(torch.cat([m.cls.expand(x.shape[0], -1, -1), x], 1)))

    net = Net(forward, patches=nn.Conv2d(3, 16, 3), a=nn.Linear(16, 8)).eval()
    net.cls, scale = nn.Parameter(torch.rand(1, 1, 16)), torch.logspace(-1, 1, 16)
    with torch.no_grad():
        net.patches.weight.abs_().mul_(scale.view(-1, 1, 1, 1))
        net.a.weight.abs_().div_(scale)
    x = torch.rand(8, 3, 9, 9)
    snn = ts.convert(net, T=128, data=[x], timing=timing)
    assert ((snn(x) - net(x)).norm() / net(x).norm()).item() < 0.05
    assert torch.equal(ts.to_ann(snn)(x), net(x))
