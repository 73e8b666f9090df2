// Sums over the lanes of a warp, all of which take part.
#pragma once
#include "cuda/ptx.cuh"

namespace stair {

// Of all lanes, in each of them; the order of the additions is always the same.
template <class T>
__device__ __forceinline__ T sum_of_warp(T x) {
#pragma unroll
  for (int step = 16; step; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// Of the lanes up to and with this one.
__device__ __forceinline__ int sum_up_to_lane(int x) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(kAllLanes, x, step);
    if (lane >= step) x += before;
  }
  return x;
}

// Of this lane and those after it.
__device__ __forceinline__ int sum_from_lane(int x) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int further = __shfl_down_sync(kAllLanes, x, step);
    if (lane + step < 32) x += further;
  }
  return x;
}

}  // namespace stair
