// The activations and their slopes.
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

// exp(x) = 2^k exp(r), |r| <= log(2) / 2, by the polynomial of Cephes' expf.c; within 2 ulp, subnormal results too
inline Vec exp_vec(Vec x) {
  const float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the lowest bits
  x = x < -104.0f ? splat(-104.0f) : x > 89.0f ? splat(89.0f) : x;
  Vec rounded = x * 1.44269504f + round;
  IntVec k = (IntVec)rounded - (IntVec)(splat(round));
  Vec K = rounded - round;
  Vec r = x - K * 0.693359375f - K * -2.12194440e-4f;
  Vec p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r +
           1.6666665459e-1f) *
              r +
          5.0000001201e-1f;
  IntVec half = k >> 1;  // in two factors: one alone has no 2^k below 2^-126
  return (p * r * r + r + 1.0f) * (Vec)((half + 127) << 23) * (Vec)((k - half + 127) << 23);
}

inline Vec relu_vec(Vec x) { return x <= 0.0f ? Vec{} : x; }  // NaN stays

inline Vec activate_vec(Vec x, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return relu_vec(x);
    case Activation::kLogRelu:
      return log1p_vec(relu_vec(x));
    case Activation::kLogLogRelu:
      return log1p_vec(log1p_vec(relu_vec(x)));
    default:
      return x > 0.0f ? x + 1.0f : exp_vec(x);  // elu1p
  }
}

inline Vec slope_vec(Vec y, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return splat(1.0f);
    case Activation::kLogRelu:
      return exp_vec(-y);  // 1 / (1 + x)
    case Activation::kLogLogRelu: {
      Vec t = exp_vec(y);  // 1 + log1p(x)
      return exp_vec(1.0f - t) / t;
    }
    default:
      return y > 1.0f ? splat(1.0f) : y;  // elu1p: 1 or exp(x)
  }
}

template <Vec (*kFunction)(Vec, Activation)>
void apply(const float* in, int64_t n, Activation activation, float* out) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store_vec(out + i, kFunction(load_vec(in + i), activation));
  if (i == n) return;
  Vec rest = {};
  for (int64_t j = i; j < n; ++j) rest[j - i] = in[j];
  rest = kFunction(rest, activation);
  for (int64_t j = i; j < n; ++j) out[j] = rest[j - i];
}

}  // namespace
}  // namespace stair::STAIR_ISA
