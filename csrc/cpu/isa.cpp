#include "cpu/isa.h"

#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "check.h"
#include "isa_choice.h"

// Defined by tests/amx/emulator.cpp, when it is preloaded: executes AMX instructions on a CPU that has none.
extern "C" __attribute__((weak)) bool stair_emulates_amx();

namespace stair {
namespace {

#if defined(__x86_64__)
// Whether the CPU has AMX tiles of bfloat16 and Linux lets this process use them; asking is what permits it.
bool may_use_amx() {
  if (stair_emulates_amx && stair_emulates_amx()) return true;
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kBFloat16 = 1u << 22, kTile = 1u << 24;
  if ((edx & (kBFloat16 | kTile)) != (kBFloat16 | kTile)) return false;
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

// Best first; only what this CPU can run.
std::vector<const SimdKernels*> available() {
  std::vector<const SimdKernels*> found;
#if defined(__x86_64__)
  if (cpu_has_avx512()) {
    bool pairs = __builtin_cpu_supports("avx512bf16");
    if (pairs && may_use_amx()) found.push_back(&amx::kernels);
    // VDPBF16PS does two multiplications where an FMA does one: measured 1.9x on Zen 4. On Intel it issues at half
    // rate.
    if (pairs && __builtin_cpu_is("amd")) found.push_back(&avx512_bf16::kernels);
    found.push_back(&avx512::kernels);
    if (pairs && !__builtin_cpu_is("amd")) found.push_back(&avx512_bf16::kernels);
  }
  if (cpu_has_avx2()) found.push_back(&avx2::kernels);
#endif
  found.push_back(&generic::kernels);
  return found;
}

const SimdKernels& choose() {
  const auto found = available();
  return *forced_or_first(
      found, [](const SimdKernels* kernels) { return kernels->name; },
      [](const std::string& message) { STAIR_CHECK(false, message); });
}

std::string cpu_isa() { return simd().name; }

}  // namespace

const SimdKernels& simd() {
  static const SimdKernels& chosen = choose();
  return chosen;
}

}  // namespace stair

STABLE_TORCH_LIBRARY_IMPL(stair, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&stair::cpu_isa)); }
