// Selection from a dense row: a lower bound of its k-th largest entry, and the entries above a floor.
#pragma once
#include "cpu/simd/vec.h"

namespace stair::STAIR_ISA {
namespace {

// Lane c of segment s is a group of its own; the segments share the row out evenly.
struct GroupMaxima {
  const void* row;
  int64_t n, segments;
  float* maxima;
  template <Dtype kDtype>
  void run() const {
    constexpr int kChains = 4;
    int64_t vectors = n / kWidth;
    for (int64_t s = 0; s < segments; ++s) {
      int64_t at = vectors * s / segments, end = vectors * (s + 1) / segments;
      Vec best[kChains] = {};
      for (; at + kChains <= end; at += kChains)
        for (int j = 0; j < kChains; ++j) {
          Vec x = load_wide<kDtype>(row, (at + j) * kWidth);
          best[j] = x > best[j] ? x : best[j];
        }
      for (; at < end; ++at) {
        Vec x = load_wide<kDtype>(row, at * kWidth);
        best[0] = x > best[0] ? x : best[0];
      }
      for (int j = 1; j < kChains; ++j) best[0] = best[j] > best[0] ? best[j] : best[0];
      store_vec(maxima + s * kWidth, best[0]);
    }
  }
};

// Floats as integers of the same order, and back: the bits of negative ones count the other way round.
inline IntVec ordered(IntVec bits) { return bits ^ (bits >> 31 & 0x7fffffff); }
inline int32_t ordered(int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); }

// How many of n floats, padded with -infinity to whole vectors, are `least` or more.
inline int64_t count_from(const float* x, int64_t n, int32_t least) {
  IntVec counts = {};  // downwards
  for (int64_t i = 0; i < n; i += kWidth) counts += ordered((IntVec)load_vec(x + i)) >= least;
  int64_t count = 0;
  for (int c = 0; c < kWidth; ++c) count -= counts[c];
  return count;
}

// The k-th largest, found bit by bit from the top, or something below it where the bits from lowest_bit on are the
// same.
float kth_to_bit(const float* x, int64_t n, int64_t k, int lowest_bit) {
  int32_t bound = count_from(x, n, 0) >= k ? 0 : INT32_MIN;
  for (int bit = 30; bit >= lowest_bit; --bit) {
    int32_t tried = bound | int32_t(1) << bit;
    if (count_from(x, n, tried) >= k) bound = tried;
  }
  bound = ordered(bound);
  float value;
  std::memcpy(&value, &bound, 4);
  return value;
}

float kth_largest(const float* x, int64_t n, int64_t k) { return kth_to_bit(x, n, k, 0); }

float bound_of_kth(const void* row, Dtype dtype, int64_t n, int64_t k, float* scratch) {
  constexpr int kLowestBit = 14;  // within 2^-9 of the k-th
  int64_t segments = (2 * k + kWidth - 1) / kWidth;
  by_dtype(dtype, GroupMaxima{row, n, segments, scratch});
  return kth_to_bit(scratch, segments * kWidth, k, kLowestBit);
}

struct CollectAbove {
  const void* row;
  int64_t n;
  float floor;
  Found* found;
  int64_t room;
  int64_t* next;
  int64_t* count;
  template <Dtype kDtype>
  void run() const {
    int64_t i = *next, filled = 0;
    for (; i + kWidth <= n && filled + kWidth <= room; i += kWidth) {
      Vec x = load_wide<kDtype>(row, i);
      for (uint32_t bits = above(x, splat(floor)); bits != 0; bits &= bits - 1) {
        int c = __builtin_ctz(bits);
        found[filled++] = {element<kDtype>(row, i + c), int32_t(i + c)};
      }
    }
    if (i + kWidth > n)
      for (; i < n && filled < room; ++i) {
        float x = element<kDtype>(row, i);
        if (!(x <= floor)) found[filled++] = {x, int32_t(i)};
      }
    *next = i;
    *count = filled;
  }
};

int64_t collect_above(const void* row, Dtype dtype, int64_t n, float floor, Found* found, int64_t room, int64_t* next) {
  int64_t count = 0;
  by_dtype(dtype, CollectAbove{row, n, floor, found, room, next, &count});
  return count;
}

// Every key's place is the number of larger ones: n^2 comparisons without a branch, less than a sort's mispredictions.
void sort_descending(const uint64_t* keys, int64_t n, uint64_t* sorted) {
  for (int64_t i = 0; i < n; ++i) {
    int64_t place = 0;
    for (int64_t j = 0; j < n; ++j) place += keys[j] > keys[i];
    sorted[place] = keys[i];
  }
}

}  // namespace
}  // namespace stair::STAIR_ISA
