// The inner loops, written once with GCC vector types and compiled once per instruction set (STAIR_ISA names it).
#include "cpu/simd.h"

#include <cstring>
#if defined(__F16C__)
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

template <template <Dtype> class Function, class... Args>
inline void by_dtype(Dtype dtype, Args... args) {
  if (dtype == Dtype::kFloat) return Function<Dtype::kFloat>::run(args...);
  if (dtype == Dtype::kBFloat16) return Function<Dtype::kBFloat16>::run(args...);
  Function<Dtype::kHalf>::run(args...);
}

template <Dtype kDtype>
struct Load {
  static void run(const void* in, int64_t stride, int64_t n, float* __restrict__ out) {
    if (stride == 1)
      for (int64_t i = 0; i < n; ++i) out[i] = element<kDtype>(in, i);
    else
      for (int64_t i = 0; i < n; ++i) out[i] = element<kDtype>(in, i * stride);
  }
};

void load(const void* in, Dtype dtype, int64_t stride, int64_t n, float* out) {
  by_dtype<Load>(dtype, in, stride, n, out);
}

template <Dtype kDtype>
struct PackBlock {
  static void run(const void* weight, int64_t stride_v, int64_t stride_d, int64_t v0, int n, int64_t D,
                  float* __restrict__ out) {
    constexpr int kStep = 64;  // of D: a panel's 16 rows x 64 floats are transposed inside L1
    for (int panel = 0; panel < kBlockPanels; ++panel, out += D * kPanel) {
      int columns = n - panel * kPanel;
      for (int64_t d0 = 0; d0 < D; d0 += kStep) {
        int64_t d1 = d0 + kStep < D ? d0 + kStep : D;
        for (int c = 0; c < kPanel; ++c) {
          if (c < columns) {
            int64_t base = (v0 + panel * kPanel + c) * stride_v;
            for (int64_t d = d0; d < d1; ++d) out[d * kPanel + c] = element<kDtype>(weight, base + d * stride_d);
          } else {
            for (int64_t d = d0; d < d1; ++d) out[d * kPanel + c] = 0.0f;
          }
        }
      }
    }
  }
};

void pack_block(const void* weight, Dtype dtype, int64_t stride_v, int64_t stride_d, int64_t v0, int n, int64_t D,
                float* out) {
  by_dtype<PackBlock>(dtype, weight, stride_v, stride_d, v0, n, D, out);
}

// out[i][0:kColumns) = sum_d tokens[d][i] * columns[d]: one chain over d in ascending order for every element, so that
// a logit has the same bits in whatever tile it is computed.
template <int kM>
void tile(const float* tokens, const float* panels, int64_t D, float* out) {
  Vec acc[kM][kVectors] = {};
  constexpr int kPanelVectors = kPanel / kWidth;
  for (int64_t d = 0; d < D; ++d) {
    Vec column[kVectors];
    for (int j = 0; j < kVectors; ++j)
      column[j] = load_vec(panels + (j / kPanelVectors) * D * kPanel + d * kPanel + (j % kPanelVectors) * kWidth);
    for (int i = 0; i < kM; ++i) {
      float token = tokens[d * kM + i];
      for (int j = 0; j < kVectors; ++j) acc[i][j] += token * column[j];
    }
  }
  for (int i = 0; i < kM; ++i)
    for (int j = 0; j < kVectors; ++j) store_vec(out + i * kBlock + j * kWidth, acc[i][j]);
}

void run_tile(int size, const float* tokens, const float* panels, int64_t D, float* out) {
  switch (size) {
    case 12:
      return tile<12 <= kTokens ? 12 : 1>(tokens, panels, D, out);
    case 8:
      return tile<8 <= kTokens ? 8 : 1>(tokens, panels, D, out);
    case 6:
      return tile<6 <= kTokens ? 6 : 1>(tokens, panels, D, out);
    case 4:
      return tile<4 <= kTokens ? 4 : 1>(tokens, panels, D, out);
    case 2:
      return tile<2>(tokens, panels, D, out);
    default:
      return tile<1>(tokens, panels, D, out);
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

void pool_block(const TokenTile* tiles, int64_t n_tiles, const Token* tokens, const float* block, int64_t D,
                const float* bias, const float* floors, float* tile_scratch, PooledBlock* state, RowDone done,
                void* context) {
  for (int64_t t = 0; t < n_tiles; ++t) {
    for (int c = 0; c < kBlock; c += kColumns)
      run_tile(tiles[t].size, tiles[t].data, block + int64_t(c / kPanel) * D * kPanel, D, tile_scratch + c);
    for (int i = 0; i < tiles[t].used; ++i) {
      const Token& token = tokens[tiles[t].first + i];
      fold(*state, tile_scratch + i * kBlock, token);
      if (!token.last) continue;
      state->row = token.row;
      if (finish(*state, bias, floors[token.row])) done(context, *state);
    }
  }
}

template <Dtype kDtype>
struct Axpy {
  static void run(float* __restrict__ y, float a, const void* x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) y[i] += a * element<kDtype>(x, i);
  }
};

void axpy(float* y, float a, const void* x, Dtype dtype, int64_t n) { by_dtype<Axpy>(dtype, y, a, x, n); }

#define STAIR_STRING_(x) #x
#define STAIR_STRING(x) STAIR_STRING_(x)

}  // namespace

extern const SimdKernels kernels = {STAIR_STRING(STAIR_ISA), kTokens, load, pack_block, pool_block, axpy};

}  // namespace stair::STAIR_ISA
