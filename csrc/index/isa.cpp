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
  if (cpu_has_avx512()) {
    const bool vbmi2 = __builtin_cpu_supports("avx512vbmi2");
    const Kernels* best = vbmi2 ? &index_avx512_vbmi2::kernels : &index_avx512::kernels;
    for (const char* name : {"amx", "avx512_bf16"}) found.emplace_back(name, best);
    found.emplace_back("avx512", &index_avx512::kernels);
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
