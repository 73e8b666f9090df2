// matmul_nt: a b^T by the head's own tiles. The matmul library's result depends on the number of threads; this does
// not.
#include <torch/csrc/stable/library.h>

#include "cpu/vocab_head.h"

namespace stair {
namespace {

struct StoreSink {
  void row_done(int64_t block, int columns, PooledBlock& product) {
    std::copy_n(product.logit, columns, out + int64_t(product.row) * N + block * kBlock);
  }
  std::vector<float> floors;
  int64_t N;
  float* out;
};

Tensor matmul_nt(const Tensor& a, const Tensor& b) {
  STAIR_CHECK(a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(1), "matmul_nt: expected a [M, K] and b [N, K]");
  int64_t M = a.size(0), N = b.size(0);
  VocabBlocks columns(b, std::nullopt, std::nullopt, a.size(1), false);
  Split split(M, columns.count());
  TokenTiles rows(torch::stable::unsqueeze(a, 1), std::nullopt, std::nullopt, false, split);
  Tensor out = new_tensor(a, {M, N}, ScalarType::Float);
  StoreSink sink{std::vector<float>(M, std::numeric_limits<float>::quiet_NaN()), N, out.mutable_data_ptr<float>()};
  std::vector<StoreSink> sinks(split.items(), sink);
  walk_vocab(rows, columns, sinks, split);
  return out;
}

}  // namespace
}  // namespace stair

STABLE_TORCH_LIBRARY_IMPL(stair, CPU, m) { m.impl("matmul_nt", TORCH_BOX(&stair::matmul_nt)); }
