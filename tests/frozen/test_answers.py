"""Networks that return dicts, lists and tuples of answers, and sums of readouts."""

import networks
import pytest
import torch
from heads import STRUCTURES, Heads, Named
from networks import Net, trained

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_ext._torch import pytree
from tandem_snn.errors import UserError

pytestmark = pytest.mark.kernels


def leaves(answer):
    return pytree.tree_leaves(answer)


def equal(a, b):
    return len(leaves(a)) == len(leaves(b)) and all(map(torch.equal, leaves(a), leaves(b)))


def kinds(answer):
    """The structure of an answer, with its types."""
    if isinstance(answer, dict):
        return {key: kinds(item) for key, item in answer.items()}
    return type(answer)(map(kinds, answer)) if isinstance(answer, list | tuple) else answer.shape


def check(net, x, tmp_path, timing):
    """Evaluation, one call, a file and the stream have the same bits and structure."""
    frozen, expected = ts.freeze(net), net(x)
    assert frozen.why_slow is None
    assert kinds(frozen(x)) == kinds(expected)
    frozen.save(tmp_path / "net.tandem")
    for each in (frozen, ts.load(tmp_path / "net.tandem")):
        assert kinds(each(x)) == kinds(expected)
        assert equal(each(x), expected)
        assert equal(each.net(x), expected)
        readouts = each.readouts(x)
        assert equal(pytree.tree_map(lambda y: y[-1], readouts), expected)
        if timing == "window":
            for frame in (x, x.flip(0), x):
                assert equal(each.settle(frame)[0], each(frame))
            *_, (last, _) = each.follow(x)
            assert equal(last, expected)
        else:
            steps = [each.step(x) for _ in range(each.T)]
            assert equal(readouts, pytree.tree_map(lambda *y: torch.stack(y), *steps))
    return frozen


@pytest.mark.parametrize("structure", STRUCTURES)
def test_structures(structure, timing, tmp_path):
    net, x = Heads(STRUCTURES[structure], timing), torch.rand(3, 3, 7, 6)
    check(trained(net, x), x, tmp_path, timing)


def random_heads(seed):
    torch.manual_seed(seed)

    def pick(*values):
        return values[int(torch.randint(len(values), ()))]

    def tree(depth, leaves):
        if depth == 0 or pick(True, False, False):
            same = pick(*leaves)  # pixels, or images
            a, b = pick(*same), pick(*same)
            return pick(a, a, lambda *made: a(*made) + b(*made) * 0.7)
        items = [tree(depth - 1, leaves) for _ in range(pick(1, 2, 3))]
        kind = pick(tuple, list, dict)
        named = {f"{'abc'[n]}_{n}": item for n, item in enumerate(items)}
        if kind is dict:
            return lambda *made: {key: item(*made) for key, item in named.items()}
        return lambda *made: kind(item(*made) for item in items)

    timing, layers = pick("step", "window"), pick(1, 2, 4)
    each = [[lambda *made, n=n, k=k: made[k][n] for n in range(layers)] for k in (0, 1)]
    structure, bits, T = tree(3, each), pick(None, None, 4, 8), pick(1, 4, 8, 9)
    torch.manual_seed(seed)
    net = Heads(structure, timing, T, layers, bits, mode=pick("direct", "zero_expand"))
    return net, torch.rand(pick(1, 2, 5), 3, pick(7, 8, 14), pick(5, 16)), timing


@pytest.mark.parametrize("seeds", [range(15), pytest.param(range(15, 500), marks=pytest.mark.slow)], ids=len)
def test_random_answers(seeds, tmp_path):
    for seed in seeds:
        net, x, timing = random_heads(seed)
        check(trained(net, x.repeat(2, 1, 1, 1)), x, tmp_path, timing)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types(dtype, timing):
    net, x = Heads(STRUCTURES["sums"], timing), torch.rand(3, 3, 7, 6)
    net, x = trained(net, x).to(dtype), x.to(dtype)
    frozen = ts.freeze(net)
    assert equal(frozen(x), net(x))
    assert equal(frozen.net(x), net(x))
    if dtype != torch.float64:
        assert equal(frozen.readouts(x)[0][-1], net(x)[0])


def test_names_of_a_tuple_stay_in_memory(tmp_path):
    net, x = Heads(lambda pixels, images: Named(pixels[0], images[0])), torch.rand(2, 3, 6, 6)
    frozen = ts.freeze(trained(net, x))
    assert type(frozen(x)) is Named
    frozen.save(tmp_path / "net.tandem")
    loaded = ts.load(tmp_path / "net.tandem")(x)
    assert type(loaded) is tuple
    assert equal(loaded, net(x))


def test_events_and_flags(timing):
    net = Heads(STRUCTURES["dict"], timing, inputs=2, mode="events")
    x = te.SpikeTrain.from_dense((torch.rand(6, 4, 2, 7, 6) < 0.3).float())
    frozen = ts.freeze(trained(net, x))
    assert equal(frozen(x), net(x))
    bad = torch.tensor([0.0, torch.nan, 0.0, 0.0])
    assert all(answer.isnan().flatten(1).any(1).tolist() == [False, True, False, False] for answer in
               leaves(frozen(x.replace(bad=bad))))  # fmt: skip


def test_training_has_the_ann_s_gradients_of_all_answers(timing):
    net, x = Heads(STRUCTURES["nested"], timing).double(), torch.rand(4, 3, 7, 6, dtype=torch.float64)
    for layer in net.layers:
        layer.gate = "relu"  # as the twin's
    answers = leaves(trained(net, x).train()(x)), leaves(networks.at_the_counts(net, x))
    weights = [p for n, p in net.named_parameters() if n.startswith("layers")]
    each = [torch.autograd.grad(sum((y * y).sum() for y in answer), weights) for answer in answers]
    torch.testing.assert_close(*each)


def test_measures():
    net, x = Heads(STRUCTURES["dict"]), torch.rand(4, 3, 7, 6)
    frozen = ts.freeze(trained(net, x))
    with ts.measure.Monitor(net) as monitor:
        net(x)
    assert list(monitor) == ["layers.0", "layers.1", "layers.2"]
    assert ts.measure.synops(net, x).snn > 0
    assert ts.measure.synops(frozen, [x, x])[1].sum() == 0


def test_errors(tmp_path):
    net, x = Heads(STRUCTURES["dict"]), torch.rand(2, 3, 6, 6)
    frozen = ts.freeze(trained(net, x))
    with pytest.raises(ValueError, match="confidence: it is that of one answer, and the network has several"):
        frozen.anytime(x)
    with pytest.raises(ValueError, match="a frozen network has no gradients"):
        frozen(x.requires_grad_())["boxes"].sum().backward()
    spikes = Net(lambda m, x: (m.head(s := m.layer(m.encoder(x))), s), encoder=tnn.Encoder(4), layer=tnn.Linear(3, 4),
                 head=tnn.Readout(4, 2))  # fmt: skip
    with pytest.raises(ValueError, match=r"net: expected a network that ends in a Readout .*'layer', gives spikes"):
        ts.freeze(spikes)
    for structure, why in (
        (lambda pixels, images: {3: images[0]}, "a dict with the key 3: expected names"),
        (lambda pixels, images: {"a.b": images[0]}, "a dict with the key 'a.b': expected names"),
        (lambda pixels, images: (images[0], None), r"its output '\(1\)' is not that of a Readout"),
    ):
        with pytest.warns(UserWarning, match=why):
            slow = ts.freeze(trained(Heads(structure), x))
        assert leaves(slow(x))[0].equal(leaves(slow.net(x))[0])


def test_files_whose_answers_are_no_structure(tmp_path):
    net, x = Heads(STRUCTURES["tuple"]), torch.rand(2, 3, 6, 6)
    for name in ("(0)", "(1)", "(0).a", "[1]", "[0"):  # beside "(0)"
        frozen = ts.freeze(trained(net, x))
        frozen(x)
        stages = frozen._program_for(1.0).layers
        stages.stages[-1].name = name
        frozen.net = stages
        frozen.save(tmp_path / "net.tandem")
        if name == "(1)":
            assert equal(ts.load(tmp_path / "net.tandem")(x), net(x))
            continue
        with pytest.raises(UserError, match="the names of its answers"):
            ts.load(tmp_path / "net.tandem")
