"""`make gpu-check`, as far as it goes without a GPU: a rehearsal, its cases on the CPU, and how it ends."""

import inspect
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from gpu import check, clock, correctness, on_device, predictions, report, stages, timing

import tandem_snn
from build_tools.decide import Plan
from tandem_ext import checks

CPU = torch.device("cpu")
CASES = {case.name: case for case in correctness.cases(small=True)}
PAGE = Path(check.ROOT, "docs/cuda.md")


def run(folder, *arguments):
    command = [sys.executable, check.__file__, "--out", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_it_says_that_there_is_no_gpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = run(tmp_path)
    assert done.returncode == 2
    assert "no GPU was checked: torch " in done.stdout
    assert "nvidia-smi: " in done.stdout
    assert done.stdout.count("\n") == 1
    assert not done.stderr


def rehearsed(folder, *stages):
    done = run(folder, "--dry-run", "--only", *stages)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(" s  rehearsal: " in line for line in done.stdout.splitlines())
    found = json.loads((folder / "result.json").read_text())
    assert found["rehearsal"]
    assert list(found["checks"]) == list(stages)
    assert not any(result.get("failures") for result in found["checks"].values())
    (archive,) = folder.glob("gpu-rehearsal-*.zip")
    assert "attach " + str(archive) in done.stdout
    names = {Path(name).name for name in zipfile.ZipFile(archive).namelist()}
    assert names == {"result.json", *(f"{stage}.log" for stage in ("preflight", *stages) if stage != "sanitizer")}
    return done.stdout, found


def test_a_rehearsal(tmp_path):
    said, found = rehearsed(tmp_path, "verdict", "timings", "sanitizer")
    assert found["checks"]["verdict"] == {"passed": len(CASES), "failures": {}}
    assert " rehearsal: kernels right\n" in said
    last = said.splitlines()[-1]
    assert all(part in last for part in ("rehearsal; gpu-check ", "kernels right", "timings: 1 right", "skipped"))
    assert {row["case"].split()[0] for row in found["rows"]} == {"Linear", "conv", "scan", "batch", "training"}
    assert len({(row["case"], row["way"]) for row in found["rows"]}) == len(found["rows"])
    assert all(row["us"] > 0 for row in found["rows"])
    assert found["peaks"].keys() == {"copy", "float16", "int8"}


@pytest.mark.slow
def test_a_rehearsal_of_every_stage(tmp_path):
    rehearsed(tmp_path, *check.LIMITS)


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
    "layers.py::test_momentum_none_averages_and_norm_eval_freezes",
    "layers_shape.py::test_dropout_is_off_in_evaluation_and_on_other_inputs_scales_what_they_are_worth",
)


def test_the_tests_use_the_device():
    """Those that compare values cannot pass where tensors have none."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--device=meta"]
    done = subprocess.run(
        [*command, *(f"tests/layers/test_{test}" for test in USES)], cwd=check.ROOT, capture_output=True, text=True
    )
    assert f"{len(USES)} failed" in done.stdout


def only_on_the_cpu(source):
    """What cannot hold on a GPU in a test: the name of the device, unless its type is asked for, and messages about
    values that are checked in CPU memory alone."""
    messages = re.findall(r'device\.type == "cpu" and .*\n.*Error\(f?(".*)', inspect.getsource(checks))
    assert len(messages) >= 2
    read = [text for text in re.findall(r'"([^"\n]* expected [^"\n]*)"', source) if text in "".join(messages)]
    return read + [line for line in source.splitlines() if re.search(r'"[^"]*cpu', line) and ".type " not in line]


@pytest.mark.parametrize("name", [*stages.TESTS, "any_layer", "cases", "networks"])
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


@pytest.mark.parametrize("where", ["peaks", "row", "case"])
def test_what_fails_costs_no_more_than_itself(where, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("an illegal memory access was encountered\nmore of it")

    parts = {"peaks": (clock.Bench, "measure_peaks"), "row": (timing, "layer"), "case": (timing, "create")}
    monkeypatch.setattr(*parts[where], broken)
    result = tmp_path / "result.json"
    options = ["--dry-run", "--out", str(tmp_path)]
    assert check.main([*options, "--stage", "timings", "--result", str(result)]) == 1
    whole = check.Check(check.parse(options))
    whole.merge("timings", json.loads(result.read_text()), None)
    found = whole.result
    assert not report.right(found)
    assert "an illegal memory access was encountered" in found["checks"]["timings"]["failures"]["all rows"]
    assert any(row["case"].startswith("scan") and "us" in row for row in found["rows"]) == (where != "peaks")
    assert "illegal" in report.table(found) or where == "peaks"


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
    whole = check.Check(check.parse(["--dry-run", "--out", str(tmp_path)]))
    whole.merge("bits", {}, "ended by SIGABRT")
    whole.merge("nccl", {}, None)
    whole.merge("device", {"checks": {"device": {"passed": 3, "failures": {}}}}, "killed after 90 s")
    whole.merge("tests", {"checks": {"tests": {"skipped": "no pytest"}}}, None)
    assert not report.right(whole.result)
    assert {name: report.state(ended) for name, ended in whole.result["checks"].items()} == {
        "bits": "1 WRONG (process)", "nccl": "1 WRONG (process)", "device": "3 right, 1 WRONG (process)",
        "tests": "skipped, no pytest",
    }  # fmt: skip


def test_the_sanitizer(tmp_path, monkeypatch):
    """One that finds something by one of its tools."""
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "$@"\ntest "$2" != racecheck || exit 9\n')
    tool.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    whole = check.Check(check.parse(["--out", str(tmp_path)]))
    found = whole.sanitize()
    assert found == {"passed": 3, "failures": {"racecheck": "ended with status 9; sanitizer-racecheck.log"}}
    said = {log.name: log.read_text() for log in whole.logs}
    assert "--tool initcheck --error-exitcode 9 " in said["sanitizer-initcheck.log"]
    assert all(("kns=tandem" in text) == ("initcheck" not in name) for name, text in said.items())
    assert all(text.endswith(" --stage verdict\n") for text in said.values())


@pytest.mark.parametrize(
    ("checks", "right", "says"),
    [({"passed": 9, "failures": {}}, True, "kernels right"),
     ({"passed": 8, "failures": {"linear step float32": "1 of 9 differ"}}, False, "WRONG: linear step float32"),
     ({"passed": 8, "failures": {}, "unfinished": "no time for 1 of 9"}, False, "no verdict, no time for 1 of 9")],
)  # fmt: skip
def test_the_verdict(checks, right, says):
    result = {"checks": {"verdict": checks, "bits": {"unfinished": "no time for it"}}}
    assert report.right(result) == right
    assert says in report.verdict(result)


def test_a_stage_stops_when_its_time_is_nearly_up(tmp_path):
    options = check.parse(["--dry-run", "--stage", "bits", "--seconds", "0", "--result", str(tmp_path / "result.json")])
    log = stages.Log(options)
    log.run([correctness.Case("never", lambda _: pytest.fail("it ran"))])
    assert log.checks == {"passed": 0, "failures": {}, "unfinished": "no time for 1 of 1"}


@pytest.mark.parametrize(
    ("archs", "capability", "how"),
    [(["7.5", "8.0", "9.0+PTX"], "7.5", "no JIT"), (["8.0", "9.0+PTX"], "8.6", "no JIT"), (["8.6"], "8.0", None),
     (["8.0", "9.0+PTX"], "12.0", "JIT of the PTX for 9.0"), (["8.0"], "9.0", None), (["9.0a"], "9.0", "no JIT"),
     (["12.0a+PTX"], "12.1", None), (["8.0+PTX"], "7.5", None), (["unknown"], "7.5", "JIT unknown"), ([], "9.0", None)],
)  # fmt: skip
def test_how_kernels_get_to_run(archs, capability, how):
    assert check.code_for(archs, capability) == how


T4 = {"card": "Tesla T4", "capability": "7.5", "torch": "2.13.0+cu130", "cuda": "13.0", "notes": ["an old driver"]}


@pytest.mark.parametrize(
    ("found", "status", "says"),
    [(T4 | {"archs": ["7.5"]}, 0, "Tesla T4 (7.5), driver "), (T4 | {"module": "cannot open it"}, 1, "cannot open it"),
     (T4 | {"archs": None}, 1, "for compute capability 7.5, only for CPUs: put nvcc on PATH"),
     (T4 | {"archs": ["8.0"]}, 1, "only for ['8.0']"), (T4 | {"capability": "7.0"}, 2, "7.5 is the oldest"),
     ({"why": "torch 2.13.0 sees none"}, 2, "sees none. nvidia-smi: ")],
)  # fmt: skip
def test_preflight(found, status, says, tmp_path, monkeypatch, capsys):
    """Whatever is missing is said in one sentence."""
    monkeypatch.setattr(check, "make_plan", lambda _: Plan(note="no nvcc"))
    monkeypatch.setattr(check.Check, "process", lambda *_: (dict(found), None))
    whole = check.Check(check.parse(["--out", str(tmp_path)]))
    assert whole.preflight() == status
    said = capsys.readouterr().out.splitlines()
    assert says in said[-1 - (status == 0)]
    assert ("note: an old driver" in said[-1]) == (status == 0)


def test_predictions():
    """The page's table is that of the data, and rows find theirs."""
    assert predictions.table() in PAGE.read_text()
    step = f"{predictions.STEP}, 3 digits"
    for name in ("NVIDIA H100 80GB HBM3", "Tesla T4", "NVIDIA A100-SXM4-80GB", "NVIDIA GeForce RTX 4090"):
        assert predictions.predict(name, predictions.LINEAR.name, step) > 40
    for name, case, way in (("NVIDIA T400", predictions.LINEAR.name, step), ("Tesla T4", "conv", step),
                            ("Tesla T4", predictions.LINEAR.name, predictions.OURS)):  # fmt: skip
        assert predictions.predict(name, case, way) is None
