// What vocab_topk and vocab_pool share: the batch as tiles of tokens, the weight as blocks of columns, and the walk
// over the vocabulary that hands every row's pooled logits to a sink while they are in cache.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <vector>

#include "check.h"
#include "cpu/isa.h"

namespace stair {

// A raw logit that is not above the floor is no entry.
inline float floor_of(Activation activation) {
  return activation == Activation::kElu1p ? -std::numeric_limits<float>::infinity() : 0.0f;
}

struct FreeAligned {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t(64)); }
};

template <class T>
using Aligned = std::unique_ptr<T[], FreeAligned>;

// n elements, uninitialised, on a cache line: no vector and no AMX row of them lies across two lines.
template <class T>
Aligned<T> aligned(int64_t n) {
  return Aligned<T>(static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64))));
}

// Whether hidden and weight are multiplied as pairs of bfloat16.
inline bool multiplies_pairs(const Tensor& hidden, const Tensor& weight) {
  return simd().pairs && dtype_of(hidden) == Dtype::kBFloat16 && dtype_of(weight) == Dtype::kBFloat16;
}

// The work shared out to the threads: every item is a run of neighbouring rows times a run of neighbouring blocks of
// the vocabulary, items in order of rows. As many items as threads if that can be, and as few groups of rows, because
// every group packs the weight again.
class Split {
 public:
  Split(int64_t rows, int64_t blocks, int64_t most_chunks = std::numeric_limits<int64_t>::max())
      : rows_(rows), blocks_(blocks) {
    int64_t threads = torch::stable::get_num_threads();
    for (int64_t chunks = std::max<int64_t>(1, std::min({threads, blocks, most_chunks})); chunks > 0; --chunks) {
      int64_t groups = std::clamp<int64_t>(threads / chunks, 1, std::max<int64_t>(rows, 1));
      if (groups * chunks <= items()) continue;
      groups_ = groups;
      chunks_ = chunks;
    }
  }

  int64_t items() const { return groups_ * chunks_; }
  int64_t groups() const { return groups_; }
  int64_t chunks() const { return chunks_; }
  int64_t first_row(int64_t group) const { return rows_ * group / groups_; }
  int64_t group_of(int64_t row) const { return ((row + 1) * groups_ - 1) / rows_; }
  int64_t first_block(int64_t chunk) const { return blocks_ * chunk / chunks_; }

 private:
  int64_t rows_, blocks_, groups_ = 0, chunks_ = 0;
};

inline int64_t rows_of(const Tensor& hidden, const std::optional<Tensor>& cu_seqlens) {
  return cu_seqlens ? cu_seqlens->size(0) - 1 : hidden.size(0);
}

// The unmasked tokens of the batch, in row order, packed into the tiles of the matmul; no tile holds tokens of two of
// the split's groups of rows.
class TokenTiles {
 public:
  TokenTiles(const Tensor& hidden, const std::optional<Tensor>& mask, const std::optional<Tensor>& cu_seqlens,
             bool pairs, const Split& split);

  int64_t rows() const { return int64_t(first_token_.size()) - 1; }
  int64_t width() const { return D_; }
  bool empty(int64_t row) const { return first_token_[row] == first_token_[row + 1]; }
  int32_t lowest_position(int64_t row) const { return tokens_[first_token_[row]].position; }
  const std::vector<Token>& tokens() const { return tokens_; }
  const TokenTile* tiles(int64_t group) const { return tiles_.data() + first_tile_[group]; }
  int64_t tile_count(int64_t group) const { return first_tile_[group + 1] - first_tile_[group]; }

 private:
  void add_row(int64_t row, int64_t L, int64_t offset, int64_t stride, const bool* keep, int64_t keep_stride);
  void make_tiles(const Split& split);
  void pack(const Tensor& hidden);

  int64_t D_;
  bool pairs_;
  std::vector<Token> tokens_;
  std::vector<int64_t> offset_;       // element offset of each token in hidden
  std::vector<int64_t> first_token_;  // of each row, and the end
  std::vector<TokenTile> tiles_;
  std::vector<int64_t> first_tile_;  // of each group, and the end
  Aligned<Word> data_;
};

// A block of the columns of weight [V, D].
inline Columns columns_of(const Tensor& weight, int64_t block) {
  int64_t first = block * kBlock, count = std::min<int64_t>(kBlock, weight.size(0) - first);
  return {weight.const_data_ptr(), dtype_of(weight), weight.stride(0), weight.stride(1), first, int(count),
          weight.size(1)};
}

// The vocabulary's columns as blocks: packed on the fly from [V, D], or read from a pack_vocab tensor.
class VocabBlocks {
 public:
  VocabBlocks(const Tensor& weight, const std::optional<Tensor>& bias, std::optional<int64_t> packed_vocab, int64_t D,
              bool pairs);

  int64_t vocab() const { return V_; }
  int64_t count() const { return (V_ + kBlock - 1) / kBlock; }
  int columns(int64_t block) const { return int(std::min<int64_t>(kBlock, V_ - block * kBlock)); }
  bool pairs() const { return pairs_; }
  int64_t steps() const { return steps_of(D_, pairs_); }
  // Of a packed weight its panels, widened into `scratch` (kBlock * steps words) where that is needed; of another its
  // columns. bias [kBlock] is filled, 0 past the last column.
  VocabBlock block(int64_t block, Word* scratch, float* bias) const;

 private:
  const Word* stored_panels(int64_t block, Word* scratch) const;

  const Tensor& weight_;
  std::optional<Tensor> bias_;
  bool packed_, pairs_;
  int64_t V_, D_;
};

// Sink: `std::vector<float> floors`, one a row, and `void row_done(int64_t block, int columns, PooledBlock&)`; one sink
// an item of the split, nothing shared.
template <class Sink>
void walk_vocab(const TokenTiles& batch, const VocabBlocks& vocab, std::vector<Sink>& sinks, const Split& split) {
  struct Context {
    Sink* sink;
    int64_t block;
    int columns;
  };
  int64_t words = kBlock * vocab.steps(), floats = kBlock * kMaxTokens;
  auto panels = aligned<Word>(split.items() * words);
  auto products = aligned<float>(split.items() * floats);
  torch::stable::parallel_for(0, split.items(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      alignas(64) float bias[kBlock];
      alignas(64) PooledBlock state;
      int64_t group = item / split.chunks(), chunk = item % split.chunks();
      for (int64_t block = split.first_block(chunk); block < split.first_block(chunk + 1); ++block) {
        Context context{&sinks[item], block, vocab.columns(block)};
        auto done = [](void* p, PooledBlock& pooled) {
          auto* c = static_cast<Context*>(p);
          c->sink->row_done(c->block, c->columns, pooled);
        };
        simd().pool_block(batch.tiles(group), batch.tile_count(group), batch.tokens().data(),
                          vocab.block(block, panels.get() + item * words, bias), sinks[item].floors.data(),
                          products.get() + item * floats, &state, done, &context);
      }
    }
  });
}

}  // namespace stair
