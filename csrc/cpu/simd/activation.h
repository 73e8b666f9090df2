// The activations' functions of vectors.
#pragma once
#include "cpu/simd/vec.h"

namespace stair::STAIR_ISA {
namespace {

// log(1 + x) of x >= 0: with u = 1 + x rounded, u = 2^k m and m in [sqrt(1/2), sqrt(2)), it is k log 2 + log m + c / u,
// c what the rounding lost. log m by the odd polynomial in (m - 1) / (m + 1) of fdlibm's e_logf.c.
inline Vec log1p_vec(Vec x) {
  Vec u = x + 1.0f;
  IntVec bits = (IntVec)u;
  IntVec k = (bits - 0x3f3504f3) >> 23;
  Vec m = (Vec)(bits - (k << 23));
  Vec lost = (k >= 2 ? 1.0f - (u - x) : x - (u - 1.0f)) / u;
  Vec f = k == 0 ? x : m - 1.0f;
  lost = k == 0 ? Vec{} : lost;
  Vec s = f / (2.0f + f), z = s * s, w = z * z;
  Vec tail = w * (0.40000972152f + w * 0.24279078841f) + z * (0.66666662693f + w * 0.28498786688f);
  Vec half = 0.5f * f * f, K = __builtin_convertvector(k, Vec);
  Vec y = s * (half + tail) + (K * 9.0580006145e-06f + lost) - half + f + K * 6.9313812256e-01f;
  return x <= 3.402823466e38f ? y : x;  // infinity and NaN are their own logarithms
}

void log1p(float* x, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store_vec(x + i, log1p_vec(load_vec(x + i)));
  if (i == n) return;
  Vec rest = {};
  for (int64_t j = i; j < n; ++j) rest[j - i] = x[j];
  rest = log1p_vec(rest);
  for (int64_t j = i; j < n; ++j) x[j] = rest[j - i];
}

}  // namespace
}  // namespace stair::STAIR_ISA
