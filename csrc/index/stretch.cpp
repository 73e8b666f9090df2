// How a query is answered. Its terms are split: optional ones (frequent, of low weight), which alone lift no document
// among the best, and the rest. Over a stretch of ranges:
//
//   1 every document's sum starts from its block's maxima of the optional terms; the other terms' postings are added.
//     The sum bounds the score from above.
//   2 some documents of large sums are scored: the k-th best of them is a first threshold.
//   3 groups of 64 documents with a sum that reaches the threshold go through the optional terms, which replace their
//     maxima by their codes, a few terms at a time; groups whose sums all fall below the threshold are dropped.
//   4 the documents that are left are scored, largest sums first, until no sum reaches the k-th best score.
//
// Exact, because every sum is rounded up and the threshold down, and scores come from the forward rows.
#include <algorithm>
#include <functional>

#include "searcher.h"

namespace stair {
namespace {

constexpr int64_t kExpandRarity = 4;    // terms of at least every 4th document are added by groups
constexpr int64_t kSeedLanes = 3;       // maxima above the first threshold, for each of k
constexpr int64_t kFinishFirst = 64;    // candidates that are sorted at first
constexpr double kRemainderPart = 0.6;  // of the remainder that a document is expected not to get

}  // namespace

void Searcher::search_stretch(int64_t first_range, int64_t n_ranges) {
  base_ = first_range * kRange;
  std::fill(stripes_.begin(), stripes_.end(), 0);
  for (size_t i = n_optional_; i < terms_.size(); i++) fetch_segment(terms_[i], first_range);
  for (int64_t r = 0; r < n_ranges; r++) bound_range(first_range + r, r * kRange);
  const int64_t n_chunks = count_chunks(std::min(n_ranges * kRange, layout_.n_documents - base_));
  seed(n_chunks);
  collect(n_chunks, least());
  refine(n_chunks);
  finish();
}

void Searcher::bound_range(int64_t range, int64_t offset) {
  const int64_t size = std::min(kRange, layout_.n_documents - range * kRange), n_chunks = count_chunks(size);
  const int64_t n_blocks = n_chunks * kChunkBlocks;
  uint16_t* sums = sums_.data() + offset;
  uint16_t* remainders = remainders_.data() + offset / kBlock;
  if (skips(range)) {
    std::fill_n(largest_.begin() + offset / kChunk, n_chunks, 0);
    std::fill_n(maxima_.begin() + offset / kChunk * kLanes, n_chunks * kLanes, 0);
    return;
  }
  if (optional_.empty()) {
    std::fill(sums, sums + n_chunks * kChunk, flat_sum_);
  } else {
    // Sums of the optional terms are rounded down: 1 for each makes up for it.
    const int64_t n = static_cast<int64_t>(optional_.size());
    kernels_.add_maxima(optional_.data(), n, range * (kRange / kBlock), n_blocks, static_cast<uint16_t>(n + flat_sum_),
                        remainders);
    kernels_.spread(remainders, n_blocks, sums);
  }
  const bool more = (range + 1) * kRange < layout_.n_documents;
  for (size_t i = n_optional_; i < terms_.size(); i++) {
    if (more) fetch_segment(terms_[i], range + 1);
    add_term(terms_[i], range, n_chunks * kChunkGroups, sums);
  }
  std::fill(sums + size, sums + n_chunks * kChunk, 0);
  if (allowed_ != nullptr) kernels_.keep(allowed_ + range * (kRange / kGroup), ceil_div(size, kGroup), sums);
  for (int64_t c = 0; c < n_chunks; c++) {
    const int64_t chunk = offset / kChunk + c;
    largest_[chunk] = kernels_.lane_maxima(sums + c * kChunk, maxima_.data() + chunk * kLanes,
                                           stripes_.data() + chunk % kStripes * kLanes);
  }
}

// Whether no document of the range is allowed.
bool Searcher::skips(int64_t range) const {
  if (allowed_ == nullptr) return false;
  const int64_t size = std::min(kRange, layout_.n_documents - range * kRange);
  const uint64_t* allowed = allowed_ + range * (kRange / kGroup);
  return std::all_of(allowed, allowed + ceil_div(size, kGroup), [](uint64_t word) { return word == 0; });
}

void Searcher::fetch_segment(const Term& term, int64_t range) const {
  const int64_t first = term.info.first + term.segments[range];
  const uint16_t* documents = layout_.documents + first;
  const uint8_t* codes = layout_.codes + first;
  // Unconditionally what most segments have; the hardware follows a longer run by itself.
  for (int64_t line = 0; line < 4; line++) fetch(documents + 32 * line);
  for (int64_t line = 0; line < 2; line++) fetch(codes + 64 * line);
}

void Searcher::add_term(const Term& term, int64_t range, int64_t n_groups, uint16_t* sums) {
  const Codes codes{layout_.codes, layout_.n_postings};
  if (kernels_.group_cost > 0 && term.info.slot >= 0 && term.info.count * kExpandRarity >= layout_.n_documents) {
    kernels_.add_groups(frequent(term), range * (kRange / kGroup), n_groups, codes, sums);
    return;
  }
  const int64_t end = std::min<int64_t>(term.segments[range + 1], term.info.count);
  const int64_t first = std::min<int64_t>(term.segments[range], end);
  kernels_.add_postings(layout_.documents + term.info.first + first, codes, term.info.first + first,
                        std::min(end - first, kRange), term.step, scratch_.data(), sums);
}

// A sum that at least some multiple of k documents reach; 0 when there are too few documents.
uint16_t Searcher::seed_threshold(int64_t n_chunks) {
  const int64_t wanted = kSeedLanes * static_cast<int64_t>(std::min<size_t>(k_, kStretch));
  int64_t n = n_chunks * kLanes;
  if (wanted > n / 2) return 0;
  if (wanted <= kStripes * kLanes / 2) {
    n = kStripes * kLanes;
    std::copy(stripes_.begin(), stripes_.end(), sample_.begin());
  } else {
    std::copy(maxima_.begin(), maxima_.begin() + n, sample_.begin());
  }
  std::nth_element(sample_.begin(), sample_.begin() + wanted - 1, sample_.begin() + n, std::greater<uint16_t>());
  return sample_[wanted - 1];
}

void Searcher::collect(int64_t n_chunks, uint16_t least) {
  live_ = {live_group_.data(), live_documents_.data(), 0};
  for (int64_t c = 0; c < n_chunks; c++) {
    if (largest_[c] < least) continue;
    kernels_.collect(sums_.data() + c * kChunk, base_ / kGroup + c * kChunkGroups, least, live_);
  }
}

// The documents of the live groups, each with bound_of(document).
template <class BoundOf>
void Searcher::list_candidates(const BoundOf& bound_of) {
  candidates_.clear();
  for (int64_t g = 0; g < live_.size; g++) {
    const int64_t first = live_.group[g] * kGroup - base_;
    for (uint64_t left = live_.documents[g]; left != 0; left &= left - 1) {
      const uint32_t document = static_cast<uint32_t>(first + __builtin_ctzll(left));
      candidates_.push_back({document, bound_of(document)});
    }
  }
}

void Searcher::seed(int64_t n_chunks) {
  const uint16_t threshold = seed_threshold(n_chunks);
  if (threshold == 0) return;
  collect(n_chunks, std::max(threshold, least()));
  list_candidates([&](uint32_t document) {
    const double remainder = !optional_.empty() ? remainders_[document / kBlock] : 0;
    const double expected = sums_[document] - kRemainderPart * remainder;
    return static_cast<uint16_t>(std::max(expected, 0.0));
  });
  const size_t wanted = std::min(k_ + k_ / 3 + 1, candidates_.size());
  std::nth_element(candidates_.begin(), candidates_.begin() + wanted, candidates_.end());
  for (size_t i = 0; i < wanted; i++) fetch(layout_.row_start_at(base_ + candidates_[i].document));
  for (size_t i = 0; i < wanted; i++) fetch_row(base_ + candidates_[i].document);
  for (size_t i = 0; i < wanted; i++) {
    offer(base_ + candidates_[i].document);
    sums_[candidates_[i].document] = 0;  // done with
  }
}

void Searcher::refine(int64_t n_chunks) {
  const Codes codes{layout_.codes, layout_.n_postings};
  const int64_t n_optional = static_cast<int64_t>(optional_.size());
  for (int64_t i = 0; i < n_optional && live_.size > 0; i += kLevel) {
    int64_t n_terms = std::min(kLevel, n_optional - i);
    if (prefers_all(i, n_terms, n_chunks)) {
      refine_all(i, n_terms, n_chunks);
      n_terms = 0;  // only the comparison with the threshold is left to do
    }
    kernels_.refine(optional_.data() + i, n_terms, codes, least(), sums_.data(), base_ / kGroup, live_);
  }
}

// Whether so many groups are live that all the postings of these terms are read faster. In cycles, as measured.
bool Searcher::prefers_all(int64_t first, int64_t n_terms, int64_t n_chunks) const {
  constexpr double kDocumentCost = 6, kPostingCost = 2, kSpreadCost = 6;
  double live = kernels_.group_cost * static_cast<double>(live_.size);
  if (kernels_.group_cost == 0) {
    int64_t documents = 0;
    for (int64_t g = 0; g < live_.size; g++) documents += __builtin_popcountll(live_.documents[g]);
    live = kDocumentCost * static_cast<double>(documents);
  }
  double postings = 0;
  for (int64_t i = first; i < first + n_terms; i++) postings += terms_[n_flat_ + i].info.count;
  postings *= static_cast<double>(n_chunks * kChunk) / static_cast<double>(layout_.n_documents);
  return live * static_cast<double>(n_terms) > kPostingCost * postings + kSpreadCost * kChunkGroups * n_chunks;
}

// What Kernels::refine does for live groups, for all documents of the stretch.
void Searcher::refine_all(int64_t first, int64_t n_terms, int64_t n_chunks) {
  for (int64_t chunk = 0; chunk < n_chunks; chunk += kRange / kChunk) {
    const int64_t range = base_ / kRange + chunk * kChunk / kRange;
    const int64_t n_blocks = std::min(n_chunks - chunk, kRange / kChunk) * kChunkBlocks;
    uint16_t* sums = sums_.data() + chunk * kChunk;
    kernels_.add_maxima(optional_.data() + first, n_terms, range * (kRange / kBlock), n_blocks, 0, scratch_.data());
    kernels_.unspread(scratch_.data(), n_blocks, sums);
    for (int64_t i = first; i < first + n_terms; i++)
      add_term(terms_[n_flat_ + i], range, n_blocks / kGroupBlocks, sums);
  }
}

// The largest bounds come first, but not more of them are sorted than are needed.
void Searcher::finish() {
  list_candidates([&](uint32_t document) { return sums_[document]; });
  Candidate* first = candidates_.data();
  Candidate* const end = first + candidates_.size();
  for (int64_t wanted = kFinishFirst; first < end; wanted *= 2) {
    Candidate* const last = first + std::min(wanted, end - first);
    if (last < end) std::nth_element(first, last, end);
    std::sort(first, last);
    if (!offer_all(first, last)) return;
    first = last;
  }
}

// Scores candidates until one's bound falls below the threshold; whether none did.
bool Searcher::offer_all(const Candidate* first, const Candidate* last) {
  constexpr int64_t kAhead = 4;
  for (int64_t i = 0; i < std::min(kAhead, last - first); i++) fetch_row(base_ + first[i].document);
  for (; first < last; first++) {
    if (first->bound < least()) return false;
    if (last - first > kAhead) fetch_row(base_ + first[kAhead].document);
    offer(base_ + first->document);
  }
  return true;
}

}  // namespace stair
