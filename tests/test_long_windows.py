"""Windows of more than 255 steps: the reference's bits, in all that runs them, and counts that are not rounded.

Kernels run such windows in pieces; 32 and 248 steps are the ends of some. Above 256 a bfloat16 does not hold every
count, above 2,048 a float16.
"""

import pytest
import torch
from cases import assert_same, dyadic, spikes, train
from torch import nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn

f, ref = te.functional, te.reference
LENGTHS = (256, 300, 1000)


def both(name, *arguments, **keywords):
    assert_same(*(getattr(module, name)(*arguments, **keywords) for module in (f, ref)))


@pytest.mark.usefixtures("on_device")
def test_the_longest_window():
    T = 65535
    x = te.SpikeTrain.from_dense(torch.ones(T, 1, 2, dtype=torch.uint8))
    both("linear_if", x, dyadic(3, 2, low=1), gate="clip", threshold=0.5, return_v=True)
    train = f.linear_if(x, torch.ones(1, 2))
    assert train.counts.item() == T
    assert te.counts(x.planes, torch.float64).unique().item() == T


def test_limits():
    for make in (
        lambda: te.SpikeTrain.from_counts(torch.ones(1, 1), 256),
        lambda: tnn.Linear(2, 3, timing="window")(train(256, 1, 2)),
        lambda: tnn.Linear(2, 3, timing="window")(te.ConstantInput(torch.ones(1, 2), 256)),
        lambda: tnn.Linear(2, 3, timing="window", norm=True)(train(256, 2, 2)),
        lambda: tnn.AvgPool2d(2, timing="window")(train(256, 1, 1, 2, 2)),
        lambda: train(256, 1, 2).count_bytes,
    ):
        with pytest.raises(ValueError, match="T: expected an int from 1 to 255 with timing='window', got 256"):
            make()


def small(T, **options):
    """All kinds of layers, on events."""
    torch.manual_seed(0)
    net = nn.Sequential(
        tnn.Conv2d(2, 6, 3, padding=1, **options),
        tnn.Residual(tnn.Conv2d(6, 6, 3, padding=1, **options)),
        tnn.AvgPool2d(2),
        tnn.MaxPool2d(2),
        tnn.Flatten(),
        tnn.Linear(6, 12, norm=True, **options),
        tnn.Readout(12, 3),
    )
    return net, train(T, 4, 2, 4, 4, rate=0.05)


@pytest.mark.parametrize("leak", [1.0, 0.9])
@pytest.mark.parametrize("T", LENGTHS)
def test_frozen_and_its_stream(T, leak):
    net, x = small(T, gate="clip", leak=leak)
    net(x)
    net.eval()
    frozen, expected = ts.freeze(net, T=T), net(x).detach()
    assert torch.equal(frozen(x), expected)
    dense = x.to_dense()
    steps = [frozen.step(dense[t]) for t in range(T)]
    assert torch.equal(steps[-1], expected)
    assert torch.equal(frozen.readouts(x), torch.stack(steps))


@pytest.mark.parametrize("T", [250, 1000])
def test_silence_of_what_is_not_finite(T):
    x, weight = train(T, 3, 4, rate=0.9), torch.full((2, 4), 1e38)
    x.planes[:, 1] = 0
    assert f.linear_if(x, weight).bad.isnan().tolist() == [True, False, True]
    assert f.linear_if(x, weight.double()).bad.isnan().any().item() is False


# --- half precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "T"), [(torch.bfloat16, 1000), (torch.float16, 6000)])
def test_autocast_does_not_round_counts(dtype, T):
    """Counts, the gradients of weights and the readout are those of float32 for weights that are halves."""
    torch.manual_seed(0)
    dense = spikes(T, 6, 12, rate=0.9)
    results = []
    for half in (False, True):
        torch.manual_seed(1)
        net = nn.Sequential(tnn.Linear(12, 8), tnn.Linear(8, 7, norm=True), tnn.Readout(7, 5))
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(parameter.to(dtype))
        with torch.autocast("cpu", dtype, enabled=half):
            hidden = net[0](te.SpikeTrain.from_dense(dense))
            trains = [hidden, net[1](hidden)]
            answer = net[2](trains[1])
        answer.float().sum().backward()
        assert all(y.counts.dtype == torch.float32 for y in trains)
        results.append((answer, [y.counts for y in trains], net[0].weight.grad))
    (answer, counts, grad), (half_answer, half_counts, half_grad) = results
    assert max(c.max() for c in counts) > (256 if dtype == torch.bfloat16 else 2048)
    for c, h in zip(counts, half_counts, strict=True):
        assert torch.equal(c, h)
    assert half_answer.dtype == dtype
    assert torch.equal(answer.to(dtype), half_answer)
    assert torch.equal(half_grad, grad.to(dtype).float())  # rounded once, when it is whole


def test_types_of_counts():
    x = train(1000, 2, 3)
    for dtype in (torch.bfloat16, torch.float16):
        want = torch.float32 if dtype == torch.bfloat16 else dtype
        assert x.to(dtype).counts.dtype == want
        assert f.linear_if(x, torch.ones(2, 3, dtype=dtype)).counts.dtype == want
        dense = x.to_dense(dtype).requires_grad_()
        assert torch.equal(te.SpikeTrain.from_dense(dense).counts, x.counts.to(want))
    assert x.to(torch.bfloat16).counts.equal(x.counts)
    assert train(256, 2, 3).to(torch.bfloat16).counts.dtype == torch.bfloat16


def test_compiled_and_exported():
    net, x = small(300)
    net.eval()
    expected = net(x)
    exported = torch.export.export(net, (x,))
    assert torch.equal(exported.module()(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        exported = torch.export.export(net.train(), (x,))  # fakes know the type of the counts


# --- data and tools ---------------------------------------------------------------------------------------------------
