// Chooses the instruction set of the search's inner loops, as csrc/cpu/isa.cpp does for the operators.
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"
#include "rows.h"

namespace stair {
namespace {

// Best first, under the names of csrc/cpu/isa.h; only what this CPU can run.
std::vector<std::pair<std::string, const Kernels*>> available() {
  std::vector<std::pair<std::string, const Kernels*>> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512cd");
  // AVX-512 without VBMI2 (before 2019) gains nothing here.
  const Kernels* best = avx512 && __builtin_cpu_supports("avx512vbmi2") ? &index_avx512::kernels : &index_avx2::kernels;
  if (avx512) {
    for (const char* name : {"avx512", "avx512_bf16", "amx"}) found.emplace_back(name, best);
  }
  if (avx2) found.emplace_back("avx2", &index_avx2::kernels);
#endif
  found.emplace_back("generic", &index_generic::kernels);
  return found;
}

const Kernels& choose() {
  const auto found = available();
  const char* forced = std::getenv("STAIR_CPU_ISA");
  if (forced == nullptr || *forced == '\0') return *found.front().second;
  std::string names;
  for (const auto& [name, kernels] : found) {
    if (name == forced) return *kernels;
    names += (names.empty() ? "" : ", ") + name;
  }
  fail("STAIR_CPU_ISA: expected one that this CPU has (", names, "), got ", forced);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace stair
