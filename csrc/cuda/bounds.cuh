// The bounds by which search passes documents over: whole numbers of 16 bits, above every score, made of 8-bit codes.
//
// Term j of a query has the weight q_j and the unit u_j; a posting of weight w has the least code c with c u_j >= w.
// With a scale S and x_j = q_j u_j, a posting adds
//
//   a_j(c) = ceil(c m_j / 256)      m_j = floor(256 S x_j) + 1 > 256 S x_j,
//
// both rounded up, so that the sum U of a document is at least S times its score in exact arithmetic. It never reaches
// 2^16, and two sums share a word of 32 bits without a carry from one to the other: with n terms, all codes at most
// 255,
//
//   a_j(c) <= (255 m_j + 255) / 256 <= 255 S x_j + 510 / 256 < 255 S x_j + 2,      sum_j a_j < 255 S sum_j x_j + 2 n,
//
// and S = (2^16 - 1 - 2 n) / (255 sum_j x_j), made a little smaller for the roundings of float64. Nor is U far above:
// a_j(c) < c m_j / 256 + 1 <= S c x_j + c / 256 + 1 and c u_j < w + u_j, so that U < S score + sum_j (S x_j + 2), which
// is S score + 257 + 2 n at most: the slack.
//
// A score f in float32, n products and n sums, is within (1 +- e) score +- d: e = (n + 1) 2^-24 and a little, d = n
// 2^-149 for products that are subnormal; and it is infinite where score (1 + e) passes the largest float32.
#pragma once
#include <cfloat>

#include "cuda/ptx.cuh"

namespace stair {
namespace {

constexpr int kMostBound = 65535;
constexpr int kMostTerms = 1024;  // of a query: e < 2^-12, and a scale of which 2 n take a thirtieth at most

// What is known of a query before and between the launches.
struct Plan {
  double scale;   // S
  int32_t terms;  // n: those that can match
  int32_t slack;  // how far a bound may be above S score
  int32_t dust;   // 2 d S, at most kMostBound
  int32_t huge;   // the least bound of an infinite score
  int32_t cut;    // documents whose bound is below can no longer be among the best
  int32_t poisoned;
};

// The least bound of a document whose score in float32 is no less than that of one whose bound, or S score, is `bound`.
__device__ __forceinline__ int cut_of(const Plan& plan, int bound, int slack) {
  const int rounding = int(uint32_t(bound) * uint32_t(plan.terms + 2) >> 22) + 2;  // 2 e, and this very arithmetic
  return max(1, min(bound - slack - rounding - plan.dust, plan.huge));
}

// The same for a score that is known.
__device__ __forceinline__ int cut_of_score(const Plan& plan, float score) {
  const double bound = plan.scale * double(fminf(score, FLT_MAX));
  return cut_of(plan, int(fmin(bound, double(kMostBound))), 0);
}

__device__ __forceinline__ Plan make_plan(int terms, double sum) {
  constexpr double kSmaller = 1.0 - 1.0 / (int64_t(1) << 40), kMost = kMostBound, kDust = 1.4012984643248171e-45;
  Plan plan = {};
  plan.terms = terms;
  plan.scale = terms ? (kMost - 2 * terms) / (255 * sum) * kSmaller : 0.0;
  plan.slack = 258 + 2 * terms;
  plan.dust = int(fmin(ceil(2 * terms * kDust * plan.scale), kMost));
  plan.huge = int(fmin(plan.scale * FLT_MAX * (1.0 - 1.0 / 4096), kMost));
  plan.cut = 1;
  return plan;
}

// 256 S x, rounded up.
__device__ __forceinline__ uint32_t factor_of(const Plan& plan, double x) { return uint32_t(plan.scale * x * 256) + 1; }

// What a posting adds.
__device__ __forceinline__ uint32_t added(uint32_t code, uint32_t factor) { return (code * factor + 255) >> 8; }

}  // namespace
}  // namespace stair
