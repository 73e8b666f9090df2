// The walk of a batch's tokens over one block of columns: matmul tiles, then the running maximum of every row.
#pragma once
#include "cpu/simd/matmul.h"

namespace stair::STAIR_ISA {
namespace {

// Folds the logits [count][kBlock] of neighbouring tokens of one row into its running maximum, which stays in registers
// over the tokens. Strictly greater: the lowest position keeps a tie. The first NaN wins and stays.
inline void fold(PooledBlock& state, const float* logits, const Token* tokens, int count) {
  constexpr int kChains = 4;  // side by side: each waits for its own comparison
  bool fresh = tokens[0].first;
  for (int c = 0; c < kBlock; c += kChains * kWidth) {
    Vec best[kChains];
    IntVec where[kChains];
    for (int j = 0; j < kChains; ++j) {
      int at = c + j * kWidth;
      best[j] = load_vec(fresh ? logits + at : state.logit + at);
      where[j] = fresh ? IntVec{} + tokens[0].position : (IntVec)load_vec(state.position + at);
    }
    for (int i = fresh; i < count; ++i) {
      IntVec position = IntVec{} + tokens[i].position;
      for (int j = 0; j < kChains; ++j) {
        Vec x = load_vec(logits + i * kBlock + c + j * kWidth);
        IntVec better = (x > best[j]) | ((x != x) & (best[j] == best[j]));
        best[j] = better ? x : best[j];
        where[j] = better ? position : where[j];
      }
    }
    for (int j = 0; j < kChains; ++j) {
      store_vec(state.logit + c + j * kWidth, best[j]);
      store_vec(state.position + c + j * kWidth, (Vec)where[j]);
    }
  }
}

// Adds the bias and marks the columns above the row's floor (NaN counts as above). Returns whether there is any.
inline bool finish(PooledBlock& state, const float* bias, float floor) {
  uint64_t any = 0;
  for (int word = 0; word < kBlock / 64; ++word) {
    uint64_t bits = 0;
    for (int c = 0; c < 64; c += kWidth) {
      float* logit = state.logit + word * 64 + c;
      Vec x = load_vec(logit) + load_vec(bias + word * 64 + c);
      store_vec(logit, x);
      bits |= uint64_t(above(x, splat(floor))) << c;
    }
    state.above[word] = bits;
    any |= bits;
  }
  return any != 0;
}

template <class Tiles>
void pool_tiles(const TokenTile* tiles, int64_t n_tiles, const Token* tokens, const VocabBlock& block,
                const float* floors, float* products, PooledBlock* state, RowDone done, void* context) {
  const Word* panels = block.panels;
  // of a transposed weight the columns lie side by side: packing is a copy, reading it row by row is not
  bool unpacked = panels == nullptr && Tiles::kReadsUnpacked && n_tiles == 1 && block.columns.stride_d == 1;
  if (panels == nullptr && !unpacked) {
    pack_block(block.columns, block.pairs, block.scratch);
    panels = block.scratch;
  }
  [[maybe_unused]] typename Tiles::Session session;
  for (int64_t t = 0; t < n_tiles; ++t) {
    if (unpacked)
      Tiles::block_unpacked(tiles[t], block, products);
    else
      Tiles::block(tiles[t], panels, block.steps, products);
    const Token* token = tokens + tiles[t].first;
    for (int begin = 0, end; begin < tiles[t].used; begin = end) {
      for (end = begin + 1; end < tiles[t].used && !token[end].first;) ++end;
      fold(*state, products + begin * kBlock, token + begin, end - begin);
      if (!token[end - 1].last) continue;
      state->row = token[begin].row;
      if (finish(*state, block.bias, floors[state->row])) done(context, *state);
    }
  }
}

void pool_block(const TokenTile* tiles, int64_t n_tiles, const Token* tokens, const VocabBlock& block,
                const float* floors, float* tile_scratch, PooledBlock* state, RowDone done, void* context) {
  auto pool = block.pairs ? pool_tiles<PairTiles> : pool_tiles<FloatTiles>;
  pool(tiles, n_tiles, tokens, block, floors, tile_scratch, state, done, context);
}

}  // namespace
}  // namespace stair::STAIR_ISA
