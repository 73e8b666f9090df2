// The instruction set of the CPU kernels: chosen once from CPUID, or forced by
// STAIR_CPU_ISA=amx|avx512_bf16|avx512|avx2|generic.
#pragma once
#include "check.h"
#include "cpu/simd/kernels.h"

namespace stair {

// The inner loops for the instruction set that runs. Throws when STAIR_CPU_ISA names one that this CPU does not have.
const SimdKernels& simd();

inline Dtype dtype_of(const Tensor& t) {
  if (t.scalar_type() == ScalarType::Float) return Dtype::kFloat;
  return t.scalar_type() == ScalarType::BFloat16 ? Dtype::kBFloat16 : Dtype::kHalf;
}

inline int64_t bytes_of(Dtype dtype) { return dtype == Dtype::kFloat ? 4 : 2; }

inline const char* element_ptr(const Tensor& t, int64_t index) {
  return static_cast<const char*>(t.const_data_ptr()) + index * bytes_of(dtype_of(t));
}

}  // namespace stair
