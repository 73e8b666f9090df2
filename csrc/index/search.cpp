#include "search.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <system_error>
#include <thread>
#include <vector>

#include "half.h"

namespace stair {
namespace {

struct Hit {
  float score;
  int64_t id;
};

// The order of results, and the order that keeps the worst hit at the root of a heap.
bool better(const Hit& a, const Hit& b) { return a.score > b.score || (a.score == b.score && a.id < b.id); }

// A term of the query: a posting adds code * step >> 16, rounded up, to the bound of its document.
struct Term {
  int32_t number;
  float weight;
  uint64_t step;
};

// What one thread needs to answer one query after the other.
class Searcher {
 public:
  Searcher(const Layout& layout, int64_t longest, int64_t k)
      : layout_(layout), weight_of_(std::max(layout.vocab_size, kNarrowTerms) + 1, 0.0f), bounds_(1 << 16) {
    terms_.reserve(longest);
    heap_.reserve(k);
  }

  void search(const Rows& queries, int64_t query, int64_t k, float* scores, int64_t* ids) {
    heap_.clear();
    k_ = static_cast<size_t>(k);
    prepare(queries, query);
    for (int64_t range = 0; range < count_ranges(layout_.n_documents); range++) search_range(range);
    for (const Term& term : terms_) weight_of_[term.number] = 0;
    std::sort_heap(heap_.begin(), heap_.end(), better);
    const int64_t found = static_cast<int64_t>(heap_.size());
    for (int64_t i = 0; i < k; i++) {
      scores[i] = i < found ? heap_[i].score : -std::numeric_limits<float>::infinity();
      ids[i] = i < found ? heap_[i].id : -1;
    }
  }

 private:
  void prepare(const Rows& queries, int64_t query) {
    terms_.clear();
    double most = 0;
    for (int64_t p = queries.starts[query]; p < queries.starts[query + 1]; p++) {
      const int32_t term = queries.terms[p];
      if (layout_.term_starts[term] == layout_.term_starts[term + 1]) continue;
      terms_.push_back({term, queries.weights[p], 0});
      weight_of_[term] = queries.weights[p];
      most += static_cast<double>(queries.weights[p]) * layout_.units[term] * 255;
    }
    const double n = static_cast<double>(terms_.size());
    scale_ = (4294967295.0 - 256 * n) / most;
    shrink_ = 1 - 0x1p-23 * (n + 2);
    for (Term& term : terms_) {
      term.step =
          static_cast<uint64_t>(std::ceil(static_cast<double>(term.weight) * layout_.units[term.number] * scale_));
    }
  }

  // The least bound of a document that may be among the k best.
  uint32_t least() const {
    if (heap_.size() < k_) return 1;
    const double n = static_cast<double>(terms_.size());
    const float worst = std::min(heap_.front().score, std::numeric_limits<float>::max());
    const double cut = (worst * shrink_ - (n + 1) * 0x1p-149) * scale_ * (1 - 0x1p-40);
    return cut > 1 ? static_cast<uint32_t>(cut) : 1;
  }

  void search_range(int64_t range) {
    const int64_t size = std::min(kRange, layout_.n_documents - range * kRange);
    const int64_t R = count_ranges(layout_.n_documents);
    std::fill(bounds_.begin(), bounds_.begin() + size, 0);
    for (const Term& term : terms_) {
      const int64_t first = layout_.term_starts[term.number];
      const int64_t count = layout_.term_starts[term.number + 1] - first;
      const uint32_t* segment = layout_.segments + term.number * (R + 1) + range;
      const int64_t end = std::min<int64_t>(segment[1], count);
      for (int64_t p = segment[0]; p < end; p++) {
        bounds_[layout_.documents[first + p]] += static_cast<uint32_t>(layout_.codes[first + p] * term.step);
      }
    }
    uint32_t cut = least();
    for (int64_t i = 0; i < size; i++) {
      if (bounds_[i] < cut) continue;
      offer(range * kRange + i);
      cut = least();
    }
  }

  void offer(int64_t document) {
    const Hit hit{score(document), layout_.ids[document]};
    if (!(hit.score > 0)) return;
    if (heap_.size() == k_) {
      if (!better(hit, heap_.front())) return;
      std::pop_heap(heap_.begin(), heap_.end(), better);
      heap_.pop_back();
    }
    heap_.push_back(hit);
    std::push_heap(heap_.begin(), heap_.end(), better);
  }

  float score(int64_t document) const {
    const int64_t end = std::min(layout_.row_starts[document + 1], layout_.n_postings);
    float sum = 0;
    for (int64_t p = std::max<int64_t>(layout_.row_starts[document], 0); p < end; p++) {
      const uint32_t term = layout_.wide_terms() ? static_cast<const uint32_t*>(layout_.row_terms)[p]
                                                 : static_cast<const uint16_t*>(layout_.row_terms)[p];
      const float weight = layout_.half_weights ? half_to_float(static_cast<const uint16_t*>(layout_.row_weights)[p])
                                                : static_cast<const float*>(layout_.row_weights)[p];
      sum += weight_of_[std::min<size_t>(term, weight_of_.size() - 1)] * weight;
    }
    return sum;
  }

  const Layout& layout_;
  std::vector<float> weight_of_;  // the query, dense; all 0 between queries
  std::vector<uint32_t> bounds_;  // of a range's documents; as long as any uint16 reaches
  std::vector<Term> terms_;
  std::vector<Hit> heap_;  // at most k, the worst at the root
  size_t k_ = 0;
  double scale_ = 0, shrink_ = 0;
};

}  // namespace

Index::Index(const Layout& layout) : layout_(layout) { layout_.check(); }

void Index::search(const Rows& queries, int64_t k, int64_t n_threads, float* scores, int64_t* ids) const {
  int64_t longest = 0;
  for (int64_t query = 0; query < queries.size(); query++) {
    longest = std::max(longest, queries.starts[query + 1] - queries.starts[query]);
  }
  // All memory is taken here, where an exception reaches the caller; a worker cannot throw.
  std::vector<Searcher> searchers;
  for (int64_t i = 0; i < std::max<int64_t>(1, std::min(n_threads, queries.size())); i++) {
    searchers.emplace_back(layout_, longest, std::min(k, layout_.n_documents));
  }
  std::atomic<int64_t> next{0};
  const auto work = [&](Searcher& searcher) {
    for (int64_t query; (query = next.fetch_add(1)) < queries.size();) {
      searcher.search(queries, query, k, scores + query * k, ids + query * k);
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(searchers.size());
  try {
    for (size_t i = 1; i < searchers.size(); i++) threads.emplace_back(work, std::ref(searchers[i]));
  } catch (const std::system_error&) {
    // The system has no more threads to give: those that started share all the queries, with the same result.
  }
  work(searchers[0]);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace stair
