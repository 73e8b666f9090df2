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

// Within every 16 bytes, a and b become the lower and the upper half of their elements in turn, kSize at a time.
template <int kSize>
inline void interleave(Vec& a, Vec& b) {
  IntVec low = {};
  for (int i = 0; i < kWidth; ++i) {
    int lane = i / 4 * 4, place = i % 4 / kSize;
    low[i] = lane + place / 2 * kSize + place % 2 * kWidth + i % kSize;
  }
  Vec lower = __builtin_shuffle(a, b, low);
  b = __builtin_shuffle(a, b, low + 2);
  a = lower;
}

// a and b become their even and their odd 16 bytes, those of a first.
inline void deal(Vec& a, Vec& b) {
  IntVec even = {};
  for (int i = 0; i < kWidth; ++i) even[i] = i / 4 * 8 + i % 4;
  Vec evens = __builtin_shuffle(a, b, even);
  b = __builtin_shuffle(a, b, even + 4);
  a = evens;
}

// rows[i][j] becomes rows[j][i]: squares of 4 x 4 first, then these as elements of 16 bytes. Each step is one
// instruction that needs no register of indices.
inline void transpose(Vec (&rows)[kWidth]) {
#pragma GCC unroll 4
  for (int g = 0; g < kWidth; g += 4) {
    interleave<1>(rows[g], rows[g + 1]);
    interleave<1>(rows[g + 2], rows[g + 3]);
    interleave<2>(rows[g], rows[g + 2]);
    interleave<2>(rows[g + 1], rows[g + 3]);
    Vec second = rows[g + 2];
    rows[g + 2] = rows[g + 1];
    rows[g + 1] = second;
  }
#pragma GCC unroll 2
  for (int half = 4; half < kWidth; half *= 2)
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i)
      if (!(i & half)) deal(rows[i], rows[i + half]);
}

// The columns of a block from `from` on.
inline Columns columns_from(const Columns& block, int from) {
  Columns rest = block;
  rest.first += from;
  rest.count = block.count > from ? block.count - from : 0;
  return rest;
}

// How many words of kWidth columns load_transposed can give: those of D whole vectors, where kWidth columns are left
// and their elements are neighbours along D.
template <class Words>
inline int64_t whole_words(const Columns& columns) {
  bool whole = columns.stride_d == 1 && columns.count >= kWidth;
  return whole ? columns.D / Words::kElements / kWidth * kWidth : 0;
}

// words[i] = word s + i of the first kWidth columns. Asks for the same words of the next panel.
template <class Words>
inline void load_transposed(const Columns& columns, int64_t s, Vec (&words)[kWidth]) {
  int64_t row_bytes = columns.stride_v * Words::kBytes;
  const char* row = static_cast<const char*>(columns.weight) + columns.first * row_bytes;
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i, row += row_bytes) {
    words[i] = Words::words(row, s);
    __builtin_prefetch(row + kPanel * row_bytes + s * Words::kElements * Words::kBytes, 0, 2);
  }
  transpose(words);
}

// Word s of column c, zero past the last.
template <class Words>
inline Word word_of(const Columns& columns, int c, int64_t s) {
  auto* weight = static_cast<const char*>(columns.weight);
  const char* row = weight + (columns.first + c) * columns.stride_v * Words::kBytes;
  return c < columns.count ? Words::word(row, columns.stride_d, columns.D, s) : 0;
}

// A panel of the first 16 columns: to[s][c] = word s of column c.
template <class Words>
void pack_panel(const Columns& columns, int64_t steps, Word* __restrict__ to) {
  if (columns.stride_v == 1 && columns.stride_d != 1 && Words::kElements == 1 && columns.count >= kPanel) {
    // a transposed matrix: columns lie side by side
    auto* first = static_cast<const char*>(columns.weight) + columns.first * Words::kBytes;
    for (int64_t s = 0; s < steps; ++s)
      for (int c = 0; c < kPanel; c += kWidth)
        store_vec(to + s * kPanel + c, Words::words(first + s * columns.stride_d * Words::kBytes, c));
    return;
  }
  for (int c = 0; c < kPanel; c += kWidth) {
    Columns part = columns_from(columns, c);
    int64_t s = 0;
    for (int64_t whole = whole_words<Words>(part); s < whole; s += kWidth) {
      Vec words[kWidth];
      load_transposed<Words>(part, s, words);
      for (int i = 0; i < kWidth; ++i) store_vec(to + (s + i) * kPanel + c, words[i]);
    }
    for (; s < steps; ++s)
      for (int i = 0; i < kWidth; ++i) to[s * kPanel + c + i] = word_of<Words>(part, i, s);
  }
}

struct PackBlock {
  const Columns& columns;
  Word* out;
  template <class Words>
  void run() const {
    int64_t steps = steps_of(columns.D, Words::kElements == 2);
    for (int panel = 0; panel < kBlockPanels; ++panel)
      pack_panel<Words>(columns_from(columns, panel * kPanel), steps, out + panel * steps * kPanel);
  }
};

void pack_block(const Columns& columns, bool pairs, Word* out) {
  by_words(columns.dtype, pairs, PackBlock{columns, out});
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
