// The documents of a range that may be among the k best of a query, by their bounds: a pass over the sums where few
// reach what a document needs, and a histogram for a higher cut where many do. Any number of them has room: the list
// lies over the sums, 2 bytes a document as they are, once the threads have what they need of them.
#pragma once
#include "cuda/postings.cuh"

namespace stair {
namespace {

constexpr int kBins = 4 * kThreads;  // of bounds, 64 values each
constexpr int kBinShift = 6;
static_assert(kBins << kBinShift == kMostBound + 1);

// Sums over the block. `total` is 0, and may be read until the next barrier.
__device__ int count_all(uint64_t mine, int* total) {
  const int count = sum_of_warp(__popcll(mine));
  if (threadIdx.x % 32 == 0 && count) atomicAdd(total, count);
  __syncthreads();
  return *total;
}

// A bound that the k largest of the documents in `reaching`, more than k, reach: the lower end of a bin.
__device__ int kth_bound(const uint32_t* sums, uint64_t reaching, int k, int* bins, int* result) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  STAIR_SHARED(of_warp, int[kWarps]);
  for (int b = 0; b < 4; ++b) bins[b * kThreads + threadIdx.x] = 0;
  __syncthreads();
  for (; reaching; reaching &= reaching - 1)
    atomicAdd(&bins[sum_of(sums, document_of(__ffsll((long long)reaching) - 1)) >> kBinShift], 1);
  __syncthreads();
  const int* mine = bins + 4 * threadIdx.x;
  const int within = mine[0] + mine[1] + mine[2] + mine[3];
  const int from_here = sum_from_lane(within);
  if (lane == 0) of_warp[warp] = from_here;
  __syncthreads();
  int above = from_here - within;
  for (int other = warp + 1; other < kWarps; ++other) above += of_warp[other];
  if (above < k && k <= above + within) {
    int bin = 3;
    while (above + mine[bin] < k) above += mine[bin--];
    *result = (4 * int(threadIdx.x) + bin) << kBinShift;
  }
  __syncthreads();
  return *result;
}

// The documents in `mine` of all threads, in no order, over the sums: all have been read. `count` is 0.
__device__ void list_documents(uint64_t mine, uint16_t* list, int* count) {
  const int lane = threadIdx.x % 32, own = __popcll(mine);
  const int end = sum_up_to_lane(own);
  int start = 0;
  if (lane == 31 && end) start = atomicAdd(count, end);
  int slot = __shfl_sync(kAllLanes, start, 31) + end - own;
  for (; mine; mine &= mine - 1) list[slot++] = uint16_t(document_of(__ffsll((long long)mine) - 1));
  __syncthreads();
}

// Lists the documents of the range that may be among the k best, and returns how many they are.
__device__ int find_candidates(uint32_t* sums, const Plan& plan, int k, int* bins) {
  STAIR_SHARED(counts, int[4]);
  if (threadIdx.x < 4) counts[threadIdx.x] = 0;
  __syncthreads();  // and all postings have been added
  uint64_t reaching = documents_reaching(sums, plan.cut);
  int total = count_all(reaching, &counts[0]);
  if (total > k) {
    const int cut = cut_of(plan, kth_bound(sums, reaching, k, bins, &counts[3]), plan.slack);
    if (cut > plan.cut) {
      reaching = documents_reaching(sums, cut);
      total = count_all(reaching, &counts[1]);
    }
  }
  if (total > 0) list_documents(reaching, reinterpret_cast<uint16_t*>(sums), &counts[2]);
  return total;
}

}  // namespace
}  // namespace stair
