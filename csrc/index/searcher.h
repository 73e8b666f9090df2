// One thread's answer to one query after the other. See stretch.cpp for how.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "rows.h"

namespace stair {

constexpr int64_t kStretch = 32 * kRange;  // documents whose sums are kept: 1 MiB
constexpr int64_t kStripes = 4;            // chunks are dealt out to so many rows of kLanes maxima

// Memory that is needed soon.
inline void fetch(const void* address) {
  __builtin_prefetch(address);
  asm volatile("" : : "r"(address));  // GCC drops calls of functions that only prefetch
}

inline void fetch(const void* from, const void* to) {
  for (const char* line = static_cast<const char*>(from); line < to; line += 64) fetch(line);
}

struct Hit {
  float score;
  int64_t id;
};

// What the index knows of a term, side by side.
struct TermInfo {
  int64_t first;   // posting
  uint32_t count;  // of postings
  int32_t slot;    // among the frequent terms, or -1
  float unit;
  float mean;  // block maximum of a frequent term
};

class Searcher {
 public:
  Searcher(const Layout& layout, const std::vector<TermInfo>& infos);

  // Takes the memory for queries of up to n_terms terms and k results: search itself never allocates.
  void reserve(int64_t n_terms, int64_t k);

  // Among the documents whose bit is 1 in `allowed`, or among all when it is null.
  void search(const Rows& queries, int64_t query, int64_t k, const uint64_t* allowed, float* scores, int64_t* ids);

 private:
  struct Term {
    int32_t number;
    float weight;
    TermInfo info;
    double bound;  // the most that it adds to a score
    double order;  // what to sort by
    const uint32_t* segments;
    uint16_t step;
  };
  struct Candidate {
    uint32_t document;  // within the stretch
    uint16_t bound;

    bool operator<(const Candidate& other) const {  // largest bounds first
      return bound > other.bound || (bound == other.bound && document < other.document);
    }
  };

  int64_t n_terms() const { return static_cast<int64_t>(terms_.size()); }
  void prepare(const Rows& queries, int64_t query);
  void split();
  void flatten(double threshold);
  void search_stretch(int64_t first_range, int64_t n_ranges);
  void bound_range(int64_t range, int64_t offset);
  void add_term(const Term& term, int64_t range, int64_t n_groups, uint16_t* sums);
  bool skips(int64_t range) const;
  void fetch_segment(const Term& term, int64_t range) const;
  void seed(int64_t n_chunks);
  uint16_t seed_threshold(int64_t n_chunks);
  void collect(int64_t n_chunks, uint16_t least);
  void refine(int64_t n_chunks);
  bool prefers_all(int64_t first, int64_t n_terms, int64_t n_chunks) const;
  void refine_all(int64_t first, int64_t n_terms, int64_t n_chunks);
  template <class BoundOf>
  void list_candidates(const BoundOf& bound_of);
  void finish();
  bool offer_all(const Candidate* first, const Candidate* last);
  void score_all();

  uint16_t least() const;
  FrequentTerm frequent(const Term& term) const;
  Row row(int64_t document) const;
  void fetch_row(int64_t document) const;
  float score(int64_t document) const;
  void offer(int64_t document);

  const Layout& layout_;
  const std::vector<TermInfo>& infos_;
  const Kernels& kernels_;

  // The query.
  std::vector<float> weight_of_;  // dense, all 0 between queries
  std::vector<uint32_t> bits_;    // a bit for each term
  std::vector<Term> terms_;       // the first n_optional_ add to no sum before `refine`
  std::vector<FrequentTerm> optional_;
  int64_t n_optional_ = 0, n_flat_ = 0;
  uint16_t flat_sum_ = 0;
  double most_ = 0;    // no score is larger
  double scale_ = 0;   // of the sums
  double shrink_ = 0;  // what rounding may add to a score
  size_t k_ = 0;
  const uint64_t* allowed_ = nullptr;
  std::vector<Hit> heap_;  // at most k, the worst at the root

  // A stretch of ranges.
  int64_t base_ = 0;                  // its first document
  std::vector<uint16_t> sums_;        // of its documents
  std::vector<uint16_t> remainders_;  // of its blocks: what the optional terms may add
  std::vector<uint16_t> maxima_;      // [chunks][kLanes]
  std::vector<uint16_t> largest_;     // of each chunk
  std::vector<uint16_t> stripes_;     // maxima of every kStripes-th chunk
  std::vector<uint16_t> sample_;      // maxima, to find a large one
  std::vector<uint16_t> scratch_;     // of a range
  std::vector<uint32_t> live_group_;
  std::vector<uint64_t> live_documents_;
  LiveGroups live_{};
  std::vector<Candidate> candidates_;
};

}  // namespace stair
