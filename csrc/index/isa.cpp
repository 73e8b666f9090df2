// Chooses the instruction set of the search's inner loops, as csrc/cpu/isa.cpp does for the operators.
#include <string>
#include <utility>
#include <vector>

#include "isa_choice.h"
#include "kernels.h"
#include "rows.h"

namespace stair {
namespace {

// Best first, under the names of csrc/cpu/isa.h; only what this CPU can run.
std::vector<std::pair<std::string, const Kernels*>> available() {
  std::vector<std::pair<std::string, const Kernels*>> found;
#if defined(__x86_64__)
  const bool avx512 = cpu_has_avx512();
  // AVX-512 without VBMI2 (before 2019) gains nothing here.
  const Kernels* best = avx512 && __builtin_cpu_supports("avx512vbmi2") ? &index_avx512::kernels : &index_avx2::kernels;
  if (avx512) {
    for (const char* name : {"avx512", "avx512_bf16", "amx"}) found.emplace_back(name, best);
  }
  if (cpu_has_avx2()) found.emplace_back("avx2", &index_avx2::kernels);
#endif
  found.emplace_back("generic", &index_generic::kernels);
  return found;
}

const Kernels& choose() {
  const auto found = available();
  const auto& chosen = forced_or_first(
      found, [](const auto& one) { return one.first; }, [](const std::string& message) { fail(message); });
  return *chosen.second;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace stair
