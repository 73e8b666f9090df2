// Every operator's schema: the table of contents. `weight` is [V, D], or a pack_vocab tensor with packed_vocab = V.
// `hidden` is [B, L, D], or [T, D] with cu_seqlens [B + 1]. Public meaning: stair_kernels/ops.py; specification:
// stair_kernels/reference.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(stair, m) {
  // -> values [B, k] float32, indices [B, k] int32, positions [B, k] int32
  m.def(
      "vocab_topk(Tensor hidden, Tensor weight, Tensor? bias, Tensor? mask, Tensor? cu_seqlens, int? packed_vocab, "
      "int k, str activation, bool sparse_grad) -> (Tensor, Tensor, Tensor)");
  // -> grad_hidden, grad_weight in the dtype of hidden and weight, grad_bias [V] float32; one that is not needed has
  // size 0. With `rows` [R] int64, ascending, grad_weight is [R, D]: these rows of it.
  m.def(
      "vocab_topk_backward(Tensor grad_values, Tensor values, Tensor indices, Tensor positions, Tensor hidden, "
      "Tensor weight, Tensor? cu_seqlens, Tensor? rows, str activation, bool need_hidden, bool need_weight) "
      "-> (Tensor, Tensor, Tensor)");
  // -> out [B, V] float32, positions [B, V] int16, or int32 where L (T with cu_seqlens) needs it
  m.def(
      "vocab_pool(Tensor hidden, Tensor weight, Tensor? bias, Tensor? mask, Tensor? cu_seqlens, int? packed_vocab, "
      "str activation) -> (Tensor, Tensor)");
  // -> vocab_pool's out [B, V] where its positions [B, V] are known; 0 where they are negative. hidden [B, L, D].
  m.def("vocab_pool_at(Tensor hidden, Tensor weight, Tensor? bias, Tensor positions, str activation) -> Tensor");
  // -> grad_hidden float32, grad_weight in the dtype of weight, grad_bias [V] float32; one that is not needed has size
  // 0
  m.def(
      "vocab_pool_backward(Tensor grad_out, Tensor out, Tensor positions, Tensor hidden, Tensor weight, "
      "Tensor? cu_seqlens, str activation, bool need_hidden, bool need_weight) -> (Tensor, Tensor, Tensor)");
  // -> [8 * ceil(V / 128), D, 16] in the dtype of weight, the columns past V zero; 16-bit dtypes in pairs along D,
  // [.., 16 * ceil(D / 32), 32], zero past D
  m.def("pack_vocab(Tensor weight) -> Tensor");
  // -> values [B, k] float32, indices [B, k] int32
  m.def("topk(Tensor dense, int k) -> (Tensor, Tensor)");
  // Merges a chunk of pooled raw logits [B, C] float32, whose first column is `first`, and their positions (int16 or
  // int32; negative: the row has none) into each row's k best so far. keys [B, k] int64 descend: the logit's bits in
  // the order of the logits, then 2^32 - 1 - index; -2^63 is none. `above_zero`: a logit <= 0 is no entry; otherwise
  // -infinity is none. NaN is the largest key: a row that begins with one is poisoned. CUDA only, k <= 2,048.
  m.def(
      "topk_merge(Tensor(a!) keys_, Tensor(b!) positions_, Tensor raw, Tensor raw_positions, int first, "
      "bool above_zero) -> ()");
  // -> score [Q, N] float32
  m.def("sparse_dot(Tensor a_values, Tensor a_indices, Tensor b_values, Tensor b_indices, int vocab_size) -> Tensor");
  // -> grad_a_values [Q, K] float32: grad_a[q, j] = sum_n grad_score[q, n] * b[n, a_indices[q, j]]
  m.def(
      "sparse_dot_backward(Tensor grad_score, Tensor a_indices, Tensor b_values, Tensor b_indices, int vocab_size) "
      "-> Tensor");
  // -> scores [Q, k] float32, ids [Q, k] int64: SparseIndex.search. Queries [Q, K], terms ascending, empty slots (-1)
  // last; the other tensors are the index's arrays of those names. A query with a weight that is negative or not
  // finite, or with a term twice, has scores NaN and ids -1. CUDA only, k <= 2,048, K <= 1,024.
  m.def(
      "search(Tensor indices, Tensor values, Tensor ids, Tensor ranks, Tensor row_starts, Tensor row_terms, "
      "Tensor row_weights, Tensor term_starts, Tensor segments, Tensor documents, Tensor codes, Tensor units, int k) "
      "-> (Tensor, Tensor)");
  // -> flops [] float32, column means [V] float32
  m.def("flops(Tensor values, Tensor indices, int vocab_size) -> (Tensor, Tensor)");
  // a b^T [M, N] float32 of a [M, K], b [N, K]: the same bits for any number of threads
  m.def("matmul_nt(Tensor a, Tensor b) -> Tensor");
  // The instruction set that the CPU kernels run on.
  m.def("cpu_isa() -> str");
}
