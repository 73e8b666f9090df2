// The yardstick of search: a plain loop over inverted lists, term at a time, into a float32 sum for each document.
#include <cstdint>
#include <cstring>

extern "C" void term_at_a_time(const int64_t* offsets, const int32_t* documents, const float* weights,
                               const int32_t* terms, const float* query, int64_t n_terms, float* sums, int64_t N,
                               int64_t k, int32_t* ids, float* scores) {
  memset(sums, 0, sizeof(float) * N);
  for (int64_t j = 0; j < n_terms; j++) {
    const float weight = query[j];
    const int64_t end = offsets[terms[j] + 1];
    for (int64_t p = offsets[terms[j]]; p < end; p++) sums[documents[p]] += weight * weights[p];
  }
  for (int64_t i = 0; i < k; i++) ids[i] = -1, scores[i] = 0;
  float threshold = 0;
  for (int64_t d = 0; d < N; d += 16) {
    const int64_t end = d + 16 < N ? d + 16 : N;
    float most = 0;
    for (int64_t i = d; i < end; i++) most = sums[i] > most ? sums[i] : most;
    if (most <= threshold) continue;
    for (int64_t i = d; i < end; i++) {
      if (sums[i] <= threshold) continue;
      int64_t at = k - 1;
      for (; at > 0 && scores[at - 1] < sums[i]; at--) scores[at] = scores[at - 1], ids[at] = ids[at - 1];
      scores[at] = sums[i], ids[at] = static_cast<int32_t>(i);
      threshold = scores[k - 1];
    }
  }
}
