// What nvcc makes of ordinary CUDA C++, for tests/test_ptx_nvcc.py.
#include <cuda_bf16.h>

extern "C" __global__ void activation(const float* x, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = log1pf(fmaxf(x[i], 0.0f)) / 3.0f + floorf(x[i]) + fmodf(x[i], 0.7f) + expf(-fabsf(x[i]));
}

// The array has a computed index, so that it lies in local memory.
extern "C" __global__ void scatter(const float* x, const int* place, float* out, int n) {
  float sums[8] = {};
  for (int i = 0; i < n; ++i) sums[place[i] & 7] += x[threadIdx.x * n + i];
  for (int i = 0; i < 8; ++i) out[threadIdx.x * 8 + i] = sums[i];
}

extern "C" __global__ void count_positive(const float* x, int* out) {
  const int positive = x[blockIdx.x * blockDim.x + threadIdx.x] > 0.0f;
  const int count = __syncthreads_count(positive);
  if (threadIdx.x == 0) out[blockIdx.x] = count + 1000 * __popc(__ballot_sync(1u, positive));
}

// A row a warp: its largest value by shuffles, and a histogram of the remainders by shared atomics.
extern "C" __global__ void row_statistics(const int* x, int* largest, int* histogram, int columns) {
  __shared__ int counts[16];
  if (threadIdx.x < 16) counts[threadIdx.x] = 0;
  __syncthreads();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int best = -2147483647;
  for (int c = lane; c < columns; c += 32) {
    const int value = x[warp * columns + c];
    best = max(best, value);
    atomicAdd(&counts[value % 13], 1);
  }
  for (int step = 16; step; step /= 2) best = max(best, __shfl_xor_sync(0xffffffffu, best, step));
  if (lane == 0) largest[warp] = best;
  __syncthreads();
  if (threadIdx.x < 16) atomicAdd(&histogram[threadIdx.x], counts[threadIdx.x]);
}

extern "C" __global__ void scale_bf16(const __nv_bfloat16* x, __nv_bfloat16* out, float factor) {
  const int i = threadIdx.x;
  out[i] = __float2bfloat16_rn(__bfloat162float(x[i]) * factor);
}
