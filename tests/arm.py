"""The Python package on aarch64 Linux: cross-compiled, and tested under qemu-user, in ten minutes of a quiet machine.

    make test-arm-python            # or: python tests/arm.py [pytest's arguments]

On Debian 13 with `apt install g++-aarch64-linux-gnu qemu-user`. Python for ARM and the libraries of Debian 11, against
which the extension is built, are downloaded by apt; nothing of it is installed. torch for aarch64 and what the tests
import come from PyPI. All of it lies in build/arm.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build/arm"
OLD = FOLDER / "bullseye"
PYTHON = "3.13"  # Debian 13's
DEBIAN = [f"python{PYTHON}-minimal", *(f"libpython{PYTHON}-{part}" for part in ("minimal", "stdlib", "dev")),
          "libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libffi8", "libbz2-1.0", "liblzma5",
          "libsqlite3-0", "libssl3t64", "libuuid1", "libzstd1"]  # fmt: skip
DEBIAN_11 = ["libc6", "libc6-dev", "libstdc++6", "libstdc++-10-dev", "linux-libc-dev"]
PYPI = ["torch==2.10.0", "attrs", "filelock", "fsspec", "hypothesis", "iniconfig", "jinja2", "markupsafe", "mpmath",
        "networkx", "numpy", "packaging", "pluggy", "pybind11", "pygments", "pytest", "pyyaml", "safetensors",
        "setuptools", "sortedcontainers", "sympy", "typing_extensions"]  # fmt: skip
TESTS = [f"tests/test_{name}.py" for name in ("reference", "functional", "frozen")]


def run(command: list[str | Path], **environment: str) -> None:
    """Runs a command in the repository, and ends the program where it fails."""
    print("+", *command, flush=True)
    if (code := subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}).returncode) != 0:
        raise SystemExit(code)


def emulated(arguments: list[str | Path], *paths: Path, **environment: str) -> None:
    root, path = FOLDER / "root", os.pathsep.join(map(str, [*paths, FOLDER / "site"]))
    python = ["qemu-aarch64", "-L", root, root / f"usr/bin/python{PYTHON}"]
    run([*python, *arguments], PYTHONPATH=path, OMP_NUM_THREADS="1", **environment)


def unpack(release: str, packages: list[str], root: Path) -> None:
    """Packages of a release of Debian for ARM, in a folder. apt has lists of its own for that."""
    apt, key = FOLDER / "apt" / release, "/usr/share/keyrings/debian-archive-keyring.pgp"
    for folder in ("lists/partial", "cache/archives/partial", "debs"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "sources").write_text(f"deb [arch=arm64 signed-by={key}] http://deb.debian.org/debian {release} main\n")
    places = {"Etc::SourceList": "sources", "Etc::SourceParts": "-", "State::Lists": "lists", "Cache": "cache"}
    get = ["apt-get", "-q", *(f"-oDir::{name}={apt / place}" for name, place in places.items())]
    run([*get, "update"])
    run(["sh", "-c", f"cd {apt}/debs && {' '.join(get)} download {' '.join(f'{name}:arm64' for name in packages)}"])
    for package in sorted(apt.glob("debs/*.deb")):
        run(["dpkg-deb", "-x", package, root])
    for link in root.rglob("*"):  # to a file of the whole system
        if link.is_symlink() and link.readlink().is_absolute():
            target = root / link.readlink().relative_to("/")
            link.unlink()
            link.symlink_to(target)


def prepare() -> None:
    """ARM's Python and its packages; the libraries of Debian 11."""
    root = FOLDER / "root"
    if not root.exists():
        unpack("trixie", DEBIAN, root)
        (root / "lib").symlink_to("usr/lib")
    if not OLD.exists():
        unpack("bullseye", DEBIAN_11, OLD)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--target"]
    if not (FOLDER / "site/torch").exists():
        platforms = [f"--platform={tag}_aarch64" for tag in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
        for_arm = ["--no-deps", "--only-binary=:all:", *platforms, f"--python-version={PYTHON}"]
        run([*pip, FOLDER / "site", *for_arm, *PYPI])


def compiler() -> str:
    """This machine's, with the headers and libraries of Debian 11 alone: a wheel for glibc 2.27, torch's needs 2.28."""
    gcc = ["aarch64-linux-gnu-g++", "-print-file-name=include"]
    own = subprocess.run(gcc, capture_output=True, text=True, check=True).stdout.strip()
    usr, target = OLD / "usr", "aarch64-linux-gnu"
    cpp = [usr / "include/c++/10", usr / f"include/{target}/c++/10"]
    headers = [*cpp, own, usr / f"include/{target}", usr / "include"]
    libraries = [usr / f"lib/{target}", OLD / f"lib/{target}", usr / f"lib/gcc/{target}/10"]
    places = [*(f"-isystem {path}" for path in headers), *(f"-L{path}" for path in libraries)]
    return f"{target}-g++ --sysroot={OLD} -nostdinc {' '.join(places)}"


def make_wheel() -> Path:
    """The manylinux wheel, in build/arm/dist. setup.py runs as on ARM; the compiler that it calls is this machine's."""
    made, repaired = FOLDER / "wheel", FOLDER / "dist"
    for folder in (made, repaired):
        shutil.rmtree(folder, ignore_errors=True)
    flags = {"CXX": compiler(), "CPPFLAGS": f"-idirafter{FOLDER}/root/usr/include"}
    emulated(["setup.py", "-q", "bdist_wheel", "--dist-dir", made], TANDEM_CUDA="0", **flags)
    (wheel,) = made.glob("*.whl")
    audit = [sys.executable, "-m", "auditwheel"]
    torch = ["--exclude", "libtorch*.so", "--exclude", "libc10*.so"]
    run([*audit, "repair", *torch, "--wheel-dir", repaired, wheel])
    (wheel,) = repaired.glob("*.whl")
    run([*audit, "show", wheel])
    return wheel


def main() -> None:
    prepare()
    wheel = make_wheel()
    installed = FOLDER / "installed"
    shutil.rmtree(installed, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    # -P: not the sources beside it.
    emulated(["-P", "-c", "from tandem_snn.info import machine, versions; print(machine(), versions())"], installed)
    options = ["-o", "addopts=", "-o", "pythonpath=", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=emulated"]
    emulated(["-P", "-m", "pytest", *options, *(sys.argv[1:] or TESTS)], installed)


if __name__ == "__main__":
    main()
