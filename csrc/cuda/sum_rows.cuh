// Sums of rows: row r of a result [R, D] is the sum of factor * operand[source] over the addends of a list, in their
// order.
//
// A warp sums 512 bytes of a row. Those of a row with many addends are shared out to the warps of the block, by their
// places in the list: its bits depend on nothing else, and nothing is added atomically.
//
// A list has a type Run, `int length` in it, and, for all lanes of a warp,
//   Run run(int r)                  what row r is the sum of: of `length` places some hold an addend
//   int count(Run)                  how many do
//   bool find(Run, int i, Addend&)  whether place i does, and which
#pragma once
#include "cuda/launch.cuh"
#include "cuda/numbers.cuh"

namespace stair {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlocksEach = 4;                    // on a multiprocessor: 64 registers a thread
constexpr int kInFlight = 4;                      // rows that a warp loads before it adds the first
constexpr int kAlone = 64;                        // addends that a warp sums by itself
constexpr int64_t kMostSummed = INT32_MAX - 256;  // rows, columns and places: the end of a tile is an int as well

inline int64_t blocks_for(int64_t n, int64_t each) { return (n + each - 1) / each; }

// Row `source` of the operand times `factor`.
struct Addend {
  int source;
  float factor;
};

// N numbers of a row that is D wide, from `column` on: 16 bytes.
template <class T>
struct Piece {
  static constexpr int N = 16 / sizeof(T);
  union {
    uint4 all;
    T each[N];
  };

  __device__ void load(const T* matrix, int row, int column, int D, bool aligned) {
    const T* place = matrix + int64_t(row) * D + column;
    if (aligned) {
      if (column < D) all = *reinterpret_cast<const uint4*>(place);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i)
        if (column + i < D) each[i] = place[i];
    }
  }
  __device__ void store(T* matrix, int row, int column, int D, bool aligned) const {
    T* place = matrix + int64_t(row) * D + column;
    if (aligned) {
      if (column < D) *reinterpret_cast<uint4*>(place) = all;
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i)
        if (column + i < D) place[i] = each[i];
    }
  }
};

// A result [R, D] of sums of rows of `operand` [., D]. `aligned`: every row of both begins at a multiple of 16 bytes.
template <class T>
struct Sums {
  const T* operand;
  T* out;
  int R, D;
  bool aligned;
};

// Adds every step-th 32 of the run's places, from the first-th on.
template <class T, class List, int N>
__device__ void add(const Sums<T>& sums, const List& list, const typename List::Run& run, int column, int first,
                    int step, float (&total)[N]) {
  for (int64_t begin = first * 32; begin < run.length; begin += step * 32) {
    const int64_t i = begin + threadIdx.x % 32;
    Addend mine = {};
    const bool found = i < run.length && list.find(run, int(i), mine);
    uint32_t wanted = __ballot_sync(kAllLanes, found);
    while (wanted) {
      Piece<T> loaded[kInFlight];
      float factor[kInFlight];
      const int count = __popc(wanted);
#pragma unroll
      for (int l = 0; l < kInFlight; ++l) {
        if (l >= count) continue;
        const int lane = __ffs(int(wanted)) - 1;
        wanted &= wanted - 1;
        factor[l] = __shfl_sync(kAllLanes, mine.factor, lane);
        loaded[l].load(sums.operand, __shfl_sync(kAllLanes, mine.source, lane), column, sums.D, sums.aligned);
      }
#pragma unroll
      for (int l = 0; l < kInFlight; ++l) {
        if (l >= count) continue;
#pragma unroll
        for (int n = 0; n < N; ++n) total[n] += factor[l] * widen(loaded[l].each[n]);
      }
    }
  }
}

template <class T, int N>
__device__ void store(const Sums<T>& sums, int row, int column, const float (&total)[N]) {
  Piece<T> out;
#pragma unroll
  for (int n = 0; n < N; ++n) narrow(total[n], out.each[n]);
  out.store(sums.out, row, column, sums.D, sums.aligned);
}

// Block (x, y): rows x * kWarps and on, columns y * 32 * N and on. A warp a row, then all of them each long row.
template <class T, class List>
__global__ void __launch_bounds__(kThreads, kBlocksEach) sum_rows(Sums<T> sums, List list) {
  constexpr int N = Piece<T>::N;
  STAIR_SHARED(lengths, int[kWarps]);
  STAIR_SHARED(partial, float[kWarps - 1][N][32]);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = int(blockIdx.x) * kWarps, column = (int(blockIdx.y) * 32 + lane) * N;
  if (first + warp < sums.R) {
    const auto run = list.run(first + warp);
    const int length = list.count(run);
    if (lane == 0) lengths[warp] = length;
    if (length <= kAlone) {
      float total[N] = {};
      add(sums, list, run, column, 0, 1, total);
      store(sums, first + warp, column, total);
    }
  } else if (lane == 0) {
    lengths[warp] = 0;
  }
  __syncthreads();
  for (int row = 0; row < kWarps; ++row) {
    if (lengths[row] <= kAlone) continue;
    float total[N] = {};
    add(sums, list, list.run(first + row), column, warp, kWarps, total);
#pragma unroll
    for (int n = 0; n < N; ++n)
      if (warp > 0) partial[warp - 1][n][lane] = total[n];
    __syncthreads();
    if (warp == 0) {
      for (int other = 0; other < kWarps - 1; ++other)
#pragma unroll
        for (int n = 0; n < N; ++n) total[n] += partial[other][n][lane];
      store(sums, first + row, column, total);
    }
    __syncthreads();
  }
}

inline bool is_aligned(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0; }

template <class T, class List>
void run_sum(const OnDevice& device, const Tensor& operand, Tensor& out, int64_t R, List list) {
  const int64_t D = operand.size(operand.dim() - 1);
  if (R == 0 || D == 0) return;
  const bool vectors = D % Piece<T>::N == 0 && is_aligned(operand) && is_aligned(out);
  const Sums<T> sums = {static_cast<const T*>(operand.const_data_ptr()), static_cast<T*>(out.mutable_data_ptr()),
                        int(R), int(D), vectors};
  const dim3 grid(blocks_for(R, kWarps), blocks_for(D, 32 * Piece<T>::N));
  device.launch(&sum_rows<T, List>, grid, kThreads, 0, sums, list);
}

// out [R, D], each row the sum of the list's rows of `operand`
template <class List>
void sum_into(const OnDevice& device, const Tensor& operand, Tensor& out, int64_t R, List list) {
  if (operand.scalar_type() == ScalarType::Float) run_sum<float>(device, operand, out, R, list);
  if (operand.scalar_type() == ScalarType::BFloat16) run_sum<BFloat16>(device, operand, out, R, list);
  if (operand.scalar_type() == ScalarType::Half) run_sum<Float16>(device, operand, out, R, list);
}

}  // namespace stair
