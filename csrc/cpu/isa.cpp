#include "cpu/isa.h"

#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "check.h"

namespace stair {
namespace {

// Best first; only what this CPU can run.
std::vector<const SimdKernels*> available() {
  std::vector<const SimdKernels*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd")) {
    bool pairs = __builtin_cpu_supports("avx512bf16");
    // VDPBF16PS does two multiplications where an FMA does one: measured 1.9x on Zen 4. On Intel it issues at half
    // rate.
    if (pairs && __builtin_cpu_is("amd")) found.push_back(&avx512_bf16::kernels);
    found.push_back(&avx512::kernels);
    if (pairs && !__builtin_cpu_is("amd")) found.push_back(&avx512_bf16::kernels);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    found.push_back(&avx2::kernels);
#endif
  found.push_back(&generic::kernels);
  return found;
}

const SimdKernels& choose() {
  auto found = available();
  const char* forced = std::getenv("STAIR_CPU_ISA");
  if (forced == nullptr || *forced == '\0') return *found.front();
  std::string names;
  for (auto* kernels : found) {
    if (std::string(forced) == kernels->name) return *kernels;
    names += (names.empty() ? "" : ", ") + std::string(kernels->name);
  }
  STAIR_CHECK(false, "STAIR_CPU_ISA: expected one that this CPU has (", names, "), got ", forced);
}

std::string cpu_isa() { return simd().name; }

}  // namespace

const SimdKernels& simd() {
  static const SimdKernels& chosen = choose();
  return chosen;
}

}  // namespace stair

STABLE_TORCH_LIBRARY_IMPL(stair, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&stair::cpu_isa)); }
