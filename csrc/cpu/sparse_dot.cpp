// sparse_dot and flops. One side is turned into inverted lists; a row of the other walks the lists of its own terms, so
// that the cost is the number of shared terms, not Q x N x V. A row's slots are taken in order: the same bits always.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "check.h"

namespace stair {
namespace {

// For each term the rows of a [N, K] batch that hold it, ascending.
struct Postings {
  Postings(const float* values, const int32_t* indices, int64_t N, int64_t K, int64_t V) : start(V + 1, 0) {
    for (int64_t e = 0; e < N * K; ++e) {
      STAIR_CHECK(indices[e] >= -1 && indices[e] < V, "indices: expected values in [-1, ", V, "), got ", indices[e]);
      if (indices[e] >= 0) ++start[indices[e] + 1];
    }
    for (int64_t v = 0; v < V; ++v) start[v + 1] += start[v];
    row.resize(start[V]);
    value.resize(start[V]);
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t e = 0; e < N * K; ++e) {
      if (indices[e] < 0) continue;
      int64_t slot = next[indices[e]]++;
      row[slot] = int32_t(e / K);
      value[slot] = values[e];
    }
  }
  std::vector<int64_t> start;
  std::vector<int32_t> row;
  std::vector<float> value;
};

std::vector<uint8_t> finite_rows(const float* values, int64_t rows, int64_t K) {
  std::vector<uint8_t> finite(rows, 1);
  for (int64_t e = 0; e < rows * K; ++e)
    if (!std::isfinite(values[e])) finite[e / K] = 0;
  return finite;
}

Tensor sparse_dot(const Tensor& a_values, const Tensor& a_indices, const Tensor& b_values, const Tensor& b_indices,
                  int64_t V) {
  Tensor av = as_float(a_values), bv = as_float(b_values);
  Tensor ai = torch::stable::contiguous(a_indices), bi = torch::stable::contiguous(b_indices);
  int64_t Q = av.size(0), K = av.size(1), N = bv.size(0), M = bv.size(1);
  const float* value = av.const_data_ptr<float>();
  const int32_t* index = ai.const_data_ptr<int32_t>();
  Postings lists(bv.const_data_ptr<float>(), bi.const_data_ptr<int32_t>(), N, M, V);
  for (int64_t e = 0; e < Q * K; ++e)
    STAIR_CHECK(index[e] >= -1 && index[e] < V, "indices: expected values in [-1, ", V, "), got ", index[e]);
  auto finite_a = finite_rows(value, Q, K), finite_b = finite_rows(bv.const_data_ptr<float>(), N, M);
  Tensor scores = torch::stable::new_zeros(av, {Q, N}, ScalarType::Float);
  float* score = scores.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, Q, 1, [&](int64_t begin, int64_t end) {
    for (int64_t q = begin; q < end; ++q) {
      float* out = score + q * N;
      for (int64_t e = q * K; e < (q + 1) * K; ++e) {
        if (index[e] < 0) continue;
        for (int64_t p = lists.start[index[e]]; p < lists.start[index[e] + 1]; ++p)
          out[lists.row[p]] += value[e] * lists.value[p];
      }
      for (int64_t n = 0; n < N; ++n)
        if (!finite_a[q] || !finite_b[n]) out[n] = std::numeric_limits<float>::quiet_NaN();
    }
  });
  return scores;
}

Tensor sparse_dot_backward(const Tensor& grad_score, const Tensor& a_indices, const Tensor& b_values,
                           const Tensor& b_indices, int64_t V) {
  Tensor gs = as_float(grad_score), bv = as_float(b_values);
  Tensor ai = torch::stable::contiguous(a_indices), bi = torch::stable::contiguous(b_indices);
  int64_t Q = ai.size(0), K = ai.size(1), N = bv.size(0);
  const int32_t* index = ai.const_data_ptr<int32_t>();
  const float* grad = gs.const_data_ptr<float>();
  Postings lists(bv.const_data_ptr<float>(), bi.const_data_ptr<int32_t>(), N, bv.size(1), V);
  Tensor grads = torch::stable::new_zeros(bv, {Q, K}, ScalarType::Float);
  float* out = grads.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, Q, 1, [&](int64_t begin, int64_t end) {
    for (int64_t e = begin * K; e < end * K; ++e) {
      if (index[e] < 0 || index[e] >= V) continue;
      float sum = 0;
      for (int64_t p = lists.start[index[e]]; p < lists.start[index[e] + 1]; ++p)
        sum += grad[e / K * N + lists.row[p]] * lists.value[p];
      out[e] = sum;
    }
  });
  return grads;
}

std::tuple<Tensor, Tensor> flops(const Tensor& values, const Tensor& indices, int64_t V) {
  Tensor vs = as_float(values), is = torch::stable::contiguous(indices);
  int64_t B = vs.size(0), K = vs.size(1);
  const float* value = vs.const_data_ptr<float>();
  const int32_t* index = is.const_data_ptr<int32_t>();
  Tensor means = torch::stable::new_zeros(vs, {V}, ScalarType::Float);
  Tensor total = new_tensor(vs, {}, ScalarType::Float);
  float* mean = means.mutable_data_ptr<float>();
  for (int64_t e = 0; e < B * K; ++e) {
    STAIR_CHECK(index[e] >= -1 && index[e] < V, "indices: expected values in [-1, ", V, "), got ", index[e]);
    if (index[e] >= 0) mean[index[e]] += value[e];
  }
  double sum = 0;
  for (int64_t v = 0; v < V; ++v) {
    if (B > 0) mean[v] /= float(B);
    sum += double(mean[v]) * mean[v];
  }
  *total.mutable_data_ptr<float>() = float(sum);
  return {total, means};
}

}  // namespace
}  // namespace stair

STABLE_TORCH_LIBRARY_IMPL(stair, CPU, m) {
  m.impl("sparse_dot", TORCH_BOX(&stair::sparse_dot));
  m.impl("sparse_dot_backward", TORCH_BOX(&stair::sparse_dot_backward));
  m.impl("flops", TORCH_BOX(&stair::flops));
}
