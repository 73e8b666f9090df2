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
// 5.5 TB/s, memory 3.35 TB/s). Predicted, the lists' by bench/predict_cuda.py; nothing here has been timed:
//
//   dense query   64 x Q N entries of 8 bytes from L2, 137 GB: 25 ms; their gathers, 3.5 turns of the banks for 32
//                 lanes at random: 8.1 ms. Eight queries a block, their terms found through a bitmap: an eighth of
//                 the bytes, more turns for each.
//   lists         4 x Q N postings of 8 bytes from L2, and what the scores start with, 9.7 GB: 1.8 ms; a load and a
//                 store of a score for each, 3.5 turns again, and the lists' bounds: 1.3 ms; instructions, one a
//                 clock and scheduler: 2.2 ms; the scores themselves, 1.1 GB to memory: 0.3 ms
//
// The bounds are L2 and the instructions; what is left out is the making of the lists, a sort of N K entries, which few
// queries do not pay for. Postings are used once by a block, and go from L2 to registers 16 bytes a thread: nothing
// would be read twice from a copy in shared memory that cp.async could make.
#include <cmath>

#include "cuda/launch.cuh"
#include "cuda/lists.cuh"
#include "cuda/warp.cuh"

namespace stair {
namespace {

constexpr int kWarps = kThreads / 32;
constexpr int kBlocksEach = 12;  // on a multiprocessor: 40 registers a thread, 17.5 KiB of shared memory a block
constexpr uint32_t kAllLanes = ~0u;

struct Pair {
  Posting first, second;
};

__device__ __forceinline__ bool is_finite(float x) { return x - x == 0.0f; }

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
  Span next_span = spans[0];
  Pair next = load_pair(postings, pair_of(next_span, threadIdx.x), next_span);
  for (int j = 0; j < slots; ++j) {
    const Span span = next_span;
    const Pair pair = next;
    if (j + 1 < slots) {
      next_span = spans[j + 1];
      next = load_pair(postings, pair_of(next_span, threadIdx.x), next_span);
    }
    if (span.begin == span.end) continue;
    const float weight = weights[j];
    add_scores(sum, weight, pair);
    for (int at = pair_of(span, kThreads + threadIdx.x); at < span.end; at += 4 * kThreads) {
      const Pair one = load_pair(postings, at, span), two = load_pair(postings, at + 2 * kThreads, span);
      add_scores(sum, weight, one);
      add_scores(sum, weight, two);
    }
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
  return sum_of_warp(sum);
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

// start [N]: NaN for a row of b [N, M] with a value that is not finite, otherwise 0. A warp a row.
__global__ void start_scores(const float* values, int64_t N, int64_t M, float* start) {
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= N) return;
  bool finite = true;
  for (int64_t j = threadIdx.x % 32; j < M; j += 32) finite = finite && is_finite(values[row * M + j]);
  finite = __all_sync(kAllLanes, finite);
  if (threadIdx.x % 32 == 0) start[row] = finite ? 0.0f : NAN;
}

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

// For the gradient of b, grad_score is a transposed view, of which as_float makes a copy.
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
