// The inner loops in portable C++, which compilers turn into vectors; AVX-512 has its own.
#include "kernels.h"

#include "half.h"

#if defined(__AVX512BW__)
#include "kernels_avx512.h"
#endif

namespace stair::STAIR_ISA {
namespace {

inline uint16_t scaled(uint8_t code, uint16_t step) {
  return static_cast<uint16_t>(static_cast<uint32_t>(code) * step >> 8);
}

#if defined(__AVX512BW__)
using namespace vectors;
#else

void add_maxima(const FrequentTerm* terms, int64_t n_terms, int64_t first_block, int64_t n_blocks, uint16_t start,
                uint16_t* remainders) {
  for (int64_t b = 0; b < n_blocks; b++) remainders[b] = start;
  for (int64_t i = 0; i < n_terms; i++) {
    const uint8_t* block_max = terms[i].block_max + first_block;
    const uint16_t step = terms[i].step;
    for (int64_t b = 0; b < n_blocks; b++) remainders[b] += scaled(block_max[b], step);
  }
}

void spread(const uint16_t* remainders, int64_t n_blocks, uint16_t* sums) {
  for (int64_t b = 0; b < n_blocks; b++) {
    for (int64_t i = 0; i < kBlock; i++) sums[b * kBlock + i] = remainders[b];
  }
}

void unspread(const uint16_t* remainders, int64_t n_blocks, uint16_t* sums) {
  for (int64_t b = 0; b < n_blocks; b++) {
    for (int64_t i = 0; i < kBlock; i++) sums[b * kBlock + i] -= remainders[b];
  }
}

void add_postings(const uint16_t* documents, const Codes& codes, int64_t first, int64_t n, uint16_t step,
                  uint16_t* scratch, uint16_t* sums) {
  const uint8_t* code = codes.data + first;
  for (int64_t p = 0; p < n; p++) scratch[p] = static_cast<uint16_t>(scaled(code[p], step) + 1);
  for (int64_t p = 0; p < n; p++) sums[documents[p]] += scratch[p];
}

// Of a posting that a damaged file may place anywhere.
inline uint8_t code_at(const Codes& codes, int64_t posting) { return posting < codes.size ? codes.data[posting] : 0; }

void add_groups(const FrequentTerm& term, int64_t first_group, int64_t n_groups, const Codes& codes, uint16_t* sums) {
  for (int64_t g = 0; g < n_groups; g++) {
    const Group& group = term.groups[first_group + g];
    int64_t posting = term.first + group.start;
    for (uint64_t left = group.documents; left != 0; left &= left - 1, posting++) {
      sums[g * kGroup + __builtin_ctzll(left)] += scaled(code_at(codes, posting), term.step);
    }
  }
}

void keep(const uint64_t* documents, int64_t n_groups, uint16_t* sums) {
  for (int64_t g = 0; g < n_groups; g++) {
    for (int64_t i = 0; i < kGroup; i++) sums[g * kGroup + i] &= static_cast<uint16_t>(-(documents[g] >> i & 1));
  }
}

uint16_t lane_maxima(const uint16_t* sums, uint16_t* maxima, uint16_t* stripe) {
  for (int64_t lane = 0; lane < kLanes; lane++) maxima[lane] = 0;
  for (int64_t d = 0; d < kChunk; d += kLanes) {
    for (int64_t lane = 0; lane < kLanes; lane++) {
      maxima[lane] = sums[d + lane] > maxima[lane] ? sums[d + lane] : maxima[lane];
    }
  }
  uint16_t largest = 0;
  for (int64_t lane = 0; lane < kLanes; lane++) {
    stripe[lane] = maxima[lane] > stripe[lane] ? maxima[lane] : stripe[lane];
    largest = maxima[lane] > largest ? maxima[lane] : largest;
  }
  return largest;
}

void collect(const uint16_t* sums, int64_t first_group, uint16_t least, LiveGroups& live) {
  for (int64_t g = 0; g < kChunkGroups; g++) {
    uint16_t any = 0;
    for (int64_t i = 0; i < kGroup; i++) any |= sums[g * kGroup + i] >= least;
    if (!any) continue;
    uint64_t documents = 0;
    for (int64_t i = 0; i < kGroup; i++) documents |= static_cast<uint64_t>(sums[g * kGroup + i] >= least) << i;
    live.group[live.size] = static_cast<uint32_t>(first_group + g);
    live.documents[live.size++] = documents;
  }
}

void refine_group(const FrequentTerm& term, const Group& group, const Codes& codes, uint64_t live, uint16_t* sums) {
  uint16_t maxima[kGroupBlocks];
  for (int64_t b = 0; b < kGroupBlocks; b++) maxima[b] = scaled(group.block_max[b], term.step);
  for (; live != 0; live &= live - 1) {
    const int i = __builtin_ctzll(live);
    sums[i] -= maxima[i / kBlock];
    if ((group.documents >> i & 1) == 0) continue;
    const uint64_t before = group.documents & ((uint64_t{1} << i) - 1);
    sums[i] += scaled(code_at(codes, term.first + group.start + __builtin_popcountll(before)), term.step);
  }
}

void refine(const FrequentTerm* terms, int64_t n_terms, const Codes& codes, uint16_t least, uint16_t* sums,
            int64_t base_group, LiveGroups& live) {
  int64_t kept = 0;
  for (int64_t g = 0; g < live.size; g++) {
    const int64_t number = live.group[g];
    uint16_t* of_group = sums + (number - base_group) * kGroup;
    for (int64_t i = 0; i < n_terms; i++) {
      refine_group(terms[i], terms[i].groups[number], codes, live.documents[g], of_group);
    }
    uint64_t documents = 0;
    for (uint64_t left = live.documents[g]; left != 0; left &= left - 1) {
      const int i = __builtin_ctzll(left);
      documents |= static_cast<uint64_t>(of_group[i] >= least) << i;
    }
    if (documents == 0) continue;
    live.group[kept] = static_cast<uint32_t>(number);
    live.documents[kept++] = documents;
  }
  live.size = kept;
}

inline float weight_at(const float* weights, int64_t i) { return weights[i]; }
inline float weight_at(const uint16_t* weights, int64_t i) { return decode_half(weights[i]); }

template <class Term, class Weight>
float score(const Row& row, const DenseQuery& query) {
  const Term* terms = static_cast<const Term*>(row.terms);
  const Weight* weights = static_cast<const Weight*>(row.weights);
  float sum = 0;
  for (int64_t i = 0; i < row.size; i++) {
    const uint32_t term = terms[i] < query.vocab_size ? terms[i] : query.vocab_size;
    // Most terms of a document are not in the query: the bits stay in the L1 and the sum waits for no product with 0.
    if (query.bits[term / 32] >> term % 32 & 1) sum += query.weights[term] * weight_at(weights, i);
  }
  return sum;
}

#endif

#if defined(__AVX512VBMI2__)
constexpr double kGroupCost = 9;
#elif defined(__AVX512BW__)
constexpr double kGroupCost = 24;
#else
constexpr double kGroupCost = 0;
#endif

}  // namespace

extern const Kernels kernels = {
    kGroupCost,
    add_maxima,
    spread,
    unspread,
    add_postings,
    add_groups,
    keep,
    lane_maxima,
    collect,
    refine,
    {{score<uint16_t, float>, score<uint16_t, uint16_t>}, {score<uint32_t, float>, score<uint32_t, uint16_t>}}};

}  // namespace stair::STAIR_ISA
