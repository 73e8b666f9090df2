// Rows of elements as words, and blocks of the vocabulary as panels.
#pragma once
#include "cpu/simd/vec.h"

namespace stair::STAIR_ISA {
namespace {

// How words are made of a row's elements: one a word as float32, or two neighbours along D as they are.
template <Dtype kDtype>
struct Single {
  static constexpr int64_t kBytes = kDtype == Dtype::kFloat ? 4 : 2;  // of an element
  static constexpr int64_t kElements = 1;                             // in a word
  static inline Word word(const void* row, int64_t stride, int64_t, int64_t step) {
    float value = element<kDtype>(row, step * stride);
    Word result;
    std::memcpy(&result, &value, 4);
    return result;
  }
  // kWidth neighbouring words of a contiguous row
  static inline Vec words(const void* row, int64_t step) { return load_wide<kDtype>(row, step); }
};

struct Pair {
  static constexpr int64_t kBytes = 2;
  static constexpr int64_t kElements = 2;
  static inline Word word(const void* row, int64_t stride, int64_t D, int64_t step) {
    auto* bits = static_cast<const uint16_t*>(row);
    if (2 * step >= D) return 0;
    Word high = 2 * step + 1 < D ? bits[(2 * step + 1) * stride] : 0;
    return bits[2 * step * stride] | high << 16;
  }
  static inline Vec words(const void* row, int64_t step) {
    return load_vec(static_cast<const uint16_t*>(row) + 2 * step);
  }
};

// kWidth pairs' lower or higher element as float32
template <Dtype kDtype>
inline Vec half_of(const Word* pairs, bool high) {
  IntVec words = (IntVec)load_vec(pairs);
  if constexpr (kDtype == Dtype::kBFloat16) return (Vec)(high ? words & int32_t(0xffff0000) : words << 16);
  uint16_t bits[kWidth];
  for (int c = 0; c < kWidth; ++c) bits[c] = uint16_t(high ? uint32_t(words[c]) >> 16 : uint32_t(words[c]));
  return load_wide<kDtype>(bits, 0);
}

// Calls f.run<Words>() for the dtype at hand; pairs is for the two of 16 bits.
template <class Function>
inline void by_words(Dtype dtype, bool pairs, const Function& f) {
  if (pairs) return f.template run<Pair>();
  if (dtype == Dtype::kFloat) return f.template run<Single<Dtype::kFloat>>();
  if (dtype == Dtype::kBFloat16) return f.template run<Single<Dtype::kBFloat16>>();
  f.template run<Single<Dtype::kHalf>>();
}

struct LoadRow {
  const void* in;
  int64_t stride, D;
  Word* __restrict__ out;
  template <class Words>
  void run() const {
    int64_t steps = steps_of(D, Words::kElements == 2), s = 0;
    if (stride == 1)
      for (int64_t whole = D / Words::kElements; s + kWidth <= whole; s += kWidth)
        store_vec(out + s, Words::words(in, s));
    for (; s < steps; ++s) out[s] = Words::word(in, stride, D, s);
  }
};

void load_row(const void* in, Dtype dtype, int64_t stride, int64_t D, bool pairs, Word* out) {
  by_words(dtype, pairs, LoadRow{in, stride, D, out});
}

// rows[i][j] becomes rows[j][i]: the halves of the matrix trade places, then the halves of these, down to 1 x 1.
template <int kHalf = kWidth / 2>
inline void transpose(Vec (&rows)[kWidth]) {
  if constexpr (kHalf > 0) {
    IntVec low = {}, high = {};
    for (int lane = 0; lane < kWidth; ++lane) {
      low[lane] = lane & kHalf ? kWidth + lane - kHalf : lane;
      high[lane] = lane & kHalf ? kWidth + lane : lane + kHalf;
    }
    for (int i = 0; i < kWidth; ++i) {
      if (i & kHalf) continue;
      Vec a = rows[i], b = rows[i + kHalf];
      rows[i] = __builtin_shuffle(a, b, low);
      rows[i + kHalf] = __builtin_shuffle(a, b, high);
    }
    transpose<kHalf / 2>(rows);
  }
}

// One panel of 16 columns: to[s][c] = word s of column c, zero from column n on.
template <class Words>
void pack_panel(const char* first, int64_t stride_v, int64_t stride_d, int n, int64_t D, Word* __restrict__ to) {
  int64_t steps = steps_of(D, Words::kElements == 2), s = 0;
  int64_t row_bytes = stride_v * Words::kBytes;
  if (stride_d == 1) {
    for (int64_t whole = D / Words::kElements; s + kWidth <= whole; s += kWidth)
      for (int c0 = 0; c0 < kPanel; c0 += kWidth) {
        Vec rows[kWidth];
        for (int i = 0; i < kWidth; ++i) {
          const char* row = first + (c0 + i) * row_bytes;
          rows[i] = c0 + i < n ? Words::words(row, s) : Vec{};
          __builtin_prefetch(row + kPanel * row_bytes + s * Words::kElements * Words::kBytes, 0, 2);  // the next panel
        }
        transpose(rows);
        for (int i = 0; i < kWidth; ++i) store_vec(to + (s + i) * kPanel + c0, rows[i]);
      }
  } else if (stride_v == 1 && Words::kElements == 1 && n == kPanel) {  // a transposed matrix: columns lie side by side
    for (; s < steps; ++s)
      for (int c = 0; c < kPanel; c += kWidth)
        store_vec(to + s * kPanel + c, Words::words(first + s * stride_d * Words::kBytes, c));
  }
  for (; s < steps; ++s)
    for (int c = 0; c < kPanel; ++c)
      to[s * kPanel + c] = c < n ? Words::word(first + c * row_bytes, stride_d, D, s) : 0;
}

struct PackBlock {
  const void* weight;
  int64_t stride_v, stride_d, v0;
  int n;
  int64_t D;
  Word* out;
  template <class Words>
  void run() const {
    int64_t steps = steps_of(D, Words::kElements == 2);
    for (int panel = 0; panel < kBlockPanels; ++panel) {
      const char* first = static_cast<const char*>(weight) + (v0 + panel * kPanel) * stride_v * Words::kBytes;
      int columns = n - panel * kPanel;
      columns = columns < 0 ? 0 : columns < kPanel ? columns : kPanel;
      pack_panel<Words>(first, stride_v, stride_d, columns, D, out + panel * steps * kPanel);
    }
  }
};

void pack_block(const void* weight, Dtype dtype, int64_t stride_v, int64_t stride_d, int64_t v0, int n, int64_t D,
                bool pairs, Word* out) {
  by_words(dtype, pairs, PackBlock{weight, stride_v, stride_d, v0, n, D, out});
}

struct WidenBlock {
  const Word* pairs;
  int64_t D;
  Word* __restrict__ out;
  template <Dtype kDtype>
  void run() const {
    if constexpr (kDtype != Dtype::kFloat) {
      const Word* from = pairs;
      Word* to = out;
      for (int panel = 0; panel < kBlockPanels; ++panel, from += steps_of(D, true) * kPanel)
        for (int64_t d = 0; d < D; ++d, to += kPanel)
          for (int c = 0; c < kPanel; c += kWidth) store_vec(to + c, half_of<kDtype>(from + d / 2 * kPanel + c, d % 2));
    }
  }
};

void widen_block(const void* stored, Dtype dtype, int64_t D, Word* out) {
  by_dtype(dtype, WidenBlock{static_cast<const Word*>(stored), D, out});
}

}  // namespace
}  // namespace stair::STAIR_ISA
