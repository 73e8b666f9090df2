// topk: the k largest positive entries of each dense row: a bound of the k-th from a first pass, the few entries above
// it from a second, while the row is in cache.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "check.h"
#include "cpu/best.h"

namespace stair {
namespace {

// The k best positive entries of a row, in memory that is kept between rows.
class RowSelection {
 public:
  explicit RowSelection(int64_t k)
      : k_(k),
        found_(4 * k + 64),
        groups_(2 * k + 16),
        value_(k + found_.size() + Entries::kPadding),
        index_(k + found_.size()) {}

  // False when the row holds a NaN.
  bool select(const void* row, Dtype dtype, int64_t V) {
    entries_ = {value_.data(), index_.data(), nullptr, 0};
    float floor = floor_below_kth(row, dtype, V);
    for (int64_t next = 0; next < V;) {
      int64_t count = simd().collect_above(row, dtype, V, floor, found_.data(), int64_t(found_.size()), &next);
      for (int64_t i = 0; i < count; ++i) {
        if (std::isnan(found_[i].value)) return false;
        value_[entries_.count] = found_[i].value;
        index_[entries_.count++] = found_[i].index;
      }
      // a later value equal to the k-th has lost the tie
      if (next < V) floor = std::max(floor, keep_best(entries_, k_));
    }
    if (entries_.count > Ranking::kFew) keep_best(entries_, k_);  // fewer are ranked faster than cut
    order_ = &ranking_.descending(value_.data(), entries_.count);
    return true;
  }

  int64_t count() const { return std::min(entries_.count, k_); }
  float value(int64_t i) const { return value_[(*order_)[i]]; }
  int32_t index(int64_t i) const { return index_[(*order_)[i]]; }

 private:
  // Something below the k-th largest positive entry, or 0.
  float floor_below_kth(const void* row, Dtype dtype, int64_t V) {
    constexpr int64_t kLeastGroup = 8;  // smaller groups: reading the row twice does not pay
    if (2 * k_ * kLeastGroup > V) return 0;
    float bound = simd().bound_of_kth(row, dtype, V, k_, groups_.data());
    return bound > 0 ? std::nextafter(bound, 0.0f) : 0;
  }

  int64_t k_;
  std::vector<Found> found_;
  std::vector<float> groups_, value_;
  std::vector<int32_t> index_;
  Entries entries_;
  Ranking ranking_;
  const std::vector<int32_t>* order_;
};

std::tuple<Tensor, Tensor> topk(const Tensor& dense_, int64_t k) {
  STAIR_CHECK(dense_.dim() == 2 && k > 0, "topk: expected dense [B, V] and k > 0");
  Tensor dense = torch::stable::contiguous(dense_);
  int64_t B = dense.size(0), V = dense.size(1);
  Tensor values = new_tensor(dense, {B, k}, ScalarType::Float), indices = new_tensor(dense, {B, k}, ScalarType::Int);
  Dtype dtype = dtype_of(dense);
  float* value = values.mutable_data_ptr<float>();
  int32_t* index = indices.mutable_data_ptr<int32_t>();
  torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
    RowSelection kept(std::min(k, V));
    for (int64_t row = begin; row < end; ++row) {
      bool clean = kept.select(element_ptr(dense, row * V), dtype, V);
      int64_t filled = clean ? kept.count() : std::min(k, V);
      for (int64_t j = 0; j < k; ++j) {
        bool entry = j < filled;
        value[row * k + j] = !entry ? 0 : clean ? kept.value(j) : std::numeric_limits<float>::quiet_NaN();
        index[row * k + j] = !entry ? -1 : clean ? kept.index(j) : int32_t(j);
      }
    }
  });
  return {values, indices};
}

}  // namespace
}  // namespace stair

STABLE_TORCH_LIBRARY_IMPL(stair, CPU, m) { m.impl("topk", TORCH_BOX(&stair::topk)); }
