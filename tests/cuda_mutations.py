"""Faults that somebody could make in the CUDA C++ kernels, and for each the test that has to catch it."""

from __future__ import annotations

from mutations import Mutation

SELECT, TOPK, LISTS, DOT = (f"csrc/cuda/{name}" for name in ("select.cuh", "topk.cu", "lists.cuh", "sparse_dot.cu"))
SEARCH, POSTINGS, CANDIDATES, BOUNDS, SUM, INLINE, OFFER = (
    f"csrc/cuda/{name}"
    for name in ("search.cu", "postings.cuh", "candidates.cuh", "bounds.cuh", "sum_rows.cuh", "ptx.cuh", "offer.cuh")
)
# what to compile
UNIT = {
    SELECT: "topk.cu",
    TOPK: "topk.cu",
    INLINE: "topk.cu",
    OFFER: "topk.cu",
    LISTS: "sparse_dot.cu",
    DOT: "sparse_dot.cu",
}
UNIT |= {SUM: "rows_backward.cu"} | dict.fromkeys((SEARCH, POSTINGS, CANDIDATES, BOUNDS), "search.cu")
PATHS = "tests/test_topk_gpu.py::test_every_path_once"
MERGED = "tests/test_topk_gpu.py::test_merged_chunks_are_the_best_of_all"
ROWS, LONG = PATHS + "[2-300-5-dtype0]", PATHS + "[3-4100-300-dtype1]"
TIES = MERGED + "[1000-300-64-ties-relu]"
LISTS_OF = "tests/test_sparse_dot.py::test_lists_"
RANGES, SLOTS = LISTS_OF + "of_more_documents_than_a_block_holds", LISTS_OF + "of_more_slots_than_threads"
REPEATED = LISTS_OF + "with_repeated_terms_count_their_sum"
RACE = "tests/test_sparse_dot_gpu.py::test_every_path_once[1-3-260-300]"
VECTORS = "tests/test_cuda_library.py::test_topk_from_its_ptx[2-4099-100-dtype1-lockstep]"
FOUND = "tests/test_search_gpu.py::test_"
WORDS, ALL, MANY, EQUAL, RANGED, TINY, HUGE = (
    FOUND + f"shapes_that_break[{sizes}]"
    for sizes in (
        *("16383-50-3-2-9-10-words", "66-5-1-2-5-100-words", "1500-600-1-1-600-2000-words", "16384-1-1-1-1-100-ties"),
        *("32775-40-2-2-7-100-ties", "900-70-5-3-20-300-tiny", "900-70-5-3-20-10-huge"),
    )
)
LATER, BARELY = FOUND + "later_groups_know_the_best_so_far", FOUND + "a_document_that_is_barely_better_in_a_later_group"

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
    Mutation("topk_tail", OFFER, LONG, "the last vector of a row",
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
    Mutation("rows_without_survivors_unwritten", SUM, "tests/test_vocab_topk_gpu.py::test_every_path_once[long tokens]",
             "gradients that nobody fills with 0",
             "    if (length <= kAlone) {",
             "    if (length > 0 && length <= kAlone) {"),
    Mutation("sums_added_before_they_are_0", SEARCH, WORDS, "bounds of nobody's postings",
             "  clear(sums);\n",
             ""),
    Mutation("best_not_emptied", SEARCH, WORDS, "entries of nobody before the first group",
             "  for (int j = lane; j < k; j += 32) best[j] = kNoEntry;\n",
             ""),
    Mutation("sums_read_before_all_have_added", CANDIDATES, ALL, "bounds without other warps' postings",
             "  __syncthreads();  // and all postings have been added",
             "  __syncwarp();"),
    Mutation("pieces_read_before_they_are_numbered", SEARCH, WORDS, "ends of pieces of nobody",
             "query.ends, query.n);\n  __syncthreads();",
             "query.ends, query.n);"),
    Mutation("cut_of_a_higher_bin", CANDIDATES, FOUND + "bounds_do_not_rank", "a bound that fewer than k reach",
             "*result = (4 * int(threadIdx.x) + bin) << kBinShift;",
             "*result = (4 * int(threadIdx.x) + bin + 6) << kBinShift;"),
    Mutation("bound_rounded_down", BOUNDS, BARELY, "a document whose bound is below its score",
             "(code * factor + 255) >> 8",
             "code * factor >> 8"),
    Mutation("cut_without_slack", CANDIDATES, FOUND + "bounds_do_not_rank", "bounds taken for scores",
             ", plan.slack);",
             ", 0);"),
    Mutation("list_of_postings_cut_short", POSTINGS, ALL, "the last posting of a list of odd end",
             "if (i + 1 < piece.size()) add",
             "if (i + 2 < piece.size()) add"),
    Mutation("list_of_postings_too_early", POSTINGS, ALL, "a list that begins at an odd place",
             "if (i + 1 < piece.size()) add",
             "if (i < piece.size() && i + 1 < piece.size()) add"),
    Mutation("pieces_past_the_first_32_of_a_warp", POSTINGS, MANY, "those that a warp looks up again for",
             "first < pieces; first += 32 * kWarps",
             "first < 32 * kWarps; first += 32 * kWarps"),
    Mutation("range_forgotten", SEARCH, RANGED, "documents of the first range for those of another",
             "const int64_t document = range * kRange + list",
             "const int64_t document = list"),
    Mutation("ties_as_though_in_order", SEARCH, EQUAL, "a lower document that comes late, of the worst kept score",
             "mine > worst && selection.passes(mine)",
             "mine > worst && selection.passes(value_of(mine))"),
    Mutation("products_in_another_order", SEARCH, FOUND + "types_of_the_rows[65536-float32]",
             "other bits than the CPU's",
             "left &= left - 1)\n"
             "      score = __fadd_rn(score, __shfl_sync(kAllLanes, product, __ffs(int(left)) - 1));",
             "left ^= 1u << (31 - __clz(int(left))))\n"
             "      score = __fadd_rn(score, __shfl_sync(kAllLanes, product, 31 - __clz(int(left))));"),
    Mutation("best_so_far_left_out", SEARCH, LATER, "a group's best alone",
             "selection.offer<1>(entry != kNoEntry,",
             "selection.offer<1>(false,"),
    Mutation("dust_forgotten", BOUNDS, TINY,
             "subnormal products, rounded up by more than their share",
             "plan.dust = int(fmin(ceil(2 * terms * kDust * plan.scale), kMost));",
             "plan.dust = 0;"),
    Mutation("infinite_scores_ranked", BOUNDS, HUGE,
             "a document whose score is infinite too, below the bound of another",
             "min(bound - slack - rounding - plan.dust, plan.huge)",
             "bound - slack - rounding - plan.dust"),
    Mutation("repeated_terms_twice", LISTS, REPEATED, "two threads add to one score",
             "if (term < 0 || (p > 0 &&",
             "if (term < 0 || (p < 0 &&"),
)

# What only ThreadSanitizer finds: the sums come out right in every order.
RACES = (
    Mutation("no_barrier_between_lists", DOT, RACE, "two lists may hold the same document",
             "two);\n    }\n    __syncthreads();",
             "two);\n    }"),
    Mutation("terms_read_before_the_warp_has_written", SEARCH, FOUND + "every_path_once[300-70-5-2-40-10-ties]",
             "terms that another lane kept",
             "  __syncwarp();\n",
             ""),
    Mutation("listed_over_sums_that_are_read", CANDIDATES, FOUND + "every_path_once[300-70-5-2-40-10-ties]",
             "a list over what others still count",
             "  __syncthreads();\n  return *total;",
             "  __syncwarp();\n  return *total;"),
)

# What only the compiled kernels show: inline PTX, and offsets that are too long for the memory of a host.
FROM_PTX = (
    Mutation("inline_operands_swapped", INLINE, VECTORS,
             "elements in each other's places",
             '"ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"',
             '"ld.global.nc.L1::no_allocate.v4.u32 {%1, %0, %2, %3}, [%4];"'),
    Mutation("rows_past_2_31", TOPK, "tests/test_cuda_library.py::test_topk_of_rows_past_2_to_the_31", "row * V",
             "offer_row(selection, dense + row * V + begin,",
             "offer_row(selection, dense + int(row * V + begin),"),
    Mutation("scores_past_2_31", DOT, "tests/test_sparse_dot_ptx.py::test_offsets_past_2_to_the_31", "q * N",
             "score += q * N + first;",
             "score += int(q * N + first);"),
    Mutation("postings_past_2_31", POSTINGS, "tests/test_search_ptx.py::test_postings_and_rows_past_2_to_the_31",
             "postings of a large index",
             "int64_t(piece.first) * kAligned;",
             "int(piece.first * kAligned);"),
    Mutation("results_past_2_31", SEARCH, "tests/test_search_ptx.py::test_queries_past_2_to_the_31", "q * k",
             "found += (q * gridDim.y + blockIdx.y) * k;",
             "found += int((q * gridDim.y + blockIdx.y) * k);"),
)
# fmt: on
