// Checks at the operators' boundary, and small views of their tensors.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <vector>

#define STAIR_CHECK(condition, ...) STD_TORCH_CHECK(condition, __VA_ARGS__)

namespace stair {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Tensor new_tensor(const Tensor& like, std::vector<int64_t> shape, ScalarType dtype) {
  return torch::stable::new_empty(like, shape, dtype);
}

inline bool is_float_dtype(const Tensor& t) {
  auto dtype = t.scalar_type();
  return dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
}

// float32, contiguous; a copy only where it has to be
inline Tensor as_float(const Tensor& t) {
  Tensor same = t.scalar_type() == ScalarType::Float ? t : torch::stable::to(t, ScalarType::Float);
  return torch::stable::contiguous(same);
}

}  // namespace stair
