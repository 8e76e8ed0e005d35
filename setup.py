"""Build of the extension module tandem_ext._C; everything else about the package stands in pyproject.toml.

What is built, and the environment variables that steer it: build_tools/decide.py. How: build_tools/compile.py.

Macros that csrc/ops and csrc/bindings.cpp see:
    TANDEM_VERSION        version of the package, a string
    TORCH_TARGET_VERSION  the stable ABI's target, 0x020a000000000000 for torch 2.10
    TANDEM_WITH_CUDA      defined where the CUDA kernels are in the module
    TANDEM_CUDA_ARCHS     their compute capabilities, a string such as "8.0 9.0+PTX"; only with TANDEM_WITH_CUDA
"""

from setuptools import Extension, setup

from build_tools.compile import NinjaBuildExt, read_sources

setup(
    ext_modules=[Extension("tandem_ext._C", [path for group in read_sources().values() for path in group])],
    cmdclass={"build_ext": NinjaBuildExt},
)
