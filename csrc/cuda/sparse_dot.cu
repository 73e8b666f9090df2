// sparse_dot and its gradient, over inverted lists: for each term the documents that hold it, one list for each range
// of kRange documents. A block owns a query and a range. Scores: those of the range lie in shared memory, the lists of
// the query's terms are added to them one after the other. Gradient: the range's upstream gradients lie there, and each
// term's list gathers from them. Whatever V is, no vocabulary row is ever dense.
//
// Sums have one order, without atomics: a score adds the query's slots in their order, whatever else is in the batch; a
// gradient adds the documents range by range, lane by lane, the same whatever other queries there are.
//
// Why this and not a query's terms dense in shared memory with all documents gathering from them: that looks at all
// Q N K entries, this at the Q N S that match, S terms that a query and a document share. Q = N = 16,384, K = 64, V =
// 30,522, terms as frequent as words (bench/work_sparse.py's, S = 4), an H100 (132 multiprocessors at 1.755 GHz, L2
// 5.5 TB/s, memory 3.35 TB/s). Predicted, by bench/sparse_dot_gpu.py; nothing here has been timed:
//
//   dense query   64 x Q N entries of 8 bytes from L2, 137 GB: 25 ms; their gathers, 3.5 turns of the banks for 32
//                 lanes at random: 8.2 ms. Eight queries a block, their terms found through a bitmap: an eighth of
//                 the bytes, more turns for each.
//   lists         4 x Q N postings of 8 bytes from L2, and what the scores start with, 9.7 GB: 1.8 ms; a load and a
//                 store of a score for each, 3.5 turns again: 1.1 ms; the scores themselves, 1.1 GB to memory: 0.3 ms
//
// The bound is L2; what is left out is the making of the lists, a sort of N K entries, which few queries do not pay
// for. Postings are used once by a block, and go from L2 to registers 16 bytes a thread: nothing would be
// read twice from a copy in shared memory that cp.async could make.
#include <array>
#include <cmath>

#include "cuda/launch.cuh"

namespace stair {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlocksEach = 6;  // on a multiprocessor: 40 registers a thread, 19 KiB of shared memory a block
constexpr int kRange = 4096;    // documents; more make longer lists, fewer let more blocks share a multiprocessor
constexpr uint32_t kNoRow = ~0u;
constexpr uint32_t kAllLanes = ~0u;

struct alignas(8) Posting {
  uint32_t row;  // the document, counted from the first of its range
  float value;
};

struct Pair {
  Posting first, second;
};

struct Lists {
  const Posting* postings;  // by term, then document; one more than there are, for pairs
  const int32_t* starts;    // [V * ranges + 1]: where the list of term * ranges + range begins
  int64_t ranges, V;
};

struct Span {
  int begin, end;
};

__device__ __forceinline__ bool is_finite(float x) { return x - x == 0.0f; }

// -1 is no term; nor is one past V, which nobody can raise an error for.
__device__ __forceinline__ Span span_of(const Lists& lists, int32_t term, int64_t range) {
  if (uint32_t(term) >= lists.V) return {0, 0};
  const int32_t* start = lists.starts + term * lists.ranges + range;
  return {start[0], start[1]};
}

// The postings `at` and at + 1 of a list; kNoRow past its ends. The upper half of a warp has them the other way round:
// in a list without gaps the lanes then go to 32 different banks.
__device__ __forceinline__ Pair load_pair(const Posting* postings, int at, Span span) {
  Pair pair = {{kNoRow, 0.0f}, {kNoRow, 0.0f}};
  if (at >= span.end) return pair;
  const uint4 bits = __ldg(reinterpret_cast<const uint4*>(postings + at));
  if (at >= span.begin) pair.first = {bits.x, __uint_as_float(bits.y)};
  if (at + 1 < span.end) pair.second = {bits.z, __uint_as_float(bits.w)};
  return threadIdx.x & 16 ? Pair{pair.second, pair.first} : pair;
}

// The first pair of 16 bytes of a list that is thread `i`'s.
__device__ __forceinline__ int pair_of(Span span, int i) { return (span.begin & ~1) + 2 * i; }

__device__ __forceinline__ void add_scores(float* sum, float weight, const Pair& pair) {
  if (pair.first.row != kNoRow) sum[pair.first.row] += weight * pair.first.value;
  if (pair.second.row != kNoRow) sum[pair.second.row] += weight * pair.second.value;
}

// Adds lists one after the other, since two may hold the same document. The next one is on its way meanwhile.
__device__ void add_lists(float* sum, const Posting* postings, const Span* spans, const float* weights, int slots) {
  Pair next = load_pair(postings, pair_of(spans[0], threadIdx.x), spans[0]);
  for (int j = 0; j < slots; ++j) {
    const Pair pair = next;
    const Span span = spans[j];
    if (j + 1 < slots) next = load_pair(postings, pair_of(spans[j + 1], threadIdx.x), spans[j + 1]);
    if (span.begin == span.end) continue;
    add_scores(sum, weights[j], pair);
    for (int at = pair_of(span, kThreads + threadIdx.x); at < span.end; at += 2 * kThreads)
      add_scores(sum, weights[j], load_pair(postings, at, span));
    __syncthreads();
  }
}

// Block (q, range) of a grid [Q, ranges]. `start` [N] is 0, or NaN where the document's score is to be that.
__global__ void __launch_bounds__(kThreads, kBlocksEach)
    score_rows(const float* values, const int32_t* indices, int64_t K, Lists lists, const float* start, int64_t N,
               float* score) {
  STAIR_SHARED(sum, float[kRange]);
  STAIR_SHARED(spans, Span[kThreads]);
  STAIR_SHARED(weights, float[kThreads]);
  const int64_t q = blockIdx.x, range = blockIdx.y, first = range * kRange;
  const int rows = int(min(N - first, int64_t(kRange)));
  values += q * K, indices += q * K, start += first, score += q * N + first;
  for (int i = threadIdx.x; i < rows; i += kThreads) sum[i] = start[i];
  bool finite = true;
  for (int64_t slot = 0; slot < K; slot += kThreads) {
    const int slots = int(min(K - slot, int64_t(kThreads)));
    if (int(threadIdx.x) < slots) {
      const float weight = values[slot + threadIdx.x];
      finite = finite && is_finite(weight);
      weights[threadIdx.x] = weight;
      spans[threadIdx.x] = span_of(lists, indices[slot + threadIdx.x], range);
    }
    __syncthreads();
    add_lists(sum, lists.postings, spans, weights, slots);
    __syncthreads();
  }
  finite = __syncthreads_and(finite);
  for (int i = threadIdx.x; i < rows; i += kThreads) score[i] = finite ? sum[i] : NAN;
}

__device__ __forceinline__ float gathered(const float* grad, const Pair& pair) {
  float sum = 0.0f;
  if (pair.first.row != kNoRow) sum += grad[pair.first.row] * pair.first.value;
  if (pair.second.row != kNoRow) sum += grad[pair.second.row] * pair.second.value;
  return sum;
}

// A warp's sum over a list, in every lane: two loads in flight.
__device__ __forceinline__ float sum_of_list(const float* grad, const Posting* postings, Span span) {
  float sum = 0.0f;
  for (int at = pair_of(span, threadIdx.x % 32); at < span.end; at += 128) {
    const Pair pair = load_pair(postings, at, span), further = load_pair(postings, at + 64, span);
    sum += gathered(grad, pair);
    sum += gathered(grad, further);
  }
#pragma unroll
  for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  return sum;
}

// A block a query: grad_a [Q, K] of the gradient [Q, N] of the scores.
__global__ void __launch_bounds__(kThreads, kBlocksEach)
    grad_rows(const float* grad, int64_t N, const int32_t* indices, int64_t K, Lists lists, float* grad_a) {
  STAIR_SHARED(of_range, float[kRange]);
  STAIR_SHARED(spans, Span[kThreads]);
  STAIR_SHARED(sums, float[kThreads]);
  const int64_t q = blockIdx.x;
  grad += q * N, indices += q * K, grad_a += q * K;
  for (int64_t slot = 0; slot < K; slot += kThreads) {
    const int slots = int(min(K - slot, int64_t(kThreads)));
    sums[threadIdx.x] = 0.0f;
    for (int64_t range = 0; range < lists.ranges; ++range) {
      const int rows = int(min(N - range * kRange, int64_t(kRange)));
      __syncthreads();
      for (int i = threadIdx.x; i < rows; i += kThreads) of_range[i] = grad[range * kRange + i];
      if (int(threadIdx.x) < slots) spans[threadIdx.x] = span_of(lists, indices[slot + threadIdx.x], range);
      __syncthreads();
      for (int j = threadIdx.x / 32; j < slots; j += kWarps) {
        const float sum = sum_of_list(of_range, lists.postings, spans[j]);
        if (threadIdx.x % 32 == 0) sums[j] += sum;
      }
    }
    __syncthreads();
    if (int(threadIdx.x) < slots) grad_a[slot + threadIdx.x] = sums[threadIdx.x];
    __syncthreads();
  }
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

// A thread an entry of b [N, M]. A document that repeats a term, as none should, has one posting with the sum: two
// threads would add to one score at a time.
__global__ void make_postings(const int32_t* terms, const int64_t* order, const float* values, int64_t entries,
                              int64_t M, Posting* postings) {
  const int64_t p = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (p >= entries) return;
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

// start [N]: NaN for a row of b [N, M] with a value that is not finite, otherwise 0. A warp a row.
__global__ void start_scores(const float* values, int64_t N, int64_t M, float* start) {
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= N) return;
  bool finite = true;
  for (int64_t j = threadIdx.x % 32; j < M; j += 32) finite = finite && is_finite(values[row * M + j]);
  finite = __all_sync(kAllLanes, finite);
  if (threadIdx.x % 32 == 0) start[row] = finite ? 0.0f : NAN;
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
  constexpr int64_t kMost = INT32_MAX - 4 * kThreads;  // a thread may look that much further
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
      device.launch(&make_postings, dim3(blocks_of(entries, kThreads)), kThreads, 0, term, place,
                    values.const_data_ptr<float>(), entries, M, static_cast<Posting*>(postings.mutable_data_ptr()));
  }

  Lists lists(int64_t V) const {
    return {static_cast<const Posting*>(postings.const_data_ptr()), starts.const_data_ptr<int32_t>(), ranges, V};
  }

  int64_t N, M, ranges;
  Tensor postings, starts;
};

Tensor sparse_dot(const Tensor& a_values, const Tensor& a_indices, const Tensor& b_values, const Tensor& b_indices,
                  int64_t V) {
  check_slots(b_values);
  const OnDevice device(a_values);
  const Tensor av = as_float(a_values), bv = as_float(b_values);
  const Tensor ai = torch::stable::contiguous(a_indices), bi = torch::stable::contiguous(b_indices);
  const int64_t Q = av.size(0), N = bv.size(0), M = bv.size(1);
  Tensor scores = torch::stable::new_empty(av, {Q, N}, ScalarType::Float);
  if (Q == 0 || N == 0) return scores;
  const Inverted inverted(device, bv, bi, V);
  Tensor start = torch::stable::new_empty(bv, {N}, ScalarType::Float);
  device.launch(&start_scores, dim3(blocks_of(N, kWarps)), kThreads, 0, bv.const_data_ptr<float>(), N, M,
                start.mutable_data_ptr<float>());
  device.launch(&score_rows, dim3(Q, inverted.ranges), kThreads, 0, av.const_data_ptr<float>(),
                ai.const_data_ptr<int32_t>(), av.size(1), inverted.lists(V), start.const_data_ptr<float>(), N,
                scores.mutable_data_ptr<float>());
  return scores;
}

Tensor sparse_dot_backward(const Tensor& grad_score, const Tensor& a_indices, const Tensor& b_values,
                           const Tensor& b_indices, int64_t V) {
  check_slots(b_values);
  const OnDevice device(b_values);
  const Tensor gs = as_float(grad_score), bv = as_float(b_values);
  const Tensor ai = torch::stable::contiguous(a_indices), bi = torch::stable::contiguous(b_indices);
  const int64_t Q = ai.size(0), K = ai.size(1);
  Tensor grads = torch::stable::new_empty(bv, {Q, K}, ScalarType::Float);
  if (Q == 0 || K == 0) return grads;
  const Inverted inverted(device, bv, bi, V);
  device.launch(&grad_rows, dim3(Q), kThreads, 0, gs.const_data_ptr<float>(), inverted.N, ai.const_data_ptr<int32_t>(),
                K, inverted.lists(V), grads.mutable_data_ptr<float>());
  return grads;
}

}  // namespace
}  // namespace stair

STABLE_TORCH_LIBRARY_IMPL(stair, STAIR_GPU, m) {
  m.impl("sparse_dot", TORCH_BOX(&stair::sparse_dot));
  m.impl("sparse_dot_backward", TORCH_BOX(&stair::sparse_dot_backward));
}
