// Small kernels, right and wrong, for tests/test_simt.py: the name of one is the argument. A right one exits with 0 and
// has checked its results; what finds each wrong one is said in the test.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "simt.h"

namespace {

constexpr int kThreads = 128;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "wrong result: %s\n", what);
  std::exit(1);
}

__global__ void reverse(const int* in, int* out, bool with_barrier) {
  STAIR_SHARED(held, int[kThreads]);
  held[threadIdx.x] = in[threadIdx.x];
  if (with_barrier) __syncthreads();
  out[threadIdx.x] = held[kThreads - 1 - threadIdx.x];
}

__global__ void rotate_in_warp(const int* in, int* out, bool with_barrier) {
  STAIR_SHARED(held, int[kThreads]);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  held[threadIdx.x] = in[threadIdx.x];
  if (with_barrier)
    __syncwarp();
  else
    __ballot_sync(~0u, 1);  // the lanes wait for each other, but that orders no memory
  out[threadIdx.x] = held[warp * 32 + (lane + 1) % 32];
}

__global__ void write_shared(int place) {
  STAIR_SHARED(held, int[kThreads]);
  held[threadIdx.x + place] = 1;
}

__global__ void write_dynamic(int place) {
  STAIR_DYNAMIC_SHARED(held, int);
  held[threadIdx.x + place] = 1;
}

__global__ void write_global(int* out, int place) { out[threadIdx.x + place] = 1; }

__global__ void write_same(int* out) { out[0] = int(blockIdx.x); }

__global__ void read_unwritten(int* out) {
  STAIR_SHARED(held, int[kThreads]);
  if (threadIdx.x != 5) held[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = held[threadIdx.x];
}

__global__ void misaligned(const float* in, float* out) {
  *out = reinterpret_cast<const float4*>(in + 1 + 4 * threadIdx.x)->x;
}

__global__ void half_the_block_waits() {
  if (threadIdx.x < 32)
    __shfl_sync(~0u, 1, 0);
  else if (threadIdx.x != 40)
    __syncthreads();
  else
    __syncwarp();
}

__global__ void two_barriers() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}

__global__ void diverged_warp() {
  if (threadIdx.x % 2)
    __syncwarp();
  else
    __ballot_sync(~0u, 1);
}

__global__ void absent_lane(int* out) { out[threadIdx.x] = threadIdx.x < 8 ? __shfl_sync(0xffu, 1, 9) : 0; }

__global__ void collectives(const int* in, int* out, long long* best, float* sum) {
  STAIR_SHARED(total, int);
  STAIR_DYNAMIC_SHARED(copy, int);
  const int t = threadIdx.x, lane = t % 32;
  if (t == 0) total = 0;
  __syncthreads();
  copy[t] = in[t];
  atomicAdd(&total, in[t]);
  atomicMax(best, (long long)in[t] << 40);
  atomicAdd(sum, 0.5f);
  int largest = in[t];
  for (int step = 16; step; step /= 2) largest = std::max(largest, __shfl_xor_sync(~0u, largest, step));
  int prefix = in[t];
  for (int step = 1; step < 32; step *= 2) {
    const int below = __shfl_up_sync(~0u, prefix, step);
    if (lane >= step) prefix += below;
  }
  const int odd = __syncthreads_count(copy[t] & 1);
  const unsigned same = __match_any_sync(~0u, in[t] % 3);
  const int of_half = __shfl_down_sync(lane < 16 ? 0xffffu : 0xffff0000u, t, 1, 16);
  const bool all = __syncthreads_and(1), any = __syncthreads_or(t == 77), none = __syncthreads_or(0);
  out[t] = largest + 1000 * prefix + 100000 * odd + (__ffs(int(same)) - 1) + __popc(__ballot_sync(~0u, lane > 3)) +
           of_half + total + (all && any && !none);
  if (t >= 100) return;  // those that stay go on without the others
  __syncthreads();
  if (t < 96) out[t] += __any_sync(~0u, lane == 7) + __all_sync(~0u, lane < 32);
}

void run_collectives() {
  std::vector<int> in(kThreads), out(3 * kThreads);
  long long best = -1;
  float sum = 0;
  int total = 0, odd = 0;
  for (int t = 0; t < kThreads; ++t) in[t] = t * 37 % 101;
  for (int x : in) total += x, odd += x & 1;
  simt::launch(3, kThreads, kThreads * sizeof(int),
               [&] { collectives(in.data(), out.data() + kThreads * blockIdx.x, &best, &sum); });
  for (int t = 0; t < 3 * kThreads; ++t) {
    int i = t % kThreads, first = i / 32 * 32, largest = 0, prefix = 0, same = 0;
    for (int j = first; j < first + 32; ++j) largest = std::max(largest, in[j]);
    for (int j = first; j <= i; ++j) prefix += in[j];
    while (in[first + same] % 3 != in[i] % 3) ++same;
    int of_half = i % 16 < 15 ? i + 1 : i;
    int want = largest + 1000 * prefix + 100000 * odd + same + 28 + of_half + total + 1 + (i < 96 ? 2 : 0);
    expect(out[t] == want, "collectives");
  }
  expect(best == 100ll << 40 && sum == 0.5f * 3 * kThreads, "atomics");
}

void run(const std::string& name) {
  std::vector<int> in(kThreads), out(kThreads, -7);
  std::vector<float> numbers(4 * kThreads + 1);
  for (int t = 0; t < kThreads; ++t) in[t] = t * t;
  auto launch = [](const std::function<void()>& kernel) { simt::launch(1, kThreads, kThreads * sizeof(int), kernel); };
  const std::map<std::string, std::function<void()>> kernels = {
      {"reverse", [&] { reverse(in.data(), out.data(), true); }},
      {"no_syncthreads", [&] { reverse(in.data(), out.data(), false); }},
      {"rotate", [&] { rotate_in_warp(in.data(), out.data(), true); }},
      {"no_syncwarp", [&] { rotate_in_warp(in.data(), out.data(), false); }},
      {"shared", [&] { write_shared(0), write_dynamic(0), write_global(out.data(), 0); }},
      {"past_shared", [&] { write_shared(1); }},
      {"past_dynamic", [&] { write_dynamic(1); }},
      {"past_global", [&] { write_global(out.data(), 1); }},
      {"unwritten", [&] { read_unwritten(out.data()); }},
      {"misaligned", [&] { misaligned(numbers.data(), numbers.data()); }},
      {"deadlock", [&] { half_the_block_waits(); }},
      {"two_barriers", [&] { two_barriers(); }},
      {"diverged_warp", [&] { diverged_warp(); }},
      {"absent_lane", [&] { absent_lane(out.data()); }},
  };
  if (name == "collectives") return run_collectives();
  if (name == "blocks") return simt::launch(2, 1, 0, [&] { write_same(out.data()); });
  launch(kernels.at(name));
  if (name == "reverse")
    for (int t = 0; t < kThreads; ++t) expect(out[t] == in[kThreads - 1 - t], "reverse");
  if (name == "rotate")
    for (int t = 0; t < kThreads; ++t) expect(out[t] == in[t / 32 * 32 + (t + 1) % 32], "rotate");
  if (name == "unwritten") std::printf("%d\n", out[5]);
}

}  // namespace

int main(int, char** arguments) {
  run(arguments[1]);
  return 0;
}
