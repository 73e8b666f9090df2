// The inner loops, written once with GCC vector types and compiled once per instruction set (STAIR_ISA names it).
#include "cpu/simd.h"

#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace stair::STAIR_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16, kColumns = 32, kTokens = 12;  // 12 x 2 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int kWidth = 8, kColumns = 16, kTokens = 6;  // 6 x 2 accumulators of 16 registers
#else
constexpr int kWidth = 4, kColumns = 16, kTokens = 2;  // 2 x 4 accumulators of 16 registers
#endif
constexpr int kVectors = kColumns / kWidth;

using Vec = float __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
using IntVec = int32_t __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));

inline Vec load_vec(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store_vec(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }

inline float from_bfloat16(uint16_t bits) {
  uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline float from_half(uint16_t bits) {
#if defined(__F16C__)
  return _cvtsh_ss(bits);
#else
  // Subnormals by value, the rest by moving the exponent: 112 = 127 - 15.
  uint32_t sign = uint32_t(bits & 0x8000) << 16, magnitude = bits & 0x7fff, wide;
  if (magnitude < 0x400) {
    float value = float(magnitude) * 5.9604644775390625e-08f;  // 2^-24
    std::memcpy(&wide, &value, 4);
  } else {
    wide = (magnitude << 13) + (112u << 23);
    if (magnitude >= 0x7c00) wide += 112u << 23;  // infinity and NaN
  }
  wide |= sign;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
#endif
}

template <Dtype kDtype>
inline float element(const void* p, int64_t i) {
  if constexpr (kDtype == Dtype::kFloat) return static_cast<const float*>(p)[i];
  uint16_t bits = static_cast<const uint16_t*>(p)[i];
  return kDtype == Dtype::kBFloat16 ? from_bfloat16(bits) : from_half(bits);
}

// Words `step` of a row: one element as float32, or elements 2 step and 2 step + 1 as a bfloat16 pair.
template <Dtype kDtype, bool kPairs>
inline Word word(const void* row, int64_t stride, int64_t D, int64_t step) {
  if constexpr (kPairs) {
    auto* bits = static_cast<const uint16_t*>(row);
    Word high = 2 * step + 1 < D ? bits[(2 * step + 1) * stride] : 0;
    return bits[2 * step * stride] | high << 16;
  }
  float value = element<kDtype>(row, step * stride);
  Word result;
  std::memcpy(&result, &value, 4);
  return result;
}

// Calls f.run<dtype, pairs>() for the values at hand; only bfloat16 comes in pairs.
template <class Function>
inline void by_dtype(Dtype dtype, bool pairs, Function f) {
  if (pairs) return f.template run<Dtype::kBFloat16, true>();
  if (dtype == Dtype::kFloat) return f.template run<Dtype::kFloat, false>();
  if (dtype == Dtype::kBFloat16) return f.template run<Dtype::kBFloat16, false>();
  f.template run<Dtype::kHalf, false>();
}

struct LoadRow {
  const void* in;
  int64_t stride, D;
  Word* __restrict__ out;
  template <Dtype kDtype, bool kPairs>
  void run() const {
    int64_t steps = steps_of(D, kPairs);
    if (stride == 1)
      for (int64_t i = 0; i < steps; ++i) out[i] = word<kDtype, kPairs>(in, 1, D, i);
    else
      for (int64_t i = 0; i < steps; ++i) out[i] = word<kDtype, kPairs>(in, stride, D, i);
  }
};

void load_row(const void* in, Dtype dtype, int64_t stride, int64_t D, bool pairs, Word* out) {
  by_dtype(dtype, pairs, LoadRow{in, stride, D, out});
}

struct PackBlock {
  const void* weight;
  int64_t stride_v, stride_d, v0;
  int n;
  int64_t D;
  Word* __restrict__ out;

  template <Dtype kDtype, bool kPairs>
  void run() const {
    constexpr int64_t kRun = 64;  // steps: a panel's 16 rows x 64 words are transposed inside L1
    constexpr int64_t kBytes = kDtype == Dtype::kFloat ? 4 : 2;
    int64_t steps = steps_of(D, kPairs);
    for (int panel = 0; panel < kBlockPanels; ++panel) {
      Word* to = out + panel * steps * kPanel;
      for (int64_t s0 = 0; s0 < steps; s0 += kRun) {
        int64_t s1 = s0 + kRun < steps ? s0 + kRun : steps;
        auto move = [&](int c, int64_t s) {
          int64_t v = panel * kPanel + c;
          const char* row = static_cast<const char*>(weight) + (v0 + v) * stride_v * kBytes;
          to[s * kPanel + c] = v < n ? word<kDtype, kPairs>(row, stride_d, D, s) : 0;
        };
        if (stride_v == 1)  // columns of a transposed matrix already lie side by side
          for (int64_t s = s0; s < s1; ++s)
            for (int c = 0; c < kPanel; ++c) move(c, s);
        else
          for (int c = 0; c < kPanel; ++c)
            for (int64_t s = s0; s < s1; ++s) move(c, s);
      }
    }
  }
};

void pack_block(const void* weight, Dtype dtype, int64_t stride_v, int64_t stride_d, int64_t v0, int n, int64_t D,
                bool pairs, Word* out) {
  by_dtype(dtype, pairs, PackBlock{weight, stride_v, stride_d, v0, n, D, out});
}

void widen_block(const void* stored, Dtype dtype, int64_t D, Word* __restrict__ out) {
  if (dtype != Dtype::kBFloat16) return load_row(stored, dtype, 1, kBlock * D, false, out);
  int64_t steps = steps_of(D, true);
  auto* from = static_cast<const Word*>(stored);
  for (int panel = 0; panel < kBlockPanels; ++panel, out += D * kPanel, from += steps * kPanel)
    for (int64_t d = 0; d < D; ++d)
      for (int c = 0; c < kPanel; ++c) {
        Word pair = from[d / 2 * kPanel + c];
        out[d * kPanel + c] = d % 2 ? pair & 0xffff0000u : pair << 16;
      }
}

struct FloatMath {
  static inline Vec broadcast(Word token) {
    float value;
    std::memcpy(&value, &token, 4);
    return Vec{} + value;
  }
  static inline Vec multiply_add(Vec sum, Vec token, Vec column) { return sum + token * column; }
};

#if defined(__AVX512BF16__)
struct PairMath {
  static inline Vec broadcast(Word token) { return (Vec)_mm512_set1_epi32(int(token)); }
  static inline Vec multiply_add(Vec sum, Vec token, Vec column) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)token, (__m512bh)column);
  }
};
#else
using PairMath = FloatMath;  // never called: kernels.pairs is false
#endif

// out[i][0:kColumns) = sum over steps of tokens[step][i] * panels[step]: one chain in ascending order for every
// element, so that a logit has the same bits in whatever tile it is computed.
template <class Math, int kM>
void tile(const Word* tokens, const Word* panels, int64_t steps, float* out) {
  constexpr int kPanelVectors = kPanel / kWidth;
  Vec acc[kM][kVectors] = {};
  for (int64_t s = 0; s < steps; ++s) {
    Vec column[kVectors];
    for (int j = 0; j < kVectors; ++j)
      column[j] = *reinterpret_cast<const Vec*>(panels + (j / kPanelVectors) * steps * kPanel + s * kPanel +
                                                (j % kPanelVectors) * kWidth);
    for (int i = 0; i < kM; ++i) {
      Vec token = Math::broadcast(tokens[s * kM + i]);
      for (int j = 0; j < kVectors; ++j) acc[i][j] = Math::multiply_add(acc[i][j], token, column[j]);
    }
  }
  for (int i = 0; i < kM; ++i)
    for (int j = 0; j < kVectors; ++j) store_vec(out + i * kBlock + j * kWidth, acc[i][j]);
}

template <class Math>
void run_tile(int size, const Word* tokens, const Word* panels, int64_t steps, float* out) {
  if (size == kTokens) return tile<Math, kTokens>(tokens, panels, steps, out);
  switch (size) {  // the sizes of a last tile, where they are smaller than a full one
    case 8:
      return tile<Math, 8 < kTokens ? 8 : 1>(tokens, panels, steps, out);
    case 4:
      return tile<Math, 4 < kTokens ? 4 : 1>(tokens, panels, steps, out);
    case 2:
      return tile<Math, 2>(tokens, panels, steps, out);
    default:
      return tile<Math, 1>(tokens, panels, steps, out);
  }
}

// Folds one token's logits into its row's running maximum. Strictly greater: the lowest position keeps a tie.
// The first NaN wins and stays.
inline void fold(PooledBlock& state, const float* logit, const Token& token) {
  IntVec position = IntVec{} + token.position;
  for (int c = 0; c < kBlock; c += kWidth) {
    Vec x = load_vec(logit + c);
    auto* best = reinterpret_cast<Vec*>(state.logit + c);
    auto* where = reinterpret_cast<IntVec*>(state.position + c);
    IntVec better = (x > *best) | ((x != x) & (*best == *best));
    if (token.first) better = IntVec{} - 1;
    *best = better ? x : *best;
    *where = better ? position : *where;
  }
}

// Adds the bias and marks the columns above the row's floor (NaN counts as above). Returns whether there is any.
inline bool finish(PooledBlock& state, const float* bias, float floor) {
  uint64_t any = 0;
  for (int word = 0; word < kBlock / 64; ++word) {
    uint64_t bits = 0;
    for (int c = 0; c < 64; ++c) {
      float x = state.logit[word * 64 + c] + bias[word * 64 + c];
      state.logit[word * 64 + c] = x;
      bits |= uint64_t(!(x <= floor)) << c;
    }
    state.above[word] = bits;
    any |= bits;
  }
  return any != 0;
}

void pool_block(const TokenTile* tiles, int64_t n_tiles, const Token* tokens, const Word* block, int64_t steps,
                bool pairs, const float* bias, const float* floors, float* tile_scratch, PooledBlock* state,
                RowDone done, void* context) {
  auto matmul = pairs ? run_tile<PairMath> : run_tile<FloatMath>;
  for (int64_t t = 0; t < n_tiles; ++t) {
    for (int c = 0; c < kBlock; c += kColumns)
      matmul(tiles[t].size, tiles[t].data, block + int64_t(c / kPanel) * steps * kPanel, steps, tile_scratch + c);
    for (int i = 0; i < tiles[t].used; ++i) {
      const Token& token = tokens[tiles[t].first + i];
      fold(*state, tile_scratch + i * kBlock, token);
      if (!token.last) continue;
      state->row = token.row;
      if (finish(*state, bias, floors[token.row])) done(context, *state);
    }
  }
}

// log(1 + x) of x >= 0: with u = 1 + x rounded, u = 2^k m and m in [sqrt(1/2), sqrt(2)), it is k log 2 + log m + c / u,
// c what the rounding lost. log m by the odd polynomial in (m - 1) / (m + 1) of fdlibm's e_logf.c.
inline Vec log1p_vec(Vec x) {
  Vec u = x + 1.0f;
  IntVec bits = (IntVec)u;
  IntVec k = (bits - 0x3f3504f3) >> 23;
  Vec m = (Vec)(bits - (k << 23));
  Vec lost = (k >= 2 ? 1.0f - (u - x) : x - (u - 1.0f)) / u;
  Vec f = k == 0 ? x : m - 1.0f;
  lost = k == 0 ? Vec{} : lost;
  Vec s = f / (2.0f + f), z = s * s, w = z * z;
  Vec tail = w * (0.40000972152f + w * 0.24279078841f) + z * (0.66666662693f + w * 0.28498786688f);
  Vec half = 0.5f * f * f, K = __builtin_convertvector(k, Vec);
  Vec y = s * (half + tail) + (K * 9.0580006145e-06f + lost) - half + f + K * 6.9313812256e-01f;
  return x <= 3.402823466e38f ? y : x;  // infinity and NaN are their own logarithms
}

void log1p(float* x, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store_vec(x + i, log1p_vec(load_vec(x + i)));
  if (i == n) return;
  Vec rest = {};
  for (int64_t j = i; j < n; ++j) rest[j - i] = x[j];
  rest = log1p_vec(rest);
  for (int64_t j = i; j < n; ++j) x[j] = rest[j - i];
}

template <Dtype kDtype>
inline Vec load_wide(const void* x, int64_t i) {
  if constexpr (kDtype == Dtype::kFloat) return load_vec(static_cast<const float*>(x) + i);
  using Narrow = uint16_t __attribute__((vector_size(kWidth * 2), aligned(2), may_alias));
  using Wide = uint32_t __attribute__((vector_size(kWidth * 4)));
  if constexpr (kDtype == Dtype::kBFloat16) {
    auto bits = *reinterpret_cast<const Narrow*>(static_cast<const uint16_t*>(x) + i);
    return (Vec)(__builtin_convertvector(bits, Wide) << 16);
  }
  Vec v;
  for (int c = 0; c < kWidth; ++c) v[c] = element<kDtype>(x, i + c);
  return v;
}

struct Scatter {
  float* y;
  const int32_t* to;
  const float* scale;
  const void* x;
  const int32_t* from;
  int64_t n, D;

  // A slice of D at a time: the slices of all rows of y and x that a block touches stay in L1.
  template <Dtype kDtype, bool>
  void run() const {
    constexpr int kVecs = 4;
    int64_t d = 0;
    for (; d + kVecs * kWidth <= D; d += kVecs * kWidth)
      for (int64_t i = 0; i < n; ++i) {
        float* out = y + to[i] * D + d;
        Vec s = Vec{} + scale[i], sum[kVecs];
        for (int j = 0; j < kVecs; ++j)
          sum[j] = load_vec(out + j * kWidth) + s * load_wide<kDtype>(x, from[i] * D + d + j * kWidth);
        for (int j = 0; j < kVecs; ++j) store_vec(out + j * kWidth, sum[j]);
      }
    for (; d + kWidth <= D; d += kWidth)
      for (int64_t i = 0; i < n; ++i) {
        float* out = y + to[i] * D + d;
        store_vec(out, load_vec(out) + scale[i] * load_wide<kDtype>(x, from[i] * D + d));
      }
    if (d == D) return;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t rest = d; rest < D; ++rest) y[to[i] * D + rest] += scale[i] * element<kDtype>(x, from[i] * D + rest);
  }
};

void scatter(float* y, const int32_t* to, const float* scale, const void* x, const int32_t* from, Dtype dtype,
             int64_t n, int64_t D) {
  by_dtype(dtype, false, Scatter{y, to, scale, x, from, n, D});
}

#if defined(__AVX512BF16__)
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;
#endif

#define STAIR_STRING_(x) #x
#define STAIR_STRING(x) STAIR_STRING_(x)

}  // namespace

extern const SimdKernels kernels = {
    STAIR_STRING(STAIR_ISA), kTokens, kHasPairs, load_row, pack_block, widen_block, pool_block, log1p, scatter};

}  // namespace stair::STAIR_ISA
