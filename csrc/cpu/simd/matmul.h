// The matmul tiles: a few tokens times 32 or 16 columns, summed in registers over all of D.
#pragma once
#include "cpu/simd/pack.h"

namespace stair::STAIR_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kColumns = 32, kTokens = 12;  // 12 x 2 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int kColumns = 16, kTokens = 6;  // 6 x 2 accumulators of 16 registers
#elif defined(__aarch64__)
constexpr int kColumns = 16, kTokens = 6;  // 6 x 4 accumulators of 32 registers
#else
constexpr int kColumns = 16, kTokens = 2;  // 2 x 4 accumulators of 16 registers
#endif

// kFewPanels: how many panels side by side for one or two tokens. A stream from memory is fastest alone; half as many
// bytes come from the last cache more often, and then two chains of sums beat one (measured on Zen 4: 1.3x).
struct FloatMath {
  static constexpr int kFewPanels = 1;
  static inline Vec broadcast(Word token) {
    float value;
    std::memcpy(&value, &token, 4);
    return splat(value);
  }
  static inline Vec multiply_add(Vec sum, Vec token, Vec column) { return sum + token * column; }
};

#if defined(__AVX512BF16__)
struct PairMath {
  static constexpr int kFewPanels = 2;
  static inline Vec broadcast(Word token) { return (Vec)_mm512_set1_epi32(int(token)); }
  static inline Vec multiply_add(Vec sum, Vec token, Vec column) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)token, (__m512bh)column);
  }
};
#else
using PairMath = FloatMath;  // never called: kernels.pairs is false
#endif

// Tiles of vector registers: a token's word is broadcast to all columns. A tile lies as [steps][size].
template <class Math>
struct VectorTiles {
  static int size(int64_t tokens) {
    for (int smaller = 1; smaller < kTokens && smaller <= 8; smaller *= 2)
      if (tokens <= smaller) return smaller;
    return kTokens;
  }

  static void place_row(const Word* row, int64_t steps, int token, int size, Word* tile) {
    for (int64_t s = 0; s < steps; ++s) tile[s * size + token] = row ? row[s] : 0;
  }

  // Few tokens are as fast as memory gives the panels. Measured on Zen 4: a lone panel is best asked for 4 KiB ahead,
  // two at a time when the two before them are at work.
  template <int kPanels>
  static void fetch_ahead(const Word* panels, int64_t steps, int64_t s) {
    if constexpr (kPanels == 1)
      __builtin_prefetch(panels + (s + 64) * kPanel, 0, 3);
    else
      for (int j = 0; j < kPanels; ++j) __builtin_prefetch(panels + ((j + 2 * kPanels) * steps + s) * kPanel, 0, 2);
  }

  // out[i][0 : 16 kPanels) = sum over steps of tokens[step][i] * panels[step]: one chain in ascending order for every
  // element, so that a logit has the same bits in whatever tile it is computed.
  template <int kM, int kPanels>
  static void tile(const Word* tokens, const Word* panels, int64_t steps, float* out) {
    constexpr int kPanelVectors = kPanel / kWidth, kVectors = kPanels * kPanelVectors;
    Vec acc[kM][kVectors] = {};
    for (int64_t s = 0; s < steps; ++s) {
      Vec column[kVectors];
      if (kM < kTokens) fetch_ahead<kPanels>(panels, steps, s);
      for (int j = 0; j < kVectors; ++j)
        column[j] = load_vec(panels + ((j / kPanelVectors) * steps + s) * kPanel + (j % kPanelVectors) * kWidth);
      for (int i = 0; i < kM; ++i) {
        Vec token = Math::broadcast(tokens[s * kM + i]);
        for (int j = 0; j < kVectors; ++j) acc[i][j] = Math::multiply_add(acc[i][j], token, column[j]);
      }
    }
    for (int i = 0; i < kM; ++i)
      for (int j = 0; j < kVectors; ++j) store_vec(out + i * kBlock + j * kWidth, acc[i][j]);
  }

  // All columns of a block, kPanels panels at a time.
  template <int kM, int kPanels>
  static void columns(const TokenTile& tokens, const Word* panels, int64_t steps, float* out) {
    for (int p = 0; p < kBlockPanels; p += kPanels)
      tile<kM, kPanels>(tokens.data, panels + p * steps * kPanel, steps, out + p * kPanel);
  }

  // out[i][c] = tokens[i] . column c of a block
  static void block(const TokenTile& tile, const Word* panels, int64_t steps, float* out) {
    if (tile.size == kTokens) return columns<kTokens, kColumns / kPanel>(tile, panels, steps, out);
    switch (tile.size) {
      case 8:
        return columns<8 < kTokens ? 8 : 1, 2>(tile, panels, steps, out);
      case 4:
        return columns<4 < kTokens ? 4 : 1, 1>(tile, panels, steps, out);
      case 2:
        return columns<2, Math::kFewPanels>(tile, panels, steps, out);
      default:
        return columns<1, Math::kFewPanels>(tile, panels, steps, out);
    }
  }

  // Packing pays where the panels are read by more than one tile of tokens.
  static constexpr bool kReadsUnpacked = true;

  // out[i][c] = tokens[i] . column c of kWidth columns, read from the weight's rows: every word of the weight goes
  // through a register once. The same chain as in `tile`, the same bits.
  template <int kM, class Words>
  static void unpacked_tile(const Word* tokens, const Columns& columns, int64_t steps, float* out) {
    Vec acc[kM] = {};
    int64_t s = 0;
    for (int64_t whole = whole_words<Words>(columns); s < whole; s += kWidth) {
      Vec words[kWidth];
      load_transposed<Words>(columns, s, words);
      for (int j = 0; j < kWidth; ++j)
        for (int i = 0; i < kM; ++i)
          acc[i] = Math::multiply_add(acc[i], Math::broadcast(tokens[(s + j) * kM + i]), words[j]);
    }
    for (; s < steps; ++s) {
      IntVec words = {};
      for (int c = 0; c < kWidth; ++c) words[c] = int32_t(word_of<Words>(columns, c, s));
      for (int i = 0; i < kM; ++i) acc[i] = Math::multiply_add(acc[i], Math::broadcast(tokens[s * kM + i]), (Vec)words);
    }
    for (int i = 0; i < kM; ++i) store_vec(out + i * kBlock, acc[i]);
  }

  struct Unpacked {
    const TokenTile& tile;
    const Columns& columns;
    int64_t steps;
    float* out;

    template <int kM, class Words>
    void tiles() const {
      for (int c = 0; c < kBlock; c += kWidth)
        unpacked_tile<kM, Words>(tile.data, columns_from(columns, c), steps, out + c);
    }
    template <class Words>
    void run() const {
      if (tile.size == kTokens) return tiles<kTokens, Words>();
      switch (tile.size) {
        case 8:
          return tiles<8 < kTokens ? 8 : 1, Words>();
        case 4:
          return tiles<4 < kTokens ? 4 : 1, Words>();
        case 2:
          return tiles<2 < kTokens ? 2 : 1, Words>();
        default:
          return tiles<1, Words>();
      }
    }
  };

  static void block_unpacked(const TokenTile& tile, const VocabBlock& block, float* out) {
    by_words(block.columns.dtype, block.pairs, Unpacked{tile, block.columns, block.steps, out});
  }

  struct Session {};  // nothing to set up
};

#if defined(__AMX_BF16__)
// AMX tiles: 16 tokens x 16 steps times 16 steps x 16 columns. A tile of 32 or 16 tokens lies as [2 or 1][steps / 16]
// [16 tokens][16 steps]; a panel is its own B tiles, 16 steps after 16 steps.
struct AmxTiles {
  static constexpr int kSide = 16;
  static constexpr int kTile = kSide * kTileSteps;  // words

  static int size(int64_t tokens) { return tokens <= kSide ? kSide : 2 * kSide; }

  static constexpr bool kReadsUnpacked = false;
  static void block_unpacked(const TokenTile&, const VocabBlock&, float*) {}

  static void place_row(const Word* row, int64_t steps, int token, int, Word* tile) {
    Word* to = tile + token / kSide * steps * kSide + token % kSide * kTileSteps;
    for (int64_t s = 0; s < steps; s += kTileSteps, to += kTile)
      for (int i = 0; i < kTileSteps; ++i) to[i] = row ? row[s + i] : 0;
  }

  static void block(const TokenTile& tile, const Word* panels, int64_t steps, float* out) {
    for (int c = 0; c < kBlock; c += 2 * kSide) {
      const Word* columns = panels + int64_t(c / kPanel) * steps * kPanel;
      if (tile.size == kSide)
        one_by_two(tile.data, columns, steps, out + c);
      else
        two_by_two(tile.data, columns, steps, out + c);
    }
  }

  static void two_by_two(const Word* tokens, const Word* panels, int64_t steps, float* out) {
    const Word *more_tokens = tokens + steps * kSide, *more_panels = panels + steps * kPanel;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t at = 0; at < steps * kSide; at += kTile) {
      _tile_loadd(4, tokens + at, kRowBytes);
      _tile_loadd(6, panels + at, kRowBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, more_panels + at, kRowBytes);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, more_tokens + at, kRowBytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, kOutBytes);
    _tile_stored(1, out + kSide, kOutBytes);
    _tile_stored(2, out + kSide * kBlock, kOutBytes);
    _tile_stored(3, out + kSide * kBlock + kSide, kOutBytes);
  }

  static void one_by_two(const Word* tokens, const Word* panels, int64_t steps, float* out) {
    const Word* more_panels = panels + steps * kPanel;
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t at = 0; at < steps * kSide; at += kTile) {
      _tile_loadd(4, tokens + at, kRowBytes);
      _tile_loadd(6, panels + at, kRowBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, more_panels + at, kRowBytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, out, kOutBytes);
    _tile_stored(1, out + kSide, kOutBytes);
  }

  static constexpr int kRowBytes = kTileSteps * 4, kOutBytes = kBlock * 4;

  // The tiles' shape, 8 times 16 rows of 64 bytes, for as long as it lives; then the tiles are given up, so that a
  // change of context need not save them.
  struct Session {
    Session() {
      struct {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
      } shape;
      for (int i = 0; i < 8; ++i) {
        shape.row_bytes[i] = kRowBytes;
        shape.rows[i] = kSide;
      }
      _tile_loadconfig(&shape);
    }
    ~Session() { _tile_release(); }
  };
};
using PairTiles = AmxTiles;
#else
using PairTiles = VectorTiles<PairMath>;
#endif
using FloatTiles = VectorTiles<FloatMath>;

int tile_size(int64_t tokens, bool pairs) { return pairs ? PairTiles::size(tokens) : FloatTiles::size(tokens); }

void place_row(const Word* row, int64_t steps, bool pairs, int token, int size, Word* tile) {
  if (pairs) return PairTiles::place_row(row, steps, token, size, tile);
  FloatTiles::place_row(row, steps, token, size, tile);
}

}  // namespace
}  // namespace stair::STAIR_ISA
