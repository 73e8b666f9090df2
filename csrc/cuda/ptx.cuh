// What CUDA C++ has no word for: each function is one instruction, beside what it does on the host.
//
// A kernel includes this and nothing of CUDA. nvcc compiles it for a GPU; without nvcc it is g++ that compiles it, for
// the threads of tests/simt.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_runtime.h>
// A variable of the block, and the memory that the launch asks for.
#define STAIR_SHARED(name, ...)                     \
  using name##_type [[maybe_unused]] = __VA_ARGS__; \
  __shared__ __align__(16) name##_type name
#define STAIR_DYNAMIC_SHARED(name, T)                           \
  extern __shared__ __align__(16) unsigned char name##_bytes[]; \
  T* name = reinterpret_cast<T*>(name##_bytes)
#else
#include "simt.h"
#endif

namespace stair {

constexpr uint32_t kAllLanes = ~0u;

// 16 bytes that are read once: not kept in L1, whose room shared memory needs. Nobody may write them in this launch.
__device__ __forceinline__ uint4 load_once(const void* place) {
#ifdef __CUDACC__
  uint4 out;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
      : "l"(place));
  return out;
#else
  return *static_cast<const uint4*>(place);
#endif
}

// A float16, given by its bits.
__device__ __forceinline__ float half_to_float(uint16_t bits) {
#ifdef __CUDACC__
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(bits));
  return out;
#else
  _Float16 half;
  static_assert(sizeof half == sizeof bits);
  std::memcpy(&half, &bits, sizeof half);
  return float(half);
#endif
}

// The nearest float16 and the nearest bfloat16, ties to even, given by their bits.
__device__ __forceinline__ uint16_t float_to_half(float value) {
#ifdef __CUDACC__
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  const auto half = _Float16(value);
  uint16_t bits;
  std::memcpy(&bits, &half, sizeof bits);
  return bits;
#endif
}
__device__ __forceinline__ uint16_t float_to_bfloat(float value) {
#ifdef __CUDACC__
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  const uint32_t bits = __float_as_uint(value);
  return value != value ? 0x7fff : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#endif
}

}  // namespace stair
