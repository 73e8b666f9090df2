// The inner loops in AVX-512. With VBMI2 vpexpandb lays the codes of a group's documents out as the group's 64 lanes.
#pragma once
// GCC's own headers start from vectors that they leave undefined on purpose.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "kernels.h"

namespace stair::STAIR_ISA {
namespace vectors {

constexpr int64_t kAhead = 1024;  // bytes of block maxima fetched ahead

inline void fetch(const void* address) { _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T0); }

// code * step / 256, of codes in the upper halves of 16-bit lanes.
inline __m512i scaled(__m512i codes, __m512i step) { return _mm512_mulhi_epu16(codes, step); }

inline __m512i all16(uint16_t value) { return _mm512_set1_epi16(static_cast<short>(value)); }

// Up to 64 codes from `first` on; a damaged file may place them anywhere.
inline __m512i load_codes(const Codes& codes, int64_t first) {
  if (__builtin_expect(first <= codes.size - 64, 1)) return _mm512_loadu_si512(codes.data + first);
  const int64_t left = codes.size - first;
  return _mm512_maskz_loadu_epi8(left > 0 ? ~uint64_t{0} >> (64 - left) : 0, codes.data + (left > 0 ? first : 0));
}

// Up to 64 codes from `first` on, each on the lane of its document.
#if defined(__AVX512VBMI2__)
inline __m512i expand_codes(uint64_t documents, const Codes& codes, int64_t first) {
  return _mm512_maskz_expand_epi8(documents, load_codes(codes, first));
}
#else
inline __m512i expand_codes(uint64_t documents, const Codes& codes, int64_t first) {
  alignas(64) uint64_t places[kGroup / 8];
  _mm512_store_si512(places, _mm512_movm_epi8(documents));
  uint64_t counts = documents - (documents >> 1 & 0x5555555555555555u);  // of each byte's bits
  counts = (counts & 0x3333333333333333u) + (counts >> 2 & 0x3333333333333333u);
  counts = (counts + (counts >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  const uint64_t before = counts * 0x0101010101010100u;  // and of those before it
  alignas(64) uint8_t last[kGroup + 8];
  const uint8_t* packed = last;
  if (__builtin_expect(first <= codes.size - static_cast<int64_t>(sizeof last), 1)) {
    packed = codes.data + first;
  } else {
    _mm512_store_si512(last, load_codes(codes, first));
    __builtin_memset(last + kGroup, 0, sizeof last - kGroup);
  }
  const auto eight = [&](int i) {
    uint64_t found;
    __builtin_memcpy(&found, packed + (before >> 8 * i & 0xff), sizeof found);
    return static_cast<long long>(_pdep_u64(found, places[i]));
  };
  // Put together in registers: eight stores would hold up the load of all 64 bytes.
  return _mm512_set_epi64(eight(7), eight(6), eight(5), eight(4), eight(3), eight(2), eight(1), eight(0));
}
#endif

// The group's sums of one term: the lower and the upper 32 documents.
inline void expand(const FrequentTerm& term, const Group& group, const Codes& codes, __m512i step, __m512i& lower,
                   __m512i& upper) {
  const __m512i lanes = expand_codes(group.documents, codes, term.first + group.start);
  lower = scaled(_mm512_slli_epi16(_mm512_cvtepu8_epi16(_mm512_castsi512_si256(lanes)), 8), step);
  upper = scaled(_mm512_slli_epi16(_mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(lanes, 1)), 8), step);
}

// Adds `count` terms' maxima of n_blocks blocks; even and odd blocks apart: the bytes of a 16-bit lane.
template <int kCount>
inline void add_maxima_of(const FrequentTerm* terms, int64_t first_block, int64_t n_blocks, bool initial,
                          uint16_t start, uint16_t* remainders) {
  const __m512i high = all16(0xff00);
  const uint8_t* maxima[kCount];
  __m512i step[kCount];
  for (int i = 0; i < kCount; i++) {
    maxima[i] = terms[i].block_max + first_block;
    step[i] = all16(terms[i].step);
  }
  for (int64_t b = 0; b < n_blocks; b += 64) {
    __m512i even = initial ? all16(start) : _mm512_loadu_si512(remainders + b);
    __m512i odd = initial ? all16(start) : _mm512_loadu_si512(remainders + b + 32);
    for (int i = 0; i < kCount; i++) {
      const __m512i x = _mm512_loadu_si512(maxima[i] + b);
      fetch(maxima[i] + b + kAhead);
      even = _mm512_add_epi16(even, scaled(_mm512_slli_epi16(x, 8), step[i]));
      odd = _mm512_add_epi16(odd, scaled(_mm512_and_si512(x, high), step[i]));
    }
    _mm512_storeu_si512(remainders + b, even);
    _mm512_storeu_si512(remainders + b + 32, odd);
  }
}

inline void add_maxima(const FrequentTerm* terms, int64_t n_terms, int64_t first_block, int64_t n_blocks,
                       uint16_t start, uint16_t* remainders) {
  int64_t i = 0;
  for (; i + 4 <= n_terms; i += 4) add_maxima_of<4>(terms + i, first_block, n_blocks, i == 0, start, remainders);
  for (; i < n_terms; i++) add_maxima_of<1>(terms + i, first_block, n_blocks, i == 0, start, remainders);
  __m512i lower, upper;  // even and odd blocks side by side again
  for (int lane = 0; lane < 32; lane++) {
    reinterpret_cast<uint16_t*>(&lower)[lane] = static_cast<uint16_t>(lane / 2 + lane % 2 * 32);
    reinterpret_cast<uint16_t*>(&upper)[lane] = static_cast<uint16_t>(16 + lane / 2 + lane % 2 * 32);
  }
  for (int64_t b = 0; b < n_blocks; b += 64) {
    const __m512i even = _mm512_loadu_si512(remainders + b), odd = _mm512_loadu_si512(remainders + b + 32);
    _mm512_storeu_si512(remainders + b, _mm512_permutex2var_epi16(even, lower, odd));
    _mm512_storeu_si512(remainders + b + 32, _mm512_permutex2var_epi16(even, upper, odd));
  }
}

// Lanes [32 * i, 32 * i + 32) of 32 blocks of 16 documents.
inline __m512i of_blocks(__m512i blocks, int i) {
  const __m512i first = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(1), 1);
  return _mm512_permutexvar_epi16(_mm512_add_epi16(first, all16(static_cast<uint16_t>(2 * i))), blocks);
}

inline void spread(const uint16_t* remainders, int64_t n_blocks, uint16_t* sums) {
  for (int64_t b = 0; b < n_blocks; b += 32) {
    const __m512i blocks = _mm512_loadu_si512(remainders + b);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(sums + b * kBlock + 32 * i, of_blocks(blocks, i));
  }
}

inline void unspread(const uint16_t* remainders, int64_t n_blocks, uint16_t* sums) {
  for (int64_t b = 0; b < n_blocks; b += 32) {
    const __m512i blocks = _mm512_loadu_si512(remainders + b);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
      uint16_t* to = sums + b * kBlock + 32 * i;
      _mm512_storeu_si512(to, _mm512_sub_epi16(_mm512_loadu_si512(to), of_blocks(blocks, i)));
    }
  }
}

inline void add_postings(const uint16_t* documents, const Codes& codes, int64_t first, int64_t n, uint16_t step,
                         uint16_t*, uint16_t* sums) {
  const __m128i steps = _mm_set1_epi16(static_cast<short>(step)), one = _mm_set1_epi16(1);
  // Most segments are short: one loop over eights without a tail mispredicts once. Past the end 0 is added to the
  // documents that follow in the array.
  const int64_t whole = first + n + 8 <= codes.size ? n : n & ~int64_t{7};
  int64_t p = 0;
  for (; p < whole; p += 8) {
    const __mmask8 mask = static_cast<__mmask8>(_bzhi_u32(0xff, static_cast<uint32_t>(n - p < 8 ? n - p : 8)));
    const __m128i code = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes.data + first + p)));
    const __m128i added = _mm_maskz_add_epi16(mask, _mm_mulhi_epu16(_mm_slli_epi16(code, 8), steps), one);
    uint64_t lower = static_cast<uint64_t>(_mm_cvtsi128_si64(added));
    uint64_t upper = static_cast<uint64_t>(_mm_extract_epi64(added, 1));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++, lower >>= 16, upper >>= 16) {
      sums[documents[p + i]] += static_cast<uint16_t>(lower);
      sums[documents[p + 4 + i]] += static_cast<uint16_t>(upper);
    }
  }
  for (; p < n; p++) sums[documents[p]] += 1 + (codes.data[first + p] * step >> 8);
}

inline void add_groups(const FrequentTerm& term, int64_t first_group, int64_t n_groups, const Codes& codes,
                       uint16_t* sums) {
  const __m512i step = all16(term.step);
  for (int64_t g = 0; g < n_groups; g++) {
    uint16_t* to = sums + g * kGroup;
    __m512i lower, upper;
    fetch(term.groups + first_group + g + 32);
    expand(term, term.groups[first_group + g], codes, step, lower, upper);
    _mm512_storeu_si512(to, _mm512_add_epi16(_mm512_loadu_si512(to), lower));
    _mm512_storeu_si512(to + 32, _mm512_add_epi16(_mm512_loadu_si512(to + 32), upper));
  }
}

inline void keep(const uint64_t* documents, int64_t n_groups, uint16_t* sums) {
  for (int64_t g = 0; g < n_groups; g++) {
    uint16_t* of_group = sums + g * kGroup;
    const auto lower = static_cast<__mmask32>(documents[g]), upper = static_cast<__mmask32>(documents[g] >> 32);
    _mm512_storeu_si512(of_group, _mm512_maskz_loadu_epi16(lower, of_group));
    _mm512_storeu_si512(of_group + 32, _mm512_maskz_loadu_epi16(upper, of_group + 32));
  }
}

inline uint16_t lane_maxima(const uint16_t* sums, uint16_t* maxima, uint16_t* stripe) {
  __m512i even = _mm512_setzero_si512(), odd = even;
  for (int64_t d = 0; d < kChunk; d += 64) {
    even = _mm512_max_epu16(even, _mm512_loadu_si512(sums + d));
    odd = _mm512_max_epu16(odd, _mm512_loadu_si512(sums + d + 32));
  }
  const __m512i all = _mm512_max_epu16(even, odd);
  _mm512_storeu_si512(maxima, all);
  _mm512_storeu_si512(stripe, _mm512_max_epu16(all, _mm512_loadu_si512(stripe)));
  const __m256i half = _mm256_max_epu16(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  const __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  // vphminposuw finds the least
  const __m128i least = _mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi16(-1)));
  return static_cast<uint16_t>(~_mm_cvtsi128_si32(least));
}

inline uint64_t at_least(__m512i lower, __m512i upper, __m512i least) {
  return _mm512_cmpge_epu16_mask(lower, least) | static_cast<uint64_t>(_mm512_cmpge_epu16_mask(upper, least)) << 32;
}

inline void collect(const uint16_t* sums, int64_t first_group, uint16_t least, LiveGroups& live) {
  const __m512i leasts = all16(least);
  for (int64_t g = 0; g < kChunkGroups; g++) {
    const uint64_t documents =
        at_least(_mm512_loadu_si512(sums + g * kGroup), _mm512_loadu_si512(sums + g * kGroup + 32), leasts);
    live.group[live.size] = static_cast<uint32_t>(first_group + g);
    live.documents[live.size] = documents;
    live.size += documents != 0;
  }
}

// A group's four maxima, scaled, each on the lanes of its block.
inline void expand_maxima(const Group& group, uint16_t step, __m512i& lower, __m512i& upper) {
  uint32_t maxima;
  __builtin_memcpy(&maxima, group.block_max, sizeof maxima);
  const __m128i wide = _mm_slli_epi16(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(static_cast<int>(maxima))), 8);
  const __m512i blocks = _mm512_castsi128_si512(_mm_mulhi_epu16(wide, _mm_set1_epi16(static_cast<short>(step))));
  lower = of_blocks(blocks, 0);
  upper = of_blocks(blocks, 1);
}

inline void refine(const FrequentTerm* terms, int64_t n_terms, const Codes& codes, uint16_t least, uint16_t* sums,
                   int64_t base_group, LiveGroups& live) {
  constexpr int64_t kGroupsAhead = 16, kCodesAhead = 8;
  const __m512i leasts = all16(least);
  const auto fetch_groups = [&](int64_t g) {
    if (g >= live.size) return;
    for (int64_t i = 0; i < n_terms; i++) fetch(terms[i].groups + live.group[g]);
  };
  const auto fetch_codes = [&](int64_t g) {
    if (g >= live.size) return;
    for (int64_t i = 0; i < n_terms; i++) {
      const Group& group = terms[i].groups[live.group[g]];
      fetch(codes.data + terms[i].first + group.start);
    }
  };
  for (int64_t g = 0; g < kGroupsAhead; g++) fetch_groups(g);
  for (int64_t g = 0; g < kCodesAhead; g++) fetch_codes(g);
  int64_t kept = 0;
  for (int64_t g = 0; g < live.size; g++) {
    fetch_groups(g + kGroupsAhead);
    fetch_codes(g + kCodesAhead);
    const uint32_t number = live.group[g];
    uint16_t* of_group = sums + (number - base_group) * kGroup;
    __m512i lower = _mm512_loadu_si512(of_group), upper = _mm512_loadu_si512(of_group + 32);
    for (int64_t i = 0; i < n_terms; i++) {
      const Group& group = terms[i].groups[number];
      __m512i low, high;
      expand_maxima(group, terms[i].step, low, high);
      lower = _mm512_sub_epi16(lower, low);
      upper = _mm512_sub_epi16(upper, high);
      expand(terms[i], group, codes, all16(terms[i].step), low, high);
      lower = _mm512_add_epi16(lower, low);
      upper = _mm512_add_epi16(upper, high);
    }
    const uint64_t documents = at_least(lower, upper, leasts) & live.documents[g];
    _mm512_storeu_si512(of_group, lower);
    _mm512_storeu_si512(of_group + 32, upper);
    live.group[kept] = number;
    live.documents[kept] = documents;
    kept += documents != 0;
  }
  live.size = kept;
}

inline __m512i load_terms(const uint16_t* terms, __mmask16 mask) {
  return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, terms));
}
inline __m512i load_terms(const uint32_t* terms, __mmask16 mask) { return _mm512_maskz_loadu_epi32(mask, terms); }
inline __m512 load_weights(const float* weights, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, weights); }
inline __m512 load_weights(const uint16_t* weights, __mmask16 mask) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, weights));
}

template <class Term, class Weight>
inline float score(const Row& row, const DenseQuery& query) {
  constexpr int64_t kMost = 256;
  const Term* terms = static_cast<const Term*>(row.terms);
  const Weight* weights = static_cast<const Weight*>(row.weights);
  const __m512i last = _mm512_set1_epi32(static_cast<int>(query.vocab_size));
  uint32_t found_terms[kMost + 16];
  float found_weights[kMost + 16];
  int64_t n = 0;
  float sum = 0;
  for (int64_t i = 0; i < row.size; i += 16) {
    const __mmask16 mask = row.size - i >= 16 ? 0xffff : (1u << (row.size - i)) - 1;
    const __m512i term = _mm512_min_epu32(load_terms(terms + i, mask), last);
    // Most terms of a document are not in the query; its bits stay in the L1, its weights do not.
    const __m512i bits = _mm512_i32gather_epi32(_mm512_srli_epi32(term, 5), query.bits, 4);
    const __m512i bit = _mm512_sllv_epi32(_mm512_set1_epi32(1), _mm512_and_si512(term, _mm512_set1_epi32(31)));
    const __mmask16 found = _mm512_mask_test_epi32_mask(mask, bits, bit);
    _mm512_storeu_si512(found_terms + n, _mm512_maskz_compress_epi32(found, term));
    _mm512_storeu_ps(found_weights + n, _mm512_maskz_compress_ps(found, load_weights(weights + i, mask)));
    n += __builtin_popcount(found);
    if (n <= kMost - 16 && i + 16 < row.size) continue;
    for (int64_t j = 0; j < n; j++) sum += query.weights[found_terms[j]] * found_weights[j];
    n = 0;
  }
  return sum;
}

}  // namespace vectors
}  // namespace stair::STAIR_ISA
#pragma GCC diagnostic pop
