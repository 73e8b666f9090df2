// topk: the k largest positive entries of each dense row, and topk_merge: those of a chunk of the vocabulary merged
// into a row's k best so far. A block a row; with few rows several blocks a row, whose k best a second launch selects
// from. How a block selects, and why so: select.cuh.
#include <tuple>

#include "cuda/launch.cuh"
#include "cuda/offer.cuh"

namespace stair {
namespace {

constexpr int kBlocksEach = 4;  // on a multiprocessor: 64 registers a thread, 64 KiB of loads in flight

// Block (row, part) of a grid [B, parts]: the k best of columns part * span and on of dense [B, V]. Where there are
// several parts they go to best [B, parts, k], in no order; otherwise to values and indices [B, width], k <= width.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksEach)
    topk_rows(const T* dense, int64_t V, int64_t span, int k, int capacity, int64_t width, uint64_t* best,
              float* values, int32_t* indices) {
  STAIR_DYNAMIC_SHARED(entries, uint64_t);
  STAIR_SHARED(shared, Selection::Shared);
  const int64_t row = blockIdx.x, part = blockIdx.y, begin = part * span;
  Selection selection(entries, shared, capacity, k, 0.0f);
  offer_row(selection, dense + row * V + begin, int(V - begin < span ? V - begin : span), int(begin));
  const int found = selection.finish();
  if (best) {
    uint64_t* out = best + (row * gridDim.y + part) * k;
    for (int j = threadIdx.x; j < k; j += kThreads) out[j] = j < found ? entries[j] : kNoEntry;
    return;
  }
  selection.sort(found);
  const bool poisoned = found > 0 && is_nan_entry(entries[0]);
  const int filled = poisoned ? k : found;
  for (int64_t j = threadIdx.x; j < width; j += kThreads) {
    const bool filled_slot = j < filled;
    values[row * width + j] = !filled_slot ? 0.0f : poisoned ? NAN : value_of(entries[j]);
    indices[row * width + j] = !filled_slot ? -1 : poisoned ? int(j) : index_of(entries[j]);
  }
}

// How many of list [n], which descends, are larger than `entry`.
__device__ __forceinline__ int count_larger(const uint64_t* list, int n, uint64_t entry) {
  int begin = 0, end = n;
  while (begin < end) {
    const int middle = (begin + end) / 2;
    if (list[middle] > entry)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

// Entries as int64 in the same order: what topk_merge keeps between calls.
__device__ __forceinline__ uint64_t entry_of_key(int64_t key) { return uint64_t(key) ^ uint64_t(1) << 63; }
__device__ __forceinline__ int64_t key_of_entry(uint64_t entry) { return int64_t(entry ^ uint64_t(1) << 63); }

// A block a row. What is new is selected and sorted; then old and new each find their rank in the other's list.
template <class Position>
__global__ void __launch_bounds__(kThreads, kBlocksEach)
    merge_rows(int64_t* keys, int32_t* positions, const float* raw, const Position* raw_positions, int64_t C, int first,
               int k, int capacity, float floor) {
  STAIR_DYNAMIC_SHARED(entries, uint64_t);
  STAIR_SHARED(shared, Selection::Shared);
  const int64_t row = blockIdx.x;
  keys += row * k, positions += row * k, raw += row * C, raw_positions += row * C;
  if (raw_positions[0] < 0) return;  // no unmasked position: no entries
  const uint64_t worst = entry_of_key(keys[k - 1]);
  // fmaxf gives the floor where the row is not full yet, and where it is full of NaN
  Selection selection(entries, shared, capacity, k, fmaxf(floor, worst == kNoEntry ? floor : value_of(worst)));
  offer_row(selection, raw, int(C), first);
  const int found = selection.finish();
  if (found == 0) return;
  selection.sort(found);  // in the lower half: capacity is at least 2k
  uint64_t* old = entries + capacity / 2;
  auto* old_positions = reinterpret_cast<int32_t*>(entries + capacity);
  for (int j = threadIdx.x; j < k; j += kThreads) {
    old[j] = entry_of_key(keys[j]);
    old_positions[j] = positions[j];
  }
  __syncthreads();
  for (int j = threadIdx.x; j < k && old[j] != kNoEntry; j += kThreads) {
    const int rank = j + count_larger(entries, found, old[j]);
    if (rank < k) keys[rank] = key_of_entry(old[j]), positions[rank] = old_positions[j];
  }
  for (int j = threadIdx.x; j < found; j += kThreads) {
    const int rank = j + count_larger(old, k, entries[j]);
    if (rank < k) keys[rank] = key_of_entry(entries[j]), positions[rank] = raw_positions[index_of(entries[j]) - first];
  }
}

void check_kept(const char* name, int64_t kept, int64_t B, int64_t V) {
  STAIR_CHECK(kept <= kMaxKept, name, ": k: expected at most ", kMaxKept, " entries of a row on a GPU, got ", kept);
  constexpr int64_t kMost = INT32_MAX - 2 * kTile;  // the end of a row's last tile is an int as well
  STAIR_CHECK(B <= kMost && V <= kMost, name, ": expected at most ", kMost, " rows and columns, got [", B, ", ", V,
              "]");
}

// Parts of a row: enough blocks for two on every multiprocessor, no part less than a tile, and no more than sqrt(V /
// k), where to read a part takes as long as to select from the k best of all of them.
int64_t parts_of(int64_t B, int64_t V, int64_t k, int64_t multiprocessors) {
  const int64_t wanted = (2 * multiprocessors + B - 1) / B, most = int64_t(std::sqrt(double(V) / double(k)));
  return std::max<int64_t>(1, std::min({wanted, most, V / kTile}));
}

template <class T>
void run_topk(const OnDevice& device, const Tensor& dense, int64_t k, Tensor& values, Tensor& indices) {
  const int64_t B = dense.size(0), V = dense.size(1), kept = std::min(k, V);
  const int capacity = capacity_of(kept);
  const int64_t shared_bytes = capacity * int64_t(sizeof(uint64_t));
  const auto* data = static_cast<const T*>(dense.const_data_ptr());
  auto* value = values.mutable_data_ptr<float>();
  auto* index = indices.mutable_data_ptr<int32_t>();
  int64_t parts = kept > 0 ? parts_of(B, V, kept, device.multiprocessors()) : 1;
  const int64_t span = ((V + parts - 1) / parts + kTile - 1) / kTile * kTile;
  if (V > 0) parts = (V + span - 1) / span;
  if (parts == 1) {
    device.launch(&topk_rows<T>, dim3(B), kThreads, shared_bytes, data, V, span, kept, capacity, k, nullptr, value,
                  index);
    return;
  }
  Tensor best = torch::stable::new_empty(dense, {B, parts * kept}, ScalarType::Long);
  auto* entries = static_cast<uint64_t*>(best.mutable_data_ptr());
  device.launch(&topk_rows<T>, dim3(B, parts), kThreads, shared_bytes, data, V, span, kept, capacity, k, entries,
                nullptr, nullptr);
  const int64_t all = parts * kept;
  device.launch(&topk_rows<uint64_t>, dim3(B), kThreads, shared_bytes, entries, all, all, kept, capacity, k, nullptr,
                value, index);
}

std::tuple<Tensor, Tensor> topk(const Tensor& dense_, int64_t k) {
  STAIR_CHECK(dense_.dim() == 2 && is_float_dtype(dense_) && k > 0, "topk: expected dense [B, V] and k > 0");
  const OnDevice device(dense_);
  Tensor dense = torch::stable::contiguous(dense_);
  const int64_t B = dense.size(0), V = dense.size(1);
  check_kept("topk", std::min(k, V), B, V);
  Tensor values = torch::stable::new_empty(dense, {B, k}, ScalarType::Float);
  Tensor indices = torch::stable::new_empty(dense, {B, k}, ScalarType::Int);
  if (B == 0) return {values, indices};
  if (dense.scalar_type() == ScalarType::Float) run_topk<float>(device, dense, k, values, indices);
  if (dense.scalar_type() == ScalarType::BFloat16) run_topk<BFloat16>(device, dense, k, values, indices);
  if (dense.scalar_type() == ScalarType::Half) run_topk<Float16>(device, dense, k, values, indices);
  return {values, indices};
}

void topk_merge(Tensor keys, Tensor positions, const Tensor& raw, const Tensor& raw_positions, int64_t first,
                bool above_zero) {
  STAIR_CHECK(keys.dim() == 2 && keys.scalar_type() == ScalarType::Long && keys.is_contiguous(),
              "topk_merge: keys_: expected contiguous [B, k] int64");
  const int64_t B = keys.size(0), k = keys.size(1), C = raw.size(1);
  STAIR_CHECK(positions.size(0) == B && positions.size(1) == k && positions.scalar_type() == ScalarType::Int &&
                  positions.is_contiguous(),
              "topk_merge: positions_: expected contiguous [", B, ", ", k, "] int32");
  STAIR_CHECK(raw.size(0) == B && raw.scalar_type() == ScalarType::Float && raw.is_contiguous(),
              "topk_merge: raw: expected contiguous [", B, ", C] float32");
  const bool narrow = raw_positions.scalar_type() == ScalarType::Short;
  STAIR_CHECK(raw_positions.size(0) == B && raw_positions.size(1) == C && raw_positions.is_contiguous() &&
                  (narrow || raw_positions.scalar_type() == ScalarType::Int),
              "topk_merge: raw_positions: expected contiguous [", B, ", ", C, "] int16 or int32");
  check_kept("topk_merge", k, B, first + C);
  if (B == 0 || C == 0 || k == 0) return;
  const OnDevice device(raw);
  const int capacity = capacity_of(k);
  const int64_t shared_bytes = capacity * int64_t(sizeof(uint64_t)) + k * int64_t(sizeof(int32_t));
  const float floor = above_zero ? 0.0f : -INFINITY;
  auto run = [&](auto kernel, const auto* won) {
    device.launch(kernel, dim3(B), kThreads, shared_bytes, keys.mutable_data_ptr<int64_t>(),
                  positions.mutable_data_ptr<int32_t>(), raw.const_data_ptr<float>(), won, C, first, k, capacity,
                  floor);
  };
  if (narrow)
    run(&merge_rows<int16_t>, raw_positions.const_data_ptr<int16_t>());
  else
    run(&merge_rows<int32_t>, raw_positions.const_data_ptr<int32_t>());
}

}  // namespace
}  // namespace stair

STABLE_TORCH_LIBRARY_IMPL(stair, STAIR_GPU, m) {
  m.impl("topk", TORCH_BOX(&stair::topk));
  m.impl("topk_merge", TORCH_BOX(&stair::topk_merge));
}
