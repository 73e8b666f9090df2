#include "build.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "half.h"
#include "layout.h"

namespace stair {
namespace {

constexpr int kTopCode = 255;
// A term is frequent from every kRarity-th document on. Block maxima and groups take 20 bytes for 64 documents.
constexpr int64_t kRarity = 64, kCompactRarity = 16;
constexpr int64_t kFewDocuments = 1024;  // nothing to leave out

// The least float32 u with 255 * u >= largest, in exact arithmetic (a double holds these products).
float unit_of(float largest) {
  float unit = largest / kTopCode;
  while (static_cast<double>(unit) * kTopCode < largest) unit = std::nextafter(unit, HUGE_VALF);
  return unit;
}

uint8_t code_of(float weight, float unit) {
  int code = std::min(kTopCode, std::max(1, static_cast<int>(weight / unit)));
  while (code > 1 && (code - 1) * static_cast<double>(unit) >= weight) code--;
  while (code * static_cast<double>(unit) < weight) code++;
  return static_cast<uint8_t>(code);
}

// term_starts and units.
void count_terms(const Rows& rows, const NewLayout& out) {
  std::fill(out.term_starts, out.term_starts + rows.vocab_size + 1, 0);
  std::fill(out.units, out.units + rows.vocab_size, 0.0f);
  for (size_t p = 0; p < rows.terms.size(); p++) {
    const int32_t term = rows.terms[p];
    out.term_starts[term + 1]++;
    out.units[term] = std::max(out.units[term], rows.weights[p]);
  }
  for (int64_t term = 0; term < rows.vocab_size; term++) {
    out.term_starts[term + 1] += out.term_starts[term];
    if (out.units[term] > 0) out.units[term] = unit_of(out.units[term]);
  }
}

template <class Start>
void start_rows(const Rows& rows, const int64_t* order, Start* row_starts) {
  row_starts[0] = 0;
  for (int64_t document = 0; document < rows.size(); document++) {
    const int64_t size = rows.starts[order[document] + 1] - rows.starts[order[document]];
    row_starts[document + 1] = static_cast<Start>(row_starts[document] + size);
  }
}

template <class Term, class Convert>
void copy_rows(const Rows& rows, const int64_t* order, Term* terms, Convert convert) {
  int64_t to = 0;
  for (int64_t document = 0; document < rows.size(); document++) {
    for (int64_t p = rows.starts[order[document]]; p < rows.starts[order[document] + 1]; p++, to++) {
      terms[to] = static_cast<Term>(rows.terms[p]);
      convert(to, rows.weights[p]);
    }
  }
}

template <class Term>
void copy_rows(const Rows& rows, const int64_t* order, const NewLayout& out) {
  Term* terms = static_cast<Term*>(out.row_terms);
  if (out.half_weights) {
    uint16_t* weights = static_cast<uint16_t*>(out.row_weights);
    copy_rows(rows, order, terms, [=](int64_t to, float weight) { weights[to] = encode_half(weight); });
  } else {
    float* weights = static_cast<float*>(out.row_weights);
    copy_rows(rows, order, terms, [=](int64_t to, float weight) { weights[to] = weight; });
  }
}

// documents, codes and segments.
void invert(const Rows& rows, const int64_t* order, const NewLayout& out) {
  const int64_t V = rows.vocab_size, N = rows.size(), R = count_ranges(N);
  std::vector<int64_t> next(out.term_starts, out.term_starts + V);
  const auto start_range = [&](int64_t range) {
    for (int64_t term = 0; term < V; term++) {
      out.segments[term * (R + 1) + range] = static_cast<uint32_t>(next[term] - out.term_starts[term]);
    }
  };
  for (int64_t document = 0; document < N; document++) {
    if (document % kRange == 0) start_range(document / kRange);
    for (int64_t p = rows.starts[order[document]]; p < rows.starts[order[document] + 1]; p++) {
      const int32_t term = rows.terms[p];
      const int64_t slot = next[term]++;
      out.documents[slot] = static_cast<uint16_t>(document % kRange);
      out.codes[slot] = code_of(rows.weights[p], out.units[term]);
    }
  }
  start_range(R);
}

// block_max, groups and frequent_means of the i-th frequent term.
void summarise(const Rows& rows, int32_t term, int64_t i, const NewLayout& out) {
  const int64_t N = rows.size(), R = count_ranges(N), n_blocks = count_chunks(N) * kChunkBlocks;
  uint8_t* block_max = out.block_max + i * n_blocks;
  Group* groups = out.groups + i * count_chunks(N) * kChunkGroups;
  const int64_t first = out.term_starts[term];
  const uint32_t* segments = out.segments + term * (R + 1);
  for (int64_t range = 0; range < R; range++) {
    for (uint32_t p = segments[range]; p < segments[range + 1]; p++) {
      const int64_t document = range * kRange + out.documents[first + p];
      const uint8_t code = out.codes[first + p];
      uint8_t& largest = block_max[document / kBlock];
      largest = std::max(largest, code);
      Group& group = groups[document / kGroup];
      if (group.documents == 0) group.start = p;
      group.documents |= uint64_t{1} << document % kGroup;
      group.block_max[document % kGroup / kBlock] = largest;
    }
  }
  int64_t total = 0;
  for (int64_t b = 0; b < n_blocks; b++) total += block_max[b];
  out.frequent_terms[i] = term;
  out.frequent_means[i] = static_cast<float>(static_cast<double>(total) / static_cast<double>(ceil_div(N, kBlock)));
}

}  // namespace

std::vector<int32_t> frequent_terms(const Rows& rows, bool compact) {
  if (rows.size() < kFewDocuments) return {};
  std::vector<int64_t> counts(rows.vocab_size, 0);
  for (const int32_t term : rows.terms) counts[term]++;
  std::vector<int32_t> frequent;
  for (int64_t term = 0; term < rows.vocab_size; term++) {
    if (counts[term] * (compact ? kCompactRarity : kRarity) >= rows.size()) {
      frequent.push_back(static_cast<int32_t>(term));
    }
  }
  return frequent;
}

void build(const Rows& rows, const int64_t* order, const std::vector<int32_t>& frequent, const NewLayout& out) {
  count_terms(rows, out);
  if (static_cast<int64_t>(rows.terms.size()) > kNarrowPostings) {
    start_rows(rows, order, static_cast<int64_t*>(out.row_starts));
  } else {
    start_rows(rows, order, static_cast<uint32_t*>(out.row_starts));
  }
  if (rows.vocab_size > kNarrowTerms) {
    copy_rows<int32_t>(rows, order, out);
  } else {
    copy_rows<uint16_t>(rows, order, out);
  }
  invert(rows, order, out);
  for (size_t i = 0; i < frequent.size(); i++) summarise(rows, frequent[i], static_cast<int64_t>(i), out);
}

}  // namespace stair
