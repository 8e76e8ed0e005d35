"""Build of the extension module tandem_ext._C; pyproject.toml has everything else about the package.

build_tools/decide.py decides what to build and lists the environment variables; build_tools/compile.py builds it.

Macros that csrc/ops sees:
    TANDEM_VERSION        version of the package, a string
    TORCH_TARGET_VERSION  the stable ABI's target, 0x020a000000000000 for torch 2.10
    TANDEM_WITH_CUDA      defined if the module has the CUDA kernels
    TANDEM_CUDA_ARCHS     their compute capabilities, a string such as "8.0 9.0+PTX"; only with TANDEM_WITH_CUDA
"""

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

from build_tools.compile import GROUPS, ROOT, build, build_folder, make_plan, read_sources, write_commit


class NinjaBuildExt(build_ext):
    """build_ext that builds the whole module with ninja."""

    def build_extension(self, ext: Extension) -> None:
        module = build_folder() / "_C.so"
        build(make_plan(), GROUPS, module)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(ROOT / module), str(target))
        if not self.inplace:
            write_commit(target.parent)


setup(
    ext_modules=[Extension("tandem_ext._C", [path for group in read_sources().values() for path in group])],
    cmdclass={"build_ext": NinjaBuildExt},
)
