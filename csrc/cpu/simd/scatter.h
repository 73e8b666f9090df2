// The backward: dot products of rows, scaled rows added to rows, and float32 sums as the gradient's dtype.
#pragma once
#include "cpu/simd/vec.h"

namespace stair::STAIR_ISA {
namespace {

struct Scatter {
  float* y;
  const int32_t* to;
  const float* scale;
  const void* x;
  const int32_t* from;
  int64_t n, D;

  // A slice of D at a time: the slices of all rows of y and x that a block touches stay in L1.
  template <Dtype kDtype>
  void run() const {
    constexpr int kVecs = 4;
    int64_t d = 0;
    for (; d + kVecs * kWidth <= D; d += kVecs * kWidth)
      for (int64_t i = 0; i < n; ++i) {
        float* out = y + to[i] * D + d;
        Vec s = splat(scale[i]), sum[kVecs];
        for (int j = 0; j < kVecs; ++j)
          sum[j] = load_vec(out + j * kWidth) + s * load_wide<kDtype>(x, from[i] * D + d + j * kWidth);
        for (int j = 0; j < kVecs; ++j) store_vec(out + j * kWidth, sum[j]);
      }
    for (; d + kWidth <= D; d += kWidth)
      for (int64_t i = 0; i < n; ++i) {
        float* out = y + to[i] * D + d;
        store_vec(out, load_vec(out) + scale[i] * load_wide<kDtype>(x, from[i] * D + d));
      }
    if (d == D) return;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t rest = d; rest < D; ++rest) y[to[i] * D + rest] += scale[i] * element<kDtype>(x, from[i] * D + rest);
  }
};

void scatter(float* y, const int32_t* to, const float* scale, const void* x, const int32_t* from, Dtype dtype,
             int64_t n, int64_t D) {
  by_dtype(dtype, Scatter{y, to, scale, x, from, n, D});
}

struct Dots {
  const void* x;
  const int32_t* from;
  const void* w;
  const int32_t* of;
  int64_t n, D;
  float* out;

  template <Dtype kDtype>
  void run() const {
    constexpr int kVecs = 4;  // sums side by side: an addition waits for the one before
    for (int64_t i = 0; i < n; ++i) {
      const int64_t a = from[i] * D, b = of[i] * D;
      Vec sum[kVecs] = {};
      int64_t d = 0;
      for (; d + kVecs * kWidth <= D; d += kVecs * kWidth)
        for (int j = 0; j < kVecs; ++j)
          sum[j] += load_wide<kDtype>(x, a + d + j * kWidth) * load_wide<kDtype>(w, b + d + j * kWidth);
      for (; d + kWidth <= D; d += kWidth) sum[0] += load_wide<kDtype>(x, a + d) * load_wide<kDtype>(w, b + d);
      const Vec all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
      float total = 0.0f;
      for (int c = 0; c < kWidth; ++c) total += all[c];
      for (; d < D; ++d) total += element<kDtype>(x, a + d) * element<kDtype>(w, b + d);
      out[i] = total;
    }
  }
};

void dots(const void* x, const int32_t* from, const void* w, const int32_t* of, Dtype dtype, int64_t n, int64_t D,
          float* out) {
  by_dtype(dtype, Dots{x, from, w, of, n, D, out});
}

// Round to nearest, ties to even; NaN stays NaN.
inline uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline uint16_t to_half(float value) {
#if defined(__F16C__)
  return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  return encode_half(value);
#endif
}

void narrow(const float* in, int64_t n, Dtype dtype, void* out) {
  if (dtype == Dtype::kFloat) {
    std::memcpy(out, in, n * 4);
    return;
  }
  auto* __restrict__ to = static_cast<uint16_t*>(out);
  if (dtype == Dtype::kBFloat16)
    for (int64_t i = 0; i < n; ++i) to[i] = to_bfloat16(in[i]);
  else
    for (int64_t i = 0; i < n; ++i) to[i] = to_half(in[i]);
}

}  // namespace
}  // namespace stair::STAIR_ISA
