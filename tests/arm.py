"""The Python package on aarch64 Linux: cross-compiled, and tested under qemu-user, in ten minutes of a quiet machine.

    make test-arm-python            # or: python tests/arm.py [pytest's arguments]

On Debian 13 with `apt install g++-aarch64-linux-gnu qemu-user` and `dpkg --add-architecture arm64 && apt update`, with
which apt downloads Python for ARM; nothing of it is installed. torch for aarch64 and what the tests import come from
PyPI. All of it lies in build/arm.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build/arm"
PYTHON = "3.13"  # Debian 13's
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
        "networkx", "numpy", "packaging", "pluggy", "pybind11", "pygments", "pytest", "pyyaml", "safetensors",
        "setuptools", "sortedcontainers", "sympy", "typing_extensions"]  # fmt: skip
TESTS = [f"tests/test_{name}.py" for name in ("golden", "rounding", "linear_if", "frozen", "int8_weights")]


def run(command: list[str | Path], **environment: str) -> None:
    """Runs a command in the repository, and ends the program where it fails."""
    print("+", *command, flush=True)
    if (code := subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}).returncode) != 0:
        raise SystemExit(code)


def emulated(arguments: list[str | Path], *paths: Path, **environment: str) -> None:
    """Runs ARM's Python."""
    root = FOLDER / "root"
    run(
        ["qemu-aarch64", "-L", root, root / f"usr/bin/python{PYTHON}", *arguments],
        PYTHONPATH=os.pathsep.join(map(str, [*paths, FOLDER / "site"])),
        OMP_NUM_THREADS="1",
        **environment,
    )


def prepare() -> None:
    """ARM's Python and its packages."""
    debs, root = FOLDER / "debs", FOLDER / "root"
    if not root.exists():
        debs.mkdir(parents=True, exist_ok=True)
        run(["sh", "-c", f"cd {debs} && apt-get download {' '.join(DEBIAN)}"])
        for package in sorted(debs.glob("*.deb")):
            run(["dpkg-deb", "-x", package, root])
        (root / "lib").symlink_to("usr/lib")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--target"]
    if not (FOLDER / "site/torch").exists():
        platforms = [f"--platform={tag}_aarch64" for tag in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
        for_arm = ["--no-deps", "--only-binary=:all:", *platforms, f"--python-version={PYTHON}"]
        run([*pip, FOLDER / "site", *for_arm, *PYPI])


def make_wheel() -> Path:
    """The wheel, for this Debian. setup.py runs as on ARM; the compiler that it calls is one of this machine."""
    made = FOLDER / "wheel"
    shutil.rmtree(made, ignore_errors=True)
    compiler = {"CXX": "aarch64-linux-gnu-g++", "CPPFLAGS": f"-idirafter{FOLDER}/root/usr/include"}
    emulated(["setup.py", "-q", "bdist_wheel", "--dist-dir", made], TANDEM_CUDA="0", **compiler)
    (wheel,) = made.glob("*.whl")
    return wheel


def main() -> None:
    """Prepares, builds and tests."""
    prepare()
    wheel = make_wheel()
    installed = FOLDER / "installed"
    shutil.rmtree(installed, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    # -P: not the sources beside it.
    emulated(["-P", "-c", "from tandem_snn.machine import machine, versions; print(machine(), versions())"], installed)
    options = ["-o", "addopts=", "-o", "pythonpath=", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=emulated"]
    emulated(["-P", "-m", "pytest", *options, *(sys.argv[1:] or TESTS)], installed)


if __name__ == "__main__":
    main()
