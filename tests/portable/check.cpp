// The generic inner loops against plain loops, without torch: built for other processors as well
// (tests/test_portable.py).
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/simd/kernels.h"

using namespace stair;

namespace {

const SimdKernels& kernels = generic::kernels;

#define CHECK(condition)                                          \
  do {                                                            \
    if (!(condition)) {                                           \
      std::printf("%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                               \
    }                                                             \
  } while (0)

// Small integers: exact in every dtype, every sum exact in float32.
int next_integer() {
  static uint32_t state = 1;
  state = state * 1664525u + 1013904223u;
  return int(state >> 16) % 5 - 2;
}

std::vector<float> integers(int64_t n) {
  std::vector<float> values(n);
  for (float& value : values) value = float(next_integer());
  return values;
}

// The values in `dtype`, by the kernel that rounds.
std::vector<char> stored(const std::vector<float>& values, Dtype dtype) {
  std::vector<char> bytes(values.size() * 4);
  kernels.narrow(values.data(), int64_t(values.size()), dtype, bytes.data());
  return bytes;
}

struct Results {
  std::vector<float> logit;
  std::vector<int32_t> position;
};

void check_head(Dtype dtype, int64_t L, int64_t D, int columns) {
  auto hidden = integers(L * D), weight = integers(columns * D), bias = integers(kBlock);
  auto hidden_bytes = stored(hidden, dtype), weight_bytes = stored(weight, dtype);
  int64_t width = dtype == Dtype::kFloat ? 4 : 2, steps = steps_of(D, false);
  std::vector<Token> tokens;
  for (int64_t l = 0; l < L; ++l) tokens.push_back({0, int32_t(l), l == 0, l == L - 1});

  std::vector<std::unique_ptr<Word[]>> data;
  std::vector<TokenTile> tiles;
  std::vector<Word> row(steps);
  for (int64_t t = 0; t < L;) {
    int size = kernels.tile_size(L - t, false), used = int(std::min<int64_t>(size, L - t));
    data.emplace_back(new Word[size * steps]);
    for (int i = 0; i < size; ++i) {
      if (i < used) kernels.load_row(hidden_bytes.data() + (t + i) * D * width, dtype, 1, D, false, row.data());
      kernels.place_row(i < used ? row.data() : nullptr, steps, false, i, size, data.back().get());
    }
    tiles.push_back({data.back().get(), t, size, used});
    t += used;
  }

  std::vector<Word> block(kBlock * steps), scratch(kBlock * steps);
  Columns of_weight{weight_bytes.data(), dtype, D, 1, 0, columns, D};
  kernels.pack_block(of_weight, false, block.data());
  if (dtype != Dtype::kFloat) {  // what pack_vocab stores, widened, is the same block
    std::vector<Word> pairs(kBlock * steps_of(D, true)), widened(kBlock * steps);
    kernels.pack_block(of_weight, true, pairs.data());
    kernels.widen_block(pairs.data(), dtype, D, widened.data());
    CHECK(widened == block);
  }

  std::vector<float> products(kMaxTokens * kBlock);
  float floor = std::numeric_limits<float>::quiet_NaN();
  PooledBlock state;
  Results got, from_panels;
  auto done = [](void* context, PooledBlock& pooled) {
    auto* results = static_cast<Results*>(context);
    results->logit.assign(pooled.logit, pooled.logit + kBlock);
    results->position.assign(pooled.position, pooled.position + kBlock);
  };
  auto pool = [&](const Word* panels, Results* results) {
    kernels.pool_block(tiles.data(), int64_t(tiles.size()), tokens.data(),
                       {panels, of_weight, scratch.data(), bias.data(), steps, false}, &floor, products.data(), &state,
                       done, results);
  };
  pool(block.data(), &from_panels);
  pool(nullptr, &got);
  CHECK(got.logit == from_panels.logit && got.position == from_panels.position);
  CHECK(int(got.logit.size()) == kBlock);
  for (int c = 0; c < columns; ++c) {
    float best = 0;
    int32_t where = -1;
    for (int64_t l = 0; l < L; ++l) {
      float sum = 0;
      for (int64_t d = 0; d < D; ++d) sum += hidden[l * D + d] * weight[c * D + d];
      if (where < 0 || sum > best) best = sum, where = int32_t(l);
    }
    CHECK(got.logit[c] == best + bias[c]);
    CHECK(got.position[c] == where);
  }
}

void check_selection(Dtype dtype, int64_t n, int64_t k) {
  auto values = integers(n);
  for (float& value : values) value += float(next_integer()) / 8;
  auto bytes = stored(values, dtype);
  std::vector<float> scratch(2 * k + 16);
  float bound = kernels.bound_of_kth(bytes.data(), dtype, n, k, scratch.data());
  int64_t as_large = 0, next = 0;
  for (float value : values) as_large += value >= bound;
  CHECK(bound >= 0);
  CHECK(bound == 0 || as_large >= k);
  std::vector<Found> found(n + 16);
  int64_t count = kernels.collect_above(bytes.data(), dtype, n, 0.5f, found.data(), n + 16, &next), expected = 0;
  CHECK(next == n);
  for (int64_t i = 0; i < n; ++i) {
    if (!(values[i] > 0.5f)) continue;
    CHECK(expected < count && found[expected].index == i && found[expected].value == values[i]);
    ++expected;
  }
  CHECK(count == expected);
}

void check_activations() {
  std::vector<float> x, y(4000);
  for (int i = 0; i < 4000; ++i) x.push_back(float(i - 1000) * 0.03f);
  auto close = [](float a, double b) { return std::fabs(a - b) <= 1e-6 * std::fabs(b) + 1e-37; };
  kernels.activate(x.data(), 4000, Activation::kLogRelu, y.data());
  for (int i = 0; i < 4000; ++i) CHECK(close(y[i], std::log1p(std::fmax(double(x[i]), 0.0))));
  kernels.activate(x.data(), 4000, Activation::kElu1p, y.data());
  for (int i = 0; i < 4000; ++i) CHECK(close(y[i], x[i] > 0 ? double(x[i]) + 1 : std::exp(double(x[i]))));
}

void check_rounding() {
  for (Dtype dtype : {Dtype::kBFloat16, Dtype::kHalf})
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {  // every number of 16 bits, up and down again
      uint16_t narrow = uint16_t(bits), back;
      Word wide;
      kernels.load_row(&narrow, dtype, 1, 1, false, &wide);
      float value;
      std::memcpy(&value, &wide, 4);
      kernels.narrow(&value, 1, dtype, &back);
      if (std::isnan(value))
        CHECK((back & 0x7fff) > (dtype == Dtype::kHalf ? 0x7c00 : 0x7f80));
      else
        CHECK(back == narrow);
    }
  float halfway[] = {1 + 0x1p-11f, 1 + 3 * 0x1p-11f, 0x1p-25f, 3 * 0x1p-25f, 65519.0f, 65520.0f};
  uint16_t expected[] = {0x3c00, 0x3c02, 0x0000, 0x0002, 0x7bff, 0x7c00}, got[6];
  kernels.narrow(halfway, 6, Dtype::kHalf, got);
  CHECK(std::memcmp(got, expected, sizeof got) == 0);
}

void check_scatter(Dtype dtype, int64_t D) {
  auto x = integers(5 * D);
  auto bytes = stored(x, dtype);
  int32_t to[] = {2, 0, 2}, from[] = {4, 1, 0};
  float scale[] = {3, -1, 2};
  std::vector<float> y(3 * D, 1.0f), expected(3 * D, 1.0f);
  kernels.scatter(y.data(), to, scale, bytes.data(), from, dtype, 3, D);
  for (int i = 0; i < 3; ++i)
    for (int64_t d = 0; d < D; ++d) expected[to[i] * D + d] += scale[i] * x[from[i] * D + d];
  CHECK(y == expected);
}

}  // namespace

int main() {
  for (Dtype dtype : {Dtype::kFloat, Dtype::kBFloat16, Dtype::kHalf})
    for (int64_t D : {1, 7, 33, 64}) {
      for (int64_t L : {1, 2, 13}) check_head(dtype, L, D, L == 13 ? kBlock : 77);
      check_selection(dtype, 40 * D, D / 8 + 1);
      check_scatter(dtype, D);
    }
  check_activations();
  check_rounding();
  std::puts("generic kernels: as expected");
}
