"""ANNs that return dicts, lists and tuples, and what they do with the answers of their heads."""

from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from networks import Net, check_frozen
from torch import nn

from tandem_ext._torch import pytree
from tandem_snn import convert, freeze, load, to_ann

Named = namedtuple("Named", ["boxes", "scores"])


def rows(x):
    return x.permute(0, 2, 3, 1).flatten(1, 2)


ANSWERS = {
    "dict": lambda m, a, b: {"boxes": m.p(a), "scores": [m.q(b), m.p(b)]},
    "keys that are numbers": lambda m, a, b: {"0": m.p(a), "1": m.q(b)},
    "names": lambda m, a, b: Named(m.p(a), m.q(b)),
    "sum": lambda m, a, b: (m.v(a.mean((2, 3))) + 0.3 * m.w(b.mean((2, 3)))) / 2,
    "difference": lambda m, a, b: 1 - (m.p(a) - m.q(b) * m.scale),
    "upsampled": lambda m, a, b: {"out": F.interpolate(m.p(b), scale_factor=2, mode="bilinear"), "aux": m.q(a)},
    "pyramid": lambda m, a, b: [p := m.p(a) + F.interpolate(m.q(a), size=a.shape[2:]), m.r(p), F.max_pool2d(p, 2)],
    "rows": lambda m, a, b: (rows(m.p(a)), m.q(b).flatten(2).transpose(1, 2)),
    "joined": lambda m, a, b: torch.cat([rows(m.p(a)), rows(m.q(b)), rows(m.p(b))], 1),
    "channels": lambda m, a, b: torch.cat([m.p(a), m.q(b)], 1)[:, 1:6],
}


def heads(answer):
    def forward(m, x):
        a = torch.relu(m.a(x))
        return answer(m, a, torch.relu(m.b(a)))

    layers = {"a": nn.Conv2d(3, 8, 3, padding=1), "b": nn.Conv2d(8, 8, 3, padding=1)}
    layers |= {"p": nn.Conv2d(8, 4, 1), "q": nn.Conv2d(8, 4, 3, padding=1), "r": nn.Conv2d(4, 4, 3, padding=1)}
    net = Net(forward, **layers, v=nn.Linear(8, 3), w=nn.Linear(8, 3)).eval()
    net.register_buffer("scale", torch.rand(1, 4, 1, 1))
    return net


def equal(a, b):
    pairs = zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.kernels
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.filterwarnings("ignore:convert. .*takes no part in evaluation")
def test_answers(answer, timing, tmp_path):
    torch.manual_seed(0)
    net, x = heads(ANSWERS[answer]), torch.rand(3, 3, 8, 6)
    snn = convert(net, T=6, data=[x], timing=timing)
    expected, frozen = snn(x), freeze(snn)
    assert equal(to_ann(snn)(x), net(x))
    assert frozen.why_slow is None
    assert equal(frozen(x), expected)
    frozen.save(tmp_path / "net.tandem")
    for each in (frozen, load(tmp_path / "net.tandem")):
        assert equal(each(x), expected)
        last = each.settle(x)[0] if timing == "window" else [each.step(x) for _ in range(6)][-1]
        assert equal(last, expected)


POOLED = {
    "mean": lambda m, y: m.v(y.mean((2, 3))),
    "average": lambda m, y: m.v(F.avg_pool2d(y, (8, 6)).flatten(1)),
    "maximum": lambda m, y: m.v(F.max_pool2d(y, (8, 6)).flatten(1)),
    "pixels": lambda m, y: m.p(y),
    "pixels, upsampled": lambda m, y: F.interpolate(m.p(y), scale_factor=2, mode="bilinear"),
}


@pytest.mark.kernels
@pytest.mark.parametrize("answer", POOLED)
@pytest.mark.parametrize("projected", [False, True])
def test_a_last_block_without_a_relu(answer, projected, tmp_path):
    def forward(m, x):
        x = torch.relu(m.a(x))
        return POOLED[answer](m, m.norm(m.c(torch.relu(m.b(x)))) + (m.q(x) if projected else x))

    a, b, c, q = (nn.Conv2d(n, 16, k, padding=k // 2) for n, k in ((3, 3), (16, 3), (16, 3), (16, 1)))
    net = Net(forward, a=a, b=b, c=c, q=q, norm=nn.BatchNorm2d(16), v=nn.Linear(16, 3), p=nn.Conv2d(16, 4, 1))
    x = torch.rand(4, 3, 8, 6)
    net(x)
    net.eval()
    with torch.no_grad():
        snn = convert(net, T=6, data=[x]).eval()
        check_frozen(snn, x, tmp_path, "window")
        assert torch.equal(to_ann(snn)(x), net(x))


@pytest.mark.kernels
def test_batch_norm_of_buffers():
    """As torchvision's FrozenBatchNorm2d: what is computed from buffers alone is a constant of each channel."""

    def forward(m, x):
        scale = m.weight.reshape(1, -1, 1, 1) * (m.var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return m.head(torch.relu(m.conv(x) * scale + (m.bias.reshape(1, -1, 1, 1) - scale)).mean((2, 3)))

    net = Net(forward, conv=nn.Conv2d(3, 8, 3), head=nn.Linear(8, 3)).eval()
    for name in ("weight", "var", "bias"):
        net.register_buffer(name, torch.rand(8) + 0.5)
    x = torch.rand(3, 3, 8, 6)
    snn = convert(net, T=6, data=[x])
    assert equal(to_ann(snn)(x), net(x))
    frozen = freeze(snn)
    assert frozen.why_slow is None
    assert equal(frozen(x), snn(x))
