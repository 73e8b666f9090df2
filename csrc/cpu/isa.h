// The instruction set of the CPU kernels: chosen once from CPUID, or forced by
// STAIR_CPU_ISA=amx|avx512_bf16|avx512|avx2|generic.
#pragma once
#include "cpu/simd/kernels.h"

namespace stair {

// The inner loops for the instruction set that runs. Throws when STAIR_CPU_ISA names one that this CPU does not have.
const SimdKernels& simd();

}  // namespace stair
