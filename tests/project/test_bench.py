"""The harness of tests/benchmarks: interleaved samples, spikes of a rate, competitors that agree, what it says."""

import json
import math
import sys
from pathlib import Path

import bench
import child
import compare
import interleaved
import pytest
import torch
from competitors import COMPETITORS, OURS
from interleaved import Process, Sampler, Settings, interleave, kept, measure, peak, ratio
from problems import KINDS, Shape, draw_batch, make_problem, rate_of
from table import CASES, LIMITS, Call, Case, choose

import tandem_ext as te
import tandem_snn.nn as tnn

ROOT = Path(__file__).parents[2]
EAGER = tuple(name for name, one in COMPETITORS.items() if one.can_run(quick=True))


def test_ways_are_sampled_in_rounds_and_memory_is_measured_beside_time():
    order = []
    takes = {name: lambda name=name: order.append(name) or ord(name) for name in "abcd"}
    assert interleave(takes, Settings(rounds=6)) == {name: [ord(name)] * 6 for name in "abcd"}
    rounds = [tuple(order[i : i + 4]) for i in range(0, 24, 4)]
    assert all(sorted(one) == list("abcd") for one in rounds)
    assert len(set(rounds)) > 3
    assert len(interleave({"a": lambda: 1.0}, Settings(rounds=9, budget=0.0))["a"]) == 5
    old, new = torch.rand(2, 200, generator=torch.Generator().manual_seed(0)).add(1).tolist()
    assert list(ratio([1.1 * value for value in old], old)) == pytest.approx([1.1] * 4)
    other = ratio(new, old)
    assert other.low < min(1, other.fast) <= max(1, other.fast) < other.high
    weight, x = torch.randn(300, 200, requires_grad=True), torch.randn(40, 200)
    step = lambda i: torch.relu(torch.relu(x @ weight.t()) @ torch.ones(300, 100))  # noqa: E731
    assert kept(Call(step, [weight])) == 4 * (40 * 200 + 40 * 300 + 300 * 100)  # x, hidden, constant; not the result
    assert 0.9 * 2**26 < peak(Call(lambda i: torch.ones(2**24))) < 1.1 * 2**26
    answer, expected = ([torch.tensor([1.0, 2.0, 3.0, n]), torch.tensor([10.0, n - 4.0])] for n in (4.0, 5.0))
    assert interleaved.difference(answer, expected) == {"spikes": 0.25, "gradient": pytest.approx(0.1)}


@pytest.mark.parametrize(("seconds", "rest", "calls"), [(0.001, 6, 4), (0.1, 1, 1)])
def test_samples_rotate_through_inputs_and_follow_untimed_calls(seconds, rest, calls):
    indices = []
    sampler = Sampler(indices.append, 0.004, lambda: seconds * len(indices))
    assert [sampler.take(), sampler.take()] == [pytest.approx(seconds)] * 2
    assert indices == list(range(3 + 2 * (rest + calls)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [8, 32])
def test_spikes_of_a_rate(kind, T):
    g = torch.Generator().manual_seed(0)
    spikes = KINDS[kind](T, (64, 512), 0.15, g)
    assert spikes.dtype == torch.bool
    rate = rate_of(te.SpikeTrain.from_dense(spikes.float()))
    assert rate.spikes == pytest.approx(spikes.float().mean().item()) == pytest.approx(0.15, rel=0.05)
    assert rate.nibbles == pytest.approx(2 * spikes.view(-1, 4, 64, 512).any(1).float().mean().item())
    silent = (spikes.sum(0) == 0).float().mean().item()
    assert (0.45 < silent < 0.62) if kind == "rate" else silent == pytest.approx(0.85**T, abs=0.01)
    with pytest.raises(ValueError, match=r"0 < rate <= 0\.45"):
        KINDS["rate"](8, (10,), 0.5, g)


def problem(input_shape, kind, *layers, classes=5):
    g = torch.Generator().manual_seed(0)
    return make_problem(8, [draw_batch(8, input_shape, kind, 0.2, g) for _ in range(2)], layers, 0.15, classes, g)


@pytest.mark.parametrize("made", [
    lambda: problem((16, 40), "rate", Shape(30), Shape(20)), lambda: problem((16, 40), "direct", Shape(30), Shape(30)),
    lambda: problem((2, 3, 8, 8), "direct", Shape(8, 3), Shape(8, 3, 2)),
    lambda: problem((2, 4, 8, 8), "iid", Shape(8, 3), classes=0),
])  # fmt: skip
@pytest.mark.parametrize("training", [False, True])
def test_competitors_compute_the_same(made, training):
    """Those that should agree do, and the ANN and rounded weights, which are not compared, differ."""
    drawn = made()
    freezes = not training and isinstance(drawn.network[-1], tnn.Readout)
    ways = tuple(way for way in EAGER if freezes or not way.startswith("frozen"))
    calls = {way: make() for way, make in Case("", ways=ways, training=training).of(drawn).calls.items()}
    found = interleaved.compare(calls)
    assert found.keys() == {w for w in ways if COMPETITORS[w].agrees != "no"} - {"naive", "naive, windows"}
    for way, difference in found.items():
        assert difference["spikes"] == 0, way
        assert difference.get("gradient", 0) < 1e-5, way
        assert ("gradient" in difference) == (training and COMPETITORS[way].agrees == "gradients"), way
    counts = {way: calls[way].answer(1)[0] for way in ("naive", "naive, windows")}
    assert not torch.equal(*counts.values())  # the timings differ


@pytest.mark.parametrize("shape", [(32, 20), (8, 6, 6, 6)])
def test_naive_batch_norm_agrees_with_ours(shape):
    made = problem(shape, "rate", Shape(16, 3 if len(shape) == 4 else 0, norm=True), classes=0)
    case = Case("", ways=("naive", "tandem", "naive, windows", "windows"), training=True, middle=True)
    found = interleaved.compare({way: make() for way, make in case.of(made).calls.items()})
    assert found.keys() == {"tandem", "windows"}
    assert all(one["spikes"] < 1e-3 and one["gradient"] < 1e-3 for one in found.values())


def test_two_builds_are_measured_in_turns(tmp_path):
    settings = Settings(rounds=2, sample=1e-6)
    old, new = measure(CASES["call"], ["tandem", "ANN"], settings, (ROOT, ROOT))
    assert old["digests"] == new["digests"]
    assert old["digests"].keys() == {"tandem"}
    samples = [row["values"][way] for row in (old, new) for way in ("tandem", "ANN")]
    assert all(len(values) == 2 and min(values) > 0 for values in samples)
    assert old["rates"]["input"][0] == pytest.approx(0.3, abs=0.1)
    with pytest.raises(ValueError, match="expected a checkout in which the extension is built"):
        Process(CASES["call"], ["tandem"], settings, tmp_path)


def test_the_commands_measure_and_name_what_has_other_bits(tmp_path, capsys, monkeypatch):
    shown = child.run(bench.__file__, "--quick", "--cases", "call", "--out", tmp_path / "x.json")
    (row,) = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert row["values"].keys() == {"tandem", "windows", "ANN"}
    assert all(f"{way:24}" in shown for way in row["values"])
    monkeypatch.setattr(sys, "argv", ["bench.py", "--cases", "scam"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "error: case: expected one of " in capsys.readouterr().err.splitlines()[-1]
    rows = [{"values": {"tandem": [1.0, 2.0]}, "digests": {"tandem": digest}} for digest in ("a", "b")]
    monkeypatch.setattr(compare, "measure", lambda *_, **__: rows)
    monkeypatch.setattr(sys, "argv", ["compare.py", "old", "new", "--cases", "call", "--ways", "tandem"])
    compare.main()
    assert "1.000 [1.000, 1.000]  median 1.000  OTHER BITS" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["compare.py", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        compare.main()


def test_the_table_and_limits_that_are_missed(monkeypatch):
    assert choose([]) == list(CASES.values())
    assert [case.name for case in choose(["scan", "kept*"])] == ["kept", "kept-norm", "scan"]
    assert set(OURS) < set(COMPETITORS)
    assert all(case.title for case in CASES.values())
    for name, limits in LIMITS.items():
        assert {part for limit in limits for part in limit.split(" / ")} <= {"1", *CASES[name].ways}
        assert all(math.isfinite(most) for most in limits.values())
    limits = {"tandem": 0.5, "tandem / naive": 0.3, "windows / 1": 1.0, "tandem / snnTorch": 0.1}
    monkeypatch.setitem(LIMITS, "x", limits)
    row = {"case": "x", "base": "ANN", "quantity": "kept", "answers": {},
           "values": {"tandem": [1.0], "ANN": [2.0], "naive": [5.0], "windows": [1.5]}}  # fmt: skip
    assert bench.missed(row, "tandem") == bench.missed(row, "ANN") == ""
    assert bench.missed(row, "windows") == "  missed: 1 1"
    slower = row | {"values": row["values"] | {"ANN": [1.9], "naive": [3.0]}}
    assert bench.missed(slower, "tandem") == "  missed: 0.5 ANN, 0.3 naive"
    assert "of the counts differ" in bench.missed(row | {"answers": {"tandem": {"spikes": 0.02}}}, "tandem")
