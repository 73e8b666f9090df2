"""Faults that somebody could make in the CUDA C++ kernels, and for each the test that has to catch it."""

from __future__ import annotations

from mutations import Mutation

SELECT, TOPK, LISTS, DOT = (f"csrc/cuda/{name}" for name in ("select.cuh", "topk.cu", "lists.cuh", "sparse_dot.cu"))
UNIT = {SELECT: "topk.cu", TOPK: "topk.cu", LISTS: "sparse_dot.cu", DOT: "sparse_dot.cu"}  # what to compile
PATHS = "tests/test_topk_gpu.py::test_every_path_once"
MERGED = "tests/test_topk_gpu.py::test_merged_chunks_are_the_best_of_all"
ROWS, LONG = PATHS + "[2-300-5-dtype0]", PATHS + "[3-4100-300-dtype1]"
TIES = MERGED + "[1000-300-64-ties-relu]"
LISTS_OF = "tests/test_sparse_dot.py::test_lists_"
RANGES, SLOTS = LISTS_OF + "of_more_documents_than_a_block_holds", LISTS_OF + "of_more_slots_than_threads"
REPEATED = LISTS_OF + "with_repeated_terms_count_their_sum"
RACE = "tests/test_sparse_dot_gpu.py::test_every_path_once[1-3-260-300]"

# fmt: off
MUTATIONS = (
    Mutation("sort_without_syncwarp", SELECT, ROWS, "lanes of a warp read what others have yet to write",
             "        __syncwarp();",
             "        void(0);"),
    Mutation("bins_not_zeroed", SELECT, LONG, "counts of the digit before, or of nobody",
             "    shared_.bins[threadIdx.x] = 0;\n",
             ""),
    Mutation("tie_to_the_higher_index", TOPK, TIES, "a new entry ahead of an old one of its value",
             "if (list[middle] > entry)",
             "if (list[middle] >> 32 > entry >> 32)"),
    Mutation("topk_tail", TOPK, LONG, "the last vector of a row",
             "at + i < end ?",
             "at + i < end - 1 ?"),
    Mutation("empty_slots_unwritten", TOPK, PATHS + "[1-9001-64-dtype2]", "found, but not NaN where none are",
             "for (int64_t j = threadIdx.x; j < width; j += kThreads) {",
             "for (int64_t j = threadIdx.x; j + 1 < width; j += kThreads) {"),
    Mutation("list_tail", DOT, RANGES, "a list of an odd end",
             "if (at + 1 < span.end) pair.second",
             "if (at + 2 < span.end) pair.second"),
    Mutation("long_list_cut", DOT, RANGES, "what one load of the block does not reach",
             "at += 4 * kThreads",
             "at += 8 * kThreads"),
    Mutation("scores_start_unwritten", DOT, RANGES, "the last document of a range",
             "for (int i = threadIdx.x; i < rows; i += kThreads) sum[i] = start[i];",
             "for (int i = threadIdx.x; i < rows - 1; i += kThreads) sum[i] = start[i];"),
    Mutation("second_range_forgotten", DOT, RANGES, "its gradients added to the wrong documents",
             "of_range[i] = grad[range * kRange + i];",
             "of_range[i] = grad[i];"),
    Mutation("gradient_sums_not_zeroed", DOT, SLOTS, "those of the slots before, or of nobody",
             "    sums[threadIdx.x] = 0.0f;\n",
             ""),
    Mutation("bounds_without_a_barrier", DOT, SLOTS, "lists of other threads' slots, not written yet",
             "    __syncthreads();\n    add_lists",
             "    add_lists"),
    Mutation("range_of_documents_off_by_one", LISTS, RANGES, "the first of a range counted to the one before",
             "order[middle] < first",
             "order[middle] <= first"),
    Mutation("repeated_terms_twice", LISTS, REPEATED, "two threads add to one score",
             "if (term < 0 || (p > 0 &&",
             "if (term < 0 || (p < 0 &&"),
)

# What only ThreadSanitizer finds: the sums come out right in every order.
RACES = (
    Mutation("no_barrier_between_lists", DOT, RACE, "two lists may hold the same document",
             "two);\n    }\n    __syncthreads();",
             "two);\n    }"),
)
# fmt: on
