// The backward of vocab_topk: only the k survivors of each row take part.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/vocab_backward.h"

namespace stair {
namespace {

// The entries of a [B, K] batch grouped by vocabulary index, each group in (row, slot) order.
struct ByIndex {
  ByIndex(const int32_t* indices, int64_t entries, int64_t V) : start(V + 1, 0) {
    for (int64_t e = 0; e < entries; ++e)
      if (indices[e] >= 0) ++start[indices[e] + 1];
    for (int64_t v = 0; v < V; ++v) start[v + 1] += start[v];
    entry.resize(start[V]);
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t e = 0; e < entries; ++e)
      if (indices[e] >= 0) entry[next[indices[e]]++] = e;
  }
  std::vector<int64_t> start, entry;
};

// The survivors with the gradients of their logits, [B, K].
struct Survivors {
  Survivors(const Tensor& grad_values, const Tensor& values, const Tensor& indices, const Tensor& positions,
            Activation activation)
      : B(values.size(0)),
        K(values.size(1)),
        index_rows(torch::stable::contiguous(indices)),
        position_rows(torch::stable::contiguous(positions)),
        index(index_rows.const_data_ptr<int32_t>()),
        position(position_rows.const_data_ptr<int32_t>()),
        grad(new float[B * K]) {
    Tensor grads = as_float(grad_values), outs = as_float(values);
    const float* g = grads.const_data_ptr<float>();
    simd().slopes(outs.const_data_ptr<float>(), B * K, activation, grad.get());
    for (int64_t e = 0; e < B * K; ++e) grad[e] = index[e] < 0 ? 0 : g[e] * grad[e];
  }

  // of a row; its empty slots stand at the end
  int64_t filled(int64_t row) const {
    int64_t count = 0;
    while (count < K && index[row * K + count] >= 0) ++count;
    return count;
  }

  int64_t B, K;
  Tensor index_rows, position_rows;
  const int32_t *index, *position;
  std::unique_ptr<float[]> grad;
};

// grad[b, pos] += g * weight[index]
void add_to_hidden(const Survivors& survivors, const TokenIndex& tokens, const Tensor& weight, const Tensor& grad) {
  int64_t K = survivors.K, D = weight.size(1);
  GradRows rows(grad);
  torch::stable::parallel_for(0, survivors.B, 1, [&](int64_t begin, int64_t end) {
    GradRows::Sums sums(rows);
    for (int64_t row = begin; row < end; ++row) {
      float* y = sums.start(tokens.first(row), tokens.count(row));
      simd().scatter(y, survivors.position + row * K, survivors.grad.get() + row * K, weight.const_data_ptr(),
                     survivors.index + row * K, dtype_of(weight), survivors.filled(row), D);
      sums.write();
    }
  });
}

// grad[r] = sum of g * hidden[b, pos] over the survivors of column rows[r], or of column r
void sum_into_weight(const Survivors& survivors, const TokenIndex& tokens, const Tensor& hidden, const ByIndex& groups,
                     const int64_t* rows, const Tensor& grad) {
  constexpr int64_t kRows = 16;  // summed together, in L1 or L2
  int64_t R = grad.size(0), D = grad.size(1), K = survivors.K;
  GradRows out(grad);
  torch::stable::parallel_for(0, (R + kRows - 1) / kRows, 4, [&](int64_t begin, int64_t end) {
    GradRows::Sums sums(out);
    std::vector<int32_t> to, from;
    std::vector<float> scale;
    for (int64_t first = begin * kRows; first < std::min(end * kRows, R); first += kRows) {
      int64_t count = std::min(kRows, R - first);
      to.clear(), from.clear(), scale.clear();
      for (int64_t r = first; r < first + count; ++r) {
        int64_t v = rows ? rows[r] : r;
        for (int64_t i = groups.start[v]; i < groups.start[v + 1]; ++i) {
          int64_t e = groups.entry[i];
          to.push_back(int32_t(r - first));
          from.push_back(int32_t(tokens.first(e / K) + survivors.position[e]));
          scale.push_back(survivors.grad[e]);
        }
      }
      if (to.empty()) {
        out.clear(first, count);
        continue;
      }
      simd().scatter(sums.start(first, count), to.data(), scale.data(), hidden.const_data_ptr(), from.data(),
                     dtype_of(hidden), int64_t(to.size()), D);
      sums.write();
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> vocab_topk_backward(const Tensor& grad_values, const Tensor& values,
                                                       const Tensor& indices, const Tensor& positions,
                                                       const Tensor& hidden_, const Tensor& weight_,
                                                       std::optional<Tensor> cu_seqlens, std::optional<Tensor> rows,
                                                       std::string activation_name, bool need_hidden,
                                                       bool need_weight) {
  Tensor hidden = torch::stable::contiguous(hidden_), weight = torch::stable::contiguous(weight_);
  Survivors survivors(grad_values, values, indices, positions, parse_activation(activation_name));
  int64_t V = weight.size(0);
  TokenIndex tokens(hidden, cu_seqlens);
  ByIndex groups(survivors.index, survivors.B * survivors.K, V);

  Tensor grad_hidden = new_grad(hidden, need_hidden, hidden.size(0), hidden.scalar_type());
  if (need_hidden) add_to_hidden(survivors, tokens, weight, grad_hidden);
  Tensor grad_weight = new_grad(weight, need_weight, rows ? rows->size(0) : V, weight.scalar_type());
  const int64_t* row_ids = rows ? rows->const_data_ptr<int64_t>() : nullptr;
  if (need_weight) sum_into_weight(survivors, tokens, hidden, groups, row_ids, grad_weight);
  Tensor grad_bias = torch::stable::new_zeros(weight, {V}, ScalarType::Float);
  float* to_bias = grad_bias.mutable_data_ptr<float>();
  for (int64_t v = 0; v < V; ++v)
    for (int64_t i = groups.start[v]; i < groups.start[v + 1]; ++i) to_bias[v] += survivors.grad[groups.entry[i]];
  return {grad_hidden, grad_weight, grad_bias};
}

}  // namespace
}  // namespace stair

STABLE_TORCH_LIBRARY_IMPL(stair, CPU, m) { m.impl("vocab_topk_backward", TORCH_BOX(&stair::vocab_topk_backward)); }
