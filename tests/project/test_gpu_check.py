"""`make gpu-check`, as far as it goes without a GPU: a rehearsal, its cases on the CPU, and how it ends."""

import inspect
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import any_layer
import pytest
import torch
from gpu import check, clock, correctness, on_device, predictions, processes, report, smoke, stages, timing

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
    logs = {"transcript", "preflight", "machine", *stages} - set(check.TOOLS)
    assert names == {"result.json", *(f"{name}.log" for name in logs)}
    assert (folder / "transcript.log").read_text() == done.stdout
    assert "$ g++ --version" in (folder / "machine.log").read_text()
    return done.stdout, found


def test_a_rehearsal(tmp_path):
    said, found = rehearsed(tmp_path, "smoke", "memcheck", "verdict", "timings", "profile")
    assert found["checks"]["smoke"] == {"passed": len(smoke.cases()), "failures": {}}
    assert found["checks"]["verdict"] == {"passed": len(CASES), "failures": {}}
    assert " rehearsal: kernels right (without memcheck, racecheck)\n" in said
    last = said.splitlines()[-1]
    assert all(part in last for part in ("rehearsal; gpu-check ", "kernels right", "timings: 6 right", "skipped"))
    rows = {(row["case"], row["way"]): row for row in found["rows"]}
    assert len(rows) == len(found["rows"])
    assert all(row["us"] > 0 for row in rows.values())
    assert {case.split()[0] for case, _ in rows} == {"Linear", "conv", "scan", "batch", "training"}
    for case in ("Linear 64², B = 20", "conv 4→8"):
        for precision in ("float32", "TF32"):
            assert (case, f"{predictions.ANN}, {precision}") in rows
        for T in (4, 16):
            assert (f"{case}, T = {T}", "step timing, 2 digits") in rows
    assert any(case.startswith("conv 2→") for case, _ in rows)
    steps = [row for (case, _), row in rows.items() if case.startswith("training step")]
    assert len(steps) == 9
    assert not any("host_us" in row for row in steps)  # by wall clock
    assert found["peaks"].keys() == {"copy", "float16", "int8"}
    assert found["clocks"].keys() == set(timing.CASES)
    assert {row["case"] for row in found["kernels"]} == {*timing.PROFILED, "smoke"}
    assert all(row["calls"] > 0 < row["us"] for row in found["kernels"])


def test_names_of_kernels():
    tiles = "tandem::cuda::TileShape<tandem::cuda::Wide16>"
    kernel = f"void tandem::cuda::(anonymous namespace)::product_if_kernel<{tiles} >(tandem::cuda::DeviceGeometry)"
    assert clock.short(kernel) == "product_if_kernel<TileShape<Wide16> >"


def test_the_order_and_the_limits():
    assert list(check.LIMITS)[:6] == ["smoke", "memcheck", "racecheck", "verdict", "timings", "profile"]
    assert sum(check.LIMITS.values()) + 30 == check.parse([]).seconds == 600


def test_tools_run_side_by_side(tmp_path, monkeypatch, capsys):
    both = threading.Barrier(2, timeout=20)

    def take(_, tool, seconds):
        both.wait()
        return {"checks": {tool: {"passed": int(seconds), "failures": {}}}}

    monkeypatch.setattr(processes.Runner, "sanitize", take)
    monkeypatch.setattr(check.Check, "preflight", lambda _: 0)
    given = ["--dry-run", "--out", str(tmp_path), "--only", "memcheck", "racecheck", "--seconds", "99.5"]
    assert check.main(given) == 0
    right = re.findall(r"rehearsal: (\w+check): 9\d right$", capsys.readouterr().out, re.MULTILINE)
    assert right == ["memcheck", "racecheck"]


def test_a_stage_has_the_time_that_later_ones_are_not_owed(tmp_path, monkeypatch):
    whole = check.Check(check.parse(["--dry-run", "--out", str(tmp_path), "--seconds", "200"]))
    given = {}

    def take(_, stage, seconds):
        given[stage] = seconds
        whole.begin -= 30
        return {"checks": {stage: {"passed": 1, "failures": {}}}}

    monkeypatch.setattr(processes.Runner, "stage", take)
    whole.options.only = ["smoke", "verdict", "compile", "nccl"]
    for stage in whole.options.only:
        whole.run(stage)
    owed = check.LIMITS
    for i, stage in enumerate(given):
        assert given[stage] == pytest.approx(200 - 30 * i - sum(owed[name] for name in list(given)[i + 1 :]), abs=1)
    whole.options.seconds = 1
    whole.run("nccl")
    assert whole.result["checks"]["nccl"]["unfinished"] == "no time for it"


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
    with pytest.raises(AssertionError, match="Mismatched elements: 1 "):
        CASES["linear step float32"].run(CPU)


@pytest.mark.parametrize("result", smoke.RESULTS)
def test_smoke_can_fail(result, monkeypatch):
    """With layers that have one wrong bit in any of their results."""
    right = smoke.OPS.conv_if

    def wrong(**arguments):
        results = right(**arguments)
        changed = results[smoke.RESULTS.index(result)]
        changed[(0,) * changed.dim()] += 1
        return results

    monkeypatch.setattr(smoke, "OPS", SimpleNamespace(conv_if=wrong))
    case = next(case for case in smoke.cases() if case.name == "wide, T = 8, 3 digits, stride")
    assert f"AssertionError: {result}: 1 of " in stages.failure_of(case, CPU)


@pytest.mark.parametrize("product", any_layer.PRODUCTS)
@pytest.mark.parametrize("timing_", ["step", "window"])
def test_layers_of_the_verdict_read_spikes(product, timing_):
    """Half of them: products of constant inputs are torch's."""
    of = product, timing_, torch.float32
    kinds = [any_layer.drawn(random.Random(seed), *of)[0][1] for seed in correctness.seeds(of, 2)]
    assert sum(kind in ("train", "bursts") for kind in kinds) == (0 if product == "scan" else 2)
    assert len(kinds) == (2 if product == "scan" else 4)


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


@pytest.fixture
def precision():
    """As it was: what a stage sets in this process."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    names = [(cudnn, "enabled"), (cudnn, "allow_tf32"), (matmul, "allow_bf16_reduced_precision_reduction"),
             (matmul, "allow_fp16_reduced_precision_reduction")]  # fmt: skip
    values = [getattr(of, name) for of, name in names]
    yield
    for (of, name), value in zip(names, values, strict=True):
        setattr(of, name, value)


@pytest.mark.parametrize("where", ["peaks", "row", "case"])
def test_what_fails_costs_no_more_than_itself(where, tmp_path, monkeypatch, precision):
    def broken(*_, **__):
        raise RuntimeError("an illegal memory access was encountered\nmore of it")

    parts = {"peaks": (clock.Bench, "measure_peaks"), "row": (timing, "layer"), "case": (timing, "create")}
    monkeypatch.setattr(*parts[where], broken)
    result = tmp_path / "result.json"
    options = ["--dry-run", "--out", str(tmp_path)]
    assert check.main([*options, "--stage", "timings", "--result", str(result)]) == 1
    found = {"peaks": {}, "clocks": {}} | json.loads(result.read_text())
    assert not report.right(found)
    failures = found["checks"]["timings"]["failures"]
    wrong = {"peaks": {"linear"}, "row": {"linear", "conv", "events"}, "case": {"training"}}[where]
    assert set(failures) == wrong
    assert all("an illegal memory access was encountered" in why for why in failures.values())
    assert any(row["case"].startswith("scan") and "us" in row for row in found["rows"])
    assert ("illegal" in report.table(found)) == (where == "row")


def test_products_that_are_compared_are_not_cudnns(monkeypatch, precision):
    """Its Winograd rounds sums that are exact."""
    seen = {}
    for stage in ("smoke", "verdict", "bits", "timings"):
        look = correctness.Case("look", lambda _, stage=stage: seen.update({stage: torch.backends.cudnn.enabled}))
        monkeypatch.setitem(stages.CASES, stage, lambda _, look=look: [look])
        assert stages.run(check.parse(["--dry-run", "--stage", stage])) == 0
    assert seen == {"smoke": False, "verdict": False, "bits": False, "timings": True}


def test_one_case(monkeypatch, precision, capsys):
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "0")
    assert check.main(["--dry-run", "--case", "planes, bool"]) == 0
    assert os.environ["CUDA_LAUNCH_BLOCKING"] == "1"
    assert "smoke: 1 right" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="verdict has no case 'planes, bool', but: pack, unpack, counts of 7; "):
        check.main(["--dry-run", "--stage", "verdict", "--case", "planes, bool"])


CRASHING = """
import os, sys
from gpu import check, stages
from gpu.correctness import Case

def wrong(device):
    raise AssertionError("1 of 9 differ")

runs = {"good": lambda _: None, "dies": lambda _: os.abort(), "wrong": wrong, "last": lambda _: None}
stages.CASES["smoke"] = lambda _: [Case(*case) for case in runs.items()]
sys.exit(check.main())
"""


def make_sanitizer(folder, monkeypatch, script):
    tool = folder / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(folder))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


def runner_of(folder, script, *options):
    return processes.Runner(check.parse(["--out", str(folder), *options]), str(script))


def test_a_case_that_ends_its_process(tmp_path, monkeypatch):
    """It runs alone, then under memcheck, and a new process goes on behind it."""
    make_sanitizer(tmp_path, monkeypatch, """
echo "$@"
echo "========= COMPUTE-SANITIZER"
echo "========= Invalid __global__ read of size 4 bytes"
echo "=========     at product_if_kernel"
exit 9""")  # fmt: skip
    script = tmp_path / "crashing.py"
    script.write_text(CRASHING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(check.FOLDERS))
    runner = runner_of(tmp_path, script, "--dry-run")
    found = runner.stage("smoke", 120)["checks"]["smoke"]
    again = "memcheck: Invalid __global__ read of size 4 bytes, at product_if_kernel (smoke-1-memcheck.log)"
    assert found == {"passed": 2, "failures": {
        "dies": f"ended by SIGABRT; alone: ended by SIGABRT (smoke-1-alone.log); {again}",
        "wrong": "AssertionError: 1 of 9 differ",
    }}  # fmt: skip
    assert set(runner.logs) == {"smoke", "smoke-1-alone", "smoke-1-memcheck"}
    said = runner.log("smoke").read_text()
    assert said.count("good") == 1
    assert said.index("good") < said.index("wrong FAILS") < said.index("last")
    under = runner.log("smoke-1-memcheck").read_text()
    assert "--tool memcheck" in under
    assert " --case=dies" in under


def test_a_gpu_that_answers_no_more_ends_the_process(tmp_path, monkeypatch, precision):
    """With what is known so far, and the case in which that was."""

    def lose(_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    cases = [correctness.Case("good", lambda _: None), correctness.Case("bad", lose)]
    cases.append(correctness.Case("never", lambda _: pytest.fail("it ran")))
    monkeypatch.setitem(stages.CASES, "bits", lambda _: cases)
    monkeypatch.setattr(stages, "is_lost", lambda _: True)
    result = tmp_path / "result.json"
    options = ["--dry-run", "--stage", "bits", "--result", str(result)]
    assert stages.run(check.parse(options)) == stages.LOST not in (0, 1)
    found = json.loads(result.read_text())
    assert found["running"] == "bad"
    assert found["checks"]["bits"]["passed"] == 1
    assert "illegal memory access" in found["checks"]["bits"]["failures"]["bad"]


@pytest.mark.parametrize("seconds", [100, 0])
def test_cases_that_all_end_their_processes(seconds, tmp_path, monkeypatch):
    """As many processes as there is time for."""
    cases, asked = ["a", "b", "c"], []

    def process(_, stage, left, log, tool=(), case=None, after=None):
        asked.append(case or after)
        rest = cases[0 if after is None else cases.index(after) + 1 :]
        failures = {"b": "CUDA error"} if rest[:1] == ["b"] else {}
        if case is not None or not rest:
            return {"checks": {stage: {"passed": 1, "failures": {}}}}, None
        return {"running": rest[0], "checks": {stage: {"passed": 0, "failures": failures}}, "rows": rest[:1]}, "ended"

    monkeypatch.setattr(processes.Runner, "process", process)
    monkeypatch.setattr(processes, "under", lambda _: [])
    found = runner_of(tmp_path, "").stage("bits", seconds)
    if seconds:
        why = {
            case: f"ended; alone: right (bits-{i}-alone.log); memcheck: no compute-sanitizer"
            for i, case in enumerate(cases, 1)
        }
        why["b"] = why["b"].replace("ended", "CUDA error")
        assert asked == [None, "a", "a", "b", "b", "c", "c"]
        assert found == {"checks": {"bits": {"passed": 1, "failures": why}}, "rows": cases}
    else:
        unfinished = "no time for the cases behind 'a'"
        assert found["checks"]["bits"] == {
            "passed": 0,
            "failures": {"a": "ended; alone: no time; memcheck: no time"},
            "unfinished": unfinished,
        }


CHILD = "import subprocess, sys, time; subprocess.Popen(['sleep', '60.5']); print('begun', flush=True); time.sleep(60)"


@pytest.mark.parametrize(
    ("script", "wrong"),
    [("print('well')", None), ("raise SystemExit(1)", None), ("raise SystemExit(9)", "ended with status 9"),
     ("import os; os.abort()", "ended by SIGABRT"), (CHILD, "killed after 1 s")],
)  # fmt: skip
def test_a_process_ends_however_it_ends(script, wrong, tmp_path):
    log = tmp_path / "log"
    assert processes.supervise([sys.executable, "-c", script], log, 1 if script == CHILD else 30) == wrong
    if script == CHILD:
        assert log.read_text() == "begun\n"  # all of it
        assert not subprocess.run(["pgrep", "-f", "^sleep 60.5"], capture_output=True).stdout


@pytest.mark.parametrize(
    ("left", "wrong", "state"),
    [({}, "ended by SIGABRT", "1 WRONG (process)"), ({}, None, "1 WRONG (process)"),
     ({"passed": 3, "failures": {}}, "killed after 90 s", "3 right, 1 WRONG (process)"),
     ({"skipped": "no pytest"}, None, "skipped, no pytest")],
)  # fmt: skip
def test_a_stage_that_dies_outside_of_its_cases_is_a_failure(left, wrong, state, tmp_path, monkeypatch):
    """No result is left, or half of one."""
    found = {"checks": {"bits": left}} if left else {}
    monkeypatch.setattr(processes.Runner, "process", lambda *_, **__: (found, wrong))
    result = runner_of(tmp_path, "").stage("bits", 90)
    assert report.right(result) == ("skipped" in left)
    assert report.state(result["checks"]["bits"]) == state


@pytest.mark.parametrize(("stage", "right"), [("bits", False), ("compile", True)])
def test_a_stage_that_takes_too_long(stage, right, tmp_path, monkeypatch):
    """A compiler may be slow; a case of kernels hangs."""
    found = {"running": "step", "checks": {stage: {"passed": 1, "failures": {}}}}
    monkeypatch.setattr(processes.Runner, "process", lambda *_, **__: (dict(found), "killed after 40 s"))
    result = runner_of(tmp_path, "").stage(stage, 0)
    assert report.right(result) == right
    assert report.state(result["checks"][stage]).startswith("1 right, " + "unfinished: killed" * right)


@pytest.mark.parametrize("without", [(), ("Deep16",)])
def test_the_profile_knows_which_tiles_ran(without, monkeypatch, tmp_path):
    tiles = [f"{tile}{kind}" for tile in ("Wide", "Deep", "Narrow") for kind in (4, 8, 16)]
    tiles += ["LargeCounts", "WideCounts", "NarrowCounts"]
    kernels = [f"product_if_kernel<TileShape<{tile}>>" for tile in tiles if tile not in without]
    rows = [{"case": "smoke", "kernel": kernel, "calls": 1, "us": 1.0} for kernel in kernels]
    monkeypatch.setattr(clock.Bench, "kernels", lambda *_: rows)
    log = stages.Log(check.parse(["--out", str(tmp_path), "--stage", "profile"]))
    error = stages.failure_of(stages.profiles(log)[-1], CPU)
    assert error == (f"AssertionError: not run: {without[0]}" if without else None)


def test_the_sanitizer(tmp_path, monkeypatch):
    """One that finds something by one of its tools; what initcheck finds may be torch's."""
    make_sanitizer(tmp_path, monkeypatch, """
echo "$@"
case "$2" in *check) echo "========= ERROR SUMMARY: 0 errors";; esac
case "$2" in racecheck|initcheck) echo "========= Error: Race" && exit 9;; esac""")  # fmt: skip
    runner = runner_of(tmp_path, check.__file__)
    found = {}
    for tool in check.TOOLS:
        found |= runner.sanitize(tool, 30)["checks"]
    assert found == {
        "memcheck": {"passed": 0, "failures": {}},
        "racecheck": {"passed": 0, "failures": {"racecheck": "Error: Race (racecheck.log)"}},
        "initcheck": {"passed": 0, "failures": {}, "unfinished": "look at initcheck.log: Error: Race"},
        "synccheck": {"passed": 0, "failures": {}},
    }
    said = {name: log.read_text() for name, log in runner.logs.items()}
    assert "--tool initcheck --error-exitcode 9 " in said["initcheck"]
    assert all(("kns=tandem" in text) == (name != "initcheck") for name, text in said.items())
    assert all(" --stage smoke " in text for text in said.values())


@pytest.mark.parametrize("said", ["", "========= Invalid __global__ read\n"])
def test_a_sanitizer_that_takes_too_long(said, tmp_path, monkeypatch):
    """What it found by then counts."""

    def process(runner, stage, seconds, log, tool):
        runner.log(log).write_text(said)
        return {"running": "ring"}, "killed after 9 s"

    monkeypatch.setattr(processes, "under", lambda tool: [tool])
    monkeypatch.setattr(processes.Runner, "process", process)
    found = runner_of(tmp_path, "").sanitize("memcheck", 9)["checks"]["memcheck"]
    failures = {"memcheck": "Invalid __global__ read (memcheck.log)"} if said else {}
    assert found["failures"] == failures
    assert found.get("unfinished") == (None if said else "killed after 9 s, in 'ring'")


def test_without_a_sanitizer(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "find_tool", lambda _: None)
    found = runner_of(tmp_path, "").sanitize("memcheck", 30)["checks"]
    assert found == {"memcheck": {"skipped": "no compute-sanitizer on PATH or in CUDA_HOME"}}


def test_clocks_are_sampled_meanwhile(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '1380, 61.5, 40\\n1755, 68.0, 41\\n1740, [N/A], 41\\n'\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    clocks = clock.Clocks()
    while clocks.file.read_text().count("\n") < 3:
        time.sleep(0.01)
    assert clocks.stop() == {"MHz": [1380, 1740, 1755], "W": [61.5, 64.75, 68], "°C": [40, 41, 41]}


@pytest.mark.parametrize(
    ("checks", "right", "says"),
    [({"verdict": {"passed": 9, "failures": {}}}, True, "kernels right (without smoke, memcheck, racecheck)"),
     ({stage: {"passed": 9, "failures": {}} for stage in report.PROOF}, True, "kernels right"),
     ({"smoke": {"passed": 8, "failures": {"ring": "1 of 9 differ"}}}, False, "kernels WRONG: smoke: ring"),
     ({"smoke": {"passed": 8, "failures": {}, "unfinished": "no time"}}, False, "no verdict, smoke: no time")],
)  # fmt: skip
def test_the_verdict(checks, right, says):
    result = {"checks": {**checks, "bits": {"unfinished": "no time for it"}}}
    assert report.right(result) == right
    assert report.verdict(result) == says


def test_a_stage_stops_when_its_time_is_nearly_up(tmp_path):
    options = check.parse(["--dry-run", "--stage", "bits", "--seconds", "0", "--result", str(tmp_path / "result.json")])
    log = stages.Log(options)
    log.run([correctness.Case("never", lambda _: pytest.fail("it ran"))])
    assert log.checks == {"passed": 0, "failures": {}, "unfinished": "no time for 1 of 1"}


@pytest.mark.parametrize(
    ("archs", "capability", "how"),
    [(["7.5", "8.0", "9.0+PTX"], "7.5", "no JIT"), (["8.0", "9.0+PTX"], "8.6", "no JIT"), (["8.6"], "8.0", None),
     (["8.0", "9.0+PTX"], "12.0", "JIT of the PTX for 9.0"), (["8.0"], "9.0", None), (["9.0a"], "9.0", "no JIT"),
     (["12.0a+PTX"], "12.1", None), (["8.0+PTX"], "7.5", None), ([], "9.0", None)],
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
    monkeypatch.setattr(processes.Runner, "process", lambda *_: (dict(found), None))
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
