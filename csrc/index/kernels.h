// The inner loops of the search: kernels.cpp is compiled once per instruction set, each build fills one table of
// function pointers. Nothing in kernels.cpp may use the standard library: its inline functions would be merged by the
// linker across instruction sets, and an AVX-512 copy would then run on a CPU that has none.
//
// A sum is a 16-bit upper bound of a document's score: every term adds code * step / 256, rounded up, or rounded down
// where the start of the sum already holds 1 for the term.
#pragma once

#include "layout.h"

namespace stair {

constexpr int64_t kLanes = 32;       // maxima that a chunk of documents leaves: of every 32nd document
constexpr int64_t kSlack = 64;       // elements that a kernel may touch past the end of its scratch
constexpr int64_t kLevel = 4;        // terms of one level of the cascade
constexpr int64_t kReach = 1 << 16;  // what a uint16 reaches: a damaged file may name any document

// A term of the query with block maxima and groups.
struct FrequentTerm {
  const uint8_t* block_max;  // of the term
  const Group* groups;
  int64_t first;  // its first posting
  uint16_t step;
};

// Groups of documents that may still be among the best.
struct LiveGroups {
  uint32_t* group;
  uint64_t* documents;
  int64_t size;
};

struct Codes {
  const uint8_t* data;
  int64_t size;
};

struct Row {
  const void* terms;
  const void* weights;
  int64_t size;
};

struct DenseQuery {
  const float* weights;  // [vocab_size + 1], 0 for the terms that it lacks and at the end
  const uint32_t* bits;  // a bit for each of them: which it has
  uint32_t vocab_size;
};

struct Kernels {
  // What refine takes for a term of a group, whose documents it and add_groups treat all at once, in cycles as
  // measured; 0: they go document by document.
  double group_cost;

  // remainders[b] = start + sum over the terms of block_max * step / 256, for n_blocks (a multiple of 64) blocks;
  // n_terms > 0.
  void (*add_maxima)(const FrequentTerm* terms, int64_t n_terms, int64_t first_block, int64_t n_blocks, uint16_t start,
                     uint16_t* remainders);
  // sums[d] = remainders[d / 16]
  void (*spread)(const uint16_t* remainders, int64_t n_blocks, uint16_t* sums);
  // sums[d] -= remainders[d / 16]
  void (*unspread)(const uint16_t* remainders, int64_t n_blocks, uint16_t* sums);
  // sums[documents[p]] += 1 + codes[p] * step / 256; scratch holds n + kSlack elements.
  void (*add_postings)(const uint16_t* documents, const Codes& codes, int64_t first, int64_t n, uint16_t step,
                       uint16_t* scratch, uint16_t* sums);
  // The same, without the 1, over groups first_group .. of a frequent term; sums starts at the first group.
  void (*add_groups)(const FrequentTerm& term, int64_t first_group, int64_t n_groups, const Codes& codes,
                     uint16_t* sums);
  // sums[d] = 0 for the documents whose bit is 0, n_groups words of 64.
  void (*keep)(const uint64_t* documents, int64_t n_groups, uint16_t* sums);
  // stripe[lane] = the larger of itself and of every 32nd sum of a chunk; maxima, if given, of the chunk alone. Returns
  // the largest sum.
  uint16_t (*lane_maxima)(const uint16_t* sums, uint16_t* maxima, uint16_t* stripe);
  // Appends the groups with a sum >= least of a chunk of kChunk sums.
  void (*collect)(const uint16_t* sums, int64_t first_group, uint16_t least, LiveGroups& live);
  // Replaces the terms' maxima in the sums of live documents by their codes and drops groups that fall below `least`.
  void (*refine)(const FrequentTerm* terms, int64_t n_terms, const Codes& codes, uint16_t least, uint16_t* sums,
                 int64_t base_group, LiveGroups& live);
  // The score: products with the query, added in float32 from the first to the last. By type of the row: [wide
  // terms][half weights].
  float (*score[2][2])(const Row& row, const DenseQuery& query);
};

// The inner loops for the instruction set that runs. Throws when STAIR_CPU_ISA names one that this CPU does not have.
const Kernels& kernels();

namespace index_generic {
extern const Kernels kernels;
}
namespace index_avx2 {
extern const Kernels kernels;
}
namespace index_avx512 {
extern const Kernels kernels;
}
namespace index_avx512_vbmi2 {
extern const Kernels kernels;
}

}  // namespace stair
