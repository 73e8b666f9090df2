// The backward: scaled rows added to rows.
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
        Vec s = Vec{} + scale[i], sum[kVecs];
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

}  // namespace
}  // namespace stair::STAIR_ISA
