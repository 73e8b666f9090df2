#include "cpu/vocab_head.h"

namespace stair {

TokenTiles::TokenTiles(const Tensor& hidden, const std::optional<Tensor>& mask, const std::optional<Tensor>& cu_seqlens,
                       bool pairs, const Split& split)
    : D_(hidden.size(hidden.dim() - 1)), pairs_(pairs) {
  first_token_.push_back(0);
  if (cu_seqlens) {
    int64_t B = cu_seqlens->size(0) - 1, T = hidden.size(0), stride = cu_seqlens->stride(0);
    const int32_t* bounds = cu_seqlens->const_data_ptr<int32_t>();
    for (int64_t b = 0; b < B; ++b) {
      int64_t begin = bounds[b * stride], end = bounds[(b + 1) * stride];
      STAIR_CHECK(0 <= begin && begin <= end && end <= T, "cu_seqlens: expected ascending offsets in [0, ", T,
                  "], got ", begin, ", ", end, " at row ", b);
      add_row(b, end - begin, begin * hidden.stride(0), hidden.stride(0), nullptr, 0);
    }
  } else {
    int64_t B = hidden.size(0), L = hidden.size(1);
    for (int64_t b = 0; b < B; ++b) {
      const bool* keep = mask ? mask->const_data_ptr<bool>() + b * mask->stride(0) : nullptr;
      add_row(b, L, b * hidden.stride(0), hidden.stride(1), keep, mask ? mask->stride(1) : 0);
    }
  }
  make_tiles(split);
  pack(hidden);
}

void TokenTiles::add_row(int64_t row, int64_t L, int64_t offset, int64_t stride, const bool* keep,
                         int64_t keep_stride) {
  bool first = true;
  for (int64_t l = 0; l < L; ++l) {
    if (keep && !keep[l * keep_stride]) continue;
    tokens_.push_back({int32_t(row), int32_t(l), first, false});
    offset_.push_back(offset + l * stride);
    first = false;
  }
  if (!first) tokens_.back().last = true;
  first_token_.push_back(int64_t(tokens_.size()));
}

void TokenTiles::make_tiles(const Split& split) {
  int64_t steps = steps_of(D_, pairs_), tokens = 0;
  for (int64_t group = 0; group < split.groups(); ++group) {
    first_tile_.push_back(int64_t(tiles_.size()));
    int64_t end = first_token_[split.first_row(group + 1)];
    for (int64_t t = first_token_[split.first_row(group)]; t < end;) {
      int size = simd().tile_size(end - t, pairs_), used = int(std::min<int64_t>(size, end - t));
      tiles_.push_back({nullptr, t, size, used});
      tokens += size;
      t += used;
    }
  }
  first_tile_.push_back(int64_t(tiles_.size()));
  data_ = aligned<Word>(tokens * steps);
  Word* next = data_.get();
  for (auto& tile : tiles_) {
    tile.data = next;
    next += tile.size * steps;
  }
}

void TokenTiles::pack(const Tensor& hidden) {
  const auto& kernels = simd();
  int64_t steps = steps_of(D_, pairs_);
  int64_t stride = hidden.stride(hidden.dim() - 1);
  torch::stable::parallel_for(0, int64_t(tiles_.size()), 8, [&](int64_t begin, int64_t end) {
    std::unique_ptr<Word[]> row(new Word[steps]);
    for (int64_t t = begin; t < end; ++t)
      for (int i = 0; i < tiles_[t].size; ++i) {
        bool used = i < tiles_[t].used;
        if (used)
          kernels.load_row(element_ptr(hidden, offset_[tiles_[t].first + i]), dtype_of(hidden), stride, D_, pairs_,
                           row.get());
        kernels.place_row(used ? row.get() : nullptr, steps, pairs_, i, tiles_[t].size,
                          const_cast<Word*>(tiles_[t].data));
      }
  });
}

VocabBlocks::VocabBlocks(const Tensor& weight, const std::optional<Tensor>& bias, std::optional<int64_t> packed_vocab,
                         int64_t D, bool pairs)
    : weight_(weight),
      packed_(packed_vocab.has_value()),
      pairs_(pairs),
      V_(packed_vocab.value_or(weight.size(0))),
      D_(D) {
  int64_t expected = packed_ ? steps_of(D, dtype_of(weight) != Dtype::kFloat) : D;
  STAIR_CHECK(weight.size(1) == expected, "weight: expected [V, ", D, "] like hidden, got size ", weight.size(1));
  // memory safety rests on these: Python checks them too
  if (packed_) {
    int64_t panels = count() * kBlockPanels, width = kPanel * (dtype_of(weight) == Dtype::kFloat ? 1 : 2);
    STAIR_CHECK(weight.size(0) == panels && weight.size(2) == width && weight.is_contiguous(), "weight: expected [",
                panels, ", ", expected, ", ", width, "] as pack_vocab makes it");
  }
  STAIR_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == V_), "bias: expected [", V_, "]");
  if (bias) bias_ = as_float(*bias);
}

VocabBlock VocabBlocks::block(int64_t block, Word* scratch, float* bias) const {
  std::fill_n(bias, kBlock, 0.0f);
  if (bias_) std::copy_n(bias_->const_data_ptr<float>() + block * kBlock, columns(block), bias);
  if (packed_) return {stored_panels(block, scratch), {}, scratch, bias, steps(), pairs_};
  return {nullptr, columns_of(weight_, block), scratch, bias, steps(), pairs_};
}

const Word* VocabBlocks::stored_panels(int64_t block, Word* scratch) const {
  const char* stored = element_ptr(weight_, block * kBlockPanels * weight_.stride(0));
  if (pairs_ || dtype_of(weight_) == Dtype::kFloat) return reinterpret_cast<const Word*>(stored);
  simd().widen_block(stored, dtype_of(weight_), D_, scratch);
  return scratch;
}

}  // namespace stair
