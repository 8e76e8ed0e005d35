# `make train` and `make test` set up what they need in .venv, once, and then run. Everything else is for developers.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CLIENTS := $(VENV)/.clients
export PATH := $(abspath $(BIN)):$(PATH)

help:
	@echo "make train     train an SNN and its ANN twin on handwritten digits, compare them, write runs/digits"
	@echo "make test      the tests, Python and C++, in minutes"
	@echo "make test-clients  tests of notebooks, third-party tools and long lists of models"
	@echo "make test-composite  the tests of ops, layers, conversion and torch's tools without kernels, by torch's operators"
	@echo "make test-all  also the slow tests, the sanitizers and the CUDA kernels with warnings as errors"
	@echo "make ext       compile the extension into tandem_ext/, only what changed"
	@echo "make bench     time ops by pytest-benchmark and a few samples of every case, in minutes"
	@echo "make performance  measure all cases, two hours on an idle machine, and write docs/performance.md"
	@echo "make mutants   200 changes of the Python, C++ and CUDA code, and which of them no test notices; hours"
	@echo "make fuzz      hostile calls of every op, then of the kernels by libFuzzer, each for MINUTES (60)"
	@echo "make coverage  coverage of lines and branches, Python and C++, in build/coverage"
	@echo "make results   docs/results.md, paper.md, performance.md, measuring.md, tables, pictures, from the measurements in docs/results"
	@echo "make gpu-check check and time the CUDA kernels on this machine's GPU, in ten minutes, by PYTHON with its own torch"
	@echo "make gpu-library   the file that gpu-check takes on a GPU machine without nvcc"
	@echo "make test-arm  the C++ tests for aarch64 Linux, cross-compiled and under qemu; needs g++-aarch64-linux-gnu, qemu-user"
	@echo "make lint      ruff, mypy, clang-format"
	@echo "make docs      the documentation as a site: build/site/index.html"
	@echo "make wheel     a manylinux wheel in dist/"
	@echo "make clean     remove everything that was built, but not $(VENV)"

train: $(READY) ext
	python python/experiments/train.py

# As many workers as cores, up to four, each with one thread. A file's tests share fixtures, so they stay together.
test: $(READY) ext
	OMP_NUM_THREADS=1 python -m pytest -n $(or $(WORKERS),auto) --maxprocesses 4 --dist loadfile
	$(call ctest,cpu)

# Notebooks, third-party tools and long lists of models: what they need is installed first.
test-clients: $(CLIENTS) ext
	OMP_NUM_THREADS=1 python -m pytest -n $(or $(WORKERS),auto) --maxprocesses 4 --dist loadfile -m clients

test-composite: $(READY) ext
	TANDEM_KERNELS=0 OMP_NUM_THREADS=1 python -m pytest -q -n $(or $(WORKERS),auto) --maxprocesses 4 --dist loadfile \
	    tests/ops tests/layers tests/convert tests/torch

test-all: $(READY) ext
	python -m pytest -m ""
	$(call ctest,cpu)
	$(call ctest,asan)
	$(call ctest,ubsan)
	$(call ctest,tsan)
	if command -v nvcc; then cmake --preset cuda-compile-only && cmake --build --preset cuda-compile-only; fi

test-arm:
	$(call ctest,arm)

# Python's own build, without the rest of the installation: seconds after a change of one file.
ext:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) setup.py -q build_ext --inplace

bench: $(READY) ext
	$(quiet) python -m pytest -o addopts= --benchmark-only --benchmark-timer=time.process_time \
	    --benchmark-group-by=func --benchmark-columns=min,median,iqr,rounds --benchmark-disable-gc tests/benchmarks/bench_*.py
	$(BENCH) --quick

BENCH = python tests/benchmarks/bench.py

performance: $(READY) ext
	$(BENCH) --threads 1 --out docs/results/bench-1.json
	$(BENCH) --threads 2 --out docs/results/bench-2.json
	$(BENCH) --capability v3 --cases $(PORTABLE) --out docs/results/bench-v3.json
	$(MAKE) results

PORTABLE = mlp-infer-128-rate mlp-infer-1-rate mlp-train-T8-rate 'linear-1*' 'conv-*-rate-10'

# The C++ kernels by libFuzzer, under AddressSanitizer and UndefinedBehaviorSanitizer. What it finds worth keeping stays in
# build/cmake-fuzz/corpus for the next time. A case that fails is left here as crash-*; the program that found it runs it again
# when given its name. 77: the processor lacks this level of instructions.
FUZZ = build/cmake-fuzz
FUZZERS = fuzz_if_scan fuzz_layer fuzz_network fuzz_normalised_layer fuzz_planes
MINUTES ?= 60

fuzz: $(READY) ext
	end=$$(( $$(date +%s) + 60 * $(MINUTES) )); \
	while python -m pytest -q -x --hypothesis-profile=random tests/ops/test_attack.py tests/ops/test_functional.py; do \
	    [ $$(date +%s) -lt $$end ] || exit 0; done; exit 1
	cmake --preset fuzz && cmake --build --preset fuzz
	for level in default v3 v4; do for target in $(FUZZERS); do \
	    mkdir -p $(FUZZ)/corpus/$$target; \
	    TANDEM_CPU_CAPABILITY=$$level $(FUZZ)/tests/cpp/$$target $(FUZZ)/corpus/$$target -max_total_time=$$(( 1 + 4 * $(MINUTES) )) \
	        -max_len=128 -len_control=0 -timeout=60 -print_final_stats=1 -verbosity=0 || [ $$? = 77 ] || exit 1; \
	done; done

# Python's by coverage.py, that of the kernels' C++ tests by gcov.
coverage: $(READY) ext
	python -m pytest -q --cov --cov-report=html:build/coverage
	$(call ctest,coverage)
	gcovr --root . --filter csrc --html-details build/coverage/cpp.html build/cmake-coverage

mutants: $(READY) ext
	python tests/project/mutate.py

results: $(READY) ext
	python docs/pages/results.py
	python docs/pages/claims.py
	python docs/pages/performance.py
	python docs/pages/names.py

# No environment is made: what runs is the torch that PYTHON has.
gpu-check:
	$(PYTHON) tests/gpu/check.py

gpu-library: $(READY)
	TANDEM_CUDA=1 python -m build_tools

lint: $(READY)
	ruff check
	ruff format --check
	mypy
	clang-format --dry-run -Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' '*.inl')

docs: $(READY) results
	python -m mkdocs build --strict

ifeq ($(shell uname),Darwin)
repair = python -m delocate.cmd.delocate_wheel --exclude libtorch --exclude libc10 --wheel-dir dist build/wheel/*.whl
else
repair = python -m auditwheel repair --strip --exclude 'libtorch*.so' --exclude 'libc10*.so' --wheel-dir dist build/wheel/*.whl
endif

# torch's libraries are torch's own; the tag says the oldest glibc that has what this machine's compiler used.
wheel: $(READY)
	rm -rf build/lib* build/bdist* build/wheel
	python -m pip wheel -q --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(repair)

clean:
	rm -rf build dist *.egg-info tandem_ext/*.so

$(READY): pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'tandem_ext needs Python 3.10 or newer')"
	@echo "Setting up $(VENV); the first time this downloads torch."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q "setuptools>=77" ninja "pybind11>=2.13" "torch>=2.10"
	@$(BIN)/python -m pip install -q --no-build-isolation -e ".[all,test,lint,docs,coverage]"
	@touch $@

$(CLIENTS): $(READY)
	@$(BIN)/python -m pip install -q --no-build-isolation -e ".[clients]"
	@touch $@

# One thread, and an allocator that keeps its memory: page faults would drown what is measured.
quiet = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1099511627776

ctest = cmake --preset $(1) && cmake --build --preset $(1) && ctest --preset $(1)

.PHONY: help train test test-clients test-composite test-all test-arm ext bench performance fuzz coverage mutants results gpu-check gpu-library lint docs wheel clean
