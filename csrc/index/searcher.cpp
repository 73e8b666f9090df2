// The query, and the scores and results that searching a stretch leads to.
#include "searcher.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace stair {
namespace {

constexpr int64_t kMaxTerms = 4096;  // above, rounding up takes a notable part of a 16-bit sum
constexpr double kTopSum = 64000;    // what the largest possible score is scaled to
constexpr double kLeastPart = 0.2;   // of the largest possible score: what the threshold may be expected to be
constexpr double kRarePart = 0.35;   // or of what the terms without block maxima can add
constexpr double kCommon = 6;        // times k: documents of a term that counts whole
constexpr double kFlatPart = 0.05;   // of that threshold: what the sums may be too large by

bool better(const Hit& a, const Hit& b) { return a.score > b.score || (a.score == b.score && a.id < b.id); }

}  // namespace

Searcher::Searcher(const Layout& layout, const std::vector<TermInfo>& infos)
    : layout_(layout), infos_(infos), kernels_(kernels()) {
  const int64_t n_documents = std::min(kStretch, ceil_div(layout.n_documents, kChunk) * kChunk);
  weight_of_.assign(layout.vocab_size + 1, 0.0f);
  bits_.assign(layout.vocab_size / 32 + 1, 0);
  sums_.resize(n_documents + kReach);
  remainders_.resize(n_documents / kBlock + kSlack);
  maxima_.resize(n_documents / kChunk * kLanes);
  sample_.resize(std::max<int64_t>(maxima_.size(), kStripes * kLanes));
  largest_.resize(n_documents / kChunk);
  stripes_.resize(kStripes * kLanes);
  scratch_.resize(kRange + kSlack);
  live_group_.resize(n_documents / kGroup + 1);
  live_documents_.resize(n_documents / kGroup + 1);
  candidates_.reserve(n_documents);
}

void Searcher::reserve(int64_t n_terms, int64_t k) {
  terms_.reserve(n_terms);
  optional_.reserve(n_terms);
  heap_.reserve(std::min(k, layout_.n_documents));
}

void Searcher::search(const Rows& queries, int64_t query, int64_t k, const uint64_t* allowed, float* scores,
                      int64_t* ids) {
  allowed_ = allowed;
  heap_.clear();
  k_ = static_cast<size_t>(k);
  prepare(queries, query);
  const int64_t n_ranges = count_ranges(layout_.n_documents);
  if (n_terms() > kMaxTerms) {
    score_all();
  } else if (most_ > 0) {
    split();
    for (int64_t range = 0; range < n_ranges; range += kStretch / kRange) {
      search_stretch(range, std::min(kStretch / kRange, n_ranges - range));
    }
  }
  for (const Term& term : terms_) weight_of_[term.number] = 0, bits_[term.number / 32] = 0;
  std::sort_heap(heap_.begin(), heap_.end(), better);
  const int64_t found = static_cast<int64_t>(heap_.size());
  for (int64_t i = 0; i < k; i++) {
    scores[i] = i < found ? heap_[i].score : -std::numeric_limits<float>::infinity();
    ids[i] = i < found ? heap_[i].id : -1;
  }
}

void Searcher::prepare(const Rows& queries, int64_t query) {
  const int64_t R = count_ranges(layout_.n_documents);
  const int64_t first = queries.starts[query], end = queries.starts[query + 1];
  for (int64_t p = first; p < end; p++) fetch(&infos_[queries.terms[p]]);
  terms_.clear();
  most_ = 0;
  for (int64_t p = first; p < end; p++) {
    const int32_t number = queries.terms[p];
    const TermInfo& info = infos_[number];
    const float weight = queries.weights[p];
    if (info.count == 0) continue;
    const uint32_t* segments = layout_.segments + number * (R + 1);
    fetch(segments, segments + R + 1);
    weight_of_[number] = weight;
    bits_[number / 32] |= 1u << number % 32;
    const double bound = 255.0 * weight * info.unit;
    terms_.push_back({number, weight, info, bound, 0, segments, 0});
    most_ += bound;
  }
  if (n_terms() > kMaxTerms || !(most_ > 0)) return;
  const double n = static_cast<double>(n_terms());
  // Each of the n terms may be rounded up three times: in its step, for its maximum and for its code.
  scale_ = std::min(kTopSum, 65535 - 3 * n) / most_;
  shrink_ = 1 - 0x1p-23 * (n + 2);
  for (Term& term : terms_) term.step = static_cast<uint16_t>(std::ceil(term.bound * scale_ * (256.0 / 255)));
}

// The optional terms come first in terms_: as many of the most frequent for what they add as the threshold, which is
// estimated here, lets be left out.
void Searcher::split() {
  n_optional_ = n_flat_ = 0;
  flat_sum_ = 0;
  optional_.clear();
  // A term of few documents says little of the k-th best.
  double all = 0, rare = 0;
  for (Term& term : terms_) {
    term.order = term.info.slot < 0 ? HUGE_VAL : term.bound / term.info.count;
    const double part = std::min(1.0, term.info.count / (kCommon * static_cast<double>(k_)));
    all += part * term.bound;
    if (term.info.slot < 0) rare += part * term.bound;
  }
  const double threshold = std::max(kLeastPart * all, kRarePart * rare);
  if (static_cast<int64_t>(k_) * 64 > layout_.n_documents) return;  // no threshold to speak of
  std::sort(terms_.begin(), terms_.end(), [](const Term& a, const Term& b) {
    return a.order < b.order || (a.order == b.order && a.number < b.number);
  });
  double rest = 0;
  for (const Term& term : terms_) {
    if (term.info.slot < 0 || rest + term.bound > threshold) break;
    rest += term.bound;
    n_optional_++;
  }
  flatten(threshold);
  // In float a product of these may be infinite times 0.
  const auto expected = [](const Term& term) {
    return static_cast<double>(term.weight) * term.info.unit * term.info.mean;
  };
  std::sort(terms_.begin() + n_flat_, terms_.begin() + n_optional_, [&](const Term& a, const Term& b) {
    return expected(a) > expected(b) || (expected(a) == expected(b) && a.number < b.number);
  });
  for (int64_t i = n_flat_; i < n_optional_; i++) optional_.push_back(frequent(terms_[i]));
}

// The least of the optional terms are not looked at: every document is taken to have the most of them.
void Searcher::flatten(double threshold) {
  std::sort(terms_.begin(), terms_.begin() + n_optional_, [](const Term& a, const Term& b) {
    return a.bound < b.bound || (a.bound == b.bound && a.number < b.number);
  });

  double rest = 0;
  for (int64_t i = 0; i < n_optional_; i++) {
    rest += terms_[i].bound;
    if (rest > kFlatPart * threshold) break;
    flat_sum_ = static_cast<uint16_t>(flat_sum_ + (255 * terms_[i].step >> 8) + 1);
    n_flat_++;
  }
}

FrequentTerm Searcher::frequent(const Term& term) const {
  const int64_t chunks = layout_.chunks();
  return {layout_.block_max + term.info.slot * chunks * kChunkBlocks,
          layout_.groups + term.info.slot * chunks * kChunkGroups, term.info.first, term.step};
}

// The least sum of a document that may be among the k best.
uint16_t Searcher::least() const {
  if (heap_.size() < k_) return 1;
  const double n = static_cast<double>(n_terms());
  const double worst = std::min(heap_.front().score, std::numeric_limits<float>::max());
  const double cut = (worst * shrink_ - (n + 1) * 0x1p-149) * scale_ * (1 - 0x1p-40);
  return static_cast<uint16_t>(std::clamp(cut, 1.0, 65535.0));
}

void Searcher::score_all() {
  for (int64_t document = 0; document < layout_.n_documents; document++) {
    if (allowed_ == nullptr || allowed_[document / 64] >> document % 64 & 1) offer(document);
  }
}

// A damaged file may place a row anywhere: it is cut to the postings.
Row Searcher::row(int64_t document) const {
  const int64_t end = std::clamp<int64_t>(layout_.row_start(document + 1), 0, layout_.n_postings);
  const int64_t first = std::clamp<int64_t>(layout_.row_start(document), 0, end);
  return {static_cast<const char*>(layout_.row_terms) + first * (layout_.wide_terms() ? 4 : 2),
          static_cast<const char*>(layout_.row_weights) + first * (layout_.half_weights ? 2 : 4), end - first};
}

void Searcher::fetch_row(int64_t document) const {
  const Row fetched = row(document);
  const char* terms = static_cast<const char*>(fetched.terms);
  const char* weights = static_cast<const char*>(fetched.weights);
  fetch(terms, terms + fetched.size * (layout_.wide_terms() ? 4 : 2));
  fetch(weights, weights + fetched.size * (layout_.half_weights ? 2 : 4));
  if (layout_.ids != nullptr) fetch(layout_.ids + document);
}

float Searcher::score(int64_t document) const {
  const auto kernel = kernels_.score[layout_.wide_terms()][layout_.half_weights];
  return kernel(row(document), {weight_of_.data(), bits_.data(), static_cast<uint32_t>(layout_.vocab_size)});
}

void Searcher::offer(int64_t document) {
  const Hit hit{score(document), layout_.id(document)};
  if (!(hit.score > 0)) return;
  if (heap_.size() == k_) {
    if (!better(hit, heap_.front())) return;
    std::pop_heap(heap_.begin(), heap_.end(), better);
    heap_.pop_back();
  }
  heap_.push_back(hit);
  std::push_heap(heap_.begin(), heap_.end(), better);
}

}  // namespace stair
