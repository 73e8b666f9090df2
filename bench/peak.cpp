// What this machine can do: fused multiply-adds from registers and reads from memory, on one thread; roofline.py runs
// one a core.
#include <chrono>
#include <cstdint>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kBytes), aligned(4)));

static double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static volatile float sink;

// float32 FLOP/s, two a fused multiply-add; 12 independent chains hide the latency of any current core
extern "C" double fma_rate(double seconds) {
  Vector sums[12] = {}, factor = {}, addend = {};
  for (int chain = 0; chain < 12; ++chain) sums[chain] += sink + chain;  // equal chains would be computed once
  factor += 0.999f;
  addend += 0.001f;
  const double start = now();
  int64_t rounds = 0;
  double elapsed = 0;
  while (elapsed < seconds) {
    for (int i = 0; i < 100000; ++i) {
#pragma GCC unroll 12
      for (int chain = 0; chain < 12; ++chain) sums[chain] = sums[chain] * factor + addend;
    }
    rounds += 100000;
    elapsed = now() - start;
  }
  float total = 0;
  for (const Vector& sum : sums) total += sum[0];
  sink = total;
  return static_cast<double>(rounds) * 12 * 2 * (kBytes / sizeof(float)) / elapsed;
}

// FLOP/s of bfloat16 pairs summed in float32; 0 without such an instruction, -1 where AMX tiles would be the limit
extern "C" double bfloat16_rate(double seconds) {
#if defined(__AMX_BF16__)
  (void)seconds;
  return -1;
#elif defined(__AVX512BF16__)
  __m512 sums[12];
  for (int chain = 0; chain < 12; ++chain) sums[chain] = _mm512_set1_ps(sink + static_cast<float>(chain));
  const __m512bh factor = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.01f), _mm512_set1_ps(0.01f));
  const double start = now();
  int64_t rounds = 0;
  double elapsed = 0;
  while (elapsed < seconds) {
    for (int i = 0; i < 100000; ++i) {
#pragma GCC unroll 12
      for (int chain = 0; chain < 12; ++chain) sums[chain] = _mm512_dpbf16_ps(sums[chain], factor, factor);
    }
    rounds += 100000;
    elapsed = now() - start;
  }
  float total = 0;
  for (const __m512& sum : sums) total += _mm512_cvtss_f32(sum);
  sink = total;
  return static_cast<double>(rounds) * 12 * 2 * 32 / elapsed;
#else
  (void)seconds;
  return 0;
#endif
}

// bytes/s of reading [data, data + size) again and again
extern "C" double read_rate(const float* data, int64_t size, double seconds) {
  constexpr int64_t kStep = 8 * kBytes / sizeof(float);
  const int64_t count = size / static_cast<int64_t>(sizeof(float)) / kStep * kStep;
  const double start = now();
  int64_t rounds = 0;
  double elapsed = 0;
  Vector sums[8] = {};
  while (elapsed < seconds) {
    for (int64_t at = 0; at < count; at += kStep) {
#pragma GCC unroll 8
      for (int chain = 0; chain < 8; ++chain) {
        sums[chain] += *reinterpret_cast<const Vector*>(data + at + chain * (kBytes / sizeof(float)));
      }
    }
    ++rounds;
    elapsed = now() - start;
  }
  float total = 0;
  for (const Vector& sum : sums) total += sum[0];
  sink = total;
  return static_cast<double>(rounds) * static_cast<double>(count) * sizeof(float) / elapsed;
}
