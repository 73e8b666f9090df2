// vocab_topk_backward: two sums of rows, in which only the k survivors of each row of the batch take part.
//
//   grad_hidden[t] = sum of g * weight[index] over the survivors that token t won, in the order of their slots
//   grad_weight[v] = sum of g * hidden[token] over the survivors of column v, in the order of the batch
//
// g is the gradient of a survivor's logit. A token finds its survivors among the k of its row, which it reads through;
// a column finds them beside each other in a list that a stable sort brings into the order of the columns. How they are
// summed: sum_rows.cuh.
#include <algorithm>
#include <array>
#include <tuple>

#include "cuda/sum_rows.cuh"
#include "cuda/warp.cuh"

namespace stair {
namespace {

constexpr int kColumnsEach = 8;  // columns whose survivors a warp finds

__device__ __forceinline__ float slope(float y, Activation activation) {
  if (activation == Activation::kLogRelu) return expf(-y);  // 1 / (1 + x)
  if (activation == Activation::kLogLogRelu) {
    const float inner = expf(y);  // 1 + log1p(x)
    return expf(1.0f - inner) / inner;
  }
  if (activation == Activation::kElu1p) return y > 1.0f ? 1.0f : y;  // 1 or exp(x)
  return 1.0f;
}

// How many of list [n], which ascends, are below `value`.
__device__ __forceinline__ int count_below(const int32_t* list, int n, int64_t value) {
  int begin = 0, end = n;
  while (begin < end) {
    const int middle = begin + (end - begin) / 2;
    if (list[middle] < value)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

// The rows of the batch as runs of tokens: L each, or from bounds[b] to bounds[b + 1].
struct Batch {
  const int32_t* bounds;
  int B, L;

  __device__ int first(int row) const { return bounds ? bounds[row] : row * L; }
  // The row of a token; B where it belongs to none.
  __device__ int row_of(int token) const {
    return bounds ? count_below(bounds, B + 1, int64_t(token) + 1) - 1 : token / L;
  }
};

// The survivors, [B, K]. What an empty slot holds is not read: no token has its position, no column its index.
struct Survivors {
  const float *grad_values, *values;
  const int32_t* positions;
  int n, K;
};

// A thread a survivor, in the order of `order` [n]: g, there and where the survivor stands, and its token.
__global__ void __launch_bounds__(kThreads)
    weigh(Survivors survivors, Batch batch, Activation activation, const int64_t* order, float* factors,
          float* sorted_factors, int32_t* sorted_tokens) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= survivors.n) return;
  const auto e = int(order[i]);
  const float factor = survivors.grad_values[e] * slope(survivors.values[e], activation);
  factors[e] = factor;
  sorted_factors[i] = factor;
  sorted_tokens[i] = batch.first(e / survivors.K) + survivors.positions[e];
}

// A warp for kColumnsEach columns: starts [V + 1], where each one's survivors begin in sorted [n], and the sums of
// their factors.
__global__ void __launch_bounds__(kThreads)
    sum_columns(const int32_t* sorted, const float* factors, int n, int64_t V, int32_t* starts, float* grad_bias) {
  const int lane = threadIdx.x % 32;
  const int64_t first = (int64_t(blockIdx.x) * kWarps + threadIdx.x / 32) * kColumnsEach;
  const int start = lane <= kColumnsEach ? count_below(sorted, n, first + lane) : 0;
  if (lane < kColumnsEach && first + lane <= V) starts[first + lane] = start;
  for (int column = 0; column < kColumnsEach && first + column < V; ++column) {
    const int begin = __shfl_sync(kAllLanes, start, column), end = __shfl_sync(kAllLanes, start, column + 1);
    float sum = 0.0f;
    for (int64_t i = int64_t(begin) + lane; i < end; i += 32) sum += factors[i];
    sum = sum_of_warp(sum);
    if (lane == 0) grad_bias[first + column] = sum;
  }
}

// The survivors that a token won. They are looked for among `length` slots from `begin` on.
struct OfToken {
  struct Run {
    int64_t begin;
    int length, position;
  };
  const int32_t *indices, *positions;
  const float* factors;
  Batch batch;
  int K;

  __device__ Run run(int token) const {
    const int row = batch.row_of(token);
    return row < batch.B ? Run{int64_t(row) * K, K, token - batch.first(row)} : Run{0, 0, 0};
  }
  __device__ bool find(const Run& run, int i, Addend& out) const {
    if (positions[run.begin + i] != run.position) return false;
    out = {indices[run.begin + i], factors[run.begin + i]};
    return true;
  }
  __device__ int count(const Run& run) const {
    int found = 0;
    for (int first = 0; first < run.length; first += 32) {
      const int i = first + threadIdx.x % 32;
      found += __popc(__ballot_sync(kAllLanes, i < run.length && positions[run.begin + i] == run.position));
    }
    return found;
  }
};

// The survivors of a column, of rows[r] where there are `rows`.
struct OfColumn {
  struct Run {
    int64_t begin;
    int length;
  };
  const int32_t *starts, *tokens;
  const float* factors;
  const int64_t* rows;

  __device__ Run run(int r) const {
    const int64_t column = rows ? rows[r] : r;
    return {starts[column], starts[column + 1] - starts[column]};
  }
  __device__ bool find(const Run& run, int i, Addend& out) const {
    out = {tokens[run.begin + i], factors[run.begin + i]};
    return true;
  }
  __device__ int count(const Run& run) const { return run.length; }
};

// The numbers of a tensor [n] in ascending order, and where they stood, int64; equal ones keep their order. By torch:
// g++ has no CUB, and this radix sort of torch's is CUB's.
std::tuple<Tensor, Tensor> sorted(const Tensor& numbers) {
  using torch::stable::detail::from, torch::stable::detail::to;
  const std::optional<bool> stable = true;
  std::array<StableIValue, 4> stack{from(numbers), from(stable), from(int64_t(0)), from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

std::tuple<Tensor, Tensor, Tensor> vocab_topk_backward(const Tensor& grad_values, const Tensor& values,
                                                       const Tensor& indices_, const Tensor& positions_,
                                                       const Tensor& hidden_, const Tensor& weight_,
                                                       std::optional<Tensor> cu_seqlens, std::optional<Tensor> rows,
                                                       std::string activation_name, bool need_hidden,
                                                       bool need_weight) {
  using torch::stable::contiguous, torch::stable::new_empty;
  const Activation activation = parse_activation(activation_name);
  const OnDevice device(hidden_);
  const Tensor hidden = contiguous(hidden_), weight = contiguous(weight_);
  const Tensor grads = as_float(grad_values), outs = as_float(values);
  const Tensor indices = contiguous(indices_), positions = contiguous(positions_);
  const std::optional<Tensor> bounds = cu_seqlens ? std::optional(contiguous(*cu_seqlens)) : std::nullopt;
  const int64_t B = indices.size(0), K = indices.size(1), V = weight.size(0), D = weight.size(1), n = B * K;
  const int64_t L = hidden.dim() == 3 ? hidden.size(1) : 0, tokens = hidden.dim() == 3 ? B * L : hidden.size(0);
  STAIR_CHECK(std::max({n, tokens, V, D}) <= kMostSummed, "vocab_topk_backward: expected at most ", kMostSummed,
              " survivors, tokens, columns and width, got ", n, ", ", tokens, ", ", V, " and ", D);
  const Batch batch = {bounds ? bounds->const_data_ptr<int32_t>() : nullptr, int(B), int(L)};
  const Survivors survivors = {grads.const_data_ptr<float>(), outs.const_data_ptr<float>(),
                               positions.const_data_ptr<int32_t>(), int(n), int(K)};

  const auto [sorted_indices, order] = sorted(torch::stable::flatten(indices));
  Tensor factors = new_empty(hidden, {2, n}, ScalarType::Float);  // as they stand, and sorted
  Tensor sorted_tokens = new_empty(hidden, {n}, ScalarType::Int), starts = new_empty(hidden, {V + 1}, ScalarType::Int);
  Tensor grad_bias = new_empty(hidden, {V}, ScalarType::Float);
  auto *factor = factors.mutable_data_ptr<float>(), *sorted_factor = factor + n;
  auto *token = sorted_tokens.mutable_data_ptr<int32_t>(), *start = starts.mutable_data_ptr<int32_t>();
  if (n > 0)
    device.launch(&weigh, dim3(blocks_for(n, kThreads)), kThreads, 0, survivors, batch, activation,
                  order.const_data_ptr<int64_t>(), factor, sorted_factor, token);
  device.launch(&sum_columns, dim3(blocks_for(V + 1, kWarps * kColumnsEach)), kThreads, 0,
                sorted_indices.const_data_ptr<int32_t>(), sorted_factor, n, V, start,
                grad_bias.mutable_data_ptr<float>());

  Tensor grad_hidden = need_hidden ? torch::stable::empty_like(hidden) : new_empty(hidden, {0});
  if (need_hidden)
    sum_into(device, weight, grad_hidden, tokens,
             OfToken{indices.const_data_ptr<int32_t>(), survivors.positions, factor, batch, int(K)});
  const int64_t R = rows ? rows->size(0) : V;
  Tensor grad_weight = need_weight ? new_empty(weight, {R, D}) : new_empty(weight, {0});
  if (need_weight)
    sum_into(device, hidden, grad_weight, R,
             OfColumn{start, token, sorted_factor, rows ? rows->const_data_ptr<int64_t>() : nullptr});
  return {grad_hidden, grad_weight, grad_bias};
}

}  // namespace
}  // namespace stair

STABLE_TORCH_LIBRARY_IMPL(stair, STAIR_GPU, m) {
  m.impl("vocab_topk_backward", TORCH_BOX(&stair::vocab_topk_backward));
}
