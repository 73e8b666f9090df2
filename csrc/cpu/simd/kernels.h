// The inner loops of the CPU kernels. simd/table.cpp is compiled once per instruction set; each build fills one table
// of function pointers. Nothing here may use the standard library: its inline functions would be merged by the linker
// across instruction sets, and an AVX-512 copy would then run on a CPU that has none.
#pragma once
#include <cstdint>

#include "activations.h"

namespace stair {

constexpr int kPanel = 16;                     // vocabulary columns that lie side by side in a packed panel
constexpr int kBlockPanels = 8;                // panels walked together: their weights stay in L2
constexpr int kBlock = kPanel * kBlockPanels;  // 128 columns
constexpr int kMaxTokens = 32;                 // most tokens in a tile

enum class Dtype : int { kFloat, kBFloat16, kHalf };

// What the matmul tiles multiply: a float32, or two neighbouring bfloat16 along D (the lower half first) where the
// instruction set multiplies pairs. A column of D elements is `steps` words: D, or in pairs ceil(D / 2) with zeros up
// to a whole AMX tile.
using Word = uint32_t;
constexpr int kTileSteps = 16;
inline int64_t steps_of(int64_t D, bool pairs) {
  return pairs ? (D + 2 * kTileSteps - 1) / (2 * kTileSteps) * kTileSteps : D;
}

// A run of tokens packed for the matmul tiles: `size` x steps words in the order that place_row writes.
struct TokenTile {
  const Word* data;
  int64_t first;  // the tile's first token
  int size;       // one of the instruction set's tile sizes
  int used;       // tokens in it; the rest is zero
};

// `count` columns of a weight [V, D] from column `first` on; strides in elements.
struct Columns {
  const void* weight;
  Dtype dtype;
  int64_t stride_v, stride_d, first;
  int count;
  int64_t D;
};

// What the tokens are multiplied with: a block of the vocabulary.
struct VocabBlock {
  const Word* panels;  // [kBlockPanels][steps][kPanel]; null: `columns` come as they are in the weight
  Columns columns;
  Word* scratch;      // kBlock * steps words, for packing them
  const float* bias;  // [kBlock]
  int64_t steps;
  bool pairs;
};

// Which row of the batch a token belongs to, and its position there.
struct Token {
  int32_t row, position;
  bool first, last;  // of its row
};

// One row's pooled logits for a block of columns, handed to the caller while they are in cache.
struct PooledBlock {
  int32_t row;
  float logit[kBlock];          // max over positions + bias; NaN wins
  int32_t position[kBlock];     // the lowest position that reached the maximum
  uint64_t above[kBlock / 64];  // bit c: !(logit[c] <= floor of the row)
};

// An entry of a dense row.
struct Found {
  float value;
  int32_t index;
};

using RowDone = void (*)(void* context, PooledBlock& block);

struct SimdKernels {
  const char* name;
  bool pairs;  // multiplies bfloat16 in pairs; subnormal bfloat16 then counts as 0 (VDPBF16PS, TDPBF16PS)

  // The smallest tile that holds `tokens`, or the largest that there is.
  int (*tile_size)(int64_t tokens, bool pairs);

  // The words of one row of D elements.
  void (*load_row)(const void* in, Dtype dtype, int64_t stride, int64_t D, bool pairs, Word* out);

  // Puts one token's words, or zeros for null, into its place in a tile.
  void (*place_row)(const Word* row, int64_t steps, bool pairs, int token, int size, Word* tile);

  // Columns as panels [kBlockPanels][steps][kPanel].
  void (*pack_block)(const Columns& columns, bool pairs, Word* out);

  // A block stored by pack_vocab in pairs of 16 bits, as float32 words.
  void (*widen_block)(const void* stored, Dtype dtype, int64_t D, Word* out);

  // All rows of the batch against one block of columns; calls done for each row with any column above floors[row].
  // tile_scratch, 64-byte aligned, holds kMaxTokens * kBlock floats.
  void (*pool_block)(const TokenTile* tiles, int64_t n_tiles, const Token* tokens, const VocabBlock& block,
                     const float* floors, float* tile_scratch, PooledBlock* state, RowDone done, void* context);

  // A lower bound, >= 0, of the k-th largest positive entry of row: of the largest of each of about 2k groups the k-th
  // largest, rounded down a little. At about 1.4k entries are as large. NaN is not seen. scratch: 2k + 16 floats.
  float (*bound_of_kth)(const void* row, Dtype dtype, int64_t n, int64_t k, float* scratch);

  // The k-th largest of n floats without NaN, n >= k >= 1; -infinity stands behind them up to a multiple of 16.
  float (*kth_largest)(const float* x, int64_t n, int64_t k);

  // Writes the entries from *next on that are !(value <= floor), so also NaN, until the row ends or fewer than 16
  // places are left of `room` (at least 16); moves *next on and returns how many it wrote.
  int64_t (*collect_above)(const void* row, Dtype dtype, int64_t n, float floor, Found* found, int64_t room,
                           int64_t* next);

  // A few distinct keys (n up to 256 or so) in descending order.
  void (*sort_descending)(const uint64_t* keys, int64_t n, uint64_t* sorted);

  // out = activation(in) of n raw logits; in may be out
  void (*activate)(const float* in, int64_t n, Activation activation, float* out);

  // slope = d activation / d x, from the activation's value y (of an entry: x above the floor)
  void (*slopes)(const float* y, int64_t n, Activation activation, float* slope);

  // y[to[i]] += scale[i] * float(x[from[i]]) for i in [0, n) in that order; rows of y and x are D wide
  void (*scatter)(float* y, const int32_t* to, const float* scale, const void* x, const int32_t* from, Dtype dtype,
                  int64_t n, int64_t D);

  // out[i] = sum over d of float(x[from[i]][d]) * float(w[of[i]][d]), i in [0, n); rows of x and w are D wide
  void (*dots)(const void* x, const int32_t* from, const void* w, const int32_t* of, Dtype dtype, int64_t n, int64_t D,
               float* out);

  // n float32 rounded to dtype, ties to even
  void (*narrow)(const float* in, int64_t n, Dtype dtype, void* out);
};

namespace generic {
extern const SimdKernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const SimdKernels kernels;
}
namespace avx512 {
extern const SimdKernels kernels;
}
namespace avx512_bf16 {
extern const SimdKernels kernels;
}
namespace amx {
extern const SimdKernels kernels;
}
#endif

}  // namespace stair
