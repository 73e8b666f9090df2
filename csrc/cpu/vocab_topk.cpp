// vocab_topk: projection, max-pool, activation and top-k in one walk over the vocabulary. A row keeps at most a few k
// candidates a chunk of the vocabulary; what is not above the row's k-th best is never stored.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/best.h"
#include "cpu/vocab_head.h"

namespace stair {
namespace {

// The running k best of rows [first_row, end_row) over one chunk of the vocabulary.
struct TopkSink {
  // What a row may hold before it is cut back to k; no more than `most`, the columns that there are.
  static int64_t capacity_of(int64_t k, int64_t most) {
    return std::min(std::min(k, most) + std::max<int64_t>(std::min(k, most), 2 * kBlock), most);
  }

  // Every chunk has candidates of every row: of so many chunks, or of one, they stay below an eighth of the entries of
  // [B, V], or below 1 MiB.
  static int64_t most_chunks(int64_t B, int64_t k, int64_t V) {
    constexpr int64_t kSmall = 1 << 20, kEntryBytes = 12;
    int64_t entries = std::max<int64_t>(capacity_of(k, V), 1);
    return std::max(V / (8 * entries), kSmall / (entries * kEntryBytes * std::max<int64_t>(B, 1)));
  }

  TopkSink(int64_t first_row, int64_t end_row, int64_t k, int64_t most, Activation activation)
      : k(k),
        capacity(capacity_of(k, most)),
        first_row(first_row),
        floors(end_row, floor_of(activation)),
        counts(end_row, 0),
        poisoned(end_row, 0),
        values(new float[(end_row - first_row) * (capacity + Entries::kPadding)]),
        indices(new int32_t[(end_row - first_row) * capacity]),
        positions(new int32_t[(end_row - first_row) * capacity]) {}

  // Its columns come in ascending order.
  Entries entries(int64_t row) const {
    int64_t at = (row - first_row) * capacity, padding = (row - first_row) * Entries::kPadding;
    return {values.get() + at + padding, indices.get() + at, positions.get() + at, counts[row]};
  }

  void row_done(int64_t block, int columns, PooledBlock& pooled) {
    int64_t row = pooled.row;
    Entries kept = entries(row);
    if (kept.count + columns > capacity) floors[row] = std::max(floors[row], keep_best(kept, k));
    for (int word = 0; word < kBlock / 64; ++word) {
      for (uint64_t bits = pooled.above[word]; bits != 0; bits &= bits - 1) {
        int c = word * 64 + __builtin_ctzll(bits);
        if (c >= columns) break;
        if (std::isnan(pooled.logit[c])) poisoned[row] = 1;
        // a later column that only equals the k-th has lost the tie
        if (!(pooled.logit[c] > floors[row])) continue;
        kept.value[kept.count] = pooled.logit[c];
        kept.index[kept.count] = int32_t(block * kBlock + c);
        kept.position[kept.count++] = pooled.position[c];
      }
    }
    counts[row] = kept.count;
  }

  int64_t k, capacity, first_row;
  std::vector<float> floors;
  std::vector<int64_t> counts;
  std::vector<uint8_t> poisoned;
  std::unique_ptr<float[]> values;
  std::unique_ptr<int32_t[]> indices, positions;
};

struct RowOut {
  float* values;
  int32_t *indices, *positions;
};

// Puts rows together from the chunks of the vocabulary, in memory that is kept from one row to the next.
class RowWriter {
 public:
  RowWriter(int64_t k, Activation activation) : k_(k), activation_(activation) {}

  // By descending value, ties by lower index.
  void write(const TopkSink* first, const TopkSink* last, int64_t row, RowOut out) {
    Entries all = merged(first, last, row);
    keep_best(all, k_);
    simd().activate(all.value, all.count, activation_, all.value);
    // now by value: the activation may have rounded two logits to one
    const auto& order = ranking_.descending(all.value, all.count);
    for (int64_t j = 0; j < k_; ++j) {
      bool filled = j < all.count;
      out.values[j] = filled ? all.value[order[j]] : 0;
      out.indices[j] = filled ? all.index[order[j]] : -1;
      out.positions[j] = filled ? all.position[order[j]] : -1;
    }
  }

 private:
  Entries merged(const TopkSink* first, const TopkSink* last, int64_t row) {
    value_.clear(), index_.clear(), position_.clear();
    for (const TopkSink* sink = first; sink != last; ++sink) {
      Entries part = sink->entries(row);
      value_.insert(value_.end(), part.value, part.value + part.count);
      index_.insert(index_.end(), part.index, part.index + part.count);
      position_.insert(position_.end(), part.position, part.position + part.count);
    }
    value_.resize(value_.size() + Entries::kPadding);
    return {value_.data(), index_.data(), position_.data(), int64_t(index_.size())};
  }

  int64_t k_;
  Activation activation_;
  std::vector<float> value_;
  std::vector<int32_t> index_, position_;
  Ranking ranking_;
};

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
  int64_t few_rows = std::max<int64_t>(1, 512 / k);  // not worth another thread
  torch::stable::parallel_for(0, B, few_rows, [&](int64_t begin, int64_t end) {
    RowWriter writer(k, activation);
    for (int64_t row = begin; row < end; ++row) {
      const TopkSink *first = sinks.data() + split.group_of(row) * split.chunks(), *last = first + split.chunks();
      RowOut to{out.values + row * k, out.indices + row * k, out.positions + row * k};
      if (std::any_of(first, last, [&](const TopkSink& s) { return s.poisoned[row]; }))
        write_poisoned(k, V, batch.lowest_position(row), to);
      else
        writer.write(first, last, row, to);
    }
  });
  return {values, indices, positions};
}

}  // namespace
}  // namespace stair

STABLE_TORCH_LIBRARY_IMPL(stair, CPU, m) { m.impl("vocab_topk", TORCH_BOX(&stair::vocab_topk)); }
