"""Checks and times the CUDA kernels on a GPU, in about ten minutes: `make gpu-check`.

    python tests/gpu/check.py [--library _C.so] [--out FOLDER] [--only STAGE ...]
    python tests/gpu/check.py [--stage STAGE] --case NAME      # one case in this process, for a debugger

It takes a torch from 2.10 on that sees a GPU, neither pip nor a network, and compiles the kernels for that GPU first if
there is nvcc; without nvcc, give it what `make gpu-library` makes on another machine. Exit status: 0 the kernels are
right, 1 something is wrong, 2 there is no GPU. `--dry-run` rehearses it on the CPU, on tiny layers.

Stages, in this order:
    smoke        every kernel on small layers, one launch after the other: the reference's bits
    memcheck, racecheck    the same under compute-sanitizer, where it is, side by side
    verdict      every op and type on small layers; then it says whether the kernels are right
    timings      beside predictions.py, the ANN and torch's products; profile: the time of each kernel
    bits, device, compile, nccl    many and large layers, more than 2^31 elements, graphs, streams, two processes
    initcheck, synccheck   the smoke under these tools, side by side
    tests        the repository's, where pytest and hypothesis are

Every stage is a process. If a case ends it, or leaves a GPU that answers no more, that case runs again alone, with
blocking launches, then under memcheck; a new process goes on with the next case. A stage has the time that the later
ones are not owed. One archive holds result.json and all logs, and one line is to be pasted into an issue.
"""

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [str(ROOT / name) for name in ("", "python", "python/experiments", "tests")]
sys.path[:0] = FOLDERS

from build_tools.decide import OLDEST_ARCH, Plan, decide  # noqa: E402
from gpu import report  # noqa: E402
from gpu.processes import Runner, find_tool, joined, output_of  # noqa: E402

# Seconds that every stage is owed: with half a minute for the preflight, ten minutes.
LIMITS = {"smoke": 40, "memcheck": 40, "racecheck": 40, "verdict": 50, "timings": 150, "profile": 30, "bits": 40,
          "device": 40, "compile": 40, "nccl": 20, "initcheck": 20, "synccheck": 20, "tests": 40}  # fmt: skip
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, help="the extension's .so, if not the one in tandem_ext/")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-check", help="folder of all results")
    parser.add_argument("--only", nargs="+", choices=LIMITS, default=tuple(LIMITS), metavar="STAGE")
    parser.add_argument("--dry-run", action="store_true", help="a rehearsal on the CPU; it shows nothing about a GPU")
    parser.add_argument("--seconds", type=float, default=600, help="when it has to end")
    own = [stage for stage in LIMITS if stage not in TOOLS]
    parser.add_argument("--stage", choices=("preflight", *own), help="this stage alone, in this process")
    parser.add_argument("--case", help="this case of --stage (smoke) alone, in this process, with blocking launches")
    parser.add_argument("--after", help="of --stage the cases behind this one")
    parser.add_argument("--result", type=Path, help="what --stage leaves")
    return parser.parse_args(arguments)


def make_plan(archs: str) -> Plan:
    """What this machine would build, with CUDA if it has nvcc, for these architectures."""
    env = os.environ | {"TORCH_CUDA_ARCH_LIST": archs, "TANDEM_CUDA": "auto"}
    return decide(env, shutil.which, output_of)


def code_for(archs: Sequence[str], capability: str) -> str | None:
    """How kernels built for ``archs`` get to run on a card; None: they do not."""
    card, newest = tuple(map(int, capability.split("."))), ""
    for arch in archs:
        number = arch.removesuffix("+PTX")
        own, others = tuple(map(int, number.rstrip("af").split("."))), number[-1].isdigit()  # else for one card alone
        if own == card or (others and own[0] == card[0] and own < card):
            return "no JIT"
        newest = number if arch != number and others and own < card else newest
    return f"JIT of the PTX for {newest}" if newest else None


class Check:
    """The stages one after the other, and what is known of them so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.begin = options, time.monotonic()
        commit = output_of(["git", "-C", str(ROOT), "rev-parse", "HEAD"]).strip()
        driver = output_of(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]).splitlines()
        known = {"commit": commit if len(commit) == 40 else "unknown", "driver": "".join(driver[:1])}
        empty = {"preflight": {}, "checks": {}, "peaks": {}, "rows": [], "clocks": {}, "kernels": []}
        self.result: dict[str, Any] = {"rehearsal": options.dry_run, **known, **empty}
        self.runner = Runner(options, __file__)

    def say(self, text: str) -> None:
        rehearsal = "rehearsal: " * self.options.dry_run
        with self.runner.log("transcript").open("a") as transcript:
            for line in text.splitlines():
                line = f"{self.seconds():6.1f} s  {rehearsal}{line}"
                print(line, flush=True)
                print(line, file=transcript)

    def seconds(self) -> float:
        return time.monotonic() - self.begin

    def write(self) -> None:
        self.result["seconds"] = self.seconds()
        report.write(self.result, self.options.out)

    def preflight(self) -> int:
        """Says on one line what there is, and compiles what is missing. The exit status if nothing can be checked."""
        found = self.look()
        if self.options.dry_run:
            self.say(f"torch {found.get('torch')}, {self.options.library or 'the kernels of the CPU'}")
            return 0
        capability = found.get("capability", "0.0")
        if tuple(map(int, capability.split("."))) < OLDEST_ARCH:
            old = f"{found.get('card')} has compute capability {capability}, and 7.5 is the oldest that has kernels"
            smi = (output_of(["nvidia-smi", "-L"]).strip() or "not there").splitlines()[0]
            self.say(f"no GPU was checked: {found.get('why', old)}. nvidia-smi: {smi}")
            return 2
        if self.options.library is None:
            self.build(found.get("archs") or [], capability)
            found = self.look()
        archs = found.get("archs") or []
        how = code_for(archs, capability)
        if how is None:
            none = f"no kernels for compute capability {capability}, only for {archs or 'CPUs'}: put nvcc on PATH, or "
            none += "give --library what `make gpu-library` makes where there is nvcc"
            self.say(found.get("module") or none)
            return 1
        self.say(
            f"{found['card']} ({capability}), driver {self.result['driver']}, torch {found['torch']} for CUDA "
            f"{found['cuda']}, kernels for {' '.join(archs)}: {how}, commit {self.result['commit'][:8]}"
        )
        for note in found["notes"]:
            self.say(f"note: {note}")
        return 0

    def look(self) -> dict[str, Any]:
        found, wrong = self.runner.process("preflight", 120, "preflight")
        found = found or {"why": f"{sys.executable} says nothing, {wrong}; see {self.runner.log('preflight')}"}
        self.result["preflight"] = found
        return found

    def build(self, archs: list[str], capability: str) -> None:
        """Brings the extension up to date, if there is nvcc; for this card alone, if it is new."""
        plan = make_plan(";".join(archs) if code_for(archs, capability) else capability)
        if plan.toolkit is None:
            return self.say(f"not compiled: {plan.note}")
        self.say(plan.summary())
        env = os.environ | {"TANDEM_CUDA": "1", "TORCH_CUDA_ARCH_LIST": ";".join(plan.archs)}
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        with self.runner.log("build").open("w") as log:
            done = subprocess.run(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode:
            said = Path(log.name).read_text().splitlines()[-1:]
            self.say(f"not compiled: {' '.join(said)} ({log.name})")
        self.begin = time.monotonic()  # ten minutes without the compiler's

    def describe(self) -> None:
        """Leaves what compiled and what runs the kernels, and their registers, in the archive."""
        nvcc = find_tool("nvcc") or "nvcc"
        commands = [[nvcc, "--version"], ["g++", "--version"], ["lscpu"], ["nvidia-smi", "-q", "-d", "CLOCK,POWER"]]
        library, cuobjdump = self.result["preflight"].get("library"), find_tool("cuobjdump")
        if library and cuobjdump:
            commands.append([cuobjdump, "--dump-resource-usage", library])
        said = [f"$ {' '.join(command)}\n{output_of(command) or 'not there'}\n" for command in commands]
        said += [] if cuobjdump else ["no cuobjdump for the registers of each kernel\n"]
        self.runner.log("machine").write_text("\n".join(said))

    def run(self, *stages: str) -> None:
        """A stage, or tools side by side, however they end, in the time that later ones are not owed."""
        later = self.options.only[self.options.only.index(stages[-1]) + 1 :]
        limit = self.options.seconds - self.seconds() - sum(LIMITS[name] for name in later)

        def found(stage: str) -> dict[str, Any]:
            if limit < LIMITS[stage] / 2:
                return {"checks": {stage: {"unfinished": "no time for it"}}}
            return self.runner.sanitize(stage, limit) if stage in TOOLS else self.runner.stage(stage, limit)

        with ThreadPoolExecutor(len(stages)) as pool:
            for stage, of in zip(stages, pool.map(found, stages), strict=True):
                self.result = joined(self.result, of)
                self.report(stage)

    def report(self, stage: str) -> None:
        found = self.result["checks"][stage]
        failures = found.get("failures", {})
        for case, why in list(failures.items())[:20]:
            self.say(f"{stage}: {case} FAILS: {' '.join(why.split())[:600]}")
        if len(failures) > 20:
            self.say(f"{stage}: {len(failures) - 20} more FAIL, see {stage}.log")
        self.say(f"{stage}: {report.state(found)}")
        if stage == "verdict":
            self.say(report.verdict(self.result))
        if stage == "timings":
            self.say(report.table(self.result))
        if stage == "profile":
            self.say(report.kernels(self.result))
        self.write()


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.library is not None:
        os.environ["TANDEM_LIBRARY"] = str(options.library.resolve())
    os.environ["PYTHONPATH"] = os.pathsep.join([*FOLDERS, os.environ.get("PYTHONPATH", "")])
    if options.case is not None:
        options.stage = options.stage or "smoke"
    if options.case is not None or options.stage == "smoke":
        os.environ["CUDA_LAUNCH_BLOCKING"] = "1"  # what fails is then what was called
    if options.stage == "preflight":
        from gpu import preflight

        return preflight.run(options)
    if options.stage is not None:
        from gpu import stages

        return stages.run(options)
    check = Check(options)
    if status := check.preflight():
        return status
    check.describe()
    for _, stages in itertools.groupby(options.only, lambda stage: stage in TOOLS or stage):
        check.run(*stages)
    archive = report.archive(check.result, options.out, check.runner.logs.values())
    check.say(f"paste this into an issue and attach {archive}:")
    check.say(report.line(check.result))
    return 0 if report.right(check.result) else 1


if __name__ == "__main__":
    sys.exit(main())
