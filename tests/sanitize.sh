#!/usr/bin/env bash
# tests/sanitize.sh address,undefined|thread [arguments of pytest]: builds the C++ with these sanitizers into build/ and
# runs the tests of the operators and of the index on it. The first finding ends the run and is its failure.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD python=$PWD/.venv/bin/python
export STAIR_SANITIZE=${1:?expected address,undefined or thread}
shift
export STAIR_TEST_DEVICE=none # what is instrumented runs on the CPU
tree=$root/build/sanitize-${STAIR_SANITIZE%%,*}
STAIR_CUDA=OFF STAIR_BUILD_DIR=$tree/cmake "$python" setup.py -q build --build-base "$tree/setup" --build-lib "$tree/site"

runtime=libasan.so
if [ "$STAIR_SANITIZE" = thread ]; then
  runtime=libtsan.so
  export OMP_NUM_THREADS=4 # chunks of a parallel_for, whatever the number of cores
fi
# g++ before 13.3 misaligns vectors of 512 bits when it looks for uses after return (GCC bug 110027).
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
# torch itself is not instrumented: what it does with its threads is not judged.
export TSAN_OPTIONS=halt_on_error=1:ignore_noninstrumented_modules=1
# Reports go to the real stderr, those of the processes that tests start as well.
export PYTEST_ADDOPTS="--capture=sys -p no:faulthandler"
if [ "$STAIR_SANITIZE" = thread ]; then # its shadow of the memory is memory of the process as well
  PYTEST_ADDOPTS+=" --deselect=tests/test_vocab_topk.py::test_many_threads_do_not_keep_more_candidates_than_the_dense_row"
fi

[[ "$*" == *tests/* ]] || set -- tests/ "$@"
arguments=("${@/#tests\//$root/tests/}")
# No kernels in these, or a build with sanitizers of its own; the first two measure memory, which the sanitizer's would be part of.
no_kernels=(--ignore="$root/tests/test_memory.py" --ignore="$root/tests/test_bench.py" --ignore="$root/tests/test_mutations.py" --ignore="$root/tests/test_cuda_mutations.py" --ignore="$root/tests/test_simt.py" --ignore="$root/tests/test_package.py" --ignore="$root/tests/test_readme.py" --ignore="$root/tests/test_docs.py" --ignore-glob="$root/tests/test_stair_[!l]*")
cd "$tree/site" # its packages come before the checkout's, in the processes that tests start as well
# libstdc++ beside the runtime, which otherwise finds no exceptions to watch in a Python written in C
preload() { "${CXX:-g++}" -print-file-name="$1"; }
LD_PRELOAD="$(preload $runtime) $(preload libstdc++.so.6)" exec "$python" -m pytest "${arguments[@]}" "${no_kernels[@]}"
