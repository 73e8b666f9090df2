// Vectors of the instruction set that is being compiled, and elements of the three dtypes read as float32.
#pragma once
#include <cstring>

#include "cpu/simd/kernels.h"
#include "half.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace stair::STAIR_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

// Two neighbouring bfloat16 are read as one word wherever they lie: aligned to 2 bytes.
using Vec = float __attribute__((vector_size(kWidth * 4), aligned(2), may_alias));
using IntVec = int32_t __attribute__((vector_size(kWidth * 4), aligned(2), may_alias));

// x in all places. Minus zero: adding it would make 0 of -0, and so cost an addition.
inline Vec splat(float x) { return x - Vec{}; }

inline Vec load_vec(const void* p) { return *static_cast<const Vec*>(p); }
inline void store_vec(void* p, Vec v) { *static_cast<Vec*>(p) = v; }

// Bit c: !(x[c] <= floor), so that NaN counts as above.
inline uint32_t above(Vec x, Vec floor) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x, (__m512)floor, _CMP_NLE_UQ);
#elif defined(__AVX2__)
  return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps((__m256)x, (__m256)floor, _CMP_NLE_UQ)));
#else
  uint32_t bits = 0;
  for (int c = 0; c < kWidth; ++c) bits |= uint32_t(!(x[c] <= floor[c])) << c;
  return bits;
#endif
}

inline float from_bfloat16(uint16_t bits) {
  uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline float from_half(uint16_t bits) {
#if defined(__F16C__)
  return _cvtsh_ss(bits);
#else
  return decode_half(bits);
#endif
}

template <Dtype kDtype>
inline float element(const void* p, int64_t i) {
  if constexpr (kDtype == Dtype::kFloat) return static_cast<const float*>(p)[i];
  uint16_t bits = static_cast<const uint16_t*>(p)[i];
  return kDtype == Dtype::kBFloat16 ? from_bfloat16(bits) : from_half(bits);
}

// Elements [i, i + kWidth) as float32.
template <Dtype kDtype>
inline Vec load_wide(const void* p, int64_t i) {
  if constexpr (kDtype == Dtype::kFloat) return load_vec(static_cast<const float*>(p) + i);
  auto* at = static_cast<const uint16_t*>(p) + i;
  if constexpr (kDtype == Dtype::kBFloat16) {
    using Narrow = uint16_t __attribute__((vector_size(kWidth * 2), aligned(2), may_alias));
    using Wide = uint32_t __attribute__((vector_size(kWidth * 4)));
    return (Vec)(__builtin_convertvector(*reinterpret_cast<const Narrow*>(at), Wide) << 16);
  }
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
#elif defined(__F16C__)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
#else
  Vec v;
  for (int c = 0; c < kWidth; ++c) v[c] = from_half(at[c]);
  return v;
#endif
}

// Calls f.run<dtype>().
template <class Function>
inline void by_dtype(Dtype dtype, const Function& f) {
  if (dtype == Dtype::kFloat) return f.template run<Dtype::kFloat>();
  if (dtype == Dtype::kBFloat16) return f.template run<Dtype::kBFloat16>();
  f.template run<Dtype::kHalf>();
}

}  // namespace
}  // namespace stair::STAIR_ISA
