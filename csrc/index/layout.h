// The arrays of an index: one layout for the CPU and the GPU, in memory and on disk.
//
// Documents are numbered 0 .. N-1 in the order of the index; a range is kRange consecutive documents, R = ceil(N /
// kRange). Forward rows serve the exact score, postings (document, code) its upper bound: code * unit >= weight.
//
// N and V are at most 2^31 - 1; P, all postings, may be larger than 2^32. What counts the postings of one term is 32
// bits wide: a term has at most one for each document.
#pragma once

#include <cstdint>

namespace stair {

constexpr int64_t kRange = 16384;  // documents of a range: their 16-bit sums fill an L1
constexpr int64_t kChunk = 1024;   // documents whose sums share one vector of maxima
constexpr int64_t kGroup = 64;     // documents of one bit mask
constexpr int64_t kBlock = 16;     // documents that share a maximum
constexpr int64_t kChunkBlocks = kChunk / kBlock;
constexpr int64_t kGroupBlocks = kGroup / kBlock;
constexpr int64_t kChunkGroups = kChunk / kGroup;
constexpr int64_t kNarrowTerms = 1 << 16;                    // up to this vocabulary size, row_terms is uint16
constexpr int64_t kNarrowPostings = (int64_t{1} << 32) - 1;  // up to so many, row_starts is uint32

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t count_chunks(int64_t n_documents) { return ceil_div(n_documents, kChunk); }
inline int64_t count_ranges(int64_t n_documents) { return ceil_div(n_documents, kRange); }

// 64 consecutive documents and what a frequent term has for them.
struct Group {
  uint64_t documents;  // bit i: the term has document 64 * g + i
  uint32_t start;      // the first of these postings, counted from the term's first
  uint8_t block_max[kGroup / kBlock];
};
static_assert(sizeof(Group) == 16);

// Pointers into arrays that someone else owns. They may be memory-mapped and hold anything.
struct Layout {
  int64_t n_documents;  // N
  int64_t vocab_size;   // V
  int64_t n_postings;   // P

  const int64_t* ids;       // [N] what search returns, or null: 0 .. N-1
  const void* row_starts;   // [N + 1] uint32, or int64 where P > kNarrowPostings
  const void* row_terms;    // [P] uint16, or int32 where V > kNarrowTerms; ascending within a row
  const void* row_weights;  // [P] float32, or float16 in a compact index
  bool half_weights;

  const int64_t* term_starts;  // [V + 1] a term's postings, documents ascending
  const uint32_t* segments;    // [V, R + 1] where each range starts, counted from term_starts
  const uint16_t* documents;   // [P] document % kRange
  const uint8_t* codes;        // [P] the least c in 1 .. 255 with c * units[t] >= weight
  const float* units;          // [V] the largest weight of a term / 255, rounded up

  // For terms of many documents, to leave whole groups out. Documents are filled up to a multiple of kChunk.
  int64_t n_frequent;             // F
  const int32_t* frequent_terms;  // [F] ascending
  const float* frequent_means;    // [F] the mean of the term's block_max
  const uint8_t* block_max;       // [F, chunks() * kChunkBlocks] the largest code among kBlock documents
  const Group* groups;            // [F, chunks() * kChunkGroups]

  int64_t chunks() const { return count_chunks(n_documents); }
  bool wide_terms() const { return vocab_size > kNarrowTerms; }
  bool wide_starts() const { return n_postings > kNarrowPostings; }
  int64_t id(int64_t document) const { return ids == nullptr ? document : ids[document]; }
  const void* row_start_at(int64_t document) const {
    return static_cast<const char*>(row_starts) + document * (wide_starts() ? 8 : 4);
  }
  int64_t row_start(int64_t document) const {
    const void* at = row_start_at(document);
    return wide_starts() ? *static_cast<const int64_t*>(at) : *static_cast<const uint32_t*>(at);
  }

  // Throws std::invalid_argument unless N and V are in their bounds, term_starts run from 0 to P and never descend,
  // frequent_terms ascend in [0, V), and units and frequent_means are finite and >= 0. That is all that memory safety
  // needs (numbers are sorted by) beyond the bounds which the search itself keeps: other damage gives wrong scores,
  // never an access out of bounds.
  void check() const;
};

}  // namespace stair
