"""The measuring core, the spikes of benchmarks, the competitors' agreement, verdicts and tables."""

import json
from pathlib import Path

import pytest
import torch
from performance import LIMITS, Limit, at_most, draw, faster, judge, judged

import tandem_ext as te
from tandem_snn.bench import command, measure, problems
from tandem_snn.bench.cases import CASES, of_network, spikes
from tandem_snn.bench.measure import Protocol, choose, interleave, kept_for_backward, spread
from tandem_snn.bench.problems import Shape, image_input, make_problem, spiking_input
from tandem_snn.bench.rivals import MAKERS, available
from tandem_snn.errors import UserError

ROOT = Path(__file__).parents[1]


class Clock:
    """Time that passes only where a candidate says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, int]] = []

    def __call__(self) -> float:
        return self.now

    def candidate(self, name: str, *seconds: float):
        def run(i: int) -> None:
            self.calls.append((name, i))
            self.now += seconds[i % len(seconds)]

        return run


def test_interleave_measures_every_candidate_in_every_round():
    clock = Clock()
    runs = {"a": clock.candidate("a", 0.002), "b": clock.candidate("b", 0.006), "c": clock.candidate("c", 0.5)}
    timings = interleave(runs, Protocol(rounds=7, sample=0.004), clock)
    assert timings == {"a": pytest.approx([0.002] * 7), "b": pytest.approx([0.006] * 7), "c": pytest.approx([0.5] * 7)}


def test_samples_rotate_through_inputs_and_follow_untimed_calls():
    clock = Clock()
    runs = {"a": clock.candidate("a", 0.001), "b": clock.candidate("b", 0.1)}
    interleave(runs, Protocol(rounds=2, sample=0.004), clock)
    indices = {name: [i for n, i in clock.calls if n == name] for name in "ab"}
    assert indices["a"] == list(range(3 + 2 * (6 + 4)))  # start-up; per round 4 + 2 untimed calls, then 4 timed ones
    assert indices["b"] == list(range(3 + 2 * (1 + 1)))


def test_every_round_has_its_own_order():
    clock = Clock()
    names = "abcd"
    interleave({n: clock.candidate(n, 1.0) for n in names}, Protocol(rounds=6), clock)
    calls = [n for n, _ in clock.calls[3 * len(names) :]][::2]
    rounds = ["".join(calls[i : i + 4]) for i in range(0, len(calls), 4)]
    assert all(sorted(r) == list(names) for r in rounds)
    assert len(set(rounds)) > 1


def test_the_budget_ends_the_measurement_but_not_before_the_least_rounds():
    clock = Clock()
    timings = interleave({"a": clock.candidate("a", 1.0)}, Protocol(rounds=50, least_rounds=4, budget=0.0), clock)
    assert len(timings["a"]) == 4


def test_the_garbage_collector_is_off_while_measuring_and_on_again_after_an_error():
    import gc

    seen = []

    def run(i: int) -> None:
        if i > 5:
            seen.append(gc.isenabled())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interleave({"a": run}, Protocol(rounds=9, sample=1e-9))
    assert seen == [False]
    assert gc.isenabled()


def test_ratios_are_medians_over_rounds():
    # A disturbed round disturbs both: ratios per round hold where a ratio of medians would not.
    assert spread([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5) == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert spread([7.0], [1.0]) == {"median": 7.0, "low": 7.0, "high": 7.0}


@pytest.mark.parametrize("T", [1, 4, 8, 13, 16])
def test_rate_of_agrees_with_counting_one_by_one(T):
    dense = problems.iid(T, (3, 5), 0.3, torch.Generator().manual_seed(T))
    train = te.SpikeTrain.from_dense(dense.float())
    nonzero = sum((byte & 15 != 0) + (byte >> 4 != 0) for byte in train.planes.flatten().tolist())
    rate = problems.rate_of(train)
    assert rate.spikes == pytest.approx(dense.double().mean().item())
    assert rate.nibbles == pytest.approx(nonzero / train.planes.numel())


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.25, 0.45])
@pytest.mark.parametrize("kind", ["iid", "rate"])
def test_generators_meet_the_rate(kind, rate):
    made = problems.KINDS[kind](8, (16, 4, 64), rate, torch.Generator().manual_seed(0))
    assert made.shape == (8, 16, 4, 64)
    assert made.dtype == torch.bool
    assert made.double().mean().item() == pytest.approx(rate, rel=0.06)


def test_rate_coded_spikes_are_bunched():
    g = torch.Generator().manual_seed(0)
    kinds = problems.rate_coded, problems.iid
    coded, independent = (te.SpikeTrain.from_dense(kind(8, (64, 400), 0.2, g)) for kind in kinds)
    silent = (coded.counts == 0).double().mean()
    assert 0.45 < silent < 0.75
    assert problems.rate_of(coded).nibbles < 0.75 * problems.rate_of(independent).nibbles


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9])
def test_rate_coded_refuses_a_rate_out_of_reach(rate):
    with pytest.raises(ValueError, match="rate"):
        problems.rate_coded(8, (4,), rate, torch.Generator())


def examples():
    g = torch.Generator().manual_seed(0)
    conv = [Shape(8, kernel=3, padding=1), Shape(16, kernel=3, stride=2, padding=1)]
    yield "spikes", make_problem(8, spiking_input(8, (4, 20), 0.2, "rate", 2, g), [Shape(30), Shape(20)], 0.15, 5, g)
    yield "direct", make_problem(16, image_input((4, 20), 2, g), [Shape(30)], 0.15, 5, g)
    yield "conv", make_problem(8, image_input((2, 3, 8, 8), 2, g), conv, 0.15, 5, g)
    yield "conv layer", make_problem(8, spiking_input(8, (2, 4, 8, 8), 0.2, "iid", 2, g), conv[:1], 0.15, 0, g)


EAGER = [name for name in MAKERS if "compiled" not in name and available(name)]


@pytest.mark.parametrize(("name", "problem"), [pytest.param(n, p, id=n) for n, p in examples()])
def test_competitors_compute_the_same(name, problem):
    batches = problem.batches
    inference, step = {}, {}
    for timing, (reference, _) in measure.REFERENCES.items():
        expected = MAKERS[reference](problem)
        inference[timing] = expected.inference(batches).answer(1)
        step[timing] = expected.training_step(batches).answer(1)
        assert torch.equal(inference[timing][0], step[timing][0])
    for rival in EAGER:
        model = MAKERS[rival](problem)
        if not model.same:
            continue
        assert measure.difference(model.inference(batches).answer(1), inference[model.timing])["spikes"] == 0, rival
        if "frozen" not in rival:
            difference = measure.difference(model.training_step(batches).answer(1), step[model.timing])
            assert difference["spikes"] == 0, rival
            assert difference.get("gradient", 0) < 1e-5, rival


@pytest.mark.parametrize("conv", [False, True])
def test_naive_batch_norm_agrees_with_ours(conv):
    g = torch.Generator().manual_seed(0)
    shape = Shape(16, kernel=3, padding=1, norm=True) if conv else Shape(16, norm=True)
    data = spiking_input(8, (8, 6, 6, 6) if conv else (32, 20), 0.2, "rate", 1, g)
    problem = make_problem(8, data, [shape], 0.15, 0, g)
    batches = [batch.differentiable() for batch in problem.batches]
    expected = MAKERS["naive"](problem).training_step(batches).answer(0)
    expected_grad = batches[0].counts.grad
    answer = MAKERS["tandem"](problem).training_step(batches).answer(0)
    difference = measure.difference(answer, expected)
    assert difference["spikes"] < 1e-3
    assert difference["gradient"] < 1e-3
    torch.testing.assert_close(batches[0].counts.grad, expected_grad, rtol=1e-3, atol=1e-4)


def test_layers_fire_at_the_rate_asked_for():
    g = torch.Generator().manual_seed(0)
    problem = make_problem(8, spiking_input(8, (16, 100), 0.11, "rate", 1, g), [Shape(200), Shape(200)], 0.14, 10, g)
    assert [problem.rates[f"layer {i}"].spikes for i in (1, 2)] == pytest.approx([0.14, 0.14], abs=0.02)
    assert problem.neurons == 16 * 400


def test_difference_counts_unequal_answers_and_scales_gradients():
    answer = [torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([10.0, 0.0])]
    expected = [torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([10.0, 1.0])]
    assert measure.difference(answer, expected) == {"spikes": 0.25, "gradient": pytest.approx(0.1)}


def test_without_the_naive_rule_answers_are_compared_with_ours():
    _, problem = next(examples())
    names = ("ANN", "BPTT", "tandem")
    candidates = {name: MAKERS[name](problem).training_step(problem.batches) for name in names}
    assert measure.compare(candidates) == {"BPTT": {"spikes": 0.0}}
    other = measure.Candidate(candidates["ANN"].run, lambda i: [1 + candidates["tandem"].answer(i)[0]])
    assert measure.compare({"other": other, **candidates})["other"]["spikes"] == 1
    assert measure.compare({"ANN": candidates["ANN"]}) == {}


def test_bytes_kept_for_backward():
    weight = torch.randn(30, 20, requires_grad=True)
    x = torch.randn(4, 20)
    step = lambda: torch.relu(torch.relu(x @ weight.t()) @ torch.ones(30, 10))  # noqa: E731
    kept = kept_for_backward(step, [weight])
    assert kept == 4 * (4 * 20 + 4 * 30 + 30 * 10)  # x, the hidden activity, the constant; not the result


SMALL = of_network(
    "small", "a small layer", 8, spikes(8, 16, 200, rate=0.15, kind="rate", batches=2), (Shape(64),), 0.15,
    ("tandem", "ANN", "naive"), training=True, input_gradient=True,
)  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2])
def test_worker_measures_a_case(threads, monkeypatch):
    monkeypatch.setattr(measure, "QUICK", Protocol(rounds=2, sample=1e-6))
    before = torch.get_num_threads()
    try:
        result = measure.work(SMALL, ["tandem", "ANN", "naive"], threads, quick=True)
    finally:
        torch.set_num_threads(before)
    assert set(result["values"]) == {"tandem", "ANN", "naive"}
    assert all(len(v) == 2 and min(v) > 0 for v in result["values"].values())
    assert result["answers"]["tandem"]["spikes"] == 0
    assert result["rates"]["input"][0] == pytest.approx(0.15, rel=0.05)


def test_limits():
    row = {"values": {"tandem": [1.0, 1.0], "ANN": [2.0, 2.0], "naive": [5.0, 5.0]}, "quantity": "kept"}

    def met(limit, answers=None, **values):
        return judge(limit, row | {"values": row["values"] | values, "answers": answers or {}})["met"]

    assert met(at_most(0.5)) is True
    assert met(at_most(0.5), {"naive": {"spikes": 0.006}}) is True
    assert met(at_most(0.5), {"naive": {"spikes": 0.02}}) is False
    assert met(at_most(0.4)) is False
    assert met(at_most(0.4), frozen=[0.5, 0.5]) is True
    assert met(faster(6, "naive")) is False
    assert met(Limit(1.0, None, "≤ 1 byte")) is True
    assert met(faster(2, "SpikingJelly")) is None
    for quantity, portable in ("time", True), ("peak", False):  # portable limits of time are looser
        row = {"values": {"tandem": [1.4], "ANN": [1.0]}, "quantity": quantity}
        assert judge(at_most(1.0), row, portable=True)["met"] is portable


def test_every_limit_is_of_a_case():
    assert LIMITS.keys() <= CASES.keys()
    assert all(limit.of in (None, *CASES[name].rivals) for name, limits in LIMITS.items() for limit in limits)


def test_choose_cases():
    assert choose([]) == list(CASES.values())
    assert [case.name for case in choose(["scan", "kept*"])] == ["scan", "kept", "kept-norm"]
    with pytest.raises(UserError, match="did you mean 'scan'"):
        choose(["scam"])


def committed():
    result = json.loads((ROOT / "docs/results/bench-1.json").read_text())
    return result | {"rows": [row for row in result["rows"] if row["case"] == "scan"]}


def test_the_table(capsys):
    pytest.importorskip("rich")
    command.show(committed())
    values = committed()["rows"][0]["values"]
    assert f"{spread(values['tandem'], values['copy'])['median']:.2f}× copy" in capsys.readouterr().out


def test_a_picture(tmp_path):
    """What the page says: test_results.py."""
    draw(judged(committed()), tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 0
