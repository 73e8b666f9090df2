#include "search.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>
#include <utility>

namespace stair {

Index::Index(const Layout& layout) : layout_(layout) {
  layout_.check();
  infos_.reserve(layout_.vocab_size);
  for (int64_t term = 0; term < layout_.vocab_size; term++) {
    const int64_t first = layout_.term_starts[term], count = layout_.term_starts[term + 1] - first;
    infos_.push_back({first, static_cast<uint32_t>(count), -1, layout_.units[term], 0});
  }
  for (int64_t i = 0; i < layout_.n_frequent; i++) {
    TermInfo& info = infos_[layout_.frequent_terms[i]];
    info.slot = static_cast<int32_t>(i);
    info.mean = layout_.frequent_means[i];
  }
}

std::unique_ptr<Searcher> Index::take_searcher() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!idle_.empty()) {
      std::unique_ptr<Searcher> searcher = std::move(idle_.back());
      idle_.pop_back();
      return searcher;
    }
  }
  return std::make_unique<Searcher>(layout_, infos_);
}

void Index::search(const Rows& queries, int64_t k, int64_t n_threads, const uint64_t* allowed, float* scores,
                   int64_t* ids) {
  int64_t longest = 0;
  for (int64_t query = 0; query < queries.size(); query++) {
    longest = std::max(longest, queries.starts[query + 1] - queries.starts[query]);
  }
  // All memory is taken here, where an exception reaches the caller; a worker cannot throw.
  std::vector<std::unique_ptr<Searcher>> searchers(std::max<int64_t>(1, std::min(n_threads, queries.size())));
  for (auto& searcher : searchers) {
    searcher = take_searcher();
    searcher->reserve(longest, k);
  }
  std::atomic<int64_t> next{0};
  const auto work = [&](Searcher& searcher) {
    for (int64_t query; (query = next++) < queries.size();) {
      searcher.search(queries, query, k, allowed, scores + query * k, ids + query * k);
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(searchers.size());
  try {
    for (size_t i = 1; i < searchers.size(); i++) threads.emplace_back(work, std::ref(*searchers[i]));
  } catch (const std::exception&) {
    // No more threads (std::system_error) or no memory for one (std::bad_alloc): those that started share all the
    // queries, with the same result. They must be joined in any case.
  }
  work(*searchers[0]);
  for (std::thread& thread : threads) thread.join();
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto& searcher : searchers) {
    if (idle_.size() < std::thread::hardware_concurrency()) idle_.push_back(std::move(searcher));
  }
}

}  // namespace stair
