"""The Python package on aarch64 Linux: builds a wheel with zig and runs tests with it under qemu-user. Slow: an hour.

    make test-arm-python            # or: python tests/arm.py [pytest's arguments]

On Debian 13 with `apt install qemu-user` and `dpkg --add-architecture arm64 && apt update`, which lets apt download
Python for ARM; nothing of it is installed. ziglang, torch for aarch64 and what the tests import come from PyPI, into
build/arm. The wheel, in dist, needs no glibc newer than 2.28, auditwheel has to say so of its symbols; and torch's own
library.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build/arm"
PYTHON = "3.13"  # Debian 13's
TAG = "manylinux_2_28_aarch64"
DEBIAN = [
    *(f"{name.format(PYTHON)}:arm64" for name in ("python{}-minimal", "libpython{}-minimal", "libpython{}-stdlib")),
    *(
        f"{name}:arm64"
        for name in (f"libpython{PYTHON}-dev", "libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1")
    ),
    *(f"{name}:arm64" for name in ("libffi8", "libbz2-1.0", "liblzma5", "libsqlite3-0", "libssl3t64", "libuuid1")),
    "libzstd1:arm64",
]
PYPI = ["torch==2.10.0", "attrs", "filelock", "fsspec", "hypothesis", "iniconfig", "jinja2", "markupsafe", "mpmath",
        "networkx", "numpy", "packaging", "pluggy", "pybind11", "pygments", "pytest", "pyyaml", "setuptools",
        "sortedcontainers", "sympy", "typing_extensions"]  # fmt: skip
TESTS = [f"tests/test_{name}.py" for name in ("golden", "rounding", "linear_if", "frozen", "int8_weights")]


def run(command: list[str | Path], **environment: str) -> str:
    """Runs a command in the repository; its output, which is shown too. Ends the program where the command fails."""
    print("+", *command, flush=True)
    text = ""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            text += line
    if process.returncode != 0:
        raise SystemExit(process.returncode)
    return text


def emulated(arguments: list[str | Path], *paths: Path, **environment: str) -> str:
    """Runs ARM's Python."""
    root = FOLDER / "root"
    return run(
        ["qemu-aarch64", "-L", root, root / f"usr/bin/python{PYTHON}", *arguments],
        PYTHONPATH=os.pathsep.join(map(str, [*paths, FOLDER / "site"])),
        OMP_NUM_THREADS="1",
        **environment,
    )


def prepare() -> None:
    """ARM's Python and its packages; zig for this machine."""
    debs, root = FOLDER / "debs", FOLDER / "root"
    if not root.exists():
        debs.mkdir(parents=True, exist_ok=True)
        run(["sh", "-c", f"cd {debs} && apt-get download {' '.join(DEBIAN)}"])
        for package in sorted(debs.glob("*.deb")):
            run(["dpkg-deb", "-x", package, root])
        (root / "lib").symlink_to("usr/lib")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--target"]
    if not (FOLDER / "site/torch").exists():
        platforms = [f"--platform={tag}" for tag in (TAG, "manylinux_2_17_aarch64", "manylinux2014_aarch64")]
        for_arm = ["--no-deps", "--only-binary=:all:", *platforms, f"--python-version={PYTHON}"]
        run([*pip, FOLDER / "site", *for_arm, *PYPI])
    if not (FOLDER / "zig").exists():
        run([*pip, FOLDER / "zig", "ziglang"])


def make_wheel() -> Path:
    """The repaired wheel. setup.py runs as on ARM; the compiler it calls is zig, here."""
    zig = FOLDER / "zig/ziglang/zig"
    made, repaired = FOLDER / "wheel", FOLDER / "repaired"
    for folder in (made, repaired):
        shutil.rmtree(folder, ignore_errors=True)
    compiler = {"CXX": f"{zig} c++ -target aarch64-linux-gnu.2.28 -s", "CPPFLAGS": f"-isystem{FOLDER}/root/usr/include"}
    emulated(["setup.py", "-q", "bdist_wheel", "--dist-dir", made], TANDEM_CUDA="0", **compiler)
    audit = [sys.executable, "-m", "auditwheel"]
    exclude = ["--exclude", "libtorch*.so", "--exclude", "libc10*.so"]
    run([*audit, "repair", *exclude, "--plat", TAG, "--wheel-dir", repaired, *made.glob("*.whl")])
    (wheel,) = repaired.glob("*.whl")
    found = json.loads(run([*audit, "show", "--json", wheel]).splitlines()[-1])
    glibc = re.fullmatch(r"manylinux_2_(\d+)_aarch64", found["sym_tag"])
    if glibc is None or int(glibc[1]) > 28 or set(found["external_libs"]) - {"libtorch.so"}:
        raise SystemExit(f"{wheel} is no {TAG} wheel")
    (ROOT / "dist").mkdir(exist_ok=True)
    return Path(shutil.copy(wheel, ROOT / "dist"))


def main() -> None:
    """Prepares, builds and tests."""
    prepare()
    wheel = make_wheel()
    installed = FOLDER / "installed"
    shutil.rmtree(installed, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    emulated(["-c", "from tandem_snn.machine import machine, versions; print(machine(), versions())"], installed)
    options = ["-o", "addopts=", "-o", "pythonpath=", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=emulated"]
    emulated(["-m", "pytest", *options, *(sys.argv[1:] or TESTS)], installed)


if __name__ == "__main__":
    main()
