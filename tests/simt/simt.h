// CUDA C++ for g++: what a kernel of csrc/cuda/ uses of the language, on the threads of runtime.h. A name that is not
// here does not compile: it is added here, with its meaning in the programming guide, when a kernel needs it.
//
// A kernel's own `__shared__ int x[8]` is written STAIR_SHARED(x, int[8]), and a launch is launch() of
// csrc/cuda/launch.cuh.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

#define threadIdx (simt::thread_idx())
#define blockIdx (simt::block_idx())
#define blockDim (simt::block_dim())
#define gridDim (simt::grid_dim())

// The lambda's type tells variables of one type apart, and those of the instantiations of a template.
#define STAIR_SHARED(name, ...) auto& name = simt::shared_variable<__VA_ARGS__>([] {})
#define STAIR_DYNAMIC_SHARED(name, T) T* name = static_cast<T*>(simt::dynamic_shared())

#define SIMT_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define SIMT_HERE \
  simt::Site { __func__, file, line }

namespace simt {

template <class T, class Tag>
T& shared_variable(Tag) {
  static const char name = 0;
  return *static_cast<T*>(shared(&name, sizeof(T)));
}

template <class T>
uint64_t bits_of(T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// A shuffle: what lane `source` of the warp brought.
template <class T>
T shuffle(uint32_t mask, T value, int source, Site site) {
  return from_bits<T>(brought(meet(mask, bits_of(value), false, site), source, site));
}

}  // namespace simt

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

// Barriers. Those with a predicate give its outcome over the block.
inline void __syncthreads(SIMT_SITE) { simt::barrier(false, SIMT_HERE); }
inline int __syncthreads_count(int predicate, SIMT_SITE) { return simt::barrier(predicate, SIMT_HERE); }
inline int __syncthreads_or(int predicate, SIMT_SITE) { return simt::barrier(predicate, SIMT_HERE) > 0; }
inline int __syncthreads_and(int predicate, SIMT_SITE) { return simt::barrier(!predicate, SIMT_HERE) == 0; }
inline void __syncwarp(uint32_t mask = ~0u, SIMT_SITE) { simt::meet(mask, 0, true, SIMT_HERE); }

// Shuffles. A lane outside the segment of `width` lanes gives the caller its own value, as the hardware does; one that
// does not take part is a fault.
template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32, SIMT_SITE) {
  int lane = simt::lane();
  return simt::shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)), SIMT_HERE);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32, SIMT_SITE) {
  int lane = simt::lane(), source = lane ^ bits;
  return simt::shuffle(mask, value, source < (lane & ~(width - 1)) + width ? source : lane, SIMT_HERE);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned distance, int width = 32, SIMT_SITE) {
  int lane = simt::lane();
  return simt::shuffle(mask, value, lane % width >= int(distance) ? lane - int(distance) : lane, SIMT_HERE);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned distance, int width = 32, SIMT_SITE) {
  int lane = simt::lane();
  return simt::shuffle(mask, value, lane % width + int(distance) < width ? lane + int(distance) : lane, SIMT_HERE);
}

// Votes and matches.
inline uint32_t __ballot_sync(uint32_t mask, int predicate, SIMT_SITE) {
  const simt::Meeting& meeting = simt::meet(mask, predicate != 0, false, SIMT_HERE);
  uint32_t votes = 0, members = simt::members(meeting);
  for (int lane = 0; lane < 32; ++lane)
    if (members >> lane & 1) votes |= uint32_t(simt::brought(meeting, lane, SIMT_HERE)) << lane;
  return votes;
}
inline int __any_sync(uint32_t mask, int predicate, SIMT_SITE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(uint32_t mask, int predicate, SIMT_SITE) {
  return __ballot_sync(mask, !predicate, file, line) == 0;
}
template <class T>
uint32_t __match_any_sync(uint32_t mask, T value, SIMT_SITE) {
  const simt::Meeting& meeting = simt::meet(mask, simt::bits_of(value), false, SIMT_HERE);
  uint32_t same = 0, members = simt::members(meeting);
  for (int lane = 0; lane < 32; ++lane)
    if (members >> lane & 1) same |= uint32_t(simt::brought(meeting, lane, SIMT_HERE) == simt::bits_of(value)) << lane;
  return same;
}

// Atomics, relaxed as in CUDA: they order nothing else.
template <class T>
T atomicAdd(T* place, T value) {
  if constexpr (std::is_integral_v<T>) return __atomic_fetch_add(place, value, __ATOMIC_RELAXED);
  T old, sum;
  __atomic_load(place, &old, __ATOMIC_RELAXED);
  do sum = old + value;
  while (!__atomic_compare_exchange(place, &old, &sum, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}
template <class T>
T atomicMax(T* place, T value) {
  T old = __atomic_load_n(place, __ATOMIC_RELAXED);
  while (old < value && !__atomic_compare_exchange_n(place, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
template <class T>
T atomicMin(T* place, T value) {
  T old = __atomic_load_n(place, __ATOMIC_RELAXED);
  while (value < old && !__atomic_compare_exchange_n(place, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
template <class T>
T atomicOr(T* place, T value) {
  return __atomic_fetch_or(place, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicExch(T* place, T value) {
  return __atomic_exchange_n(place, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicCAS(T* place, T expected, T value) {
  __atomic_compare_exchange_n(place, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}

using std::max;
using std::min;

template <class T>
T __ldg(const T* place) {
  return *place;
}
// One operation each, never fused with another: g++ is not told of an instruction that could.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(unsigned(bits)) : 32; }
inline int __clzll(long long bits) { return bits ? __builtin_clzll((unsigned long long)bits) : 64; }
inline float __int_as_float(int bits) { return simt::from_bits<float>(uint32_t(bits)); }
inline int __float_as_int(float value) { return int(simt::bits_of(value)); }
inline float __uint_as_float(unsigned bits) { return simt::from_bits<float>(bits); }
inline unsigned __float_as_uint(float value) { return unsigned(simt::bits_of(value)); }
