"""The build: what decide() decides, what stands in the compiled module, and that what was installed can be imported."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import child
import pytest
import torch

import tandem_ext as te
from build_tools import backend, compile
from build_tools.compile import write_commit
from build_tools.decide import Plan, compiler_flags, decide, default_jobs, linker_flags
from build_tools.toolkit import Toolkit
from tandem_ext._load import _old_driver
from tandem_snn import info

ROOT = Path(__file__).resolve().parents[2]
TOOLKIT_FILES = ("bin/nvcc", "include/cuda_runtime.h", "include/nv/target", "lib64/libcudart_static.a")
CPU, CUDA = "tandem_ext: CPU kernels only", "tandem_ext: CPU kernels + CUDA kernels for {} (nvcc 13.0)"
SOME, CUDA = CUDA.format("sm_80, sm_90+PTX"), CUDA.format("sm_75, sm_80, sm_90, sm_100, sm_120+PTX")
NEEDED = "they need compute capability 7.5 or newer"
OLD_DRIVER = (
    "the driver supports CUDA 12.6, and pip has no whole toolkit before 13.0: update the driver to 580 or newer, or "
    "install NVIDIA's toolkit of CUDA 12 and set CUDA_HOME"
)
NO_NVCC = "no nvcc on PATH or in /usr/local/cuda, CUDA_HOME not set"
PIP = tuple(f"nvidia-{name}==13.0.*" for name in ("cuda-nvcc", "cuda-runtime", "nvvm", "cuda-crt", "cuda-cccl"))


class Machine:
    """A machine with the given files and driver. The nvcc on its PATH says that its toolkit is at ``top``."""

    def __init__(self, *files, nvcc=None, top="", release="13.0", driver=0):
        self.files, self.nvcc, self.top, self.release, self.driver = set(files), nvcc, top, release, driver

    @classmethod
    def with_toolkit(cls, root, nvcc=None, without="", **other):
        files = (f"{root}/{name}" for name in TOOLKIT_FILES if name != without)
        return cls(*files, nvcc=nvcc or f"{root}/bin/nvcc", top=f"{root}/bin/..", **other)

    @classmethod
    def off_path(cls, root):
        return cls(*(f"{root}/{name}" for name in TOOLKIT_FILES))

    def run(self, command):
        if "--dryrun" in command:
            return f"#$ _HERE_={self.top}\n#$ TOP={self.top}\n#$ NVVMIR_LIBRARY_DIR=x\n" if self.top else ""
        return f"Cuda compilation tools, release {self.release}, V13.0.88" if command[0] in self.files else ""

    def decide(self, **env):
        is_file = lambda path: str(path) in self.files  # noqa: E731
        return decide(env, lambda _: self.nvcc, self.run, is_file, lambda: self.driver)


TOOLKIT, NOWHERE = Machine.with_toolkit("/opt/cuda"), {"CUDA_HOME": "/nowhere"}
BARE = Machine("/usr/bin/nvcc", nvcc="/usr/bin/nvcc", top="/usr/bin/..")


@pytest.mark.parametrize(("machine", "env", "summary"), [
    (Machine(), {}, f"{CPU} ({NO_NVCC})"),
    (Machine(driver=13000), {}, f"{CPU} ({NO_NVCC}; pip brings one: pip install {shlex.join(PIP)})"),
    (Machine(driver=12060), {}, f"{CPU} ({NO_NVCC}; {OLD_DRIVER})"),
    (Machine.off_path("/usr/local/cuda"), {}, CUDA),
    (Machine.off_path(f"{sys.path[-1]}/nvidia/cu13"), {}, CUDA),
    (Machine.with_toolkit("/opt", without="include/nv/target"), {},
     f"{CPU} (the toolkit of /opt/bin/nvcc has no nv/target, which CCCL brings)"),
    (Machine.with_toolkit("/opt", release="11.5"), {},
     f"{CPU} (the toolkit of /opt/bin/nvcc is of CUDA 11.5, and the kernels need 11.8 or newer)"),
    (Machine.with_toolkit("/opt", release="12.6"), {},
     "tandem_ext: CPU kernels + CUDA kernels for sm_75, sm_80, sm_90+PTX (nvcc 12.6)"),
    (Machine(), NOWHERE, f"{CPU} (CUDA_HOME=/nowhere has no bin/nvcc)"),
    (BARE, {}, f"{CPU} (the toolkit of /usr/bin/nvcc has no cuda_runtime.h)"),
    (TOOLKIT, {}, CUDA),
    (TOOLKIT, {"TANDEM_CUDA": "0"}, f"{CPU} (TANDEM_CUDA=0)"),
    (TOOLKIT, NOWHERE, f"{CUDA} (CUDA_HOME=/nowhere has no bin/nvcc)"),
    (TOOLKIT, NOWHERE | {"TANDEM_CUDA": "1"}, f"{CUDA} (CUDA_HOME=/nowhere has no bin/nvcc)"),
    (TOOLKIT, {"TORCH_CUDA_ARCH_LIST": "6.1;7.0+PTX;8.0 9.0+PTX"}, f"{SOME} (no kernels for 6.1, 7.0+PTX: {NEEDED})"),
    (TOOLKIT, {"TORCH_CUDA_ARCH_LIST": "Volta;8.0;Hopper"}, f"{SOME} (no kernels for 7.0+PTX: {NEEDED})"),
    (TOOLKIT, {"TORCH_CUDA_ARCH_LIST": "7.0"}, f"{CPU} (no kernels for 7.0: {NEEDED})"),
])  # fmt: skip
def test_what_is_built_and_why(machine, env, summary):
    assert machine.decide(**env).summary() == summary


@pytest.mark.parametrize(("nvcc", "home"), [
    ("/opt/cuda/bin/nvcc", None), ("/usr/local/bin/nvcc", None), ("/opt/cuda/bin/nvcc", "/mine"),
], ids=["itself", "a wrapper elsewhere", "CUDA_HOME comes first"])  # fmt: skip
def test_the_toolkit_of_an_nvcc(nvcc, home):
    machine, root = Machine.with_toolkit("/opt/cuda", nvcc=nvcc), Path(home or "/opt/cuda")
    machine.files |= {f"/mine/{name}" for name in TOOLKIT_FILES}
    toolkit = machine.decide(**({"CUDA_HOME": home} if home else {})).toolkit
    assert toolkit is not None
    found = toolkit.nvcc, toolkit.include, toolkit.cudart
    assert found == (root / "bin/nvcc", root / "include", root / "lib64/libcudart_static.a")


@pytest.mark.parametrize(("machine", "env", "error", "message"), [
    (Machine(), {"TANDEM_CUDA": "1"}, RuntimeError,
     "TANDEM_CUDA=1.*no nvcc on PATH.*pip install 'nvidia-cuda-nvcc==13.0.*set CUDA_HOME.*TANDEM_CUDA=0"),
    (Machine(driver=12060), {"TANDEM_CUDA": "1"}, RuntimeError, "TANDEM_CUDA=1.*driver supports CUDA 12.6, and"),
    (Machine(), {"TANDEM_CUDA": "yes"}, ValueError, "TANDEM_CUDA=yes: allowed are 0, 1 and auto"),
    (TOOLKIT, {"TANDEM_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "7.0"}, RuntimeError, f"ARCH_LIST=7.0: .*{NEEDED}"),
    *((TOOLKIT, {"TORCH_CUDA_ARCH_LIST": archs}, ValueError, "TORCH_CUDA_ARCH_LIST")
      for archs in ("Fermi", "90", "9.0+ptx", "8.0;;x")),
])  # fmt: skip
def test_what_cannot_be_built_is_an_error(machine, env, error, message):
    with pytest.raises(error, match=message):
        machine.decide(**env)


def test_what_cannot_be_built_is_one_line(monkeypatch):
    """As without isolation, where pip does not ask the backend what it needs."""
    monkeypatch.setattr("build_tools.decide.find_toolkit", lambda *_: (None, [NO_NVCC]))
    with pytest.raises(SystemExit, match=r"^tandem_ext: TANDEM_CUDA=1, but .* pip install 'nvidia-cuda-nvcc==13\.0"):
        compile.make_plan({"TANDEM_CUDA": "1"})


def test_linker_and_architectures_are_what_the_platform_and_the_list_say():
    linux = linker_flags("linux", Path("/torch"), Path("/cuda/libcudart_static.a"))
    assert "-Wl,--exclude-libs,ALL" in linux
    assert linux[-4:] == ["/cuda/libcudart_static.a", "-ldl", "-lrt", "-lpthread"]
    portable = linker_flags("linux", Path("/torch"), None)  # no static library
    assert portable == ["-shared", "-L/torch", "-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed"]
    mac = linker_flags("darwin", Path("/torch"), None)
    assert mac == ["-bundle", "-undefined", "dynamic_lookup", "-L/torch", "-ltorch"]
    assert compiler_flags("darwin", {"ARCHFLAGS": "-arch arm64"}) == ["-arch", "arm64"]
    assert compiler_flags("linux", {"ARCHFLAGS": "-arch arm64"}) == []
    assert TOOLKIT.decide(TORCH_CUDA_ARCH_LIST="").archs == ("7.5", "8.0", "9.0", "10.0", "12.0+PTX")
    plan = TOOLKIT.decide(TORCH_CUDA_ARCH_LIST="8.6 9.0a;12.0+PTX")
    assert plan.archs == ("8.6", "9.0a", "12.0+PTX")
    codes = ("86,code=sm_86", "90a,code=sm_90a", "120,code=sm_120", "120,code=compute_120")
    assert plan.gencode() == [f"-gencode=arch=compute_{code}" for code in codes]


def test_a_platform_without_proc_affinity_and_torch_can_build(monkeypatch, tmp_path):
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.delattr(compile.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(compile.os, "cpu_count", lambda: 3)
    monkeypatch.setattr(compile, "free_memory", lambda: 64 << 30)
    assert compile.jobs() == 3
    monkeypatch.undo()
    assert compile.free_memory(tmp_path / "meminfo") == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    for cores, gigabytes, jobs in (8, 64, 8), (8, 6, 3), (8, 1, 1), (1, 64, 1):
        assert default_jobs(cores, gigabytes << 30) == jobs
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    7 kB\n")
    assert compile.free_memory(tmp_path / "meminfo") == 7 * 1024


@pytest.mark.parametrize(("cuda", "toolkit", "driver", "asked"), [
    ("", False, 13000, PIP), ("auto", False, 14010, PIP), ("1", False, 0, PIP),
    ("", False, 0, ()), ("0", False, 13000, ()), ("1", False, 12080, ()), ("1", True, 13000, ()),
])  # fmt: skip
def test_what_pip_is_asked_for_to_build_with(cuda, toolkit, driver, asked, monkeypatch, capsys):
    monkeypatch.setenv("TANDEM_CUDA", cuda)
    monkeypatch.setattr(compile, "find_toolkit", lambda *_: (TOOLKIT.decide().toolkit if toolkit else None, []))
    monkeypatch.setattr(compile, "driver_version", lambda: driver)
    assert backend.get_requires_for_build_wheel() == [*asked]
    says = "tandem_ext: no CUDA toolkit here, so pip brings that of CUDA 13.0 (100 MB); TANDEM_CUDA=0 declines\n"
    assert capsys.readouterr().out == says * bool(asked)
    assert backend.get_requires_for_build_sdist() == []


def test_an_isolated_build_uses_the_torch_outside_of_it(monkeypatch, tmp_path):
    monkeypatch.setenv("TANDEM_CUDA", "0")
    monkeypatch.setattr(compile.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(compile.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(compile.site, "getusersitepackages", lambda: str(tmp_path / "user"))
    assert backend.get_requires_for_build_editable() == ["torch>=2.10"]
    with pytest.raises(SystemExit, match=r"needs torch in this Python: pip install 'torch>=2\.10'"):
        compile.find_torch()
    (tmp_path / "torch-2.12.0.dist-info").mkdir()
    metadata = tmp_path / "torch-2.12.0.dist-info/METADATA"
    metadata.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.12.0+cu126\n")
    assert backend.get_requires_for_build_wheel() == []
    assert compile.find_torch() == tmp_path / "torch"
    metadata.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.9.1\n")
    assert backend.get_requires_for_build_wheel() == ["torch>=2.10"]
    with pytest.raises(SystemExit, match=r"torch 2\.9\.1 is too old to build with"):
        compile.find_torch()


def programs(monkeypatch, folder, **says):
    """A PATH of programs that say this; an underscore in a name is a hyphen."""
    for name, text in says.items():
        program = folder / name.replace("_", "-").replace("gcc", "g++")
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    for name in ("CXX", "NVCC_CCBIN"):
        monkeypatch.delenv(name, raising=False)


def gcc(version):
    return f"echo '#define __GNUC__ {version}'"


def test_a_compiler_that_is_new_enough_is_found(monkeypatch, tmp_path):
    programs(monkeypatch, tmp_path, gcc=gcc(11))
    for cxx, name in ("", r"g\+\+"), (f"{tmp_path}/g++ -m64", r"/\S+/g\+\+ -m64"):
        monkeypatch.setenv("CXX", cxx)
        with pytest.raises(
            SystemExit, match=rf"^tandem_ext: {name} is GCC 11, and .*GCC 12 or clang 14: install g\+\+-12"
        ):
            compile.find_compiler()
    monkeypatch.delenv("CXX")
    programs(monkeypatch, tmp_path, clang="", gcc_12=gcc(12), gcc_13=gcc(13))
    assert compile.find_compiler() == ["g++-13"]
    programs(monkeypatch, tmp_path, gcc=f"{gcc(4)}; echo '#define __clang_major__ 15'")  # Apple's
    assert compile.find_compiler() == ["g++"]


def test_nvcc_gets_a_compiler_that_it_accepts(monkeypatch, tmp_path):
    refuses = r'case "$*" in *=g++\ *|*=g++-14\ *) echo "error: -- unsupported GNU version! later than 12";; esac'
    programs(monkeypatch, tmp_path, nvcc=refuses, gcc=gcc(13), gcc_14=gcc(14))
    toolkit = Toolkit(tmp_path / "nvcc", tmp_path, tmp_path, "12.0")
    with pytest.raises(
        SystemExit, match=r"^tandem_ext: nvcc 12.0 refuses g\+\+ as too new: .*g\+\+-12.* in NVCC_CCBIN$"
    ):
        compile.nvcc_flags(Plan(toolkit))
    programs(monkeypatch, tmp_path, gcc_12=gcc(12))
    assert "-ccbin=g++-12" in compile.nvcc_flags(Plan(toolkit))
    monkeypatch.setenv("NVCC_CCBIN", "mine")
    assert not any(flag.startswith("-ccbin") for flag in compile.nvcc_flags(Plan(toolkit)))


def libraries(folder, **sources):
    """An environment in which these shared libraries are found."""
    for name, source in sources.items():
        file = folder / f"lib{name.replace('_', '-')}.so.1"
        subprocess.run(["g++", "-shared", "-fPIC", "-x", "c", "-", "-o", file], input=source, text=True, check=True)
    return {"LD_LIBRARY_PATH": str(folder)}


def test_the_driver_says_what_it_supports(tmp_path):
    program = "from build_tools.toolkit import driver_version; print(driver_version())"
    found = libraries(tmp_path, cuda="int cuDriverGetVersion(int *v) { *v = 13010; return 0; }")
    assert child.run("-c", program, **found) == "13010\n"


NVML = """
int nvmlInit_v2() { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **device) { return 0; }
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) { *major = 8, *minor = 6; return 0; }
"""
SEES_A_GPU = "import torch; torch.version.cuda, torch.cuda.device_count = '13.0', lambda: 1\n"


@pytest.mark.parametrize(("archs", "says"), [
    (None, "torch sees a GPU; this tandem_ext has no kernels for it, .*: `TANDEM_CUDA=1 pip install .` builds them"),
    (["9.0", "12.0+PTX"], "the GPU has compute capability 8.6, .* has kernels for 9.0, 12.0.PTX, and its"),
    (["8.6a"], None), (["9.0", "8.0"], None), (["7.5+PTX"], None), (["7.5"], "for 7.5, and"), (["8.0a"], "for 8.0a,"),
])  # fmt: skip
def test_a_gpu_without_kernels_is_said_at_the_import(archs, says, tmp_path):
    program = f"{SEES_A_GPU}from tandem_ext import _load; print(_load._no_kernels({archs}))"
    found = child.run("-W", "ignore", "-c", program, **libraries(tmp_path, nvidia_ml=NVML))
    assert re.search(says or "^None$", found), found
    if archs == te.build_info()["cuda_archs"]:
        code = f"{SEES_A_GPU}import warnings, sys; sys.stderr = sys.stdout; import tandem_ext, tandem_snn"
        for kernels, count in ("1", 1), ("0", 0):
            assert child.run("-c", code, TANDEM_KERNELS=kernels).count("torch sees a GPU; this") == count


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["arm64", "x86_64"])
def test_clang_reads_every_source_as_for_macos(arch):
    """With libc++, headers of another C library and the few of Apple's in tests/apple. Nothing is compiled, or runs."""
    libcxx = Path("/usr/lib/llvm-19/include/c++/v1")
    libc = Path(f"/usr/{'aarch64' if arch == 'arm64' else 'x86_64'}-linux-gnu/include")
    libc = libc if libc.exists() else Path("/usr/include")
    if shutil.which("clang++-19") is None or not libcxx.exists() or (arch == "arm64" and libc == Path("/usr/include")):
        pytest.skip("needs Debian's clang-19, libc++-19-dev and, for arm64, g++-aarch64-linux-gnu")
    system = [ROOT / "tests/apple", libcxx, libc, Path("/usr/include/x86_64-linux-gnu")][: 3 if arch == "arm64" else 4]
    flags = ["-fsyntax-only", "-Wall", "-Wno-unused-private-field", "-Werror", "-U__nonnull", "-D_GNU_SOURCE"]
    flags += ["-nostdinc++", f"--target={arch}-apple-macos14", *(f"-isystem{folder}" for folder in system)]
    rules, _ = compile.commands(Plan())
    for group, paths in compile.read_sources().items():
        for path in paths if group in rules else ():
            ours = [word for word in rules[group] if word.startswith(("-std", "-I", "-D", "-is"))]
            done = subprocess.run(["clang++-19", *flags, *ours, path], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


def test_both_builds_have_every_file_and_the_same_rules_of_rounding():
    listed = [path for group in compile.read_sources().values() for path in group]
    found = {str(path.relative_to(ROOT)) for suffix in ("cpp", "cu") for path in ROOT.glob(f"csrc/**/*.{suffix}")}
    assert len(listed) == len(set(listed))
    assert set(listed) == found
    cmake = (ROOT / "CMakeLists.txt").read_text()
    assert "-fmad=false" in cmake
    assert len(compile.NUMERICS) == 3
    assert not re.search("fast-math|march=native", cmake + (ROOT / "build_tools/compile.py").read_text())


@pytest.mark.slow
def test_both_builds_make_kernels_for_the_same_cards(tmp_path, monkeypatch):
    for name in ("TORCH_CUDA_ARCH_LIST", "CUDAARCHS", "CUDA_HOME", "CUDA_PATH", "CUDACXX"):
        monkeypatch.delenv(name, raising=False)
    plan = compile.make_plan({**os.environ, "TANDEM_CUDA": "auto"})
    if plan.toolkit is None or shutil.which("cmake") is None:
        pytest.skip("needs a CUDA toolkit and CMake")
    subprocess.run(["cmake", "-S", ROOT, "-B", tmp_path, "-GNinja", "-DTANDEM_CUDA=1", "-DTANDEM_TESTS=0"], check=True)
    commands = (tmp_path / "compile_commands.json").read_text()
    found = {re.sub(r"[\[\]]", "", code) for code in re.findall(r"generate-code=([\w=,\[\]]+)", commands)}
    assert found == {flag.removeprefix("-gencode=") for flag in plan.gencode()}


@pytest.mark.parametrize(("cxx", "expected"), [
    ("", ["-ccbin=g++"]), ("clang++ -m64", ["-ccbin=clang++"]), ("/opt/bin/ccache g++", ["-ccbin=g++"]),
])  # fmt: skip
def test_nvcc_is_told_the_host_compiler(cxx, expected, monkeypatch):
    monkeypatch.setenv("CXX", cxx)
    monkeypatch.delenv("NVCC_CCBIN", raising=False)
    flags = compile.nvcc_flags(Machine.with_toolkit("/opt/cuda").decide())
    assert [flag for flag in flags if flag.startswith("-ccbin")] == expected


def test_source_archive_has_every_file(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path, "sdist", "--dist-dir", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    assert not {name for name in listed if not name.startswith(".")} - packed


def test_one_library_serves_every_python(tmp_path):
    """It has the ops and what was built, and needs libtorch, but nothing of Python and no library of CUDA."""
    if not (ROOT / compile.build_folder() / "_C.so").exists():
        pytest.skip("the extension was built elsewhere")
    library = tmp_path / "tandem_ops.so"
    assert child.run("-m", "build_tools", library).splitlines()[-1] == str(library)
    text = subprocess.run(["readelf", "-dW", "--dyn-syms", library], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", text)
    assert "libtorch.so" in needed  # the weak symbol that gives the CUDA stream is looked up there
    assert not [name for name in needed if "cuda" in name or "python" in name or name.startswith("libc10")]
    assert not re.findall(r"UND _?Py\w+", text)
    program = (
        "import sys, torch, tandem_ext as te; assert 'tandem_ext._C' not in sys.modules;"
        "print({**te.build_info()}, te.planes.pack(torch.ones(2, 1, 1)).item())"
    )
    told = te.build_info() | {"library": str(library)}
    assert child.run("-c", program, TANDEM_LIBRARY=str(library)) == f"{told} 3\n"


def test_build_info():
    info = te.build_info()
    package = dict(re.findall(r'^(version|license) = "(.+?)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    assert info["version"] == te.__version__ == package["version"]
    cited = dict(re.findall(r"^(version|license): (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    assert cited == package
    assert info["torch_target"] == "2.10"
    assert info["cuda_archs"] is None or all(re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch) for arch in info["cuda_archs"])
    assert info["cpu_capability"] in ("default", "v3", "v4")
    assert info["byte_products"] in ("none", "avx2", "avx-vnni", "avx512-vnni", "amx")
    assert re.search(r"\d+\.\d+", info["compiler"])
    info["version"] = "changed"  # a copy
    assert te.build_info()["version"] == te.__version__


def test_source_folder_without_the_module_says_how_to_build(tmp_path):
    shutil.copytree(ROOT / "tandem_ext", tmp_path / "tandem_ext", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    # An editable installation would serve the missing module from the repository.
    code = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in f.__module__]; import tandem_ext"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert re.search(r"ImportError: .*source folder, build it first: `pip install \.`", done.stderr, re.DOTALL)


def test_info_has_what_a_bug_report_needs(monkeypatch):
    shown = child.run("-m", "tandem_snn", TANDEM_DATA="/some/folder")
    rows = dict(re.findall(r"^(\S+) +(\S.*)$", shown, re.MULTILINE))
    assert {*te.build_info()} < {*rows}
    assert rows["folder"] == str(Path(te.__file__).parent)
    assert rows["torch"].startswith(torch.__version__)
    assert rows["TANDEM_DATA"] == "/some/folder"
    assert {"commit", "cpu", "cores", "memory", "system", "Python", "GPU", "numpy"} <= {*rows}
    monkeypatch.setitem(sys.modules, "numpy", None)  # neither it nor an extra is needed
    assert rows["folder"] in info.info()


def test_an_installed_package_knows_its_commit(tmp_path, monkeypatch):
    """The build writes it beside the compiled part; a tree that the package merely lies in is not its own."""
    write_commit(tmp_path)
    written = (tmp_path / "commit.txt").read_text().strip() if (tmp_path / "commit.txt").exists() else None
    if written is None:
        pytest.skip("the sources are in no git tree")
    assert re.fullmatch(r"[0-9a-f]{40}\+?", written)
    assert info.commit() == written  # here, of the tree
    (tmp_path / "commit.txt").write_text("0123+\n")
    monkeypatch.setattr(te, "__file__", str(tmp_path / "__init__.py"))
    assert info.commit() == "0123+"
    (tmp_path / "commit.txt").unlink()
    monkeypatch.setattr(info, "__file__", str(ROOT / "tests" / "untracked.py"))
    assert info.commit() is None


@pytest.mark.parametrize(("toolkit", "driver", "says"), [
    (13000, 12060, "CUDA 13.0 .* supports CUDA 12.6, "), (13000, 13000, None), (13010, 13000, None), (13000, 0, None),
    (12080, 13000, None),
])  # fmt: skip
def test_an_old_driver(toolkit, driver, says):
    """A driver runs what any toolkit of its major version has made."""
    note = _old_driver(toolkit, driver)
    assert (note is None) == (says is None)
    assert note is None or re.search(str(says), note)


def test_an_import_brings_nothing_that_only_some_need():
    """Optional packages, and Dynamo, which costs most of a second, are imported where they are used."""
    rare = {
        "aedat", "matplotlib", "nir", "onnx", "onnxruntime", "rich", "safetensors", "sklearn", "tensorboard", "tonic",
        "torch._dynamo", "torch._inductor", "torchvision", "typer", "yaml",
    }  # fmt: skip
    found = child.run("-c", "import sys, tandem_ext, tandem_snn, tandem_snn.nn; print(*sys.modules)").split()
    assert "tandem_snn" in found
    assert not rare & set(found)
