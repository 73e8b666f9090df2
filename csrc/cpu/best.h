// The k best of a row's entries: which they are, and their order. What vocab_topk and topk share.
#pragma once
#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/isa.h"

namespace stair {

// `count` entries in ascending order of index, none NaN or -infinity. Behind the last there is room for kPadding
// values. `position` may be null.
struct Entries {
  static constexpr int64_t kPadding = 16;
  float* value;
  int32_t *index, *position;
  int64_t count;
};

// Leaves the k best, k >= 1, ties by lower index, in ascending order of index, and returns the k-th best value; nothing
// to do (-infinity) when they are no more than k.
inline float keep_best(Entries& entries, int64_t k) {
  if (entries.count <= k) return -std::numeric_limits<float>::infinity();
  std::fill_n(entries.value + entries.count, Entries::kPadding, -std::numeric_limits<float>::infinity());
  float kth = simd().kth_largest(entries.value, entries.count, k);
  int64_t larger = 0;
  for (int64_t i = 0; i < entries.count; ++i) larger += entries.value[i] > kth;
  int64_t ties = k - larger, kept = 0;  // how many that equal the k-th are still wanted
  for (int64_t i = 0; i < entries.count; ++i) {
    float value = entries.value[i];
    entries.value[kept] = value;
    entries.index[kept] = entries.index[i];
    if (entries.position) entries.position[kept] = entries.position[i];
    bool tie = value == kth;
    kept += (value > kth) | (tie & (ties > 0));  // no branch: nothing could predict it
    ties -= tie;
  }
  entries.count = kept;
  return kth;
}

// Puts values in order, keeping its memory from one call to the next.
class Ranking {
 public:
  static constexpr int64_t kFew = 192;  // so many are ranked by comparing all with all

  // [i] is which of n non-negative values, none NaN, is the i-th in descending order; of equal ones the first comes
  // first.
  const std::vector<int32_t>& descending(const float* values, int64_t n) {
    keys_.resize(n), other_.resize(n), order_.resize(n);
    for (int64_t i = 0; i < n; ++i) keys_[i] = key_of(values[i], uint32_t(i));
    if (n <= kFew) {
      simd().sort_descending(keys_.data(), n, other_.data());
      keys_.swap(other_);
    } else {
      sort_by_digits();
    }
    for (int64_t i = 0; i < n; ++i) order_[i] = int32_t(~uint32_t(keys_[i]));
    return order_;
  }

 private:
  // Larger for larger values, whose bits have their order, then for earlier ones.
  static uint64_t key_of(float value, uint32_t place) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return uint64_t(bits) << 32 | ~place;
  }

  // By the value's lowest byte, then by the next: each pass keeps the order that it finds among equal bytes.
  void sort_by_digits() {
    for (int shift = 32; shift < 64; shift += 8) {
      int64_t start[257] = {};
      auto digit = [shift](uint64_t key) { return 255 - (key >> shift & 255); };  // descending
      for (uint64_t key : keys_) ++start[digit(key) + 1];
      if (std::find(start, start + 257, int64_t(keys_.size())) != start + 257) continue;  // all the same
      for (int d = 1; d < 257; ++d) start[d] += start[d - 1];
      for (uint64_t key : keys_) other_[start[digit(key)]++] = key;
      keys_.swap(other_);
    }
  }

  std::vector<uint64_t> keys_, other_;
  std::vector<int32_t> order_;
};

}  // namespace stair
