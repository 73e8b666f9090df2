// topk: the k largest positive entries of each dense row, in one pass over the row.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "check.h"

namespace stair {
namespace {

struct Entry {
  float value;
  int32_t index;
};

bool better(const Entry& a, const Entry& b) { return a.value > b.value || (a.value == b.value && a.index < b.index); }

// Fills `kept` with the row's entries in order; false when the row holds a NaN.
bool select_row(const float* row, int64_t V, int64_t k, std::vector<Entry>& kept) {
  kept.clear();
  float floor = 0;
  size_t capacity = size_t(2 * k + 64);
  for (int64_t v = 0; v < V; ++v) {
    if (row[v] <= floor) continue;
    if (std::isnan(row[v])) return false;
    kept.push_back({row[v], int32_t(v)});
    if (kept.size() < capacity) continue;
    std::nth_element(kept.begin(), kept.begin() + (k - 1), kept.end(), better);
    kept.resize(k);
    floor = kept.back().value;  // a later equal value has lost the tie
  }
  std::sort(kept.begin(), kept.end(), better);
  if (int64_t(kept.size()) > k) kept.resize(k);
  return true;
}

std::tuple<Tensor, Tensor> topk(const Tensor& dense_, int64_t k) {
  STAIR_CHECK(dense_.dim() == 2 && k > 0, "topk: expected dense [B, V] and k > 0");
  Tensor dense = as_float(dense_);
  int64_t B = dense.size(0), V = dense.size(1);
  Tensor values = new_tensor(dense, {B, k}, ScalarType::Float), indices = new_tensor(dense, {B, k}, ScalarType::Int);
  const float* in = dense.const_data_ptr<float>();
  float* value = values.mutable_data_ptr<float>();
  int32_t* index = indices.mutable_data_ptr<int32_t>();
  torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
    std::vector<Entry> kept;
    for (int64_t row = begin; row < end; ++row) {
      bool clean = select_row(in + row * V, V, k, kept);
      int64_t filled = clean ? int64_t(kept.size()) : std::min(k, V);
      for (int64_t j = 0; j < k; ++j) {
        bool entry = j < filled;
        value[row * k + j] = !entry ? 0 : clean ? kept[j].value : std::numeric_limits<float>::quiet_NaN();
        index[row * k + j] = !entry ? -1 : clean ? kept[j].index : int32_t(j);
      }
    }
  });
  return {values, indices};
}

}  // namespace
}  // namespace stair

STABLE_TORCH_LIBRARY_IMPL(stair, CPU, m) { m.impl("topk", TORCH_BOX(&stair::topk)); }
