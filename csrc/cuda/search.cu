// search: the k best documents of an index for each query, exactly: the scores, their order and their bits are those
// of csrc/index. A block owns a query and a range of documents. It adds up the postings of the query's terms there, as
// bounds of 16 bits (bounds.cuh, postings.cuh), sees from the bounds which documents may be among the best, and scores
// these in float32 from their rows. So what is read is the query's postings, not the collection.
//
// Ranges go in groups, each a launch; the first is large enough to fill the device, then they double. Between two the
// k best of each range are merged into the k best so far, whose last score spares later ranges nearly all scoring: of
// ranges in random order, group after group passes about k ln 2 documents more. The queries of a range run next to each
// other, so that its postings come from memory once and then from L2.
//
// No result depends on an order of threads: bounds are whole numbers, a score adds its products by ascending term, and
// entries are all different. Predicted times: bench/predict_cuda.py.
#include <algorithm>
#include <tuple>

#include "cuda/candidates.cuh"
#include "cuda/launch.cuh"
#include "cuda/offer.cuh"
#include "cuda/postings.cuh"

namespace stair {
namespace {

constexpr int kBlocksEach = 5;  // on a multiprocessor of sm_90: 48 registers a thread, 42 KiB of shared memory a block
constexpr int kBlocksMerging = 4;            // 64 registers: 16 entries a thread on their way
constexpr int64_t kScratchBytes = 64 << 20;  // of a group's best, unless a single range takes more

// Forward rows, terms ascending.
struct Rows {
  const int64_t* starts;
  const void* terms;
  const void* weights;
  const int32_t* ranks;  // of the documents by their ids, or null where they are in that order
  bool wide, half;       // int32 terms, not uint16; float16 weights, not float32

  __device__ int term(int64_t i) const {
    return wide ? static_cast<const int32_t*>(terms)[i] : static_cast<const uint16_t*>(terms)[i];
  }
  __device__ int rank(int64_t document) const { return ranks ? ranks[document] : int(document); }
  __device__ float weight(int64_t i) const {
    return half ? half_to_float(static_cast<const uint16_t*>(weights)[i]) : static_cast<const float*>(weights)[i];
  }
};

// A warp a query, indices and values [Q, K], ascending with -1 last: its plan, its terms that can match [Q, K], and no
// best [Q, k] yet. What nobody can raise an error for poisons the query: a weight that is negative or not finite, and
// terms that do not ascend. Terms past the vocabulary are none.
__global__ void __launch_bounds__(kThreads)
    plan_queries(const int32_t* indices, const float* values, int64_t Q, int64_t K, const float* units, int64_t V,
                 Plan* plans, Term* terms, uint64_t* best, int k) {
  const int64_t q = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (q >= Q) return;
  const int lane = threadIdx.x % 32;
  indices += q * K, values += q * K, terms += q * K, best += q * k;
  int n = 0;
  bool bad = false;
  double sum = 0;
  for (int64_t first = 0; first < K; first += 32) {
    const int64_t slot = first + lane;
    const int32_t term = slot < K ? indices[slot] : -1;
    const bool known = term >= 0 && term < V;
    const float weight = known ? values[slot] : 0.0f;
    bad = bad || !(weight >= 0.0f && weight <= FLT_MAX) ||
          (known && slot > 0 && uint32_t(indices[slot - 1]) >= uint32_t(term));
    const double x = known ? double(weight) * double(units[term]) : 0.0;
    const bool kept = weight > 0.0f && x > 0.0;
    const uint32_t all = __ballot_sync(kAllLanes, kept);
    if (kept) terms[n + __popc(all & ((1u << lane) - 1))] = {term, weight, 0};
    n += __popc(all);
    sum += x;
  }
  sum = sum_of_warp(sum);
  Plan plan = make_plan(n, sum);
  plan.poisoned = __any_sync(kAllLanes, bad);
  if (plan.poisoned) plan.terms = 0;
  if (lane == 0) plans[q] = plan;
  __syncwarp();
  for (int j = lane; j < plan.terms; j += 32)
    terms[j].factor = factor_of(plan, double(terms[j].weight) * double(units[terms[j].term]));
  for (int j = lane; j < k; j += 32) best[j] = kNoEntry;
}

// What a block has of its query: arrays [K] in shared memory, n of each in use.
constexpr int kTermBytes = sizeof(Segment) + 2 * sizeof(int) + sizeof(uint32_t) + sizeof(float);
struct Query {
  Segment* segments;
  int *ends, *terms;
  uint32_t* factors;
  float* weights;
  int n;

  __device__ Query(void* room, int64_t K, int n)
      : segments(static_cast<Segment*>(room)),
        ends(reinterpret_cast<int*>(segments + K)),
        terms(ends + K),
        factors(reinterpret_cast<uint32_t*>(terms + K)),
        weights(reinterpret_cast<float*>(factors + K)),
        n(n) {}
};

// Starts with the query's lists in the range; returns how many pieces they have. The sums are 0.
__device__ int load_query(const Query& query, uint32_t* sums, const Term* terms, const Postings& postings,
                          int64_t range) {
  for (int j = threadIdx.x; j < query.n; j += kThreads) {
    const Term term = terms[j];
    query.segments[j] = segment_of(postings, term.term, range);
    query.terms[j] = term.term;
    query.factors[j] = term.factor;
    query.weights[j] = term.weight;
  }
  clear(sums);
  __syncthreads();
  if (threadIdx.x < 32) number_pieces(query.segments, query.ends, query.n);
  __syncthreads();
  return query.n ? query.ends[query.n - 1] : 0;
}

// A warp's score of a document: products in the order of its row, each of them and each sum rounded to float32.
__device__ float score_of(const Rows& rows, int64_t document, const Query& query) {
  const int64_t begin = rows.starts[document], end = rows.starts[document + 1];
  float score = 0.0f;
  for (int64_t first = begin; first < end; first += 32) {
    const int64_t i = first + threadIdx.x % 32;
    float product = 0.0f;
    bool matches = false;
    if (i < end) {
      const int term = rows.term(i), j = count_up_to(query.terms, query.n, term) - 1;
      matches = j >= 0 && query.terms[j] == term;
      if (matches) product = __fmul_rn(query.weights[j], rows.weight(i));
    }
    for (uint32_t left = __ballot_sync(kAllLanes, matches); left; left &= left - 1)
      score = __fadd_rn(score, __shfl_sync(kAllLanes, product, __ffs(int(left)) - 1));
  }
  return score;
}

// Block (q, g) of a grid [Q, G]: the k best documents for query q of range first_range + g that beat its k best so
// far, to found [Q, G, k], in no order.
__global__ void __launch_bounds__(kThreads, kBlocksEach)
    search_range(Postings postings, Rows rows, const Plan* plans, const Term* terms, int64_t K, int64_t first_range,
                 const uint64_t* best, int k, int capacity, uint64_t* found) {
  STAIR_DYNAMIC_SHARED(sums, uint32_t);
  STAIR_SHARED(shared, Selection::Shared);
  auto* entries = reinterpret_cast<uint64_t*>(sums + kWords);
  const int64_t q = blockIdx.x, range = first_range + blockIdx.y;
  const Plan& plan = plans[q];
  const Query query(entries + capacity, K, plan.terms);
  int candidates = 0;
  if (load_query(query, sums, terms + q * K, postings, range)) {
    add_pieces(sums, postings, query.segments, query.ends, query.factors, query.n);
    candidates = find_candidates(sums, plan, k, reinterpret_cast<int*>(entries));
  }
  const uint64_t worst = best[q * k + k - 1];
  const auto* list = reinterpret_cast<const uint16_t*>(sums);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Selection selection(entries, shared, capacity, k, 0.0f);
  for (int first = 0; first < candidates; first += kThreads) {
    uint64_t mine = kNoEntry;
    for (int i = 0; i < 32 && first + i * kWarps + warp < candidates; ++i) {
      const int64_t document = range * kRange + list[first + i * kWarps + warp];
      const float score = score_of(rows, document, query);
      if (lane == i && score > 0.0f) mine = entry_of(score, rows.rank(document));
    }
    selection.offer<1>(mine > worst && selection.passes(mine), [&](int) { return mine; });
  }
  const int kept = selection.finish();
  found += (q * gridDim.y + blockIdx.y) * k;
  for (int j = threadIdx.x; j < k; j += kThreads) found[j] = j < kept ? entries[j] : kNoEntry;
}

// A block a query: the k best of best [Q, k] and found [Q, n], in descending order to best.
__global__ void __launch_bounds__(kThreads, kBlocksMerging)
    merge_best(const uint64_t* found, int n, int k, int capacity, Plan* plans, uint64_t* best) {
  STAIR_DYNAMIC_SHARED(entries, uint64_t);
  STAIR_SHARED(shared, Selection::Shared);
  const int64_t q = blockIdx.x;
  best += q * k;
  Selection selection(entries, shared, capacity, k, 0.0f);
  for (int first = 0; first < k; first += kThreads) {
    const int j = first + threadIdx.x;
    const uint64_t entry = j < k ? best[j] : kNoEntry;
    selection.offer<1>(entry != kNoEntry, [&](int) { return entry; });
  }
  offer_row(selection, found + q * n, n, 0);
  const int kept = selection.finish();
  selection.sort(kept);
  for (int j = threadIdx.x; j < kept; j += kThreads) best[j] = entries[j];
  if (threadIdx.x == 0 && kept == k) plans[q].cut = cut_of_score(plans[q], value_of(entries[k - 1]));
}

// A thread a result.
__global__ void __launch_bounds__(kThreads) write_best(const Plan* plans, const uint64_t* best, int64_t n, int k,
                                                       const int64_t* ids, float* scores, int64_t* found) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const bool any = best[i] != kNoEntry;
  scores[i] = plans[i / k].poisoned ? NAN : any ? value_of(best[i]) : -INFINITY;
  found[i] = any ? ids[index_of(best[i])] : -1;
}

// How many ranges the launches take, one after the other.
struct Groups {
  int64_t next, most;

  Groups(int64_t Q, int64_t k, int64_t multiprocessors) {
    const int64_t wave = multiprocessors * kBlocksEach, fits = kScratchBytes / (Q * k * int64_t(sizeof(uint64_t)));
    most = std::clamp<int64_t>(fits, 1, 65535);
    next = (2 * wave + Q - 1) / Q;
  }
  int64_t take(int64_t left) {
    const int64_t size = std::min({next, most, left});
    next = std::min(2 * next, most);
    return size;
  }
};

template <class T>
const T* data_of(const char* name, const Tensor& t, ScalarType dtype, int64_t least) {
  STAIR_CHECK(t.scalar_type() == dtype && t.is_contiguous() && t.numel() >= least, "search: ", name,
              ": expected a contiguous array of its type, at least ", least, " elements, got ", t.numel());
  const void* data = t.const_data_ptr();
  STAIR_CHECK(reinterpret_cast<uintptr_t>(data) % 4 == 0, "search: ", name, ": expected an address that 4 divides");
  return static_cast<const T*>(data);
}

std::tuple<Tensor, Tensor> search(const Tensor& indices, const Tensor& values, const Tensor& ids, const Tensor& ranks,
                                  const Tensor& row_starts, const Tensor& row_terms, const Tensor& row_weights,
                                  const Tensor& term_starts, const Tensor& segments, const Tensor& documents,
                                  const Tensor& codes, const Tensor& units, int64_t k) {
  using torch::stable::new_empty;
  STAIR_CHECK(indices.dim() == 2 && values.dim() == 2, "search: expected indices and values [Q, K]");
  const int64_t Q = indices.size(0), K = indices.size(1), N = ids.numel(), V = units.numel(), P = row_terms.numel();
  const int64_t ranges = (N + kRange - 1) / kRange;
  STAIR_CHECK(k >= 1 && k <= kMaxKept, "search: k: expected 1 to ", kMaxKept, " results of a query on a GPU, got ", k);
  STAIR_CHECK(K <= kMostTerms, "search: queries: expected at most ", kMostTerms, " slots on a GPU, got ", K);
  STAIR_CHECK(P < kMostPostings, "search: row_terms: expected fewer than ", kMostPostings, " postings, got ", P);
  const bool wide = row_terms.scalar_type() == ScalarType::Int, half = row_weights.scalar_type() == ScalarType::Half;
  const int64_t even = P + P % 2;
  const Postings postings = {data_of<int64_t>("term_starts", term_starts, ScalarType::Long, V + 1),
                             data_of<uint32_t>("segments", segments, ScalarType::UInt32, V * (ranges + 1)),
                             data_of<uint16_t>("documents", documents, ScalarType::UInt16, even),
                             data_of<uint8_t>("codes", codes, ScalarType::Byte, even),
                             V,
                             ranges};
  const Rows rows = {data_of<int64_t>("row_starts", row_starts, ScalarType::Long, N + 1),
                     data_of<void>("row_terms", row_terms, wide ? ScalarType::Int : ScalarType::UInt16, P),
                     data_of<void>("row_weights", row_weights, half ? ScalarType::Half : ScalarType::Float, P),
                     ranks.numel() ? data_of<int32_t>("ranks", ranks, ScalarType::Int, N) : nullptr,
                     wide,
                     half};
  const auto* unit = data_of<float>("units", units, ScalarType::Float, V);
  const auto* id = data_of<int64_t>("ids", ids, ScalarType::Long, N);
  const auto* index = data_of<int32_t>("indices", indices, ScalarType::Int, Q * K);
  const auto* value = data_of<float>("values", values, ScalarType::Float, Q * K);
  Tensor scores = new_empty(values, {Q, k}, ScalarType::Float), numbers = new_empty(values, {Q, k}, ScalarType::Long);
  if (Q == 0) return {scores, numbers};

  const OnDevice device(values);
  Groups groups(Q, k, device.multiprocessors());
  const int64_t largest = std::min(groups.most, std::max<int64_t>(ranges, 1));
  Tensor plans = new_empty(values, {Q * int64_t(sizeof(Plan))}, ScalarType::Byte);
  Tensor terms = new_empty(values, {Q * K * int64_t(sizeof(Term))}, ScalarType::Byte);
  Tensor best = new_empty(values, {Q, k}, ScalarType::Long);
  Tensor found = new_empty(values, {Q, largest, k}, ScalarType::Long);
  auto* plan = static_cast<Plan*>(plans.mutable_data_ptr());
  auto* term = static_cast<Term*>(terms.mutable_data_ptr());
  auto* kept = static_cast<uint64_t*>(best.mutable_data_ptr());
  auto* entry = static_cast<uint64_t*>(found.mutable_data_ptr());
  const int capacity = capacity_of(k);
  const int64_t room = capacity * int64_t(sizeof(uint64_t));
  device.launch(&plan_queries, dim3((Q + kWarps - 1) / kWarps), kThreads, 0, index, value, Q, K, unit, V, plan, term,
                kept, k);
  for (int64_t first = 0; first < ranges;) {
    const int64_t size = groups.take(ranges - first);
    device.launch(&search_range, dim3(Q, size), kThreads, kWords * int64_t(sizeof(uint32_t)) + room + K * kTermBytes,
                  postings, rows, plan, term, K, first, kept, k, capacity, entry);
    device.launch(&merge_best, dim3(Q), kThreads, room, entry, size * k, k, capacity, plan, kept);
    first += size;
  }
  device.launch(&write_best, dim3((Q * k + kThreads - 1) / kThreads), kThreads, 0, plan, kept, Q * k, k, id,
                scores.mutable_data_ptr<float>(), numbers.mutable_data_ptr<int64_t>());
  return {scores, numbers};
}

}  // namespace
}  // namespace stair

STABLE_TORCH_LIBRARY_IMPL(stair, STAIR_GPU, m) { m.impl("search", TORCH_BOX(&stair::search)); }
