// pack_vocab: the weight in the order in which the CPU head reads it, in its own dtype; 16 bits lie in pairs along D.
#include <torch/csrc/stable/library.h>

#include "cpu/vocab_head.h"

namespace stair {
namespace {

Tensor pack_vocab(const Tensor& weight) {
  STAIR_CHECK(weight.dim() == 2 && is_float_dtype(weight), "weight: expected [V, D] float32, bfloat16 or float16");
  int64_t V = weight.size(0), D = weight.size(1), blocks = (V + kBlock - 1) / kBlock;
  bool pairs = dtype_of(weight) != Dtype::kFloat;
  int64_t steps = steps_of(D, pairs);
  Tensor out = new_tensor(weight, {blocks * kBlockPanels, steps, kPanel * (pairs ? 2 : 1)}, weight.scalar_type());
  auto* words = static_cast<Word*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block)
      simd().pack_block(columns_of(weight, block), pairs, words + block * kBlock * steps);
  });
  return out;
}

}  // namespace
}  // namespace stair

STABLE_TORCH_LIBRARY_IMPL(stair, CPU, m) { m.impl("pack_vocab", TORCH_BOX(&stair::pack_vocab)); }
