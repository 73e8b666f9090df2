// The walk of a batch's tokens over one block of columns: matmul tiles, then the running maximum of every row.
#pragma once
#include "cpu/simd/matmul.h"

namespace stair::STAIR_ISA {
namespace {

// Folds the logits [count][kBlock] of neighbouring tokens of one row into its running maximum, which stays in registers
// over the tokens. Strictly greater: the lowest position keeps a tie. The first NaN wins and stays.
inline void fold(PooledBlock& state, const float* logits, const Token* tokens, int count) {
  for (int c = 0; c < kBlock; c += kWidth) {
    bool fresh = tokens[0].first;
    Vec best = load_vec(fresh ? logits + c : state.logit + c);
    IntVec where = fresh ? IntVec{} + tokens[0].position : (IntVec)load_vec(state.position + c);
    for (int i = fresh; i < count; ++i) {
      Vec x = load_vec(logits + i * kBlock + c);
      IntVec better = (x > best) | ((x != x) & (best == best));
      best = better ? x : best;
      where = better ? IntVec{} + tokens[i].position : where;
    }
    store_vec(state.logit + c, best);
    store_vec(state.position + c, (Vec)where);
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
      bits |= uint64_t(above(x, Vec{} + floor)) << c;
    }
    state.above[word] = bits;
    any |= bits;
  }
  return any != 0;
}

template <class Tiles>
void pool_tiles(const TokenTile* tiles, int64_t n_tiles, const Token* tokens, const Word* block, int64_t steps,
                const float* bias, const float* floors, float* products, PooledBlock* state, RowDone done,
                void* context) {
  [[maybe_unused]] typename Tiles::Session session;
  for (int64_t t = 0; t < n_tiles; ++t) {
    Tiles::block(tiles[t], block, steps, products);
    const Token* token = tokens + tiles[t].first;
    for (int begin = 0, end; begin < tiles[t].used; begin = end) {
      for (end = begin + 1; end < tiles[t].used && !token[end].first;) ++end;
      fold(*state, products + begin * kBlock, token + begin, end - begin);
      if (!token[end - 1].last) continue;
      state->row = token[begin].row;
      if (finish(*state, bias, floors[state->row])) done(context, *state);
    }
  }
}

void pool_block(const TokenTile* tiles, int64_t n_tiles, const Token* tokens, const Word* block, int64_t steps,
                bool pairs, const float* bias, const float* floors, float* tile_scratch, PooledBlock* state,
                RowDone done, void* context) {
  auto pool = pairs ? pool_tiles<PairTiles> : pool_tiles<FloatTiles>;
  pool(tiles, n_tiles, tokens, block, steps, bias, floors, tile_scratch, state, done, context);
}

}  // namespace
}  // namespace stair::STAIR_ISA
