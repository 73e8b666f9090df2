// vocab_pool_at: the values of vocab_pool where the positions that won are known, a dot product an entry in place of
// one a position; an entry without a position is 0 and costs nothing.
#include <torch/csrc/stable/library.h>

#include "cpu/vocab_backward.h"

namespace stair {
namespace {

constexpr int kColumns = 64;  // whose weights serve all rows from L2

template <class Position>
void fill(const Position* position, const TokenIndex& tokens, const Tensor& hidden, const Tensor& weight,
          const float* bias, Activation activation, int64_t B, float* out) {
  const int64_t V = weight.size(0), D = weight.size(1);
  torch::stable::parallel_for(0, (V + kColumns - 1) / kColumns, 1, [&](int64_t begin, int64_t end) {
    int32_t column[kColumns], where[kColumns];
    float value[kColumns];
    for (int64_t v0 = begin * kColumns; v0 < std::min(end * kColumns, V); v0 += kColumns) {
      const int n = int(std::min<int64_t>(kColumns, V - v0));
      for (int64_t row = 0; row < B; ++row) {
        const Position* won = position + row * V + v0;
        float* y = out + row * V + v0;
        int count = 0;
        for (int i = 0; i < n; ++i) {
          column[count] = i;
          where[count] = won[i];
          count += won[i] >= 0;
        }
        std::fill_n(y, n, 0.0f);
        simd().dots(element_ptr(hidden, tokens.first(row) * D), where, element_ptr(weight, v0 * D), column,
                    dtype_of(weight), count, D, value);
        if (bias)
          for (int i = 0; i < count; ++i) value[i] += bias[v0 + column[i]];
        simd().activate(value, count, activation, value);
        for (int i = 0; i < count; ++i) y[column[i]] = value[i];
      }
    }
  });
}

Tensor vocab_pool_at(const Tensor& hidden_, const Tensor& weight_, std::optional<Tensor> bias_,
                     const Tensor& positions_, std::string activation_name) {
  const Activation activation = parse_activation(activation_name);
  Tensor hidden = torch::stable::contiguous(hidden_), weight = torch::stable::contiguous(weight_);
  Tensor positions = torch::stable::contiguous(positions_);
  const int64_t B = hidden.size(0), V = weight.size(0);
  STAIR_CHECK(hidden.dim() == 3 && positions.size(0) == B && positions.size(1) == V,
              "vocab_pool_at: expected hidden [B, L, D] and positions [B, V]");
  std::optional<Tensor> bias;
  if (bias_) bias = as_float(*bias_);
  const float* added = bias ? bias->const_data_ptr<float>() : nullptr;
  Tensor out = new_tensor(hidden, {B, V}, ScalarType::Float);
  const TokenIndex tokens(hidden, std::nullopt);
  float* y = out.mutable_data_ptr<float>();
  if (positions.scalar_type() == ScalarType::Short)
    fill(positions.const_data_ptr<int16_t>(), tokens, hidden, weight, added, activation, B, y);
  else
    fill(positions.const_data_ptr<int32_t>(), tokens, hidden, weight, added, activation, B, y);
  return out;
}

}  // namespace
}  // namespace stair

STABLE_TORCH_LIBRARY_IMPL(stair, CPU, m) { m.impl("vocab_pool_at", TORCH_BOX(&stair::vocab_pool_at)); }
