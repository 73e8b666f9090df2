// A row of values or of entries, offered to a selection from one end to the other.
#pragma once
#include <cmath>

#include "cuda/numbers.cuh"
#include "cuda/select.cuh"

namespace stair {
namespace {

constexpr int kTile = 4096;  // elements that a block reads at a time: 16 a thread, two to eight loads in flight
constexpr int kEach = kTile / kThreads;

// What the elements of a row are to a selection: values, or of the second launch entries.
template <class T>
struct Element {
  using Value = float;
  static __device__ float none() { return -INFINITY; }
  static __device__ float of(T x) { return widen(x); }
  static __device__ uint64_t entry(float value, int index) { return entry_of(value, index); }
};
template <>
struct Element<uint64_t> {
  using Value = uint64_t;
  static __device__ uint64_t none() { return kNoEntry; }
  static __device__ uint64_t of(uint64_t x) { return x; }
  static __device__ uint64_t entry(uint64_t entry, int) { return entry; }
};

// out[i] is element at + i of `elements`, none outside of [begin, end). elements + at is a multiple of 16 bytes.
template <class T, int N>
__device__ __forceinline__ void load(const T* elements, int at, int begin, int end,
                                     typename Element<T>::Value (&out)[N]) {
  static_assert(N * sizeof(T) == 16);
  if (at >= begin && at + N <= end) {
    union {
      uint4 all;
      T each[N];
    } loaded;
    loaded.all = load_once(elements + at);
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = Element<T>::of(loaded.each[i]);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i)
      out[i] = at + i >= begin && at + i < end ? Element<T>::of(elements[at + i]) : Element<T>::none();
  }
}

// Offers row [n], whose first element has the index `first`. It may start anywhere: V need not be a multiple of 16
// bytes.
template <class T>
__device__ void offer_row(Selection& selection, const T* row, int n, int first) {
  constexpr int N = 16 / sizeof(T), kLoads = kEach / N;
  const auto begin = int(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
  const T* elements = row - begin;
  const int end = begin + n;
  for (int tile = 0; tile < end; tile += kTile) {
    typename Element<T>::Value value[kLoads][N];
    const int mine = tile + int(threadIdx.x) * N;
#pragma unroll
    for (int l = 0; l < kLoads; ++l) load<T, N>(elements, mine + l * kThreads * N, begin, end, value[l]);
    uint32_t wanted = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) wanted |= uint32_t(selection.passes(value[i / N][i % N])) << i;
    selection.offer<kEach>(wanted, [&](int i) {
      return Element<T>::entry(value[i / N][i % N], first + mine - begin + i / N * kThreads * N + i % N);
    });
  }
}

}  // namespace
}  // namespace stair
