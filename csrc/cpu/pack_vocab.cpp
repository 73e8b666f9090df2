// pack_vocab: the weight in the order in which the CPU head reads it, in its own dtype; bfloat16 lies in pairs along D.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "check.h"
#include "cpu/simd.h"

namespace stair {
namespace {

// out [panels][ceil(D / group)][kPanel][group], zero past the last column and the last d
template <class T>
void pack(const Tensor& weight, int64_t group, T* out) {
  int64_t V = weight.size(0), D = weight.size(1), stride_v = weight.stride(0), stride_d = weight.stride(1);
  const T* in = static_cast<const T*>(weight.const_data_ptr());
  int64_t panels = (V + kBlock - 1) / kBlock * kBlockPanels, steps = (D + group - 1) / group;
  torch::stable::parallel_for(0, panels, 8, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel)
      for (int c = 0; c < kPanel; ++c)
        for (int64_t d = 0; d < steps * group; ++d) {
          int64_t v = panel * kPanel + c;
          T element = v < V && d < D ? in[v * stride_v + d * stride_d] : T(0);
          out[((panel * steps + d / group) * kPanel + c) * group + d % group] = element;
        }
  });
}

Tensor pack_vocab(const Tensor& weight) {
  STAIR_CHECK(weight.dim() == 2 && is_float_dtype(weight), "weight: expected [V, D] float32, bfloat16 or float16");
  int64_t group = weight.scalar_type() == ScalarType::BFloat16 ? 2 : 1;
  int64_t panels = (weight.size(0) + kBlock - 1) / kBlock * kBlockPanels, steps = (weight.size(1) + group - 1) / group;
  Tensor out = new_tensor(weight, {panels, steps, kPanel * group}, weight.scalar_type());
  if (weight.scalar_type() == ScalarType::Float)
    pack(weight, group, static_cast<float*>(out.mutable_data_ptr()));
  else
    pack(weight, group, static_cast<uint16_t*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace
}  // namespace stair

STABLE_TORCH_LIBRARY_IMPL(stair, CPU, m) { m.impl("pack_vocab", TORCH_BOX(&stair::pack_vocab)); }
