// The k best of more entries than anybody wants to sort, by a block: entries that beat a bound are collected in shared
// memory; when it is full, a radix selection keeps the k best and raises the bound.
//
// Why this and not another selection. The input is read once, from one end to the other, and soon nearly nothing passes
// the bound: of V entries in random order about capacity + k * ln(V / capacity) do. Selection by radix in global memory
// (RAFT's select_radix, AIR top-k) reads its input two to four times; queues in registers (FAISS' warp-select) hold
// k / 32 entries a lane, too many registers from k = 256 on, and one lane's full queue stops its warp for a sort. The
// worst case, a row in ascending order, selects once for every capacity - k entries; so does a row of NaN.
//
// An entry is one number: its value's bits in the order of the values, then its index turned round. They are all
// different, so that "the k largest" has one answer: ties go to the lower index, in whatever order threads run. NaN is
// the largest value of all, so that it is never lost.
#pragma once
#include "cuda/ptx.cuh"
#include "cuda/warp.cuh"

namespace stair {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxKept = 2048;    // the largest k
constexpr uint64_t kNoEntry = 0;  // below every entry

__device__ __forceinline__ uint64_t entry_of(float value, int index) {
  constexpr uint32_t kSign = 1u << 31;
  const uint32_t bits = __float_as_uint(value + 0.0f);  // -0 is 0
  const uint32_t ordered = value != value ? ~0u : bits & kSign ? ~bits : bits | kSign;
  return uint64_t(ordered) << 32 | ~uint32_t(index);
}

__device__ __forceinline__ float value_of(uint64_t entry) {
  constexpr uint32_t kSign = 1u << 31;
  const auto ordered = uint32_t(entry >> 32);
  return __uint_as_float(ordered & kSign ? ordered ^ kSign : ~ordered);
}

__device__ __forceinline__ int index_of(uint64_t entry) { return int(~uint32_t(entry)); }

__device__ __forceinline__ bool is_nan_entry(uint64_t entry) { return entry >> 32 == ~0u; }

// Room for a selection of k: a power of two, at least 2k. More makes fewer selections, less lets more blocks share a
// multiprocessor.
inline int capacity_of(int64_t k) {
  int capacity = 1024;
  while (capacity < 4 * k && capacity < 2 * kMaxKept) capacity *= 2;
  return capacity;
}

class Selection {
 public:
  struct Shared {
    int count;  // entries that have been given a slot, or would have been
    int digit, above, within;
    int warp_count[kWarps];
    int bins[kThreads];
    uint64_t warp_bits[kWarps];
  };

  // The k best above `floor`, in entries [capacity]. Every function is called by all threads of the block.
  __device__ Selection(uint64_t* entries, Shared& shared, int capacity, int k, float floor)
      : entries_(entries), shared_(shared), capacity_(capacity), full_((capacity + k) / 2), k_(k), floor_(floor) {
    bound_value_ = floor;
    if (threadIdx.x == 0) shared_.count = 0;
    __syncthreads();
  }

  // Whether an entry that comes after all that have been offered may still be one of the best.
  __device__ bool passes(float value) const { return !(value <= bound_value_); }
  __device__ bool passes(uint64_t entry) const { return entry >= bound_; }

  // Takes entry(i) for the bits i < N of `wanted`.
  template <int N, class Entry>
  __device__ void offer(uint32_t wanted, Entry entry) {
    while (__syncthreads_or(push<N>(wanted, entry))) {
      keep_best();
#pragma unroll
      for (int i = 0; i < N; ++i)
        if (entry(i) < bound_) wanted &= ~(1u << i);
    }
  }

  // Leaves the k best at the front, in no order, and returns how many there are.
  __device__ int finish() {
    if (shared_.count > k_) keep_best();
    return shared_.count;
  }

  // Puts the first n in descending order.
  __device__ void sort(int n);

 private:
  // Gives slots to as many wanted entries as there is room for, a run of slots a warp, and takes them off `wanted`.
  // True when a selection is due.
  template <int N, class Entry>
  __device__ bool push(uint32_t& wanted, Entry entry) {
    if (!__any_sync(kAllLanes, wanted)) return false;
    const int lane = threadIdx.x % 32, mine = __popc(wanted);
    const int end = sum_up_to_lane(mine);
    int start = 0;
    if (lane == 31) start = atomicAdd(&shared_.count, end);
    int slot = __shfl_sync(kAllLanes, start, 31) + end - mine;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (!(wanted >> i & 1)) continue;
      if (slot < capacity_) {
        entries_[slot] = entry(i);
        wanted &= ~(1u << i);
      }
      ++slot;
    }
    return wanted || (mine && slot > full_);
  }

  __device__ void keep_best();
  __device__ uint64_t lowest_of_best(int n);
  __device__ int highest_difference(int n);
  __device__ void find_bin(int want);

  uint64_t* entries_;
  Shared& shared_;
  int capacity_, full_, k_;
  float floor_, bound_value_;
  uint64_t bound_ = 1;
};

// Entries below the bound leave; the others close ranks, in place: 256 are read before any of their slots is written.
inline __device__ void Selection::keep_best() {
  const int n = min(shared_.count, capacity_), lane = threadIdx.x % 32;
  const uint64_t lowest = lowest_of_best(n);
  if (threadIdx.x == 0) shared_.count = 0;
  for (int first = 0; first < n; first += kThreads) {
    const int i = first + threadIdx.x;
    const uint64_t entry = i < n ? entries_[i] : kNoEntry;
    const bool kept = i < n && entry >= lowest;
    __syncthreads();
    const uint32_t of_warp = __ballot_sync(kAllLanes, kept);
    int start = 0;
    if (lane == 0 && of_warp) start = atomicAdd(&shared_.count, __popc(of_warp));
    start = __shfl_sync(kAllLanes, start, 0);
    if (kept) entries_[start + __popc(of_warp & ((1u << lane) - 1))] = entry;
  }
  __syncthreads();
  // Never 0: that is no entry. A bound that is no number, below all of them or NaN itself, lets everything pass.
  bound_ = lowest > 1 ? lowest : 1;
  bound_value_ = fmaxf(floor_, value_of(lowest));
}

// A number that exactly the k best of n > k entries reach: by digits of 8 bits, from the first bit in which two entries
// differ until the entries that share all digits so far are all wanted, which is two or three digits, seldom more.
inline __device__ uint64_t Selection::lowest_of_best(int n) {
  int bits = 8, shift = highest_difference(n) - 7, want = k_;
  if (shift < 0) shift = 0;
  uint64_t prefix = shift + bits < 64 ? entries_[0] >> (shift + bits) << (shift + bits) : 0;
  while (true) {
    shared_.bins[threadIdx.x] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += kThreads) {
      const uint64_t digit = (entries_[i] ^ prefix) >> shift;
      if (digit >> bits == 0) atomicAdd(&shared_.bins[digit], 1);
    }
    __syncthreads();
    find_bin(want);
    __syncthreads();
    prefix |= uint64_t(shared_.digit) << shift;
    want -= shared_.above;
    if (want == shared_.within || shift == 0) return prefix;
    bits = min(bits, shift);
    shift -= bits;
  }
}

// The place of the highest bit in which two of the n entries differ.
inline __device__ int Selection::highest_difference(int n) {
  uint64_t differing = 0;
  for (int i = threadIdx.x; i < n; i += kThreads) differing |= entries_[i] ^ entries_[0];
#pragma unroll
  for (int step = 16; step; step /= 2) differing |= __shfl_xor_sync(kAllLanes, differing, step);
  if (threadIdx.x % 32 == 0) shared_.warp_bits[threadIdx.x / 32] = differing;
  __syncthreads();
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) differing |= shared_.warp_bits[warp];
  return 63 - __clzll((long long)differing);
}

// The digit of the entry that `want` of them reach, by what is in its bin and in those above: a bin a thread.
inline __device__ void Selection::find_bin(int want) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, within = shared_.bins[threadIdx.x];
  const int from_here = sum_from_lane(within);
  if (lane == 0) shared_.warp_count[warp] = from_here;
  __syncthreads();
  int above = from_here - within;
#pragma unroll
  for (int other = 1; other < kWarps; ++other)
    if (other > warp) above += shared_.warp_count[other];
  if (above < want && want <= above + within) {
    shared_.digit = threadIdx.x;
    shared_.above = above;
    shared_.within = within;
  }
}

// Bitonic. Where the two of a pair are at most 32 apart, the 32 pairs of a warp lie in 64 slots that are its own.
inline __device__ void Selection::sort(int n) {
  int padded = 64;
  while (padded < n) padded *= 2;
  for (int i = n + threadIdx.x; i < padded; i += kThreads) entries_[i] = kNoEntry;
  int before = padded;
  for (int size = 2; size <= padded; size *= 2) {
    for (int apart = size / 2; apart; apart /= 2) {
      if (apart > 32 || before > 32)
        __syncthreads();
      else
        __syncwarp();
      before = apart;
      for (int pair = threadIdx.x; pair < padded / 2; pair += kThreads) {
        const int i = 2 * pair - (pair & (apart - 1)), j = i + apart;
        const uint64_t first = entries_[i], second = entries_[j];
        const bool descending = !(i & size);
        if ((first < second) == descending) entries_[i] = second, entries_[j] = first;
      }
    }
  }
  __syncthreads();
}

}  // namespace stair
