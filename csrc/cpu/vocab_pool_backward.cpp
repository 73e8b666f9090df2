// The backward of vocab_pool, through the winning positions; entries whose gradient is zero are skipped.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/vocab_backward.h"

namespace stair {
namespace {

// What the forward left, and the gradient that comes in: [B, V] each.
template <class Position>
struct Pooled {
  const float *grad, *out;
  const Position* position;
  int64_t B, V;
  Activation activation;
};

// The entries of one row and kColumns columns through which a gradient flows.
struct Live {
  static constexpr int kColumns = 64;
  int32_t column[kColumns], position[kColumns];  // column counts from v0
  float grad[kColumns];                          // of the logit
  int count;

  template <class Position>
  void gather(const Pooled<Position>& pooled, int64_t row, int64_t v0) {
    int64_t at = row * pooled.V + v0, n = std::min<int64_t>(kColumns, pooled.V - v0);
    const float *g = pooled.grad + at, *y = pooled.out + at;
    const Position* where = pooled.position + at;
    bool relu_family = pooled.activation != Activation::kElu1p;
    float slope[kColumns];
    simd().slopes(y, n, pooled.activation, slope);
    count = 0;
    for (int i = 0; i < n; ++i) {
      column[count] = i;
      position[count] = where[i];
      grad[count] = g[i] * slope[i];
      bool dead = where[i] < 0 || g[i] == 0 || (relu_family && y[i] <= 0);  // NaN is not 0: it flows
      count += !dead;
    }
  }
};

// grad[b, pos] += g * weight[v], float32
template <class Position>
void add_to_hidden(const Pooled<Position>& pooled, const TokenIndex& tokens, const Tensor& weight, const Tensor& grad) {
  int64_t D = weight.size(1);
  float* y = grad.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, pooled.B, 1, [&](int64_t begin, int64_t end) {
    Live live;
    for (int64_t v0 = 0; v0 < pooled.V; v0 += Live::kColumns)  // their weights serve all of the thread's rows from L2
      for (int64_t row = begin; row < end; ++row) {
        live.gather(pooled, row, v0);
        simd().scatter(y + tokens.first(row) * D, live.position, live.grad, element_ptr(weight, v0 * D), live.column,
                       dtype_of(weight), live.count, D);
      }
  });
}

// grad[v] = sum over b of g * hidden[b, pos], and the bias's gradient = sum over b of g
template <class Position>
void sum_into_weight(const Pooled<Position>& pooled, const TokenIndex& tokens, const Tensor& hidden, const Tensor& grad,
                     bool need_weight, float* grad_bias) {
  int64_t V = pooled.V, D = hidden.size(hidden.dim() - 1);
  torch::stable::parallel_for(0, (V + Live::kColumns - 1) / Live::kColumns, 1, [&](int64_t begin, int64_t end) {
    Live live;
    GradRows out(grad);
    GradRows::Sums sums(out);
    for (int64_t v0 = begin * Live::kColumns; v0 < std::min(end * Live::kColumns, V); v0 += Live::kColumns) {
      float* y = need_weight ? sums.start(v0, std::min<int64_t>(Live::kColumns, V - v0)) : nullptr;
      for (int64_t row = 0; row < pooled.B; ++row) {
        live.gather(pooled, row, v0);
        if (need_weight)
          simd().scatter(y, live.column, live.grad, element_ptr(hidden, tokens.first(row) * D), live.position,
                         dtype_of(hidden), live.count, D);
        for (int i = 0; i < live.count; ++i) grad_bias[v0 + live.column[i]] += live.grad[i];
      }
      if (need_weight) sums.write();
    }
  });
}

template <class Position>
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_out, const Tensor& out, const Position* position,
                                            const Tensor& hidden, const Tensor& weight,
                                            const std::optional<Tensor>& cu_seqlens, Activation activation,
                                            bool need_hidden, bool need_weight) {
  int64_t B = out.size(0), V = out.size(1);
  Tensor grads = as_float(grad_out), outs = as_float(out);
  Pooled<Position> pooled{grads.const_data_ptr<float>(), outs.const_data_ptr<float>(), position, B, V, activation};
  TokenIndex tokens(hidden, cu_seqlens);
  Tensor grad_hidden = new_grad(hidden, need_hidden, hidden.size(0), ScalarType::Float);
  torch::stable::zero_(grad_hidden);
  if (need_hidden) add_to_hidden(pooled, tokens, weight, grad_hidden);
  Tensor grad_weight = new_grad(weight, need_weight, V, weight.scalar_type());
  Tensor grad_bias = torch::stable::new_zeros(weight, {V}, ScalarType::Float);
  sum_into_weight(pooled, tokens, hidden, grad_weight, need_weight, grad_bias.mutable_data_ptr<float>());
  return {grad_hidden, grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor, Tensor> vocab_pool_backward(const Tensor& grad_out, const Tensor& out,
                                                       const Tensor& positions_, const Tensor& hidden_,
                                                       const Tensor& weight_, std::optional<Tensor> cu_seqlens,
                                                       std::string activation_name, bool need_hidden,
                                                       bool need_weight) {
  Activation activation = parse_activation(activation_name);
  Tensor hidden = torch::stable::contiguous(hidden_), weight = torch::stable::contiguous(weight_);
  Tensor positions = torch::stable::contiguous(positions_);
  if (positions.scalar_type() == ScalarType::Short)
    return backward(grad_out, out, positions.const_data_ptr<int16_t>(), hidden, weight, cu_seqlens, activation,
                    need_hidden, need_weight);
  return backward(grad_out, out, positions.const_data_ptr<int32_t>(), hidden, weight, cu_seqlens, activation,
                  need_hidden, need_weight);
}

}  // namespace
}  // namespace stair

STABLE_TORCH_LIBRARY_IMPL(stair, CPU, m) { m.impl("vocab_pool_backward", TORCH_BOX(&stair::vocab_pool_backward)); }
