// Exact top-k maximum inner product over sparse non-negative rows.
//
//   score[q, n] = sum over terms t ascending of query[q, t] * weight[n, t]
//
// every product and every sum rounded to float32 (no fused multiply-add), so a score has the same bits whatever the
// number of threads, the block size and the instruction set. Build with -ffp-contract=off.
#pragma once

#include <cstdint>
#include <vector>

namespace stair {

// Rows as the caller has them: entries starts[i] .. starts[i + 1] belong to row i, in any order.
struct RowsView {
  const int64_t* starts;  // [n_rows + 1]
  const int64_t* terms;   // [n_entries]
  const float* weights;   // [n_entries]
  int64_t n_rows;
  int64_t n_entries;
  int64_t vocab_size;
  bool padded;  // an entry with term -1 is an empty slot
};

// Checked rows: terms ascending and unique within a row, weights positive and finite.
struct Rows {
  std::vector<int64_t> starts;
  std::vector<int32_t> terms;
  std::vector<float> weights;
  int64_t vocab_size = 0;

  // Throws std::invalid_argument that names the row, what was expected and what came. Weights of 0 are left out.
  explicit Rows(const RowsView& view);

  int64_t size() const { return static_cast<int64_t>(starts.size()) - 1; }
};

// Inverted lists of the rows taken in `order`: document d is row order[d]. A term's documents ascend.
void invert(const Rows& rows, const int64_t* order, int64_t* offsets, int32_t* documents, float* weights);

// Searches inverted lists that it does not own (they may be memory-mapped and hold anything).
class Index {
 public:
  // Throws std::invalid_argument unless offsets start at 0, never descend and end at n_postings. That is all that
  // memory safety needs: wrong document numbers or weights give wrong scores, never an access out of bounds.
  Index(const int64_t* ids, int64_t n_documents, const int64_t* offsets, int64_t vocab_size, const int32_t* documents,
        const float* weights, int64_t n_postings);

  // Writes scores [Q, k] descending and ids [Q, k], equal scores by lower document number; documents whose score is 0
  // are left out and the rest of a row is -inf and -1. Query terms must be below vocab_size.
  void search(const Rows& queries, int64_t k, int64_t n_threads, float* scores, int64_t* ids) const;

  int64_t n_documents() const { return n_documents_; }
  int64_t vocab_size() const { return vocab_size_; }

 private:
  struct Scratch;
  void search_one(const Rows& queries, int64_t query, int64_t k, Scratch& scratch, float* scores, int64_t* ids) const;

  const int64_t* ids_;  // [N]
  int64_t n_documents_;
  const int64_t* offsets_;  // [V + 1]
  int64_t vocab_size_;
  const int32_t* documents_;  // [n_postings]
  const float* weights_;      // [n_postings]
};

}  // namespace stair
