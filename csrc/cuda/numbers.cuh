// Numbers of every dtype of an operand, in float32 and back.
#pragma once
#include "cuda/ptx.cuh"

namespace stair {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(BFloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
__device__ __forceinline__ float widen(Float16 x) { return half_to_float(x.bits); }

// To the nearest, ties to even.
__device__ __forceinline__ void narrow(float x, float& out) { out = x; }
__device__ __forceinline__ void narrow(float x, BFloat16& out) { out.bits = float_to_bfloat(x); }
__device__ __forceinline__ void narrow(float x, Float16& out) { out.bits = float_to_half(x); }

}  // namespace stair
