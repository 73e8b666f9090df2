// What this machine can do: fused multiply-adds from registers and reads from memory, on one thread; roofline.py runs
// one a core.
#include <time.h>

#include <cstdint>

#if defined(__AVX512BF16__) || defined(__AMX_BF16__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kBytes), aligned(4)));

// CPU time of this thread: a limit is the machine's, whoever else uses it.
static double now() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
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

#if defined(__AMX_BF16__) && defined(__linux__)
// Products of AMX tiles that are loaded once: 16 x 16 sums of 32 products each.
static double matrix_rate(double seconds) {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return 0;
  struct {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } shape;
  _tile_loadconfig(&shape);
  alignas(64) static const uint16_t zeros[512] = {};
  _tile_loadd(4, zeros, 64);
  _tile_loadd(5, zeros, 64);
  _tile_loadd(6, zeros, 64);
  _tile_loadd(7, zeros, 64);
  const double start = now();
  int64_t rounds = 0;
  double elapsed = 0;
  while (elapsed < seconds) {
    for (int i = 0; i < 10000; ++i) {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    rounds += 10000;
    elapsed = now() - start;
  }
  _tile_release();
  return static_cast<double>(rounds) * 4 * 2 * 16 * 16 * 32 / elapsed;
}
#else
static double matrix_rate(double) { return 0; }
#endif

#if defined(__AVX512BF16__)
static double pair_rate(double seconds) {
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
}
#else
static double pair_rate(double) { return 0; }
#endif

// FLOP/s of bfloat16 pairs summed in float32, by AMX tiles or by vectors; 0 without either
extern "C" double bfloat16_rate(double seconds) {
  const double matrix = matrix_rate(seconds);
  return matrix > 0 ? matrix : pair_rate(seconds);
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
