"""Small ANNs with currents between their layers, of every kind that exports know, and their conversion."""

import torch
import torch.nn.functional as F
from networks import Net, dyadic
from torch import nn

import tandem_snn.nn as tnn
from tandem_snn import convert
from tandem_snn.frozen.lowering import lower

T = 8


def separable():
    """Two products in a row, and branches added and subtracted."""

    def forward(m, x):
        x = F.relu(m.norm(m.first(x)))
        x = F.relu(m.norm2(m.point(m.depth(x))) + m.other(x) - 0.5 * m.point(x) + m.shift)
        return m.last(F.relu(m.down(x) + m.down2(F.avg_pool2d(x, 2)) + F.avg_pool2d(x, 2)).mean([2, 3]))

    net = Net(
        forward, first=nn.Conv2d(1, 8, 3, padding=1), norm=nn.BatchNorm2d(8),
        depth=nn.Conv2d(8, 8, 3, padding="same", groups=8, bias=False), point=nn.Conv2d(8, 8, 1, bias=False),
        norm2=nn.BatchNorm2d(8), other=nn.Conv2d(8, 8, 1), down=nn.Conv2d(8, 8, 3, 2, 1), down2=nn.Conv2d(8, 8, 1),
        last=nn.Linear(8, 5),
    )  # fmt: skip
    net.shift = nn.Parameter(torch.randint(-8, 8, (8, 1, 1)) / 64)
    return net


def preactivated():
    """Batch norm of a sum, before the ReLU, whose sum goes on, is pooled and normalised."""

    def forward(m, x):
        x = m.stem(x)
        x = x + m.a(F.relu(m.norm(x)))
        return m.last(F.adaptive_avg_pool2d(F.relu(m.norm2(F.avg_pool2d(x, 2))), 1).flatten(1))

    stem, a = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
    return Net(forward, stem=stem, a=a, last=nn.Linear(6, 4), norm=nn.BatchNorm2d(6), norm2=nn.BatchNorm2d(6))


def lines():
    """An image as lines, products in a row, of lines and of vectors, with their sign changed."""

    def forward(m, x):
        x = F.relu(m.a(F.relu(m.first(x)).flatten(2)))
        x = F.relu(m.c(m.b(x)) + x).flatten(1)
        return m.g(m.f(F.relu(-m.e(m.d(x)) / 2)))

    convs = {"a": nn.Conv1d(4, 4, 3, padding=1), "b": nn.Conv1d(4, 4, 5, padding=2), "c": nn.Conv1d(4, 4, 1)}
    return Net(
        forward,
        first=nn.Conv2d(1, 4, 3, padding=1),
        **convs,
        d=nn.Linear(256, 7),
        e=nn.Linear(7, 12),
        f=nn.Linear(12, 6),
        g=nn.Linear(6, 3),
    )


def bottleneck():
    """Of MobileNetV2: a sum that no ReLU follows, read twice; and an answer for each pixel."""

    def forward(m, x):
        x = m.reduce(F.relu6(m.norm(m.stem(x))))
        x = x + m.last(F.relu6(m.depth(F.relu6(m.expand(x)))))
        return m.pixels(F.relu(m.end(x)))

    return Net(
        forward, stem=nn.Conv2d(1, 8, 3, 2, 1), norm=nn.BatchNorm2d(8), reduce=nn.Conv2d(8, 4, 1),
        expand=nn.Conv2d(4, 12, 1), depth=nn.Conv2d(12, 12, 3, padding=1, groups=12), last=nn.Conv2d(12, 4, 1),
        end=nn.Conv2d(4, 8, 1), pixels=nn.Conv2d(8, 3, 3, padding=2, dilation=2),
    )  # fmt: skip


def dense():
    """Concatenations that are normalised, halved by an average of currents, and joined again."""

    def forward(m, x):
        x = F.relu(m.stem(x))
        x = torch.cat([x, m.a(F.relu(m.norm(x)))], 1)
        x = torch.cat([x, m.b(F.relu(m.norm2(x)))], 1)
        x = F.avg_pool2d(m.fewer(F.relu(m.norm3(x))), 2)
        return m.last(F.relu(m.norm4(torch.cat([x, m.c(F.relu(x))], 1))).flatten(1))

    convs = {"a": nn.Conv2d(6, 4, 3, padding=1), "b": nn.Conv2d(10, 4, 3, padding=1), "c": nn.Conv2d(6, 2, 1)}
    norms = {"norm": nn.BatchNorm2d(6), "norm2": nn.BatchNorm2d(10), "norm3": nn.BatchNorm2d(14)}
    others = {"fewer": nn.Conv2d(14, 6, 1), "norm4": nn.BatchNorm2d(8), "last": nn.Linear(128, 4)}
    return Net(forward, stem=nn.Conv2d(1, 6, 3, padding=1), **convs, **norms, **others)


def shuffled():
    """Channels split, swapped between groups, as spikes and as currents, and dropped."""

    def forward(m, x):
        x = F.relu(m.stem(x))
        a, b = x.chunk(2, 1)
        x = torch.cat([a, F.relu(m.a(b))], 1).unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
        u = m.b(x)
        u = u.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
        return m.last(F.relu(u[:, 2:] + u[:, :6]).mean([2, 3]))

    convs = {"stem": nn.Conv2d(1, 8, 3, padding=1), "a": nn.Conv2d(4, 4, 1), "b": nn.Conv2d(8, 8, 1, groups=2)}
    return Net(forward, **convs, last=nn.Linear(6, 3))


def grown():
    """Pixels repeated, and margins around them, of spikes and of currents."""

    def forward(m, x):
        x = F.relu(m.stem(x))
        u = F.pad(F.interpolate(m.a(x), scale_factor=2), [1, 0, 0, 2])
        y = F.relu(m.b(F.interpolate(x, scale_factor=2)) + m.c(u))
        return m.last(F.adaptive_avg_pool2d(y[:, :, 1:7, 1:7], 4).flatten(1))

    convs = {"stem": nn.Conv2d(1, 4, 3, 2, 1), "a": nn.Conv2d(4, 4, 1), "b": nn.Conv2d(4, 6, 1)}
    return Net(forward, **convs, c=nn.Conv2d(4, 6, (3, 2)), last=nn.Linear(96, 3))


BETWEEN = {make.__name__: make for make in (separable, preactivated, lines, bottleneck, dense, shuffled)}


@torch.no_grad()
def converted(make, timing):
    """A spiking network whose thresholds per channel are powers of two."""
    x = torch.randint(0, 16, (4, 1, 8, 8)) / 16
    net = convert(dyadic(make()), T, example=x, timing=timing, v_init=0.0)
    assert {"sum", "neurons", "gather"} & {stage.instruction.kind for stage in lower(net, shapes=[(1, 8, 8)]).stages}
    for layer in net.modules():
        if isinstance(layer, (tnn.SpikingLayer, tnn.Neurons)) and layer.neurons:
            layer.threshold = 2.0 ** torch.randint(-5, -2, layer.threshold.shape)
    return net, x
