// The postings of a query's terms in one range of documents, added up in shared memory: two sums of 16 bits a word.
//
// The lists of all terms are one run of pieces of 64 postings, which the warps take in turn: a list's length does not
// matter, and none waits for another. A lane takes two postings that stand side by side, 4 bytes of documents and 2 of
// codes, and four pieces are on their way at a time. Not 16 bytes a lane: of a list that holds every second document,
// 32 lanes 8 postings apart meet in the banks of shared memory 3.3 deep, 2 apart 2.2 deep (every 20th: 3.5 either way),
// and what the atomics take of the banks is the larger cost. A list of nine postings then is one step, not eight.
//
// A list begins anywhere: its pieces begin at the multiple of 32 postings before it, so that every piece is whole
// sectors. The arrays hold an even number of postings: that behind the last of an odd number is nobody's.
#pragma once
#include "cuda/bounds.cuh"
#include "cuda/select.cuh"

namespace stair {
namespace {

constexpr int kRange = 16384;  // documents whose sums a block holds: 32 KiB
constexpr int kPiece = 64;     // postings
constexpr int kAligned = 32;   // postings whose codes are a sector
constexpr int kInFlight = 4;   // pieces of a warp
constexpr int kWords = kRange / 2;
constexpr int kVectors = kWords / 4 / kThreads;  // of 16 bytes, 8 documents, for each thread
static_assert(kVectors * 8 <= 64);               // a thread's documents are bits of a word

// stair_kernels/index.py has the arrays.
struct Postings {
  const int64_t* term_starts;
  const uint32_t* segments;
  const uint16_t* documents;
  const uint8_t* codes;
  int64_t V, ranges;
};

// A term of a query that can match.
struct Term {
  int32_t term;
  float weight;
  uint32_t factor;
};

// The postings of a term in the range: those of number begin <= i < end, counted like all pieces of the query from
// the first on, are documents[base + i]. base + i for i = 0 need not exist.
struct alignas(8) Segment {
  int64_t base;
  uint32_t begin, end;
};

// A term's postings in the range, counted from its own first piece.
__device__ __forceinline__ Segment segment_of(const Postings& postings, int32_t term, int64_t range) {
  const uint32_t* bounds = postings.segments + term * (postings.ranges + 1) + range;
  const int64_t first = postings.term_starts[term] + bounds[0], base = first / kAligned * kAligned;
  const auto begin = uint32_t(first - base);
  return {base, begin, begin + (bounds[1] - bounds[0])};
}

__device__ __forceinline__ int pieces_of(const Segment& segment) {
  return segment.end == segment.begin ? 0 : int(segment.end + kPiece - 1) / kPiece;
}

// Makes one run of the pieces of all segments, by the first warp: ends[j] is where those of segments 0 .. j end.
__device__ void number_pieces(Segment* segments, int* ends, int n) {
  const int lane = threadIdx.x % 32;
  int before = 0;
  for (int first = 0; first < n; first += 32) {
    const int j = first + lane, mine = j < n ? pieces_of(segments[j]) : 0;
    const int end = before + sum_up_to_lane(mine);
    before = __shfl_sync(kAllLanes, end, 31);
    if (j >= n) continue;
    const int shift = (end - mine) * kPiece;
    ends[j] = end;
    segments[j].base -= shift;
    segments[j].begin += shift;
    segments[j].end += shift;
  }
}

// How many of list [n], which ascends, are at most `value`.
__device__ __forceinline__ int count_up_to(const int* list, int n, int value) {
  int begin = 0, end = n;
  while (begin < end) {
    const int middle = (begin + end) / 2;
    if (list[middle] <= value)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

// A piece in two words, for a warp to pass round: its first posting, in units of kAligned, and what of it is the
// list's, begin <= i < end of its 64, with the list's factor.
struct Piece {
  uint32_t first, packed;

  __device__ uint32_t size() const { return packed & 127; }
  __device__ uint32_t begin() const { return packed >> 7 & 31; }
  __device__ uint32_t factor() const { return packed >> 12; }
};
constexpr int64_t kMostPostings = int64_t(kAligned) << 32;

// Piece `number` of the run; one past it has no postings.
__device__ __forceinline__ Piece find_piece(const Segment* segments, const int* ends, const uint32_t* factors, int n,
                                            int number) {
  if (number >= ends[n - 1]) return {0, 0};
  const int j = count_up_to(ends, n, number);
  const Segment segment = segments[j];
  const uint32_t at = uint32_t(number) * kPiece, begin = segment.begin > at ? segment.begin - at : 0;
  const uint32_t end = min(segment.end - at, uint32_t(kPiece));
  return {uint32_t((segment.base + at) / kAligned), (end - begin) | begin << 7 | factors[j] << 12};
}

struct Pair {
  uint32_t documents, codes;
};

// The lane's two postings of a piece; those that are not the list's may be anything. Nothing here waits for the loads.
__device__ __forceinline__ Pair load_pair(const Postings& postings, const Piece& piece) {
  const uint32_t i = threadIdx.x % 32 * 2;
  if (i >= piece.begin() + piece.size()) return {0, 0};
  const int64_t at = int64_t(piece.first) * kAligned;
  return {__ldg(reinterpret_cast<const uint32_t*>(postings.documents + i + at)),
          __ldg(reinterpret_cast<const uint16_t*>(postings.codes + i + at))};
}

// The mask is the document itself in a sound index, and keeps a damaged one within the sums.
__device__ __forceinline__ void add_posting(uint32_t* sums, uint32_t document, uint32_t code, uint32_t factor) {
  atomicAdd(&sums[document % kRange / 2], added(code, factor) << document % 2 * 16);
}

__device__ __forceinline__ void add_pair(uint32_t* sums, const Pair& pair, const Piece& piece) {
  const uint32_t i = threadIdx.x % 32 * 2 - piece.begin();
  if (i < piece.size()) add_posting(sums, pair.documents & 0xffff, pair.codes & 0xff, piece.factor());
  if (i + 1 < piece.size()) add_posting(sums, pair.documents >> 16, pair.codes >> 8, piece.factor());
}

// Adds all pieces. A warp looks 32 of them up at a time, a lane each.
__device__ void add_pieces(uint32_t* sums, const Postings& postings, const Segment* segments, const int* ends,
                           const uint32_t* factors, int n) {
  const int lane = threadIdx.x % 32, pieces = ends[n - 1];
  for (int first = threadIdx.x / 32; first < pieces; first += 32 * kWarps) {
    const Piece mine = find_piece(segments, ends, factors, n, first + lane * kWarps);
    for (int next = 0; next < 32 && first + next * kWarps < pieces; next += kInFlight) {
      Piece piece[kInFlight];
      Pair pair[kInFlight];
#pragma unroll
      for (int l = 0; l < kInFlight; ++l) {
        piece[l] = {__shfl_sync(kAllLanes, mine.first, next + l), __shfl_sync(kAllLanes, mine.packed, next + l)};
        pair[l] = load_pair(postings, piece[l]);
      }
#pragma unroll
      for (int l = 0; l < kInFlight; ++l) add_pair(sums, pair[l], piece[l]);
    }
  }
}

__device__ __forceinline__ void clear(uint32_t* sums) {
#pragma unroll
  for (int v = 0; v < kVectors; ++v) reinterpret_cast<uint4*>(sums)[v * kThreads + threadIdx.x] = {0, 0, 0, 0};
}

// The document of the thread's bit `i`.
__device__ __forceinline__ int document_of(int i) { return (i / 8 * kThreads + int(threadIdx.x)) * 8 + i % 8; }

__device__ __forceinline__ int sum_of(const uint32_t* sums, int document) {
  return int(sums[document / 2] >> document % 2 * 16 & 0xffff);
}

// Which of the thread's documents have a sum of at least `cut`, 1 to 65,535.
__device__ __forceinline__ uint64_t documents_reaching(const uint32_t* sums, int cut) {
  const uint32_t wanted = uint32_t(cut) << 16;
  uint64_t reaching = 0;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const uint4 four = reinterpret_cast<const uint4*>(sums)[v * kThreads + threadIdx.x];
    uint32_t bits = 0;
    const uint32_t word[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int w = 0; w < 4; ++w)
      bits |= uint32_t(word[w] << 16 >= wanted) << 2 * w | uint32_t(word[w] >= wanted) << (2 * w + 1);
    reaching |= uint64_t(bits) << 8 * v;
  }
  return reaching;
}

}  // namespace
}  // namespace stair
