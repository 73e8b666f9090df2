// Exact top-k maximum inner product over sparse non-negative rows.
//
//   score[q, n] = sum over terms t ascending of query[q, t] * weight[n, t]
//
// every product and every sum rounded to float32 (no fused multiply-add), so a score has the same bits whatever the
// number of threads, the way to find it and the instruction set. Build with -ffp-contract=off.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "searcher.h"

namespace stair {

// Searches arrays that it does not own, from any number of threads at once.
class Index {
 public:
  explicit Index(const Layout& layout);  // throws as Layout::check does

  // Writes scores [Q, k] descending and ids [Q, k], equal scores by lower id; documents whose score is 0 are left out
  // and the rest of a row is -inf and -1. `allowed` has a bit for each document, or is null: all. Query terms must be
  // below vocab_size.
  void search(const Rows& queries, int64_t k, int64_t n_threads, const uint64_t* allowed, float* scores, int64_t* ids);

  const Layout& layout() const { return layout_; }

 private:
  std::unique_ptr<Searcher> take_searcher();

  Layout layout_;
  std::vector<TermInfo> infos_;  // [V]
  std::mutex mutex_;
  std::vector<std::unique_ptr<Searcher>> idle_;
};

}  // namespace stair
