"""`make gpu-check`, as far as it goes without a GPU: its cases on the CPU, timings and table on small shapes."""

import ast
import inspect
import json
import subprocess
import sys

import pytest
import torch
from gpu import check, correctness, on_device, report, stages, timing

import tandem_snn
from tandem_ext import checks

CPU = torch.device("cpu")
CASES = {case.name: case for case in correctness.cases(small=True)}


def test_it_says_that_there_is_no_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = subprocess.run([sys.executable, check.__file__], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout.startswith("gpu-check: torch ")
    assert done.stdout.count("\n") == 1
    assert not done.stderr


def test_the_whole_program(tmp_path):
    arguments = ["--device", "cpu", "--small", "--only", "bits", "timings", "--out", str(tmp_path)]
    assert check.main(arguments) == 0
    (path,) = tmp_path.glob("gpu-cpu-*.json")
    found = json.loads(path.read_text())
    assert found["checks"]["bits"] == {"passed": len(CASES), "failures": {}}
    assert found["rows"]


@pytest.mark.parametrize("name", CASES)
def test_cases_hold(name):
    CASES[name].run(CPU)


def test_cases_can_fail(monkeypatch):
    """With kernels that spike once too often."""
    wrong = correctness.F.linear_if

    def once_more(*arguments, **keywords):
        train, v = wrong(*arguments, **keywords)
        train.planes[0, 0, 0] ^= 1
        return train, v

    monkeypatch.setattr(correctness.F, "linear_if", once_more)
    with pytest.raises(AssertionError):
        CASES["linear step float32"].run(CPU)


@pytest.mark.parametrize("run", [on_device.same_every_time, on_device.frozen_graph])
def test_what_does_not_need_a_gpu(run):
    run(CPU)


def test_other_than_graphs_are_noticed():
    """A network that ran layer by layer gives the right answers too."""
    frozen = tandem_snn.freeze(on_device.layers().eval())
    frozen._graphs["a"] = None
    with pytest.raises(AssertionError, match="1 without a graph"):
        on_device.has_graphs(frozen, 1)


USES = (
    "layers.py::test_encoder_modes",
    "layers_shape.py::test_avg_pool_from_half_a_threshold_rounds_the_mean",
    "layers.py::test_the_release_fires_by_the_running_statistics_in_training",
    "spike_train.py::test_unused_high_bits_are_zero",
)


def test_the_tests_use_the_device():
    """Those that compare values cannot pass where tensors have none."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--device=meta"]
    done = subprocess.run(
        [*command, *(f"tests/test_{test}" for test in USES)], cwd=check.ROOT, capture_output=True, text=True
    )
    assert f"{len(USES)} failed" in done.stdout


def strings(*trees):
    """The string constants of a program."""
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return [node for node in nodes if isinstance(node.value, str)]


def asks_type(node):
    """Whether a condition compares the type of a device with "cpu"."""
    attributes = [part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)]
    return "type" in attributes and any(string.value == "cpu" for string in strings(node))


def only_on_the_cpu(source):
    """Strings of a test that cannot hold on a GPU: the name of the device, unless its type is asked for, and messages
    about values that are checked in CPU memory alone."""
    nodes = list(ast.walk(ast.parse(inspect.getsource(checks))))
    branches = [node.body for node in nodes if isinstance(node, ast.If) and asks_type(node.test)]
    messages = [string.value for body in branches for string in strings(*body)]
    assert len(messages) >= 2
    tree = ast.parse(source)
    asked = strings(*(node for node in ast.walk(tree) if isinstance(node, ast.Compare) and asks_type(node)))
    named = [string.value for string in strings(tree) if "cpu" in string.value and string not in asked]
    read = [s.value for s in strings(tree) if " expected " in s.value and any(s.value in text for text in messages)]
    return named + read


@pytest.mark.parametrize("name", [*(f"test_{name}" for name in stages.TESTS), "any_layer", "cases", "networks"])
def test_nothing_compares_with_the_cpu(name):
    """In what a GPU runs."""
    assert only_on_the_cpu((check.ROOT / "tests" / f"{name}.py").read_text()) == []


def test_comparisons_with_the_cpu_are_found():
    source = """
for same in (copy.copy(x), x.to("cpu")):
    assert repr(x) == "SpikeTrain(T=9, device=cpu)"
if device.type == "cpu":
    with pytest.raises(ValueError, match="threshold: expected positive values"):
        layer(x)
"""
    assert len(only_on_the_cpu(source)) == 3


@pytest.fixture(scope="module")
def measured():
    bench = timing.Bench(CPU, small=True)
    return timing.measure(bench, lambda _: None), timing.peaks(bench)


def test_timings_run(measured):
    rows, peaks = measured
    kinds = {"scan", "linear", "conv", "cifarnet", "pack", "unpack", "counts", "gate", "batch"}
    assert {row.case.split()[0] for row in rows} == kinds
    assert {row.rate for row in rows} == {"", *peaks} - {"copy"}
    assert len({(row.case, row.way) for row in rows}) == len(rows)
    for row in rows:
        assert row.note or row.seconds > 0, row
        if row.way.startswith("tandem"):
            assert not row.note, row


@pytest.mark.parametrize("where", ["peaks", "row", "case"])
def test_what_fails_costs_no_more_than_itself(where, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("an illegal memory access was encountered\nmore of it")

    if where == "peaks":
        monkeypatch.setattr(timing, "peaks", broken)
    elif where == "row":
        monkeypatch.setattr(timing.te.functional, "linear_if", broken)
    else:
        monkeypatch.setattr(timing, "random_weight", broken)
    result = tmp_path / "result.json"
    options = ["--device", "cpu", "--small", "--only", "timings", "--out", str(tmp_path)]
    assert check.main([*options, "--stage", "timings", "--result", str(result)]) == 1
    whole = check.Check(check.parse(options), "cpu")
    whole.merge("timings", json.loads(result.read_text()), None)
    assert whole.failed
    path = whole.write()
    found = json.loads(path.read_text())
    assert "an illegal memory access was encountered" in found["checks"]["timings"]["failures"]["all"]
    assert any(row["case"].startswith("scan") and "microseconds" in row for row in found["rows"]) == (where != "peaks")
    assert "illegal" in path.with_suffix(".md").read_text() or where == "peaks"


CHILD = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); print('begun', flush=True); time.sleep(60)"


@pytest.mark.parametrize(
    ("script", "wrong"),
    [("print('well')", None), ("raise SystemExit(1)", None), ("raise SystemExit(9)", "ended with status 9"),
     ("import os; os.abort()", "ended by SIGABRT"), (CHILD, "killed after 1 s")],
)  # fmt: skip
def test_a_process_ends_however_it_ends(script, wrong, tmp_path):
    log = tmp_path / "log"
    assert check.supervise([sys.executable, "-c", script], log, 1 if script == CHILD else 30) == wrong
    if script == CHILD:
        assert log.read_text() == "begun\n"  # all of it
        assert not subprocess.run(["pgrep", "-s", "0", "sleep"], capture_output=True).stdout


def test_a_stage_that_dies_is_a_failure(tmp_path):
    """Where the GPU's context is lost, no result is left, or half of one."""
    whole = check.Check(check.parse(["--dry-run", "--out", str(tmp_path)]), "cpu")
    whole.merge("bits", {}, "ended by SIGABRT")
    whole.merge("device", {"torch": "2.13", "checks": {"device": {"passed": 3, "failures": {}}}}, "killed after 90 s")
    whole.merge("wrappers", {"torch": "2.13", "checks": {"wrappers": {"skipped": "no GPU"}}}, None)
    assert whole.failed
    checks = json.loads(whole.write().read_text())["checks"]
    assert checks["bits"]["failures"] == {"process": "ended by SIGABRT"}
    assert checks["device"] == {"passed": 3, "failures": {"process": "killed after 90 s"}}
    assert checks["wrappers"] == {"skipped": "no GPU"}


@pytest.mark.slow
def test_a_dry_run_goes_through_every_stage(tmp_path):
    done = subprocess.run(
        [sys.executable, check.__file__, "--dry-run", "--out", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("gpu-cpu-*.json")
    found = json.loads(path.read_text())
    assert sorted(found["checks"]) == sorted(check.STAGES)
    assert not any(result.get("failures") for result in found["checks"].values())
    assert {"tenth", "nine_tenths", "host", "host_bound"} <= found["rows"][0].keys()
    assert (tmp_path / f"{path.stem}.timings.log").read_text()


def test_targets():
    scan, linear = "scan [8, 16777216] float32", "linear 4096x4096, B=64"
    measured = [
        (scan, "tandem", 2.0, 0.95), (f"{linear} float16", "tandem", 50.0, 0.1),
        (f"{linear} int8", "tandem", 40.0, 0.1), (f"{linear} float16", "the bare product", 45.0, 0.1),
    ]  # fmt: skip
    found = [dict(zip(("case", "way", "microseconds", "bandwidth"), row, strict=True)) for row in measured]
    assert [(t["least"], t["reached"]) for t in report.targets(found)] == [(0.9, 0.95), (0.8, 0.9), (1.0, 1.25)]
    assert not report.targets([])
