// Fixed-width rows turned into inverted lists: for each term the documents that hold it, one list for each range of
// kRange documents. PyTorch sorts the terms; a list is where binary search finds its first entry, and its documents
// ascend, so that nothing depends on the order in which threads run.
#pragma once
#include <array>

#include "cuda/launch.cuh"

namespace stair {
namespace {

constexpr int kThreads = 128;  // a pair of postings each: half a list of common words
constexpr int kRange = 4096;   // documents; more make longer lists, fewer let more blocks share a multiprocessor
constexpr uint32_t kNoRow = ~0u;

struct alignas(8) Posting {
  uint32_t row;  // the document, counted from the first of its range
  float value;
};

struct Lists {
  const Posting* postings;  // by term, then document; one more than there are, for pairs
  const int32_t* starts;    // [V * ranges + 1]: where the list of term * ranges + range begins
  int64_t ranges, V;
};

struct Span {
  int begin, end;
};

// -1 is no term; nor is one past V, which nobody can raise an error for.
__device__ __forceinline__ Span span_of(const Lists& lists, int32_t term, int64_t range) {
  if (uint32_t(term) >= lists.V) return {0, 0};
  const int32_t* start = lists.starts + term * lists.ranges + range;
  return {start[0], start[1]};
}

// starts[key]: how many of the entries, which ascend by (term, entry), come before list `key`. A thread a list.
__global__ void find_lists(const int32_t* terms, const int64_t* order, int64_t entries, int64_t M, int64_t ranges,
                           int64_t lists, int32_t* starts) {
  const int64_t key = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (key > lists) return;
  const int64_t term = key / ranges, first = key % ranges * kRange * M;
  int64_t begin = 0, end = entries;
  while (begin < end) {
    const int64_t middle = (begin + end) / 2;
    if (terms[middle] < term || (terms[middle] == term && order[middle] < first))
      begin = middle + 1;
    else
      end = middle;
  }
  starts[key] = int32_t(begin);
}

// A thread an entry of b [N, M], and one for the pair of the last. A document that repeats a term, as none should, has
// one posting with the sum: two threads would add to one score at a time.
__global__ void make_postings(const int32_t* terms, const int64_t* order, const float* values, int64_t entries,
                              int64_t M, Posting* postings) {
  const int64_t p = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (p > entries) return;
  if (p == entries) {  // the pair of the last
    postings[p] = {kNoRow, 0.0f};
    return;
  }
  const int64_t row = order[p] / M;
  const int32_t term = terms[p];
  if (term < 0 || (p > 0 && terms[p - 1] == term && order[p - 1] >= row * M)) {
    postings[p] = {kNoRow, 0.0f};
    return;
  }
  float sum = values[order[p]];
  for (int64_t next = p + 1; next < entries && terms[next] == term && order[next] < (row + 1) * M; ++next)
    sum += values[order[next]];
  postings[p] = {uint32_t(row % kRange), sum};
}

int64_t blocks_of(int64_t count, int64_t each) { return (count + each - 1) / each; }

// PyTorch's, since the stable headers have none: the sorted elements and their places before.
std::array<Tensor, 2> stable_sort(const Tensor& flat) {
  using torch::stable::detail::from, torch::stable::detail::to;
  std::array<StableIValue, 4> stack{from(flat), from(std::optional<bool>(true)), from(int64_t(0)), from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

void check_slots(const Tensor& rows) {
  const int64_t N = rows.size(0), M = rows.size(1);
  constexpr int64_t kMost = INT32_MAX - 8 * kThreads;  // a thread may look that much further
  STAIR_CHECK(N * M <= kMost && blocks_of(N, kRange) <= 65535, "sparse_dot: expected at most ", kMost, " slots and ",
              int64_t(65535) * kRange, " rows on a GPU, got [", N, ", ", M, "]");
}

// The lists of b [N, M], and the memory that they are in.
struct Inverted {
  Inverted(const OnDevice& device, const Tensor& values, const Tensor& indices, int64_t V)
      : N(values.size(0)), M(values.size(1)), ranges(blocks_of(N, kRange)) {
    const int64_t entries = N * M, lists = V * ranges;
    const auto [terms, order] = stable_sort(torch::stable::flatten(indices));
    postings = torch::stable::new_empty(values, {entries + 1}, ScalarType::Long);
    starts = torch::stable::new_empty(values, {lists + 1}, ScalarType::Int);
    const auto* term = terms.const_data_ptr<int32_t>();
    const auto* place = order.const_data_ptr<int64_t>();
    device.launch(&find_lists, dim3(blocks_of(lists + 1, kThreads)), kThreads, 0, term, place, entries, M,
                  std::max<int64_t>(ranges, 1), lists, starts.mutable_data_ptr<int32_t>());
    if (entries > 0)
      device.launch(&make_postings, dim3(blocks_of(entries + 1, kThreads)), kThreads, 0, term, place,
                    values.const_data_ptr<float>(), entries, M, static_cast<Posting*>(postings.mutable_data_ptr()));
  }

  Lists lists(int64_t V) const {
    return {static_cast<const Posting*>(postings.const_data_ptr()), starts.const_data_ptr<int32_t>(), ranges, V};
  }

  int64_t N, M, ranges;
  Tensor postings, starts;
};

}  // namespace
}  // namespace stair
