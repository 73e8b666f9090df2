// topk: the k largest positive entries of each dense row: a bound of the k-th from a first pass, the few entries above
// it from a second, while the row is in cache.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <tuple>
#include <vector>

#include "check.h"
#include "cpu/isa.h"

namespace stair {
namespace {

// A positive value and its index as one number: larger for larger values, then for lower indices.
uint64_t key_of(const Found& entry) {
  uint32_t bits;
  std::memcpy(&bits, &entry.value, 4);
  return uint64_t(bits) << 32 | ~uint32_t(entry.index);
}

float value_of(uint64_t key) {
  uint32_t bits = uint32_t(key >> 32);
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

int32_t index_of(uint64_t key) { return int32_t(~uint32_t(key)); }

// The k best positive entries of a row, kept between rows so that nothing is allocated twice.
class RowSelection {
 public:
  explicit RowSelection(int64_t k) : k_(k), found_(4 * k + 64), groups_(2 * k + 16) {}

  // False when the row holds a NaN.
  bool select(const void* row, Dtype dtype, int64_t V) {
    keys_.clear();
    float floor = floor_below_kth(row, dtype, V);
    for (int64_t next = 0; next < V;) {
      int64_t count = simd().collect_above(row, dtype, V, floor, found_.data(), int64_t(found_.size()), &next);
      for (int64_t i = 0; i < count; ++i) {
        if (std::isnan(found_[i].value)) return false;
        keys_.push_back(key_of(found_[i]));
      }
      if (next == V) break;
      keep_best();
      floor = std::max(floor, value_of(keys_[k_ - 1]));  // a later value equal to the k-th has lost the tie
    }
    sort();
    return true;
  }

  // In order: by value, ties by lower index.
  const std::vector<uint64_t>& keys() const { return keys_; }

 private:
  // The k best in order.
  void sort() {
    constexpr size_t kFew = 192;
    if (keys_.size() <= kFew) {
      sorted_.resize(keys_.size());
      simd().sort_descending(keys_.data(), int64_t(keys_.size()), sorted_.data());
      keys_.swap(sorted_);
      keys_.resize(std::min(int64_t(keys_.size()), k_));
      return;
    }
    keep_best();
    std::sort(keys_.begin(), keys_.end(), std::greater<>());
  }

  void keep_best() {
    if (int64_t(keys_.size()) <= k_) return;
    std::nth_element(keys_.begin(), keys_.begin() + (k_ - 1), keys_.end(), std::greater<>());
    keys_.resize(k_);
  }

  // Something below the k-th largest positive entry, or 0.
  float floor_below_kth(const void* row, Dtype dtype, int64_t V) {
    constexpr int64_t kLeastGroup = 8;  // smaller groups: reading the row twice does not pay
    if (2 * k_ * kLeastGroup > V) return 0;
    float bound = simd().bound_of_kth(row, dtype, V, k_, groups_.data());
    return bound > 0 ? std::nextafter(bound, 0.0f) : 0;
  }

  int64_t k_;
  std::vector<Found> found_;
  std::vector<uint64_t> keys_, sorted_;
  std::vector<float> groups_;
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
      int64_t filled = clean ? int64_t(kept.keys().size()) : std::min(k, V);
      for (int64_t j = 0; j < k; ++j) {
        bool entry = j < filled;
        value[row * k + j] = !entry ? 0 : clean ? value_of(kept.keys()[j]) : std::numeric_limits<float>::quiet_NaN();
        index[row * k + j] = !entry ? -1 : clean ? index_of(kept.keys()[j]) : int32_t(j);
      }
    }
  });
  return {values, indices};
}

}  // namespace
}  // namespace stair

STABLE_TORCH_LIBRARY_IMPL(stair, CPU, m) { m.impl("topk", TORCH_BOX(&stair::topk)); }
