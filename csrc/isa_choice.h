// Which instruction set the compiled loops run on: what the CPU has, and what STAIR_CPU_ISA forces.
#pragma once
#include <cstdlib>
#include <string>

namespace stair {

#if defined(__x86_64__)
inline bool cpu_has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

inline bool cpu_has_avx512() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
}
#endif

// The first of `found`, best first, or the one that STAIR_CPU_ISA names. Where there is none of that name,
// refuse(message) has to throw.
template <class Found, class NameOf, class Refuse>
const auto& forced_or_first(const Found& found, NameOf name_of, Refuse refuse) {
  const char* forced = std::getenv("STAIR_CPU_ISA");
  if (forced == nullptr || *forced == '\0') return found.front();
  std::string names;
  for (const auto& one : found) {
    const std::string name = name_of(one);
    if (name == forced) return one;
    names += (names.empty() ? "" : ", ") + name;
  }
  refuse("STAIR_CPU_ISA: expected one that this CPU has (" + names + "), got " + forced);
  __builtin_unreachable();
}

}  // namespace stair
