// vocab_pool: the dense [B, V] row without the [B, L, V] logits.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/vocab_head.h"

namespace stair {
namespace {

// Writes each row's columns as they are finished. Its floors are NaN: every column is above.
struct PoolSink {
  void row_done(int64_t block, int columns, PooledBlock& pooled) {
    int64_t base = int64_t(pooled.row) * V + block * kBlock;
    simd().activate(pooled.logit, columns, activation, out + base);
    if (short_positions)
      std::copy_n(pooled.position, columns, short_positions + base);
    else
      std::copy_n(pooled.position, columns, positions + base);
  }
  void clear(int64_t row) {
    std::fill_n(out + row * V, V, 0.0f);
    if (short_positions)
      std::fill_n(short_positions + row * V, V, int16_t(-1));
    else
      std::fill_n(positions + row * V, V, -1);
  }

  std::vector<float> floors;
  Activation activation;
  int64_t V;
  float* out;
  int16_t* short_positions;  // these, or
  int32_t* positions;
};

std::tuple<Tensor, Tensor> vocab_pool(const Tensor& hidden, const Tensor& weight, std::optional<Tensor> bias,
                                      std::optional<Tensor> mask, std::optional<Tensor> cu_seqlens,
                                      std::optional<int64_t> packed_vocab, std::string activation_name) {
  Activation activation = parse_activation(activation_name);
  bool pairs = multiplies_pairs(hidden, weight);
  VocabBlocks vocab(weight, bias, packed_vocab, hidden.size(hidden.dim() - 1), pairs);
  int64_t B = rows_of(hidden, cu_seqlens), V = vocab.vocab();
  Split split(B, vocab.count());
  TokenTiles batch(hidden, mask, cu_seqlens, pairs, split);
  Tensor out = new_tensor(hidden, {B, V}, ScalarType::Float);
  bool fits_short = hidden.size(cu_seqlens ? 0 : 1) <= std::numeric_limits<int16_t>::max();
  Tensor positions = new_tensor(hidden, {B, V}, fits_short ? ScalarType::Short : ScalarType::Int);
  PoolSink sink{std::vector<float>(B, std::numeric_limits<float>::quiet_NaN()),
                activation,
                V,
                out.mutable_data_ptr<float>(),
                fits_short ? positions.mutable_data_ptr<int16_t>() : nullptr,
                fits_short ? nullptr : positions.mutable_data_ptr<int32_t>()};
  std::vector<PoolSink> sinks(split.items(), sink);
  walk_vocab(batch, vocab, sinks, split);
  for (int64_t row = 0; row < B; ++row)
    if (batch.empty(row)) sink.clear(row);
  return {out, positions};
}

}  // namespace
}  // namespace stair

STABLE_TORCH_LIBRARY_IMPL(stair, CPU, m) { m.impl("vocab_pool", TORCH_BOX(&stair::vocab_pool)); }
