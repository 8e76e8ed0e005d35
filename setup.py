"""Build of the extension module tandem_ext._C; pyproject.toml has everything else about the package.

build_tools/decide.py decides what to build and lists the environment variables; build_tools/compile.py builds it.

Macros that csrc/ops and csrc/bindings.cpp see:
    TANDEM_VERSION        version of the package, a string
    TORCH_TARGET_VERSION  the stable ABI's target, 0x020a000000000000 for torch 2.10
    TANDEM_WITH_CUDA      defined if the module has the CUDA kernels
    TANDEM_CUDA_ARCHS     their compute capabilities, a string such as "8.0 9.0+PTX"; only with TANDEM_WITH_CUDA
"""

from setuptools import Extension, setup

from build_tools.compile import NinjaBuildExt, read_sources

setup(
    ext_modules=[Extension("tandem_ext._C", [path for group in read_sources().values() for path in group])],
    cmdclass={"build_ext": NinjaBuildExt},
)
