#include "engine.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <utility>

namespace stair {
namespace {

constexpr int64_t kBlock = 1 << 15;  // documents accumulated at a time: 128 KiB of float32, a part of any L2
constexpr int64_t kLanes = 16;       // documents compared with the threshold at a time
constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

void check_starts(const RowsView& view) {
  if (view.vocab_size > kMaxInt32 || view.n_rows > kMaxInt32) {
    fail("expected at most 2147483647 rows and columns, got [", view.n_rows, ", ", view.vocab_size, "]");
  }
  if (view.starts[0] != 0 || view.starts[view.n_rows] > view.n_entries) {
    fail("expected row pointers from 0 to at most ", view.n_entries, " entries, got ", view.starts[0], " to ",
         view.starts[view.n_rows]);
  }
  for (int64_t row = 0; row < view.n_rows; row++) {
    if (view.starts[row + 1] < view.starts[row]) {
      fail("expected row pointers that never descend, got ", view.starts[row], " then ", view.starts[row + 1],
           " at row ", row);
    }
  }
}

struct Hit {
  float score;
  int32_t document;
};

// The order of results, and the order that keeps the worst hit at the root of a heap.
bool better(const Hit& a, const Hit& b) { return a.score > b.score || (a.score == b.score && a.document < b.document); }

}  // namespace

Rows::Rows(const RowsView& view) : vocab_size(view.vocab_size) {
  check_starts(view);
  starts.reserve(view.n_rows + 1);
  terms.reserve(view.starts[view.n_rows]);
  weights.reserve(view.starts[view.n_rows]);
  starts.push_back(0);
  std::vector<std::pair<int32_t, float>> entries;
  for (int64_t row = 0; row < view.n_rows; row++) {
    entries.clear();
    for (int64_t p = view.starts[row]; p < view.starts[row + 1]; p++) {
      const int64_t term = view.terms[p];
      const float weight = view.weights[p];
      if (!(weight >= 0) || std::isinf(weight)) {
        fail("expected finite weights >= 0 in float32, got ", weight, " in row ", row);
      }
      if (view.padded && term == -1) continue;
      if (term < 0 || term >= vocab_size) {
        fail("expected indices in [0, ", vocab_size, "), got ", term, " in row ", row);
      }
      entries.emplace_back(static_cast<int32_t>(term), weight);
    }
    const auto by_term = [](const auto& a, const auto& b) { return a.first < b.first; };
    if (!std::is_sorted(entries.begin(), entries.end(), by_term)) std::sort(entries.begin(), entries.end(), by_term);
    for (size_t i = 0; i < entries.size(); i++) {
      if (i > 0 && entries[i].first == entries[i - 1].first) {
        fail("expected unique indices within a row, got ", entries[i].first, " twice in row ", row);
      }
      if (entries[i].second == 0) continue;
      terms.push_back(entries[i].first);
      weights.push_back(entries[i].second);
    }
    starts.push_back(static_cast<int64_t>(terms.size()));
  }
}

void invert(const Rows& rows, const int64_t* order, int64_t* offsets, int32_t* documents, float* weights) {
  std::vector<int64_t> next(rows.vocab_size + 1, 0);
  for (const int32_t term : rows.terms) next[term + 1]++;
  for (int64_t term = 0; term < rows.vocab_size; term++) next[term + 1] += next[term];
  std::copy(next.begin(), next.end(), offsets);
  for (int64_t document = 0; document < rows.size(); document++) {
    const int64_t row = order[document];
    for (int64_t p = rows.starts[row]; p < rows.starts[row + 1]; p++) {
      const int64_t slot = next[rows.terms[p]]++;
      documents[slot] = static_cast<int32_t>(document);
      weights[slot] = rows.weights[p];
    }
  }
}

Index::Index(const int64_t* ids, int64_t n_documents, const int64_t* offsets, int64_t vocab_size,
             const int32_t* documents, const float* weights, int64_t n_postings)
    : ids_(ids),
      n_documents_(n_documents),
      offsets_(offsets),
      vocab_size_(vocab_size),
      documents_(documents),
      weights_(weights) {
  if (n_documents > kMaxInt32) fail("expected at most 2147483647 documents, got ", n_documents);
  if (offsets[0] != 0 || offsets[vocab_size] != n_postings) {
    fail("expected offsets from 0 to ", n_postings, ", got ", offsets[0], " to ", offsets[vocab_size]);
  }
  for (int64_t term = 0; term < vocab_size; term++) {
    if (offsets[term + 1] < offsets[term]) {
      fail("expected offsets that never descend, got ", offsets[term], " then ", offsets[term + 1]);
    }
  }
}

struct Index::Scratch {
  std::vector<float> scores;     // [kBlock], all 0 between blocks
  std::vector<int64_t> cursors;  // [terms of the query], the next posting of each
  std::vector<Hit> heap;         // at most k, the worst at the root

  // Adds the documents base .. base + size that belong among the k best, and clears the scores.
  void collect(int64_t base, int64_t size, size_t k) {
    // Documents come in ascending order, so that one that only equals the worst of k hits comes too late.
    float threshold = heap.size() == k ? heap.front().score : 0.0f;
    for (int64_t lane = 0; lane < size; lane += kLanes) {
      int any = 0;
      for (int64_t i = lane; i < lane + kLanes; i++) any |= scores[i] > threshold;
      if (!any) continue;
      for (int64_t i = lane; i < std::min(lane + kLanes, size); i++) {
        if (!(scores[i] > threshold)) continue;
        if (heap.size() == k) {
          std::pop_heap(heap.begin(), heap.end(), better);
          heap.pop_back();
        }
        heap.push_back({scores[i], static_cast<int32_t>(base + i)});
        std::push_heap(heap.begin(), heap.end(), better);
        if (heap.size() == k) threshold = heap.front().score;
      }
    }
    std::fill(scores.begin(), scores.end(), 0.0f);
  }
};

void Index::search_one(const Rows& queries, int64_t query, int64_t k, Scratch& scratch, float* scores,
                       int64_t* ids) const {
  const int64_t first = queries.starts[query], n_terms = queries.starts[query + 1] - first;
  const int32_t* terms = queries.terms.data() + first;
  scratch.heap.clear();
  scratch.cursors.clear();
  for (int64_t j = 0; j < n_terms; j++) scratch.cursors.push_back(offsets_[terms[j]]);
  for (int64_t base = 0; base < n_documents_; base += kBlock) {
    const int64_t size = std::min(kBlock, n_documents_ - base);
    bool touched = false;
    for (int64_t j = 0; j < n_terms; j++) {
      const float weight = queries.weights[first + j];
      const int32_t* from = documents_ + scratch.cursors[j];
      const int64_t end = std::lower_bound(from, documents_ + offsets_[terms[j] + 1], base + size) - documents_;
      touched |= end > scratch.cursors[j];
      float* block = scratch.scores.data();
      // The mask is document - base for every sound file, and stays inside the block for a damaged one.
      for (int64_t p = scratch.cursors[j]; p < end; p++) block[documents_[p] & (kBlock - 1)] += weight * weights_[p];
      scratch.cursors[j] = end;
    }
    if (touched) scratch.collect(base, size, static_cast<size_t>(k));
  }
  std::sort_heap(scratch.heap.begin(), scratch.heap.end(), better);
  const int64_t found = static_cast<int64_t>(scratch.heap.size());
  for (int64_t i = 0; i < k; i++) {
    scores[i] = i < found ? scratch.heap[i].score : -std::numeric_limits<float>::infinity();
    ids[i] = i < found ? ids_[scratch.heap[i].document] : -1;
  }
}

void Index::search(const Rows& queries, int64_t k, int64_t n_threads, float* scores, int64_t* ids) const {
  int64_t longest = 0;
  for (int64_t query = 0; query < queries.size(); query++) {
    longest = std::max(longest, queries.starts[query + 1] - queries.starts[query]);
  }
  // All memory is taken here, where an exception reaches the caller; a worker cannot throw.
  std::vector<Scratch> scratches(std::max<int64_t>(1, std::min(n_threads, queries.size())));
  for (Scratch& scratch : scratches) {
    scratch.scores.assign(kBlock, 0.0f);
    scratch.cursors.reserve(longest);
    scratch.heap.reserve(std::min(k, n_documents_));
  }
  std::atomic<int64_t> next{0};
  const auto work = [&](Scratch& scratch) {
    for (int64_t query; (query = next++) < queries.size();) {
      search_one(queries, query, k, scratch, scores + query * k, ids + query * k);
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(scratches.size());
  try {
    for (size_t i = 1; i < scratches.size(); i++) threads.emplace_back(work, std::ref(scratches[i]));
  } catch (const std::system_error&) {
    // The system has no more threads to give: those that started share all the queries, with the same result.
  }
  work(scratches[0]);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace stair
