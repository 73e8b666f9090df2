// vocab_topk: projection, max-pool, activation and top-k in one walk over the vocabulary. A row keeps at most a few k
// candidates a chunk of the vocabulary; what is not above the row's k-th best is never stored.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/vocab_head.h"

namespace stair {
namespace {

struct Candidate {
  float logit;
  int32_t index, position;
};

// By raw logit, ties by lower index: a total order, so that the choice does not depend on how the work was split.
bool better(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.index < b.index);
}

// The running k best of rows [first_row, end_row) over one chunk of the vocabulary.
struct TopkSink {
  // What a row may hold before it is cut back to k; no more than `most`, the columns that there are.
  static int64_t capacity_of(int64_t k, int64_t most) {
    return std::min(std::min(k, most) + std::max<int64_t>(std::min(k, most), 2 * kBlock), most);
  }

  // Every chunk has candidates of every row: of so many chunks they stay below an eighth of [B, V], or below 1 MiB.
  static int64_t most_chunks(int64_t B, int64_t k, int64_t V) {
    constexpr int64_t kSmall = 1 << 20;
    int64_t entries = std::max<int64_t>(capacity_of(k, V), 1);
    return std::max(V / (8 * entries), kSmall / (entries * int64_t(sizeof(Candidate)) * std::max<int64_t>(B, 1)));
  }

  TopkSink(int64_t first_row, int64_t end_row, int64_t k, int64_t most, Activation activation)
      : k(k),
        capacity(capacity_of(k, most)),
        first_row(first_row),
        floors(end_row, floor_of(activation)),
        counts(end_row, 0),
        poisoned(end_row, 0),
        pool(new Candidate[(end_row - first_row) * capacity]) {}

  Candidate* candidates(int64_t row) const { return pool.get() + (row - first_row) * capacity; }

  void row_done(int64_t block, int columns, PooledBlock& pooled) {
    int64_t row = pooled.row;
    if (counts[row] + columns > capacity) compact(row);
    Candidate* out = candidates(row);
    int64_t& count = counts[row];
    for (int word = 0; word < kBlock / 64; ++word) {
      for (uint64_t bits = pooled.above[word]; bits != 0; bits &= bits - 1) {
        int c = word * 64 + __builtin_ctzll(bits);
        if (c >= columns) return;
        if (std::isnan(pooled.logit[c]))
          poisoned[row] = 1;
        else if (pooled.logit[c] > floors[row])
          out[count++] = {pooled.logit[c], int32_t(block * kBlock + c), pooled.position[c]};
      }
    }
  }

  // Keeps the k best and raises the floor to the k-th. Columns come in ascending order, so that a later column that
  // only equals the floor has lost the tie.
  void compact(int64_t row) {
    if (counts[row] <= k) return;
    Candidate* all = candidates(row);
    std::nth_element(all, all + k - 1, all + counts[row], better);
    counts[row] = k;
    floors[row] = all[k - 1].logit;
  }

  int64_t k, capacity, first_row;
  std::vector<float> floors;
  std::vector<int64_t> counts;
  std::vector<uint8_t> poisoned;
  std::unique_ptr<Candidate[]> pool;
};

struct RowOut {
  float* values;
  int32_t *indices, *positions;
};

// Merges a row's candidates from all chunks and writes them by descending value, ties by lower index.
void write_row(const TopkSink* first, const TopkSink* last, int64_t row, int64_t k, Activation activation,
               std::vector<Candidate>& all, RowOut out) {
  all.clear();
  for (const TopkSink* sink = first; sink != last; ++sink)
    all.insert(all.end(), sink->candidates(row), sink->candidates(row) + sink->counts[row]);
  if (int64_t(all.size()) > k) {
    std::nth_element(all.begin(), all.begin() + (k - 1), all.end(), better);
    all.resize(k);
  }
  std::vector<float> activated;
  for (const auto& candidate : all) activated.push_back(candidate.logit);
  simd().activate(activated.data(), int64_t(activated.size()), activation, activated.data());
  for (size_t i = 0; i < all.size(); ++i) all[i].logit = activated[i];
  std::sort(all.begin(), all.end(), better);  // now by value: the activation may have rounded two logits to one
  for (int64_t j = 0; j < k; ++j) {
    bool filled = j < int64_t(all.size());
    out.values[j] = filled ? all[j].logit : 0;
    out.indices[j] = filled ? all[j].index : -1;
    out.positions[j] = filled ? all[j].position : -1;
  }
}

void write_poisoned(int64_t k, int64_t V, int32_t position, RowOut out) {
  for (int64_t j = 0; j < k; ++j) {
    bool filled = j < V;
    out.values[j] = filled ? std::numeric_limits<float>::quiet_NaN() : 0;
    out.indices[j] = filled ? int32_t(j) : -1;
    out.positions[j] = filled ? position : -1;
  }
}

std::tuple<Tensor, Tensor, Tensor> vocab_topk(const Tensor& hidden, const Tensor& weight, std::optional<Tensor> bias,
                                              std::optional<Tensor> mask, std::optional<Tensor> cu_seqlens,
                                              std::optional<int64_t> packed_vocab, int64_t k,
                                              std::string activation_name, bool /*sparse_grad: the backward's*/) {
  Activation activation = parse_activation(activation_name);
  bool pairs = multiplies_pairs(hidden, weight);
  VocabBlocks vocab(weight, bias, packed_vocab, hidden.size(hidden.dim() - 1), pairs);
  int64_t B = rows_of(hidden, cu_seqlens), V = vocab.vocab();
  Split split(B, vocab.count(), TopkSink::most_chunks(B, k, V));
  TokenTiles batch(hidden, mask, cu_seqlens, pairs, split);
  std::vector<TopkSink> sinks;
  for (int64_t item = 0; item < split.items(); ++item) {
    int64_t group = item / split.chunks(), chunk = item % split.chunks();
    sinks.emplace_back(split.first_row(group), split.first_row(group + 1), k,
                       (split.first_block(chunk + 1) - split.first_block(chunk)) * kBlock, activation);
  }
  walk_vocab(batch, vocab, sinks, split);

  Tensor values = new_tensor(hidden, {B, k}, ScalarType::Float);
  Tensor indices = new_tensor(hidden, {B, k}, ScalarType::Int);
  Tensor positions = new_tensor(hidden, {B, k}, ScalarType::Int);
  RowOut out{values.mutable_data_ptr<float>(), indices.mutable_data_ptr<int32_t>(),
             positions.mutable_data_ptr<int32_t>()};
  torch::stable::parallel_for(0, B, 8, [&](int64_t begin, int64_t end) {
    std::vector<Candidate> all;
    for (int64_t row = begin; row < end; ++row) {
      const TopkSink *first = sinks.data() + split.group_of(row) * split.chunks(), *last = first + split.chunks();
      RowOut to{out.values + row * k, out.indices + row * k, out.positions + row * k};
      if (std::any_of(first, last, [&](const TopkSink& s) { return s.poisoned[row]; }))
        write_poisoned(k, V, batch.lowest_position(row), to);
      else
        write_row(first, last, row, k, activation, all, to);
    }
  });
  return {values, indices, positions};
}

}  // namespace
}  // namespace stair

STABLE_TORCH_LIBRARY_IMPL(stair, CPU, m) { m.impl("vocab_topk", TORCH_BOX(&stair::vocab_topk)); }
