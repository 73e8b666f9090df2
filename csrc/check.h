// Checks at the operators' boundary, and small views of their tensors.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "activations.h"

#define STAIR_CHECK(condition, ...) STD_TORCH_CHECK(condition, __VA_ARGS__)

namespace stair {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Asks for 2 MiB pages below a large new array: it is written once from end to end, and the kernel then clears it in a
// few steps instead of thousands; reading it misses the TLB less. numpy does the same.
inline void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  constexpr int64_t kPage = 1 << 21;
  auto begin = (reinterpret_cast<int64_t>(data) + kPage - 1) / kPage * kPage;
  auto end = (reinterpret_cast<int64_t>(data) + bytes) / kPage * kPage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

inline Tensor new_tensor(const Tensor& like, std::vector<int64_t> shape, ScalarType dtype) {
  Tensor out = torch::stable::new_empty(like, shape, dtype);
  constexpr int64_t kLarge = 4 << 20;
  int64_t bytes = out.numel() * (dtype == ScalarType::Float || dtype == ScalarType::Int ? 4 : 2);
  if (bytes >= kLarge) prefer_huge_pages(out.mutable_data_ptr(), bytes);
  return out;
}

inline bool is_float_dtype(const Tensor& t) {
  auto dtype = t.scalar_type();
  return dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
}

inline Activation parse_activation(const std::string& name) {
  if (name == "log_relu") return Activation::kLogRelu;
  if (name == "relu") return Activation::kRelu;
  if (name == "log_log_relu") return Activation::kLogLogRelu;
  STAIR_CHECK(name == "elu1p", "activation: expected log_relu, relu, log_log_relu or elu1p, got ", name);
  return Activation::kElu1p;
}

// float32, contiguous; a copy only where it has to be
inline Tensor as_float(const Tensor& t) {
  Tensor same = t.scalar_type() == ScalarType::Float ? t : torch::stable::to(t, ScalarType::Float);
  return torch::stable::contiguous(same);
}

}  // namespace stair
