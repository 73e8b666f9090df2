// vocab_pool: the dense [B, V] row without the [B, L, V] logits, and its backward through the winning positions.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/vocab_head.h"

namespace stair {
namespace {

// Writes each row's columns as they are finished. Its floors are NaN: every column is above.
struct PoolSink {
  void row_done(int64_t block, int columns, PooledBlock& pooled) {
    int64_t base = int64_t(pooled.row) * V + block * kBlock;
    activate(pooled.logit, columns, activation);
    std::copy_n(pooled.logit, columns, out + base);
    std::copy_n(pooled.position, columns, positions + base);
  }
  std::vector<float> floors;
  Activation activation;
  int64_t V;
  float* out;
  int32_t* positions;
};

std::tuple<Tensor, Tensor> vocab_pool(const Tensor& hidden, const Tensor& weight, std::optional<Tensor> bias,
                                      std::optional<Tensor> mask, std::optional<Tensor> cu_seqlens,
                                      std::optional<int64_t> packed_vocab, std::string activation_name) {
  Activation activation = parse_activation(activation_name);
  bool pairs = multiplies_pairs(hidden, weight);
  TokenTiles batch(hidden, mask, cu_seqlens, pairs);
  VocabBlocks vocab(weight, bias, packed_vocab, batch.width(), pairs);
  int64_t B = batch.rows(), V = vocab.vocab();
  Tensor out = new_tensor(hidden, {B, V}, ScalarType::Float);
  Tensor positions = new_tensor(hidden, {B, V}, ScalarType::Int);
  float* out_ptr = out.mutable_data_ptr<float>();
  int32_t* position_ptr = positions.mutable_data_ptr<int32_t>();
  Split split(vocab.count());
  std::vector<float> floors(B, std::numeric_limits<float>::quiet_NaN());
  std::vector<PoolSink> sinks(split.chunks, PoolSink{floors, activation, V, out_ptr, position_ptr});
  walk_vocab(batch, vocab, sinks, split);
  for (int64_t row = 0; row < B; ++row) {
    if (!batch.empty(row)) continue;
    std::fill_n(out_ptr + row * V, V, 0.0f);
    std::fill_n(position_ptr + row * V, V, -1);
  }
  return {out, positions};
}

// The entries of one row and kColumns columns through which a gradient flows.
struct Live {
  static constexpr int kColumns = 64;
  int32_t column[kColumns], position[kColumns];  // column counts from v0
  float grad[kColumns];
  int count;

  void gather(const float* grad_logit, const int32_t* positions, int64_t row, int64_t v0, int64_t V) {
    count = 0;
    for (int64_t v = v0; v < std::min<int64_t>(v0 + kColumns, V); ++v) {
      column[count] = int32_t(v - v0);
      position[count] = positions[row * V + v];
      grad[count] = grad_logit[row * V + v];
      count += grad[count] != 0;  // NaN is not 0: it flows
    }
  }
};

std::tuple<Tensor, Tensor, Tensor> vocab_pool_backward(const Tensor& grad_out, const Tensor& out,
                                                       const Tensor& positions, const Tensor& hidden_,
                                                       const Tensor& weight_, std::optional<Tensor> cu_seqlens,
                                                       std::string activation_name) {
  Activation activation = parse_activation(activation_name);
  Tensor hidden = torch::stable::contiguous(hidden_), weight = torch::stable::contiguous(weight_);
  Tensor grads = as_float(grad_out), outs = as_float(out), position_rows = torch::stable::contiguous(positions);
  int64_t B = outs.size(0), V = outs.size(1), D = weight.size(1);
  const int32_t* position = position_rows.const_data_ptr<int32_t>();
  const auto& kernels = simd();
  TokenIndex token(hidden, cu_seqlens);

  std::unique_ptr<float[]> grad_logit(new float[B * V]);
  bool relu_family = activation != Activation::kElu1p;
  torch::stable::parallel_for(0, B * V, 4096, [&](int64_t begin, int64_t end) {
    const float *g = grads.const_data_ptr<float>(), *y = outs.const_data_ptr<float>();
    for (int64_t i = begin; i < end; ++i) {
      bool dead = position[i] < 0 || g[i] == 0 || (relu_family && y[i] <= 0);
      grad_logit[i] = dead ? 0 : g[i] * slope(y[i], activation);
    }
  });

  Tensor grad_hidden = zeros_like(hidden), grad_weight = zeros_like(weight);
  Tensor grad_bias = torch::stable::new_zeros(weight, {V}, ScalarType::Float);
  auto* to_hidden = static_cast<float*>(grad_hidden.mutable_data_ptr());
  auto* to_weight = static_cast<float*>(grad_weight.mutable_data_ptr());
  auto* to_bias = static_cast<float*>(grad_bias.mutable_data_ptr());
  torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
    Live live;
    for (int64_t v0 = 0; v0 < V; v0 += Live::kColumns)  // these columns' weights serve all of the thread's rows from L2
      for (int64_t row = begin; row < end; ++row) {
        live.gather(grad_logit.get(), position, row, v0, V);
        kernels.scatter(to_hidden + token(row, 0) * D, live.position, live.grad, element_ptr(weight, v0 * D),
                        live.column, dtype_of(weight), live.count, D);
      }
  });
  torch::stable::parallel_for(0, (V + Live::kColumns - 1) / Live::kColumns, 1, [&](int64_t begin, int64_t end) {
    Live live;
    for (int64_t v0 = begin * Live::kColumns; v0 < std::min(end * Live::kColumns, V); v0 += Live::kColumns)
      for (int64_t row = 0; row < B; ++row) {
        live.gather(grad_logit.get(), position, row, v0, V);
        kernels.scatter(to_weight + v0 * D, live.column, live.grad, element_ptr(hidden, token(row, 0) * D),
                        live.position, dtype_of(hidden), live.count, D);
        for (int i = 0; i < live.count; ++i) to_bias[v0 + live.column[i]] += live.grad[i];
      }
  });
  return {grad_hidden, grad_weight, grad_bias};
}

}  // namespace
}  // namespace stair

STABLE_TORCH_LIBRARY_IMPL(stair, CPU, m) {
  m.impl("vocab_pool", TORCH_BOX(&stair::vocab_pool));
  m.impl("vocab_pool_backward", TORCH_BOX(&stair::vocab_pool_backward));
}
